//! Correlations of images with small kernels on a CPU, at every pixel.
//!
//! **Flat rows.** All planes have rows of equal width, and are worked on as one long run of positions p = y·width + x. An output at p
//! reads its inputs at p + dy·width + dx, so registers are full whatever the width of an image; what comes out in the last columns of
//! a row, where the taps reach into the next, is garbage, and is dropped. Where gradients have zeros there, products with them count
//! for nothing; and as the row before ends in zeros, no padding is needed at the left.

// Indices of registers: all of these loops are unrolled.
#![allow(clippy::needless_range_loop)]

use crate::cpu::Lanes;
use pulp::Simd;
use std::ops::Range;

/// The most positions that are worked on at once, and so may lie beyond the last: eight vectors of f32 with AVX-512.
const SLACK: usize = 128;

/// What the planes of a correlation have in common.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Numbers in a row.
    pub width: usize,
    /// Positions of all rows.
    pub positions: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
}

impl Rows {
    /// From the first to the last number that an output reads.
    pub fn reach(self) -> usize {
        (self.kernel[0] - 1) * self.width + self.kernel[1] - 1
    }

    /// Numbers of a plane: an odd number of cache lines, so that channels don't compete for the same places in the cache; and where
    /// position 0 is.
    fn layout(self) -> (usize, usize) {
        const LINE: usize = 16;
        let origin = self.reach().next_multiple_of(LINE);
        let lines = (origin + self.positions + self.reach() + SLACK).div_ceil(LINE);
        ((lines | 1) * LINE, origin)
    }

    /// Numbers of so many planes.
    pub fn numbers(self, channels: usize) -> usize {
        channels * self.layout().0
    }
}

/// Channels of images: planes of flat rows, each with room before it for padding, and behind it for a tile.
pub(super) struct Planes<'a, T> {
    memory: &'a mut [T],
    /// From one plane to the next.
    size: usize,
    /// Position 0 within a plane.
    origin: usize,
}

impl<'a, T: Lanes> Planes<'a, T> {
    /// Cuts `channels` planes off the front of `memory`.
    pub fn cut(rows: Rows, channels: usize, memory: &mut &'a mut [T]) -> Self {
        let (size, origin) = rows.layout();
        Planes { memory: memory.split_off_mut(..channels * size).expect("scratch"), size, origin }
    }

    /// A channel from position 0 on.
    #[inline(always)]
    pub fn channel(&self, c: usize) -> &[T] {
        self.padded(c, 0)
    }

    #[inline(always)]
    pub fn channel_mut(&mut self, c: usize) -> &mut [T] {
        &mut self.memory[c * self.size + self.origin..(c + 1) * self.size]
    }

    /// A channel from `before` position 0 on, at most [`Rows::reach`].
    #[inline(always)]
    pub fn padded(&self, c: usize, before: usize) -> &[T] {
        &self.memory[c * self.size + self.origin - before..(c + 1) * self.size]
    }

    /// Zeros all that lies before position 0 and from position `end` on.
    #[inline(always)]
    pub fn clear_around<S: Simd>(&mut self, s: S, end: usize) {
        for plane in self.memory.chunks_exact_mut(self.size) {
            clear(s, &mut plane[..self.origin]);
            clear(s, &mut plane[self.origin + end..]);
        }
    }
}

#[inline(always)]
fn clear<S: Simd, T: Lanes>(s: S, numbers: &mut [T]) {
    for chunk in numbers.chunks_mut(T::lanes::<S>()) {
        T::store(s, chunk, T::splat(s, T::ZERO));
    }
}

/// Weights in the order that [`tile`] reads them, `[in, tap, out]`, and biases `[out]`.
pub(super) struct Taps<T> {
    weight: Vec<T>,
    bias: Vec<T>,
    kernel: [usize; 2],
}

impl<T: Lanes> Taps<T> {
    /// Of `weight` `[out, ins, high, wide]` and `bias` `[out]`.
    pub fn new(weight: &[T], bias: &[T], kernel: [usize; 2]) -> Self {
        let outs = bias.len();
        let taps = weight.len().checked_div(outs).unwrap_or(0);
        let order = (0..taps).flat_map(|t| (0..outs).map(move |o| weight[o * taps + t]));
        Taps { weight: order.collect(), bias: bias.to_vec(), kernel }
    }

    /// For the gradient with respect to the input of a convolution with `weight` `[outs, ins, high, wide]`: channels exchanged, taps
    /// mirrored, no bias.
    pub fn mirrored(weight: &[T], outs: usize, kernel: [usize; 2]) -> Self {
        let size = kernel[0] * kernel[1];
        let ins = weight.len().checked_div(outs * size).unwrap_or(0);
        let tap = move |o: usize, t: usize| (0..ins).map(move |i| weight[(o * ins + i) * size + size - 1 - t]);
        let order = (0..outs).flat_map(|o| (0..size).flat_map(move |t| tap(o, t)));
        Taps { weight: order.collect(), bias: vec![T::ZERO; ins], kernel }
    }

    fn outs(&self) -> usize {
        self.bias.len()
    }
}

/// The sums that are in registers at once, 24 vectors of up to 16 numbers, and a vector of anything.
const BUFFER: usize = 25 * 16;

/// 32 registers, which vectors of 512 bits always come with, instead of 16.
#[inline(always)]
fn many_registers<S: Simd>() -> bool {
    S::REGISTER_COUNT >= 32 || size_of::<S::f32s>() >= 64
}

/// Sums leave their registers through this memory. Were they used where they are, by loops that are too long to be unrolled, the
/// compiler would have to keep them in memory all the time.
#[repr(align(64))]
struct Buffer<T>([T; BUFFER]);

impl<T: Lanes> Buffer<T> {
    #[inline(always)]
    fn put<S: Simd, const O: usize, const V: usize>(&mut self, s: S, sum: &[[T::Vector<S>; V]; O]) {
        let lanes = T::lanes::<S>();
        for p in 0..O {
            for v in 0..V {
                T::store(s, &mut self.0[(p * V + v) * lanes..][..lanes], sum[p][v]);
            }
        }
    }
}

/// Correlation for `O` output channels from `o` on, at `V` vectors of positions from `at` on. x(c): input channel c from what the first
/// tap reads at position 0 on.
#[inline(always)]
fn tile<'x, S: Simd, T: Lanes, const O: usize, const V: usize>(
    s: S,
    x: impl Fn(usize) -> &'x [T],
    (width, at): (usize, usize),
    (taps, o): (&Taps<T>, usize),
) -> [[T::Vector<S>; V]; O] {
    let lanes = T::lanes::<S>();
    let mut sum = [[T::splat(s, T::ZERO); V]; O];
    for p in 0..O {
        sum[p] = [T::splat(s, taps.bias[o + p]); V];
    }
    let (outs, [high, wide]) = (taps.outs(), taps.kernel);
    for (c, weights) in taps.weight.chunks_exact(high * wide * outs).enumerate() {
        let x = x(c);
        for (dy, weights) in weights.chunks_exact(wide * outs).enumerate() {
            let row = &x[at + dy * width..][..V * lanes + wide - 1];
            for (dx, k) in weights.chunks_exact(outs).enumerate() {
                let (k, row) = (&k[o..][..O], &row[dx..][..V * lanes]);
                let mut values = [T::splat(s, T::ZERO); V];
                for v in 0..V {
                    values[v] = T::load(s, &row[v * lanes..][..lanes]);
                }
                for p in 0..O {
                    let k = T::splat(s, k[p]);
                    for v in 0..V {
                        sum[p][v] = T::mul_plus(s, values[v], k, sum[p][v]);
                    }
                }
            }
        }
    }
    sum
}

/// [`tile`]s that cover `positions` of output channels `o..o + O`. `store(channel, positions, sums)` receives
/// what comes out, and a vector more of anything.
#[inline(always)]
fn tiles<'x, S: Simd, T: Lanes, const O: usize, const V: usize>(
    s: S,
    x: &impl Fn(usize) -> &'x [T],
    (width, positions): (usize, usize),
    (taps, o): (&Taps<T>, usize),
    store: &mut impl FnMut(usize, Range<usize>, &[T]),
) -> usize {
    let (mut at, lanes) = (0, T::lanes::<S>());
    let mut buffer = Buffer([T::ZERO; BUFFER]);
    while at < positions {
        // At the end no more vectors than are needed.
        let vectors = if positions - at > (V - 1) * lanes {
            buffer.put(s, &tile::<S, T, O, V>(s, x, (width, at), (taps, o)));
            V
        } else {
            buffer.put(s, &tile::<S, T, O, 1>(s, x, (width, at), (taps, o)));
            1
        };
        let wide = vectors * lanes;
        for p in 0..O {
            store(o + p, at..at + wide, &buffer.0[p * wide..][..wide + lanes]);
        }
        at += wide;
    }
    O
}

/// Correlation of the channels x(c) with `taps` at `positions`, with as many sums at once as there are registers. x(c) begins with what
/// the first tap reads at position 0.
#[inline(always)]
pub(super) fn convolve<'x, S: Simd, T: Lanes>(
    s: S,
    x: impl Fn(usize) -> &'x [T],
    (width, positions): (usize, usize),
    taps: &Taps<T>,
    mut store: impl FnMut(usize, Range<usize>, &[T]),
) {
    let mut o = 0;
    while o < taps.outs() {
        o += match taps.outs() - o {
            8.. if many_registers::<S>() => tiles::<S, T, 8, 3>(s, &x, (width, positions), (taps, o), &mut store),
            4.. => tiles::<S, T, 4, 2>(s, &x, (width, positions), (taps, o), &mut store),
            _ => tiles::<S, T, 1, 8>(s, &x, (width, positions), (taps, o), &mut store),
        };
    }
}

/// f(sums) at flat `positions` → `out`, the plane `[rows, columns]` without the columns that are garbage. To be called in the
/// order of positions: whole vectors are written, and what they write too much is corrected by those that follow.
#[inline(always)]
pub(super) fn crop<S: Simd, T: Lanes>(
    s: S,
    sums: &[T],
    (width, positions): (usize, Range<usize>),
    columns: usize,
    out: &mut [T],
    f: impl Fn(T::Vector<S>) -> T::Vector<S>,
) {
    let (mut row, mut column) = (positions.start / width, positions.start % width);
    let mut done = 0;
    while done < positions.len() && row * columns < out.len() {
        for i in (0..columns.saturating_sub(column).min(positions.len() - done)).step_by(T::lanes::<S>()) {
            let sum = T::load(s, &sums[done + i..]);
            T::store(s, &mut out[row * columns + column + i..], f(sum));
        }
        done += width - column;
        (row, column) = (row + 1, 0);
    }
}

/// The `D` numbers of dw from `first` on grow by Σₚ dz[p] · x[p + dx], and so do those every `step` behind, for `O` channels of dz from
/// `o` on.
#[inline(always)]
fn correlate_some<S: Simd, T: Lanes, const O: usize, const D: usize>(
    s: S,
    x: &[T],
    (dz, o): (&Planes<T>, usize),
    positions: usize,
    (dw, first, step): (&mut [T], usize, usize),
) -> usize {
    let lanes = T::lanes::<S>();
    let mut buffer = Buffer([T::ZERO; BUFFER]);
    let mut sum = [[T::splat(s, T::ZERO); D]; O];
    for at in (0..positions).step_by(lanes) {
        let row = &x[at..][..lanes + D - 1];
        let mut values = [T::splat(s, T::ZERO); D];
        for dx in 0..D {
            values[dx] = T::load(s, &row[dx..][..lanes]);
        }
        for p in 0..O {
            let dz = T::load(s, &dz.channel(o + p)[at..][..lanes]);
            for dx in 0..D {
                sum[p][dx] = T::mul_plus(s, dz, values[dx], sum[p][dx]);
            }
        }
    }
    buffer.put(s, &sum);
    for (i, sum) in buffer.0.chunks_exact(lanes).take(D * O).enumerate() {
        dw[first + i / D * step + i % D] += T::total(s, T::load(s, sum));
    }
    D
}

/// Adds to dw `[outs, ins, high, wide]` and db `[outs]` what the gradients dz of a correlation's sums say of its weights and biases.
/// x(c): as for [`convolve`]. From the last position on, dz has zeros for a vector.
#[inline(always)]
pub(super) fn correlate<'x, S: Simd, T: Lanes>(
    s: S,
    x: impl Fn(usize) -> &'x [T],
    dz: &Planes<T>,
    (width, positions, [high, wide]): (usize, usize, [usize; 2]),
    dw: &mut [T],
    db: &mut [T],
) {
    let outs = db.len();
    let step = dw.len().checked_div(outs).unwrap_or(0);
    let mut o = 0;
    while o < outs {
        let many = match outs - o {
            8.. if many_registers::<S>() => 8,
            4.. => 4,
            _ => 1,
        };
        for row in 0..step / wide {
            let (x, mut dx) = (&x(row / high)[row % high * width..], 0);
            while dx < wide {
                let (x, dw) = (&x[dx..], (&mut *dw, o * step + row * wide + dx, step));
                dx += match (many, wide - dx) {
                    (8, 3..) => correlate_some::<S, T, 8, 3>(s, x, (dz, o), positions, dw),
                    (8, _) => correlate_some::<S, T, 8, 1>(s, x, (dz, o), positions, dw),
                    (4, 3..) => correlate_some::<S, T, 4, 3>(s, x, (dz, o), positions, dw),
                    (4, _) => correlate_some::<S, T, 4, 1>(s, x, (dz, o), positions, dw),
                    (_, 3..) => correlate_some::<S, T, 1, 3>(s, x, (dz, o), positions, dw),
                    _ => correlate_some::<S, T, 1, 1>(s, x, (dz, o), positions, dw),
                };
            }
        }
        o += many;
    }
    for (o, db) in db.iter_mut().enumerate() {
        let mut sum = T::splat(s, T::ZERO);
        for dz in dz.channel(o)[..positions].chunks(T::lanes::<S>()) {
            sum = T::plus(s, sum, T::load(s, dz));
        }
        *db += T::total(s, sum);
    }
}
