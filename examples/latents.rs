//! What the strokes of a drawing say about its class: a linear classifier on the latents of a model.

mod common;

use clap::Parser;
use common::{Compute, Reading, Screen, say, source, word};
use dood::{
    Error, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Images, Set, Source},
    eval::{
        Artist,
        latents::{Fitted, Gradients, Latents, Training, classify},
        one_shot::statistics::Share,
        published,
        transfer::Trained,
    },
    figures::{HeatCell, Heatmap, Panel, plot_svg},
    files::{self, quoted, sha256, write_atomically},
    measure::spread,
};
use serde_json::json;
use std::{fmt::Write, path::PathBuf, process::ExitCode};

/// Says how well a class can be told from where strokes lie and which they are: a single linear layer on the latents of one drawing of
/// each image, trained on training images and measured on test images.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  latents --checkpoint mnist --data mnist --count 5000 --updates 20000 --rate 1e-3
  latents --checkpoint runs/omniglot-hour-warp --data kmnist --out results/latents-kmnist
  latents … --gradients summed     as the authors' program did it, which never cleared its gradients

The published protocol is the default: all images, 800,000 updates of 64 images with Adam at 1e-5. What was published is the best
accuracy of all epochs on the test images; the accuracy in the end is told beside it.

Writes OUT.json, OUT.csv with a row per test image, OUT.png and OUT.svg with what is taken for what, and OUT-learning.svg. The latents
are kept in OUT-drawn.safetensors: work that was stopped goes on with --resume, also where only the training is to be another one.")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: PathBuf,
    /// A set with classes, as mnist or mnist:FOLDER
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    source: Source,
    #[command(flatten)]
    reading: Reading,
    /// How many images of the training and of the test part, from everywhere in them [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Updates of the layer
    #[arg(long, default_value_t = 800_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    updates: u64,
    /// Images of each update
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Adam's learning rate
    #[arg(long, default_value_t = 1e-5, value_parser = rate)]
    rate: f64,
    /// What becomes of gradients before the next update: cleared, or summed as in the authors' program
    #[arg(long, default_value = "cleared", value_parser = word::<Gradients>)]
    gradients: Gradients,
    /// Names the files, see below
    #[arg(long, default_value = "latents", value_name = "OUT")]
    out: PathBuf,
    /// Go on with what OUT-drawn.safetensors holds
    #[arg(long)]
    resume: bool,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (1e-9..=10.0).contains(rate))
        .ok_or_else(|| "choose a number above 0, such as 1e-4".into())
}

fn latents(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let out = &arguments.out;
    common::check_out(out)?;
    let kept = common::beside(out, "-drawn.safetensors");
    if arguments.resume && !kept.exists() {
        return Err(Error::Usage(format!("there is no {} to resume from: leave --resume out", quoted(&kept))));
    }
    let path = checkpoint::find(&arguments.checkpoint)?;
    let (trained, bytes) = (Trained::read(&path)?, files::read(&path)?);
    let device = arguments.compute.open(screen)?;
    let (model, params) = Checkpoint::parse(&bytes, &path.display().to_string())?.model(&device)?;
    let artist = Artist { model, params };
    let options = arguments.reading.for_model(&path, &arguments.source, screen)?;
    let set = data::load_or_fetch(&arguments.source, &options, screen)?;
    let [train, test] = [labels(&set.train, &arguments.source)?, labels(&set.test, &arguments.source)?];
    let classes = usize::from(train.iter().max().copied().unwrap_or(0)) + 1;

    let count = arguments.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let which = [spread(count, set.train.len()), spread(count, set.test.len())];
    let digest = sha256(&[&set.train.pixels[..], &set.test.pixels].concat());
    let about = json!({ "checkpoint": trained.sha256, "images": digest, "count": [which[0].len(), which[1].len()], "seed": arguments.seed });
    let mut latents = Latents::new(&artist, about.to_string());
    if arguments.resume {
        latents.read(&kept)?;
    }
    let parts = [(&set.train, &which[0][..]), (&set.test, &which[1][..])];
    let drawn = latents.fill(&artist, parts, arguments.seed, screen, &mut |latents| latents.write(&kept));
    drawn?;
    let pick = |labels: &[u16], which: &[usize]| which.iter().map(|&i| labels[i]).collect::<Vec<u16>>();
    let (known, answers) = (pick(&train, &which[0]), pick(&test, &which[1]));
    let how = Training {
        updates: arguments.updates,
        batch: arguments.batch.into(),
        rate: arguments.rate,
        gradients: arguments.gradients,
        seed: arguments.seed,
    };
    let fitted = classify([(&latents.train, &known), (&latents.test, &answers)], classes, &how, &device, screen)?;

    let right = Share::of(fitted.guesses.iter().zip(&answers).map(|(guess, answer)| guess == answer));
    let best = fitted.best();
    let word = arguments.source.word();
    let published = published::latents(&trained.config, &trained.learned_from, word);
    let about = json!({
        "format": "dood-latents",
        "version": 1,
        "command": common::command("latents"),
        "checkpoint": trained.path,
        "sha256": trained.sha256,
        "learned_from": trained.learned_from,
        "model": trained.config.variant,
        "data": arguments.source,
        "images_sha256": digest,
        "seed": arguments.seed,
        "protocol": how,
        "training_images": known.len(),
        "test_images": answers.len(),
        "classes": classes,
        "accuracy": right,
        "best": best,
        "published": published,
        "epochs": fitted.epochs,
    });
    write_atomically(&common::beside(out, ".json"), |file| writeln!(file, "{about:#}"))?;
    let text = rows(&which[1], &answers, &fitted.guesses);
    write_atomically(&common::beside(out, ".csv"), |file| file.write_all(text.as_bytes()))?;
    let title = format!("{} on {word}: {:.1} % of {} test images", trained.name(), 100.0 * right.share, right.of);
    let table = confusion(&answers, &fitted.guesses, classes, &title);
    [".png", ".svg"].into_iter().try_for_each(|end| table.write(&common::beside(out, end)))?;
    plot_svg(&common::beside(out, "-learning.svg"), &title, &learning(&fitted))?;
    for end in [".json", ".csv", ".png", ".svg", "-learning.svg"] {
        say!("Written: {}", quoted(common::beside(out, end)));
    }
    let Share { share, low, high, of, .. } = right;
    let [share, low, high, best] = [share, low, high, best.accuracy].map(|v| 100.0 * v);
    say!(
        "A linear layer on the latents of {} finds the class of {of} test images of {}:",
        trained.name(),
        arguments.source
    );
    say!("  in the end          {share:5.1} %  ({low:.1} to {high:.1})");
    say!("  best of all epochs  {best:5.1} %");
    if let Some(published) = published {
        say!("  published           {:5.1} %  (best of all epochs, gradients never cleared)", 100.0 * published);
    }
    Ok(ExitCode::SUCCESS)
}

/// The classes of images, where the training and the test part have the same ones.
fn labels(images: &Images, source: &Source) -> Result<Vec<u16>> {
    let differ = matches!(source, Source::Public { set: Set::Omniglot, .. });
    images.labels.clone().filter(|_| !differ).ok_or_else(|| {
        let why = if differ { "its test images are of other classes than its training images" } else { "its images have no classes" };
        Error::Usage(format!("{source} cannot be classified, as {why}: use mnist, emnist, kmnist, quickdraw, or a set with labels of your own"))
    })
}

/// A row per test image: its number in the set, its class, the guess.
fn rows(which: &[usize], answers: &[u16], guesses: &[u16]) -> String {
    let mut text = "index,label,guess,right\n".to_owned();
    for ((index, answer), guess) in which.iter().zip(answers).zip(guesses) {
        let _ = writeln!(text, "{index},{answer},{guess},{}", u8::from(answer == guess));
    }
    text
}

/// In percent of each class, what its images are taken for.
fn confusion(answers: &[u16], guesses: &[u16], classes: usize, title: &str) -> Heatmap<'static> {
    let mut counts = vec![vec![0u32; classes]; classes];
    for (&answer, &guess) in answers.iter().zip(guesses) {
        counts[usize::from(answer)][usize::from(guess)] += 1;
    }
    let cell = |count: u32, all: u32| {
        let percent = 100.0 * f64::from(count) / f64::from(all.max(1));
        HeatCell { value: Some(percent), lines: vec![format!("{percent:.0}")], ..HeatCell::default() }
    };
    let line = |row: &Vec<u32>| row.iter().map(|&count| cell(count, row.iter().sum())).collect();
    let head = |class: usize| HeatCell { lines: vec![class.to_string()], ..HeatCell::default() };
    Heatmap {
        title: title.into(),
        corner: "class:".into(),
        columns: (0..classes).map(head).collect(),
        rows: (0..classes).map(|class| vec![class.to_string()]).collect(),
        cells: counts.iter().map(line).collect(),
        notes: vec![
            "In percent of the images of a class (rows): the classes that they are taken for (columns).".into(),
        ],
    }
}

fn learning(fitted: &Fitted) -> [Panel; 2] {
    let line = |value: fn(&dood::eval::latents::Epoch) -> f64| {
        let points = fitted.epochs.iter().map(|epoch| (epoch.updates as f64, value(epoch))).collect();
        vec![(String::new(), points)]
    };
    let panel = |title: &str, y_label: &str, series| Panel { title: title.into(), y_label: y_label.into(), series };
    [
        panel("Test images whose class is found", "%", line(|epoch| 100.0 * epoch.accuracy)),
        panel("Cross-entropy of training images", "nats", line(|epoch| epoch.cross_entropy)),
    ]
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments, screen| {
        let kept = common::beside(&arguments.out, "-drawn.safetensors");
        common::resumable(&kept, || latents(arguments, screen))
    })
}
