//! Reconstructions: the strokes that a model infers from images, as numbers and as pictures (section 11b of the model).

use crate::{
    Params, Result, Tape, Tensor,
    figures::{Drawing, Grid, Kind, Stroke, Tile, Window, strokes_svg},
    model::{Dropout, Model, Noise, Pass, Step},
    ops::Placement,
    rng::Rng,
};
use std::path::Path;

/// An image as the model drew it.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// What it was to draw `[H, W]`, ink in [0, 1].
    pub target: Vec<f32>,
    /// What it drew `[H, W]`.
    pub canvas: Vec<f32>,
    /// Its strokes, in order; as many as the model chose to draw.
    pub strokes: Vec<InferredStroke>,
    /// log p(x | canvas) in nats.
    pub log_likelihood: f64,
    /// log p(x, z) − log q(z | x) in nats, z being these strokes.
    pub elbo: f64,
}

/// One stroke of a [`Reconstruction`].
#[derive(Clone, Debug)]
pub struct InferredStroke {
    /// Shift x, shift y, scale, rotation in radians.
    pub layout: [f32; 4],
    /// The curve and its pen in canvas coordinates.
    pub curve: Stroke,
    /// The canvas after it `[H, W]`.
    pub canvas: Vec<f32>,
}

/// Passes hold at most so many particles, to bound their memory.
const AT_ONCE: usize = 64;

/// Draws every image of x `[B, H, W]` `particles` times, dropout off, and keeps the drawing with the highest likelihood.
pub fn reconstruct(model: &Model, params: &Params, x: &Tensor, particles: usize, rng: Rng) -> Vec<Reconstruction> {
    let count = x.shape()[0];
    let together = (AT_ONCE / particles.max(1)).max(1);
    let mut best = Vec::with_capacity(count);
    let mut pass = 0;
    for first in (0..count).step_by(together) {
        let images = x.rows(first, together.min(count - first));
        let mut chosen: Vec<Option<Reconstruction>> = vec![None; images.shape()[0]];
        for done in (0..particles.max(1)).step_by(AT_ONCE) {
            let round = AT_ONCE.min(particles.max(1) - done);
            draw(model, params, &images, round, Rng::new(rng.seed, rng.step + pass), &mut chosen);
            pass += 1;
        }
        best.extend(chosen.into_iter().map(|one| one.expect("every image is drawn at least once")));
    }
    best
}

/// Draws every image `particles` times and puts what is better than `best` there.
fn draw(
    model: &Model,
    params: &Params,
    images: &Tensor,
    particles: usize,
    rng: Rng,
    best: &mut [Option<Reconstruction>],
) {
    let count = images.shape()[0];
    let x = Tensor::stack(&vec![images.clone(); particles]);
    let x = x.reshape(&[&[particles * count], &images.shape()[1..]].concat());
    let noise = Noise::draw(model, params.device(), particles * count, rng);
    let pass = Pass { noise, dropout: Dropout::Off, skip_stopped: true, baseline: false, watch: false };
    let tape = Tape::eval(params);
    let steps = model.recognise(&tape, &x, &pass);
    let log_likelihood = model.log_likelihood(&x, &steps).value().to_f64();
    for (i, best) in best.iter_mut().enumerate() {
        let rows = (0..particles).map(|p| p * count + i);
        let row = rows.max_by(|&a, &b| log_likelihood[a].total_cmp(&log_likelihood[b])).expect("at least one particle");
        if best.as_ref().is_none_or(|best| best.log_likelihood < log_likelihood[row]) {
            *best = Some(extract(model, images, i, &steps, row, log_likelihood[row]));
        }
    }
}

/// Row `row` of a pass as the reconstruction of image `i`.
fn extract(
    model: &Model,
    images: &Tensor,
    i: usize,
    steps: &[Step],
    row: usize,
    log_likelihood: f64,
) -> Reconstruction {
    let of = |value: Tensor| value.rows(row, 1).to_f32();
    let drawn = steps.iter().filter(|step| of(step.after.z.onoff.value()) == [1.0]);
    let strokes = drawn.map(|step| {
        let layout: [f32; 4] = of(step.after.z.layout.value()).try_into().expect("a layout has four numbers");
        // What a network decodes is no curve.
        let (points, sigma) = match step.pen {
            Some(pen) if model.draws_curves() => (of(step.after.z.stroke.value()), of(pen.value())[0]),
            _ => (vec![], 0.0),
        };
        let curve = on_canvas(model, layout, points.as_chunks().0, sigma);
        InferredStroke { layout, curve, canvas: of(step.after.shown.value()) }
    });
    let kl: f64 = steps.iter().map(|step| step.kl().value().rows(row, 1).item()).sum();
    Reconstruction {
        target: images.rows(i, 1).to_f32(),
        canvas: of(steps.last().expect("at least one stroke").after.shown.value()),
        strokes: strokes.collect(),
        log_likelihood,
        elbo: log_likelihood - kl,
    }
}

/// The matrix of a layout, from glimpse to canvas (section 5).
fn affine([a, b, scale, angle]: [f32; 4]) -> [f32; 6] {
    let (c, s) = (scale * angle.cos(), scale * angle.sin());
    [c, -s, a, s, c, b]
}

/// A stroke of the glimpse frame in canvas coordinates, as the renderer places it (sections 5 and 6).
///
/// The rasteriser has column j of W at j/W, the warp at −1 + 2j/(W−1). With point placement only the first matters; a warped
/// stroke goes from the one to the other and back.
fn on_canvas(model: &Model, layout: [f32; 4], points: &[[f32; 2]], sigma: f32) -> Stroke {
    let [m0, m1, m2, m3, m4, m5] = affine(layout);
    let side = model.config.image as f32;
    let (grid, sigma) = match model.config.placement {
        Placement::Points => (1.0, sigma),
        Placement::Warp => (side / (side - 1.0), sigma * layout[2].abs()),
    };
    let place = |[x, y]: [f32; 2]| {
        let (x, y) = (2.0 * grid * x - 1.0, 2.0 * grid * y - 1.0);
        [(m0 * x + m1 * y + m2 + 1.0) / (2.0 * grid), (m3 * x + m4 * y + m5 + 1.0) / (2.0 * grid)]
    };
    Stroke { points: points.iter().map(|&p| place(p)).collect(), sigma }
}

/// Means over reconstructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// log p(x | canvas) in nats.
    pub log_likelihood: f64,
    /// log p(x, z) − log q(z | x) in nats.
    pub elbo: f64,
    /// Strokes per image.
    pub strokes: f64,
}

impl Summary {
    /// The means of at least one reconstruction.
    pub fn of(reconstructions: &[Reconstruction]) -> Self {
        let mean = |value: &dyn Fn(&Reconstruction) -> f64| {
            reconstructions.iter().map(value).sum::<f64>() / reconstructions.len() as f64
        };
        Summary {
            log_likelihood: mean(&|r| r.log_likelihood),
            elbo: mean(&|r| r.elbo),
            strokes: mean(&|r| r.strokes.len() as f64),
        }
    }
}

/// Writes a row per image: target, canvas after each stroke with the window of that stroke, drawing, residual.
pub fn write_png(path: &Path, reconstructions: &[Reconstruction]) -> Result<()> {
    let side = reconstructions.first().map_or(1, |r| r.target.len().isqrt());
    let most = reconstructions.iter().map(|r| r.strokes.len()).max().unwrap_or(0);
    let residual = |r: &Reconstruction| r.target.iter().zip(&r.canvas).map(|(x, c)| x - c).collect();
    let residuals: Vec<Vec<f32>> = reconstructions.iter().map(residual).collect();
    let row = |i: usize| {
        let (r, residual) = (&reconstructions[i], &residuals[i]);
        let mut tiles = vec![Tile { pixels: &r.target, ..Tile::default() }];
        for (stroke, s) in r.strokes.iter().enumerate() {
            let window = Some(Window { affine: affine(s.layout), stroke });
            tiles.push(Tile { pixels: &s.canvas, window, ..Tile::default() });
        }
        tiles.resize(1 + most, Tile::default());
        tiles.push(Tile { pixels: &r.canvas, ..Tile::default() });
        tiles.push(Tile { pixels: residual, kind: Kind::Signed, window: None });
        tiles
    };
    let rows: Vec<Vec<Tile>> = (0..reconstructions.len()).map(row).collect();
    let numbers: Vec<String> = (1..=most).map(|i| format!("stroke {i}")).collect();
    let mut captions = vec!["target"];
    captions.extend(numbers.iter().map(String::as_str));
    captions.extend(["drawing", "residual"]);
    Grid { side, scale: (110 / side).max(1), captions: &captions, labels: &[], rows: &rows }.write(path)
}

/// Writes the strokes of every image as Bézier curves over the faint target.
pub fn write_svg(path: &Path, reconstructions: &[Reconstruction]) -> Result<()> {
    fn drawing(r: &Reconstruction) -> Drawing<'_> {
        Drawing { strokes: r.strokes.iter().map(|s| s.curve.clone()).collect(), background: Some(&r.target) }
    }
    let drawings: Vec<Drawing> = reconstructions.iter().map(drawing).collect();
    strokes_svg(path, &drawings, (drawings.len() as f64).sqrt().ceil() as usize)
}
