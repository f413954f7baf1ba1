//! The lines of `benches/peer/compare.py` in candle and burn: single precision on the CPU, the fastest of many runs.
//!
//! `dood-peers candle|burn [--runs 40]` prints one JSON line each: name, milliseconds forward, and forward and backward together. The
//! backward pass begins at a sum, whose own time is taken off, as in `benches/ops.rs`.

use std::{hint::black_box, time::Instant};

/// Images in a batch.
const N: usize = 64;

/// Milliseconds of the fastest run.
fn fastest(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let one = |_| {
        let began = Instant::now();
        work();
        1e3 * began.elapsed().as_secs_f64()
    };
    (0..runs).map(one).fold(f64::INFINITY, f64::min)
}

fn line(program: &str, name: &str, forward: f64, both: f64) {
    println!(r#"{{"program": "{program}", "name": "{name}", "forward_ms": {forward}, "both_ms": {both}}}"#);
}

mod with_candle {
    use super::*;
    use candle_core::{Device, Result, Tensor, Var};
    use candle_nn::{AdamW, Optimizer, ParamsAdamW, loss::cross_entropy, ops};

    fn draw(shape: &[usize], std: f32) -> Result<Var> {
        Var::randn(0f32, std, shape, &Device::Cpu)
    }

    fn op(runs: usize, name: &str, inputs: &[Var], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
        // Forward on tensors without a history, then with one.
        let plain: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().detach()).collect();
        let tracked: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
        let forward = fastest(runs, || drop(black_box(f(&plain).unwrap())));
        let both = fastest(runs, || drop(black_box(f(&tracked).unwrap().sum_all().unwrap().backward().unwrap())));
        let y = Var::from_tensor(&f(&plain)?)?;
        let extra = fastest(runs, || drop(black_box(y.sum_all().unwrap().backward().unwrap())));
        line("candle", name, forward, both - extra);
        Ok(())
    }

    pub fn run(runs: usize) -> Result<()> {
        let conv = |x: &[Tensor]| x[0].conv2d(&x[1], 1, 1, 1, 1)?.broadcast_add(&x[2].reshape((1, (), 1, 1))?);
        op(runs, "matmul 512", &[draw(&[512, 512], 1.0)?, draw(&[512, 512], 1.0)?], |x| x[0].matmul(&x[1]))?;
        op(runs, "matmul 64x1024x1024", &[draw(&[64, 1024], 1.0)?, draw(&[1024, 1024], 1.0)?], |x| x[0].matmul(&x[1]))?;
        let one = [draw(&[N, 1, 28, 28], 1.0)?, draw(&[16, 1, 3, 3], 0.3)?, draw(&[16], 0.3)?];
        op(runs, "conv2d 1-16", &one, conv)?;
        let two = [draw(&[N, 16, 14, 14], 1.0)?, draw(&[32, 16, 3, 3], 0.1)?, draw(&[32], 0.1)?];
        op(runs, "conv2d 16-32", &two, conv)?;
        op(runs, "max_pool", &[draw(&[N, 16, 28, 28], 1.0)?], |x| x[0].max_pool2d(2))?;
        let scores = [draw(&[N, 10, 1000], 1.0)?];
        op(runs, "softmax", &scores, |x| ops::softmax(&x[0], 2))?;

        let x = draw(&[N, 1, 28, 28], 1.0)?.as_tensor().detach();
        let labels = Tensor::from_vec((0..N as u32).map(|i| i % 10).collect::<Vec<_>>(), N, &Device::Cpu)?;
        let mut w = vec![];
        for (shape, std) in [
            (vec![16, 1, 3, 3], 0.3),
            (vec![16], 0.1),
            (vec![32, 16, 3, 3], 0.1),
            (vec![32], 0.1),
            (vec![128, 1568], 0.03),
            (vec![128], 0.03),
            (vec![10, 128], 0.1),
            (vec![10], 0.1),
        ] {
            w.push(draw(&shape, std)?);
        }
        // Adam: AdamW without decay.
        let settings = ParamsAdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let mut adam = AdamW::new(w.clone(), settings)?;
        let mut step = || -> Result<f32> {
            let p = |i: usize| w[i].as_tensor().clone();
            let mut y = conv(&[x.clone(), p(0), p(1)])?.relu()?.max_pool2d(2)?;
            y = conv(&[y, p(2), p(3)])?.relu()?.max_pool2d(2)?.flatten_from(1)?;
            y = ops::dropout(&y, 0.25)?;
            y = y.matmul(&p(4).t()?)?.broadcast_add(&p(5))?.relu()?;
            y = ops::dropout(&y, 0.5)?;
            let loss = cross_entropy(&y.matmul(&p(6).t()?)?.broadcast_add(&p(7))?, &labels)?;
            adam.backward_step(&loss)?;
            loss.to_scalar()
        };
        let ms = fastest(runs, || drop(black_box(step().unwrap())));
        line("candle", "classify step", ms, ms);
        Ok(())
    }
}

mod with_burn {
    use super::*;
    use burn::{
        module::Module,
        nn::{
            Dropout, DropoutConfig, Linear, LinearConfig, PaddingConfig2d,
            conv::{Conv2d, Conv2dConfig},
            loss::CrossEntropyLossConfig,
        },
        optim::{AdamConfig, GradientsParams},
        tensor::{
            Device, Distribution, Int, Tensor, activation,
            module::{conv2d, max_pool2d},
            ops::{ConvOptions, MaxPoolOptions},
        },
    };

    fn draw<const D: usize>(shape: [usize; D], std: f64, device: &Device) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, std), device)
    }

    /// Forward without a history, then with one for all inputs.
    fn op<const A: usize, const B: usize, const C: usize>(
        runs: usize,
        name: &str,
        shapes: ([usize; A], [usize; B]),
        f: impl Fn(Tensor<A>, Tensor<B>) -> Tensor<C>,
    ) {
        let device = Device::flex();
        let (a, b) = (draw(shapes.0, 1.0, &device), draw(shapes.1, 0.3, &device));
        let forward = fastest(runs, || drop(black_box(f(a.clone(), b.clone()))));
        let device = device.autodiff();
        let (a, b) = (draw(shapes.0, 1.0, &device).require_grad(), draw(shapes.1, 0.3, &device).require_grad());
        let both = fastest(runs, || drop(black_box(f(a.clone(), b.clone()).sum().backward())));
        let y = f(a, b).detach().require_grad();
        let extra = fastest(runs, || drop(black_box(y.clone().sum().backward())));
        line("burn", name, forward, both - extra);
    }

    #[derive(Module, Debug)]
    struct Net {
        conv1: Conv2d,
        conv2: Conv2d,
        hidden: Linear,
        last: Linear,
        first: Dropout,
        second: Dropout,
    }

    fn pool(x: Tensor<4>) -> Tensor<4> {
        max_pool2d(x, MaxPoolOptions::new([2, 2], [2, 2], [0, 0], [1, 1], false))
    }

    impl Net {
        fn forward(&self, x: Tensor<4>) -> Tensor<2> {
            let x = pool(activation::relu(self.conv1.forward(x)));
            let x = pool(activation::relu(self.conv2.forward(x)));
            let x = self.first.forward(x.flatten::<2>(1, 3));
            self.last.forward(self.second.forward(activation::relu(self.hidden.forward(x))))
        }
    }

    pub fn run(runs: usize) {
        let conv = |x, w| conv2d(x, w, None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1));
        op(runs, "matmul 512", ([512, 512], [512, 512]), |a, b| a.matmul(b));
        op(runs, "matmul 64x1024x1024", ([64, 1024], [1024, 1024]), |a, b| a.matmul(b));
        op(runs, "conv2d 1-16", ([N, 1, 28, 28], [16, 1, 3, 3]), conv);
        op(runs, "conv2d 16-32", ([N, 16, 14, 14], [32, 16, 3, 3]), conv);
        op(runs, "max_pool", ([N, 16, 28, 28], [1]), |x, _| pool(x));
        op(runs, "softmax", ([N, 10, 1000], [1]), |x, _| activation::softmax(x, 2));

        let device = Device::flex().autodiff();
        let same = |config: Conv2dConfig| config.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(&device);
        let mut net = Net {
            conv1: same(Conv2dConfig::new([1, 16], [3, 3])),
            conv2: same(Conv2dConfig::new([16, 32], [3, 3])),
            hidden: LinearConfig::new(1568, 128).init(&device),
            last: LinearConfig::new(128, 10).init(&device),
            first: DropoutConfig::new(0.25).init(),
            second: DropoutConfig::new(0.5).init(),
        };
        let x = draw([N, 1, 28, 28], 1.0, &device);
        let labels = Tensor::<1, Int>::arange(0..N as i64, &device).remainder_scalar(10);
        let entropy = CrossEntropyLossConfig::new().init(&device);
        let mut adam = AdamConfig::new().init();
        let ms = fastest(runs, || {
            let loss = entropy.forward(net.forward(x.clone()), labels.clone());
            let grads = GradientsParams::from_grads(loss.backward(), &net);
            net = adam.step(1e-3, net.clone(), grads);
        });
        line("burn", "classify step", ms, ms);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runs = arguments.iter().position(|a| a == "--runs").and_then(|i| arguments.get(i + 1)?.parse().ok()).unwrap_or(40);
    match arguments.get(1).map(String::as_str) {
        Some("candle") => with_candle::run(runs).expect("candle"),
        Some("burn") => with_burn::run(runs),
        _ => eprintln!("name candle or burn"),
    }
}
