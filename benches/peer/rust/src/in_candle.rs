//! The lines in candle.

use crate::{BATCH, CLASSIFIER, Lines, RATE, values};
use candle_core::{Device, Result, Tensor, Var, backprop::GradStore};
use candle_nn::{
    AdamW, Optimizer, ParamsAdamW, loss,
    ops::{dropout, softmax, softmax_last_dim},
};
use std::hint::black_box;

pub fn all(lines: &Lines) -> Result<()> {
    line(lines, "matmul 512", &[&[512, 512], &[512, 512]], |x| x[0].matmul(&x[1]))?;
    line(lines, "matmul 64x1024x1024", &[&[64, 1024], &[1024, 1024]], |x| x[0].matmul(&x[1]))?;
    line(lines, "conv2d 1-16", &[&[BATCH, 1, 28, 28], &[16, 1, 3, 3], &[16]], |x| conv2d(&x[0], &x[1], &x[2]))?;
    line(lines, "conv2d 16-32", &[&[BATCH, 16, 14, 14], &[32, 16, 3, 3], &[32]], |x| conv2d(&x[0], &x[1], &x[2]))?;
    line(lines, "max_pool", &[&[BATCH, 16, 28, 28]], |x| x[0].max_pool2d(2))?;
    // The faster of its two forward, which has no gradient.
    let plain = |x: &[Tensor]| softmax_last_dim(&x[0]);
    both(lines, "softmax", &[&[BATCH, 10, 1000]], plain, |x| softmax(&x[0], 2))?;
    classifier(lines)
}

fn conv2d(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.conv2d(w, 1, 1, 1, 1)?.broadcast_add(&b.reshape((1, (), 1, 1))?)
}

fn tensor(shape: &[usize], key: usize, scale: f64) -> Result<Tensor> {
    Tensor::from_vec(values(shape.iter().product(), key, scale), shape, &Device::Cpu)
}

fn flat(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// The gradients of `variables`, each of which comes through so many max-pools: candle 0.11 multiplies it with the largest pixel's share of
/// the window's area there, a quarter, which is taken back.
fn flat_gradients(grads: &GradStore, variables: &[Var], pools: impl Fn(usize) -> i32) -> Result<Vec<Vec<f32>>> {
    let right = |(i, x)| flat(&(grads.get(x).expect("a gradient") * 4f64.powi(pools(i)))?);
    variables.iter().map(Var::as_tensor).enumerate().map(right).collect()
}

fn line(lines: &Lines, name: &str, shapes: &[&[usize]], f: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    both(lines, name, shapes, &f, &f)
}

/// `plain` where nothing is to be tracked, else `f`.
fn both(
    lines: &Lines,
    name: &str,
    shapes: &[&[usize]],
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let inputs = shapes.iter().enumerate().map(|(key, shape)| tensor(shape, key, 1.0)).collect::<Result<Vec<_>>>()?;
    let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    let mut results = vec![flat(&plain(&inputs)?)?];
    results.extend(flat_gradients(&f(&tracked)?.sqr()?.sum_all()?.backward()?, &variables, |_| {
        (name == "max_pool").into()
    })?);
    lines.line(
        name,
        || drop(black_box(plain(&inputs).expect("it has worked"))),
        || f(&tracked).expect("it has worked"),
        |y| y.backward().expect("it has worked"),
        results,
    );
    Ok(())
}

/// Scores of images; with dropout while it learns.
fn scores(p: &[Var], x: &Tensor, learning: bool) -> Result<Tensor> {
    let drop = |x: Tensor, rate| if learning { dropout(&x, rate) } else { Ok(x) };
    let linear = |x: Tensor, w: &Tensor, b: &Tensor| x.matmul(&w.t()?)?.broadcast_add(b);
    let x = conv2d(x, &p[0], &p[1])?.max_pool2d(2)?.relu()?;
    let x = conv2d(&x, &p[2], &p[3])?.max_pool2d(2)?.relu()?;
    let features = linear(drop(x.flatten_from(1)?, 0.25)?, &p[4], &p[5])?.relu()?;
    linear(drop(features, 0.5)?, &p[6], &p[7])
}

fn classifier(lines: &Lines) -> Result<()> {
    let parameter = |(key, (shape, scale)): (usize, (&[usize], f64))| Var::from_tensor(&tensor(shape, key, scale)?);
    let parameters = CLASSIFIER.into_iter().enumerate().map(parameter).collect::<Result<Vec<_>>>()?;
    let x = tensor(&[BATCH, 1, 28, 28], 8, 1.0)?;
    let labels = Tensor::from_iter((0..BATCH).map(|i| i as u32 % 10), &Device::Cpu)?;
    let first = loss::cross_entropy(&scores(&parameters, &x, false)?, &labels)?;
    let mut results = vec![vec![first.to_scalar()?]];
    results.extend(flat_gradients(&first.backward()?, &parameters, |i| [2, 2, 1, 1, 0, 0, 0, 0][i])?);
    let adam = ParamsAdamW { lr: RATE, weight_decay: 0.0, ..ParamsAdamW::default() };
    let mut adam = AdamW::new(parameters.clone(), adam)?;
    let mut step = || -> Result<f32> {
        let loss = loss::cross_entropy(&scores(&parameters, &x, true)?, &labels)?;
        adam.step(&loss.backward()?)?;
        loss.to_scalar()
    };
    lines.step("classify step", || assert!(step().expect("it has worked").is_finite()), results);
    Ok(())
}
