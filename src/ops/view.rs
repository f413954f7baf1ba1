//! The same elements in another order, some of them, or some of them several times: permute, transpose, slice, expand.
//!
//! ```text
//! y[i₁, i₂, …] = x[start + Σ_k i_k·step_k]        dx[j] += Σ dy[i] over all i that are found at j
//! ```

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    slot::{Slot, grad},
};
use std::ops::Range;

/// Dimensions of x and of y at most.
const MOST: usize = 6;

/// A dimension of y: its size, and the dimension of x that it walks along from `start` on; none if all of it is the same element.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    along: Option<usize>,
    start: usize,
}

/// Every dimension of x that no axis walks along has one element.
struct View {
    name: &'static str,
    axes: Vec<Axis>,
}

/// Distances from one element to the next along each dimension.
fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

impl View {
    fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(|axis| axis.size).collect()
    }

    /// Where y's first element is in x, and how far it is to the next along each of y's dimensions.
    fn steps(&self, x: &[usize]) -> (usize, Vec<usize>) {
        let strides = strides(x);
        let step = |axis: &Axis| axis.along.map_or(0, |k| strides[k]);
        (self.axes.iter().map(|axis| axis.start * step(axis)).sum(), self.axes.iter().map(step).collect())
    }

    /// Calls `row` for each row of y with its number, and where its first element is in x.
    #[inline(always)]
    fn at(&self, start: usize, steps: &[usize], row: usize) -> usize {
        let (mut rest, mut at) = (row, start);
        for (axis, step) in self.axes.iter().zip(steps).rev().skip(1) {
            at += rest % axis.size * step;
            rest /= axis.size;
        }
        at
    }
}

impl Op for View {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let mut y = Tensor::empty(cx, &self.shape());
        let (start, steps) = self.steps(x[0].shape());
        on_device!(cx, T => {
            let x = x[0].slice::<T>();
            let (&last, &step) = (y.shape().last().unwrap_or(&1), steps.last().unwrap_or(&0));
            cpu::each_row(y.slice_mut::<T>(), last, (1 << 12) / last.max(1) + 1, #[inline(always)] |row, y| {
                let at = self.at(start, &steps, row);
                match step {
                    0 => y.fill(x[at]),
                    1 => y.copy_from_slice(&x[at..at + y.len()]),
                    step => y.iter_mut().zip(x[at..].iter().step_by(step)).for_each(|(y, &x)| *y = x),
                }
            });
        }, gpu => {
            let (n, rank) = (y.len(), steps.len());
            let sizes = Arg::sizes(self.shape().into_iter().chain(steps));
            gpu.launch("view", "view_fwd", Launch::elements(n), args![&x[0], y.out(), n, start, rank, sizes]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        on_device!(cx, T => {
            let (start, steps) = self.steps(x[0].shape());
            let (&last, &step) = (dy.shape().last().unwrap_or(&1), steps.last().unwrap_or(&0));
            let dx = slot.add::<T>();
            if last == 0 {
                return;
            }
            cpu::simd(#[inline(always)] || {
                for (row, dy) in dy.slice::<T>().chunks(last).enumerate() {
                    let at = self.at(start, &steps, row);
                    match step {
                        0 => dx[at] += dy.iter().copied().sum::<T>(),
                        1 => dx[at..at + last].iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy),
                        step => dx[at..].iter_mut().step_by(step).zip(dy).for_each(|(dx, &dy)| *dx += dy),
                    }
                }
            });
        }, gpu => {
            let ([dx, add], n, shape) = (grad(&mut dx[0]), x[0].len(), x[0].shape());
            let strides = strides(dy.shape());
            // Per dimension of x: its size, and the part of it that is in y, with the distance from one to the next there.
            let of_x = (0..shape.len()).flat_map(|k| {
                let found = self.axes.iter().position(|axis| axis.along == Some(k));
                found.map_or([shape[k], 0, 1, 0], |i| [shape[k], self.axes[i].start, self.axes[i].size, strides[i]])
            });
            let repeated: Vec<usize> = (0..self.axes.len()).filter(|&i| self.axes[i].along.is_none()).collect();
            let of_y = repeated.iter().flat_map(|&i| [self.axes[i].size, strides[i]]);
            let times: usize = repeated.iter().map(|&i| self.axes[i].size).product();
            let args = args![
                dy, dx, add, n, shape.len(), Arg::sizes(of_x), times, repeated.len(), Arg::sizes(of_y)
            ];
            gpu.launch("view", "view_bwd", Launch::elements(n), args);
        });
    }
}

/// Both with the shape that NumPy's rules give them: from the last dimension on, sizes are equal or one of them is 1.
#[track_caller]
pub(super) fn broadcast<'t>(op: &str, a: Var<'t>, b: Var<'t>) -> [Var<'t>; 2] {
    let (x, z) = (a.shape(), b.shape());
    if x == z {
        return [a, b];
    }
    let Some(shape) = together(&x, &z) else {
        panic!(
            "{op}: the shapes {x:?} and {z:?} do not go together; wanted sizes that are equal or 1, from the last one on"
        )
    };
    [a.expand(&shape), b.expand(&shape)]
}

/// The shape of both, if they go together.
pub(super) fn together(x: &[usize], z: &[usize]) -> Option<Vec<usize>> {
    let rank = x.len().max(z.len());
    let size = |shape: &[usize], k: usize| (k + shape.len()).checked_sub(rank).map_or(1, |k| shape[k]);
    let common = |k: usize| match (size(x, k), size(z, k)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..rank).map(common).collect()
}

impl<'t> Var<'t> {
    #[track_caller]
    fn view(self, name: &'static str, axes: Vec<Axis>) -> Var<'t> {
        let rank = axes.len().max(self.shape().len());
        assert!(rank <= MOST, "{name}: {:?} has {rank} dimensions; wanted {MOST} at most", self.shape());
        self.tape().apply(View { name, axes }, &[self])
    }

    /// The dimensions in another order: the k-th of the result is the `order[k]`-th.
    #[track_caller]
    pub fn permute(self, order: &[usize]) -> Var<'t> {
        let shape = self.shape();
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        assert!(
            sorted.iter().copied().eq(0..shape.len()),
            "permute: {order:?} of {shape:?}; wanted each of its dimensions once"
        );
        self.view("permute", order.iter().map(|&k| Axis { size: shape[k], along: Some(k), start: 0 }).collect())
    }

    /// The last two dimensions exchanged: `[…, M, N]` → `[…, N, M]`.
    #[track_caller]
    pub fn transpose(self) -> Var<'t> {
        let rank = self.shape().len();
        assert!(rank >= 2, "transpose: {:?}; wanted two dimensions at least", self.shape());
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(rank - 2, rank - 1);
        self.permute(&order)
    }

    /// What lies in `range` along dimension `axis`.
    #[track_caller]
    pub fn slice(self, axis: usize, range: Range<usize>) -> Var<'t> {
        let shape = self.shape();
        assert!(
            axis < shape.len() && range.start <= range.end && range.end <= shape[axis],
            "slice: {range:?} along dimension {axis} of {shape:?}; wanted a part of it"
        );
        let whole = |k: usize| Axis { size: shape[k], along: Some(k), start: 0 };
        let mut axes: Vec<Axis> = (0..shape.len()).map(whole).collect();
        (axes[axis].size, axes[axis].start) = (range.len(), range.start);
        self.view("slice", axes)
    }

    /// Repeated up to a shape, by NumPy's rules: from the last dimension on, sizes are those of `shape` or 1. The gradient is the sum
    /// over what was repeated.
    #[track_caller]
    pub fn expand(self, shape: &[usize]) -> Var<'t> {
        let own = self.shape();
        if own == shape {
            return self;
        }
        assert!(
            together(&own, shape).is_some_and(|both| both == shape),
            "expand: {own:?} to {shape:?}; wanted sizes that are equal or 1, from the last one on"
        );
        let axis = |k: usize| {
            let along = (k + own.len()).checked_sub(shape.len()).filter(|&k| own[k] != 1);
            Axis { size: shape[k], along, start: 0 }
        };
        self.view("expand", (0..shape.len()).map(axis).collect())
    }

    /// With a dimension of size 1 more, in front of dimension `axis`.
    #[track_caller]
    pub fn unsqueeze(self, axis: usize) -> Var<'t> {
        let mut shape = self.shape();
        assert!(axis <= shape.len(), "unsqueeze: {shape:?} has no place {axis}");
        shape.insert(axis, 1);
        self.reshape(&shape)
    }

    /// All dimensions but the first as one: `[N, …]` → `[N, D]`.
    #[track_caller]
    pub fn flatten(self) -> Var<'t> {
        let shape = self.shape();
        assert!(!shape.is_empty(), "flatten: a single number; wanted [N, ..]");
        self.reshape(&[shape[0], shape[1..].iter().product()])
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn view_gradients() {
        assert!(gradcheck(&[&[2, 3, 4]], |_, x| x[0].permute(&[2, 0, 1])) < 1e-8);
        assert!(gradcheck(&[&[2, 3, 4]], |_, x| x[0].permute(&[1, 0, 2]) + x[0].permute(&[1, 0, 2])) < 1e-8);
        assert!(gradcheck(&[&[5, 2, 3]], |_, x| x[0].transpose()) < 1e-8);
        assert!(gradcheck(&[&[2, 5, 3]], |_, x| x[0].slice(1, 2..4)) < 1e-8);
        assert!(gradcheck(&[&[5]], |_, x| x[0].slice(0, 0..2) * x[0].slice(0, 3..5)) < 1e-8);
        assert!(gradcheck(&[&[3, 1]], |_, x| x[0].expand(&[2, 3, 4])) < 1e-8);
        assert!(gradcheck(&[&[4]], |_, x| x[0].expand(&[2, 3, 4])) < 1e-8);
        assert!(gradcheck(&[&[2, 1, 3, 1]], |_, x| x[0].expand(&[2, 5, 3, 2])) < 1e-8);
        assert!(gradcheck(&[&[2, 3]], |_, x| x[0].unsqueeze(1).flatten()) < 1e-8);
    }

    #[test]
    fn elements_are_found_where_they_should_be() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let values: Vec<f64> = (0..6).map(f64::from).collect();
        let x = tape.constant(Tensor::from_f64(&device, &[2, 3], &values));
        assert_eq!(x.transpose().value().to_f64(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(x.slice(1, 1..3).value().to_f64(), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(x.slice(0, 1..1).shape(), [0, 3]);
        let column = x.slice(1, 2..3).expand(&[2, 2]);
        assert_eq!(column.value().to_f64(), [2.0, 2.0, 5.0, 5.0]);
    }
}
