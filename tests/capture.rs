//! Training on a GPU: the captured step equals the one that runs op by op, bit for bit, and both follow the CPU.
#![cfg(all(unix, feature = "cuda"))]

mod common;
#[path = "common/stand_in.rs"]
mod stand_in;

use common::{Recipe, lively, tiny};
use dood::{
    DType, Device, Error, MathMode,
    checkpoint::Checkpoint,
    data::{Images, Run, Source, synthetic},
    eval::{Artist, one_shot::exemplar},
    measure::{Protocol, measure},
    observer::Silent,
    ops::Placement,
    rng::Rng,
    train::{Preset, Report, Settings, Trainer},
};
use std::path::Path;

fn settings() -> Settings {
    Settings { batch: 4, seed: 3, rates: [1e-3; 4], ..Preset::Quick.settings(&Source::Synthetic) }
}

/// Epochs of five whole batches and a partial one.
fn images() -> Images {
    synthetic::draw(22, 16, 5)
}

/// With points, the recipe of the preset `hour`.
fn trainer(device: &Device, placement: Placement) -> Trainer {
    let recipe = if placement == Placement::Points { Recipe::Hour } else { Recipe::Published };
    let (config, settings) = recipe.apply(tiny(placement), settings());
    Trainer::new(&config, settings, images(), device).unwrap_or_else(|e| panic!("{e}"))
}

fn prepare() -> Option<stand_in::Alone> {
    if let Err(why) = stand_in::install() {
        println!("{why}");
        return None;
    }
    let alone = stand_in::alone();
    // SAFETY: the other tests of this binary wait for `alone`.
    unsafe { std::env::set_var("DOOD_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")) };
    Some(alone)
}

fn cuda(dtype: DType) -> Device {
    let device = Device::cuda(0, dtype, MathMode::F32).unwrap_or_else(|e| panic!("{e}"));
    device.prepare(&Silent);
    device
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Parameters and reports after `n` updates, asked for in pieces of `at_once`.
fn train(device: &Device, placement: Placement, n: usize, at_once: usize, capture: bool) -> (Vec<f32>, Vec<Report>) {
    let mut trainer = trainer(device, placement);
    trainer.set_capture(capture).unwrap();
    let mut reports = vec![];
    while reports.len() < n {
        reports.extend(trainer.run_steps(at_once.min(n - reports.len())).unwrap_or_else(|e| panic!("{e}")));
    }
    assert_eq!(trainer.updates(), n as u64);
    assert_eq!(trainer.take_notes(), [""; 0], "a step that is not captured as it should be");
    (trainer.params().slab().to_f32(), reports)
}

#[test]
fn a_replayed_step_equals_the_eager_one_bit_for_bit() {
    let Some(_alone) = prepare() else { return };
    // Kernels of the graph that do not wait for each other run in other orders, too.
    let ways = [(8, "forward"), (5, "random:3")];
    for (placement, ways) in [(Placement::Warp, &ways[..]), (Placement::Points, &[(3, "reverse")])] {
        let eager = train(&cuda(DType::F32), placement, 8, 1, false);
        for &(at_once, order) in ways {
            stand_in::set_order(order);
            let captured = train(&cuda(DType::F32), placement, 8, at_once, true);
            assert_eq!(bits(&eager.0), bits(&captured.0), "{placement:?}: parameters after 8 updates");
            assert_eq!(eager.1, captured.1, "{placement:?}: reports");
        }
        // Every update has other images and other noise.
        for (i, one) in eager.1.iter().enumerate() {
            assert!(eager.1[..i].iter().all(|other| other.loss != one.loss));
        }
    }
}

#[test]
fn most_kernels_of_a_captured_step_do_not_wait_for_each_other() {
    let Some(_alone) = prepare() else { return };
    let captured = || {
        let mut trainer = trainer(&cuda(DType::F32), Placement::Warp);
        trainer.run_steps(4).unwrap();
        (trainer.graph().unwrap(), bits(&trainer.params().slab().to_f32()))
    };
    let (graph, parallel) = captured();
    // SAFETY: the other tests of this binary wait for `prepare`.
    unsafe { std::env::set_var("DOOD_CUDA_GRAPH", "chain") };
    let (chain, in_a_row) = captured();
    unsafe { std::env::remove_var("DOOD_CUDA_GRAPH") };
    println!("{} nodes, {} in a row", graph.nodes, graph.longest_chain);
    assert_eq!((chain.nodes, chain.longest_chain), (graph.nodes, graph.nodes));
    assert!(3 * graph.longest_chain < graph.nodes, "{graph:?}");
    assert_eq!(parallel, in_a_row);
}

#[test]
fn kernels_that_others_wait_for_are_urgent_and_all_split_their_memory_alike() {
    let Some(_alone) = prepare() else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: a real GPU does not tell");
    }
    let mut trainer = trainer(&cuda(DType::F32), Placement::Warp);
    trainer.run_steps(3).unwrap();
    let (urgent, nodes) = (stand_in::urgent_kernels(), trainer.graph().unwrap().nodes as u64);
    println!("{urgent} of {nodes} nodes are urgent");
    assert!(urgent > nodes / 4 && urgent < nodes);
    assert_eq!(stand_in::splits(), 1);
}

/// A node of a captured step as the stand-in lists it: its kernel, and the nodes that it comes after, directly or not.
struct Listed {
    kernel: String,
    after: Vec<bool>,
}

fn listed(path: &Path) -> Vec<Listed> {
    let mut nodes: Vec<Listed> = vec![];
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let node: serde_json::Value = serde_json::from_str(line).unwrap();
        let mut after = vec![false; nodes.len()];
        for i in node["after"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as usize) {
            after[i] = true;
            after.iter_mut().zip(&nodes[i].after).for_each(|(a, b)| *a |= b);
        }
        nodes.push(Listed { kernel: node["kernel"].as_str().unwrap_or_default().into(), after });
    }
    nodes
}

#[test]
fn reports_do_not_hold_up_the_update_and_wide_weights_are_formed_together() {
    let Some(_alone) = prepare() else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: a real GPU does not tell");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes");
    stand_in::set("nodes", path.to_str().unwrap());
    trainer(&cuda(DType::F32), Placement::Warp).run_steps(3).unwrap();
    let nodes = listed(&path);
    let all = |name: &str| -> Vec<usize> {
        let found: Vec<usize> = (0..nodes.len()).filter(|&i| nodes[i].kernel.starts_with(name)).collect();
        assert!(!found.is_empty(), "no kernel is called {name}");
        found
    };
    let comes_after =
        |one: &str, other: &str| all(one).iter().any(|&i| all(other).iter().any(|&j| j < i && nodes[i].after[j]));
    // Whether all is well is known before the parameters change; the sums of the report need nothing of the gradients.
    assert!(comes_after("adam", "verdict") && comes_after("verdict", "square_sums"));
    assert!(!comes_after("totals", "square_sums"));
    // Launches that write a large gradient: one for eight calls of each of the two networks that see.
    let (forward, weights) = (all("dropout_linear_fwd").len(), all("dropout_linear_weights").len());
    println!("{forward} launches forward, {weights} for the gradient of the weights");
    assert!(3 * weights <= forward, "{weights} of {forward}");
}

#[test]
fn empty_images_are_trained_on_in_every_math_mode() {
    let Some(_alone) = prepare() else { return };
    // What is left of one, divided by all of it, is as large as numbers go: rounding must not make it infinite.
    let mut images = images();
    images.pixels.chunks_mut(16 * 16).step_by(2).for_each(|image| image.fill(0));
    for math in [MathMode::F32, MathMode::Tf32, MathMode::Bf16] {
        let device = Device::cuda(0, DType::F32, math).unwrap_or_else(|e| panic!("{e}"));
        let mut trainer = Trainer::new(&tiny(Placement::Warp), settings(), images.clone(), &device).unwrap();
        let reports = trainer.run_steps(6).unwrap_or_else(|e| panic!("{math}: {e}"));
        assert!(
            trainer.graph().is_some() && reports.iter().all(|report| report.values().iter().all(|x| x.is_finite()))
        );
    }
}

#[test]
fn a_step_that_cannot_be_captured_is_made_in_another_way_with_one_line() {
    let Some(_alone) = prepare() else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: a real GPU captures everything");
    }
    let train = |can: &str| {
        let device = cuda(DType::F32);
        stand_in::set("capture", can);
        let mut trainer = trainer(&device, Placement::Warp);
        trainer.run_steps(5).unwrap_or_else(|e| panic!("{e}"));
        trainer.run_steps(3).unwrap_or_else(|e| panic!("{e}"));
        let notes = trainer.take_notes();
        (bits(&trainer.params().slab().to_f32()), trainer.graph().map(|g| g.longest_chain == g.nodes), notes)
    };
    let (graph, in_a_row, notes) = train("graph");
    assert_eq!((in_a_row, notes.len()), (Some(false), 0));
    let (chain, in_a_row, notes) = train("chain");
    assert_eq!((in_a_row, notes.len()), (Some(true), 1));
    assert!(notes[0].contains("operation not supported") && notes[0].contains("one after the other"), "{notes:?}");
    let (eager, in_a_row, notes) = train("none");
    assert_eq!((in_a_row, notes.len()), (None, 1));
    assert!(notes[0].contains("cannot be captured") && notes[0].contains("kernel by kernel"), "{notes:?}");
    assert!(graph == chain && graph == eager);
}

/// Work other than training that is replayed, on any device: the bound of a refined q, and one-shot scores.
fn evaluate(device: &Device) -> Vec<f64> {
    let (model, params) = lively(&tiny(Placement::Points), device);
    let artist = Artist { model, params };
    let (images, rng) = (synthetic::draw(4, 16, 5), Rng::new(4, 2));
    let protocol = Protocol { refine: 6, ..Protocol::published(3) };
    let scores = measure((&artist.model, &artist.params), &images, &[0, 1], protocol, rng, &Silent);
    let mut found: Vec<f64> = scores.unwrap_or_else(|e| panic!("{e}")).iter().map(|score| score.bound).collect();
    let pair = |i: usize| Images { pixels: images.pixels[i * 512..][..512].to_vec(), labels: None, side: 16 };
    let run = Run { support: pair(0), query: pair(1) };
    let protocol = exemplar::Protocol { parses: 1, particles: 2, updates: 6, ..exemplar::Protocol::IMPROVED };
    found.extend(exemplar::scores(&artist, &run, &protocol, rng, &Silent).unwrap_or_else(|e| panic!("{e}")));
    found
}

#[test]
fn free_values_under_a_frozen_model_are_moved_by_replays() {
    let Some(_alone) = prepare() else { return };
    let device = cuda(DType::F64);
    let evaluated = || {
        let launched = device.launches();
        (evaluate(&device), device.launches() - launched)
    };
    let (replayed, few) = evaluated();
    for (a, b) in replayed.iter().zip(evaluate(&Device::cpu_f64())) {
        assert!((a - b).abs() < 1e-6 * b.abs(), "{a} {b}");
    }
    if stand_in::is_stand_in() {
        stand_in::set("capture", "none");
        let (eager, many) = evaluated();
        println!("{few} launches instead of {many}");
        assert!(replayed == eager && 5 * few < 4 * many, "{few} {many}");
    }
}

#[test]
fn training_on_the_gpu_follows_the_cpu() {
    let Some(_alone) = prepare() else { return };
    let close = |a: &[f32], b: &[f32], limit: f32, what: &str| {
        let size = b.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        let off = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= limit * size, "{what} are off by {:.1e}", off / size);
    };
    for (gpu, cpu, limit) in [(DType::F64, Device::cpu_f64(), 1e-5), (DType::F32, Device::cpu(), 2e-3)] {
        for placement in [Placement::Warp, Placement::Points] {
            let on_gpu = train(&cuda(gpu), placement, 5, 5, true);
            let on_cpu = train(&cpu, placement, 5, 1, true);
            close(&on_gpu.0, &on_cpu.0, limit, "parameters");
            for (a, b) in on_gpu.1.iter().zip(&on_cpu.1) {
                close(&a.values(), &b.values(), limit, "reports");
            }
        }
    }
}

#[test]
fn noise_drawn_on_the_gpu_is_that_of_the_cpu_and_changes_from_replay_to_replay() {
    let Some(_alone) = prepare() else { return };
    use dood::rng::Stream;
    let (gpu, cpu) = (cuda(DType::F32), Device::cpu());
    for step in [0, 5, 1 << 40] {
        let rng = Rng::new(77, step);
        assert_eq!(
            rng.uniform_tensor(&gpu, Stream(3), &[1001]).to_f32(),
            rng.uniform_tensor(&cpu, Stream(3), &[1001]).to_f32()
        );
        let (a, b) = (
            rng.normal_tensor(&gpu, Stream(3), &[1001]).to_f32(),
            rng.normal_tensor(&cpu, Stream(3), &[1001]).to_f32(),
        );
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1.0)));
    }
}

#[test]
fn memory_is_flat_from_the_second_step_on() {
    let Some(_alone) = prepare() else { return };
    let device = cuda(DType::F32);
    let mut trainer = trainer(&device, Placement::Warp);
    trainer.set_capture(false).unwrap();
    trainer.run_steps(2).unwrap();
    let (held, launched) = (device.step_memory(), device.launches());
    trainer.run_steps(1).unwrap();
    println!("{} kernels per step", device.launches() - launched);
    trainer.run_steps(9).unwrap();
    assert!(held > 0);
    assert_eq!(device.step_memory(), held);
}

#[test]
fn every_access_of_a_training_step_is_sound() {
    let Some(_alone) = prepare() else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: on a real GPU compute-sanitizer does this");
    }
    stand_in::set_check(true);
    // SAFETY: the other tests of this binary wait for `prepare`.
    unsafe { std::env::set_var("DOOD_CACHE", Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels-checked")) };
    let before = stand_in::errors();
    let mut trainer = trainer(&cuda(DType::F32), Placement::Warp);
    // Op by op, captured, replayed, and the smaller batch at the end of an epoch.
    let done = trainer.run_steps(6);
    stand_in::set_check(false);
    assert_eq!(stand_in::errors(), before, "{}", stand_in::reports());
    assert_eq!(done.unwrap().len(), 6);
}

#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let Some(_alone) = prepare() else { return };
    let device = cuda(DType::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let mut first = trainer(&device, Placement::Warp);
    first.run_steps(5).unwrap();
    first.save(&path).unwrap();
    first.run_steps(4).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let checkpoint = Checkpoint::parse(&bytes, "half").unwrap();
    let mut second = Trainer::resume(&checkpoint, images(), &device, |_| {}).unwrap();
    second.run_steps(4).unwrap();
    assert_eq!(bits(&first.params().slab().to_f32()), bits(&second.params().slab().to_f32()));
}

#[test]
fn a_value_that_is_not_finite_stops_training_and_changes_nothing() {
    let Some(_alone) = prepare() else { return };
    let mut trainer = trainer(&cuda(DType::F32), Placement::Warp);
    trainer.run_steps(4).unwrap();
    let id = trainer.params().find("pen.linear0.bias").unwrap();
    let n = trainer.params().get(id).len();
    trainer.params_mut().set(id, &vec![f64::NAN; n]);
    let before = bits(&trainer.params().slab().to_f32());
    let error = trainer.run_steps(3).unwrap_err();
    assert!(matches!(error, Error::NotFinite(_)), "{error}");
    assert!(error.to_string().contains("pen.linear0.bias") && error.to_string().contains("step 5"), "{error}");
    assert_eq!(trainer.updates(), 4);
    assert_eq!(bits(&trainer.params().slab().to_f32()), before);
}

#[test]
fn a_batch_that_does_not_fit_is_refused_with_one_that_does() {
    let Some(_alone) = prepare() else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: a real GPU has more memory than this test fills");
    }
    stand_in::set("memory", &(70 << 20).to_string());
    let settings = Settings { batch: 3000, ..settings() };
    let mut trainer =
        Trainer::new(&tiny(Placement::Warp), settings, synthetic::draw(3000, 16, 5), &cuda(DType::F32)).unwrap();
    let error = trainer.run_steps(1).unwrap_err();
    let Error::DeviceMemory { fitting: Some(fitting), .. } = error else { panic!("{error}") };
    println!("{error}");
    assert!(
        error.to_string().contains("the op ") && error.to_string().contains(&format!("--batch {fitting}")),
        "{error}"
    );
    assert!((1..3000).contains(&fitting));
}
