//! y = act(x·Wᵀ + b), with act the identity or tanh.

use super::{Cost, Op};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    matmul::{Matrix, product},
    real::Real,
    tape::Slot,
};

/// What follows a linear map, in the same op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// Hyperbolic tangent.
    Tanh,
}

struct Linear(Activation);

impl<'t> Var<'t> {
    /// `self·Wᵀ + b`: x `[N, I]`, w `[O, I]`, b `[O]` → `[N, O]`, followed by `activation`.
    #[track_caller]
    pub fn linear(self, w: Var<'t>, b: Var<'t>, activation: Activation) -> Var<'t> {
        self.tape().apply(Linear(activation), &[self, w, b])
    }
}

#[track_caller]
fn dims(x: &[Tensor]) -> (usize, usize, usize) {
    match (x[0].shape(), x[1].shape(), x[2].shape()) {
        (&[n, i], &[o, i2], &[o2]) if i == i2 && o == o2 => (n, i, o),
        (x, w, b) => panic!("linear: x {x:?}, w {w:?}, b {b:?}; wanted [N, I], [O, I], [O]"),
    }
}

/// Adds `bias` to every row of y `[N, O]`, then applies the activation.
pub(super) fn finish<T: Real>(y: &mut [T], bias: &[T], activation: Activation) {
    let o = bias.len();
    cpu::each_row(
        y,
        o,
        16,
        #[inline(always)]
        |_, row| match activation {
            Activation::None => row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b),
            Activation::Tanh => row.iter_mut().zip(bias).for_each(|(y, &b)| *y = (*y + b).tanh()),
        },
    );
}

/// The gradient before the activation, given y and dy after it; and its sum over rows is added to the bias's slot.
pub(super) fn undo<T: Real>(y: &[T], dy: &[T], activation: Activation, bias: &mut Option<Slot>, o: usize) -> Vec<T> {
    let mut dz = dy.to_vec();
    if activation == Activation::Tanh {
        cpu::each_block(
            &mut dz,
            #[inline(always)]
            |at, dz| {
                let n = dz.len();
                dz.iter_mut().zip(&y[at..][..n]).for_each(|(dz, &y)| *dz *= T::ONE - y * y);
            },
        );
    }
    if let Some(slot) = bias {
        let db = slot.add::<T>();
        for row in dz.chunks(o) {
            db.iter_mut().zip(row).for_each(|(db, &g)| *db += g);
        }
    }
    dz
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, i, o) = dims(x);
        let mut y = Tensor::empty(cx, &[n, o]);
        on_device!(cx, T => {
            let out = y.slice_mut::<T>();
            product(Matrix::new(x[0].slice(), n, i), Matrix::new(x[1].slice(), o, i).t(), out, false);
            finish(out, x[2].slice::<T>(), self.0);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, i, o) = dims(x);
        on_device!(cx, T => {
            let dz = undo(y[0].slice::<T>(), dy.slice(), self.0, &mut dx[2], o);
            let dz = Matrix::new(&dz, n, o);
            if let Some(slot) = &mut dx[0] {
                let (out, fresh) = slot.write::<T>();
                product(dz, Matrix::new(x[1].slice(), o, i), out, !fresh);
            }
            if let Some(slot) = &mut dx[1] {
                let (out, fresh) = slot.write::<T>();
                product(dz.t(), Matrix::new(x[0].slice(), n, i), out, !fresh);
            }
        });
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let (n, i, o) = dims(x);
        let elements = x.iter().map(Tensor::len).sum::<usize>() + y.len();
        Cost { flops: 2.0 * (n * i * o) as f64, bytes: 4.0 * elements as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::Activation;
    use crate::gradcheck::gradcheck;

    #[test]
    fn linear_gradients() {
        for activation in [Activation::None, Activation::Tanh] {
            assert!(gradcheck(&[&[3, 4], &[5, 4], &[5]], |_, x| x[0].linear(x[1], x[2], activation)) < 1e-7);
        }
        assert!(gradcheck(&[&[70, 65], &[90, 65], &[90]], |_, x| x[0].linear(x[1], x[2], Activation::None)) < 1e-7);
    }
}
