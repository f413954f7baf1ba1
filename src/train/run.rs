//! A whole training run: data, progress, metrics, pictures, checkpoints, interruption.

use super::{
    Options, Plan, Preset, Report, Trainer,
    folder::{self, Claim},
    memory,
    options::From,
};
use crate::{
    Device, Error, Observer, Params, ParamsBuilder, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Images},
    eval::{Best, Reconstruction, reconstruct, reconstruction},
    figures::{Panel, plot_svg},
    files, kernels,
    measure::{Measured, Protocol, Score, measure, pixels, spread},
    metrics::{EventFile, Metrics, MetricsFile},
    model::{Config, Model, Start, Variant},
    observer::{Silent, Unit},
    ops::PIXEL_SCALE,
    ranks::Ranks,
    rng::Rng,
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Updates made in all.
    pub updates: u64,
    /// The run's folder.
    pub folder: PathBuf,
    /// The newest checkpoint, which holds all of them.
    pub checkpoint: PathBuf,
    /// What was reached on test images; `None` if the [`Observer`] stopped the run before that was known.
    pub measured: Option<Measured>,
    /// Images in the test set.
    pub test_images: usize,
}

/// Checkpoints that are kept: more than one, in case the newest turns out to be the start of a divergence.
const KEEP: usize = 3;
/// Test images that are measured, and of these the ones in a picture.
const MEASURED: usize = 64;
const PICTURED: usize = 12;
/// Updates after which a model that draws is expected to have begun, and nats of divergence below which its strokes say nothing.
const PATIENCE: u64 = 300;
const DRAWS_NOTHING: f64 = 1.0;
/// Updates between two looks at the observer, on a GPU.
const MOST_AT_ONCE: u64 = 100;

/// Trains a model in a folder, from the start or from a checkpoint, and tells `observer` how it goes.
///
/// Once the observer asks for it, the run ends after the current update, with a checkpoint. Metrics and pictures that cannot be written
/// are told to the observer and do not end the run.
///
/// # Errors
/// [`Error::Stopped`] if the observer stopped it before the first update; else a sentence that says what to do.
pub fn run(options: &Options, device: &Device, observer: &dyn Observer) -> Result<Ended> {
    Plan::new(options)?.run(device, observer)
}

impl Plan {
    /// Carries it out; see [`run`](fn@run).
    ///
    /// # Errors
    /// As for [`run`](fn@run).
    pub fn run(self, device: &Device, observer: &dyn Observer) -> Result<Ended> {
        self.lead(device, None, observer)
    }

    /// What has to be the same for all ranks of a run, for [`Ranks::meet`].
    pub fn about(&self) -> Value {
        json!({ "version": env!("CARGO_PKG_VERSION"), "kernels": kernels::digest(), "settings": self.settings, "model": self.config })
    }

    /// Carries it out as one of several ranks, each of which has planned the same. Rank 0 does all that [`Plan::run`] does; the others
    /// compute, write nothing, and come back with `None` at the end of the training.
    ///
    /// # Errors
    /// As for [`run`](fn@run), and [`Error::Ranks`] if another rank has failed or was lost.
    pub fn run_as_rank(self, device: &Device, ranks: Ranks, observer: &dyn Observer) -> Result<Option<Ended>> {
        let ranks = Arc::new(ranks);
        let done = if ranks.leads() {
            self.lead(device, Some(&ranks), observer).map(Some)
        } else {
            self.follow(device, &ranks, observer)
        };
        match &done {
            // The others know it already.
            Ok(_) | Err(Error::Ranks(_)) => {}
            Err(error) => {
                // Whatever was known before says more than what followed from it.
                ranks.check()?;
                ranks.fail(&error.to_string());
            }
        }
        done
    }

    /// As another rank than 0.
    fn follow(mut self, device: &Device, ranks: &Arc<Ranks>, observer: &dyn Observer) -> Result<Option<Ended>> {
        // What rank 0 has fetched need not be fetched again.
        ranks.broadcast(|| Ok(vec![]))?;
        let (mut trainer, _) = self.trainer(device, observer)?;
        trainer.join(ranks)?;
        let mut asked = false;
        loop {
            let steps = ranks.broadcast(|| Ok(vec![]))?;
            match u32::from_le_bytes(steps.try_into().unwrap_or_default()) {
                0 => break,
                steps => drop(trainer.run_steps(steps as usize)?),
            }
            if observer.stopped() && !std::mem::replace(&mut asked, true) {
                ranks.ask_to_stop();
            }
        }
        trainer.part();
        Ok(None)
    }

    fn lead(mut self, device: &Device, ranks: Option<&Arc<Ranks>>, observer: &dyn Observer) -> Result<Ended> {
        // What is quickly known is looked at before what takes a while.
        if *device == Device::cpu() {
            memory::check(&self.config, self.settings.batch, parameters(&self.config)?)?;
        }
        let mut claim = Claim::new(&self.folder)?;
        if !matches!(self.from, From::Run(..)) {
            MetricsFile::check(&self.folder.join("metrics.csv"), &columns())?;
        }
        let (mut trainer, test) = self.trainer(device, observer)?;
        observer.go_on()?;
        if let Some(ranks) = ranks {
            ranks.broadcast(|| Ok(vec![]))?;
            trainer.join(ranks)?;
        }
        let Plan { folder, iwae, .. } = self;
        claim.keep();
        if trainer.updates() == 0 {
            folder::begin(&folder)?;
        } else {
            folder::clear(&folder)?;
            folder::set_aside(&folder, trainer.updates(), observer)?;
        }
        Run::new(trainer, folder, test, ranks.cloned(), observer)?.finish(iwae)
    }

    /// Reads the images, and makes the trainer that begins the run or goes on with it; and the test images.
    fn trainer(&mut self, device: &Device, observer: &dyn Observer) -> Result<(Trainer, Images)> {
        let mut settings = self.settings.clone();
        let (fit, invert) = (settings.fit, settings.invert);
        let reading = data::Options { download: self.download, fit, invert, ..data::Options::new(self.config.image) };
        let data = data::load_or_fetch(&settings.data, &reading, observer)?;
        let trainer = match std::mem::replace(&mut self.from, From::Nothing) {
            From::Run(path, bytes) => {
                let trainer = Checkpoint::parse(&bytes, &path.display().to_string())
                    .and_then(|checkpoint| Trainer::resume(&checkpoint, data.train, device, |old| *old = settings));
                let trainer = trainer.map_err(|error| checkpoint::with_advice(error, &path))?;
                observer.note(&format!("Going on from {}.", path.display()));
                *trainer.saved.borrow_mut() = Some(path);
                trainer
            }
            from => {
                if !self.exact_batch {
                    settings.batch = settings.batch.min(data.train.len()).max(1);
                }
                let mut trainer = Trainer::new(&self.config, settings, data.train, device)?;
                if let From::Model(path, bytes) = &from {
                    Checkpoint::parse(bytes, &path.display().to_string())?.start(trainer.params_mut())?;
                    observer.note(&format!("Starting with the parameters of {}.", path.display()));
                }
                trainer
            }
        };
        Ok((trainer, data.test))
    }
}

/// The number of a model's parameters.
fn parameters(config: &Config) -> Result<usize> {
    let mut builder = ParamsBuilder::blank();
    Model::declare(config, Start::new(0), &mut builder)?;
    Ok(builder.specs().iter().map(|spec| spec.range().len()).sum())
}

/// What is measured on test images now and then.
const TEST: [&str; 3] = ["elbo", "log_likelihood", "strokes"];

/// The columns of `metrics.csv` but for the step.
fn columns() -> Vec<&'static str> {
    let mut names = Report::NAMES.to_vec();
    names.extend(["images_per_s", "scale", "scale_at_floor", "test_elbo", "test_log_likelihood", "test_strokes"]);
    names
}

/// The parts of a run.
struct Run<'a> {
    observer: &'a dyn Observer,
    trainer: Trainer,
    /// Those that this one leads, if it does.
    ranks: Option<Arc<Ranks>>,
    folder: PathBuf,
    test: Images,
    /// Which test images are measured: they are the same throughout.
    measured: Vec<usize>,
    metrics: MetricsFile,
    events: EventFile,
    recent: Recent,
    /// The update at which the model gave up drawing, if it has.
    gave_up: Option<u64>,
    /// What could not be written so far.
    failing: HashSet<&'static str>,
}

impl<'a> Run<'a> {
    fn new(
        trainer: Trainer,
        folder: PathBuf,
        test: Images,
        ranks: Option<Arc<Ranks>>,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        let next = if trainer.updates() == 0 { 0 } else { trainer.updates().saturating_add(1) };
        let metrics = MetricsFile::open(&folder.join("metrics.csv"), &columns(), next, observer)?;
        let events = EventFile::create(&folder, next)?;
        let measured = spread(MEASURED, test.len());
        let recent = Recent::new(trainer.settings().batch);
        let failing = HashSet::new();
        Ok(Run { observer, trainer, ranks, folder, test, measured, metrics, events, recent, gave_up: None, failing })
    }

    /// Everything from here to the end.
    fn finish(mut self, iwae: Option<usize>) -> Result<Ended> {
        let steps = self.trainer.settings().steps;
        self.observer.note(&self.describe());
        self.observer.begin("Training", Some(steps), Unit::Items);
        self.observer.already(self.trainer.updates());
        let trained = self.train(steps);
        self.observer.end();
        trained.map_err(|error| self.with_checkpoint(error))?;
        self.checkpoint()?;
        let measured = match self.measure(steps, iwae) {
            Err(Error::Stopped) => None,
            measured => Some(measured?),
        };
        let updates = self.trainer.updates();
        let checkpoint = checkpoint::path(&self.folder, updates);
        Ok(Ended { updates, folder: self.folder, checkpoint, measured, test_images: self.test.len() })
    }

    fn train(&mut self, steps: u64) -> Result<()> {
        let asked = |ranks: &Option<Arc<Ranks>>| ranks.as_ref().is_some_and(|ranks| ranks.asked_to_stop());
        while self.trainer.updates() < steps && !self.observer.stopped() && !asked(&self.ranks) {
            self.step()?;
        }
        self.tell_steps(0)?;
        self.trainer.part();
        Ok(())
    }

    /// Tells the other ranks how many updates come next; none at the end.
    fn tell_steps(&self, steps: usize) -> Result<()> {
        let Some(ranks) = &self.ranks else { return Ok(()) };
        ranks.broadcast(|| Ok((steps as u32).to_le_bytes().to_vec())).map(drop)
    }

    /// The loss of another rank is no fault of the run, which can be gone on with.
    fn with_checkpoint(&self, error: Error) -> Error {
        match self.ranks.as_ref().and_then(|ranks| ranks.check().err()).unwrap_or(error) {
            Error::Ranks(why) => Error::Ranks(match &*self.trainer.saved.borrow() {
                Some(path) => {
                    format!("{why}; the last checkpoint is {}: go on from it with --resume", files::quoted(path))
                }
                None => format!("{why}; there is no checkpoint yet"),
            }),
            other => other,
        }
    }

    /// The updates up to the next one after which something is written. On the CPU one at a time, as each takes a while.
    fn steps(&self) -> usize {
        let (done, settings) = (self.trainer.updates(), self.trainer.settings());
        if self.trainer.params().device() == &Device::cpu() || done == 0 {
            return 1;
        }
        let every = [settings.log_every, settings.checkpoint_every, settings.picture_every];
        let left = every.map(|every| every - done % every).into_iter().min().expect("three");
        left.min(settings.steps - done).min(MOST_AT_ONCE) as usize
    }

    fn step(&mut self) -> Result<()> {
        let steps = self.steps();
        self.tell_steps(steps)?;
        let reports = self.trainer.run_steps(steps)?;
        self.trainer.take_notes().iter().for_each(|note| self.observer.note(note));
        let (step, settings) = (self.trainer.updates(), self.trainer.settings().clone());
        self.recent.add(&reports);
        self.observer.advance(reports.len() as u64);
        self.observer.status(&self.recent.words());
        self.look_after(step);
        let report = reports.last().expect("at least one step");
        // The last step's pictures and checkpoint are never left out.
        let last = step >= settings.steps;
        let scores =
            if last || step.is_multiple_of(settings.picture_every) { Some(self.pictures(step)?) } else { None };
        if last || scores.is_some() || step == 1 || step.is_multiple_of(settings.log_every) {
            self.log(step, report, scores.as_deref());
        }
        if scores.is_some() {
            let plotted = self.plot(step);
            self.report("metrics.svg", plotted);
        }
        if !last && step.is_multiple_of(settings.checkpoint_every) {
            let saved = self.checkpoint();
            self.report("checkpoints", saved);
        }
        Ok(())
    }

    /// Tells, once in a row, that something beside the work could not be written.
    fn report(&mut self, what: &'static str, written: Result<()>) {
        match written {
            Ok(()) => drop(self.failing.remove(what)),
            Err(error) if self.failing.insert(what) => {
                self.observer.note(&format!("Training goes on without {what}: {error}."));
            }
            Err(_) => {}
        }
    }

    /// A row of metrics.
    fn log(&mut self, step: u64, report: &Report, scores: Option<&[Score]>) {
        let mut values = report.values().to_vec();
        values.push(self.recent.images_per_s());
        values.extend(self.scales());
        let mut tagged: Vec<(String, f32)> = vec![];
        let names = Report::NAMES.into_iter().chain(["images_per_s", "scale", "scale_at_floor"]);
        tagged.extend(names.zip(&values).map(|(name, &value)| (format!("train/{name}"), value)));
        if let Some(scores) = scores {
            let Measured { elbo, log_likelihood, strokes, .. } = Measured::of(scores, 1);
            let means = [elbo, log_likelihood, strokes].map(|estimate| estimate.mean as f32);
            tagged.extend(TEST.into_iter().zip(means).map(|(name, mean)| (format!("test/{name}"), mean)));
            values.extend(means);
        }
        let logged = self.metrics.log(step, &values);
        self.report("metrics.csv", logged);
        let logged =
            self.events.log(step, &tagged.iter().map(|(tag, value)| (tag.as_str(), *value)).collect::<Vec<_>>());
        self.report("events for TensorBoard", logged);
    }

    /// The mean scale of the likelihood's pixels, and the share of them that is as small as can be.
    fn scales(&self) -> [f32; 2] {
        let (model, params) = self.model();
        let scales = model.pixel_scales(params);
        let count = scales.len() as f64;
        let small = scales.iter().filter(|&&scale| scale < 1.1 * PIXEL_SCALE.0).count() as f64;
        [scales.iter().sum::<f64>() / count, small / count].map(|x| x as f32)
    }

    /// Tells, once, that nothing is drawn any more. Until it draws again, checkpoints of before stay: they may be of use.
    fn look_after(&mut self, step: u64) {
        if self.recent.kl_stroke > 2.0 * DRAWS_NOTHING {
            self.gave_up = None;
        }
        if self.gave_up.is_some() || step < PATIENCE || self.recent.kl_stroke > DRAWS_NOTHING {
            return;
        }
        self.gave_up = Some(step);
        self.observer.note(&format!(
            "At step {step} the model has given up drawing (its strokes differ by {:.2} nats from the prior's): begin anew with \
             a smaller --learning-rate, or with thicker ink at first (thicker in [run], see --print-config).",
            self.recent.kl_stroke
        ));
    }

    fn checkpoint(&self) -> Result<()> {
        self.trainer.save(&checkpoint::path(&self.folder, self.trainer.updates()))?;
        checkpoint::prune_after(&self.folder, self.gave_up, KEEP)
    }

    /// Evaluation has random numbers of its own: training's are keyed by the seed itself.
    fn rng(&self) -> Rng {
        Rng::new(!self.trainer.settings().seed, 0)
    }

    fn model(&self) -> (&Model, &Params) {
        (self.trainer.model(), self.trainer.params())
    }

    /// The newest pictures under stable names, and a copy for the history; and how good all measured images are drawn.
    fn pictures(&mut self, step: u64) -> Result<Vec<Score>> {
        let (model, params) = self.model();
        let x = pixels(&self.test, self.measured.iter().copied(), params.device());
        let once = (Protocol::published(1), Best::Likelihood);
        let drawn = reconstruct((model, params), &x, once, model.config.strokes, self.rng(), &Silent)?;
        let shown: Vec<Reconstruction> = spread(PICTURED, drawn.len()).into_iter().map(|i| drawn[i].clone()).collect();
        let history = self.folder.join("history");
        let written = files::create_folder(&history).and_then(|()| {
            write_pictures(&self.folder.join("reconstruction"), &shown)?;
            write_pictures(&history.join(folder::picture(step)), &shown)
        });
        self.report("pictures", written);
        Ok(drawn.iter().map(|drawn| drawn.score).collect())
    }

    fn plot(&self, step: u64) -> Result<()> {
        let title = format!("{} after {step} steps", self.name());
        let metrics = Metrics::read(&self.folder.join("metrics.csv"))?;
        plot_svg(&self.folder.join("metrics.svg"), &title, &panels(&metrics, self.measured.len()))
    }

    fn name(&self) -> String {
        let (settings, config) = (self.trainer.settings(), &self.trainer.model().config);
        let model = match config.variant {
            Variant::Dood => "DooD",
            Variant::Sp => "DooD-SP",
            Variant::Eg => "DooD-EG",
            Variant::Dr => "DooD-δR",
            Variant::Air => "AIR",
            Variant::Dair => "Difference-AIR",
        };
        format!("{model} on {}, preset {}", settings.data.word(), settings.preset)
    }

    fn describe(&self) -> String {
        let (settings, config) = (self.trainer.settings(), &self.trainer.model().config);
        format!(
            "{}: {:.1} million parameters, {} images of {side}x{side} pixels in batches of {}, {}; results go to {}",
            self.name(),
            self.trainer.params().values() as f64 / 1e6,
            settings.images,
            settings.batch,
            match self.trainer.params().device() {
                device if *device == Device::cpu() => format!("{} threads", rayon::current_num_threads()),
                device => match &self.ranks {
                    Some(ranks) => format!("{} times {device}", ranks.count()),
                    None => device.to_string(),
                },
            },
            self.folder.display(),
            side = config.image,
        )
    }

    /// What was reached.
    fn measure(&self, steps: u64, iwae: Option<usize>) -> Result<Measured> {
        if self.trainer.updates() < steps {
            return Err(Error::Stopped);
        }
        let by_default = if self.trainer.settings().preset == Preset::Paper { 200 } else { 20 };
        let particles = iwae.unwrap_or(by_default).max(1);
        let drawings = (self.measured.len() as u64).saturating_mul(particles as u64);
        self.observer.begin("Measuring", Some(drawings), Unit::Items);
        let scores = measure(
            self.model(),
            &self.test,
            &self.measured,
            Protocol::published(particles),
            self.rng(),
            self.observer,
        );
        self.observer.end();
        Ok(Measured::of(&scores?, particles))
    }
}

fn write_pictures(stem: &Path, drawn: &[Reconstruction]) -> Result<()> {
    reconstruction::write_png(&stem.with_extension("png"), drawn)?;
    reconstruction::write_svg(&stem.with_extension("svg"), drawn)
}

/// The plots of a run that measured so many test images.
fn panels(metrics: &Metrics, images: usize) -> Vec<Panel> {
    let test = format!("{images} test images");
    let panel = |title: &str, y_label: &str, lines: &[(&str, &str)]| Panel {
        title: title.into(),
        y_label: y_label.into(),
        series: lines
            .iter()
            .map(|(name, label)| (label.to_string(), metrics.points(name).unwrap_or_default()))
            .collect(),
    };
    vec![
        panel("Evidence lower bound", "nats per image", &[("elbo", "training"), ("test_elbo", &test)]),
        panel(
            "Log-likelihood of what is drawn",
            "nats per image",
            &[("log_likelihood", "training"), ("test_log_likelihood", &test)],
        ),
        panel(
            "KL per latent",
            "nats per image",
            &[("kl_onoff", "on/off"), ("kl_layout", "layouts"), ("kl_stroke", "strokes")],
        ),
        panel("Strokes per image", "strokes", &[("strokes", "training"), ("test_strokes", &test)]),
        panel("Scale of a pixel", "ink", &[("scale", "mean")]),
        panel("Gradient norm", "", &[("gradient_norm", "")]),
        panel("Speed", "images per second", &[("images_per_s", "")]),
    ]
}

/// How the last 20 or so updates went.
struct Recent {
    batch: usize,
    /// Updates since the process began.
    updates: u64,
    last: Instant,
    seconds_per_step: f64,
    /// ELBO, log-likelihood, strokes.
    means: [f64; 3],
    /// Divergence of the strokes.
    kl_stroke: f64,
}

impl Recent {
    fn new(batch: usize) -> Self {
        Recent { batch, updates: 0, last: Instant::now(), seconds_per_step: 0.0, means: [0.0; 3], kl_stroke: 0.0 }
    }

    /// Takes updates that were made together into exponential averages.
    fn add(&mut self, reports: &[Report]) {
        let seconds = self.last.elapsed().as_secs_f64() / reports.len() as f64;
        self.last = Instant::now();
        for report in reports {
            self.updates += 1;
            let weight = (1.0 / self.updates as f64).max(0.05);
            let update = |old: &mut f64, new: f64| *old += weight * (new - *old);
            update(&mut self.seconds_per_step, seconds);
            let shown = [report.elbo, report.log_likelihood, report.strokes];
            update(&mut self.kl_stroke, report.kl_stroke.into());
            self.means.iter_mut().zip(shown).for_each(|(old, new)| update(old, new.into()));
        }
    }

    fn images_per_s(&self) -> f32 {
        (self.batch as f64 / self.seconds_per_step) as f32
    }

    fn words(&self) -> String {
        let [elbo, log_likelihood, strokes] = self.means;
        let rate = self.images_per_s();
        format!("ELBO {elbo:.1}  log-lik {log_likelihood:.1}  strokes {strokes:.2}  {rate:.0} images/s")
    }
}
