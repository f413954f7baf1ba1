//! One file per op: maths, shapes, CPU code, backward and cost side by side.

mod affine;
mod bezier;
mod conv_pair;
mod dropout_linear;
mod elementwise;
mod gaussian;
mod gru;
mod likelihood;
mod linear;
mod log_mean_exp;
mod max_norm;
mod mixture;
pub mod nvil;
mod onoff;
mod place_points;
mod raster;
mod render_stroke;
mod shape;
mod squash;
mod stn;
mod tanh_ratio;

use crate::{Device, Tensor, tape::Slot};

pub use affine::Angle;
pub use dropout_linear::{Keep, dropout_linear};
pub use elementwise::combine;
pub use likelihood::{Likelihood, residual_ratio};
pub use linear::Activation;
pub use onoff::sample_onoff;
pub use render_stroke::{Placement, RenderSettings, render_stroke};
pub use shape::{concat, stack};
pub use squash::{Range, Squash};

/// A differentiable function with one result. Both directions are required: an op without a backward cannot be written, so a
/// gradient cannot be lost in silence.
pub trait Op: 'static {
    /// The op's one name, everywhere.
    fn name(&self) -> &'static str;

    /// The result, followed by whatever the backward will want to see again.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor>;

    /// For each wanted input i: `dx[i] += (∂y/∂xᵢ)ᵀ·dy`. `y` is what [`Op::forward`] returned.
    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]);

    /// What the forward must do at the very least; benches and the profile hold the time against it.
    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let elements: usize = x.iter().map(Tensor::len).sum::<usize>() + y.len();
        let size = match y.device().dtype() {
            crate::DType::F32 => 4,
            crate::DType::F64 => 8,
        };
        Cost { flops: y.len() as f64, bytes: (elements * size) as f64 }
    }
}

/// Work that cannot be avoided.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

#[track_caller]
pub(crate) fn same_shape(op: &str, a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "{op}: the shapes differ");
}

/// Which rows take part: those whose entry is not 0, or all.
pub(crate) fn live_rows(live: Option<&Tensor>, n: usize) -> Vec<bool> {
    match live {
        None => vec![true; n],
        Some(live) => {
            assert_eq!(live.len(), n, "one entry of `live` per row");
            // On a GPU only profiles ask for this; kernels look for themselves.
            crate::device::on_device!(
                live.device(),
                T => live.slice::<T>().iter().map(|&x| x != <T as crate::real::Real>::ZERO).collect(),
                _gpu => live.to_f64().iter().map(|&x| x != 0.0).collect()
            )
        }
    }
}
