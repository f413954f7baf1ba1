//! What the tape asks of a function.

use crate::{Device, Slot, Tensor};

/// A differentiable function with one result. Both directions are required: an op without a backward cannot be written, so a
/// gradient cannot be lost in silence.
pub trait Op: 'static {
    /// The op's one name, everywhere.
    fn name(&self) -> &'static str;

    /// The result, followed by whatever the backward will want to see again. Panics where shapes do not fit, which names the line that
    /// applied the op.
    #[track_caller]
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor>;

    /// For each wanted input i: `dx[i] += (∂y/∂xᵢ)ᵀ·dy`. `y` is what [`Op::forward`] returned.
    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]);

    /// Whether the result is that of a ReLU: where it is 0, no gradient goes back through this op, so what reads it need not find any.
    fn rectified(&self) -> bool {
        false
    }

    /// What the forward must do at the very least; benches and the profile hold the time against it.
    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        Cost { flops: y.len() as f64, bytes: size(x) + size([y]) }
    }
}

/// Work that cannot be avoided.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

/// Bytes of tensors.
pub(crate) fn size<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    tensors.into_iter().map(|x| (x.len() * x.device().dtype().bytes()) as f64).sum()
}
