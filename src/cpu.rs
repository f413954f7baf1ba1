//! How CPU kernels run: vectorised for the processor at hand, parallel over rows.
//!
//! A binary is built for the oldest x86-64, yet its kernels should use AVX2 or AVX-512 where the processor has them. [`simd`]
//! compiles its closure once for each level and picks one at run time. For that to reach the loops inside, everything below must
//! be inlined: mark the closures and the functions they call `#[inline(always)]`.

use crate::real::Real;
use rayon::prelude::*;
use std::cell::Cell;

struct Kernel<F>(F);

impl<R, F: FnOnce() -> R> pulp::WithSimd for Kernel<F> {
    type Output = R;
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `kernel` compiled for the best instruction set of this processor.
#[inline(always)]
pub(crate) fn simd<R>(kernel: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(Kernel(kernel))
}

/// Calls `kernel(i, row i of out)` for all rows of `row` elements, in parallel, at least `together` rows per task.
#[inline(always)]
pub(crate) fn each_row<T: Send>(out: &mut [T], row: usize, together: usize, kernel: impl Fn(usize, &mut [T]) + Sync) {
    if row == 0 {
        return;
    }
    out.par_chunks_mut(row * together).enumerate().for_each(|(task, rows)| {
        simd(
            #[inline(always)]
            || {
                for (i, one) in rows.chunks_mut(row).enumerate() {
                    kernel(task * together + i, one);
                }
            },
        )
    });
}

/// Elements per task of an elementwise kernel: enough to pay for the hand-over, few enough to share.
pub(crate) const BLOCK: usize = 16 * 1024;

/// Calls `kernel(offset, block of out)` for blocks of up to [`BLOCK`] elements, in parallel.
#[inline(always)]
pub(crate) fn each_block<T: Send>(out: &mut [T], kernel: impl Fn(usize, &mut [T]) + Sync) {
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| {
        simd(
            #[inline(always)]
            || kernel(i * BLOCK, block),
        )
    });
}

/// Lends `n` numbers of this thread's scratch memory to `f`; their contents are arbitrary.
#[inline(always)]
pub(crate) fn with_scratch<T: Real, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    thread_local!(static MEMORY: Cell<Vec<f64>> = const { Cell::new(vec![]) });
    let mut memory = MEMORY.take();
    if memory.len() < n + 8 {
        memory.resize(n + 8, 0.0);
    }
    let aligned = memory.as_ptr().align_offset(64).min(8);
    let result = f(&mut bytemuck::cast_slice_mut(&mut memory[aligned..])[..n]);
    MEMORY.set(memory);
    result
}
