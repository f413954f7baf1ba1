//! A bound averaged over where a drawing may end, instead of sampled: the decision to stop needs no score-function term.
//!
//! A drawing that stops after n of T strokes is the prefix of the one that does not, and it stops there with probability
//! q(n) = (1 − p_n) Π_{t<n} p_t, where q(T) = Π p_t. So the evidence lower bound is, over the decisions, a sum of T + 1 values:
//!
//! ```text
//! Σ_n q(n)·[ℓ_n − Σ_{t<n} k_t − log q(n) + log π(n)] = W_0, where
//! W_T = ℓ_T
//! W_t = (1 − p_t)·[ℓ_t + log (1 − π_t) − log (1 − p_t)] + p_t·[W_{t+1} − k_t + log π_t − log p_t]
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// Inputs p, π, k `[T, N]`, ℓ `[T + 1, N]`.
struct PrefixBound {
    eps: f64,
}

impl PrefixBound {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> (usize, usize) {
        let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
        match shapes[..] {
            [&[t, n], prior, cost, &[ends, m]] if prior == [t, n] && cost == [t, n] && (ends, m) == (t + 1, n) => {
                (t, n)
            }
            _ => panic!("prefix_bound: {shapes:?}; wanted [T, N], [T, N], [T, N], [T + 1, N]"),
        }
    }
}

/// The two ways on from step t, and the probability to go on.
struct Fork<T> {
    p: T,
    stop: T,
    go: T,
    /// Slope of both in π: −1/(1 − π) and 1/π.
    slopes: [T; 2],
    /// Whether p and π lie within the limits, outside of which nothing depends on them.
    within: [bool; 2],
}

impl<T: Real> Fork<T> {
    #[inline(always)]
    fn new(eps: f64, p: T, prior: T, cost: T, end: T, next: T) -> Self {
        let (low, high) = (T::of(eps), T::of(1.0 - eps));
        let inside = |x: T| x >= low && x <= high;
        let within = [inside(p), inside(prior)];
        let (p, prior) = (p.limit(low, high), prior.limit(low, high));
        Fork {
            p,
            stop: end + (T::ONE - prior).ln() - (T::ONE - p).ln(),
            go: next - cost + prior.ln() - p.ln(),
            slopes: [-T::ONE / (T::ONE - prior), T::ONE / prior],
            within,
        }
    }

    #[inline(always)]
    fn value(&self) -> T {
        (T::ONE - self.p) * self.stop + self.p * self.go
    }
}

impl Op for PrefixBound {
    fn name(&self) -> &'static str {
        "prefix_bound"
    }

    /// Saves W `[T + 1, N]`.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (t, n) = self.dims(x);
        let (mut y, mut values) = (Tensor::empty(cx, &[n]), Tensor::empty(cx, &[t + 1, n]));
        on_device!(cx, T => {
            let [p, prior, cost, end] = [0, 1, 2, 3].map(|i| x[i].slice::<T>());
            let w = values.slice_mut::<T>();
            w[t * n..].copy_from_slice(&end[t * n..]);
            for i in (0..t * n).rev() {
                w[i] = Fork::new(self.eps, p[i], prior[i], cost[i], end[i], w[i + n]).value();
            }
            y.slice_mut::<T>().copy_from_slice(&w[..n]);
        }, gpu => {
            let args = args![&x[0], &x[1], &x[2], &x[3], y.out(), values.out(), t, n, Arg::Real(self.eps)];
            gpu.launch("prefix_bound", "prefix_bound_fwd", Launch::elements(n), args);
        });
        vec![y, values]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (t, n) = self.dims(x);
        on_device!(cx, T => {
            let [p, prior, cost, end] = [0, 1, 2, 3].map(|i| x[i].slice::<T>());
            let w = y[1].slice::<T>();
            let mut slots: Vec<Option<&mut [T]>> = dx.iter_mut().map(|slot| slot.as_mut().map(Slot::add)).collect();
            let mut add = |input: usize, i: usize, value: T| {
                if let Some(slot) = &mut slots[input] {
                    slot[i] += value;
                }
            };
            // The probability of being here, times dy.
            let mut here = dy.slice::<T>().to_vec();
            for i in 0..t * n {
                let fork = Fork::new(self.eps, p[i], prior[i], cost[i], end[i], w[i + n]);
                let (reach, [p_within, prior_within]) = (here[i % n], fork.within);
                let [stop, go] = [reach * (T::ONE - fork.p), reach * fork.p];
                add(0, i, if p_within { reach * (fork.go - fork.stop) } else { T::ZERO });
                let slope = stop * fork.slopes[0] + go * fork.slopes[1];
                add(1, i, if prior_within { slope } else { T::ZERO });
                add(2, i, -go);
                add(3, i, stop);
                here[i % n] = go;
            }
            (0..n).for_each(|j| add(3, t * n + j, here[j]));
        }, gpu => {
            let [[dp, add_p], [dprior, add_prior], [dcost, add_cost], [dend, add_end]] =
                [0, 1, 2, 3].map(|i| grad(&mut dx[i]));
            let args = args![
                &x[0], &x[1], &x[2], &x[3], &y[1], dy, dp, add_p, dprior, add_prior, dcost, add_cost, dend, add_end, t, n,
                Arg::Real(self.eps),
            ];
            gpu.launch("prefix_bound", "prefix_bound_bwd", Launch::elements(n), args);
        });
    }
}

/// The evidence lower bound `[N]` of drawings whose end is left open: probabilities `p` of going on, and those of the prior, `[T, N]`;
/// what each stroke costs `[T, N]`; the log-likelihood after 0, 1, … T strokes `[T + 1, N]`. Probabilities are kept `eps` off 0 and 1,
/// and nothing depends on them beyond.
#[track_caller]
pub fn prefix_bound<'t>(p: Var<'t>, prior: Var<'t>, cost: Var<'t>, log_likelihood: Var<'t>, eps: f64) -> Var<'t> {
    p.tape().apply(PrefixBound { eps }, &[p, prior, cost, log_likelihood])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck_at, rng::Rng, rng::Stream};

    const EPS: f64 = 1e-7;

    /// p, π, k and ℓ of `t` steps of `n` drawings.
    fn inputs(t: usize, n: usize) -> [Tensor; 4] {
        let (device, rng) = (Device::cpu_f64(), Rng::new(5, 0));
        let chance = |stream| {
            let unit = rng.uniform_tensor(&device, Stream(stream), &[t, n]).to_f64();
            Tensor::from_f64(&device, &[t, n], &unit.iter().map(|u| 0.1 + 0.8 * u).collect::<Vec<_>>())
        };
        let normal = |stream, rows| rng.normal_tensor(&device, Stream(stream), &[rows, n]);
        [chance(0), chance(1), normal(2, t), normal(3, t + 1)]
    }

    #[test]
    fn prefix_bound_gradients() {
        let error = gradcheck_at(&inputs(4, 3), |_, x| prefix_bound(x[0], x[1], x[2], x[3], EPS));
        assert!(error < 1e-6, "{error}");
    }

    /// The sum over all ends, written down.
    #[test]
    fn it_is_the_mean_over_all_ends() {
        let (t, n) = (4, 3);
        let all = inputs(t, n);
        let tape = Tape::without_params(&Device::cpu_f64());
        let [p, prior, cost, end] = all.clone().map(|x| tape.constant(x));
        let found = prefix_bound(p, prior, cost, end, EPS).value().to_f64();
        let [p, prior, cost, end] = all.map(|x| x.to_f64());
        for (j, found) in found.into_iter().enumerate() {
            let chance = |p: &[f64], ends: usize| {
                let on: f64 = (0..ends).map(|t| p[t * n + j]).product();
                if ends < t { on * (1.0 - p[ends * n + j]) } else { on }
            };
            let of = |ends: usize| {
                let (q, prior) = (chance(&p, ends), chance(&prior, ends));
                let spent: f64 = (0..ends).map(|t| cost[t * n + j]).sum();
                q * (end[ends * n + j] - spent - q.ln() + prior.ln())
            };
            let wanted: f64 = (0..=t).map(of).sum();
            assert!((found - wanted).abs() < 1e-12, "{found} instead of {wanted}");
        }
    }

    #[test]
    fn certain_decisions_are_finite_and_final() {
        let (device, shape) = (Device::cpu_f64(), [2, 1]);
        let tape = Tape::without_params(&device);
        let tensor = |shape: &[usize], values: &[f64]| Tensor::from_f64(&device, shape, values);
        let p = tape.input(tensor(&shape, &[1.0, 0.0]));
        let prior = tape.constant(tensor(&shape, &[0.5, 0.5]));
        let cost = tape.constant(tensor(&shape, &[2.0, 3.0]));
        let end = tape.constant(tensor(&[3, 1], &[-10.0, -4.0, 7.0]));
        let bound = prefix_bound(p, prior, cost, end, EPS);
        let wanted = -4.0 - 2.0 + 2.0 * 0.5f64.ln();
        assert!((bound.value().item() - wanted).abs() < 1e-4, "{}", bound.value().item());
        let grads = tape.backward(bound, &mut crate::Grads::none(&device));
        assert_eq!(grads.of(p).to_f64(), [0.0, 0.0]);
    }
}
