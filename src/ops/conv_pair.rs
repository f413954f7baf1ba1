//! The image features of section 2.3, fused: conv 3×3 (1→C₁), ReLU, conv 3×3 (C₁→C₂), ReLU, both without padding, stride 1.
//!
//! ```text
//! a = relu(w₁ ⋆ x + b₁)   [C₁, H−2, W−2]      y = relu(w₂ ⋆ a + b₂)   [C₂, H−4, W−4]
//! ```
//! Only y is kept for the backward; a is cheaper to compute again than to read back. Each image is one task that lives in a
//! thread's scratch memory, so nothing but inputs and outputs touches main memory.

mod launches;

use super::{Cost, Op, live::live_rows, size};
use crate::{Device, Tensor, Var, cpu, device::on_device, real::Real, slot::Slot};
use rayon::prelude::*;

struct ConvPair {
    live: Option<Tensor>,
}

impl<'t> Var<'t> {
    /// Two 3×3 convolutions, each followed by ReLU: images `[N, H, W]`, w1 `[C₁,1,3,3]`, b1 `[C₁]`, w2 `[C₂,C₁,3,3]`, b2 `[C₂]`
    /// → `[N, C₂·(H−4)·(W−4)]`, channel-major.
    ///
    /// Images whose entry of `live` `[N]` is 0 are skipped: zeros come out, and no gradient goes back.
    #[track_caller]
    pub fn conv_pair(self, w1: Var<'t>, b1: Var<'t>, w2: Var<'t>, b2: Var<'t>, live: Option<&Tensor>) -> Var<'t> {
        self.tape().apply(ConvPair { live: live.cloned() }, &[self, w1, b1, w2, b2])
    }
}

/// Output columns per register tile.
const LANES: usize = 16;

/// Sizes, and the strides of the padded scratch images. Every row is readable up to the next multiple of a tile plus the taps.
#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    h: usize,
    w: usize,
    c1: usize,
    c2: usize,
    /// Row strides of x, a, dz₂ (padded by 2 on each side) and dz₁ (likewise).
    sx: usize,
    sa: usize,
    sz2: usize,
    sz1: usize,
}

impl Dims {
    #[track_caller]
    fn of(x: &[Tensor]) -> Self {
        let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
        match shapes[..] {
            [&[n, h, w], &[c1, 1, 3, 3], &[b1], &[c2, c, 3, 3], &[b2]]
                if c1 == b1 && c1 == c && c2 == b2 && h > 4 && w > 4 =>
            {
                let stride = |out: usize| out.next_multiple_of(LANES) + 2;
                let (sx, sa) = (stride(w - 2), stride(w - 4));
                Dims { n, h, w, c1, c2, sx, sa, sz2: stride(w - 2), sz1: w.next_multiple_of(4 * LANES) + 2 }
            }
            _ => panic!("conv_pair: {shapes:?}; wanted [N,H,W], [C1,1,3,3], [C1], [C2,C1,3,3], [C2] with H, W > 4"),
        }
    }
    fn features(&self) -> usize {
        self.c2 * (self.h - 4) * (self.w - 4)
    }
}

/// Valid 3×3 cross-correlation. x: `channels` planes of `rows` rows of `stride`. `store(o, y, column, values)` receives L columns
/// of output row y of channel o, of which those beyond the image (and channels beyond the last) are meaningless.
#[inline(always)]
fn conv3x3<T: Real, const O: usize, const L: usize>(
    x: &[T],
    (stride, rows): (usize, usize),
    packed: &Packed<T>,
    (height, width): (usize, usize),
    mut store: impl FnMut(usize, usize, usize, &[T; L]),
) {
    let channels = packed.ins;
    let (weights, biases) = (packed.weight.as_chunks::<O>().0, packed.bias.as_chunks::<O>().0);
    for y in 0..height {
        for at in (0..width).step_by(L) {
            for (block, bias) in biases.iter().enumerate() {
                let taps = weights[block * channels * 9..][..channels * 9].as_chunks::<9>().0;
                let mut sum = [[T::ZERO; L]; O];
                for p in 0..O {
                    sum[p] = [bias[p]; L];
                }
                for (c, taps) in taps.iter().enumerate() {
                    for dy in 0..3 {
                        let row = &x[(c * rows + y + dy) * stride + at..][..L + 2];
                        for dx in 0..3 {
                            let mut v = [T::ZERO; L];
                            v.copy_from_slice(&row[dx..dx + L]);
                            let k = &taps[dy * 3 + dx];
                            for p in 0..O {
                                for l in 0..L {
                                    sum[p][l] = v[l].mul_add(k[p], sum[p][l]);
                                }
                            }
                        }
                    }
                }
                for (p, sum) in sum.iter().enumerate() {
                    store(block * O + p, y, at, sum);
                }
            }
        }
    }
}

/// [`conv3x3`] with as many channels at once as the weights were packed for.
#[inline(always)]
fn convolve<T: Real>(
    x: &[T],
    layout: (usize, usize),
    packed: &Packed<T>,
    size: (usize, usize),
    store: impl FnMut(usize, usize, usize, &[T; LANES]),
) {
    match packed.together {
        8 => conv3x3::<T, 8, LANES>(x, layout, packed, size, store),
        _ => conv3x3::<T, 4, LANES>(x, layout, packed, size, store),
    }
}

/// dw[o][c][dy][dx] = Σ dz[o][y][x] · x[c][y+dy][x+dx], with dz padded by `pad` zeros on each side.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn conv3x3_weights<T: Real>(
    x: &[T],
    (stride, rows): (usize, usize),
    dz: &[T],
    (z_stride, z_rows): (usize, usize),
    pad: usize,
    channels: usize,
    outs: usize,
    (height, width): (usize, usize),
    dw: &mut [T],
) {
    const OUTS: usize = 4;
    for o in (0..outs).step_by(OUTS) {
        for c in 0..channels {
            for dy in 0..3 {
                let mut sum = [[[T::ZERO; LANES]; 3]; OUTS];
                for y in 0..height {
                    for at in (0..width).step_by(LANES) {
                        let row = &x[(c * rows + y + dy) * stride + at..][..LANES + 2];
                        for (p, sum) in sum.iter_mut().enumerate() {
                            // Channels beyond the last are computed from the last and thrown away.
                            let channel = if o + p < outs { o + p } else { outs - 1 };
                            let z = &dz[(channel * z_rows + y + pad) * z_stride + pad + at..][..LANES];
                            for (dx, sum) in sum.iter_mut().enumerate() {
                                for l in 0..LANES {
                                    sum[l] = z[l].mul_add(row[dx + l], sum[l]);
                                }
                            }
                        }
                    }
                }
                for (p, sum) in sum.iter().enumerate().take_while(|(p, _)| o + p < outs) {
                    for (dx, sum) in sum.iter().enumerate() {
                        dw[((o + p) * channels + c) * 9 + dy * 3 + dx] += sum.iter().copied().sum();
                    }
                }
            }
        }
    }
}

/// Weights in the order that [`conv3x3`] reads them: `[blocks][in·9][together]`, with zeros for channels beyond the last.
struct Packed<T> {
    weight: Vec<T>,
    bias: Vec<T>,
    ins: usize,
    /// Output channels per block.
    together: usize,
}

impl<T: Real> Packed<T> {
    /// `tap(o, i, t)` is the weight from input channel i to output channel o at tap t.
    fn new(bias: &[T], ins: usize, together: usize, tap: impl Fn(usize, usize, usize) -> T) -> Self {
        let outs = bias.len();
        let mut weight = vec![];
        for block in (0..outs).step_by(together) {
            for i in 0..ins * 9 {
                weight.extend((block..block + together).map(|o| if o < outs { tap(o, i / 9, i % 9) } else { T::ZERO }));
            }
        }
        let mut bias = bias.to_vec();
        bias.resize(outs.next_multiple_of(together), T::ZERO);
        Packed { weight, bias, ins, together }
    }

    /// Channels at once: eight sums of [`LANES`] fill the registers; fewer where most would be padding.
    fn together(outs: usize) -> usize {
        if outs > 4 { 8 } else { 4 }
    }

    fn forward(weight: &[T], bias: &[T], ins: usize) -> Self {
        Self::new(bias, ins, Self::together(bias.len()), |o, i, t| weight[(o * ins + i) * 9 + t])
    }

    /// For the gradient with respect to the input: channels exchanged, taps mirrored.
    fn backward(weight: &[T], outs: usize, ins: usize, together: usize) -> Self {
        Self::new(&vec![T::ZERO; ins], outs, together, |i, o, t| weight[(o * ins + i) * 9 + 8 - t])
    }
}

/// Copies an image into the scratch rows of x.
#[inline(always)]
fn load<T: Real>(d: &Dims, image: &[T], x: &mut [T]) {
    for (row, pixels) in x.chunks_mut(d.sx).zip(image.chunks(d.w)) {
        row[..d.w].copy_from_slice(pixels);
    }
}

/// a = relu(w₁ ⋆ x + b₁).
#[inline(always)]
fn first<T: Real>(d: &Dims, x: &[T], packed: &Packed<T>, a: &mut [T]) {
    let (height, width) = (d.h - 2, d.w - 2);
    convolve(
        x,
        (d.sx, d.h),
        packed,
        (height, width),
        #[inline(always)]
        |o, y, at, sum| {
            if o < d.c1 {
                let n = LANES.min(width - at);
                let out = &mut a[(o * height + y) * d.sa + at..][..n];
                for l in 0..n {
                    out[l] = sum[l].larger(T::ZERO);
                }
            }
        },
    );
}

#[inline(always)]
fn forward<T: Real>(d: &Dims, image: &[T], packs: &[Packed<T>; 2], x: &mut [T], a: &mut [T], y: &mut [T]) {
    load(d, image, x);
    first(d, x, &packs[0], a);
    let (height, width) = (d.h - 4, d.w - 4);
    convolve(
        a,
        (d.sa, d.h - 2),
        &packs[1],
        (height, width),
        #[inline(always)]
        |o, row, at, sum| {
            if o < d.c2 {
                let n = LANES.min(width - at);
                let out = &mut y[(o * height + row) * width + at..][..n];
                for l in 0..n {
                    out[l] = sum[l].larger(T::ZERO);
                }
            }
        },
    );
}

/// A thread's working memory, cut out of its scratch.
struct Scratch<'a, T> {
    x: &'a mut [T],
    a: &'a mut [T],
    z2: &'a mut [T],
    z1: &'a mut [T],
}

impl<'a, T: Real> Scratch<'a, T> {
    fn sizes(d: &Dims) -> [usize; 4] {
        [d.h * d.sx, d.c1 * (d.h - 2) * d.sa, d.c2 * d.h * d.sz2, d.c1 * (d.h + 2) * d.sz1]
    }

    /// Lends `work` the planes with zeros around the images.
    #[inline(always)]
    fn with(d: &Dims, work: impl FnOnce(&mut Scratch<T>)) {
        let [x, a, z2, z1] = Self::sizes(d);
        cpu::with_scratch(x + a + z2 + z1, |memory| {
            let (x, rest) = memory.split_at_mut(x);
            let (a, rest) = rest.split_at_mut(a);
            let (z2, z1) = rest.split_at_mut(z2);
            clear_border(x, d.sx, d.h, (0, 0), (d.h, d.w));
            clear_border(a, d.sa, d.h - 2, (0, 0), (d.h - 2, d.w - 2));
            clear_border(z2, d.sz2, d.h, (2, 2), (d.h - 4, d.w - 4));
            clear_border(z1, d.sz1, d.h + 2, (2, 2), (d.h - 2, d.w - 2));
            work(&mut Scratch { x, a, z2, z1 });
        });
    }
}

/// Zeros everything in planes of `rows` rows of `stride` but a window of the given size at (`top`, `left`).
fn clear_border<T: Real>(
    planes: &mut [T],
    stride: usize,
    rows: usize,
    (top, left): (usize, usize),
    (height, width): (usize, usize),
) {
    for plane in planes.chunks_mut(stride * rows) {
        for (i, row) in plane.chunks_mut(stride).enumerate() {
            if (top..top + height).contains(&i) {
                row[..left].fill(T::ZERO);
                row[left + width..].fill(T::ZERO);
            } else {
                row.fill(T::ZERO);
            }
        }
    }
}

/// One image's gradients: weights and biases in `grads` (w1, b1, w2, b2 joined), and the image's own in `dx`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward<T: Real>(
    d: &Dims,
    (image, y, dy): (&[T], &[T], &[T]),
    packs: &[Packed<T>; 3],
    s: &mut Scratch<T>,
    grads: &mut [T],
    dx: Option<&mut [T]>,
) {
    let (h1, w1, h2, w2) = (d.h - 2, d.w - 2, d.h - 4, d.w - 4);
    let (dw1, rest) = grads.split_at_mut(d.c1 * 9);
    let (db1, rest) = rest.split_at_mut(d.c1);
    let (dw2, db2) = rest.split_at_mut(d.c2 * d.c1 * 9);
    load(d, image, s.x);
    first(d, s.x, &packs[0], s.a);

    for (o, db) in db2.iter_mut().enumerate() {
        let mut total = T::ZERO;
        for row in 0..h2 {
            let from = (o * h2 + row) * w2;
            let (y, dy) = (&y[from..][..w2], &dy[from..][..w2]);
            let z = &mut s.z2[(o * d.h + row + 2) * d.sz2 + 2..][..w2];
            for l in 0..w2 {
                z[l] = if y[l] > T::ZERO { dy[l] } else { T::ZERO };
            }
            total += z.iter().copied().sum();
        }
        *db += total;
    }
    conv3x3_weights(s.a, (d.sa, h1), s.z2, (d.sz2, d.h), 2, d.c1, d.c2, (h2, w2), dw2);

    let (a, z1) = (&*s.a, &mut *s.z1);
    convolve(
        s.z2,
        (d.sz2, d.h),
        &packs[1],
        (h1, w1),
        #[inline(always)]
        |o, row, at, sum| {
            if o < d.c1 {
                let n = LANES.min(w1 - at);
                let z = &mut z1[(o * (d.h + 2) + row + 2) * d.sz1 + 2 + at..][..n];
                // a's rows may be shorter than a tile; what lies beyond is not stored.
                let a = &a[(o * h1 + row) * d.sa + at..][..n];
                for l in 0..n {
                    z[l] = if a[l] > T::ZERO { sum[l] } else { T::ZERO };
                }
            }
        },
    );
    for (o, db) in db1.iter_mut().enumerate() {
        for row in 0..h1 {
            *db += s.z1[(o * (d.h + 2) + row + 2) * d.sz1 + 2..][..w1].iter().copied().sum();
        }
    }
    conv3x3_weights(s.x, (d.sx, d.h), s.z1, (d.sz1, d.h + 2), 2, 1, d.c1, (h1, w1), dw1);

    if let Some(dx) = dx {
        // One channel comes out, so a tile is a longer piece of a row.
        if d.w <= 2 * LANES {
            input_gradient::<T, { 2 * LANES }>(d, s.z1, &packs[2], dx);
        } else {
            input_gradient::<T, { 4 * LANES }>(d, s.z1, &packs[2], dx);
        }
    }
}

#[inline(always)]
fn input_gradient<T: Real, const L: usize>(d: &Dims, z1: &[T], packed: &Packed<T>, dx: &mut [T]) {
    conv3x3::<T, 1, L>(
        z1,
        (d.sz1, d.h + 2),
        packed,
        (d.h, d.w),
        #[inline(always)]
        |_, row, at, sum| {
            let n = L.min(d.w - at);
            dx[row * d.w + at..][..n].iter_mut().zip(sum).for_each(|(dx, &g)| *dx += g);
        },
    );
}

impl Op for ConvPair {
    fn name(&self) -> &'static str {
        "conv_pair"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let d = Dims::of(x);
        let mut y = Tensor::empty(cx, &[d.n, d.features()]);
        on_device!(cx, T => {
            let live = live_rows(self.name(), self.live.as_ref(), d.n);
            let packs = [
                Packed::<T>::forward(x[1].slice(), x[2].slice(), 1),
                Packed::<T>::forward(x[3].slice(), x[4].slice(), d.c1),
            ];
            let images = x[0].slice::<T>();
            y.slice_mut::<T>().par_chunks_mut(d.features()).enumerate().for_each(|(i, y)| {
                if live[i] {
                    let image = &images[i * d.h * d.w..][..d.h * d.w];
                    Scratch::with(&d, |s| cpu::simd(#[inline(always)] || forward(&d, image, &packs, s.x, s.a, y)));
                } else {
                    y.fill(T::ZERO);
                }
            });
        }, gpu => self.forward_gpu(gpu, x, &y));
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let d = Dims::of(x);
        on_device!(cx, T => {
            let live = live_rows(self.name(), self.live.as_ref(), d.n);
            let packs = [
                Packed::<T>::forward(x[1].slice(), x[2].slice(), 1),
                Packed::<T>::backward(x[3].slice(), d.c2, d.c1, Packed::<T>::together(d.c1)),
                Packed::<T>::backward(x[1].slice(), d.c1, 1, 1),
            ];
            let (images, y, dy) = (x[0].slice::<T>(), y[0].slice::<T>(), dy.slice::<T>());
            let sizes = [d.c1 * 9, d.c1, d.c2 * d.c1 * 9, d.c2];
            let total: usize = sizes.iter().sum();
            // One set of weight gradients per image, added up in order afterwards: the same sum for any number of threads.
            let mut grads = vec![T::ZERO; d.n * total];
            let (pixels, features) = (d.h * d.w, d.features());
            let task = |i: usize, grads: &mut [T], dx: Option<&mut [T]>| {
                if live[i] {
                    let image = &images[i * pixels..][..pixels];
                    let (y, dy) = (&y[i * features..][..features], &dy[i * features..][..features]);
                    Scratch::with(&d, |s| {
                        cpu::simd(#[inline(always)] || backward(&d, (image, y, dy), &packs, s, grads, dx))
                    });
                }
            };
            let rows = grads.par_chunks_mut(total).enumerate();
            match &mut dx[0] {
                Some(slot) => rows
                    .zip(slot.add::<T>().par_chunks_mut(pixels))
                    .for_each(|((i, grads), dx)| task(i, grads, Some(dx))),
                None => rows.for_each(|(i, grads)| task(i, grads, None)),
            }
            let mut from = 0;
            for (slot, size) in dx[1..].iter_mut().zip(sizes) {
                if let Some(slot) = slot {
                    let sum = slot.add::<T>();
                    for image in grads.chunks(total) {
                        sum.iter_mut().zip(&image[from..from + size]).for_each(|(s, &g)| *s += g);
                    }
                }
                from += size;
            }
        }, gpu => self.backward_gpu(gpu, x, &y[0], dy, dx));
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let d = Dims::of(x);
        let images = on_device!(y.device(), T => {
            self.live.as_ref().map_or(d.n, |live| live.slice::<T>().iter().filter(|&&l| l != T::ZERO).count())
        }, _gpu => d.n); // who is live is not known here
        let macs = d.c1 * 9 * (d.h - 2) * (d.w - 2) + d.c1 * 9 * d.features();
        Cost { flops: 2.0 * (images * macs) as f64, bytes: size([&x[0], y]) }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Device, Tensor,
        gradcheck::gradcheck_at,
        rng::{Rng, Stream},
    };

    /// Inputs whose ReLU inputs are all far from the kink: half of the channels clearly on, half clearly off.
    fn clear(n: usize, h: usize, w: usize, c1: usize, c2: usize) -> Vec<Tensor> {
        let device = Device::cpu_f64();
        let shapes: [&[usize]; 5] = [&[n, h, w], &[c1, 1, 3, 3], &[c1], &[c2, c1, 3, 3], &[c2]];
        let mut inputs: Vec<Tensor> =
            (0..5).map(|i| Rng::new(4, 0).normal_tensor(&device, Stream(i as u32), shapes[i])).collect();
        let sides = |channels: usize, size: f64| -> Vec<f64> {
            (0..channels).map(|c| if c % 2 == 0 { size } else { -size }).collect()
        };
        inputs[2] = Tensor::from_f64(&device, &[c1], &sides(c1, 40.0));
        inputs[4] = Tensor::from_f64(&device, &[c2], &sides(c2, 4000.0));
        inputs
    }

    #[test]
    fn conv_pair_gradients_for_square_and_oblong_images() {
        for (h, w, c1, c2) in [(7, 7, 3, 5), (9, 11, 8, 16), (6, 24, 2, 3)] {
            let error = gradcheck_at(&clear(2, h, w, c1, c2), |_, x| x[0].conv_pair(x[1], x[2], x[3], x[4], None));
            assert!(error < 1e-6, "{h}x{w}: {error}");
        }
    }

    #[test]
    fn images_that_are_not_live_give_zeros_and_get_no_gradient() {
        let live = Tensor::from_f64(&Device::cpu_f64(), &[3], &[1.0, 0.0, 1.0]);
        let error = gradcheck_at(&clear(3, 6, 6, 2, 2), |_, x| {
            let y = x[0].conv_pair(x[1], x[2], x[3], x[4], Some(&live));
            assert!(y.value().to_f64()[8..16].iter().all(|&v| v == 0.0));
            y
        });
        assert!(error < 1e-6, "{error}");
    }
}
