//! How one exemplar of a character differs from another (paper B.3; sections 11d and 11f of the model): motor noise at the control
//! points of every stroke, and one affine map for the whole drawing.

use super::drawing::{Drawing, Frame};
use crate::{
    Device, Tape, Tensor,
    ops::Angle,
    rng::{Rng, Stream},
};

const MOTOR: Stream = Stream(11);
const MAP: Stream = Stream(12);

/// How the seven numbers of an affine map are drawn from their ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// Every value is as likely.
    Uniform,
    /// The logistic function of a standard normal number.
    Logistic,
}

/// The law of exemplars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    /// Standard deviations of a coordinate of a control point in the frame of its window: at the ends of a stroke, beside them, and
    /// further in.
    pub motor: [f64; 3],
    /// Ranges of shift x, shift y, scale x, scale y, angle, shear x, shear y.
    pub ranges: [(f64, f64); 7],
    /// How values are drawn from them.
    pub spread: Spread,
    /// What the angle is read as.
    pub angle: Angle,
}

/// ±`part` of π.
const fn turn(part: f64) -> (f64, f64) {
    (-part * std::f64::consts::PI, part * std::f64::consts::PI)
}

impl Token {
    /// As the paper says (B.3).
    pub const PAPER: Token = Token {
        motor: [1e-3; 3],
        ranges: [(-0.2, 0.2), (-0.2, 0.2), (0.8, 1.2), (0.8, 1.2), turn(0.25), turn(0.25), turn(0.25)],
        spread: Spread::Uniform,
        angle: Angle::Radians,
    };

    /// As the authors' program made its pictures (section 11d), whose angles are radians that are read as degrees.
    pub const REFERENCE: Token = Token {
        motor: [0.0, 3e-3, 0.1],
        ranges: [(-0.1, 0.1), (-0.1, 0.1), (0.9, 1.1), (0.9, 1.1), turn(0.1), turn(0.1), turn(0.1)],
        spread: Spread::Logistic,
        angle: Angle::Degrees,
    };

    /// Another exemplar of `drawing`, whose strokes lie in windows of `frame`. The exemplar's have the whole canvas as their window, and
    /// no densities: the law of exemplars is not that of the model.
    ///
    /// Strokes without control points stay as they are.
    pub fn vary(&self, drawing: &Drawing, frame: Frame, rng: Rng) -> Drawing {
        let map = self.matrix(rng);
        let mut count = 0;
        let mut noise = |std: f64| {
            count += 1;
            rng.normal(MOTOR, count - 1) * std
        };
        let strokes = drawing.strokes.iter().map(|stroke| {
            let mut stroke = stroke.clone();
            (stroke.log_prior, stroke.log_posterior) = (None, None);
            let layout = stroke.layout.unwrap_or_else(|| frame.around(&stroke.points));
            let mut points = frame.to_window(layout, &stroke.points);
            let last = points.len().saturating_sub(1);
            for (i, point) in points.iter_mut().enumerate() {
                let inside = i.min(last - i).min(2);
                *point = point.map(|v| v + noise(self.motor[inside]));
            }
            stroke.points = frame.to_canvas(layout, &points).iter().map(|&p| moved(&map, p)).collect();
            if !stroke.points.is_empty() {
                (stroke.layout, stroke.latent) = (None, vec![]);
            }
            stroke
        });
        Drawing { strokes: strokes.collect(), canvas_slope: drawing.canvas_slope, ..Drawing::default() }
    }

    /// A map from canvas to canvas (section 5: the token's affine), in coordinates from −1 to 1.
    fn matrix(&self, rng: Rng) -> [f64; 6] {
        let draw = |i: usize| match self.spread {
            Spread::Uniform => rng.uniform(MAP, i),
            Spread::Logistic => 1.0 / (1.0 + (-rng.normal(MAP, i)).exp()),
        };
        let drawn: [f64; 7] = std::array::from_fn(|i| {
            let (low, high) = self.ranges[i];
            low + (high - low) * draw(i)
        });
        let (device, n) = (Device::cpu_f64(), drawn.len());
        let tape = Tape::without_params(&device);
        let map = tape.constant(Tensor::from_f64(&device, &[1, n], &drawn)).affine7(self.angle);
        map.value().to_f64().try_into().expect("a matrix has six entries")
    }
}

/// `matrix` applied to a point of the canvas in [0, 1]².
fn moved([m0, m1, m2, m3, m4, m5]: &[f64; 6], [x, y]: [f64; 2]) -> [f64; 2] {
    let (x, y) = (2.0 * x - 1.0, 2.0 * y - 1.0);
    [(m0 * x + m1 * y + m2 + 1.0) / 2.0, (m3 * x + m4 * y + m5 + 1.0) / 2.0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{eval::drawing::Stroke, ops::Placement};

    const FRAME: Frame = Frame { placement: Placement::Points, side: 50 };

    fn line() -> Drawing {
        let points = vec![[0.2, 0.3], [0.3, 0.35], [0.5, 0.4], [0.6, 0.45], [0.7, 0.6]];
        let layout = Some([0.1, 0.0, 0.5, 0.2]);
        Drawing { strokes: vec![Stroke { points, layout, ..Stroke::default() }; 2], ..Drawing::default() }
    }

    /// Exemplars of [`line`], as differences of control points.
    fn moves(token: &Token) -> Vec<Vec<[f64; 2]>> {
        let before = line();
        let differ = |seed| {
            let varied = token.vary(&before, FRAME, Rng::new(seed, 0));
            let pairs = varied.strokes[0].points.iter().zip(&before.strokes[0].points);
            pairs.map(|(a, b)| [a[0] - b[0], a[1] - b[1]]).collect()
        };
        (0..200).map(differ).collect()
    }

    #[test]
    fn without_noise_and_with_the_identity_alone_nothing_moves() {
        let still = [(0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)];
        let token = Token { motor: [0.0; 3], ranges: still, ..Token::PAPER };
        assert!(moves(&token).iter().flatten().flatten().all(|d| d.abs() < 1e-14));
    }

    #[test]
    fn shifts_cover_their_range_and_move_every_point_alike() {
        let shift = [(-0.2, 0.2), (0.1, 0.1), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)];
        let moves = moves(&Token { motor: [0.0; 3], ranges: shift, ..Token::PAPER });
        for exemplar in &moves {
            assert!(exemplar.iter().all(|d| (d[0] - exemplar[0][0]).abs() < 1e-12 && (d[1] - 0.05).abs() < 1e-12));
        }
        let x: Vec<f64> = moves.iter().map(|e| e[0][0]).collect();
        assert!(x.iter().all(|v| v.abs() <= 0.1) && x.iter().any(|v| *v > 0.09) && x.iter().any(|v| *v < -0.09));
    }

    #[test]
    fn the_reference_moves_the_middle_and_keeps_the_ends() {
        let still = [(0.0, 0.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)];
        let moves = moves(&Token { ranges: still, ..Token::REFERENCE });
        let spread = |i: usize| (moves.iter().map(|e| e[i][0].powi(2) + e[i][1].powi(2)).sum::<f64>() / 400.0).sqrt();
        // The window has half the size of the canvas.
        assert!(spread(0) < 1e-14 && spread(4) < 1e-14);
        assert!((spread(2) - 0.05).abs() < 0.005 && (spread(1) - 0.0015).abs() < 2e-4, "{} {}", spread(2), spread(1));
    }

    #[test]
    fn an_exemplar_depends_on_its_seed_alone() {
        let vary = |seed| Token::PAPER.vary(&line(), FRAME, Rng::new(seed, 3));
        assert_eq!(vary(1), vary(1));
        assert_ne!(vary(1), vary(2));
    }
}
