//! A whole training step at the paper's sizes: images/s, GFLOP/s, peak memory.
//!
//! `cargo bench --bench step -- [--batch 64] [--steps 5] [--placement warp|points] [--all-strokes] [--threads N]`
//!
//! `--all-strokes` makes every image draw all six strokes, so that nothing can be skipped. Set `DOOD_PROFILE=1` for the time per op.

use dood::{
    Device, Grads, Tape, Tensor,
    model::{
        Config, Model, Start,
        objective::Running,
        recognition::{Dropout, Noise, Pass},
    },
    ops::Placement,
    optim::Adam,
    profile,
    rng::{Rng, Stream},
};
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let number = |name: &str, default: usize| value(name).map_or(default, |v| v.parse().expect(name));
    let (batch, count) = (number("--batch", 64), number("--steps", 5));
    let threads = number("--threads", 0);
    let all_strokes = args.iter().any(|a| a == "--all-strokes");
    let placement = if value("--placement").as_deref() == Some("points") { Placement::Points } else { Placement::Warp };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("thread pool");

    let device = Device::cpu();
    let config = Config::paper(placement);
    let (model, mut params) = Model::new(&config, Start::new(1), &device).expect("model");
    let (mut grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[1e-4, 1e-3, 1e-4]));
    let mut running = Running { statistics: Tensor::zeros(&device, &[2]), iteration: 0 };
    // Images like drawings: mostly background, some ink.
    let pixel = |i: usize| (Rng::new(9, 0).normal(Stream(0), i) - 1.0).clamp(0.0, 1.0);
    let n = batch * config.image * config.image;
    let x = Tensor::from_f64(&device, &[batch, config.image, config.image], &(0..n).map(pixel).collect::<Vec<_>>());

    let mut seconds = vec![];
    let mut strokes = 0.0;
    for step in 0..=count {
        let began = Instant::now();
        let rng = Rng::new(1, step as u64);
        let mut noise = Noise::draw(&model, &device, batch, rng);
        if all_strokes {
            noise.onoff_u = Tensor::zeros(&device, &[config.strokes, batch]);
        }
        let pass = Pass { noise, dropout: Dropout::Random(rng), skip_stopped: true, baseline: true, watch: false };
        grads.clear();
        let tape = Tape::new(&params);
        let steps = model.recognise(&tape, &x, &pass);
        let loss = model.loss(&x, &steps, &running);
        tape.backward(loss.loss, &mut grads);
        running = Running { statistics: loss.nvil.running.clone(), iteration: running.iteration + 1 };
        strokes = steps.iter().map(|s| s.onoff.value().to_f64().iter().sum::<f64>()).sum::<f64>() / batch as f64;
        drop(tape);
        adam.step(&mut params, &grads);
        if step > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    // Section 15.2: 2.975 GFLOP per image where nothing is shared or skipped.
    let gflops = 2.975 * batch as f64 / median;
    println!(
        "training step, {placement:?}, batch {batch}, {} threads, {strokes:.2} strokes per image: {:.0} ms (fastest {:.0}), \
         {:.1} images/s, {gflops:.0} nominal GFLOP/s, peak memory {:.2} GB",
        rayon::current_num_threads(),
        1e3 * median,
        1e3 * seconds[0],
        batch as f64 / median,
        peak_memory_gb(),
    );
    if let Some(table) = profile::report() {
        println!("{table}");
    }
}

/// The largest resident size of this process so far, where the system tells.
fn peak_memory_gb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().map_or(f64::NAN, |kb| kb / 1e6)
}
