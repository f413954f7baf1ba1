//! A small convolutional network that tells classes of images apart. Its last hidden layer is a space in which images that mean the
//! same lie together: distances between sets of drawings are measured there.
//!
//! ```text
//! image [1, S, S] → conv 3×3, 16, ReLU, max-pool 2 → conv 3×3, 32, ReLU, max-pool 2 → linear 128, ReLU: the features → linear: scores
//! ```
//! While it learns, a quarter of what the convolutions see and half of the features are dropped.
//!
//! A [`Training`] learns; its file is also that of the [`Classifier`] in it:
//!
//! | entry | what |
//! | --- | --- |
//! | `<name>` | a parameter, `F32` |
//! | `adam.m`, `adam.v` | Adam's moments, laid out as in memory, while training can go on |
//!
//! The metadata hold sizes, settings and the number of updates as JSON (`classifier`).

use super::one_shot::statistics::Share;
use crate::{
    Device, Error, Grads, Observer, Params, ParamsBuilder, Result, Tape, Tensor, Var,
    checkpoint::damage,
    data::Images,
    files::{self, quoted},
    measure::pixels,
    nn::{Conv2d, Init, Linear},
    observer::{Unit, task},
    ops::{Activation, Keep},
    optim::{Adam, Schedule},
    rng::{Rng, Stream},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, path::Path};

/// Numbers in the last hidden layer.
pub const FEATURES: usize = 128;
/// Channels of the two convolutions.
const CHANNELS: [usize; 2] = [16, 32];
/// What is dropped of what the convolutions see, and of the features.
const DROPPED: [f64; 2] = [0.25, 0.5];
/// Images that are looked at together, to bound memory.
const AT_ONCE: usize = 250;

/// What a classifier is given and what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// Height and width of its images, 4 at least.
    pub side: usize,
    /// The number of classes, 2 at least.
    pub classes: usize,
}

/// A network and its parameters.
pub struct Classifier {
    /// What it was built for.
    pub sizes: Sizes,
    /// The values of its parameters.
    pub params: Params,
    net: Net,
}

#[derive(Clone, Copy)]
struct Net {
    convolutions: [Conv2d; 2],
    hidden: Linear,
    last: Linear,
}

/// What a classifier makes of images.
#[derive(Clone, Copy)]
pub struct Answer<'t> {
    /// The last hidden layer, `[N, FEATURES]`.
    pub features: Var<'t>,
    /// `[N, classes]`, before [`Var::softmax`].
    pub scores: Var<'t>,
}

impl Classifier {
    /// One that knows nothing yet, drawn from `seed`.
    pub fn new(sizes: Sizes, seed: u64, device: &Device) -> Result<Self> {
        let (net, builder) = declare(sizes, seed, ParamsBuilder::new())?;
        Ok(Classifier { sizes, params: builder.build(device), net })
    }

    /// Reads what [`Training::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file is not that of a classifier.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let bytes = files::read(path)?;
        File::parse(&bytes, path)?.classifier(device)
    }

    /// Scores and features of images `[N, S, S]` with ink in [0, 1], on a tape of [`Classifier::params`]. `learning` draws what is
    /// dropped.
    pub fn answer<'t>(&self, images: Var<'t>, learning: Option<Rng>) -> Answer<'t> {
        let Net { convolutions, hidden, last } = self.net;
        let keep = |i: usize| {
            learning.map_or(Keep::All, |rng| Keep::Random { rate: DROPPED[i], rng, stream: Stream(i as u32) })
        };
        let n = images.shape()[0];
        let mut x = images.reshape(&[n, 1, self.sizes.side, self.sizes.side]);
        for convolution in convolutions {
            // The same as the other way round, to the bit, for a quarter of the work.
            x = convolution.forward(x).max_pool(2).relu();
        }
        let wide = x.shape()[1..].iter().product();
        let features = hidden.forward(x.reshape(&[n, wide]).dropout(keep(0)), Activation::Relu);
        Answer { features, scores: last.forward(features.dropout(keep(1)), Activation::None) }
    }

    /// The last hidden layer of images `[N, S, S]`: `[N, FEATURES]`, on the host.
    ///
    /// # Errors
    /// [`Error::Stopped`], or what went wrong on the device.
    pub fn features(&self, images: &Tensor, observer: &dyn Observer) -> Result<Vec<f32>> {
        self.each(images, observer, |answer| answer.features)
    }

    /// The scores of images `[N, S, S]`: `[N, classes]`, on the host.
    ///
    /// # Errors
    /// As for [`Classifier::features`].
    pub fn scores(&self, images: &Tensor, observer: &dyn Observer) -> Result<Vec<f32>> {
        self.each(images, observer, |answer| answer.scores)
    }

    fn each(
        &self,
        images: &Tensor,
        observer: &dyn Observer,
        of: impl for<'t> Fn(Answer<'t>) -> Var<'t>,
    ) -> Result<Vec<f32>> {
        let (n, mut all) = (images.shape()[0], vec![]);
        task(observer, "Classifying", n, || {
            for first in (0..n).step_by(AT_ONCE) {
                observer.go_on()?;
                let count = AT_ONCE.min(n - first);
                let tape = Tape::eval(&self.params);
                all.extend(of(self.answer(tape.constant(images.rows(first, count)), None)).value().to_f32());
                self.params.device().check()?;
                observer.advance(count as u64);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// What it takes images for that have labels.
    ///
    /// # Errors
    /// [`Error::Data`] if they have none, or such that it does not know; else as for [`Classifier::features`].
    pub fn judge(&self, images: &Images, observer: &dyn Observer) -> Result<Judged> {
        let labels = self.sizes.labels(images)?;
        let scores = self.scores(&pixels(images, 0..images.len(), self.params.device()), observer)?;
        let classes = self.sizes.classes;
        let mut judged = Judged { counts: vec![vec![0; classes]; classes], surest: vec![vec![None; classes]; classes] };
        let mut surest = vec![vec![f32::NEG_INFINITY; classes]; classes];
        for (i, (scores, label)) in scores.chunks(classes).zip(labels).enumerate() {
            // The first of several that are as high.
            let answer = (0..classes).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).expect("two at least");
            judged.counts[label][answer] += 1;
            let margin = scores[answer] - scores[label];
            if margin > surest[label][answer] {
                (surest[label][answer], judged.surest[label][answer]) = (margin, Some(i));
            }
        }
        Ok(judged)
    }
}

impl Sizes {
    /// The classes of images, checked.
    fn labels(self, images: &Images) -> Result<Vec<usize>> {
        let Sizes { side, classes } = self;
        if images.side != side {
            return Err(Error::Data(format!(
                "the classifier looks at images of {side} pixels a side, but these have {}",
                images.side
            )));
        }
        let Some(labels) = &images.labels else {
            return Err(Error::Data("these images have no labels to learn from or to be judged by".into()));
        };
        match labels.iter().find(|&&label| usize::from(label) >= classes) {
            Some(label) => Err(Error::Data(format!("an image is of class {label}, but the classifier has {classes}"))),
            None => Ok(labels.iter().map(|&label| label.into()).collect()),
        }
    }
}

/// What a classifier took images for.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// How many images of each class (the row) it took for each (the column).
    pub counts: Vec<Vec<u32>>,
    /// The image of each class that it took for each with the widest margin.
    pub surest: Vec<Vec<Option<usize>>>,
}

impl Judged {
    /// The share of images that it took for what they are.
    pub fn share(&self) -> Share {
        let cells = self.counts.iter().enumerate().flat_map(|(is, row)| {
            row.iter().enumerate().map(move |(taken_for, &count)| (is == taken_for, count as usize))
        });
        Share::of(cells.flat_map(|(right, count)| std::iter::repeat_n(right, count)))
    }
}

/// The network for these sizes, and its parameters.
fn declare(sizes: Sizes, seed: u64, mut p: ParamsBuilder) -> Result<(Net, ParamsBuilder)> {
    let Sizes { side, classes } = sizes;
    if !(4..=512).contains(&side) || !(2..=65_536).contains(&classes) {
        return Err(Error::Usage(format!(
            "a classifier of {classes} classes of images of {side} pixels a side cannot be made: use 4 to 512 pixels, and 2 classes or \
             more"
        )));
    }
    let (init, [one, two]) = (Init { seed }, CHANNELS);
    let net = Net {
        convolutions: [Conv2d::new(&mut p, init, "conv1", 1, one, 3), Conv2d::new(&mut p, init, "conv2", one, two, 3)],
        hidden: Linear::new(&mut p, init, "hidden", two * (side / 4) * (side / 4), FEATURES),
        last: Linear::new(&mut p, init, "last", FEATURES, classes),
    };
    Ok((net, p))
}

/// How a classifier learns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Key of the random numbers.
    pub seed: u64,
    /// Images in a batch.
    pub batch: usize,
    /// How often every image is seen.
    pub epochs: u64,
    /// Adam's largest learning rate: it rises over the first hundred updates and falls as half a cosine.
    pub rate: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { seed: 0, batch: 64, epochs: 3, rate: 2e-3 }
    }
}

/// A classifier that learns.
pub struct Training {
    /// As it is now.
    pub classifier: Classifier,
    settings: Settings,
    /// The digest of what it has learned from, if that has begun.
    images: Option<String>,
    adam: Adam,
    grads: Grads,
}

impl Training {
    /// Begins.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes or settings that cannot be used.
    pub fn new(sizes: Sizes, settings: Settings, device: &Device) -> Result<Self> {
        let Settings { seed, batch, epochs, rate } = settings;
        if batch == 0 || epochs == 0 || !(rate > 0.0 && rate.is_finite()) {
            return Err(Error::Usage(format!(
                "nothing is learned with batches of {batch} images, {epochs} epochs and a learning rate of {rate}: all must be above 0"
            )));
        }
        let classifier = Classifier::new(sizes, seed, device)?;
        let (adam, grads) = (Adam::new(&classifier.params, &[rate]), Grads::zeros(&classifier.params));
        Ok(Training { classifier, settings, images: None, adam, grads })
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.adam.steps()
    }

    /// How it learns.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Updates in all, with so many images.
    pub fn total(&self, images: usize) -> u64 {
        self.settings.epochs * images.div_ceil(self.settings.batch) as u64
    }

    /// Learns from the images until the end, or until `observer` stops it, after an update; calls `each_epoch` after every epoch.
    ///
    /// What is learned depends on the settings and the images alone, not on how often it was stopped and went on.
    ///
    /// # Errors
    /// [`Error::Stopped`]; [`Error::Data`] if the images have no labels; [`Error::Usage`] if they are not those that it has learned from
    /// so far; [`Error::NotFinite`] if the loss is not finite, before
    /// anything is updated.
    pub fn run(
        &mut self,
        images: &Images,
        observer: &dyn Observer,
        mut each_epoch: impl FnMut(&Training) -> Result<()>,
    ) -> Result<()> {
        let labels = self.classifier.sizes.labels(images)?;
        let digest = Some(digest(images));
        if self.images.is_some() && self.images != digest {
            return Err(Error::Usage(
                "these images are others than those that it has learned from so far: give it the same, or begin anew"
                    .into(),
            ));
        }
        self.images = digest;
        let (seed, batch) = (self.settings.seed, self.settings.batch);
        let (total, per_epoch) = (self.total(images.len()), images.len().div_ceil(batch) as u64);
        let schedule = Schedule { warmup: 100, updates: total, end: 0.01 };
        // Epochs have keys far above those of updates.
        let order = |epoch: u64| Rng::new(seed, (1 << 40) + epoch).permutation(Stream(0), images.len());
        let mut current = (u64::MAX, vec![]);
        observer.begin("Learning", Some(total), Unit::Items);
        observer.already(self.updates());
        let mut go_on = || -> Result<()> {
            while self.updates() < total {
                observer.go_on()?;
                let update = self.updates();
                let epoch = update / per_epoch;
                if current.0 != epoch {
                    current = (epoch, order(epoch));
                }
                let from = (update % per_epoch) as usize * batch;
                let which: Vec<usize> = current.1.iter().skip(from).take(batch).map(|&i| i as usize).collect();
                let loss = self.update(images, &labels, &which, schedule)?;
                observer.status(&format!("loss {loss:.3}"));
                observer.advance(1);
                if (update + 1).is_multiple_of(per_epoch) {
                    each_epoch(self)?;
                }
            }
            Ok(())
        };
        let done = go_on();
        observer.end();
        done
    }

    /// One update; the mean loss of its images before it, in nats.
    fn update(&mut self, images: &Images, labels: &[usize], which: &[usize], schedule: Schedule) -> Result<f64> {
        let (classifier, update) = (&self.classifier, self.adam.steps() + 1);
        let device = classifier.params.device().clone();
        let wanted: Vec<f64> = which.iter().map(|&i| labels[i] as f64).collect();
        let wanted = Tensor::from_f64(&device, &[which.len()], &wanted);
        self.grads.clear();
        let tape = Tape::new(&classifier.params);
        let x = tape.constant(pixels(images, which.iter().copied(), &device));
        let loss =
            classifier.answer(x, Some(Rng::new(self.settings.seed, update))).scores.cross_entropy(&wanted).mean();
        tape.backward(loss, &mut self.grads);
        let loss = loss.value().item();
        device.check()?;
        if !loss.is_finite() {
            return Err(Error::NotFinite(format!(
                "the loss of update {update} is {loss}: the learning rate is too high, or an image is not finite"
            )));
        }
        drop(tape);
        self.adam.set_schedule(schedule);
        self.adam.step(&mut self.classifier.params, &self.grads);
        Ok(loss)
    }

    /// Writes the classifier, and what training needs to go on, atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let Classifier { sizes, params, .. } = &self.classifier;
        let about =
            About { sizes: *sizes, settings: self.settings, updates: self.updates(), images: self.images.clone() };
        let [m, v] = self.adam.moments();
        let named = params
            .specs()
            .iter()
            .map(|spec| (spec.name.as_str(), params.get(params.find(&spec.name).expect("its own"))));
        let moments = [("adam.m", m.clone()), ("adam.v", v.clone())];
        let entries: Vec<(&str, Vec<usize>, Vec<u8>)> = (named.chain(moments))
            .map(|(name, x)| (name, x.shape().to_vec(), x.to_f32().iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = entries.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("as many bytes as the shape says"))
        });
        let text = serde_json::to_string(&about).expect("plain data can be written as JSON");
        let bytes = safetensors::serialize(views, Some(HashMap::from([(ABOUT.to_owned(), text)])))
            .expect("a header can be written");
        files::write_atomically(path, |out| out.write_all(&bytes))
    }

    /// Goes on from what [`Training::save`] wrote, with as many epochs as `settings` say; the rest of them has to be the same.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file is not that of a classifier in training; [`Error::Usage`] if it learned in another way.
    pub fn resume(path: &Path, settings: Settings, device: &Device) -> Result<Self> {
        let bytes = files::read(path)?;
        let file = File::parse(&bytes, path)?;
        let About { sizes, settings: old, updates, images } = file.about.clone();
        if (Settings { epochs: old.epochs, ..settings }) != old {
            return Err(Error::Usage(format!(
                "{} learned with seed {}, batches of {} and a learning rate of {}: go on with the same",
                quoted(path),
                old.seed,
                old.batch,
                old.rate
            )));
        }
        let mut training = Training::new(sizes, settings, device)?;
        (training.classifier, training.images) = (file.classifier(device)?, images);
        let len = training.classifier.params.slab().len();
        let moments = |name| Ok(Tensor::from_f64(device, &[len], &file.values(name, &[len])?));
        training.adam.restore(moments("adam.m")?, moments("adam.v")?, updates);
        Ok(training)
    }
}

/// The key of [`About`] in the metadata.
const ABOUT: &str = "classifier";

/// What a file says of itself.
#[derive(Clone, Serialize, Deserialize)]
struct About {
    sizes: Sizes,
    settings: Settings,
    updates: u64,
    #[serde(default)]
    images: Option<String>,
}

/// What tells images and their labels from others.
fn digest(images: &Images) -> String {
    let labels = images.labels.iter().flatten().flat_map(|label| label.to_le_bytes());
    files::sha256(&images.pixels.iter().copied().chain(labels).collect::<Vec<u8>>())
}

struct File<'a> {
    path: &'a Path,
    entries: SafeTensors<'a>,
    about: About,
}

impl<'a> File<'a> {
    fn parse(bytes: &'a [u8], path: &'a Path) -> Result<Self> {
        let fail = |what: String| Error::Checkpoint(format!("{} cannot be used as a classifier: {what}", quoted(path)));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| fail(damage(bytes, &e)))?;
        let about = header.metadata().as_ref().and_then(|all| all.get(ABOUT));
        let about =
            about.ok_or_else(|| fail("it is the file of something else: name one that classify has written".into()))?;
        let about = serde_json::from_str(about).map_err(|e| fail(e.to_string()))?;
        let entries = SafeTensors::deserialize(bytes).map_err(|e| fail(e.to_string()))?;
        Ok(File { path, entries, about })
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let path = quoted(self.path);
        let fail = |what: String| Error::Checkpoint(format!("{path} cannot be used as a classifier: {what}"));
        let entry = self.entries.tensor(name).map_err(|_| fail(format!("{name} is missing")))?;
        if entry.dtype() != Dtype::F32 || entry.shape() != shape {
            return Err(fail(format!(
                "{name} is {:?} of shape {:?}, where F32 of shape {shape:?} was expected",
                entry.dtype(),
                entry.shape()
            )));
        }
        Ok(entry.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect())
    }

    fn classifier(&self, device: &Device) -> Result<Classifier> {
        let sizes = self.about.sizes;
        let (net, builder) = declare(sizes, 0, ParamsBuilder::blank())?;
        let mut params = builder.build(device);
        for spec in params.specs().to_vec() {
            let id = params.find(&spec.name).expect("its own");
            params.set(id, &self.values(&spec.name, &spec.shape)?);
        }
        Ok(Classifier { sizes, params, net })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Silent;

    /// Noise, in the left half where the class is 0 and in the right half where it is 1.
    fn halves(count: usize) -> Images {
        let (side, rng) = (8, Rng::new(4, 0));
        let label = |i: usize| (rng.below(Stream(1), i, 2)) as u16;
        let ink = |k: usize| {
            let (i, column) = (k / (side * side), k % side);
            if (column >= side / 2) == (label(i) == 1) { (rng.uniform(Stream(0), k) * 255.0) as u8 } else { 0 }
        };
        Images {
            side,
            pixels: (0..count * side * side).map(ink).collect(),
            labels: Some((0..count).map(label).collect()),
        }
    }

    const SIZES: Sizes = Sizes { side: 8, classes: 2 };

    fn settings() -> Settings {
        Settings { seed: 3, batch: 20, epochs: 4, rate: 5e-3 }
    }

    #[test]
    fn it_learns_and_says_what_it_took_for_what() {
        let (images, device) = (halves(150), Device::cpu());
        let mut training = Training::new(SIZES, settings(), &device).unwrap();
        let before = training.classifier.judge(&images, &Silent).unwrap().share().share;
        let mut epochs = 0;
        let each_epoch = |_: &Training| {
            epochs += 1;
            Ok(())
        };
        training.run(&images, &Silent, each_epoch).unwrap();
        let judged = training.classifier.judge(&images, &Silent).unwrap();
        assert!(before < 0.8 && judged.share().share > 0.97, "{before} {judged:?}");
        assert_eq!((epochs, training.updates()), (4, 32));
        assert_eq!(judged.counts.iter().flatten().sum::<u32>(), 150);
        let x = pixels(&images, 0..7, &device);
        assert_eq!(training.classifier.features(&x, &Silent).unwrap().len(), 7 * FEATURES);
    }

    #[test]
    fn what_was_saved_goes_on_to_the_same_bits_and_loads_as_a_classifier() {
        struct After(std::sync::atomic::AtomicU64);
        impl Observer for After {
            fn stopped(&self) -> bool {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 11
            }
        }
        let (images, device) = (halves(150), Device::cpu());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("halves.safetensors");
        let mut whole = Training::new(SIZES, settings(), &device).unwrap();
        whole.run(&images, &Silent, |_| Ok(())).unwrap();
        let mut broken = Training::new(SIZES, settings(), &device).unwrap();
        let stopped = broken.run(&images, &After(0.into()), |_| Ok(()));
        assert!(matches!(stopped, Err(Error::Stopped)) && broken.updates() == 11);
        broken.save(&path).unwrap();
        let mut resumed = Training::resume(&path, settings(), &device).unwrap();
        resumed.run(&images, &Silent, |_| Ok(())).unwrap();
        assert_eq!(whole.classifier.params.slab().to_f32(), resumed.classifier.params.slab().to_f32());

        resumed.save(&path).unwrap();
        let loaded = Classifier::load(&path, &device).unwrap();
        let x = pixels(&images, 0..9, &device);
        assert_eq!(loaded.scores(&x, &Silent).unwrap(), whole.classifier.scores(&x, &Silent).unwrap());
        let other = Training::resume(&path, Settings { seed: 4, ..settings() }, &device).err().unwrap().to_string();
        assert!(other.contains("learned with seed 3"), "{other}");
        std::fs::write(&path, b"nothing").unwrap();
        let broken = Classifier::load(&path, &device).err().unwrap().to_string();
        assert!(broken.contains("cannot be used as a classifier"), "{broken}");
    }
}
