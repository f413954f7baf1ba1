//! y = log (1/P) Σ_p exp w_p: the importance-weighted bound of P particles.

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct LogMeanExp;

#[track_caller]
fn dims(w: &Tensor) -> (usize, usize) {
    match *w.shape() {
        [p, b] if p > 0 => (p, b),
        ref shape => panic!("log_mean_exp: log weights {shape:?}; wanted [P, B]"),
    }
}

/// The largest of `w` (NaN apart), and Σ exp(w − largest).
fn max_and_sum<T: Real>(w: impl Iterator<Item = T> + Clone) -> (T, T) {
    let max = w.clone().fold(T::of(f64::NEG_INFINITY), T::larger);
    (max, w.map(|w| (w - max).exp()).sum())
}

/// One warp per column.
fn launch(b: usize) -> Launch {
    Launch::rows(b.div_ceil(4), 128)
}

impl Op for LogMeanExp {
    fn name(&self) -> &'static str {
        "log_mean_exp"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (p, b) = dims(&x[0]);
        let mut y = Tensor::empty(cx, &[b]);
        on_device!(cx, T => {
            let w = x[0].slice::<T>();
            for (j, y) in y.slice_mut::<T>().iter_mut().enumerate() {
                let (max, sum) = max_and_sum(w[j..].iter().step_by(b).copied());
                // exp(w − max) is NaN if all weights are zero.
                *y = if max == T::of(f64::NEG_INFINITY) { max } else { max + (sum * T::of(1.0 / p as f64)).ln() };
            }
        }, gpu => {
            let args = args![&x[0], y.out(), p, b, Arg::Real(1.0 / p as f64)];
            gpu.launch("log_mean_exp", "log_mean_exp_fwd", launch(b), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (p, b) = dims(&x[0]);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (w, dw) = (x[0].slice::<T>(), slot.add::<T>());
            for (j, &dy) in dy.slice::<T>().iter().enumerate() {
                let (max, sum) = max_and_sum(w[j..].iter().step_by(b).copied());
                for (dw, &w) in dw[j..].iter_mut().step_by(b).zip(w[j..].iter().step_by(b)) {
                    *dw += dy * (w - max).exp() / sum;
                }
            }
        }, gpu => {
            let [dw, add] = grad(&mut dx[0]);
            gpu.launch("log_mean_exp", "log_mean_exp_bwd", launch(b), args![&x[0], dy, dw, add, p, b]);
        });
    }
}

impl<'t> Var<'t> {
    /// Logarithm of the mean over particles of exp w: w `[P, B]` → `[B]`.
    #[track_caller]
    pub fn log_mean_exp(self) -> Var<'t> {
        self.tape().apply(LogMeanExp, &[self])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn log_mean_exp_gradients() {
        assert!(gradcheck(&[&[4, 3]], |_, x| x[0].log_mean_exp()) < 1e-6);
        assert!(gradcheck(&[&[1, 3]], |_, x| x[0].log_mean_exp()) < 1e-6);
    }

    #[test]
    fn weights_beyond_the_range_of_exp_are_averaged() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let w = [6000.0, -6000.0, f64::NEG_INFINITY, 6000.0, -7000.0, f64::NEG_INFINITY];
            let mean = tape.constant(Tensor::from_f64(&device, &[2, 3], &w)).log_mean_exp().value().to_f64();
            assert!(mean[0] == 6000.0 && (mean[1] + 6000.0 + 2f64.ln()).abs() < 1e-3, "{mean:?}");
            assert_eq!(mean[2], f64::NEG_INFINITY);
        }
    }
}
