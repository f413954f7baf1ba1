//! The products with x̂ on a CPU, where the ReLU before it and dropout leave three numbers in ten: only with these is multiplied.
//!
//! ```text
//! y_r = Σ_k x̂_rk·w_k        dw_k = Σ_r x̂_rk·dz_r        dx̂_rk = dz_r·w_k        over x̂_rk ≠ 0
//! ```
//!
//! w_k are the weights of column k of x̂ for all outputs. dx̂ is 0 where x̂ is 0: dropout stops the gradient there, or the ReLU that x
//! comes from ([`Op::rectified`](super::Op::rectified)).
//!
//! [`DEEP`] columns are worked on at a time. Their weights are laid out column by column in *panels*, as many outputs as registers can
//! hold sums of, so that what a number of x̂ is multiplied with lies in one piece in the nearest cache.

use super::Keep;
use crate::{
    cpu::{self, Lanes, SQUARE},
    matmul::{Matrix, Output},
};
use pulp::{Simd, WithSimd};

/// Columns of x̂ that are worked on together; as many as a word has bits.
const DEEP: usize = 64;
/// Rows of x̂ whose dz, a panel of it, the nearest cache can hold.
const ROWS: usize = 64;
/// Vectors of a panel.
const ACROSS: usize = 8;
/// Bytes that memory hands over at once.
const LINE: usize = 64;

/// Whether it pays to leave zeros out: dropout keeps so little of the three in five numbers that a ReLU lets through.
pub(super) fn pays(keep: &Keep) -> bool {
    keep.scale() >= 1.6
}

/// Outputs of a panel.
fn across<T: Lanes>() -> usize {
    struct Across<T>(std::marker::PhantomData<T>);
    impl<T: Lanes> WithSimd for Across<T> {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            ACROSS * T::lanes::<S>()
        }
    }
    cpu::dispatch(Across::<T>(std::marker::PhantomData))
}

/// Which of up to 64 numbers are not 0, the first as the lowest bit.
#[inline(always)]
fn filled<T: Lanes>(x: &[T]) -> u64 {
    let mut bits = 0;
    for (half, x) in x.chunks(32).enumerate() {
        let mut word = 0u32;
        if let Some(x) = x.first_chunk::<32>() {
            for (i, &x) in x.iter().enumerate() {
                word |= if x != T::ZERO { 1 << i } else { 0 };
            }
        } else {
            for (i, &x) in x.iter().enumerate() {
                word |= u32::from(x != T::ZERO) << i;
            }
        }
        bits |= u64::from(word) << (32 * half);
    }
    bits
}

/// Calls `with` with the place of every bit, from the lowest on.
#[inline(always)]
fn each_bit(mut bits: u64, mut with: impl FnMut(usize)) {
    while bits != 0 {
        with(bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

/// Transposes: `line(r, c, n)` gives n numbers of row r from column c on, and `take(c, r, …)` gets those of column c from row r on.
#[inline(always)]
fn transpose<'a, S: Simd, T: Lanes>(
    s: S,
    (rows, columns): (usize, usize),
    line: impl Fn(usize, usize, usize) -> &'a [T],
    mut take: impl FnMut(usize, usize, &[T]),
) {
    for r in (0..rows).step_by(SQUARE) {
        for c in (0..columns).step_by(SQUARE) {
            let (high, wide) = (SQUARE.min(rows - r), SQUARE.min(columns - c));
            let mut square = [[T::ZERO; SQUARE]; SQUARE];
            if (high, wide) == (SQUARE, SQUARE) {
                for (i, row) in square.iter_mut().enumerate() {
                    row.copy_from_slice(line(r + i, c, SQUARE));
                }
                for (j, column) in T::turned(s, square).iter().enumerate() {
                    take(c + j, r, column);
                }
                continue;
            }
            for (i, row) in square[..high].iter_mut().enumerate() {
                row[..wide].copy_from_slice(line(r + i, c, wide));
            }
            for j in 0..wide {
                let column = square.map(|row| row[j]);
                take(c + j, r, &column[..high]);
            }
        }
    }
}

/// A piece of a product: some columns of x̂, and their weights.
pub(super) struct Piece<'a, T> {
    /// Rows of x̂.
    pub rows: usize,
    /// Columns.
    pub width: usize,
    /// `[outputs, width]`.
    pub weight: Matrix<'a, T>,
    /// How many outputs there are.
    pub outputs: usize,
}

impl<T: Lanes> Piece<'_, T> {
    /// Lays out the weights of `n` columns from `k` on: panel by panel, a row of `across` numbers for each, those beyond the last output 0.
    #[inline(always)]
    fn lay_out<S: Simd>(&self, s: S, (k, n): (usize, usize), across: usize, laid: &mut [T]) {
        for (panel, laid) in laid.chunks_exact_mut(DEEP * across).enumerate() {
            let first = panel * across;
            let outputs = across.min(self.outputs - first);
            if outputs < across {
                laid.fill(T::ZERO);
            }
            transpose(
                s,
                (outputs, n),
                #[inline(always)]
                |o, c, wide| self.weight.line(first + o, k + c, wide),
                #[inline(always)]
                |c, o, weights| laid[c * across + o..][..weights.len()].copy_from_slice(weights),
            );
        }
    }

    /// Asks for the weights of an output and up to [`DEEP`] columns from `k` on, if there are any.
    #[inline(always)]
    fn prefetch(&self, output: usize, k: usize) {
        for c in (k..self.width.min(k + DEEP)).step_by(LINE / size_of::<T>()) {
            cpu::prefetch(&raw const self.weight.line(output, c, 1)[0]);
        }
    }
}

struct Forward<'a, T> {
    piece: Piece<'a, T>,
    kept: &'a [T],
    laid: &'a mut [T],
    y: &'a mut [T],
}

impl<T: Lanes> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Forward { piece, kept, laid, y } = self;
        let (lanes, width) = (T::lanes::<S>(), piece.width);
        let across = ACROSS * lanes;
        let mut bits = vec![0; piece.rows];
        for k in (0..width).step_by(DEEP) {
            let n = DEEP.min(width - k);
            piece.lay_out(s, (k, n), across, laid);
            for (bits, kept) in bits.iter_mut().zip(kept.chunks_exact(width)) {
                *bits = filled(&kept[k..k + n]);
            }
            for (panel, laid) in laid.chunks_exact(DEEP * across).enumerate() {
                let laid = T::vectors(s, laid);
                let outputs = panel * across..piece.outputs.min((panel + 1) * across);
                for (row, (&bits, kept)) in bits.iter().zip(kept.chunks_exact(width)).enumerate() {
                    // What comes next is fetched by the way.
                    (outputs.start + row..outputs.end).step_by(piece.rows).for_each(|o| piece.prefetch(o, k + n));
                    let y = &mut y[row * piece.outputs..][outputs.clone()];
                    let mut sums = [T::splat(s, T::ZERO); ACROSS];
                    if k > 0 {
                        for (c, sum) in sums.iter_mut().enumerate() {
                            *sum = T::load(s, y.get(c * lanes..).unwrap_or(&[]));
                        }
                    }
                    each_bit(
                        bits,
                        #[inline(always)]
                        |j| {
                            let (x, w) = (T::splat(s, kept[k + j]), &laid[j * ACROSS..][..ACROSS]);
                            for c in 0..ACROSS {
                                sums[c] = T::mul_plus(s, x, w[c], sums[c]);
                            }
                        },
                    );
                    for (c, &sum) in sums.iter().enumerate() {
                        T::store(s, y.get_mut(c * lanes..).unwrap_or(&mut []), sum);
                    }
                }
            }
        }
    }
}

/// y `[rows, outputs]` = x̂·wᵀ, of x̂ `[rows, width]`.
pub(super) fn forward<T: Lanes>(piece: Piece<T>, kept: &[T], y: &mut [T]) {
    let size = DEEP * piece.outputs.next_multiple_of(across::<T>());
    cpu::with_scratch(size, |laid| cpu::dispatch(Forward { piece, kept, laid, y }));
}

/// dz `[rows, outputs]` as [`backward`] wants it: panel by panel, zeros beyond the last output.
pub(super) fn panels<T: Lanes>(dz: &[T], rows: usize, outputs: usize) -> Vec<T> {
    panels_of(across::<T>(), dz, rows, outputs)
}

fn panels_of<T: Lanes>(across: usize, dz: &[T], rows: usize, outputs: usize) -> Vec<T> {
    let mut panels = vec![T::ZERO; rows * outputs.next_multiple_of(across)];
    for (panel, to) in panels.chunks_exact_mut((rows * across).max(1)).enumerate() {
        let part = panel * across..outputs.min((panel + 1) * across);
        for (to, dz) in to.chunks_exact_mut(across).zip(dz.chunks_exact(outputs)) {
            to[..part.len()].copy_from_slice(&dz[part.clone()]);
        }
    }
    panels
}

/// The numbers of a column of x̂ that are not 0, of [`ROWS`] rows at most.
#[derive(Clone)]
struct Column<T> {
    count: usize,
    rows: [u32; ROWS],
    x: [T; ROWS],
}

impl<T: Lanes> Column<T> {
    const EMPTY: Self = Column { count: 0, rows: [0; ROWS], x: [T::ZERO; ROWS] };

    #[inline(always)]
    fn push(&mut self, row: usize, x: T) {
        (self.rows[self.count], self.x[self.count]) = (row as u32, x);
        self.count += 1;
    }

    /// With a panel of outputs: `dw` += Σ x̂·dz, and `found` gets the row of every x̂ and its share of dz·w.
    #[inline(always)]
    fn meet<S: Simd>(
        &self,
        s: S,
        dz: &[T::Vector<S>],
        w: &[T::Vector<S>; ACROSS],
        dw: &mut [T::Vector<S>; ACROSS],
        mut found: impl FnMut(usize, T),
    ) {
        let (w, mut sums) = (*w, *dw);
        for i in 0..self.count {
            let (row, x) = (self.rows[i] as usize, T::splat(s, self.x[i]));
            let dz: &[T::Vector<S>; ACROSS] = dz[row * ACROSS..].first_chunk().expect("a row");
            let mut shares = [T::splat(s, T::ZERO); 2];
            for c in 0..ACROSS {
                sums[c] = T::mul_plus(s, x, dz[c], sums[c]);
                shares[c % 2] = T::mul_plus(s, w[c], dz[c], shares[c % 2]);
            }
            found(row, T::total(s, T::plus(s, shares[0], shares[1])));
        }
        *dw = sums;
    }
}

struct Backward<'a, T> {
    piece: Piece<'a, T>,
    kept: &'a mut [T],
    dz: &'a [T],
    laid: &'a mut [T],
    sums: &'a mut [T],
    dw: Option<(&'a Output<'a, T>, usize)>,
}

impl<T: Lanes> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Backward { piece, kept, dz, laid, sums, dw } = self;
        let Piece { rows, width, outputs, .. } = piece;
        let across = ACROSS * T::lanes::<S>();
        let mut columns = vec![Column::EMPTY; DEEP];
        // dx̂ of some rows and columns.
        let mut shares = [T::ZERO; ROWS * DEEP];
        for k in (0..width).step_by(DEEP) {
            let n = DEEP.min(width - k);
            piece.lay_out(s, (k, n), across, laid);
            sums.fill(T::ZERO);
            for first in (0..rows).step_by(ROWS) {
                let block = ROWS.min(rows - first);
                columns.iter_mut().for_each(|column| column.count = 0);
                shares.fill(T::ZERO);
                for row in 0..block {
                    let kept = &kept[(first + row) * width + k..][..n];
                    each_bit(
                        filled(kept),
                        #[inline(always)]
                        |j| columns[j].push(row, kept[j]),
                    );
                }
                let panels = laid.chunks_exact(DEEP * across).zip(sums.chunks_exact_mut(DEEP * across));
                for (panel, (laid, sums)) in panels.enumerate() {
                    let dz = T::vectors(s, &dz[(panel * rows + first) * across..][..block * across]);
                    let weights = T::vectors(s, laid).chunks_exact(ACROSS);
                    let both = weights.zip(T::vectors_mut(s, sums).chunks_exact_mut(ACROSS));
                    for (j, (column, (w, sums))) in columns[..n].iter().zip(both).enumerate() {
                        if first == 0 {
                            // What comes next is fetched by the way.
                            for o in (panel * across + j..outputs.min((panel + 1) * across)).step_by(n) {
                                piece.prefetch(o, k + n);
                                let Some((dw, from)) = dw else { continue };
                                let lines = (k..k + n).step_by(LINE / size_of::<T>());
                                lines.for_each(|c| cpu::prefetch(dw.place(o, from + c)));
                            }
                        }
                        let (w, sums) = (w.try_into().expect("a panel"), sums.try_into().expect("a panel"));
                        column.meet(
                            s,
                            dz,
                            w,
                            sums,
                            #[inline(always)]
                            |row, share| shares[row * DEEP + j] += share,
                        );
                    }
                }
                for (row, shares) in shares.chunks_exact(DEEP).take(block).enumerate() {
                    kept[(first + row) * width + k..][..n].copy_from_slice(&shares[..n]);
                }
            }
            let Some((dw, from)) = dw else { continue };
            for (panel, sums) in sums.chunks_exact(DEEP * across).enumerate() {
                let first = panel * across;
                transpose(
                    s,
                    (n, across.min(outputs - first)),
                    #[inline(always)]
                    |c, o, wide| &sums[c * across + o..][..wide],
                    #[inline(always)]
                    |o, c, sums| {
                        // SAFETY: as promised to [`backward`].
                        let dw = unsafe { dw.window(first + o, from + k + c, sums.len()) };
                        dw.iter_mut().zip(sums).for_each(|(dw, &sum)| *dw += sum);
                    },
                );
            }
        }
    }
}

/// x̂ `[rows, width]` becomes dx̂, and `dw` grows by dzᵀ·x̂ from a column on. `dz`: as [`panels`].
///
/// # Safety
/// No other thread may use these columns of `dw` at the same time.
pub(super) unsafe fn backward<T: Lanes>(piece: Piece<T>, kept: &mut [T], dz: &[T], dw: Option<(&Output<T>, usize)>) {
    let size = DEEP * piece.outputs.next_multiple_of(across::<T>());
    cpu::with_scratch(2 * size, |scratch| {
        let (laid, sums) = scratch.split_at_mut(size);
        cpu::dispatch(Backward { piece, kept, dz, laid, sums, dw });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Rng, Stream};
    use pulp::{Scalar, Scalar128b, Scalar256b, Scalar512b};

    /// What one piece comes to: y, dx̂, and dw that was full of ones.
    fn results<S: Simd, T: Lanes>(s: S, [rows, width, outputs]: [usize; 3], density: f64) -> Vec<f64> {
        let draw =
            |k: u32, n: usize| -> Vec<T> { (0..n).map(|i| T::of(Rng::new(7, 0).normal(Stream(k), i))).collect() };
        let (mut kept, dz, all) = (draw(0, rows * width), draw(1, rows * outputs), draw(2, outputs * (width + 9)));
        for (i, x) in kept.iter_mut().enumerate() {
            if Rng::new(8, 0).uniform(Stream(0), i) >= density {
                *x = T::ZERO;
            }
        }
        // Columns from 5 on of a larger matrix.
        let weight = Matrix::new(&all, outputs, width + 9).columns(5, width);
        let piece = || Piece { rows, width, weight, outputs };
        let across = ACROSS * T::lanes::<S>();
        let size = DEEP * outputs.next_multiple_of(across);
        let mut memory = vec![T::of(f64::NAN); 2 * size];
        let (laid, sums) = memory.split_at_mut(size);
        let mut y = vec![T::of(f64::NAN); rows * outputs];
        Forward { piece: piece(), kept: &kept, laid, y: &mut y }.with_simd(s);
        let mut dw = vec![T::ONE; outputs * (width + 9)];
        let out = Output::new(&mut dw, outputs, width + 9);
        let dz = panels_of(across, &dz, rows, outputs);
        Backward { piece: piece(), kept: &mut kept, dz: &dz, laid, sums, dw: Some((&out, 5)) }.with_simd(s);
        [y, kept, dw].concat().into_iter().map(T::f64).collect()
    }

    /// The same by the formulas.
    fn plain([rows, width, outputs]: [usize; 3], density: f64) -> Vec<f64> {
        let draw = |k: u32, i: usize| Rng::new(7, 0).normal(Stream(k), i);
        let x = |r: usize, k: usize| {
            let i = r * width + k;
            if Rng::new(8, 0).uniform(Stream(0), i) < density { draw(0, i) } else { 0.0 }
        };
        let (dz, w) =
            (|r: usize, o: usize| draw(1, r * outputs + o), |o: usize, k: usize| draw(2, o * (width + 9) + 5 + k));
        let mut all = vec![];
        for (r, o) in (0..rows).flat_map(|r| (0..outputs).map(move |o| (r, o))) {
            all.push((0..width).map(|k| x(r, k) * w(o, k)).sum());
        }
        for (r, k) in (0..rows).flat_map(|r| (0..width).map(move |k| (r, k))) {
            all.push(if x(r, k) == 0.0 { 0.0 } else { (0..outputs).map(|o| dz(r, o) * w(o, k)).sum() });
        }
        for (o, k) in (0..outputs).flat_map(|o| (0..width + 9).map(move |k| (o, k))) {
            let inside = (5..5 + width).contains(&k);
            all.push(1.0 + if inside { (0..rows).map(|r| dz(r, o) * x(r, k - 5)).sum() } else { 0.0 });
        }
        all
    }

    #[test]
    fn products_without_zeros_are_those_with_them() {
        let sizes = [[5, 130, 20], [70, 64, 128], [1, 3, 1], [67, 70, 150], [0, 70, 20]];
        for (size, density) in sizes.into_iter().zip([0.3, 0.5, 1.0, 0.04, 0.3]) {
            let exact = plain(size, density);
            let largest = exact.iter().fold(1.0, |most: f64, v| most.max(v.abs()));
            let double = [
                results::<_, f64>(Scalar, size, density),
                results::<_, f64>(Scalar128b, size, density),
                results::<_, f64>(Scalar256b, size, density),
                results::<_, f64>(Scalar512b, size, density),
            ];
            let single = [
                results::<_, f32>(Scalar128b, size, density),
                results::<_, f32>(Scalar256b, size, density),
                results::<_, f32>(Scalar512b, size, density),
            ];
            for (allowed, others) in [(1e-13, &double[..]), (1e-5, &single[..])] {
                for (i, other) in others.iter().enumerate() {
                    assert_eq!(exact.len(), other.len());
                    let error = exact
                        .iter()
                        .zip(other)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
                    assert!(error <= allowed * largest, "{size:?}, density {density}, vectors {i}: {error:e}");
                }
            }
        }
    }
}
