//! Every op at the paper's sizes, batch 64: milliseconds forward and backward, and the rate against what this machine can do.
//!
//! `cargo bench --bench ops -- [--filter NAME,NAME] [--threads N] [--batch 64] [--fastest] [--device cpu|cuda|auto] [--math f32|tf32|bf16]
//! [--product N] [--json]`
//!
//! Times are medians; `--fastest` takes the fastest run of each, for machines where other programs run. `--json` adds a line per op for
//! programs. On a GPU an op is launched many times before anyone waits for it, so what is measured is the larger of what the GPU and
//! what the host needs for it; a captured step pays the former only.
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
use dood::{
    Device, Grads, Tape, Tensor, Var,
    model::{Config, Model, Start},
    ops::{Activation, Placement},
    optim::Adam,
    rng::{Rng, Stream},
};
use rayon::prelude::*;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// The time spent on each op, once it is warm.
const PER_OP: Duration = Duration::from_millis(60);

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
    let clock = Clock { device: &device, quantile: if arguments.flag("--fastest") { 0.0 } else { 0.5 }, on_gpu };

    let product = arguments.parse("--product").unwrap_or(if on_gpu { 4096 } else { 512 });
    let bytes = if on_gpu { sum_rate(&clock, 4 * product * product) } else { copy_rate() };
    let ceiling = Rates { flops: peak_flops(&clock, product), bytes };
    device.check()?;
    println!(
        "{device}, batch {n}, {} threads; ceilings measured here: {:.0} GFLOP/s (matrix product), {:.1} GB/s (copy, read + written)\n",
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
    let table = Table { ceiling, json: arguments.flag("--json"), with_reference: n == 64 && !on_gpu };
    for case in cases::sized(n).into_iter().filter(|c| wanted(&c.name)) {
        table.line(&case.name, clock.case(&case)?, work(&case, &device), case.reference);
    }
    if wanted("adam") {
        adam(&clock, &table)?;
    }
    Ok(())
}

/// Operations and bytes, or both per second.
struct Rates {
    flops: f64,
    bytes: f64,
}

/// What a line of the table is held against.
struct Table {
    ceiling: Rates,
    json: bool,
    with_reference: bool,
}

impl Table {
    fn line(&self, name: &str, ms: [f64; 2], work: Rates, reference: Option<f64>) {
        let both = ms[0] + ms[1];
        let seconds = both / 1e3;
        let (flops, bytes) = (work.flops / seconds, work.bytes / seconds);
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
        println!("{}", line.trim_end());
        if self.json {
            let figures = serde_json::json!({
                "bench": "op", "name": name, "forward_ms": ms[0], "backward_ms": ms[1], "gflops": flops / 1e9, "gb_per_second": bytes / 1e9,
                "share_of_ceiling": share,
            });
            println!("{figures}");
        }
    }
}

/// How long something takes on a device.
struct Clock<'a> {
    device: &'a Device,
    /// 0.5 for the median, 0 for the fastest where another program disturbs.
    quantile: f64,
    on_gpu: bool,
}

impl Clock<'_> {
    /// Milliseconds of one run of `work`, typical of runs that go on for `long`. The first run is not counted: it fills caches and
    /// scratch memory. `work` tells its own time, which on a GPU is only that of asking for it; there the runs are counted together.
    fn typical(&self, long: Duration, quantile: f64, mut work: impl FnMut() -> f64) -> f64 {
        work();
        let mut times = vec![];
        if self.on_gpu {
            let mut batch = |runs: usize| {
                self.wait();
                let began = Instant::now();
                for _ in 0..runs {
                    work();
                }
                self.wait();
                1e3 * began.elapsed().as_secs_f64() / runs as f64
            };
            let runs = (1e3 * long.as_secs_f64() / (5.0 * batch(2))).clamp(1.0, 1e4) as usize;
            times.extend((0..5).map(|_| batch(runs)));
        } else {
            let began = Instant::now();
            while times.len() < 7 || began.elapsed() < long {
                times.push(work());
            }
        }
        times.sort_by(f64::total_cmp);
        times[(times.len() as f64 * quantile) as usize]
    }

    fn of(&self, work: impl FnMut() -> f64) -> f64 {
        self.typical(PER_OP, self.quantile, work)
    }

    fn wait(&self) {
        if let Err(error) = self.device.check() {
            eprintln!("error: {error}");
            std::process::exit(error.exit_code().into());
        }
    }

    /// Typical milliseconds forward and backward. The gradient at the result comes from a sum, whose own time is taken off; on a GPU,
    /// where only whole runs have a time, that of everything before the backward pass is taken off as well.
    fn case(&self, case: &Case) -> dood::Result<[f64; 2]> {
        let [inputs, constants] = case.tensors(self.device);
        let forward = self.of(|| {
            let tape = Tape::without_params(self.device);
            let inputs: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
            clock(|| (case.call)(&tape, &inputs, &constants))
        });
        let mut shape = vec![];
        let mut backward = self.of(|| {
            let tape = Tape::without_params(self.device);
            let inputs: Vec<Var> = inputs.iter().map(|x| tape.input(x.clone())).collect();
            let y = (case.call)(&tape, &inputs, &constants);
            shape = y.shape();
            let sum = y.sum();
            clock(|| tape.backward(sum, &mut Grads::none(self.device)))
        });
        let zeros = Tensor::zeros(self.device, &shape);
        backward -= self.of(|| {
            let tape = Tape::without_params(self.device);
            let sum = tape.input(zeros.clone()).sum();
            clock(|| tape.backward(sum, &mut Grads::none(self.device)))
        });
        if self.on_gpu {
            backward -= forward;
        }
        self.device.check()?;
        Ok([forward, backward.max(0.0)])
    }
}

/// Milliseconds of the calling thread.
fn clock<R>(work: impl FnOnce() -> R) -> f64 {
    let began = Instant::now();
    black_box(work());
    1e3 * began.elapsed().as_secs_f64()
}

/// What a case must do forward and backward, which is about three times its forward pass. A function without a gradient reads and writes
/// once.
fn work(case: &Case, device: &Device) -> Rates {
    let tape = Tape::without_params(device);
    let (y, constants) = call(case, &tape, device);
    let (cost, size) = (tape.cost(), device.dtype().bytes() as f64);
    if cost.bytes == 0.0 {
        let elements = constants.iter().map(Tensor::len).sum::<usize>() + y.value().len();
        return Rates { flops: 0.0, bytes: elements as f64 * size };
    }
    Rates { flops: 3.0 * cost.flops, bytes: 3.0 * cost.bytes }
}

/// A case recorded on a tape, and its constants.
fn call<'t>(case: &Case, tape: &'t Tape<'t>, device: &Device) -> (Var<'t>, Vec<Tensor>) {
    let [inputs, constants] = case.tensors(device);
    let inputs: Vec<Var<'t>> = inputs.into_iter().map(|x| tape.input(x)).collect();
    ((case.call)(tape, &inputs, &constants), constants)
}

/// Operations per second of the library's own matrix product of two square matrices.
fn peak_flops(clocks: &Clock, size: usize) -> f64 {
    let draw = |k| Rng::new(1, 0).normal_tensor(clocks.device, Stream(k), &[size, size]);
    let (x, w, b) = (draw(0), draw(1), Tensor::zeros(clocks.device, &[size]));
    let ms = clocks.typical(8 * PER_OP, 0.0, || {
        let tape = Tape::without_params(clocks.device);
        let [x, w, b] = [&x, &w, &b].map(|t| tape.constant(t.clone()));
        clock(|| x.linear(w, b, Activation::None))
    });
    2.0 * (size as f64).powi(3) / (ms / 1e3)
}

/// Bytes read and written per second by a copy on all threads, far larger than the caches.
fn copy_rate() -> f64 {
    let from = vec![1.0f32; 1 << 25];
    let mut to = vec![0.0f32; from.len()];
    let piece = from.len().div_ceil(rayon::current_num_threads());
    let host = Clock { device: &Device::cpu(), quantile: 0.0, on_gpu: false };
    let ms = host.typical(8 * PER_OP, 0.0, || {
        clock(|| to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from)))
    });
    black_box(&to);
    8.0 * from.len() as f64 / (ms / 1e3)
}

/// Bytes read and written per second by the sum of two tensors of `n` elements.
fn sum_rate(clocks: &Clock, n: usize) -> f64 {
    let [x, y] = [1.0, 2.0].map(|value| Tensor::full(clocks.device, &[n], value));
    let ms = clocks.typical(8 * PER_OP, 0.0, || {
        let tape = Tape::without_params(clocks.device);
        let [x, y] = [&x, &y].map(|t| tape.constant(t.clone()));
        clock(|| x + y)
    });
    12.0 * n as f64 / (ms / 1e3)
}

/// One update of all parameters of the model: seven numbers per parameter read or written.
fn adam(clocks: &Clock, table: &Table) -> dood::Result<()> {
    let start = Start { seed: 1, eager: false, faint: false };
    let (_, mut params) = Model::new(&Config::paper(Placement::Warp), start, clocks.device)?;
    let (grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[1e-4, 1e-3, 1e-4, 1e-4]));
    let ms = clocks.of(|| clock(|| adam.step(&mut params, &grads)));
    let count = params.values() as f64;
    let work = Rates { flops: 12.0 * count, bytes: 7.0 * 4.0 * count };
    table.line(&format!("adam, {:.1} million values", count / 1e6), [ms, 0.0], work, Some(140.512));
    Ok(())
}
