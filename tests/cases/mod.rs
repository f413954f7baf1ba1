//! Every op, once: small and odd sizes, on which devices are compared (`tests/devices_agree`), and those of the paper, on which they are
//! timed (`benches/ops.rs`).
//!
//! Each program uses a part of it, hence:
#![allow(dead_code)]

mod densities;
mod general;
mod images;
mod products;
mod strokes;

use dood::{
    Device, MathMode, Tape, Tensor, Var,
    rng::{Rng, Stream},
};
use std::rc::Rc;

/// Numbers that are made when they are asked for: those of a large layer would take much memory in a list of cases.
pub type Values = Rc<dyn Fn() -> Vec<f64>>;

/// One call of an op.
pub struct Case {
    pub name: String,
    /// Shapes and values.
    pub inputs: Vec<(Vec<usize>, Values)>,
    /// Further tensors, through which no gradient flows (masks, noise, images).
    pub constants: Vec<(Vec<usize>, Values)>,
    pub call: Call,
    /// Relative to the largest entry, of a single precision GPU against double precision, on top of twice the CPU's own error.
    pub allowed: f64,
    pub math: MathMode,
    /// Milliseconds that the reference takes forward and backward at the paper's sizes.
    pub reference: Option<f64>,
}

type Call = Box<dyn for<'t> Fn(&'t Tape<'t>, &[Var<'t>], &[Tensor]) -> Var<'t>>;

impl Case {
    /// Inputs are standard normal numbers of the given shapes, times 0.5.
    pub fn new(
        name: impl Into<String>,
        shapes: &[&[usize]],
        call: impl for<'t> Fn(&'t Tape<'t>, &[Var<'t>], &[Tensor]) -> Var<'t> + 'static,
    ) -> Self {
        let input = |(i, shape): (usize, &&[usize])| {
            let shape = shape.to_vec();
            let values: Values = Rc::new({
                let shape = shape.clone();
                move || normal(i as u32, &shape, 0.0, 0.5)
            });
            (shape, values)
        };
        Case {
            name: name.into(),
            inputs: shapes.iter().enumerate().map(input).collect(),
            constants: vec![],
            call: Box::new(call),
            allowed: 1e-6,
            math: MathMode::F32,
            reference: None,
        }
    }

    /// Replaces the values of input `i`.
    pub fn with_input(mut self, i: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), self.inputs[i].0.iter().product::<usize>());
        self.inputs[i].1 = Rc::new(move || values.clone());
        self
    }

    /// Adds a tensor that the call gets without a gradient.
    pub fn with_constant(mut self, shape: &[usize], values: Vec<f64>) -> Self {
        self.constants.push((shape.to_vec(), Rc::new(move || values.clone())));
        self
    }

    /// The tensor cores, and the error that their roundings may cause.
    pub fn with_math(mut self, math: MathMode, allowed: f64) -> Self {
        (self.math, self.allowed) = (math, allowed);
        self
    }

    /// What the reference takes.
    pub fn against(mut self, milliseconds: f64) -> Self {
        self.reference = Some(milliseconds);
        self
    }

    /// Inputs and constants on a device.
    pub fn tensors(&self, device: &Device) -> [Vec<Tensor>; 2] {
        [&self.inputs, &self.constants]
            .map(|all| all.iter().map(|(shape, values)| Tensor::from_f64(device, shape, &values())).collect())
    }
}

/// Small and odd sizes, extreme values, every mode.
pub fn small() -> Vec<Case> {
    [densities::small(), general::small(), images::small(), products::small(), strokes::small()]
        .into_iter()
        .flatten()
        .collect()
}

/// The paper's sizes, with `n` images, in the order of the bench's table.
pub fn sized(n: usize) -> Vec<Case> {
    [strokes::sized(n), images::sized(n), products::sized(n), densities::sized(n), general::sized(n)]
        .into_iter()
        .flatten()
        .collect()
}

/// Height and width of the paper's images, control points of a stroke, components of the mixtures.
const SIDE: usize = 50;
const J: usize = 5;
const K: usize = 40;
/// Outputs of the convolutions.
const WIDE: usize = 16 * 46 * 46;

/// Normal numbers with the given mean and standard deviation.
pub fn normal(stream: u32, shape: &[usize], mean: f64, std: f64) -> Vec<f64> {
    let rng = Rng::new(11, 0);
    (0..shape.iter().product()).map(|i| mean + std * rng.normal(Stream(stream), i)).collect()
}

/// Uniform numbers.
pub fn uniform(stream: u32, shape: &[usize], low: f64, high: f64) -> Vec<f64> {
    let rng = Rng::new(12, 0);
    (0..shape.iter().product()).map(|i| low + (high - low) * rng.uniform(Stream(stream), i)).collect()
}

/// Ones, with a 0 at every `every`-th place from the second on.
pub fn mask(n: usize, every: usize) -> Vec<f64> {
    (0..n).map(|i| if i % every == 1 { 0.0 } else { 1.0 }).collect()
}

/// `n` rows whose columns are uniform in these ranges.
fn columns(stream: u32, n: usize, ranges: &[(f64, f64)]) -> Vec<f64> {
    let unit = uniform(stream, &[n, ranges.len()], 0.0, 1.0);
    unit.iter().zip(ranges.iter().cycle()).map(|(u, (low, high))| low + u * (high - low)).collect()
}

/// Layouts as in training: shifts, scale, rotation.
fn layouts(n: usize) -> Vec<f64> {
    columns(1, n, &[(-0.3, 0.3), (-0.3, 0.3), (0.4, 0.9), (-0.6, 0.6)])
}

/// Images as in training, `[n, SIDE, SIDE]`: mostly background, some ink.
fn ink(stream: u32, n: usize) -> Vec<f64> {
    normal(stream, &[n, SIDE, SIDE], 0.0, 1.0).iter().map(|v| (v - 1.0).clamp(0.0, 1.0)).collect()
}
