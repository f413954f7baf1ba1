//! Fits Bézier strokes to one image by gradient descent through the renderer: no network, no training set.
//!
//! `cargo run --release --example fit_stroke -- [--strokes 3] [--data mnist:DIR --index 7]`
//!
//! The control points and the pen of every stroke are parameters; the canvas is that of the model (section 6 of the model, strokes
//! placed by their points); Adam follows the squared error of its pixels. Writes `fit.png` and `fit.svg`.

mod common;

use clap::Parser;
use common::{Reading, Screen, say};
use dood::{
    Device, Error, Grads, Observer, ParamId, Params, ParamsBuilder, Result, Tape, Tensor, Var,
    data::{self, Source},
    figures::{Drawing, Grid, Kind, Stroke, Tile, strokes_svg},
    files::{create_folder, quoted},
    ops::{Placement, Range, RenderSettings, Squash, render_stroke},
    optim::Adam,
    rng::{Rng, Stream},
};
use std::{path::PathBuf, process::ExitCode};

/// Fits Bézier strokes to an image by gradient descent through the renderer.
#[derive(Parser)]
struct Args {
    /// Where the image comes from, for example mnist:FOLDER; a drawing that is built in if not given
    #[arg(long, value_parser = common::source())]
    data: Option<Source>,
    #[command(flatten)]
    reading: Reading,
    /// Which image of the test set
    #[arg(long, default_value_t = 0, requires = "data")]
    index: usize,
    /// How many strokes to fit
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    strokes: u8,
    /// Steps of gradient descent
    #[arg(long, default_value_t = 400)]
    steps: usize,
    /// Another seed starts from other strokes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the two pictures
    #[arg(long, default_value = "runs/fit_stroke")]
    out: PathBuf,
}

const SIDE: usize = 50;
/// Control points per stroke.
const J: usize = 5;
/// Tanh slope of a stroke and of the canvas: low ones make ink black.
const SLOPE: f64 = 0.5;
/// The pen begins broad, because a pixel pulls at a stroke only as far as the stroke's ink reaches.
const FIRST_PEN: f64 = 0.045;

fn main() -> ExitCode {
    common::main(run)
}

fn run(args: Args, screen: &Screen) -> Result<ExitCode> {
    let args = &args;
    let device = Device::cpu();
    create_folder(&args.out)?;
    let target = target(args, &device, screen)?;
    let shown: Vec<usize> = [0, 10, 25, 50, 100].into_iter().filter(|&s| s < args.steps).chain([args.steps]).collect();
    let fit = fit(args, &device, &target, &shown, screen)?;

    let residual: Vec<f32> = target.iter().zip(&fit[fit.len() - 1].canvas).map(|(x, c)| x - c).collect();
    let ink = |pixels| Tile { pixels, ..Tile::default() };
    let mut row = vec![ink(&target)];
    row.extend(fit.iter().map(|stage| ink(&stage.canvas)));
    row.push(Tile { kind: Kind::Signed, ..ink(&residual) });
    let steps: Vec<String> = shown.iter().map(|s| format!("step {s}")).collect();
    let mut captions = vec!["target"];
    captions.extend(steps.iter().map(String::as_str));
    captions.push("residual");
    let png = args.out.join("fit.png");
    Grid { side: SIDE, scale: 3, captions: &captions, labels: &[], rows: &[row] }.write(&png)?;

    let background = Some(&target[..]);
    let drawings: Vec<Drawing> = fit.into_iter().map(|s| Drawing { strokes: s.strokes, background }).collect();
    let svg = args.out.join("fit.svg");
    strokes_svg(&svg, &drawings, drawings.len())?;
    say!("Written: {} and {}", quoted(png), quoted(svg));
    Ok(ExitCode::SUCCESS)
}

/// The image to draw, ink in [0, 1].
fn target(args: &Args, device: &Device, screen: &Screen) -> Result<Vec<f32>> {
    let Some(source) = &args.data else {
        // A 2 in three strokes: hook, back, base.
        let points = [
            [0.22, 0.34, 0.22, 0.12, 0.50, 0.02, 0.72, 0.14, 0.72, 0.32],
            [0.72, 0.32, 0.72, 0.46, 0.56, 0.56, 0.36, 0.72, 0.22, 0.86],
            [0.22, 0.86, 0.36, 0.74, 0.52, 0.92, 0.68, 0.92, 0.80, 0.76],
        ];
        let tape = Tape::without_params(device);
        let points = tape.constant(Tensor::from_f64(device, &[3, 2 * J], &points.concat()));
        let pen = tape.constant(Tensor::from_f64(device, &[3, 1], &[0.022; 3]));
        return Ok(draw(points, pen).value().to_f32());
    };
    let images = data::load_or_fetch(source, &args.reading.options(SIDE), screen)?.test;
    if args.index >= images.len() {
        let (last, index) = (images.len() - 1, args.index);
        return Err(Error::Usage(format!("the test set of {source} has no image {index}: --index goes up to {last}")));
    }
    Ok(images.image(args.index).iter().map(|&p| f32::from(p) / 255.0).collect())
}

/// The canvas `[1, SIDE, SIDE]` of strokes with control points `[N, 2J]` and pen widths `[N, 1]`.
fn draw<'t>(points: Var<'t>, sigma: Var<'t>) -> Var<'t> {
    let (tape, n) = (points.tape(), points.shape()[0]);
    let device = tape.device();
    let slope = |n: usize| tape.constant(Tensor::full(device, &[n, 1], SLOPE));
    let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0].repeat(n);
    let matrix = tape.constant(Tensor::from_f64(device, &[n, 6], &identity));
    let on = Tensor::full(device, &[n], 1.0);
    let set = RenderSettings { placement: Placement::Points, side: SIDE, samples: 100, norm_floor: 1e-4 };
    let strokes = render_stroke(points, matrix, dood::ops::concat(&[sigma, slope(n)]), &on, set);
    let sum = (0..n).map(|i| strokes.rows(i, 1)).reduce(|a, b| a + b).expect("at least one stroke");
    sum.tanh_ratio(slope(1))
}

/// How far the fit was after some step.
struct Stage {
    canvas: Vec<f32>,
    strokes: Vec<Stroke>,
}

/// Descends, and returns the stages after the steps in `shown`.
fn fit(args: &Args, device: &Device, target: &[f32], shown: &[usize], screen: &Screen) -> Result<Vec<Stage>> {
    let n = args.strokes as usize;
    let mut builder = ParamsBuilder::new();
    let first = first_points(target, n, Rng::new(args.seed, 0));
    let points = builder.add("points", &[n, 2 * J], |i| first[i]);
    builder.group(1);
    let (thin, broad) = (0.012, 0.06);
    let share = (FIRST_PEN - thin) / (broad - thin);
    let pen = builder.add("pen", &[n, 1], |_| f64::ln(share / (1.0 - share)));
    let mut params = builder.build(device);
    let width = Squash::new(&[(1, Range::Within(thin, broad))]);

    let (mut grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[0.008, 0.03]));
    let x = Tensor::from_f32(device, &[1, SIDE, SIDE], target);
    let mut stages = vec![];
    for step in 0..=args.steps {
        screen.go_on()?;
        grads.clear();
        let tape = Tape::new(&params);
        let sigma = tape.param(pen).squash(&width);
        let canvas = draw(tape.param(points), sigma);
        let difference = canvas - tape.constant(x.clone());
        let error = (difference * difference).sum();
        if shown.contains(&step) {
            say!("step {step:4}: squared error {:8.3}", error.value().item());
            stages.push(Stage { canvas: canvas.value().to_f32(), strokes: strokes(&params, points, &sigma.value()) });
        }
        tape.backward(error, &mut grads);
        drop(tape);
        adam.step(&mut params, &grads);
    }
    Ok(stages)
}

/// Straight strokes at random angles: one in the middle of the ink and each further one where there is ink far from those before.
fn first_points(target: &[f32], n: usize, rng: Rng) -> Vec<f64> {
    let place = |pixel: usize| [(pixel % SIDE) as f64 / SIDE as f64, (pixel / SIDE) as f64 / SIDE as f64];
    let mut ink: Vec<[f64; 2]> = (0..target.len()).filter(|&i| target[i] > 0.5).map(place).collect();
    if ink.is_empty() {
        ink.push([0.5, 0.5]);
    }
    let distance = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
    let middle = [0, 1].map(|k| ink.iter().map(|p| p[k]).sum::<f64>() / ink.len() as f64);
    let mut centres = vec![middle];
    while centres.len() < n {
        let alone = |p: &[f64; 2]| centres.iter().map(|&c| distance(*p, c)).fold(f64::INFINITY, f64::min);
        centres.push(*ink.iter().max_by(|a, b| alone(a).total_cmp(&alone(b))).expect("ink"));
    }
    let line = |(k, centre): (usize, [f64; 2])| {
        let (sin, cos) = (std::f64::consts::TAU * rng.uniform(Stream(0), k)).sin_cos();
        let along = |j: usize| 0.25 / n as f64 * (2.0 * j as f64 / (J - 1) as f64 - 1.0);
        (0..J).flat_map(move |j| [centre[0] + along(j) * cos, centre[1] + along(j) * sin])
    };
    centres.into_iter().enumerate().flat_map(line).collect()
}

fn strokes(params: &Params, points: ParamId, sigma: &Tensor) -> Vec<Stroke> {
    let points = params.get(points).to_f32();
    let pairs = |row: &[f32]| row.chunks(2).map(|p| [p[0], p[1]]).collect();
    points.chunks(2 * J).zip(sigma.to_f32()).map(|(row, sigma)| Stroke { points: pairs(row), sigma }).collect()
}
