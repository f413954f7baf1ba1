//! One-shot classification: the official runs, and the program on runs that are made up.

mod common;

use common::{
    png,
    programs::{program, refused, succeeds},
    real, run_files, write as put, zip_file,
};
use dood::{
    data::{alphabets_of, one_shot_runs},
    eval::one_shot::{Episode, classic::Classic, statistics::Share},
    observer::Silent,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

/// A folder with runs whose characters are squares of different sizes.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let zip = folder.path().join("all_runs.zip");
    fs::write(&zip, zip_file(&run_files())).unwrap();
    (folder, zip)
}

fn one_shot(folder: &Path, more: &[&str]) -> Output {
    let mut command = program("one_shot");
    command.args(["--runs", "all_runs.zip", "--device", "cpu"]).args(more).current_dir(folder);
    command.output().unwrap()
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("one_shot.json")).unwrap()).unwrap()
}

/// How often a method is right on the official runs.
fn right(method: Classic, folder: &Path) -> Share {
    let runs = one_shot_runs(folder, 105).unwrap();
    let episodes = runs.iter().enumerate().map(|(i, run)| {
        let scores = method.scores(run, &Silent).unwrap();
        Episode::new(i + 1, run, &scores, 0.0)
    });
    let share = Share::of(episodes.flat_map(|episode| episode.right()));
    println!("{method:?}: {share:?}");
    assert_eq!(share.of, 400);
    share
}

#[test]
fn the_published_errors_of_the_modified_hausdorff_distance_are_reproduced() {
    let Some(folder) = real("omniglot") else { return };
    let errors = 100.0 * (1.0 - right(Classic::Hausdorff, &folder).share);
    assert!((errors - 38.8).abs() < 0.1, "{errors}");
}

#[test]
fn the_published_share_of_the_nearest_image_is_in_the_interval() {
    let Some(folder) = real("omniglot") else { return };
    let share = right(Classic::Pixels, &folder);
    assert!(share.low < 0.217 && 0.217 < share.high, "{share:?}");
}

#[test]
fn the_official_runs_are_two_of_each_of_ten_alphabets() {
    let Some(folder) = real("omniglot") else { return };
    let names = alphabets_of(&one_shot_runs(&folder, 105).unwrap(), &folder).unwrap().unwrap();
    let mut counted = names.clone();
    counted.sort();
    counted.dedup();
    let twice = counted.iter().all(|name| names.iter().filter(|other| *other == name).count() == 2);
    assert!(counted.len() == 10 && twice, "{names:?}");
}

#[test]
fn runs_are_found_in_a_zip_beside_others_and_unpacked_and_damage_is_refused() {
    let (folder, zip) = place();
    let runs = one_shot_runs(&zip, 30).unwrap();
    assert_eq!(one_shot_runs(folder.path(), 30).unwrap(), runs);
    assert_eq!(alphabets_of(&runs, folder.path()).unwrap(), None);
    let unpacked = tempfile::tempdir().unwrap();
    run_files().iter().for_each(|(path, bytes)| put(unpacked.path(), path, bytes));
    assert_eq!(one_shot_runs(unpacked.path(), 30).unwrap(), runs);
    fs::write(unpacked.path().join("run03/test/item01.png"), b"not a picture").unwrap();
    let error = one_shot_runs(unpacked.path(), 30).unwrap_err().to_string();
    assert!(error.contains("run03/test/item01.png is not a PNG") && !error.contains('\n'), "{error}");
    let bytes = fs::read(&zip).unwrap();
    for end in [0, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&zip, &bytes[..end]).unwrap();
        let error = one_shot_runs(&zip, 30).unwrap_err().to_string();
        assert!(error.contains("all_runs.zip") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn runs_know_their_alphabet_where_the_evaluation_set_is_beside_them() {
    let (folder, zip) = place();
    let runs = one_shot_runs(&zip, 30).unwrap();
    let drawing = |alphabet: &str, ink: u32| (format!("x/{alphabet}/character{ink:02}/01.png"), png(30, ink));
    let write = |drawings: Vec<(String, Vec<u8>)>| {
        fs::write(folder.path().join("images_evaluation.zip"), zip_file(&drawings)).unwrap();
        alphabets_of(&runs, folder.path())
    };
    let all = write((1..=20).map(|ink| drawing("Squares", ink)).collect()).unwrap().unwrap();
    assert!(all.len() == 20 && all.iter().all(|name| name == "Squares"));
    for drawings in [
        (1..20).map(|ink| drawing("Squares", ink)).collect(),
        (1..=20).map(|ink| drawing(if ink < 5 { "Small" } else { "Large" }, ink)).collect(),
    ] {
        let error = write(drawings).unwrap_err().to_string();
        assert!(error.contains("run 1 are not of one alphabet"), "{error}");
    }
}

#[test]
fn the_program_compares_methods_and_goes_on_where_it_was_stopped() {
    let (folder, _) = place();
    succeeds(&one_shot(folder.path(), &["--method", "hausdorff,pixels", "--count", "3"]));
    let first = report(folder.path());
    succeeds(&one_shot(folder.path(), &["--method", "hausdorff,pixels,affine", "--count", "4", "--resume"]));
    let second = report(folder.path());
    let scores = |report: &Value, method: usize, run: usize| report["methods"][method]["runs"][run]["scores"].clone();
    for method in 0..2 {
        assert_eq!(scores(&first, method, 2), scores(&second, method, 2));
        assert_eq!(second["methods"][method]["runs"][2]["seconds"], first["methods"][method]["runs"][2]["seconds"]);
    }
    assert_eq!(second["summary"].as_array().unwrap().len(), 3);
    // Sizes of squares are told by pixels, and by the affine search, which has to pay for scaling.
    assert_eq!(second["summary"][1]["overall"]["right"], 80);
    assert_eq!(second["paired"].as_array().unwrap().len(), 3);
    let rows = fs::read_to_string(folder.path().join("one_shot.csv")).unwrap();
    assert_eq!(rows.lines().count(), 1 + 3 * 80);
    assert!(rows.starts_with("method,run,alphabet,query,answer,guess,right\nhausdorff,1,,1,20,"), "{rows}");
    for method in ["hausdorff", "pixels", "affine"] {
        let picture = image::open(folder.path().join(format!("one_shot-{method}.png"))).unwrap();
        assert!(picture.width() > 20 * 40 && picture.height() > 8 * 40);
    }
    // A method keeps the command that was about it.
    succeeds(&one_shot(folder.path(), &["--method", "affine", "--count", "5", "--resume"]));
    let third = report(folder.path());
    let command = |method: usize| third["methods"][method]["command"].as_str().unwrap();
    assert!(command(0).contains("hausdorff,pixels,affine --count 4"), "{}", command(0));
    assert!(command(2).contains("--method affine --count 5"), "{}", command(2));
}

#[test]
fn the_program_scores_with_a_model_and_another_protocol_is_not_mixed_in() {
    let (folder, _) = place();
    let model = "[model]\nimage = 12\nview = 12\nconv1 = 2\nconv2 = 3\nfeatures = 8\nhidden = 8\npoints = 3\nsamples = 10\ncomponents = 2\nstrokes = 1\nbaseline_hidden = 8\n";
    fs::write(folder.path().join("tiny.toml"), model).unwrap();
    let train =
        ["--config", "tiny.toml", "--steps", "1", "--iwae", "0", "--batch", "2", "--device", "cpu", "--out", "run"];
    succeeds(&program("train").args(train).current_dir(folder.path()).output().unwrap());
    let small = [
        "--checkpoint",
        "run",
        "--method",
        "reference,improved",
        "--parses",
        "1",
        "--particles",
        "1",
        "--updates",
        "2",
    ];
    let with = |more: &[&str]| one_shot(folder.path(), &[&small[..], more].concat());
    succeeds(&with(&["--count", "1"]));
    let first = report(folder.path());
    succeeds(&with(&["--count", "2", "--resume", "--threads", "1"]));
    let second = report(folder.path());
    assert_eq!(first["methods"][1]["runs"][0], second["methods"][1]["runs"][0]);
    assert_eq!(second["methods"][0]["runs"].as_array().unwrap().len(), 2);
    succeeds(&with(&["--count", "2"]));
    let (whole, parts) = (report(folder.path()), second);
    for method in 0..2 {
        assert_eq!(whole["methods"][method]["runs"][1]["scores"], parts["methods"][method]["runs"][1]["scores"]);
        assert_eq!(whole["methods"][method]["model"]["protocol"]["two_way"], method == 1);
    }
    refused(&with(&["--resume", "--seed", "1"]), 2, &["another model or protocol"]);
}

#[test]
fn wrong_commands_are_told_in_a_sentence() {
    let (folder, zip) = place();
    refused(&one_shot(folder.path(), &["--method", "reference"]), 2, &["needs a model"]);
    refused(&one_shot(folder.path(), &["--resume"]), 2, &["to resume from"]);
    fs::write(folder.path().join("one_shot.json"), "{}").unwrap();
    refused(&one_shot(folder.path(), &["--resume"]), 1, &["cannot be gone on with"]);
    fs::write(zip, "nothing").unwrap();
    refused(&one_shot(folder.path(), &[]), 1, &["not a zip"]);
}
