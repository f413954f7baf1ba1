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
use std::{any::TypeId, cell::RefCell};

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
    /// The full vectors of `from`.
    fn vectors<S: Simd>(s: S, from: &[Self]) -> &[Self::Vector<S>];
    /// As [`Lanes::vectors`], to be written.
    fn vectors_mut<S: Simd>(s: S, to: &mut [Self]) -> &mut [Self::Vector<S>];
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
    /// The transpose of a square.
    #[inline(always)]
    fn turned<S: Simd>(_: S, rows: [[Self; SQUARE]; SQUARE]) -> [[Self; SQUARE]; SQUARE] {
        plainly_turned(rows)
    }
}

#[inline(always)]
fn plainly_turned<T: Copy>(rows: [[T; SQUARE]; SQUARE]) -> [[T; SQUARE]; SQUARE] {
    std::array::from_fn(
        #[inline(always)]
        |i| {
            std::array::from_fn(
                #[inline(always)]
                |j| rows[j][i],
            )
        },
    )
}

/// The transpose of a square of single precision, in registers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turned_in_registers(v3: pulp::x86::V3, rows: [[f32; SQUARE]; SQUARE]) -> [[f32; SQUARE]; SQUARE] {
    use std::arch::x86_64::__m256;
    let avx = v3.avx;
    let [a, b, c, d, e, f, g, h]: [__m256; SQUARE] = bytemuck::cast(rows);
    // No closures: what they are handed to would be compiled for another processor.
    macro_rules! pairs {
        ($x:expr, $y:expr) => {
            (avx._mm256_unpacklo_ps($x, $y), avx._mm256_unpackhi_ps($x, $y))
        };
    }
    macro_rules! fours {
        ($x:expr, $y:expr) => {
            (avx._mm256_shuffle_ps::<0b01_00_01_00>($x, $y), avx._mm256_shuffle_ps::<0b11_10_11_10>($x, $y))
        };
    }
    macro_rules! all {
        ($x:expr, $y:expr) => {
            (avx._mm256_permute2f128_ps::<0x20>($x, $y), avx._mm256_permute2f128_ps::<0x31>($x, $y))
        };
    }
    let ((a, b), (c, d), (e, f), (g, h)) = (pairs!(a, b), pairs!(c, d), pairs!(e, f), pairs!(g, h));
    let ((a, c), (b, d), (e, g), (f, h)) = (fours!(a, c), fours!(b, d), fours!(e, g), fours!(f, h));
    let ((a, e), (c, g), (b, f), (d, h)) = (all!(a, e), all!(c, g), all!(b, f), all!(d, h));
    bytemuck::cast::<[__m256; SQUARE], _>([a, c, b, d, e, g, f, h])
}

/// Rows and columns of what [`Lanes::turned`] transposes.
pub(crate) const SQUARE: usize = 8;

/// Asks for a number that will soon be used.
#[inline(always)]
pub(crate) fn prefetch<T>(x: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: nothing is read; any address will do.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(x.cast())
    };
}

macro_rules! lanes {
    ($t:ident, $vector:ident, $split:ident, $split_mut:ident, $load:ident, $store:ident, $splat:ident, $add:ident, $mul_add:ident,
     $greater:ident, $select:ident, $total:ident $(, $turned:ident)?) => {
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
            fn vectors<S: Simd>(_: S, from: &[Self]) -> &[S::$vector] {
                S::$split(from).0
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(_: S, to: &mut [Self]) -> &mut [S::$vector] {
                S::$split_mut(to).0
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
            $(
                #[inline(always)]
                #[cfg(target_arch = "x86_64")]
                fn turned<S: Simd>(_: S, rows: [[Self; SQUARE]; SQUARE]) -> [[Self; SQUARE]; SQUARE] {
                    let has = [TypeId::of::<pulp::x86::V3>(), TypeId::of::<pulp::x86::V4>()];
                    if !has.contains(&TypeId::of::<S>()) {
                        return plainly_turned(rows);
                    }
                    // SAFETY: there is an `S` only where there are these instructions.
                    $turned(unsafe { pulp::x86::V3::new_unchecked() }, rows)
                }
            )?
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
    reduce_sum_f32s,
    turned_in_registers
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
