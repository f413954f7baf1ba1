//! Layouts to 2×3 affine matrices (section 5 of the model), row-major: `[m₀ m₁ m₂; m₃ m₄ m₅]` maps (X, Y) to
//! (m₀X + m₁Y + m₂, m₃X + m₄Y + m₅), X to the right and Y down, both from −1 to 1 across the image.
//!
//! ```text
//! layout (a, b, c, φ):   A   = [c·cosφ  −c·sinφ  a;  c·sinφ  c·cosφ  b]
//!                        A⁻¹ = [C  S  −(Ca + Sb);  −S  C  Sa − Cb]          C = cosφ/c, S = sinφ/c
//! token affine (tx, ty, sx, sy, angle, u, v), C = cosθ, S = sinθ:
//!                        [sx(C(1+uv) + Su)  sy(−S(1+uv) + uC)  tx;  sx(Cv + S)  sy(−Sv + C)  ty]
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// In which unit a token affine reads its angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Angle {
    /// As degrees. The published results were made this way, with angles drawn as radians: almost no rotation.
    Degrees,
    /// As radians.
    Radians,
}

impl Angle {
    fn radians(self) -> f64 {
        if self == Angle::Degrees { std::f64::consts::PI / 180.0 } else { 1.0 }
    }
}

/// Rows are few and short, so they are computed in double precision, one by one.
enum Affine {
    Layout,
    Inverse,
    Seven(Angle),
}

impl<'t> Var<'t> {
    /// The matrix of a layout, from glimpse to canvas: (shift x, shift y, scale, rotation) `[N, 4]` → `[N, 6]`.
    #[track_caller]
    pub fn affine(self) -> Var<'t> {
        self.tape().apply(Affine::Layout, &[self])
    }

    /// The inverse of [`Var::affine`]: `[N, 4]` → `[N, 6]`. The scale must not be 0.
    #[track_caller]
    pub fn inverse_affine(self) -> Var<'t> {
        self.tape().apply(Affine::Inverse, &[self])
    }

    /// The matrix of a token's affine: (shift x, shift y, scale x, scale y, angle, shear x, shear y) `[N, 7]` → `[N, 6]`.
    #[track_caller]
    pub fn affine7(self, unit: Angle) -> Var<'t> {
        self.tape().apply(Affine::Seven(unit), &[self])
    }
}

impl Affine {
    fn width(&self) -> usize {
        if let Affine::Seven(_) = self { 7 } else { 4 }
    }

    /// What tells a kernel which of the three this is, and its unit of angles.
    fn gpu_kind(&self) -> [Arg; 2] {
        match self {
            Affine::Layout => [Arg::Int(0), Arg::Real(1.0)],
            Affine::Inverse => [Arg::Int(1), Arg::Real(1.0)],
            Affine::Seven(unit) => [Arg::Int(2), Arg::Real(unit.radians())],
        }
    }

    fn matrix(&self, x: &[f64]) -> [f64; 6] {
        match self {
            Affine::Layout => {
                let (c, s) = (x[2] * x[3].cos(), x[2] * x[3].sin());
                [c, -s, x[0], s, c, x[1]]
            }
            Affine::Inverse => {
                let (a, b, c, s) = (x[0], x[1], x[3].cos() / x[2], x[3].sin() / x[2]);
                [c, s, -(c * a + s * b), -s, c, s * a - c * b]
            }
            Affine::Seven(unit) => {
                let [p, q, r, w] = seven(x, *unit).0;
                [x[2] * p, x[3] * q, x[0], x[2] * r, x[3] * w, x[1]]
            }
        }
    }

    /// (∂matrix/∂x)ᵀ·d; elements from [`Affine::width`] on are unused.
    fn pull(&self, x: &[f64], d: &[f64]) -> [f64; 7] {
        match self {
            Affine::Layout => {
                let (c, s) = (x[3].cos(), x[3].sin());
                let (dc, ds) = (d[0] + d[4], d[3] - d[1]);
                [d[2], d[5], c * dc + s * ds, x[2] * (c * ds - s * dc), 0.0, 0.0, 0.0]
            }
            Affine::Inverse => {
                let (a, b, c, s) = (x[0], x[1], x[3].cos() / x[2], x[3].sin() / x[2]);
                let (dc, ds) = (d[0] + d[4] - a * d[2] - b * d[5], d[1] - d[3] - b * d[2] + a * d[5]);
                let shift = [s * d[5] - c * d[2], -s * d[2] - c * d[5]];
                [shift[0], shift[1], -(c * dc + s * ds) / x[2], c * ds - s * dc, 0.0, 0.0, 0.0]
            }
            Affine::Seven(unit) => {
                let ([p, q, r, w], cos, sin, radians) = seven(x, *unit);
                let (dp, dq, dr, dw) = (x[2] * d[0], x[3] * d[1], x[2] * d[3], x[3] * d[4]);
                let angle = radians * (dp * q - dq * p + dr * w - dw * r);
                let (u, v) = (dp * r + dq * w, (dp * cos - dq * sin) * x[5] + dr * cos - dw * sin);
                [d[2], d[5], d[0] * p + d[3] * r, d[1] * q + d[4] * w, angle, u, v]
            }
        }
    }
}

/// The four entries before scaling, cos θ, sin θ, and dθ/dangle.
fn seven(x: &[f64], unit: Angle) -> ([f64; 4], f64, f64, f64) {
    let radians = unit.radians();
    let (sin, cos) = (x[4] * radians).sin_cos();
    let (u, v) = (x[5], x[6]);
    let k = 1.0 + u * v;
    ([cos * k + sin * u, u * cos - sin * k, cos * v + sin, cos - sin * v], cos, sin, radians)
}

fn wide<T: Real>(row: &[T]) -> [f64; 7] {
    std::array::from_fn(|i| row.get(i).map_or(0.0, |x| x.f64()))
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        match self {
            Affine::Layout => "affine",
            Affine::Inverse => "inverse_affine",
            Affine::Seven(_) => "affine7",
        }
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (name, k, shape) = (self.name(), self.width(), x[0].shape());
        assert!(shape.len() == 2 && shape[1] == k, "{name}: the parameters are {shape:?}; wanted [N, {k}]");
        let mut y = Tensor::empty(cx, &[shape[0], 6]);
        on_device!(cx, T => {
            for (y, x) in y.slice_mut::<T>().chunks_mut(6).zip(x[0].slice::<T>().chunks(k)) {
                let m = self.matrix(&wide(x));
                y.iter_mut().zip(m).for_each(|(y, m)| *y = T::of(m));
            }
        }, gpu => {
            let (n, [kind, radians]) = (shape[0], self.gpu_kind());
            gpu.launch("affine", "affine_fwd", Launch::elements(n), args![&x[0], y.out(), n, kind, radians]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let k = self.width();
        on_device!(cx, T => {
            let Some(slot) = &mut dx[0] else { return };
            let rows = x[0].slice::<T>().chunks(k).zip(dy.slice::<T>().chunks(6));
            for (dx, (x, dy)) in slot.add::<T>().chunks_mut(k).zip(rows) {
                let d = self.pull(&wide(x), &wide(dy));
                dx.iter_mut().zip(d).for_each(|(dx, d)| *dx += T::of(d));
            }
        }, gpu => {
            let (n, [kind, radians]) = (x[0].shape()[0], self.gpu_kind());
            let [slot, add] = grad(&mut dx[0]);
            gpu.launch("affine", "affine_bwd", Launch::elements(n), args![&x[0], dy, slot, add, n, kind, radians]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};
    use approx::assert_abs_diff_eq;

    #[test]
    fn affine_gradients() {
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].affine()) < 1e-6);
        assert!(gradcheck(&[&[3, 4]], |_, x| (x[0] * 0.2 + 0.7).inverse_affine()) < 1e-6);
        assert!(gradcheck(&[&[3, 7]], |_, x| x[0].affine7(Angle::Degrees)) < 1e-6);
        assert!(gradcheck(&[&[3, 7]], |_, x| x[0].affine7(Angle::Radians)) < 1e-6);
    }

    #[test]
    fn affine_matrices_have_the_reference_values() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let near = |y: Var, want: [f64; 6]| assert_abs_diff_eq!(y.value().to_f64()[..], want[..], epsilon = 1e-6);
        let layout = tape.constant(Tensor::from_f64(&device, &[1, 4], &[0.1, -0.2, 0.6, 0.3]));
        near(layout.affine(), [0.573202, -0.177312, 0.1, 0.177312, 0.573202, -0.2]);
        let token = tape.constant(Tensor::from_f64(&device, &[1, 7], &[0.1, -0.05, 1.1, 0.9, 0.3, 0.2, -0.1]));
        near(token.affine7(Angle::Degrees), [1.079137, 0.175379, 0.1, -0.104239, 0.900459, -0.05]);
    }

    #[test]
    fn an_affine_map_followed_by_its_inverse_changes_nothing() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let layout = tape.constant(Tensor::from_f64(&device, &[1, 4], &[0.3, -0.7, 0.4, 1.1]));
        let (a, b) = (layout.affine().value().to_f64(), layout.inverse_affine().value().to_f64());
        let map = |m: &[f64], x: f64, y: f64| (m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]);
        let (x, y) = map(&a, 0.25, -0.6);
        let (x, y) = map(&b, x, y);
        assert_abs_diff_eq!([x, y][..], [0.25, -0.6][..], epsilon = 1e-12);
    }
}
