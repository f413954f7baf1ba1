//! Log density of images given the final canvas, with one learned scale per pixel (section 7 of the model).
//!
//! ```text
//! v = 0.01 + 0.99·σ(w)
//! Laplace: Σ −log(2v) − |x − C|/v        Normal: Σ −log v − ½log 2π − (x − C)²/(2v²)
//! ```

use super::Op;
use super::gaussian::HALF_LOG_TAU;
use super::squash::PIXEL_SCALE;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;

/// The distribution of a pixel around the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Likelihood {
    /// exp(−|x − C|/v) / 2v.
    Laplace,
    /// Normal with standard deviation v.
    Normal,
}

impl Likelihood {
    /// The constant per pixel that is subtracted.
    fn log_norm(self) -> f64 {
        match self {
            Likelihood::Laplace => LN_2,
            Likelihood::Normal => HALF_LOG_TAU,
        }
    }
}

/// Inputs: canvas `[B, H, W]`, raw scale `[H, W]`, image `[B, H, W]`.
struct ImageLogDensity(Likelihood);

impl ImageLogDensity {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> (usize, usize, usize) {
        match (x[0].shape(), x[1].shape(), x[2].shape()) {
            (&[b, h, w], raw, image) if raw == [h, w] && image == [b, h, w] => (b, h, w),
            (canvas, raw, image) => panic!(
                "image_logpdf: canvas {canvas:?}, raw scale {raw:?}, image {image:?}; wanted [B, H, W], [H, W], [B, H, W]"
            ),
        }
    }
}

impl ImageLogDensity {
    fn laplace(&self) -> Arg {
        Arg::Int((self.0 == Likelihood::Laplace).into())
    }
}

/// The smallest scale, and the distance to the largest.
fn scale_args() -> [Arg; 2] {
    [Arg::Real(PIXEL_SCALE.0), Arg::Real(PIXEL_SCALE.1 - PIXEL_SCALE.0)]
}

/// Pixels summed side by side: enough to fill the vector registers.
const LANES: usize = 32;

/// Σ f(i) for i < n, over interleaved partial sums: vectorised, and more accurate than one running sum.
#[inline(always)]
fn lane_sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut sums = [T::ZERO; LANES];
    let whole = n - n % LANES;
    for at in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + lane);
        }
    }
    (whole..n).map(&f).sum::<T>() + sums.into_iter().sum::<T>()
}

impl Op for ImageLogDensity {
    fn name(&self) -> &'static str {
        "image_logpdf"
    }

    /// Saves 1/v.
    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (b, h, w) = self.dims(x);
        let pixels = h * w;
        let (mut y, mut precision) = (Tensor::empty(cx, &[b]), Tensor::empty(cx, &[h, w]));
        on_device!(cx, T => {
            let (canvas, raw, image) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
            let (lo, hi) = PIXEL_SCALE;
            cpu::each_row(precision.slice_mut::<T>(), pixels, 1, #[inline(always)] |_, out| {
                for (out, &w) in out.iter_mut().zip(raw) {
                    *out = T::ONE / (T::of(lo) + T::of(hi - lo) * w.sigmoid());
                }
            });
            let precision = precision.slice::<T>();
            // The same for all images, and large: in double precision.
            let norm: f64 = precision.iter().map(|r| r.f64().ln() - self.0.log_norm()).sum();
            cpu::each_row(y.slice_mut::<T>(), 1, 1, #[inline(always)] |i, y| {
                let (canvas, image) = (&canvas[pixels * i..][..pixels], &image[pixels * i..][..pixels]);
                let misfit = lane_sum(pixels, #[inline(always)] |j| {
                    let e = (image[j] - canvas[j]) * precision[j];
                    match self.0 {
                        Likelihood::Laplace => e.abs(),
                        Likelihood::Normal => T::of(0.5) * e * e,
                    }
                });
                y[0] = T::of(norm) - misfit;
            });
        }, gpu => {
            let ([low, span], log_norm) = (scale_args(), Arg::Real(self.0.log_norm()));
            let out = [y.out(), precision.out()];
            let args = args![&x[0], &x[1], &x[2], out[0], out[1], pixels, self.laplace(), low, span, log_norm];
            gpu.launch("likelihood", "image_logpdf_fwd", Launch::rows(b, 512), args);
        });
        vec![y, precision]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let (b, h, w) = self.dims(x);
        let pixels = h * w;
        on_device!(cx, T => {
            let (canvas, raw, image) = (x[0].slice::<T>(), x[1].slice::<T>(), x[2].slice::<T>());
            let (precision, dy) = (y[1].slice::<T>(), dy.slice::<T>());
            let laplace = self.0 == Likelihood::Laplace;
            if let Some(slot) = &mut dx[0] {
                cpu::each_row(slot.add::<T>(), pixels, 1, #[inline(always)] |i, dc| {
                    let (canvas, image) = (&canvas[pixels * i..][..pixels], &image[pixels * i..][..pixels]);
                    for (((dc, &c), &x), &r) in dc.iter_mut().zip(canvas).zip(image).zip(precision) {
                        *dc += dy[i] * r * if laplace { sign(x - c) } else { (x - c) * r };
                    }
                });
            }
            // Each pixel sums over the images in their order, whoever computes it.
            if let Some(slot) = &mut dx[1] {
                let span = T::of(PIXEL_SCALE.1 - PIXEL_SCALE.0);
                cpu::each_row(slot.add::<T>(), w, 8, #[inline(always)] |row, draw| {
                    let at = row * w;
                    let (raw, precision) = (&raw[at..][..w], &precision[at..][..w]);
                    let mut dv = vec![T::ZERO; w];
                    for i in 0..b {
                        let (canvas, image) = (&canvas[pixels * i + at..][..w], &image[pixels * i + at..][..w]);
                        for (((dv, &c), &x), &r) in dv.iter_mut().zip(canvas).zip(image).zip(precision) {
                            let e = (x - c) * r;
                            *dv += dy[i] * (if laplace { e.abs() } else { e * e } - T::ONE);
                        }
                    }
                    for (((d, &dv), &w), &r) in draw.iter_mut().zip(&dv).zip(raw).zip(precision) {
                        *d += dv * r * span * w.sigmoid_slope();
                    }
                });
            }
        }, gpu => {
            let ([dcanvas, add], [draw, add_raw]) = (grad(&mut dx[0]), grad(&mut dx[1]));
            let (laplace, [_, span]) = (self.laplace(), scale_args());
            let args = args![
                &x[0], &x[1], &x[2], &y[1], dy, dcanvas, add, draw, add_raw, b, pixels, laplace, span,
            ];
            gpu.launch("likelihood", "image_logpdf_bwd", Launch::rows(pixels.div_ceil(32), 512), args);
        });
    }
}

/// −1, 0 or 1.
#[inline(always)]
fn sign<T: Real>(x: T) -> T {
    let above = if x > T::ZERO { T::ONE } else { T::ZERO };
    above - if x < T::ZERO { T::ONE } else { T::ZERO }
}

impl<'t> Var<'t> {
    /// Log density of the images x `[B, H, W]` around the canvas `[B, H, W]` (`self`), with raw scale `[H, W]` shared by all
    /// images → `[B]`. Differentiable in the canvas (at |x − C| = 0 with slope 0) and in the raw scale.
    #[track_caller]
    pub fn image_logpdf(self, x: &Tensor, raw_scale: Var<'t>, likelihood: Likelihood) -> Var<'t> {
        self.tape().apply(ImageLogDensity(likelihood), &[self, raw_scale, self.tape().constant(x.clone())])
    }
}

/// What is still to be drawn: Σ residual / Σ x of each image, both `[B, H, W]` → `[B]` (section 4 of the model).
///
/// 0/0 is 0; a quotient beyond single precision, as for an empty image with a canvas that is not empty, is ±3.4028235e38.
#[track_caller]
pub fn residual_ratio(residual: &Tensor, x: &Tensor) -> Tensor {
    super::same_shape("residual_ratio", residual, x);
    let (b, pixels) = (x.shape()[0], x.shape()[1..].iter().product::<usize>());
    let mut y = Tensor::empty(x.device(), &[b]);
    on_device!(x.device(), T => {
        let (residual, x) = (residual.slice::<T>().par_chunks_exact(pixels), x.slice::<T>().par_chunks_exact(pixels));
        y.slice_mut::<T>().par_iter_mut().zip(residual.zip(x)).with_min_len(8).for_each(|(y, (residual, x))| {
            let sum = |values: &[T]| cpu::simd(#[inline(always)] || lane_sum(pixels, #[inline(always)] |i| values[i].f64()));
            let (left, all) = (sum(residual), sum(x));
            let most = f32::MAX as f64;
            *y = if left == 0.0 && all == 0.0 { T::ZERO } else { T::of((left / all).limit(-most, most)) };
        });
    }, gpu => {
        gpu.launch("likelihood", "residual_ratio", Launch::rows(b, 256), args![residual, x, y.out(), pixels]);
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Grads, Tape, gradcheck::gradcheck, rng::Rng, rng::Stream};

    const BOTH: [Likelihood; 2] = [Likelihood::Laplace, Likelihood::Normal];

    #[test]
    fn image_logpdf_gradients() {
        for likelihood in BOTH {
            let x = Rng::new(3, 0).normal_tensor(&Device::cpu_f64(), Stream(9), &[3, 5, 7]);
            let error = gradcheck(&[&[3, 5, 7], &[5, 7]], |_, v| v[0].image_logpdf(&x, v[1], likelihood));
            assert!(error < 1e-6, "{likelihood:?}: {error}");
        }
    }

    #[test]
    fn a_perfect_canvas_has_no_slope_and_the_density_of_the_scale() {
        let device = Device::cpu_f64();
        let tape = Tape::without_params(&device);
        let canvas = tape.input(Tensor::full(&device, &[1, 4, 10], 0.3));
        let raw = tape.constant(Tensor::zeros(&device, &[4, 10]));
        let density = canvas.image_logpdf(&canvas.value(), raw, Likelihood::Laplace);
        assert!((density.value().item() + 40.0 * (2.0 * 0.505f64).ln()).abs() < 1e-12);
        let grads = tape.backward(density, &mut Grads::none(&device));
        assert_eq!(grads.of(canvas).to_f64(), [0.0; 40]);
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let device = Device::cpu();
        let draw = |stream, shape: &[usize]| Rng::new(4, 0).normal_tensor(&device, Stream(stream), shape);
        let run = |threads| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let tape = Tape::without_params(&device);
                let (canvas, raw) = (tape.input(draw(0, &[16, 50, 50])), tape.input(draw(1, &[50, 50])));
                let y = canvas.image_logpdf(&draw(2, &[16, 50, 50]), raw, Likelihood::Laplace);
                let grads = tape.backward(y.sum(), &mut Grads::none(&device));
                (y.value().to_f32(), grads.of(canvas).to_f32(), grads.of(raw).to_f32())
            })
        };
        assert!(run(1) == run(3));
    }

    #[test]
    fn residual_ratio_of_an_empty_image_is_finite() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let x = Tensor::from_f64(&device, &[4, 1, 2], &[1.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
            let residual = Tensor::from_f64(&device, &[4, 1, 2], &[0.5, 0.5, 0.0, 0.0, -0.2, -0.3, 0.1, 0.0]);
            let most = f32::MAX as f64;
            assert_eq!(residual_ratio(&residual, &x).to_f64(), [0.25, 0.0, -most, most]);
        }
    }

    #[test]
    fn likelihoods_are_written_in_lower_case() {
        let names = BOTH.map(|l| serde_json::to_string(&l).unwrap());
        assert_eq!(names, ["\"laplace\"", "\"normal\""]);
        assert_eq!(names.map(|n| serde_json::from_str::<Likelihood>(&n).unwrap()), BOTH);
    }
}
