//! Options that several programs have.

use clap::builder::{OsStringValueParser, TypedValueParser};
use dood::{
    Device, Error, MathMode, Observer, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Fit, Images, Invert, Source},
    files,
    train::reading_of,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Where to compute.
#[derive(clap::Args, Clone, Debug)]
pub struct Compute {
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Matrix products on a GPU: f32, or rounded to tf32 or bf16 for the tensor cores, which is faster
    #[arg(long, default_value = "f32", value_name = "MODE")]
    pub math: MathMode,
    /// CPU threads; results do not depend on their number [default: all]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl Compute {
    /// Starts the threads and opens the device.
    pub fn open(&self, observer: &dyn Observer) -> Result<Device> {
        self.start_threads()?;
        Device::open(&self.device, self.math, observer)
    }

    /// For work that needs no device.
    pub fn start_threads(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
            pool.map_err(|e| {
                Error::Usage(format!("{threads} threads cannot be started ({e}): use fewer with --threads"))
            })?;
        }
        Ok(())
    }

    /// The options that choose the same again, without those that are at their defaults.
    pub fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec![];
        let mut add = |name: &str, value: String| words.extend([name.into(), value.into()]);
        if self.device != "auto" {
            add("--device", self.device.clone());
        }
        if self.math != MathMode::F32 {
            add("--math", self.math.to_string());
        }
        if let Some(threads) = self.threads {
            add("--threads", threads.to_string());
        }
        words
    }
}

/// Which images.
#[derive(clap::Args, Clone, Debug)]
pub struct Data {
    /// Images to draw: mnist, kmnist, emnist, quickdraw or omniglot, each with an optional folder as in mnist:FOLDER;
    /// images:FOLDER for your own pictures, or images:FILE for one (PNG, JPEG, GIF, BMP); idx:FOLDER for IDX files; synthetic
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    pub source: Source,
    #[command(flatten)]
    pub reading: Reading,
    /// From which part of the set
    #[arg(long, default_value = "test")]
    pub split: Split,
}

/// How images are read.
#[derive(clap::Args, Clone, Debug)]
pub struct Reading {
    /// Fetch the data from their official address if they are not there
    #[arg(long)]
    pub download: bool,
    /// How images that are not square become square: pad, crop or stretch [default: pad, or as for what a model has learned from]
    #[arg(long, value_parser = word::<Fit>)]
    pub fit: Option<Fit>,
    /// Exchange dark and bright, as models draw bright ink on black: auto, yes or no [default: auto, or as for what a model has
    /// learned from, where that is of the same kind]
    #[arg(long, value_parser = word::<Invert>)]
    pub invert: Option<Invert>,
}

/// A part of a set.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "training",
            Split::Test => "test",
        }
    }
}

impl Reading {
    /// For images of `side` x `side` pixels, with the defaults for what was not asked for.
    pub fn options(&self, side: usize) -> data::Options {
        let (fit, invert) = (self.fit.unwrap_or_default(), self.invert.unwrap_or_default());
        data::Options { download: self.download, fit, invert, ..data::Options::new(side) }
    }

    /// For images of `source` that the model of a checkpoint, or of a run's folder, is shown: what was not asked for is as in its
    /// training, which is said if it is not the default.
    pub fn for_model(&self, model: &Path, source: &Source, observer: &dyn Observer) -> Result<data::Options> {
        let path = checkpoint::find(model)?;
        let bytes = files::read(&path)?;
        let checkpoint = Checkpoint::parse(&bytes, &path.display().to_string())?;
        let (fit, invert) = reading_of(&checkpoint, source);
        let mut taken = vec![];
        if self.fit.is_none() && fit != Fit::default() {
            taken.push(format!("--fit {}", written(fit)));
        }
        if self.invert.is_none() && invert != Invert::default() {
            taken.push(format!("--invert {}", written(invert)));
        }
        if !taken.is_empty() {
            observer.note(&format!("Images are read as those that the model has learned from: {}.", taken.join(" ")));
        }
        let reading = Reading { fit: self.fit.or(Some(fit)), invert: self.invert.or(Some(invert)), ..*self };
        Ok(reading.options(checkpoint.config().image))
    }
}

impl Data {
    /// Reads the images as the model of a checkpoint is shown them.
    pub fn load_for(&self, model: &Path, observer: &dyn Observer) -> Result<Images> {
        self.load(&self.reading.for_model(model, &self.source, observer)?, observer)
    }

    /// Reads the images.
    pub fn load(&self, options: &data::Options, observer: &dyn Observer) -> Result<Images> {
        let set = data::load_or_fetch(&self.source, options, observer)?;
        Ok(match self.split {
            Split::Train => set.train,
            Split::Test => set.test,
        })
    }
}

/// Reads a value that is written as one word, as in checkpoints.
pub fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

/// The word with which [`word`] reads a value.
fn written<T: serde::Serialize>(value: T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Takes the path of a checkpoint or of a run, or the name of a model that ships in the repository.
pub fn checkpoint() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|word| {
        let path = PathBuf::from(&word);
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let shipped = models.join(&word).with_extension("safetensors");
        let bare = path.components().count() == 1 && path.extension().is_none();
        if !bare || path.exists() {
            return Ok(path);
        }
        if shipped.is_file() {
            return Ok(shipped);
        }
        let mut names: Vec<String> =
            std::fs::read_dir(models).into_iter().flatten().flatten().filter_map(stem).collect();
        names.sort();
        let ship = if names.is_empty() { "none ships here".into() } else { format!("{} ship", names.join(", ")) };
        Err(format!("there is neither a file or folder nor a model of that name ({ship})"))
    })
}

/// The name of a model from its file.
fn stem(file: std::fs::DirEntry) -> Option<String> {
    let path = file.path();
    (path.extension()? == "safetensors").then(|| Some(path.file_stem()?.to_str()?.to_owned()))?
}

/// Takes a folder as it is, also where its name is not UTF-8.
pub fn source() -> impl TypedValueParser<Value = Source> {
    OsStringValueParser::new().try_map(Source::try_from)
}
