//! One file per op: maths, shapes, CPU code, backward and cost side by side.

mod affine;
mod bezier;
mod conv_pair;
mod dropout_linear;
mod elementwise;
mod gaussian;
mod gemm;
mod gru;
mod likelihood;
mod linear;
mod log_mean_exp;
mod max_norm;
mod mixture;
mod noise;
pub mod nvil;
mod onoff;
mod place_points;
mod raster;
mod render_stroke;
mod shape;
mod squash;
mod stn;
mod tanh_ratio;

use crate::{Tensor, device::on_device, real::Real};

pub use crate::op::{Cost, Op};
pub use affine::Angle;
pub use dropout_linear::{Keep, dropout_linear};
pub use elementwise::combine;
pub use gaussian::normal_sample;
pub use likelihood::{Likelihood, residual_ratio};
pub use linear::Activation;
pub use mixture::mixture_sample;
pub use onoff::sample_onoff;
pub use render_stroke::{Placement, RenderSettings, render_stroke};
pub use shape::{concat, stack};
pub use squash::{Range, Squash};

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
            on_device!(
                live.device(),
                T => live.slice::<T>().iter().map(|&x| x != <T as Real>::ZERO).collect(),
                _gpu => live.to_f64().iter().map(|&x| x != 0.0).collect()
            )
        }
    }
}
