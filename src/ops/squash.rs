//! The constraints that turn raw network outputs into parameters of distributions and of the renderer: each column is either left
//! as it is or squashed into its own range, by `lo + (hi − lo)·σ(a)`, `lo + log(1 + eᵃ)` or `tanh a`.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use std::sync::Arc;

/// The values that a raw output may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Any: the raw output itself.
    Free,
    /// Between two bounds: `lo + (hi − lo)·σ(a)`.
    Within(f64, f64),
    /// Above a bound: `lo + log(1 + eᵃ)`.
    Above(f64),
    /// Between −1 and 1: `tanh a`.
    Tanh,
}
use Range::{Above, Free, Tanh, Within};

/// Bounds of the per-pixel scale of the likelihood.
pub(crate) const PIXEL_SCALE: (f64, f64) = (0.01, 1.0);

/// The ranges of the columns of a network's raw output. Those of the model are in `model/ranges.rs`.
#[derive(Clone, Debug)]
pub struct Squash(Arc<Vec<Range>>);

impl Squash {
    /// Ranges from left to right, each with the number of columns it holds for.
    pub fn new(ranges: &[(usize, Range)]) -> Self {
        Squash(Arc::new(ranges.iter().flat_map(|&(count, range)| vec![range; count]).collect()))
    }

    /// Scale of a pixel's likelihood, 1 column.
    pub fn pixel_scale() -> Self {
        Self::new(&[(1, Within(PIXEL_SCALE.0, PIXEL_SCALE.1))])
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.0.len()
    }

    /// Per column (f, lo, span) with y = f·a + lo + span·σ(a): without a branch, so that the loop over columns vectorises. What the
    /// columns of [`Squash::curved`] have besides is added to it.
    fn coefficients<T: Real>(&self) -> Vec<(T, T, T)> {
        let coefficients = |range: &Range| match *range {
            Free => (T::ONE, T::ZERO, T::ZERO),
            Within(lo, hi) => (T::ZERO, T::of(lo), T::of(hi - lo)),
            Above(lo) => (T::ZERO, T::of(lo), T::ZERO),
            Tanh => (T::ZERO, T::ZERO, T::ZERO),
        };
        self.0.iter().map(coefficients).collect()
    }

    /// The columns with another function than σ, and whether it is tanh or log(1 + eᵃ).
    fn curved(&self) -> Vec<(usize, bool)> {
        let curved = |(c, range): (usize, &Range)| match range {
            Free | Within(..) => None,
            Above(_) => Some((c, false)),
            Tanh => Some((c, true)),
        };
        self.0.iter().enumerate().filter_map(curved).collect()
    }

    /// What a kernel knows of the columns: the function of each, then every `lo`, then every span.
    fn constant(&self, gpu: &Gpu) -> Arg {
        let table = self.0.iter().map(|range| match *range {
            Free => [0.0, 0.0, 0.0],
            Within(lo, hi) => [1.0, lo, hi - lo],
            Above(lo) => [2.0, lo, 0.0],
            Tanh => [3.0, 0.0, 0.0],
        });
        gpu.constant((0..3).flat_map(|k| table.clone().map(move |row| row[k])))
    }

    /// Rows per parallel task.
    fn together(&self) -> usize {
        (cpu::BLOCK / self.columns()).max(1)
    }
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
            let (raw, coefficients, curved) = (x[0].slice::<T>(), self.coefficients::<T>(), self.curved());
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
                for &(c, tanh) in &curved {
                    y[c] += if tanh { Real::tanh(raw[c]) } else { raw[c].softplus() };
                }
            });
        }, gpu => {
            if let [Within(lo, hi)] = self.0[..] {
                let (n, [lo, span]) = (y.len(), [lo, hi - lo].map(|x| Arg::Wide(x.to_bits())));
                gpu.launch("squash", "squash_one_fwd", Launch::elements(n), args![&x[0], y.out(), n, lo, span]);
                return vec![y];
            }
            let n = y.len();
            let args = args![&x[0], self.constant(gpu), y.out(), n, columns];
            gpu.launch("squash", "squash_fwd", Launch::elements(n), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        let columns = self.columns();
        on_device!(cx, T => {
            let (raw, dy) = (x[0].slice::<T>(), dy.slice::<T>());
            let (coefficients, curved) = (self.coefficients::<T>(), self.curved());
            cpu::each_row(slot.add::<T>(), columns, self.together(), #[inline(always)] |i, dx| {
                let (raw, dy) = (&raw[columns * i..][..columns], &dy[columns * i..][..columns]);
                for (((dx, &a), &dy), &(f, _, span)) in dx.iter_mut().zip(raw).zip(dy).zip(&coefficients) {
                    *dx += dy * (f + span * a.sigmoid_slope());
                }
                for &(c, tanh) in &curved {
                    let y = Real::tanh(raw[c]);
                    dx[c] += dy[c] * if tanh { T::ONE - y * y } else { raw[c].sigmoid() };
                }
            });
        }, gpu => {
            let ([da, add], n) = (grad(&mut dx[0]), dy.len());
            let args = args![&x[0], self.constant(gpu), dy, da, add, n, columns];
            gpu.launch("squash", "squash_bwd", Launch::elements(n), args);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};
    use approx::assert_abs_diff_eq;
    use std::f64::consts::FRAC_PI_4;

    #[test]
    fn squash_gradients() {
        for ranges in [Squash::layout(), Squash::stroke(5), Squash::layout_prior(3), Squash::stroke_prior(2, 3)] {
            let error = gradcheck(&[&[3, ranges.columns()]], |_, x| x[0].squash(&ranges));
            assert!(error < 1e-6, "{error}");
        }
        assert!(gradcheck(&[&[4, 5]], |_, x| x[0].squash(&Squash::pixel_scale())) < 1e-6);
        let all = Squash::new(&[(1, Free), (2, Above(1e-6)), (1, Within(-2.0, 3.0)), (2, Tanh), (1, Above(0.0))]);
        assert!(gradcheck(&[&[4, 7]], |_, x| x[0].squash(&all)) < 1e-6);
        assert!(gradcheck(&[&[4, 5]], |_, x| x[0].squash(&Squash::new(&[(1, Tanh)]))) < 1e-6);
    }

    #[test]
    fn raw_zero_is_the_middle_and_extremes_are_the_bounds() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let squashed = |a: f64| {
                let raw = tape.constant(Tensor::full(&device, &[1, 10], a));
                raw.squash(&Squash::layout_prior(1)).value().to_f64()
            };
            let close = |found: Vec<f64>, wanted: &[f64]| assert_abs_diff_eq!(found[..], *wanted, epsilon = 1e-6);
            close(squashed(0.0), &[0.0, 0.0, 0.0, 0.625, 0.0, 0.5, 0.5, 0.5, 0.5, 0.0]);
            close(squashed(80.0), &[80.0, 0.8, 0.8, 1.0, FRAC_PI_4, 1.0, 1.0, 1.0, 1.0, 1.0]);
            close(squashed(-80.0), &[-80.0, -0.8, -0.8, 0.25, -FRAC_PI_4, 1e-9, 1e-9, 1e-9, 1e-9, -1.0]);
            let curved = |a: f64| {
                let raw = tape.constant(Tensor::full(&device, &[1, 2], a));
                raw.squash(&Squash::new(&[(1, Above(0.5)), (1, Tanh)])).value().to_f64()
            };
            close(curved(0.0), &[0.5 + std::f64::consts::LN_2, 0.0]);
            close(curved(80.0), &[80.5, 1.0]);
            close(curved(-80.0), &[0.5, -1.0]);
        }
    }
}
