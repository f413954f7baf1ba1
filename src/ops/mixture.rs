//! Log density of mixtures of coupled Gaussians, fused (section 3 of the model):
//!
//! ```text
//! Σ_g logsumexp_k [ log softmax(logits_g)_k + log N_d(z_g; μ_gk, L_gk L_gkᵀ) ]
//! ```
//!
//! A row of packed parameters p holds logits `G×K`, means `G×K×d`, stds `G×K×d`, cors `G×K`.

use super::{
    Cost, Op,
    gaussian::{HALF_LOG_TAU, add_gradients, dims, log_densities, parts, parts_mut, slot_or},
    live::{check_live, is_live},
    size,
};
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
        Cost { flops: 6.0 * x[1].len() as f64, bytes: size(x) + size([y]) }
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

/// Samples one mixture of `components` Gaussians per group, p as in [`Var::mixture_logpdf`] → `[N, G·d]`.
///
/// A group's component is the first whose cumulative weight is above its number of `choice` `[N, G]`, uniform in [0, 1); from that
/// component z = μ + heat·(Lε), with standard normal noise `eps` `[N, G·d]`. `heat` has a factor for each column of z: 1 samples the
/// mixture as it is, less a narrower one with the same weights (section 11c).
#[track_caller]
pub fn mixture_sample(
    p: &Tensor,
    groups: usize,
    components: usize,
    choice: &Tensor,
    eps: &Tensor,
    heat: &[f64],
) -> Tensor {
    let (name, k) = ("mixture_sample", components);
    let (n, d) = dims(name, eps, p, groups, |d| groups * k * (2 * d + 2));
    assert!(choice.len() == n * groups, "{name}: choice {:?}; wanted [{n}, {groups}]", choice.shape());
    assert!(heat.len() == groups * d, "{name}: {} factors of heat for {} columns", heat.len(), groups * d);
    let mut y = Tensor::empty(p.device(), &[n, groups * d]);
    on_device!(p.device(), T => {
        let rows = p.slice::<T>().chunks_exact(groups * k * (2 * d + 2)).zip(choice.slice::<T>().chunks_exact(groups));
        let samples = y.slice_mut::<T>().chunks_exact_mut(groups * d).zip(eps.slice::<T>().chunks_exact(groups * d));
        for ((p, choice), (z, eps)) in rows.zip(samples) {
            let (logits, rest) = p.split_at(groups * k);
            let [mean, std, cor] = parts(rest, groups * k, d);
            for g in 0..groups {
                let at = g * k + chosen(&logits[g * k..][..k], choice[g]);
                for j in 0..d {
                    let c = g * d + j;
                    let coupled = if j == 1 { cor[at] * eps[c - 1] } else { T::ZERO };
                    z[c] = mean[at * d + j] + T::of(heat[c]) * (std[at * d + j] * eps[c] + coupled);
                }
            }
        }
    }, gpu => {
        gpu.enter(name);
        let (n, heat) = (n * groups, gpu.constant(heat.iter().copied()));
        let args = args![p, choice, eps, heat, y.out(), n, groups, k, d];
        gpu.launch("mixture", "mixture_sample", Launch::elements(n), args);
    });
    y
}

/// The first component whose cumulative weight is above `choice`. In double precision on either device, so that both choose the same.
fn chosen<T: Real>(logits: &[T], choice: T) -> usize {
    let max = logits.iter().fold(logits[0], |max, &a| max.larger(a));
    let weights = || logits.iter().map(|&a| (a.f64() - max.f64()).exp());
    let limit = choice.f64() * weights().sum::<f64>();
    let mut sum = 0.0;
    weights()
        .position(|w| {
            sum += w;
            sum > limit
        })
        .unwrap_or(logits.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::{super::squash::Squash, chosen, mixture_sample};
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
        approx::assert_abs_diff_eq!(one[..], other[..], epsilon = 1e-12);
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

    #[test]
    fn a_component_is_chosen_by_its_weight() {
        let logits = [0.0, f64::NEG_INFINITY, 3f64.ln(), -800.0];
        let at = |choice| chosen(&logits, choice);
        assert_eq!([0.0, 0.2499, 0.2501, 0.9999, 1.0 - 1e-7].map(at), [0, 0, 2, 2, 2]);
        assert_eq!(chosen(&[-1e4f32; 4], 0.75), 3);
    }

    /// By 200,000 samples: how often each component is chosen, and its mean and covariance, which heat multiplies by its factors; each
    /// within 5 standard errors.
    #[test]
    fn samples_have_the_weights_and_moments_of_their_mixture() {
        let (device, n) = (Device::cpu_f64(), 200_000);
        let (heat, factor) = ([1.0, 1.0, 0.5, 0.1], [0.1, 0.3, 0.6]);
        // Far apart, so that a sample tells its component.
        let means = [[-100.0, 0.0, 1.0, 2.0], [0.0, 3.0, 2.0, 1.0], [100.0, -1.0, 0.0, 5.0]];
        let (std, cor) = ([0.5, 0.25, 2.0, 1.0], 0.75);
        let logits = factor.map(f64::ln).to_vec();
        let row = [logits, means.concat(), std.repeat(3), vec![cor; 3]].concat();
        let p = Tensor::from_f64(&device, &[n, row.len()], &row.repeat(n));
        let rng = Rng::new(8, 0);
        let (choice, eps) =
            (rng.uniform_tensor(&device, Stream(0), &[n, 1]), rng.normal_tensor(&device, Stream(1), &[n, 4]));
        let z = mixture_sample(&p, 1, 3, &choice, &eps, &heat).to_f64();
        for (k, mean) in means.iter().enumerate() {
            let of: Vec<&[f64]> = z.chunks(4).filter(|z| (z[0] - mean[0]).abs() < 50.0).collect();
            let (count, wanted) = (of.len() as f64, n as f64 * factor[k]);
            assert!(
                (count - wanted).abs() < 5.0 * (wanted * (1.0 - factor[k])).sqrt(),
                "component {k}: {count} of {wanted}"
            );
            let close = |what: &str, of: &dyn Fn(&[f64]) -> f64, wanted: f64, samples: &[&[f64]]| {
                let found = samples.iter().map(|z| of(z)).sum::<f64>() / count;
                let var = samples.iter().map(|z| (of(z) - found).powi(2)).sum::<f64>() / count;
                assert!(
                    (found - wanted).abs() < 5.0 * (var / count).sqrt(),
                    "component {k}, {what}: {found}, {wanted}"
                );
            };
            for j in 0..4 {
                let scale = if j == 1 { cor.hypot(std[1]) } else { std[j] };
                close("mean", &|z| z[j], mean[j], &of);
                close("variance", &|z| (z[j] - mean[j]).powi(2), (heat[j] * scale).powi(2), &of);
            }
            close("covariance", &|z| (z[0] - mean[0]) * (z[1] - mean[1]), std[0] * cor, &of);
            close("no covariance", &|z| (z[1] - mean[1]) * (z[2] - mean[2]), 0.0, &of);
        }
    }

    /// The mean log density of samples of a mixture is minus its entropy, which is found by integration over a grid.
    #[test]
    fn sampling_and_scoring_agree() {
        let (device, n) = (Device::cpu_f64(), 100_000);
        let row = [0.2, -0.5, -1.0, 0.5, 1.5, -0.5, 0.6, 0.3, 0.5, 0.9, 0.4, -0.2];
        let tape = Tape::without_params(&device);
        let log = |z: Tensor| {
            let p = Tensor::from_f64(&device, &[z.shape()[0], 12], &row.repeat(z.shape()[0]));
            tape.constant(z).mixture_logpdf(tape.constant(p), 1, 2, None).value().to_f64()
        };
        let (side, step) = (600, 0.02);
        let grid: Vec<f64> =
            (0..side * side).flat_map(|i| [i / side, i % side].map(|i| (i as f64 - 300.0) * step)).collect();
        let logs = log(Tensor::from_f64(&device, &[side * side, 2], &grid));
        let mass: f64 = logs.iter().map(|l| l.exp() * step * step).sum();
        let entropy: f64 = logs.iter().map(|l| -l * l.exp() * step * step).sum();
        assert!((mass - 1.0).abs() < 1e-6, "{mass}");
        let rng = Rng::new(9, 0);
        let p = Tensor::from_f64(&device, &[n, 12], &row.repeat(n));
        let (choice, eps) =
            (rng.uniform_tensor(&device, Stream(0), &[n, 1]), rng.normal_tensor(&device, Stream(1), &[n, 2]));
        let logs = log(mixture_sample(&p, 1, 2, &choice, &eps, &[1.0; 2]));
        let mean = logs.iter().sum::<f64>() / n as f64;
        let error = (logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n as f64 / n as f64).sqrt();
        assert!((mean + entropy).abs() < 4.0 * error, "{mean} ± {error}, entropy {entropy}");
    }
}
