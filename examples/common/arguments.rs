//! Options that several programs have.

use clap::builder::{OsStringValueParser, TypedValueParser};
use dood::{
    Device, MathMode, Result,
    data::{self, Source},
};
use std::ffi::OsString;

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
    pub fn open(&self) -> Result<Device> {
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
            pool.expect("nothing has used the threads before");
        }
        Device::from_name(&self.device, self.math)
    }

    /// The options that choose the same again, without those that are at their defaults.
    pub fn words(&self) -> Vec<OsString> {
        let default = clap_default();
        let mut words: Vec<OsString> = vec![];
        let mut add = |name: &str, value: String| words.extend([name.into(), value.into()]);
        if self.device != default.device {
            add("--device", self.device.clone());
        }
        if self.math != default.math {
            add("--math", self.math.to_string());
        }
        if let Some(threads) = self.threads {
            add("--threads", threads.to_string());
        }
        words
    }
}

fn clap_default() -> Compute {
    Compute { device: "auto".into(), math: MathMode::F32, threads: None }
}

/// Which images.
#[derive(clap::Args, Clone, Debug)]
pub struct Data {
    /// Images to draw: mnist, kmnist, emnist, quickdraw or omniglot, each with an optional folder as in mnist:FOLDER;
    /// idx:FOLDER; synthetic
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    pub source: Source,
    /// Fetch the data from their official address if they are not there
    #[arg(long)]
    pub download: bool,
}

impl Data {
    /// How they are read, as images of `side` x `side` pixels.
    pub fn options(&self, side: usize) -> data::Options {
        data::Options { download: self.download, ..data::Options::new(side) }
    }
}

/// Takes a folder as it is, also where its name is not UTF-8.
pub fn source() -> impl TypedValueParser<Value = Source> {
    OsStringValueParser::new().try_map(Source::try_from)
}
