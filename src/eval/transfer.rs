//! How well models draw what they have not learned from: the train × test table (sections 11a and 13 of the model), with strokes per
//! image (11b2) and some drawings (11b).
//!
//! A [`Table`] is what its file holds. [`Table::fill`] measures what is missing, one [`Cell`] after the other, so that work that was
//! interrupted goes on where it was; a cell is the same one if the checkpoint's and the images' digests and the seed are.

use super::{
    Artist,
    kept::from_json,
    published::{self, Published},
    reconstruction::{Best, reconstruct},
};
use crate::{
    Device, Error, Observer, Result,
    checkpoint::Checkpoint,
    data::{Images, Source},
    figures::{HeatCell, Heatmap, linked_picture, picture_link},
    files::{self, quoted, write_atomically},
    measure::{self, Draw, Ends, Measured, Protocol, Round, measure, pixels, spread},
    model::{Config, Variant},
    observer::Unit,
    ops::Placement,
    rng::Rng,
};
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

const FORMAT: &str = "dood-transfer";
const VERSION: u32 = 1;
/// Drawings of each image that is shown, of which the best one is (section 11b).
const DRAWINGS: usize = 20;

/// A checkpoint, and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Its file, as it was named.
    pub path: String,
    #[serde(skip)]
    file: PathBuf,
    /// The digest of the file.
    pub sha256: String,
    /// What it learned from: the set's name, for a folder of one's own with the folder's; the file's name where it does not say.
    pub learned_from: String,
    /// The seed of its training, where it says so.
    pub seed: Option<u64>,
    /// Updates of its training, where it says so.
    pub updates: Option<u64>,
    /// The model.
    pub config: Config,
}

/// A set by the name that a person knows it by.
fn name_of(source: &Source) -> String {
    let own = source.folder().filter(|_| !matches!(source, Source::Public { .. }));
    match own.and_then(Path::file_name) {
        Some(folder) => format!("{}:{}", source.word(), folder.display()),
        None => source.word().into(),
    }
}

impl Trained {
    /// Reads what a checkpoint says of itself, and whether it can be used.
    ///
    /// # Errors
    /// A file that cannot be read, or is no checkpoint.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let checkpoint = Checkpoint::parse(&bytes, &path.display().to_string())?;
        let of = |value: Option<&serde_json::Value>, key: &str| value.and_then(|value| value.get(key)).cloned();
        let (settings, about) = (checkpoint.settings(), checkpoint.about());
        let source = of(settings, "data").and_then(|source| serde_json::from_value::<Source>(source).ok());
        let word = || of(about, "learned_from").and_then(|word| word.as_str().map(String::from));
        let file = || path.file_stem().unwrap_or_default().display().to_string();
        let seed = of(settings.or_else(|| about?.get("settings")), "seed").and_then(|seed| seed.as_u64());
        let updates = of(about, "updates").and_then(|updates| updates.as_u64());
        Ok(Trained {
            path: path.display().to_string(),
            file: path.into(),
            sha256: files::sha256(&bytes),
            learned_from: source.as_ref().map(name_of).or_else(word).unwrap_or_else(file),
            seed,
            updates: updates.or_else(|| checkpoint.updates().ok()),
            config: checkpoint.config().clone(),
        })
    }

    /// What distinguishes its row from others of the same set; nothing for DooD.
    fn kind(&self) -> String {
        match (self.config.variant, self.config.placement) {
            (Variant::Dood, Placement::Warp) => String::new(),
            (Variant::Dood, Placement::Points) => "points".into(),
            (variant, _) => variant.to_string(),
        }
    }

    /// The name of its file, or of the run's folder that has it.
    pub fn name(&self) -> String {
        let path = Path::new(&self.path);
        let stem = path.file_stem().unwrap_or_default().display().to_string();
        let folder = path.parent().and_then(Path::file_name).filter(|_| stem.starts_with("checkpoint-"));
        folder.map_or(stem, |folder| folder.display().to_string())
    }

    /// Whether it is the same model, trained on the same set: then it differs by its seed, and both are in one row.
    fn is_like(&self, other: &Trained) -> bool {
        (&self.learned_from, &self.config) == (&other.learned_from, &other.config)
    }
}

/// Images to measure on: some of a set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The set.
    pub source: Source,
    /// Its name.
    pub name: String,
    /// Which part of it.
    pub split: String,
    /// Height and width in pixels.
    pub side: usize,
    /// How many images were taken, from everywhere in the set, and how many it has.
    pub images: usize,
    /// See `images`.
    pub of: usize,
    /// The digest of their pixels.
    pub sha256: String,
    /// Those that are shown, as [`picture_link`]s.
    pub shown: Vec<String>,
}

/// A [`Sample`] with its pixels.
pub struct Loaded {
    /// What is written of it.
    pub sample: Sample,
    images: Images,
}

impl Loaded {
    /// `count` of the images of the part `split` of a set, `shown` of which are to be shown.
    pub fn new(source: &Source, split: &str, all: &Images, (count, shown): (usize, usize)) -> Self {
        let which = spread(count, all.len());
        let pixels: Vec<u8> = which.iter().flat_map(|&i| all.image(i)).copied().collect();
        let images = Images { side: all.side, pixels, labels: None };
        let ink = |i: usize| images.image(i).iter().map(|&v| f32::from(v) / 255.0).collect::<Vec<f32>>();
        let sample = Sample {
            source: source.clone(),
            name: name_of(source),
            split: split.into(),
            side: all.side,
            images: images.len(),
            of: all.len(),
            sha256: files::sha256(&images.pixels),
            shown: spread(shown, images.len()).into_iter().map(|i| picture_link(&ink(i))).collect(),
        };
        Loaded { sample, images }
    }
}

/// What a model reaches on images by one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// How it was measured.
    pub protocol: Protocol,
    /// What came out.
    pub measured: Measured,
}

/// How many images were drawn with 0, 1, 2, … strokes, once each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Strokes at most, also more than the model has learned with.
    pub limit: usize,
    /// Images with so many strokes `[limit + 1]`.
    pub images: Vec<u64>,
}

impl Histogram {
    /// In percent of all images.
    fn percent(&self) -> Vec<f64> {
        let all = self.images.iter().sum::<u64>().max(1) as f64;
        self.images.iter().map(|&n| 100.0 * n as f64 / all).collect()
    }
}

/// What is known of a checkpoint on a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The digest of the checkpoint.
    pub checkpoint: String,
    /// The digest of the images.
    pub data: String,
    /// Key of all random numbers.
    pub seed: u64,
    /// Bounds on log p(x) by several protocols.
    pub bounds: Vec<Bound>,
    /// Strokes per image, by several limits.
    pub strokes: Vec<Histogram>,
    /// The images that are shown as the model drew them, as [`picture_link`]s.
    pub shown: Vec<String>,
}

/// What is to be known.
#[derive(Clone, Debug)]
pub struct Options {
    /// The protocols by which bounds are measured: the table is of the first one, others stand beside it.
    pub protocols: Vec<Protocol>,
    /// Key of all random numbers.
    pub seed: u64,
    /// Strokes at most in the [`Histogram`] (the paper: 10).
    pub strokes: usize,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    format: String,
    version: u32,
    /// The command that has written it.
    pub command: String,
    /// Which checkpoints, each once.
    pub checkpoints: Vec<Trained>,
    /// Which images, each once.
    pub samples: Vec<Sample>,
    /// What is known.
    pub cells: Vec<Cell>,
}

/// A row of a [`View`] on one set: means over its runs.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The label of its row: what its checkpoints have learned from, and what tells it from other rows.
    pub train: String,
    /// What its checkpoints have learned from.
    pub learned_from: String,
    /// The model.
    pub model: Variant,
    /// How its strokes get onto the canvas.
    pub placement: Placement,
    /// The set it is measured on.
    pub test: String,
    /// How.
    pub protocol: Protocol,
    /// Checkpoints, which differ by their seeds.
    pub runs: usize,
    /// Images of the set.
    pub images: usize,
    /// The importance-weighted bound on log p(x) in nats per image, the mean over runs and images.
    pub bound: f64,
    /// The population standard deviation of the runs' means; `None` for a single run.
    pub std: Option<f64>,
    /// The standard error of the mean over images; of several runs the mean of theirs, which is not below that of the runs' mean.
    pub standard_error: Option<f64>,
    /// What is published of it, if it was measured by the published protocol.
    pub published: Option<&'static Published>,
}

impl Table {
    /// An empty one.
    pub fn new(command: String) -> Self {
        let format = FORMAT.into();
        Table { format, version: VERSION, command, checkpoints: vec![], samples: vec![], cells: vec![] }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Usage`] if it holds something else.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read(path)?;
        let not_ours = |why: String| {
            Error::Usage(format!("{} cannot be gone on with: {why}; choose another --out, or remove it", quoted(path)))
        };
        let value: serde_json::Value = from_json(&bytes).map_err(not_ours)?;
        if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
            return Err(not_ours("it does not hold a table of transfer".into()));
        }
        if value.get("version").and_then(|version| version.as_u64()) != Some(VERSION.into()) {
            return Err(not_ours(format!("its version is not {VERSION}, so another version of this program wrote it")));
        }
        let table: Table = serde_json::from_value(value).map_err(|e| not_ours(format!("it is damaged ({e})")))?;
        let links = table.samples.iter().flat_map(|sample| &sample.shown);
        let links = links.chain(table.cells.iter().flat_map(|cell| &cell.shown));
        if links.into_iter().any(|link| linked_picture(link).is_none()) {
            return Err(not_ours("it is damaged (a picture in it is none)".into()));
        }
        let mut strokes = table.cells.iter().flat_map(|cell| &cell.strokes);
        if strokes.any(|strokes| strokes.images.len() != strokes.limit.saturating_add(1)) {
            return Err(not_ours("it is damaged (numbers of strokes are missing)".into()));
        }
        Ok(table)
    }

    /// Writes the file, with a summary of what `view` shows.
    pub fn write(&self, path: &Path, view: &View) -> Result<()> {
        #[derive(Serialize)]
        struct File<'a> {
            #[serde(flatten)]
            table: &'a Table,
            summary: Vec<Entry>,
        }
        let file = File { table: self, summary: view.entries(self) };
        let text = serde_json::to_string_pretty(&file).expect("plain data can be written as JSON");
        write_atomically(path, |out| writeln!(out, "{text}"))
    }

    /// Measures what is missing of every checkpoint on every sample of its size, and calls `save` after everything that was learned.
    /// Returns how many cells had something missing.
    ///
    /// # Errors
    /// [`Error::Stopped`], after which it can be called again; those of files and of a GPU.
    pub fn fill(
        &mut self,
        (checkpoints, samples): (&[Trained], &[Loaded]),
        options: &Options,
        (device, observer): (&Device, &dyn Observer),
        save: &mut dyn FnMut(&Table) -> Result<()>,
    ) -> Result<usize> {
        // What is asked for comes first, in its order, with the names by which it was asked for.
        first(&mut self.checkpoints, checkpoints.to_vec(), |a, b| a.sha256 == b.sha256);
        first(&mut self.samples, samples.iter().map(|loaded| loaded.sample.clone()).collect(), |a, b| {
            (&a.sha256, a.side) == (&b.sha256, b.side)
        });
        let pairs: Vec<(&Trained, &Loaded)> = checkpoints
            .iter()
            .flat_map(|trained| samples.iter().map(move |loaded| (trained, loaded)))
            .filter(|(trained, loaded)| loaded.sample.side == trained.config.image)
            .collect();
        let known = |(trained, loaded): &(&Trained, &Loaded)| {
            let known = self.cell(trained, &loaded.sample, options.seed).cloned();
            known.unwrap_or_else(|| Cell::empty(trained, &loaded.sample, options.seed))
        };
        let cells: Vec<Cell> = pairs.iter().map(known).collect();
        let work = cells.iter().zip(&pairs).map(|(cell, (_, Loaded { sample, .. }))| {
            cell.missing(sample, options).iter().map(|part| part.drawings(sample)).sum::<u64>()
        });
        let (total, new) = (work.clone().sum(), work.filter(|&work| work > 0).count());
        first(&mut self.cells, cells, |a, b| (&a.checkpoint, &a.data, a.seed) == (&b.checkpoint, &b.data, b.seed));
        if new > 0 {
            observer.begin("Measuring", Some(total), Unit::Items);
            let done = self.measure(&pairs, options, (device, observer), save);
            observer.end();
            done?;
        }
        save(self)?;
        Ok(new)
    }

    fn measure(
        &mut self,
        pairs: &[(&Trained, &Loaded)],
        options: &Options,
        (device, observer): (&Device, &dyn Observer),
        save: &mut dyn FnMut(&Table) -> Result<()>,
    ) -> Result<()> {
        for (i, (trained, loaded)) in pairs.iter().enumerate() {
            let missing = self.cells[i].missing(&loaded.sample, options);
            if missing.is_empty() {
                continue;
            }
            observer.status(&format!("{} on {}", trained.learned_from, loaded.sample.name));
            let artist = Artist::open(&trained.file, device)?;
            for part in missing {
                part.measure(&artist, loaded, options, observer, &mut self.cells[i])?;
                save(self)?;
            }
        }
        Ok(())
    }

    fn cell(&self, trained: &Trained, sample: &Sample, seed: u64) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.is_of(trained, sample, seed))
    }
}

/// Puts `wanted` before what else there is.
fn first<T>(all: &mut Vec<T>, wanted: Vec<T>, same: impl Fn(&T, &T) -> bool) {
    all.retain(|one| !wanted.iter().any(|other| same(one, other)));
    all.splice(..0, wanted);
}

/// What can be missing in a cell.
enum Part {
    Bound(Protocol),
    Strokes(usize),
    Shown(usize),
}

impl Cell {
    fn empty(trained: &Trained, sample: &Sample, seed: u64) -> Self {
        let (checkpoint, data) = (trained.sha256.clone(), sample.sha256.clone());
        Cell { checkpoint, data, seed, bounds: vec![], strokes: vec![], shown: vec![] }
    }

    fn is_of(&self, trained: &Trained, sample: &Sample, seed: u64) -> bool {
        (&self.checkpoint, &self.data, self.seed) == (&trained.sha256, &sample.sha256, seed)
    }

    /// By this protocol.
    pub fn bound(&self, protocol: Protocol) -> Option<&Measured> {
        self.bounds.iter().find(|bound| bound.protocol == protocol).map(|bound| &bound.measured)
    }

    /// With at most so many strokes.
    pub fn strokes(&self, limit: usize) -> Option<&Histogram> {
        self.strokes.iter().find(|strokes| strokes.limit == limit)
    }

    fn missing(&self, sample: &Sample, options: &Options) -> Vec<Part> {
        let mut missing: Vec<Part> = vec![];
        if self.shown.len() != sample.shown.len() {
            missing.push(Part::Shown(sample.shown.len()));
        }
        if self.strokes(options.strokes).is_none() {
            missing.push(Part::Strokes(options.strokes));
        }
        let bounds = options.protocols.iter().filter(|protocol| self.bound(**protocol).is_none());
        missing.extend(bounds.copied().map(Part::Bound));
        missing
    }
}

impl Part {
    fn drawings(&self, sample: &Sample) -> u64 {
        match self {
            Part::Bound(protocol) => protocol.drawings(sample.images),
            Part::Strokes(_) => sample.images as u64,
            Part::Shown(count) => (count * DRAWINGS) as u64,
        }
    }

    fn measure(
        &self,
        artist: &Artist,
        Loaded { images, .. }: &Loaded,
        options: &Options,
        observer: &dyn Observer,
        cell: &mut Cell,
    ) -> Result<()> {
        let (model, rng) = ((&artist.model, &artist.params), Rng::new(options.seed, 0));
        let all: Vec<usize> = (0..images.len()).collect();
        match *self {
            Part::Bound(protocol) => {
                let scores = measure(model, images, &all, protocol, rng, observer)?;
                let measured = Measured::of(&scores, protocol.particles.max(1));
                cell.bounds.push(Bound { protocol, measured });
            }
            Part::Strokes(limit) => {
                let mut counts = vec![0; limit + 1];
                let some = |range: std::ops::Range<usize>| pixels(images, range, artist.params.device());
                let count = |round: &Round| {
                    (0..round.count)
                        .flat_map(|i| round.rows(i))
                        .for_each(|row| counts[round.strokes(row) as usize] += 1);
                };
                let (images, protocol) = ((images.len(), &some as _), Protocol::published(1));
                let at_once = measure::at_once(artist.params.device());
                let draw = Draw { artist: model, images, protocol, strokes: limit, rng, at_once };
                draw.numbers(observer, &mut { count })?;
                cell.strokes.push(Histogram { limit, images: counts });
            }
            Part::Shown(count) => {
                let x = pixels(images, spread(count, images.len()), artist.params.device());
                let how = (Protocol::published(DRAWINGS), Best::Likelihood);
                let drawn = reconstruct(model, &x, how, artist.model.config.strokes, rng, observer)?;
                cell.shown = drawn.iter().map(|one| picture_link(one.drawn.canvas())).collect();
            }
        }
        Ok(())
    }
}

/// What of a table is shown: rows of checkpoints that are alike, a column per set, and the options.
pub struct View {
    rows: Vec<Row>,
    columns: Vec<Column>,
    options: Options,
}

struct Row {
    label: String,
    runs: Vec<Trained>,
}

struct Column {
    label: String,
    /// Of different sides, as checkpoints need them.
    samples: Vec<Sample>,
}

/// The labels with numbers where they repeat.
fn distinct(label: String, earlier: usize) -> String {
    if earlier == 0 { label } else { format!("{label} #{}", earlier + 1) }
}

impl View {
    /// Of checkpoints on samples.
    pub fn new(checkpoints: &[Trained], samples: &[Sample], options: &Options) -> Self {
        let mut rows: Vec<Row> = vec![];
        for trained in checkpoints {
            match rows.iter_mut().find(|row| row.runs[0].is_like(trained)) {
                Some(row) => row.runs.push(trained.clone()),
                None => {
                    let label = [trained.learned_from.clone(), trained.kind()].join(" ").trim_end().to_owned();
                    rows.push(Row { label, runs: vec![trained.clone()] });
                }
            }
        }
        // Models of one kind that are not alike are told apart by their names, and where these do not differ by numbers.
        let labels: Vec<String> = rows.iter().map(|row| row.label.clone()).collect();
        for (row, label) in rows.iter_mut().zip(&labels) {
            if labels.iter().filter(|other| *other == label).count() > 1 {
                row.label = format!("{label} ({})", row.runs[0].name());
            }
        }
        let labels: Vec<String> = rows.iter().map(|row| row.label.clone()).collect();
        for (i, row) in rows.iter_mut().enumerate() {
            row.label =
                distinct(labels[i].clone(), labels[..i].iter().filter(|earlier| **earlier == labels[i]).count());
        }
        let mut columns: Vec<Column> = vec![];
        for sample in samples {
            match columns.iter_mut().find(|column| column.samples[0].source == sample.source) {
                Some(column) => column.samples.push(sample.clone()),
                None => {
                    let alike = columns.iter().filter(|column| column.samples[0].name == sample.name).count();
                    let label = distinct(sample.name.clone(), alike);
                    columns.push(Column { label, samples: vec![sample.clone()] });
                }
            }
        }
        View { rows, columns, options: options.clone() }
    }

    /// The checkpoints of a row on a column, with what is known.
    fn cells<'t>(
        &'t self,
        table: &'t Table,
        row: &'t Row,
        column: &'t Column,
    ) -> Vec<(&'t Trained, &'t Sample, &'t Cell)> {
        let found = row.runs.iter().filter_map(|trained| {
            let sample = column.samples.iter().find(|sample| sample.side == trained.config.image)?;
            Some((trained, sample, table.cell(trained, sample, self.options.seed)?))
        });
        found.collect()
    }

    fn entry(&self, table: &Table, (row, column): (&Row, &Column), protocol: Protocol) -> Option<Entry> {
        let cells = self.cells(table, row, column);
        let measured: Vec<&Measured> = cells.iter().filter_map(|(.., cell)| cell.bound(protocol)).collect();
        let (n, config) = (measured.len() as f64, &row.runs[0].config);
        let mean = measured.iter().map(|measured| measured.bound.mean).sum::<f64>() / n;
        let variance = measured.iter().map(|measured| (measured.bound.mean - mean).powi(2)).sum::<f64>() / n;
        let errors: Option<f64> = measured.iter().map(|measured| measured.bound.standard_error).sum();
        let word = column.samples[0].source.word();
        let comparable = protocol.ends == Ends::Sampled && protocol.refine == 0 && protocol.particles > 1;
        Some(Entry {
            train: row.label.clone(),
            learned_from: row.runs[0].learned_from.clone(),
            model: config.variant,
            placement: config.placement,
            test: column.label.clone(),
            protocol,
            runs: measured.len(),
            images: measured.first()?.images,
            bound: mean,
            std: (measured.len() > 1).then(|| variance.sqrt()),
            standard_error: errors.map(|sum| sum / n),
            published: published::of(config, &row.runs[0].learned_from, word).filter(|_| comparable),
        })
    }

    /// What is known of every row on every column, by every protocol.
    pub fn entries(&self, table: &Table) -> Vec<Entry> {
        let mut entries = vec![];
        for row in &self.rows {
            for column in &self.columns {
                let protocols = self.options.protocols.iter();
                entries.extend(protocols.filter_map(|&protocol| self.entry(table, (row, column), protocol)));
            }
        }
        entries
    }

    /// A row for every checkpoint on every set by every protocol, and after several runs one for their mean.
    pub fn csv(&self, table: &Table) -> String {
        let limit = self.options.strokes;
        let mut text = "train,model,test,runs,checkpoint,training_seed,updates,images,particles,ends,refine,seed,bound,\
                        bound_standard_error,bound_std,elbo,log_likelihood,strokes,published,published_std,published_runs"
            .to_owned();
        for n in 0..=limit {
            let _ = write!(text, ",images_with_{n}_strokes");
        }
        text.push('\n');
        let or_blank = |value: Option<String>| value.unwrap_or_default();
        let number = |value: Option<f64>| or_blank(value.map(|value| value.to_string()));
        for (row, column) in self.rows.iter().flat_map(|row| self.columns.iter().map(move |column| (row, column))) {
            for &protocol in &self.options.protocols {
                let Some(entry) = self.entry(table, (row, column), protocol) else { continue };
                let mut line = |run: Option<(&Trained, &Measured, Option<&Histogram>)>| {
                    let trained = run.map(|run| run.0);
                    let measured = run.map(|run| run.1);
                    let ends = if protocol.ends == Ends::All { "all" } else { "sampled" };
                    let fields = [
                        field(&entry.train),
                        entry.model.to_string(),
                        field(&entry.test),
                        run.map_or(entry.runs, |_| 1).to_string(),
                        trained.map_or_else(|| "mean".into(), |t| field(&t.path)),
                        or_blank(trained.and_then(|t| t.seed).map(|seed| seed.to_string())),
                        or_blank(trained.and_then(|t| t.updates).map(|updates| updates.to_string())),
                        entry.images.to_string(),
                        protocol.particles.to_string(),
                        ends.into(),
                        protocol.refine.to_string(),
                        self.options.seed.to_string(),
                        measured.map_or(entry.bound, |m| m.bound.mean).to_string(),
                        number(measured.map_or(entry.standard_error, |m| m.bound.standard_error)),
                        number(entry.std.filter(|_| run.is_none())),
                        number(measured.map(|m| m.elbo.mean)),
                        number(measured.map(|m| m.log_likelihood.mean)),
                        number(measured.map(|m| m.strokes.mean)),
                        number(entry.published.map(|published| published.mean)),
                        number(entry.published.and_then(|published| published.std)),
                        or_blank(entry.published.map(|published| published.runs.to_string())),
                    ];
                    text.push_str(&fields.join(","));
                    for n in 0..=limit {
                        let images = run.and_then(|run| run.2).map(|strokes| strokes.images[n].to_string());
                        let _ = write!(text, ",{}", or_blank(images));
                    }
                    text.push('\n');
                };
                for (trained, _, cell) in self.cells(table, row, column) {
                    if let Some(measured) = cell.bound(protocol) {
                        line(Some((trained, measured, cell.strokes(limit))));
                    }
                }
                if entry.runs > 1 {
                    line(None);
                }
            }
        }
        text
    }

    /// The table as a picture: for every row and column the bound, how sure it is, what is published, the other protocols, and
    /// drawings of the images above.
    pub fn heatmap(&self, table: &Table, path: &Path) -> Result<()> {
        let shown = |links: &[String]| links.iter().filter_map(|link| linked_picture(link)).collect::<Vec<_>>();
        let targets: Vec<_> = self.columns.iter().map(|column| shown(&column.samples[0].shown)).collect();
        let of_row = |row| {
            let drawn = |column| self.cells(table, row, column).first().map_or(vec![], |(.., cell)| shown(&cell.shown));
            self.columns.iter().map(drawn).collect::<Vec<_>>()
        };
        let drawings: Vec<Vec<Vec<Vec<f32>>>> = self.rows.iter().map(of_row).collect();
        let main = self.options.protocols[0];
        let cell = |row: usize, column: usize| {
            let pictures = drawings[row][column].iter().map(|pixels| &pixels[..]).collect();
            let entry = |protocol| self.entry(table, (&self.rows[row], &self.columns[column]), protocol);
            let mut lines = vec![];
            let value = entry(main).map(|entry| {
                lines.push(with_spread(entry.bound, entry.std.or(entry.standard_error)));
                lines.extend(entry.published.map(|p| format!("paper {}", with_spread(p.mean, p.std))));
                entry.bound
            });
            for entry in self.options.protocols[1..].iter().filter_map(|&protocol| entry(protocol)) {
                lines.push(format!(
                    "{} {}",
                    extra(entry.protocol),
                    with_spread(entry.bound, entry.std.or(entry.standard_error))
                ));
            }
            HeatCell { value, lines, pictures, bars: vec![] }
        };
        let head = |(column, targets): (&Column, _)| {
            let Sample { images, of, .. } = column.samples[0];
            let count = if images == of { format!("{of} images") } else { format!("{images} of {of} images") };
            HeatCell { lines: vec![column.label.clone(), count], pictures: targets, ..HeatCell::default() }
        };
        let targets = targets.iter().map(|column| column.iter().map(|pixels| &pixels[..]).collect::<Vec<_>>());
        let what = if main.particles > 1 { "Log marginal likelihood" } else { "Evidence lower bound" };
        let bound = match main.particles {
            0 | 1 => "one drawing of each".into(),
            particles => format!("IWAE bound of {particles} particles"),
        };
        let mut notes = vec![
            format!("Nats per image; {bound}; seed {}; drawings: the likeliest of {DRAWINGS}.", self.options.seed),
            "±: standard error over images; of several runs the standard deviation over them.".into(),
        ];
        if self.options.protocols.len() > 1 {
            notes.push("Extra lines are other bounds on the same: not the published protocol.".into());
        }
        if self.entries(table).iter().any(|entry| entry.published.is_some()) {
            notes.push("paper: 200 particles, all test images, 500,001 updates; mean ± std over runs.".into());
        }
        let map = Heatmap {
            title: format!("{what}: trained on (rows) x measured on (columns)"),
            columns: self.columns.iter().zip(targets).map(head).collect(),
            notes,
            ..self.frame(&cell)
        };
        map.write(path)
    }

    /// Strokes per image as bars, for every row and column (Fig. 3 b–d).
    pub fn strokes(&self, table: &Table, path: &Path) -> Result<()> {
        let limit = self.options.strokes;
        let cell = |row: usize, column: usize| {
            let cells = self.cells(table, &self.rows[row], &self.columns[column]);
            let known: Vec<Vec<f64>> =
                cells.iter().filter_map(|(.., cell)| Some(cell.strokes(limit)?.percent())).collect();
            let (n, over) = (known.len() as f64, if known.is_empty() { 0 } else { limit + 1 });
            let bars: Vec<f64> = (0..over).map(|i| known.iter().map(|run| run[i]).sum::<f64>() / n).collect();
            let mean = bars.iter().enumerate().map(|(i, share)| i as f64 * share / 100.0).sum::<f64>();
            let lines = (!bars.is_empty()).then(|| format!("mean {mean:.2}")).into_iter().collect();
            HeatCell { bars, lines, ..HeatCell::default() }
        };
        let head = |column: &Column| HeatCell { lines: vec![column.label.clone()], ..HeatCell::default() };
        let map = Heatmap {
            title: "Strokes per image, in percent of images".into(),
            columns: self.columns.iter().map(head).collect(),
            notes: vec![format!("One drawing of every image, in at most {limit} strokes; means over runs.")],
            ..self.frame(&cell)
        };
        map.write(path)
    }

    /// Rows and cells of a picture.
    fn frame<'a>(&self, cell: &dyn Fn(usize, usize) -> HeatCell<'a>) -> Heatmap<'a> {
        let label = |row: &Row| {
            let config = &row.runs[0].config;
            let runs = if row.runs.len() > 1 { format!("{} runs", row.runs.len()) } else { String::new() };
            let updates = row.runs[0].updates.map(|updates| format!("{updates} updates")).unwrap_or_default();
            let lines = [row.label.clone(), format!("model {}", config.variant), updates, runs];
            lines.into_iter().filter(|line| !line.is_empty()).collect()
        };
        let columns = 0..self.columns.len();
        Heatmap {
            corner: "trained on:".into(),
            rows: self.rows.iter().map(label).collect(),
            cells: (0..self.rows.len()).map(|r| columns.clone().map(|c| cell(r, c)).collect()).collect(),
            ..Heatmap::default()
        }
    }
}

/// A number and how sure it is.
fn with_spread(mean: f64, spread: Option<f64>) -> String {
    spread.map_or_else(|| format!("{mean:.1}"), |spread| format!("{mean:.1} ± {spread:.1}"))
}

/// What distinguishes a protocol from the published one.
fn extra(protocol: Protocol) -> String {
    let refine = (protocol.refine > 0).then(|| format!("refined {}", protocol.refine));
    let ends = (protocol.ends == Ends::All).then(|| "all ends".to_owned());
    [refine, ends].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A field of a CSV (RFC 4180).
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}
