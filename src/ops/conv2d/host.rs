//! A convolution by flat rows on a CPU. Images of a task lie in flat rows in a thread's scratch memory, one below the other: rows of x and
//! of y are as wide as an image and its padding at one side, and as many rows lie between two images, all of zeros.

use super::{Dims, TOGETHER};
use crate::{
    cpu::{self, Lanes},
    ops::flat::{Planes, Rows, Taps, convolve, correlate, crop},
};
use pulp::{Simd, WithSimd};
use std::convert::identity;

/// Numbers of planes that are worked on at once: as many as stay in a processor's cache.
const NUMBERS: usize = 1 << 17;

impl Dims {
    /// Rows from one image to the next.
    fn apart(self) -> usize {
        self.h + self.padding
    }

    /// Positions from the first result of the first image to the last of the last.
    fn positions(self, images: usize, width: usize) -> usize {
        ((images - 1) * self.apart() + self.rows - 1) * width + self.columns
    }
}

/// Lays images `[images, channels, rows, columns]` out in `planes`, with zeros around.
#[inline(always)]
fn lay<S: Simd, T: Lanes>(
    s: S,
    images: &[T],
    [channels, rows, columns]: [usize; 3],
    (width, apart): (usize, usize),
    planes: &mut Planes<T>,
) {
    planes.clear_around(s, 0);
    let lanes = T::lanes::<S>();
    for (i, plane) in (0..images.len() / (rows * columns).max(1)).enumerate() {
        let (from, to) = (plane * rows * columns, planes.channel_mut(i % channels));
        for row in 0..rows {
            let (from, to) = (&images[from + row * columns..], &mut to[(i / channels * apart + row) * width..]);
            // Whole vectors: what is too much is overwritten with zeros, and by the next row.
            for column in (0..columns).step_by(lanes) {
                T::store(s, &mut to[column..], T::load(s, &from[column..]));
            }
            T::store(s, &mut to[columns..], T::splat(s, T::ZERO));
        }
    }
}

struct Forward<'a, T> {
    d: Dims,
    rows: Rows,
    x: &'a [T],
    taps: &'a Taps<T>,
    planes: Planes<'a, T>,
    y: &'a mut [T],
}

impl<T: Lanes> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Forward { d, rows: Rows { width, .. }, x, taps, mut planes, y } = self;
        lay(s, x, [d.ins, d.h, d.w], (width, d.apart()), &mut planes);
        convolve(
            s,
            #[inline(always)]
            |c| planes.padded(c, d.padding * (width + 1)),
            (width, d.positions(1, width)),
            taps,
            #[inline(always)]
            |o, positions, sums| {
                let y = &mut y[o * d.places()..][..d.places()];
                crop(s, sums, (width, positions), d.columns, y, identity)
            },
        );
    }
}

/// y of one image x.
pub(super) fn forward<T: Lanes>(d: Dims, x: &[T], taps: &Taps<T>, y: &mut [T]) {
    let rows = d.flat(1).expect("flat rows");
    cpu::with_scratch(rows.numbers(d.ins), |mut memory| {
        let planes = Planes::cut(rows, d.ins, &mut memory);
        cpu::dispatch(Forward { d, rows, x, taps, planes, y });
    });
}

struct Backward<'a, T> {
    d: Dims,
    rows: Rows,
    x: &'a [T],
    dy: &'a [T],
    mirrored: &'a Taps<T>,
    planes: [Planes<'a, T>; 2],
    /// Memory for what an image adds to its gradient.
    one: &'a mut [T],
    sums: (&'a mut [T], &'a mut [T]),
    dx: Option<&'a mut [T]>,
}

impl<T: Lanes> WithSimd for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Backward { d, rows, x, dy, mirrored, planes: [mut xs, mut dys], one, sums: (dw, db), dx } = self;
        let width = rows.width;
        let (apart, images) = ((width, d.apart()), dy.len() / (d.outs * d.places()));
        lay(s, x, [d.ins, d.h, d.w], apart, &mut xs);
        lay(s, dy, [d.outs, d.rows, d.columns], apart, &mut dys);
        let before = d.padding * (width + 1);
        correlate(
            s,
            #[inline(always)]
            |c| xs.padded(c, before),
            &dys,
            (width, d.positions(images, width), rows.kernel),
            dw,
            db,
        );
        let Some(dx) = dx else { return };
        for (image, dx) in dx.chunks_exact_mut(d.image().max(1)).enumerate() {
            convolve(
                s,
                #[inline(always)]
                |o| &dys.padded(o, rows.reach() - before)[image * d.apart() * width..],
                (width, d.h * width),
                mirrored,
                #[inline(always)]
                |c, positions, sums| {
                    let one = &mut one[c * d.h * d.w..][..d.h * d.w];
                    crop(s, sums, (width, positions), d.w, one, identity)
                },
            );
            dx.iter_mut().zip(&*one).for_each(|(dx, &g)| *dx += g);
        }
    }
}

/// Adds what images x contribute to the gradients of weights and biases, and to their own where that is wanted.
pub(super) fn backward<T: Lanes>(
    d: Dims,
    [x, dy]: [&[T]; 2],
    mirrored: &Taps<T>,
    (dw, db): (&mut [T], &mut [T]),
    mut dx: Option<&mut [T]>,
) {
    let one = d.flat(1).expect("flat rows");
    let together = (NUMBERS / one.numbers(d.ins + d.outs).max(1)).clamp(1, TOGETHER);
    let (image, result) = (d.image(), d.outs * d.places());
    for (i, dy) in dy.chunks((together * result).max(1)).enumerate() {
        let images = dy.len() / result;
        let part = i * together * image..(i * together + images) * image;
        let rows = d.flat(images).expect("flat rows");
        cpu::with_scratch(rows.numbers(d.ins + d.outs) + image, |mut memory| {
            let planes = [d.ins, d.outs].map(|channels| Planes::cut(rows, channels, &mut memory));
            let (x, dx) = (&x[part.clone()], dx.as_deref_mut().map(|dx| &mut dx[part]));
            cpu::dispatch(Backward { d, rows, x, dy, mirrored, planes, one: memory, sums: (dw, db), dx });
        });
    }
}
