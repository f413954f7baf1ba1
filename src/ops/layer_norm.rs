//! Rows of mean 0 and variance 1, then stretched and moved (Ba, Kiros and Hinton, 2016).
//!
//! ```text
//! z = (x − μ) / √(σ² + ε)   with mean μ and variance σ² (divided by D) of the row      y = w ∘ z + b
//! g = dy ∘ w     dx = (g − mean g − z · mean(g ∘ z)) / √(σ² + ε)     dw = Σ dy ∘ z     db = Σ dy
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// ε.
struct LayerNorm(f64);

/// Rows, and numbers in one.
#[track_caller]
fn dims(x: &[Tensor]) -> [usize; 2] {
    match (x[0].shape(), x[1].shape(), x[2].shape()) {
        (&[.., d], &[d2], &[d3]) if d == d2 && d == d3 && d > 0 => [x[0].len() / d, d],
        (x, w, b) => panic!("layer_norm: x {x:?}, w {w:?}, b {b:?}; wanted [.., D], [D], [D]"),
    }
}

/// Of rows of `d` numbers, by one block each.
fn rows(n: usize, d: usize) -> Launch {
    Launch::rows(n, d.next_multiple_of(32).clamp(32, 256))
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    /// Keeps z, and 1/√(σ² + ε) of each row.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let [n, d] = dims(x);
        let [mut y, mut z] = [0, 1].map(|_| Tensor::empty(cx, x[0].shape()));
        let mut by = Tensor::empty(cx, &[n]);
        on_device!(cx, T => {
            let (eps, per) = (T::of(self.0), T::of(1.0 / d as f64));
            let [x, w, b] = [0, 1, 2].map(|i| x[i].slice::<T>());
            // Into z goes x − μ first.
            cpu::each_row_of_two(z.slice_mut::<T>(), by.slice_mut::<T>(), [d, 1], 16, #[inline(always)] |row, z, by| {
                let x = &x[row * d..][..d];
                let mean = cpu::sum([x], #[inline(always)] |[x]| x) * per;
                z.iter_mut().zip(x).for_each(|(z, &x)| *z = x - mean);
                let variance = cpu::sum([&*z], #[inline(always)] |[z]| z * z) * per;
                by[0] = T::ONE / (variance + eps).sqrt();
            });
            let by = by.slice::<T>();
            cpu::each_row_of_two(y.slice_mut::<T>(), z.slice_mut::<T>(), [d, d], 16, #[inline(always)] |row, y, z| {
                for i in 0..d {
                    z[i] *= by[row];
                    y[i] = w[i] * z[i] + b[i];
                }
            });
        }, gpu => {
            let args = args![&x[0], &x[1], &x[2], y.out(), z.out(), by.out(), d, Arg::Real(self.0)];
            gpu.launch("layer_norm", "layer_norm_fwd", rows(n, d), args);
        });
        vec![y, z, by]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let [n, d] = dims(x);
        let [of_x, of_w, of_b] = dx else { unreachable!() };
        on_device!(cx, T => {
            let (w, z, by, dy) = (x[1].slice::<T>(), y[1].slice::<T>(), y[2].slice::<T>(), dy.slice::<T>());
            let per = T::of(1.0 / d as f64);
            if let Some(slot) = of_x {
                cpu::each_row(slot.add::<T>(), d, 16, #[inline(always)] |row, dx| {
                    let (z, dy) = (&z[row * d..][..d], &dy[row * d..][..d]);
                    let mean = cpu::sum([dy, w], #[inline(always)] |[dy, w]| dy * w) * per;
                    let along = cpu::sum([dy, w, z], #[inline(always)] |[dy, w, z]| dy * w * z) * per;
                    for i in 0..d {
                        dx[i] += (dy[i] * w[i] - mean - z[i] * along) * by[row];
                    }
                });
            }
            for (slot, stretched) in [(of_w, true), (of_b, false)] {
                let Some(slot) = slot else { continue };
                let sum = slot.add::<T>();
                for (dy, z) in dy.chunks(d).zip(z.chunks(d)) {
                    for i in 0..d {
                        sum[i] += if stretched { dy[i] * z[i] } else { dy[i] };
                    }
                }
            }
        }, gpu => {
            if of_x.is_some() {
                let [dx, add] = grad(of_x);
                let args = args![&x[1], &y[1], &y[2], dy, dx, add, d];
                gpu.launch("layer_norm", "layer_norm_bwd", rows(n, d), args);
            }
            if of_w.is_some() || of_b.is_some() {
                let ([dw, add_dw], [db, add_db]) = (grad(of_w), grad(of_b));
                let args = args![&y[1], dy, dw, add_dw, db, add_db, n, d];
                gpu.launch("layer_norm", "layer_norm_bwd_weights", Launch::rows(d, 256), args);
            }
        });
    }
}

impl<'t> Var<'t> {
    /// Every row of the last dimension brought to mean 0 and variance 1, then multiplied by w and moved by b: x `[…, D]`, w `[D]`,
    /// b `[D]` → `[…, D]`. `eps` is added to the variance (1e-5 is usual).
    #[track_caller]
    pub fn layer_norm(self, w: Var<'t>, b: Var<'t>, eps: f64) -> Var<'t> {
        self.tape().apply(LayerNorm(eps), &[self, w, b])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};
    use approx::assert_abs_diff_eq;

    #[test]
    fn layer_norm_gradients() {
        assert!(gradcheck(&[&[2, 3, 5], &[5], &[5]], |_, x| x[0].layer_norm(x[1], x[2], 1e-5)) < 1e-7);
        assert!(gradcheck(&[&[40, 3], &[3], &[3]], |_, x| x[0].layer_norm(x[1], x[2], 0.1) + x[0]) < 1e-7);
    }

    #[test]
    fn rows_have_mean_0_and_variance_1() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let of = |shape: &[usize], values: &[f64]| tape.constant(Tensor::from_f64(&device, shape, values));
        let x = of(&[2, 2], &[1.0, 3.0, -4.0, -4.0]);
        let y = x.layer_norm(of(&[2], &[1.0, 2.0]), of(&[2], &[0.0, 0.5]), 1e-12).value().to_f64();
        assert_abs_diff_eq!(y[..], [-1.0, 2.5, 0.0, 0.5][..], epsilon = 1e-6);
    }
}
