//! Sums, means and maxima: of everything, over rows, over any dimensions.
//!
//! ```text
//! sum   y = Σ x                 dx = dy
//! max   y = max x               dx = dy / k where x = y, k times; else 0
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

/// x as `[outer, count, inner]` → `[outer, inner]`, of the given shape.
struct Reduce {
    max: bool,
    count: usize,
    inner: usize,
    shape: Vec<usize>,
}

impl Reduce {
    /// Elements of x that belong to one of the `inner` results.
    fn group(&self) -> usize {
        self.count * self.inner
    }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        if self.max { "max" } else { "sum" }
    }

    /// Of a maximum, also how many elements are as large.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (inner, group, mut y) = (self.inner, self.group(), Tensor::empty(cx, &self.shape));
        let mut ties = if self.max { vec![Tensor::empty(cx, &self.shape)] } else { vec![] };
        on_device!(cx, T => {
            let x = x[0].slice::<T>();
            let group = |o: usize| &x[o * group..][..group];
            let column = |o: usize, j: usize| { let group = group(o); group[j.min(group.len())..].iter().step_by(inner).copied() };
            let rows = y.slice_mut::<T>().par_chunks_mut(inner.max(1)).enumerate();
            if self.max {
                rows.zip(ties[0].slice_mut::<T>().par_chunks_mut(inner.max(1))).for_each(|((o, y), ties)| {
                    for (j, (y, ties)) in y.iter_mut().zip(ties).enumerate() {
                        // What is no number stays.
                        *y = column(o, j).reduce(|a, b| if b <= a || a.ne(&a) { a } else { b }).expect("an element");
                        *ties = column(o, j).map(|x| if x == *y { T::ONE } else { T::ZERO }).sum();
                    }
                });
            } else {
                rows.for_each(|(o, y)| y.iter_mut().enumerate().for_each(|(j, y)| *y = column(o, j).sum()));
            }
        }, gpu => {
            let launch = Launch::rows(y.len(), self.count.next_multiple_of(32).clamp(32, 1024));
            if self.max {
                gpu.launch("reduce", "max_fwd", launch, args![&x[0], y.out(), ties[0].out(), group, inner]);
            } else {
                gpu.launch("reduce", "sum_fwd", launch, args![&x[0], y.out(), group, inner]);
            }
        });
        ties.insert(0, y);
        ties
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        let (inner, group) = (self.inner, self.group());
        on_device!(cx, T => {
            let dy = dy.slice::<T>();
            let groups = slot.add::<T>().par_chunks_mut(group.max(1)).enumerate();
            if self.max {
                let [x, y, ties] = [&x[0], &y[0], &y[1]].map(Tensor::slice::<T>);
                groups.for_each(|(o, dx)| {
                    for (i, dx) in dx.iter_mut().enumerate() {
                        let j = o * inner + i % inner;
                        if x[o * group + i] == y[j] {
                            *dx += dy[j] / ties[j];
                        }
                    }
                });
            } else {
                groups.for_each(|(o, dx)| {
                    for dx in dx.chunks_exact_mut(inner) {
                        dx.iter_mut().zip(&dy[o * inner..]).for_each(|(dx, &dy)| *dx += dy);
                    }
                });
            }
        }, gpu => {
            let ([dx, add], n) = (grad(&mut dx[0]), x[0].len());
            if self.max {
                let args = args![&x[0], &y[0], &y[1], dy, dx, add, n, group, inner];
                gpu.launch("reduce", "max_bwd", Launch::elements(n), args);
            } else {
                gpu.launch("reduce", "sum_bwd", Launch::elements(n), args![dy, dx, add, n, group, inner]);
            }
        });
    }
}

impl<'t> Var<'t> {
    /// The sum of all elements, shape `[1]`.
    #[track_caller]
    pub fn sum(self) -> Var<'t> {
        let count = self.shape().iter().product();
        self.tape().apply(Reduce { max: false, count, inner: 1, shape: vec![1] }, &[self])
    }

    /// The mean of all elements, shape `[1]`.
    #[track_caller]
    pub fn mean(self) -> Var<'t> {
        let n: usize = self.shape().iter().product();
        self.sum() * (1.0 / n as f64)
    }

    /// The sum over the first dimension, `[N, …]` → `[…]`.
    #[track_caller]
    pub fn sum_rows(self) -> Var<'t> {
        let (count, shape) = (self.shape()[0], self.shape()[1..].to_vec());
        self.tape().apply(Reduce { max: false, count, inner: shape.iter().product(), shape }, &[self])
    }

    /// The sum over these dimensions, which are gone then; [`Var::unsqueeze`] brings one back. Over no element it is 0.
    #[track_caller]
    pub fn sum_over(self, axes: &[usize]) -> Var<'t> {
        self.reduce("sum_over", axes, false)
    }

    /// The mean over these dimensions, which are gone then. Over no element it is NaN.
    #[track_caller]
    pub fn mean_over(self, axes: &[usize]) -> Var<'t> {
        let shape = self.shape();
        let sum = self.reduce("mean_over", axes, false);
        sum * (1.0 / axes.iter().map(|&axis| shape[axis]).product::<usize>() as f64)
    }

    /// The largest element over these dimensions, which are gone then. Several that are as large share the gradient.
    #[track_caller]
    pub fn max_over(self, axes: &[usize]) -> Var<'t> {
        self.reduce("max_over", axes, true)
    }

    #[track_caller]
    fn reduce(self, op: &str, axes: &[usize], max: bool) -> Var<'t> {
        let shape = self.shape();
        let mut over = axes.to_vec();
        over.sort_unstable();
        over.dedup();
        assert!(
            over.len() == axes.len() && over.iter().all(|&axis| axis < shape.len()),
            "{op}: dimensions {axes:?} of {shape:?}; wanted some of its dimensions, each once"
        );
        let kept: Vec<usize> = (0..shape.len()).filter(|axis| !over.contains(axis)).collect();
        let sizes = |axes: &[usize]| axes.iter().map(|&axis| shape[axis]).collect::<Vec<usize>>();
        let count: usize = sizes(&over).iter().product();
        assert!(!max || count > 0, "{op}: dimensions {axes:?} of {shape:?}; wanted an element at least");
        let adjacent = over.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let (x, inner) = match over.last() {
            Some(&last) if adjacent => (self, shape[last + 1..].iter().product()),
            _ => (self.permute(&[&kept[..], &over].concat()), 1),
        };
        self.tape().apply(Reduce { max, count, inner, shape: sizes(&kept) }, &[x])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Grads, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn reduction_gradients() {
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].sum()) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].sum_rows()) < 1e-8);
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].mean()) < 1e-8);
        for axes in [&[][..], &[0], &[1], &[2], &[0, 1], &[2, 1], &[0, 2], &[0, 1, 2]] {
            assert!(gradcheck(&[&[3, 4, 2]], |_, x| x[0].sum_over(axes)) < 1e-8);
            assert!(gradcheck(&[&[3, 4, 2]], |_, x| x[0].mean_over(axes)) < 1e-8);
            assert!(gradcheck(&[&[3, 4, 2]], |_, x| x[0].max_over(axes)) < 1e-8);
        }
    }

    #[test]
    fn several_that_are_as_large_share_the_gradient() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let x = tape.input(Tensor::from_f64(&device, &[2, 3], &[1.0, 4.0, 4.0, -1.0, -2.0, -3.0]));
        let y = x.max_over(&[1]);
        assert_eq!(y.value().to_f64(), [4.0, -1.0]);
        let found = tape.backward(y.sum(), &mut Grads::none(&device));
        assert_eq!(found.of(x).to_f64(), [0.0, 0.5, 0.5, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn nothing_adds_up_to_zero() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let x = tape.input(Tensor::zeros(&device, &[2, 0, 3]));
        assert_eq!(x.sum_over(&[1]).value().to_f64(), [0.0; 6]);
        assert!(x.mean_over(&[1]).value().to_f64().iter().all(|v| v.is_nan()));
        assert_eq!(x.sum_over(&[0]).shape(), [0, 3]);
        assert_eq!(x.sum().value().item(), 0.0);
    }
}
