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

#[test]
fn drawings_are_as_far_from_images_as_the_classifier_sees_them() {
    let place = tempfile::tempdir().unwrap();
    let seen = place.path().join("seen.safetensors");
    let classify = ["--data", "idx:set", "--side", "8", "--epochs", "2", "--device", "cpu", "--out"];
    succeeds(&program("classify").args(classify).arg(seen.with_extension("")).current_dir(world()).output().unwrap());
    let out = place.path().join("dist.ance");
    let frechet = |more: &[&str]| {
        let quick = ["--pen", "0.05,0.7,0.5", "--count", "30", "--images", "2", "--exemplars", "3", "--particles", "2"];
        on_set("frechet", &out, &[&["--classifier", seen.to_str().unwrap()], &quick[..], more].concat())
    };
    let said = succeeds(&frechet(&["--runs", "1"]));
    assert!(said.contains("(no FID)") && said.contains("recognised"), "{said}");
    let ends = ["-drawn.json", "-drawn.png", "-drawn.svg", ".csv", ".json", ".png", ".svg"];
    assert_eq!(names(place.path())[..7], ends.map(|end| format!("dist.ance{end}")));
    let first = json(&place.path().join("dist.ance.json"));
    // Test images are of the kind of training images; a model that has learned nothing draws something else.
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&first["test_images"]) < number(&first["generated"]["mean"]) / 2.0, "{first:#}");
    assert_eq!(first["exemplars"]["recognised"]["of"], 2 * 2 * 3);
    assert_eq!(first["exemplars"]["classes"].as_array().unwrap().len(), 2);

    // Two runs gone on with are those of one go.
    succeeds(&frechet(&["--runs", "2", "--resume"]));
    let resumed = json(&place.path().join("dist.ance.json"));
    succeeds(&frechet(&["--runs", "2"]));
    let whole = json(&place.path().join("dist.ance.json"));
    assert_eq!(resumed["generated"]["distances"][0], first["generated"]["distances"][0]);
    for part in ["generated", "exemplars", "test_images"] {
        assert_eq!(resumed[part], whole[part]);
    }
    refused(&frechet(&["--resume", "--seed", "1"]), 2, &["another model, classifier, set, seed"]);
    fs::write(&seen, "nothing").unwrap();
    refused(&frechet(&[]), 1, &["cannot be used as a classifier"]);
    let one = ["--classifier", "seen.safetensors", "--exemplars", "1"];
    refused(&on_set("frechet", &out, &one), 2, &["choose 0, or 2 and more"]);
}

#[test]
fn strokes_are_drawn_once_for_clusters() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("stro.kes");
    let cluster =
        |more: &[&str]| on_set("cluster", &out, &[&["--k", "2,3", "--show", "3", "--map", "20"], more].concat());
    let whole = |place: &Path| fs::read(place.join("stro.kes.csv")).unwrap();
    refused(&cluster(&["--resume"]), 2, &["to resume from"]);
    succeeds(&cluster(&["--strokes", "250"]));
    let ends = ["-drawn.safetensors", ".csv", ".json", ".png", ".svg"];
    assert_eq!(names(place.path()), ends.map(|end| format!("stro.kes{end}")));
    let at_once = (whole(place.path()), json(&place.path().join("stro.kes.json")));
    succeeds(&cluster(&["--strokes", "40"]));
    let few = json(&place.path().join("stro.kes.json"));
    assert!(few["images"].as_u64() < at_once.1["images"].as_u64() && few["strokes"] == 40);
    let said = succeeds(&cluster(&["--strokes", "250", "--resume"]));
    let gone_on = json(&place.path().join("stro.kes.json"));
    assert_eq!(whole(place.path()), at_once.0, "{said}");
    assert_eq!((&gone_on["clusters"], &gone_on["images"]), (&at_once.1["clusters"], &at_once.1["images"]));
    // Fewer than are kept are those of a first run.
    succeeds(&cluster(&["--strokes", "40", "--resume"]));
    assert_eq!(json(&place.path().join("stro.kes.json"))["clusters"], few["clusters"]);
    refused(&cluster(&["--resume", "--seed", "3"]), 2, &["another model, other images or another seed"]);
}

/// The most memory that a program held, in MiB.
#[cfg(target_os = "linux")]
#[allow(clippy::zombie_processes)]
fn memory(command: &mut std::process::Command) -> f64 {
    let child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child is ours and waited for here only; both places outlive the call.
    let usage = unsafe {
        assert!(libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()) > 0);
        usage.assume_init()
    };
    assert_eq!(status, 0);
    usage.ru_maxrss as f64 / 1024.0
}

#[cfg(target_os = "linux")]
#[test]
fn five_thousand_particles_take_no_more_memory_than_two_hundred() {
    let with = |particles: &str| {
        let mut evaluate = program("evaluate");
        evaluate.args(["--checkpoint", "run", "--data", "idx:set", "--device", "cpu", "--count", "2", "--particles"]);
        memory(evaluate.arg(particles).current_dir(world()))
    };
    let [few, many] = [with("200"), with("5000")];
    println!("{few:.1} MiB with 200 particles, {many:.1} MiB with 5,000");
    assert!(many < 1.3 * few, "{few} MiB -> {many} MiB");
}
