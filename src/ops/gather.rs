//! Some rows, in any order, also several times: y[i] = x[which[i]]; dx[j] += Σ dy[i] over all i with which[i] = j.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};

struct Gather {
    which: Tensor,
}

/// Whole numbers below `n`, checked.
#[track_caller]
pub(super) fn indices<T: Real>(op: &str, values: &Tensor, n: usize) -> Vec<usize> {
    let index = |value: &T| {
        let value = value.f64();
        assert!(
            value.fract() == 0.0 && (0.0..n as f64).contains(&value),
            "{op}: {value}; wanted whole numbers below {n}"
        );
        value as usize
    };
    values.slice::<T>().iter().map(index).collect()
}

impl Gather {
    /// Rows of x, numbers in one.
    #[track_caller]
    fn dims(&self, x: &Tensor) -> [usize; 2] {
        match (x.shape(), self.which.shape()) {
            (&[n, ref row @ ..], &[_]) => [n, row.iter().product()],
            (x, which) => panic!("gather: x {x:?}, which {which:?}; wanted [N, ..], [M]"),
        }
    }
}

impl Op for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let [n, width] = self.dims(&x[0]);
        let mut y = Tensor::empty(cx, &[&[self.which.len()], &x[0].shape()[1..]].concat());
        on_device!(cx, T => {
            let (which, x) = (indices::<T>("gather", &self.which, n), x[0].slice::<T>());
            cpu::each_row(y.slice_mut::<T>(), width, (1 << 12) / width.max(1) + 1, #[inline(always)] |i, y| {
                y.copy_from_slice(&x[which[i] * width..][..width]);
            });
        }, gpu => {
            let args = args![&x[0], &self.which, y.out(), y.len(), width, n];
            gpu.launch("gather", "gather_fwd", Launch::elements(y.len()), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let [n, width] = self.dims(&x[0]);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (dx, dy) = (slot.add::<T>(), dy.slice::<T>());
            for (i, j) in indices::<T>("gather", &self.which, n).into_iter().enumerate() {
                dx[j * width..][..width].iter_mut().zip(&dy[i * width..]).for_each(|(dx, &dy)| *dx += dy);
            }
        }, gpu => {
            let ([dx, add], n) = (grad(&mut dx[0]), x[0].len());
            let args = args![&self.which, dy, dx, add, n, width, self.which.len()];
            gpu.launch("gather", "gather_bwd", Launch::elements(n), args);
        });
    }
}

impl<'t> Var<'t> {
    /// Rows of the first dimension by their numbers: `[N, …]`, `which` `[M]` → `[M, …]`. So a table of rows is an embedding.
    ///
    /// Panics where a number is that of no row; on a GPU the result is NaN there.
    #[track_caller]
    pub fn gather(self, which: &Tensor) -> Var<'t> {
        self.tape().apply(Gather { which: which.clone() }, &[self])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn gather_gradients() {
        let which = Tensor::from_f64(&Device::cpu_f64(), &[5], &[2.0, 0.0, 2.0, 2.0, 3.0]);
        assert!(gradcheck(&[&[4, 3]], |_, x| x[0].gather(&which)) < 1e-8);
        assert!(gradcheck(&[&[4]], |_, x| x[0].gather(&which) + x[0].gather(&which)) < 1e-8);
    }

    #[test]
    #[should_panic(expected = "gather: 4; wanted whole numbers below 4")]
    fn a_row_that_is_not_there_is_refused() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        tape.constant(Tensor::zeros(&device, &[4, 2])).gather(&Tensor::from_f64(&device, &[1], &[4.0]));
    }
}
