//! How CPU kernels run: vectorised for the processor at hand, parallel over rows.
//!
//! A binary is built for the oldest x86-64, yet its kernels should use AVX2 or AVX-512 where the processor has them. [`simd`]
//! compiles its closure once for each level and picks one at run time. For that to reach the loops inside, everything below must
//! be inlined: mark the closures and the functions they call `#[inline(always)]`.
//!
//! Loops over arrays are enough for most kernels. One whose sums have to stay in registers names them: it implements
//! [`pulp::WithSimd`], is started by [`dispatch`], and works on the vectors of [`Lanes`].

use crate::real::Real;
use pulp::Simd;
use rayon::prelude::*;
use std::cell::RefCell;

struct Kernel<F>(F);

impl<R, F: FnOnce() -> R> pulp::WithSimd for Kernel<F> {
    type Output = R;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `kernel` compiled for the best instruction set of this processor.
#[inline(always)]
pub(crate) fn simd<R>(kernel: impl FnOnce() -> R) -> R {
    dispatch(Kernel(kernel))
}

/// As [`simd`], for a kernel that is to know the instruction set.
#[inline(always)]
pub(crate) fn dispatch<K: pulp::WithSimd>(kernel: K) -> K::Output {
    pulp::Arch::new().dispatch(kernel)
}

/// Numbers of which the registers of an instruction set `S` hold several.
pub(crate) trait Lanes: Real {
    /// A register full of them.
    type Vector<S: Simd>: Copy;

    /// How many a register holds.
    #[inline(always)]
    fn lanes<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }
    /// `x` in every lane.
    fn splat<S: Simd>(s: S, x: Self) -> Self::Vector<S>;
    /// The first numbers of `from`; zeros where it is shorter than a vector.
    fn load<S: Simd>(s: S, from: &[Self]) -> Self::Vector<S>;
    /// Writes `v`, as much of it as finds room, to the start of `to`.
    fn store<S: Simd>(s: S, to: &mut [Self], v: Self::Vector<S>);
    /// a + b.
    fn plus<S: Simd>(s: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a · b + c; rounded once where the processor can.
    fn mul_plus<S: Simd>(s: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// `v` where `gate` is positive, else 0.
    fn where_positive<S: Simd>(s: S, gate: Self::Vector<S>, v: Self::Vector<S>) -> Self::Vector<S>;
    /// The sum of the lanes.
    fn total<S: Simd>(s: S, v: Self::Vector<S>) -> Self;
}

macro_rules! lanes {
    ($t:ident, $vector:ident, $split:ident, $split_mut:ident, $load:ident, $store:ident, $splat:ident, $add:ident, $mul_add:ident,
     $greater:ident, $select:ident, $total:ident) => {
        impl Lanes for $t {
            type Vector<S: Simd> = S::$vector;
            #[inline(always)]
            fn splat<S: Simd>(s: S, x: Self) -> S::$vector {
                s.$splat(x)
            }
            #[inline(always)]
            fn load<S: Simd>(s: S, from: &[Self]) -> S::$vector {
                match S::$split(from).0.first() {
                    Some(&full) => full,
                    None => s.$load(from),
                }
            }
            #[inline(always)]
            fn store<S: Simd>(s: S, to: &mut [Self], v: S::$vector) {
                match S::$split_mut(to).0.first_mut() {
                    Some(full) => *full = v,
                    None => s.$store(to, v),
                }
            }
            #[inline(always)]
            fn plus<S: Simd>(s: S, a: S::$vector, b: S::$vector) -> S::$vector {
                s.$add(a, b)
            }
            #[inline(always)]
            fn mul_plus<S: Simd>(s: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                s.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn where_positive<S: Simd>(s: S, gate: S::$vector, v: S::$vector) -> S::$vector {
                let zero = s.$splat(0.0);
                s.$select(s.$greater(gate, zero), v, zero)
            }
            #[inline(always)]
            fn total<S: Simd>(s: S, v: S::$vector) -> Self {
                s.$total(v)
            }
        }
    };
}
lanes!(
    f32,
    f32s,
    as_simd_f32s,
    as_mut_simd_f32s,
    partial_load_f32s,
    partial_store_f32s,
    splat_f32s,
    add_f32s,
    mul_add_e_f32s,
    greater_than_f32s,
    select_f32s,
    reduce_sum_f32s
);
lanes!(
    f64,
    f64s,
    as_simd_f64s,
    as_mut_simd_f64s,
    partial_load_f64s,
    partial_store_f64s,
    splat_f64s,
    add_f64s,
    mul_add_e_f64s,
    greater_than_f64s,
    select_f64s,
    reduce_sum_f64s
);

/// Calls `kernel(i, row i of out)` for all rows of `row` elements, in parallel, at least `together` rows per task.
#[inline(always)]
pub(crate) fn each_row<T: Send>(out: &mut [T], row: usize, together: usize, kernel: impl Fn(usize, &mut [T]) + Sync) {
    if row == 0 {
        return;
    }
    out.par_chunks_mut(row * together).enumerate().for_each(|(task, rows)| {
        simd(
            #[inline(always)]
            || {
                for (i, one) in rows.chunks_mut(row).enumerate() {
                    kernel(task * together + i, one);
                }
            },
        )
    });
}

/// As [`each_row`], of two arrays at once, with rows of so many elements.
#[inline(always)]
pub(crate) fn each_row_of_two<T: Send>(
    one: &mut [T],
    two: &mut [T],
    row: [usize; 2],
    together: usize,
    kernel: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    if row.contains(&0) {
        return;
    }
    let tasks = one.par_chunks_mut(row[0] * together).zip(two.par_chunks_mut(row[1] * together));
    tasks.enumerate().for_each(|(task, (one, two))| {
        simd(
            #[inline(always)]
            || {
                for (i, (one, two)) in one.chunks_mut(row[0]).zip(two.chunks_mut(row[1])).enumerate() {
                    kernel(task * together + i, one, two);
                }
            },
        )
    });
}

/// Partial sums side by side: enough to fill the vector registers.
const SUMS: usize = 16;

/// Σ f(xs[k][i]) over i, always in the same order: lane by lane, then across the lanes.
#[inline(always)]
pub(crate) fn sum<T: Real, const K: usize>(xs: [&[T]; K], f: impl Fn([T; K]) -> T) -> T {
    let parts = xs.map(
        #[inline(always)]
        |x| x.as_chunks::<SUMS>(),
    );
    let mut lanes = [T::ZERO; SUMS];
    for b in 0..parts[0].0.len() {
        let blocks: [&[T; SUMS]; K] = std::array::from_fn(
            #[inline(always)]
            |k| &parts[k].0[b],
        );
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(std::array::from_fn(
                #[inline(always)]
                |k| blocks[k][l],
            ));
        }
    }
    for (i, lane) in lanes.iter_mut().enumerate().take(parts[0].1.len()) {
        *lane += f(std::array::from_fn(
            #[inline(always)]
            |k| parts[k].1[i],
        ));
    }
    lanes.into_iter().sum()
}

/// The largest of `xs`, of which there is one at least.
#[inline(always)]
pub(crate) fn largest<T: Real>(xs: &[T]) -> T {
    let (blocks, rest) = xs.as_chunks::<SUMS>();
    let mut lanes = [xs[0]; SUMS];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = lane.larger(x);
        }
    }
    lanes.iter().chain(rest).copied().fold(xs[0], T::larger)
}

/// Elements per task of an elementwise kernel: enough to pay for the hand-over, few enough to share.
pub(crate) const BLOCK: usize = 16 * 1024;

/// Calls `kernel(offset, block of out)` for blocks of up to [`BLOCK`] elements, in parallel.
#[inline(always)]
pub(crate) fn each_block<T: Send>(out: &mut [T], kernel: impl Fn(usize, &mut [T]) + Sync) {
    out.par_chunks_mut(BLOCK).enumerate().for_each(|(i, block)| {
        simd(
            #[inline(always)]
            || kernel(i * BLOCK, block),
        )
    });
}

/// Lends `n` numbers of this thread's scratch memory to `f`; their contents are arbitrary. `f` may ask for more.
#[inline(always)]
pub(crate) fn with_scratch<T: Real, R>(n: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    // What is not lent now, the last given back on top.
    thread_local!(static MEMORY: RefCell<Vec<Vec<f64>>> = const { RefCell::new(vec![]) });
    let mut memory = MEMORY.with_borrow_mut(Vec::pop).unwrap_or_default();
    if memory.len() < n + 8 {
        memory.resize(n + 8, 0.0);
    }
    let aligned = memory.as_ptr().align_offset(64).min(8);
    let result = f(&mut bytemuck::cast_slice_mut(&mut memory[aligned..])[..n]);
    MEMORY.with_borrow_mut(|free| free.push(memory));
    result
}
