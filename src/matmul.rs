//! Matrix products on the CPU: the `gemm` crate on one thread, cut by us into fixed blocks that run in parallel, so that results
//! do not depend on the number of threads.

use crate::real::Real;
use rayon::prelude::*;

/// A matrix in somebody's memory: element (i, j) is `data[i·row + j·column]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row: usize,
    column: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    /// Row-major `rows` × `columns`, rows `stride` elements apart.
    pub fn strided(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(rows * columns == 0 || (rows - 1) * stride + columns <= data.len(), "matrix larger than its memory");
        Matrix { data, rows, columns, row: stride, column: 1 }
    }

    /// Row-major `rows` × `columns`.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// The transpose, without copying.
    pub fn t(self) -> Self {
        Matrix { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }

    /// Rows `from..from + count`.
    pub fn rows(self, from: usize, count: usize) -> Self {
        assert!(from + count <= self.rows, "rows outside the matrix");
        let data = if count == 0 { &[] } else { &self.data[from * self.row..] };
        Matrix { data, rows: count, ..self }
    }

    /// Columns `from..from + count`.
    pub fn columns(self, from: usize, count: usize) -> Self {
        Self::rows(self.t(), from, count).t()
    }
}

/// A row-major matrix that several threads write at once, each in a window of its own.
pub(crate) struct Output<'a, T> {
    data: *mut T,
    rows: usize,
    columns: usize,
    stride: usize,
    memory: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is through `product_into`, whose caller promises disjoint windows.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T: Real> Output<'a, T> {
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "matrix and memory differ in size");
        Output { data: data.as_mut_ptr(), rows, columns, stride: columns, memory: std::marker::PhantomData }
    }

    /// `width` elements of one row.
    ///
    /// # Safety
    /// No other thread may use an overlapping window at the same time, nor this one another reference to it.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn window(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        assert!(row < self.rows && column + width <= self.columns, "window outside the matrix");
        // SAFETY: inside `data` by the check above, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + column), width) }
    }

    /// The window with its first element at (`row`, `column`) becomes `a·b`, or grows by it. One thread.
    ///
    /// # Safety
    /// No other thread may use an overlapping window at the same time.
    pub unsafe fn product_into(&self, row: usize, column: usize, a: Matrix<T>, b: Matrix<T>, accumulate: bool) {
        let (m, n, k) = (a.rows, b.columns, a.columns);
        assert_eq!(k, b.rows, "inner dimensions differ");
        assert!(row + m <= self.rows && column + n <= self.columns, "product outside the result");
        if m * n == 0 {
            return;
        }
        // SAFETY: the window was just checked to lie inside `data`; `a` and `b` were checked when they were made.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.data.add(row * self.stride + column),
                1,
                self.stride as isize,
                accumulate,
                a.data.as_ptr(),
                a.column as isize,
                a.row as isize,
                b.data.as_ptr(),
                b.column as isize,
                b.row as isize,
                T::ONE,
                T::ONE,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// `c = a·b`, or `c += a·b`; `c` is row-major.
///
/// The larger side of `c` is cut into blocks of fixed size that run in parallel.
pub(crate) fn product<T: Real>(a: Matrix<T>, b: Matrix<T>, c: &mut [T], accumulate: bool) {
    const SIDE: usize = 64;
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let out = Output::new(c, m, n);
    // SAFETY (all three): blocks of rows or of columns do not overlap.
    if m * n * k <= 64 * 64 * 64 {
        unsafe { out.product_into(0, 0, a, b, accumulate) };
    } else if m >= n {
        (0..m.div_ceil(SIDE)).into_par_iter().for_each(|i| {
            let count = SIDE.min(m - i * SIDE);
            unsafe { out.product_into(i * SIDE, 0, a.rows(i * SIDE, count), b, accumulate) };
        });
    } else {
        (0..n.div_ceil(SIDE)).into_par_iter().for_each(|j| {
            let count = SIDE.min(n - j * SIDE);
            unsafe { out.product_into(0, j * SIDE, a, b.columns(j * SIDE, count), accumulate) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};

    #[test]
    fn products_of_every_orientation_match_a_plain_loop() {
        let draw = |stream, n| (0..n).map(|i| Rng::new(0, 0).normal(Stream(stream), i)).collect::<Vec<f64>>();
        for (m, n, k) in [(3, 5, 7), (1, 300, 40), (300, 1, 40), (130, 129, 65), (64, 260, 100)] {
            let (a, b) = (draw(0, m * k), draw(1, k * n));
            for (a, b) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&a, k, m).t(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&b, n, k).t()),
            ] {
                let mut c = vec![1.0; m * n];
                product(a, b, &mut c, true);
                for (i, c) in c.iter().enumerate() {
                    let at = |m: &Matrix<f64>, r: usize, c: usize| m.data[r * m.row + c * m.column];
                    let plain: f64 = (0..k).map(|l| at(&a, i / n, l) * at(&b, l, i % n)).sum();
                    assert!((c - 1.0 - plain).abs() < 1e-12 * k as f64);
                }
            }
        }
    }
}
