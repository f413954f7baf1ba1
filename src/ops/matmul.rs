//! Matrix products, also many at once: y_b = a_b·c_b, either of them transposed.
//!
//! ```text
//! y = a·c        da = dy·cᵀ        dc = aᵀ·dy
//! ```

use super::{
    Cost, Op,
    gemm::{self, Plan, naive_product},
    size,
    view::together,
};
use crate::{
    Device, Tensor, Var,
    device::on_device,
    gpu::{Arg, Gpu, Span, args},
    matmul::{Matrix, Output, product},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

/// Of a `[…, M, K]` and c `[…, K, N]`, each of which may be given transposed: as many products as the equal dimensions in front say.
struct MatMul {
    transposed: [bool; 2],
}

/// Sizes of each product.
#[derive(Clone, Copy)]
struct Dims {
    m: usize,
    n: usize,
    k: usize,
}

/// A batch of matrices in memory, rows × columns as they lie there, and whether their transposes are meant.
#[derive(Clone, Copy)]
struct Batch<'a> {
    values: &'a Tensor,
    count: usize,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Batch<'a> {
    fn of(values: &'a Tensor, transposed: bool) -> Self {
        let (front, &[rows, columns]) = values.shape().split_last_chunk().expect("two dimensions");
        Batch { values, count: front.iter().product(), rows, columns, transposed }
    }

    fn t(self) -> Self {
        Batch { transposed: !self.transposed, ..self }
    }

    fn sizes(self) -> [usize; 2] {
        if self.transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }

    fn matrix<T: Real>(self, b: usize) -> Matrix<'a, T> {
        let size = self.rows * self.columns;
        let matrix = Matrix::new(&self.values.slice::<T>()[b * size..][..size], self.rows, self.columns);
        if self.transposed { matrix.t() } else { matrix }
    }
}

/// out_b = a_b·c_b, or grows by it.
fn products<T: Real>(a: Batch, c: Batch, out: &mut [T], accumulate: bool) {
    let ([m, k], [_, n]) = (a.sizes(), c.sizes());
    if m * n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            out.fill(T::ZERO);
        }
        return;
    }
    // Large ones are cut, small ones are shared out whole.
    if m * n * k > 64 * 64 * 64 {
        out.chunks_mut(m * n).enumerate().for_each(|(b, out)| product(a.matrix(b), c.matrix(b), out, accumulate));
    } else {
        out.par_chunks_mut(m * n).enumerate().for_each(|(b, out)| {
            // SAFETY: `out` is this task's own.
            unsafe { Output::new(out, m, n).product_into(0, 0, a.matrix(b), c.matrix(b), accumulate) }
        });
    }
}

/// The same on the GPU, into `out` (with its `add` flag) unless that is null.
fn products_on_gpu(gpu: &Gpu, a: Batch, c: Batch, [out, add]: [Arg; 2]) {
    let ([m, k], [_, n], batch) = (a.sizes(), c.sizes(), a.count);
    let Arg::Out(span) = out else { unreachable!("an output") };
    if out.is_null() {
        return;
    }
    if gpu.naive() {
        let step = m * n * gpu.dtype().bytes();
        for b in 0..batch {
            let matrix = |x: Batch| {
                let one = x.values.window(b * x.rows * x.columns, &[x.rows, x.columns]);
                (one, x.transposed)
            };
            let [a, c] = [a, c].map(matrix);
            let [a, c] = [&a, &c].map(|(one, transposed)| {
                let matrix = gemm::Matrix::of(one);
                if *transposed { matrix.t() } else { matrix }
            });
            let out = Arg::Out(Span { address: span.address + (b * step) as u64, bytes: step });
            naive_product(gpu, a, c, [out, add]);
        }
        return;
    }
    let plan = Plan::several(false, &[]);
    let [down, across] = plan.tiles(m, n);
    let kernel = match (a.transposed, c.transposed) {
        (false, false) => "matmul_nn",
        (false, true) => "matmul_nt",
        (true, false) => "matmul_tn",
        (true, true) => unreachable!("aᵀ·bᵀ is asked for by nobody"),
    };
    let args = args![a.values, c.values, out, add, m, n, k, gemm::math(gpu)];
    gpu.launch("matmul", kernel, plan.launch(gpu, [down * across * batch, 1, 1]), args);
}

impl MatMul {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> Dims {
        let [a, c] = self.operands(x).map(Batch::sizes);
        Dims { m: a[0], n: c[1], k: a[1] }
    }

    fn operands<'a>(&self, x: &'a [Tensor]) -> [Batch<'a>; 2] {
        [0, 1].map(|i| Batch::of(&x[i], self.transposed[i]))
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (Dims { m, n, .. }, [a, c]) = (self.dims(x), self.operands(x));
        let front = &x[0].shape()[..x[0].shape().len() - 2];
        let mut y = Tensor::empty(cx, &[front, &[m, n]].concat());
        on_device!(cx, T => products(a, c, y.slice_mut::<T>(), false), gpu => {
            products_on_gpu(gpu, a, c, [y.out(), Arg::Int(0)]);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ([a, c], dy) = (self.operands(x), Batch::of(dy, false));
        // What a transposed operand gets is the transpose of its product.
        let of_a = if a.transposed { [c, dy.t()] } else { [dy, c.t()] };
        let of_c = if c.transposed { [dy.t(), a] } else { [a.t(), dy] };
        for (slot, [left, right]) in dx.iter_mut().zip([of_a, of_c]) {
            on_device!(cx, T => {
                let Some(slot) = slot else { continue };
                let (out, fresh) = slot.write::<T>();
                products(left, right, out, !fresh);
            }, gpu => products_on_gpu(gpu, left, right, grad(slot)));
        }
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        Cost { flops: 2.0 * (y.len() * self.dims(x).k) as f64, bytes: size(x) + size([y]) }
    }
}

impl<'t> Var<'t> {
    /// Matrix products: a `[…, M, K]`, b `[…, K, N]` → `[…, M, N]`. The dimensions in front are as many products at once; they go
    /// together by NumPy's rules, so that a matrix without any is used for all.
    #[track_caller]
    pub fn matmul(self, b: Var<'t>) -> Var<'t> {
        matmul("matmul", [self, b], [false, false])
    }

    /// a·bᵀ: a `[…, M, K]`, b `[…, N, K]` → `[…, M, N]`; else as [`Var::matmul`].
    #[track_caller]
    pub fn matmul_nt(self, b: Var<'t>) -> Var<'t> {
        matmul("matmul_nt", [self, b], [false, true])
    }

    /// aᵀ·b: a `[…, K, M]`, b `[…, K, N]` → `[…, M, N]`; else as [`Var::matmul`].
    #[track_caller]
    pub fn matmul_tn(self, b: Var<'t>) -> Var<'t> {
        matmul("matmul_tn", [self, b], [true, false])
    }
}

#[track_caller]
fn matmul<'t>(op: &str, x: [Var<'t>; 2], transposed: [bool; 2]) -> Var<'t> {
    let [a, c] = x.map(Var::shape);
    if a.len() < 2 || c.len() < 2 {
        refuse(op, &a, &c, transposed);
    }
    let cut = |shape: &[usize], transposed: bool| {
        let (front, &[rows, columns]) = shape.split_last_chunk::<2>().expect("two at least");
        (front.to_vec(), if transposed { [columns, rows] } else { [rows, columns] })
    };
    let ((front_a, [m, k]), (front_c, [k2, n])) = (cut(&a, transposed[0]), cut(&c, transposed[1]));
    let Some(front) = together(&front_a, &front_c).filter(|_| k == k2) else {
        refuse(op, &a, &c, transposed);
    };
    let tape = x[0].tape();
    let product = |a: Var<'t>, c: Var<'t>| tape.apply(MatMul { transposed }, &[a, c]);
    if front_a == front_c {
        return product(x[0], x[1]);
    }
    if front_c.is_empty() && !transposed[0] {
        // One matrix for all: their rows are those of one product.
        let rows = front.iter().product::<usize>() * m;
        return product(x[0].reshape(&[rows, k]), x[1]).reshape(&[&front[..], &[m, n]].concat());
    }
    let all = |x: Var<'t>, shape: &[usize]| x.expand(&[&front[..], &shape[shape.len() - 2..]].concat());
    product(all(x[0], &a), all(x[1], &c))
}

#[track_caller]
fn refuse(op: &str, a: &[usize], c: &[usize], transposed: [bool; 2]) -> ! {
    let left = if transposed[0] { "[.., K, M]" } else { "[.., M, K]" };
    let right = if transposed[1] { "[.., N, K]" } else { "[.., K, N]" };
    panic!("{op}: {a:?} and {c:?}; wanted {left} and {right}")
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tape, Tensor, gradcheck::gradcheck};

    #[test]
    fn matmul_gradients() {
        assert!(gradcheck(&[&[3, 4], &[4, 5]], |_, x| x[0].matmul(x[1])) < 1e-8);
        assert!(gradcheck(&[&[2, 3, 4], &[4, 5]], |_, x| x[0].matmul(x[1])) < 1e-8);
        assert!(gradcheck(&[&[3, 4], &[2, 4, 5]], |_, x| x[0].matmul(x[1])) < 1e-8);
        assert!(gradcheck(&[&[2, 1, 3, 4], &[3, 4, 2]], |_, x| x[0].matmul(x[1])) < 1e-8);
        assert!(gradcheck(&[&[2, 3, 4], &[2, 5, 4]], |_, x| x[0].matmul_nt(x[1])) < 1e-8);
        assert!(gradcheck(&[&[2, 4, 3], &[2, 4, 5]], |_, x| x[0].matmul_tn(x[1])) < 1e-8);
        assert!(gradcheck(&[&[3, 3]], |_, x| x[0].matmul(x[0])) < 1e-8);
        assert!(gradcheck(&[&[2, 70, 80], &[2, 80, 75]], |_, x| x[0].matmul(x[1])) < 1e-8);
    }

    #[test]
    fn products_of_nothing_are_zero() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let of = |shape: &[usize]| tape.input(Tensor::zeros(&device, shape));
            assert_eq!(of(&[2, 3, 0]).matmul(of(&[2, 0, 2])).value().to_f64(), [0.0; 12]);
            assert_eq!(of(&[0, 4]).matmul(of(&[4, 3])).shape(), [0, 3]);
        }
    }
}
