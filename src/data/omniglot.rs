//! Omniglot: characters of 50 alphabets, each drawn by 20 people, and the official one-shot classification runs.
//!
//! Files are the official zips or folders unpacked from them. Images are PNGs of black ink on white, or on nothing, which is
//! seen as white; they are inverted before resizing.

use super::{Entry, Grey, Images, Invert, MAX_SIDE, Options, Reading, Set, Source, entries, pictures, sniff};
use crate::{
    Error, Observer, Result,
    observer::{Silent, Unit},
};
use rayon::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Cursor, Read},
    path::{Path, PathBuf},
};

/// The files of a zip or of a folder tree, by their path with `/`, in the order of the paths.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// Reads `images_background` (training) and `images_evaluation` (test), each as `.zip` or as a folder.
pub(super) fn load(folder: &Path, reading: &Reading) -> Result<(Images, Images)> {
    let part = |stem: &str| {
        let (tree, path) = open(folder, stem, reading)?;
        let images = characters_of(&tree, &path.display().to_string(), reading.options, reading.observer);
        images.map_err(|e| reading.remedy(&path, e))
    };
    Ok((part("images_background")?, part("images_evaluation")?))
}

/// The images of a tree `.../ALPHABET/characterNN/DRAWING.png`, resized to `side` x `side`, ink bright.
///
/// The label of an image is the number of its character when all are sorted by alphabet and number, counted from 0.
/// `name` is what errors call the tree.
pub fn characters(tree: &Tree, name: &str, side: usize) -> Result<Images> {
    characters_of(tree, name, &Options::new(side), &Silent)
}

fn characters_of(tree: &Tree, name: &str, options: &Options, observer: &dyn Observer) -> Result<Images> {
    let character = |path: &str| -> Option<String> {
        let (character, file) = path.rsplit_once('/')?;
        let (_, last) = character.rsplit_once('/')?;
        (is_png(file) && last.starts_with("character")).then(|| character.into())
    };
    let (mut drawings, mut labels, mut current) = (Vec::new(), Vec::new(), None);
    let mut label = 0u16;
    for (path, png) in tree {
        let Some(character) = character(path) else { continue };
        if current.as_ref().is_some_and(|current| *current != character) {
            label = label.checked_add(1).ok_or_else(|| {
                Error::Data(format!("{name} holds more than 65,536 characters, which is not Omniglot"))
            })?;
        }
        current = Some(character);
        drawings.push((path, png));
        labels.push(label);
    }
    if drawings.is_empty() {
        return Err(Error::Data(format!(
            "{name} holds no ALPHABET/characterNN/*.png: it should be the tree of the official Omniglot images"
        )));
    }
    observer.begin("Reading drawings", Some(drawings.len() as u64), Unit::Items);
    let images = drawings.par_iter().map(|(path, png)| {
        observer.go_on()?;
        observer.advance(1);
        drawing(png, path, name, options)
    });
    let images: Result<Vec<Vec<u8>>> = images.collect();
    observer.end();
    Ok(Images { side: options.side, pixels: images?.concat(), labels: Some(labels) })
}

/// One run of the one-shot task: which of 20 characters, each seen once, is each of 20 new drawings?
#[derive(Debug, PartialEq)]
pub struct Run {
    /// One drawing of each character; labels are 0, 1, ... 19.
    pub support: Images,
    /// New drawings by another person; the label is the support image that shows the same character.
    pub query: Images,
}

/// The official 20 runs, from `path` if that is their zip or the folder of `run01` to `run20`, else from `all_runs.zip` or the folder
/// `all_runs` in it, with images resized to `side` x `side`, ink bright.
pub fn one_shot_runs(path: &Path, side: usize) -> Result<Vec<Run>> {
    let (source, options) = (Source::Public { set: Set::Omniglot, folder: path.into() }, Options::new(side));
    let reading = Reading::new(&source, &options, &Silent);
    if path.is_file() {
        let name = path.display().to_string();
        return runs(&unzip(&reading.file(path)?, &name)?, &name, side);
    }
    let (tree, found) = if path.join("run01").is_dir() {
        let mut tree = Tree::new();
        walk(path, RUN_FILES, &mut tree, &reading)?;
        (tree, path.to_path_buf())
    } else {
        open(path, RUN_FILES, &reading)?
    };
    runs(&tree, &found.display().to_string(), side).map_err(|e| reading.remedy(&found, e))
}

/// How many runs there are, and images in each half of a run.
const RUNS: usize = 20;

/// The runs of a tree `.../runNN/{class_labels.txt,training/*.png,test/*.png}`; `name` is what errors call the tree.
pub fn runs(tree: &Tree, name: &str, side: usize) -> Result<Vec<Run>> {
    let lists = tree.iter().filter_map(|(path, text)| Some((path.strip_suffix("class_labels.txt")?, text)));
    let runs: Vec<Run> = lists.map(|(folder, text)| run(tree, folder, text, name, side)).collect::<Result<_>>()?;
    if runs.len() != RUNS {
        return Err(Error::Data(format!(
            "{name} holds {} runs (runNN/class_labels.txt) instead of {RUNS}: it should be the official all_runs.zip",
            runs.len()
        )));
    }
    Ok(runs)
}

/// One run, in `folder` of the tree. Each line of `list` names a test image and the training image of the same character.
fn run(tree: &Tree, folder: &str, list: &[u8], name: &str, side: usize) -> Result<Run> {
    let bad = |text: String| Error::Data(format!("{name}: {folder}class_labels.txt {text}"));
    let root = folder.strip_suffix('/').and_then(|run| run.rsplit_once('/')).map_or("", |(root, _)| root);
    let full = |path: &str| if root.is_empty() { path.into() } else { format!("{root}/{path}") };
    let training = format!("{folder}training/");
    let support: Vec<(&String, &Vec<u8>)> =
        tree.range(training.clone()..).take_while(|(path, _)| path.starts_with(&training)).collect();
    let (mut queries, mut answers) = (Vec::new(), Vec::new());
    for line in String::from_utf8_lossy(list).lines().filter(|line| !line.trim().is_empty()) {
        let (query, answer) = line.trim().split_once(' ').ok_or_else(|| bad(format!("has the line `{line}`")))?;
        let (query, answer) = (full(query), full(answer.trim()));
        let answer = support.iter().position(|(path, _)| **path == answer);
        let query = tree.get_key_value(&query);
        let (Some(query), Some(answer)) = (query, answer) else {
            return Err(bad(format!("names an image that is not there: `{line}`")));
        };
        queries.push(query);
        answers.push(answer as u16);
    }
    if (support.len(), queries.len()) != (RUNS, RUNS) {
        let (support, queries) = (support.len(), queries.len());
        return Err(bad(format!(
            "and folder hold {support} training and {queries} test images instead of {RUNS} each"
        )));
    }
    let half = |drawings: &[(&String, &Vec<u8>)], labels| -> Result<Images> {
        let images = drawings.iter().map(|(path, png)| drawing(png, path, name, &Options::new(side)));
        let images = images.collect::<Result<Vec<_>>>()?;
        Ok(Images { side, pixels: images.concat(), labels: Some(labels) })
    };
    Ok(Run { support: half(&support, (0..RUNS as u16).collect())?, query: half(&queries, answers)? })
}

/// Decodes one drawing of dark ink on white, inverts and resizes it.
fn drawing(png: &[u8], path: &str, name: &str, options: &Options) -> Result<Vec<u8>> {
    let grey = pictures::decode_within(png, MAX_SIDE).map_err(|why| Error::Data(format!("{name}: {path} {why}")))?;
    let Grey { height, width, mut pixels } = grey;
    if options.invert != Invert::No {
        pixels.iter_mut().for_each(|value| *value = 255 - *value);
    }
    Ok(options.fit.square(&pixels, height, width, options.side))
}

/// Reads `stem.zip` or the folder `stem`, and says which.
fn open(folder: &Path, stem: &str, reading: &Reading) -> Result<(Tree, PathBuf)> {
    let (zip, unpacked) = (folder.join(format!("{stem}.zip")), folder.join(stem));
    reading.observer.go_on()?;
    if zip.is_file() {
        let tree = unzip(&reading.file(&zip)?, &zip.display().to_string());
        Ok((tree.map_err(|e| reading.remedy(&zip, e))?, zip))
    } else if unpacked.is_dir() {
        let mut tree = Tree::new();
        walk(&unpacked, stem, &mut tree, reading)?;
        Ok((tree, unpacked))
    } else {
        let named = if stem == RUN_FILES { "--runs FOLDER" } else { "omniglot:FOLDER" };
        Err(Error::Data(format!(
            "{} has neither {stem}.zip nor a folder {stem}: fetch the set with --download, or name the folder that has it, as in \
             {named}",
            folder.display()
        )))
    }
}

/// From which alphabet of `images_evaluation` in `folder` each run was taken, told by its drawings; `None` where that set is not there.
/// The official files of the runs do not name it.
///
/// # Errors
/// [`Error::Data`] where a run's drawings are not in that set, or are of several alphabets.
pub fn alphabets_of(runs: &[Run], folder: &Path) -> Result<Option<Vec<String>>> {
    if !has(folder, "images_evaluation") {
        return Ok(None);
    }
    let (source, side) = (Source::Public { set: Set::Omniglot, folder: folder.into() }, runs[0].support.side);
    let options = Options::new(side);
    let (tree, path) = open(folder, "images_evaluation", &Reading::new(&source, &options, &Silent))?;
    let name = path.display().to_string();
    let drawings: Vec<(&String, &Vec<u8>)> = tree.iter().filter(|(path, _)| is_png(path)).collect();
    let known = drawings.par_iter().map(|(path, png)| {
        let alphabet = path.rsplit('/').nth(2).unwrap_or_default();
        Ok((drawing(png, path, &name, &options)?, alphabet))
    });
    let known: BTreeMap<Vec<u8>, &str> = known.collect::<Result<_>>()?;
    let of = |(number, run): (usize, &Run)| {
        let both = [&run.support, &run.query].map(|images| (0..images.len()).map(|i| known.get(images.image(i))));
        let found: Option<BTreeSet<&&str>> = both.into_iter().flatten().collect();
        match found.iter().flatten().next() {
            Some(alphabet) if found.iter().flatten().count() == 1 => Ok(alphabet.to_string()),
            _ => Err(Error::Data(format!("{name}: the drawings of run {} are not of one alphabet in it", number + 1))),
        }
    };
    runs.iter().enumerate().map(of).collect::<Result<_>>().map(Some)
}

fn walk(folder: &Path, prefix: &str, tree: &mut Tree, reading: &Reading) -> Result<()> {
    // Deeper than any of the trees: whatever is below is something else, or a loop of links.
    if prefix.matches('/').count() > 4 {
        return Ok(());
    }
    for Entry { path, name } in entries(folder)? {
        // Names that are not UTF-8 may look alike, so they are numbered.
        let exact = path.file_name().and_then(|name| name.to_str()).is_some();
        let key = if exact { format!("{prefix}/{name}") } else { format!("{prefix}/{} {name}", tree.len()) };
        if path.is_dir() {
            walk(&path, &key, tree, reading)?;
        } else if is_wanted(&[&name]) && path.is_file() {
            tree.insert(key, reading.file(&path)?);
        }
    }
    Ok(())
}

/// A drawing takes about 250 bytes, a whole set 5 MB: what is larger than this is not Omniglot, perhaps a zip bomb.
const MAX_FILE: u64 = 1 << 20;
const MAX_TREE: u64 = 100 << 20;

/// Unpacks the PNGs and label lists of a zip into memory; `name` is what errors call it.
///
/// Paths in it are as the format wants them, or as some programs write them: with `\` or with `./` in front.
pub fn unzip(bytes: &[u8], name: &str) -> Result<Tree> {
    let bad = |text: String| Error::Data(format!("{name}: {text}"));
    let damaged = |e: zip::result::ZipError| match sniff(bytes) {
        Some("a zip archive") | None => bad(format!("not a zip that can be read ({e})")),
        Some(what) => bad(format!("not a zip archive but {what}")),
    };
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let mut tree = Tree::new();
    let mut total = 0;
    for i in 0..archive.len() {
        let stored = archive.by_index_raw(i).map_err(damaged)?;
        let path = stored.name().map_err(damaged)?.replace('\\', "/");
        let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if !stored.is_file() || !is_wanted(&path) {
            continue;
        }
        drop(stored);
        let path = path.join("/");
        let file = archive.by_index(i).map_err(|e| bad(format!("{path} cannot be unpacked ({e})")))?;
        let mut contents = Vec::new();
        let read = file.take(MAX_FILE + 1).read_to_end(&mut contents);
        read.map_err(|e| bad(format!("{path} cannot be unpacked ({e})")))?;
        total += contents.len() as u64;
        if contents.len() as u64 > MAX_FILE || total > MAX_TREE {
            return Err(bad(format!("{path} is far larger than any file of Omniglot: this is not the official zip")));
        }
        tree.insert(path, contents);
    }
    Ok(tree)
}

fn is_png(path: &str) -> bool {
    path.to_ascii_lowercase().ends_with(".png")
}

/// Drawings and label lists, but not what a Macintosh leaves beside them (`__MACOSX/…`, `._*.png`).
fn is_wanted(path: &[&str]) -> bool {
    let name = path.last().copied().unwrap_or_default();
    path.first() != Some(&"__MACOSX") && !name.starts_with('.') && (is_png(name) || name == "class_labels.txt")
}

/// The official runs of one-shot classification.
const RUN_FILES: &str = "all_runs";
const STEMS: [&str; 3] = ["images_background", "images_evaluation", RUN_FILES];

fn has(folder: &Path, stem: &str) -> bool {
    folder.join(format!("{stem}.zip")).is_file() || folder.join(stem).is_dir()
}

/// Whether `folder` has all three parts.
pub(super) fn is_in(folder: &Path) -> bool {
    STEMS.iter().all(|stem| has(folder, stem))
}

/// Whether `folder` has one of the parts.
pub(super) fn any_in(folder: &Path) -> bool {
    STEMS.iter().any(|stem| has(folder, stem))
}
