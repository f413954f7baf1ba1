//! A whole training step at the paper's sizes (or those of another `--preset`), Adam included: images/s, GFLOP/s, memory. `--model classify`
//! is the small convolutional network of `examples/classify` on images of 28 pixels a side.
//!
//! `cargo bench --bench step -- [--batch 64] [--steps 5] [--preset paper|hour|quick] [--model dood|sp|eg|dr|air|dair|classify]
//! [--placement warp|points] [--all-strokes] [--threads N]
//! [--device cpu|cuda|auto] [--math f32|tf32|bf16] [--captured] [--json]`
//!
//! `--all-strokes` makes nearly every image draw all six strokes, so that little can be skipped. `--captured` replays the step as a CUDA
//! graph, as training does; without it each op is launched by itself. `--json` adds a line for programs. Set `DOOD_PROFILE=1` for the
//! time per op.

mod common;

use dood::{
    Device, Grads, Tape, Tensor,
    data::{Images, Source},
    eval::classifier::{Classifier, Sizes},
    measure::pixels,
    model::Variant,
    ops::Placement,
    optim::Adam,
    profile,
    rng::{Rng, Stream},
    train::{Preset, Settings, Trainer},
};
use std::time::Instant;

/// Batches in the training set.
const BATCHES: usize = 32;
/// Captured steps between two looks at the clock, which wait for the GPU.
const AT_ONCE: usize = 8;

fn main() {
    common::main(run);
}

fn run() -> dood::Result<()> {
    let arguments = common::Arguments::new();
    let device = arguments.device()?;
    let on_gpu = common::is_gpu(&device);
    let batch: usize = arguments.parse("--batch").unwrap_or(64);
    let captured = on_gpu && arguments.flag("--captured");
    let count: usize = arguments.parse("--steps").unwrap_or(if captured {
        64
    } else if on_gpu {
        16
    } else {
        5
    });
    if arguments.value("--model") == Some("classify") {
        return classify(&arguments, &device, batch, count);
    }
    let at_once = if captured { AT_ONCE.min(count) } else { 1 };
    let all_strokes = arguments.flag("--all-strokes");
    let placement = if arguments.value("--placement") == Some("points") { Placement::Points } else { Placement::Warp };

    let preset = match arguments.value("--preset") {
        Some("quick") => Preset::Quick,
        Some("hour") => Preset::Hour,
        _ => Preset::Paper,
    };

    let variant: Variant = arguments.value("--model").unwrap_or("dood").parse()?;
    let config = preset.config(placement).with_variant(variant);
    let images = images(batch, config.image);
    let settings = Settings { batch, seed: 1, eager: all_strokes, faint: false, ..preset.settings(&Source::Synthetic) };
    let mut trainer = Trainer::new(&config, settings, images, &device)?;
    trainer.set_capture(captured)?;
    // Compiles the kernels, finds the memory that a step needs, and captures.
    trainer.run_steps(if captured { 3 } else { 1 })?;

    let (mut milliseconds, mut strokes) = (vec![], 0.0);
    for _ in 0..count.div_ceil(at_once) {
        let began = Instant::now();
        let reports = trainer.run_steps(at_once)?;
        milliseconds.push(1e3 * began.elapsed().as_secs_f64() / at_once as f64);
        strokes = reports.iter().map(|r| r.strokes as f64).sum::<f64>() / at_once as f64;
    }
    milliseconds.sort_by(f64::total_cmp);
    let (median, fastest) = (milliseconds[milliseconds.len() / 2], milliseconds[0]);
    let images_per_second = 1e3 * batch as f64 / median;
    // Section 15.2: 2.975 GFLOP per image of the published model and size, where nothing is shared or skipped.
    let gflops = (preset == Preset::Paper && variant == Variant::Dood).then_some(2.975 * images_per_second);
    let placement = format!("{placement:?}").to_lowercase();
    let mode = if captured { "captured" } else { "eager" };
    println!(
        "training step of {variant} on {device}, {mode}, {preset}, {placement}, batch {batch}, {} threads, {strokes:.2} strokes per image: \
         {median:.2} ms (fastest {fastest:.2}), {images_per_second:.1} images/s, {}{}",
        rayon::current_num_threads(),
        gflops.map_or(String::new(), |g| format!("{g:.0} nominal GFLOP/s, ")),
        memory(&device),
    );
    let graph = trainer.graph();
    if let Some(graph) = graph {
        let gigabytes = graph.bytes as f64 / 1e9;
        println!(
            "a graph of {} nodes, at most {} of them in a row; they are given {gigabytes:.2} GB to read or write, {:.0} GB/s",
            graph.nodes,
            graph.longest_chain,
            1e3 * gigabytes / median,
        );
    }
    if arguments.flag("--json") {
        let figures = serde_json::json!({
            "bench": "step", "program": "dood", "device": device.to_string(), "mode": mode, "model": variant.to_string(), "preset": preset.to_string(), "placement": placement, "batch": batch,
            "math": arguments.value("--math").unwrap_or("f32"), "strokes": strokes, "ms": median, "fastest_ms": fastest,
            "images_per_second": images_per_second, "gflops": gflops, "step_memory": device.step_memory(),
            "nodes": graph.map(|g| g.nodes), "longest_chain": graph.map(|g| g.longest_chain), "bytes": graph.map(|g| g.bytes),
        });
        println!("{figures}");
    }
    if let Some(table) = profile::report() {
        println!("{table}");
    }
    Ok(())
}

/// The step of `eval::classifier`, on images that lie on the device.
fn classify(arguments: &common::Arguments, device: &Device, batch: usize, count: usize) -> dood::Result<()> {
    let mut classifier = Classifier::new(Sizes { side: 28, classes: 10 }, 1, device)?;
    let (mut adam, mut grads) = (Adam::new(&classifier.params, &[2e-3]), Grads::zeros(&classifier.params));
    let x = pixels(&images(batch, 28), 0..batch, device);
    let labels = Tensor::from_f64(device, &[batch], &(0..batch).map(|i| (i % 10) as f64).collect::<Vec<_>>());
    let mut milliseconds = vec![];
    for update in 0..=count as u64 {
        let began = Instant::now();
        grads.clear();
        let tape = Tape::new(&classifier.params);
        let scores = classifier.answer(tape.constant(x.clone()), Some(Rng::new(1, update))).scores;
        let loss = scores.cross_entropy(&labels).mean();
        tape.backward(loss, &mut grads);
        let finite = loss.value().item().is_finite();
        drop(tape);
        adam.step(&mut classifier.params, &grads);
        device.check()?;
        assert!(finite, "the loss is not finite");
        milliseconds.push(1e3 * began.elapsed().as_secs_f64());
    }
    // The first fills caches and scratch memory.
    milliseconds.remove(0);
    milliseconds.sort_by(f64::total_cmp);
    let (median, fastest) = (milliseconds[count / 2], milliseconds[0]);
    let images_per_second = 1e3 * batch as f64 / median;
    println!(
        "training step of classify on {device}, batch {batch}, {} threads: {median:.2} ms (fastest {fastest:.2}), \
         {images_per_second:.1} images/s",
        rayon::current_num_threads()
    );
    if arguments.flag("--json") {
        let figures = serde_json::json!({
            "bench": "step", "program": "dood", "device": device.to_string(), "mode": "eager", "model": "classify", "batch": batch,
            "math": arguments.value("--math").unwrap_or("f32"), "ms": median, "fastest_ms": fastest,
            "images_per_second": images_per_second,
        });
        println!("{figures}");
    }
    Ok(())
}

/// Images like drawings: mostly background, some ink.
fn images(batch: usize, side: usize) -> Images {
    let rng = Rng::new(9, 0);
    let pixel = |i: usize| (255.0 * (rng.normal(Stream(0), i) - 1.0).clamp(0.0, 1.0)) as u8;
    let one_batch: Vec<u8> = (0..batch * side * side).map(pixel).collect();
    Images { side, pixels: one_batch.repeat(BATCHES), labels: None }
}

fn memory(device: &Device) -> String {
    match device.step_memory() {
        0 => format!("peak memory {:.2} GB", peak_memory_gb()),
        bytes => format!("{:.2} GB of device memory for the step", bytes as f64 / 1e9),
    }
}

/// The largest resident size of this process so far, where the system tells.
fn peak_memory_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().map_or(f64::NAN, |kb| kb / 1e6)
}
