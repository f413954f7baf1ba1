//! The image features of section 2.3, fused: conv 3×3 (1→C₁), ReLU, conv 3×3 (C₁→C₂), ReLU, both without padding, stride 1.
//!
//! ```text
//! a = relu(w₁ ⋆ x + b₁)   [C₁, H−2, W−2]      y = relu(w₂ ⋆ a + b₂)   [C₂, H−4, W−4]
//! ```
//! Only y is kept for the backward; a is cheaper to compute again than to read back.

mod host;
mod launches;

use super::{Cost, Op, flat::Taps, live::live_rows, size};
use crate::{Device, Tensor, Var, device::on_device, real::Real, slot::Slot};
use host::{Gradients, KERNEL};
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

/// Sizes of x, of the layer between, and of y.
#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    h: usize,
    w: usize,
    c1: usize,
    c2: usize,
}

impl Dims {
    #[track_caller]
    fn of(x: &[Tensor]) -> Self {
        let shapes: Vec<&[usize]> = x.iter().map(Tensor::shape).collect();
        match shapes[..] {
            [&[n, h, w], &[c1, 1, 3, 3], &[b1], &[c2, c, 3, 3], &[b2]]
                if c1 == b1 && c1 == c && c2 == b2 && h > 4 && w > 4 =>
            {
                Dims { n, h, w, c1, c2 }
            }
            _ => panic!("conv_pair: {shapes:?}; wanted [N,H,W], [C1,1,3,3], [C1], [C2,C1,3,3], [C2] with H, W > 4"),
        }
    }
    fn features(&self) -> usize {
        self.c2 * (self.h - 4) * (self.w - 4)
    }
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
            let taps = [Taps::<T>::new(x[1].slice(), x[2].slice(), KERNEL), Taps::new(x[3].slice(), x[4].slice(), KERNEL)];
            let images = x[0].slice::<T>();
            y.slice_mut::<T>().par_chunks_mut(d.features()).enumerate().for_each(|(i, y)| {
                if live[i] {
                    host::forward(&d, &images[i * d.h * d.w..][..d.h * d.w], &taps, y);
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
            let taps = [
                Taps::<T>::new(x[1].slice(), x[2].slice(), KERNEL),
                Taps::mirrored(x[3].slice(), d.c2, KERNEL),
                Taps::mirrored(x[1].slice(), d.c1, KERNEL),
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
                    host::backward(&d, (image, y, dy), &taps, Gradients::cut(&d, grads, dx));
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

    fn rectified(&self) -> bool {
        true
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
