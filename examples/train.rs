//! Trains a model: `cargo run --release --example train` needs nothing else.

mod common;

use clap::Parser;
use common::{Compute, Reading, STOPPED, Screen, config, say, word};
use dood::{
    Device, Error, Observer, Result,
    data::Source,
    files::quoted,
    measure::Measured,
    model::{Stop, Variant},
    ops::Placement,
    ranks::{Launcher, Place, Ranks},
    train::{Ended, Options, Plan, Preset, Resume},
};
use std::{
    ffi::OsString,
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
  train --data images:FOLDER --steps 5000        on your own pictures; idx:FOLDER for the format of MNIST
  train --preset hour --data mnist               published quality in an hour or so
  train --preset paper --data mnist              as published: days on a GPU
  train --start mnist --data images:FOLDER       a model that draws digits learns your own pictures
  train --resume --out runs/mnist-quick-warp     go on with a run that was stopped
  train --gpus 4                                 on four GPUs of this machine; also with torchrun, srun, mpirun
  train --print-config > mine.toml               every size and setting, to be changed
  train --config mine.toml                       a run with them

Files in the run's folder:
  reconstruction.png, .svg    test images as the model draws them; older ones are in history/
  metrics.csv, metrics.svg    how training went; also for TensorBoard: tensorboard --logdir FOLDER
  checkpoint-*.safetensors    parameters and state; the newest three are kept

Ctrl-C saves a checkpoint before it stops.")]
struct Arguments {
    /// Images to learn from: mnist, kmnist, emnist, quickdraw or omniglot, each with an optional folder as in mnist:FOLDER;
    /// images:FOLDER for your own pictures (PNG, JPEG, GIF, BMP); idx:FOLDER for IDX files; synthetic [default: synthetic]
    #[arg(long, value_name = "SOURCE", value_parser = common::source())]
    data: Option<Source>,
    #[command(flatten)]
    reading: Reading,
    /// Model size and settings: quick (minutes), hour (published quality in an hour or so) or paper (as published) [default: quick]
    #[arg(long, value_parser = word::<Preset>)]
    preset: Option<Preset>,
    /// Which model of the paper: dood, sp (fixed prior), eg (no guidance), dr (no renderer), air or dair [default: dood]
    #[arg(long)]
    model: Option<Variant>,
    /// How strokes get onto the canvas: warp (drawn in a window, then warped) or points (control points are moved) [default: warp]
    #[arg(long, value_parser = word::<Placement>)]
    placement: Option<Placement>,
    /// How the decision to stop is learned: nvil (sampled, with a baseline network, as published) or exact (the mean over all ends)
    /// [default: exact, paper nvil]
    #[arg(long, value_parser = word::<Stop>)]
    stop: Option<Stop>,
    /// What a stroke costs beside its divergence, in nats: the dearer, the fewer are drawn [default: 0]
    #[arg(long, value_name = "NATS")]
    price: Option<f64>,
    /// Updates to make in total [default: 4000, paper 500001]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Images per update [default: 32, others 64]
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
    /// Folder for everything the run writes [default: runs/DATA-PRESET-PLACEMENT, with another model than dood runs/DATA-PRESET-MODEL-PLACEMENT]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the folder, or from this one
    #[arg(long, value_name = "FILE")]
    resume: Option<Option<PathBuf>>,
    /// Begin a new run with the model of this checkpoint, run or name of a model that ships (mnist, …), on whatever data
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    start: Option<PathBuf>,
    /// A TOML file with any sizes and settings, in the tables [model] and [run]; other options have precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print all sizes and settings that would be used, as such a file, and stop
    #[arg(long)]
    print_config: bool,
    /// Updates between checkpoints
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,
    /// Updates between pictures
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    picture_every: Option<u64>,
    /// Updates between rows of metrics
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    log_every: Option<u64>,
    /// Particles of the bound on log p(x) of 64 test images that is estimated at the end, 0 for none [default: 20, paper 200]
    #[arg(long, value_name = "PARTICLES")]
    iwae: Option<usize>,
    /// GPUs of this machine to train on, which share the images of every update (--batch counts all of them). Without it, ranks that
    /// torchrun, srun or mpirun have started are understood
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    gpus: Option<u16>,
    #[command(flatten)]
    compute: Compute,
}

/// Where the run is computed, and which part of it this process is, if it is one of several.
fn devices(plan: &Plan, arguments: (Option<u16>, &Compute), screen: &Screen) -> Result<(Device, Option<Ranks>)> {
    let (gpus, compute) = (arguments.0.map(usize::from), arguments.1);
    let place = Place::from_environment()?;
    let launched = place.as_ref().filter(|place| place.launcher != Launcher::Own);
    if let (Some(gpus), Some(place)) = (gpus, launched) {
        return Err(Error::Usage(format!(
            "--gpus {gpus} would start ranks, and this process is already one of {} that were started from outside: leave --gpus out",
            place.count
        )));
    }
    let alone = std::env::var_os("DOOD_RANKS_ALONE").is_some_and(|v| v != "0");
    if place.is_none() && gpus.is_none_or(|gpus| gpus == 1 && !alone) {
        return Ok((compute.open(screen)?, None));
    }
    if compute.device == "cpu" {
        return Err(Error::Usage("every rank takes a GPU of its own: --device cpu is for a run without --gpus and without torchrun, srun or mpirun".into()));
    }
    if !matches!(compute.device.as_str(), "auto" | "cuda") {
        return Err(Error::Usage(format!(
            "every rank takes a GPU of its own, and --device {} names one for all: leave it out (CUDA_VISIBLE_DEVICES chooses cards)",
            compute.device
        )));
    }
    compute.start_threads()?;
    let about = plan.about();
    let open = |local| Device::of_rank(local, compute.math, screen);
    match place {
        // Rank 0 has compiled the kernels when the others come.
        Some(place) if place.rank == 0 => Ok((open(place.local)?, Some(Ranks::meet(place, &about, common::stuck)?))),
        Some(place) => {
            screen.be_quiet();
            let ranks = Ranks::meet(place, &about, common::stuck)?;
            let device = open(ranks.local()).inspect_err(|error| ranks.fail(&error.to_string()))?;
            Ok((device, Some(ranks)))
        }
        None => {
            let (gpus, cards) = (gpus.expect("asked for"), Device::cards()?);
            if gpus > cards {
                return Err(Error::Usage(format!(
                    "--gpus {gpus} is more than this machine has: {cards} can be seen (CUDA_VISIBLE_DEVICES)"
                )));
            }
            Ok((open(0)?, Some(Ranks::start(gpus, &about, common::stuck)?)))
        }
    }
}

fn train(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let overrides = arguments.config.as_deref().map(config::read).transpose()?;
    let options = Options {
        data: arguments.data,
        fit: arguments.reading.fit,
        invert: arguments.reading.invert,
        preset: arguments.preset,
        model: arguments.model,
        placement: arguments.placement,
        stop: arguments.stop,
        price: arguments.price,
        steps: arguments.steps,
        batch: arguments.batch.map(|batch| batch as usize),
        seed: arguments.seed,
        learning_rate: arguments.learning_rate,
        onoff_rate: arguments.onoff_rate,
        log_every: arguments.log_every,
        picture_every: arguments.picture_every,
        checkpoint_every: arguments.checkpoint_every,
        overrides: overrides.unwrap_or_default(),
        out: arguments.out,
        resume: match arguments.resume {
            None => Resume::No,
            Some(None) => Resume::Newest,
            Some(Some(file)) => Resume::From(file),
        },
        start: arguments.start,
        download: arguments.reading.download,
        iwae: arguments.iwae,
    };
    let plan = Plan::new(&options)?;
    if arguments.print_config {
        say!("{}", config::text(&plan)?.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let ended = match devices(&plan, (arguments.gpus, &arguments.compute), screen)? {
        (device, None) => plan.run(&device, screen)?,
        (device, Some(ranks)) => match plan.run_as_rank(&device, ranks, screen)? {
            Some(ended) => ended,
            // Another rank than 0, which has done what it was for.
            None => return Ok(if screen.stopped() { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS }),
        },
    };
    Ok(match &ended.measured {
        Some(measured) => {
            summary(&ended, measured)?;
            ExitCode::SUCCESS
        }
        None => {
            say!("Stopped after step {}. To go on:", ended.updates);
            say!("  {}", command(&ended.folder, options.iwae, arguments.gpus, &arguments.compute)?);
            ExitCode::from(STOPPED)
        }
    })
}

/// What continues a run from any folder, as typed.
fn command(folder: &Path, iwae: Option<usize>, gpus: Option<u16>, compute: &Compute) -> Result<String> {
    let mut words = vec![common::own_path(), "--resume".into(), "--out".into(), common::absolute(folder)?.into()];
    if let Some(particles) = iwae {
        words.extend::<[OsString; 2]>(["--iwae".into(), particles.to_string().into()]);
    }
    if let Some(gpus) = gpus {
        words.extend::<[OsString; 2]>(["--gpus".into(), gpus.to_string().into()]);
    }
    words.extend(compute.words());
    Ok(words.iter().map(quoted).collect::<Vec<_>>().join(" "))
}

/// What was reached, where it is, and what to do next.
fn summary(ended: &Ended, measured: &Measured) -> Result<()> {
    let Measured { images, particles, .. } = measured;
    say!("{} steps made.", ended.updates);
    let drawings = if *particles == 1 { "one drawing".into() } else { format!("{particles} drawings") };
    say!("On {images} of {} test images, {drawings} of each, in nats per image:", ended.test_images);
    common::measured(measured);
    let folder = &ended.folder;
    let file = |name: &str| quoted(folder.join(name));
    say!("\nPictures    {}, and as curves reconstruction.svg", file("reconstruction.png"));
    say!("Curves      {}, from metrics.csv; or tensorboard --logdir {}", file("metrics.svg"), quoted(folder));
    say!("Checkpoint  {}", quoted(&ended.checkpoint));
    Ok(())
}

fn main() -> ExitCode {
    common::main(train)
}
