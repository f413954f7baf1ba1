//! Division of an image by its maximum (step 5 of section 6 of the model).
//!
//! ```text
//! y = x / m,   m = max x where that is at least `floor`, else 1
//! ```
//!
//! The maximum is a constant in differentiation: dx = dy/m.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct MaxNorm {
    floor: f64,
}

impl<'t> Var<'t> {
    /// Divides each image by its largest value, or leaves it as it is where that is below `floor`: `[N, …]` → the same shape.
    #[track_caller]
    pub fn max_norm(self, floor: f64) -> Var<'t> {
        self.tape().apply(MaxNorm { floor }, &[self])
    }
}

/// What the image is divided by.
#[inline(always)]
pub(super) fn divisor<T: Real>(image: &[T], floor: f64) -> T {
    let (blocks, rest) = image.as_chunks::<16>();
    let mut most = [T::ZERO; 16];
    for block in blocks {
        for (most, &x) in most.iter_mut().zip(block) {
            *most = x.larger(*most);
        }
    }
    let peak = most.iter().chain(rest).fold(T::ZERO, |a, &b| b.larger(a));
    if peak >= T::of(floor) { peak } else { T::ONE }
}

impl Op for MaxNorm {
    fn name(&self) -> &'static str {
        "max_norm"
    }

    /// Saves the divisors `[N]`.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let n = x[0].shape()[0];
        let image = x[0].len() / n.max(1);
        let (mut y, mut by) = (Tensor::empty(cx, x[0].shape()), Tensor::empty(cx, &[n]));
        on_device!(cx, T => {
            let x = x[0].slice::<T>();
            cpu::each_row(by.slice_mut::<T>(), 1, 8, #[inline(always)] |i, by| {
                by[0] = divisor(&x[image * i..][..image], self.floor);
            });
            let by = by.slice::<T>();
            cpu::each_row(y.slice_mut::<T>(), image, 8, #[inline(always)] |i, y| {
                let by = by[i];
                y.iter_mut().zip(&x[image * i..]).for_each(|(y, &x)| *y = x / by);
            });
        }, gpu => {
            let all = args![&x[0], y.out(), by.out(), image, Arg::Real(self.floor)];
            gpu.launch("max_norm", "max_norm_fwd", Launch::rows(n, 512), all);
        });
        vec![y, by]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let n = dy.shape()[0];
        let image = dy.len() / n.max(1);
        on_device!(cx, T => {
            let Some(slot) = &mut dx[0] else { return };
            let (by, dy) = (y[1].slice::<T>(), dy.slice::<T>());
            cpu::each_row(slot.add::<T>(), image, 8, #[inline(always)] |i, dx| {
                let by = by[i];
                dx.iter_mut().zip(&dy[image * i..]).for_each(|(dx, &dy)| *dx += dy / by);
            });
        }, gpu => {
            let [dx, add] = grad(&mut dx[0]);
            gpu.launch("max_norm", "max_norm_bwd", Launch::rows(n, 512), args![&y[1], dy, dx, add, image]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grads, Tape};

    #[test]
    fn the_maximum_is_a_constant_and_faint_images_stay_as_they_are() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let ink = [1.0, 4.0, 2.0, 0.0, 5e-5, 1e-5, 0.0, 2e-5];
        let x = tape.input(Tensor::from_f64(&device, &[2, 2, 2], &ink));
        let y = x.max_norm(1e-4);
        assert_eq!(y.value().to_f64(), [0.25, 1.0, 0.5, 0.0, 5e-5, 1e-5, 0.0, 2e-5]);
        let grads = tape.backward(y.sum(), &mut Grads::none(&device));
        assert_eq!(grads.of(x).to_f64(), [0.25, 0.25, 0.25, 0.25, 1.0, 1.0, 1.0, 1.0]);
    }
}
