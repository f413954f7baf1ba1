//! A whole training run: data, progress, metrics, pictures, checkpoints, interruption.

use super::{Preset, Report, Settings, Trainer, pixels, settings_of};
use crate::{
    Device, Error, Result, Tensor,
    checkpoint::{self, Checkpoint},
    data::{self, Images, Source},
    figures::{Panel, plot_svg},
    files,
    metrics::{EventFile, Metrics, MetricsFile},
    observer::Silent,
    ops::Placement,
    reconstruct::{self, Reconstruction, Summary, reconstruct},
    rng::Rng,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fs::{File, TryLockError},
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps were made.
    Finished,
    /// The user stopped it; a checkpoint was saved.
    Interrupted,
}

/// Checkpoints that are kept: more than one, in case the newest turns out to be the start of a divergence.
const KEEP: usize = 3;
/// Images in a picture.
const PICTURED: usize = 12;
/// Images of the bound at the end.
const MEASURED: usize = 64;
/// Updates between two looks at Ctrl-C and the bar, on a GPU.
const MOST_AT_ONCE: u64 = 100;
/// Without a terminal, a line of progress appears this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

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

/// Trains a model in a folder, from the start or from its newest checkpoint, and says on the way how it goes.
///
/// The first Ctrl-C ends the run after the current step with a checkpoint, the second ends the program.
pub fn run(options: &Options, device: &Device) -> Result<Outcome> {
    let folder = options.folder();
    let newest = checkpoint::latest(&folder)?;
    let (trainer, test) = match (newest, options.resume) {
        (Some(path), true) => resumed(options, &path, device)?,
        (None, false) => fresh(options, device)?,
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
    Run::new(trainer, folder, &test)?.finish(options.iwae)
}

fn fresh(options: &Options, device: &Device) -> Result<(Trainer, Images)> {
    let source = options.source();
    let preset = options.preset.unwrap_or_default();
    let config = preset.config(options.placement());
    let mut settings = preset.settings(&source);
    options.change(&mut settings);
    settings.batch = options.batch.unwrap_or(settings.batch);
    settings.seed = options.seed.unwrap_or(settings.seed);
    let data = data::load_or_fetch(&source, &options.reading(config.image), &Silent)?;
    Ok((Trainer::new(&config, settings, data.train, device)?, data.test))
}

fn resumed(options: &Options, path: &Path, device: &Device) -> Result<(Trainer, Images)> {
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
    let data = data::load_or_fetch(&source, &options.reading(config.image), &Silent)?;
    let trainer = Trainer::resume(&checkpoint, data.train, device, |settings| options.change(settings))?;
    if trainer.updates() >= trainer.settings().steps {
        return Err(Error::Usage(format!(
            "the run in {} has made its {} steps: give a larger number with --steps to go on",
            path.parent().unwrap_or(path).display(),
            trainer.updates()
        )));
    }
    eprintln!("Going on from {}.", path.display());
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

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

fn watch_for_interruption() {
    STOP.store(false, Ordering::Relaxed);
    let mut since = Instant::now();
    // There is one handler per process; a second run in the same process finds it in place.
    let _ = ctrlc::set_handler(move || {
        if !STOP.swap(true, Ordering::Relaxed) {
            since = Instant::now();
            eprintln!("\nStopping after this step; once more to stop at once.");
        } else if since.elapsed() > Duration::from_secs(1) {
            // Not before: some programs pass one Ctrl-C on as two.
            std::process::exit(130);
        }
    });
}

/// The parts of a run.
struct Run {
    trainer: Trainer,
    folder: PathBuf,
    /// Some test images: they are the same throughout.
    pictured: Tensor,
    measured: Tensor,
    metrics: MetricsFile,
    events: EventFile,
    progress: Progress,
}

impl Run {
    fn new(trainer: Trainer, folder: PathBuf, test: &Images) -> Result<Self> {
        let names = [&Report::NAMES[..], &["images_per_s"]].concat();
        let next = if trainer.updates() == 0 { 0 } else { trainer.updates() + 1 };
        let (metrics, events) =
            (MetricsFile::open(&folder.join("metrics.csv"), &names, next)?, EventFile::create(&folder, next)?);
        // Sets are often sorted, so the images are taken from everywhere.
        let device = trainer.params().device();
        let spread =
            |n: usize| pixels(test, (0..n.min(test.len())).map(|i| i * test.len() / n.min(test.len())), device);
        let (pictured, measured) = (spread(PICTURED), spread(MEASURED));
        let progress = Progress::new(&trainer);
        Ok(Run { trainer, folder, pictured, measured, metrics, events, progress })
    }

    /// Everything from here to the end.
    fn finish(mut self, iwae: Option<usize>) -> Result<Outcome> {
        watch_for_interruption();
        eprintln!("{}", self.describe());
        while self.trainer.updates() < self.trainer.settings().steps {
            self.step()?;
            if STOP.load(Ordering::Relaxed) {
                self.checkpoint()?;
                self.progress.clear();
                println!("Stopped after step {}. To go on:\n  {}", self.trainer.updates(), self.command());
                return Ok(Outcome::Interrupted);
            }
        }
        self.checkpoint()?;
        self.pictures()?;
        self.progress.clear();
        self.summary(iwae);
        self.trainer.params().device().check()?;
        Ok(Outcome::Finished)
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
        for (report, step) in reports.iter().zip(step + 1 - reports.len() as u64..) {
            self.progress.step(step, report, reports.len());
        }
        let report = reports.last().expect("at least one step");
        if step == 1 || step.is_multiple_of(settings.log_every) {
            let rate = self.progress.images_per_s();
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

    /// What continues this run, as typed.
    fn command(&self) -> String {
        let program = std::env::args().next().unwrap_or_else(|| "train".into());
        let folder = self.folder.display().to_string();
        let plain = folder.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
        let folder = if plain { folder } else { format!("'{}'", folder.replace('\'', "'\\''")) };
        format!("{program} --resume --out {folder}")
    }

    /// What was reached, where it is, and what to do next.
    fn summary(&self, iwae: Option<usize>) {
        let (trainer, folder) = (&self.trainer, self.folder.display());
        let (model, params) = (trainer.model(), trainer.params());
        let drawn = reconstruct(model, params, &self.measured, 1, self.rng());
        let Summary { log_likelihood, elbo, strokes } = Summary::of(&drawn);
        println!("{} steps made.", trainer.updates());
        println!("On {} test images, in nats per image:", drawn.len());
        println!("  log-likelihood     {log_likelihood:10.1}");
        println!("  ELBO               {elbo:10.1}");
        let particles = iwae.unwrap_or(if trainer.settings().preset == Preset::Paper { 200 } else { 20 });
        if particles > 0 {
            let bounds = model.log_marginal(params, &self.measured, particles, self.rng());
            let bound = bounds.iter().sum::<f64>() / bounds.len() as f64;
            println!("  IWAE bound         {bound:10.1}   ({particles} particles)");
        }
        println!("  strokes per image  {strokes:10.2}");
        let checkpoint = checkpoint::path(&self.folder, trainer.updates());
        println!("\nPictures    {folder}/reconstruction.png, and as curves reconstruction.svg");
        println!("Curves      {folder}/metrics.svg, from metrics.csv; or tensorboard --logdir {folder}");
        println!("Checkpoint  {}", checkpoint.display());
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

/// A bar on a terminal, else a line now and then.
struct Progress {
    bar: Option<ProgressBar>,
    batch: usize,
    total: u64,
    began: Instant,
    first: u64,
    last_step: Instant,
    /// Steps still to be shown of those that were made at once, and how long each took.
    together: usize,
    seconds_each: f64,
    last_line: Option<Instant>,
    seconds_per_step: f64,
    smooth: [f64; 3],
}

impl Progress {
    fn new(trainer: &Trainer) -> Self {
        let (settings, first) = (trainer.settings(), trainer.updates());
        let bar = io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta} left").expect("a valid template");
            let bar = ProgressBar::with_draw_target(Some(settings.steps), ProgressDrawTarget::stderr_with_hz(4));
            bar.with_style(style).with_position(first)
        });
        let now = Instant::now();
        Progress {
            bar,
            batch: settings.batch,
            total: settings.steps,
            began: now,
            first,
            last_step: now,
            together: 0,
            seconds_each: 0.0,
            last_line: None,
            seconds_per_step: 0.0,
            smooth: [0.0; 3],
        }
    }

    /// Shows exponential averages over about 20 steps.
    ///
    /// `together`: how many steps were made since the host last looked; the first of them tells how long they took.
    fn step(&mut self, step: u64, report: &Report, together: usize) {
        if self.together == 0 {
            (self.together, self.seconds_each) = (together, self.last_step.elapsed().as_secs_f64() / together as f64);
            self.last_step = Instant::now();
        }
        self.together -= 1;
        let seconds = self.seconds_each;
        let weight = (1.0 / (step - self.first) as f64).max(0.05);
        let update = |old: &mut f64, new: f64| *old += weight * (new - *old);
        update(&mut self.seconds_per_step, seconds);
        let shown = [report.elbo, report.log_likelihood, report.strokes];
        self.smooth.iter_mut().zip(shown).for_each(|(old, new)| update(old, new.into()));
        let [elbo, log_likelihood, strokes] = self.smooth;
        let rate = self.images_per_s();
        let message = format!("ELBO {elbo:.1}  log-lik {log_likelihood:.1}  strokes {strokes:.2}  {rate:.0} images/s");
        match &self.bar {
            Some(bar) => {
                bar.set_position(step);
                bar.set_message(message);
            }
            None if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || step == self.total => {
                self.last_line = Some(Instant::now());
                let left = self.began.elapsed().as_secs_f64() / (step - self.first) as f64 * (self.total - step) as f64;
                eprintln!(
                    "step {step}/{}  {message}  {} left",
                    self.total,
                    indicatif::HumanDuration(Duration::from_secs_f64(left))
                );
            }
            None => {}
        }
    }

    fn images_per_s(&self) -> f32 {
        (self.batch as f64 / self.seconds_per_step) as f32
    }

    fn clear(&self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}
