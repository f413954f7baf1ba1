//! Log density of mixtures of coupled Gaussians, fused (section 3 of the model):
//!
//! ```text
//! Σ_g logsumexp_k [ log softmax(logits_g)_k + log N_d(z_g; μ_gk, L_gk L_gkᵀ) ]
//! ```
//!
//! A row of packed parameters p holds logits `G×K`, means `G×K×d`, stds `G×K×d`, cors `G×K`.

use super::gaussian::{HALF_LOG_TAU, add_gradients, check_live, dims, log_densities, parts, parts_mut, slot_or};
use super::{Cost, Op, stn::is_live};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

struct Mixture {
    groups: usize,
    components: usize,
    live: Option<Tensor>,
}

/// A block of a kernel has a warp for each group of a row, but not more than this.
const MOST_WARPS: usize = 8;

impl Mixture {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> (usize, usize) {
        let (n, d) = dims(self.name(), &x[0], &x[1], self.groups, |d| self.width(d));
        check_live(self.name(), self.live.as_ref(), n);
        (n, d)
    }

    /// Columns of the packed parameters.
    fn width(&self, d: usize) -> usize {
        self.groups * self.components * (2 * d + 2)
    }

    /// The log density of one row, and per group (posterior of the components, their prior weights).
    #[inline(always)]
    fn row<T: Real>(&self, d: usize, z: &[T], p: &[T], saved: &mut [T]) -> T {
        let k = self.components;
        let (logits, rest) = p.split_at(self.groups * k);
        let [mean, std, cor] = parts(rest, self.groups * k, d);
        let mut log = T::of(-HALF_LOG_TAU * (self.groups * d) as f64);
        for (g, saved) in saved.chunks_exact_mut(2 * k).enumerate() {
            let (posterior, prior) = saved.split_at_mut(k);
            let logits = &logits[g * k..][..k];
            let gaussians = [&mean[g * k * d..][..k * d], &std[g * k * d..][..k * d], &cor[g * k..][..k]];
            log_densities(&z[g * d..][..d], gaussians, posterior);
            posterior.iter_mut().zip(logits).for_each(|(p, &a)| *p += a);
            prior.copy_from_slice(logits);
            log += softmax(posterior) - softmax(prior);
        }
        log
    }

    /// Adds the gradient of `dy` times the log density of one row.
    #[inline(always)]
    fn row_gradient<T: Real>(&self, d: usize, [z, p, saved]: [&[T]; 3], dy: T, dz: &mut [T], dp: &mut [T]) {
        let k = self.components;
        let [mean, std, cor] = parts(&p[self.groups * k..], self.groups * k, d);
        let (dlogits, rest) = dp.split_at_mut(self.groups * k);
        let [dmean, dstd, dcor] = parts_mut(rest, self.groups * k, d);
        let (mut weight, mut scratch) = (vec![T::ZERO; k], vec![T::ZERO; k * d]);
        for (g, saved) in saved.chunks_exact(2 * k).enumerate() {
            let (posterior, prior) = saved.split_at(k);
            for ((w, d), (&r, &s)) in weight.iter_mut().zip(&mut dlogits[g * k..]).zip(posterior.iter().zip(prior)) {
                *w = dy * r;
                *d += dy * (r - s);
            }
            let (one, each) = (g * k..(g + 1) * k, g * k * d..(g + 1) * k * d);
            add_gradients(
                &z[g * d..][..d],
                [&mean[each.clone()], &std[each.clone()], &cor[one.clone()]],
                &weight,
                &mut dz[g * d..][..d],
                [&mut dmean[each.clone()], &mut dstd[each], &mut dcor[one]],
                &mut scratch,
            );
        }
    }
}

/// Replaces logarithms by the normalised weights they stand for; returns the logarithm of their sum.
#[inline(always)]
fn softmax<T: Real>(values: &mut [T]) -> T {
    let max = values.iter().fold(values[0], |max, &v| max.larger(v));
    values.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: T = values.iter().copied().sum();
    let scale = T::ONE / sum;
    values.iter_mut().for_each(|v| *v *= scale);
    max + sum.ln()
}

/// Calls `f(d)` so that the coordinate counts of the model, 2 and 4, are constants in it: its loops unroll and vectorise.
#[inline(always)]
fn unrolled<R>(d: usize, f: impl FnOnce(usize) -> R) -> R {
    match d {
        2 => f(2),
        4 => f(4),
        _ => f(d),
    }
}

impl Op for Mixture {
    fn name(&self) -> &'static str {
        "mixture_logpdf"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, d) = self.dims(x);
        let (size, width, kept) = (self.groups * d, self.width(d), 2 * self.groups * self.components);
        let (mut y, mut saved) = (Tensor::empty(cx, &[n]), Tensor::empty(cx, &[n, kept]));
        on_device!(cx, T => {
            let inputs = x[0].slice::<T>().par_chunks_exact(size).zip(x[1].slice::<T>().par_chunks_exact(width));
            let outputs = y.slice_mut::<T>().par_iter_mut().zip(saved.slice_mut::<T>().par_chunks_exact_mut(kept));
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            inputs.zip(outputs).enumerate().with_min_len(4).for_each(|(i, ((z, p), (y, saved)))| {
                if !is_live(live, i) {
                    *y = T::ZERO;
                    return;
                }
                *y = unrolled(d, #[inline(always)] |d| cpu::simd(#[inline(always)] || self.row(d, z, p, saved)));
            });
        }, gpu => {
            // Two weights per component and warp wait in shared memory until they are normalised.
            let per_warp = 2 * self.components * cx.dtype().bytes();
            let warps = ((48 << 10) / per_warp).min(MOST_WARPS).min(self.groups);
            assert!(warps > 0, "mixture_logpdf: a GPU takes at most {} components", (48 << 10) * self.components / per_warp);
            let constant = Arg::Real(-HALF_LOG_TAU * (self.groups * d) as f64);
            let live = Arg::input(self.live.as_ref());
            let args = args![&x[0], &x[1], live, y.out(), saved.out(), self.groups, self.components, d, constant];
            gpu.launch("mixture", "mixture_fwd", Launch::rows(n, 32 * warps).shared(warps * per_warp), args);
        });
        vec![y, saved]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, d) = self.dims(x);
        let (size, width, kept) = (self.groups * d, self.width(d), 2 * self.groups * self.components);
        let [slot_z, slot_p] = dx else { unreachable!() };
        on_device!(cx, T => {
            let mut unwanted = (vec![], vec![]);
            let dz = slot_or::<T>(slot_z, &mut unwanted.0, x[0].len()).par_chunks_exact_mut(size);
            let dp = slot_or::<T>(slot_p, &mut unwanted.1, x[1].len()).par_chunks_exact_mut(width);
            let (z, p) = (x[0].slice::<T>().par_chunks_exact(size), x[1].slice::<T>().par_chunks_exact(width));
            let rows = z.zip(p).zip(y[1].slice::<T>().par_chunks_exact(kept)).zip(dy.slice::<T>());
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            rows.zip(dz.zip(dp)).enumerate().with_min_len(4).for_each(|(i, ((((z, p), saved), &dy), (dz, dp)))| {
                if !is_live(live, i) {
                    return;
                }
                unrolled(d, #[inline(always)] |d| {
                    cpu::simd(#[inline(always)] || self.row_gradient(d, [z, p, saved], dy, dz, dp))
                });
            });
        }, gpu => {
            let ([dz, add_dz], [dp, add_dp]) = (grad(slot_z), grad(slot_p));
            let live = Arg::input(self.live.as_ref());
            let args = args![&x[0], &x[1], live, &y[1], dy, dz, add_dz, dp, add_dp, self.groups, self.components, d];
            gpu.launch("mixture", "mixture_bwd", Launch::rows(n, 32 * self.groups.min(MOST_WARPS)), args);
        });
    }

    /// Per component: about 6 operations for each coordinate and direction, and two exponentials.
    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let elements = x.iter().map(Tensor::len).sum::<usize>() + y.len();
        Cost { flops: 6.0 * x[1].len() as f64, bytes: 4.0 * elements as f64 }
    }
}

impl<'t> Var<'t> {
    /// Log density of z `[N, G·d]` under one mixture of `components` Gaussians per group, summed over the groups → `[N]`.
    ///
    /// p `[N, G·K·(2d + 2)]`: logits `G×K`, means `G×K×d`, stds `G×K×d`, cors `G×K`.
    /// Where `live` (N elements, 0 or 1) is 0, the result is 0, no gradient flows and nothing is computed.
    #[track_caller]
    pub fn mixture_logpdf(self, p: Var<'t>, groups: usize, components: usize, live: Option<&Tensor>) -> Var<'t> {
        self.tape().apply(Mixture { groups, components, live: live.cloned() }, &[self, p])
    }
}

#[cfg(test)]
mod tests {
    use super::super::squash::Squash;
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck, gradcheck::gradcheck_at, rng::Rng, rng::Stream};

    #[test]
    fn mixture_gradients() {
        for (groups, k, ranges) in [(3, 4, Squash::stroke_prior(3, 4)), (1, 5, Squash::layout_prior(5))] {
            let d = if groups == 1 { 4 } else { 2 };
            let error = gradcheck(&[&[3, groups * d], &[3, ranges.columns()]], |_, x| {
                x[0].mixture_logpdf(x[1].squash(&ranges), groups, k, None)
            });
            assert!(error < 1e-6, "d = {d}: {error}");
        }
    }

    /// z and positive stds for groups of d coordinates, K components.
    fn problem(device: &Device, n: usize, groups: usize, k: usize, d: usize) -> [Tensor; 2] {
        let rng = Rng::new(5, 0);
        let count = groups * k;
        let width = count * (2 * d + 2);
        let mut p = rng.normal_tensor(device, Stream(1), &[n, width]).to_f64();
        for row in p.chunks_mut(width) {
            row[count * (1 + d)..count * (1 + 2 * d)].iter_mut().for_each(|s| *s = 0.3 + s.abs());
        }
        [rng.normal_tensor(device, Stream(0), &[n, groups * d]), Tensor::from_f64(device, &[n, width], &p)]
    }

    #[test]
    fn any_number_of_coordinates_has_the_right_gradients() {
        for d in [2, 3, 4, 5] {
            let error =
                gradcheck_at(&problem(&Device::cpu_f64(), 2, 2, 3, d), |_, x| x[0].mixture_logpdf(x[1], 2, 3, None));
            assert!(error < 1e-6, "d = {d}: {error}");
        }
    }

    #[test]
    fn one_component_is_the_gaussian() {
        let device = Device::cpu_f64();
        let [z, p] = problem(&device, 3, 5, 1, 2);
        let gaussian: Vec<f64> = p.to_f64().chunks(30).flat_map(|row| row[5..].to_vec()).collect();
        let tape = Tape::without_params(&device);
        let (z, p) = (tape.constant(z), tape.constant(p));
        let one = z.mixture_logpdf(p, 5, 1, None).value().to_f64();
        let other =
            z.gaussian_logpdf(tape.constant(Tensor::from_f64(&device, &[3, 25], &gaussian)), 5, None).value().to_f64();
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-12), "{one:?} {other:?}");
    }

    #[test]
    fn single_precision_agrees_also_far_from_every_component() {
        for distance in [1.0, 30.0] {
            let [one, other] = [Device::cpu(), Device::cpu_f64()].map(|device| {
                let [z, p] = problem(&device, 64, 5, 40, 2);
                let tape = Tape::without_params(&device);
                let z = tape.constant(z) * distance;
                z.mixture_logpdf(tape.constant(p), 5, 40, None).value().to_f64()
            });
            assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 3e-6 * b.abs().max(10.0)), "{distance}");
        }
    }
}
