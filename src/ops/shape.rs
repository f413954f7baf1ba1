//! Joining and cutting: columns side by side, rows, another shape.

use super::Op;
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Launch, args},
    kernels::common::TABLE,
    slot::{Slot, grad},
};

/// Columns side by side: x_i `[N, D_i]` (or `[N]`) → `[N, ΣD_i]`. To stack is to do so with each x_i as one row.
struct Concat {
    name: &'static str,
    rows: usize,
    shape: Vec<usize>,
}

impl Concat {
    fn width(&self, x: &Tensor) -> usize {
        x.len() / self.rows
    }

    /// Per launch: the places of its parts in the list, their widths filled up with zeros, and the first column and the number of
    /// columns they fill.
    fn launches(&self, x: &[Tensor]) -> impl Iterator<Item = (std::ops::Range<usize>, [usize; TABLE], usize, usize)> {
        let mut at = 0;
        x.chunks(TABLE).enumerate().map(move |(i, parts)| {
            let mut widths = [0; TABLE];
            widths.iter_mut().zip(parts).for_each(|(w, x)| *w = self.width(x));
            let (first, together) = (at, widths.iter().sum());
            at += together;
            (TABLE * i..TABLE * i + parts.len(), widths, first, together)
        })
    }
}

fn width(x: &Tensor) -> usize {
    x.shape()[1..].iter().product()
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, mut y) = (self.rows, Tensor::empty(cx, &self.shape));
        let total = self.width(&y);
        on_device!(cx, T => {
            let out = y.slice_mut::<T>();
            let mut at = 0;
            for x in x {
                let w = self.width(x);
                for (row, x) in out.chunks_mut(total).zip(x.slice::<T>().chunks(w)) {
                    row[at..at + w].copy_from_slice(x);
                }
                at += w;
            }
        }, gpu => {
            for (parts, widths, first, together) in self.launches(x) {
                let mut args = vec![Arg::table(x[parts].iter().map(Tensor::span)), y.out()];
                args.extend(widths.map(Arg::from));
                args.extend([n * together, together, first, total].map(Arg::from));
                gpu.launch("shape", "concat_fwd", Launch::elements(n * together), &args);
            }
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, total) = (self.rows, self.width(&y[0]));
        on_device!(cx, T => {
            let mut at = 0;
            for (slot, x) in dx.iter_mut().zip(x) {
                let w = self.width(x);
                if let Some(slot) = slot {
                    for (dx, dy) in slot.add::<T>().chunks_mut(w).zip(dy.slice::<T>().chunks(total)) {
                        dx.iter_mut().zip(&dy[at..at + w]).for_each(|(dx, &dy)| *dx += dy);
                    }
                }
                at += w;
            }
        }, gpu => {
            for (parts, widths, first, together) in self.launches(x) {
                let mut args = vec![Arg::from(dy)];
                args.extend(dx[parts].iter_mut().flat_map(grad));
                while args.len() < 1 + 2 * TABLE {
                    args.extend(grad(&mut None));
                }
                args.extend(widths.map(Arg::from));
                args.extend([n * together, together, first, total].map(Arg::from));
                gpu.launch("shape", "concat_bwd", Launch::elements(n * together), &args);
            }
        });
    }
}

/// A window: rows `from..from+count`, columns `first..first+width` of `[N, …]` seen as `[N, D]`.
struct Window {
    from: usize,
    first: usize,
    width: usize,
    shape: Vec<usize>,
}

impl Op for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let total = width(&x[0]);
        if self.first == 0 && self.width == total {
            return vec![x[0].rows(self.from, self.shape[0]).reshape(&self.shape)];
        }
        let mut y = Tensor::empty(cx, &self.shape);
        on_device!(cx, T => {
            let rows = x[0].slice::<T>().chunks(total).skip(self.from);
            for (y, x) in y.slice_mut::<T>().chunks_mut(self.width).zip(rows) {
                y.copy_from_slice(&x[self.first..self.first + self.width]);
            }
        }, gpu => {
            let n = y.len();
            let args = args![&x[0], y.out(), n, self.from, self.first, self.width, total];
            gpu.launch("shape", "window_fwd", Launch::elements(n), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let Some(slot) = &mut dx[0] else { return };
        let total = width(&x[0]);
        on_device!(cx, T => {
            let rows = slot.add::<T>().chunks_mut(total).skip(self.from);
            for (dx, dy) in rows.zip(dy.slice::<T>().chunks(self.width)) {
                dx[self.first..self.first + self.width].iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy);
            }
        }, gpu => {
            let ([dx, add], n, all) = (grad(&mut dx[0]), dy.len(), x[0].len());
            let args = args![dy, dx, add, n, all, self.from, self.first, self.width, total];
            gpu.launch("shape", "window_bwd", Launch::elements(all), args);
        });
    }
}

/// The same elements in the same order under another shape.
struct Reshape(Vec<usize>);

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn forward(&self, _: &Device, x: &[Tensor]) -> Vec<Tensor> {
        vec![x[0].reshape(&self.0)]
    }

    fn backward(&self, cx: &Device, _: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        super::elementwise::add_multiple(cx, dy, 1.0, &mut dx[0]);
    }
}

/// Columns side by side: `[N, D_i]` each (or `[N]`, one column) → `[N, ΣD_i]`. Further dimensions count as columns.
#[track_caller]
pub fn concat<'t>(parts: &[Var<'t>]) -> Var<'t> {
    let shapes: Vec<_> = parts.iter().map(|x| x.shape()).collect();
    let rows = shapes[0][0];
    assert!(shapes.iter().all(|s| s[0] == rows), "concat: {shapes:?}; wanted as many rows in each");
    let total = shapes.iter().map(|s| s[1..].iter().product::<usize>()).sum();
    parts[0].tape().apply(Concat { name: "concat", rows, shape: vec![rows, total] }, parts)
}

/// T values of one shape `[…]` → `[T, …]`.
#[track_caller]
pub fn stack<'t>(parts: &[Var<'t>]) -> Var<'t> {
    let one = parts[0].shape();
    if let Some(other) = parts.iter().map(|x| x.shape()).find(|shape| *shape != one) {
        panic!("stack: {one:?} and {other:?}; wanted one shape");
    }
    let shape = [&[parts.len()], &one[..]].concat();
    parts[0].tape().apply(Concat { name: "stack", rows: 1, shape }, parts)
}

impl<'t> Var<'t> {
    /// Rows `from..from + count` of the first dimension.
    #[track_caller]
    pub fn rows(self, from: usize, count: usize) -> Var<'t> {
        let mut shape = self.shape();
        assert!(from + count <= shape[0], "rows: {from}..{} of {shape:?}; wanted rows that are there", from + count);
        shape[0] = count;
        let width = shape[1..].iter().product();
        self.tape().apply(Window { from, first: 0, width, shape }, &[self])
    }

    /// Columns `first..first + width` of `[N, D]` → `[N, width]`.
    #[track_caller]
    pub fn columns(self, first: usize, width: usize) -> Var<'t> {
        let shape = self.shape();
        assert!(
            shape.len() == 2 && first + width <= shape[1],
            "columns: {first}..{} of {shape:?}; wanted columns of [N, D]",
            first + width
        );
        self.tape().apply(Window { from: 0, first, width, shape: vec![shape[0], width] }, &[self])
    }

    /// Column `i` of `[N, D]` → `[N]`.
    #[track_caller]
    pub fn column(self, i: usize) -> Var<'t> {
        let n = self.shape()[0];
        self.columns(i, 1).reshape(&[n])
    }

    /// The same elements under another shape.
    #[track_caller]
    pub fn reshape(self, shape: &[usize]) -> Var<'t> {
        self.tape().apply(Reshape(shape.to_vec()), &[self])
    }
}

#[cfg(test)]
mod tests {
    use super::{concat, stack};
    use crate::gradcheck::gradcheck;

    #[test]
    fn joining_and_cutting_have_the_right_gradients() {
        assert!(gradcheck(&[&[3, 4], &[3], &[3, 2, 2]], |_, x| concat(x)) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[3, 4]], |_, x| stack(x)) < 1e-8);
        assert!(gradcheck(&[&[5, 4]], |_, x| x[0].rows(1, 3)) < 1e-8);
        assert!(gradcheck(&[&[5, 4]], |_, x| x[0].columns(1, 2)) < 1e-8);
        assert!(gradcheck(&[&[5, 4]], |_, x| x[0].column(3)) < 1e-8);
        assert!(gradcheck(&[&[5, 4]], |_, x| x[0].reshape(&[2, 10])) < 1e-8);
        assert!(gradcheck(&[&[6, 4]], |_, x| x[0].rows(0, 3) * x[0].rows(2, 3)) < 1e-8);
    }
}
