//! Every op on the GPU against the CPU: results and the gradients of all inputs, in both precisions.
//!
//! Without a GPU the kernels run on the stand-in driver, also in other orders of threads and blocks, which must not change a bit, and
//! in its check mode, which watches every access to memory. Ops with optimised kernels run with their plain twins too
//! (`DOOD_CUDA_NAIVE=1`), which are held against the same numbers. `DOOD_ONLY=name` runs the cases whose name contains it. The cases are
//! those of `tests/cases`.
#![cfg(all(unix, feature = "cuda"))]

#[path = "../common/stand_in.rs"]
mod stand_in;

#[path = "../cases/mod.rs"]
mod cases;

use cases::{Case, normal};
use dood::{
    DType, Device, Grads, MathMode, ParamsBuilder, Slot, Tape, Tensor, Var,
    observer::Silent,
    ops::{Cost, Op},
    optim::{Adam, AdamW, Sgd, clip_norm},
};

/// Σ w·y on the host, for a fixed random w: an op of the tests, so that a case needs no kernel but its own.
struct Project(u32);

impl Project {
    fn weights(&self, y: &Tensor) -> Vec<f64> {
        normal(1000 + self.0, y.shape(), 0.0, 1.0)
    }
}

impl Op for Project {
    fn name(&self) -> &'static str {
        "project"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let sum = x[0].to_f64().iter().zip(self.weights(&x[0])).map(|(y, w)| y * w).sum();
        vec![Tensor::from_f64(cx, &[1], &[sum])]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let dy = dy.item();
        let g: Vec<f64> = self.weights(&x[0]).iter().map(|w| w * dy).collect();
        if let Some(slot) = &mut dx[0] {
            slot.add_tensor(&Tensor::from_f64(cx, x[0].shape(), &g));
        }
    }

    fn cost(&self, _: &[Tensor], _: &Tensor) -> Cost {
        Cost { flops: 0.0, bytes: 0.0 }
    }
}

/// a + b on the host.
struct Both;

impl Op for Both {
    fn name(&self) -> &'static str {
        "both"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        vec![Tensor::from_f64(cx, &[1], &[x[0].item() + x[1].item()])]
    }

    fn backward(&self, _: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        dx.iter_mut().flatten().for_each(|slot| slot.add_tensor(dy));
    }
}

/// The result, and the gradient of each input.
fn run(case: &Case, device: &Device) -> Result<Vec<Vec<f64>>, String> {
    let tape = Tape::without_params(device);
    run_on(&tape, case, device)
}

fn run_on<'t>(tape: &'t Tape<'t>, case: &Case, device: &Device) -> Result<Vec<Vec<f64>>, String> {
    let [inputs, constants] = case.tensors(device);
    let inputs: Vec<Var<'t>> = inputs.into_iter().map(|x| tape.input(x)).collect();
    // Twice, so that the backward meets slots that already hold something.
    let y = [0, 1].map(|_| (case.call)(tape, &inputs, &constants));
    let loss = tape.apply(Both, &[tape.apply(Project(0), &[y[0]]), tape.apply(Project(1), &[y[1]])]);
    let grads = tape.backward(loss, &mut Grads::none(device));
    let mut all = vec![y[0].value().to_f64()];
    all.extend(inputs.iter().map(|&x| grads.of(x).to_f64()));
    device.check().map_err(|e| e.to_string())?;
    Ok(all)
}

/// Largest difference relative to the largest entry; infinite where something is not finite in one only.
fn distance(a: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(a.len(), exact.len());
    let size = exact.iter().filter(|x| x.is_finite()).fold(1e-30f64, |m, x| m.max(x.abs()));
    a.iter().zip(exact).fold(0.0, |worst: f64, (a, b)| match a == b || (a.is_nan() && b.is_nan()) {
        true => worst,
        false if a.is_finite() && b.is_finite() => worst.max((a - b).abs() / size),
        false => f64::INFINITY,
    })
}

fn chosen() -> Vec<Case> {
    let only = std::env::var("DOOD_ONLY").unwrap_or_default();
    let chosen: Vec<Case> = cases::small().into_iter().filter(|c| c.name.contains(&only)).collect();
    assert!(!chosen.is_empty(), "no case is called {only:?}");
    chosen
}

/// Checked kernels are other kernels with the same source: they get another cache.
fn prepare(check: bool) -> Option<stand_in::Alone> {
    if let Err(why) = stand_in::install() {
        println!("{why}");
        return None;
    }
    let alone = stand_in::alone();
    stand_in::set_check(check);
    let folder =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(if check { "kernels-checked" } else { "kernels" });
    // SAFETY: the other tests of this binary wait for `alone`.
    unsafe {
        std::env::set_var("DOOD_CACHE", folder);
        std::env::set_var("DOOD_CUDA_ALLOC", "each");
        // A tool that looks for reads of what no kernel wrote turns it off.
        if std::env::var_os("DOOD_CUDA_POISON").is_none() {
            std::env::set_var("DOOD_CUDA_POISON", "1");
        }
    }
    Some(alone)
}

fn cuda(dtype: DType, math: MathMode) -> Device {
    open(dtype, math, false)
}

/// A device whose optimised kernels are replaced by their plain twins.
fn naive(dtype: DType) -> Device {
    open(dtype, MathMode::F32, true)
}

fn open(dtype: DType, math: MathMode, naive: bool) -> Device {
    // SAFETY: the caller holds `alone`, which the other tests of this binary wait for.
    unsafe { std::env::set_var("DOOD_CUDA_NAIVE", if naive { "1" } else { "0" }) };
    let device = Device::cuda(0, dtype, math).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(device.to_string().contains("naive kernels"), naive, "{device}");
    device.prepare(&Silent);
    device
}

/// The ops whose optimised kernels have plain twins.
const TWINS: [&str; 7] = ["linear", "dropout_linear", "matmul", "conv_pair", "batch_norm", "render_stroke", "stn"];

/// Which of [`TWINS`] a case is about: its first word. The tensor cores have no twin.
fn twin(case: &Case) -> Option<usize> {
    let word = case.name.split([' ', ',']).next();
    TWINS.iter().position(|&op| case.math == MathMode::F32 && Some(op) == word)
}

/// Runs a case and counts the kernels that it launches.
fn counted(launches: &mut u64, case: &Case, device: &Device) -> Result<Vec<Vec<f64>>, String> {
    let before = device.launches();
    let found = run(case, device);
    *launches += device.launches() - before;
    found
}

fn part(i: usize) -> String {
    if i == 0 { "the result".into() } else { format!("the gradient of input {}", i - 1) }
}

#[test]
fn ops_on_the_gpu_agree_with_the_cpu() {
    let Some(_alone) = prepare(false) else { return };
    let mut failures = vec![];
    let mut worst = (0.0, String::new());
    let double = cuda(DType::F64, MathMode::F32);
    let single = [MathMode::F32, MathMode::Tf32, MathMode::Bf16].map(|math| cuda(DType::F32, math));
    let (double_naive, single_naive) = (naive(DType::F64), naive(DType::F32));
    // Per op, by its optimised kernels and by their twins.
    let mut launches = [[0, 0]; TWINS.len()];
    let cases = chosen();
    for case in &cases {
        let exact = run(case, &Device::cpu_f64()).unwrap();
        let cpu = run(case, &Device::cpu()).unwrap();
        let mut hold = |found: Result<Vec<Vec<f64>>, String>, device: &str, allowed: &dyn Fn(usize) -> f64| {
            let found = match found {
                Ok(found) => found,
                Err(why) => return failures.push(format!("{} ({device}): {why}", case.name)),
            };
            for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let (error, allowed) = (distance(found, exact), allowed(i));
                if error > allowed {
                    failures.push(format!(
                        "{} ({device}): {} is off by {error:.1e}, allowed {allowed:.1e}",
                        case.name,
                        part(i)
                    ));
                }
                if error / allowed > worst.0 {
                    worst = (error / allowed, format!("{} ({device}), {}", case.name, part(i)));
                }
            }
        };
        if case.math == MathMode::F32 {
            hold(run(case, &double), "f64", &|_| 1e-9);
        }
        let of_single = |i: usize| 2.0 * distance(&cpu[i], &exact[i]) + case.allowed;
        let mut optimised = 0;
        hold(counted(&mut optimised, case, &single[case.math as usize]), "f32", &of_single);
        if let Some(op) = twin(case) {
            launches[op][0] += optimised;
            hold(run(case, &double_naive), "f64, naive", &|_| 1e-9);
            hold(counted(&mut launches[op][1], case, &single_naive), "f32, naive", &of_single);
        }
    }
    println!("{} cases; closest to its limit: {:.2} of it in {}", cases.len(), worst.0, worst.1);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    // Plain kernels are more of them: where that does not show, it was the optimised ones that ran.
    if std::env::var_os("DOOD_ONLY").is_none() {
        for (op, [optimised, naive]) in TWINS.iter().zip(launches) {
            println!("{op}: {optimised} launches, {naive} of naive kernels");
            assert!(naive > optimised && optimised > 0, "the naive kernels of {op} did not run");
        }
    }
}

#[test]
fn the_order_of_threads_and_blocks_does_not_change_a_bit() {
    let Some(_alone) = prepare(false) else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: a real GPU chooses its own order");
    }
    let mut failures = vec![];
    for case in chosen() {
        let device = cuda(DType::F32, case.math);
        stand_in::set_order("forward");
        let first = run(&case, &device);
        for order in ["reverse", "random:5"] {
            stand_in::set_order(order);
            let other = run(&case, &device);
            let same = match (&first, &other) {
                (Ok(a), Ok(b)) => a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| a.to_bits() == b.to_bits()),
                _ => false,
            };
            if !same {
                failures.push(format!("{}: {order} differs from forward", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_access_to_memory_is_sound() {
    let Some(_alone) = prepare(true) else { return };
    if !stand_in::is_stand_in() {
        return println!("skipped: on a real GPU compute-sanitizer does this");
    }
    let mut failures = vec![];
    for case in chosen() {
        let plain = twin(&case).map(|_| (", naive", naive(DType::F32)));
        for (kernels, device) in [Some(("", cuda(DType::F32, case.math))), plain].into_iter().flatten() {
            let before = stand_in::errors();
            if let Err(why) = run(&case, &device) {
                failures.push(format!("{}{kernels}: {why}", case.name));
            }
            if stand_in::errors() > before {
                failures.push(format!("{}{kernels}: {}", case.name, stand_in::reports()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn optimisers_on_the_gpu_agree_with_the_cpu() {
    let Some(_alone) = prepare(false) else { return };
    let run = |device: &Device| {
        let mut builder = ParamsBuilder::new();
        let a = builder.add("a", &[9, 70], |i| normal(1, &[630], 0.0, 1.0)[i]);
        builder.group(1);
        let b = builder.add("b", &[5], |i| i as f64 - 2.0);
        let mut params = builder.build(device);
        let mut grads = Grads::zeros(&params);
        grads.set(a, &normal(2, &[630], 0.0, 1.0));
        grads.set(b, &normal(3, &[5], 0.0, 1.0));
        let rates = [0.1, 0.02];
        let mut adam = AdamW::new(Adam::new(&params, &rates).with_clip(0.9), 0.3);
        let mut sgd = Sgd::new(&params, &rates, 0.9).with_decay(0.1);
        let norm = clip_norm(&mut grads, 4.0);
        for _ in 0..3 {
            adam.step(&mut params, &grads);
            sgd.step(&mut params, &grads);
        }
        device.check().unwrap();
        [vec![norm], params.get(a).to_f64(), params.get(b).to_f64(), grads.get(a).to_f64()]
    };
    let exact = run(&Device::cpu_f64());
    for (device, allowed) in [(cuda(DType::F64, MathMode::F32), 1e-12), (cuda(DType::F32, MathMode::F32), 1e-5)] {
        for (found, exact) in run(&device).iter().zip(&exact) {
            assert!(distance(found, exact) < allowed, "{device}: {}", distance(found, exact));
        }
    }
}
