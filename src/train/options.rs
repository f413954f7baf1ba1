//! What a user asks for, and the run that follows from it.

use super::{Preset, Settings, settings_of};
use crate::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data::{Fit, Invert, Source},
    files::{self, quoted},
    model::{Config, Stop, Variant},
    ops::Placement,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What a user asks for. `None` means what [`Options::overrides`] say, else the preset's value, or in a resumed run the value of that
/// run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the images come from.
    pub data: Option<Source>,
    /// How images that are not square become square.
    pub fit: Option<Fit>,
    /// Whether dark and bright are exchanged.
    pub invert: Option<Invert>,
    /// The model's size and the settings that suit it.
    pub preset: Option<Preset>,
    /// Which model of the paper.
    pub model: Option<Variant>,
    /// How strokes get onto the canvas.
    pub placement: Option<Placement>,
    /// How the decision to stop is learned.
    pub stop: Option<Stop>,
    /// What a stroke costs beside its divergence, in nats.
    pub price: Option<f64>,
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
    /// Any other field, as a file gives it.
    pub overrides: Overrides,
    /// The run's folder; by default `runs/<data>-<preset>-<placement>`, for another model than DooD `runs/<data>-<preset>-<model>-<placement>`.
    pub out: Option<PathBuf>,
    /// Whether a run is begun or gone on with.
    pub resume: Resume,
    /// A checkpoint, or a run's folder, with whose model and parameters a new run begins.
    pub start: Option<PathBuf>,
    /// Fetch the data if they are not there.
    pub download: bool,
    /// Particles per image of the measurement at the end; 0 or 1 for a single drawing each.
    pub iwae: Option<usize>,
}

/// Where a run begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// With fresh parameters.
    #[default]
    No,
    /// At the newest checkpoint of the run's folder.
    Newest,
    /// At this checkpoint, in its own folder if no other is named. Newer ones there are set aside.
    From(PathBuf),
}

/// Single fields of [`Config`] and [`Settings`] by their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// Fields of the [`Config`].
    pub model: Map<String, Value>,
    /// Fields of the [`Settings`].
    pub run: Map<String, Value>,
}

/// A run that can be begun: everything is fixed, nothing has been written.
pub struct Plan {
    /// The model.
    pub config: Config,
    /// The run.
    pub settings: Settings,
    /// Its folder.
    pub folder: PathBuf,
    /// Whether the size of a batch was asked for; a default is made smaller for a small set.
    pub(super) exact_batch: bool,
    pub(super) from: From,
    pub(super) download: bool,
    pub(super) iwae: Option<usize>,
}

/// What a run's parameters are at first: of a file, that and its bytes.
pub(super) enum From {
    /// Fresh ones.
    Nothing,
    /// Those of another model.
    Model(PathBuf, Vec<u8>),
    /// Those of the run itself, of which this is a checkpoint.
    Run(PathBuf, Vec<u8>),
}

/// Settings in which a resumed run may not differ from what it was.
const IDENTITY: [&str; 9] = ["preset", "batch", "seed", "eager", "faint", "thicker", "augment", "fit", "invert"];

impl Plan {
    /// What `options` come to. Reads the checkpoint of a run that is to be resumed, and no data.
    ///
    /// # Errors
    /// [`Error::Usage`] for what cannot be, for a run that would overwrite another, and for one that would not be the one that is resumed;
    /// [`Error::Checkpoint`], with the newest checkpoint that still works.
    pub fn new(options: &Options) -> Result<Self> {
        match &options.resume {
            Resume::No => Plan::fresh(options),
            Resume::Newest => {
                let folder = options.folder()?;
                let newest = checkpoint::latest(&folder)?.ok_or_else(|| {
                    Error::Usage(format!(
                        "there is no checkpoint to resume from in {}: name the run's folder with --out, or leave --resume out",
                        folder.display()
                    ))
                })?;
                Plan::resumed(options, newest, folder)
            }
            Resume::From(path) => {
                if path.is_dir() {
                    let advice = format!("--resume --out {}", quoted(path));
                    return Err(Error::Usage(format!(
                        "{} is a folder: go on from its newest checkpoint with {advice}",
                        path.display()
                    )));
                }
                let beside = || {
                    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                    checkpoint::step_of_path(path).map(|_| folder.unwrap_or(Path::new(".")).to_owned())
                };
                let folder = options.out.clone().or_else(beside).ok_or_else(|| {
                    Error::Usage(format!("{} is not in the folder of a run: name a folder with --out", path.display()))
                })?;
                Plan::resumed(options, path.clone(), folder)
            }
        }
    }

    fn fresh(options: &Options) -> Result<Self> {
        let folder = options.folder()?;
        if let Some(path) = checkpoint::latest(&folder)? {
            return Err(Error::Usage(format!(
                "{} holds a run already: go on with it by adding --resume, or choose another folder with --out",
                path.display()
            )));
        }
        let preset = options.preset()?;
        let mut suited = preset.settings(&options.source()?);
        let (suits, from) = match &options.start {
            None => (preset.config(options.placement()?).with_variant(options.model()?), From::Nothing),
            Some(start) => {
                let path = checkpoint::find(start)?;
                let bytes = files::read(&path)?;
                // It can draw already.
                (suited.thicker, suited.start) = (0, format!("{}, SHA-256 {}", path.display(), files::sha256(&bytes)));
                (Checkpoint::parse(&bytes, &path.display().to_string())?.config().clone(), From::Model(path, bytes))
            }
        };
        let config = options.put_into(overlaid(&suits, &options.overrides.model, "model")?);
        if let From::Model(path, bytes) = &from {
            Checkpoint::parse(bytes, &path.display().to_string())?.check_start(&config)?;
        }
        let mut settings = overlaid(&suited, &options.overrides.run, "run")?;
        options.apply(&mut settings);
        settings.preset = preset;
        settings.data = settings.data.absolute()?;
        settings.digest.clear();
        let exact_batch = options.batch.is_some() || options.overrides.run.contains_key("batch");
        Plan { config, settings, folder, exact_batch, from, download: options.download, iwae: options.iwae }.checked()
    }

    fn resumed(options: &Options, path: PathBuf, folder: PathBuf) -> Result<Self> {
        let bytes = files::read(&path)?;
        let found = Checkpoint::parse(&bytes, &path.display().to_string()).and_then(|checkpoint| {
            let settings = settings_of(&checkpoint)?;
            // Whether the rest is whole is better known now than after the data were read.
            checkpoint.check_all()?;
            Ok((checkpoint.config().clone(), settings, checkpoint.updates()?))
        });
        let (saved_config, saved, updates) = found.map_err(|error| checkpoint::with_advice(error, &path))?;
        if options.start.is_some() {
            return Err(Error::Usage("a run that is resumed has begun already: leave --start out".into()));
        }
        let config = options.put_into(overlaid(&saved_config, &options.overrides.model, "model")?);
        let mut wished = overlaid(&saved, &options.overrides.run, "run")?;
        options.apply(&mut wished);
        let mut differences = differences(&config, &saved_config, None);
        differences.extend(self::differences(&wished, &saved, Some(&IDENTITY)));
        if wished.data.word() != saved.data.word() {
            differences.push(format!("data {} instead of {}", wished.data.word(), saved.data.word()));
        }
        if !differences.is_empty() {
            return Err(Error::Usage(format!(
                "{} belongs to another run: {}; leave these options out to resume it, or start anew with another --out",
                path.display(),
                few(&differences)
            )));
        }
        if updates >= wished.steps {
            return Err(Error::Usage(format!(
                "the run in {} has made its {updates} steps: give a larger number with --steps to go on",
                folder.display(),
            )));
        }
        let other = path.parent().is_none_or(|own| !same_folder(own, &folder));
        if let Some(there) = checkpoint::latest(&folder)?.filter(|_| other) {
            return Err(Error::Usage(format!(
                "{} holds another run already: choose another folder with --out",
                there.display()
            )));
        }
        wished.data = wished.data.absolute()?;
        (wished.images, wished.digest) = (saved.images, saved.digest);
        Plan {
            config,
            settings: wished,
            folder,
            exact_batch: true,
            from: From::Run(path, bytes),
            download: options.download,
            iwae: options.iwae,
        }
        .checked()
    }

    fn checked(self) -> Result<Self> {
        self.config.check()?;
        super::check_settings(&self.settings)?;
        Ok(self)
    }
}

impl Options {
    /// The run's folder.
    ///
    /// # Errors
    /// [`Error::Usage`] for overrides that cannot be read.
    pub fn folder(&self) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            return Ok(out.clone());
        }
        let placement = if self.placement()? == Placement::Warp { "warp" } else { "points" };
        let model = match self.model()? {
            Variant::Dood => String::new(),
            other => format!("-{other}"),
        };
        Ok(Path::new("runs").join(format!("{}-{}{model}-{placement}", self.source()?.word(), self.preset()?)))
    }

    fn source(&self) -> Result<Source> {
        chosen(&self.data, &self.overrides.run, "run", "data", Source::Synthetic)
    }

    fn preset(&self) -> Result<Preset> {
        chosen(&self.preset, &self.overrides.run, "run", "preset", Preset::default())
    }

    fn model(&self) -> Result<Variant> {
        chosen(&self.model, &self.overrides.model, "model", "variant", Variant::default())
    }

    fn placement(&self) -> Result<Placement> {
        chosen(&self.placement, &self.overrides.model, "model", "placement", Placement::Warp)
    }

    /// `config` with what the user asked for one by one.
    fn put_into(&self, config: Config) -> Config {
        Config {
            placement: self.placement.unwrap_or(config.placement),
            variant: self.model.unwrap_or(config.variant),
            stop: self.stop.unwrap_or(config.stop),
            price: self.price.unwrap_or(config.price),
            ..config
        }
    }

    /// Puts what the user asked for one by one into `settings`.
    fn apply(&self, settings: &mut Settings) {
        fn set<T: Clone>(value: &mut T, wish: &Option<T>) {
            if let Some(wish) = wish {
                value.clone_from(wish);
            }
        }
        set(&mut settings.data, &self.data);
        set(&mut settings.fit, &self.fit);
        set(&mut settings.invert, &self.invert);
        set(&mut settings.preset, &self.preset);
        set(&mut settings.steps, &self.steps);
        set(&mut settings.batch, &self.batch);
        set(&mut settings.seed, &self.seed);
        set(&mut settings.log_every, &self.log_every);
        set(&mut settings.picture_every, &self.picture_every);
        set(&mut settings.checkpoint_every, &self.checkpoint_every);
        if let Some(rate) = self.learning_rate {
            // The others of the model keep their share.
            for group in [2, 3, 0] {
                settings.rates[group] *= rate / settings.rates[0];
            }
        }
        set(&mut settings.rates[2], &self.onoff_rate);
    }
}

/// What was asked for in so many words, else in a file, else the default.
fn chosen<T: Clone + DeserializeOwned>(
    wish: &Option<T>,
    fields: &Map<String, Value>,
    table: &str,
    field: &str,
    default: T,
) -> Result<T> {
    match (wish, fields.get(field)) {
        (Some(wish), _) => Ok(wish.clone()),
        (None, Some(value)) => T::deserialize(value).map_err(|e| wrong_field(table, field, value, &e)),
        (None, None) => Ok(default),
    }
}

fn wrong_field(table: &str, field: &str, value: &Value, error: &serde_json::Error) -> Error {
    Error::Usage(format!("{field} in the table [{table}] cannot be {value}: {error}"))
}

/// `base` with some fields replaced.
fn overlaid<T: Serialize + DeserializeOwned>(base: &T, fields: &Map<String, Value>, table: &str) -> Result<T> {
    let mut value = serde_json::to_value(base).expect("plain data can be written as JSON");
    for (field, new) in fields {
        let object = value.as_object_mut().expect("a struct is an object");
        if !object.contains_key(field) {
            let known: Vec<&str> = object.keys().map(String::as_str).collect();
            return Err(Error::Usage(format!(
                "there is no {field} in the table [{table}]; its fields are {}",
                known.join(", ")
            )));
        }
        object.insert(field.clone(), new.clone());
        // One at a time, so that the sentence can name the field.
        T::deserialize(&value).map_err(|e| wrong_field(table, field, new, &e))?;
    }
    Ok(T::deserialize(value).expect("every field was tried"))
}

/// In which fields (all, or some of them) two values differ.
fn differences<T: Serialize>(wished: &T, saved: &T, fields: Option<&[&str]>) -> Vec<String> {
    let [wished, saved] = [wished, saved].map(|v| serde_json::to_value(v).expect("plain data can be written as JSON"));
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let saved = saved.as_object().expect("a struct is an object");
    saved
        .iter()
        .filter(|(field, value)| fields.is_none_or(|some| some.contains(&field.as_str())) && wished[*field] != **value)
        .map(|(field, value)| format!("{field} {} instead of {}", shown(&wished[field]), shown(value)))
        .collect()
}

fn few(differences: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = differences.len().saturating_sub(SHOWN);
    let shown = differences[..differences.len().min(SHOWN)].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn same_folder(a: &Path, b: &Path) -> bool {
    let place = |folder: &Path| {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        folder.canonicalize().ok()
    };
    place(a).is_some() && place(a) == place(b)
}
