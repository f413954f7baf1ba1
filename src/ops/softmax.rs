//! Probabilities of classes from their scores x `[…, C]`, and how much the right class surprises.
//!
//! ```text
//! softmax       y_c = e^(x_c) / Σ_k e^(x_k)              dx = y ∘ (dy − Σ dy∘y)
//! log_softmax   y_c = x_c − log Σ_k e^(x_k)              dx = dy − e^y · Σ dy
//! cross_entropy y   = log Σ_k e^(x_k) − x_label          dx = (softmax(x) − onehot(label)) · dy
//! ```
//! All of them subtract the largest score first, so that nothing overflows. A score of −∞ is a class of probability 0; a row of nothing
//! else gives NaN.

use super::{Op, gather::indices};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Gpu, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// Rows that a thread of the CPU does at least.
const TOGETHER: usize = 16;

/// y = log softmax of x.
#[inline(always)]
fn log_softmax<T: Real>(x: &[T], y: &mut [T]) {
    let largest = cpu::largest(x);
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - largest);
    let all = cpu::sum(
        [&*y],
        #[inline(always)]
        |[y]| y.exp(),
    )
    .ln();
    y.iter_mut().for_each(|y| *y -= all);
}

/// y = softmax of x.
#[inline(always)]
fn softmax<T: Real>(x: &[T], y: &mut [T]) {
    let largest = cpu::largest(x);
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - largest).exp());
    let share = T::ONE
        / cpu::sum(
            [&*y],
            #[inline(always)]
            |[y]| y,
        );
    y.iter_mut().for_each(|y| *y *= share);
}

/// One block per row.
fn launch(gpu: &Gpu, kernel: &'static str, rows: usize, classes: usize, args: &[crate::gpu::Arg]) {
    gpu.launch("softmax", kernel, Launch::rows(rows, classes.next_multiple_of(32).clamp(32, 256)), args);
}

/// Over the last dimension, or its logarithm.
struct Softmax {
    log: bool,
}

#[track_caller]
fn classes(op: &str, x: &Tensor) -> usize {
    match *x.shape() {
        [.., classes] if classes > 0 || x.is_empty() => classes.max(1),
        ref shape => panic!("{op}: {shape:?}; wanted [.., classes]"),
    }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (c, mut y) = (classes(self.name(), &x[0]), Tensor::empty(cx, x[0].shape()));
        on_device!(cx, T => {
            let x = x[0].slice::<T>();
            cpu::each_row(y.slice_mut::<T>(), c, TOGETHER, #[inline(always)] |row, y| {
                let x = &x[row * c..][..c];
                if self.log { log_softmax(x, y) } else { softmax(x, y) }
            });
        }, gpu => launch(gpu, "softmax_fwd", y.len() / c, c, args![&x[0], y.out(), c, usize::from(self.log)]));
        vec![y]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let c = classes(self.name(), dy);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (y, dy) = (y[0].slice::<T>(), dy.slice::<T>());
            cpu::each_row(slot.add::<T>(), c, TOGETHER, #[inline(always)] |row, dx| {
                let (y, dy) = (&y[row * c..][..c], &dy[row * c..][..c]);
                if self.log {
                    let sum = cpu::sum([dy], #[inline(always)] |[dy]| dy);
                    dx.iter_mut().zip(y.iter().zip(dy)).for_each(|(dx, (&y, &dy))| *dx += dy - y.exp() * sum);
                } else {
                    let sum = cpu::sum([dy, y], #[inline(always)] |[dy, y]| dy * y);
                    dx.iter_mut().zip(y.iter().zip(dy)).for_each(|(dx, (&y, &dy))| *dx += y * (dy - sum));
                }
            });
        }, gpu => {
            let [dx, add] = grad(&mut dx[0]);
            launch(gpu, "softmax_bwd", dy.len() / c, c, args![&y[0], dy, dx, add, c, usize::from(self.log)]);
        });
    }
}

/// Of scores `[N, C]`, given the classes `[N]`.
struct CrossEntropy {
    labels: Tensor,
}

impl CrossEntropy {
    #[track_caller]
    fn dims(&self, x: &Tensor) -> [usize; 2] {
        match (x.shape(), self.labels.shape()) {
            (&[n, c], &[n2]) if n == n2 && c > 0 => [n, c],
            (x, labels) => panic!("cross_entropy: scores {x:?}, labels {labels:?}; wanted [N, classes], [N]"),
        }
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let [n, c] = self.dims(&x[0]);
        // The logarithms of all probabilities are kept for the backward.
        let [mut y, mut logs] = [&[n][..], &[n, c]].map(|shape| Tensor::empty(cx, shape));
        on_device!(cx, T => {
            let (labels, x) = (indices::<T>(self.name(), &self.labels, c), x[0].slice::<T>());
            cpu::each_row(logs.slice_mut::<T>(), c, TOGETHER, #[inline(always)] |row, logs| {
                log_softmax(&x[row * c..][..c], logs);
            });
            let rows = logs.slice::<T>().chunks(c).zip(labels);
            y.slice_mut::<T>().iter_mut().zip(rows).for_each(|(y, (logs, label))| *y = -logs[label]);
        }, gpu => {
            let args = args![&x[0], &self.labels, y.out(), logs.out(), c];
            launch(gpu, "cross_entropy_fwd", n, c, args);
        });
        vec![y, logs]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let [n, c] = self.dims(&x[0]);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (labels, logs, dy) = (indices::<T>(self.name(), &self.labels, c), y[1].slice::<T>(), dy.slice::<T>());
            cpu::each_row(slot.add::<T>(), c, TOGETHER, #[inline(always)] |row, dx| {
                dx.iter_mut().zip(&logs[row * c..][..c]).for_each(|(dx, &log)| *dx += log.exp() * dy[row]);
                dx[labels[row]] -= dy[row];
            });
        }, gpu => {
            let [dx, add] = grad(&mut dx[0]);
            launch(gpu, "cross_entropy_bwd", n, c, args![&self.labels, &y[1], dy, dx, add, c]);
        });
    }
}

impl<'t> Var<'t> {
    /// Probabilities of classes from their scores, over the last dimension: `[…, C]` → `[…, C]`.
    #[track_caller]
    pub fn softmax(self) -> Var<'t> {
        self.tape().apply(Softmax { log: false }, &[self])
    }

    /// The logarithms of [`Var::softmax`], without its loss of digits.
    #[track_caller]
    pub fn log_softmax(self) -> Var<'t> {
        self.tape().apply(Softmax { log: true }, &[self])
    }

    /// The cross-entropy of scores `[N, C]` in nats, −log softmax(x)\[label\] of each row: `[N]`. `labels` `[N]` holds classes, as
    /// numbers from 0; their mean is what a classifier minimises.
    ///
    /// Panics where a label is no class; on a GPU its row is NaN.
    #[track_caller]
    pub fn cross_entropy(self, labels: &Tensor) -> Var<'t> {
        self.tape().apply(CrossEntropy { labels: labels.clone() }, &[self])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, Var, gradcheck::gradcheck};
    use approx::assert_relative_eq;

    #[test]
    fn softmax_gradients() {
        let labels = Tensor::from_f64(&Device::cpu_f64(), &[3], &[4.0, 0.0, 2.0]);
        assert!(gradcheck(&[&[2, 3, 5]], |_, x| x[0].softmax()) < 1e-8);
        assert!(gradcheck(&[&[3, 5]], |_, x| x[0].log_softmax()) < 1e-8);
        assert!(gradcheck(&[&[3, 5]], |_, x| x[0].cross_entropy(&labels)) < 1e-8);
        assert!(gradcheck(&[&[7, 1]], |_, x| x[0].softmax() + x[0]) < 1e-8);
    }

    #[test]
    fn scores_of_any_size_give_probabilities() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let x = tape.constant(Tensor::from_f64(&device, &[2, 3], &[1e4, 0.0, f64::NEG_INFINITY, -2e4, -2e4, -2e4]));
            let near =
                |y: Var, wanted: [f64; 6]| assert_relative_eq!(y.value().to_f64()[..], wanted[..], epsilon = 1e-6);
            let third = 1.0 / 3.0;
            near(x.softmax(), [1.0, 0.0, 0.0, third, third, third]);
            let logs = third.ln();
            near(x.log_softmax(), [0.0, -1e4, f64::NEG_INFINITY, logs, logs, logs]);
        }
    }

    #[test]
    #[should_panic(expected = "cross_entropy: 3; wanted whole numbers below 3")]
    fn a_label_that_is_no_class_is_refused() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let labels = Tensor::from_f64(&device, &[1], &[3.0]);
        tape.constant(Tensor::zeros(&device, &[1, 3])).cross_entropy(&labels);
    }
}
