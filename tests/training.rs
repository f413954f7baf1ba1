//! Training as a whole: reproducible, resumable, never without a usable checkpoint, and it learns.

mod common;

use common::{
    Recipe::{self, Published},
    tiny,
};
use dood::{
    Device, Error,
    checkpoint::{self, Checkpoint},
    data::{Images, Source, synthetic},
    eval::{Best, Reconstruction, reconstruct},
    measure::Protocol,
    metrics::MetricsFile,
    model::Config,
    observer::Silent,
    ops::Placement,
    rng::Rng,
    train::{Preset, Report, Settings, Trainer, pixels},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

fn settings() -> Settings {
    Settings { batch: 8, seed: 3, rates: [1e-3; 4], ..Preset::Quick.settings(&Source::Synthetic) }
}

/// Not a multiple of the batch, so that epochs end with a partial one.
fn images() -> Images {
    synthetic::draw(60, tiny(Placement::Points).image, 5)
}

fn trainer(recipe: Recipe) -> Trainer {
    let (config, settings) = recipe.apply(tiny(Placement::Points), settings());
    Trainer::new(&config, settings, images(), &Device::cpu()).unwrap()
}

fn resumed(path: &Path) -> Trainer {
    let bytes = fs::read(path).unwrap();
    let checkpoint = Checkpoint::parse(&bytes, "the checkpoint").unwrap();
    Trainer::resume(&checkpoint, images(), &Device::cpu(), |_| {}).unwrap()
}

/// Makes updates until there are `until`, and logs them to `folder`.
fn advance(trainer: &mut Trainer, until: u64, folder: &Path) -> Vec<Report> {
    let next = if trainer.updates() == 0 { 0 } else { trainer.updates() + 1 };
    let mut metrics = MetricsFile::open(&folder.join("metrics.csv"), &Report::NAMES, next, &Silent).unwrap();
    let mut reports = vec![];
    while trainer.updates() < until {
        let report = trainer.step().unwrap();
        metrics.log(trainer.updates(), &report.values()).unwrap();
        reports.push(report);
    }
    reports
}

/// The checkpoint and the metrics after `steps` updates in one go.
fn straight(recipe: Recipe, steps: u64) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(recipe);
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
    for recipe in Recipe::BOTH {
        let one = with_threads(1, || straight(recipe, 20));
        assert!(one == with_threads(2, || straight(recipe, 20)), "{recipe:?}, 2 threads");
        assert!(one == with_threads(3, || straight(recipe, 20)), "{recipe:?}, 3 threads");
    }
    let one = straight(Published, 1);
    let other_seed = Settings { seed: 4, ..settings() };
    let mut other = Trainer::new(&tiny(Placement::Points), other_seed, images(), &Device::cpu()).unwrap();
    let first = one.1.lines().nth(1).unwrap().split(',').nth(1).unwrap().parse::<f32>().unwrap();
    assert_ne!(other.step().unwrap().loss, first);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    Recipe::BOTH.into_iter().for_each(resumed_equals_straight);
}

fn resumed_equals_straight(recipe: Recipe) {
    let (checkpoint, metrics) = straight(recipe, 100);
    let folder = tempfile::tempdir().unwrap();
    let middle = checkpoint::path(folder.path(), 50);
    let mut first = trainer(recipe);
    advance(&mut first, 50, folder.path());
    first.save(&middle).unwrap();
    // These steps are lost, as when a run is killed between two checkpoints.
    advance(&mut first, 53, folder.path());
    let mut second = resumed(&middle);
    assert_eq!(second.updates(), 50);
    advance(&mut second, 100, folder.path());
    let end = checkpoint::path(folder.path(), 100);
    second.save(&end).unwrap();
    assert!(fs::read(&end).unwrap() == checkpoint, "{recipe:?}: the checkpoints differ");
    assert_eq!(fs::read_to_string(folder.path().join("metrics.csv")).unwrap(), metrics);
    assert_eq!(checkpoint::latest(folder.path()).unwrap(), Some(end));
}

#[test]
fn a_resumed_run_refuses_other_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    trainer(Published).save(&path).unwrap();
    let bytes = fs::read(path).unwrap();
    let checkpoint = Checkpoint::parse(&bytes, "a").unwrap();
    let others = synthetic::draw(59, tiny(Placement::Points).image, 5);
    let refused = Trainer::resume(&checkpoint, others, &Device::cpu(), |_| {}).err().unwrap().to_string();
    assert!(refused.contains("59") && refused.contains("60") && refused.contains("same data"), "{refused}");
}

#[test]
fn every_image_is_seen_once_in_an_epoch_and_epochs_differ() {
    let mut trainer = trainer(Published);
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

/// Sixteen drawings by heart: ink that is wrong or missing falls well below what a blank page would give.
#[test]
fn a_model_learns_to_draw_in_seconds() {
    let size = Config {
        image: 28,
        features: 96,
        hidden: 96,
        strokes: 2,
        dropout: 0.0,
        placement: Placement::Warp,
        ..tiny(Placement::Points)
    };
    let images = synthetic::draw(16, size.image, 5);
    let device = Device::cpu();
    let x = pixels(&images, 0..images.len(), &device);
    let learning = Settings { batch: 16, rates: [3e-4, 1e-3, 1e-4, 3e-4], eager: true, faint: false, ..settings() };
    let mut trainer = Trainer::new(&size, learning, images, &device).unwrap();
    let wrong = |trainer: &Trainer| {
        let drawn = reconstruct(
            (trainer.model(), trainer.params()),
            &x,
            (Protocol::published(1), Best::Likelihood),
            trainer.model().config.strokes,
            Rng::new(1, 0),
            &Silent,
        )
        .unwrap();
        let difference =
            |d: &Reconstruction| d.target.iter().zip(d.drawn.canvas()).map(|(x, c)| (x - c).abs()).sum::<f32>();
        drawn.iter().map(difference).sum::<f32>() / drawn.iter().flat_map(|d| &d.target).sum::<f32>()
    };
    let (before, first) = (wrong(&trainer), trainer.step().unwrap());
    let last = (0..800).map(|_| trainer.step().unwrap()).last().unwrap();
    let after = wrong(&trainer);
    println!("wrong ink {before:.2} -> {after:.2} of the target's; ELBO {:.0} -> {:.0} nats", first.elbo, last.elbo);
    assert!(before > 1.0 && after < 0.85, "wrong ink went from {before} to {after} of the target's");
    assert!(last.elbo > first.elbo + 100.0, "the ELBO went from {} to {}", first.elbo, last.elbo);
}

#[test]
fn a_value_that_is_not_finite_is_named_and_nothing_is_updated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("good.safetensors");
    let mut trainer = trainer(Published);
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
    let (folder, trainer) = (PathBuf::from(folder), trainer(Published));
    let first = checkpoint::steps(&folder).unwrap().last().map_or(0, |last| last + 1);
    for step in first.. {
        trainer.save(&checkpoint::path(&folder, step)).unwrap();
        checkpoint::prune(&folder, 3).unwrap();
    }
}

#[test]
fn the_newest_checkpoint_loads_after_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let expected = trainer(Published).params().slab().to_f32();
    let newest = || checkpoint::latest(folder.path()).unwrap();
    let (mut abandoned, mut round) = (0, 0);
    // On a busy machine a kill may miss every write for a while.
    while round < 25 || abandoned == 0 && round < 500 {
        round += 1;
        let before = newest();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_writes_checkpoints", "--exact"])
            .env("DOOD_TEST_WRITE_CHECKPOINTS", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The child is writing from here on; it is killed somewhere within its next few files.
        while newest() == before {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(1_237 * round % 9_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        abandoned += names.filter(|name| name.ends_with(".partial")).count();
        assert_eq!(resumed(&newest().unwrap()).params().slab().to_f32(), expected);
    }
    let steps = checkpoint::steps(folder.path()).unwrap();
    println!("killed {round} times: newest checkpoint {:?}, {abandoned} writes interrupted", steps.last());
    assert!(abandoned > 0, "no kill hit a write: this test has shown nothing");
    // Also what a kill in the middle of clearing away has left.
    checkpoint::prune(folder.path(), 3).unwrap();
    assert!(fs::read_dir(folder.path()).unwrap().count() <= 3, "interrupted writes are cleared away");
}
