//! Maps in two dimensions on which neighbours stay neighbours: t-SNE (van der Maaten and Hinton, 2008), exact, with the defaults of
//! scikit-learn.

use super::{Points, squared};
use crate::{Observer, Result};
use rayon::prelude::*;

/// Points on a map.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Where each point lies.
    pub places: Vec<[f64; 2]>,
    /// The Kullback–Leibler divergence between neighbourhoods of points and of their places, which is as small as could be found.
    pub divergence: f64,
}

/// Neighbours that a point has, roughly.
const PERPLEXITY: f64 = 30.0;
/// Updates of a map, each of which is told to the observer.
pub const UPDATES: usize = 1000;
/// At first all attraction is so many times larger.
const EXAGGERATION: f64 = 12.0;
const EXAGGERATED: usize = 250;
/// Of what the places are at first, along the first direction.
const SPREAD: f64 = 1e-4;

/// A map of points, each update told to `observer`, which may stop it. Time and memory grow with the square of their number: thousands
/// take minutes.
///
/// # Errors
/// [`Error::Stopped`](crate::Error::Stopped).
pub fn tsne(points: &Points, observer: &dyn Observer) -> Result<Map> {
    let n = points.len();
    if n < 3 {
        return Ok(Map { places: (0..n).map(|i| [i as f64, 0.0]).collect(), divergence: 0.0 });
    }
    let near = neighbourhoods(points);
    let mut places = principal(points);
    let (mut speed, mut gain) = (vec![[0.0; 2]; n], vec![[1.0; 2]; n]);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for update in 0..UPDATES {
        observer.go_on()?;
        let (factor, momentum) = if update < EXAGGERATED { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        let slope = gradient(&near, &places, factor);
        for i in 0..n {
            for k in 0..2 {
                let against = slope[i][k] * speed[i][k] < 0.0;
                gain[i][k] = if against { gain[i][k] + 0.2 } else { f64::max(gain[i][k] * 0.8, 0.01) };
                speed[i][k] = momentum * speed[i][k] - rate * gain[i][k] * slope[i][k];
                places[i][k] += speed[i][k];
            }
        }
        observer.advance(1);
    }
    let divergence = divergence(&near, &places);
    Ok(Map { places, divergence })
}

/// The joint probabilities of neighbours `[n, n]`: for each point a normal distribution around it whose width gives the perplexity, made
/// symmetric.
fn neighbourhoods(points: &Points) -> Vec<f64> {
    let n = points.len();
    let wanted = PERPLEXITY.min((n - 1) as f64 / 3.0).max(1.0).ln();
    let mut p = vec![0.0; n * n];
    p.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        let away: Vec<f64> = (0..n).map(|j| squared(points.row(i), points.row(j))).collect();
        let least = (0..n).filter(|&j| j != i).map(|j| away[j]).fold(f64::INFINITY, f64::min);
        let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, 1.0);
        for _ in 0..200 {
            let (mut sum, mut weighted) = (0.0, 0.0);
            for (j, row) in row.iter_mut().enumerate() {
                *row = if j == i { 0.0 } else { (-beta * (away[j] - least)).exp() };
                sum += *row;
                weighted += *row * (away[j] - least);
            }
            row.iter_mut().for_each(|p| *p /= sum);
            let entropy = sum.ln() + beta * weighted / sum;
            if (entropy - wanted).abs() < 1e-10 {
                break;
            }
            (low, high) = if entropy > wanted { (beta, high) } else { (low, beta) };
            beta = if high.is_finite() { (low + high) / 2.0 } else { beta * 2.0 };
        }
    });
    let both = |i: usize, j: usize| (p[i * n + j] + p[j * n + i]) / (2 * n) as f64;
    (0..n * n).into_par_iter().map(|at| both(at / n, at % n)).collect()
}

/// How near places are, before it is made a probability: 1 / (1 + squared distance).
fn closeness(a: [f64; 2], b: [f64; 2]) -> f64 {
    1.0 / (1.0 + (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2))
}

/// The sum of all [`closeness`]es, in a fixed order.
fn total(places: &[[f64; 2]]) -> f64 {
    let row = |i: usize| (0..places.len()).filter(|&j| j != i).map(|j| closeness(places[i], places[j])).sum::<f64>();
    (0..places.len()).into_par_iter().map(row).collect::<Vec<f64>>().iter().sum()
}

fn gradient(near: &[f64], places: &[[f64; 2]], factor: f64) -> Vec<[f64; 2]> {
    let (n, total) = (places.len(), total(places));
    let of = |i: usize| {
        let mut sum = [0.0; 2];
        for (j, p) in near[i * n..][..n].iter().enumerate() {
            let close = closeness(places[i], places[j]);
            let force = 4.0 * (factor * p - close / total) * close;
            (0..2).for_each(|k| sum[k] += force * (places[i][k] - places[j][k]));
        }
        sum
    };
    (0..n).into_par_iter().map(of).collect()
}

fn divergence(near: &[f64], places: &[[f64; 2]]) -> f64 {
    let (n, total) = (places.len(), total(places));
    let term = |at: usize| {
        let (p, q) = (near[at], closeness(places[at / n], places[at % n]) / total);
        if p > 0.0 { p * (p / q).ln() } else { 0.0 }
    };
    (0..n * n).filter(|at| at / n != at % n).map(term).sum()
}

/// Points along their two principal directions, scaled to be close together.
fn principal(points: &Points) -> Vec<[f64; 2]> {
    let (n, dim) = (points.len(), points.dim);
    let mean: Vec<f64> = (0..dim).map(|k| (0..n).map(|i| points.row(i)[k]).sum::<f64>() / n as f64).collect();
    let centred = |i: usize, k: usize| points.row(i)[k] - mean[k];
    let mut found: Vec<Vec<f64>> = vec![];
    for direction in 0..2.min(dim) {
        // Power iteration, at right angles to what was found.
        let mut v: Vec<f64> = (0..dim).map(|k| if k == direction { 1.0 } else { 0.5 / (1.0 + k as f64) }).collect();
        for _ in 0..200 {
            let mut next = vec![0.0; dim];
            for i in 0..n {
                let along: f64 = (0..dim).map(|k| centred(i, k) * v[k]).sum();
                (0..dim).for_each(|k| next[k] += along * centred(i, k));
            }
            for other in &found {
                let along: f64 = next.iter().zip(other).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
            let length = next.iter().map(|v| v * v).sum::<f64>().sqrt();
            v = next.iter().map(|v| if length > 0.0 { v / length } else { 0.0 }).collect();
        }
        found.push(v);
    }
    let along = |i: usize, v: &Vec<f64>| (0..dim).map(|k| centred(i, k) * v[k]).sum::<f64>();
    let spread = ((0..n).map(|i| along(i, &found[0]).powi(2)).sum::<f64>() / n as f64).sqrt().max(f64::MIN_POSITIVE);
    let place = |i: usize| [0, 1].map(|k| found.get(k).map_or(0.0, |v| along(i, v) / spread * SPREAD));
    (0..n).map(place).collect()
}
