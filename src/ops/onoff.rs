//! The pen's on/off decision: once off it stays off (section 4 of the model).

use super::{Op, elementwise::add_map};
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// A probability is kept this far from 0 and 1.
const MARGIN: f64 = 1e-12;

/// y = clamp(p·previous, 1e-12, 1 − 1e-12).
struct Probability;

/// y = [o·log p + (1 − o)·log(1 − p)]·mask, with p clamped to [ε, 1 − ε].
struct Bernoulli {
    eps: f64,
}

/// The interval that a probability is clamped to.
fn limits(margin: f64) -> [Arg; 2] {
    [margin, 1.0 - margin].map(Arg::Real)
}

/// The number of elements that all of `x` have.
#[track_caller]
fn count(op: &str, x: &[Tensor]) -> usize {
    let n = x[0].len();
    let shapes: Vec<_> = x.iter().map(Tensor::shape).collect();
    assert!(x.iter().all(|x| x.len() == n), "{op}: shapes {shapes:?}; wanted N elements each");
    n
}

impl Op for Probability {
    fn name(&self) -> &'static str {
        "onoff_probability"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, &[count(self.name(), x)]);
        on_device!(cx, T => {
            let (p, previous) = (x[0].slice::<T>(), x[1].slice::<T>());
            for (y, (&p, &previous)) in y.slice_mut::<T>().iter_mut().zip(p.iter().zip(previous)) {
                *y = (p * previous).limit(T::of(MARGIN), T::of(1.0 - MARGIN));
            }
        }, gpu => {
            let (n, [low, high]) = (y.len(), limits(MARGIN));
            gpu.launch("onoff", "onoff_probability_fwd", Launch::elements(n), args![&x[0], &x[1], y.out(), n, low, high]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (p, previous, dy) = (x[0].slice::<T>(), x[1].slice::<T>(), dy.slice::<T>());
            add_map(slot, #[inline(always)] |i| {
                let inside = inside(p[i] * previous[i], MARGIN);
                if inside { dy[i] * previous[i] } else { T::ZERO }
            });
        }, gpu => {
            let ([dp, add], n, [low, high]) = (grad(&mut dx[0]), dy.len(), limits(MARGIN));
            let args = args![&x[0], &x[1], dy, dp, add, n, low, high];
            gpu.launch("onoff", "onoff_probability_bwd", Launch::elements(n), args);
        });
    }
}

/// Whether clamping to [margin, 1 − margin] leaves `p` as it is.
#[inline(always)]
fn inside<T: Real>(p: T, margin: f64) -> bool {
    p >= T::of(margin) && p <= T::of(1.0 - margin)
}

impl Op for Bernoulli {
    fn name(&self) -> &'static str {
        "bernoulli_logpdf"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, &[count(self.name(), x)]);
        on_device!(cx, T => {
            let (p, value, mask) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
            for (i, y) in y.slice_mut::<T>().iter_mut().enumerate() {
                let p = p[i].limit(T::of(self.eps), T::of(1.0 - self.eps));
                *y = (value[i] * p.ln() + (T::ONE - value[i]) * (-p).ln_1p()) * mask[i];
            }
        }, gpu => {
            let (n, [low, high]) = (y.len(), limits(self.eps));
            let args = args![&x[0], &x[1], &x[2], y.out(), n, low, high];
            gpu.launch("onoff", "bernoulli_fwd", Launch::elements(n), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (p, value, mask) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
            let (dy, eps) = (dy.slice::<T>(), self.eps);
            add_map(slot, #[inline(always)] |i| {
                let (p, o) = (p[i], value[i]);
                let slope = o / p - (T::ONE - o) / (T::ONE - p);
                if inside(p, eps) { dy[i] * mask[i] * slope } else { T::ZERO }
            });
        }, gpu => {
            let ([dp, add], n, [low, high]) = (grad(&mut dx[0]), dy.len(), limits(self.eps));
            let args = args![&x[0], &x[1], &x[2], dy, dp, add, n, low, high];
            gpu.launch("onoff", "bernoulli_bwd", Launch::elements(n), args);
        });
    }
}

impl<'t> Var<'t> {
    /// The probability that the pen is on: p·previous, clamped to [1e-12, 1 − 1e-12]. N elements each, previous 0 or 1 → `[N]`.
    /// Where the clamp acts there is no gradient.
    #[track_caller]
    pub fn onoff_probability(self, previous: &Tensor) -> Var<'t> {
        self.tape().apply(Probability, &[self, self.tape().constant(previous.clone())])
    }

    /// Log probability of the decisions `value` (0 or 1) times `mask`, N elements each → `[N]`. The probability (`self`) is clamped
    /// to [eps, 1 − eps]; where the clamp acts there is no gradient.
    #[track_caller]
    pub fn bernoulli_logpdf(self, value: &Tensor, mask: &Tensor, eps: f64) -> Var<'t> {
        let constant = |x: &Tensor| self.tape().constant(x.clone());
        self.tape().apply(Bernoulli { eps }, &[self, constant(value), constant(mask)])
    }
}

/// Decisions `[u < p]·previous`: N probabilities, uniform numbers and previous decisions → `[N]`.
#[track_caller]
pub fn sample_onoff(probability: &Tensor, uniform: &Tensor, previous: &Tensor) -> Tensor {
    let x = [probability.clone(), uniform.clone(), previous.clone()];
    let mut y = Tensor::empty(probability.device(), &[count("sample_onoff", &x)]);
    on_device!(probability.device(), T => {
        let (p, u, previous) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
        for (i, y) in y.slice_mut::<T>().iter_mut().enumerate() {
            *y = if u[i] < p[i] { previous[i] } else { T::ZERO };
        }
    }, gpu => {
        let n = y.len();
        gpu.launch("onoff", "sample_onoff", Launch::elements(n), args![&x[0], &x[1], &x[2], y.out(), n]);
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grads, Tape, gradcheck::gradcheck_at};

    fn row(device: &Device, values: &[f64]) -> Tensor {
        Tensor::from_f64(device, &[values.len()], values)
    }

    #[test]
    fn onoff_gradients() {
        let device = Device::cpu_f64();
        let p = row(&device, &[0.2, 0.9, 0.5, 0.7]);
        let (on, mask) = (row(&device, &[1.0, 0.0, 0.0, 1.0]), row(&device, &[1.0, 1.0, 0.0, 1.0]));
        let error = gradcheck_at(&[p], |_, x| x[0].onoff_probability(&mask).bernoulli_logpdf(&on, &mask, 1e-7));
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn a_clamped_probability_has_no_gradient_and_a_finite_logarithm() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let p = tape.input(row(&device, &[0.0, 1.0, 0.6]));
            let one = Tensor::full(&device, &[3], 1.0);
            let off = Tensor::zeros(&device, &[3]);
            let prob = p.onoff_probability(&row(&device, &[1.0, 1.0, 0.0]));
            let log = prob.bernoulli_logpdf(&one, &one, 1e-7) + prob.bernoulli_logpdf(&off, &one, 1e-7);
            assert!(log.value().is_finite());
            let grads = tape.backward(log.sum(), &mut Grads::none(&device));
            assert_eq!(grads.of(p).to_f64(), [0.0; 3]);
        }
    }

    #[test]
    fn a_pen_that_is_off_stays_off() {
        let device = Device::cpu();
        let [p, u, previous] = [[0.9, 0.9, 0.3, 0.3], [0.5; 4], [1.0, 0.0, 1.0, 0.0]].map(|x| row(&device, &x));
        assert_eq!(sample_onoff(&p, &u, &previous).to_f64(), [1.0, 0.0, 0.0, 0.0]);
    }
}
