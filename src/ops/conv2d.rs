//! Convolution of images with learned kernels (as everywhere in the field a cross-correlation).
//!
//! ```text
//! y[n, o, r, c] = b[o] + Σ_{k, i, j} w[o, k, i, j] · x[n, k, stride·r − padding + i, stride·c − padding + j]
//! ```
//! with zeros beyond the edge. On the CPU images whose every pixel has a window are correlated where they lie, in flat rows
//! ([`super::flat`]). With a stride, or for a few numbers in a window, each image's windows become the columns of a matrix (`im2col`), so
//! that a convolution is a matrix product; the backward makes them again.

mod host;

use super::{
    Cost, Op, Window,
    flat::{Rows, Taps},
    size,
};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    matmul::{Matrix, Output},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;
use std::ops::Range;

/// Images whose gradients of the weights are added up by one thread: a fixed number, so that sums do not depend on the threads.
const TOGETHER: usize = 4;

struct Conv2d {
    stride: usize,
    padding: usize,
}

/// Images, channels in and out, sizes of images before and after and of the kernels.
#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    ins: usize,
    h: usize,
    w: usize,
    outs: usize,
    high: usize,
    wide: usize,
    rows: usize,
    columns: usize,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> Dims {
        let &Conv2d { stride, padding } = self;
        match (x[0].shape(), x[1].shape(), x[2].shape()) {
            (&[n, ins, h, w], &[outs, ins2, high, wide], &[outs2])
                if (ins, outs, true) == (ins2, outs2, stride > 0)
                    && high * wide > 0
                    && high <= h + 2 * padding
                    && wide <= w + 2 * padding =>
            {
                let count = |length, size| Window { size, stride, padding }.count(length);
                let (rows, columns) = (count(h, high), count(w, wide));
                Dims { n, ins, h, w, outs, high, wide, rows, columns, stride, padding }
            }
            (x, w, b) => panic!(
                "conv2d: x {x:?}, w {w:?}, b {b:?}, stride {stride}, padding {padding}; wanted [N, C, H, W], [O, C, KH, KW], [O] with \
                 kernels that fit into the padded image"
            ),
        }
    }
}

impl Dims {
    /// Pixels of one image before and after, and numbers that a result depends on.
    fn image(self) -> usize {
        self.ins * self.h * self.w
    }

    fn places(self) -> usize {
        self.rows * self.columns
    }

    fn taps(self) -> usize {
        self.ins * self.high * self.wide
    }

    fn kernel(self) -> [usize; 2] {
        [self.high, self.wide]
    }

    /// Flat rows of so many images, one below the other, which are separated by the padding alone; if every pixel has a window, and
    /// windows are so large that copies of them cost more than what is lost between rows.
    fn flat(self, images: usize) -> Option<Rows> {
        let width = self.w + self.padding;
        let rows = Rows { width, positions: images * (self.h + self.padding) * width, kernel: self.kernel() };
        (self.stride == 1 && self.padding < self.high.min(self.wide) && self.taps() >= 16).then_some(rows)
    }

    /// For each row of the matrix of windows and each row of results: where the pixels that they meet begin in the image, which results
    /// of that row have one, and where these are in the matrix.
    #[inline(always)]
    fn runs(self, mut run: impl FnMut(usize, Range<usize>, usize)) {
        for tap in 0..self.taps() {
            let (c, i, j) = (tap / (self.high * self.wide), tap / self.wide % self.high, tap % self.wide);
            // Results `first..last` of a row see a pixel of the image here.
            let first = self.padding.saturating_sub(j).div_ceil(self.stride);
            let last = (self.w + self.padding).saturating_sub(j).div_ceil(self.stride).min(self.columns);
            for r in 0..self.rows {
                let row = (r * self.stride + i).wrapping_sub(self.padding);
                let at = tap * self.places() + r * self.columns;
                if row < self.h && first < last {
                    let pixel = (c * self.h + row) * self.w + first * self.stride + j - self.padding;
                    run(pixel, first..last, at);
                } else {
                    run(0, 0..0, at);
                }
            }
        }
    }

    /// The windows of an image as columns: `[taps, places]`.
    #[inline(always)]
    fn unfold<T: Real>(self, x: &[T], out: &mut [T]) {
        self.runs(
            #[inline(always)]
            |pixel, inside, at| {
                let row = &mut out[at..at + self.columns];
                row[..inside.start].fill(T::ZERO);
                row[inside.end..].fill(T::ZERO);
                let row = &mut row[inside];
                if self.stride == 1 {
                    row.copy_from_slice(&x[pixel..pixel + row.len()]);
                } else {
                    row.iter_mut().zip(x[pixel..].iter().step_by(self.stride)).for_each(|(out, &x)| *out = x);
                }
            },
        );
    }

    /// The reverse: every pixel grows by what its places in the columns hold.
    #[inline(always)]
    fn fold<T: Real>(self, columns: &[T], x: &mut [T]) {
        self.runs(
            #[inline(always)]
            |pixel, inside, at| {
                let row = &columns[at..][inside];
                if self.stride == 1 {
                    x[pixel..][..row.len()].iter_mut().zip(row).for_each(|(x, &g)| *x += g);
                } else {
                    x[pixel..].iter_mut().step_by(self.stride).zip(row).for_each(|(x, &g)| *x += g);
                }
            },
        );
    }

    fn sizes(self) -> Arg {
        let Dims { n, ins, h, w, outs, high, wide, rows, columns, stride, padding } = self;
        Arg::sizes([n, ins, h, w, outs, high, wide, stride, padding, rows, columns])
    }

    /// What some images contribute to the gradients of weights and biases, and to their own where that is wanted, by windows.
    fn backward_by_windows<T: Real>(self, [x, w, dy]: [&[T]; 3], sums: &mut [T], mut dx: Option<&mut [T]>) {
        let (taps, places) = (self.taps(), self.places());
        let (dw, db) = sums.split_at_mut(self.outs * taps);
        let (dw, w) = (Output::new(dw, self.outs, taps), Matrix::new(w, self.outs, taps));
        cpu::with_scratch(taps * places, |columns: &mut [T]| {
            for (i, dy) in dy.chunks(self.outs * places).enumerate() {
                db.iter_mut().zip(dy.chunks(places)).for_each(|(db, dy)| {
                    *db += cpu::simd(
                        #[inline(always)]
                        || {
                            cpu::sum(
                                [dy],
                                #[inline(always)]
                                |[dy]| dy,
                            )
                        },
                    )
                });
                let dy = Matrix::new(dy, self.outs, places);
                cpu::simd(
                    #[inline(always)]
                    || self.unfold(&x[i * self.image()..][..self.image()], columns),
                );
                // SAFETY: `sums` and `columns` are this thread's own.
                unsafe { dw.product_into(0, 0, dy, Matrix::new(columns, taps, places).t(), true) };
                if let Some(dx) = &mut dx {
                    unsafe { Output::new(columns, taps, places).product_into(0, 0, w.t(), dy, false) };
                    cpu::simd(
                        #[inline(always)]
                        || self.fold(columns, &mut dx[i * self.image()..][..self.image()]),
                    );
                }
            }
        });
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let d = self.dims(x);
        let (taps, places, image) = (d.taps(), d.places(), d.image());
        let mut y = Tensor::empty(cx, &[d.n, d.outs, d.rows, d.columns]);
        on_device!(cx, T => {
            let [x, w, b] = [&x[0], &x[1], &x[2]].map(Tensor::slice::<T>);
            let images = y.slice_mut::<T>().par_chunks_mut((d.outs * places).max(1)).enumerate();
            let images = images.map(|(i, y)| (&x[i * image..][..image], y));
            if d.flat(1).is_some() {
                let taps = Taps::new(w, b, d.kernel());
                images.for_each(|(x, y)| host::forward(d, x, &taps, y));
                return vec![y];
            }
            let w = Matrix::new(w, d.outs, taps);
            images.for_each(|(x, y)| {
                cpu::with_scratch(taps * places, |columns: &mut [T]| {
                    cpu::simd(#[inline(always)] || d.unfold(x, columns));
                    y.chunks_mut(places).zip(b).for_each(|(y, &b)| y.fill(b));
                    // SAFETY: `y` is this task's own.
                    unsafe {
                        Output::new(y, d.outs, places).product_into(0, 0, w, Matrix::new(columns, taps, places), true);
                    }
                });
            });
        }, gpu => {
            let args = args![&x[0], &x[1], &x[2], y.out(), y.len(), d.sizes()];
            gpu.launch("conv2d", "conv2d_fwd", Launch::elements(y.len()), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let d = self.dims(x);
        on_device!(cx, T => {
            let [x, w, dy] = [&x[0], &x[1], dy].map(Tensor::slice::<T>);
            let (weights, image) = (d.outs * d.taps(), d.image());
            let size = weights + d.outs;
            let mut sums = vec![T::ZERO; d.n.div_ceil(TOGETHER) * size];
            let tasks = sums.par_chunks_mut(size.max(1)).enumerate();
            let part = |i: usize, size: usize| i * TOGETHER * size..((i + 1) * TOGETHER).min(d.n) * size;
            let mirrored = d.flat(1).map(|_| Taps::mirrored(w, d.outs, d.kernel()));
            let task = |(i, sums): (usize, &mut [T]), dx: Option<&mut [T]>| {
                let (x, dy) = (&x[part(i, image)], &dy[part(i, d.outs * d.places())]);
                match &mirrored {
                    Some(taps) => host::backward(d, [x, dy], taps, sums.split_at_mut(weights), dx),
                    None => d.backward_by_windows([x, w, dy], sums, dx),
                }
            };
            match &mut dx[0] {
                Some(slot) => {
                    let parts = slot.add::<T>().par_chunks_mut((TOGETHER * image).max(1));
                    tasks.zip(parts).for_each(|(sums, dx)| task(sums, Some(dx)));
                }
                None => tasks.for_each(|sums| task(sums, None)),
            }
            for (slot, part) in dx[1..].iter_mut().zip([0..weights, weights..size]) {
                let Some(slot) = slot else { continue };
                let sum = slot.add::<T>();
                for sums in sums.chunks(size.max(1)) {
                    sum.iter_mut().zip(&sums[part.clone()]).for_each(|(sum, &g)| *sum += g);
                }
            }
        }, gpu => d.backward_gpu(gpu, x, dy, dx));
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        Cost { flops: 2.0 * (y.len() * self.dims(x).taps()) as f64, bytes: size(x) + size([y]) }
    }
}

impl Dims {
    fn backward_gpu(self, gpu: &Gpu, x: &[Tensor], dy: &Tensor, slots: &mut [Option<Slot>]) {
        let sizes = self.sizes();
        if slots[0].is_some() {
            let ([dx, add], n) = (grad(&mut slots[0]), x[0].len());
            gpu.launch("conv2d", "conv2d_bwd_input", Launch::elements(n), args![&x[1], dy, dx, add, n, sizes]);
        }
        if slots[1].is_some() {
            let [dw, add] = grad(&mut slots[1]);
            let launch = Launch::rows(x[1].len(), 256);
            gpu.launch("conv2d", "conv2d_bwd_weights", launch, args![&x[0], dy, dw, add, sizes]);
        }
        if slots[2].is_some() {
            let [db, add] = grad(&mut slots[2]);
            gpu.launch("conv2d", "conv2d_bwd_bias", Launch::rows(self.outs, 256), args![dy, db, add, sizes]);
        }
    }
}

impl<'t> Var<'t> {
    /// Convolution: images `[N, C, H, W]`, w `[O, C, KH, KW]`, b `[O]` → `[N, O, rows, columns]` with
    /// rows = (H + 2·padding − KH) / stride + 1, rounded down, and columns alike. Beyond the edge there are zeros.
    #[track_caller]
    pub fn conv2d(self, w: Var<'t>, b: Var<'t>, stride: usize, padding: usize) -> Var<'t> {
        self.tape().apply(Conv2d { stride, padding }, &[self, w, b])
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Device, Grads, Tape, Tensor,
        gradcheck::gradcheck,
        rng::{Rng, Stream},
    };

    #[test]
    fn conv2d_gradients() {
        for (stride, padding) in [(1, 0), (1, 1), (2, 1), (3, 2)] {
            let shapes: [&[usize]; 3] = [&[5, 2, 7, 6], &[3, 2, 3, 3], &[3]];
            assert!(gradcheck(&shapes, |_, x| x[0].conv2d(x[1], x[2], stride, padding)) < 1e-8);
        }
        assert!(gradcheck(&[&[2, 1, 4, 5], &[2, 1, 4, 1], &[2]], |_, x| x[0].conv2d(x[1], x[2], 1, 0)) < 1e-8);
        // Kernels that see the padding only, at the far end.
        assert!(gradcheck(&[&[1, 1, 1, 2], &[1, 1, 2, 5], &[1]], |_, x| x[0].conv2d(x[1], x[2], 1, 4)) < 1e-8);
    }

    /// Σ w·x·dy over all that meet; `at(place of w, place of x, place of y)` is told who does.
    fn meet(
        [n, ins, h, w]: [usize; 4],
        [outs, high, wide]: [usize; 3],
        padding: usize,
        mut at: impl FnMut([usize; 3]),
    ) {
        let (rows, columns) = (h + 2 * padding + 1 - high, w + 2 * padding + 1 - wide);
        for i in 0..n * outs * ins * rows * columns * high * wide {
            let mut rest = i;
            let mut next = |size: usize| (rest % size, rest /= size).0;
            let (dx, dy, c, r, k, o) = (next(wide), next(high), next(columns), next(rows), next(ins), next(outs));
            let (image, y, x) = (rest, r + dy, c + dx);
            if (padding..h + padding).contains(&y) && (padding..w + padding).contains(&x) {
                let pixel = ((image * ins + k) * h + y - padding) * w + x - padding;
                at([((o * ins + k) * high + dy) * wide + dx, pixel, ((image * outs + o) * rows + r) * columns + c]);
            }
        }
    }

    #[test]
    fn large_ones_are_those_of_the_formula() {
        let cases = [
            ([6, 3, 9, 11], [13, 3, 3], 1),
            ([2, 5, 20, 17], [25, 5, 4], 2),
            ([5, 9, 4, 70], [6, 1, 2], 0),
            ([1, 2, 7, 33], [8, 2, 7], 1),
        ];
        for (x, kernel, padding) in cases {
            let weights = [kernel[0], x[1], kernel[1], kernel[2]];
            for (device, allowed) in [(Device::cpu(), 1e-5), (Device::cpu_f64(), 1e-14)] {
                let draw = |i: u32, shape: &[usize]| Rng::new(6, 0).normal_tensor(&device, Stream(i), shape);
                let tape = Tape::without_params(&device);
                let [x, w, b] = [draw(0, &x), draw(1, &weights), draw(2, &kernel[..1])].map(|value| tape.input(value));
                let y = x.conv2d(w, b, 1, padding);
                let dy = draw(3, &y.shape());
                let found = tape.backward((y * tape.constant(dy.clone())).sum(), &mut Grads::none(&device));
                let [x0, w0, b0, dy] = [x.value(), w.value(), b.value(), dy].map(|value| value.to_f64());
                let places = dy.len() / x.shape()[0] / b0.len();
                let mut wanted = [
                    (0..dy.len()).map(|i| b0[i / places % b0.len()]).collect(),
                    vec![0.0; w0.len()],
                    vec![0.0; x0.len()],
                ];
                let sizes = x.shape().try_into().unwrap();
                meet(sizes, kernel, padding, |[i, j, k]| {
                    wanted[0][k] += w0[i] * x0[j];
                    wanted[1][i] += x0[j] * dy[k];
                    wanted[2][j] += w0[i] * dy[k];
                });
                for (wanted, found) in wanted.iter().zip([y.value(), found.of(w), found.of(x)]) {
                    let size = wanted.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                    for (a, b) in wanted.iter().zip(found.to_f64()) {
                        assert!((a - b).abs() < allowed * size, "{sizes:?} by {kernel:?}: {a} and {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_edge_is_found() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let of = |shape: &[usize], values: &[f64]| tape.constant(Tensor::from_f64(&device, shape, values));
            let image = of(&[1, 1, 2, 4], &[0., 0., 1., 1., 0., 0., 1., 1.]);
            let edges = image.conv2d(of(&[1, 1, 1, 2], &[-1.0, 1.0]), of(&[1], &[0.5]), 1, 0);
            assert_eq!(edges.shape(), [1, 1, 2, 3]);
            assert_eq!(edges.value().to_f64(), [0.5, 1.5, 0.5, 0.5, 1.5, 0.5]);
        }
    }
}
