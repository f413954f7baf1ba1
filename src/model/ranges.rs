//! The values that the networks' outputs may take (section 2.5).

use crate::ops::{
    Placement,
    Range::{self, Above, Free, Tanh, Within},
    Squash,
};
use std::f64::consts::FRAC_PI_4;

/// Mean of a layout: shift x, shift y, scale, rotation.
const LAYOUT_MEAN: [(usize, Range); 3] =
    [(2, Within(-0.8, 0.8)), (1, Within(0.25, 1.0)), (1, Within(-FRAC_PI_4, FRAC_PI_4))];
const LAYOUT_STD: Range = Within(1e-9, 1.0);
/// Mean of a control point's coordinate in the glimpse frame.
const POINT_MEAN: Range = Within(-0.2, 1.2);
const POINT_STD: Range = Within(1e-9, 1.0 + 1e-9);
/// The entry of the Cholesky factor that couples the first two coordinates.
const COR: Range = Within(-1.0, 1.0);

/// The least pen width: in the glimpse frame where strokes are warped, on the canvas where points are placed.
pub(super) fn thinnest(placement: Placement) -> f64 {
    match placement {
        Placement::Warp => 0.01,
        Placement::Points => 0.005,
    }
}

impl Squash {
    /// Probability that the pen stays on, 1 column.
    pub fn onoff() -> Self {
        Self::new(&[(1, Within(1e-9, 1.0 - 1e-9))])
    }

    /// Layout posterior, 9 columns: mean (shift x, shift y, scale, rotation), std 4, cor 1.
    pub fn layout() -> Self {
        Self::new(&[&LAYOUT_MEAN[..], &[(4, LAYOUT_STD), (1, COR)]].concat())
    }

    /// Stroke posterior, 5·points columns: means (x0, y0, x1, …), stds in the same order, cors.
    pub fn stroke(points: usize) -> Self {
        Self::new(&[(2 * points, POINT_MEAN), (2 * points, POINT_STD), (points, COR)])
    }

    /// Layout prior, 10·k columns: logits k, means k×4, stds k×4, cors k.
    pub fn layout_prior(k: usize) -> Self {
        Self::new(&[&[(k, Free)], &LAYOUT_MEAN.repeat(k)[..], &[(4 * k, LAYOUT_STD), (k, COR)]].concat())
    }

    /// Stroke prior, 6·points·k columns: logits points×k, means points×k×2, stds points×k×2, cors points×k.
    pub fn stroke_prior(points: usize, k: usize) -> Self {
        let n = points * k;
        Self::new(&[(n, Free), (2 * n, POINT_MEAN), (2 * n, POINT_STD), (n, COR)])
    }

    /// Pen, 2 columns: pen width in (low, 0.04), stroke slope in (0.1, 0.9).
    pub fn pen(low: f64) -> Self {
        Self::new(&[(1, Within(low, 0.04)), (1, Within(0.1, 0.9))])
    }

    /// Canvas slope, 1 column.
    pub fn canvas_slope() -> Self {
        Self::new(&[(1, Within(0.1, 1.5))])
    }

    /// AIR's on/off and layout, 9 columns: probability; mean (shift x, shift y, scale, rotation), std 4 (section 12.2).
    pub fn air_place() -> Self {
        let [shift, ..] = LAYOUT_MEAN;
        Self::new(&[(1, Within(0.0, 1.0)), shift, (1, Above(1e-6)), (1, Free), (4, Above(0.0))])
    }

    /// AIR's appearance code, 2·size columns: means, stds.
    pub fn air_code(size: usize) -> Self {
        Self::new(&[(size, Tanh), (size, Above(1e-6))])
    }
}
