//! Says how good a model is on a set of images: bounds on log p(x), likelihood, strokes, with standard errors.

mod common;

use clap::Parser;
use common::{Compute, Data, Screen, say};
use dood::{
    Error, Observer, Result, checkpoint,
    files::{self, quoted, write_atomically},
    measure::{Ends, Measured, Protocol, Score, measure, spread},
    observer::Unit,
    rng::Rng,
};
use serde_json::json;
use std::{fmt::Write, path::PathBuf, process::ExitCode};

/// Measures a trained model on images: the evidence lower bound, the importance-weighted bound on log p(x), the likelihood of what it
/// draws, and how many strokes that takes.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  evaluate --checkpoint runs/mnist-quick-warp --data mnist
  evaluate --checkpoint runs/mnist-quick-warp --data kmnist --count 500 --particles 200 --out kmnist.json

Numbers are means over images in nats (natural logarithms of densities of 8-bit pixels divided by 255), and standard errors of
these means. A .json holds them with everything they depend on, a .csv has a row per image.")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: PathBuf,
    #[command(flatten)]
    data: Data,
    /// How many images, from everywhere in the set [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Drawings per image (the paper: 200)
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    particles: u32,
    /// Take all strokes of every drawing, and weigh all its ends, instead of the one that is sampled: tighter bounds, which are not
    /// those of the published protocol
    #[arg(long)]
    all_ends: bool,
    /// Updates by which the networks' answers are refined for every image first (100 do a lot): bounds by inference at test time, which
    /// are not those of the published protocol
    #[arg(long, value_name = "UPDATES", default_value_t = 0)]
    refine: u16,
    /// A .json or .csv to write the numbers to
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

fn evaluate(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let kind = arguments.out.as_ref().map(|out| out.extension().and_then(|kind| kind.to_str()).unwrap_or_default());
    if let Some(out) = &arguments.out {
        if !["json", "csv"].contains(&kind.unwrap_or_default()) {
            return Err(Error::Usage(format!("--out {} must end in .json or .csv", quoted(out))));
        }
        common::check_file(out)?;
    }
    let path = checkpoint::find(&arguments.checkpoint)?;
    let device = arguments.compute.open(screen)?;
    let (model, params) = checkpoint::load(&path, &device)?;
    let images = arguments.data.load_for(&path, screen)?;
    let count = arguments.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let (which, particles) = (spread(count, images.len()), arguments.particles as usize);
    let ends = if arguments.all_ends { Ends::All } else { Ends::Sampled };
    let protocol = Protocol { particles, ends, refine: arguments.refine.into() };
    screen.begin("Measuring", Some(protocol.drawings(which.len())), Unit::Items);
    let rng = Rng::new(arguments.seed, 0);
    let scores = measure((&model, &params), &images, &which, protocol, rng, screen);
    screen.end();
    let scores = scores?;
    let measured = Measured::of(&scores, particles);
    let (set, all) = (arguments.data.split.name(), images.len());
    say!(
        "{} of {all} {set} images of {}, {particles} drawings of each{}{}, in nats per image:",
        measured.images,
        arguments.data.source,
        if arguments.all_ends { ", over all their ends" } else { "" },
        if arguments.refine > 0 { format!(", after {} updates for it", arguments.refine) } else { String::new() }
    );
    common::measured(&measured);
    if let Some(out) = &arguments.out {
        let text = match kind {
            Some("csv") => rows(&which, images.labels.as_deref(), &scores),
            _ => {
                let mut value = serde_json::to_value(measured).expect("plain data can be written as JSON");
                let about = json!({
                    "command": common::command("evaluate"),
                    "checkpoint": path.to_string_lossy(),
                    "sha256": files::sha256(&files::read(&path)?),
                    "data": arguments.data.source.to_string(),
                    "split": arguments.data.split.name(),
                    "images_in_split": images.len(),
                    "seed": arguments.seed,
                    "all_ends": arguments.all_ends,
                    "refine": arguments.refine,
                });
                let fields = value.as_object_mut().expect("a struct is an object");
                fields.extend(about.as_object().expect("an object").clone());
                format!("{value:#}\n")
            }
        };
        write_atomically(out, |file| file.write_all(text.as_bytes()))?;
        say!("Written: {}", quoted(out));
    }
    Ok(ExitCode::SUCCESS)
}

/// A row per image: its number in the set, its label where there is one, its scores.
fn rows(which: &[usize], labels: Option<&[u16]>, scores: &[Score]) -> String {
    let mut text = "index,label,elbo,bound,log_likelihood,strokes\n".to_owned();
    for (&image, Score { elbo, bound, log_likelihood, strokes }) in which.iter().zip(scores) {
        let label = labels.map_or_else(String::new, |labels| labels[image].to_string());
        let _ = writeln!(text, "{image},{label},{elbo},{bound},{log_likelihood},{strokes}");
    }
    text
}

fn main() -> ExitCode {
    common::main(evaluate)
}
