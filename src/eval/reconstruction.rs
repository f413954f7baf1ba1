//! Reconstructions: the strokes that a model infers from images, as numbers and as pictures (section 11b of the model).

use super::{drawing::affine, drawn::Drawn, gallery::curves};
use crate::{
    Observer, Params, Result, Tensor,
    figures::{Drawing, Grid, Kind, Tile, Window, strokes_svg},
    measure::{self, Draw, Ends, Protocol, Score, Tally},
    model::{Drawings, Model},
    rng::Rng,
};
use std::path::{Path, PathBuf};

/// An image as the model drew it.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// What it was to draw `[H, W]`, ink in [0, 1].
    pub target: Vec<f32>,
    /// The drawing that was kept.
    pub drawn: Drawn,
    /// What all drawings of the image say.
    pub score: Score,
}

/// Of several drawings of one image, which is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best {
    /// That with the highest log p(x | canvas) (section 11b).
    Likelihood,
    /// That with the highest log p(x, z) (section 11f).
    Joint,
}

impl Best {
    /// What is to be as high as possible.
    fn value(self, drawn: &Drawn) -> f64 {
        let likelihood = drawn.drawing.log_likelihood.expect("there are images");
        match self {
            Best::Likelihood => likelihood,
            Best::Joint => likelihood + drawn.drawing.log_prior.expect("p scores"),
        }
    }
}

/// Draws every image of x `[B, H, W]` as `protocol` has it, with ends that are sampled, in at most `strokes` strokes, and keeps the best
/// drawing.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn reconstruct(
    (model, params): (&Model, &Params),
    x: &Tensor,
    (protocol, keep): (Protocol, Best),
    strokes: usize,
    rng: Rng,
    observer: &dyn Observer,
) -> Result<Vec<Reconstruction>> {
    let count = x.shape()[0];
    let mut best: Vec<(Tally, Option<Drawn>)> = vec![(Tally::new(), None); count];
    let images = |range: std::ops::Range<usize>| x.rows(range.start, range.len());
    let protocol = Protocol { ends: Ends::Sampled, ..protocol };
    let at_once = measure::at_once(params.device());
    let draw = Draw { artist: (model, params), images: (count, &images), protocol, strokes, rng, at_once };
    draw.look(observer, &mut |round, steps, log_likelihood| {
        let start = model.blank(params.device(), log_likelihood.len());
        let drawings = Drawings::of(model, steps, None, &start);
        let drawn = Drawn::all(model, &Drawings { log_likelihood: Some(log_likelihood.clone()), ..drawings });
        for (i, (tally, best)) in best[round.first..].iter_mut().take(round.count).enumerate() {
            round.tally(i, tally);
            for row in round.rows(i) {
                if best.as_ref().is_none_or(|best| keep.value(best) < keep.value(&drawn[row])) {
                    *best = Some(drawn[row].clone());
                }
            }
        }
    })?;
    let finished = |(i, (tally, best)): (usize, (Tally, Option<Drawn>))| Reconstruction {
        target: x.rows(i, 1).to_f32(),
        drawn: best.expect("every image is drawn at least once"),
        score: tally.score(),
    };
    Ok(best.into_iter().enumerate().map(finished).collect())
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
    let most = reconstructions.iter().map(|r| r.drawn.drawing.strokes.len()).max().unwrap_or(0);
    let residual = |r: &Reconstruction| r.target.iter().zip(r.drawn.canvas()).map(|(x, c)| x - c).collect();
    let residuals: Vec<Vec<f32>> = reconstructions.iter().map(residual).collect();
    let row = |i: usize| {
        let (r, residual) = (&reconstructions[i], &residuals[i]);
        let mut tiles = vec![Tile { pixels: &r.target, ..Tile::default() }];
        for (stroke, (s, canvas)) in r.drawn.drawing.strokes.iter().zip(&r.drawn.canvases).enumerate() {
            let affine = affine(s.layout.expect("the model chose one")).map(|v| v as f32);
            tiles.push(Tile { pixels: canvas, window: Some(Window { affine, stroke }), ..Tile::default() });
        }
        tiles.resize(1 + most, Tile::default());
        tiles.push(Tile { pixels: r.drawn.canvas(), ..Tile::default() });
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
        Drawing { strokes: curves(&r.drawn.drawing), background: Some(&r.target) }
    }
    let drawings: Vec<Drawing> = reconstructions.iter().map(drawing).collect();
    strokes_svg(path, &drawings, (drawings.len() as f64).sqrt().ceil() as usize)
}
