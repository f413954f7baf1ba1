//! Ink of a sampled curve: a sum of Gaussians on the pixel grid (step 2 of section 6 of the model, unnormalised).
//!
//! ```text
//! G[i,j] = Σ_n exp(−[(B_nx − j/side)² + (B_ny − i/side)²] / 2σ²) = (E_yᵀ·E_x)[i,j]
//! E_x[n,j] = exp(−(B_nx − j/side)²/2σ²)        E_y[n,i] likewise
//!
//! W_x = E_x ⊙ (E_y·dG)        W_y = E_y ⊙ (E_x·dGᵀ)
//! dB_nx = −Σ_j W_x[n,j]·(B_nx − j/side)/σ²        dσ = Σ (W_x ⊙ (B_nx − j/side)² + W_y ⊙ (B_ny − i/side)²)/σ³
//! ```

use super::{Cost, Op, size};
use crate::{
    DType, Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    real::Real,
    slot::{Slot, grad},
};

/// Columns are padded to a multiple of this: one AVX-512 register of `f32`.
const LANES: usize = 16;
/// Rows of a product that share each loaded block of columns.
const ROWS: usize = 4;
/// Images per parallel task.
pub(super) const TOGETHER: usize = 4;

struct RasterOp {
    side: usize,
}

impl<'t> Var<'t> {
    /// Draws sampled curves: `[N, S, 2]` in units of the image side, sigma (pen width, same unit) `[N]` or `[N, 1]` →
    /// `[N, side, side]`. Column j is at x = j/side, row i at y = i/side.
    #[track_caller]
    pub fn raster(self, sigma: Var<'t>, side: usize) -> Var<'t> {
        self.tape().apply(RasterOp { side }, &[self, sigma])
    }
}

/// out[r,c] = Σ_k a[k·ak + r·ar]·b[k,c] for r < rows (rounded up to [`ROWS`]) and c < stride; `out` and `b` have rows of `stride`.
#[inline(always)]
fn product<T: Real>(
    (a, ak, ar): (&[T], usize, usize),
    (b, depth): (&[T], usize),
    (out, rows): (&mut [T], usize),
    stride: usize,
) {
    for r in (0..rows).step_by(ROWS) {
        for c in (0..stride).step_by(LANES) {
            let mut sums = [[T::ZERO; LANES]; ROWS];
            for k in 0..depth {
                let b: &[T; LANES] = b[k * stride + c..].first_chunk().unwrap();
                for (q, sums) in sums.iter_mut().enumerate() {
                    let a = a[k * ak + (r + q) * ar];
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        *sum = a.mul_add(b, *sum);
                    }
                }
            }
            for (q, sums) in sums.iter().enumerate() {
                out[(r + q) * stride + c..][..LANES].copy_from_slice(sums);
            }
        }
    }
}

/// What the rasters of one batch share.
pub(super) struct Raster<T> {
    side: usize,
    samples: usize,
    /// Pixel positions k/side, continued to a multiple of [`LANES`].
    grid: Vec<T>,
}

/// Working memory of one image, in thread scratch.
pub(super) struct Sheet<'a, T> {
    ex: &'a mut [T],
    ey: &'a mut [T],
    /// The ink, or its gradient: `side` rows of [`Sheet::stride`].
    pub ink: &'a mut [T],
    turned: &'a mut [T],
    de: &'a mut [T],
    /// Numbers per row of `ink`.
    pub stride: usize,
}

impl<T: Real> Raster<T> {
    pub(super) fn new(side: usize, samples: usize) -> Self {
        let grid = (0..side.next_multiple_of(LANES)).map(|k| T::of(k as f64 / side as f64)).collect();
        Raster { side, samples, grid }
    }

    /// Sizes of the pieces of a [`Sheet`]: one of sample rows, one of pixel rows.
    fn pieces(&self) -> (usize, usize) {
        let stride = self.grid.len();
        (self.samples.next_multiple_of(ROWS) * stride, stride * stride)
    }

    pub(super) fn scratch(&self) -> usize {
        let (e, ink) = self.pieces();
        3 * e + 2 * ink
    }

    #[inline(always)]
    pub(super) fn sheet<'a>(&self, memory: &'a mut [T]) -> Sheet<'a, T> {
        let (e, plane) = self.pieces();
        let (ex, rest) = memory.split_at_mut(e);
        let (ey, rest) = rest.split_at_mut(e);
        let (de, rest) = rest.split_at_mut(e);
        let (ink, turned) = rest.split_at_mut(plane);
        Sheet { ex, ey, ink, turned, de, stride: self.grid.len() }
    }

    #[inline(always)]
    fn gaussians(&self, curve: &[T], axis: usize, sigma: T, e: &mut [T]) {
        let scale = T::of(-0.5) / (sigma * sigma);
        // Products of two factors below this would be subnormal numbers, which many processors compute slowly.
        let least = T::of(if T::DTYPE == DType::F32 { 1.1e-19 } else { 1.5e-154 });
        for (row, at) in e.chunks_exact_mut(self.grid.len()).zip(curve.chunks_exact(2)) {
            let at = at[axis];
            for (e, &x) in row.iter_mut().zip(&self.grid) {
                let d = at - x;
                let value = (d * d * scale).exp();
                *e = if value < least { T::ZERO } else { value };
            }
        }
    }

    /// Fills `sheet.ink` from a curve (x₀, y₀, x₁, …).
    #[inline(always)]
    pub(super) fn draw(&self, curve: &[T], sigma: T, sheet: &mut Sheet<T>) {
        self.gaussians(curve, 0, sigma, sheet.ex);
        self.gaussians(curve, 1, sigma, sheet.ey);
        product((sheet.ey, sheet.stride, 1), (sheet.ex, self.samples), (sheet.ink, self.side), sheet.stride);
    }

    /// With d loss / d ink in `sheet.ink`: writes the gradient of the curve and returns that of σ.
    #[inline(always)]
    pub(super) fn draw_backward(&self, curve: &[T], sigma: T, sheet: &mut Sheet<T>, dcurve: &mut [T]) -> T {
        let stride = sheet.stride;
        self.gaussians(curve, 0, sigma, sheet.ex);
        self.gaussians(curve, 1, sigma, sheet.ey);
        for i in 0..self.side {
            sheet.ink[i * stride + self.side..(i + 1) * stride].fill(T::ZERO);
        }
        for (j, row) in sheet.turned.chunks_exact_mut(stride).enumerate().take(self.side) {
            for (i, t) in row.iter_mut().enumerate() {
                *t = if i < self.side { sheet.ink[i * stride + j] } else { T::ZERO };
            }
        }
        product((sheet.ey, 1, stride), (sheet.ink, self.side), (sheet.de, self.samples), stride);
        let wide_x = self.slopes(curve, 0, sigma, sheet.ex, sheet.de, dcurve);
        product((sheet.ex, 1, stride), (sheet.turned, self.side), (sheet.de, self.samples), stride);
        let wide_y = self.slopes(curve, 1, sigma, sheet.ey, sheet.de, dcurve);
        (wide_x + wide_y) / (sigma * sigma * sigma)
    }

    /// From E and its gradient to that of one coordinate of the curve; returns Σ W·d².
    #[inline(always)]
    fn slopes(&self, curve: &[T], axis: usize, sigma: T, e: &[T], de: &[T], dcurve: &mut [T]) -> T {
        let (stride, inverse) = (self.grid.len(), -T::ONE / (sigma * sigma));
        let (grid, mut total) = (self.grid.as_chunks::<LANES>().0, [T::ZERO; LANES]);
        let rows = e.chunks_exact(stride).zip(de.chunks_exact(stride));
        for ((at, dat), (e, de)) in curve.chunks_exact(2).zip(dcurve.chunks_exact_mut(2)).zip(rows) {
            let (at, mut slope) = (at[axis], [T::ZERO; LANES]);
            for ((e, de), grid) in e.as_chunks::<LANES>().0.iter().zip(de.as_chunks::<LANES>().0).zip(grid) {
                for l in 0..LANES {
                    let d = at - grid[l];
                    let w = e[l] * de[l] * d;
                    slope[l] += w;
                    total[l] = w.mul_add(d, total[l]);
                }
            }
            dat[axis] = inverse * slope.into_iter().sum();
        }
        total.into_iter().sum()
    }

    /// Multiply-adds and exponentials of one image, forward.
    pub(super) fn flops(side: usize, samples: usize) -> f64 {
        (2 * side * side * samples + 2 * 20 * side * samples) as f64
    }
}

#[track_caller]
fn sizes(x: &[Tensor]) -> (usize, usize) {
    match (x[0].shape(), x[1].len()) {
        (&[n, samples, 2], m) if m == n => (n, samples),
        (curve, _) => panic!("raster: curve {curve:?}, sigma {:?}; wanted [N, S, 2], [N]", x[1].shape()),
    }
}

impl Op for RasterOp {
    fn name(&self) -> &'static str {
        "raster"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let ((n, samples), side) = (sizes(x), self.side);
        let mut y = Tensor::empty(cx, &[n, side, side]);
        on_device!(cx, T => {
            let (curve, sigma, raster) = (x[0].slice::<T>(), x[1].slice::<T>(), Raster::<T>::new(side, samples));
            cpu::each_row(y.slice_mut::<T>(), side * side, TOGETHER, #[inline(always)] |i, y| {
                cpu::with_scratch(raster.scratch(), #[inline(always)] |memory| {
                    let mut sheet = raster.sheet(memory);
                    raster.draw(&curve[2 * samples * i..][..2 * samples], sigma[i], &mut sheet);
                    for (y, ink) in y.chunks_exact_mut(side).zip(sheet.ink.chunks_exact(sheet.stride)) {
                        y.copy_from_slice(&ink[..side]);
                    }
                });
            });
        }, gpu => launch(gpu, [&x[0], &x[1]], None, &y));
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let ((n, samples), side) = (sizes(x), self.side);
        on_device!(cx, T => {
            let (curve, sigma, dy) = (x[0].slice::<T>(), x[1].slice::<T>(), dy.slice::<T>());
            let raster = Raster::<T>::new(side, samples);
            // Per image: the gradient of the curve, then that of σ.
            let row = 2 * samples + 1;
            let mut d = vec![T::ZERO; n * row];
            cpu::each_row(&mut d, row, TOGETHER, #[inline(always)] |i, d| {
                cpu::with_scratch(raster.scratch(), #[inline(always)] |memory| {
                    let mut sheet = raster.sheet(memory);
                    for (ink, dy) in sheet.ink.chunks_exact_mut(sheet.stride).zip(dy[side * side * i..].chunks(side)).take(side) {
                        ink[..side].copy_from_slice(dy);
                    }
                    let (dcurve, dsigma) = d.split_at_mut(2 * samples);
                    let curve = &curve[2 * samples * i..][..2 * samples];
                    dsigma[0] = raster.draw_backward(curve, sigma[i], &mut sheet, dcurve);
                });
            });
            add_columns(dx, &d, &[2 * samples, 1]);
        }, gpu => {
            let slots = [grad(&mut dx[0]), grad(&mut dx[1])];
            launch_backward(gpu, [&x[0], &x[1]], None, dy, slots);
        });
    }

    fn cost(&self, x: &[Tensor], y: &Tensor) -> Cost {
        let (n, samples) = sizes(x);
        Cost { flops: n as f64 * Raster::<f32>::flops(self.side, samples), bytes: size(x) + size([y]) }
    }
}

/// How far apart the pen widths are: in `[N]` or `[N, 1]`, or in the first column of `[N, 2]`.
fn step(sigma: &Tensor, n: usize) -> usize {
    sigma.len() / n.max(1)
}

/// The ink of any number of samples on a GPU: `[N, S, 2]` and sigma `[N, k]`, whose first column counts → `[N, side, side]`. Nothing
/// is written where `live` is 0.
pub(super) fn launch(gpu: &Gpu, [curve, sigma]: [&Tensor; 2], live: Option<&Tensor>, ink: &Tensor) {
    let (&[n, samples, _], side) = (curve.shape().first_chunk().unwrap(), ink.shape()[1]);
    let tiles = side.div_ceil(64);
    let all = args![curve, sigma, Arg::input(live), ink.out(), samples, side, step(sigma, n)];
    gpu.launch("raster", "raster_fwd", Launch::grid([n, tiles, tiles], 256), all);
}

/// The gradients of curve and sigma (whose slot is strided as sigma is) on a GPU; 0 where `live` is 0.
pub(super) fn launch_backward(
    gpu: &Gpu,
    [curve, sigma]: [&Tensor; 2],
    live: Option<&Tensor>,
    dink: &Tensor,
    [[dcurve, add_curve], [dsigma, add_sigma]]: [[Arg; 2]; 2],
) {
    let (&[n, samples, _], side) = (curve.shape().first_chunk().unwrap(), dink.shape()[1]);
    let live = Arg::input(live);
    let all = args![curve, sigma, live, dink, dcurve, add_curve, dsigma, add_sigma, samples, side, step(sigma, n)];
    gpu.launch("raster", "raster_bwd", Launch::rows(n, 256), all);
}

/// Adds the columns of `d` (rows of `widths` side by side) to one slot each.
pub(super) fn add_columns<T: Real>(dx: &mut [Option<Slot>], d: &[T], widths: &[usize]) {
    let (row, mut from) = (widths.iter().sum::<usize>(), 0);
    for (slot, &width) in dx.iter_mut().zip(widths) {
        if let Some(slot) = slot {
            for (slot, d) in slot.add::<T>().chunks_exact_mut(width).zip(d.chunks_exact(row)) {
                slot.iter_mut().zip(&d[from..from + width]).for_each(|(slot, &d)| *slot += d);
            }
        }
        from += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};

    #[test]
    fn raster_gradients() {
        for side in [7, 16, 19] {
            let error = gradcheck(&[&[3, 6, 2], &[3]], |_, x| (x[0] * 0.3 + 0.5).raster(x[1] * 0.02 + 0.15, side));
            assert!(error < 1e-6, "{side}: {error}");
        }
    }

    #[test]
    fn ink_has_the_reference_values() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let points = [0.2, 0.2, 0.4, 0.1, 0.5, 0.5, 0.6, 0.9, 0.8, 0.7];
        let points = tape.constant(Tensor::from_f64(&device, &[2, 10], &[points, points].concat()));
        let sigma = tape.constant(Tensor::from_f64(&device, &[2], &[0.02, 0.01]));
        let ink = points.bezier(100).raster(sigma, 50).value().to_f64();
        let (wide, thin) = ink.split_at(2500);
        let near = |value: f64, want: f64| assert!((value - want).abs() < 1e-5 * want.abs(), "{value} {want}");
        near(wide.iter().sum(), 628.3185);
        near(thin.iter().sum(), 156.9603);
        near(wide.iter().copied().fold(0.0, f64::max), 7.348257);
        near(thin.iter().copied().fold(0.0, f64::max), 3.530432);
        for (i, j, want) in [(37, 34, 7.348257), (10, 10, 3.494130), (25, 25, 4.239834), (10, 20, 0.05716518)] {
            near(wide[50 * i + j], want);
        }
        near(wide[50 * 35 + 40], 2.880844);
        near(wide[50 * 34 + 38], 0.5171571);
        near(thin[50 * 35 + 40], 1.640604);
    }
}
