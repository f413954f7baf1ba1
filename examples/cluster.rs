//! Which strokes a model draws with: clusters of them, how well they stand apart, and a map.

mod common;

use clap::Parser;
use common::{Compute, Reading, Screen, beside, say, source};
use dood::{
    Error, Observer, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Images, Source},
    eval::{
        Artist, Brush, Drawing, Stroke,
        cluster::{Clusters, PUBLISHED, Points, UPDATES, k_means, silhouette, tsne},
        kept, paint,
    },
    figures::{Grid, Mark, Tile, map_svg},
    files::{self, quoted, sha256},
    measure::{pixels, spread},
    observer::{Unit, task},
    rng::Rng,
};
use serde_json::json;
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Finds groups among the strokes that a model draws images with, each in its own window: k-means, the silhouette coefficient, and a map
/// (t-SNE) with the curves drawn on it (Fig. 5 of the paper).
#[derive(Parser)]
#[command(after_help = "\
Examples:
  cluster --checkpoint mnist --data mnist
  cluster --checkpoint runs/mnist-hour-warp --data mnist --k 5,8,10,15 --show 8 --out strokes

It draws training images once each until it has enough strokes. strokes.json has the numbers with everything they depend on, strokes.csv
a row per stroke with its cluster, strokes.png each cluster's centre and some of its strokes from the nearest to the farthest, strokes.svg
the map. The strokes are kept in strokes-drawn.safetensors: work that was stopped goes on with --resume, also to more strokes. A silhouette is 1 where clusters lie far apart and 0 where they touch; the paper has 0.21 for 8 clusters on MNIST.")]
struct Arguments {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = common::checkpoint())]
    checkpoint: PathBuf,
    /// The set whose training images are drawn, as mnist or mnist:FOLDER
    #[arg(long = "data", value_name = "SOURCE", value_parser = source())]
    source: Source,
    #[command(flatten)]
    reading: Reading,
    /// How many strokes are collected (the paper: 10,000)
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=200_000))]
    strokes: u32,
    /// Numbers of clusters to try
    #[arg(long = "k", value_delimiter = ',', default_value = "5,8,10,15", value_parser = clap::value_parser!(u16).range(1..=1000))]
    counts: Vec<u16>,
    /// The number of clusters that the pictures and the CSV show; one of --k
    #[arg(long, default_value_t = 8)]
    show: u16,
    /// Strokes on the map; time grows with their square
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    map: u32,
    /// What is written: OUT.json, OUT.csv, OUT.png and OUT.svg
    #[arg(long, default_value = "cluster", value_name = "OUT")]
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

/// Images that are drawn at once.
const AT_ONCE: usize = 64;
/// Strokes that are shown of a cluster.
const EXEMPLARS: usize = 10;

fn cluster(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let out = &arguments.out;
    common::check_out(out)?;
    let kept = beside(out, "-drawn.safetensors");
    if arguments.resume && !kept.exists() {
        return Err(Error::Usage(format!("there is no {} to resume from: leave --resume out", quoted(&kept))));
    }
    let (wanted, show) = (arguments.strokes as usize, usize::from(arguments.show));
    if !arguments.counts.contains(&arguments.show) {
        return Err(Error::Usage(format!("--show {show} is not among the numbers of clusters: add it to --k")));
    }
    let path = checkpoint::find(&arguments.checkpoint)?;
    let bytes = files::read(&path)?;
    let device = arguments.compute.open(screen)?;
    let (model, params) = Checkpoint::parse(&bytes, &path.display().to_string())?.model(&device)?;
    let artist = Artist { model, params };
    let options = arguments.reading.for_model(&path, &arguments.source, screen)?;
    let images = data::load_or_fetch(&arguments.source, &options, screen)?.train;

    let about = json!({ "checkpoint": sha256(&bytes), "images": sha256(&images.pixels), "seed": arguments.seed });
    let mut collected = Collected::new(&artist, about.to_string());
    if arguments.resume {
        collected.read(&kept)?;
    }
    let done = collected.fill(&artist, &images, wanted, arguments.seed, screen);
    // What was drawn is kept, however it ended.
    collected.write(&kept)?;
    done?;
    let (strokes, drawn) = collected.first(wanted);
    let most = arguments.counts.iter().map(|&k| usize::from(k)).max().unwrap_or(1);
    if strokes.len() < most {
        return Err(Error::Usage(format!(
            "the model draws these images with {} strokes, which make no {most} clusters: ask for fewer with --k",
            strokes.len()
        )));
    }
    let mut tried = vec![];
    task(screen, "Clustering", arguments.counts.len(), || {
        for &k in &arguments.counts {
            screen.go_on()?;
            let clusters = k_means(&strokes, k.into(), Rng::new(arguments.seed, 0));
            let apart = silhouette(&strokes, &clusters.labels);
            tried.push((clusters, apart));
            screen.advance(1);
        }
        Ok(())
    })?;
    let chosen = arguments.counts.iter().position(|&k| usize::from(k) == show).expect("it is among them");
    let clusters = &tried[chosen].0;

    let on_map = spread(arguments.map as usize, strokes.len());
    screen.begin("Mapping", Some(UPDATES as u64), Unit::Items);
    let map = tsne(&strokes.pick(&on_map), screen);
    screen.end();
    let map = map?;

    let curves = artist.model.draws_curves();
    let mark = |(i, &stroke): (usize, &usize)| Mark {
        place: map.places[i],
        group: clusters.labels[stroke],
        points: if curves { shrunk(strokes.row(stroke)).iter().map(|p| p.map(|v| v as f32)).collect() } else { vec![] },
    };
    let marks: Vec<Mark> = on_map.iter().enumerate().map(mark).collect();
    let names: Vec<String> =
        clusters.sizes().iter().enumerate().map(|(c, n)| format!("cluster {}: {n}", c + 1)).collect();
    let title = format!("{} strokes of {drawn} images, {} of them on the map (t-SNE)", strokes.len(), on_map.len());
    map_svg(&beside(out, ".svg"), &title, &marks, &names)?;
    let mut written = vec!["json", "csv", "svg"];
    if curves {
        gallery(&strokes, clusters).write(&artist, out)?;
        written.push("png");
    }
    let text = rows(&strokes, clusters, &on_map, &map.places);
    files::write_atomically(&beside(out, ".csv"), |file| file.write_all(text.as_bytes()))?;
    let of_k = |(clusters, apart): &(Clusters, Option<f64>)| {
        let paper = PUBLISHED.iter().find(|(k, ..)| *k == clusters.centres.len());
        json!({
            "k": clusters.centres.len(),
            "silhouette": apart,
            "inertia": clusters.inertia,
            "sizes": clusters.sizes(),
            "paper_mnist": paper.map(|(_, dood, air)| json!({ "dood": dood, "difference_air": air })),
        })
    };
    let about = json!({
        "format": "dood-cluster",
        "version": 1,
        "command": common::command("cluster"),
        "checkpoint": path.to_string_lossy(),
        "sha256": sha256(&bytes),
        "data": arguments.source.to_string(),
        "split": "training",
        "seed": arguments.seed,
        "protocol": "one drawing per image, dropout off; strokes in their own windows, not standardised; Euclidean distances",
        "images": drawn,
        "strokes": strokes.len(),
        "clusters": tried.iter().map(of_k).collect::<Vec<_>>(),
        "map": { "strokes": on_map.len(), "divergence": map.divergence },
    });
    files::write_atomically(&beside(out, ".json"), |file| writeln!(file, "{about:#}"))?;
    written.iter().for_each(|kind| say!("Written: {}", quoted(beside(out, &format!(".{kind}")))));

    say!("{} strokes of {drawn} training images of {}:", strokes.len(), arguments.source);
    say!("  clusters  silhouette   inertia   paper on MNIST (DooD, Difference-AIR)");
    for (clusters, apart) in &tried {
        let k = clusters.centres.len();
        let paper = PUBLISHED.iter().find(|(published, ..)| *published == k);
        let paper = paper.map_or_else(String::new, |(_, dood, air)| format!("{dood:.2}, {air:.2}"));
        let apart = apart.map_or_else(|| "-".to_owned(), |apart| format!("{apart:.3}"));
        say!("  {k:>8}  {apart:>10}  {:>8.1}   {paper}", clusters.inertia);
    }
    Ok(ExitCode::SUCCESS)
}

/// Strokes, as far as they are drawn, and what they depend on.
struct Collected {
    about: String,
    strokes: Points,
    /// Of every image that was drawn, how many strokes it took.
    counts: Points,
}

impl Collected {
    fn new(artist: &Artist, about: String) -> Self {
        let none = |dim| Points { dim, values: vec![] };
        Collected { about, strokes: none(artist.model.config.stroke_dim()), counts: none(1) }
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        kept::read(path, &self.about, &mut [("strokes", &mut self.strokes), ("counts", &mut self.counts)])
    }

    fn write(&self, path: &Path) -> Result<()> {
        kept::write(path, &self.about, &[("strokes", &self.strokes), ("counts", &self.counts)])
    }

    /// Draws images from everywhere in the set, once each, until there are so many strokes, or no further image.
    fn fill(
        &mut self,
        artist: &Artist,
        images: &Images,
        wanted: usize,
        seed: u64,
        observer: &dyn Observer,
    ) -> Result<()> {
        if self.strokes.len() >= wanted {
            return Ok(());
        }
        let most = artist.model.config.strokes;
        // In an order that takes every part of the set in turn, however many are needed.
        let order: Vec<u32> = Rng::new(seed, 0).permutation(dood::rng::Stream(20), images.len());
        task(observer, "Drawing", wanted, || {
            observer.already(self.strokes.len() as u64);
            for (batch, some) in order.chunks(AT_ONCE).enumerate().skip(self.counts.len().div_ceil(AT_ONCE)) {
                observer.go_on()?;
                let x = pixels(images, some.iter().map(|&i| i as usize), artist.params.device());
                let drawings = artist.recognise(&x, most, Rng::new(seed, batch as u64))?;
                let (onoff, strokes) = (drawings.z.onoff.to_f64(), drawings.z.stroke.to_f64());
                let (before, dim) = (self.strokes.len(), self.strokes.dim);
                for (i, _) in onoff.iter().enumerate().filter(|(_, on)| **on == 1.0) {
                    self.strokes.values.extend_from_slice(&strokes[i * dim..][..dim]);
                }
                self.counts.values.extend(drawings.counts().into_iter().map(|count| count as f64));
                observer.advance((self.strokes.len() - before) as u64);
                if self.strokes.len() >= wanted {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The first so many strokes, and how many images were drawn for them, batch by batch.
    fn first(&self, wanted: usize) -> (Points, usize) {
        let mut drawn = 0;
        let mut strokes = 0.0;
        for batch in self.counts.values.chunks(AT_ONCE) {
            if strokes >= wanted as f64 {
                break;
            }
            strokes += batch.iter().sum::<f64>();
            drawn += batch.len();
        }
        let dim = self.strokes.dim;
        let values = self.strokes.values[..self.strokes.values.len().min(wanted * dim)].to_vec();
        (Points { dim, values }, drawn)
    }
}

/// The control points of a stroke in its window, which may leave it a little, inside [0, 1].
fn shrunk(stroke: &[f64]) -> Vec<[f64; 2]> {
    stroke.as_chunks::<2>().0.iter().map(|p| p.map(|v| (v + 0.2) / 1.4)).collect()
}

/// Clusters to be shown: for each its size, its centre, and some of its strokes.
struct Gallery(Vec<(String, Vec<Drawing>)>);

fn gallery(strokes: &Points, clusters: &Clusters) -> Gallery {
    let drawing = |stroke: &[f64]| Drawing {
        strokes: vec![Stroke { points: shrunk(stroke), ..Stroke::default() }],
        ..Drawing::default()
    };
    let row = |(c, size): (usize, &usize)| {
        let centre = clusters.centres.row(c);
        let away = |i: usize| strokes.row(i).iter().zip(centre).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let mut own: Vec<usize> = (0..strokes.len()).filter(|&i| clusters.labels[i] == c).collect();
        own.sort_by(|&a, &b| away(a).total_cmp(&away(b)));
        let shown = spread(EXEMPLARS, own.len()).into_iter().map(|i| drawing(strokes.row(own[i])));
        (format!("{}: {size}", c + 1), std::iter::once(drawing(centre)).chain(shown).collect())
    };
    Gallery(clusters.sizes().iter().enumerate().map(row).collect())
}

impl Gallery {
    fn write(&self, artist: &Artist, out: &Path) -> Result<()> {
        const SIDE: usize = 50;
        let all: Vec<Drawing> = self.0.iter().flat_map(|(_, drawings)| drawings.clone()).collect();
        let brush = Brush { width: 0.02, ..Brush::default() };
        let canvases = paint(&all, brush, SIDE, artist.params.device()).pop().expect("at least one canvas").to_f32();
        let mut tiles = canvases.chunks(SIDE * SIDE).map(|pixels| Tile { pixels, ..Tile::default() });
        let rows: Vec<Vec<Tile>> =
            self.0.iter().map(|(_, drawings)| tiles.by_ref().take(drawings.len()).collect()).collect();
        let labels: Vec<&str> = self.0.iter().map(|(label, _)| label.as_str()).collect();
        let mut captions = vec!["centre", "nearest"];
        captions.resize(EXEMPLARS, "");
        captions.push("farther");
        Grid { side: SIDE, scale: 1, captions: &captions, labels: &labels, rows: &rows }.write(&beside(out, ".png"))
    }
}

/// A row per stroke: its cluster, its place on the map where it has one, its numbers.
fn rows(strokes: &Points, clusters: &Clusters, on_map: &[usize], places: &[[f64; 2]]) -> String {
    let numbers: String = (0..strokes.dim).map(|k| format!(",s{k}")).collect();
    let mut text = format!("cluster,map_x,map_y{numbers}\n");
    let mut map = on_map.iter().zip(places).peekable();
    for (i, label) in clusters.labels.iter().enumerate() {
        let place = map.next_if(|(stroke, _)| **stroke == i).map(|(_, place)| place);
        let place = place.map_or_else(|| ",".to_owned(), |[x, y]| format!("{x},{y}"));
        let numbers: String = strokes.row(i).iter().map(|v| format!(",{v}")).collect();
        let _ = writeln!(text, "{},{place}{numbers}", label + 1);
    }
    text
}

fn main() -> ExitCode {
    common::main(|arguments: Arguments, screen| {
        let kept = common::beside(&arguments.out, "-drawn.safetensors");
        common::resumable(&kept, || cluster(arguments, screen))
    })
}
