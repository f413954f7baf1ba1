//! Training as a whole: reproducible, resumable, never without a usable checkpoint, and it learns.

use dood::{
    Device, Error,
    checkpoint::{self, Checkpoint},
    data::{Images, Source, synthetic},
    metrics::MetricsFile,
    model::Config,
    ops::Placement,
    train::{Preset, Report, Settings, Trainer},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

fn tiny() -> Config {
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
        ..Config::paper(Placement::Points)
    }
}

fn settings() -> Settings {
    Settings { batch: 8, seed: 3, rates: [1e-3; 3], ..Preset::Quick.settings(&Source::Synthetic) }
}

/// Not a multiple of the batch, so that epochs end with a partial one.
fn images() -> Images {
    synthetic::draw(60, tiny().image, 5)
}

fn trainer() -> Trainer {
    Trainer::new(&tiny(), settings(), images(), &Device::cpu()).unwrap()
}

fn resumed(path: &Path) -> Trainer {
    let bytes = fs::read(path).unwrap();
    let checkpoint = Checkpoint::parse(&bytes, "the checkpoint").unwrap();
    Trainer::resume(&checkpoint, images(), &Device::cpu(), |_| {}).unwrap()
}

/// Makes updates until there are `until`, and logs them to `folder`.
fn advance(trainer: &mut Trainer, until: u64, folder: &Path) -> Vec<Report> {
    let next = if trainer.updates() == 0 { 0 } else { trainer.updates() + 1 };
    let mut metrics = MetricsFile::open(&folder.join("metrics.csv"), &Report::NAMES, next).unwrap();
    let mut reports = vec![];
    while trainer.updates() < until {
        let report = trainer.step().unwrap();
        metrics.log(trainer.updates(), &report.values()).unwrap();
        reports.push(report);
    }
    reports
}

/// The checkpoint and the metrics after `steps` updates in one go.
fn straight(steps: u64) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer();
    advance(&mut trainer, steps, folder.path());
    let path = checkpoint::path(folder.path(), steps);
    trainer.save(&path).unwrap();
    (fs::read(path).unwrap(), fs::read_to_string(folder.path().join("metrics.csv")).unwrap())
}

fn with_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_any_number_of_threads() {
    let one = with_threads(1, || straight(20));
    assert!(one == with_threads(2, || straight(20)), "2 threads");
    assert!(one == with_threads(3, || straight(20)), "3 threads");
    let other_seed = Settings { seed: 4, ..settings() };
    let mut other = Trainer::new(&tiny(), other_seed, images(), &Device::cpu()).unwrap();
    let first = one.1.lines().nth(1).unwrap().split(',').nth(1).unwrap().parse::<f32>().unwrap();
    assert_ne!(other.step().unwrap().loss, first);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let (checkpoint, metrics) = straight(100);
    let folder = tempfile::tempdir().unwrap();
    let middle = checkpoint::path(folder.path(), 50);
    let mut first = trainer();
    advance(&mut first, 50, folder.path());
    first.save(&middle).unwrap();
    // These steps are lost, as when a run is killed between two checkpoints.
    advance(&mut first, 53, folder.path());
    let mut second = resumed(&middle);
    assert_eq!(second.updates(), 50);
    advance(&mut second, 100, folder.path());
    let end = checkpoint::path(folder.path(), 100);
    second.save(&end).unwrap();
    assert!(fs::read(&end).unwrap() == checkpoint, "the checkpoints differ");
    assert_eq!(fs::read_to_string(folder.path().join("metrics.csv")).unwrap(), metrics);
    assert_eq!(checkpoint::latest(folder.path()).unwrap(), Some(end));
}

#[test]
fn a_resumed_run_refuses_other_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    trainer().save(&path).unwrap();
    let bytes = fs::read(path).unwrap();
    let checkpoint = Checkpoint::parse(&bytes, "a").unwrap();
    let others = synthetic::draw(59, tiny().image, 5);
    let refused = Trainer::resume(&checkpoint, others, &Device::cpu(), |_| {}).err().unwrap().to_string();
    assert!(refused.contains("59") && refused.contains("60") && refused.contains("same data"), "{refused}");
}

#[test]
fn every_image_is_seen_once_in_an_epoch_and_epochs_differ() {
    let mut trainer = trainer();
    let mut epoch = || -> Vec<u32> {
        let batch = |_| {
            let images = trainer.next_images().to_vec();
            trainer.step().unwrap();
            images
        };
        (0..60usize.div_ceil(8)).flat_map(batch).collect()
    };
    let (first, second) = (epoch(), epoch());
    assert_ne!(first, second);
    for mut images in [first, second] {
        images.sort_unstable();
        assert_eq!(images, (0..60).collect::<Vec<u32>>());
    }
}

#[test]
fn a_model_learns_synthetic_strokes_in_seconds() {
    let images = synthetic::draw(256, tiny().image, 5);
    let mut trainer = Trainer::new(&tiny(), Settings { batch: 32, ..settings() }, images, &Device::cpu()).unwrap();
    let reports: Vec<Report> = (0..300).map(|_| trainer.step().unwrap()).collect();
    let mean = |part: &[Report]| part.iter().map(|r| r.elbo).sum::<f32>() / part.len() as f32;
    let (before, after) = (mean(&reports[..10]), mean(&reports[290..]));
    println!("ELBO {before:.1} -> {after:.1} nats");
    assert!(after > before + 50.0, "the ELBO went from {before} to {after}");
}

#[test]
fn a_value_that_is_not_finite_is_named_and_nothing_is_updated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.safetensors");
    let mut trainer = trainer();
    trainer.step().unwrap();
    trainer.save(&path).unwrap();

    let scale = trainer.params().find("likelihood.raw_scale").unwrap();
    let mut values = trainer.params().get(scale).to_f64();
    values[7] = f64::NAN;
    trainer.params_mut().set(scale, &values);
    let Err(Error::NotFinite(sentence)) = trainer.step() else { panic!("a NaN was trained on") };
    let expected = ["likelihood.raw_scale", "step 2", &path.display().to_string(), "lower learning rate"];
    assert!(expected.iter().all(|part| sentence.contains(part)), "{sentence}");
    assert_eq!(trainer.updates(), 1);

    // All parameters are finite, but the square of the baseline's error is not.
    values[7] = 0.0;
    trainer.params_mut().set(scale, &values);
    let bias = trainer.params().find("baseline.linear3.bias").unwrap();
    trainer.params_mut().set(bias, &[3e38]);
    let before = trainer.params().slab().to_f32();
    let Err(Error::NotFinite(sentence)) = trainer.step() else { panic!("an infinity was trained on") };
    assert!(sentence.contains("result of the op mul"), "{sentence}");
    assert_eq!(trainer.params().slab().to_f32(), before);
}

/// Not a test of its own: the child of the next one, which writes checkpoints until it is killed.
#[test]
fn child_that_writes_checkpoints() {
    let Some(folder) = std::env::var_os("DOOD_TEST_WRITE_CHECKPOINTS") else { return };
    let (folder, trainer) = (PathBuf::from(folder), trainer());
    let first = checkpoint::steps(&folder).unwrap().last().map_or(0, |last| last + 1);
    for step in first.. {
        trainer.save(&checkpoint::path(&folder, step)).unwrap();
        checkpoint::prune(&folder, 3).unwrap();
    }
}

#[test]
fn the_newest_checkpoint_loads_after_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let expected = trainer().params().slab().to_f32();
    let mut abandoned = 0;
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_checkpoints", "--exact"])
            .env("DOOD_TEST_WRITE_CHECKPOINTS", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // From before the first write to well within the writing.
        std::thread::sleep(Duration::from_micros(3_000 + 7_919 * round % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        abandoned += names.filter(|name| name.ends_with(".partial")).count();
        let Some(newest) = checkpoint::latest(folder.path()).unwrap() else { continue };
        let bytes = fs::read(&newest).unwrap();
        let loaded = Checkpoint::parse(&bytes, "newest").unwrap();
        let trainer = Trainer::resume(&loaded, images(), &Device::cpu(), |_| {}).unwrap();
        assert_eq!(trainer.params().slab().to_f32(), expected);
    }
    let steps = checkpoint::steps(folder.path()).unwrap();
    println!("killed 25 times: newest checkpoint {:?}, {abandoned} writes interrupted", steps.last());
    assert!(steps.last() > Some(&25) && steps.len() <= 4, "{steps:?}");
    checkpoint::prune(folder.path(), 3).unwrap();
    assert!(fs::read_dir(folder.path()).unwrap().count() <= 3, "interrupted writes are cleared away");
}
