//! Bézier curves sampled uniformly in their parameter (step 1 of section 6 of the model).
//!
//! ```text
//! B_n = Σ_j C(J−1, j)·(1−u_n)^(J−1−j)·u_n^j·z_j        u_n = n/(S−1)
//! ```

use super::{Op, place_points::count};
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct Bezier {
    samples: usize,
}

impl<'t> Var<'t> {
    /// Samples the Bézier curves of control points: `[N, J, 2]` or `[N, 2J]`, J ≥ 2 → `[N, samples, 2]`, both ends included.
    #[track_caller]
    pub fn bezier(self, samples: usize) -> Var<'t> {
        self.tape().apply(Bezier { samples }, &[self])
    }
}

#[track_caller]
pub(super) fn check(points: usize, samples: usize) {
    assert!(
        points >= 2 && samples >= 2,
        "bezier: {points} points and {samples} samples; at least 2 of each are needed"
    );
}

/// The Bernstein polynomials at the samples: weight of point j in sample n at `[n·points + j]`.
#[track_caller]
pub(super) fn bernstein<T: Real>(points: usize, samples: usize) -> Vec<T> {
    check(points, samples);
    let degree = points - 1;
    let mut basis = Vec::with_capacity(points * samples);
    for n in 0..samples {
        let u = n as f64 / (samples - 1) as f64;
        let mut choose = 1.0;
        for j in 0..points {
            basis.push(T::of(choose * (1.0 - u).powi((degree - j) as i32) * u.powi(j as i32)));
            choose = choose * (degree - j) as f64 / (j + 1) as f64;
        }
    }
    basis
}

#[inline(always)]
pub(super) fn sample_curve<T: Real>(basis: &[T], points: &[T], curve: &mut [T]) {
    for (weights, at) in basis.chunks_exact(points.len() / 2).zip(curve.chunks_exact_mut(2)) {
        let (mut x, mut y) = (T::ZERO, T::ZERO);
        for (&w, z) in weights.iter().zip(points.chunks_exact(2)) {
            (x, y) = (w.mul_add(z[0], x), w.mul_add(z[1], y));
        }
        (at[0], at[1]) = (x, y);
    }
}

/// Adds to the gradient of the control points.
#[inline(always)]
pub(super) fn sample_curve_backward<T: Real>(basis: &[T], dcurve: &[T], dpoints: &mut [T]) {
    for (weights, d) in basis.chunks_exact(dpoints.len() / 2).zip(dcurve.chunks_exact(2)) {
        for (&w, dz) in weights.iter().zip(dpoints.chunks_exact_mut(2)) {
            (dz[0], dz[1]) = (w.mul_add(d[0], dz[0]), w.mul_add(d[1], dz[1]));
        }
    }
}

impl Op for Bezier {
    fn name(&self) -> &'static str {
        "bezier"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, j) = count("bezier", &x[0]);
        let mut y = Tensor::empty(cx, &[n, self.samples, 2]);
        on_device!(cx, T => {
            let basis = bernstein::<T>(j, self.samples);
            for (y, x) in y.slice_mut::<T>().chunks_mut(2 * self.samples).zip(x[0].slice::<T>().chunks(2 * j)) {
                sample_curve(&basis, x, y);
            }
        }, gpu => {
            check(j, self.samples);
            let out = args![&x[0], y.out(), n, j, self.samples];
            gpu.launch("bezier", "bezier_fwd", Launch::elements(n * self.samples), out);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, j) = count("bezier", &x[0]);
        on_device!(cx, T => {
            let Some(slot) = &mut dx[0] else { return };
            let basis = bernstein::<T>(j, self.samples);
            for (dx, dy) in slot.add::<T>().chunks_mut(2 * j).zip(dy.slice::<T>().chunks(2 * self.samples)) {
                sample_curve_backward(&basis, dy, dx);
            }
        }, gpu => {
            let [dpoints, add] = grad(&mut dx[0]);
            gpu.launch("bezier", "bezier_bwd", Launch::rows(n, 256), args![dy, dpoints, add, j, self.samples]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};

    #[test]
    fn bezier_gradients() {
        for points in 2..7 {
            assert!(gradcheck(&[&[2, points, 2]], |_, x| x[0].bezier(9)) < 1e-6);
        }
    }

    #[test]
    fn a_curve_starts_and_ends_at_its_outer_points_and_two_points_make_a_line() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let line = tape.constant(Tensor::from_f64(&device, &[1, 4], &[0.0, 1.0, 1.0, 3.0])).bezier(5).value();
        assert_eq!(line.to_f64(), [0.0, 1.0, 0.25, 1.5, 0.5, 2.0, 0.75, 2.5, 1.0, 3.0]);
        let points = [0.2, 0.3, 0.9, 0.1, 0.4, 0.8];
        let curve = tape.constant(Tensor::from_f64(&device, &[1, 3, 2], &points)).bezier(7).value().to_f64();
        assert_eq!((&curve[..2], &curve[12..]), (&points[..2], &points[4..]));
    }
}
