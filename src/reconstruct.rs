//! Reconstructions: the strokes that a model infers from images, as numbers and as pictures (section 11b of the model).

use crate::{
    Observer, Params, Result, Tensor,
    figures::{Drawing, Grid, Kind, Stroke, Tile, Window, strokes_svg},
    measure::{self, Drawn, Score, Tally},
    model::{Model, Step},
    ops::Placement,
    rng::Rng,
};
use std::path::{Path, PathBuf};

/// An image as the model drew it.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// What it was to draw `[H, W]`, ink in [0, 1].
    pub target: Vec<f32>,
    /// What it drew `[H, W]`.
    pub canvas: Vec<f32>,
    /// Its strokes, in order; as many as the model chose to draw.
    pub strokes: Vec<InferredStroke>,
    /// log p(x | canvas) of this drawing, in nats.
    pub log_likelihood: f64,
    /// What all drawings of the image say, of which this is the one with the highest likelihood.
    pub score: Score,
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

/// Draws every image of x `[B, H, W]` `particles` times, dropout off, and keeps the drawing with the highest likelihood.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn reconstruct(
    model: &Model,
    params: &Params,
    x: &Tensor,
    particles: usize,
    rng: Rng,
    observer: &dyn Observer,
) -> Result<Vec<Reconstruction>> {
    let count = x.shape()[0];
    let mut best: Vec<(Tally, Option<Reconstruction>)> = vec![(Tally::new(), None); count];
    let images = |range: std::ops::Range<usize>| x.rows(range.start, range.len());
    measure::draw((model, params), (count, &images), particles, rng, observer, &mut |drawn| {
        for (i, (tally, best)) in best[drawn.first..].iter_mut().take(drawn.count()).enumerate() {
            drawn.tally(i, tally);
            keep_better(model, drawn, i, best);
        }
    })?;
    let finished = |(tally, best): (Tally, Option<Reconstruction>)| Reconstruction {
        score: tally.score(),
        ..best.expect("every image is drawn at least once")
    };
    Ok(best.into_iter().map(finished).collect())
}

/// Puts the best drawing of image `i` there if it is better than what is there.
fn keep_better(model: &Model, drawn: &Drawn, i: usize, best: &mut Option<Reconstruction>) {
    let likelihood = |row: usize| drawn.log_likelihood[row];
    let row = drawn.rows(i).max_by(|&a, &b| likelihood(a).total_cmp(&likelihood(b))).expect("at least one drawing");
    if best.as_ref().is_none_or(|best| best.log_likelihood < likelihood(row)) {
        *best = Some(extract(model, &drawn.images, i, &drawn.steps, row, likelihood(row)));
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
    Reconstruction {
        target: images.rows(i, 1).to_f32(),
        canvas: of(steps.last().expect("at least one stroke").after.shown.value()),
        strokes: strokes.collect(),
        log_likelihood,
        score: Tally::new().score(),
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

/// Rows of a picture of drawings, and drawings of a picture of curves, that can still be looked at.
const ROWS: usize = 20;
const CURVES: usize = 100;

/// Reconstructions as pictures of a size that can be looked at: those that [`write_png`] or [`write_svg`] shall write, and where.
///
/// One page gets `path` itself, several get numbers: `drawn-01.png`, `drawn-02.png`, …
pub fn pages<'a>(path: &Path, reconstructions: &'a [Reconstruction]) -> Vec<(PathBuf, &'a [Reconstruction])> {
    let png = path.extension().is_some_and(|kind| kind == "png");
    let pages: Vec<_> = reconstructions.chunks(if png { ROWS } else { CURVES }).collect();
    if pages.len() < 2 {
        return vec![(path.into(), reconstructions)];
    }
    let digits = pages.len().to_string().len().max(2);
    let name = |number: usize| {
        let mut name = path.file_stem().unwrap_or_default().to_owned();
        name.push(format!("-{number:0digits$}."));
        name.push(path.extension().unwrap_or_default());
        path.with_file_name(name)
    };
    pages.into_iter().enumerate().map(|(i, page)| (name(i + 1), page)).collect()
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

/// Writes the strokes of every image as Bézier curves over the faint target; models that draw without curves leave it alone there.
pub fn write_svg(path: &Path, reconstructions: &[Reconstruction]) -> Result<()> {
    fn drawing(r: &Reconstruction) -> Drawing<'_> {
        let curves = r.strokes.iter().map(|s| &s.curve).filter(|curve| !curve.points.is_empty());
        Drawing { strokes: curves.cloned().collect(), background: Some(&r.target) }
    }
    let drawings: Vec<Drawing> = reconstructions.iter().map(drawing).collect();
    strokes_svg(path, &drawings, (drawings.len() as f64).sqrt().ceil() as usize)
}
