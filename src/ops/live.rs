//! Which rows take part in an op: `live` has one entry per row, and rows whose entry is 0 do not; without it all do. Nothing is computed
//! for a row that does not take part and no gradient flows through it; its result is 0 unless the op says otherwise.

use crate::{Tensor, device::on_device, real::Real};

/// `live` has one entry per row.
#[track_caller]
pub(super) fn check_live(op: &str, live: Option<&Tensor>, n: usize) {
    assert!(
        live.is_none_or(|live| live.len() == n),
        "{op}: `live` has {:?} entries for {n} rows",
        live.map(Tensor::len)
    );
}

/// Whether row i takes part.
#[inline(always)]
pub(super) fn is_live<T: Real>(live: Option<&[T]>, i: usize) -> bool {
    live.is_none_or(
        #[inline(always)]
        |live| live[i] != T::ZERO,
    )
}

/// Which rows take part, one by one.
#[track_caller]
pub(super) fn live_rows(op: &str, live: Option<&Tensor>, n: usize) -> Vec<bool> {
    check_live(op, live, n);
    let Some(live) = live else { return vec![true; n] };
    // On a GPU only profiles ask for this; kernels look for themselves.
    on_device!(
        live.device(),
        T => live.slice::<T>().iter().map(|&x| x != <T as Real>::ZERO).collect(),
        _gpu => live.to_f64().iter().map(|&x| x != 0.0).collect()
    )
}
