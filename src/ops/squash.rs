//! The constraints that turn raw network outputs into parameters of distributions and of the renderer: each column is either left
//! as it is or squashed into its own range by `lo + (hi − lo)·σ(a)`.

use super::Op;
use crate::{Device, Tensor, Var, cpu, device::on_device, real::Real, tape::Slot};
use std::{f64::consts::FRAC_PI_4, sync::Arc};

/// The values that a raw output may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Any: the raw output itself.
    Free,
    /// Between two bounds: `lo + (hi − lo)·σ(a)`.
    Within(f64, f64),
}
use Range::{Free, Within};

/// Mean of a layout: shift x, shift y, scale, rotation.
const LAYOUT_MEAN: [(usize, Range); 3] =
    [(2, Within(-0.8, 0.8)), (1, Within(0.25, 1.0)), (1, Within(-FRAC_PI_4, FRAC_PI_4))];
const LAYOUT_STD: Range = Within(1e-9, 1.0);
/// Mean of a control point's coordinate in the glimpse frame.
const POINT_MEAN: Range = Within(-0.2, 1.2);
const POINT_STD: Range = Within(1e-9, 1.0 + 1e-9);
/// The entry of the Cholesky factor that couples the first two coordinates.
const COR: Range = Within(-1.0, 1.0);
/// Bounds of the per-pixel scale of the likelihood.
pub(super) const PIXEL_SCALE: (f64, f64) = (0.01, 1.0);

/// The ranges of the columns of a network's raw output (section 2.5 of the model).
#[derive(Clone, Debug)]
pub struct Squash(Arc<Vec<Range>>);

impl Squash {
    /// Ranges from left to right, each with the number of columns it holds for.
    pub fn new(ranges: &[(usize, Range)]) -> Self {
        Squash(Arc::new(ranges.iter().flat_map(|&(count, range)| vec![range; count]).collect()))
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

    /// Probability that the pen stays on, 1 column.
    pub fn onoff() -> Self {
        Self::new(&[(1, Within(1e-9, 1.0 - 1e-9))])
    }

    /// Scale of a pixel's likelihood, 1 column.
    pub fn pixel_scale() -> Self {
        Self::new(&[(1, Within(PIXEL_SCALE.0, PIXEL_SCALE.1))])
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.0.len()
    }

    /// Per column (f, lo, span) with y = f·a + lo + span·σ(a): without a branch, so that the loop over columns vectorises.
    fn coefficients<T: Real>(&self) -> Vec<(T, T, T)> {
        let coefficients = |range: &Range| match *range {
            Free => (T::ONE, T::ZERO, T::ZERO),
            Within(lo, hi) => (T::ZERO, T::of(lo), T::of(hi - lo)),
        };
        self.0.iter().map(coefficients).collect()
    }

    /// Rows per parallel task.
    fn together(&self) -> usize {
        (cpu::BLOCK / self.columns()).max(1)
    }
}

/// d σ(a) / d a, without the cancellation of 1 − σ for large a.
#[inline(always)]
pub(super) fn sigmoid_slope<T: Real>(a: T) -> T {
    let t = (-a.abs()).exp();
    t / ((T::ONE + t) * (T::ONE + t))
}

impl<'t> Var<'t> {
    /// Raw outputs `[…, C]` put into their ranges, same shape; C is a multiple of `ranges`' number of columns (one range serves
    /// any shape).
    #[track_caller]
    pub fn squash(self, ranges: &Squash) -> Var<'t> {
        self.tape().apply(ranges.clone(), &[self])
    }
}

impl Op for Squash {
    fn name(&self) -> &'static str {
        "squash"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (shape, columns) = (x[0].shape(), self.columns());
        let last = shape.last().copied().unwrap_or(1);
        assert!(last.is_multiple_of(columns), "squash: raw {shape:?} for {columns} columns; wanted [N, {columns}]");
        let mut y = Tensor::empty(cx, shape);
        on_device!(cx, T => {
            let (raw, coefficients) = (x[0].slice::<T>(), self.coefficients::<T>());
            // A probability close to 1 has few digits left in 1 − p, so a single column is rounded only once.
            if let [Within(lo, hi)] = self.0[..] {
                for (y, a) in y.slice_mut::<T>().iter_mut().zip(raw) {
                    *y = T::of(lo + (hi - lo) * Real::sigmoid(a.f64()));
                }
                return vec![y];
            }
            cpu::each_row(y.slice_mut::<T>(), columns, self.together(), #[inline(always)] |i, y| {
                let raw = &raw[columns * i..][..columns];
                for ((y, &a), &(f, lo, span)) in y.iter_mut().zip(raw).zip(&coefficients) {
                    *y = f * a + (lo + span * a.sigmoid());
                }
            });
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        let columns = self.columns();
        on_device!(cx, T => {
            let (raw, dy, coefficients) = (x[0].slice::<T>(), dy.slice::<T>(), self.coefficients::<T>());
            cpu::each_row(slot.add::<T>(), columns, self.together(), #[inline(always)] |i, dx| {
                let (raw, dy) = (&raw[columns * i..][..columns], &dy[columns * i..][..columns]);
                for (((dx, &a), &dy), &(f, _, span)) in dx.iter_mut().zip(raw).zip(dy).zip(&coefficients) {
                    *dx += dy * (f + span * sigmoid_slope(a));
                }
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};

    #[test]
    fn squash_gradients() {
        for ranges in [Squash::layout(), Squash::stroke(5), Squash::layout_prior(3), Squash::stroke_prior(2, 3)] {
            let error = gradcheck(&[&[3, ranges.columns()]], |_, x| x[0].squash(&ranges));
            assert!(error < 1e-6, "{error}");
        }
        assert!(gradcheck(&[&[4, 5]], |_, x| x[0].squash(&Squash::pixel_scale())) < 1e-6);
    }

    #[test]
    fn raw_zero_is_the_middle_and_extremes_are_the_bounds() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let squashed = |a: f64| {
                let raw = tape.constant(Tensor::full(&device, &[1, 10], a));
                raw.squash(&Squash::layout_prior(1)).value().to_f64()
            };
            let close = |found: Vec<f64>, wanted: [f64; 10]| {
                assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {wanted:?}");
            };
            close(squashed(0.0), [0.0, 0.0, 0.0, 0.625, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0]);
            close(squashed(80.0), [80.0, 0.8, 0.8, 1.0, FRAC_PI_4, 1.0, 1.0, 1.0, 1.0, 1.0]);
            close(squashed(-80.0), [-80.0, -0.8, -0.8, 0.25, -FRAC_PI_4, 1e-9, 1e-9, 1e-9, 1e-9, -1.0]);
        }
    }

    #[test]
    fn single_precision_keeps_the_slope_of_saturated_outputs() {
        for a in [-30.0f32, -9.0, 0.3, 9.0, 18.0, 30.0] {
            let exact = sigmoid_slope(a as f64);
            assert!((sigmoid_slope(a) as f64 / exact - 1.0).abs() < 1e-6);
        }
    }
}
