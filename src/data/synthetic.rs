//! The built-in set: drawings sampled from the model with its fixed prior (section 10). It needs no file.

use super::Images;
use crate::{
    Device, Observer, Result, Tape, Tensor,
    observer::Silent,
    ops::{Placement, RenderSettings, render_stroke},
    rng::{Rng, Stream},
};

/// Training and test drawings.
pub const COUNTS: [usize; 2] = [60_000, 10_000];

const MOST_STROKES: usize = 5;
const POINTS: usize = 5;
/// Pen width σ, stroke slope ω0 and canvas slope ω1, each with a spread of [`PEN_SPREAD`].
const PEN: [f64; 3] = [0.026, 0.7, 0.46];
const PEN_SPREAD: f64 = 1e-4;
const LAYOUT_MEAN: [f64; 4] = [0.0, 0.0, 0.8, 0.0];
const LAYOUT_STD: [f64; 4] = [0.2, 0.2, 0.2, 0.4];
const POINT_MEAN: f64 = 0.5;
const POINT_STD: f64 = 0.4;

/// `count` drawings of `side`² pixels, labelled with their number of strokes less one. The same for the same seed.
pub fn draw(count: usize, side: usize, seed: u64) -> Images {
    drawn(count, side, seed, &Silent).expect("nobody stops it")
}

/// As [`draw`], telling `observer` of every drawing.
pub(super) fn drawn(count: usize, side: usize, seed: u64, observer: &dyn Observer) -> Result<Images> {
    const AT_ONCE: usize = 512;
    let mut images = Images { side, pixels: Vec::with_capacity(count * side * side), labels: Some(vec![]) };
    for (batch, from) in (0..count).step_by(AT_ONCE).enumerate() {
        observer.go_on()?;
        let n = AT_ONCE.min(count - from);
        let (pixels, labels) = draw_batch(n, side, Rng::new(seed, batch as u64));
        images.pixels.extend(pixels);
        images.labels.get_or_insert_default().extend(labels);
        observer.advance(n as u64);
    }
    Ok(images)
}

fn draw_batch(n: usize, side: usize, rng: Rng) -> (Vec<u8>, Vec<u16>) {
    let device = Device::cpu();
    // Nothing on this tape wants a gradient, so nothing is kept for one.
    let tape = Tape::without_params(&device);
    let normal = |stream: u32, columns: usize, mean: &dyn Fn(usize) -> f64, std: &dyn Fn(usize) -> f64| {
        let value = |i: usize| mean(i % columns) + std(i % columns) * rng.normal(Stream(stream), i);
        let values: Vec<f64> = (0..n * columns).map(value).collect();
        tape.constant(Tensor::from_f64(&device, &[n, columns], &values))
    };
    let strokes: Vec<usize> = (0..n).map(|i| 1 + rng.below(Stream(0), i, MOST_STROKES)).collect();
    let settings = RenderSettings { placement: Placement::Points, side, samples: 100, norm_floor: 1e-4 };
    let drawn = (0..MOST_STROKES).map(|t| {
        let stream = 1 + 3 * t as u32;
        let points = normal(stream, 2 * POINTS, &|_| POINT_MEAN, &|_| POINT_STD);
        let layout = normal(stream + 1, 4, &|i| LAYOUT_MEAN[i], &|i| LAYOUT_STD[i]);
        let pen = normal(stream + 2, 2, &|i| PEN[i], &|_| PEN_SPREAD);
        let on: Vec<f64> = strokes.iter().map(|&count| if t < count { 1.0 } else { 0.0 }).collect();
        render_stroke(points, layout.affine(), pen, &Tensor::from_f64(&device, &[n], &on), settings)
    });
    let total = drawn.reduce(|a, b| a + b).expect("at least one stroke");
    let slope = normal(1 + 3 * MOST_STROKES as u32, 1, &|_| PEN[2], &|_| PEN_SPREAD).reshape(&[n]);
    let canvas = total.tanh_ratio(slope).value().to_f32();
    let pixels = canvas.iter().map(|&v| (v * 255.0).round() as u8).collect();
    (pixels, strokes.iter().map(|&s| s as u16 - 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawings_are_reproducible_and_have_one_to_five_strokes_of_ink() {
        let images = draw(600, 32, 1);
        assert_eq!(images.pixels, draw(600, 32, 1).pixels);
        assert_ne!(images.pixels, draw(600, 32, 2).pixels);
        let labels = images.labels.as_ref().unwrap();
        assert!((0..5).all(|l| labels.iter().filter(|&&x| x == l).count() > 80), "strokes are uniform");
        let ink = |i: usize| images.image(i).iter().map(|&p| p as f64 / 255.0).sum::<f64>() / (32.0 * 32.0);
        let mean = |l: u16| {
            let all: Vec<f64> = (0..600).filter(|&i| labels[i] == l).map(ink).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        assert!(mean(0) > 0.01 && mean(4) > 1.5 * mean(0), "more strokes, more ink: {} {}", mean(0), mean(4));
        assert!((0..600).filter(|&i| ink(i) > 0.0).count() > 590);
    }
}
