//! The two convolutions on a CPU. Each image is one task that lives in a thread's scratch memory, so nothing but inputs and
//! outputs touches main memory.
//!
//! **Flat rows.** All planes have rows of w numbers, those of x, and are worked on as one long run of positions p = y·w + x. An
//! output at p reads its inputs at p + dy·w + dx, so registers are full whatever the width; what comes out in the last columns of a
//! row, where the taps reach into the next, is garbage. y drops those columns ([`crop`]). In dz₁ and dz₂ they hold zeros, so that
//! products with them count for nothing; and as the row before ends in zeros, no padding is needed at the left.
//!
//! ```text
//!              columns that count      rows
//! x                    w               h
//! a, dz₁             w − 2             h − 2
//! y, dz₂             w − 4             h − 4
//! ```

// Indices of registers: all of these loops are unrolled.
#![allow(clippy::needless_range_loop)]

use super::Dims;
use crate::cpu::{self, Lanes};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The most positions that are worked on at once, and so may lie beyond the last: eight vectors of f32 with AVX-512.
const SLACK: usize = 128;

/// Channels of one image: planes of flat rows, each with room before it for two rows of padding, and behind it for a tile.
struct Planes<'a, T> {
    memory: &'a mut [T],
    /// From one plane to the next.
    size: usize,
    /// Position 0 within a plane.
    origin: usize,
    width: usize,
}

impl<'a, T: Lanes> Planes<'a, T> {
    /// An odd number of cache lines, so that channels don't compete for the same places in the cache; and where position 0 is.
    fn layout(d: &Dims) -> (usize, usize) {
        const LINE: usize = 16;
        let origin = (2 * d.w + 2).next_multiple_of(LINE);
        let lines = (origin + d.h * d.w + SLACK).div_ceil(LINE);
        ((lines | 1) * LINE, origin)
    }

    /// Cuts `channels` planes off the front of `memory`.
    fn cut(d: &Dims, channels: usize, memory: &mut &'a mut [T]) -> Self {
        let (size, origin) = Self::layout(d);
        Planes { memory: memory.split_off_mut(..channels * size).expect("scratch"), size, origin, width: d.w }
    }

    /// A channel from position 0 on.
    #[inline(always)]
    fn channel(&self, c: usize) -> &[T] {
        &self.memory[c * self.size + self.origin..(c + 1) * self.size]
    }

    #[inline(always)]
    fn channel_mut(&mut self, c: usize) -> &mut [T] {
        &mut self.memory[c * self.size + self.origin..(c + 1) * self.size]
    }

    /// A channel from two rows and two columns of padding before position 0 on.
    #[inline(always)]
    fn padded(&self, c: usize) -> &[T] {
        &self.memory[c * self.size + self.origin - 2 * self.width - 2..(c + 1) * self.size]
    }

    /// Zeros all that lies before position 0 and from position `end` on.
    #[inline(always)]
    fn clear_around<S: Simd>(&mut self, s: S, end: usize) {
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

/// Weights in the order that [`tile`] reads them, `[in·9, out]`, and biases `[out]`.
pub(super) struct Taps<T> {
    weight: Vec<T>,
    bias: Vec<T>,
}

impl<T: Lanes> Taps<T> {
    /// Of `weight` `[out, ins, 3, 3]` and `bias` `[out]`.
    pub(super) fn new(weight: &[T], bias: &[T], ins: usize) -> Self {
        let outs = bias.len();
        let order = (0..ins * 9 * outs).map(|i| weight[i % outs * ins * 9 + i / outs]);
        Taps { weight: order.collect(), bias: bias.to_vec() }
    }

    /// For the gradient with respect to the input of a convolution with `weight` `[outs, ins, 3, 3]`: channels exchanged, taps
    /// mirrored, no bias.
    pub(super) fn mirrored(weight: &[T], outs: usize, ins: usize) -> Self {
        let tap = |o: usize, t: usize, i: usize| weight[(o * ins + i) * 9 + 8 - t];
        let order = (0..outs * 9 * ins).map(|k| tap(k / ins / 9, k / ins % 9, k % ins));
        Taps { weight: order.collect(), bias: vec![T::ZERO; ins] }
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

/// Valid 3×3 cross-correlation for `O` output channels from `o` on, at `V` vectors of positions from `at` on.
/// x(c): input channel c.
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
    let outs = taps.outs();
    for (c, weights) in taps.weight.chunks_exact(9 * outs).enumerate() {
        let x = x(c);
        for dy in 0..3 {
            let row = &x[at + dy * width..][..V * lanes + 2];
            for dx in 0..3 {
                let k = &weights[(3 * dy + dx) * outs + o..][..O];
                let mut values = [T::splat(s, T::ZERO); V];
                for v in 0..V {
                    values[v] = T::load(s, &row[dx + v * lanes..][..lanes]);
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
    let wide = V * T::lanes::<S>();
    let mut buffer = Buffer([T::ZERO; BUFFER]);
    for at in (0..positions).step_by(wide) {
        let sum = tile::<S, T, O, V>(s, x, (width, at), (taps, o));
        buffer.put(s, &sum);
        for p in 0..O {
            store(o + p, at..at + wide, &buffer.0[p * wide..][..wide + T::lanes::<S>()]);
        }
    }
    O
}

/// Valid 3×3 cross-correlation of the channels x(c) at `positions`, with as many sums at once as there are registers.
#[inline(always)]
fn convolve<'x, S: Simd, T: Lanes>(
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

/// dw[o][c][dy][dx] += Σₚ dz[o][p] · x[c][p + dy·w + dx] for `O` channels of dz from `o` on. dw: `[outs, ins, 3, 3]`.
#[inline(always)]
fn correlate_some<S: Simd, T: Lanes, const O: usize>(
    s: S,
    x: &Planes<T>,
    (dz, o): (&Planes<T>, usize),
    positions: usize,
    dw: &mut [T],
    ins: usize,
) -> usize {
    let lanes = T::lanes::<S>();
    let mut buffer = Buffer([T::ZERO; BUFFER]);
    for c in 0..ins {
        for dy in 0..3 {
            let x = &x.channel(c)[dy * x.width..];
            let mut sum = [[T::splat(s, T::ZERO); 3]; O];
            for at in (0..positions).step_by(lanes) {
                let row = &x[at..][..lanes + 2];
                let mut values = [T::splat(s, T::ZERO); 3];
                for dx in 0..3 {
                    values[dx] = T::load(s, &row[dx..][..lanes]);
                }
                for p in 0..O {
                    let dz = T::load(s, &dz.channel(o + p)[at..][..lanes]);
                    for dx in 0..3 {
                        sum[p][dx] = T::mul_plus(s, dz, values[dx], sum[p][dx]);
                    }
                }
            }
            buffer.put(s, &sum);
            for (i, sum) in buffer.0.chunks_exact(lanes).take(3 * O).enumerate() {
                dw[((o + i / 3) * ins + c) * 9 + 3 * dy + i % 3] += T::total(s, T::load(s, sum));
            }
        }
    }
    O
}

/// Adds to dw `[outs, ins, 3, 3]` and db `[outs]` what the gradients dz of a convolution's sums say of its weights and biases.
#[inline(always)]
fn correlate<S: Simd, T: Lanes>(s: S, x: &Planes<T>, dz: &Planes<T>, positions: usize, dw: &mut [T], db: &mut [T]) {
    let (outs, ins) = (db.len(), dw.len() / 9 / db.len());
    let mut o = 0;
    while o < outs {
        o += match outs - o {
            8.. if many_registers::<S>() => correlate_some::<S, T, 8>(s, x, (dz, o), positions, dw, ins),
            4.. => correlate_some::<S, T, 4>(s, x, (dz, o), positions, dw, ins),
            _ => correlate_some::<S, T, 1>(s, x, (dz, o), positions, dw, ins),
        };
    }
    for (o, db) in db.iter_mut().enumerate() {
        let mut sum = T::splat(s, T::ZERO);
        for dz in dz.channel(o)[..positions].chunks(T::lanes::<S>()) {
            sum = T::plus(s, sum, T::load(s, dz));
        }
        *db += T::total(s, sum);
    }
}

/// relu(sums) at flat `positions` → `out`, the plane `[rows, columns]` without the columns that are garbage. To be called in the
/// order of positions: whole vectors are written, and what they write too much is corrected by those that follow.
#[inline(always)]
fn crop<S: Simd, T: Lanes>(s: S, sums: &[T], (width, positions): (usize, Range<usize>), columns: usize, out: &mut [T]) {
    let (mut row, mut column) = (positions.start / width, positions.start % width);
    let mut done = 0;
    while done < positions.len() && row * columns < out.len() {
        for i in (0..columns.saturating_sub(column).min(positions.len() - done)).step_by(T::lanes::<S>()) {
            let sum = T::load(s, &sums[done + i..]);
            T::store(s, &mut out[row * columns + column + i..], T::where_positive(s, sum, sum));
        }
        done += width - column;
        (row, column) = (row + 1, 0);
    }
}

/// a = relu(w₁ ⋆ x + b₁), finite beyond its end.
#[inline(always)]
fn first<S: Simd, T: Lanes>(s: S, d: &Dims, image: &[T], taps: &Taps<T>, x: &mut Planes<T>, a: &mut Planes<T>) {
    for (to, from) in x.channel_mut(0).chunks_mut(T::lanes::<S>()).zip(image.chunks(T::lanes::<S>())) {
        T::store(s, to, T::load(s, from));
    }
    x.clear_around(s, d.h * d.w);
    let positions = (d.h - 2) * d.w;
    convolve(
        s,
        #[inline(always)]
        |c| x.channel(c),
        (d.w, positions),
        taps,
        #[inline(always)]
        |o, positions, sums| {
            let lanes = T::lanes::<S>();
            for (a, sum) in a.channel_mut(o)[positions].chunks_exact_mut(lanes).zip(sums.chunks_exact(lanes)) {
                let sum = T::load(s, sum);
                T::store(s, a, T::where_positive(s, sum, sum));
            }
        },
    );
    a.clear_around(s, positions);
}

struct Forward<'a, T> {
    d: &'a Dims,
    image: &'a [T],
    taps: &'a [Taps<T>; 2],
    x: Planes<'a, T>,
    a: Planes<'a, T>,
    y: &'a mut [T],
}

impl<T: Lanes> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Forward { d, image, taps, mut x, mut a, y } = self;
        first(s, d, image, &taps[0], &mut x, &mut a);
        let (height, columns) = (d.h - 4, d.w - 4);
        convolve(
            s,
            #[inline(always)]
            |c| a.channel(c),
            (d.w, height * d.w),
            &taps[1],
            #[inline(always)]
            |o, positions, sums| {
                crop(s, sums, (d.w, positions), columns, &mut y[o * height * columns..][..height * columns])
            },
        );
    }
}

/// The features y `[C₂, H−4, W−4]` of one image `[H, W]`. `taps`: of both convolutions.
pub(super) fn forward<T: Lanes>(d: &Dims, image: &[T], taps: &[Taps<T>; 2], y: &mut [T]) {
    cpu::with_scratch((1 + d.c1) * Planes::<T>::layout(d).0, |mut memory| {
        let mut planes = |channels| Planes::cut(d, channels, &mut memory);
        cpu::dispatch(Forward { d, image, taps, x: planes(1), a: planes(d.c1), y });
    });
}

/// Where one image's gradients go: those of the weights and biases, and the image's own.
pub(super) struct Gradients<'a, T> {
    w1: &'a mut [T],
    b1: &'a mut [T],
    w2: &'a mut [T],
    b2: &'a mut [T],
    x: Option<&'a mut [T]>,
}

impl<'a, T> Gradients<'a, T> {
    /// `joined`: those of w1, b1, w2 and b2 one behind the other.
    pub(super) fn cut(d: &Dims, joined: &'a mut [T], x: Option<&'a mut [T]>) -> Self {
        let (w1, rest) = joined.split_at_mut(d.c1 * 9);
        let (b1, rest) = rest.split_at_mut(d.c1);
        let (w2, b2) = rest.split_at_mut(d.c2 * d.c1 * 9);
        Gradients { w1, b1, w2, b2, x }
    }
}

/// dz₂ = dy where y > 0, with zeros around.
#[inline(always)]
fn gate_output<S: Simd, T: Lanes>(s: S, d: &Dims, y: &[T], dy: &[T], dz2: &mut Planes<T>) {
    let (height, columns, lanes) = (d.h - 4, d.w - 4, T::lanes::<S>());
    for o in 0..d.c2 {
        let dz = dz2.channel_mut(o);
        for row in 0..height {
            // Whole vectors: what is too much is overwritten with the zeros behind the row, and by the next row.
            for column in (0..columns).step_by(lanes) {
                let from = (o * height + row) * columns + column;
                let gated = T::where_positive(s, T::load(s, &y[from..]), T::load(s, &dy[from..]));
                T::store(s, &mut dz[row * d.w + column..], gated);
            }
            for column in (columns..d.w).step_by(lanes) {
                T::store(s, &mut dz[row * d.w + column..], T::splat(s, T::ZERO));
            }
        }
    }
    dz2.clear_around(s, height * d.w);
}

/// dz₁ = w₂ᵀ ⋆ dz₂ where a > 0, with zeros around.
#[inline(always)]
fn hidden_gradient<S: Simd, T: Lanes>(
    s: S,
    d: &Dims,
    dz2: &Planes<T>,
    taps: &Taps<T>,
    a: &Planes<T>,
    dz1: &mut Planes<T>,
) {
    let positions = (d.h - 2) * d.w;
    convolve(
        s,
        #[inline(always)]
        |o| dz2.padded(o),
        (d.w, positions),
        taps,
        #[inline(always)]
        |c, positions, sums| {
            let lanes = T::lanes::<S>();
            let gates = a.channel(c)[positions.clone()].chunks_exact(lanes);
            let both = gates.zip(sums.chunks_exact(lanes));
            for (dz, (gate, sum)) in dz1.channel_mut(c)[positions].chunks_exact_mut(lanes).zip(both) {
                T::store(s, dz, T::where_positive(s, T::load(s, gate), T::load(s, sum)));
            }
        },
    );
    for c in 0..d.c1 {
        for row in dz1.channel_mut(c)[..positions].chunks_exact_mut(d.w) {
            row[d.w - 2..].fill(T::ZERO);
        }
    }
    dz1.clear_around(s, positions);
}

/// dx += w₁ᵀ ⋆ dz₁.
#[inline(always)]
fn input_gradient<S: Simd, T: Lanes>(s: S, d: &Dims, dz1: &Planes<T>, taps: &Taps<T>, dx: &mut [T]) {
    convolve(
        s,
        #[inline(always)]
        |c| dz1.padded(c),
        (d.w, d.h * d.w),
        taps,
        #[inline(always)]
        |_, positions, sums| {
            let (lanes, end) = (T::lanes::<S>(), positions.end.min(dx.len()));
            for (dx, sum) in dx[positions.start..end].chunks_mut(lanes).zip(sums.chunks_exact(lanes)) {
                T::store(s, dx, T::plus(s, T::load(s, dx), T::load(s, sum)));
            }
        },
    );
}

struct Backward<'a, T> {
    d: &'a Dims,
    image: &'a [T],
    y: &'a [T],
    dy: &'a [T],
    taps: &'a [Taps<T>; 3],
    x: Planes<'a, T>,
    a: Planes<'a, T>,
    dz2: Planes<'a, T>,
    dz1: Planes<'a, T>,
    out: Gradients<'a, T>,
}

impl<T: Lanes> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Backward { d, image, y, dy, taps, mut x, mut a, mut dz2, mut dz1, out } = self;
        first(s, d, image, &taps[0], &mut x, &mut a);
        gate_output(s, d, y, dy, &mut dz2);
        correlate(s, &a, &dz2, (d.h - 4) * d.w, out.w2, out.b2);
        hidden_gradient(s, d, &dz2, &taps[1], &a, &mut dz1);
        correlate(s, &x, &dz1, (d.h - 2) * d.w, out.w1, out.b1);
        if let Some(dx) = out.x {
            input_gradient(s, d, &dz1, &taps[2], dx);
        }
    }
}

/// Adds one image's gradients. `taps`: of the first convolution, of the second mirrored, of the first mirrored.
pub(super) fn backward<T: Lanes>(d: &Dims, (image, y, dy): (&[T], &[T], &[T]), taps: &[Taps<T>; 3], out: Gradients<T>) {
    cpu::with_scratch((1 + 2 * d.c1 + d.c2) * Planes::<T>::layout(d).0, |mut memory| {
        let mut planes = |channels| Planes::cut(d, channels, &mut memory);
        let (x, a, dz2, dz1) = (planes(1), planes(d.c1), planes(d.c2), planes(d.c1));
        cpu::dispatch(Backward { d, image, y, dy, taps, x, a, dz2, dz1, out });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Device,
        rng::{Rng, Stream},
    };
    use pulp::{Scalar, Scalar128b, Scalar256b, Scalar512b};

    /// y, and the gradients of w1, b1, w2, b2 and x, of one image with vectors of `S`. The scratch memory is full of NaN.
    fn results<S: Simd, T: Lanes>(s: S, d: &Dims) -> Vec<f64> {
        let draw = |k: u32, n: usize| -> Vec<T> {
            let values = Rng::new(7, 0).normal_tensor(&Device::cpu_f64(), Stream(k), &[n]);
            values.to_f64().iter().map(|&v| T::of(v)).collect()
        };
        let (weights1, weights2) = (d.c1 * 9, d.c2 * d.c1 * 9);
        let (image, dy) = (draw(0, d.h * d.w), draw(1, d.features()));
        let (w1, b1, w2, b2) = (draw(2, weights1), draw(3, d.c1), draw(4, weights2), draw(5, d.c2));
        let mut memory = vec![T::of(f64::NAN); (1 + 2 * d.c1 + d.c2) * Planes::<T>::layout(d).0];

        let mut y = vec![T::of(f64::NAN); d.features()];
        let mut free = &mut memory[..];
        let mut planes = |channels| Planes::cut(d, channels, &mut free);
        let taps = [Taps::new(&w1, &b1, 1), Taps::new(&w2, &b2, d.c1)];
        Forward { d, image: &image, taps: &taps, x: planes(1), a: planes(d.c1), y: &mut y }.with_simd(s);

        memory.fill(T::of(f64::NAN));
        let mut grads = vec![T::ONE; weights1 + d.c1 + weights2 + d.c2];
        let mut dx = vec![T::ONE; d.h * d.w];
        let mut free = &mut memory[..];
        let mut planes = |channels| Planes::cut(d, channels, &mut free);
        let taps = [Taps::new(&w1, &b1, 1), Taps::mirrored(&w2, d.c2, d.c1), Taps::mirrored(&w1, d.c1, 1)];
        let out = Gradients::cut(d, &mut grads, Some(&mut dx));
        let (x, a, dz2, dz1) = (planes(1), planes(d.c1), planes(d.c2), planes(d.c1));
        Backward { d, image: &image, y: &y, dy: &dy, taps: &taps, x, a, dz2, dz1, out }.with_simd(s);
        [y, grads, dx].concat().into_iter().map(T::f64).collect()
    }

    fn difference(a: &[f64], b: &[f64]) -> f64 {
        assert!(b.iter().all(|v| v.is_finite()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn vectors_of_every_length_give_the_same() {
        for [h, w, c1, c2] in [[25, 25, 8, 16], [9, 50, 8, 16], [5, 5, 1, 1], [6, 21, 13, 9], [7, 6, 3, 12]] {
            let d = Dims { n: 1, h, w, c1, c2 };
            let exact = results::<_, f64>(Scalar, &d);
            let size = exact.iter().fold(1.0, |most: f64, v| most.max(v.abs()));
            let double = [
                results::<_, f64>(Scalar128b, &d),
                results::<_, f64>(Scalar256b, &d),
                results::<_, f64>(Scalar512b, &d),
            ];
            let single = [
                results::<_, f32>(Scalar, &d),
                results::<_, f32>(Scalar128b, &d),
                results::<_, f32>(Scalar256b, &d),
                results::<_, f32>(Scalar512b, &d),
            ];
            for (allowed, others) in [(1e-13, &double[..]), (1e-5, &single[..])] {
                for (i, other) in others.iter().enumerate() {
                    let error = difference(&exact, other) / size;
                    assert!(error < allowed, "{h}x{w}, {c1} and {c2} channels, vectors {i}: {error:e}");
                }
            }
        }
    }
}
