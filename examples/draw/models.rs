//! The menu: which models and which examples there are.

use base64::{Engine, prelude::BASE64_STANDARD};
use dood::{
    Result,
    checkpoint::{self, Checkpoint},
    eval::MedianPen,
    files,
    model::Variant,
    train::settings_of,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// A model that can be chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What requests call it.
    pub id: String,
    /// The set that it has learned from.
    pub learned_from: Option<String>,
    /// How good it is, in words.
    pub reaches: Option<String>,
    /// Updates of its training.
    pub updates: Option<u64>,
    /// When its file was written, in seconds since 1970.
    pub written: Option<u64>,
    /// Which of the paper's models it is.
    pub variant: String,
    /// Pixels per side.
    pub image: usize,
    /// Strokes that it has learned with.
    pub strokes: usize,
    /// Whether it draws curves.
    pub curves: bool,
    /// How large what is drawn shall be in its images: `fit` of a request.
    pub fit: f64,
    /// Its pen, where the file has one.
    #[serde(skip)]
    pub pen: Option<MedianPen>,
    #[serde(skip)]
    pub path: PathBuf,
}

/// What tells one state of a file from another.
type Stamp = (PathBuf, u64, Option<SystemTime>);

/// Where models are looked for.
pub struct Menu {
    /// Named by the user: files and folders of runs.
    named: Vec<PathBuf>,
    known: Mutex<HashMap<Stamp, Option<Entry>>>,
}

/// The models and examples that ship.
fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// Of the models that ship, the one to begin with.
const FIRST: &str = "mnist";

/// What is in a folder, by name; nothing if there is none.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

impl Menu {
    pub fn new(named: Vec<PathBuf>) -> Self {
        Menu { named, known: Mutex::default() }
    }

    /// All models there are now: those that were named, those that ship, and the newest of every run in `runs`.
    ///
    /// # Errors
    /// A model that was named cannot be used; others are then left out.
    pub fn entries(&self) -> Result<Vec<Arc<Entry>>> {
        let mut found = vec![];
        for path in &self.named {
            let path = checkpoint::find(path)?;
            found.push(self.known(path.clone()).map_or_else(|| describe(&path), Ok)?);
        }
        let runs = inside(Path::new("runs")).into_iter().filter_map(|run| checkpoint::latest(&run).ok().flatten());
        let mut ship = inside(&shipped());
        ship.retain(|path| is(path, "safetensors"));
        ship.sort_by_key(|path| path.file_stem().is_none_or(|name| name != FIRST));
        let files = ship.into_iter().chain(runs);
        found.extend(files.filter_map(|path| self.known(path)));
        let mut entries: Vec<Arc<Entry>> = vec![];
        for mut entry in found {
            if entries.iter().any(|other| same_file(&other.path, &entry.path)) {
                continue;
            }
            let (name, mut copies) = (entry.id.clone(), 1);
            while entries.iter().any(|other| other.id == entry.id) {
                copies += 1;
                entry.id = format!("{name}-{copies}");
            }
            entries.push(Arc::new(entry));
        }
        Ok(entries)
    }

    /// A file that was seen before is not read again.
    fn known(&self, path: PathBuf) -> Option<Entry> {
        let about = fs::metadata(&path).ok()?;
        let stamp = (path.clone(), about.len(), about.modified().ok());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(stamp).or_insert_with(|| describe(&path).ok()).clone()
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).ok().zip(fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b)
}

/// What a file says of its model.
fn describe(path: &Path) -> Result<Entry> {
    let bytes = files::read(path)?;
    let file = Checkpoint::parse(&bytes, &path.display().to_string())?;
    let (config, about, settings) = (file.config(), file.about(), settings_of(&file).ok());
    let said = |field: &str| about.and_then(|about| about.get(field)).cloned();
    let learned_from = said("learned_from")
        .and_then(|word| word.as_str().map(String::from))
        .or(settings.map(|settings| settings.data.word().into()));
    let stem = |path: &Path| path.file_stem().map(|name| name.to_string_lossy().into_owned());
    // A checkpoint is called as its run is.
    let of_run = file.settings().and(path.parent()).and_then(stem);
    Ok(Entry {
        id: of_run.or(stem(path)).unwrap_or_else(|| "model".into()),
        fit: fit(learned_from.as_deref()),
        learned_from,
        reaches: card(path).or_else(|| metrics(path)),
        updates: said("updates").and_then(|n| n.as_u64()).or_else(|| file.updates().ok()),
        written: written(path),
        variant: config.variant.to_string(),
        image: config.image,
        strokes: config.strokes,
        curves: matches!(config.variant, Variant::Dood | Variant::Sp | Variant::Eg),
        pen: said("pen").and_then(|pen| serde_json::from_value(pen).ok()),
        path: path.into(),
    })
}

/// Digits of NIST are 20 of 28 pixels large; characters of the other sets fill their images.
fn fit(learned_from: Option<&str>) -> f64 {
    match learned_from {
        Some("mnist" | "emnist") => 20.0 / 28.0,
        _ => 0.85,
    }
}

fn written(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).ok()?.modified().ok()?;
    modified.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// The row `reaches` of the card beside a model that ships, without its links.
fn card(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path.with_extension("md")).ok()?;
    let row = text.lines().find_map(|line| line.strip_prefix("| reaches |"))?;
    let row = row.trim().trim_end_matches('|').trim();
    Some(row.split(" (row").next().unwrap_or(row).replace("**", ""))
}

/// The last test ELBO of a run.
fn metrics(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path.with_file_name("metrics.csv")).ok()?;
    let mut lines = text.lines();
    let column = lines.next()?.split(',').position(|name| name == "test_elbo")?;
    let value = |line: &str| line.split(',').nth(column)?.parse::<f64>().ok();
    Some(format!("ELBO {:.1} nats on 64 test images", lines.filter_map(value).next_back()?))
}

/// Images that ship, to begin with.
#[derive(Clone, Debug, Serialize)]
pub struct Examples {
    /// The folder that they are in.
    pub set: String,
    /// A dozen at most.
    pub images: Vec<Example>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The name of its file.
    pub name: String,
    /// The file, a PNG, in Base64: `image` of a request.
    pub image: String,
}

/// All sets of examples: the folders of pictures beside the models, their parts together.
pub fn examples() -> Vec<Examples> {
    const MOST: usize = 12;
    let pictures = |folder: &Path| inside(folder).into_iter().filter(|path| is(path, "png")).collect::<Vec<_>>();
    let set = |folder: PathBuf| {
        let parts = ["test", "train", ""].map(|part| pictures(&folder.join(part)));
        let example = |path: PathBuf| {
            let image = BASE64_STANDARD.encode(files::read(&path).ok()?);
            Some(Example { name: path.file_stem()?.to_string_lossy().into_owned(), image })
        };
        let images: Vec<Example> = parts.concat().into_iter().take(MOST).filter_map(example).collect();
        (!images.is_empty()).then(|| Examples { set: stem_of(&folder), images })
    };
    inside(&shipped()).into_iter().filter(|path| path.is_dir()).filter_map(set).collect()
}

fn stem_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
