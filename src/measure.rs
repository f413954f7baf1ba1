//! How good a model is on images: its evidence lower bound, the importance-weighted bound (section 11a of the model), the likelihood of
//! what it draws and how many strokes that takes.

use crate::{
    Device, Observer, Params, Result, Tape, Tensor,
    data::Images,
    model::{Model, Noise, Pass, Step},
    refine::{Moves, refine},
    replay::Replay,
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

/// Some images drawn several times each.
pub(crate) struct Round {
    /// Which of all images is the first of them.
    pub(crate) first: usize,
    /// How many images they are.
    pub(crate) count: usize,
    particles: usize,
    /// log p(x | canvas), log weight and strokes of every drawing, particle-major.
    numbers: [Vec<f64>; 3],
}

impl Round {
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

/// What drawings of x say of it, as they lie on the device.
struct Found(Vec<Tensor>);

impl Found {
    fn of(ends: Ends, model: &Model, x: &Tensor, steps: &[Step]) -> Self {
        let each = |value: fn(&Step) -> Tensor| steps.iter().map(value);
        match ends {
            Ends::Sampled => {
                let mut all = vec![model.log_likelihood(x, steps).value()];
                all.extend(each(|step| step.kl().value()));
                all.extend(each(|step| step.after.z.onoff.value()));
                Found(all)
            }
            Ends::All => {
                let ends = model.log_likelihoods(x, steps).value();
                let rows = x.shape()[0];
                let mut all: Vec<Tensor> = (0..=steps.len()).map(|t| ends.window(t * rows, &[rows])).collect();
                all.extend(each(|step| step.onoff_prob.value()));
                all.extend(each(|step| step.scored_prob().value()));
                all.extend(each(|step| step.kl_of_stroke().value()));
                Found(all)
            }
        }
    }
}

/// log p(x | canvas), log weight and strokes of every drawing.
fn read(ends: Ends, model: &Model, found: &[Vec<f64>]) -> [Vec<f64>; 3] {
    match ends {
        Ends::Sampled => sampled(found),
        Ends::All => all_ends(model, found),
    }
}

/// Of drawings whose end was sampled.
fn sampled(found: &[Vec<f64>]) -> [Vec<f64>; 3] {
    let (likelihoods, steps) = found.split_first().expect("the likelihood is first");
    let (kls, onoffs) = steps.split_at(steps.len() / 2);
    let (mut log_weight, mut drawn) = (likelihoods.clone(), vec![0.0; likelihoods.len()]);
    kls.iter().for_each(|kl| log_weight.iter_mut().zip(kl).for_each(|(weight, kl)| *weight -= kl));
    onoffs.iter().for_each(|on| drawn.iter_mut().zip(on).for_each(|(sum, on)| *sum += on));
    [likelihoods.clone(), log_weight, drawn]
}

/// log p(x | canvas), log weight and strokes of every drawing over all its ends ([`Ends::All`]): the likelihood and the strokes as q
/// expects them. `steps` are of a pass that holds.
pub fn over_ends(model: &Model, x: &Tensor, steps: &[Step]) -> [Vec<f64>; 3] {
    let Found(found) = Found::of(Ends::All, model, x, steps);
    all_ends(model, &found.iter().map(Tensor::to_f64).collect::<Vec<_>>())
}

fn all_ends(model: &Model, found: &[Vec<f64>]) -> [Vec<f64>; 3] {
    let (strokes, n) = (found.len() / 4, found[0].len());
    let (ends, steps) = found.split_at(strokes + 1);
    let eps = model.config.bernoulli_eps;
    let chance = |p: f64| p.clamp(eps, 1.0 - eps);
    let [mut likelihood, mut most, mut sum, mut drawn] = [0.0, f64::NEG_INFINITY, 0.0, 0.0].map(|x| vec![x; n]);
    // Probability of q to come this far, and log p − log q of what was drawn until here.
    let (mut reach, mut so_far) = (vec![1.0; n], vec![0.0; n]);
    let mut end = |t: usize, i: usize, q: f64, log_weight: f64| {
        let weight = ends[t][i] + log_weight;
        likelihood[i] += q * ends[t][i];
        drawn[i] += q * t as f64;
        if weight > most[i] {
            (sum[i], most[i]) = (sum[i] * (most[i] - weight).exp() + 1.0, weight);
        } else {
            sum[i] += (weight - most[i]).exp();
        }
    };
    for t in 0..strokes {
        let [p, prior, kl] = [0, 1, 2].map(|k| &steps[k * strokes + t]);
        for i in 0..n {
            let (p, prior) = (chance(p[i]), chance(prior[i]));
            end(t, i, reach[i] * (1.0 - p), so_far[i] + (1.0 - prior).ln());
            reach[i] *= p;
            so_far[i] += prior.ln() - kl[i];
        }
    }
    (0..n).for_each(|i| end(strokes, i, reach[i], so_far[i]));
    let log_weight = most.iter().zip(&sum).map(|(most, sum)| most + sum.ln()).collect();
    [likelihood, log_weight, drawn]
}

/// As many drawings as share the reading of weights on a CPU (an image's two hundred of the published protocol), or as fill a GPU.
pub(crate) fn at_once(device: &Device) -> usize {
    if device.gpu().is_some() { 1024 } else { 200 }
}

/// Images that are drawn several times each, and how.
pub(crate) struct Draw<'a> {
    /// The model, and its parameters.
    pub(crate) artist: (&'a Model, &'a Params),
    /// How many images, and a range of them as `[B, H, W]`.
    pub(crate) images: (usize, &'a dyn Fn(Range<usize>) -> Tensor),
    /// Dropout is off.
    pub(crate) protocol: Protocol,
    /// At most so many in a drawing.
    pub(crate) strokes: usize,
    pub(crate) rng: Rng,
    /// A pass holds at most so many, to bound its memory.
    pub(crate) at_once: usize,
}

/// Some of the images, for a pass that draws each of them so many times.
struct Lot<'a> {
    first: usize,
    images: Tensor,
    particles: usize,
    /// Of the images from a number on, if they were refined.
    moves: Option<(&'a Moves, usize)>,
    /// The number of the pass.
    number: u64,
}

impl Draw<'_> {
    /// Goes over all images, some at a time, as often as it takes. Every drawing is told to `observer`, which may stop it.
    fn lots(&self, observer: &dyn Observer, pass: &mut dyn FnMut(&Lot) -> Result<()>) -> Result<()> {
        let ((model, params), (count, images), rng, at_once) = (self.artist, self.images, self.rng, self.at_once);
        let particles = self.protocol.particles.max(1);
        let mut number = rng.step;
        let together = (at_once / particles).max(1);
        // Refinement is for many images at once, however many particles follow.
        for block in (0..count).step_by(at_once / together * together) {
            let block = block..count.min(block + at_once / together * together);
            let moves = match self.protocol.refine {
                0 => None,
                updates => {
                    let own = Rng::new(!rng.seed, block.start as u64 * updates as u64);
                    Some(refine((model, params), &images(block.clone()), (self.strokes, updates), own, observer)?)
                }
            };
            for first in block.clone().step_by(together) {
                let images = images(first..block.end.min(first + together));
                for done in (0..particles).step_by(at_once) {
                    observer.go_on()?;
                    let particles = at_once.min(particles - done);
                    let moves = moves.as_ref().map(|moves| (moves, first - block.start));
                    pass(&Lot { first, images: images.clone(), particles, moves, number })?;
                    observer.advance((particles * images.shape()[0]) as u64);
                    number = number.wrapping_add(1);
                }
            }
        }
        Ok(())
    }

    /// The drawings of a lot as pass `number`, particle-major, and what they are of.
    fn steps<'t>(&self, tape: &'t Tape<'t>, lot: &Lot, number: u64) -> (Tensor, Vec<Step<'t>>) {
        let ((model, params), particles, images) = (self.artist, lot.particles, &lot.images);
        let (count, x) = (images.shape()[0], Tensor::stack(&vec![images.clone(); particles]));
        let rows = particles * count;
        let x = x.reshape(&[&[rows], &images.shape()[1..]].concat());
        let noise = Noise::for_strokes(model, params.device(), (self.strokes, rows), Rng::new(self.rng.seed, number));
        let hold = self.protocol.ends == Ends::All;
        let pass = Pass { hold, copies: particles, ..Pass::plain(noise) };
        let moved = lot.moves.map(|(moves, from)| moves.of(tape, (from, count), particles));
        let steps = model.recognise_moved(tape, &x, &pass, moved.unwrap_or_default());
        (x, steps)
    }

    fn round(&self, lot: &Lot, found: &[Vec<f64>]) -> Round {
        let numbers = read(self.protocol.ends, self.artist.0, found);
        Round { first: lot.first, count: lot.images.shape()[0], particles: lot.particles, numbers }
    }

    /// Draws, and shows every round with its strokes before they are gone, and with what is found first: log p(x | canvas) where ends are
    /// sampled.
    pub(crate) fn look(&self, observer: &dyn Observer, see: &mut dyn FnMut(&Round, &[Step], &Tensor)) -> Result<()> {
        let (model, params) = self.artist;
        self.lots(observer, &mut |lot| {
            let tape = Tape::eval(params);
            let (x, steps) = self.steps(&tape, lot, lot.number);
            let Found(found) = Found::of(self.protocol.ends, model, &x, &steps);
            let round = self.round(lot, &found.iter().map(Tensor::to_f64).collect::<Vec<_>>());
            params.device().check()?;
            see(&round, &steps, &found[0]);
            Ok(())
        })
    }

    /// Draws for the numbers alone; on a GPU passes of the same size are replays of one.
    pub(crate) fn numbers(&self, observer: &dyn Observer, see: &mut dyn FnMut(&Round)) -> Result<()> {
        let (model, params) = self.artist;
        let device = params.device();
        if device.gpu().is_none() || self.protocol.refine > 0 {
            return self.look(observer, &mut |round, _, _| see(round));
        }
        let columns = match self.protocol.ends {
            Ends::Sampled => 1 + 2 * self.strokes,
            Ends::All => 1 + 4 * self.strokes,
        };
        let mut replay = Replay::new(device);
        // What is drawn, and where it is left what was found.
        let mut places: Option<(Lot, Tensor)> = None;
        self.lots(observer, &mut |lot| {
            let rows = lot.particles * lot.images.shape()[0];
            let same = |(place, _): &&(Lot, Tensor)| {
                place.images.shape() == lot.images.shape() && place.particles == lot.particles
            };
            if places.as_ref().filter(same).is_none() {
                replay.forget();
                let images = Tensor::empty(device, lot.images.shape());
                places = Some((Lot { images, moves: None, ..*lot }, Tensor::empty(device, &[columns, rows])));
            }
            let (place, table) = places.as_ref().expect("there are some by now");
            place.images.copy_on_gpu(&lot.images);
            replay.run(lot.number, 1, &mut |number| {
                let tape = Tape::eval(params);
                let (x, steps) = self.steps(&tape, place, number);
                let Found(found) = Found::of(self.protocol.ends, model, &x, &steps);
                found.iter().enumerate().for_each(|(k, found)| table.rows(k, 1).copy_on_gpu(found));
            })?;
            let found: Vec<Vec<f64>> = table.to_f64().chunks(rows).map(<[f64]>::to_vec).collect();
            device.check()?;
            see(&self.round(lot, &found));
            Ok(())
        })
    }
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
    let images = (which.len(), &some as &dyn Fn(Range<usize>) -> Tensor);
    let (strokes, at_once) = (model.config.strokes, at_once(params.device()));
    let draw = Draw { artist: (model, params), images, protocol, strokes, rng, at_once };
    draw.numbers(observer, &mut |round| {
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
    use crate::{
        data::synthetic,
        model::{Config, Start},
        observer::Silent,
        ops::Placement,
    };

    /// Nine images, three drawings each, by passes of two images: a small one is left at the end.
    fn drawn(device: &Device, ends: Ends, replayed: bool) -> Vec<[Vec<f64>; 3]> {
        let config = Config { samples: 20, ..Config::tiny(Placement::Points) };
        let (model, params) = Model::new(&config, Start::new(3), device).unwrap();
        let set = synthetic::draw(9, config.image, 5);
        let images = |range: Range<usize>| pixels(&set, range, device);
        let draw = Draw {
            artist: (&model, &params),
            images: (set.len(), &images),
            protocol: Protocol { ends, ..Protocol::published(3) },
            strokes: 2,
            rng: Rng::new(5, 8),
            at_once: 6,
        };
        let mut found = vec![];
        match replayed {
            true => draw.numbers(&Silent, &mut |round| found.push(round.numbers.clone())),
            false => draw.look(&Silent, &mut |round, _, _| found.push(round.numbers.clone())),
        }
        .unwrap_or_else(|e| panic!("{e}"));
        found
    }

    #[cfg(all(unix, feature = "cuda"))]
    #[test]
    fn passes_of_a_gpu_are_replayed_and_nothing_changes_by_it() {
        use crate::{DType, MathMode, stand_in};
        if let Err(why) = stand_in::install() {
            return println!("{why}");
        }
        let _alone = stand_in::alone();
        let device = Device::cuda(0, DType::F64, MathMode::F32).unwrap();
        for ends in [Ends::Sampled, Ends::All] {
            let launched = device.launches();
            let replayed = drawn(&device, ends, true);
            let few = device.launches() - launched;
            assert_eq!(replayed.len(), 5);
            assert_eq!(replayed, drawn(&device, ends, false), "{ends:?}");
            let many = device.launches() - launched - few;
            // The first pass is launched, the second captured, and the last one has a size of its own.
            assert!(10 * few < 7 * many, "{few} {many}");
            let flat = |rounds: &[[Vec<f64>; 3]]| rounds.as_flattened().concat();
            for (gpu, cpu) in flat(&replayed).iter().zip(flat(&drawn(&Device::cpu_f64(), ends, true))) {
                assert!((gpu - cpu).abs() < 1e-9 * cpu.abs().max(1.0), "{ends:?}: {gpu} {cpu}");
            }
        }
    }

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
