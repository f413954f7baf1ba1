//! The latents of a step, and the laws they are drawn from and scored by.

use crate::{Tensor, Var, ops};

/// One of something for each latent of a step.
#[derive(Clone, Copy, Debug)]
pub struct Each<T> {
    /// For o, whether the pen draws.
    pub onoff: T,
    /// For l, where: shift x, shift y, scale, rotation.
    pub layout: T,
    /// For s, what: control points in the glimpse frame, or an appearance code.
    pub stroke: T,
}

impl<T> Each<T> {
    /// The same of another kind.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Each<U> {
        Each { onoff: f(self.onoff), layout: f(self.layout), stroke: f(self.stroke) }
    }

    /// On/off, layout, stroke.
    pub fn to_array(self) -> [T; 3] {
        [self.onoff, self.layout, self.stroke]
    }
}

/// The law of one latent, for every image of a batch.
#[derive(Clone, Copy)]
pub(super) enum Density<'t, 'a> {
    /// Probability p, N elements.
    Bernoulli { p: Var<'t>, eps: f64 },
    /// One Gaussian per group, packed as in `ops/gaussian.rs`.
    Gaussian { packed: Var<'t>, groups: usize },
    /// One mixture per group, packed as in `ops/mixture.rs`.
    Mixture { packed: Var<'t>, groups: usize, components: usize },
    /// Independent coordinates, the same for every image: mean and standard deviation of each column.
    Normal { mean: &'a [f64], std: &'a [f64] },
    /// Known beforehand.
    Given(Var<'t>),
}

impl<'t> Density<'t, '_> {
    /// A sample: differentiable where the law is a Gaussian, otherwise a constant.
    ///
    /// `main` are uniform numbers for on/off and standard normal ones for the others; `pick`, one uniform number per mixture, chooses
    /// the component; `heat` are factors of the standard deviations, repeated along the columns.
    pub fn sample(&self, main: &Tensor, pick: Option<&Tensor>, mask: Var<'t>, heat: &[f64]) -> Var<'t> {
        let tape = mask.tape();
        let heat = |columns: usize| heat.iter().copied().cycle().take(columns).collect::<Vec<f64>>();
        let scaled = |std: &[f64]| std.iter().zip(heat(std.len())).map(|(s, h)| s * h).collect::<Vec<f64>>();
        match *self {
            Density::Bernoulli { p, .. } => tape.constant(ops::sample_onoff(&p.value(), main, &mask.value())),
            Density::Gaussian { packed, groups } => {
                let heat = heat(main.shape()[1]);
                if heat.iter().all(|&h| h == 1.0) {
                    return packed.gaussian_sample(main, groups);
                }
                packed.gaussian_sample(&ops::normal_sample(&vec![0.0; heat.len()], &heat, main), groups)
            }
            Density::Mixture { packed, groups, components } => {
                let pick = pick.expect("a mixture needs numbers that choose its components");
                let heat = heat(main.shape()[1]);
                tape.constant(ops::mixture_sample(&packed.value(), groups, components, pick, main, &heat))
            }
            Density::Normal { mean, std } => tape.constant(ops::normal_sample(mean, &scaled(std), main)),
            Density::Given(z) => z,
        }
    }

    /// log density of z `[N]`; 0, without gradient, where `live` `[N]` is 0.
    pub fn log(&self, z: Var<'t>, live: &Tensor) -> Var<'t> {
        match *self {
            Density::Bernoulli { p, eps } => p.bernoulli_logpdf(&z.value(), live, eps),
            Density::Gaussian { packed, groups } => z.gaussian_logpdf(packed, groups, Some(live)),
            Density::Mixture { packed, groups, components } => z.mixture_logpdf(packed, groups, components, Some(live)),
            Density::Normal { mean, std } => z.normal_logpdf(mean, std) * z.tape().constant(live.clone()),
            Density::Given(_) => z.tape().constant(Tensor::zeros(live.device(), live.shape())),
        }
    }

    /// p, where it is that of a decision.
    pub fn probability(&self) -> Option<Var<'t>> {
        match *self {
            Density::Bernoulli { p, .. } => Some(p),
            _ => None,
        }
    }

    /// p·o of the step before, kept off 0 and 1: what a chooser of on/off draws from. A scorer is not gated (section 3).
    pub fn gated(self, mask: &Tensor) -> Self {
        match self {
            Density::Bernoulli { p, eps } => Density::Bernoulli { p: p.onoff_probability(mask), eps },
            other => other,
        }
    }
}

/// Factors of the standard deviations of what is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heat {
    /// Of shift x, shift y, scale and rotation.
    pub layout: [f64; 4],
    /// Of every coordinate of a stroke.
    pub stroke: f64,
}

impl Heat {
    /// None are changed.
    pub const ONE: Heat = Heat { layout: [1.0; 4], stroke: 1.0 };
    /// The same factor for all.
    pub const fn all(factor: f64) -> Heat {
        Heat { layout: [factor; 4], stroke: factor }
    }

    /// As the paper generates: a tenth for shifts and strokes, √0.7 for scale and rotation (section 11c).
    pub const PAPER: Heat = Heat { layout: [0.1, 0.1, 0.836_660_026_534_075_5, 0.836_660_026_534_075_5], stroke: 0.1 };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tape, rng::Rng, rng::Stream};

    const N: usize = 40_000;

    /// N rows of the same numbers.
    fn rows<'t>(tape: &'t Tape<'t>, row: &[f64]) -> Var<'t> {
        tape.constant(Tensor::from_f64(tape.device(), &[N, row.len()], &row.repeat(N)))
    }

    /// The mean of `of`'s log density over N samples of `law`, and the variance of that mean. A sample has `columns` numbers.
    fn mean_log<'t>(
        law: &Density<'t, '_>,
        of: &Density<'t, '_>,
        mask: Var<'t>,
        seed: u64,
        columns: usize,
    ) -> (f64, f64) {
        let (rng, one) = (Rng::new(seed, 0), mask.value());
        let main = match law {
            Density::Bernoulli { .. } => rng.uniform_tensor(one.device(), Stream(0), &[N]),
            _ => rng.normal_tensor(one.device(), Stream(0), &[N, columns]),
        };
        let pick = rng.uniform_tensor(one.device(), Stream(1), &[N, 2]);
        let groups = if let Density::Mixture { groups, .. } = law { *groups } else { 1 };
        let pick = Tensor::from_f64(one.device(), &[N, groups], &pick.to_f64()[..N * groups]);
        let logs = of.log(law.sample(&main, Some(&pick), mask, &[1.0]), &one).value().to_f64();
        let mean = logs.iter().sum::<f64>() / N as f64;
        (mean, logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (N as f64).powi(2))
    }

    #[track_caller]
    fn close(what: &str, (mean, variance): (f64, f64), wanted: (f64, f64)) {
        let error = (variance + wanted.1).sqrt();
        assert!((mean - wanted.0).abs() < 4.0 * error, "{what}: {mean} and {} with an error of {error}", wanted.0);
    }

    /// log σ + ½(1 + log 2π), summed: minus the mean log density. The coupling does not matter to it.
    fn negentropy(std: &[f64]) -> f64 {
        -std.iter().map(|s| s.ln() + 0.5 * (1.0 + std::f64::consts::TAU.ln())).sum::<f64>()
    }

    #[test]
    fn samples_have_the_log_density_that_they_are_scored_with() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let mask = tape.constant(Tensor::full(&device, &[N], 1.0));
        let check = |what: &str, law: Density, columns: usize, wanted: (f64, f64)| {
            close(what, mean_log(&law, &law, mask, 1, columns), wanted);
        };
        let coin = Density::Bernoulli { p: rows(&tape, &[0.3]), eps: 1e-7 };
        check("on/off", coin, 1, (0.3 * 0.3f64.ln() + 0.7 * 0.7f64.ln(), 0.0));
        let (mean, std) = ([0.1, -0.4, 0.8, 0.2], [0.3, 0.05, 0.2, 0.7]);
        check("fixed", Density::Normal { mean: &mean, std: &std }, 4, (negentropy(&std), 0.0));
        let packed = rows(&tape, &[&mean[..], &std, &[0.9]].concat());
        check("Gaussian", Density::Gaussian { packed, groups: 1 }, 4, (negentropy(&std), 0.0));
        let packed = rows(&tape, &[&mean[..], &std, &[0.9, -0.5]].concat());
        check("two Gaussians", Density::Gaussian { packed, groups: 2 }, 4, (negentropy(&std), 0.0));
    }

    /// The entropy of a mixture by a second way: component by component, each with its weight.
    #[test]
    fn samples_of_a_mixture_have_the_log_density_that_they_are_scored_with() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let mask = tape.constant(Tensor::full(&device, &[N], 1.0));
        for d in [2, 4] {
            let number = |stream: u32, i: usize| Rng::new(3, 0).normal(Stream(stream), i);
            let logits = [0.5, -0.7, 0.1];
            let means: Vec<f64> = (0..3 * d).map(|i| number(0, i)).collect();
            let stds: Vec<f64> = (0..3 * d).map(|i| 0.2 + 0.3 * number(1, i).abs()).collect();
            let cors = [0.4, -0.8, 0.1];
            let packed = |groups: usize| {
                let parts = [&logits[..], &means, &stds, &cors].map(|part| part.repeat(groups));
                Density::Mixture { packed: rows(&tape, &parts.concat()), groups, components: 3 }
            };
            let sum: f64 = logits.iter().map(|a| a.exp()).sum();
            let by_components = (0..3).map(|k| {
                let parts = [&means[k * d..][..d], &stds[k * d..][..d], &cors[k..][..1]];
                let component = Density::Gaussian { packed: rows(&tape, &parts.concat()), groups: 1 };
                let ((mean, variance), weight) = (mean_log(&component, &packed(1), mask, 7, d), logits[k].exp() / sum);
                (weight * mean, weight * weight * variance)
            });
            let wanted = by_components.fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
            close("one mixture", mean_log(&packed(1), &packed(1), mask, 1, d), wanted);
            // Two of them at once have twice the entropy.
            let twice = (2.0 * wanted.0, 4.0 * wanted.1);
            close("two mixtures", mean_log(&packed(2), &packed(2), mask, 2, 2 * d), twice);
        }
    }
}
