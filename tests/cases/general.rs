//! What any network is made of: functions of numbers, convolutions, pooling, dropout, classes.

use super::{Case, normal, uniform};
use dood::{
    Var,
    ops::{Keep, Window},
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

pub fn small() -> Vec<Case> {
    let overlapping = Window { size: 3, stride: 2, padding: 1 };
    let mut cases = pointwises();
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
        classes(n, 1000),
    ]
}
