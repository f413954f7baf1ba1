//! The two convolutions on a CPU. Each image is one task that lives in a thread's scratch memory, so nothing but inputs and
//! outputs touches main memory.
//!
//! All planes have flat rows ([`super::super::flat`]) of w numbers, those of x. y drops the columns that are garbage ([`crop`]). In dz₁ and
//! dz₂ they hold zeros.
//!
//! ```text
//!              columns that count      rows
//! x                    w               h
//! a, dz₁             w − 2             h − 2
//! y, dz₂             w − 4             h − 4
//! ```

use super::{
    super::flat::{Planes, Rows, Taps, convolve, correlate, crop},
    Dims,
};
use crate::cpu::{self, Lanes};
use pulp::{Simd, WithSimd};

/// Of both convolutions, in all planes.
fn rows(d: &Dims) -> Rows {
    Rows { width: d.w, positions: d.h * d.w, kernel: KERNEL }
}

pub(super) const KERNEL: [usize; 2] = [3, 3];

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
                let y = &mut y[o * height * columns..][..height * columns];
                crop(
                    s,
                    sums,
                    (d.w, positions),
                    columns,
                    y,
                    #[inline(always)]
                    |sum| T::where_positive(s, sum, sum),
                )
            },
        );
    }
}

/// The features y `[C₂, H−4, W−4]` of one image `[H, W]`. `taps`: of both convolutions.
pub(super) fn forward<T: Lanes>(d: &Dims, image: &[T], taps: &[Taps<T>; 2], y: &mut [T]) {
    cpu::with_scratch(rows(d).numbers(1 + d.c1), |mut memory| {
        let mut planes = |channels| Planes::cut(rows(d), channels, &mut memory);
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
        |o| dz2.padded(o, rows(d).reach()),
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
        |c| dz1.padded(c, rows(d).reach()),
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
        correlate(
            s,
            #[inline(always)]
            |c| a.channel(c),
            &dz2,
            (d.w, (d.h - 4) * d.w, KERNEL),
            out.w2,
            out.b2,
        );
        hidden_gradient(s, d, &dz2, &taps[1], &a, &mut dz1);
        correlate(
            s,
            #[inline(always)]
            |c| x.channel(c),
            &dz1,
            (d.w, (d.h - 2) * d.w, KERNEL),
            out.w1,
            out.b1,
        );
        if let Some(dx) = out.x {
            input_gradient(s, d, &dz1, &taps[2], dx);
        }
    }
}

/// Adds one image's gradients. `taps`: of the first convolution, of the second mirrored, of the first mirrored.
pub(super) fn backward<T: Lanes>(d: &Dims, (image, y, dy): (&[T], &[T], &[T]), taps: &[Taps<T>; 3], out: Gradients<T>) {
    cpu::with_scratch(rows(d).numbers(1 + 2 * d.c1 + d.c2), |mut memory| {
        let mut planes = |channels| Planes::cut(rows(d), channels, &mut memory);
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
        let mut memory = vec![T::of(f64::NAN); rows(d).numbers(1 + 2 * d.c1 + d.c2)];

        let mut y = vec![T::of(f64::NAN); d.features()];
        let mut free = &mut memory[..];
        let mut planes = |channels| Planes::cut(rows(d), channels, &mut free);
        let taps = [Taps::new(&w1, &b1, KERNEL), Taps::new(&w2, &b2, KERNEL)];
        Forward { d, image: &image, taps: &taps, x: planes(1), a: planes(d.c1), y: &mut y }.with_simd(s);

        memory.fill(T::of(f64::NAN));
        let mut grads = vec![T::ONE; weights1 + d.c1 + weights2 + d.c2];
        let mut dx = vec![T::ONE; d.h * d.w];
        let mut free = &mut memory[..];
        let mut planes = |channels| Planes::cut(rows(d), channels, &mut free);
        let taps = [Taps::new(&w1, &b1, KERNEL), Taps::mirrored(&w2, d.c2, KERNEL), Taps::mirrored(&w1, d.c1, KERNEL)];
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
