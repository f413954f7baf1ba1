//! A whole training run: data, progress, metrics, pictures, checkpoints, interruption.

use super::{Preset, Report, Settings, Trainer, pixels, settings_of};
use crate::{
    Device, Error, Observer, Result, Tensor,
    checkpoint::{self, Checkpoint},
    data::{self, Images, Source},
    figures::{Panel, plot_svg},
    files,
    metrics::{EventFile, Metrics, MetricsFile},
    observer::Unit,
    ops::Placement,
    reconstruct::{self, Reconstruction, Summary, reconstruct},
    rng::Rng,
};
use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Instant,
};

/// What a user asks for. `None` means the preset's value, or in a resumed run the value of that run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the images come from.
    pub data: Option<Source>,
    /// The model's size and the settings that suit it.
    pub preset: Option<Preset>,
    /// How strokes get onto the canvas.
    pub placement: Option<Placement>,
    /// Updates at which the run ends.
    pub steps: Option<u64>,
    /// Images per update.
    pub batch: Option<usize>,
    /// Key of all random numbers.
    pub seed: Option<u64>,
    /// Learning rate of the model (not of its baseline).
    pub learning_rate: Option<f64>,
    /// Learning rate of the on/off posterior alone.
    pub onoff_rate: Option<f64>,
    /// Updates between rows of metrics.
    pub log_every: Option<u64>,
    /// Updates between pictures.
    pub picture_every: Option<u64>,
    /// Updates between checkpoints.
    pub checkpoint_every: Option<u64>,
    /// The run's folder; by default `runs/<data>-<preset>-<placement>`.
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder.
    pub resume: bool,
    /// Fetch the data if they are not there.
    pub download: bool,
    /// Particles per image of the bound that is estimated at the end; 0 for none.
    pub iwae: Option<usize>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Updates made in all.
    pub updates: u64,
    /// The run's folder.
    pub folder: PathBuf,
    /// The newest checkpoint, which holds all of them.
    pub checkpoint: PathBuf,
    /// What was reached; `None` if the [`Observer`] stopped the run before that was known.
    pub measured: Option<Measured>,
}

/// What a run has reached on test images: means in nats per image.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// How many images.
    pub images: usize,
    /// From one drawing of each.
    pub summary: Summary,
    /// The importance-weighted bound on log p(x) and its number of particles, if it was asked for.
    pub bound: Option<(f64, usize)>,
}

/// Checkpoints that are kept: more than one, in case the newest turns out to be the start of a divergence.
const KEEP: usize = 3;
/// Images in a picture.
const PICTURED: usize = 12;
/// Images of the bound at the end.
const MEASURED: usize = 64;
/// Updates between two looks at the observer, on a GPU.
const MOST_AT_ONCE: u64 = 100;

impl Options {
    /// The run's folder.
    pub fn folder(&self) -> PathBuf {
        let preset = self.preset.unwrap_or_default();
        let placement = if self.placement() == Placement::Warp { "warp" } else { "points" };
        let by_default =
            || Path::new("runs").join(format!("{}-{preset}-{placement}", word(&self.source().to_string())));
        self.out.clone().unwrap_or_else(by_default)
    }

    /// How the data are read.
    fn reading(&self, side: usize) -> data::Options {
        data::Options { download: self.download, ..data::Options::new(side) }
    }

    fn source(&self) -> Source {
        self.data.clone().unwrap_or(Source::Synthetic)
    }

    fn placement(&self) -> Placement {
        self.placement.unwrap_or(Placement::Warp)
    }

    /// Puts what the user asked for into `settings`, except for the run's identity.
    fn change(&self, settings: &mut Settings) {
        let set = |value: &mut u64, wish: Option<u64>| *value = wish.unwrap_or(*value);
        set(&mut settings.steps, self.steps);
        set(&mut settings.log_every, self.log_every);
        set(&mut settings.picture_every, self.picture_every);
        set(&mut settings.checkpoint_every, self.checkpoint_every);
        if let Some(rate) = self.learning_rate {
            // The on/off posterior belongs to the model: it keeps its share.
            settings.rates[2] *= rate / settings.rates[0];
            settings.rates[0] = rate;
        }
        settings.rates[2] = self.onoff_rate.unwrap_or(settings.rates[2]);
    }

    /// In which points the user asks for another run than that of a checkpoint.
    fn differences(&self, settings: &Settings, placement: Placement) -> Vec<String> {
        fn differ<T: PartialEq + std::fmt::Display>(name: &str, wish: Option<T>, saved: T) -> Option<String> {
            wish.filter(|wish| *wish != saved).map(|wish| format!("{name} {wish} instead of {saved}"))
        }
        let name = |p| if p == Placement::Warp { "warp" } else { "points" };
        let data = self.data.as_ref().map(|source| word(&source.to_string()).to_owned());
        [
            differ("--data", data, word(&settings.data).to_owned()),
            differ("--preset", self.preset, settings.preset),
            differ("--placement", self.placement.map(name), name(placement)),
            differ("--seed", self.seed, settings.seed),
            differ("--batch", self.batch, settings.batch),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// `mnist` of `mnist:FOLDER`.
fn word(source: &str) -> &str {
    source.split(':').next().expect("a split has a first part")
}

/// Trains a model in a folder, from the start or from its newest checkpoint, and tells `observer` how it goes.
///
/// Once the observer asks for it, the run ends after the current update, with a checkpoint.
///
/// # Errors
/// [`Error::Stopped`] if the observer stopped it before the first update; else a sentence that says what to do.
pub fn run(options: &Options, device: &Device, observer: &dyn Observer) -> Result<Ended> {
    let folder = options.folder();
    let newest = checkpoint::latest(&folder)?;
    let (trainer, test) = match (newest, options.resume) {
        (Some(path), true) => resumed(options, &path, device, observer)?,
        (None, false) => fresh(options, device, observer)?,
        (Some(path), false) => {
            return Err(Error::Usage(format!(
                "{} holds a run already: go on with it by adding --resume, or choose another folder with --out",
                path.display()
            )));
        }
        (None, true) => {
            return Err(Error::Usage(format!(
                "there is no checkpoint to resume from in {}: name the run's folder with --out, or leave --resume out",
                folder.display()
            )));
        }
    };
    files::create_folder(&folder)?;
    let _lock = lock(&folder)?;
    observer.go_on()?;
    Run::new(trainer, folder, &test, observer)?.finish(options.iwae)
}

fn fresh(options: &Options, device: &Device, observer: &dyn Observer) -> Result<(Trainer, Images)> {
    let source = options.source();
    let preset = options.preset.unwrap_or_default();
    let config = preset.config(options.placement());
    let mut settings = preset.settings(&source);
    options.change(&mut settings);
    settings.batch = options.batch.unwrap_or(settings.batch);
    settings.seed = options.seed.unwrap_or(settings.seed);
    let data = data::load_or_fetch(&source, &options.reading(config.image), observer)?;
    Ok((Trainer::new(&config, settings, data.train, device)?, data.test))
}

fn resumed(options: &Options, path: &Path, device: &Device, observer: &dyn Observer) -> Result<(Trainer, Images)> {
    let bytes = files::read(path)?;
    let checkpoint = Checkpoint::parse(&bytes, &path.display().to_string())?;
    let (settings, config) = (settings_of(&checkpoint)?, checkpoint.config());
    let differences = options.differences(&settings, config.placement);
    if !differences.is_empty() {
        return Err(Error::Usage(format!(
            "{} belongs to another run: {}; leave these options out to resume it, or start anew with another --out",
            path.display(),
            differences.join(", ")
        )));
    }
    let source = options.data.clone().map_or_else(|| settings.data.parse(), Ok)?;
    let data = data::load_or_fetch(&source, &options.reading(config.image), observer)?;
    let trainer = Trainer::resume(&checkpoint, data.train, device, |settings| options.change(settings))?;
    if trainer.updates() >= trainer.settings().steps {
        return Err(Error::Usage(format!(
            "the run in {} has made its {} steps: give a larger number with --steps to go on",
            path.parent().unwrap_or(path).display(),
            trainer.updates()
        )));
    }
    observer.note(&format!("Going on from {}.", path.display()));
    *trainer.saved.borrow_mut() = Some(path.into());
    Ok((trainer, data.test))
}

/// Keeps a second process out of a run's folder for as long as the file lives.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::Usage(format!("another process is training in {}: wait for it", folder.display())))
        }
        // Some file systems cannot lock; nothing is lost there but this check.
        _ => Ok(file),
    }
}

/// The parts of a run.
struct Run<'a> {
    observer: &'a dyn Observer,
    trainer: Trainer,
    folder: PathBuf,
    /// Some test images: they are the same throughout.
    pictured: Tensor,
    measured: Tensor,
    metrics: MetricsFile,
    events: EventFile,
    recent: Recent,
}

impl<'a> Run<'a> {
    fn new(trainer: Trainer, folder: PathBuf, test: &Images, observer: &'a dyn Observer) -> Result<Self> {
        let names = [&Report::NAMES[..], &["images_per_s"]].concat();
        let next = if trainer.updates() == 0 { 0 } else { trainer.updates() + 1 };
        let (metrics, events) =
            (MetricsFile::open(&folder.join("metrics.csv"), &names, next)?, EventFile::create(&folder, next)?);
        // Sets are often sorted, so the images are taken from everywhere.
        let device = trainer.params().device();
        let spread =
            |n: usize| pixels(test, (0..n.min(test.len())).map(|i| i * test.len() / n.min(test.len())), device);
        let (pictured, measured) = (spread(PICTURED), spread(MEASURED));
        let recent = Recent::new(trainer.settings().batch);
        Ok(Run { observer, trainer, folder, pictured, measured, metrics, events, recent })
    }

    /// Everything from here to the end.
    fn finish(mut self, iwae: Option<usize>) -> Result<Ended> {
        let steps = self.trainer.settings().steps;
        self.observer.note(&self.describe());
        self.observer.begin("Training", Some(steps), Unit::Items);
        self.observer.already(self.trainer.updates());
        let trained = self.train(steps);
        self.observer.end();
        trained?;
        self.checkpoint()?;
        let updates = self.trainer.updates();
        let measured = if updates < steps { Ok(None) } else { self.pictures().and_then(|()| self.measure(iwae)) };
        let measured = match measured {
            Err(Error::Stopped) => None,
            measured => measured?,
        };
        let checkpoint = checkpoint::path(&self.folder, updates);
        Ok(Ended { updates, folder: self.folder, checkpoint, measured })
    }

    fn train(&mut self, steps: u64) -> Result<()> {
        while self.trainer.updates() < steps && !self.observer.stopped() {
            self.step()?;
        }
        Ok(())
    }

    /// The updates up to the next one after which something is written. On the CPU one at a time, as each takes a while.
    fn steps(&self) -> usize {
        let (done, settings) = (self.trainer.updates(), self.trainer.settings());
        if self.trainer.params().device() == &Device::cpu() || done == 0 {
            return 1;
        }
        let every = [settings.log_every, settings.checkpoint_every, settings.picture_every];
        let next = every.map(|every| (done / every + 1) * every).into_iter().min().expect("three");
        (next.min(settings.steps) - done).min(MOST_AT_ONCE) as usize
    }

    fn step(&mut self) -> Result<()> {
        let reports = self.trainer.run_steps(self.steps())?;
        let (step, settings) = (self.trainer.updates(), self.trainer.settings().clone());
        self.recent.add(&reports);
        self.observer.advance(reports.len() as u64);
        self.observer.status(&self.recent.words());
        let report = reports.last().expect("at least one step");
        if step == 1 || step.is_multiple_of(settings.log_every) {
            let rate = self.recent.images_per_s();
            self.metrics.log(step, &[&report.values()[..], &[rate]].concat())?;
            let tags = Report::NAMES.into_iter().chain(["images_per_s"]).map(|name| format!("train/{name}"));
            let tags: Vec<String> = tags.collect();
            let values = report.values().into_iter().chain([rate]);
            self.events.log(step, &tags.iter().map(String::as_str).zip(values).collect::<Vec<_>>())?;
        }
        // The last step's are written at the end.
        if step < settings.steps && step.is_multiple_of(settings.checkpoint_every) {
            self.checkpoint()?;
        }
        if step < settings.steps && step.is_multiple_of(settings.picture_every) {
            self.pictures()?;
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<()> {
        self.trainer.save(&checkpoint::path(&self.folder, self.trainer.updates()))?;
        checkpoint::prune(&self.folder, KEEP)
    }

    /// Evaluation has random numbers of its own: training's are keyed by the seed itself.
    fn rng(&self) -> Rng {
        Rng::new(!self.trainer.settings().seed, 0)
    }

    /// The newest pictures under stable names, and a copy for the history.
    fn pictures(&mut self) -> Result<()> {
        let step = self.trainer.updates();
        let drawn = reconstruct(self.trainer.model(), self.trainer.params(), &self.pictured, 1, self.rng());
        self.trainer.params().device().check()?;
        let history = self.folder.join("history");
        files::create_folder(&history)?;
        write_pictures(&self.folder.join("reconstruction"), &drawn)?;
        write_pictures(&history.join(format!("reconstruction-{step:08}")), &drawn)?;
        let Summary { log_likelihood, elbo, strokes } = Summary::of(&drawn);
        let test = [("elbo", elbo), ("log_likelihood", log_likelihood), ("strokes", strokes)];
        let tags = test.map(|(name, value)| (format!("test/{name}"), value as f32));
        self.events.log(step, &tags.each_ref().map(|(tag, value)| (tag.as_str(), *value)))?;
        let title = format!("{} after {step} steps", self.name());
        let metrics = Metrics::read(&self.folder.join("metrics.csv"))?;
        plot_svg(&self.folder.join("metrics.svg"), &title, &panels(&metrics))
    }

    fn name(&self) -> String {
        let settings = self.trainer.settings();
        format!("DooD on {}, preset {}", word(&settings.data), settings.preset)
    }

    fn describe(&self) -> String {
        let (settings, config) = (self.trainer.settings(), &self.trainer.model().config);
        format!(
            "{}: {:.1} million parameters, {} images of {side}x{side} pixels in batches of {}, {}.\nResults go to {}.",
            self.name(),
            self.trainer.params().values() as f64 / 1e6,
            settings.images,
            settings.batch,
            match self.trainer.params().device() {
                device if *device == Device::cpu() => format!("{} threads", rayon::current_num_threads()),
                device => device.to_string(),
            },
            self.folder.display(),
            side = config.image,
        )
    }

    /// What was reached.
    fn measure(&self, iwae: Option<usize>) -> Result<Option<Measured>> {
        let trainer = &self.trainer;
        let (model, params) = (trainer.model(), trainer.params());
        let drawn = reconstruct(model, params, &self.measured, 1, self.rng());
        let particles = iwae.unwrap_or(if trainer.settings().preset == Preset::Paper { 200 } else { 20 });
        let bound = match particles {
            0 => None,
            _ => {
                self.observer.go_on()?;
                let bounds = model.log_marginal(params, &self.measured, particles, self.rng());
                Some((bounds.iter().sum::<f64>() / bounds.len() as f64, particles))
            }
        };
        params.device().check()?;
        Ok(Some(Measured { images: drawn.len(), summary: Summary::of(&drawn), bound }))
    }
}

fn write_pictures(stem: &Path, drawn: &[Reconstruction]) -> Result<()> {
    reconstruct::write_png(&stem.with_extension("png"), drawn)?;
    reconstruct::write_svg(&stem.with_extension("svg"), drawn)
}

/// The plots of a run.
fn panels(metrics: &Metrics) -> Vec<Panel> {
    let panel = |title: &str, y_label: &str, lines: &[(&str, &str)]| Panel {
        title: title.into(),
        y_label: y_label.into(),
        series: lines
            .iter()
            .map(|(name, label)| (label.to_string(), metrics.points(name).unwrap_or_default()))
            .collect(),
    };
    vec![
        panel("Evidence lower bound", "nats per image", &[("elbo", "ELBO"), ("log_likelihood", "log-likelihood")]),
        panel(
            "KL per latent",
            "nats per image",
            &[("kl_onoff", "on/off"), ("kl_layout", "layouts"), ("kl_stroke", "strokes")],
        ),
        panel("Strokes per image", "strokes", &[("strokes", "")]),
        panel("Gradient norm", "", &[("gradient_norm", "")]),
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
}

impl Recent {
    fn new(batch: usize) -> Self {
        Recent { batch, updates: 0, last: Instant::now(), seconds_per_step: 0.0, means: [0.0; 3] }
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
