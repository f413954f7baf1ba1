//! Draws from nothing: what a trained model thinks that drawings look like.

mod common;

use clap::Parser;
use common::{Compute, Screen, generation::Generation, say};
use dood::{Result, eval::gallery, files::quoted, rng::Rng};
use std::{path::PathBuf, process::ExitCode};

/// Draws new characters from nothing: every decision is drawn from the learned prior.
///
/// Writes a picture, the strokes as curves, and the strokes as JSON: see the documentation of dood::eval::drawing.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  generate --checkpoint runs/mnist-quick-warp
  generate --checkpoint runs/mnist-quick-warp --count 100 --temperature 1 --out wild")]
struct Arguments {
    #[command(flatten)]
    generation: Generation,
    /// How many drawings
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// Drawings beside each other
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    columns: u32,
    /// Names the files: NAME.png, NAME.svg and NAME.json
    #[arg(long, default_value = "generated", value_name = "NAME")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

fn generate(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    common::check_out(&arguments.out)?;
    let device = arguments.compute.open(screen)?;
    let Generation { seed, .. } = arguments.generation;
    let opened = arguments.generation.open(&device, screen)?;
    let (n, strokes) = (arguments.count as usize, opened.strokes);
    let drawn = opened.artist.imagine_many(n, (opened.pen, opened.heat), strokes, Rng::new(seed, 0), screen)?;
    let mean = drawn.iter().map(|one| one.drawing.strokes.len()).sum::<usize>() as f64 / n as f64;
    let rows = gallery::rows(drawn, arguments.columns as usize);
    for path in gallery::write(&arguments.out, &opened.artist.model, "", &rows)? {
        say!("Written: {}", quoted(&path));
    }
    say!("{n} drawings of {mean:.2} strokes on average.");
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(generate)
}
