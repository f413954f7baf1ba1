//! Images: convolutions, affine maps and sampling through them, the likelihood.

use super::{Case, SIDE, ink, layouts, mask, normal, uniform};
use dood::{
    MathMode,
    ops::{Angle, Likelihood, Thicker, residual_ratio, thicken},
};
use std::rc::Rc;

/// Sizes N, H, W, C₁, C₂: one tile, several tiles of rows and columns, channels in several chunks, several tiles for one block, the
/// published size.
const CONVOLUTIONS: [[usize; 5]; 8] = [
    [3, 9, 9, 8, 16],
    [2, 5, 7, 3, 5],
    [1, 20, 22, 8, 16],
    [1, 50, 6, 2, 3],
    [1, 7, 61, 2, 9],
    [1, 8, 9, 11, 18],
    [128, 18, 5, 1, 2],
    [1, 50, 50, 8, 16],
];

fn convolution([n, h, w, c1, c2]: [usize; 5]) -> Case {
    let shapes: [&[usize]; 5] = [&[n, h, w], &[c1, 1, 3, 3], &[c1], &[c2, c1, 3, 3], &[c2]];
    Case::new(format!("conv_pair {n}x{h}x{w}, {c1} and {c2} channels"), &shapes, |_, x, constants| {
        x[0].conv_pair(x[1], x[2], x[3], x[4], constants.first())
    })
}

/// Every convolution with both kinds of rounding; some images are not live in the last but one. Inputs are multiples of ¼, which need
/// no rounding, and neither do the numbers after the first layer: so no ReLU falls on the other side, which would be an error of
/// another size. What goes backward is rounded, and all is in the last, whose ReLUs are few.
fn rounded_convolutions() -> Vec<Case> {
    let modes = [(MathMode::Tf32, 2e-3), (MathMode::Bf16, 2e-2)];
    let of = |(math, allowed): (MathMode, f64)| {
        let live = convolution([3, 8, 8, 3, 4]).with_constant(&[3], mask(3, 3));
        let mut cases: Vec<Case> = CONVOLUTIONS.map(convolution).into_iter().chain([live]).collect();
        let inputs = cases.iter_mut().flat_map(|case| &mut case.inputs);
        for (_, values) in inputs {
            let exact = values.clone();
            *values = Rc::new(move || exact().iter().map(|value| (value * 4.0).round() / 4.0).collect());
        }
        cases.push(convolution([2, 5, 7, 3, 5]));
        cases.into_iter().map(move |case| case.with_math(math, allowed))
    };
    modes.into_iter().flat_map(of).collect()
}

/// Pixels whose first feature is so large that it is rounded to infinity where nothing is done about it, or all but. The first two
/// outputs are cut off there, so that the gradient of their weights would be 0·∞; the others are ordinary numbers, of weights that are
/// next to nothing. No sum lies near 0, so no ReLU falls on the other side.
fn largest_convolution() -> Case {
    const EXTREMES: [f64; 6] = [f32::MAX as f64, 3.402e38, 3.4015e38, 3.4e38, 3.3896e38, -(f32::MAX as f64)];
    let [n, side, c1, c2] = [6, 9, 3, 4];
    let quarters = |values: Vec<f64>| values.iter().map(|v| (v * 4.0).round() / 4.0).collect::<Vec<f64>>();
    let mut x = quarters(normal(20, &[n, side, side], 0.0, 0.5));
    EXTREMES.iter().enumerate().for_each(|(i, &extreme)| x[(i * side + 4) * side + 4] = extreme);
    let mut w1: Vec<f64> = quarters(normal(21, &[c1, 9], 0.0, 0.5)).iter().map(|w| w * 0.5f64.powi(100)).collect();
    w1[..9].fill(0.0);
    w1[4] = 1.0;
    let mut w2 = quarters(normal(22, &[c2, c1, 9], 0.0, 0.5));
    for (i, w) in w2.iter_mut().enumerate().filter(|(i, _)| i / 9 % c1 == 0) {
        *w = if i < 2 * c1 * 9 { -0.25 } else { 1e-30 * if i % 2 == 0 { 1.0 } else { -0.5 } };
    }
    let shapes: [&[usize]; 5] = [&[n, side, side], &[c1, 1, 3, 3], &[c1], &[c2, c1, 3, 3], &[c2]];
    Case::new("conv_pair of the largest numbers", &shapes, |_, x, _| {
        x[0].conv_pair(x[1], x[2], x[3], x[4], None) * 0.01
    })
    .with_input(0, x)
    .with_input(1, w1)
    .with_input(2, vec![0.0, 1.0 / 32.0, 3.0 / 32.0])
    .with_input(3, w2)
    .with_input(4, vec![1.0 / 256.0; c2])
}

/// Maps that look closer, some turned, one upside down, one far beyond the image, one of almost no size, one of a line.
const MAPS: [[f64; 6]; 8] = [
    [0.6118734, -0.2339127, 0.1071931, 0.1714823, 0.5719237, -0.2133719],
    [1.7319371, 0.3139271, -0.4071923, -0.5193717, 2.1171939, 0.3071931],
    [-0.4301937, 0.1207193, 0.2203719, -0.1339173, -0.3917391, 0.1101937],
    [0.1519373, 0.0, 0.2719317, 0.0, 0.1391737, -0.3317193],
    [0.5, 0.0, 7.1, 0.0, 0.5, 0.0],
    [0.0117193, 0.0031937, 0.1172319, -0.0027319, 0.0131937, -0.0971937],
    [0.4017193, 0.4017193, 0.0131719, 0.3017391, 0.3017391, 0.0239173],
    [0.0719317, -0.6193713, 0.0, 0.5917391, 0.0819373, 0.1193717],
];

fn sampling(h: usize, w: usize, live: bool) -> Case {
    let n = MAPS.len();
    let case =
        Case::new(format!("stn {h}x{w}{}", if live { ", some not live" } else { "" }), &[&[n, h, w], &[n, 6]], {
            |_, x, constants| x[0].stn(x[1], constants.first())
        })
        .with_input(1, MAPS.concat());
    if live { case.with_constant(&[n, 1], mask(n, 3)) } else { case }
}

fn of_images_without_gradient() -> [Case; 2] {
    let shapes: [&[usize]; 4] = [&[4, 1, 3, 3], &[4], &[6, 4, 3, 3], &[6]];
    let convolution = Case::new("conv_pair of given images", &shapes, |tape, x, constants| {
        tape.constant(constants[0].clone()).conv_pair(x[0], x[1], x[2], x[3], None)
    });
    let sampling = Case::new("stn of given images", &[&[8, 6]], |tape, x, constants| {
        tape.constant(constants[0].clone()).stn(x[0], None)
    })
    .with_input(0, MAPS.concat());
    [convolution, sampling].map(|case| case.with_constant(&[8, 7, 8], normal(4, &[8, 7, 8], 0.0, 1.0)))
}

fn pooling(shape: [usize; 3], side: usize) -> Case {
    Case::new(format!("average_pool {shape:?} by {side}"), &[&shape], move |_, x, _| x[0].average_pool(side))
}

fn thickening(update: u64) -> Case {
    let (shape, thicker) = ([3, 9, 14], Thicker { radius: 2.0, updates: 8 });
    Case::new(format!("thicken after {update} of 8 updates"), &[], move |tape, _, c| {
        tape.constant(thicken(&c[0], thicker, update))
    })
    .with_constant(&shape, uniform(1, &shape, 0.0, 1.0))
}

fn affines() -> Vec<Case> {
    let near_one = |shape: &[usize]| normal(3, shape, 0.8, 0.2);
    vec![
        Case::new("affine", &[&[5, 4]], |_, x, _| x[0].affine()),
        Case::new("inverse_affine", &[&[5, 4]], |_, x, _| x[0].inverse_affine()).with_input(0, near_one(&[5, 4])),
        Case::new("affine7, degrees", &[&[300, 7]], |_, x, _| x[0].affine7(Angle::Degrees)),
        Case::new("affine7, radians", &[&[5, 7]], |_, x, _| x[0].affine7(Angle::Radians)),
    ]
}

fn likelihoods() -> Vec<Case> {
    let shape = [5, 7, 9];
    let of = |likelihood: Likelihood, b: usize| {
        let shape = [b, 7, 9];
        Case::new(format!("image_logpdf {likelihood:?} of {b}"), &[&shape, &[7, 9]], move |_, x, constants| {
            x[0].image_logpdf(&constants[0], x[1], likelihood)
        })
        .with_constant(&shape, uniform(5, &shape, 0.0, 1.0))
    };
    let ratio = |name: &str, residual: Vec<f64>, image: Vec<f64>| {
        Case::new(name, &[&[1]], |tape, _, constants| tape.constant(residual_ratio(&constants[0], &constants[1])))
            .with_constant(&shape, residual)
            .with_constant(&shape, image)
    };
    let (image, residual) = (uniform(6, &shape, 0.0, 1.0), uniform(7, &shape, -0.3, 1.0));
    // Two empty images, one of which has nothing left to draw.
    let (mut some_empty, mut some_drawn) = (image.clone(), residual.clone());
    some_empty[63..3 * 63].fill(0.0);
    some_drawn[2 * 63..3 * 63].fill(0.0);
    vec![
        of(Likelihood::Laplace, 5),
        of(Likelihood::Normal, 20),
        ratio("residual_ratio", residual, image),
        ratio("residual_ratio, empty images", some_drawn, some_empty),
    ]
}

pub fn small() -> Vec<Case> {
    let mut cases: Vec<Case> = CONVOLUTIONS.map(convolution).into();
    cases.push(convolution([3, 8, 8, 3, 4]).with_constant(&[3], mask(3, 3)));
    cases.extend(rounded_convolutions());
    for (math, allowed) in [(MathMode::F32, 1e-6), (MathMode::Tf32, 5e-3), (MathMode::Bf16, 3e-2)] {
        cases.push(largest_convolution().with_math(math, allowed));
    }
    cases.extend([sampling(9, 9, false), sampling(5, 23, true), sampling(18, 1, false)]);
    cases.extend(of_images_without_gradient());
    cases.extend([pooling([3, 10, 6], 2), pooling([2, 9, 3], 3), pooling([1, 5, 7], 1)]);
    cases.extend([thickening(0), thickening(3), thickening(9)]);
    cases.extend(affines());
    cases.extend(likelihoods());
    cases
}

pub fn sized(n: usize) -> Vec<Case> {
    let image = [n, SIDE, SIDE];
    let weights: [&[usize]; 4] = [&[8, 1, 3, 3], &[8], &[16, 8, 3, 3], &[16]];
    vec![
        Case::new("affine + stn", &[&image, &[n, 4]], |_, x, _| x[0].stn(x[1].affine(), None))
            .with_input(0, ink(0, n))
            .with_input(1, layouts(n))
            .against(4.405),
        Case::new("affine + stn of a constant", &[&[n, 4]], |tape, x, c| {
            tape.constant(c[0].clone()).stn(x[0].affine(), None)
        })
        .with_input(0, layouts(n))
        .with_constant(&image, ink(0, n))
        .against(4.314),
        Case::new("inverse_affine + stn", &[&image, &[n, 4]], |_, x, _| x[0].stn(x[1].inverse_affine(), None))
            .with_input(0, ink(0, n))
            .with_input(1, layouts(n))
            .against(6.183),
        pooling(image, 2).with_input(0, ink(0, n)),
        Case::new("conv_pair", &[&[&image[..]], &weights[..]].concat(), |_, x, _| {
            x[0].conv_pair(x[1], x[2], x[3], x[4], None)
        })
        .with_input(0, ink(0, n))
        .against(41.712),
        Case::new(
            "conv_pair at half the resolution",
            &[&[&[n, SIDE / 2, SIDE / 2][..]], &weights[..]].concat(),
            |_, x, _| x[0].conv_pair(x[1], x[2], x[3], x[4], None),
        ),
        Case::new("conv_pair, weights only", &weights, |tape, x, c| {
            tape.constant(c[0].clone()).conv_pair(x[0], x[1], x[2], x[3], None)
        })
        .with_constant(&image, ink(0, n))
        .against(28.113),
    ]
}
