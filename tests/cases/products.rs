//! linear, dropout_linear and gru_cell: every tile, transposition, tail and math mode.

use super::{Case, SIDE, WIDE, ink, mask, normal};
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

/// Inputs up to the largest finite numbers, as the residual ratio of an empty image is, and down to the smallest: rounding must not
/// make them infinite, or the gradient of the weights is 0·∞. The products stay below the largest number, but saturate tanh.
fn largest(fused: bool) -> Case {
    const MOST: f64 = f32::MAX as f64;
    let extremes = [MOST, -MOST, 3.402e38, -3.4015e38, 3.4e38, 3.3896e38, -3.3895e38, 1e38, 1e-38, -1e-45];
    let (n, k, outputs) = (extremes.len() + 2, 36, 40);
    let mut x = normal(3, &[n, k], 0.0, 1.0);
    extremes.iter().enumerate().for_each(|(i, &extreme)| x[i * k + 7 * i % k] = extreme);
    let weights = normal(4, &[outputs, k], 0.0, 0.2).iter().map(|w| w.clamp(-0.9, 0.9) + 0.01).collect();
    let shapes: [&[usize]; 3] = [&[n, k], &[outputs, k], &[outputs]];
    let case = match fused {
        false => {
            Case::new("linear of the largest numbers", &shapes, |_, x, _| x[0].linear(x[1], x[2], Activation::Tanh))
        }
        true => Case::new("dropout_linear of the largest numbers", &shapes, |_, x, _| {
            dropout_linear(&x[..1], vec![(0, Keep::All)], x[1], x[2], Activation::Tanh, None)
        }),
    };
    case.with_input(0, x).with_input(1, weights)
}

/// Gates that are open or shut as far as numbers go.
fn largest_gates() -> Case {
    let extreme = |stream: u32| {
        let values = normal(stream, &[7, 111], 0.0, 1.0);
        values.iter().enumerate().map(|(i, v)| if i % 3 == 0 { v.signum() * f64::from(f32::MAX) } else { *v }).collect()
    };
    Case::new("gru_cell of the largest numbers", &[&[7, 37], &[7, 111], &[7, 111]], |_, x, _| x[0].gru_cell(x[1], x[2]))
        .with_input(1, extreme(30))
        .with_input(2, extreme(31))
}

pub fn small() -> Vec<Case> {
    use Activation::{None, Relu, Tanh};
    let (tf32, bf16) = (MathMode::Tf32, MathMode::Bf16);
    vec![
        // Thin tiles, and small ones for the gradient of the weights: whole, with tails, and smaller than one; one stage and several;
        // rows that cannot be read 16 bytes at a time.
        linear([64, 64, 32], Tanh),
        linear([33, 70, 41], None),
        linear([33, 70, 41], Relu),
        linear([1, 1, 1], Tanh),
        linear([3, 257, 10], Tanh),
        linear([40, 36, 65], Tanh).with_math(tf32, 2e-3),
        linear([40, 36, 65], Tanh).with_math(bf16, 2e-2),
        linear([5, 30, 7], None).with_math(tf32, 2e-3),
        linear([5, 30, 7], None).with_math(bf16, 2e-2),
        linear([18, 260, 132], Tanh).with_math(tf32, 2e-3),
        // Small tiles, forward and for the gradient of the input: too many thin ones, and rows that rule out large ones.
        linear([1100, 33, 131], Tanh),
        linear([1100, 131, 33], Tanh).with_math(tf32, 2e-3),
        // Large tiles: forward of many rows; then a wide layer, cut into parts forward, with tails in every direction.
        linear([2050, 12, 12], Tanh),
        linear([2050, 12, 12], Tanh).with_math(tf32, 2e-3),
        linear([2050, 12, 12], Tanh).with_math(bf16, 2e-2),
        linear([2050, 12, 12], Relu),
        linear([6, 4100, 12], Tanh),
        linear([6, 4100, 12], Relu).with_math(tf32, 2e-3),
        linear([66, 4100, 36], Tanh).with_math(tf32, 2e-3),
        linear([66, 4100, 36], Tanh).with_math(bf16, 2e-2),
        // Parts of small tiles.
        linear([3, 4099, 5], Tanh),
        calls(5, 131, 6, Tanh),
        calls(5, 131, 6, Relu),
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
        largest(false),
        largest(false).with_math(tf32, 5e-3),
        largest(false).with_math(bf16, 3e-2),
        largest(true),
        largest(true).with_math(tf32, 5e-3),
        largest(true).with_math(bf16, 3e-2),
        Case::new("gru_cell", &[&[7, 37], &[7, 111], &[7, 111]], |_, x, _| x[0].gru_cell(x[1], x[2])),
        largest_gates(),
    ]
}

/// Hidden layers of 256 units with tanh, and a last layer without.
fn mlp(name: &str, n: usize, sizes: &[usize]) -> Case {
    let mut shapes = vec![vec![n, sizes[0]]];
    sizes.windows(2).for_each(|pair| shapes.extend([vec![pair[1], pair[0]], vec![pair[1]]]));
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let layers = sizes.len() - 1;
    Case::new(name, &shapes, move |_, x, _| {
        (0..layers).fold(x[0], |y, i| {
            let activation = if i + 1 < layers { Activation::Tanh } else { Activation::None };
            y.linear(x[1 + 2 * i], x[2 + 2 * i], activation)
        })
    })
}

fn gru(name: &str, n: usize, inputs: usize) -> Case {
    let shapes: [&[usize]; 6] = [&[n, 256], &[n, inputs], &[768, inputs], &[768], &[768, 256], &[768]];
    Case::new(name, &shapes, |_, x, _| {
        x[0].gru_cell(x[1].linear(x[2], x[3], Activation::None), x[0].linear(x[4], x[5], Activation::None))
    })
}

pub fn sized(n: usize) -> Vec<Case> {
    let wide: [&[usize]; 3] = [&[n, WIDE], &[256, WIDE], &[256]];
    let image = [n, SIDE, SIDE];
    let cnn: [&[usize]; 9] =
        [&image, &[8, 1, 3, 3], &[8], &[16, 8, 3, 3], &[16], &[256, WIDE], &[256], &[256, 256], &[256]];
    vec![
        Case::new("linear 33856-256", &wide, |_, x, _| {
            dropout_linear(&x[..1], vec![(0, Keep::All)], x[1], x[2], Activation::None, None)
        })
        .against(59.741),
        Case::new("linear 33856-256 tanh, 256-256", &[&wide[..], &[&[256, 256], &[256]]].concat(), |_, x, _| {
            let hidden = dropout_linear(&x[..1], vec![(0, Keep::All)], x[1], x[2], Activation::Tanh, None);
            hidden.linear(x[3], x[4], Activation::None)
        })
        .against(51.603),
        Case::new("dropout_linear, one call", &wide, |_, x, _| {
            dropout_linear(&x[..1], vec![(0, random(0.5, 9))], x[1], x[2], Activation::Tanh, None)
        }),
        Case::new("dropout_linear, three calls", &wide, |_, x, _| {
            let calls = (0..3).map(|k| (0, random(0.5, 9 + k)));
            dropout_linear(&x[..1], calls.collect(), x[1], x[2], Activation::Tanh, None)
        }),
        Case::new("embedder: conv_pair to embedding", &cnn, |_, x, _| {
            let seen = x[0].conv_pair(x[1], x[2], x[3], x[4], None);
            let hidden = dropout_linear(&[seen], vec![(0, random(0.5, 9))], x[5], x[6], Activation::Tanh, None);
            hidden.linear(x[7], x[8], Activation::None)
        })
        .with_input(0, ink(0, n))
        .against(127.3),
        gru("gru layout 260-256", n, 260).against(2.731),
        gru("gru stroke 266-256", n, 266).against(2.318),
        gru("gru baseline 527-256", n, 527).against(3.371),
        mlp("mlp layout 769-256-256-9", n, &[769, 256, 256, 9]).against(1.781),
        mlp("mlp stroke 768-256-256-25", n, &[768, 256, 256, 25]).against(2.018),
        mlp("mlp onoff 257-256-256-1", n, &[257, 256, 256, 1]).against(1.085),
        mlp("mlp stroke prior 516-256-256-1200", n, &[516, 256, 256, 1200]).against(3.828),
        mlp("mlp layout prior 256-256-256-400", n, &[256, 256, 256, 400]).against(1.803),
        mlp("mlp baseline 256-256-256-256-1", n, &[256, 256, 256, 256, 1]).against(1.773),
    ]
}
