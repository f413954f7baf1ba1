//! How good a model is on images: its evidence lower bound, the importance-weighted bound (section 11a of the model), the likelihood of
//! what it draws and how many strokes that takes.

use crate::{
    Device, Observer, Params, Result, Tape, Tensor, Var,
    data::Images,
    model::{Model, Noise, Pass, Step},
    refine::refine,
    rng::Rng,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::ops::Range;

/// What the drawings of one image say about it; densities in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// log p(x | canvas), the mean over the drawings.
    pub log_likelihood: f64,
    /// log p(x, z) − log q(z | x), the mean over the drawings z: a lower bound on log p(x). With [`Ends::All`] the logarithm of each
    /// drawing's sum over its ends.
    pub elbo: f64,
    /// The logarithm of the mean of p(x, z) / q(z | x): the importance-weighted bound on log p(x) with as many particles as drawings.
    /// Not below `elbo`, and equal to it for one drawing.
    pub bound: f64,
    /// Strokes, the mean over the drawings.
    pub strokes: f64,
}

/// Takes one drawing after the other into a [`Score`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    drawings: f64,
    log_likelihood: f64,
    log_weight: f64,
    strokes: f64,
    /// The largest log weight so far, and the sum of weights relative to it.
    most: f64,
    sum: f64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Tally { drawings: 0.0, log_likelihood: 0.0, log_weight: 0.0, strokes: 0.0, most: f64::NEG_INFINITY, sum: 0.0 }
    }

    pub(crate) fn add(&mut self, log_likelihood: f64, log_weight: f64, strokes: f64) {
        self.drawings += 1.0;
        self.log_likelihood += log_likelihood;
        self.log_weight += log_weight;
        self.strokes += strokes;
        if log_weight > self.most {
            (self.sum, self.most) = (self.sum * (self.most - log_weight).exp() + 1.0, log_weight);
        } else if log_weight != f64::NEG_INFINITY {
            self.sum += (log_weight - self.most).exp();
        }
    }

    /// Of at least one drawing.
    pub(crate) fn score(&self) -> Score {
        let n = self.drawings;
        Score {
            log_likelihood: self.log_likelihood / n,
            elbo: self.log_weight / n,
            bound: self.most + (self.sum / n).ln(),
            strokes: self.strokes / n,
        }
    }
}

/// Some images drawn several times each, before the tape is gone.
pub(crate) struct Round<'t> {
    /// Which of all images is the first of them.
    pub(crate) first: usize,
    /// How many images they are.
    pub(crate) count: usize,
    particles: usize,
    /// The strokes of all drawings, particle-major.
    pub(crate) steps: Vec<Step<'t>>,
    /// log p(x | canvas) of every drawing.
    pub(crate) log_likelihood: Tensor,
    /// The same, log weight and strokes of every drawing.
    numbers: [Vec<f64>; 3],
}

impl Round<'_> {
    /// The drawings of image `i` of these, as rows of everything else.
    pub(crate) fn rows(&self, i: usize) -> impl Iterator<Item = usize> {
        let count = self.count;
        (0..self.particles).map(move |particle| particle * count + i)
    }

    /// How many strokes a drawing has, by its row.
    pub(crate) fn strokes(&self, row: usize) -> f64 {
        self.numbers[2][row]
    }

    /// Adds the drawings of image `i` of these.
    pub(crate) fn tally(&self, i: usize, tally: &mut Tally) {
        let [log_likelihood, log_weight, strokes] = &self.numbers;
        self.rows(i).for_each(|row| tally.add(log_likelihood[row], log_weight[row], strokes[row]));
    }
}

/// How the end of a drawing is treated where drawings are weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// It is sampled from q like the rest (the published protocol).
    #[default]
    Sampled,
    /// All are taken: the weight of a drawing is Σ_n p(x, z_≤n, n) / q(z_≤n | x), with what it says of x after n strokes. That is a
    /// tighter bound on the same log p(x).
    All,
}

/// How images are drawn in order to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// Drawings of each image; at least one is made.
    pub particles: usize,
    /// What becomes of their ends.
    pub ends: Ends,
    /// Updates by which q is refined for every image before that ([`refine`](mod@crate::refine)).
    pub refine: usize,
}

impl Protocol {
    /// The published one (section 11a).
    pub fn published(particles: usize) -> Self {
        Protocol { particles, ends: Ends::Sampled, refine: 0 }
    }

    /// What an observer is told to expect for `images` images: drawings, those of the refinement among them.
    pub fn drawings(&self, images: usize) -> u64 {
        (images as u64).saturating_mul(self.particles.max(1) as u64 + self.refine as u64)
    }
}

/// log p(x | canvas), log weight and strokes of every drawing, whose end was sampled.
fn sampled(log_likelihood: &Tensor, steps: &[Step]) -> [Vec<f64>; 3] {
    let likelihoods = log_likelihood.to_f64();
    let (mut log_weight, mut drawn) = (likelihoods.clone(), vec![0.0; likelihoods.len()]);
    for step in steps {
        log_weight.iter_mut().zip(step.kl().value().to_f64()).for_each(|(weight, kl)| *weight -= kl);
        drawn.iter_mut().zip(step.after.z.onoff.value().to_f64()).for_each(|(sum, on)| *sum += on);
    }
    [likelihoods, log_weight, drawn]
}

/// log p(x | canvas), log weight and strokes of every drawing over all its ends ([`Ends::All`]): the likelihood and the strokes as q
/// expects them. `steps` are of a pass that holds.
pub fn over_ends(model: &Model, x: &Tensor, steps: &[Step]) -> [Vec<f64>; 3] {
    let n = x.shape()[0];
    let eps = model.config.bernoulli_eps;
    let chance = |p: Var| p.value().to_f64().into_iter().map(|p| p.clamp(eps, 1.0 - eps)).collect::<Vec<f64>>();
    let ends = model.log_likelihoods(x, steps).value().to_f64();
    let [mut likelihood, mut most, mut sum, mut drawn] = [0.0, f64::NEG_INFINITY, 0.0, 0.0].map(|x| vec![x; n]);
    // Probability of q to come this far, and log p − log q of what was drawn until here.
    let (mut reach, mut so_far) = (vec![1.0; n], vec![0.0; n]);
    let mut end = |t: usize, i: usize, q: f64, log_weight: f64| {
        let weight = ends[t * n + i] + log_weight;
        likelihood[i] += q * ends[t * n + i];
        drawn[i] += q * t as f64;
        if weight > most[i] {
            (sum[i], most[i]) = (sum[i] * (most[i] - weight).exp() + 1.0, weight);
        } else {
            sum[i] += (weight - most[i]).exp();
        }
    };
    for (t, step) in steps.iter().enumerate() {
        let (p, prior, kl) =
            (chance(step.onoff_prob), chance(step.scored_prob()), step.kl_of_stroke().value().to_f64());
        for i in 0..n {
            end(t, i, reach[i] * (1.0 - p[i]), so_far[i] + (1.0 - prior[i]).ln());
            reach[i] *= p[i];
            so_far[i] += prior[i].ln() - kl[i];
        }
    }
    (0..n).for_each(|i| end(steps.len(), i, reach[i], so_far[i]));
    let log_weight = most.iter().zip(&sum).map(|(most, sum)| most + sum.ln()).collect();
    [likelihood, log_weight, drawn]
}

/// How many drawings a pass holds at most, to bound its memory: as many as caches like, or as fill a GPU.
fn rows_at_once(device: &Device) -> usize {
    if device.gpu().is_some() { 1024 } else { 64 }
}

/// Draws each of `count` images as `protocol` has it in at most `strokes` strokes, dropout off, some at a time; `images` gives a range
/// of them as `[B, H, W]`. Every drawing that is made is told to `observer`, which may stop it.
pub(crate) fn draw(
    (model, params): (&Model, &Params),
    (count, images): (usize, &dyn Fn(Range<usize>) -> Tensor),
    (protocol, strokes): (Protocol, usize),
    rng: Rng,
    observer: &dyn Observer,
    visit: &mut dyn FnMut(&Round),
) -> Result<()> {
    let particles = protocol.particles.max(1);
    let mut pass_number = rng.step;
    let device = params.device();
    let at_once = rows_at_once(device);
    let together = (at_once / particles).max(1);
    // Refinement is for many images at once, however many particles follow.
    for block in (0..count).step_by(at_once / together * together) {
        let block = block..count.min(block + at_once / together * together);
        let moves = match protocol.refine {
            0 => None,
            updates => {
                let own = Rng::new(!rng.seed, block.start as u64 * updates as u64);
                Some(refine((model, params), &images(block.clone()), (strokes, updates), own, observer)?)
            }
        };
        for first in block.clone().step_by(together) {
            let images = images(first..block.end.min(first + together));
            for done in (0..particles).step_by(at_once) {
                observer.go_on()?;
                let particles = at_once.min(particles - done);
                let (count, x) = (images.shape()[0], Tensor::stack(&vec![images.clone(); particles]));
                let rows = particles * count;
                let x = x.reshape(&[&[rows], &images.shape()[1..]].concat());
                let noise = Noise::for_strokes(model, device, (strokes, rows), Rng::new(rng.seed, pass_number));
                let hold = protocol.ends == Ends::All;
                let pass = Pass { hold, copies: particles, ..Pass::plain(noise) };
                let tape = Tape::eval(params);
                let moved = moves.as_ref().map(|moves| moves.of(&tape, (first - block.start, count), particles));
                let steps = model.recognise_moved(&tape, &x, &pass, moved.unwrap_or_default());
                let log_likelihood = model.log_likelihood(&x, &steps).value();
                let numbers = match protocol.ends {
                    Ends::Sampled => sampled(&log_likelihood, &steps),
                    Ends::All => over_ends(model, &x, &steps),
                };
                device.check()?;
                visit(&Round { first, count, particles, steps, log_likelihood, numbers });
                observer.advance(rows as u64);
                pass_number = pass_number.wrapping_add(1);
            }
        }
    }
    Ok(())
}

/// Draws the images `which` of a set as `protocol` has it and scores them, in that order.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn measure(
    (model, params): (&Model, &Params),
    images: &Images,
    which: &[usize],
    protocol: Protocol,
    rng: Rng,
    observer: &dyn Observer,
) -> Result<Vec<Score>> {
    let mut tallies = vec![Tally::new(); which.len()];
    let some = |range: Range<usize>| pixels(images, which[range].iter().copied(), params.device());
    draw((model, params), (which.len(), &some), (protocol, model.config.strokes), rng, observer, &mut |round| {
        (0..round.count).for_each(|i| round.tally(i, &mut tallies[round.first + i]));
    })?;
    Ok(tallies.iter().map(Tally::score).collect())
}

/// Images as the model takes them: `[count, H, W]` with ink in [0, 1].
pub fn pixels(images: &Images, which: impl IntoIterator<Item = usize>, device: &Device) -> Tensor {
    let mut values = vec![];
    for i in which {
        values.extend(images.image(i).iter().map(|&v| f32::from(v) / 255.0));
    }
    let side = images.side;
    Tensor::from_f32(device, &[values.len() / (side * side), side, side], &values)
}

/// `count` images from everywhere in a set of `all`, as sets are often sorted by class; all of them if there are no more.
pub fn spread(count: usize, all: usize) -> Vec<usize> {
    let count = count.min(all);
    (0..count).map(|i| (i as u128 * all as u128 / count as u128) as usize).collect()
}

/// A mean over images and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    #[serde(deserialize_with = "number")]
    pub mean: f64,
    /// Its standard error, from how the images differ; `None` for a single image.
    pub standard_error: Option<f64>,
}

/// JSON knows no number that is not finite, and has nothing in its place.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Estimate {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let n = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Estimate { mean, standard_error: (n > 1.0).then(|| (variance / n).sqrt()) }
    }
}

/// What a model reaches on some images: means of their [`Score`]s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How many images.
    pub images: usize,
    /// Drawings of each.
    pub particles: usize,
    /// See [`Score::log_likelihood`].
    pub log_likelihood: Estimate,
    /// See [`Score::elbo`].
    pub elbo: Estimate,
    /// See [`Score::bound`].
    pub bound: Estimate,
    /// See [`Score::strokes`].
    pub strokes: Estimate,
}

impl Measured {
    /// The means of at least one score, each from `particles` drawings.
    pub fn of(scores: &[Score], particles: usize) -> Self {
        let estimate = |value: fn(&Score) -> f64| Estimate::of(scores.iter().map(value));
        Measured {
            images: scores.len(),
            particles,
            log_likelihood: estimate(|s| s.log_likelihood),
            elbo: estimate(|s| s.elbo),
            bound: estimate(|s| s.bound),
            strokes: estimate(|s| s.strokes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(weights: &[f64]) -> Score {
        let mut tally = Tally::new();
        weights.iter().for_each(|&weight| tally.add(weight - 1.0, weight, 2.0));
        tally.score()
    }

    #[test]
    fn the_bound_is_the_logarithm_of_the_mean_weight_and_not_below_the_mean_logarithm() {
        let weights = [-3.0, -1.0, -2.0, -7.5];
        let exact = (weights.iter().map(|w: &f64| w.exp()).sum::<f64>() / 4.0).ln();
        let found = score(&weights);
        assert!((found.bound - exact).abs() < 1e-12 && found.bound > found.elbo);
        assert_eq!((found.elbo, found.log_likelihood, found.strokes), (-3.375, -4.375, 2.0));
        // Far beyond what an exponential can hold.
        assert_eq!(score(&[-9_000.0, -9_000.0]).bound, -9_000.0);
        assert!((score(&[5_000.0, -5_000.0]).bound - (5_000.0 - 2f64.ln())).abs() < 1e-9);
        assert_eq!(score(&[-4.0]).bound, -4.0);
        assert!((score(&[f64::NEG_INFINITY, -4.0]).bound - (-4.0 - 2f64.ln())).abs() < 1e-12);
        assert!(score(&[f64::NAN, -4.0]).elbo.is_nan());
    }

    #[test]
    fn standard_errors_are_those_of_the_mean() {
        let estimate = Estimate::of([1.0, 2.0, 3.0, 6.0].into_iter());
        // Variance (4 + 1 + 0 + 9) / 3, by 4 images.
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.standard_error.unwrap() - (14.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(Estimate::of([5.0].into_iter()), Estimate { mean: 5.0, standard_error: None });
    }

    #[test]
    fn images_are_taken_from_everywhere() {
        assert_eq!(spread(4, 10), [0, 2, 5, 7]);
        assert_eq!(spread(20, 3), [0, 1, 2]);
        assert_eq!(spread(usize::MAX, 2), [0, 1]);
        assert_eq!(spread(3, 0), [0; 0]);
    }
}
