//! A hyperbolic tangent whose slope is given per image: strokes and canvases (steps 6 and 7 of section 6 of the model).
//!
//! ```text
//! y = tanh(x/ω)        dx = dy·(1 − y²)/ω        dω = −Σ dy·(1 − y²)·x/ω²
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct TanhRatio;

impl<'t> Var<'t> {
    /// tanh(x/slope): x `[N, …]`, slope `[N]` or `[N, 1]` → the shape of x.
    #[track_caller]
    pub fn tanh_ratio(self, slope: Var<'t>) -> Var<'t> {
        self.tape().apply(TanhRatio, &[self, slope])
    }
}

impl Op for TanhRatio {
    fn name(&self) -> &'static str {
        "tanh_ratio"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let n = x[0].shape()[0];
        assert_eq!(x[1].len(), n, "tanh_ratio: slopes {:?} of x {:?}", x[1].shape(), x[0].shape());
        let image = x[0].len() / n.max(1);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let (x, slope) = (x[0].slice::<T>(), x[1].slice::<T>());
            cpu::each_row(y.slice_mut::<T>(), image, 8, #[inline(always)] |i, y| {
                let steep = T::ONE / slope[i];
                for (y, &x) in y.iter_mut().zip(&x[image * i..]) {
                    *y = Real::tanh(x * steep); // not x.tanh(), which is the slow one of the standard library
                }
            });
        }, gpu => {
            gpu.launch("tanh_ratio", "tanh_ratio_fwd", Launch::rows(n, 512), args![&x[0], &x[1], y.out(), image]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let n = x[0].shape()[0];
        let image = x[0].len() / n.max(1);
        on_device!(cx, T => {
            let (x, slope, y, dy) = (x[0].slice::<T>(), x[1].slice::<T>(), y[0].slice::<T>(), dy.slice::<T>());
            if let Some(slot) = &mut dx[0] {
                cpu::each_row(slot.add::<T>(), image, 8, #[inline(always)] |i, dx| {
                    let steep = T::ONE / slope[i];
                    let rows = y[image * i..].iter().zip(&dy[image * i..]);
                    dx.iter_mut().zip(rows).for_each(|(dx, (&y, &dy))| *dx += dy * (T::ONE - y * y) * steep);
                });
            }
            if let Some(slot) = &mut dx[1] {
                cpu::each_row(slot.add::<T>(), 1, 8, #[inline(always)] |i, dslope| {
                    let [x, y, dy] = [x, y, dy].map(#[inline(always)] |all| &all[image * i..][..image]);
                    let terms = cpu::sum([x, y, dy], #[inline(always)] |[x, y, dy]| dy * (T::ONE - y * y) * x);
                    dslope[0] += -terms / (slope[i] * slope[i]);
                });
            }
        }, gpu => {
            let [[dslope, add_slope], [dx, add_x]] = [grad(&mut dx[1]), grad(&mut dx[0])];
            let all = args![&x[0], &x[1], &y[0], dy, dx, add_x, dslope, add_slope, image];
            gpu.launch("tanh_ratio", "tanh_ratio_bwd", Launch::rows(n, 512), all);
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor, gradcheck::gradcheck, gradcheck::gradcheck_at};

    #[test]
    fn tanh_ratio_gradients() {
        assert!(gradcheck(&[&[3, 4, 5], &[3]], |_, x| x[0].tanh_ratio(x[1] * 0.1 + 1.0)) < 1e-6);
        let device = Device::cpu_f64();
        let image = Tensor::from_f64(&device, &[2, 40], &(0..80).map(|i| (i % 7) as f64 / 5.0).collect::<Vec<_>>());
        let slope = Tensor::from_f64(&device, &[2, 1], &[0.3, 1.2]);
        assert!(gradcheck_at(&[image, slope], |_, x| x[0].tanh_ratio(x[1])) < 1e-6);
    }
}
