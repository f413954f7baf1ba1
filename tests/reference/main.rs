//! Holds the library against the golden fixtures of an independent implementation: every output and every gradient.
//!
//! `DOOD_FIXTURES` names the folder (default `tests/fixtures`); sizes, seeds and variants come from the files themselves.
//! The error of a tensor is its largest absolute difference divided by the largest absolute entry of the stored tensor.

#[cfg(unix)]
#[path = "../common/stand_in.rs"]
mod stand_in;

mod file;
mod ops;
mod steps;

use dood::{DType, Device, MathMode};
use file::Fixture;
use std::{io::Write, path::PathBuf};

/// How far a float32 run may be off; in double precision everything must agree to 1e-9.
#[derive(Clone, Copy)]
struct Limit {
    forward: f64,
    gradient: f64,
    /// Of the norm of a gradient, where only its sum and norm are stored.
    norm: f64,
}

const DOUBLE: Limit = Limit { forward: 1e-9, gradient: 1e-9, norm: 1e-9 };
const OPS: Limit = Limit { forward: 2e-5, gradient: 2e-5, norm: 2e-5 };
const TINY: Limit = Limit { forward: 2e-4, gradient: 2e-4, norm: 2e-4 };
const PAPER: Limit = Limit { forward: 1e-4, gradient: 3e-2, norm: 1e-2 };

/// What was compared so far, in one file and one precision.
#[derive(Default)]
struct Tally {
    compared: usize,
    worst: (f64, String),
    failures: Vec<String>,
    /// Stored results that were compared, to find those that were forgotten.
    seen: std::collections::HashSet<String>,
}

impl Tally {
    /// Compares `ours` with the stored tensor `name`.
    fn check(&mut self, fixture: &Fixture, name: &str, ours: &[f64], limit: f64) {
        let stored = fixture.values(name);
        self.seen.insert(name.to_string());
        self.compared += 1;
        if stored.len() != ours.len() {
            self.failures.push(format!("{name}: {} values, stored {}", ours.len(), stored.len()));
            return;
        }
        let largest = stored.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let off = stored.iter().zip(ours).fold(0.0f64, |m, (a, b)| if a == b { m } else { m.max((a - b).abs()) });
        let error = if off == 0.0 { 0.0 } else { off / largest.max(1e-300) };
        let broken = ours.iter().zip(stored).any(|(a, b)| a.is_nan() || a.is_infinite() != b.is_infinite());
        if error > self.worst.0 {
            self.worst = (error, name.to_string());
        }
        if broken || error > limit {
            self.failures.push(format!("{name}: error {error:.1e} above {limit:.0e}"));
        }
    }

    /// Complains about stored results that nothing was compared with.
    fn complete(&mut self, fixture: &Fixture, is_result: impl Fn(&str) -> bool) {
        for name in fixture.names().filter(|n| is_result(n) && !self.seen.contains(*n)) {
            self.failures.push(format!("{name}: stored, but not compared"));
        }
    }
}

fn folder() -> PathBuf {
    std::env::var_os("DOOD_FIXTURES").map_or_else(|| PathBuf::from("tests/fixtures"), PathBuf::from)
}

/// The fixtures of `wanted` kinds, on devices of both precisions: that of the first within 1e-9.
fn reproduce(devices: [Device; 2], wanted: impl Fn(&str, &str) -> bool) {
    let folder = folder();
    if !folder.exists() && std::env::var_os("DOOD_FIXTURES").is_none() {
        // A published crate comes without them.
        let _ = writeln!(std::io::stderr(), "skipped: there are no fixtures in {}", folder.display());
        return;
    }
    let listing = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).filter(|p| p.is_file()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no fixtures in {}", folder.display());
    let (mut total, mut failures) = (0, vec![]);
    for path in &paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let fixture = match Fixture::read(path) {
            Ok(fixture) => fixture,
            Err(why) => {
                failures.push(format!("{name}: {why}"));
                continue;
            }
        };
        for (device, limit) in devices.iter().zip([Some(DOUBLE), None]) {
            let precision = if limit.is_some() { "f64" } else { "f32" };
            if !wanted(fixture.kind(), precision) {
                continue;
            }
            let began = std::time::Instant::now();
            let mut tally = Tally::default();
            let done = match fixture.kind() {
                "ops" => ops::compare(&fixture, device, limit.unwrap_or(OPS), &mut tally),
                "step" | "iwae" => steps::compare(&fixture, device, limit.unwrap_or(TINY), &mut tally),
                "step_paper" => steps::compare(&fixture, device, limit.unwrap_or(PAPER), &mut tally),
                kind => Err(format!("unknown kind {kind:?}")),
            };
            if let Err(why) = device.check() {
                tally.failures.push(why.to_string());
            }
            match done {
                Ok(()) => println!(
                    "{name:32} {precision} {:4} tensors, worst error {:.1e} ({}), {:.1} s",
                    tally.compared,
                    tally.worst.0,
                    tally.worst.1,
                    began.elapsed().as_secs_f64()
                ),
                Err(why) => tally.failures.push(why),
            }
            total += tally.compared;
            failures.extend(tally.failures.into_iter().map(|f| format!("{name} {precision} {f}")));
        }
    }
    println!("{total} tensors compared in {} files", paths.len());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(total > 0, "nothing was compared");
}

#[test]
fn every_fixture_is_reproduced() {
    reproduce([Device::cpu_f64(), Device::cpu()], |_, _| true);
}

/// The same through the kernels: all of it on a GPU; on the stand-in the steps at the paper's sizes take minutes, so they are left out
/// unless `DOOD_PAPER_FIXTURES=1`.
#[cfg(all(unix, feature = "cuda"))]
#[test]
fn every_fixture_is_reproduced_by_the_kernels() {
    if let Err(why) = stand_in::install() {
        return println!("{why}");
    }
    let _alone = stand_in::alone();
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    // SAFETY: the other test of this binary does not look at the environment at this moment but for `DOOD_FIXTURES`.
    unsafe { std::env::set_var("DOOD_CACHE", folder) };
    let all = !stand_in::is_stand_in() || std::env::var_os("DOOD_PAPER_FIXTURES").is_some();
    let device = |dtype| Device::cuda(0, dtype, MathMode::F32).unwrap_or_else(|e| panic!("{e}"));
    reproduce([device(DType::F64), device(DType::F32)], |kind, _| all || kind != "step_paper");
}
