//! Control points moved by an affine map from the glimpse frame to the canvas frame (section 5 of the model).
//!
//! ```text
//! p = 2z − 1        q = A·(p, 1)        z̃ = q/2 + ½
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct PlacePoints;

impl<'t> Var<'t> {
    /// Moves control points by an affine map.
    ///
    /// points `[N, J, 2]` or `[N, 2J]` (x₀, y₀, x₁, …) in units of the image side, matrix `[N, 6]` → the shape of the points.
    #[track_caller]
    pub fn place_points(self, matrix: Var<'t>) -> Var<'t> {
        self.tape().apply(PlacePoints, &[self, matrix])
    }
}

/// N and J of points of shape `[N, J, 2]` or `[N, 2J]`.
#[track_caller]
pub(super) fn count(op: &str, points: &Tensor) -> (usize, usize) {
    match *points.shape() {
        [n, j, 2] => (n, j),
        [n, k] if k % 2 == 0 => (n, k / 2),
        ref shape => panic!("{op}: the points are {shape:?}; wanted [N, J, 2] or [N, 2J]"),
    }
}

#[inline(always)]
pub(super) fn place<T: Real>(m: &[T], z: &[T], moved: &mut [T]) {
    let half = T::of(0.5);
    for (z, moved) in z.chunks_exact(2).zip(moved.chunks_exact_mut(2)) {
        let (x, y) = (z[0] + z[0] - T::ONE, z[1] + z[1] - T::ONE);
        moved[0] = half * (m[0] * x + m[1] * y + m[2]) + half;
        moved[1] = half * (m[3] * x + m[4] * y + m[5]) + half;
    }
}

/// Adds to the gradients of the matrix and of the points.
#[inline(always)]
pub(super) fn place_backward<T: Real>(m: &[T], z: &[T], d: &[T], dm: &mut [T], dz: &mut [T]) {
    let half = T::of(0.5);
    for ((z, d), dz) in z.chunks_exact(2).zip(d.chunks_exact(2)).zip(dz.chunks_exact_mut(2)) {
        let (x, y) = (z[0] + z[0] - T::ONE, z[1] + z[1] - T::ONE);
        dz[0] += m[0] * d[0] + m[3] * d[1];
        dz[1] += m[1] * d[0] + m[4] * d[1];
        for (dm, d) in dm.chunks_exact_mut(3).zip(d) {
            let d = half * *d;
            dm[0] += d * x;
            dm[1] += d * y;
            dm[2] += d;
        }
    }
}

impl Op for PlacePoints {
    fn name(&self) -> &'static str {
        "place_points"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, j) = count("place_points", &x[0]);
        assert_eq!(x[1].shape(), [n, 6], "place_points: the matrix of {n} rows of points");
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let rows = x[0].slice::<T>().chunks(2 * j).zip(x[1].slice::<T>().chunks(6));
            for (y, (z, m)) in y.slice_mut::<T>().chunks_mut(2 * j).zip(rows) {
                place(m, z, y);
            }
        }, gpu => {
            gpu.launch("place_points", "place_points_fwd", Launch::elements(n * j), args![&x[0], &x[1], y.out(), n, j]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, j) = count("place_points", &x[0]);
        on_device!(cx, T => {
            let (z, m, dy) = (x[0].slice::<T>(), x[1].slice::<T>(), dy.slice::<T>());
            let (mut dz, mut dm) = (vec![T::ZERO; z.len()], vec![T::ZERO; m.len()]);
            for i in 0..n {
                let (row, six) = (2 * j * i..2 * j * (i + 1), 6 * i..6 * i + 6);
                place_backward(&m[six.clone()], &z[row.clone()], &dy[row.clone()], &mut dm[six], &mut dz[row]);
            }
            for (slot, d) in dx.iter_mut().zip([dz, dm]) {
                let Some(slot) = slot else { continue };
                slot.add::<T>().iter_mut().zip(d).for_each(|(slot, d)| *slot += d);
            }
        }, gpu => {
            let [[dpoints, add_points], [dmatrix, add_matrix]] = [grad(&mut dx[0]), grad(&mut dx[1])];
            let all = args![&x[0], &x[1], dy, dpoints, add_points, dmatrix, add_matrix, j];
            gpu.launch("place_points", "place_points_bwd", Launch::rows(n, 32), all);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};

    #[test]
    fn place_points_gradients() {
        assert!(gradcheck(&[&[3, 5, 2], &[3, 6]], |_, x| x[0].place_points(x[1])) < 1e-6);
        assert!(gradcheck(&[&[3, 8], &[3, 6]], |_, x| x[0].place_points(x[1])) < 1e-6);
    }

    #[test]
    fn placed_points_have_the_reference_values() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let points = Tensor::from_f64(&device, &[1, 10], &[0.2, 0.2, 0.4, 0.1, 0.5, 0.5, 0.6, 0.9, 0.8, 0.7]);
        let layout = tape.constant(Tensor::from_f64(&device, &[1, 4], &[0.1, -0.2, 0.6, 0.3]));
        let moved = tape.constant(points).place_points(layout.affine()).value().to_f64();
        let want = [0.431233, 0.174846, 0.563605, 0.152988, 0.55, 0.4, 0.536395, 0.647012, 0.686498, 0.567834];
        approx::assert_abs_diff_eq!(moved[..], want[..], epsilon = 1e-6);
    }
}
