use super::*;
use crate::{
    Error,
    data::synthetic,
    model::{Config, Model, Start},
    observer::Silent,
    ops::Placement,
};
use std::cell::Cell;

fn artist() -> Artist {
    let sizes = Config { strokes: 3, ..Config::tiny(Placement::Points) };
    let (model, params) = Model::new(&sizes, Start::new(1), &Device::cpu()).unwrap();
    Artist { model, params }
}

#[test]
fn latents_are_strokes_then_layouts_and_nothing_where_nothing_is_drawn() {
    let artist = artist();
    let images = synthetic::draw(40, 16, 2);
    let x = pixels(&images, 0..40, artist.params.device());
    let found = latents(&artist, &x, Rng::new(3, 0)).unwrap();
    let z = artist.recognise(&x, 3, Rng::new(3, 0)).unwrap().z;
    assert_eq!((found.dim, found.len()), (3 * (6 + 4), 40));
    let (onoff, strokes, layouts) = (z.onoff.to_f64(), z.stroke.to_f64(), z.layout.to_f64());
    assert!(onoff.contains(&0.0) && onoff.contains(&1.0));
    for i in 0..40 {
        for t in 0..3 {
            let (at, row) = (t * 40 + i, found.row(i));
            let expected = |of: &[f64]| of.iter().map(|v| v * onoff.get(at).unwrap_or(&0.0)).collect::<Vec<f64>>();
            assert_eq!(row[t * 6..][..6], expected(&strokes[at * 6..][..6]));
            assert_eq!(row[18 + t * 4..][..4], expected(&layouts[at * 4..][..4]));
        }
    }
}

#[test]
fn drawing_goes_on_where_it_was_stopped_and_gives_the_same() {
    struct After(Cell<u64>);
    // SAFETY: one thread only.
    unsafe impl Sync for After {}
    impl Observer for After {
        fn advance(&self, units: u64) {
            self.0.set(self.0.get().saturating_sub(units));
        }
        fn stopped(&self) -> bool {
            self.0.get() == 0
        }
    }
    let (artist, images, folder) = (artist(), synthetic::draw(200, 16, 2), tempfile::tempdir().unwrap());
    let (path, which) = (folder.path().join("latents"), (0..200).collect::<Vec<usize>>());
    let parts = [(&images, &which[..150]), (&images, &which[100..])];
    let fill = |latents: &mut Latents, observer: &dyn Observer| {
        latents.fill(&artist, parts, 5, observer, &mut |latents| latents.write(&path))
    };
    let mut whole = Latents::new(&artist, "this".into());
    fill(&mut whole, &Silent).unwrap();
    assert_eq!((whole.train.len(), whole.test.len()), (150, 100));
    let mut stopped = Latents::new(&artist, "this".into());
    // In the second part, after one of its batches.
    assert!(matches!(fill(&mut stopped, &After(Cell::new(214))), Err(Error::Stopped)));
    let mut resumed = Latents::new(&artist, "this".into());
    resumed.read(&path).unwrap();
    assert_eq!((resumed.train.len(), resumed.test.len()), (150, 64));
    fill(&mut resumed, &Silent).unwrap();
    assert_eq!(resumed, whole);
    let other = Latents::new(&artist, "that".into()).read(&path).unwrap_err().to_string();
    assert!(other.contains("another model, other images or another seed"), "{other}");
    std::fs::write(&path, "nothing").unwrap();
    assert!(whole.read(&path).unwrap_err().to_string().contains("leave --resume out"));
}

/// What scikit-learn makes of 60 points (`stored_case.py` beside it).
#[derive(Deserialize)]
struct Case {
    points: Vec<Vec<f64>>,
    labels: Vec<u16>,
    best: f64,
}

#[test]
fn training_reaches_the_optimum_of_scikit_learn() {
    let case: Case = serde_json::from_str(include_str!("stored_case.json")).unwrap();
    let points = Points { dim: case.points[0].len(), values: case.points.concat() };
    let part = (&points, &case.labels[..]);
    let how = Training { updates: 3000, batch: 60, rate: 0.02, ..Training::PUBLISHED };
    let fitted = classify([part, part], 3, &how, &Device::cpu_f64(), &Silent).unwrap();
    let last = fitted.epochs.last().unwrap();
    assert!(last.cross_entropy < case.best + 1e-3, "{} {}", last.cross_entropy, case.best);
    assert!(last.cross_entropy >= case.best - 1e-9, "below the optimum");
    let right = fitted.guesses.iter().zip(&case.labels).filter(|(a, b)| a == b).count();
    assert_eq!(last.accuracy, right as f64 / 60.0);
    assert!(fitted.best().accuracy >= last.accuracy && fitted.epochs.len() == 3000);
}

#[test]
fn gradients_that_are_never_cleared_are_another_training() {
    let points = Points { dim: 1, values: (0..20).map(f64::from).collect() };
    let labels: Vec<u16> = (0..20).map(|i| u16::from(i > 9)).collect();
    let part = (&points, &labels[..]);
    let with = |gradients| {
        let how = Training { updates: 50, batch: 7, rate: 0.01, gradients, seed: 4 };
        classify([part, part], 2, &how, &Device::cpu_f64(), &Silent).unwrap()
    };
    let (cleared, summed) = (with(Gradients::Cleared), with(Gradients::Summed));
    // The first update is the same one.
    assert_ne!(cleared.epochs, summed.epochs);
    assert_eq!(cleared, with(Gradients::Cleared));
    // Three batches an epoch; the last one is cut off.
    let updates: Vec<u64> = cleared.epochs.iter().map(|epoch| epoch.updates).collect();
    assert_eq!((updates[0], updates.len(), updates[16]), (3, 17, 50));
}
