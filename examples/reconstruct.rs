//! Draws images with a trained model: a picture of every stroke, the curves as SVG, and how good they are.

use clap::{
    Parser, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use dood::{
    Device, Error, MathMode, Result, checkpoint,
    data::{self, Source},
    observer::Silent,
    reconstruct::{Summary, reconstruct, write_png, write_svg},
    rng::Rng,
    train::pixels,
};
use indicatif::{ProgressBar, ProgressStyle};
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
    /// Images to draw: mnist, kmnist, emnist, quickdraw or omniglot, each with an optional folder as in mnist:FOLDER;
    /// idx:FOLDER; synthetic
    #[arg(long, value_name = "SOURCE", value_parser = OsStringValueParser::new().try_map(Source::try_from))]
    data: Source,
    /// Fetch the data from their official address if they are not there
    #[arg(long)]
    download: bool,
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
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on
    #[arg(long, default_value = "auto")]
    device: String,
    /// Matrix products on a GPU: f32, or rounded to tf32 or bf16 for the tensor cores, which is faster
    #[arg(long, default_value = "f32", value_name = "MODE")]
    math: MathMode,
    /// CPU threads; results do not depend on their number [default: all]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
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

fn draw(arguments: Arguments) -> Result<()> {
    if let Some(threads) = arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
        pool.expect("nothing has used the threads before");
    }
    let kind = arguments.out.extension().and_then(|kind| kind.to_str());
    if !matches!(kind, Some("png" | "svg")) {
        return Err(Error::Usage(format!("--out {} must end in .png or .svg", arguments.out.display())));
    }
    let device = Device::from_name(&arguments.device, arguments.math)?;
    let (model, params) = checkpoint::load(&newest(&arguments.checkpoint)?, &device)?;
    let options = data::Options { download: arguments.download, ..data::Options::new(model.config.image) };
    let set = data::load_or_fetch(&arguments.data, &options, &Silent)?;
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
        println!("Written: {}", arguments.out.display());
    }
    println!("Written: {}", svg.display());
    let Summary { log_likelihood, elbo, strokes } = Summary::of(&drawn);
    println!("{count} images, the best of {} drawings each, in nats per image:", arguments.particles);
    println!("  log-likelihood     {log_likelihood:10.1}");
    println!("  ELBO               {elbo:10.1}");
    println!("  strokes per image  {strokes:10.2}");
    if let Some(particles) = arguments.iwae {
        let bar = ProgressBar::new(count as u64)
            .with_style(ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}").unwrap());
        bar.set_message("bound");
        let bound = |i: usize| {
            bar.inc(1);
            let rng = Rng::new(arguments.seed + 1, i as u64);
            model.log_marginal(&params, &x.rows(i, 1), particles as usize, rng)[0]
        };
        let mean = (0..count).map(bound).sum::<f64>() / count as f64;
        bar.finish_and_clear();
        println!("  IWAE bound         {mean:10.1}   ({particles} particles)");
    }
    Ok(())
}

fn main() -> ExitCode {
    match draw(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
