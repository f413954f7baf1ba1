//! Groups of strokes (section 11h of the model, Fig. 5): k-means, how well its clusters stand apart, and a map of them ([`tsne`]).
//!
//! All of it depends on its seed alone, with any number of threads.

mod tsne;

pub use tsne::{Map, UPDATES, tsne};

use crate::rng::{Rng, Stream};
use rayon::prelude::*;

/// Points of one dimension, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Points {
    /// Numbers per point.
    pub dim: usize,
    /// `[count, dim]`.
    pub values: Vec<f64>,
}

impl Points {
    /// How many.
    pub fn len(&self) -> usize {
        self.values.len() / self.dim.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Point `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.dim..][..self.dim]
    }

    /// Some of them.
    pub fn pick(&self, which: &[usize]) -> Points {
        Points { dim: self.dim, values: which.iter().flat_map(|&i| self.row(i)).copied().collect() }
    }
}

/// What the paper's models reach on MNIST (section 13): clusters, and the silhouette of DooD (M, seed 0) and of Difference-AIR.
pub const PUBLISHED: [(usize, f64, f64); 4] = [(5, 0.30, 0.11), (8, 0.21, 0.11), (10, 0.21, 0.11), (15, 0.17, 0.11)];

/// Points that were put into clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Clusters {
    /// The mean of each cluster.
    pub centres: Points,
    /// The cluster of each point; the first cluster is the largest.
    pub labels: Vec<usize>,
    /// The sum of the squared distances of all points from their centres.
    pub inertia: f64,
}

const FIRST: Stream = Stream(21);
const NEXT: Stream = Stream(22);
/// Beginnings, of which the one that ends best is kept.
const STARTS: u64 = 10;
/// Rounds at most, as in scikit-learn.
const ROUNDS: usize = 300;

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// The nearest centre of a point and its squared distance.
fn nearest(point: &[f64], centres: &Points) -> (usize, f64) {
    let distances = (0..centres.len()).map(|c| (c, squared(point, centres.row(c))));
    distances.fold((0, f64::INFINITY), |best, next| if next.1 < best.1 { next } else { best })
}

/// k-means (Lloyd's algorithm from k-means++ beginnings, the best of ten) with Euclidean distances.
///
/// # Panics
/// If there are fewer points than clusters, or no clusters.
#[track_caller]
pub fn k_means(points: &Points, k: usize, rng: Rng) -> Clusters {
    assert!(k > 0 && points.len() >= k, "k_means: {} points in {k} clusters", points.len());
    let runs = (0..STARTS).map(|start| lloyd(points, scattered(points, k, Rng::new(rng.seed, rng.step + start))));
    runs.reduce(|best, next| if next.inertia < best.inertia { next } else { best }).expect("at least one").ordered()
}

/// Centres that lie apart (k-means++): each next one is a point, as likely as its squared distance from those before.
fn scattered(points: &Points, k: usize, rng: Rng) -> Points {
    let mut chosen = vec![rng.below(FIRST, 0, points.len())];
    let mut away = vec![f64::INFINITY; points.len()];
    while chosen.len() < k {
        let last = points.row(chosen[chosen.len() - 1]).to_vec();
        away.par_iter_mut().enumerate().for_each(|(i, away)| *away = away.min(squared(points.row(i), &last)));
        let mut left = rng.uniform(NEXT, chosen.len()) * away.iter().sum::<f64>();
        let next = away.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // Where all points are centres already, any will do.
        chosen.push(next.unwrap_or(chosen.len() % points.len()));
    }
    points.pick(&chosen)
}

fn lloyd(points: &Points, mut centres: Points) -> Clusters {
    let (n, k, dim) = (points.len(), centres.len(), points.dim);
    let mut labels = vec![usize::MAX; n];
    for _ in 0..ROUNDS {
        let found: Vec<usize> = (0..n).into_par_iter().map(|i| nearest(points.row(i), &centres).0).collect();
        if found == labels {
            break;
        }
        labels = found;
        let (mut sums, mut counts) = (vec![0.0; k * dim], vec![0.0; k]);
        for (i, &label) in labels.iter().enumerate() {
            counts[label] += 1.0;
            sums[label * dim..][..dim].iter_mut().zip(points.row(i)).for_each(|(sum, value)| *sum += value);
        }
        for (c, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0.0) {
            let mean = sums[c * dim..][..dim].iter().map(|sum| sum / count);
            centres.values[c * dim..][..dim].iter_mut().zip(mean).for_each(|(centre, mean)| *centre = mean);
        }
    }
    let inertia = labels.iter().enumerate().map(|(i, &label)| squared(points.row(i), centres.row(label))).sum();
    Clusters { centres, labels, inertia }
}

impl Clusters {
    /// How many points each cluster has.
    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![0; self.centres.len()];
        self.labels.iter().for_each(|&label| sizes[label] += 1);
        sizes
    }

    /// The same with the largest first.
    fn ordered(self) -> Self {
        let sizes = self.sizes();
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&c| std::cmp::Reverse(sizes[c]));
        let mut place = vec![0; sizes.len()];
        order.iter().enumerate().for_each(|(new, &old)| place[old] = new);
        let labels = self.labels.iter().map(|&label| place[label]).collect();
        Clusters { centres: self.centres.pick(&order), labels, inertia: self.inertia }
    }
}

/// The silhouette coefficient: how much nearer points are to their own cluster than to the next one, from −1 to 1, the mean over all
/// points; `None` where there is only one cluster with points. A point that is alone in its cluster counts as 0.
pub fn silhouette(points: &Points, labels: &[usize]) -> Option<f64> {
    let k = labels.iter().max()? + 1;
    let mut sizes = vec![0usize; k];
    labels.iter().for_each(|&label| sizes[label] += 1);
    if sizes.iter().filter(|&&size| size > 0).count() < 2 {
        return None;
    }
    let of = |i: usize| {
        let mut sums = vec![0.0; k];
        for (j, &label) in labels.iter().enumerate() {
            sums[label] += squared(points.row(i), points.row(j)).sqrt();
        }
        let own = labels[i];
        if sizes[own] == 1 {
            return 0.0;
        }
        let inside = sums[own] / (sizes[own] - 1) as f64;
        let others = (0..k).filter(|&c| c != own && sizes[c] > 0).map(|c| sums[c] / sizes[c] as f64);
        let outside = others.fold(f64::INFINITY, f64::min);
        let larger = inside.max(outside);
        if larger > 0.0 { (outside - inside) / larger } else { 0.0 }
    };
    let all: Vec<f64> = (0..points.len()).into_par_iter().map(of).collect();
    Some(all.iter().sum::<f64>() / all.len() as f64)
}

#[cfg(test)]
mod tests;
