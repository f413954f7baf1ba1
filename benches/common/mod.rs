//! What the benches read from the command line, and how they take times.
#![allow(dead_code)]

pub mod clock;

use dood::{Device, MathMode};
use std::{fmt::Debug, str::FromStr};

/// Runs a bench; an error is a sentence and an exit code, as in the programs.
pub fn main(run: fn() -> dood::Result<()>) {
    if let Err(error) = run() {
        eprintln!("error: {error}");
        std::process::exit(error.exit_code().into());
    }
}

/// `--name value` and `--flag`; others, which cargo adds, are passed over.
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn new() -> Self {
        Arguments(std::env::args().collect())
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|a| a == name)
    }

    pub fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|a| a == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    pub fn parse<T: FromStr<Err: Debug>>(&self, name: &str) -> Option<T> {
        self.value(name).map(|text| text.parse().unwrap_or_else(|e| panic!("{name} {text}: {e:?}")))
    }

    /// `--device auto|cpu|cuda|cuda:N`, by default the CPU, and `--math f32|tf32|bf16`. Starts `--threads N` threads, by default all.
    pub fn device(&self) -> dood::Result<Device> {
        let threads = self.parse("--threads").unwrap_or(0);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("thread pool");
        let math = self.value("--math").map_or(Ok(MathMode::F32), str::parse)?;
        Device::from_name(self.value("--device").unwrap_or("cpu"), math)
    }
}

/// Whether kernels run on a GPU: then work is only asked for, and [`Device::check`] waits for it.
pub fn is_gpu(device: &Device) -> bool {
    *device != Device::cpu()
}
