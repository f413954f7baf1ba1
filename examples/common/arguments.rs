//! Options that several programs have.

use clap::builder::{OsStringValueParser, TypedValueParser};
use dood::{
    Device, Error, MathMode, Observer, Result,
    data::{self, Fit, Images, Invert, Source},
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
    /// How images that are not square become square: pad, crop or stretch [default: pad]
    #[arg(long, value_parser = word::<Fit>)]
    pub fit: Option<Fit>,
    /// Exchange dark and bright, as models draw bright ink on black: auto, yes or no [default: auto]
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

impl Data {
    /// Reads the images, of `side` x `side` pixels.
    pub fn load(&self, side: usize, observer: &dyn Observer) -> Result<Images> {
        let Reading { download, fit, invert } = self.reading;
        let (fit, invert) = (fit.unwrap_or_default(), invert.unwrap_or_default());
        let options = data::Options { download, fit, invert, ..data::Options::new(side) };
        let set = data::load_or_fetch(&self.source, &options, observer)?;
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
