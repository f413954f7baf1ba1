//! Gaussians whose first two coordinates are coupled by one entry of the Cholesky factor (section 2.5 of the model).
//!
//! A row of packed parameters p holds G independent groups of d coordinates: means `G×d`, stds `G×d`, cors `G`. For one group,
//! with standard normal ε:
//!
//! ```text
//! z₀ = μ₀ + σ₀ε₀    z₁ = μ₁ + cor·ε₀ + σ₁ε₁    zᵢ = μᵢ + σᵢεᵢ
//! log N = −(d/2)·log 2π − Σ log σᵢ − ½[e₀² + f² + Σ_{i≥2} eᵢ²],   eᵢ = (zᵢ − μᵢ)/σᵢ,   f = (z₁ − μ₁ − cor·e₀)/σ₁
//! ```

use super::{
    Op,
    live::{check_live, is_live},
};
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// log √(2π).
pub(super) const HALF_LOG_TAU: f64 = 0.918_938_533_204_672_8;

/// Means, stds and cors of `count` Gaussians of `d` coordinates, packed in this order.
#[inline(always)]
pub(super) fn parts<T>(packed: &[T], count: usize, d: usize) -> [&[T]; 3] {
    let (mean, rest) = packed.split_at(count * d);
    let (std, cor) = rest.split_at(count * d);
    [mean, std, cor]
}

/// As [`parts`], to write.
#[inline(always)]
pub(super) fn parts_mut<T>(packed: &mut [T], count: usize, d: usize) -> [&mut [T]; 3] {
    let (mean, rest) = packed.split_at_mut(count * d);
    let (std, cor) = rest.split_at_mut(count * d);
    [mean, std, cor]
}

/// `out[k]` = log density of component k at z, less its constant −(d/2)·log 2π. z `[d]`, mean, std `[K×d]`, cor `[K]`.
#[inline(always)]
pub(super) fn log_densities<T: Real>(z: &[T], [mean, std, cor]: [&[T]; 3], out: &mut [T]) {
    let d = z.len();
    let components = mean.chunks_exact(d).zip(std.chunks_exact(d)).zip(cor);
    for (out, ((mean, std), &cor)) in out.iter_mut().zip(components.clone()) {
        let e0 = (z[0] - mean[0]) / std[0];
        let f = (z[1] - mean[1] - cor * e0) / std[1];
        let mut square = e0 * e0 + f * f;
        for i in 2..d {
            let e = (z[i] - mean[i]) / std[i];
            square += e * e;
        }
        *out = T::of(-0.5) * square;
    }
    // Apart, because the logarithm does not vectorise. Two stds are at least 1e-18 together: one logarithm does for both.
    for (out, std) in out.iter_mut().zip(std.chunks_exact(d)) {
        let log: T = std.chunks(2).map(|s| if let [a, b] = s { (*a * *b).ln() } else { s[0].ln() }).sum();
        *out -= log;
    }
}

/// Adds the gradient of `Σ weight[k]·log density k` to those of z and the parameters. `scratch` has the size of the means.
#[inline(always)]
pub(super) fn add_gradients<T: Real>(
    z: &[T],
    [mean, std, cor]: [&[T]; 3],
    weight: &[T],
    dz: &mut [T],
    [dmean, dstd, dcor]: [&mut [T]; 3],
    scratch: &mut [T],
) {
    let d = z.len();
    let components = mean.chunks_exact(d).zip(std.chunks_exact(d)).zip(cor).zip(weight);
    let slots = scratch.chunks_exact_mut(d).zip(dstd.chunks_exact_mut(d)).zip(dcor);
    for ((((mean, std), &cor), &weight), ((toward, dstd), dcor)) in components.zip(slots) {
        let (r0, r1) = (T::ONE / std[0], T::ONE / std[1]);
        let e0 = (z[0] - mean[0]) * r0;
        let f = (z[1] - mean[1] - cor * e0) * r1;
        let h = e0 - cor * f * r1;
        toward[0] = weight * h * r0;
        toward[1] = weight * f * r1;
        dstd[0] += weight * (h * e0 - T::ONE) * r0;
        dstd[1] += weight * (f * f - T::ONE) * r1;
        *dcor += weight * f * e0 * r1;
        for i in 2..d {
            let r = T::ONE / std[i];
            let e = (z[i] - mean[i]) * r;
            toward[i] = weight * e * r;
            dstd[i] += weight * (e * e - T::ONE) * r;
        }
    }
    // The density depends on z − μ only.
    dmean.iter_mut().zip(&*scratch).for_each(|(d, &g)| *d += g);
    for g in scratch.chunks_exact(d) {
        dz.iter_mut().zip(g).for_each(|(dz, &g)| *dz -= g);
    }
}

/// The memory of a gradient, or of one that nobody wants.
pub(super) fn slot_or<'a, T: Real>(slot: &'a mut Option<Slot>, unwanted: &'a mut Vec<T>, len: usize) -> &'a mut [T] {
    match slot {
        Some(slot) => slot.add::<T>(),
        None => {
            unwanted.resize(len, T::ZERO);
            unwanted
        }
    }
}

/// (N, d) of z `[N, G·d]` and packed parameters p `[N, width(d)]`.
#[track_caller]
pub(super) fn dims(op: &str, z: &Tensor, p: &Tensor, groups: usize, width: impl Fn(usize) -> usize) -> (usize, usize) {
    if let (&[n, columns], &[n2, packed]) = (z.shape(), p.shape()) {
        let d = columns / groups;
        if n == n2 && d >= 2 && columns == groups * d && packed == width(d) {
            return (n, d);
        }
    }
    panic!("{op}: {:?} with parameters {:?} for {groups} groups of at least 2 coordinates", z.shape(), p.shape());
}

struct LogDensity {
    groups: usize,
    live: Option<Tensor>,
}

impl LogDensity {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> (usize, usize) {
        let (n, d) = dims(self.name(), &x[0], &x[1], self.groups, |d| self.groups * (2 * d + 1));
        check_live(self.name(), self.live.as_ref(), n);
        (n, d)
    }
}

impl Op for LogDensity {
    fn name(&self) -> &'static str {
        "gaussian_logpdf"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let ((n, d), groups) = (self.dims(x), self.groups);
        let mut y = Tensor::empty(cx, &[n]);
        on_device!(cx, T => {
            let (z, p) = (x[0].slice::<T>().chunks_exact(groups * d), x[1].slice::<T>().chunks_exact(groups * (2 * d + 1)));
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            for (i, (y, (z, p))) in y.slice_mut::<T>().iter_mut().zip(z.zip(p)).enumerate() {
                if !is_live(live, i) {
                    *y = T::ZERO;
                    continue;
                }
                let [mean, std, cor] = parts(p, groups, d);
                *y = T::of(-HALF_LOG_TAU * (groups * d) as f64);
                for (g, z) in z.chunks_exact(d).enumerate() {
                    let mut log = [T::ZERO];
                    log_densities(z, [&mean[g * d..][..d], &std[g * d..][..d], &cor[g..][..1]], &mut log);
                    *y += log[0];
                }
            }
        }, gpu => {
            let constant = Arg::Real(-HALF_LOG_TAU * (groups * d) as f64);
            let args = args![&x[0], &x[1], Arg::input(self.live.as_ref()), y.out(), n, groups, d, constant];
            gpu.launch("gaussian", "gaussian_logpdf_fwd", Launch::rows(n.div_ceil(4), 128), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ((n, d), groups) = (self.dims(x), self.groups);
        let [slot_z, slot_p] = dx else { unreachable!() };
        on_device!(cx, T => {
            let (width, mut unwanted) = (groups * (2 * d + 1), (vec![], vec![]));
            let dz = slot_or::<T>(slot_z, &mut unwanted.0, x[0].len()).chunks_exact_mut(groups * d);
            let dp = slot_or::<T>(slot_p, &mut unwanted.1, x[1].len()).chunks_exact_mut(width);
            let (z, p) = (x[0].slice::<T>().chunks_exact(groups * d), x[1].slice::<T>().chunks_exact(width));
            let mut scratch = vec![T::ZERO; d];
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            for (i, (((z, p), (dz, dp)), &dy)) in z.zip(p).zip(dz.zip(dp)).zip(dy.slice::<T>()).enumerate() {
                if !is_live(live, i) {
                    continue;
                }
                let ([mean, std, cor], [dmean, dstd, dcor]) = (parts(p, groups, d), parts_mut(dp, groups, d));
                for g in 0..groups {
                    let (all, one) = (g * d..(g + 1) * d, g..g + 1);
                    add_gradients(
                        &z[all.clone()],
                        [&mean[all.clone()], &std[all.clone()], &cor[one.clone()]],
                        &[dy],
                        &mut dz[all.clone()],
                        [&mut dmean[all.clone()], &mut dstd[all], &mut dcor[one]],
                        &mut scratch,
                    );
                }
            }
        }, gpu => {
            let ([dz, add_dz], [dp, add_dp], jobs) = (grad(slot_z), grad(slot_p), n * groups);
            let args = args![&x[0], &x[1], Arg::input(self.live.as_ref()), dy, dz, add_dz, dp, add_dp, jobs, groups, d];
            gpu.launch("gaussian", "gaussian_logpdf_bwd", Launch::elements(jobs), args);
        });
    }
}

/// z = μ + Lε.
struct Sample {
    groups: usize,
}

impl Sample {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> (usize, usize) {
        dims(self.name(), &x[1], &x[0], self.groups, |d| self.groups * (2 * d + 1))
    }
}

impl Op for Sample {
    fn name(&self) -> &'static str {
        "gaussian_sample"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let ((n, d), groups) = (self.dims(x), self.groups);
        let mut y = Tensor::empty(cx, &[n, groups * d]);
        on_device!(cx, T => {
            let (p, eps) = (x[0].slice::<T>().chunks_exact(groups * (2 * d + 1)), x[1].slice::<T>().chunks_exact(groups * d));
            for (z, (p, eps)) in y.slice_mut::<T>().chunks_exact_mut(groups * d).zip(p.zip(eps)) {
                let [mean, std, cor] = parts(p, groups, d);
                for (j, z) in z.iter_mut().enumerate() {
                    *z = mean[j] + std[j] * eps[j];
                }
                for (g, &cor) in cor.iter().enumerate() {
                    z[g * d + 1] += cor * eps[g * d];
                }
            }
        }, gpu => {
            let all = y.len();
            let args = args![&x[0], &x[1], y.out(), all, groups, d];
            gpu.launch("gaussian", "gaussian_sample_fwd", Launch::elements(all), args);
        });
        vec![y]
    }

    /// The noise is a constant: it gets no gradient.
    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ((_, d), groups) = (self.dims(x), self.groups);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let dp = slot.add::<T>().chunks_exact_mut(groups * (2 * d + 1));
            let (eps, dz) = (x[1].slice::<T>().chunks_exact(groups * d), dy.slice::<T>().chunks_exact(groups * d));
            for (dp, (eps, dz)) in dp.zip(eps.zip(dz)) {
                let [mean, std, cor] = parts_mut(dp, groups, d);
                for j in 0..groups * d {
                    mean[j] += dz[j];
                    std[j] += dz[j] * eps[j];
                }
                for (g, cor) in cor.iter_mut().enumerate() {
                    *cor += dz[g * d + 1] * eps[g * d];
                }
            }
        }, gpu => {
            let ([dp, add], all) = (grad(&mut dx[0]), dy.len());
            let args = args![&x[1], dy, dp, add, all, groups, d];
            gpu.launch("gaussian", "gaussian_sample_bwd", Launch::elements(all), args);
        });
    }
}

/// Independent normal coordinates with fixed parameters.
struct FixedNormal {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl FixedNormal {
    /// The constant part of the log density.
    fn log_norm(&self) -> f64 {
        self.std.iter().map(|s| -s.ln() - HALF_LOG_TAU).sum()
    }
}

/// Means, then stds, as a kernel gets them.
fn columns(gpu: &Gpu, mean: &[f64], std: &[f64]) -> Arg {
    gpu.constant(mean.iter().chain(std).copied())
}

/// Samples mean + std·eps of independent normal distributions with one fixed mean and std per column; standard normal noise
/// eps `[N, D]` → `[N, D]`.
#[track_caller]
pub fn normal_sample(mean: &[f64], std: &[f64], eps: &Tensor) -> Tensor {
    let d = mean.len();
    assert!(
        std.len() == d && d > 0 && eps.shape().last() == Some(&d),
        "normal_sample: eps {:?} for {d} means and {} stds",
        eps.shape(),
        std.len()
    );
    let mut z = Tensor::empty(eps.device(), eps.shape());
    on_device!(eps.device(), T => {
        for (z, eps) in z.slice_mut::<T>().chunks_exact_mut(d).zip(eps.slice::<T>().chunks_exact(d)) {
            for j in 0..d {
                z[j] = T::of(mean[j]) + T::of(std[j]) * eps[j];
            }
        }
    }, gpu => {
        gpu.enter("normal_sample");
        let n = z.len();
        gpu.launch("gaussian", "normal_sample", Launch::elements(n), args![eps, columns(gpu, mean, std), z.out(), n, d]);
    });
    z
}

impl Op for FixedNormal {
    fn name(&self) -> &'static str {
        "normal_logpdf"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let d = self.mean.len();
        let n = match *x[0].shape() {
            [n, columns] if columns == d && self.std.len() == d => n,
            ref z => panic!("normal_logpdf: z {z:?} for {d} means and {} stds", self.std.len()),
        };
        let mut y = Tensor::empty(cx, &[n]);
        on_device!(cx, T => {
            for (y, z) in y.slice_mut::<T>().iter_mut().zip(x[0].slice::<T>().chunks_exact(d)) {
                let e = z.iter().zip(self.mean.iter().zip(&self.std)).map(|(&z, (&m, &s))| (z - T::of(m)) / T::of(s));
                *y = T::of(self.log_norm()) - T::of(0.5) * e.map(|e| e * e).sum::<T>();
            }
        }, gpu => {
            let columns = columns(gpu, &self.mean, &self.std);
            let args = args![&x[0], columns, y.out(), n, d, Arg::Real(self.log_norm())];
            gpu.launch("gaussian", "normal_logpdf_fwd", Launch::elements(n), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        let d = self.mean.len();
        on_device!(cx, T => {
            let rows = slot.add::<T>().chunks_exact_mut(d).zip(x[0].slice::<T>().chunks_exact(d));
            for ((dz, z), &dy) in rows.zip(dy.slice::<T>()) {
                for j in 0..d {
                    dz[j] += dy * (T::of(self.mean[j]) - z[j]) / T::of(self.std[j] * self.std[j]);
                }
            }
        }, gpu => {
            let ([dz, add], all) = (grad(&mut dx[0]), x[0].len());
            let args = args![&x[0], columns(gpu, &self.mean, &self.std), dy, dz, add, all, d];
            gpu.launch("gaussian", "normal_logpdf_bwd", Launch::elements(all), args);
        });
    }
}

impl<'t> Var<'t> {
    /// Log density of z `[N, G·d]` under the Gaussians p `[N, G·(2d + 1)]`, summed over the groups → `[N]`.
    ///
    /// Where `live` (N elements, 0 or 1) is 0, the result is 0, no gradient flows and nothing is computed.
    #[track_caller]
    pub fn gaussian_logpdf(self, p: Var<'t>, groups: usize, live: Option<&Tensor>) -> Var<'t> {
        self.tape().apply(LogDensity { groups, live: live.cloned() }, &[self, p])
    }

    /// A sample μ + Lε of the Gaussians p `[N, G·(2d + 1)]` (`self`), differentiable in p; standard normal noise eps `[N, G·d]`
    /// → `[N, G·d]`.
    #[track_caller]
    pub fn gaussian_sample(self, eps: &Tensor, groups: usize) -> Var<'t> {
        self.tape().apply(Sample { groups }, &[self, self.tape().constant(eps.clone())])
    }

    /// Log density of z `[N, D]` under independent normal distributions with one fixed mean and std per column → `[N]`.
    #[track_caller]
    pub fn normal_logpdf(self, mean: &[f64], std: &[f64]) -> Var<'t> {
        self.tape().apply(FixedNormal { mean: mean.to_vec(), std: std.to_vec() }, &[self])
    }
}

#[cfg(test)]
mod tests {
    use super::super::squash::Squash;
    use super::*;
    use crate::{Tape, gradcheck::gradcheck, rng::Rng, rng::Stream};
    use approx::assert_abs_diff_eq;

    #[test]
    fn gaussian_gradients() {
        for (groups, d, ranges) in [(1, 4, Squash::layout()), (5, 2, Squash::stroke(5))] {
            let (z, raw) = ([3, groups * d], [3, ranges.columns()]);
            let error = gradcheck(&[&z, &raw], |_, x| x[0].gaussian_logpdf(x[1].squash(&ranges), groups, None));
            assert!(error < 1e-6, "logpdf: {error}");
            let eps = Rng::new(2, 0).normal_tensor(&Device::cpu_f64(), Stream(5), &z);
            let error = gradcheck(&[&raw], |_, x| x[0].gaussian_sample(&eps, groups));
            assert!(error < 1e-6, "sample: {error}");
        }
    }

    #[test]
    fn a_sample_has_the_density_of_its_noise() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let rng = Rng::new(2, 0);
        let p = tape.constant(rng.normal_tensor(&device, Stream(0), &[20, 25])).squash(&Squash::stroke(5));
        let eps = rng.normal_tensor(&device, Stream(1), &[20, 10]);
        let found = p.gaussian_sample(&eps, 5).gaussian_logpdf(p, 5, None).value().to_f64();
        for ((found, p), eps) in found.iter().zip(p.value().to_f64().chunks(25)).zip(eps.to_f64().chunks(10)) {
            let wanted: f64 = (0..10).map(|i| -HALF_LOG_TAU - 0.5 * eps[i] * eps[i] - p[10 + i].ln()).sum();
            assert_abs_diff_eq!(*found, wanted, epsilon = 1e-10);
        }
    }

    #[test]
    fn layout_density_has_the_published_value() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let row = |x: &[f64]| tape.constant(Tensor::from_f64(&device, &[1, x.len()], x));
        let p = row(&[0.0, 0.1, 0.7, 0.05, 0.05, 0.08, 0.1, 0.2, -0.03]);
        let log = row(&[0.02, 0.05, 0.75, -0.1]).gaussian_logpdf(p, 1, None).value().item();
        assert_abs_diff_eq!(log, 5.158668, epsilon = 1e-6); // Appendix A of the model
    }

    #[test]
    fn fixed_normal_is_the_uncoupled_gaussian() {
        let (mean, std) = ([0.0, 0.0, 0.8, 0.0], [0.2, 0.2, 0.2, 0.4]);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].normal_logpdf(&mean, &std)) < 1e-6);
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let z = tape.constant(Tensor::from_f64(&device, &[1, 4], &[0.1, -0.3, 0.7, 0.2]));
        let p = tape.constant(Tensor::from_f64(&device, &[1, 9], &[&mean[..], &std[..], &[0.0]].concat()));
        let (one, other) = (z.normal_logpdf(&mean, &std), z.gaussian_logpdf(p, 1, None));
        assert_abs_diff_eq!(one.value().item(), other.value().item(), epsilon = 1e-12);
    }

    #[test]
    fn smallest_stds_stay_finite_in_single_precision() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let p = tape.constant(Tensor::full(&device, &[1, 9], -80.0)).squash(&Squash::layout());
        let z = p.gaussian_sample(&Tensor::zeros(&device, &[1, 4]), 1);
        let log = z.gaussian_logpdf(p, 1, None).value().item();
        assert_abs_diff_eq!(log, 4.0 * (9.0 * 10f64.ln() - HALF_LOG_TAU), epsilon = 1e-4);
    }
}
