//! What several tests share.
#![allow(dead_code)]

pub mod page;
pub mod programs;

use dood::{
    Device, Params,
    data::Source,
    model::{Config, Model, Start, Stop},
    ops::Placement,
    rng::{Rng, Stream},
    train::Settings,
};
use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};

/// A PNG of paper white with a black rectangle, so that different sizes can be told apart.
pub fn png(side: u32, ink: u32) -> Vec<u8> {
    let image = image::GrayImage::from_fn(side, side, |x, y| image::Luma([if x < ink && y < ink { 0 } else { 255 }]));
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, image::ImageFormat::Png).unwrap();
    out.into_inner()
}

pub fn zip_file(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, contents) in entries {
        zip.start_file(path.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(contents).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Two alphabets with two and one characters, two drawings each: labels 0 0 1 1 2 2.
pub fn characters(root: &str) -> Vec<(String, Vec<u8>)> {
    let list = [("Greek", 1, 10), ("Greek", 2, 20), ("Latin", 1, 30)];
    let drawings = list.iter().flat_map(|&(alphabet, number, ink)| {
        (1..=2).map(move |drawing| (format!("{root}/{alphabet}/character{number:02}/{drawing:02}.png"), png(105, ink)))
    });
    let mut entries: Vec<_> = drawings.collect();
    entries.push((format!("__MACOSX/{root}/Greek/character01/._01.png"), b"not a drawing".to_vec()));
    entries
}

/// Twenty runs whose query `i` shows the character of support image `19 - i`.
pub fn run_files() -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    for run in (1..=20).map(|run| format!("run{run:02}")) {
        let mut list = String::new();
        for i in 1..=20 {
            entries.push((format!("{run}/training/class{i:02}.png"), png(30, i)));
            entries.push((format!("{run}/test/item{i:02}.png"), png(30, 21 - i)));
            list += &format!("{run}/test/item{i:02}.png {run}/training/class{:02}.png\n", 21 - i);
        }
        entries.push((format!("{run}/class_labels.txt"), list.into_bytes()));
    }
    entries
}

pub fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

pub fn source(set: &str, folder: &Path) -> Source {
    format!("{set}:{}", folder.display()).parse().unwrap()
}

#[track_caller]
pub fn assert_says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "`{sentence}` does not say `{part}`");
    }
    assert!(!sentence.contains('\n'), "more than one line: {sentence}");
}

/// Says what is skipped and why, also where the output of tests that pass is not shown.
pub fn skipped(why: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// The folder of real data, or a line that says what is skipped.
pub fn real(set: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("DOOD_DATA").map_or_else(|| PathBuf::from("../shared/data"), PathBuf::from).join(set);
    if !folder.is_dir() {
        skipped(format_args!("{} is missing (set DOOD_DATA)", folder.display()));
        return None;
    }
    Some(folder)
}

/// How the tests train: as published, or with everything that the preset `hour` has beside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Recipe {
    Published,
    Hour,
}

impl Recipe {
    pub const BOTH: [Recipe; 2] = [Recipe::Published, Recipe::Hour];

    pub fn apply(self, config: Config, settings: Settings) -> (Config, Settings) {
        match self {
            Recipe::Published => (config, settings),
            Recipe::Hour => (
                Config { stop: Stop::Exact, view: Some(config.image / 2), price: 0.5, ..config },
                Settings { warmup: 5, decay: 0.01, clip: 0.9, thicker: 8, augment: 0.1, steps: 200, ..settings },
            ),
        }
    }
}

/// A model with initial values, but for its last layers, which are zero at first: they would make all drawings alike.
pub fn lively(config: &Config, device: &Device) -> (Model, Params) {
    let (model, mut params) = Model::new(config, Start::new(3), device).unwrap();
    for (i, spec) in params.specs().to_vec().iter().enumerate() {
        let id = params.find(&spec.name).unwrap();
        let noise = Rng::new(8, i as u64);
        let values = params.get(id).to_f64();
        let values: Vec<f64> = values.iter().enumerate().map(|(j, v)| v + 0.1 * noise.normal(Stream(0), j)).collect();
        params.set(id, &values);
    }
    (model, params)
}

/// A model that is trained in no time.
pub fn tiny(placement: Placement) -> Config {
    Config {
        image: 16,
        conv1: 2,
        conv2: 3,
        features: 16,
        hidden: 16,
        points: 4,
        samples: 20,
        components: 3,
        strokes: 3,
        baseline_hidden: 16,
        ..Config::paper(placement)
    }
}
