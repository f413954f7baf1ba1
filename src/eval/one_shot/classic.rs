//! What is reached without a model: three ways to compare two drawings by their ink.

use crate::{
    Error, Observer, Result,
    data::{Images, Run},
};
use rayon::prelude::*;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classic {
    /// The modified Hausdorff distance of ink pixels about their centre (Dubuisson and Jain, 1994), as in the demonstration that comes
    /// with the official runs: 38.8 % errors.
    Hausdorff,
    /// The Euclidean distance of the images as they are: 21.7 % right (Koch, 2015).
    Pixels,
    /// The distance of ink from ink after the affine map that makes it smallest.
    Affine,
}

impl Classic {
    /// Scores `[queries · characters]` of a run, whose images should have the size of the official ones (105 x 105).
    ///
    /// # Errors
    /// [`Error::Data`] for an image without ink; [`Error::Stopped`].
    pub fn scores(self, run: &Run, observer: &dyn Observer) -> Result<Vec<f64>> {
        let (queries, supports) = (Shape::all(&run.query, "test")?, Shape::all(&run.support, "training")?);
        let pairs: Vec<(usize, usize)> =
            (0..queries.len()).flat_map(|q| (0..supports.len()).map(move |s| (q, s))).collect();
        let score = |&(q, s): &(usize, usize)| {
            observer.go_on()?;
            Ok(-match self {
                Classic::Hausdorff => hausdorff(&queries[q].ink, &supports[s].ink),
                Classic::Pixels => euclidean(run.query.image(q), run.support.image(s)),
                Classic::Affine => align(&queries[q], &supports[s]).0,
            })
        };
        pairs.par_iter().map(score).collect()
    }
}

/// The first two rows of an affine map's matrix, row-major.
pub(crate) type Map = [f64; 6];

/// For every query and character of a run, `[queries · characters]`, the affine map under which the character's ink comes to lie on that
/// of the query, as [`Classic::Affine`] finds it, from −1 to 1 across images. Only what has ink can be aligned; anything else stays where
/// it is.
pub(crate) fn alignments(queries: &Images, characters: &Images, observer: &dyn Observer) -> Result<Vec<Map>> {
    let [queries, characters] = [queries, characters]
        .map(|images| (0..images.len()).map(|i| Shape::of(images.image(i), images.side)).collect::<Vec<_>>());
    let pairs: Vec<_> = queries.iter().flat_map(|q| characters.iter().map(move |c| (q, c))).collect();
    let map = |(query, character): &(&Option<Shape>, &Option<Shape>)| {
        observer.go_on()?;
        let (Some(query), Some(character)) = (query, character) else { return Ok([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]) };
        let [_, [a, b, dx, d, e, dy]] = matrices(&align(query, character).1);
        // About the middle of images instead of the centres of ink.
        let unit = |v: f64| 2.0 * v / SIDE - 1.0;
        let [[x, y], [to_x, to_y]] = [character.centre, query.centre].map(|c| c.map(unit));
        let [dx, dy] = [dx, dy].map(|v| 2.0 * v / SIDE);
        Ok([a, b, to_x + dx - a * x - b * y, d, e, to_y + dy - d * x - e * y])
    };
    pairs.par_iter().map(map).collect()
}

/// Pixels of the official images along a side, which all lengths here are in.
const SIDE: f64 = 105.0;

/// A pixel's or a point's place, in pixels of the official images about the centre of the ink.
type Point = [f64; 2];

/// A drawing as a set of ink pixels.
struct Shape {
    ink: Vec<Point>,
    /// Some of it, for the search.
    sample: Vec<Point>,
    /// Squared distance of every pixel from the nearest ink.
    distance: Vec<f64>,
    side: usize,
    /// A pixel of this image.
    pixel: f64,
    centre: Point,
}

/// About so many points of a drawing are looked at in the search.
const SAMPLE: usize = 100;

impl Shape {
    fn all(images: &Images, which: &str) -> Result<Vec<Shape>> {
        let shape = |i: usize| {
            Shape::of(images.image(i), images.side)
                .ok_or_else(|| Error::Data(format!("{which} image {} of a one-shot run has no ink", i + 1)))
        };
        (0..images.len()).into_par_iter().map(shape).collect()
    }

    fn of(pixels: &[u8], side: usize) -> Option<Shape> {
        let pixel = SIDE / side as f64;
        // Ink that is thin in a small image is pale.
        let pale = pixels.iter().max()?.div_ceil(2).max(1);
        let is_ink = |at: usize| pixels[at] >= pale;
        let place = |at: usize| [(at % side) as f64 * pixel, (at / side) as f64 * pixel];
        let mut ink: Vec<Point> = (0..pixels.len()).filter(|&at| is_ink(at)).map(place).collect();
        if ink.is_empty() {
            return None;
        }
        let mean = |k: usize| ink.iter().map(|p| p[k]).sum::<f64>() / ink.len() as f64;
        let centre = [mean(0), mean(1)];
        ink.iter_mut().for_each(|p| *p = [p[0] - centre[0], p[1] - centre[1]]);
        let sample = ink.iter().step_by(ink.len().div_ceil(SAMPLE)).copied().collect();
        let distance = squared_distances(side, is_ink).into_iter().map(|v| v * pixel * pixel).collect();
        Some(Shape { ink, sample, distance, side, pixel, centre })
    }

    /// The squared distance of a point from the nearest ink, not above [`FAR`].
    fn distance(&self, [x, y]: Point) -> f64 {
        let (x, y) = (x + self.centre[0], y + self.centre[1]);
        let last = (self.side - 1) as f64 * self.pixel;
        // Outside of the image it is at least that from the border.
        let (inside_x, inside_y) = (x.clamp(0.0, last), y.clamp(0.0, last));
        let outside = (x - inside_x).powi(2) + (y - inside_y).powi(2);
        let [column, row] = [inside_x, inside_y].map(|v| (v / self.pixel).round() as usize);
        let at = row * self.side + column;
        (self.distance[at] + outside).min(FAR)
    }
}

/// The squared distance of every pixel from the nearest ink, first along columns, then along rows.
fn squared_distances(side: usize, is_ink: impl Fn(usize) -> bool) -> Vec<f64> {
    let mut along = vec![f64::INFINITY; side * side];
    for x in 0..side {
        for y in (0..side).filter(|y| is_ink(y * side + x)) {
            for other in 0..side {
                let at = &mut along[other * side + x];
                *at = at.min((other as f64 - y as f64).powi(2));
            }
        }
    }
    let nearest = |at: usize| {
        let (row, x) = (at / side * side, (at % side) as f64);
        (0..side).map(|other| along[row + other] + (other as f64 - x).powi(2)).fold(f64::INFINITY, f64::min)
    };
    (0..side * side).map(nearest).collect()
}

/// The larger one of the two means of the distances from each point of one set to the nearest point of the other.
fn hausdorff(a: &[Point], b: &[Point]) -> f64 {
    let mean = |from: &[Point], to: &[Point]| {
        let nearest = |p: &Point| {
            let squared = to.iter().map(|q| (p[0] - q[0]).powi(2) + (p[1] - q[1]).powi(2));
            squared.fold(f64::INFINITY, f64::min).sqrt()
        };
        from.iter().map(nearest).sum::<f64>() / from.len() as f64
    };
    mean(a, b).max(mean(b, a))
}

fn euclidean(a: &[u8], b: &[u8]) -> f64 {
    let squared = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>();
    squared.sqrt() / 255.0
}

/// Squared pixels: what is further away is not the same stroke.
const FAR: f64 = 100.0;
/// First steps of the search: shifts in pixels, logarithms of scales, rotation in radians, shear; each also costs 1 where it has gone
/// [`FREE`] times as far.
const STEPS: [f64; 6] = [4.0, 4.0, 0.12, 0.12, 0.15, 0.15];
const FREE: f64 = 2.0;
/// How often the steps are halved.
const HALVINGS: u32 = 4;
/// Rotations from which the search begins.
const TURNS: [f64; 3] = [0.0, -0.35, 0.35];

/// The mean squared distance of ink from ink, both ways, after the best affine map that is found by a search along its coordinates; and
/// that map, from the query to the character.
fn align(query: &Shape, support: &Shape) -> (f64, [f64; 6]) {
    let cost = |map: &[f64; 6]| {
        let [there, back] = matrices(map);
        let mean = |points: &[Point], m: &[f64; 6], to: &Shape| {
            let moved = points
                .iter()
                .map(|p| to.distance([m[0] * p[0] + m[1] * p[1] + m[2], m[3] * p[0] + m[4] * p[1] + m[5]]));
            moved.sum::<f64>() / points.len() as f64
        };
        let effort: f64 = map.iter().zip(STEPS).map(|(v, step)| (v / (FREE * step)).powi(2)).sum();
        mean(&query.sample, &there, support) + mean(&support.sample, &back, query) + effort
    };
    let search = |turn: f64| {
        let mut map = [0.0, 0.0, 0.0, 0.0, turn, 0.0];
        let mut best = cost(&map);
        for halving in 0..=HALVINGS {
            let size = 0.5f64.powi(halving as i32);
            loop {
                let before = best;
                for (i, step) in STEPS.into_iter().enumerate() {
                    for step in [step * size, -step * size] {
                        let mut other = map;
                        other[i] += step;
                        let found = cost(&other);
                        if found < best {
                            (map, best) = (other, found);
                            break;
                        }
                    }
                }
                if best >= before {
                    break;
                }
            }
        }
        (best, map)
    };
    TURNS.into_iter().map(search).min_by(|a, b| a.0.total_cmp(&b.0)).expect("there are some")
}

/// The map as a matrix, and its inverse: shift x, shift y, log scale x, log scale y, rotation, shear x.
fn matrices(&[dx, dy, scale_x, scale_y, angle, shear]: &[f64; 6]) -> [[f64; 6]; 2] {
    let ((s, c), x, y) = (angle.sin_cos(), scale_x.exp(), scale_y.exp());
    let [a, b, d, e] = [c * x, c * y * shear - s * y, s * x, s * y * shear + c * y];
    let det = a * e - b * d;
    let [ia, ib, id, ie] = [e / det, -b / det, -d / det, a / det];
    [[a, b, dx, d, e, dy], [ia, ib, -(ia * dx + ib * dy), id, ie, -(id * dx + ie * dy)]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Silent;

    /// Ink where `ink` says so, on 40 x 40 pixels.
    fn picture(ink: impl Fn(f64, f64) -> bool) -> Vec<u8> {
        (0..1600).map(|at| if ink((at % 40) as f64, (at / 40) as f64) { 255 } else { 0 }).collect()
    }

    fn images(pictures: &[Vec<u8>]) -> Images {
        let labels = Some((0..pictures.len() as u16).collect());
        Images { side: 40, pixels: pictures.concat(), labels }
    }

    fn cross(x: f64, y: f64) -> bool {
        (x - 20.0).abs() < 1.5 && (y - 20.0).abs() < 12.0 || (y - 16.0).abs() < 1.5 && (x - 20.0).abs() < 8.0
    }

    fn corner(x: f64, y: f64) -> bool {
        (x - 12.0).abs() < 1.5 && (y - 20.0).abs() < 12.0 || (y - 31.0).abs() < 1.5 && (x - 20.0).abs() < 8.0
    }

    #[test]
    fn the_modified_hausdorff_distance_is_the_larger_mean() {
        let (a, b) = ([[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 3.0], [4.0, 0.0]]);
        assert_eq!((hausdorff(&a, &a), hausdorff(&a, &b), hausdorff(&b, &a)), (0.0, 1.0, 1.0));
    }

    #[test]
    fn distances_from_ink_are_euclidean() {
        let found = squared_distances(7, |at| at == 8 || at == 40);
        for (at, found) in found.into_iter().enumerate() {
            let from = |x: f64, y: f64| ((at % 7) as f64 - x).powi(2) + ((at / 7) as f64 - y).powi(2);
            assert_eq!(found, from(1.0, 1.0).min(from(5.0, 5.0)));
        }
    }

    #[test]
    fn a_map_and_its_inverse_cancel() {
        let [m, inverse] = matrices(&[3.0, -2.0, 0.2, -0.1, 0.4, 0.3]);
        let apply = |m: &[f64; 6], [x, y]: Point| [m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]];
        let [x, y] = apply(&inverse, apply(&m, [5.0, 7.0]));
        assert!((x - 5.0).abs() < 1e-12 && (y - 7.0).abs() < 1e-12);
    }

    #[test]
    fn a_character_is_known_again_where_the_method_says_so() {
        // The second picture is the first one, turned, narrower and elsewhere.
        let moved = |shape: fn(f64, f64) -> bool| {
            picture(move |x, y| {
                let (x, y) = (x - 22.0, y - 18.0);
                shape((0.95 * x + 0.3 * y) * 1.15 + 20.0, (0.95 * y - 0.3 * x) + 20.0)
            })
        };
        let run =
            Run { support: images(&[picture(cross), picture(corner)]), query: images(&[moved(cross), moved(corner)]) };
        for method in [Classic::Hausdorff, Classic::Affine] {
            let scores = method.scores(&run, &Silent).unwrap();
            assert!(scores[0] > scores[1] && scores[3] > scores[2], "{method:?}: {scores:?}");
        }
        // It undoes the map: most of the distance that there is without one is gone.
        let [query, support] = [&run.query, &run.support].map(|images| Shape::of(images.image(0), 40).unwrap());
        let mean = |from: &Shape, to: &Shape| {
            from.sample.iter().map(|&p| to.distance(p)).sum::<f64>() / from.sample.len() as f64
        };
        let (still, moved) = (mean(&query, &support) + mean(&support, &query), align(&query, &support).0);
        assert!(moved < still / 2.0, "{still} -> {moved}");
        let same = Run {
            support: images(&[picture(cross), picture(corner)]),
            query: images(&[picture(cross), picture(corner)]),
        };
        for method in [Classic::Hausdorff, Classic::Pixels, Classic::Affine] {
            assert_eq!(method.scores(&same, &Silent).unwrap()[0], 0.0, "{method:?}");
        }
    }

    #[test]
    fn an_alignment_lays_a_character_on_a_query() {
        let still = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let blank = picture(|_, _| false);
        // Four pixels to the right and two up, of 40 pixels that are 2 across.
        let moved = picture(|x, y| cross(x - 4.0, y + 2.0));
        let found = alignments(&images(&[moved, blank.clone()]), &images(&[picture(cross), blank]), &Silent).unwrap();
        let wanted = [1.0, 0.0, 0.2, 0.0, 1.0, -0.1];
        assert!(found[0].iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.02), "{:?}", found[0]);
        assert_eq!(found[1..], [still; 3], "what has no ink stays where it is");
        // Turned by a third about the middle, larger by a tenth, and a little to the left.
        let turned = picture(|x, y| {
            let (x, y) = ((x - 18.0) / 1.1, (y - 20.0) / 1.1);
            let (c, s) = (0.3f64.cos(), 0.3f64.sin());
            cross(c * x + s * y + 20.0, c * y - s * x + 20.0)
        });
        let found = alignments(&images(&[turned]), &images(&[picture(cross)]), &Silent).unwrap()[0];
        let wanted = [1.1 * 0.3f64.cos(), -1.1 * 0.3f64.sin(), -0.1, 1.1 * 0.3f64.sin(), 1.1 * 0.3f64.cos(), 0.0];
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.12), "{found:?} instead of {wanted:?}");
    }

    #[test]
    fn an_image_without_ink_is_refused() {
        let run = Run { support: images(&[picture(cross)]), query: images(&[picture(|_, _| false)]) };
        let error = Classic::Pixels.scores(&run, &Silent).unwrap_err().to_string();
        assert_eq!(error, "test image 1 of a one-shot run has no ink");
    }
}
