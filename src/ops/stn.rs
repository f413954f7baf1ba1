//! Images seen through an affine map: bilinear sampling, zero outside (section 5 of the model; Jaderberg et al., "Spatial
//! transformer networks", 2015).
//!
//! ```text
//! y[i,j] = bilinear(x, m·(X_j, Y_i, 1))        X_j = −1 + 2j/(W−1)        Y_i = −1 + 2i/(H−1)
//! ```
//!
//! Each of the four neighbours outside the image counts as 0, so borders fade linearly. Where a sample falls exactly on a pixel the
//! derivative is that to its right and below.

use super::{Cost, Op, live::is_live, raster::TOGETHER, size};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

/// Samples whose positions are computed together.
const LANES: usize = 16;
/// Zeros around the image: a sample anywhere outside is moved to where it and all its neighbours are zeros.
const MARGIN: usize = 2;
/// Blocks per image on a GPU.
const MOST_PARTS: usize = 64;

struct Stn {
    live: Option<Tensor>,
}

impl<'t> Var<'t> {
    /// The images seen through affine maps: image `[N, H, W]`, matrix `[N, 6]` → `[N, H, W]`.
    ///
    /// Where `live` (`[N]` or `[N, 1]`, 0 or 1) is 0, the result is 0, no gradient flows and nothing is computed.
    #[track_caller]
    pub fn stn(self, matrix: Var<'t>, live: Option<&Tensor>) -> Var<'t> {
        self.tape().apply(Stn { live: live.cloned() }, &[self, matrix])
    }
}

/// Samples images of one size.
pub(super) struct Sampler {
    height: usize,
    width: usize,
}

/// A few neighbouring samples: the padded index of the pixel above left, and how far to the right and below it they are.
struct Places<T> {
    corner: [u32; LANES],
    right: [T; LANES],
    below: [T; LANES],
}

impl Sampler {
    pub(super) fn new(height: usize, width: usize) -> Self {
        Sampler { height, width }
    }

    fn stride(&self) -> usize {
        self.width + 2 * MARGIN
    }

    /// Elements of an image with its margin.
    pub(super) fn padded(&self) -> usize {
        self.stride() * (self.height + 2 * MARGIN)
    }

    /// The rows of the image within its padded form.
    #[inline(always)]
    pub(super) fn rows<'a, T>(&self, padded: &'a [T]) -> impl Iterator<Item = &'a [T]> {
        let (width, rows) = (self.width, padded.chunks_exact(self.stride()));
        rows.skip(MARGIN).take(self.height).map(move |row| &row[MARGIN..MARGIN + width])
    }

    /// Copies an image with rows of `stride` into its padded form.
    #[inline(always)]
    pub(super) fn pad<T: Real>(&self, image: &[T], stride: usize, padded: &mut [T]) {
        padded.fill(T::ZERO);
        let rows = padded.chunks_exact_mut(self.stride()).skip(MARGIN).take(self.height);
        for (padded, row) in rows.zip(image.chunks(stride)) {
            padded[MARGIN..MARGIN + self.width].copy_from_slice(&row[..self.width]);
        }
    }

    /// The distance of two columns and of two rows, for kernels.
    fn steps(&self) -> [Arg; 2] {
        [self.width, self.height].map(|size| Arg::Real(2.0 / (size.max(2) - 1) as f64))
    }

    /// X, Y of a column, row.
    #[inline(always)]
    fn unit<T: Real>(at: T, size: usize) -> T {
        at * T::of(2.0 / (size.max(2) - 1) as f64) - T::ONE
    }

    /// Where the map puts (column, row); written so that the identity is exact.
    #[inline(always)]
    fn target<T: Real>(&self, m: &[T], column: T, row: T) -> (T, T) {
        let (half_w, half_h) = (T::of((self.width - 1) as f64 / 2.0), T::of((self.height - 1) as f64 / 2.0));
        let (x, y) = (Self::unit(column, self.width), Self::unit(row, self.height));
        let to_column = m[0] * (column - half_w) + half_w * (m[1] * y + m[2] + T::ONE);
        let to_row = m[4] * (row - half_h) + half_h * (m[3] * x + m[5] + T::ONE);
        (to_column, to_row)
    }

    /// The columns of row i whose samples can touch the image; a superset.
    #[inline(always)]
    fn touching<T: Real>(&self, m: &[T], i: usize) -> (usize, usize) {
        let (first, last) = (T::ZERO, T::of((self.width - 1) as f64));
        let (a, b) = (self.target(m, first, T::of(i as f64)), self.target(m, last, T::of(i as f64)));
        let (mut low, mut high) = (0.0f64, (self.width - 1) as f64);
        for (a, b, size) in [(a.0, b.0, self.width), (a.1, b.1, self.height)] {
            let (a, step) = (a.f64(), (b.f64() - a.f64()) / (self.width.max(2) - 1) as f64);
            let (enter, leave) = ((-1.0 - a) / step, (size as f64 - a) / step);
            if step.abs() > 1e-9 {
                (low, high) = (low.max(enter.min(leave) - 1.0), high.min(enter.max(leave) + 1.0));
            } else if a < -1.5 || a > size as f64 + 0.5 {
                return (0, 0);
            }
        }
        // A map that is not finite has comparisons that are false, so its whole row is sampled and shows it.
        if low > high { (0, 0) } else { (low as usize, high as usize + 1) }
    }

    /// The samples of row i from column j on.
    #[inline(always)]
    fn places<T: Real>(&self, m: &[T], i: usize, j: usize) -> Places<T> {
        let mut p = Places { corner: [0; LANES], right: [T::ZERO; LANES], below: [T::ZERO; LANES] };
        let (low, margin, stride) = (T::of(-2.0), T::of(MARGIN as f64), self.stride() as f64);
        let (right_end, below_end) = (T::of(self.width as f64), T::of(self.height as f64));
        let (start, row) = (T::of(j as f64), T::of(i as f64));
        for l in 0..LANES {
            let (x, y) = self.target(m, start + T::of(l as f64), row);
            let (x, y) = (x.limit(low, right_end), y.limit(low, below_end));
            let (left, top) = (x.floor(), y.floor());
            (p.right[l], p.below[l]) = (x - left, y - top);
            p.corner[l] = ((top + margin).f64() * stride + (left + margin).f64()) as i32 as u32;
        }
        p
    }

    /// The four neighbours: above left, above right, below left, below right.
    #[inline(always)]
    fn neighbours<T: Real>(&self, padded: &[T], corner: u32) -> [T; 4] {
        let above = &padded[corner as usize..][..self.stride() + 2];
        [above[0], above[1], above[self.stride()], above[self.stride() + 1]]
    }

    /// Writes the `[H, W]` samples.
    #[inline(always)]
    pub(super) fn sample<T: Real>(&self, m: &[T], padded: &[T], y: &mut [T]) {
        for (i, y) in y.chunks_exact_mut(self.width).enumerate() {
            let (from, to) = self.touching(m, i);
            y[..from].fill(T::ZERO);
            y[to..].fill(T::ZERO);
            for (b, y) in y[from..to].chunks_mut(LANES).enumerate() {
                let p = self.places(m, i, from + b * LANES);
                for (l, y) in y.iter_mut().enumerate() {
                    let [a, b, c, d] = self.neighbours(padded, p.corner[l]);
                    let (above, below) = ((b - a).mul_add(p.right[l], a), (d - c).mul_add(p.right[l], c));
                    *y = (below - above).mul_add(p.below[l], above);
                }
            }
        }
    }

    /// Adds to the gradient of the padded image, where wanted, and returns that of the matrix.
    #[inline(always)]
    pub(super) fn sample_backward<T: Real>(
        &self,
        m: &[T],
        padded: &[T],
        dy: &[T],
        mut dpadded: Option<&mut [T]>,
    ) -> [T; 6] {
        let mut sums = [[T::ZERO; LANES]; 6];
        for (i, dy) in dy.chunks_exact(self.width).enumerate() {
            let (from, to) = self.touching(m, i);
            let row = Self::unit(T::of(i as f64), self.height);
            for (b, dy) in dy[from..to].chunks(LANES).enumerate() {
                let j = from + b * LANES;
                let p = self.places(m, i, j);
                let (mut to_column, mut to_row) = ([T::ZERO; LANES], [T::ZERO; LANES]);
                for (l, &dy) in dy.iter().enumerate() {
                    let [a, b, c, d] = self.neighbours(padded, p.corner[l]);
                    let (right, below) = (p.right[l], p.below[l]);
                    let (across, down) = (b - a, c - a);
                    let twist = d - c - across;
                    to_column[l] = dy * twist.mul_add(below, across);
                    to_row[l] = dy * twist.mul_add(right, down);
                    if let Some(dpadded) = &mut dpadded {
                        let d = &mut dpadded[p.corner[l] as usize..][..self.stride() + 2];
                        let (under, over) = (dy * below, dy - dy * below);
                        d[1] += over * right;
                        d[0] += over - over * right;
                        d[self.stride() + 1] += under * right;
                        d[self.stride()] += under - under * right;
                    }
                }
                let start = T::of(j as f64);
                for l in 0..LANES {
                    let x = Self::unit(start + T::of(l as f64), self.width);
                    let (c, r) = (to_column[l], to_row[l]);
                    sums[0][l] = c.mul_add(x, sums[0][l]);
                    sums[1][l] = c.mul_add(row, sums[1][l]);
                    sums[2][l] += c;
                    sums[3][l] = r.mul_add(x, sums[3][l]);
                    sums[4][l] = r.mul_add(row, sums[4][l]);
                    sums[5][l] += r;
                }
            }
        }
        let half = [self.width, self.height].map(|size| T::of((size - 1) as f64 / 2.0));
        std::array::from_fn(|k| half[k / 3] * sums[k].into_iter().sum())
    }

    /// [`Sampler::sample_backward`] of (matrix, image, dy) without margins.
    #[inline(always)]
    fn image_backward<T: Real>(&self, (m, image, dy): (&[T], &[T], &[T]), dimage: Option<&mut [T]>) -> [T; 6] {
        cpu::with_scratch(
            2 * self.padded(),
            #[inline(always)]
            |memory| {
                let (padded, dpadded) = memory.split_at_mut(self.padded());
                self.pad(image, self.width, padded);
                let Some(dimage) = dimage else { return self.sample_backward(m, padded, dy, None) };
                dpadded.fill(T::ZERO);
                let dm = self.sample_backward(m, padded, dy, Some(dpadded));
                for (out, d) in dimage.chunks_exact_mut(self.width).zip(self.rows(dpadded)) {
                    out.iter_mut().zip(d).for_each(|(out, &d)| *out += d);
                }
                dm
            },
        )
    }
}

impl Stn {
    #[track_caller]
    fn sizes(&self, x: &[Tensor]) -> (usize, usize, usize) {
        match (x[0].shape(), x[1].shape(), self.live.as_ref().map(Tensor::len)) {
            (&[n, h, w], &[m, 6], live) if m == n && live.is_none_or(|l| l == n) && h * w > 0 => (n, h, w),
            (image, matrix, live) => {
                panic!("stn: image {image:?}, matrix {matrix:?}, live {live:?}; wanted [N, H, W], [N, 6], [N]")
            }
        }
    }
}

impl Op for Stn {
    fn name(&self) -> &'static str {
        "stn"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (n, h, w) = self.sizes(x);
        let sampler = Sampler::new(h, w);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let (image, m) = (x[0].slice::<T>(), x[1].slice::<T>());
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            cpu::each_row(y.slice_mut::<T>(), h * w, TOGETHER, #[inline(always)] |i, y| {
                if !is_live(live, i) {
                    return y.fill(T::ZERO);
                }
                cpu::with_scratch(sampler.padded(), #[inline(always)] |padded| {
                    sampler.pad(&image[h * w * i..][..h * w], w, padded);
                    sampler.sample(&m[6 * i..][..6], padded, y);
                });
            });
        }, gpu => {
            let (parts, [step_x, step_y]) = ((h * w).div_ceil(256).min(MOST_PARTS), sampler.steps());
            let args = args![&x[0], &x[1], Arg::input(self.live.as_ref()), y.out(), parts, h, w, step_x, step_y];
            gpu.launch("stn", "stn_fwd", Launch::rows(n * parts, 256), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (n, h, w) = self.sizes(x);
        let sampler = Sampler::new(h, w);
        on_device!(cx, T => {
            let (image, m, dy) = (x[0].slice::<T>(), x[1].slice::<T>(), dy.slice::<T>());
            let live = self.live.as_ref().map(|live| live.slice::<T>());
            let mut dm = vec![T::ZERO; 6 * n];
            let one = |i: usize| (&m[6 * i..][..6], &image[h * w * i..][..h * w], &dy[h * w * i..][..h * w]);
            match &mut dx[0] {
                None => cpu::each_row(&mut dm, 6, TOGETHER, #[inline(always)] |i, dm| {
                    if is_live(live, i) {
                        dm.copy_from_slice(&sampler.image_backward(one(i), None));
                    }
                }),
                Some(slot) => {
                    let images = slot.add::<T>().par_chunks_mut(h * w);
                    images.zip(dm.par_chunks_mut(6)).enumerate().with_min_len(TOGETHER).for_each(|(i, (dimage, dm))| {
                        if is_live(live, i) {
                            cpu::simd(#[inline(always)] || dm.copy_from_slice(&sampler.image_backward(one(i), Some(dimage))));
                        }
                    });
                }
            }
            if let Some(slot) = &mut dx[1] {
                slot.add::<T>().iter_mut().zip(dm).for_each(|(slot, d)| *slot += d);
            }
        }, gpu => {
            let mut parts = if dx[0].is_some() { (h * w).div_ceil(512).min(MOST_PARTS) } else { 0 };
            let ([dimage, add_image], [dm, add_m]) = (grad(&mut dx[0]), grad(&mut dx[1]));
            let (live, [step_x, step_y]) = (Arg::input(self.live.as_ref()), sampler.steps());
            if gpu.naive() && parts > 0 {
                let args = args![&x[1], live, dy, dimage, add_image, n, h, w, step_x, step_y];
                gpu.launch("stn", "stn_naive_bwd", Launch::elements(n * h * w), args);
                parts = 0;
            }
            let args = args![&x[0], &x[1], live, dy, dimage, add_image, dm, add_m, parts, h, w, step_x, step_y];
            gpu.launch("stn", "stn_bwd", Launch::rows(n * (parts + 1), 512), args);
        });
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        Cost { flops: 30.0 * y.len() as f64, bytes: size(x) + size([y]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grads, Tape, gradcheck::gradcheck_at, rng::Rng, rng::Stream};

    fn image(device: &Device, shape: &[usize]) -> Tensor {
        Rng::new(4, 0).uniform_tensor(device, Stream(0), shape)
    }

    /// Digits enough that no sample falls on a pixel, where there is no derivative.
    const MAPS: [f64; 18] = [
        0.6118734, -0.2339127, 0.1071931, 0.1714823, 0.5719237, -0.2133719, // inside
        1.7319371, 0.3139271, -0.4071923, -0.5193717, 2.1171939, 0.3071931, // partly outside
        -0.4301937, 0.1207193, 0.2203719, -0.1339173, -0.3917391, 0.1101937, // turned around
    ];

    #[test]
    fn stn_gradients() {
        let device = Device::cpu_f64();
        for (h, w) in [(9, 9), (5, 21), (18, 4)] {
            let maps = Tensor::from_f64(&device, &[3, 6], &MAPS);
            let images = image(&device, &[3, h, w]);
            let error =
                gradcheck_at(std::slice::from_ref(&images), |tape, x| x[0].stn(tape.constant(maps.clone()), None));
            assert!(error < 1e-6, "image {h}×{w}: {error}");
            // A hundredth of the step, so that no sample crosses from one pixel to the next.
            let zero = Tensor::zeros(&device, &[3, 6]);
            let error = gradcheck_at(&[zero], |tape, x| {
                tape.constant(images.clone()).stn(x[0] * 0.01 + tape.constant(maps.clone()), None)
            });
            assert!(error < 1e-6, "matrix {h}×{w}: {error}");
        }
    }

    #[test]
    fn the_identity_changes_nothing_and_far_away_is_empty() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let maps = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 3.1, 0.0, 1.0, 0.0];
            let x = tape.constant(image(&device, &[2, 50, 50]));
            let y = x.stn(tape.constant(Tensor::from_f64(&device, &[2, 6], &maps)), None).value().to_f64();
            assert_eq!(y[..2500], x.value().to_f64()[..2500]);
            assert!(y[2500..].iter().all(|&y| y == 0.0));
        }
    }

    #[test]
    fn a_map_that_is_not_finite_shows_in_the_result() {
        let device = Device::cpu();
        let tape = Tape::without_params(&device);
        let maps = tape.constant(Tensor::full(&device, &[1, 6], f64::NAN));
        let y = tape.constant(image(&device, &[1, 8, 8])).stn(maps, None);
        assert!(y.value().to_f64().iter().all(|y| y.is_nan()));
    }

    #[test]
    fn images_that_are_not_live_are_empty_and_get_no_gradient() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let (x, m) = (tape.input(image(&device, &[3, 7, 7])), tape.input(Tensor::from_f64(&device, &[3, 6], &MAPS)));
        let y = x.stn(m, Some(&Tensor::from_f64(&device, &[3], &[1.0, 0.0, 1.0])));
        let grads = tape.backward((y * y).sum(), &mut Grads::none(&device));
        let used =
            |t: Tensor, row: usize| t.to_f64().chunks(row).map(|r| r.iter().any(|&v| v != 0.0)).collect::<Vec<_>>();
        assert_eq!(used(y.value(), 49), [true, false, true]);
        assert_eq!(used(grads.of(x), 49), [true, false, true]);
        assert_eq!(used(grads.of(m), 6), [true, false, true]);
    }
}
