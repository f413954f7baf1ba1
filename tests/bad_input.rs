//! The programs as a user meets them: what is wrong is said in one sentence with the right exit code, and nothing half-written
//! stays behind. Also that Ctrl-C is no accident.
//!
//! The examples are built by a plain `cargo test`.

mod common;

use common::{
    programs::{Running, idx, names, program, refused, rows, run, succeeds, until},
    skipped,
};
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A finished run of one step, and the name of its data.
fn small_run(folder: &Path) -> (PathBuf, String) {
    let (data, out) = (folder.join("data"), folder.join("run"));
    let data = idx(&data);
    let output = run("train", &["--data", &data, "--steps", "1", "--batch", "2", "--iwae", "0", "--out", text(&out)]);
    succeeds(&output);
    (out, data)
}

#[test]
fn wrong_arguments_exit_with_2_and_name_the_argument() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    for (arguments, parts) in [
        (&["--batch", "0"][..], &["--batch", "0"][..]),
        (&["--steps", "0"], &["--steps", "0"]),
        (&["--steps", "many"], &["--steps", "many"]),
        (&["--checkpoint-every", "0"], &["--checkpoint-every"]),
        (&["--data", "cifar"], &["cifar", "mnist", "synthetic"]),
        (&["--data", "idx"], &["idx:FOLDER"]),
        (&["--preset", "huge"], &["huge", "quick", "paper"]),
        (&["--placement", "left"], &["left", "warp", "points"]),
        (&["--device", "abacus"], &["abacus", "cpu", "cuda"]),
        (&["--threads", "0"], &["--threads", "0"]),
        (&["--learning-rate", "0"], &["learning rate", "positive"]),
        (&["--learning-rate", "nan"], &["learning rate", "positive"]),
        (&["--strokes", "3"], &["--strokes"]),
        (&["--resume"], &["no checkpoint", "--out"]),
    ] {
        refused(&run("train", &[arguments, &["--out", text(&out)]].concat()), 2, parts);
        assert!(names(folder.path()).is_empty(), "{arguments:?} left something behind");
    }
    for (arguments, part) in [(["--out", "a.jpg"], ".png"), (["--count", "0"], "--count"), (["--split", "all"], "all")]
    {
        let always = ["--checkpoint", "x.safetensors", "--data", "synthetic"];
        refused(&run("reconstruct", &[&always[..], &arguments].concat()), 2, &[part]);
    }
}

#[test]
fn a_graphics_card_that_is_not_there_is_said_to_be_missing() {
    refused(&run("train", &["--device", "cuda"]), 1, &["cuda", "--device cpu"]);
}

#[test]
fn data_that_cannot_be_used_leave_no_run_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    let try_with = |source: &str| run("train", &["--data", source, "--out", text(&out)]);
    refused(&try_with(&format!("mnist:{}", data.display())), 1, &[text(&data), "does not exist", "--download"]);
    fs::create_dir(&data).unwrap();
    refused(&try_with(&format!("idx:{}", data.display())), 1, &["images", text(&data)]);
    let source = idx(&data);
    // Eleven labels for twelve images.
    fs::write(data.join("train-labels-idx1-ubyte"), [&[0, 0, 8, 1, 0, 0, 0, 11][..], &[0; 11]].concat()).unwrap();
    refused(&try_with(&source), 1, &["11", "12", "label"]);
    fs::remove_file(data.join("train-labels-idx1-ubyte")).unwrap();
    let images = data.join("train-images-idx3-ubyte");
    let whole = fs::read(&images).unwrap();
    fs::write(&images, &whole[..whole.len() - 9]).unwrap();
    refused(&try_with(&source), 1, &["train-images"]);
    assert!(!out.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "a note").unwrap();
    let source = idx(folder.path());
    let out = file.join("run");
    refused(&run("train", &["--data", &source, "--out", text(&out)]), 1, &[text(&out)]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "a note");
}

#[test]
fn a_run_is_neither_overwritten_nor_mixed_with_another() {
    let folder = tempfile::tempdir().unwrap();
    let (out, data) = small_run(folder.path());
    let before = names(&out);
    let train = |more: &[&str]| run("train", &[&["--data", &data, "--batch", "2", "--out", text(&out)], more].concat());
    refused(&train(&[]), 2, &["holds a run already", "--resume", "--out"]);
    refused(&train(&["--resume"]), 2, &["--steps", "made its 1 steps"]);
    let others = ["--resume", "--steps", "3", "--seed", "5", "--placement", "points", "--preset", "paper"];
    refused(&train(&others), 2, &["seed 5 instead of 0", "placement points", "preset paper instead of quick"]);
    assert_eq!(names(&out), before);
    // What does not belong to a run's identity may change; the rest need not be repeated.
    let on = run("train", &["--resume", "--steps", "3", "--iwae", "0", "--out", text(&out)]);
    assert!(on.status.success(), "{}", String::from_utf8_lossy(&on.stderr));
    assert!(out.join("checkpoint-00000003.safetensors").exists());
    // The data are another set of the same name.
    let first = data.strip_prefix("idx:").unwrap();
    let images = Path::new(first).join("train-images-idx3-ubyte");
    let mut fewer = fs::read(&images).unwrap();
    fewer[7] = 11;
    fs::write(&images, &fewer[..fewer.len() - 144]).unwrap();
    refused(&train(&["--resume", "--steps", "4"]), 1, &["11 images", "12", "same data"]);
}

#[test]
fn a_damaged_checkpoint_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (out, data) = small_run(folder.path());
    let path = out.join("checkpoint-00000001.safetensors");
    let whole = fs::read(&path).unwrap();
    let name = whole.windows(15).position(|w| w == b"pen.linear0.bia").unwrap();
    let renamed = [&whole[..name], b"pin.linear0.bia", &whole[name + 15..]].concat();
    for (bytes, part) in [
        (&b"{}"[..], "not a safetensors file"),
        (&[], "empty"),
        (&whole[..whole.len() / 2], "truncated"),
        (&renamed, "pen.linear0.bias; unexpected: pin.linear0.bias"),
    ] {
        fs::write(&path, bytes).unwrap();
        let resumed = run("train", &["--resume", "--steps", "2", "--out", text(&out)]);
        refused(&resumed, 1, &[text(&path), "cannot be used as a checkpoint", part]);
        let picture = folder.path().join("a.png");
        let drawn = run("reconstruct", &["--checkpoint", text(&path), "--data", &data, "--out", text(&picture)]);
        refused(&drawn, 1, &[text(&path), "cannot be used as a checkpoint", part]);
        assert!(!picture.exists() && fs::read(&path).unwrap() == bytes);
    }
    let missing = folder.path().join("none.safetensors");
    refused(
        &run("reconstruct", &["--checkpoint", text(&missing), "--data", &data]),
        1,
        &["cannot read", text(&missing)],
    );
}

#[test]
fn reconstructions_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (out, data) = small_run(folder.path());
    let draw = |picture: &Path| {
        let checkpoint = ["--checkpoint", text(&out), "--data", &data, "--count", "3", "--particles", "2"];
        run("reconstruct", &[&checkpoint[..], &["--out", text(picture)]].concat())
    };
    let good = folder.path().join("a.png");
    let output = draw(&good);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("3 test images of 12") && said.contains("log-likelihood"),
        "{said}"
    );
    assert!(fs::read(&good).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(good.with_extension("svg")).unwrap().ends_with("</svg>\n"));
    assert_eq!(draw(&good).stdout, output.stdout, "the same seed gives the same drawings");
    let nowhere = folder.path().join("no").join("a.png");
    refused(&draw(&nowhere), 2, &["cannot be written", "mkdir -p"]);
    assert_eq!(names(folder.path()), ["a.png", "a.svg", "data", "run"]);
}

/// A file system of 8 MB, unmounted in the end; `None` where mounting is not allowed.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: PathBuf) -> Option<Self> {
        fs::create_dir(&folder).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs", text(&folder)]).output();
        mount.is_ok_and(|output| output.status.success()).then_some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_a_run_with_a_sentence_and_no_half_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path().join("disk")) else {
        skipped("a small file system cannot be mounted here (that needs root)");
        return;
    };
    let source = idx(folder.path());
    let out = disk.0.join("run");
    let output = run("train", &["--data", &source, "--steps", "1", "--batch", "2", "--out", text(&out)]);
    refused(&output, 1, &["cannot write", "checkpoint-00000001.safetensors", "space"]);
    assert!(names(&out).iter().all(|name| !name.contains("checkpoint")), "{:?}", names(&out));
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_checkpoint_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (idx(folder.path()), folder.path().join("run"));
    let arguments = ["--data", &data, "--steps", "100000", "--batch", "2", "--out", text(&out)];
    let child = program("train").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = Running(child);
    until("the first step", || (rows(&out) > 0).then_some(()));
    child.signal(libc::SIGINT);
    let mut said = String::new();
    child.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.end().code(), Some(130), "{said}");
    let command: Vec<&str> = said.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(command[1..], ["--resume", "--out", text(&out)]);
    let step: u64 = said.split(['.', ' ']).find_map(|word| word.parse().ok()).unwrap();
    assert!(out.join(format!("checkpoint-{step:08}.safetensors")).exists());
    let on = Command::new(command[0])
        .args(&command[1..])
        .args(["--iwae", "0", "--steps", &(step + 2).to_string()])
        .output()
        .unwrap();
    assert!(on.status.success(), "{}", String::from_utf8_lossy(&on.stderr));
}
