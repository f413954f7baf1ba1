//! Draws further exemplars of characters: the same strokes, as another hand would draw them.

mod common;

use clap::{Parser, ValueEnum};
use common::{Compute, Data, Screen, say};
use dood::{
    Result,
    eval::{Artist, Token, gallery},
    files::quoted,
    measure::{pixels, spread},
    rng::Rng,
};
use std::{path::PathBuf, process::ExitCode};

/// Draws further exemplars of given images, as other hands would draw them.
///
/// Each image is redrawn anew for every exemplar; then its control points are moved a little, and the whole of it is shifted, scaled,
/// turned and sheared a little.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  vary --checkpoint runs/mnist-quick-warp --data mnist
  vary --checkpoint runs/mnist-quick-warp --data images:mine.png --exemplars 20 --token reference")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: PathBuf,
    #[command(flatten)]
    data: Data,
    /// How many images, from everywhere in the set
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Exemplars of each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    exemplars: u32,
    /// Drawings per exemplar, of which the best is kept
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    particles: u32,
    /// How exemplars differ: as the paper says, or as the authors' program did it
    #[arg(long, default_value = "paper")]
    token: Preset,
    /// Names the files: NAME.png, NAME.svg and NAME.json
    #[arg(long, default_value = "varied", value_name = "NAME")]
    out: PathBuf,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// Every control point moves by 0.001; shifts to 0.2, sizes 0.8 to 1.2, turns and shears to a quarter of π
    Paper,
    /// The middle control point moves by 0.1; shifts to 0.1, sizes 0.9 to 1.1, next to no turns, shears to a tenth of π
    Reference,
}

fn vary(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    common::check_out(&arguments.out)?;
    let device = arguments.compute.open(screen)?;
    let artist = Artist::open(&arguments.checkpoint, &device)?;
    artist.check_curves()?;
    let images = arguments.data.load_for(&arguments.checkpoint, screen)?;
    let x = pixels(&images, spread(arguments.count as usize, images.len()), &device);
    let token = match arguments.token {
        Preset::Paper => Token::PAPER,
        Preset::Reference => Token::REFERENCE,
    };
    let exemplars = (arguments.exemplars as usize, arguments.particles as usize);
    let rows = artist.vary(&x, &token, exemplars, Rng::new(arguments.seed, 0), screen)?;
    for path in gallery::write(&arguments.out, &artist.model, "given", &rows)? {
        say!("Written: {}", quoted(&path));
    }
    say!("{} images, {} exemplars of each.", rows.len(), arguments.exemplars);
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(vary)
}
