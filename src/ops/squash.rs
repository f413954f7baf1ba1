//! The constraints that turn raw network outputs into parameters of distributions and of the renderer: each column is either left
//! as it is or squashed into its own range by `lo + (hi − lo)·σ(a)`.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
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

    /// The arguments of the kernel launches for tensors with `rows` rows, each with its number of elements. All ranges of the model
    /// fit into one launch.
    fn launches(&self, rows: usize) -> Vec<(usize, Vec<Arg>)> {
        let (total, mut at, mut all) = (self.columns(), 0, vec![]);
        while at < total {
            let part = Segments::at_the_start_of(&self.0[at..]);
            let width = part.ends[SEGMENTS - 1];
            let mut args = [rows * width, at, width, total].map(Arg::from).to_vec();
            args.extend(part.ends.map(Arg::from));
            args.extend(part.patterns.map(Arg::Word));
            args.extend((0..RANGES).map(|i| Arg::Real(part.bounds.get(i).map_or(0.0, |b| b.0))));
            args.extend((0..RANGES).map(|i| Arg::Real(part.bounds.get(i).map_or(0.0, |b| b.1 - b.0))));
            all.push((rows * width, args));
            at += width;
        }
        all
    }

    /// Rows per parallel task.
    fn together(&self) -> usize {
        (cpu::BLOCK / self.columns()).max(1)
    }
}

/// The ranges of neighbouring columns in the few numbers that a kernel takes by value, for there is no sending to a GPU while a step
/// is captured. A segment repeats a pattern of at most [`PERIOD`] columns and ends before column `end`; a pattern is a word of 4-bit
/// digits, the lowest its period and the others the ranges of its columns: [`FREE`] or a place among `bounds`.
struct Segments {
    ends: [usize; SEGMENTS],
    patterns: [u32; SEGMENTS],
    bounds: Vec<(f64, f64)>,
}

const SEGMENTS: usize = 4;
const PERIOD: usize = 4;
const RANGES: usize = 8;
const FREE: u32 = 15;

impl Segments {
    /// As many columns from the first on as one launch can treat. Segments that are not needed are empty.
    fn at_the_start_of(columns: &[Range]) -> Self {
        let mut part = Segments { ends: [0; SEGMENTS], patterns: [1; SEGMENTS], bounds: vec![] };
        let mut at = 0;
        for segment in 0..SEGMENTS {
            let rest = &columns[at..];
            let repeats = |period| (0..rest.len()).take_while(|&i| i < period || rest[i] == rest[i % period]).count();
            // The last of the largest, so the shortest period.
            let period = (1..=PERIOD).rev().max_by_key(|&period| repeats(period)).unwrap_or(1);
            if let Some(pattern) = part.pattern(&rest[..period.min(rest.len())]) {
                part.patterns[segment] = pattern;
                at += repeats(period);
            }
            part.ends[segment] = at;
        }
        part
    }

    /// The word of a pattern, or `None` where its bounds are too many.
    fn pattern(&mut self, columns: &[Range]) -> Option<u32> {
        let mut bounds = self.bounds.clone();
        let mut digit = |range: &Range| match *range {
            Free => FREE,
            Within(lo, hi) => bounds.iter().position(|&b| b == (lo, hi)).unwrap_or_else(|| {
                bounds.push((lo, hi));
                bounds.len() - 1
            }) as u32,
        };
        let mut word = columns.len() as u32;
        for (i, range) in columns.iter().enumerate() {
            word |= digit(range) << (4 * (i + 1));
        }
        (bounds.len() <= RANGES).then(|| {
            self.bounds = bounds;
            word.max(1)
        })
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
        }, gpu => {
            if let [Within(lo, hi)] = self.0[..] {
                let (n, [lo, span]) = (y.len(), [lo, hi - lo].map(|x| Arg::Wide(x.to_bits())));
                gpu.launch("squash", "squash_one_fwd", Launch::elements(n), args![&x[0], y.out(), n, lo, span]);
                return vec![y];
            }
            for (n, columns) in self.launches(y.len() / columns) {
                let args = [args![&x[0], y.out()], &columns[..]].concat();
                gpu.launch("squash", "squash_fwd", Launch::elements(n), &args);
            }
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
        }, gpu => {
            let [da, add] = grad(&mut dx[0]);
            for (n, columns) in self.launches(dy.len() / columns) {
                let args = [args![&x[0], dy, da, add], &columns[..]].concat();
                gpu.launch("squash", "squash_bwd", Launch::elements(n), &args);
            }
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
    fn segments_stand_for_the_ranges_of_all_columns() {
        let odd: Vec<_> = (0..23).map(|i| (1 + i % 3, Within(0.0, 1.0 + (i * i % 17) as f64))).collect();
        let models = [Squash::layout(), Squash::stroke(5), Squash::layout_prior(40), Squash::stroke_prior(5, 40)];
        for (i, ranges) in models.into_iter().chain([Squash::new(&odd), Squash::new(&[(3, Free)])]).enumerate() {
            let (mut at, mut parts) = (0, 0);
            while at < ranges.columns() {
                let part = Segments::at_the_start_of(&ranges.0[at..]);
                let mut start = 0;
                for (&end, &pattern) in part.ends.iter().zip(&part.patterns) {
                    for c in start..end {
                        let place = (c - start) as u32 % (pattern & 15);
                        let found = match pattern >> (4 * (place + 1)) & 15 {
                            FREE => Free,
                            digit => Within(part.bounds[digit as usize].0, part.bounds[digit as usize].1),
                        };
                        assert_eq!(found, ranges.0[at + c], "ranges {i}, column {}", at + c);
                    }
                    start = end;
                }
                assert!(start > 0);
                (at, parts) = (at + start, parts + 1);
            }
            assert!(parts == 1 || i == 4, "ranges {i} take {parts} launches");
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
