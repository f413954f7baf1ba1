//! Test-time refinement: what the recognition networks say of an image, improved for that image alone.
//!
//! The raw outputs of q's networks and of those that choose pens are moved at every step, by gradient ascent on the image's evidence
//! lower bound (semi-amortised inference). A moved q is still a distribution that does not know the particles, so bounds with it remain
//! lower bounds on log p(x). It is inference at test time, which the paper does without: never compare it with the published numbers
//! without saying so.

use crate::{
    Device, Observer, ParamId, Params, ParamsBuilder, Result, Tape, Tensor,
    ascent::Ascent,
    model::{Dropout, Model, Moved, Noise, Pass},
    optim::Schedule,
    rng::Rng,
};

/// Learning rate of the moves, which are of raw outputs, before these are squashed into their ranges.
const RATE: f64 = 0.02;
/// Drawings of every image by which it is decided whether its moves are kept.
const TRIALS: u64 = 8;

/// How far q is moved for each of some images.
pub struct Moves {
    /// For each network that moves, its name and the move of every step `[B, columns]`.
    nets: Vec<(&'static str, Vec<ParamId>)>,
    values: Params,
}

impl Moves {
    /// None yet, for `strokes` steps on `images` images.
    fn zeros(model: &Model, device: &Device, strokes: usize, images: usize) -> Self {
        let mut builder = ParamsBuilder::new();
        let mut steps = |name: &str, columns: usize| {
            (0..strokes).map(|t| builder.add(&format!("{name}.{t}"), &[images, columns], |_| 0.0)).collect()
        };
        let nets = model.movable().into_iter().map(|(name, columns)| (name, steps(name, columns))).collect();
        Moves { nets, values: builder.build(device) }
    }

    /// Takes back the moves of images that are drawn no better with them.
    fn keep_what_helps(&mut self, (model, params): (&Model, &Params), x: &Tensor, rng: Rng) {
        let (images, strokes) = (x.shape()[0], self.nets[0].1.len());
        let elbos = |moved: bool| {
            let mut sums = vec![0.0; images];
            for trial in 0..TRIALS {
                let rng = Rng::new(rng.seed, rng.step + trial);
                let noise = Noise::for_strokes(model, params.device(), (strokes, images), rng);
                let tape = Tape::eval(params);
                let moved = if moved { self.of(&tape, (0, images), 1) } else { Moved::default() };
                let steps = model.recognise_moved(&tape, x, &lesson(model, noise), moved);
                sums.iter_mut().zip(model.elbo(x, &steps).value().to_f64()).for_each(|(sum, elbo)| *sum += elbo);
            }
            sums
        };
        let worse: Vec<bool> = elbos(true).iter().zip(elbos(false)).map(|(with, without)| *with < without).collect();
        for &id in self.nets.iter().flat_map(|(_, ids)| ids) {
            let mut values = self.values.get(id).to_f64();
            let columns = values.len() / images;
            let taken_back = values.chunks_mut(columns).zip(&worse).filter(|(_, worse)| **worse);
            taken_back.for_each(|(row, _)| row.fill(0.0));
            self.values.set(id, &values);
        }
    }

    /// As constants, for `particles` drawings of each of `count` images from `first` on, particle-major.
    pub(crate) fn of<'t>(&self, tape: &'t Tape<'t>, (first, count): (usize, usize), particles: usize) -> Moved<'t> {
        let constant = |&id: &ParamId| {
            let value = self.values.get(id);
            let columns = value.shape()[1];
            let repeated = Tensor::stack(&vec![value.rows(first, count); particles]);
            tape.constant(repeated.reshape(&[particles * count, columns]))
        };
        Moved(self.nets.iter().map(|(name, ids)| (*name, ids.iter().map(constant).collect())).collect())
    }
}

/// Refines q for images x `[B, H, W]` with so many `updates`, each by one drawing of at most `strokes` strokes; what does not help an
/// image is taken back.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn refine(
    (model, params): (&Model, &Params),
    x: &Tensor,
    (strokes, updates): (usize, usize),
    rng: Rng,
    observer: &dyn Observer,
) -> Result<Moves> {
    let (device, images) = (params.device(), x.shape()[0]);
    let Moves { nets, values } = Moves::zeros(model, device, strokes, images);
    let schedule = Schedule { warmup: 0, updates: updates as u64, end: 0.1 };
    let mut ascent = Ascent::new(values, &[RATE], schedule);
    // The sum of all bounds, so that the step of an image is its own.
    ascent.climb(params, updates, (observer, images), |update, tape, vars| {
        let noise = Noise::for_strokes(model, device, (strokes, images), Rng::new(rng.seed, rng.step + update));
        let mut vars = vars.iter().copied();
        let moved = nets.iter().map(|(name, ids)| (*name, vars.by_ref().take(ids.len()).collect())).collect();
        let steps = model.recognise_moved(tape, x, &lesson(model, noise), Moved(moved));
        model.elbo(x, &steps).sum()
    })?;
    let mut moves = Moves { nets, values: ascent.finish() };
    moves.keep_what_helps((model, params), x, Rng::new(!rng.seed, rng.step));
    device.check()?;
    Ok(moves)
}

/// How images are drawn to learn their moves.
fn lesson(model: &Model, noise: Noise) -> Pass {
    Pass { baseline: false, ..model.lesson(noise, Dropout::Off) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::synthetic,
        measure::{Ends, Measured, Protocol, measure},
        model::{Config, Start, Stop, Variant},
        observer::Silent,
        ops::Placement,
    };

    fn tiny(variant: Variant, stop: Stop) -> Config {
        let sizes = Config { samples: 30, ..Config::tiny(Placement::Warp) };
        Config { stop, dropout: 0.0, ..sizes.with_variant(variant) }
    }

    #[test]
    fn refinement_raises_the_bound() {
        let device = Device::cpu();
        let images = synthetic::draw(6, 16, 3);
        for (variant, stop) in [(Variant::Dood, Stop::Exact), (Variant::Dood, Stop::Nvil), (Variant::Air, Stop::Nvil)] {
            let (model, params) = Model::new(&tiny(variant, stop), Start::new(1), &device).unwrap();
            let measured = |refine| {
                let protocol = Protocol { particles: 20, ends: Ends::Sampled, refine };
                let which: Vec<usize> = (0..images.len()).collect();
                let scores = measure((&model, &params), &images, &which, protocol, Rng::new(1, 0), &Silent).unwrap();
                Measured::of(&scores, 20)
            };
            let (before, after) = (measured(0), measured(40));
            // It is the evidence lower bound that is climbed.
            let gain = after.elbo.mean - before.elbo.mean;
            assert!(gain > 2.0, "{variant}, {stop:?}: {before:?} -> {after:?}");
            assert_eq!(after, measured(40), "{variant}, {stop:?}: not the same again");
        }
    }
}
