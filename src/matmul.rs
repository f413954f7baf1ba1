//! Matrix products on the CPU: the `gemm` crate on one thread, cut by us into fixed blocks that run in parallel, so that results
//! do not depend on the number of threads.

use crate::{cpu, real::Real};
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

    /// `width` numbers of a row, which lie in one piece.
    #[inline(always)]
    pub fn line(&self, row: usize, column: usize, width: usize) -> &'a [T] {
        assert!(self.column == 1 && row < self.rows && column + width <= self.columns, "numbers outside the matrix");
        &self.data[row * self.row + column..][..width]
    }

    /// Whether its columns lie in one piece each, and their beginnings compete for a few places in the cache. `gemm`, which packs several
    /// columns number by number, then takes several times as long for that as for the product.
    fn competes(self) -> bool {
        const APART: usize = 1024;
        self.row == 1 && self.columns > 1 && self.column > 1 && (self.column * size_of::<T>()).is_multiple_of(APART)
    }

    /// Writes a matrix whose columns lie in one piece each to `out`, row by row.
    fn rows_into(self, out: &mut [T]) {
        const SIDE: usize = 16;
        assert!(self.row == 1 && out.len() == self.rows * self.columns, "another matrix");
        let (rows, columns, data) = (self.rows, self.columns, self.data);
        // Squares that are read and written by whole lines of the cache.
        for j in (0..columns).step_by(SIDE) {
            for i in (0..rows).step_by(SIDE) {
                if i + SIDE <= rows && j + SIDE <= columns {
                    let column = |c: usize| data[(j + c) * self.column + i..].first_chunk().expect("inside");
                    let square: [[T; SIDE]; SIDE] = std::array::from_fn(|c| *column(c));
                    for r in 0..SIDE {
                        let row = &mut out[(i + r) * columns + j..][..SIDE];
                        row.iter_mut().zip(&square).for_each(|(out, column)| *out = column[r]);
                    }
                    continue;
                }
                for r in i..rows.min(i + SIDE) {
                    for c in j..columns.min(j + SIDE) {
                        out[r * columns + c] = data[c * self.column + r];
                    }
                }
            }
        }
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
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn window(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        assert!(row < self.rows && column + width <= self.columns, "window outside the matrix");
        // SAFETY: inside `data` by the check above, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + column), width) }
    }

    /// Where a number lies.
    pub fn place(&self, row: usize, column: usize) -> *const T {
        self.data.wrapping_add(row * self.stride + column)
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
        if m >= FEW && b.competes() {
            return cpu::with_scratch(k * n, |by_rows| {
                b.rows_into(by_rows);
                // SAFETY: as promised to us.
                unsafe { self.product_into(row, column, a, Matrix::new(by_rows, k, n), accumulate) }
            });
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

/// Rows of a product from which on it pays to lay a b by rows before whose columns compete.
const FEW: usize = 4;

/// `c = a·b`, or `c += a·b`; `c` is row-major.
///
/// The larger side of `c` is cut into blocks of fixed size that run in parallel.
pub(crate) fn product<T: Real>(a: Matrix<T>, b: Matrix<T>, c: &mut [T], accumulate: bool) {
    const SIDE: usize = 64;
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let small = m * n * k <= 64 * 64 * 64;
    if !small && m > n && b.competes() {
        // Once for all blocks.
        return cpu::with_scratch(k * n, |by_rows| {
            by_rows.par_chunks_mut(SIDE * n).enumerate().for_each(|(i, by_rows)| {
                b.rows(i * SIDE, by_rows.len() / n).rows_into(by_rows);
            });
            product(a, Matrix::new(by_rows, k, n), c, accumulate);
        });
    }
    let out = Output::new(c, m, n);
    // SAFETY (all three): blocks of rows or of columns do not overlap.
    if small {
        unsafe { out.product_into(0, 0, a, b, accumulate) };
    } else if m > n {
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
        // In the last ones columns of a transposed b compete.
        let sizes = [(3, 5, 7), (1, 300, 40), (300, 1, 40), (130, 129, 65), (64, 260, 100)];
        for (m, n, k) in sizes.into_iter().chain([(5, 40, 128), (131, 70, 256), (70, 131, 256)]) {
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
