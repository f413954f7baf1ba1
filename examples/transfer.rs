//! The table of the paper: models that learned from one set, measured on all of them, beside the published numbers.

mod common;

use clap::Parser;
use common::{Compute, Data, Reading, Screen, Split, beside, say, source};
use dood::{
    Error, Result, checkpoint,
    data::Source,
    eval::transfer::{Entry, Loaded, Options, Sample, Table, Trained, View},
    files::{quoted, write_atomically},
    measure::{Ends, Protocol},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

/// How well models draw what they have not learned from: a table with a row for every set that was learned from and a column for every
/// set that is drawn, of bounds on log p(x), with drawings in it and the paper's numbers beside its own.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  transfer --checkpoint mnist --data mnist --data kmnist --count 20 --particles 5
  transfer --checkpoint runs/mnist-hour-warp --checkpoint runs/kmnist-hour-warp \\
           --data mnist:data/mnist --data kmnist:data/kmnist --count 500 --out results/transfer
  transfer … --all-ends --refine 100     what the same models reach beyond the published protocol, on lines of its own

It writes OUT.png and OUT.svg (the table), OUT-strokes.png and .svg (how many strokes images take), OUT.csv, and OUT.json with
everything that the numbers depend on. What OUT.json holds of the same checkpoints, images, seed and protocol is not measured
again: the same command goes on where it was stopped, and one with more checkpoints or sets measures only these.

Several checkpoints of the same model and set are one row, of their mean ± standard deviation. A single one has the standard
error of the mean over images. The published numbers are of 200 particles on all test images.")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …); give it once for every model
    #[arg(long, value_name = "FILE", required = true, value_parser = common::checkpoint())]
    checkpoint: Vec<PathBuf>,
    /// Images to draw, as everywhere: mnist, kmnist:FOLDER, images:FOLDER, …; give it once for every set
    #[arg(long, value_name = "SOURCE", required = true, value_parser = source())]
    data: Vec<Source>,
    #[command(flatten)]
    reading: Reading,
    /// From which part of the sets
    #[arg(long, default_value = "test")]
    split: Split,
    /// How many images of each set, from everywhere in it [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Drawings per image (the paper: 200)
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    particles: u32,
    /// Also weigh all ends of every drawing instead of the one that is sampled: tighter bounds, on a line of their own
    #[arg(long)]
    all_ends: bool,
    /// Also refine the networks' answers for every image first, by so many updates (100 do a lot): bounds by inference at test time,
    /// on a line of their own
    #[arg(long, value_name = "UPDATES", default_value_t = 0)]
    refine: u16,
    /// Strokes at most where they are counted, also more than the models have learned with (the paper: 10)
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    strokes: u16,
    /// Images of each set whose drawings are shown in the table
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=8))]
    pictures: u16,
    /// The files to write, without what they end in
    #[arg(long, value_name = "OUT", default_value = "transfer")]
    out: PathBuf,
    /// Measure everything again; what OUT.json holds is replaced
    #[arg(long)]
    anew: bool,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
}

/// What is twice in a list, by its name.
fn twice<T>(all: &[T], same: impl Fn(&T, &T) -> bool, name: impl Fn(&T) -> String) -> Option<(String, String)> {
    let second =
        |i: usize| all[..i].iter().find(|earlier| same(earlier, &all[i])).map(|first| (name(first), name(&all[i])));
    (0..all.len()).find_map(second)
}

fn transfer(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let out = &arguments.out;
    common::check_out(out)?;
    let json = beside(out, ".json");
    let mut table = match json.exists() && !arguments.anew {
        true => Table::read(&json)?,
        false => Table::new(String::new()),
    };
    table.command = common::command("transfer");
    let find = |path: &PathBuf| Trained::read(&checkpoint::find(path)?);
    let checkpoints = arguments.checkpoint.iter().map(find).collect::<Result<Vec<Trained>>>()?;
    if let Some((a, b)) = twice(&checkpoints, |a, b| a.sha256 == b.sha256, |one| one.path.clone()) {
        let other = if a == b { String::new() } else { format!(", as {}", quoted(&b)) };
        return Err(Error::Usage(format!("the checkpoint {} is named twice{other}: name it once", quoted(&a))));
    }
    let device = arguments.compute.open(screen)?;
    let samples = load(&arguments, &checkpoints, screen)?;
    let (particles, refine) = (arguments.particles as usize, usize::from(arguments.refine));
    let published = Protocol::published(particles);
    let ends = if arguments.all_ends { &[Ends::Sampled, Ends::All][..] } else { &[Ends::Sampled] };
    let mut protocols = vec![];
    for (refine, &ends) in [0, refine].iter().flat_map(|refine| ends.iter().map(move |ends| (*refine, ends))) {
        let protocol = Protocol { ends, refine, ..published };
        if !protocols.contains(&protocol) {
            protocols.push(protocol);
        }
    }
    let options = Options { protocols, seed: arguments.seed, strokes: arguments.strokes.into() };
    let known: Vec<Sample> = samples.iter().map(|loaded| loaded.sample.clone()).collect();
    let view = View::new(&checkpoints, &known, &options);
    let began = Instant::now();
    let filled =
        table.fill((&checkpoints, &samples), &options, (&device, screen), &mut |table| table.write(&json, &view));
    let seconds = began.elapsed().as_secs_f64();
    // What is known is shown, also where it is not all.
    let entries = view.entries(&table);
    if !entries.is_empty() {
        write(&view, &table, out)?;
        show(&entries, arguments.particles);
    }
    match filled {
        Ok(new) => {
            let all = checkpoints.len() * arguments.data.len();
            say!("{new} of {all} cells were measured now, in {seconds:.1} s; the others were known.");
            Ok(ExitCode::SUCCESS)
        }
        Err(Error::Stopped) if json.exists() => {
            say!("What was measured is in {}; to go on, the same command again.", quoted(&json));
            Err(Error::Stopped)
        }
        Err(error) => Err(error),
    }
}

/// The images of every set, in every size that a checkpoint needs.
fn load(arguments: &Arguments, checkpoints: &[Trained], screen: &Screen) -> Result<Vec<Loaded>> {
    let count = arguments.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let mut sides: Vec<usize> = checkpoints.iter().map(|trained| trained.config.image).collect();
    sides.sort_unstable();
    sides.dedup();
    let mut samples = vec![];
    for source in &arguments.data {
        for &side in &sides {
            let data = Data { source: source.clone(), reading: arguments.reading.clone(), split: arguments.split };
            let images = data.load(&arguments.reading.options(side), screen)?;
            samples.push(Loaded::new(source, arguments.split.name(), &images, (count, arguments.pictures.into())));
        }
    }
    let same = |a: &Loaded, b: &Loaded| (&a.sample.sha256, a.sample.side) == (&b.sample.sha256, b.sample.side);
    match twice(&samples, same, |one| one.sample.source.to_string()) {
        Some((a, b)) => {
            Err(Error::Usage(format!("the images of --data {a} and --data {b} are the same: name them once")))
        }
        None => Ok(samples),
    }
}

fn write(view: &View, table: &Table, out: &Path) -> Result<()> {
    let csv = view.csv(table);
    write_atomically(&beside(out, ".csv"), |file| file.write_all(csv.as_bytes()))?;
    for kind in ["png", "svg"] {
        view.heatmap(table, &beside(out, &format!(".{kind}")))?;
        view.strokes(table, &beside(out, &format!("-strokes.{kind}")))?;
    }
    for end in [".png", ".svg", "-strokes.png", "-strokes.svg", ".csv", ".json"] {
        say!("Written: {}", quoted(beside(out, end)));
    }
    Ok(())
}

/// A line per row, set and protocol.
fn show(entries: &[Entry], particles: u32) {
    let what = if particles > 1 { "IWAE bound" } else { "ELBO" };
    say!("{what} in nats per image, {particles} drawings of each:");
    let width = |text: fn(&Entry) -> &str| entries.iter().map(|entry| text(entry).chars().count()).max().unwrap_or(0);
    let (train, test) = (width(|entry| &entry.train), width(|entry| &entry.test));
    for entry in entries {
        let spread = entry.std.or(entry.standard_error).map_or_else(String::new, |spread| format!("± {spread:.1}"));
        let mut words: Vec<String> = vec![];
        words.extend((entry.runs > 1).then(|| format!("{} runs", entry.runs)));
        words.extend((entry.protocol.refine > 0).then(|| format!("refined by {} updates", entry.protocol.refine)));
        words.extend((entry.protocol.ends == Ends::All).then(|| "all ends".into()));
        words.extend(entry.published.map(|paper| format!("paper {:.1}", paper.mean)));
        let line = format!(
            "  {:train$} on {:test$}  {:10.1} {spread:10}  {}",
            entry.train,
            entry.test,
            entry.bound,
            words.join(", ")
        );
        say!("{}", line.trim_end());
    }
}

fn main() -> ExitCode {
    common::main(transfer)
}
