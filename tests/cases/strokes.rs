//! From control points to strokes on a canvas.

use super::{Case, J, SIDE, columns, ink, mask, normal, uniform};
use dood::ops::{Placement, RenderSettings, render_stroke};

pub fn small() -> Vec<Case> {
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
        .map(|i| if i % 2 == 0 { 0.01 + 0.02 * i as f64 / n as f64 } else { 0.9 - 0.1 * i as f64 / n as f64 });
    // Ink 3 pen widths away changes by 3/σ times the rounding of a position, 300·6e-8 for the thinnest.
    let case = Case { allowed: 1e-5, ..case };
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
    let fast = [[4, 5, 100, 50], [2, 32, 128, 64], [2, 32, 30, 17], [5, 3, 9, 8], [2, 2, 2, 1], [2, 4, 128, 5]];
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
    // Digits enough that no sample falls on a pixel, where there is no derivative.
    const MAPS: [(&str, [f64; 6]); 6] = [
        ("many samples per pixel", [0.1311937, -0.0831713, 0.1071931, 0.0613719, 0.1523717, -0.2131939]),
        ("all samples on one line", [0.5113719, 0.5071313, 0.1011937, 0.5131793, 0.5091913, -0.2071731]),
        ("all samples in one place", [0.0, 0.0, 0.1131937, 0.0, 0.0, -0.2711719]),
        ("upside down", [-1.0131379, 0.0311193, 0.1171371, -0.0271719, -0.9831917, 0.1311733]),
        ("a quarter turn", [0.0131719, 1.1071937, 0.0711739, -0.9211933, 0.0, 0.0131371]),
        ("few samples see the image", [9.1731937, 3.1711739, 0.5131371, -7.1311719, 5.3171933, -0.3171379]),
    ];
    let mut all = vec![];
    for samples in [20, 130] {
        for (what, map) in MAPS {
            let points = uniform(4, &[3, 10], 0.1, 0.9);
            all.push(render(what, Placement::Warp, [3, 5, samples, 23], map.repeat(3), points));
        }
    }
    for placement in [Placement::Warp, Placement::Points] {
        let faint = normal(4, &[3, 10], 1.13, 0.005);
        let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0].repeat(3);
        all.push(render("too faint to be normalised", placement, [3, 5, 16, 19], identity, faint));
    }
    all
}

pub fn sized(n: usize) -> Vec<Case> {
    let settings = |placement| RenderSettings { placement, side: SIDE, samples: 100, norm_floor: 1e-4 };
    let (warp, points) = (settings(Placement::Warp), settings(Placement::Points));
    let stroke: [&[usize]; 3] = [&[n, 2 * J], &[n, 4], &[n, 2]];
    let drawn = |case: Case| {
        case.with_input(0, uniform(0, &[n, 2 * J], 0.0, 1.0))
            .with_input(1, super::layouts(n))
            .with_input(2, columns(4, n, &[(0.015, 0.04), (0.2, 0.8)]))
            .with_constant(&[n], vec![1.0; n])
    };
    let by_points = |name| {
        drawn(Case::new(name, &stroke, move |_, x, on| render_stroke(x[0], x[1].affine(), x[2], &on[0], points)))
    };
    let image = [n, SIDE, SIDE];
    vec![
        by_points("render_stroke points").against(1004.571),
        by_points("render_stroke points *").against(13.367),
        drawn(Case::new("render_stroke warp", &stroke, move |_, x, on| {
            render_stroke(x[0], x[1].inverse_affine(), x[2], &on[0], warp)
        })),
        Case::new("bezier", &[&[n, 2 * J]], |_, x, _| x[0].bezier(100)).against(0.676),
        Case::new("bezier + raster", &[&[n, 2 * J], &[n, 1]], |_, x, _| x[0].bezier(100).raster(x[1], SIDE))
            .with_input(0, uniform(0, &[n, 2 * J], 0.0, 1.0))
            .with_input(1, columns(4, n, &[(0.015, 0.04)]))
            .against(931.109),
        Case::new("max_norm + tanh_ratio", &[&image, &[n, 1]], |_, x, _| x[0].max_norm(1e-4).tanh_ratio(x[1]))
            .with_input(0, ink(0, n))
            .with_input(1, columns(5, n, &[(0.2, 0.8)]))
            .against(4.046),
        Case::new("place_points", &[&[n, 2 * J], &[n, 4]], |_, x, _| x[0].place_points(x[1].affine()))
            .with_input(1, super::layouts(n)),
    ]
}
