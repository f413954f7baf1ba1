//! What strokes say about a class (section 11i of the model): latents of one drawing per image, and a single linear layer on them.
//!
//! The latents of an image are s_t·o_t of every step, then l_t·o_t of every step: what is not drawn is zero. The layer is trained by
//! cross-entropy and Adam. The authors' program never cleared its gradients, so that each update went along the sum of all gradients
//! before it; here they are cleared unless [`Gradients::Summed`] is asked for.

use super::{Artist, cluster::Points, kept};
use crate::{
    Device, Grads, Observer, Params, ParamsBuilder, Result, Tape, Tensor,
    data::Images,
    measure::pixels,
    nn::{Init, Linear},
    observer::{Unit, task},
    ops::Activation,
    optim::Adam,
    rng::{Rng, Stream},
};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Images that are drawn at once.
const AT_ONCE: usize = 64;
/// What is drawn is saved after so many images.
const SAVED: usize = 32 * AT_ONCE;
const ORDER: Stream = Stream(23);

/// Latents of images, as far as they are drawn, and what they depend on: what a file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// Checkpoint, images, seed: latents of something else are not gone on with.
    pub about: String,
    /// Of the training images.
    pub train: Points,
    /// Of the test images.
    pub test: Points,
}

impl Latents {
    /// None yet.
    pub fn new(artist: &Artist, about: String) -> Self {
        let config = &artist.model.config;
        let none = Points { dim: config.strokes * (config.stroke_dim() + 4), values: vec![] };
        Latents { about, train: none.clone(), test: none }
    }

    /// Draws what is missing of both parts, once each with dropout off, and calls `save` now and then.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::Error::Stopped), after which it can be called again; those of a GPU and of `save`.
    pub fn fill(
        &mut self,
        artist: &Artist,
        [train, test]: [(&Images, &[usize]); 2],
        seed: u64,
        observer: &dyn Observer,
        save: &mut dyn FnMut(&Latents) -> Result<()>,
    ) -> Result<()> {
        let (known, total) = (self.train.len() + self.test.len(), train.1.len() + test.1.len());
        if known == total {
            return Ok(());
        }
        observer.begin("Drawing", Some(total as u64), Unit::Items);
        observer.already(known as u64);
        let done = self.draw(artist, [train, test], seed, observer, save);
        observer.end();
        // What was drawn is kept, however it ended.
        save(self)?;
        done
    }

    fn draw(
        &mut self,
        artist: &Artist,
        parts: [(&Images, &[usize]); 2],
        seed: u64,
        observer: &dyn Observer,
        save: &mut dyn FnMut(&Latents) -> Result<()>,
    ) -> Result<()> {
        for (part, (images, which)) in parts.into_iter().enumerate() {
            // Batches are the same ones wherever they are gone on with.
            while let begun = [&self.train, &self.test][part].len()
                && begun < which.len()
            {
                observer.go_on()?;
                let some = &which[begun..which.len().min(begun + AT_ONCE)];
                let x = pixels(images, some.iter().copied(), artist.params.device());
                let rng = Rng::new(if part == 0 { seed } else { !seed }, (begun / AT_ONCE) as u64);
                let drawn = latents(artist, &x, rng)?;
                let points = if part == 0 { &mut self.train } else { &mut self.test };
                points.values.extend(drawn.values);
                observer.advance(some.len() as u64);
                if (begun + AT_ONCE).is_multiple_of(SAVED) {
                    save(self)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a file.
    ///
    /// # Errors
    /// As [`kept::write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        kept::write(path, &self.about, &[("training", &self.train), ("test", &self.test)])
    }

    /// Goes on with a file that [`Latents::write`] wrote.
    ///
    /// # Errors
    /// As [`kept::read`].
    pub fn read(&mut self, path: &Path) -> Result<()> {
        kept::read(path, &self.about, &mut [("training", &mut self.train), ("test", &mut self.test)])
    }
}

/// Latents of one drawing of each image x `[N, H, W]`.
pub fn latents(artist: &Artist, x: &Tensor, rng: Rng) -> Result<Points> {
    let steps = artist.model.config.strokes;
    let z = artist.recognise(x, steps, rng)?.z;
    let (n, onoff) = (x.shape()[0], z.onoff.to_f64());
    let (strokes, layouts) = (z.stroke.to_f64(), z.layout.to_f64());
    let dim = steps * (artist.model.config.stroke_dim() + 4);
    let mut values = Vec::with_capacity(n * dim);
    for i in 0..n {
        for all in [&strokes, &layouts] {
            let width = all.len() / onoff.len();
            // A pass ends where all drawings have.
            for at in (0..steps).map(|t| t * n + i) {
                match onoff.get(at) {
                    Some(1.0) => values.extend_from_slice(&all[at * width..][..width]),
                    _ => values.resize(values.len() + all.len() / onoff.len(), 0.0),
                }
            }
        }
    }
    Ok(Points { dim, values })
}

/// What becomes of the gradient of an update before the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gradients {
    /// It is forgotten, as it should be.
    #[default]
    Cleared,
    /// The next one is added to it, as in the authors' program.
    Summed,
}

/// How the layer is trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Updates.
    pub updates: u64,
    /// Images of each.
    pub batch: usize,
    /// Adam's learning rate.
    pub rate: f64,
    /// See [`Gradients`].
    pub gradients: Gradients,
    /// Key of initial values and of the order of images.
    pub seed: u64,
}

impl Training {
    /// The published one, but for its gradients.
    pub const PUBLISHED: Training =
        Training { updates: 800_000, batch: 64, rate: 1e-5, gradients: Gradients::Cleared, seed: 0 };
}

/// How training stood after an epoch, a pass over all training images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Updates until then.
    pub updates: u64,
    /// The cross-entropy of the epoch's batches before their updates, in nats, the mean.
    pub cross_entropy: f64,
    /// The share of test images whose class is found.
    pub accuracy: f64,
}

/// A layer that was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// One after the other; the last one may be cut off.
    pub epochs: Vec<Epoch>,
    /// What the layer says of every test image in the end.
    pub guesses: Vec<u16>,
}

impl Fitted {
    /// The epoch with the best accuracy, which is what was published. It was found on the images that it is told of.
    pub fn best(&self) -> Epoch {
        let better = |best: Epoch, next: &Epoch| if next.accuracy > best.accuracy { *next } else { best };
        self.epochs[1..].iter().fold(self.epochs[0], better)
    }
}

/// Trains a linear layer to tell classes `0..classes` by points, and says how well it tells those of `test`.
///
/// # Panics
/// If there are no training images, labels are missing, or a class is too large.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn classify(
    [(train, labels), (test, answers)]: [(&Points, &[u16]); 2],
    classes: usize,
    how: &Training,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Fitted> {
    assert!(!train.is_empty() && how.batch > 0 && how.updates > 0, "classify: nothing to learn from");
    assert!((train.len(), test.len()) == (labels.len(), answers.len()), "classify: a label for every point");
    assert!(labels.iter().all(|&label| usize::from(label) < classes), "classify: a class beyond {classes}");
    let mut builder = ParamsBuilder::new();
    let layer = Linear::new(&mut builder, Init { seed: how.seed }, "classifier", train.dim, classes);
    let mut params = builder.build(device);
    let (mut adam, mut grads) = (Adam::new(&params, &[how.rate]), Grads::zeros(&params));
    let known = Tensor::from_f64(device, &[test.len(), test.dim], &test.values);
    let guess = |params: &Params| {
        let tape = Tape::eval(params);
        let logits = layer.forward(tape.constant(known.clone()), Activation::None).value().to_f64();
        logits.chunks(classes).map(largest).collect::<Vec<u16>>()
    };
    let mut epochs = vec![];
    task(observer, "Learning", how.updates as usize, || {
        let mut updates = 0;
        while updates < how.updates {
            let order = Rng::new(how.seed, epochs.len() as u64).permutation(ORDER, train.len());
            let (mut sum, mut seen) = (0.0, 0);
            for some in order.chunks(how.batch).take((how.updates - updates) as usize) {
                observer.go_on()?;
                let which: Vec<usize> = some.iter().map(|&i| i as usize).collect();
                let tape = Tape::new(&params);
                let x = tape.constant(Tensor::from_f64(device, &[which.len(), train.dim], &train.pick(&which).values));
                let right: Vec<f64> = which.iter().map(|&i| labels[i].into()).collect();
                let right = Tensor::from_f64(device, &[which.len()], &right);
                let loss = layer.forward(x, Activation::None).cross_entropy(&right).mean();
                if how.gradients == Gradients::Cleared {
                    grads.clear();
                }
                tape.backward(loss, &mut grads);
                sum += loss.value().item() * which.len() as f64;
                drop(tape);
                adam.step(&mut params, &grads);
                seen += which.len();
                updates += 1;
                observer.advance(1);
            }
            device.check()?;
            let right = guess(&params).iter().zip(answers).filter(|(guess, answer)| guess == answer).count();
            let accuracy = right as f64 / test.len() as f64;
            epochs.push(Epoch { updates, cross_entropy: sum / seen as f64, accuracy });
            observer.status(&format!("{:.2} % right", 100.0 * accuracy));
        }
        Ok(())
    })?;
    Ok(Fitted { epochs, guesses: guess(&params) })
}

/// The first of the largest.
fn largest(logits: &[f64]) -> u16 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u16
}

#[cfg(test)]
mod tests;
