//! What any network is made of: functions of numbers, parts and sums of tensors, products, convolutions, pooling, dropout, classes.

use super::{Case, normal, uniform};
use dood::{
    MathMode, Var,
    ops::{Keep, Moments, Window},
    rng::{Rng, Stream},
};

/// A function of one number, of numbers that `with` says.
fn pointwise(name: &'static str, values: Vec<f64>, call: impl for<'t> Fn(Var<'t>) -> Var<'t> + 'static) -> Case {
    Case::new(name, &[&[values.len()]], move |_, x, _| call(x[0])).with_input(0, values)
}

fn pointwises() -> Vec<Case> {
    let any = || [normal(31, &[300], 0.0, 2.0), vec![0.0, 40.0, -40.0]].concat();
    let positive = || uniform(32, &[300], 0.05, 9.0);
    vec![
        pointwise("relu", any(), |x| x.relu()),
        pointwise("sigmoid", any(), |x| x.sigmoid()),
        pointwise("tanh", any(), |x| x.tanh()),
        pointwise("exp", normal(33, &[300], 0.0, 2.0), |x| x.exp()),
        pointwise("log", positive(), |x| x.log()),
        pointwise("sqrt", positive(), |x| x.sqrt()),
        pointwise("abs", any(), |x| x.abs()),
        pointwise("pow 2.5", positive(), |x| x.pow(2.5)),
        pointwise("pow 2, of any number", any(), |x| x.pow(2.0)),
    ]
}

fn convolution([n, ins, h, w]: [usize; 4], [outs, high, wide]: [usize; 3], stride: usize, padding: usize) -> Case {
    let name = format!("conv2d {n}x{ins}x{h}x{w}, {outs} of {high}x{wide}, stride {stride}, padding {padding}");
    let shapes: [&[usize]; 3] = [&[n, ins, h, w], &[outs, ins, high, wide], &[outs]];
    Case::new(name, &shapes, move |_, x, _| x[0].conv2d(x[1], x[2], stride, padding))
}

fn pooling(shape: &[usize], window: Window, max: bool) -> Case {
    let name = format!("{} {shape:?} by {window:?}", if max { "max_pool" } else { "average_pool" });
    Case::new(name, &[shape], move |_, x, _| if max { x[0].max_pool(window) } else { x[0].average_pool(window) })
}

fn random(rate: f64) -> Keep {
    Keep::Random { rate, rng: Rng::new(5, 9), stream: Stream(3) }
}

fn classes(n: usize, c: usize) -> Case {
    Case::new(format!("cross_entropy {n}x{c}"), &[&[n, c]], |_, x, constants| x[0].cross_entropy(&constants[0]))
        .with_constant(&[n], (0..n).map(|i| (i * 7 % c) as f64).collect())
}

/// a and b of different shapes; all numbers are far from 0.
fn two(
    name: &'static str,
    a: &[usize],
    b: &[usize],
    call: impl for<'t> Fn(Var<'t>, Var<'t>) -> Var<'t> + 'static,
) -> Case {
    Case::new(format!("{name} {a:?} {b:?}"), &[a, b], move |_, x, _| call(x[0], x[1]))
        .with_input(0, uniform(34, a, 0.3, 3.0))
        .with_input(1, uniform(35, b, 0.3, 3.0))
}

fn of_two() -> Vec<Case> {
    vec![
        two("add", &[3, 1, 5], &[4, 1], |a, b| a + b),
        two("sub", &[4], &[3, 4], |a, b| a - b),
        two("mul", &[2, 3, 4], &[1], |a, b| a * b),
        two("div", &[3, 4], &[3, 4], |a, b| a / b),
        two("div", &[3, 1], &[1, 4], |a, b| a / b),
        two("pow", &[3, 4], &[4], |a, b| a.pow_of(b)),
        two("maximum", &[300], &[300], |a, b| a.maximum(b)),
        two("minimum", &[7, 1], &[1, 300], |a, b| a.minimum(b)),
    ]
}

fn one(name: &'static str, shape: &[usize], call: impl for<'t> Fn(Var<'t>) -> Var<'t> + 'static) -> Case {
    Case::new(format!("{name} {shape:?}"), &[shape], move |_, x, _| call(x[0]))
}

fn parts_and_sums() -> Vec<Case> {
    vec![
        one("permute", &[2, 3, 4, 5], |x| x.permute(&[3, 1, 0, 2])),
        one("transpose", &[3, 40, 33], |x| x.transpose()),
        one("slice", &[5, 7, 3], |x| x.slice(1, 2..6)),
        one("slice of nothing", &[5, 7], |x| x.slice(0, 5..5)),
        one("expand", &[3, 1, 2, 1], |x| x.expand(&[2, 3, 4, 2, 5])),
        one("sum_over", &[3, 40, 5], |x| x.sum_over(&[1])),
        one("sum_over two", &[3, 4, 5], |x| x.sum_over(&[0, 2])),
        one("sum_over nothing", &[3, 0, 5], |x| x.sum_over(&[1])),
        one("mean_over", &[6, 2000], |x| x.mean_over(&[1])),
        one("max_over", &[3, 70, 5], |x| x.max_over(&[1])),
        one("max_over all", &[2, 3, 4], |x| x.max_over(&[0, 1, 2])),
        one("max_over, with ties", &[4, 6], |x| x.max_over(&[1]))
            .with_input(0, (0..24).map(|i| (i * i % 5) as f64).collect()),
        Case::new("gather", &[&[6, 3]], |_, x, constants| x[0].gather(&constants[0]))
            .with_constant(&[8], (0..8).map(|i| (i * i % 5) as f64).collect()),
        Case::new("layer_norm", &[&[5, 3, 33], &[33], &[33]], |_, x, _| x[0].layer_norm(x[1], x[2], 1e-5)),
        Case::new("layer_norm of many", &[&[3, 700], &[700], &[700]], |_, x, _| x[0].layer_norm(x[1], x[2], 1e-5)),
    ]
}

fn product(a: &[usize], b: &[usize], transposed: &'static str) -> Case {
    let name = format!("matmul {a:?} {b:?} {transposed}");
    Case::new(name, &[a, b], move |_, x, _| match transposed {
        "tn" => x[0].matmul_tn(x[1]),
        "nt" => x[0].matmul_nt(x[1]),
        _ => x[0].matmul(x[1]),
    })
}

fn products() -> Vec<Case> {
    vec![
        product(&[33, 70], &[70, 41], "nn"),
        product(&[3, 5, 7], &[3, 7, 4], "nn"),
        product(&[2, 5, 7], &[7, 4], "nn"),
        product(&[5, 7], &[2, 7, 4], "nn"),
        product(&[3, 40, 36], &[3, 33, 36], "nt"),
        product(&[3, 36, 40], &[3, 36, 33], "tn"),
        product(&[2, 3, 0], &[2, 0, 4], "nn"),
        product(&[2, 40, 36], &[2, 36, 65], "nn").with_math(MathMode::Tf32, 2e-3),
        product(&[2, 40, 36], &[2, 65, 36], "nt").with_math(MathMode::Bf16, 2e-2),
    ]
}

pub fn small() -> Vec<Case> {
    let overlapping = Window { size: 3, stride: 2, padding: 1 };
    let mut cases = pointwises();
    cases.extend(of_two().into_iter().chain(parts_and_sums()).chain(products()));
    cases.extend([
        convolution([3, 2, 7, 6], [5, 3, 3], 1, 0),
        convolution([2, 3, 9, 5], [4, 3, 3], 1, 1),
        convolution([5, 1, 8, 7], [3, 5, 2], 2, 2),
        convolution([2, 2, 10, 11], [2, 1, 4], 3, 0),
        convolution([0, 2, 5, 5], [2, 3, 3], 1, 0),
        pooling(&[3, 10, 6], 2.into(), true),
        pooling(&[2, 3, 7, 5], overlapping, true),
        pooling(&[2, 3, 7, 5], overlapping, false),
        pooling(&[4, 5], Window { size: 2, stride: 1, padding: 0 }, true),
        batch_norm(&[3, 4, 5, 7]),
        batch_norm(&[37, 35]),
        batch_norm(&[2, 3, 1100]),
        batch_norm_by(&[3, 4, 5]),
        Case::new("dropout by half", &[&[5, 3, 50]], |_, x, _| x[0].dropout(random(0.5))),
        Case::new("dropout by a fifth", &[&[7, 33]], |_, x, _| x[0].dropout(random(0.2))),
        Case::new("softmax", &[&[4, 3, 40]], |_, x, _| x[0].softmax()),
        Case::new("softmax of many", &[&[3, 700]], |_, x, _| x[0].softmax()),
        Case::new("log_softmax", &[&[9, 10]], |_, x, _| x[0].log_softmax()),
        Case::new("log_softmax of one", &[&[9, 1]], |_, x, _| x[0].log_softmax()),
        classes(7, 10),
        classes(3, 300),
    ]);
    cases
}

fn batch_norm(shape: &[usize]) -> Case {
    let c = shape[1];
    Case::new(format!("batch_norm {shape:?}"), &[shape, &[c], &[c]], |_, x, _| x[0].batch_norm(x[1], x[2], 1e-5).0)
}

/// By moments that are given.
fn batch_norm_by(shape: &[usize]) -> Case {
    let c = shape[1];
    Case::new(format!("batch_norm {shape:?} by given moments"), &[shape, &[c], &[c]], |_, x, constants| {
        let moments = Moments { mean: constants[0].clone(), variance: constants[1].clone() };
        x[0].batch_norm_by(&moments, x[1], x[2], 1e-5)
    })
    .with_constant(&[c], normal(36, &[c], 0.0, 1.0))
    .with_constant(&[c], uniform(37, &[c], 0.3, 3.0))
}

/// The layers of `examples/classify`, and scores of a larger problem.
pub fn sized(n: usize) -> Vec<Case> {
    vec![
        Case::new("relu", &[&[n, 16, 28, 28]], |_, x, _| x[0].relu()),
        Case::new("sigmoid", &[&[n, 16, 28, 28]], |_, x, _| x[0].sigmoid()),
        convolution([n, 1, 28, 28], [16, 3, 3], 1, 1),
        convolution([n, 16, 14, 14], [32, 3, 3], 1, 1),
        pooling(&[n, 16, 28, 28], 2.into(), true),
        Case::new("dropout", &[&[n, 32, 7, 7]], |_, x, _| x[0].dropout(random(0.5))),
        Case::new("softmax", &[&[n, 10, 1000]], |_, x, _| x[0].softmax()),
        two("add", &[n, 64, 256], &[256], |a, b| a + b),
        two("div", &[n, 64, 256], &[n, 64, 256], |a, b| a / b),
        one("transpose", &[n, 64, 256], |x| x.transpose()),
        one("sum_over", &[n, 64, 256], |x| x.sum_over(&[1])),
        one("max_over", &[n, 64, 256], |x| x.max_over(&[2])),
        Case::new("layer_norm", &[&[n, 64, 256], &[256], &[256]], |_, x, _| x[0].layer_norm(x[1], x[2], 1e-5)),
        batch_norm(&[n, 16, 28, 28]),
        batch_norm_by(&[n, 16, 28, 28]),
        product(&[512, 512], &[512, 512], "nn"),
        product(&[n, 1024], &[1024, 1024], "nn"),
        product(&[n, 64, 64], &[n, 64, 64], "nt"),
        classes(n, 1000),
    ]
}
