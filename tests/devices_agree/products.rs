//! linear, dropout_linear and gru_cell: every tile, transposition, tail and math mode.

use super::{Case, mask, normal};
use dood::{
    MathMode,
    ops::{Activation, Keep, dropout_linear},
    rng::{Rng, Stream},
};

/// x `[n, inputs]` through a layer.
fn linear([n, inputs, outputs]: [usize; 3], activation: Activation) -> Case {
    let name = format!("linear {n}x{inputs}x{outputs} {activation:?}");
    let weights = normal(6, &[outputs, inputs], 0.0, 1.0 / (inputs as f64).sqrt());
    Case::new(name, &[&[n, inputs], &[outputs, inputs], &[outputs]], move |_, x, _| x[0].linear(x[1], x[2], activation))
        .with_input(1, weights)
}

fn random(rate: f64, stream: u32) -> Keep {
    Keep::Random { rate, rng: Rng::new(5, (1 << 40) + 9), stream: Stream(stream) }
}

/// Two inputs `[n, k]` through five calls of three rates, so two launches of one rate and one of another.
fn calls(n: usize, k: usize, outputs: usize, activation: Activation) -> Case {
    let name = format!("dropout_linear {n}x{k}x{outputs}, five calls, {activation:?}");
    let weights = normal(7, &[outputs, k], 0.0, 1.0 / (k as f64).sqrt());
    Case::new(name, &[&[outputs, k], &[outputs], &[n, k], &[n, k]], move |_, x, constants| {
        let given = Keep::Given(constants[0].clone(), 0.5);
        let calls = vec![(0, given), (1, random(0.5, 3)), (1, random(0.3, 4)), (0, Keep::All), (1, random(0.5, 5))];
        dropout_linear(&x[2..], calls, x[0], x[1], activation, Some(&constants[1]))
    })
    .with_input(0, weights)
    .with_constant(&[n, k], mask(n * k, 3))
    .with_constant(&[n], mask(n, 4))
}

/// As the model calls it: some calls of one rate, no row left out.
fn together(count: usize, n: usize, k: usize, outputs: usize) -> Case {
    let weights = normal(8, &[outputs, k], 0.0, 1.0 / (k as f64).sqrt());
    let name = format!("dropout_linear {n}x{k}x{outputs}, {count} calls");
    Case::new(name, &[&[outputs, k], &[outputs], &[n, k], &[n, k]], move |_, x, _| {
        let calls = (0..count).map(|i| (1 - i % 2, random(0.5, i as u32)));
        dropout_linear(&x[2..], calls.collect(), x[0], x[1], Activation::Tanh, None)
    })
    .with_input(0, weights)
}

fn without_dropout(n: usize, k: usize, outputs: usize) -> Case {
    let name = format!("dropout_linear {n}x{k}x{outputs}, nothing dropped, an input unused");
    Case::new(name, &[&[outputs, k], &[outputs], &[n, k], &[n, k]], |_, x, _| {
        dropout_linear(&x[2..], vec![(1, Keep::All)], x[0], x[1], Activation::None, None)
    })
}

pub fn cases() -> Vec<Case> {
    use Activation::{None, Tanh};
    let (tf32, bf16) = (MathMode::Tf32, MathMode::Bf16);
    vec![
        // Small tiles: whole, with tails, and smaller than one; rows that cannot be read 16 bytes at a time.
        linear([64, 64, 32], Tanh),
        linear([33, 70, 41], None),
        linear([1, 1, 1], Tanh),
        linear([3, 257, 10], Tanh),
        linear([40, 36, 65], Tanh).with_math(tf32, 2e-3),
        linear([40, 36, 65], Tanh).with_math(bf16, 2e-2),
        linear([5, 30, 7], None).with_math(tf32, 2e-3),
        linear([5, 30, 7], None).with_math(bf16, 2e-2),
        // Large tiles: forward of many rows; then a wide layer, cut into parts forward, with tails in every direction.
        linear([2050, 12, 12], Tanh),
        linear([2050, 12, 12], Tanh).with_math(tf32, 2e-3),
        linear([2050, 12, 12], Tanh).with_math(bf16, 2e-2),
        linear([6, 4100, 12], Tanh),
        linear([66, 4100, 36], Tanh).with_math(tf32, 2e-3),
        linear([66, 4100, 36], Tanh).with_math(bf16, 2e-2),
        // Parts of small tiles.
        linear([3, 4099, 5], Tanh),
        calls(5, 131, 6, Tanh),
        calls(5, 131, 6, None).with_math(tf32, 2e-3),
        calls(5, 4100, 8, Tanh).with_math(tf32, 2e-3),
        calls(5, 4100, 8, Tanh).with_math(bf16, 2e-2),
        together(3, 6, 4100, 8),
        together(3, 40, 132, 33),
        // More than the gradient of the weights is formed from at once; then by large tiles.
        together(5, 4, 70, 9),
        together(5, 3, 4100, 36),
        together(5, 3, 4100, 36).with_math(tf32, 2e-3),
        together(5, 3, 4100, 36).with_math(bf16, 2e-2),
        without_dropout(3, 40, 5),
        Case::new("gru_cell", &[&[7, 37], &[7, 111], &[7, 111]], |_, x, _| x[0].gru_cell(x[1], x[2])),
    ]
}
