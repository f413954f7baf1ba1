//! Draws images with a trained model: a picture of every stroke, the curves as SVG, the strokes as JSON.

mod common;

use clap::Parser;
use common::{Compute, Data, Screen, say};
use dood::{
    Error, Observer, Result,
    eval::{
        Artist, Best, DrawingFile, Reconstruction,
        reconstruction::{pages, write_png, write_svg},
    },
    files::quoted,
    measure::{Measured, Protocol, Score, measure, spread},
    observer::Unit,
    rng::Rng,
    train::pixels,
};
use std::{path::PathBuf, process::ExitCode};

/// Draws images stroke by stroke with a trained model.
///
/// Every image is drawn several times, and the drawing with the highest likelihood is shown. How good a model is on a whole set is
/// said by the program evaluate.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  reconstruct --checkpoint runs/mnist-quick-warp/checkpoint-00002000.safetensors --data mnist
  reconstruct --checkpoint runs/mnist-quick-warp --data kmnist --count 30 --out strange.svg
  reconstruct --checkpoint runs/mnist-quick-warp --data mnist --count 1000 --out strokes.json")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: PathBuf,
    #[command(flatten)]
    data: Data,
    /// How many images, from everywhere in the set; many are shown on several pages
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Drawings per image, of which the best is shown
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    particles: u32,
    /// Updates by which the networks' answers are refined for every image first; 100 do a lot where images are unlike those learned from
    #[arg(long, value_name = "UPDATES", default_value_t = 0)]
    refine: u16,
    /// Strokes at most, also more than the model has learned with [default: as it has learned]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    strokes: Option<u16>,
    /// Also estimate the bound on log p(x) with this many particles per image (the paper: 200); takes a while
    #[arg(long, value_name = "PARTICLES", value_parser = clap::value_parser!(u32).range(1..))]
    iwae: Option<u32>,
    /// A .png, beside which a .svg is written; a .svg alone; or a .json with the strokes as numbers and no picture
    #[arg(long, default_value = "reconstruction.png", value_name = "FILE")]
    out: PathBuf,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

fn draw(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let out = &arguments.out;
    let kind = out.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
    if !["png", "svg", "json"].contains(&kind) {
        return Err(Error::Usage(format!("--out {} must end in .png, .svg or .json", quoted(out))));
    }
    common::check_file(out)?;
    let device = arguments.compute.open(screen)?;
    let artist = Artist::open(&arguments.checkpoint, &device)?;
    let (model, params) = (&artist.model, &artist.params);
    let images = arguments.data.load_for(&arguments.checkpoint, screen)?;
    let which = spread(arguments.count as usize, images.len());
    let x = pixels(&images, which.iter().copied(), &device);
    let particles = arguments.particles as usize;
    let protocol = Protocol { refine: arguments.refine.into(), ..Protocol::published(particles) };
    let strokes = arguments.strokes.map_or(model.config.strokes, usize::from);
    let drawn = artist.redraw(&x, (protocol, Best::Likelihood), strokes, Rng::new(arguments.seed, 0), screen)?;

    let mut written = vec![];
    if kind == "json" {
        let drawings = drawn.iter().map(|one| one.drawn.drawing.clone()).collect();
        DrawingFile::new(model.config.variant.to_string(), images.side, drawings).write(out)?;
        written.push(out.clone());
    }
    for kind in ["png", "svg"].into_iter().skip_while(|first| *first != kind) {
        for (path, page) in pages(&out.with_extension(kind), &drawn) {
            if kind == "png" {
                write_png(&path, page)?
            } else {
                write_svg(&path, page)?
            }
            written.push(path);
        }
    }
    written.iter().for_each(|path| say!("Written: {}", quoted(path)));

    let n = drawn.len() as f64;
    let mean = |value: fn(&Reconstruction) -> f64| drawn.iter().map(value).sum::<f64>() / n;
    let name = arguments.data.split.name();
    say!("{} {name} images of {}, in nats per image:", drawn.len(), images.len());
    say!("the drawings that are shown, the best of {particles} each");
    say!("  log-likelihood     {:10.1}", mean(|one| one.drawn.drawing.log_likelihood.expect("there are images")));
    say!("  strokes per image  {:10.2}", mean(|one| one.drawn.drawing.strokes.len() as f64));
    let scores: Vec<Score> = drawn.iter().map(|drawn| drawn.score).collect();
    say!("all {particles} drawings of each");
    common::measured(&Measured::of(&scores, particles));
    if let Some(particles) = arguments.iwae {
        let protocol = Protocol { particles: particles as usize, ..protocol };
        screen.begin("Measuring", Some(protocol.drawings(which.len())), Unit::Items);
        let rng = Rng::new(arguments.seed.wrapping_add(1), 0);
        let scores = measure((model, params), &images, &which, protocol, rng, screen);
        screen.end();
        say!("{particles} further drawings of each");
        common::measured(&Measured::of(&scores?, particles as usize));
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(draw)
}
