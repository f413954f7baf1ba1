//! One file per op: maths, shapes, CPU code, backward and cost side by side.

// The usual.
mod batch_norm;
mod conv2d;
mod conv_pair;
mod dropout;
mod dropout_linear;
mod elementwise;
mod gather;
mod gru;
mod layer_norm;
mod linear;
mod matmul;
mod pointwise;
mod pool;
mod reduce;
mod shape;
mod softmax;
mod view;

// Layouts: where a stroke goes.
mod affine;
mod place_points;
mod stn;

// The renderer, in parts and fused.
mod bezier;
mod max_norm;
mod raster;
mod render_stroke;
mod tanh_ratio;

// Densities, samples, and the learning signal.
mod gaussian;
mod likelihood;
mod log_mean_exp;
mod mixture;
pub mod nvil;
mod onoff;
mod prefix_bound;
mod squash;

// Correlations with small kernels on a CPU; random tensors; rows that take part; how products are cut on a GPU; what is done to images
// before they are learned from.
mod flat;
mod gemm;
mod live;
mod noise;
mod thicken;

use crate::{Tensor, op::size};

pub use crate::op::{Cost, Op};
pub use affine::Angle;
pub use batch_norm::Moments;
pub use dropout::Keep;
pub use dropout_linear::dropout_linear;
pub use elementwise::combine;
pub use gaussian::normal_sample;
pub use likelihood::{Likelihood, residual_ratio};
pub use linear::Activation;
pub use mixture::mixture_sample;
pub use onoff::sample_onoff;
pub use pool::Window;
pub use prefix_bound::prefix_bound;
pub use render_stroke::{Placement, RenderSettings, render_stroke};
pub use shape::{concat, stack};
pub(crate) use squash::PIXEL_SCALE;
pub use squash::{Range, Squash};
pub use thicken::{Thicker, thicken};

#[track_caller]
pub(crate) fn same_shape(op: &str, a: &Tensor, b: &Tensor) {
    assert!(a.shape() == b.shape(), "{op}: {:?} and {:?}; wanted the same shape twice", a.shape(), b.shape());
}
