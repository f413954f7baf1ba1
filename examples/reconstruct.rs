//! Draws images with a trained model: a picture of every stroke, the curves as SVG, and how good they are.

mod common;

use clap::{Parser, ValueEnum};
use common::{Compute, Data, Screen, say};
use dood::{
    Error, Observer, Result, checkpoint, data,
    observer::Unit,
    reconstruct::{Summary, reconstruct, write_png, write_svg},
    rng::Rng,
    train::pixels,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Draws images stroke by stroke with a trained model.
///
/// Every image is drawn several times, and the drawing with the highest likelihood is kept.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  reconstruct --checkpoint runs/mnist-quick-warp/checkpoint-00002000.safetensors --data mnist
  reconstruct --checkpoint runs/mnist-quick-warp --data kmnist --count 30 --out strange.svg")]
struct Arguments {
    /// A checkpoint, or a run's folder for its newest one
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    #[command(flatten)]
    data: Data,
    /// How many images
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// From which part of the set
    #[arg(long, default_value = "test")]
    split: Split,
    /// Drawings per image, of which the best is kept
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    particles: u32,
    /// Also estimate the bound on log p(x) with this many particles per image (the paper: 200); takes a while
    #[arg(long, value_name = "PARTICLES", value_parser = clap::value_parser!(u32).range(1..))]
    iwae: Option<u32>,
    /// A .png, beside which a .svg is written, or a .svg alone
    #[arg(long, default_value = "reconstruction.png", value_name = "FILE")]
    out: PathBuf,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Clone, Copy, ValueEnum)]
enum Split {
    Train,
    Test,
}

/// The checkpoint itself, or the newest one of a folder.
fn newest(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    checkpoint::latest(path)?.ok_or_else(|| Error::Usage(format!("there is no checkpoint in {}", path.display())))
}

fn draw(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let kind = arguments.out.extension().and_then(|kind| kind.to_str());
    if !matches!(kind, Some("png" | "svg")) {
        return Err(Error::Usage(format!("--out {} must end in .png or .svg", arguments.out.display())));
    }
    let device = arguments.compute.open()?;
    let (model, params) = checkpoint::load(&newest(&arguments.checkpoint)?, &device)?;
    let set = data::load_or_fetch(&arguments.data.source, &arguments.data.options(model.config.image), screen)?;
    let images = match arguments.split {
        Split::Train => set.train,
        Split::Test => set.test,
    };
    // Sets are often sorted by class, so the images are taken from everywhere.
    let count = images.len().min(arguments.count as usize);
    let x = pixels(&images, (0..count).map(|i| i * images.len() / count), &device);
    let drawn = reconstruct(&model, &params, &x, arguments.particles as usize, Rng::new(arguments.seed, 0));
    let svg = arguments.out.with_extension("svg");
    write_svg(&svg, &drawn)?;
    if kind == Some("png") {
        write_png(&arguments.out, &drawn)?;
        say!("Written: {}", arguments.out.display());
    }
    say!("Written: {}", svg.display());
    let Summary { log_likelihood, elbo, strokes } = Summary::of(&drawn);
    say!("{count} images, the best of {} drawings each, in nats per image:", arguments.particles);
    say!("  log-likelihood     {log_likelihood:10.1}");
    say!("  ELBO               {elbo:10.1}");
    say!("  strokes per image  {strokes:10.2}");
    if let Some(particles) = arguments.iwae {
        screen.begin("Measuring the bound", Some(count as u64), Unit::Items);
        let mut sum = 0.0;
        for i in 0..count {
            screen.go_on()?;
            let rng = Rng::new(arguments.seed.wrapping_add(1), i as u64);
            sum += model.log_marginal(&params, &x.rows(i, 1), particles as usize, rng)[0];
            screen.advance(1);
        }
        screen.end();
        let mean = sum / count as f64;
        say!("  IWAE bound         {mean:10.1}   ({particles} particles)");
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(draw)
}
