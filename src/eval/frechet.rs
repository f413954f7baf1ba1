//! How far a set of drawings is from a set of images, by what can be seen in them (section 11g of the model): the Fréchet distance
//! between normal distributions fitted to their features, and how exemplars of a character differ and are still known.
//!
//! Features are those of a [`Classifier`] that this library has trained. Distances depend on it, so they are comparable for the same
//! classifier only, and they are no "FID", which is of the Inception network.

use super::{
    Artist, Drawn, Token,
    classifier::{Classifier, FEATURES},
    cluster::Points,
    gallery::Row,
    one_shot::statistics::Share,
};
use crate::{
    Error, Observer, Result,
    data::{DataSet, Images, resize},
    measure::{pixels, spread},
    rng::Rng,
};
use rayon::prelude::*;
use serde::Serialize;

/// Some of the images.
pub fn picked(images: &Images, which: &[usize]) -> Images {
    Images {
        side: images.side,
        pixels: which.iter().flat_map(|&i| images.image(i)).copied().collect(),
        labels: images.labels.as_ref().map(|labels| which.iter().map(|&i| labels[i]).collect()),
    }
}

/// Finished canvases of `side` pixels as images without classes.
pub fn as_images<'d>(drawn: impl IntoIterator<Item = &'d Drawn>, side: usize) -> Images {
    let ink = drawn.into_iter().flat_map(Drawn::canvas);
    Images { side, pixels: ink.map(|&ink| (255.0 * ink.clamp(0.0, 1.0)).round() as u8).collect(), labels: None }
}

/// Images at another size, brought to it as data sets are.
pub fn at_side(images: &Images, side: usize) -> Images {
    let resized =
        (0..images.len()).into_par_iter().flat_map_iter(|i| resize(images.image(i), images.side, images.side, side));
    Images { side, pixels: resized.collect(), labels: images.labels.clone() }
}

/// The features of images of its size to a classifier, its last hidden layer.
///
/// # Errors
/// [`Error::Stopped`]; those of a GPU.
pub fn features(classifier: &Classifier, images: &Images, observer: &dyn Observer) -> Result<Points> {
    let x = pixels(images, 0..images.len(), classifier.params.device());
    let values = classifier.features(&x, observer)?.into_iter().map(f64::from).collect();
    Ok(Points { dim: FEATURES, values })
}

/// A normal distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// `[d]`.
    pub mean: Vec<f64>,
    /// The columns of a matrix L `[d, d]` with L·Lᵀ = Σ, the covariance.
    factor: Vec<Vec<f64>>,
    /// tr Σ.
    trace: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Several sums side by side, which a processor adds at once; the order is always the same.
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a8.iter().zip(b8) {
        (0..8).for_each(|k| sums[k] += a[k] * b[k]);
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

impl Gaussian {
    /// With the mean and the unbiased covariance of points.
    ///
    /// # Panics
    /// If there are fewer than two.
    #[track_caller]
    pub fn of(points: &Points) -> Self {
        let (n, d) = (points.len(), points.dim);
        assert!(n > 1, "Gaussian: a covariance of {n} points");
        let mean = mean(points);
        // A row per coordinate, so that sums run along rows.
        let away = |k: usize| (0..n).map(|i| points.row(i)[k] - mean[k]).collect::<Vec<f64>>();
        let away: Vec<Vec<f64>> = (0..d).map(away).collect();
        let row = |i: usize| (0..d).map(|j| dot(&away[i], &away[j]) / (n - 1) as f64).collect::<Vec<f64>>();
        Self::new(mean, (0..d).into_par_iter().map(row).collect())
    }

    /// Of a mean `[d]` and a covariance, row by row: symmetric, without negative eigenvalues.
    ///
    /// # Panics
    /// If the covariance is not `[d, d]`.
    #[track_caller]
    pub fn new(mean: Vec<f64>, covariance: Vec<Vec<f64>>) -> Self {
        let d = mean.len();
        assert!(covariance.len() == d && covariance.iter().all(|row| row.len() == d), "Gaussian: not {d} x {d}");
        let trace = (0..d).map(|i| covariance[i][i]).sum();
        // Rotated until they are orthogonal, the columns of Σ are its eigenvectors, each as long as its eigenvalue.
        let mut factor = covariance;
        orthogonalise(&mut factor);
        for column in &mut factor {
            let root = dot(column, column).sqrt().sqrt();
            column.iter_mut().for_each(|v| *v = if root > 0.0 { *v / root } else { 0.0 });
        }
        Gaussian { mean, factor, trace }
    }
}

/// The squared Fréchet distance of two normal distributions (Dowson and Landau, 1982):
/// |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½).
///
/// # Panics
/// If their dimensions differ.
#[track_caller]
pub fn frechet(a: &Gaussian, b: &Gaussian) -> f64 {
    assert_eq!(a.mean.len(), b.mean.len(), "frechet: distributions of different dimensions");
    let means = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    // The eigenvalues of Σ₁Σ₂ are the squared singular values of L₁ᵀL₂, so no matrix root is taken and no small number of one.
    let mut product: Vec<Vec<f64>> =
        b.factor.par_iter().map(|column| a.factor.iter().map(|row| dot(row, column)).collect()).collect();
    orthogonalise(&mut product);
    let root: f64 = product.iter().map(|column| dot(column, column).sqrt()).sum();
    (means + a.trace + b.trace - 2.0 * root).max(0.0)
}

/// Rounds over all pairs at most; ten are usual.
const ROUNDS: usize = 60;

/// Rotates pairs of columns until all are orthogonal (one-sided Jacobi; Hestenes, 1958): their lengths are then the singular values.
fn orthogonalise(columns: &mut [Vec<f64>]) {
    let all: f64 = columns.iter().map(|column| dot(column, column)).sum();
    // What is shorter is nothing but rounding.
    let nothing = all * f64::EPSILON.powi(2);
    for _ in 0..ROUNDS {
        let mut rotated = false;
        for p in 0..columns.len() {
            let (before, after) = columns.split_at_mut(p + 1);
            let a = &mut before[p];
            for b in after {
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                if aa.min(bb) <= nothing || ab.abs() <= 1e-15 * (aa * bb).sqrt() {
                    continue;
                }
                rotated = true;
                let slope = (bb - aa) / (2.0 * ab);
                let tangent = slope.signum() / (slope.abs() + slope.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = cosine * tangent;
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                }
            }
        }
        if !rotated {
            return;
        }
    }
}

fn mean(points: &Points) -> Vec<f64> {
    let n = points.len() as f64;
    (0..points.dim).map(|k| (0..points.len()).map(|i| points.row(i)[k]).sum::<f64>() / n).collect()
}

/// How far points are spread: the root of their mean squared distance from their mean, unbiased, √(Σ|f − f̄|² / (n − 1)). Of the features
/// of exemplars of one character, their diversity (Boutin et al., 2022); `None` for fewer than two.
pub fn diversity(points: &Points) -> Option<f64> {
    let (n, mean) = (points.len(), mean(points));
    let squares = |i: usize| points.row(i).iter().zip(&mean).map(|(f, mean)| (f - mean).powi(2)).sum::<f64>();
    (n > 1).then(|| ((0..n).map(squares).sum::<f64>() / (n - 1) as f64).sqrt())
}

/// How exemplars are made.
#[derive(Clone, Copy, Debug)]
pub struct Exemplars {
    /// The law by which they differ.
    pub token: Token,
    /// Test images of every class.
    pub images: usize,
    /// Exemplars of each; at least two.
    pub each: usize,
    /// Drawings per exemplar, of which the likeliest is taken.
    pub particles: usize,
}

/// Exemplars of the images of one class.
#[derive(Clone, Debug, Serialize)]
pub struct OfClass {
    /// Which.
    pub class: usize,
    /// Exemplars that a classifier takes for that class.
    pub recognised: Share,
    /// The [`diversity`] of one image's exemplars, the mean over images.
    pub spread: f64,
    /// The same of training images of the class.
    pub spread_of_images: f64,
    /// The one divided by the other: 1 is as different as people draw.
    pub diversity: f64,
    /// The first image and its exemplars.
    #[serde(skip)]
    pub shown: Row,
}

/// At most so many training images say how different people draw.
const OF_CLASS: usize = 1000;

/// Draws exemplars of test images of every class, and says how many are recognised and how they differ.
///
/// # Errors
/// [`Error::Usage`] where the model draws without curves; [`Error::Data`] where images have no
/// labels; [`Error::Stopped`]; those of a GPU.
pub fn exemplars(
    (artist, classifier): (&Artist, &Classifier),
    set: &DataSet,
    how: &Exemplars,
    rng: Rng,
    observer: &dyn Observer,
) -> Result<Vec<OfClass>> {
    let labels = |images: &Images| {
        images.labels.clone().ok_or_else(|| Error::Data("there are no classes of these images to know again".into()))
    };
    let (known, tested, side) = (labels(&set.train)?, labels(&set.test)?, classifier.sizes.side);
    let of = |labels: &[u16], class: usize| -> Vec<usize> {
        (0..labels.len()).filter(|&i| usize::from(labels[i]) == class).collect()
    };
    let some =
        |all: &[usize], count: usize| spread(count, all.len()).into_iter().map(|i| all[i]).collect::<Vec<usize>>();
    // Which test images, class by class.
    let classes: Vec<(usize, Vec<usize>)> = (0..classifier.sizes.classes)
        .map(|class| (class, some(&of(&tested, class), how.images)))
        .filter(|(_, images)| !images.is_empty())
        .collect();
    let which: Vec<usize> = classes.iter().flat_map(|(_, images)| images).copied().collect();
    let x = pixels(&set.test, which.iter().copied(), artist.params.device());
    let drawn = artist.vary(&x, &how.token, (how.each, how.particles), rng, observer)?;
    let seen = at_side(&as_images(drawn.iter().flat_map(|row| &row.drawn), set.test.side), side);
    let points = features(classifier, &seen, observer)?;
    let scores = classifier.scores(&pixels(&seen, 0..seen.len(), classifier.params.device()), observer)?;
    let first_best =
        |scores: &[f32]| (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
    let guesses: Vec<usize> = scores.chunks(classifier.sizes.classes).map(first_best).collect();
    let (mut found, mut first) = (vec![], 0);
    for (class, images) in classes {
        let rows = first..first + images.len();
        let spreads = rows.clone().map(|row| {
            let own: Vec<usize> = (row * how.each..(row + 1) * how.each).collect();
            diversity(&points.pick(&own)).expect("two or more")
        });
        let of_exemplars = spreads.sum::<f64>() / images.len() as f64;
        let people = picked(&set.train, &some(&of(&known, class), OF_CLASS));
        let spread_of_images = diversity(&features(classifier, &at_side(&people, side), observer)?).unwrap_or(f64::NAN);
        let recognised = guesses[rows.start * how.each..rows.end * how.each].iter().map(|&guess| guess == class);
        found.push(OfClass {
            class,
            recognised: Share::of(recognised),
            spread: of_exemplars,
            spread_of_images,
            diversity: of_exemplars / spread_of_images,
            shown: drawn[first].clone(),
        });
        first = rows.end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    /// What numpy and scipy make of three pairs of sets (`stored_case.py`).
    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        a: Vec<Vec<f64>>,
        b: Vec<Vec<f64>>,
        frechet: f64,
        diversity_a: f64,
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("frechet/stored_case.json")).unwrap()
    }

    fn points(rows: &[Vec<f64>]) -> Points {
        Points { dim: rows[0].len(), values: rows.concat() }
    }

    #[test]
    fn the_distance_is_that_of_scipy_symmetric_and_zero_of_a_set_from_itself() {
        let cases = cases();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let [a, b] = [&case.a, &case.b].map(|rows| Gaussian::of(&points(rows)));
            let found = frechet(&a, &b);
            assert!((found - case.frechet).abs() < 1e-6, "{}: {found} {}", case.name, case.frechet);
            assert!((found - frechet(&b, &a)).abs() < 1e-9, "{}", case.name);
            for one in [&a, &b] {
                assert!(frechet(one, one) < 1e-9, "{}: {}", case.name, frechet(one, one));
            }
            let spread = diversity(&points(&case.a)).unwrap();
            assert!((spread - case.diversity_a).abs() < 1e-9, "{spread} {}", case.diversity_a);
        }
    }

    #[test]
    fn distributions_whose_covariances_commute_have_a_closed_form() {
        // Rotated alike, the distance is that of means and of standard deviations.
        let (s, c) = 0.6f64.sin_cos();
        let turned = |[x, y]: [f64; 2]| {
            vec![vec![c * c * x + s * s * y, c * s * (x - y)], vec![c * s * (x - y), s * s * x + c * c * y]]
        };
        let a = Gaussian::new(vec![1.0, -2.0], turned([4.0, 0.25]));
        let b = Gaussian::new(vec![-2.0, 2.0], turned([9.0, 1.0]));
        let expected = 25.0 + (3.0f64 - 2.0).powi(2) + (1.0f64 - 0.5).powi(2);
        assert!((frechet(&a, &b) - expected).abs() < 1e-12, "{}", frechet(&a, &b));
        // A point has no covariance at all.
        let point = Gaussian::new(vec![1.0, -2.0], vec![vec![0.0; 2]; 2]);
        assert!((frechet(&a, &point) - 4.25).abs() < 1e-12);
        assert_eq!(frechet(&point, &point), 0.0);
    }

    #[test]
    fn sets_from_the_same_law_come_closer_the_larger_they_are() {
        let set = |seed, n: usize| {
            let rng = Rng::new(seed, 0);
            Gaussian::of(&Points { dim: 8, values: (0..8 * n).map(|i| rng.normal(Stream(0), i)).collect() })
        };
        let distance = |n| frechet(&set(1, n), &set(2, n));
        let [few, many] = [distance(50), distance(5000)];
        assert!(few > 10.0 * many && many > 0.0, "{few} {many}");
    }

    #[test]
    fn diversity_by_hand() {
        let two = Points { dim: 2, values: vec![0.0, 0.0, 6.0, 8.0] };
        assert!((diversity(&two).unwrap() - 50f64.sqrt()).abs() < 1e-12);
        assert_eq!(diversity(&Points { dim: 2, values: vec![1.0; 2] }), None);
        assert_eq!(diversity(&Points { dim: 2, values: vec![1.0; 8] }), Some(0.0));
    }
}
