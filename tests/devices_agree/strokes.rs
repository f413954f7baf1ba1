//! From control points to strokes on a canvas.

use super::{Case, mask, normal, uniform};
use dood::ops::{Placement, RenderSettings, render_stroke};

pub fn cases() -> Vec<Case> {
    [curves(), rasters(), images(), strokes(), odd_strokes()].into_iter().flatten().collect()
}

fn curves() -> Vec<Case> {
    let mut all = vec![];
    for (n, points, samples) in [(3, 5, 100), (1, 2, 2), (2, 3, 7), (2, 12, 300)] {
        all.push(Case::new(format!("bezier {n}x{points}, {samples} samples"), &[&[n, 2 * points]], move |_, x, _| {
            x[0].bezier(samples)
        }));
    }
    for shape in [&[3, 5, 2][..], &[70, 8], &[2, 40, 2]] {
        all.push(Case::new(format!("place_points {shape:?}"), &[shape, &[shape[0], 6]], |_, x, _| {
            x[0].place_points(x[1])
        }));
    }
    all
}

fn rasters() -> Vec<Case> {
    let mut all = vec![];
    for (n, samples, side) in [(2, 100, 50), (3, 6, 7), (1, 17, 64), (2, 3, 1), (1, 20, 70), (1, 33, 130)] {
        let name = format!("raster {n}x{samples}, side {side}");
        let case = Case::new(name, &[&[n, samples, 2], &[n, 1]], move |_, x, _| x[0].raster(x[1], side));
        let curve = uniform(0, &[n, samples, 2], -0.1, 1.1);
        all.push(case.with_input(0, curve).with_input(1, uniform(1, &[n], 0.02, 0.1)));
    }
    all
}

fn images() -> Vec<Case> {
    let mut all = vec![];
    for shape in [&[3, 4, 5][..], &[2, 50, 50], &[1, 1], &[40, 33]] {
        let (n, count) = (shape[0], shape.iter().product::<usize>());
        let max_norm = || Case::new(format!("max_norm {shape:?}"), &[shape], |_, x, _| x[0].max_norm(1e-4));
        all.push(max_norm().with_input(0, uniform(0, shape, 0.0, 7.0)));
        // The first image is faint, the others have negative pixels, which count as nothing.
        let faint = (0..count).map(|i| if i < count / n { 1e-6 * i as f64 } else { (i % 7) as f64 - 3.0 });
        all.push(max_norm().with_input(0, faint.collect()));
        let ratio = Case::new(format!("tanh_ratio {shape:?}"), &[shape, &[n]], |_, x, _| x[0].tanh_ratio(x[1]));
        all.push(ratio.with_input(1, uniform(1, &[n], 0.1, 1.5)));
    }
    all
}

fn render(
    what: &str,
    placement: Placement,
    [n, points, samples, side]: [usize; 4],
    matrix: Vec<f64>,
    control: Vec<f64>,
) -> Case {
    let set = RenderSettings { placement, side, samples, norm_floor: 1e-4 };
    let name = format!("render_stroke {placement:?}, {what}, {n}x{points}, {samples} samples, side {side}");
    let case = Case::new(name, &[&[n, 2 * points], &[n, 6], &[n, 2]], move |_, x, constants| {
        render_stroke(x[0], x[1], x[2], &constants[0], set)
    });
    let pen = (0..2 * n)
        .map(|i| if i % 2 == 0 { 0.03 + 0.01 * i as f64 / n as f64 } else { 0.9 - 0.1 * i as f64 / n as f64 });
    case.with_input(0, control).with_input(1, matrix).with_input(2, pen.collect()).with_constant(&[n], mask(n, 3))
}

/// The maps of random layouts, or their inverses.
fn layouts(n: usize, placement: Placement) -> Vec<f64> {
    let (shift, scale) = (uniform(5, &[n, 2], -0.5, 0.5), uniform(6, &[n], 0.35, 1.0));
    let turn = uniform(7, &[n], -0.7, 0.7);
    (0..n)
        .flat_map(|i| {
            let (s, (sin, cos), [x, y]) = (scale[i], turn[i].sin_cos(), [shift[2 * i], shift[2 * i + 1]]);
            match placement {
                Placement::Points => [s * cos, -s * sin, x, s * sin, s * cos, y],
                Placement::Warp => {
                    let (c, d) = (cos / s, sin / s);
                    [c, d, -(c * x + d * y), -d, c, d * x - c * y]
                }
            }
        })
        .collect()
}

/// Sizes for the kernels that keep a stroke in shared memory, and sizes that are too large for them: pixels, samples, points.
fn strokes() -> Vec<Case> {
    let fast = [[4, 5, 100, 50], [3, 5, 128, 64], [2, 32, 30, 17], [5, 3, 9, 8], [2, 2, 2, 1], [2, 4, 128, 5]];
    let large = [[2, 5, 20, 66], [2, 5, 130, 20], [2, 33, 40, 12]];
    let mut all = vec![];
    for (what, sizes) in [("fast", &fast[..]), ("by parts", &large)] {
        for &[n, points, samples, side] in sizes {
            for placement in [Placement::Warp, Placement::Points] {
                let control = uniform(4, &[n, 2 * points], -0.1, 1.1);
                all.push(render(what, placement, [n, points, samples, side], layouts(n, placement), control));
            }
        }
    }
    all
}

/// Maps far from those of a layout, strokes far from the image.
fn odd_strokes() -> Vec<Case> {
    const MAPS: [[f64; 6]; 6] = [
        [0.131, -0.083, 0.107, 0.061, 0.152, -0.213],  // many samples per pixel
        [0.511, 0.507, 0.101, 0.513, 0.509, -0.207],   // all samples on one line
        [0.0, 0.0, 0.113, 0.0, 0.0, -0.271],           // all samples in one place
        [-1.013, 0.031, 0.117, -0.027, -0.983, 0.131], // upside down
        [0.013, 1.107, 0.071, -0.921, 0.0, 0.013],     // a quarter turn
        [9.173, 3.171, 0.513, -7.131, 5.317, -0.317],  // few samples see the image
    ];
    let mut all = vec![];
    for (side, what) in [(23, "odd maps"), (66, "odd maps by parts")] {
        let (sizes, matrix) = ([12, 5, 20, side], MAPS.into_iter().flat_map(|m| [m, m]).flatten().collect());
        all.push(render(what, Placement::Warp, sizes, matrix, uniform(4, &[12, 10], 0.1, 0.9)));
    }
    for placement in [Placement::Warp, Placement::Points] {
        let faint = normal(4, &[3, 10], 1.13, 0.005);
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0].repeat(3);
        all.push(render("too faint to be normalised", placement, [3, 5, 16, 19], identity, faint));
    }
    all
}
