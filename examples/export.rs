//! Makes of a training run a model to share: parameters in half precision, and what one wants to know of them.

mod common;

use clap::Parser;
use common::{Compute, Reading, Screen, say};
use dood::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data,
    eval::Artist,
    files::{self, quoted},
    measure::{pixels, spread},
    rng::Rng,
    train::settings_of,
};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Makes of a training run a model to share: a safetensors file of its parameters in half precision, with the set and the recipe that
/// it has learned by, and the pen that it draws with by itself.
#[derive(Parser)]
#[command(after_help = "\
Example:
  export --checkpoint runs/mnist-hour-warp --out models/mnist.safetensors
  generate --checkpoint models/mnist.safetensors

No run can be resumed from such a file, but a new one can begin with it (train --start).")]
struct Arguments {
    /// A checkpoint of a run, or its folder for the newest one
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    compute: Compute,
}

fn export(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let out = &arguments.out;
    if out.extension().is_none_or(|kind| kind != "safetensors") {
        return Err(Error::Usage(format!("--out {} must end in .safetensors", quoted(out))));
    }
    common::check_file(out)?;
    let path = checkpoint::find(&arguments.checkpoint)?;
    let bytes = files::read(&path)?;
    let run = Checkpoint::parse(&bytes, &path.display().to_string())?;
    let (settings, updates) = (settings_of(&run)?, run.updates()?);
    let artist = Artist::open(&path, &arguments.compute.open(screen)?)?;
    let options = arguments.reading.for_model(&path, &settings.data, screen)?;
    let images = data::load_or_fetch(&settings.data, &options, screen)?.train;
    let x = pixels(&images, spread(common::generation::MEASURED, images.len()), artist.params.device());
    let pen = artist.median_pen(&x, Rng::new(0, u64::MAX))?;
    let about = json!({
        "learned_from": settings.data.word(),
        "images": settings.images,
        "updates": updates,
        "pen": pen,
        "settings": { "preset": settings.preset, "fit": options.fit, "invert": options.invert, "seed": settings.seed, "batch": settings.batch, "rates": settings.rates,
            "warmup": settings.warmup, "decay": settings.decay, "clip": settings.clip, "thicker": settings.thicker, "augment": settings.augment, "steps": settings.steps },
    });
    checkpoint::export(out, &artist.model.config, &artist.params, &about)?;
    let bytes = files::read(out)?.len() as f64;
    say!(
        "Written: {} ({:.1} million parameters, {:.1} MB)",
        quoted(out),
        artist.params.values() as f64 / 1e6,
        bytes / 1e6
    );
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(export)
}
