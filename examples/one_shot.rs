//! One-shot classification on the 20 official runs of Omniglot: the model beside methods that know nothing of drawing.

mod common;

use clap::{Parser, ValueEnum};
use common::{Compute, Screen, say};
use dood::{
    Error, Observer, Result, checkpoint,
    data::{
        Run, Set, Source, alphabets_of,
        download::{cache_folder, fetch},
        one_shot_runs, resize,
    },
    eval::{
        Artist,
        kept::from_json,
        one_shot::{
            Episode,
            classic::Classic,
            exemplar::{self, Protocol},
            statistics::{Paired, Share},
        },
    },
    figures::{Grid, Tile, Window},
    files::{self, quoted, sha256, write_atomically},
    observer::Unit,
    rng::Rng,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// Says how well characters are known again that were seen once: 20 new drawings for each of 20 characters of one alphabet, in 20 runs.
#[derive(Parser)]
#[command(after_help = "\
Methods:
  hausdorff  the modified Hausdorff distance of ink pixels (published: 38.8 % errors)
  pixels     the nearest image, pixel by pixel (published: 21.7 % right)
  affine     the distance of ink from ink after the best affine map
  reference  the model: a new drawing is of the character of which it is most likely another exemplar, as the authors' program
             computes it (published: 73.5 % right for DooD)
  improved   the same with its quirks mended (rotations, the count of strokes), both ways, from where the ink of both lies together best
Models without curves (air, dair, dr) move the codes of their strokes; reference is then that of AIR (published: 14.5 % right), which has
9 parses of one drawing each and an affine map that is not used; improved uses it.

Examples:
  one_shot --download
  one_shot --runs data/omniglot --checkpoint runs/omniglot --method hausdorff,improved
  one_shot --runs data/omniglot --checkpoint runs/omniglot --resume

Writes NAME.json with all scores and everything they depend on, NAME.csv with a row per decision, and NAME-METHOD.png. The JSON is
written after every run, so work that was stopped goes on with --resume. Intervals are Wilson's of 95 %; methods are compared by the
exact sign test on the decisions that only one of them got right.")]
struct Arguments {
    /// The official runs: all_runs.zip, the folder of run01 to run20, or the folder that has either; where that folder has
    /// images_evaluation.zip too, each run's alphabet is found in it [default: where --data omniglot is]
    #[arg(long, value_name = "PATH")]
    runs: Option<PathBuf>,
    /// Fetch the runs, and the rest of Omniglot, from their official address if they are not there
    #[arg(long)]
    download: bool,
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …), for the methods of the model
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: Option<PathBuf>,
    /// Which methods, with commas between them [default: the first three, and with a checkpoint all]
    #[arg(long, value_delimiter = ',', value_name = "METHOD")]
    method: Vec<Method>,
    /// Only the first so many runs
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=20))]
    count: u16,
    /// Parses of every character [default: 12; 9 for models without curves]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    parses: Option<u16>,
    /// Drawings per parse, of which the best is taken [default: 20; 1 for models without curves]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    particles: Option<u16>,
    /// Updates by which an exemplar comes closer to a new drawing
    #[arg(long, default_value_t = 100)]
    updates: u16,
    /// Explain characters by new drawings as well: yes or no [default: yes for improved, no for reference]
    #[arg(long, value_name = "YES", value_parser = yes)]
    two_way: Option<bool>,
    /// Names the files: NAME.json, NAME.csv and NAME-METHOD.png
    #[arg(long, default_value = "one_shot", value_name = "NAME")]
    out: PathBuf,
    /// Go on where NAME.json ends
    #[arg(long)]
    resume: bool,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

fn yes(word: &str) -> Result<bool, String> {
    match word {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("choose yes or no".into()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    Hausdorff,
    Pixels,
    Affine,
    Reference,
    Improved,
}

impl Method {
    const ALL: [Method; 5] = [Method::Hausdorff, Method::Pixels, Method::Affine, Method::Reference, Method::Improved];

    /// The way that needs no model.
    fn classic(self) -> Option<Classic> {
        match self {
            Method::Hausdorff => Some(Classic::Hausdorff),
            Method::Pixels => Some(Classic::Pixels),
            Method::Affine => Some(Classic::Affine),
            Method::Reference | Method::Improved => None,
        }
    }

    /// The model's.
    fn protocol(self, arguments: &Arguments, curves: bool) -> Option<Protocol> {
        let preset = match self {
            Method::Reference => Protocol::REFERENCE,
            Method::Improved => Protocol::IMPROVED,
            _ => return None,
        };
        let usual = if curves { Protocol::REFERENCE } else { Protocol::AIR };
        Some(Protocol {
            parses: arguments.parses.map_or(usual.parses, usize::from),
            particles: arguments.particles.map_or(usual.particles, usize::from),
            updates: arguments.updates.into(),
            two_way: arguments.two_way.unwrap_or(preset.two_way),
            ..preset
        })
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// What the scores of a model depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Model {
    checkpoint: String,
    sha256: String,
    #[serde(default)]
    variant: String,
    seed: u64,
    protocol: Protocol,
}

/// What a method says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Said {
    method: Method,
    /// What was last asked of it.
    #[serde(default)]
    command: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    model: Option<Model>,
    #[serde(default)]
    runs: Vec<Episode>,
}

const FORMAT: &str = "dood-one-shot";

/// The JSON file.
#[derive(Serialize, Deserialize)]
struct Report {
    format: String,
    version: u32,
    command: String,
    /// Digest of the images of all runs.
    runs_sha256: String,
    /// Of each run, where they are known.
    #[serde(default)]
    alphabets: Option<Vec<String>>,
    #[serde(default)]
    summary: Vec<Summary>,
    #[serde(default)]
    paired: Vec<Comparison>,
    methods: Vec<Said>,
}

/// How often a method is right.
#[derive(Serialize, Deserialize)]
struct Summary {
    method: Method,
    overall: Share,
    per_run: Vec<Share>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    per_alphabet: BTreeMap<String, Share>,
    seconds: f64,
}

/// Two methods on the same decisions.
#[derive(Serialize, Deserialize)]
struct Comparison {
    methods: [Method; 2],
    #[serde(flatten)]
    paired: Paired,
}

impl Report {
    fn read(path: &Path) -> Result<Self> {
        let text = files::read(path)?;
        let wrong = |why: String| {
            Error::Data(format!("{} cannot be gone on with: {why}; leave --resume out to begin anew", quoted(path)))
        };
        let report: Report = from_json(&text).map_err(wrong)?;
        if (report.format.as_str(), report.version) != (FORMAT, 1) {
            return Err(wrong("it is not a file of this program".into()));
        }
        let whole = |scores: &Vec<f64>| scores.len() == 20;
        let sound = |e: &Episode| e.answers.len() == 20 && e.scores.len() == 20 && e.scores.iter().all(whole);
        let in_order = |said: &Said| said.runs.iter().enumerate().all(|(i, e)| e.run == i + 1 && sound(e));
        if report.methods.iter().all(in_order) {
            Ok(report)
        } else {
            Err(wrong("runs or scores are missing in it".into()))
        }
    }

    /// Sums up what the methods say.
    fn sum_up(&mut self) {
        let share = |said: &Said, of: &dyn Fn(usize) -> bool| {
            Share::of(said.runs.iter().filter(|e| of(e.run)).flat_map(Episode::right))
        };
        let summary = |said: &Said| {
            let alphabets = self.alphabets.iter().flat_map(|names| names[..said.runs.len()].iter());
            let of = |name: &String| {
                let is_of = |run: usize| self.alphabets.as_ref().is_some_and(|names| names[run - 1] == *name);
                (name.clone(), share(said, &is_of))
            };
            Summary {
                method: said.method,
                overall: share(said, &|_| true),
                per_run: said.runs.iter().map(|episode| Share::of(episode.right())).collect(),
                per_alphabet: alphabets.map(of).collect(),
                seconds: said.runs.iter().map(|episode| episode.seconds).sum(),
            }
        };
        let said: Vec<&Said> = self.methods.iter().filter(|said| !said.runs.is_empty()).collect();
        let pairs = said.iter().enumerate().flat_map(|(i, a)| said[i + 1..].iter().map(move |b| (a, b)));
        let compare = |(a, b): (&&Said, &&Said)| {
            let both = a.runs.len().min(b.runs.len());
            let right = |said: &Said| said.runs[..both].iter().flat_map(Episode::right).collect::<Vec<_>>();
            Comparison { methods: [a.method, b.method], paired: Paired::of(&right(a), &right(b)) }
        };
        let (summaries, paired) = (said.iter().map(|said| summary(said)).collect(), pairs.map(compare).collect());
        (self.summary, self.paired) = (summaries, paired);
    }

    fn write(&mut self, path: &Path) -> Result<()> {
        self.sum_up();
        let text = serde_json::to_string(self).expect("plain data can be written as JSON");
        write_atomically(path, |file| writeln!(file, "{text}"))
    }

    /// A row per decision.
    fn rows(&self) -> String {
        let mut text = "method,run,alphabet,query,answer,guess,right\n".to_owned();
        for said in &self.methods {
            for episode in &said.runs {
                let alphabet = self.alphabets.as_ref().map_or("", |names| &names[episode.run - 1]);
                for (query, (guess, answer)) in episode.guesses().iter().zip(&episode.answers).enumerate() {
                    let (method, run, right) = (said.method.name(), episode.run, u8::from(guess == answer));
                    let _ =
                        writeln!(text, "{method},{run},{alphabet},{},{},{},{right}", query + 1, answer + 1, guess + 1);
                }
            }
        }
        text
    }
}

/// The size of the official images, and of those in pictures.
const SIDE: usize = 105;
const SHOWN: usize = 40;

fn one_shot(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    common::check_out(&arguments.out)?;
    let named = |end: &str| common::beside(&arguments.out, end);
    let (json, csv) = (named(".json"), named(".csv"));
    let mut methods = match (&arguments.method[..], &arguments.checkpoint) {
        ([], Some(_)) => Method::ALL.to_vec(),
        ([], None) => Method::ALL[..3].to_vec(),
        (some, _) => some.to_vec(),
    };
    methods.sort();
    methods.dedup();
    if let (Some(method), None) = (methods.iter().find(|method| method.classic().is_none()), &arguments.checkpoint) {
        return Err(Error::Usage(format!("the method {} needs a model: name one with --checkpoint", method.name())));
    }
    if arguments.resume && !json.exists() {
        return Err(Error::Usage(format!("there is no {} to resume from: leave --resume out", quoted(&json))));
    }
    let needs_model = methods.iter().any(|method| method.classic().is_none());
    let device = if needs_model { Some(arguments.compute.open(screen)?) } else { None };
    if device.is_none() {
        arguments.compute.start_threads()?;
    }
    let place = arguments.runs.clone().unwrap_or_else(|| cache_folder(Set::Omniglot));
    if arguments.download {
        fetch(&Source::Public { set: Set::Omniglot, folder: place.clone() }, screen)?;
    }
    let runs = one_shot_runs(&place, SIDE)?;
    let alphabets = alphabets_of(&runs, &place)?;
    let pixels: Vec<u8> = runs.iter().flat_map(|run| [&run.support.pixels[..], &run.query.pixels].concat()).collect();
    let mut report = Report {
        format: FORMAT.into(),
        version: 1,
        command: common::command("one_shot"),
        runs_sha256: sha256(&pixels),
        alphabets,
        summary: vec![],
        paired: vec![],
        methods: vec![],
    };
    if arguments.resume {
        let before = Report::read(&json)?;
        if before.runs_sha256 != report.runs_sha256 {
            return Err(other(&json, "other runs"));
        }
        report.methods = before.methods;
    }
    let loaded = match (&arguments.checkpoint, &device) {
        (Some(path), Some(device)) => {
            let path = checkpoint::find(path)?;
            let digest = sha256(&files::read(&path)?);
            let artist = Artist::open(&path, device)?;
            let small = one_shot_runs(&place, artist.model.config.image)?;
            Some((path, digest, artist, small))
        }
        _ => None,
    };
    let count = usize::from(arguments.count);
    for method in methods {
        let model = loaded.as_ref().and_then(|(path, digest, artist, _)| {
            let protocol = method.protocol(&arguments, artist.model.draws_curves())?;
            let (checkpoint, variant) = (path.to_string_lossy().into(), artist.model.config.variant.to_string());
            Some(Model { checkpoint, sha256: digest.clone(), variant, seed: arguments.seed, protocol })
        });
        let at = match report.methods.iter().position(|said| said.method == method) {
            Some(at) if same(&report.methods[at].model, &model) => at,
            Some(_) => {
                return Err(other(&json, &format!("another model or protocol for the method {}", method.name())));
            }
            None => {
                report.methods.push(Said { method, command: String::new(), model: model.clone(), runs: vec![] });
                report.methods.len() - 1
            }
        };
        report.methods[at].command.clone_from(&report.command);
        let done = report.methods[at].runs.len();
        match method.classic() {
            Some(classic) => {
                screen.begin(&format!("Comparing ({})", method.name()), Some(count.max(done) as u64), Unit::Items);
                screen.already(done as u64);
                for (i, run) in runs.iter().enumerate().take(count).skip(done) {
                    let began = Instant::now();
                    let scores = classic.scores(run, screen)?;
                    report.methods[at].runs.push(Episode::new(i + 1, run, &scores, began.elapsed().as_secs_f64()));
                    screen.advance(1);
                }
                screen.end();
                report.write(&json)?;
            }
            None => {
                let ((_, _, artist, small), protocol) = (loaded.as_ref().expect("a model"), model.expect("as well"));
                for (i, run) in small.iter().enumerate().take(count).skip(done) {
                    screen.note(&format!("Run {} of {count} ({}):", i + 1, method.name()));
                    let (began, rng) = (Instant::now(), Rng::new(arguments.seed, (i as u64) << 32));
                    let scores = exemplar::scores(artist, run, &protocol.protocol, rng, screen)?;
                    report.methods[at].runs.push(Episode::new(i + 1, run, &scores, began.elapsed().as_secs_f64()));
                    report.write(&json)?;
                }
            }
        }
    }
    report.methods.sort_by_key(|said| said.method);
    report.write(&json)?;
    say!("Written: {}", quoted(&json));
    write_atomically(&csv, |file| file.write_all(report.rows().as_bytes()))?;
    say!("Written: {}", quoted(&csv));
    for said in report.methods.iter().filter(|said| !said.runs.is_empty()) {
        let path = named(&format!("-{}.png", said.method.name()));
        picture(&path, said, &runs)?;
        say!("Written: {}", quoted(&path));
    }
    tell(&report);
    Ok(ExitCode::SUCCESS)
}

/// Whether scores depend on the same; where the checkpoint lies does not matter.
fn same(before: &Option<Model>, now: &Option<Model>) -> bool {
    let essence = |model: &Option<Model>| model.as_ref().map(|m| (m.sha256.clone(), m.seed, m.protocol));
    essence(before) == essence(now)
}

fn other(json: &Path, what: &str) -> Error {
    Error::Usage(format!("{} is of {what}: choose another name with --out, or leave --resume out", quoted(json)))
}

/// Two rows per run, the queries above the characters that they were taken for: green where that is right.
fn picture(path: &Path, said: &Said, runs: &[Run]) -> Result<()> {
    let small = |pixels: &[u8]| resize(pixels, SIDE, SIDE, SHOWN).iter().map(|&v| f32::from(v) / 255.0).collect();
    let rows: Vec<Vec<Vec<f32>>> = (said.runs.iter())
        .flat_map(|episode| {
            let Run { support, query } = &runs[episode.run - 1];
            let queries = (0..query.len()).map(|i| small(query.image(i))).collect();
            [queries, episode.guesses().iter().map(|&guess| small(support.image(guess))).collect()]
        })
        .collect();
    // The colours of the second and of the third stroke are red and green.
    let frame = |right: bool| Window { affine: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], stroke: if right { 2 } else { 1 } };
    let mut tiles: Vec<Vec<Tile>> =
        rows.iter().map(|row| row.iter().map(|pixels| Tile { pixels, ..Tile::default() }).collect()).collect();
    for (guesses, episode) in tiles.iter_mut().skip(1).step_by(2).zip(&said.runs) {
        guesses.iter_mut().zip(episode.right()).for_each(|(tile, right)| tile.window = Some(frame(right)));
    }
    let labels: Vec<String> = (said.runs.iter())
        .flat_map(|e| [format!("run {}", e.run), format!("{} right", e.right().iter().filter(|right| **right).count())])
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    Grid { side: SHOWN, scale: 1, captions: &[], labels: &labels, rows: &tiles }.write(path)
}

/// The table.
fn tell(report: &Report) {
    say!("Right decisions, with 95 % intervals:");
    for summary in &report.summary {
        let Share { right, of, share, low, high } = summary.overall;
        let [share, low, high] = [share, low, high].map(|v| 100.0 * v);
        say!(
            "  {:<10} {share:5.1} %  ({low:.1} to {high:.1})  {right} of {of}, {:.1} s",
            summary.method.name(),
            summary.seconds
        );
    }
    for Comparison { methods, paired } in &report.paired {
        let [name, other] = methods.map(Method::name);
        say!("  only {name} right: {}, only {other}: {} (p = {:.2e})", paired.first, paired.second, paired.p);
    }
    if report.alphabets.is_none() {
        say!("The alphabets of the runs are not known without images_evaluation.zip beside them.");
    }
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments, screen| {
        let kept = common::beside(&arguments.out, ".json");
        common::resumable(&kept, || one_shot(arguments, screen))
    })
}
