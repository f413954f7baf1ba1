//! Trains a model: `cargo run --release --example train` needs nothing else.

mod common;

use clap::Parser;
use common::{Compute, STOPPED, Screen, quoted, say};
use dood::{
    Result,
    data::Source,
    ops::Placement,
    train::{self, Ended, Measured, Options, Preset},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Trains a model that learns to draw images stroke by stroke.
///
/// Without any option it learns from synthetic strokes for a few minutes, and then says where everything is.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  train                                          a small model on synthetic strokes
  train --data mnist --download                  a small model on MNIST, fetched on first use
  train --data idx:FOLDER --steps 5000           on your own images, in the format of MNIST
  train --preset paper --data mnist              as published: days on a GPU
  train --resume --out runs/mnist-quick-warp     go on with a run that was stopped

Files in the run's folder:
  reconstruction.png, .svg    test images as the model draws them; older ones are in history/
  metrics.csv, metrics.svg    how training went; also for TensorBoard: tensorboard --logdir FOLDER
  checkpoint-*.safetensors    parameters and state; the newest three are kept

Ctrl-C saves a checkpoint before it stops.")]
struct Arguments {
    /// Images to learn from: mnist, kmnist, emnist, quickdraw or omniglot, each with an optional folder as in mnist:FOLDER;
    /// idx:FOLDER; synthetic [default: synthetic]
    #[arg(long, value_name = "SOURCE", value_parser = common::source())]
    data: Option<Source>,
    /// Fetch the data from their official address if they are not there
    #[arg(long)]
    download: bool,
    /// Model size and settings: quick (minutes) or paper (as published) [default: quick]
    #[arg(long, value_parser = word::<Preset>)]
    preset: Option<Preset>,
    /// How strokes get onto the canvas: warp (drawn in a window, then warped) or points (control points are moved) [default: warp]
    #[arg(long, value_parser = word::<Placement>)]
    placement: Option<Placement>,
    /// Updates to make in total [default: 3600, paper 500001]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Images per update [default: 32, paper 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Key of all random numbers: the same seed gives the same run, bit for bit [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Learning rate of the model
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Learning rate of the decision to stop (the paper's text says 0.001, its code used that of the model)
    #[arg(long, value_name = "RATE")]
    onoff_rate: Option<f64>,
    /// Folder for everything the run writes [default: runs/DATA-PRESET-PLACEMENT]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder
    #[arg(long)]
    resume: bool,
    /// Updates between checkpoints
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,
    /// Updates between pictures
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    picture_every: Option<u64>,
    /// Updates between rows of metrics
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    log_every: Option<u64>,
    /// Particles of the bound on log p(x) estimated at the end, 0 for none [default: 20, paper 200]
    #[arg(long, value_name = "PARTICLES")]
    iwae: Option<usize>,
    #[command(flatten)]
    compute: Compute,
}

/// Reads a value that is written as one word, as in checkpoints.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

fn train(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let options = Options {
        data: arguments.data,
        preset: arguments.preset,
        placement: arguments.placement,
        steps: arguments.steps,
        batch: arguments.batch.map(|batch| batch as usize),
        seed: arguments.seed,
        learning_rate: arguments.learning_rate,
        onoff_rate: arguments.onoff_rate,
        log_every: arguments.log_every,
        picture_every: arguments.picture_every,
        checkpoint_every: arguments.checkpoint_every,
        out: arguments.out,
        resume: arguments.resume,
        download: arguments.download,
        iwae: arguments.iwae,
    };
    let ended = train::run(&options, &arguments.compute.open()?, screen)?;
    Ok(match ended.measured {
        Some(measured) => {
            summary(&ended, &measured);
            ExitCode::SUCCESS
        }
        None => {
            say!("Stopped after step {}. To go on:", ended.updates);
            say!("  {}", command(&ended.folder, &arguments.compute));
            ExitCode::from(STOPPED)
        }
    })
}

/// What continues a run, as typed.
fn command(folder: &Path, compute: &Compute) -> String {
    let program = std::env::args_os().next().unwrap_or_else(|| "train".into());
    let mut words = vec![program, "--resume".into(), "--out".into(), folder.into()];
    words.extend(compute.words());
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// What was reached, where it is, and what to do next.
fn summary(ended: &Ended, measured: &Measured) {
    let folder = ended.folder.display();
    say!("{} steps made.", ended.updates);
    say!("On {} test images, in nats per image:", measured.images);
    say!("  log-likelihood     {:10.1}", measured.summary.log_likelihood);
    say!("  ELBO               {:10.1}", measured.summary.elbo);
    if let Some((bound, particles)) = measured.bound {
        say!("  IWAE bound         {bound:10.1}   ({particles} particles)");
    }
    say!("  strokes per image  {:10.2}", measured.summary.strokes);
    say!("\nPictures    {folder}/reconstruction.png, and as curves reconstruction.svg");
    say!("Curves      {folder}/metrics.svg, from metrics.csv; or tensorboard --logdir {folder}");
    say!("Checkpoint  {}", ended.checkpoint.display());
}

fn main() -> ExitCode {
    common::main(train)
}
