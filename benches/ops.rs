//! Every op at the paper's sizes, batch 64: milliseconds forward and backward, and the rate against what this machine can do.
//!
//! `cargo bench --bench ops -- [--filter NAME,NAME] [--threads N] [--batch 64] [--fastest] [--device cpu|cuda|auto] [--math f32|tf32|bf16]
//! [--product N] [--json] [--save-baseline NAME | --baseline NAME]`
//!
//! Criterion takes the samples, says how sure it is of them, and compares each with the run before, which it keeps in
//! `target/criterion`: `--save-baseline NAME` keeps one for longer, and `--baseline NAME` compares with that. At the end there is a table.
//! Its times are medians; `--fastest` takes the fastest iteration of each, for machines where other programs run. `--json` adds a line per op
//! for programs. Times on a GPU are those between CUDA events, and nobody waits for it in between: what is measured is the larger of what
//! the GPU and what the host needs for an op; a captured step pays the former only.
//!
//! Operations and bytes are those of `Op::cost`, what the mathematics needs forward; a backward pass is taken to do twice the work of its
//! forward pass, one product per operand. "Of ceiling" holds the better of the two rates against the best that was measured here at the start: a square
//! matrix product (of side `--product`, by default 512, on a GPU 4096), and a copy (on a GPU a sum) far larger than the caches, which
//! what fits into the caches can exceed.
//!
//! The last column is the reference implementation of the paper's authors: PyTorch 2.15, forward and backward, single precision,
//! batch 64, 2 cores with AVX2, median; * is a better PyTorch formulation of the same function (the Gaussians as outer products of
//! rows and columns), not the authors'. Compare with `--threads 2`, and keep in mind that the processor was another one.

#[path = "../tests/cases/mod.rs"]
mod cases;
mod common;

use cases::Case;
use common::clock::{self, OnDevice, Watch, fastest};
use criterion::{Criterion, Throughput};
use dood::{
    Device, Grads, Tape, Tensor, Var,
    model::{Config, Model, Start},
    ops::{Activation, Placement},
    optim::Adam,
    rng::{Rng, Stream},
};
use rayon::prelude::*;
use std::{hint::black_box, time::Duration};

/// The time spent on either direction of each op, once it is warm.
const LONG: Duration = Duration::from_millis(60);

fn main() {
    common::main(run);
}

fn run() -> dood::Result<()> {
    let arguments = common::Arguments::new();
    let device = arguments.device()?;
    let on_gpu = common::is_gpu(&device);
    let filter = arguments.value("--filter").unwrap_or_default();
    let wanted = |name: &str| filter.split(',').any(|part| name.contains(part));
    let n = arguments.parse("--batch").unwrap_or(64);

    let product = arguments.parse("--product").unwrap_or(if on_gpu { 4096 } else { 512 });
    let bytes = if on_gpu { sum_rate(&device, 4 * product * product) } else { copy_rate() };
    let mut bench = Bench {
        criterion: clock::criterion(&arguments, &device, LONG),
        ceiling: Work { flops: peak_flops(&device, product), bytes },
        fastest: arguments.flag("--fastest"),
        json: arguments.flag("--json"),
        with_reference: n == 64 && !on_gpu,
        lines: vec![],
        device,
    };
    bench.device.check()?;
    for case in cases::sized(n).into_iter().filter(|c| wanted(&c.name)) {
        bench.case(&case)?;
    }
    if wanted("adam") {
        bench.adam()?;
    }
    let Bench { device, ceiling, lines, .. } = bench;
    println!(
        "\n{device}, batch {n}, {} threads; ceilings measured here: {:.0} GFLOP/s (matrix product), {:.1} GB/s (copy, read + written)\n",
        rayon::current_num_threads(),
        ceiling.flops / 1e9,
        ceiling.bytes / 1e9
    );
    println!(
        "{:34} {:>8} {:>8} {:>8} {:>9} {:>7} {:>10} {:>18}",
        "op",
        "fwd ms",
        "bwd ms",
        "both ms",
        "GFLOP/s",
        "GB/s",
        "of ceiling",
        if on_gpu { "" } else { "PyTorch, both ms" }
    );
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Operations and bytes, or both per second.
#[derive(Clone, Copy)]
struct Work {
    flops: f64,
    bytes: f64,
}

impl Work {
    fn times(self, factor: f64) -> Work {
        Work { flops: factor * self.flops, bytes: factor * self.bytes }
    }
}

struct Bench {
    device: Device,
    criterion: Criterion<OnDevice>,
    /// What the table holds everything against.
    ceiling: Work,
    /// Whether the fastest iteration counts, not a typical one.
    fastest: bool,
    json: bool,
    with_reference: bool,
    /// The table.
    lines: Vec<String>,
}

impl Bench {
    /// What criterion calls the rate: whichever of the two is nearer to its ceiling.
    fn throughput(&self, work: Work) -> Throughput {
        match work.flops / self.ceiling.flops > work.bytes / self.ceiling.bytes {
            true => Throughput::Elements(work.flops as u64),
            false => Throughput::BytesDecimal(work.bytes as u64),
        }
    }

    /// Milliseconds of an iteration that does so much work, and is longer by `extra` seconds than what is asked for.
    fn time(&mut self, names: [&str; 2], work: Work, extra: f64, iteration: impl FnMut(&mut Watch)) -> f64 {
        let throughput = self.throughput(work);
        let mut group = self.criterion.benchmark_group(names[0]);
        group.throughput(throughput);
        let [fastest, typical] = clock::samples(&mut group, &self.device, names[1], extra, iteration);
        group.finish();
        1e3 * if self.fastest { fastest } else { typical }
    }

    /// Forward and backward. The gradient at the result comes from a sum, whose own time is taken off.
    fn case(&mut self, case: &Case) -> dood::Result<()> {
        let device = self.device.clone();
        let [inputs, constants] = case.tensors(&device);
        let (work, has_gradient) = work(case, &device);
        let forward = self.time([&case.name, "forward"], work, 0.0, |watch| {
            let tape = Tape::without_params(&device);
            let inputs: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
            watch.time(|| (case.call)(&tape, &inputs, &constants));
        });
        device.check()?;
        if !has_gradient {
            self.line(&case.name, [forward, 0.0], work, case.reference);
            return Ok(());
        }
        let shape = call(case, &Tape::without_params(&device), &device).0.shape();
        let zeros = Tensor::zeros(&device, &shape);
        let extra = fastest(&device, 20, |watch| {
            let tape = Tape::without_params(&device);
            let sum = tape.input(zeros.clone()).sum();
            watch.time(|| tape.backward(sum, &mut Grads::none(&device)));
        });
        let backward = self.time([&case.name, "backward"], work.times(2.0), extra, |watch| {
            let tape = Tape::without_params(&device);
            let inputs: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
            let sum = (case.call)(&tape, &inputs, &constants).sum();
            watch.time(|| tape.backward(sum, &mut Grads::none(&device)));
        });
        device.check()?;
        self.line(&case.name, [forward, backward], work.times(3.0), case.reference);
        Ok(())
    }

    /// One update of all parameters of the model: seven numbers per parameter read or written.
    fn adam(&mut self) -> dood::Result<()> {
        let start = Start { seed: 1, eager: false, faint: false };
        let (_, mut params) = Model::new(&Config::paper(Placement::Warp), start, &self.device)?;
        let (grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[1e-4, 1e-3, 1e-4, 1e-4]));
        let count = params.values() as f64;
        let name = format!("adam, {:.1} million values", count / 1e6);
        let work = Work { flops: 12.0 * count, bytes: 7.0 * 4.0 * count };
        let ms = self.time([&name, "update"], work, 0.0, |watch| watch.time(|| adam.step(&mut params, &grads)));
        self.device.check()?;
        self.line(&name, [ms, 0.0], work, Some(140.512));
        Ok(())
    }

    /// Adds a line to the table.
    fn line(&mut self, name: &str, ms: [f64; 2], work: Work, reference: Option<f64>) {
        let both = ms[0] + ms[1];
        let Work { flops, bytes } = work.times(1e3 / both);
        let share = (flops / self.ceiling.flops).max(bytes / self.ceiling.bytes);
        let reference = reference.filter(|_| self.with_reference);
        let reference = reference.map_or(String::new(), |theirs| format!("{theirs:8.1} = {:.1} times", theirs / both));
        let line = format!(
            "{name:34} {:8.3} {:8.3} {both:8.3} {:9.1} {:7.1} {:9.0}%   {reference}",
            ms[0],
            ms[1],
            flops / 1e9,
            bytes / 1e9,
            100.0 * share
        );
        self.lines.push(line.trim_end().into());
        if self.json {
            let figures = serde_json::json!({
                "bench": "op", "name": name, "forward_ms": ms[0], "backward_ms": ms[1], "gflops": flops / 1e9, "gb_per_second": bytes / 1e9,
                "share_of_ceiling": share,
            });
            println!("{figures}");
        }
    }
}

/// What a case must do forward, and whether it has a gradient. A function without one reads and writes once; its operations are not
/// counted.
fn work(case: &Case, device: &Device) -> (Work, bool) {
    let tape = Tape::without_params(device);
    let (y, constants) = call(case, &tape, device);
    let (cost, size) = (tape.cost(), device.dtype().bytes() as f64);
    if cost.bytes == 0.0 {
        let elements = constants.iter().map(Tensor::len).sum::<usize>() + y.value().len();
        return (Work { flops: 0.0, bytes: elements as f64 * size }, false);
    }
    (Work { flops: cost.flops, bytes: cost.bytes }, true)
}

/// A case recorded on a tape, and its constants.
fn call<'t>(case: &Case, tape: &'t Tape<'t>, device: &Device) -> (Var<'t>, Vec<Tensor>) {
    let [inputs, constants] = case.tensors(device);
    let inputs: Vec<Var<'t>> = inputs.into_iter().map(|x| tape.input(x)).collect();
    ((case.call)(tape, &inputs, &constants), constants)
}

/// Operations per second of the library's own matrix product of two square matrices.
fn peak_flops(device: &Device, size: usize) -> f64 {
    let draw = |k| Rng::new(1, 0).normal_tensor(device, Stream(k), &[size, size]);
    let (x, w, b) = (draw(0), draw(1), Tensor::zeros(device, &[size]));
    let seconds = fastest(device, 60, |watch| {
        let tape = Tape::without_params(device);
        let [x, w, b] = [&x, &w, &b].map(|t| tape.constant(t.clone()));
        watch.time(|| x.linear(w, b, Activation::None));
    });
    2.0 * (size as f64).powi(3) / seconds
}

/// Bytes read and written per second by a copy on all threads, far larger than the caches.
fn copy_rate() -> f64 {
    let from = vec![1.0f32; 1 << 25];
    let mut to = vec![0.0f32; from.len()];
    let piece = from.len().div_ceil(rayon::current_num_threads());
    let seconds = fastest(&Device::cpu(), 8, |watch| {
        watch.time(|| {
            to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    black_box(&to);
    8.0 * from.len() as f64 / seconds
}

/// Bytes read and written per second by the sum of two tensors of `n` elements.
fn sum_rate(device: &Device, n: usize) -> f64 {
    let [x, y] = [1.0, 2.0].map(|value| Tensor::full(device, &[n], value));
    let seconds = fastest(device, 30, |watch| {
        let tape = Tape::without_params(device);
        let [x, y] = [&x, &y].map(|t| tape.constant(t.clone()));
        watch.time(|| x + y);
    });
    12.0 * n as f64 / seconds
}
