//! How near drawings from nothing are to images, and whether exemplars of a character differ and are still known.

mod common;

use clap::Parser;
use common::{Compute, Screen, beside, generation::Generation, say, source, word};
use dood::{
    Error, Result, checkpoint,
    data::{self, Images, Source},
    eval::{
        Drawn, Token,
        classifier::Classifier,
        frechet::{Exemplars, Gaussian, OfClass, as_images, at_side, exemplars, features, frechet, picked},
        gallery,
        kept::from_json,
        one_shot::statistics::Share,
        transfer::Trained,
    },
    figures::{HeatCell, Heatmap},
    files::{self, quoted, sha256, write_atomically},
    measure::spread,
    rng::Rng,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{fmt::Write, path::PathBuf, process::ExitCode};

/// Says how near drawings from nothing are to training images, as a classifier sees them (the Fréchet distance of its features), how many
/// exemplars of a character it still takes for that character, and how much they differ.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  classify --data mnist --out runs/digits-seen
  frechet --checkpoint digits --classifier runs/digits-seen.safetensors --data mnist
  frechet --checkpoint runs/omniglot --classifier runs/letters.safetensors --data omniglot --exemplars 0

The distance is 0 for the same features and has no unit; that of the test images from the training images says how near one can come. It
depends on the classifier and cannot be compared with a published “FID”, which is that of the Inception network. Images are not rotated.

Exemplars are those of vary, of test images of every class: \"recognised\" is the share that the classifier takes for the class of their
image, \"diversity\" the spread of the features of one image's exemplars, √(Σ|f − f̄|² / (n − 1)), divided by that of as many images of
the class as there are: 1 is as different as people draw.

Writes OUT.json, OUT.csv, OUT.png and OUT.svg with exemplars of every class, and OUT-drawn.png, .svg and .json with the first drawings.
OUT.json is written after every run, so work that was stopped goes on with --resume.")]
struct Arguments {
    #[command(flatten)]
    generation: Generation,
    /// A classifier that classify has trained
    #[arg(long, value_name = "FILE")]
    classifier: PathBuf,
    /// The set that drawings are compared with, as mnist or mnist:FOLDER
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    source: Source,
    /// Drawings, and training images (the paper: 1,500)
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    count: u32,
    /// How often that is done, with other random numbers (the paper: 5)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Exemplars of each image; 0 for none, also where the set has other classes than the classifier
    #[arg(long, default_value_t = 10, value_parser = several)]
    exemplars: usize,
    /// Test images of every class that exemplars are drawn of
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    images: u16,
    /// Drawings per exemplar, of which the best is kept
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    particles: u16,
    /// How exemplars differ: paper or reference, see vary --help
    #[arg(long, default_value = "paper", value_parser = word::<Law>)]
    token: Law,
    /// Names the files, see below
    #[arg(long, default_value = "frechet", value_name = "OUT")]
    out: PathBuf,
    /// Go on with what OUT.json holds
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    compute: Compute,
}

fn several(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(1) | Err(_) => Err("choose 0, or 2 and more".into()),
        Ok(count) => Ok(count),
    }
}

/// See [`dood::eval::Token`].
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Law {
    Paper,
    Reference,
}

/// What a JSON file holds of the drawings from nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Generated {
    distances: Vec<f64>,
    #[serde(default)]
    mean: Option<f64>,
    #[serde(default)]
    std: Option<f64>,
}

impl Generated {
    fn sum_up(&mut self) {
        let n = self.distances.len() as f64;
        let mean = self.distances.iter().sum::<f64>() / n;
        let variance = self.distances.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n;
        self.mean = (n > 0.0).then_some(mean);
        self.std = (n > 1.0).then(|| variance.sqrt());
    }
}

fn measure(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let (out, seed) = (&arguments.out, arguments.generation.seed);
    common::check_out(out)?;
    let path = beside(out, ".json");
    if arguments.resume && !path.exists() {
        return Err(Error::Usage(format!("there is no {} to resume from: leave --resume out", quoted(&path))));
    }
    let trained = Trained::read(&checkpoint::find(&arguments.generation.checkpoint)?)?;
    let device = arguments.compute.open(screen)?;
    let classifier = Classifier::load(&arguments.classifier, &device)?;
    let opened = arguments.generation.open(&device, screen)?;
    if arguments.exemplars > 0 {
        opened.artist.check_curves()?;
    }
    let (model_side, side) = (opened.artist.model.config.image, classifier.sizes.side);
    let options =
        arguments.generation.reading.for_model(&arguments.generation.checkpoint, &arguments.source, screen)?;
    let set = data::load_or_fetch(&arguments.source, &options, screen)?;

    let protocol = json!({
        "drawings": arguments.count,
        "runs": arguments.runs,
        "features": "the last hidden layer of the classifier, of images at the model's size and then at the classifier's",
        "heat": json!({ "layout": opened.heat.layout, "stroke": opened.heat.stroke }),
        "pen": opened.pen,
        "strokes": opened.strokes,
        "exemplars": arguments.exemplars,
        "images_of_a_class": arguments.images,
        "particles": arguments.particles,
        "token": arguments.token,
    });
    let mut about = json!({
        "format": "dood-frechet",
        "version": 1,
        "command": common::command("frechet"),
        "checkpoint": trained.path,
        "sha256": trained.sha256,
        "learned_from": trained.learned_from,
        "model": trained.config.variant,
        "data": arguments.source,
        "images_sha256": sha256(&[&set.train.pixels[..], &set.test.pixels].concat()),
        "classifier": { "path": arguments.classifier.to_string_lossy(), "sha256": sha256(&files::read(&arguments.classifier)?), "sizes": classifier.sizes },
        "seed": seed,
        "protocol": protocol,
    });
    let mut generated = if arguments.resume { known(&path, &about)? } else { Generated::default() };

    let some = |images: &Images| at_side(&picked(images, &spread(arguments.count as usize, images.len())), side);
    let train = features(&classifier, &some(&set.train), screen)?;
    if train.len() < 2 {
        return Err(Error::Usage(format!("{} has too few training images", arguments.source)));
    }
    let train = Gaussian::of(&train);
    let test = features(&classifier, &some(&set.test), screen)?;
    about["test_images"] = if test.len() < 2 { Value::Null } else { frechet(&Gaussian::of(&test), &train).into() };
    let draw = |run: usize| {
        let rng = Rng::new(seed, (run as u64) << 32);
        opened.artist.imagine_many(arguments.count as usize, (opened.pen, opened.heat), opened.strokes, rng, screen)
    };
    let save = |generated: &Generated, about: &mut Value| {
        about["generated"] = serde_json::to_value(generated).expect("plain data");
        write_atomically(&path, |file| writeln!(file, "{about:#}"))
    };
    for run in generated.distances.len()..arguments.runs.into() {
        let drawn = draw(run)?;
        let points = features(&classifier, &at_side(&as_images(&drawn, model_side), side), screen)?;
        generated.distances.push(frechet(&Gaussian::of(&points), &train));
        generated.sum_up();
        save(&generated, &mut about)?;
        if run == 0 {
            let rows = gallery::rows(drawn.into_iter().take(64).collect(), 8);
            for path in gallery::write(&beside(out, "-drawn.png"), &opened.artist.model, "", &rows)? {
                say!("Written: {}", quoted(&path));
            }
        }
    }
    let classes = match arguments.exemplars {
        0 => vec![],
        _ => {
            let judged = classifier.judge(&at_side(&set.test, side), screen)?;
            let right = (0..judged.counts.len()).map(|class| judged.counts[class][class] as usize).sum::<usize>();
            about["classifier"]["accuracy"] =
                serde_json::to_value(Share::of((0..set.test.len()).map(|i| i < right))).expect("plain data");
            let token = match arguments.token {
                Law::Paper => Token::PAPER,
                Law::Reference => Token::REFERENCE,
            };
            let how = Exemplars {
                token,
                images: arguments.images.into(),
                each: arguments.exemplars,
                particles: arguments.particles.into(),
            };
            let classes = exemplars((&opened.artist, &classifier), &set, &how, Rng::new(seed, 0), screen)?;
            let map = table(&classes, &arguments.source);
            for end in [".png", ".svg"] {
                map.write(&beside(out, end))?;
                say!("Written: {}", quoted(beside(out, end)));
            }
            classes
        }
    };
    let recognised = Share::of(classes.iter().flat_map(|c| (0..c.recognised.of).map(|i| i < c.recognised.right)));
    let mean = classes.iter().map(|c| c.diversity).sum::<f64>() / classes.len() as f64;
    if !classes.is_empty() {
        about["exemplars"] = json!({ "recognised": recognised, "diversity": mean, "classes": classes });
    }
    save(&generated, &mut about)?;
    say!("Written: {}", quoted(&path));
    let text = rows(&generated, about["test_images"].as_f64(), &classes);
    write_atomically(&beside(out, ".csv"), |file| file.write_all(text.as_bytes()))?;
    say!("Written: {}", quoted(beside(out, ".csv")));

    say!(
        "Fréchet distance from training images of {}, as {} sees them (no FID):",
        arguments.source,
        quoted(&arguments.classifier)
    );
    let std = generated.std.map_or_else(String::new, |std| format!(" ± {std:.3}"));
    say!(
        "  drawn from nothing  {:.3}{std}  ({} runs of {})",
        generated.mean.unwrap_or(f64::NAN),
        generated.distances.len(),
        arguments.count
    );
    if let Some(distance) = about["test_images"].as_f64() {
        say!("  test images         {distance:.3}");
    }
    if !classes.is_empty() {
        let [share, low, high] = [recognised.share, recognised.low, recognised.high].map(|v| 100.0 * v);
        let accuracy = 100.0 * about["classifier"]["accuracy"]["share"].as_f64().unwrap_or(f64::NAN);
        say!(
            "Exemplars: {share:.1} % recognised ({low:.1} to {high:.1}; test images: {accuracy:.1} %), diversity {mean:.2}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The distances that a file holds, if they are of the same.
fn known(path: &std::path::Path, about: &Value) -> Result<Generated> {
    let wrong = |why: &str| Error::Usage(format!("{} cannot be gone on with: {why}", quoted(path)));
    let anew = |what: String| wrong(&format!("{what}; leave --resume out to begin anew"));
    let before: Value = from_json(&files::read(path)?).map_err(anew)?;
    // More runs, and other exemplars, are no other drawings.
    let same = [
        "/format",
        "/sha256",
        "/images_sha256",
        "/classifier/sha256",
        "/seed",
        "/protocol/drawings",
        "/protocol/heat",
        "/protocol/pen",
        "/protocol/strokes",
    ];
    if same.iter().any(|field| before.pointer(field) != about.pointer(field)) {
        return Err(wrong("it is of another model, classifier, set, seed or number of drawings; leave --resume out"));
    }
    serde_json::from_value(before["generated"].clone()).map_err(|e| anew(format!("it is damaged ({e})")))
}

/// A row per class: an image and exemplars of it, how many are recognised, how they differ.
fn table<'c>(classes: &'c [OfClass], source: &Source) -> Heatmap<'c> {
    let most = classes.len().min(50);
    let cell = |class: &'c OfClass| HeatCell {
        value: Some(100.0 * class.recognised.share),
        lines: vec![
            format!("{:.0} % recognised", 100.0 * class.recognised.share),
            format!("diversity {:.2}", class.diversity),
        ],
        pictures: class
            .shown
            .lead
            .iter()
            .map(Vec::as_slice)
            .chain(class.shown.drawn.iter().take(8).map(Drawn::canvas))
            .collect(),
        bars: vec![],
    };
    Heatmap {
        title: format!("Exemplars of {}", source.word()),
        corner: "class:".into(),
        columns: vec![HeatCell { lines: vec!["image, and exemplars of it".into()], ..HeatCell::default() }],
        rows: classes[..most].iter().map(|class| vec![class.class.to_string()]).collect(),
        cells: classes[..most].iter().map(|class| vec![cell(class)]).collect(),
        notes: vec!["Diversity: the spread of features, 1 being that of the images of the class.".into()],
    }
}

/// A row per number.
fn rows(generated: &Generated, test_images: Option<f64>, classes: &[OfClass]) -> String {
    let mut text = "what,run,class,value\n".to_owned();
    for (run, distance) in generated.distances.iter().enumerate() {
        let _ = writeln!(text, "distance_of_drawings,{},,{distance}", run + 1);
    }
    if let Some(distance) = test_images {
        let _ = writeln!(text, "distance_of_test_images,,,{distance}");
    }
    for OfClass { class, recognised, spread, spread_of_images, diversity, .. } in classes {
        for (what, value) in [
            ("recognised", recognised.share),
            ("spread_of_exemplars", *spread),
            ("spread_of_images", *spread_of_images),
            ("diversity", *diversity),
        ] {
            let _ = writeln!(text, "{what},,{class},{value}");
        }
    }
    text
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments, screen| {
        let kept = beside(&arguments.out, ".json");
        common::resumable(&kept, || measure(arguments, screen))
    })
}
