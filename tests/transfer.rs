//! The table of the paper with tiny models: what is written, what is gone on with, what is refused.
#![cfg(unix)]

mod common;

use common::programs::{Running, TINY, names, program, refused, succeeds, until};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};
use tempfile::TempDir;

/// A folder of 14 images for training and testing, as a source.
fn set(folder: &Path, period: u32) -> String {
    fs::create_dir_all(folder).unwrap();
    for part in ["train", "t10k"] {
        let mut bytes = vec![0, 0, 8, 3];
        [14u32, 12, 12].iter().for_each(|n| bytes.extend(n.to_be_bytes()));
        bytes.extend((0..14 * 144u32).map(|i| if (i + i / 144).is_multiple_of(period) { 255 } else { 0 }));
        fs::write(folder.join(format!("{part}-images-idx3-ubyte")), bytes).unwrap();
    }
    format!("idx:{}", folder.display())
}

/// Models and images that all tests share.
struct World {
    folder: TempDir,
    data: [String; 2],
}

static WORLD: OnceLock<World> = OnceLock::new();

impl World {
    fn get() -> &'static World {
        WORLD.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let data = [("a", 13), ("b", 7)].map(|(name, period)| set(&folder.path().join(name), period));
            fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
            let larger = TINY.replace("= 12", "= 16");
            fs::write(folder.path().join("larger.toml"), larger).unwrap();
            let world = World { folder, data };
            for (name, more) in [
                ("one", &["--seed", "1"][..]),
                ("two", &["--seed", "2"]),
                ("dair", &["--model", "dair"]),
                ("larger", &["--config", "larger.toml"]),
            ] {
                let mut train = program("train");
                train.args(["--data", &world.data[0], "--steps", "1", "--iwae", "0", "--device", "cpu", "--out", name]);
                if !more.contains(&"--config") {
                    train.args(["--config", "tiny.toml"]);
                }
                succeeds(&train.args(more).current_dir(world.folder.path()).output().unwrap());
            }
            world
        })
    }

    fn run(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `transfer` of some models on both sets, in a folder.
    fn transfer(&self, folder: &Path, models: &[&str], more: &[&str]) -> Command {
        let mut command = program("transfer");
        for name in models {
            command.arg("--checkpoint").arg(self.run(name));
        }
        for data in &self.data {
            command.args(["--data", data]);
        }
        command.args(["--device", "cpu", "--out", "t.able"]).args(more).current_dir(folder);
        command
    }
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

fn bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_table_has_a_row_per_model_a_column_per_set_and_says_what_evaluate_says() {
    let (world, place) = (World::get(), tempfile::tempdir().unwrap());
    let models = ["one", "two", "dair", "larger"];
    let few = ["--count", "5", "--particles", "4"];
    let said = succeeds(&output(world.transfer(place.path(), &models, &few)));
    assert!(said.contains("8 of 8 cells were measured now") && said.contains("2 runs"), "{said}");
    let ends = ["-strokes.png", "-strokes.svg", ".csv", ".json", ".png", ".svg"];
    assert_eq!(names(place.path()), ends.map(|end| format!("t.able{end}")));

    let table = json(&place.path().join("t.able.json"));
    assert_eq!((table["format"].as_str(), table["version"].as_u64()), (Some("dood-transfer"), Some(1)));
    assert!(table["command"].as_str().unwrap().starts_with("transfer --checkpoint "), "{}", table["command"]);
    let cells = table["cells"].as_array().unwrap();
    let checkpoints = table["checkpoints"].as_array().unwrap();
    assert_eq!((cells.len(), checkpoints.len(), table["samples"].as_array().unwrap().len()), (8, 4, 4));
    assert_eq!(checkpoints[0]["learned_from"], "idx:a");
    assert_eq!((checkpoints[1]["seed"].as_u64(), checkpoints[1]["updates"].as_u64()), (Some(2), Some(1)));
    for cell in cells {
        let strokes = cell["strokes"][0]["images"].as_array().unwrap();
        assert_eq!((strokes.len(), strokes.iter().map(|n| n.as_u64().unwrap()).sum::<u64>()), (11, 5));
        assert_eq!(cell["shown"].as_array().unwrap().len(), 3);
    }

    // One number, whichever program measures it.
    let mut evaluate = program("evaluate");
    evaluate.arg("--checkpoint").arg(world.run("two")).args(["--data", &world.data[1], "--device", "cpu"]);
    succeeds(&evaluate.args(few).args(["--out", "e.json"]).current_dir(place.path()).output().unwrap());
    let evaluated = json(&place.path().join("e.json"));
    let sha = |value: &Value| value.as_str().unwrap().to_owned();
    let measured = cells.iter().find(|cell| {
        sha(&cell["checkpoint"]) == sha(&checkpoints[1]["sha256"])
            && sha(&cell["data"]) == sha(&table["samples"][2]["sha256"])
    });
    let measured = &measured.unwrap()["bounds"][0]["measured"];
    for number in ["bound", "elbo", "log_likelihood", "strokes"] {
        assert_eq!(measured[number], evaluated[number], "{number}");
    }

    // Two runs are one row of the table, with the mean and the population standard deviation.
    let csv = fs::read_to_string(place.path().join("t.able.csv")).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let column = |name: &str| rows[0].iter().position(|field| *field == name).unwrap();
    assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    assert_eq!(rows.len(), 1 + 8 + 2, "a row per cell, and one for each mean");
    let number = |row: usize, name: &str| rows[row][column(name)].parse::<f64>().unwrap();
    assert_eq!((rows[3][column("checkpoint")], rows[3][column("runs")]), ("mean", "2"));
    let (one, two) = (number(1, "bound"), number(2, "bound"));
    assert!((number(3, "bound") - (one + two) / 2.0).abs() < 1e-9 && one != two);
    assert!((number(3, "bound_std") - (one - two).abs() / 2.0).abs() < 1e-9);
    let entry = &table["summary"][0];
    assert_eq!((entry["runs"].as_u64(), entry["bound"].as_f64()), (Some(2), Some(number(3, "bound"))));
    let trains: Vec<&str> = table["summary"].as_array().unwrap().iter().map(|e| e["train"].as_str().unwrap()).collect();
    let labels = ["idx:a (one)", "idx:a dair", "idx:a (larger)"];
    assert_eq!(trains, labels.map(|label| [label; 2]).concat());
    for svg in ["t.able.svg", "t.able-strokes.svg"] {
        let svg = fs::read_to_string(place.path().join(svg)).unwrap();
        assert!(svg.contains("idx:a dair") && svg.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn what_is_known_is_not_measured_again_and_more_is_added_to_it() {
    let (world, place) = (World::get(), tempfile::tempdir().unwrap());
    let few = ["--count", "4", "--particles", "3"];
    succeeds(&output(world.transfer(place.path(), &["one"], &few)));
    let before = bytes(place.path());
    let said = succeeds(&output(world.transfer(place.path(), &["one"], &few)));
    assert!(said.contains("0 of 2 cells were measured now"), "{said}");
    assert_eq!(bytes(place.path()), before);
    let path = place.path().join("t.able.json");
    let cells = || json(&path)["cells"].as_array().unwrap().clone();
    let known = cells();

    // Another checkpoint: the first one's cells stay as they were.
    let said = succeeds(&output(world.transfer(place.path(), &["two", "one"], &few)));
    assert!(said.contains("2 of 4 cells were measured now"), "{said}");
    assert_eq!(cells()[2..], known);
    // Other protocols stand beside the published one.
    let said = succeeds(&output(world.transfer(
        place.path(),
        &["one"],
        &[&few[..], &["--all-ends", "--refine", "2"]].concat(),
    )));
    assert!(said.contains("2 of 2 cells") && said.contains("refined by 2 updates, all ends"), "{said}");
    let bounds = cells()[0]["bounds"].as_array().unwrap().clone();
    assert_eq!(bounds.len(), 4);
    assert_eq!(bounds[0], known[0]["bounds"][0]);
    let bound = |i: usize| bounds[i]["measured"]["bound"]["mean"].as_f64().unwrap();
    assert!(bound(1) >= bound(0), "all ends are a tighter bound: {} {}", bound(0), bound(1));
    // Other images, another seed, or all anew: nothing is taken over.
    for more in [
        &["--count", "5", "--particles", "3"][..],
        &[&few[..], &["--seed", "7"]].concat(),
        &[&few[..], &["--anew"]].concat(),
    ] {
        let said = succeeds(&output(world.transfer(place.path(), &["one"], more)));
        assert!(said.contains("2 of 2 cells"), "{more:?}: {said}");
    }
    assert_eq!(bytes(place.path()), {
        // What was forgotten leaves nothing behind but the command.
        let anew = [&few[..], &["--anew"]].concat();
        succeeds(&output(world.transfer(place.path(), &["one"], &anew)));
        bytes(place.path())
    });
    assert_eq!(cells(), known);
}

#[test]
fn an_interrupted_table_goes_on_to_the_same_end() {
    let (world, whole, broken) = (World::get(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let many = ["--particles", "400", "--pictures", "1", "--threads", "1"];
    let mut running = world.transfer(broken.path(), &["one", "two"], &many);
    let mut running = Running(running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let path = broken.path().join("t.able.json");
    until("the first numbers", || path.exists().then_some(()));
    running.signal(libc::SIGINT);
    assert_eq!(running.end().code(), Some(130));
    let parts = |path: &Path| {
        let cells = json(path)["cells"].as_array().unwrap().clone();
        cells.iter().map(|cell| cell["bounds"].as_array().unwrap().len()).sum::<usize>()
    };
    assert!(parts(&path) < 4, "it was stopped too late for this test to say anything");
    succeeds(&output(world.transfer(broken.path(), &["one", "two"], &many)));
    succeeds(&output(world.transfer(whole.path(), &["one", "two"], &many)));
    assert_eq!(parts(&path), 4);
    assert_eq!(bytes(broken.path()), bytes(whole.path()));
}

#[test]
fn what_cannot_be_gone_on_with_or_means_nothing_is_refused_in_one_sentence() {
    let (world, place) = (World::get(), tempfile::tempdir().unwrap());
    let few = ["--count", "2", "--particles", "1"];
    let path = place.path().join("t.able.json");
    let run = || output(world.transfer(place.path(), &["one"], &few));
    for (text, parts) in [
        ("", &["it is an empty file"][..]),
        ("{}", &["does not hold a table"]),
        ("[1]", &["does not hold a table"]),
        ("{\"format\":\"dood-drawings\",\"version\":1}", &["does not hold a table"]),
        ("{\"format\":\"dood-transfer\",\"version\":9}", &["its version is not 1"]),
        ("{\"format\":\"dood-transfer\",\"version\":1}", &["it is damaged", "missing field"]),
    ] {
        fs::write(&path, text).unwrap();
        refused(&run(), 2, &[parts, &["t.able.json", "choose another --out"]].concat());
        assert_eq!(
            (names(place.path()), fs::read_to_string(&path).unwrap()),
            (vec!["t.able.json".into()], text.into())
        );
    }
    fs::remove_file(&path).unwrap();
    succeeds(&run());
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replacen("base64,iVBOR", "base64,AAAAA", 1)).unwrap();
    refused(&run(), 2, &["a picture in it is none"]);
    fs::write(&path, whole.replacen("\"limit\": 10", "\"limit\": 12", 1)).unwrap();
    refused(&run(), 2, &["numbers of strokes are missing"]);
    fs::remove_file(&path).unwrap();
    let transfer = |models: &[&str], more: &[&str]| output(world.transfer(place.path(), models, more));
    refused(&transfer(&["one", "one"], &few), 2, &["named twice", "name it once"]);
    refused(&transfer(&["one"], &["--data", &world.data[0]]), 2, &["the images of --data", "are the same"]);
    refused(&transfer(&["one"], &["--data", "cifar"]), 2, &["cifar", "not a data source"]);
    refused(&transfer(&[], &few), 2, &["required arguments"]);
    refused(&transfer(&["tiny.toml"], &few), 1, &["cannot be used as a checkpoint"]);
    refused(&transfer(&["nowhere"], &few), 1, &["cannot read", "nowhere"]);
    let mut nothing = program("transfer");
    refused(
        &output({
            nothing.arg("--checkpoint").arg(world.run("one"));
            nothing
        }),
        2,
        &["required arguments"],
    );
    let mut elsewhere = program("transfer");
    elsewhere.arg("--checkpoint").arg(world.run("one")).args(["--data", &world.data[0], "--device", "cpu"]);
    refused(
        &output({
            elsewhere.arg("--out").arg(place.path());
            elsewhere
        }),
        2,
        &["not a folder"],
    );
}
