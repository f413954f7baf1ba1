//! Finished drawings as images again, at any size: steps 2 to 7 of section 6 of the model, in canvas coordinates.

use super::drawing::{Drawing, Stroke};
use crate::{
    Device, Tape, Tensor, Var,
    ops::{Placement, RenderSettings, render_stroke},
};

/// What a stroke is drawn with where its drawing does not say: middling values of trained models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brush {
    /// Pen width σ on the canvas.
    pub width: f64,
    /// ω0.
    pub slope: f64,
    /// ω1.
    pub canvas_slope: f64,
}

impl Default for Brush {
    /// Between the initial values of section 2.6 and those of the synthetic set.
    fn default() -> Self {
        Brush { width: 0.015, slope: 0.7, canvas_slope: 0.47 }
    }
}

/// Curve samples per stroke (section 1).
const SAMPLES: usize = 100;
/// Maxima below this are not normalised away (section 6).
const NORM_FLOOR: f64 = 1e-4;

/// The canvases `[N, side, side]` after the first stroke, after the second, and so on up to the longest of `drawings`; at least one,
/// which is empty if no drawing has strokes. A drawing that is over stays as it is.
///
/// Strokes without control points leave no ink. Curves of different degrees are drawn together: raising the degree of a Bézier curve
/// does not change it.
pub fn paint(drawings: &[Drawing], brush: Brush, side: usize, device: &Device) -> Vec<Tensor> {
    let n = drawings.len();
    let steps = drawings.iter().map(|d| d.strokes.len()).max().unwrap_or(0);
    let points = drawings.iter().flat_map(|d| &d.strokes).map(|s| s.points.len()).max().unwrap_or(0).max(2);
    let tape = Tape::without_params(device);
    let constant = |shape: &[usize], values: Vec<f64>| tape.constant(Tensor::from_f64(device, shape, &values));
    let settings = RenderSettings { placement: Placement::Points, side, samples: SAMPLES, norm_floor: NORM_FLOOR };
    let identity = constant(&[n, 6], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0].repeat(n));
    let slope = constant(&[n], drawings.iter().map(|d| d.canvas_slope.unwrap_or(brush.canvas_slope)).collect());
    let mut ink: Option<Var> = None;
    let mut canvases = vec![];
    for t in 0..steps {
        let nothing = Stroke::default();
        let strokes: Vec<&Stroke> = drawings.iter().map(|d| d.strokes.get(t).unwrap_or(&nothing)).collect();
        let on: Vec<f64> = strokes.iter().map(|s| if s.points.is_empty() { 0.0 } else { 1.0 }).collect();
        let curves = strokes.iter().flat_map(|s| elevate(&s.points, points)).flatten().collect();
        let pen = strokes.iter().flat_map(|s| [s.width.unwrap_or(brush.width), s.slope.unwrap_or(brush.slope)]);
        let (curves, pen) = (constant(&[n, 2 * points], curves), constant(&[n, 2], pen.collect()));
        let stroke = render_stroke(curves, identity, pen, &Tensor::from_f64(device, &[n], &on), settings);
        let sum = ink.map_or(stroke, |ink| ink + stroke);
        ink = Some(sum);
        canvases.push(sum.tanh_ratio(slope).value());
    }
    if canvases.is_empty() {
        canvases.push(Tensor::zeros(device, &[n, side, side]));
    }
    canvases
}

/// The same Bézier curve with `count` control points; none become `count` zeros.
fn elevate(points: &[[f64; 2]], count: usize) -> Vec<[f64; 2]> {
    let mut points = points.to_vec();
    if points.is_empty() {
        points.resize(count, [0.0; 2]);
    }
    while points.len() < count {
        let n = points.len();
        let share = |i: usize| i as f64 / n as f64;
        let at = |i: usize| points[i.min(n - 1)];
        points = (0..=n)
            .map(|i| {
                let (before, after) = (at(i.saturating_sub(1)), at(i));
                [0, 1].map(|k| share(i) * before[k] + (1.0 - share(i)) * after[k])
            })
            .collect();
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stroke(points: &[[f64; 2]]) -> Stroke {
        Stroke { points: points.to_vec(), width: Some(0.02), slope: Some(0.5), ..Stroke::default() }
    }

    #[test]
    fn two_strokes_have_the_check_values_of_the_model() {
        // Appendix A: the strokes P and Q in their windows, placed by points.
        use crate::eval::drawing::Frame;
        let frame = Frame { placement: Placement::Points, side: 50 };
        let p = [[0.2, 0.2], [0.4, 0.1], [0.5, 0.5], [0.6, 0.9], [0.8, 0.7]];
        let q = [[0.8, 0.8], [0.9, 0.6], [0.5, 0.5], [0.1, 0.4], [0.3, 0.2]];
        let strokes = vec![
            stroke(&frame.to_canvas([0.1, -0.2, 0.6, 0.3], &p)),
            stroke(&frame.to_canvas([-0.1, 0.2, 0.8, -0.2], &q)),
        ];
        let drawing = Drawing { strokes, canvas_slope: Some(0.8), ..Drawing::default() };
        let canvas = paint(&[drawing], Brush::default(), 50, &Device::cpu_f64()).pop().unwrap().to_f64();
        let close = |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 1e-5, "{value} {expected}");
        close(canvas.iter().sum(), 184.2420);
        close(canvas[20 * 50 + 27], 0.7500207);
        close(canvas[30 * 50 + 20], 0.7283866);
    }

    #[test]
    fn curves_of_any_degree_are_drawn_together_and_short_drawings_stay_as_they_are() {
        let device = Device::cpu_f64();
        let short = Drawing { strokes: vec![stroke(&[[0.2, 0.2], [0.8, 0.6]])], ..Drawing::default() };
        let curve = [[0.1, 0.9], [0.2, 0.1], [0.5, 0.5], [0.9, 0.1], [0.9, 0.9], [0.3, 0.8], [0.2, 0.2]];
        let long = Drawing { strokes: vec![stroke(&curve), stroke(&curve[..3])], ..Drawing::default() };
        let together = paint(&[short.clone(), long, Drawing::default()], Brush::default(), 30, &device);
        let alone = paint(&[short], Brush::default(), 30, &device);
        assert_eq!((together.len(), alone.len()), (2, 1));
        let (first, last) = (together[0].rows(0, 1).to_f64(), together[1].rows(0, 1).to_f64());
        assert_eq!(first, last);
        for (a, b) in first.iter().zip(alone[0].to_f64()) {
            assert!((a - b).abs() < 1e-12);
        }
        assert_eq!(together[1].rows(2, 1).to_f64(), vec![0.0; 900]);
        assert_eq!(paint(&[Drawing::default()], Brush::default(), 8, &device)[0].to_f64(), vec![0.0; 64]);
    }
}
