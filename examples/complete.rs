//! Finishes drawings that somebody, or the model itself, has begun.

mod common;

use clap::Parser;
use common::{Compute, Screen, generation::Generation, say};
use dood::{
    Error, Result,
    data::{self, Source},
    eval::{Beginning, Drawing, DrawingFile, gallery},
    files::quoted,
    measure::pixels,
    rng::Rng,
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Goes on with drawings that have been begun, each in several ways.
///
/// The model redraws what is there, and goes on from where it stands. Begun are: a picture (--image), strokes in JSON (--drawings), or,
/// if neither is given, single strokes that the model draws from nothing.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  complete --checkpoint runs/mnist-quick-warp
  complete --checkpoint runs/mnist-quick-warp --image half.png --ways 16 --out whole
  complete --checkpoint runs/mnist-quick-warp --drawings generated.json --temperature 1")]
struct Arguments {
    #[command(flatten)]
    generation: Generation,
    /// A picture that has been begun: PNG, JPEG, GIF or BMP of any size, dark on light or light on dark
    #[arg(long, value_name = "FILE", conflicts_with_all = ["drawings", "beginnings"])]
    image: Option<PathBuf>,
    /// Drawings that have been begun, as JSON such as generate writes
    #[arg(long, value_name = "FILE", conflicts_with = "beginnings")]
    drawings: Option<PathBuf>,
    /// Beginnings of one stroke that the model draws from nothing
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    beginnings: u32,
    /// In how many ways each is finished
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    ways: u32,
    /// Names the files: NAME.png, NAME.svg and NAME.json
    #[arg(long, default_value = "completed", value_name = "NAME")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

fn complete(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    common::check_out(&arguments.out)?;
    let begun = arguments.drawings.as_deref().map(read).transpose()?;
    let device = arguments.compute.open(screen)?;
    let opened = arguments.generation.open(&device, screen)?;
    let (artist, rng) = (&opened.artist, Rng::new(arguments.generation.seed, 0));
    let beginning = match (&arguments.image, begun) {
        (Some(path), _) => {
            let Generation { reading, checkpoint, .. } = &arguments.generation;
            let options = reading.for_model(checkpoint, &Source::Images(path.clone()), screen)?;
            let picture = data::read_picture(path, &options, screen)?;
            Beginning::Images(pixels(&picture, 0..1, &device))
        }
        (_, Some(drawings)) => Beginning::Drawings(drawings),
        _ => Beginning::Imagined(arguments.beginnings as usize),
    };
    let how = (opened.pen, opened.heat);
    let rows = artist.complete(&beginning, arguments.ways as usize, how, opened.strokes, rng, screen)?;
    for path in gallery::write(&arguments.out, &artist.model, "begun", &rows)? {
        say!("Written: {}", quoted(&path));
    }
    let (count, ways) = (rows.len(), arguments.ways);
    say!("{count} beginnings, each finished in {ways} ways.");
    Ok(ExitCode::SUCCESS)
}

/// What has been begun.
fn read(path: &Path) -> Result<Vec<Drawing>> {
    let drawings = DrawingFile::read(path)?.drawings;
    if drawings.is_empty() {
        return Err(Error::Usage(format!("{} holds no drawings: nothing has been begun", quoted(path))));
    }
    Ok(drawings)
}

fn main() -> ExitCode {
    common::main(complete)
}
