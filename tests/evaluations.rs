//! The programs that say what a model's drawings are worth, with a tiny model: what they write, what they go on with, what they refuse.

mod common;

use common::programs::{TINY, idx, names, program, refused, succeeds};
use serde_json::Value;
use std::{fs, path::Path, process::Output, sync::OnceLock};
use tempfile::TempDir;

/// A part of a set: bars that stand for the first class, and lie for the second.
fn part(folder: &Path, name: &str, count: u32) {
    let big = |n: u32| n.to_be_bytes();
    let mut images = vec![0, 0, 8, 3];
    [count, 12, 12].iter().for_each(|&n| images.extend(big(n)));
    for i in 0..count {
        let at = 2 + i / 2 % 7;
        images.extend((0..144u32).map(|p| if [p % 12, p / 12][i as usize % 2].abs_diff(at) < 2 { 255 } else { 0 }));
    }
    let mut labels = vec![0, 0, 8, 1];
    labels.extend(big(count));
    labels.extend((0..count).map(|i| (i % 2) as u8));
    fs::write(folder.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
    fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), labels).unwrap();
}

/// A folder with a set of two classes, `set`, and a model, `run`, that all tests share.
fn world() -> &'static Path {
    static WORLD: OnceLock<TempDir> = OnceLock::new();
    let folder = WORLD.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let set = folder.path().join("set");
        fs::create_dir(&set).unwrap();
        part(&set, "train", 90);
        part(&set, "t10k", 40);
        idx(&folder.path().join("blank"));
        fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
        let train = ["--data", "idx:set", "--config", "tiny.toml", "--steps", "1", "--iwae", "0", "--device", "cpu"];
        succeeds(&program("train").args(train).args(["--out", "run"]).current_dir(folder.path()).output().unwrap());
        folder
    });
    folder.path()
}

/// A program on the model and the set.
fn on_set(name: &str, out: &Path, more: &[&str]) -> Output {
    let mut command = program(name);
    command.args(["--checkpoint", "run", "--data", "idx:set", "--device", "cpu", "--out"]).arg(out).args(more);
    command.current_dir(world()).output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn latents_are_drawn_once_and_classes_are_found_by_them() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("la.tents");
    let quick = ["--updates", "60", "--rate", "0.05", "--batch", "30"];
    let said = succeeds(&on_set("latents", &out, &quick));
    assert!(said.contains("finds the class of 40 test images") && !said.contains("published"), "{said}");
    let ends = ["-drawn.safetensors", "-learning.svg", ".csv", ".json", ".png", ".svg"];
    assert_eq!(names(place.path()), ends.map(|end| format!("la.tents{end}")));
    let first = json(&place.path().join("la.tents.json"));
    assert_eq!((first["training_images"].as_u64(), first["classes"].as_u64()), (Some(90), Some(2)));
    assert_eq!(first["epochs"].as_array().unwrap().len(), 20);
    assert!(first["command"].as_str().unwrap().starts_with("latents --checkpoint run --data idx:set"));
    let csv = fs::read_to_string(place.path().join("la.tents.csv")).unwrap();
    let right = csv.lines().skip(1).filter(|row| row.ends_with(",1")).count();
    assert_eq!((csv.lines().count(), first["accuracy"]["right"].as_u64()), (41, Some(right as u64)));

    // With --resume nothing is drawn again, also for another training; with one of the same kind every number stays.
    let again = succeeds(&on_set("latents", &out, &[&quick[..], &["--resume"]].concat()));
    assert!(!again.contains("Drawing"), "{again}");
    let second = json(&place.path().join("la.tents.json"));
    assert_eq!((&first["epochs"], &first["accuracy"]), (&second["epochs"], &second["accuracy"]));
    succeeds(&on_set("latents", &out, &["--updates", "30", "--gradients", "summed", "--resume"]));
    assert_eq!(json(&place.path().join("la.tents.json"))["protocol"]["gradients"], "summed");

    refused(
        &on_set("latents", &out, &["--resume", "--seed", "1"]),
        2,
        &["another model, other images or another seed"],
    );
    refused(&on_set("latents", &place.path().join("x"), &["--resume"]), 2, &["to resume from"]);
    refused(&on_set("latents", place.path(), &[]), 2, &["not a folder"]);
    refused(&on_set("latents", &out, &["--rate", "0"]), 2, &["choose a number above 0"]);
    let blank = ["--checkpoint", "run", "--data", "idx:blank", "--device", "cpu", "--out", "never"];
    let output = program("latents").args(blank).current_dir(world()).output().unwrap();
    refused(&output, 2, &["its images have no classes", "mnist, emnist"]);
}

#[test]
fn a_report_holds_everything_and_needs_nothing() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let report = |more: &[&str]| program("report").arg(place.path()).args(more).output().unwrap();
    refused(&report(&[]), 2, &["has no JSON file of transfer", "write some with --out"]);
    succeeds(&on_set("evaluate", &at("single.json"), &["--particles", "2"]));
    succeeds(&on_set("transfer", &at("table"), &["--particles", "2", "--count", "4"]));
    succeeds(&on_set("latents", &at("latents"), &["--updates", "30"]));
    let said = succeeds(&report(&["--title", "All of it"]));
    assert!(said.contains("3 files, 3 rows that were measured"), "{said}");
    let html = fs::read_to_string(at("report.html")).unwrap();
    let digest = json(&at("latents.json"))["sha256"].as_str().unwrap().to_owned();
    assert!(html.contains("<h1>All of it</h1>") && html.contains(&digest));
    // The table, its strokes, what is taken for what, learning.
    assert_eq!(html.matches("<img ").count(), 4);
    assert!(html.contains("idx:set, 2 particles, 4 images") && html.contains("7,094.0 ± 57.9"));
    let markdown = fs::read_to_string(at("report.md")).unwrap();
    assert!(markdown.contains("](table.svg)") && markdown.starts_with("# All of it\n"));
    // Its own page is none of what it reads, and nothing changes.
    succeeds(&report(&["--title", "All of it"]));
    assert_eq!(fs::read_to_string(at("report.html")).unwrap(), html);
}
