//! What a hand draws: lines of a round pen, and the image that a model sees of them.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// More of either is taken for a mistake.
const MOST_LINES: usize = 1000;
const MOST_POINTS: usize = 20_000;
/// From full ink to none at the edge of a line: a pixel of the 28 that MNIST has.
const EDGE: f64 = 1.0 / 28.0;
/// Small ink is not enlarged more than this: a dot stays one.
const MOST_SCALE: f64 = 4.0;

/// A line of a round pen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Where the pen was, in canvas coordinates in [0, 1]: x to the right, y down. One point is a dot.
    pub points: Vec<[f64; 2]>,
    /// The width of the line in the same unit.
    pub width: f64,
}

/// Lines in the order in which they were drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ink {
    /// The lines.
    pub lines: Vec<Line>,
}

/// Where what a hand drew lies in the image: `scale · p + shift`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// How much larger it is there.
    pub scale: f64,
    /// How far right and down it then is.
    pub shift: [f64; 2],
}

impl Place {
    /// As it lies.
    pub const AS_IT_IS: Place = Place { scale: 1.0, shift: [0.0; 2] };

    fn of(self, point: [f64; 2]) -> [f64; 2] {
        [0, 1].map(|k| self.scale * point[k] + self.shift[k])
    }
}

impl Ink {
    /// Refuses what no hand has drawn.
    ///
    /// # Errors
    /// [`Error::Usage`]: no lines or too many, numbers that are not near the canvas, impossible widths.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(what));
        let points: usize = self.lines.iter().map(|line| line.points.len()).sum();
        if self.lines.is_empty() {
            return wrong("the ink has no lines".into());
        }
        if self.lines.len() > MOST_LINES || points > MOST_POINTS {
            let lines = self.lines.len();
            return wrong(format!(
                "the ink has {lines} lines of {points} points; at most {MOST_LINES} lines and {MOST_POINTS} points are possible"
            ));
        }
        for (i, line) in self.lines.iter().enumerate() {
            if line.points.is_empty() {
                return wrong(format!("line {} of the ink has no points", i + 1));
            }
            if !line.points.iter().flatten().all(|v| v.abs() <= 10.0) {
                return wrong(format!(
                    "the points of line {} of the ink must lie within ±10; the canvas is [0, 1]",
                    i + 1
                ));
            }
            if !(1e-3..=0.5).contains(&line.width) {
                return wrong(format!("the width of line {} of the ink must lie between 0.001 and 0.5", i + 1));
            }
        }
        Ok(())
    }

    /// The image `[side, side]` of the ink in [0, 1], and where it lies in it.
    ///
    /// With `fit`, a part of the image in (0, 1], the longer side of what was drawn becomes that long, pen included, and its centre of
    /// mass comes to the middle, as MNIST's digits are (`fit` 20/28 there). The pen keeps its width. Without, all stays where it is.
    pub fn image(&self, side: usize, fit: Option<f64>) -> (Vec<f32>, Place) {
        let Some(part) = fit else { return (self.paint(side, Place::AS_IT_IS), Place::AS_IT_IS) };
        let pen = self.lines.iter().map(|line| line.width).fold(0.0, f64::max);
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let span = |k: usize| {
            let ends = points().fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], p| [a.min(p[k]), b.max(p[k])]);
            ((ends[0] + ends[1]) / 2.0, ends[1] - ends[0])
        };
        let [(x, wide), (y, high)] = [span(0), span(1)];
        let scale = ((part - pen).max(part / 4.0) / wide.max(high).max(1e-9)).min(MOST_SCALE);
        let middle = Place { scale, shift: [0.5 - scale * x, 0.5 - scale * y] };
        let [x, y] = centre(&self.paint(side, middle), side);
        let place = Place { scale, shift: [middle.shift[0] + 0.5 - x, middle.shift[1] + 0.5 - y] };
        (self.paint(side, place), place)
    }

    /// Full ink within the pen's width, none beyond a soft edge; lines that cross are no darker there.
    fn paint(&self, side: usize, place: Place) -> Vec<f32> {
        let mut pixels = vec![0.0f32; side * side];
        let n = side as f64;
        for line in &self.lines {
            let reach = (line.width + EDGE) / 2.0;
            let first = line.points.first().into_iter().map(|p| [p, p]);
            let segments = first.chain(line.points.windows(2).map(|pair| [&pair[0], &pair[1]]));
            for [a, b] in segments.map(|ends| ends.map(|p| place.of(*p))) {
                // Pixel j is at j / side (section 6 of the model).
                let range = |k: usize| {
                    let from = ((a[k].min(b[k]) - reach) * n).ceil().clamp(0.0, n);
                    let to = ((a[k].max(b[k]) + reach) * n).floor().clamp(-1.0, n - 1.0);
                    from as usize..(to + 1.0) as usize
                };
                for row in range(1) {
                    for column in range(0) {
                        let ink = (reach - distance([column as f64 / n, row as f64 / n], a, b)) / EDGE;
                        let pixel = &mut pixels[row * side + column];
                        *pixel = pixel.max(ink.clamp(0.0, 1.0) as f32);
                    }
                }
            }
        }
        pixels
    }
}

/// From a point to a piece of line.
fn distance(p: [f64; 2], a: [f64; 2], b: [f64; 2]) -> f64 {
    let ([x, y], [dx, dy]) = ([p[0] - a[0], p[1] - a[1]], [b[0] - a[0], b[1] - a[1]]);
    let length = dx * dx + dy * dy;
    let along = if length > 0.0 { ((x * dx + y * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    (x - along * dx).hypot(y - along * dy)
}

/// The centre of mass of an image `[side, side]`, in canvas coordinates; its middle where there is no ink.
pub fn centre(pixels: &[f32], side: usize) -> [f64; 2] {
    let (mut mass, mut sums) = (0.0, [0.0; 2]);
    for (i, &ink) in pixels.iter().enumerate() {
        let ink = f64::from(ink);
        mass += ink;
        sums[0] += ink * (i % side) as f64;
        sums[1] += ink * (i / side) as f64;
    }
    if mass > 0.0 { sums.map(|sum| sum / mass / side as f64) } else { [0.5; 2] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[[f64; 2]]) -> Ink {
        Ink { lines: vec![Line { points: points.to_vec(), width: 0.1 }] }
    }

    #[test]
    fn a_line_is_as_wide_as_its_pen_and_soft_at_its_edge() {
        let (pixels, place) = line(&[[0.2, 0.5], [0.8, 0.5]]).image(100, None);
        assert_eq!(place, Place::AS_IT_IS);
        let down: f32 = (0..100).map(|row| pixels[row * 100 + 50]).sum();
        assert!((down - 10.0).abs() < 0.1, "{down}");
        assert_eq!((pixels[50 * 100 + 50], pixels[58 * 100 + 50], pixels[50 * 100 + 5]), (1.0, 0.0, 0.0));
        assert!((pixels[55 * 100 + 50] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn ink_that_is_fitted_has_its_size_its_middle_and_the_same_pen_wherever_it_was_drawn() {
        let seven = [[0.1, 0.1], [0.3, 0.1], [0.2, 0.4]];
        let (pixels, place) = line(&seven).image(50, Some(0.7));
        let [x, y] = centre(&pixels, 50);
        assert!((x - 0.5).abs() < 0.005 && (y - 0.5).abs() < 0.005, "{x} {y}");
        let rows: Vec<usize> = (0..50).filter(|row| pixels[row * 50..][..50].iter().any(|&v| v >= 0.5)).collect();
        let high = (rows[rows.len() - 1] - rows[0] + 1) as f64 / 50.0;
        assert!((high - 0.7).abs() <= 0.03, "{high}");
        assert!((place.scale - 0.6 / 0.3).abs() < 1e-9);
        let moved = seven.map(|[x, y]| [0.5 + 0.5 * x, 0.4 + 0.5 * y]);
        let (again, _) = line(&moved).image(50, Some(0.7));
        let differ = pixels.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(differ < 0.02, "{differ}");
    }

    #[test]
    fn dots_and_what_lies_outside_are_no_harm() {
        let (dot, place) = line(&[[0.3, 0.9]]).image(50, Some(0.7));
        assert!(place.scale == MOST_SCALE && dot[25 * 50 + 25] == 1.0);
        assert!(line(&[[-9.0, 3.0], [-8.0, 9.0]]).image(50, None).0.iter().all(|&v| v == 0.0));
        assert!(line(&[[-9.0, 0.5], [9.0, 0.5]]).image(50, None).0[25 * 50] == 1.0);
    }

    #[test]
    fn what_no_hand_has_drawn_is_refused() {
        let cases = [
            (Ink::default(), "no lines"),
            (line(&[]), "line 1 of the ink has no points"),
            (line(&[[0.0, f64::NAN]]), "within ±10"),
            (line(&[[0.0, 1e9]]), "within ±10"),
            (Ink { lines: vec![Line { points: vec![[0.0; 2]], width: 0.0 }] }, "width of line 1"),
            (Ink { lines: vec![line(&[[0.1; 2]]).lines[0].clone(); 10_000] }, "10000 lines"),
        ];
        for (ink, expected) in cases {
            let error = ink.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        line(&[[0.0, 0.5]]).check().unwrap();
    }
}
