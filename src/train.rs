//! Training: [`Trainer`] makes one update after the other, [`run`](fn@run) does everything around it that a program needs.
//!
//! A step is a function of the state in a checkpoint and of nothing else: the order of images comes from (seed, epoch), noise and
//! dropout from (seed, step). So a run is reproducible to the bit from its seed, with any number of threads, and a resumed run is
//! equal to one that never stopped.

mod folder;
mod memory;
mod on_gpu;
mod options;
mod report;
mod run;

pub use crate::measure::pixels;
pub use options::{Options, Overrides, Plan, Resume};
pub use report::Report;
pub use run::{Ended, run};

use crate::{
    Device, Error, Grads, Params, Result, Tape, Tensor, Var,
    checkpoint::{self, Checkpoint, Progress},
    cpu,
    data::{Fit, Images, Invert, Set, Source},
    device::on_device,
    files::quoted,
    model::{
        Config, Dropout, GROUPS, Model, Noise, Start, Step,
        objective::{Loss, Running, Terms},
    },
    ops::{Angle, Placement, Thicker, concat, thicken},
    optim::{Adam, Schedule},
    ranks::Ranks,
    real::Real,
    rng::{Rng, Stream},
};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::Value;
use std::{
    cell::RefCell,
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A model size together with settings that suit it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// [`Config::quick`] for 4,000 steps: minutes on a laptop.
    #[default]
    Quick,
    /// [`Config::hour`] for 4,000 steps: published quality in an hour on a laptop.
    Hour,
    /// [`Config::paper`] for 500,001 steps, as published.
    Paper,
}

impl Preset {
    /// The model.
    pub fn config(self, placement: Placement) -> Config {
        match self {
            Preset::Quick => Config::quick(placement),
            Preset::Hour => Config::hour(placement),
            Preset::Paper => Config::paper(placement),
        }
    }

    /// The run (section 9). On Omniglot and synthetic strokes the model starts as the
    /// reference did there; the quick model learns fast enough to give up drawing before it can draw, so it starts eagerly everywhere.
    pub fn settings(self, source: &Source) -> Settings {
        let omniglot = matches!(source, Source::Synthetic | Source::Public { set: Set::Omniglot, .. });
        let paper = Settings {
            data: source.clone(),
            fit: Fit::default(),
            invert: Invert::default(),
            preset: self,
            steps: 500_001,
            batch: 64,
            seed: 0,
            rates: [1e-4, 1e-3, 1e-4, 1e-4],
            warmup: 0,
            decay: 1.0,
            clip: 0.0,
            thicker: 0,
            augment: 0.0,
            start: String::new(),
            eager: omniglot,
            faint: omniglot,
            images: 0,
            digest: String::new(),
            log_every: 100,
            picture_every: 5_000,
            checkpoint_every: 5_000,
        };
        match self {
            Preset::Paper => paper,
            Preset::Hour => Settings {
                steps: 4_000,
                rates: [1e-3, 1e-3, 1e-4, 2e-2],
                warmup: 200,
                decay: 0.01,
                thicker: if omniglot { 800 } else { 0 },
                eager: true,
                faint: false,
                log_every: 20,
                picture_every: 500,
                checkpoint_every: 500,
                ..paper
            },
            Preset::Quick => Settings {
                steps: 4_000,
                batch: 32,
                rates: [1e-3, 1e-3, 1e-4, 2e-3],
                warmup: 100,
                decay: 0.01,
                thicker: if omniglot { 300 } else { 0 },
                eager: true,
                log_every: 10,
                picture_every: 250,
                checkpoint_every: 500,
                ..paper
            },
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Preset::Quick => "quick",
            Preset::Hour => "hour",
            Preset::Paper => "paper",
        })
    }
}

/// What fixes a run beside the model's [`Config`]. Stored as JSON in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Where the images come from.
    pub data: Source,
    /// How images that are not square become square.
    #[serde(default)]
    pub fit: Fit,
    /// Whether dark and bright are exchanged.
    #[serde(default)]
    pub invert: Invert,
    /// Where the other settings come from.
    pub preset: Preset,
    /// Updates at which the run ends.
    pub steps: u64,
    /// Images per update; the last batch of an epoch holds what is left.
    pub batch: usize,
    /// Key of all random numbers.
    pub seed: u64,
    /// Learning rates of [`GROUPS`]. Runs of before had one less: the scale's was the model's.
    #[serde(deserialize_with = "rates")]
    pub rates: [f64; GROUPS.len()],
    /// Updates over which the learning rates rise at first.
    #[serde(default)]
    pub warmup: u64,
    /// The part of the learning rates that is left at the end of the run, to which they fall as half a cosine; 1 for no fall.
    #[serde(default = "one")]
    pub decay: f64,
    /// No gradient is longer than so many times what is usual ([`Adam::with_clip`]); 0 for any length.
    #[serde(default)]
    pub clip: f64,
    /// Updates over which the training images are shown with thicker ink at first, by two pixels on each side and ever less.
    #[serde(default)]
    pub thicker: u64,
    /// How differently every image looks each time it is shown: it is turned by an angle (in radians), made larger and sheared by a part,
    /// and shifted by a part of half its side, all of them uniform between ± so much. 0 for always as it is.
    #[serde(default)]
    pub augment: f64,
    /// The file whose parameters the run began with, if it did, and its digest.
    #[serde(default)]
    pub start: String,
    /// Begin by drawing almost every stroke ([`Start::eager`]).
    pub eager: bool,
    /// Begin with thin, faint strokes ([`Start::faint`]).
    pub faint: bool,
    /// Images in the training set; filled in when a run begins.
    pub images: usize,
    /// The CRC-32 of their pixels, to know them again; filled in when a run begins. Empty for synthetic strokes, which
    /// are rounded differently on other processors.
    #[serde(default)]
    pub digest: String,
    /// Updates between rows of metrics.
    pub log_every: u64,
    /// Updates between pictures.
    pub picture_every: u64,
    /// Updates between checkpoints.
    pub checkpoint_every: u64,
}

/// How much thicker ink is at first, in pixels on each side.
const THICKER: f64 = 2.0;

fn one() -> f64 {
    1.0
}

fn rates<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<[f64; GROUPS.len()], D::Error> {
    let mut rates = Vec::<f64>::deserialize(from)?;
    if rates.len() == GROUPS.len() - 1 {
        rates.push(rates[0]);
    }
    let count = rates.len();
    rates
        .try_into()
        .map_err(|_| D::Error::custom(format!("there are {count} rates; wanted one for each of {}", GROUPS.join(", "))))
}

impl Settings {
    /// How the learning rates change.
    fn schedule(&self) -> Schedule {
        Schedule { warmup: self.warmup, updates: self.steps, end: self.decay }
    }
}

/// Stream of the order of images; the step of its [`Rng`] is the epoch.
const ORDER: Stream = Stream(4);

/// Stream of how images are altered before they are shown.
const AUGMENT: Stream = Stream(7);

/// A model in training.
pub struct Trainer {
    model: Model,
    params: Params,
    grads: Grads,
    adam: Adam,
    running: Running,
    settings: Settings,
    images: Images,
    /// The current epoch and its order of images.
    order: (u64, Vec<u32>),
    /// The newest file that holds this run.
    saved: RefCell<Option<PathBuf>>,
    on_gpu: Option<on_gpu::OnGpu>,
    /// The ranks that make the updates together, if there are several.
    ranks: Option<Arc<Ranks>>,
    notes: Vec<String>,
}

impl Trainer {
    /// A new run with fresh parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes or settings that cannot be, and a batch that is larger than the training set.
    pub fn new(config: &Config, settings: Settings, images: Images, device: &Device) -> Result<Self> {
        let settings = Settings { images: images.len(), digest: digest(&settings, &images), ..settings };
        check(&settings, &images, config)?;
        if settings.batch > images.len() {
            return Err(Error::Usage(format!(
                "a batch of {} images cannot be taken from a training set of {count}: use at most that many (--batch {count})",
                settings.batch,
                count = images.len()
            )));
        }
        let start = Start { seed: settings.seed, eager: settings.eager, faint: settings.faint };
        let (model, params) = Model::new(config, start, device)?;
        let running = Running { statistics: Tensor::zeros(device, &[2]), iteration: 0 };
        let adam = Adam::new(&params, &settings.rates).with_schedule(settings.schedule()).with_clip(settings.clip);
        Ok(Self::assemble(model, params, adam, running, settings, images))
    }

    /// Goes on with the run of `checkpoint`, on the same images. `change` may alter what does not belong to the run's identity:
    /// steps, intervals, learning rates.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the checkpoint is damaged or not one of a run, [`Error::Data`] if the images are others.
    pub fn resume(
        checkpoint: &Checkpoint,
        images: Images,
        device: &Device,
        change: impl FnOnce(&mut Settings),
    ) -> Result<Self> {
        let mut settings = settings_of(checkpoint)?;
        change(&mut settings);
        if images.len() != settings.images {
            return Err(Error::Data(format!(
                "the training set has {} images but the run to be resumed began with {}: give it the same data",
                images.len(),
                settings.images
            )));
        }
        let found = digest(&settings, &images);
        if !settings.digest.is_empty() && settings.digest != found {
            return Err(Error::Data(format!(
                "the training set has the same number of images as when the run to be resumed began, but other pixels \
                 ({found} instead of {}): give it the same data, or begin a new run",
                settings.digest
            )));
        }
        settings.digest = found;
        check(&settings, &images, checkpoint.config())?;
        let (model, params) = checkpoint.model(device)?;
        let mut adam = Adam::new(&params, &settings.rates).with_schedule(settings.schedule()).with_clip(settings.clip);
        let running = checkpoint.resume(&params, &mut adam)?;
        Ok(Self::assemble(model, params, adam, running, settings, images))
    }

    fn assemble(
        model: Model,
        params: Params,
        adam: Adam,
        running: Running,
        settings: Settings,
        images: Images,
    ) -> Self {
        let (grads, order) = (Grads::zeros(&params), (u64::MAX, vec![]));
        Trainer {
            model,
            params,
            grads,
            adam,
            running,
            settings,
            images,
            order,
            saved: RefCell::default(),
            on_gpu: None,
            ranks: None,
            notes: vec![],
        }
    }

    /// The networks.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Their current values.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The current values, to be altered.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// What fixes this run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The number of updates so far.
    pub fn updates(&self) -> u64 {
        self.running.iteration
    }

    /// Writes a checkpoint of this moment.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.params.device().check()?;
        let settings = serde_json::to_value(&self.settings).expect("plain data can be written as JSON");
        let progress = Progress { adam: &self.adam, running: &self.running, settings: &settings };
        checkpoint::save(path, &self.model.config, &self.params, Some(&progress))?;
        *self.saved.borrow_mut() = Some(path.into());
        Ok(())
    }

    /// One update.
    ///
    /// # Errors
    /// [`Error::NotFinite`] with the name of the op, if the loss or a gradient is not finite; nothing is changed then.
    pub fn step(&mut self) -> Result<Report> {
        Ok(self.run_steps(1)?.remove(0))
    }

    fn step_on_host(&mut self) -> Result<Report> {
        let chosen = self.next_images().to_vec();
        let x = pixels(&self.images, chosen.into_iter().map(|i| i as usize), self.params.device());
        let count = x.shape()[0];
        let tape = Tape::new(&self.params);
        let (steps, loss) = self.recognise_and_lose(&tape, x, 0..count, count);
        let norm = match differentiate(&self.params, &tape, loss.loss, &mut self.grads) {
            Ok(norm) => norm,
            Err(what) => return Err(self.not_finite(what)),
        };
        let sum = |terms: Terms| -> f64 {
            terms.iter().map(|(sign, value)| sign * value.value().to_f64().iter().sum::<f64>()).sum()
        };
        let totals = self.model.totals(&loss, &steps).map(sum);
        let report = Report::new(loss.loss.value().item(), norm, &totals, count);
        let statistics = loss.nvil.as_ref().map_or(&self.running.statistics, |nvil| &nvil.advantage.running).clone();
        drop(tape);
        self.adam.step(&mut self.params, &self.grads);
        self.running = Running { statistics, iteration: self.running.iteration + 1 };
        Ok(report)
    }

    /// The images x of the current update, which are rows of a batch of so many, drawn; and their loss.
    fn recognise_and_lose<'t>(
        &self,
        tape: &'t Tape<'t>,
        x: Tensor,
        rows: Range<usize>,
        batch: usize,
    ) -> (Vec<Step<'t>>, Loss<'t>) {
        let rng = Rng::new(self.settings.seed, self.running.iteration);
        let x = self.shown(x, (rows.clone(), batch), rng);
        let dropout = Dropout::Random(rng.from_row(rows.start));
        let noise = Noise::draw_rows(&self.model, self.params.device(), (rows, batch), rng);
        let steps = self.model.recognise(tape, &x, &self.model.lesson(noise, dropout));
        let loss = self.model.loss(&x, &steps, &self.running);
        (steps, loss)
    }

    /// The images x, which are rows of a batch of so many, as an update is shown them.
    fn shown(&self, x: Tensor, (rows, batch): (Range<usize>, usize), rng: Rng) -> Tensor {
        let Settings { thicker: updates, augment, .. } = self.settings;
        let x = if updates == 0 { x } else { thicken(&x, Thicker { radius: THICKER, updates }, rng.step) };
        if augment == 0.0 {
            return x;
        }
        let device = x.device();
        let tape = Tape::without_params(device);
        // Of the numbers of the whole batch, so that several GPUs alter images as one does.
        let drawn = tape.constant(rng.uniform_tensor(device, AUGMENT, &[1, 7 * batch]));
        let mine = drawn.columns(7 * rows.start, 7 * rows.len()).reshape(&[rows.len(), 7]);
        let by = mine * (2.0 * augment) + -augment;
        let [shift, larger, turn_and_shear] = [(0, 2), (2, 2), (4, 3)].map(|(first, width)| by.columns(first, width));
        let map = concat(&[shift, larger + 1.0, turn_and_shear]).affine7(Angle::Radians);
        tape.constant(x.clone()).stn(map, None).value()
    }

    /// The images of the next update, as numbers in the training set.
    pub fn next_images(&mut self) -> &[u32] {
        let (n, batch) = (self.images.len(), self.settings.batch);
        let per_epoch = n.div_ceil(batch) as u64;
        let (epoch, within) = (self.running.iteration / per_epoch, (self.running.iteration % per_epoch) as usize);
        if self.order.0 != epoch {
            self.order = (epoch, Rng::new(self.settings.seed, epoch).permutation(ORDER, n));
        }
        &self.order.1[within * batch..n.min((within + 1) * batch)]
    }

    fn not_finite(&self, what: String) -> Error {
        let advice = match &*self.saved.borrow() {
            Some(path) => format!("the last good checkpoint is {}", quoted(path)),
            None => "there is no checkpoint yet".into(),
        };
        Error::NotFinite(format!(
            "{what} is not finite in step {}, so the parameters were left as they were; {advice}; try a lower learning rate",
            self.running.iteration + 1
        ))
    }
}

/// The settings of the run that a checkpoint is one of.
pub fn settings_of(checkpoint: &Checkpoint) -> Result<Settings> {
    let value = checkpoint.settings();
    let value = value.ok_or_else(|| {
        checkpoint.fail(
            "it is one for evaluation only, from which no run goes on: a new one can begin with it (train --start)",
        )
    })?;
    Settings::deserialize(value)
        .map_err(|e| checkpoint.fail(&format!("its settings are not those of a training ({e})")))
}

/// How images of `source` are shown to the model of a checkpoint as those were that it has learned from: made square as they were, and
/// inverted as they were if they are from the same kind of source. The defaults where the checkpoint does not say.
pub fn reading_of(checkpoint: &Checkpoint, source: &Source) -> (Fit, Invert) {
    let empty = Value::Null;
    let about = checkpoint.about().unwrap_or(&empty);
    let (word, fields) = match checkpoint.settings() {
        Some(settings) => (Source::deserialize(&settings["data"]).ok().map(|data| data.word().to_owned()), settings),
        None => (about["learned_from"].as_str().map(str::to_owned), &about["settings"]),
    };
    let alike = word.is_some_and(|word| word == source.word());
    let invert = Invert::deserialize(&fields["invert"]).ok().filter(|_| alike);
    (Fit::deserialize(&fields["fit"]).unwrap_or_default(), invert.unwrap_or_default())
}

/// Refuses what no run can have.
fn check(settings: &Settings, images: &Images, config: &Config) -> Result<()> {
    if images.is_empty() || images.side != config.image {
        return Err(Error::Usage(format!(
            "a model for images of {0}x{0} pixels cannot be trained on {1} images of {2}x{2}",
            config.image,
            images.len(),
            images.side
        )));
    }
    check_settings(settings)
}

/// The part of [`check`] for which no images are needed.
fn check_settings(settings: &Settings) -> Result<()> {
    let wrong = |what: String| Err(Error::Usage(what));
    let Settings { batch, steps, rates, decay, clip, augment, .. } = settings;
    if *batch == 0 || *steps == 0 {
        return wrong(format!("batch is {batch} and steps is {steps}: both must be at least 1"));
    }
    if settings.log_every == 0 || settings.picture_every == 0 || settings.checkpoint_every == 0 {
        return wrong("the interval between metrics, pictures or checkpoints is 0: it must be at least 1".into());
    }
    if !rates.iter().all(|r| *r > 0.0 && r.is_finite()) {
        return wrong(format!("the learning rates are {rates:?}: they must be positive numbers"));
    }
    if !(0.0..=1.0).contains(decay) {
        return wrong(format!("decay is {decay}: it is a part of the learning rates, from 0 to 1"));
    }
    if !(0.0..=0.5).contains(augment) {
        return wrong(format!("augment is {augment}: images can be altered by 0 to 0.5"));
    }
    if !(0.0..f64::INFINITY).contains(clip) {
        return wrong(format!(
            "clip is {clip}: it must be a number of usual lengths of the gradient, or 0 for any length"
        ));
    }
    Ok(())
}

/// What identifies the images of a run.
fn digest(settings: &Settings, images: &Images) -> String {
    if settings.data == Source::Synthetic {
        return String::new();
    }
    let mut crc = flate2::Crc::new();
    crc.update(&images.pixels);
    format!("{:08x}", crc.sum())
}

/// Differentiates the loss, and returns the Euclidean norm of the gradients, summed in an order that does not depend on the number of
/// threads.
///
/// # Errors
/// What is the first to be not finite.
fn differentiate(params: &Params, tape: &Tape, loss: Var, grads: &mut Grads) -> std::result::Result<f64, String> {
    if !loss.value().is_finite() {
        return Err(match tape.first_not_finite() {
            Some(("parameter", _)) => {
                let bad = |spec: &&crate::Spec| !params.window(spec).is_finite();
                format!("the parameter {}", params.specs().iter().find(bad).map_or("", |spec| &spec.name))
            }
            Some((op, place)) => format!("the result of the op {op} (value {place} of the tape)"),
            None => "the loss".into(),
        });
    }
    grads.clear();
    tape.backward(loss, grads);
    let squares: Vec<f64> = on_device!(grads.slab().device(), T => {
        let square = |block: &[T]| block.iter().map(|x| x.f64() * x.f64()).sum();
        grads.slab().slice::<T>().par_chunks(cpu::BLOCK).map(square).collect()
    }, _gpu => grads.slab().to_f64().iter().map(|x| x * x).collect());
    let norm = squares.iter().sum::<f64>().sqrt();
    if norm.is_finite() {
        return Ok(norm);
    }
    let bad = |spec: &&crate::Spec| !grads.slab().window(spec.range().start, &spec.shape).is_finite();
    let name = params.specs().iter().find(bad).map_or("a parameter", |spec| &spec.name);
    Err(format!("the gradient of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_of_runs_with_three_rates_are_read() {
        let settings = Preset::Hour.settings(&Source::Synthetic);
        let with = |rates: serde_json::Value| {
            let mut text = serde_json::to_value(&settings).unwrap();
            text["rates"] = rates;
            serde_json::from_value::<Settings>(text).map(|settings| settings.rates)
        };
        assert_eq!(with(json!([1e-4, 2e-4, 3e-4])).unwrap(), [1e-4, 2e-4, 3e-4, 1e-4]);
        assert_eq!(with(json!([1e-4, 2e-4, 3e-4, 4e-4])).unwrap(), [1e-4, 2e-4, 3e-4, 4e-4]);
        for wrong in [json!([1e-4, 2e-4]), json!([1.0, 2.0, 3.0, 4.0, 5.0])] {
            let refused = with(wrong).unwrap_err().to_string();
            assert!(refused.contains("one for each of model, baseline, onoff, scale"), "{refused}");
        }
    }

    #[test]
    fn images_are_altered_by_their_update_and_row() {
        let device = Device::cpu_f64();
        let config = Config::tiny(Placement::Warp);
        let (side, n) = (config.image, 32);
        // A disc of ink in the middle of each.
        let centre = (side - 1) as f64 / 2.0;
        let disc = (0..side * side).map(|i| [(i % side) as f64 - centre, (i / side) as f64 - centre]);
        let disc: Vec<u8> = disc.map(|[x, y]| if x.hypot(y) < 4.0 { 255 } else { 0 }).collect();
        let images = Images { side, pixels: disc.repeat(n), labels: None };
        let settings = Settings { batch: n, thicker: 0, ..Preset::Hour.settings(&Source::Synthetic) };
        let shown = |augment: f64, rows: Range<usize>, step: u64| {
            let settings = Settings { augment, ..settings.clone() };
            let trainer = Trainer::new(&config, settings, images.clone(), &device).unwrap();
            trainer.shown(pixels(&images, rows.clone(), &device), (rows, n), Rng::new(3, step)).to_f64()
        };
        let plain = shown(0.0, 0..n, 5);
        assert_eq!(plain, pixels(&images, 0..n, &device).to_f64());
        let altered = shown(0.1, 0..n, 5);
        assert_eq!(shown(0.1, 20..n, 5), altered[20 * side * side..], "rows of a batch, computed elsewhere");
        assert_ne!(shown(0.1, 0..n, 6), altered);

        // Shifted by at most a tenth of half the side, each otherwise, and in all directions.
        let mut middle = [0.0; 2];
        for image in altered.chunks(side * side) {
            let ink: f64 = image.iter().sum();
            let at = |axis: fn(usize, usize) -> usize| {
                let weighed = image.iter().enumerate().map(|(i, ink)| ink * (axis(i, side) as f64 - centre));
                weighed.sum::<f64>() / ink
            };
            let shift = [at(|i, side| i % side), at(|i, side| i / side)];
            assert!(shift.iter().all(|by| by.abs() <= 1.3 * 0.1 * centre && by.abs() > 1e-6), "{shift:?}");
            middle = [0, 1].map(|axis| middle[axis] + shift[axis] / n as f64);
        }
        assert!(middle.iter().all(|by| by.abs() < 0.3 * 0.1 * centre), "{middle:?}");
    }
}
