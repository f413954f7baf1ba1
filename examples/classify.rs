//! A small convolutional network learns classes of images, and shows which it confuses.

mod common;

use clap::Parser;
use common::{Compute, Reading, Screen, say, source};
use dood::{
    Error, Result,
    data::{self, Images, Source},
    eval::classifier::{Judged, Settings, Sizes, Training},
    figures::{HeatCell, Heatmap},
    files::{self, quoted, sha256},
    rng::{Rng, Stream},
};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// Trains a small convolutional network to tell classes of images apart, and shows what it takes for what.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  classify                                              shapes drawn on the spot: no data needed
  classify --data mnist --download                      handwritten digits, 99 % right within a minute or two
  classify --data kmnist --seed 1 --out runs/kana
  classify --data mnist --epochs 6 --resume             three epochs more

The network: conv 3x3 (16), ReLU, max-pool; conv 3x3 (32), ReLU, max-pool; linear (128), ReLU; linear to a score per class. It minimises
the cross-entropy with Adam, whose rate rises for a hundred updates and falls as half a cosine, with dropout before the linear layers.

What is written: OUT.safetensors (the network after every epoch, and all that --resume needs), OUT.png and OUT.svg (the confusion matrix:
rows are what images are, columns what they were taken for, with the surest mistake of each kind), OUT.json (the numbers). Ctrl-C saves
and prints how to go on. The same seed gives the same network; with more --epochs, rates fall later, also over what is left of a resumed
run. In the library it is dood::eval::classifier.")]
struct Arguments {
    /// A set with labels: mnist, kmnist, emnist, quickdraw, each with an optional folder as in mnist:FOLDER; images:FOLDER, whose folders
    /// are the classes; idx:FOLDER [default: shapes drawn on the spot]
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    source: Option<Source>,
    #[command(flatten)]
    reading: Reading,
    /// Pixels a side that images are brought to
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u16).range(4..=128))]
    side: u16,
    /// How often every image is seen [default: 3, of the shapes, which are few, 10]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    epochs: Option<u64>,
    /// Images in a batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// The largest learning rate
    #[arg(long, default_value_t = Settings::default().rate)]
    rate: f64,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on from OUT.safetensors
    #[arg(long)]
    resume: bool,
    /// What is written: OUT.safetensors, OUT.png, OUT.svg and OUT.json
    #[arg(long, default_value = "classify", value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

/// One of the files that are written.
fn named(out: &Path, end: &str) -> PathBuf {
    files::with_end(out, end, &["safetensors", "png", "svg", "json"])
}

/// Shapes drawn on the spot, and how many of them are for training and for testing.
const SHAPES: [&str; 6] = ["disc", "ring", "square", "frame", "triangle", "cross"];
const COUNTS: [usize; 2] = [6000, 1000];

fn classify(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let Arguments { out, seed, epochs, rate, .. } = &arguments;
    common::check_out(out)?;
    let side = usize::from(arguments.side);
    let file = named(out, "safetensors");
    if arguments.resume && !file.exists() {
        return Err(Error::Usage(format!("there is no {} to resume from: leave --resume out", quoted(&file))));
    }
    let device = arguments.compute.open(screen)?;
    let usual = if arguments.source.is_some() { Settings::default().epochs } else { 10 };
    let settings =
        Settings { seed: *seed, batch: arguments.batch.into(), epochs: epochs.unwrap_or(usual), rate: *rate };
    let [train, test] = match &arguments.source {
        Some(source) => {
            let set = data::load_or_fetch(source, &arguments.reading.options(side), screen)?;
            [set.train, set.test]
        }
        None => [shapes(COUNTS[0], side, 0), shapes(COUNTS[1], side, 1)],
    };
    let name = arguments.source.as_ref().map_or("shapes", Source::word).to_owned();
    let most = [&train, &test].into_iter().filter_map(|images| images.labels.as_ref()?.iter().copied().max()).max();
    let Some(most) = most else {
        return Err(Error::Usage(format!("{name} has no labels to learn: choose another set")));
    };
    let sizes = Sizes { side, classes: usize::from(most) + 1 };
    let mut training = match arguments.resume {
        true => Training::resume(&file, settings, &device)?,
        false => Training::new(sizes, settings, &device)?,
    };
    if training.classifier.sizes != sizes {
        let words = |sizes: Sizes| format!("{} classes of images of {} pixels a side", sizes.classes, sizes.side);
        let (known, now) = (words(training.classifier.sizes), words(sizes));
        return Err(Error::Usage(format!(
            "{} has learned {known}, but these are {now}: name the same --data and --side, or leave --resume out",
            quoted(&file),
        )));
    }
    say!("{} images of {name} in {} classes, on {device}", train.len(), sizes.classes);

    let began = Instant::now();
    let before = training.updates();
    let learned = training.run(&train, screen, |training| training.save(&file));
    if matches!(learned, Err(Error::Stopped)) && training.updates() > 0 {
        training.save(&file)?;
        say!(
            "Stopped after update {}: {} holds it; the same command with --resume goes on.",
            training.updates(),
            quoted(&file)
        );
    }
    learned?;
    let seconds = began.elapsed().as_secs_f64();
    training.save(&file)?;
    let judged = training.classifier.judge(&test, screen)?;
    let right = judged.share();
    picture(out, &name, &judged, &test)?;
    let seen = (training.updates() - before) * settings.batch as u64;
    let numbers = json!({
        "format": "dood-classify",
        "version": 1,
        "command": common::command("classify"),
        "checkpoint": file.to_string_lossy(),
        "sha256": sha256(&files::read(&file)?),
        "data": arguments.source.as_ref().map_or(name.clone(), Source::to_string),
        "images_sha256": sha256(&[&train.pixels[..], &test.pixels].concat()),
        "side": side,
        "classes": sizes.classes,
        "training_images": train.len(),
        "test_images": test.len(),
        "settings": settings,
        "updates": training.updates(),
        "seconds": seconds,
        "images_per_second": seen as f64 / seconds,
        "accuracy": right,
        "confusion": judged.counts,
    });
    files::write_atomically(&named(out, "json"), |file| writeln!(file, "{numbers:#}"))?;
    for kind in ["safetensors", "png", "svg", "json"] {
        say!("Written: {}", quoted(named(out, kind)));
    }
    say!(
        "{:.2} % (95 %: {:.2} to {:.2}) of {} test images are right after {} updates; {seconds:.0} s, {:.0} images/s",
        100.0 * right.share,
        100.0 * right.low,
        100.0 * right.high,
        right.of,
        training.updates(),
        seen as f64 / seconds
    );
    Ok(ExitCode::SUCCESS)
}

/// The confusion matrix, with the surest mistake of each kind.
fn picture(out: &Path, name: &str, judged: &Judged, test: &Images) -> Result<()> {
    let classes = judged.counts.len();
    // More cells than anybody could read are not drawn.
    let shown = classes.min(50);
    let label = |class: usize| match name {
        "shapes" => SHAPES[class].to_owned(),
        _ => class.to_string(),
    };
    let ink = |i: usize| -> Vec<f32> { test.image(i).iter().map(|&v| f32::from(v) / 255.0).collect() };
    let of_cell = |row: usize, column: usize| judged.surest[row][column].filter(|_| row != column).map(ink);
    let pictures: Vec<Vec<Option<Vec<f32>>>> =
        (0..shown).map(|row| (0..shown).map(|column| of_cell(row, column)).collect()).collect();
    let cell = |row: usize, column: usize| {
        let (count, all) = (judged.counts[row][column], judged.counts[row].iter().sum::<u32>().max(1));
        let share = f64::from(count) / f64::from(all);
        // Mistakes are few: their colours are those of the logarithm.
        let value = if count > 0 { Some((share * 1e4).ln_1p()) } else { None };
        HeatCell {
            value,
            lines: if count > 0 { vec![count.to_string()] } else { vec![] },
            pictures: pictures[row][column].iter().map(Vec::as_slice).collect(),
            bars: vec![],
        }
    };
    let map = Heatmap {
        title: format!("{name}: {:.2} % of {} test images are right", 100.0 * judged.share().share, test.len()),
        corner: "is, and was taken for".into(),
        columns: (0..shown).map(|class| HeatCell { lines: vec![label(class)], ..HeatCell::default() }).collect(),
        rows: (0..shown).map(|class| vec![label(class)]).collect(),
        cells: (0..shown).map(|row| (0..shown).map(|column| cell(row, column)).collect()).collect(),
        notes: vec!["The picture in a cell is the surest mistake of its kind.".into()],
    };
    ["png", "svg"].iter().try_for_each(|kind| map.write(&named(out, kind)))
}

/// Shapes of any size, place and turn, with a soft edge; `part` 0 and 1 have none in common.
fn shapes(count: usize, side: usize, part: u64) -> Images {
    let rng = Rng::new(0x5ea9e5, part);
    let uniform = |i: usize, k: u32, low: f64, high: f64| low + (high - low) * rng.uniform(Stream(k), i);
    let label = |i: usize| rng.below(Stream(9), i, SHAPES.len());
    let mut pixels = Vec::with_capacity(count * side * side);
    for i in 0..count {
        let (x0, y0) = (uniform(i, 0, 0.35, 0.65), uniform(i, 1, 0.35, 0.65));
        let (size, width, turn) = (uniform(i, 2, 0.18, 0.33), uniform(i, 3, 0.03, 0.06), uniform(i, 4, 0.0, 6.3));
        let (sin, cos) = turn.sin_cos();
        for k in 0..side * side {
            let place = |k: usize| (k as f64 + 0.5) / side as f64;
            let (dx, dy) = (place(k % side) - x0, place(k / side) - y0);
            let (u, v) = ((cos * dx + sin * dy) / size, (cos * dy - sin * dx) / size);
            // How far outside, in sizes; negative inside.
            let (disc, square) = (u.hypot(v) - 1.0, u.abs().max(v.abs()) - 0.85);
            let line = |distance: f64| distance.abs() - width / size;
            let outside = match label(i) {
                0 => disc,
                1 => line(disc),
                2 => square,
                3 => line(square),
                4 => line((v - 0.6).max(0.866 * u.abs() - 0.5 * v - 0.6)),
                _ => (u.abs().min(v.abs()) - width / size).max(u.abs().max(v.abs()) - 1.0),
            };
            let ink = (0.5 - outside * size * side as f64).clamp(0.0, 1.0);
            let noise = 0.25 * rng.uniform(Stream(5), i * side * side + k);
            pixels.push((255.0 * (ink + noise).min(1.0)) as u8);
        }
    }
    Images { side, pixels, labels: Some((0..count).map(|i| label(i) as u16).collect()) }
}

fn main() -> ExitCode {
    common::main(classify)
}
