//! Every op at the paper's sizes, batch 64: milliseconds forward and backward, and the rate against what this machine can do.
//!
//! `cargo bench --bench ops -- [--filter NAME,NAME] [--threads N] [--batch 64] [--fastest] [--device cpu|cuda|auto] [--math f32|tf32|bf16]
//! [--product N] [--json]`
//!
//! Times are medians; `--fastest` takes the fastest run of each, for machines where other programs run. `--json` adds a line per op for
//! programs. On a GPU an op is launched many times before anyone waits for it, so what is measured is the larger of what the GPU and
//! what the host needs for it; a captured step pays the former only.
//!
//! Operations are counted as the mathematics needs them, forward and backward: a backward pass mostly does twice the work of its
//! forward pass, one product per operand. Bytes are those of inputs, parameters and result, each touched once forward and twice
//! backward. "Of ceiling" holds the better of the two rates against the best that was measured here at the start: a square
//! matrix product (of side `--product`, by default 512, on a GPU 4096), and a copy (on a GPU a sum) far larger than the caches, which
//! what fits into the caches can exceed.
//!
//! The last column is the reference implementation of the paper's authors: PyTorch 2.15, forward and backward, single precision,
//! batch 64, 2 cores with AVX2, median; * is a better PyTorch formulation of the same function (the Gaussians as outer products of
//! rows and columns), not the authors'. Compare with `--threads 2`, and keep in mind that the processor was another one.

mod common;

use dood::{
    Device, Grads, Params, ParamsBuilder, Tape, Tensor, Var,
    model::{Config, Model, Start},
    nn::{Cnn, Gru, Init, LastLayer, Mlp},
    ops::{
        Activation, Keep, Likelihood, Placement, RenderSettings, Squash, concat, dropout_linear, nvil, render_stroke,
        residual_ratio, sample_onoff,
    },
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
const SIDE: usize = 50;
/// Outputs of the convolutions.
const WIDE: usize = 16 * 46 * 46;
/// Control points, and components of the mixtures.
const J: usize = 5;
const K: usize = 40;

type Run = Box<dyn for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t>>;

/// One line of the table.
struct Case {
    name: &'static str,
    /// Milliseconds that the reference takes forward and backward.
    reference: Option<f64>,
    /// Floating-point operations forward, and backward ÷ forward.
    flops: (f64, f64),
    /// What gets a gradient.
    inputs: Vec<Tensor>,
    params: Params,
    run: Run,
}

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
    for case in cases(&device, n).into_iter().filter(|c| wanted(c.name)) {
        table.line(case.name, clock.case(&case)?, case.work(), case.reference);
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
        let mut grads = Grads::zeros(&case.params);
        let forward = self.of(|| {
            let tape = Tape::new(&case.params);
            let inputs = case.inputs(&tape);
            clock(|| (case.run)(&tape, &inputs))
        });
        let mut backward = self.of(|| {
            let tape = Tape::new(&case.params);
            let sum = (case.run)(&tape, &case.inputs(&tape)).sum();
            clock(|| tape.backward(sum, &mut grads))
        });
        let zeros = Tensor::zeros(self.device, case.value().shape());
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

impl Case {
    fn inputs<'t>(&self, tape: &'t Tape<'t>) -> Vec<Var<'t>> {
        self.inputs.iter().map(|x| tape.input(x.clone())).collect()
    }

    fn value(&self) -> Tensor {
        let tape = Tape::eval(&self.params);
        (self.run)(&tape, &self.inputs(&tape)).value()
    }

    fn work(&self) -> Rates {
        let inputs: usize = self.inputs.iter().map(Tensor::len).sum();
        let elements = inputs + self.params.values() + self.value().len();
        Rates { flops: self.flops.0 * (1.0 + self.flops.1), bytes: 3.0 * 4.0 * elements as f64 }
    }
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
    let (grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[1e-4, 1e-3, 1e-4]));
    let ms = clocks.of(|| clock(|| adam.step(&mut params, &grads)));
    let count = params.values() as f64;
    let work = Rates { flops: 12.0 * count, bytes: 7.0 * 4.0 * count };
    table.line(&format!("adam, {:.1} million values", count / 1e6), [ms, 0.0], work, Some(140.512));
    Ok(())
}

/// Inputs that look like those in training.
struct Draw<'a> {
    device: &'a Device,
    n: usize,
}

impl Draw<'_> {
    fn normal(&self, k: u32, shape: &[usize]) -> Tensor {
        Rng::new(1, 0).normal_tensor(self.device, Stream(k), shape)
    }

    fn uniform(&self, k: u32, width: usize, low: f64, high: f64) -> Tensor {
        let u = Rng::new(2, 0).uniform_tensor(self.device, Stream(k), &[self.n, width]).to_f64();
        Tensor::from_f64(self.device, &[self.n, width], &u.iter().map(|u| low + u * (high - low)).collect::<Vec<_>>())
    }

    fn columns(&self, parts: &[Tensor]) -> Tensor {
        let tape = Tape::without_params(self.device);
        concat(&parts.iter().map(|p| tape.constant(p.clone())).collect::<Vec<_>>()).value()
    }

    /// Mostly background, some ink.
    fn images(&self, k: u32) -> Tensor {
        let ink = self.normal(k, &[self.n, SIDE, SIDE]).to_f64();
        let ink: Vec<f64> = ink.iter().map(|v| (v - 1.0).clamp(0.0, 1.0)).collect();
        Tensor::from_f64(self.device, &[self.n, SIDE, SIDE], &ink)
    }

    fn points(&self) -> Tensor {
        self.uniform(0, 2 * J, 0.0, 1.0)
    }

    fn layouts(&self) -> Tensor {
        self.columns(&[self.uniform(1, 2, -0.3, 0.3), self.uniform(2, 1, 0.4, 0.9), self.uniform(3, 1, -0.6, 0.6)])
    }

    fn pens(&self) -> Tensor {
        self.columns(&[self.uniform(4, 1, 0.015, 0.04), self.uniform(5, 1, 0.2, 0.8)])
    }
}

fn cases(device: &Device, n: usize) -> Vec<Case> {
    let draw = Draw { device, n };
    let mut cases = rendering(&draw);
    cases.extend(networks(&draw));
    cases.extend(densities(&draw));
    cases.extend(pointwise(&draw));
    cases
}

/// A case without parameters.
fn case(
    name: &'static str,
    reference: Option<f64>,
    flops: (f64, f64),
    inputs: Vec<Tensor>,
    run: impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>]) -> Var<'t> + 'static,
) -> Case {
    let params = ParamsBuilder::new().build(inputs[0].device());
    Case { name, reference, flops, inputs, params, run: Box::new(run) }
}

fn rendering(draw: &Draw) -> Vec<Case> {
    let (n, pixels) = (draw.n, (draw.n * SIDE * SIDE) as f64);
    let ones = Tensor::full(draw.device, &[n], 1.0);
    let settings = |placement| RenderSettings { placement, side: SIDE, samples: 100, norm_floor: 1e-4 };
    // A product of two 100×50 matrices; backward, one for each coordinate of the samples.
    let product = 2.0 * 100.0 * pixels;
    let (warp, points) = (settings(Placement::Warp), settings(Placement::Points));
    let strokes = || vec![draw.points(), draw.layouts(), draw.pens()];
    let (on, on2, image) = (ones.clone(), ones, draw.images(0));
    vec![
        case("render_stroke points", Some(1004.571), (product + 30.0 * pixels, 2.0), strokes(), move |_, x| {
            render_stroke(x[0], x[1].affine(), x[2], &on, points)
        }),
        case("render_stroke points *", Some(13.367), (product + 30.0 * pixels, 2.0), strokes(), {
            let on = on2.clone();
            move |_, x| render_stroke(x[0], x[1].affine(), x[2], &on, points)
        }),
        case("render_stroke warp", None, (product + 60.0 * pixels, 2.0), strokes(), move |_, x| {
            render_stroke(x[0], x[1].inverse_affine(), x[2], &on2, warp)
        }),
        case("bezier", Some(0.676), ((4 * J * 100 * n) as f64, 1.0), vec![draw.points()], |_, x| x[0].bezier(100)),
        case(
            "bezier + raster",
            Some(931.109),
            (product, 2.0),
            vec![draw.points(), draw.uniform(4, 1, 0.015, 0.04)],
            |_, x| x[0].bezier(100).raster(x[1], SIDE),
        ),
        case(
            "max_norm + tanh_ratio",
            Some(4.046),
            (12.0 * pixels, 1.0),
            vec![draw.images(0), draw.uniform(5, 1, 0.2, 0.8)],
            |_, x| x[0].max_norm(1e-4).tanh_ratio(x[1]),
        ),
        case("place_points", None, ((8 * J * n) as f64, 2.0), vec![draw.points(), draw.layouts()], |_, x| {
            x[0].place_points(x[1].affine())
        }),
        case("affine + stn", Some(4.405), (30.0 * pixels, 1.5), vec![draw.images(0), draw.layouts()], |_, x| {
            x[0].stn(x[1].affine(), None)
        }),
        case("affine + stn of a constant", Some(4.314), (30.0 * pixels, 1.0), vec![draw.layouts()], move |tape, x| {
            tape.constant(image.clone()).stn(x[0].affine(), None)
        }),
        case(
            "inverse_affine + stn",
            Some(6.183),
            (30.0 * pixels, 1.5),
            vec![draw.images(0), draw.layouts()],
            |_, x| x[0].stn(x[1].inverse_affine(), None),
        ),
    ]
}

fn networks(draw: &Draw) -> Vec<Case> {
    let (n, rows) = (draw.n, draw.n as f64);
    let init = Init { seed: 1 };
    let random = || Keep::Random { rate: 0.5, rng: Rng::new(1, 0), stream: Stream(9) };
    let convolved = draw.normal(1, &[n, WIDE]);
    let weights = || vec![draw.normal(2, &[256, WIDE]), draw.normal(3, &[256])];
    let conv_weights = || {
        vec![draw.normal(2, &[8, 1, 3, 3]), draw.normal(3, &[8]), draw.normal(4, &[16, 8, 3, 3]), draw.normal(5, &[16])]
    };
    let conv_flops = 2.0 * 9.0 * rows * (8.0 * 48.0 * 48.0 + 8.0 * 16.0 * 46.0 * 46.0);
    let wide_flops = 2.0 * rows * (WIDE * 256) as f64;
    let image = draw.images(0);
    let with = |first: Tensor, rest: Vec<Tensor>| [vec![first], rest].concat();
    let mut cases = vec![
        case("conv_pair", Some(41.712), (conv_flops, 2.0), with(draw.images(0), conv_weights()), |_, x| {
            x[0].conv_pair(x[1], x[2], x[3], x[4], None)
        }),
        case("conv_pair, weights only", Some(28.113), (conv_flops, 2.0), conv_weights(), move |tape, x| {
            tape.constant(image.clone()).conv_pair(x[0], x[1], x[2], x[3], None)
        }),
        case("linear 33856-256", Some(59.741), (wide_flops, 2.0), with(convolved.clone(), weights()), |_, x| {
            dropout_linear(&[x[0]], vec![(0, Keep::All)], x[1], x[2], Activation::None, None)
        }),
        case(
            "linear 33856-256 tanh, 256-256",
            Some(51.603),
            (wide_flops + 2.0 * rows * 65536.0, 2.0),
            {
                [vec![convolved.clone()], weights(), vec![draw.normal(4, &[256, 256]), draw.normal(5, &[256])]].concat()
            },
            |_, x| {
                let hidden = dropout_linear(&[x[0]], vec![(0, Keep::All)], x[1], x[2], Activation::Tanh, None);
                hidden.linear(x[3], x[4], Activation::None)
            },
        ),
        case("dropout_linear, one call", None, (wide_flops, 2.0), with(convolved.clone(), weights()), move |_, x| {
            dropout_linear(&[x[0]], vec![(0, random())], x[1], x[2], Activation::Tanh, None)
        }),
        case("dropout_linear, three calls", None, (3.0 * wide_flops, 2.0), with(convolved, weights()), move |_, x| {
            let calls = (0..3).map(|k| (0, Keep::Random { rate: 0.5, rng: Rng::new(1, k), stream: Stream(9) }));
            dropout_linear(&[x[0]], calls.collect(), x[1], x[2], Activation::Tanh, None)
        }),
    ];

    let mut builder = ParamsBuilder::new();
    let cnn = Cnn::new(&mut builder, init, "cnn", SIDE, [8, 16], 256);
    cases.push(Case {
        name: "embedder: conv_pair to embedding",
        reference: Some(127.3),
        flops: (conv_flops + wide_flops + 2.0 * rows * 65536.0, 2.0),
        inputs: vec![draw.images(0)],
        params: builder.build(draw.device),
        run: Box::new(move |_, x| cnn.embed(&[cnn.convolve(x[0], None)], vec![(0, random())], None)[0]),
    });
    let grus =
        [("gru layout 260-256", 260, 2.731), ("gru stroke 266-256", 266, 2.318), ("gru baseline 527-256", 527, 3.371)];
    for (name, inputs, reference) in grus {
        let mut builder = ParamsBuilder::new();
        let gru = Gru::new(&mut builder, init, "gru", inputs, 256);
        cases.push(Case {
            name,
            reference: Some(reference),
            flops: (2.0 * rows * (3 * 256 * (inputs + 256)) as f64, 2.0),
            inputs: vec![draw.normal(1, &[n, 256]), draw.normal(2, &[n, inputs])],
            params: builder.build(draw.device),
            run: Box::new(move |_, x| gru.forward(x[0], x[1])),
        });
    }
    let mlps = [
        ("mlp layout 769-256-256-9", 769, 2, 9, 1.781),
        ("mlp stroke 768-256-256-25", 768, 2, 25, 2.018),
        ("mlp onoff 257-256-256-1", 257, 2, 1, 1.085),
        ("mlp stroke prior 516-256-256-1200", 516, 2, 1200, 3.828),
        ("mlp layout prior 256-256-256-400", 256, 2, 400, 1.803),
        ("mlp baseline 256-256-256-256-1", 256, 3, 1, 1.773),
    ];
    for (name, inputs, layers, outputs, reference) in mlps {
        let mut builder = ParamsBuilder::new();
        let mlp = Mlp::new(&mut builder, init, "mlp", inputs, (256, layers), LastLayer::Random(outputs));
        cases.push(Case {
            name,
            reference: Some(reference),
            flops: (2.0 * rows * (256 * (inputs + (layers - 1) * 256 + outputs)) as f64, 2.0),
            inputs: vec![draw.normal(1, &[n, inputs])],
            params: builder.build(draw.device),
            run: Box::new(move |_, x| mlp.forward(x[0])),
        });
    }
    cases
}

fn densities(draw: &Draw) -> Vec<Case> {
    let n = draw.n;
    let raw = |k, width: usize| draw.normal(k, &[n, width]);
    let squashed = |ranges: Squash, raw: Tensor| {
        let tape = Tape::without_params(draw.device);
        tape.constant(raw).squash(&ranges).value()
    };
    let stroke_prior = squashed(Squash::stroke_prior(J, K), raw(1, 6 * J * K));
    let layout_prior = squashed(Squash::layout_prior(K), raw(2, 10 * K));
    let posterior = squashed(Squash::stroke(J), raw(3, 5 * J));
    let components = (n * K) as f64;
    let x = draw.images(0);
    let eps = raw(4, 2 * J);
    let ones = Tensor::full(draw.device, &[n], 1.0);
    let elements = |width: usize| (n * width) as f64;
    vec![
        case(
            "mixture_logpdf stroke, 5 x K=40",
            Some(7.965),
            (50.0 * J as f64 * components, 1.0),
            vec![raw(5, 2 * J), stroke_prior],
            |_, x| x[0].mixture_logpdf(x[1], J, K, None),
        ),
        case(
            "mixture_logpdf layout, K=40 4-D",
            Some(3.944),
            (80.0 * components, 1.0),
            vec![draw.layouts(), layout_prior],
            |_, x| x[0].mixture_logpdf(x[1], 1, K, None),
        ),
        case(
            "gaussian_sample + logpdf stroke",
            Some(1.656),
            (30.0 * elements(2 * J), 1.0),
            vec![posterior],
            move |_, x| x[0].gaussian_sample(&eps, J).gaussian_logpdf(x[0], J, None),
        ),
        case(
            "image_logpdf laplace",
            Some(2.431),
            (5.0 * elements(SIDE * SIDE), 1.0),
            vec![draw.images(1), draw.normal(6, &[SIDE, SIDE])],
            move |_, v| v[0].image_logpdf(&x, v[1], Likelihood::Laplace),
        ),
        case(
            "bernoulli_logpdf",
            None,
            (40.0 * n as f64, 0.5),
            vec![draw.uniform(7, 1, 0.1, 0.9).reshape(&[n])],
            move |_, x| x[0].onoff_probability(&ones).bernoulli_logpdf(&ones, &ones, f32::EPSILON as f64),
        ),
        case(
            "squash stroke prior, 1200 columns",
            None,
            (12.0 * elements(6 * J * K), 0.5),
            vec![raw(1, 6 * J * K)],
            |_, x| x[0].squash(&Squash::stroke_prior(J, K)),
        ),
        case(
            "log_mean_exp, 200 particles",
            None,
            (12.0 * elements(200), 0.5),
            vec![draw.normal(8, &[200, n])],
            |_, x| x[0].log_mean_exp(),
        ),
    ]
}

/// What is left: cheap ops, and functions without a gradient, whose backward is nothing.
fn pointwise(draw: &Draw) -> Vec<Case> {
    let (n, pixels) = (draw.n, (draw.n * SIDE * SIDE) as f64);
    let images = || vec![draw.images(0), draw.images(1)];
    let row = |k| draw.uniform(k, 1, 0.1, 0.9).reshape(&[n]);
    let (x, steps, likelihood) = (draw.images(0), draw.normal(1, &[6, n]), row(1));
    let (mask, running) = (Tensor::full(draw.device, &[6, n], 1.0), Tensor::zeros(draw.device, &[2]));
    let (u, ones) = (row(2), Tensor::full(draw.device, &[n], 1.0));
    vec![
        case("add images", None, (pixels, 1.0), images(), |_, x| x[0] + x[1]),
        case("mul images", None, (pixels, 2.0), images(), |_, x| x[0] * x[1]),
        case("scale images", None, (2.0 * pixels, 0.5), vec![draw.images(0)], |_, x| x[0] * 2.0),
        case("softplus images", None, (20.0 * pixels, 0.5), vec![draw.images(0)], |_, x| x[0].softplus()),
        case("sum of an image batch", None, (pixels, 1.0), vec![draw.images(0)], |_, x| x[0].sum()),
        case(
            "concat 256+256+256+1",
            None,
            (0.0, 0.0),
            [256, 256, 256, 1].map(|w| draw.normal(w as u32, &[n, w])).to_vec(),
            |_, x| concat(x),
        ),
        case("sample_onoff", None, (4.0 * n as f64, 0.0), vec![row(3)], move |tape, x| {
            tape.constant(sample_onoff(&x[0].value(), &u, &ones))
        }),
        case("residual_ratio", None, (2.0 * pixels, 0.0), vec![draw.images(1)], move |tape, v| {
            tape.constant(residual_ratio(&v[0].value(), &x))
        }),
        case("nvil advantage", None, (60.0 * n as f64, 0.0), vec![steps], move |tape, v| {
            let kl = v[0].value();
            tape.constant(nvil::advantage(&kl, &likelihood, &mask, &kl, 4.0, &running, 1).normalised)
        }),
    ]
}
