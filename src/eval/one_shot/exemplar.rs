//! One-shot classification by drawing (section 11f of the model): a new drawing shows the character of which it is most likely another
//! exemplar.
//!
//! Every character is parsed several times. For every new drawing x, character and parse ψ, the control points z and an affine map A are
//! moved by Adam to where
//!
//! ```text
//! score = log p(z | ψ) + log p(x | render(A z))
//! ```
//!
//! is largest, and score(x, c) = log Σ_k π_k exp(score_k) over the parses, π_k ∝ p(x_c, ψ_k). The strokes' pens, and how many there are,
//! stay. All triples (x, c, ψ) are optimised together on a tape over the frozen model; each only moves itself, so how many are taken at
//! once changes nothing.
//!
//! Models without curves (AIR, Difference-AIR, δR) move the codes of their strokes instead, and the map moves the whole image, whose values
//! are cut to [0, 1]. The authors' program has a map there and does not use it; so does [`Preset::Reference`].

use super::classic::{Map, alignments};
use crate::{
    Observer, ParamsBuilder, Result, Tape, Tensor, Var,
    ascent::Ascent,
    data::{Images, Run},
    eval::{Artist, Best, Drawing, Stroke, reconstruct},
    measure::{self, pixels},
    model::Model,
    observer::task,
    ops::{Angle, Placement, Range, RenderSettings, Squash, combine, render_stroke},
    optim::Schedule,
    rng::Rng,
};
use serde::{Deserialize, Serialize};
use std::{
    f64::consts::{PI, TAU},
    iter::repeat_n,
};

/// How an exemplar may differ from a parse, and how the best one is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// As the authors' program has it: angles in radians are read as degrees, so there is next to no rotation; log p(z | ψ) is divided by
    /// the number of strokes, where there are any; warped strokes are drawn with the pens of their windows; Adam with a constant rate that is ten times the
    /// spread of a control point.
    Reference,
    /// With rotations; log p(z | ψ) relative to its peak, so that parses with many strokes are not preferred for that; pens as they are on
    /// the canvas; rates that fit the spread and fall. Curves begin where the character's ink lies best on that of the new drawing
    /// ([`Classic::Affine`](super::classic::Classic::Affine)): updates alone find a way across a few pixels only.
    Improved,
}

/// Standard deviation of a coordinate of a control point about the parse, on the canvas.
const MOTOR: f64 = 1e-3;

impl Preset {
    /// Ranges of shift x, shift y, scale x, scale y, angle, shear x, shear y; in the middle of all of them is the identity.
    fn ranges(self) -> Squash {
        let within = |count, low: f64, high: f64| (count, Range::Within(low, high));
        let turn = |count, part: f64| within(count, -part * PI, part * PI);
        Squash::new(&[within(2, -0.2, 0.2), within(2, 0.6, 1.4), turn(1, 0.25), turn(2, 0.3)])
    }

    fn angle(self) -> Angle {
        match self {
            Preset::Reference => Angle::Degrees,
            Preset::Improved => Angle::Radians,
        }
    }

    /// Learning rates of control points in units of [`MOTOR`], and of the raw numbers of the map.
    fn rates(self) -> [f64; 2] {
        match self {
            Preset::Reference => [1e-2 / MOTOR, 1e-2],
            Preset::Improved => [0.2, 0.05],
        }
    }

    fn schedule(self, updates: usize) -> Schedule {
        match self {
            Preset::Reference => Schedule::CONSTANT,
            Preset::Improved => Schedule { warmup: 0, updates: updates as u64, end: 0.05 },
        }
    }

    /// What is added to Σ log N(e; 0, 1) of a stroke's `d` numbers in units of [`MOTOR`].
    fn constant(self, d: usize) -> f64 {
        match self {
            Preset::Reference => -(d as f64) * MOTOR.ln(),
            Preset::Improved => 0.5 * d as f64 * TAU.ln(),
        }
    }

    /// What a stroke's log density is multiplied with in a drawing of `strokes`.
    fn weight(self, strokes: usize) -> f64 {
        match self {
            Preset::Reference => 1.0 / strokes.max(1) as f64,
            Preset::Improved => 1.0,
        }
    }
}

/// How scores are made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// What an exemplar is.
    pub preset: Preset,
    /// Parses of every character.
    pub parses: usize,
    /// Drawings per parse, of which that with the highest log p(x, z) is taken.
    pub particles: usize,
    /// Updates by which exemplars come closer.
    pub updates: usize,
    /// Whether the character is explained by the new drawing as well: plus log p(x_c | x) − log p(x_c).
    pub two_way: bool,
}

impl Protocol {
    /// The published one.
    pub const REFERENCE: Protocol =
        Protocol { preset: Preset::Reference, parses: 12, particles: 20, updates: 100, two_way: false };
    /// The published one of AIR: fewer parses, of one drawing each.
    pub const AIR: Protocol = Protocol { parses: 9, particles: 1, ..Self::REFERENCE };
    /// With its quirks mended, and both ways.
    pub const IMPROVED: Protocol = Protocol { preset: Preset::Improved, two_way: true, ..Self::REFERENCE };
}

/// An image as the model parses it.
struct Parsed {
    /// Parses and their log π.
    parses: Vec<(Drawing, f64)>,
    /// The importance-weighted bound on log p(x) of all their drawings.
    log_marginal: f64,
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    most + values.map(|v| (v - most).exp()).sum::<f64>().ln()
}

/// Scores `[queries · characters]` of a run, whose images have the size of the model's.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
pub fn scores(artist: &Artist, run: &Run, protocol: &Protocol, rng: Rng, observer: &dyn Observer) -> Result<Vec<f64>> {
    let [queries, supports] =
        [&run.query, &run.support].map(|images| pixels(images, 0..images.len(), artist.params.device()));
    let other = Rng::new(!rng.seed, rng.step);
    let aligned = |x: &Images, characters: &Images| match protocol.preset {
        Preset::Improved if artist.model.draws_curves() => alignments(x, characters, observer).map(Some),
        _ => Ok(None),
    };
    let parsed = parse(artist, &supports, protocol, rng, observer)?;
    let maps = aligned(&run.query, &run.support)?;
    let one_way = evidence(artist, &queries, (&parsed, maps), protocol, observer)?;
    if !protocol.two_way {
        return Ok(one_way);
    }
    let (q, c) = (run.query.len(), run.support.len());
    let parsed_queries = parse(artist, &queries, protocol, other, observer)?;
    let maps = aligned(&run.support, &run.query)?;
    let back = evidence(artist, &supports, (&parsed_queries, maps), protocol, observer)?;
    let both = |i: usize| one_way[i] + back[i % c * q + i / c] - parsed[i % c].log_marginal;
    Ok((0..q * c).map(both).collect())
}

/// Parses images x `[N, H, W]`.
fn parse(artist: &Artist, x: &Tensor, protocol: &Protocol, rng: Rng, observer: &dyn Observer) -> Result<Vec<Parsed>> {
    let (n, k) = (x.shape()[0], protocol.parses);
    let repeated = Tensor::stack(&vec![x.clone(); k]).reshape(&[&[k * n], &x.shape()[1..]].concat());
    let drawing = measure::Protocol::published(protocol.particles);
    let drawn = task(observer, "Parsing", drawing.drawings(k * n) as usize, || {
        let (model, strokes) = ((&artist.model, &artist.params), artist.model.config.strokes);
        reconstruct(model, &repeated, (drawing, Best::Joint), strokes, rng, observer)
    })?;
    let image = |i: usize| {
        let parses = (0..k).map(|parse| &drawn[parse * n + i]);
        let joint = |drawing: &Drawing| drawing.log_likelihood.zip(drawing.log_prior).map_or(0.0, |(l, p)| l + p);
        let all = log_sum_exp(parses.clone().map(|parse| joint(&parse.drawn.drawing)));
        let log_marginal = log_sum_exp(parses.clone().map(|parse| parse.score.bound)) - (k as f64).ln();
        let weigh = |drawing: &Drawing| (drawing.clone(), joint(drawing) - all);
        Parsed { parses: parses.map(|parse| weigh(&parse.drawn.drawing)).collect(), log_marginal }
    };
    Ok((0..n).map(image).collect())
}

/// log p(x | character) of every image of x `[N, H, W]` and character, `[N · characters]`, and from where each pair's exemplars begin.
fn evidence(
    artist: &Artist,
    x: &Tensor,
    (characters, maps): (&[Parsed], Option<Vec<Map>>),
    protocol: &Protocol,
    observer: &dyn Observer,
) -> Result<Vec<f64>> {
    let images = 0..x.shape()[0];
    let maps: Option<Vec<Map>> =
        maps.map(|maps| maps.into_iter().flat_map(|map| repeat_n(map, protocol.parses)).collect());
    let triples: Vec<Triple> = images
        .flat_map(|i| characters.iter().flat_map(move |c| c.parses.iter().map(move |(drawing, _)| (i, drawing))))
        .collect();
    let fitted = task(observer, "Fitting exemplars", triples.len() * (protocol.updates + 1), || {
        fit(artist, x, (&triples, maps.as_deref()), (protocol.preset, protocol.updates), observer)
    })?;
    let of_pairs = fitted.chunks(protocol.parses).zip(characters.iter().cycle());
    Ok(of_pairs
        .map(|(scores, c)| log_sum_exp(scores.iter().zip(&c.parses).map(|(score, (_, pi))| score + pi)))
        .collect())
}

/// Which image it is an exemplar for, and the parse that it is one of.
type Triple<'a> = (usize, &'a Drawing);

/// So many triples are moved at once, to bound memory: those of a round of the authors' program.
const AT_ONCE: usize = 1200;

/// The scores of triples of an image of x `[N, H, W]` and a parse, each beginning with an affine map of its own, after so many updates.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped); those of a GPU.
fn fit(
    artist: &Artist,
    x: &Tensor,
    (triples, maps): (&[Triple], Option<&[Map]>),
    (preset, updates): (Preset, usize),
    observer: &dyn Observer,
) -> Result<Vec<f64>> {
    let device = artist.params.device();
    let mut scores = Vec::with_capacity(triples.len());
    for (part, triples) in triples.chunks(AT_ONCE).enumerate() {
        let maps = maps.map(|maps| &maps[part * AT_ONCE..][..triples.len()]);
        let block = Block::of(artist, x, (triples, maps), preset);
        let mut builder = ParamsBuilder::new();
        let [steps, d] = [block.points.len(), artist.model.config.stroke_dim()];
        for t in 0..steps {
            builder.add(&format!("points.{t}"), &[triples.len(), d], |_| 0.0);
        }
        builder.group(1);
        builder.add("map", &[triples.len(), preset.ranges().columns()], |_| 0.0);
        let mut ascent = Ascent::new(builder.build(device), &preset.rates(), preset.schedule(updates));
        ascent.climb(&artist.params, updates, (observer, triples.len()), |_, tape, vars| {
            block.score(&artist.model, tape, vars, preset).sum()
        })?;
        let moves = ascent.finish();
        let tape = Tape::eval(&artist.params);
        let vars: Vec<Var> = moves.ids().map(|id| tape.constant(moves.get(id))).collect();
        scores.extend(block.score(&artist.model, &tape, &vars, preset).value().to_f64());
        device.check()?;
        observer.advance(triples.len() as u64);
    }
    Ok(scores)
}

/// N triples, and what does not move in them.
struct Block {
    /// The images `[N, H, W]`.
    x: Tensor,
    /// For each of T steps the control points of the parse `[N, 2J]`, on the canvas; where there are none, the codes of its strokes.
    points: Vec<Tensor>,
    /// Layouts `[N, 4]`, in which codes are drawn.
    layouts: Vec<Tensor>,
    /// σ and ω0 `[N, 2]`; 1 where there are none.
    pens: Vec<Tensor>,
    /// Whether there is a stroke `[N]`, and what its log density counts.
    on: Vec<Tensor>,
    weights: Vec<Tensor>,
    /// ω1 `[N]`, where the model has pens.
    slope: Option<Tensor>,
    /// The affine maps with which exemplars begin `[N, 3, 3]`, if it is not with none.
    begins: Option<Tensor>,
}

impl Block {
    fn of(artist: &Artist, x: &Tensor, (triples, maps): (&[Triple], Option<&[Map]>), preset: Preset) -> Self {
        let (device, n, d) = (artist.params.device(), triples.len(), artist.model.config.stroke_dim());
        let steps = triples.iter().map(|(_, drawing)| drawing.strokes.len()).max().unwrap_or(0).max(1);
        let each = |columns: usize, value: &dyn Fn(&Drawing, usize) -> Option<Vec<f64>>, off: f64| -> Vec<Tensor> {
            let step = |t: usize| {
                let row = |(_, drawing): &(usize, &Drawing)| value(drawing, t).unwrap_or_else(|| vec![off; columns]);
                let shape = if columns == 1 { vec![n] } else { vec![n, columns] };
                Tensor::from_f64(device, &shape, &triples.iter().flat_map(row).collect::<Vec<_>>())
            };
            (0..steps).map(step).collect()
        };
        let curves = artist.model.draws_curves();
        let layout = |stroke: &Stroke| stroke.layout.expect("the model chose one");
        let pen = |drawing: &Drawing, t: usize| {
            let stroke = drawing.strokes.get(t)?;
            let sigma = match (preset, stroke.width) {
                (Preset::Reference, Some(width)) => artist.frame().width_in_window(layout(stroke), width),
                (_, width) => width.unwrap_or(1.0),
            };
            Some(vec![sigma, stroke.slope.unwrap_or(1.0)])
        };
        let numbers = |drawing: &Drawing, t: usize| {
            let stroke = drawing.strokes.get(t)?;
            Some(if curves { stroke.points.as_flattened().to_vec() } else { stroke.latent.clone() })
        };
        let slopes: Option<Vec<f64>> = triples.iter().map(|(_, drawing)| drawing.canvas_slope).collect();
        Block {
            x: Tensor::stack(&triples.iter().map(|&(i, _)| x.rows(i, 1)).collect::<Vec<_>>())
                .reshape(&[&[n], &x.shape()[1..]].concat()),
            points: each(d, &numbers, 0.0),
            // Where there is no stroke, a window that can be inverted.
            layouts: each(4, &|drawing, t| drawing.strokes.get(t).map(|stroke| layout(stroke).to_vec()), 1.0),
            pens: each(2, &pen, 1.0),
            on: each(1, &|drawing, t| drawing.strokes.get(t).map(|_| vec![1.0]), 0.0),
            weights: each(
                1,
                &|drawing, t| drawing.strokes.get(t).map(|_| vec![preset.weight(drawing.strokes.len())]),
                0.0,
            ),
            slope: slopes.map(|slopes| Tensor::from_f64(device, &[n], &slopes)),
            begins: maps.map(|maps| {
                let whole: Vec<f64> = maps.iter().flat_map(|map| map.iter().copied().chain([0.0, 0.0, 1.0])).collect();
                Tensor::from_f64(device, &[n, 3, 3], &whole)
            }),
        }
    }

    /// The scores `[N]` of exemplars: `vars` are, for every step, how far control points are moved, `[N, 2J]` in units of [`MOTOR`], and
    /// last the raw numbers of the map `[N, 7]`.
    fn score<'t>(&self, model: &Model, tape: &'t Tape<'t>, vars: &[Var<'t>], preset: Preset) -> Var<'t> {
        let (map, moves) = vars.split_last().expect("the map is last");
        let mut matrix = map.squash(&preset.ranges()).affine7(preset.angle());
        if let Some(begins) = &self.begins {
            let n = begins.shape()[0];
            matrix = matrix.reshape(&[n, 2, 3]).matmul(tape.constant(begins.clone())).reshape(&[n, 6]);
        }
        let (config, d) = (&model.config, model.config.stroke_dim());
        let settings = RenderSettings {
            placement: Placement::Points,
            side: config.image,
            samples: config.samples,
            norm_floor: config.norm_floor,
        };
        let curves = model.draws_curves();
        let constant = |value: &Tensor| tape.constant(value.clone());
        let (mut terms, mut ink) = (vec![], vec![]);
        for (t, &moved) in moves.iter().enumerate() {
            let (pen, on) = (constant(&self.pens[t]), &self.on[t]);
            let numbers = combine(&[(1.0, constant(&self.points[t])), (MOTOR, moved)]);
            let stroke = match curves {
                true => render_stroke(numbers, matrix, pen, on, settings),
                false => model.stroke(numbers, constant(&self.layouts[t]), model.has_pens().then_some(pen), on),
            };
            ink.push((1.0, stroke));
            let density = moved.normal_logpdf(&vec![0.0; d], &vec![1.0; d]) + preset.constant(d);
            terms.push((1.0, density * constant(&self.weights[t])));
        }
        let mut canvas = combine(&ink);
        if let Some(slope) = &self.slope {
            canvas = canvas.tanh_ratio(constant(slope));
        }
        if !curves {
            if preset == Preset::Improved {
                canvas = canvas.stn(matrix, None);
            }
            // min(canvas, 1): no image of a stroke is below 0.
            canvas = (canvas * -1.0 + 1.0).relu() * -1.0 + 1.0;
        }
        terms.push((1.0, model.density(&self.x, canvas)));
        combine(&terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Device, Grads,
        data::{Images, synthetic},
        model::{Config, Start, Variant},
        observer::Silent,
        rng::Stream,
    };

    fn artist(placement: Placement, device: &Device) -> Artist {
        let (model, params) = Model::new(&Config::tiny(placement), Start::new(1), device).unwrap();
        Artist { model, params }
    }

    fn part(images: &Images, from: usize, count: usize) -> Images {
        let size = images.side.pow(2);
        let pixels = images.pixels[from * size..][..count * size].to_vec();
        Images { pixels, labels: Some((0..count as u16).collect()), side: images.side }
    }

    /// A run of three characters, whose queries are the characters themselves.
    fn run() -> Run {
        let images = synthetic::draw(3, 16, 5);
        Run { support: part(&images, 0, 3), query: part(&images, 0, 3) }
    }

    const SMALL: Protocol = Protocol { parses: 2, particles: 3, updates: 5, ..Protocol::IMPROVED };

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let device = Device::cpu_f64();
        for (preset, placement) in [(Preset::Reference, Placement::Warp), (Preset::Improved, Placement::Points)] {
            let mut artist = artist(placement, &device);
            // The largest value of a stroke counts as a constant: nothing is divided by it here.
            artist.model.config.norm_floor = f64::MAX;
            let x = pixels(&run().query, 0..3, &device);
            let parsed = parse(&artist, &x, &SMALL, Rng::new(1, 0), &Silent).unwrap();
            let map = [1.1, 0.1, 0.05, -0.2, 0.9, -0.02];
            let maps = [map; 3];
            let maps = (preset == Preset::Improved).then_some(&maps[..]);
            let triples: Vec<Triple> = parsed.iter().map(|p| &p.parses[0].0).enumerate().collect();
            let block = Block::of(&artist, &x, (&triples, maps), preset);
            assert!(block.on.iter().any(|on| on.to_f64().contains(&1.0)), "nothing is drawn");
            let mut shapes = vec![vec![3, 6]; block.points.len()];
            shapes.push(vec![3, 7]);
            let at: Vec<Tensor> = (shapes.iter().enumerate())
                .map(|(i, shape)| Rng::new(7, 0).normal_tensor(&device, Stream(i as u32), shape))
                .collect();
            let score = |at: &[Tensor]| {
                let tape = Tape::eval(&artist.params);
                let vars: Vec<Var> = at.iter().map(|value| tape.constant(value.clone())).collect();
                block.score(&artist.model, &tape, &vars, preset).sum().value().item()
            };
            let tape = Tape::frozen(&artist.params);
            let vars: Vec<Var> = at.iter().map(|value| tape.input(value.clone())).collect();
            let found =
                tape.backward(block.score(&artist.model, &tape, &vars, preset).sum(), &mut Grads::none(&device));
            let (mut slopes, mut differences) = (vec![], vec![]);
            for (i, &var) in vars.iter().enumerate() {
                let (values, grads) = (at[i].to_f64(), found.of(var).to_f64());
                for j in 0..values.len() {
                    let moved = |by: f64| {
                        let mut at = at.clone();
                        let mut values = values.clone();
                        values[j] += by;
                        at[i] = Tensor::from_f64(&device, at[i].shape(), &values);
                        score(&at)
                    };
                    slopes.push(grads[j]);
                    differences.push((moved(1e-6) - moved(-1e-6)) / 2e-6);
                }
            }
            let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
            let error: Vec<f64> = slopes.iter().zip(&differences).map(|(a, b)| a - b).collect();
            let relative = norm(&error) / norm(&differences);
            assert!(relative < 1e-5 && norm(&slopes) > 1.0, "{preset:?}: {relative}");
        }
    }

    #[test]
    fn scores_depend_neither_on_threads_nor_on_how_many_are_taken_at_once() {
        let (artist, run) = (artist(Placement::Points, &Device::cpu()), run());
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| scores(&artist, &run, &SMALL, Rng::new(3, 0), &Silent).unwrap())
        };
        let one = with(1);
        assert!(one.len() == 9 && one.iter().all(|score| score.is_finite()), "{one:?}");
        assert_eq!(one, with(2));

        let x = pixels(&run.query, 0..3, artist.params.device());
        let parsed = parse(&artist, &x, &SMALL, Rng::new(3, 0), &Silent).unwrap();
        let triples: Vec<Triple> = parsed.iter().map(|p| &p.parses[0].0).enumerate().collect();
        let fitted = |triples: &[Triple]| fit(&artist, &x, (triples, None), (Preset::Improved, 5), &Silent).unwrap();
        let apart: Vec<f64> = triples.iter().flat_map(|&triple| fitted(&[triple])).collect();
        for (apart, together) in apart.iter().zip(fitted(&triples)) {
            assert!((apart - together).abs() < 1e-2, "{apart} {together}");
        }
    }

    #[test]
    fn updates_bring_exemplars_closer_and_an_affine_map_is_found() {
        let (artist, device) = (artist(Placement::Points, &Device::cpu_f64()), Device::cpu_f64());
        let x = pixels(&run().query, 0..3, &device);
        let parsed = parse(&artist, &x, &SMALL, Rng::new(1, 0), &Silent).unwrap();
        let triples: Vec<Triple> = parsed.iter().flat_map(|p| [0, 1, 2].map(|i| (i, &p.parses[0].0))).collect();
        let after = |updates| fit(&artist, &x, (&triples, None), (Preset::Improved, updates), &Silent).unwrap();
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
        let (before, after) = (mean(&after(0)), mean(&after(60)));
        assert!(after > before + 1.0, "{before} -> {after}");
    }

    #[test]
    fn the_reference_counts_a_stroke_as_it_did() {
        // One stroke of 10 numbers at its parse: 10·(−log 0.001 − ½ log 2π) = 59.888.
        let peak = |preset: Preset| -5.0 * TAU.ln() + preset.constant(10);
        assert!((peak(Preset::Reference) - 59.888).abs() < 1e-3 && peak(Preset::Improved).abs() < 1e-12);
        assert_eq!([0, 1, 4].map(|strokes| Preset::Reference.weight(strokes)), [1.0, 1.0, 0.25]);
    }

    #[test]
    fn models_without_curves_move_their_codes_and_the_map_moves_the_image_unless_it_is_the_reference() {
        let device = Device::cpu_f64();
        let sizes = artist(Placement::Warp, &device).model.config;
        for variant in [Variant::Air, Variant::Dr] {
            let (model, params) = Model::new(&sizes.clone().with_variant(variant), Start::new(1), &device).unwrap();
            let artist = Artist { model, params };
            let found = scores(&artist, &run(), &SMALL, Rng::new(1, 0), &Silent).unwrap();
            assert!(found.len() == 9 && found.iter().all(|score| score.is_finite()), "{found:?}");
            let x = pixels(&run().query, 0..3, &device);
            // Of several parses those with the most strokes: there has to be something to move.
            let several = Protocol { parses: 8, particles: 1, ..SMALL };
            let parsed = parse(&artist, &x, &several, Rng::new(1, 0), &Silent).unwrap();
            let longest = |p: &Parsed| (0..8).max_by_key(|&k| p.parses[k].0.strokes.len()).unwrap();
            let triples: Vec<Triple> = parsed.iter().map(|p| &p.parses[longest(p)].0).enumerate().collect();
            assert!(triples.iter().any(|(_, drawing)| !drawing.strokes.is_empty()));
            for preset in [Preset::Reference, Preset::Improved] {
                let block = Block::of(&artist, &x, (&triples, None), preset);
                let d = artist.model.config.stroke_dim();
                let mut shapes = vec![vec![3, d]; block.points.len()];
                shapes.push(vec![3, 7]);
                let still: Vec<Tensor> = shapes.iter().map(|shape| Tensor::zeros(&device, shape)).collect();
                let mut turned = still.clone();
                *turned.last_mut().unwrap() = Tensor::full(&device, &[3, 7], 0.3);
                let score = |at: &[Tensor]| {
                    let tape = Tape::eval(&artist.params);
                    let vars: Vec<Var> = at.iter().map(|value| tape.constant(value.clone())).collect();
                    block.score(&artist.model, &tape, &vars, preset).sum().value().item()
                };
                assert_eq!(score(&still) == score(&turned), preset == Preset::Reference, "{variant} {preset:?}");
                // Not moved, an exemplar is the parse, and its image that of the parse.
                let likelihoods: f64 = triples.iter().map(|(_, drawing)| drawing.log_likelihood.unwrap()).sum();
                let strokes = |drawing: &Drawing| drawing.strokes.len() as f64;
                let weight = |drawing: &Drawing| strokes(drawing) * preset.weight(drawing.strokes.len());
                let peak = (preset.constant(d) - 0.5 * d as f64 * TAU.ln())
                    * triples.iter().map(|(_, drawing)| weight(drawing)).sum::<f64>();
                let apart = score(&still) - peak - likelihoods;
                // Cutting to [0, 1] changes what is brighter.
                assert!(apart.abs() < 1e-6 || variant == Variant::Air, "{variant} {preset:?}: {apart}");
            }
        }
    }
}
