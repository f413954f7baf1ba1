//! Channels of mean 0 and variance 1 over a batch, then stretched and moved (Ioffe and Szegedy, 2015).
//!
//! ```text
//! z = (x − μ) / √(σ² + ε)   with mean μ and variance σ² of the channel      y = w ∘ z + b
//! dw = Σ dy ∘ z     db = Σ dy     dx = w ∘ (dy − (db + z ∘ dw) / M) / √(σ² + ε)   with M numbers in a channel
//! ```
//! μ and σ² (divided by M) are those of x itself. Where they are given ([`Var::batch_norm_by`]) they do not depend on x, and
//! dx = w ∘ dy / √(σ² + ε).

use super::{Op, combine};
use crate::{
    Device, Tape, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Launch, args},
    real::Real,
    slot::{Slot, grad},
};
use rayon::prelude::*;

/// Mean and variance of every channel, `[C]` each: of one batch, where the variance is divided by the number of values, or running
/// ones.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Means.
    pub mean: Tensor,
    /// Variances.
    pub variance: Tensor,
}

impl Moments {
    /// Means of 0 and variances of 1, for running moments to begin with.
    pub fn new(device: &Device, channels: usize) -> Self {
        Moments { mean: Tensor::zeros(device, &[channels]), variance: Tensor::full(device, &[channels], 1.0) }
    }

    /// Moves a share `momentum` of the way to the moments of a batch with `count` numbers in each channel, whose variance is divided by
    /// `count` − 1 for that: this is what PyTorch's running statistics do.
    pub fn follow(&mut self, batch: &Moments, count: usize, momentum: f64) {
        let tape = Tape::without_params(self.mean.device());
        let moved = |from: &Tensor, to: &Tensor, factor: f64| {
            let [from, to] = [from, to].map(|x| tape.constant(x.clone()));
            combine(&[(1.0 - momentum, from), (momentum * factor, to)]).value()
        };
        self.mean = moved(&self.mean, &batch.mean, 1.0);
        self.variance = moved(&self.variance, &batch.variance, count as f64 / (count as f64 - 1.0));
    }

    /// Those of x.
    fn of(x: &Tensor, d: Dims) -> Self {
        let cx = x.device();
        let [mut mean, mut variance] = [0, 1].map(|_| Tensor::empty(cx, &[d.channels]));
        on_device!(cx, T => {
            let (x, per) = (x.slice::<T>(), T::of(1.0 / d.count() as f64));
            let mean = mean.slice_mut::<T>();
            d.sums(mean, [x], #[inline(always)] |_, [x]| x);
            mean.iter_mut().for_each(|mean| *mean *= per);
            let variance = variance.slice_mut::<T>();
            d.sums(variance, [x], #[inline(always)] |c, [x]| (x - mean[c]) * (x - mean[c]));
            variance.iter_mut().for_each(|variance| *variance *= per);
        }, gpu => {
            let Dims { images, channels, size } = d;
            if gpu.naive() {
                let (launch, to) = (Launch::elements(channels), [mean.out(), variance.out()]);
                gpu.launch("naive", "naive_batch_norm_mean", launch, args![x, to[0], images, channels, size]);
                gpu.launch("naive", "naive_batch_norm_variance", launch, args![x, &mean, to[1], images, channels, size]);
            } else {
                let args = args![x, mean.out(), variance.out(), images, channels, size];
                gpu.launch("batch_norm", "batch_norm_moments", d.blocks(), args);
            }
        });
        Moments { mean, variance }
    }
}

/// Images, channels of each, and numbers in one of them.
#[derive(Clone, Copy)]
struct Dims {
    images: usize,
    channels: usize,
    size: usize,
}

impl Dims {
    #[track_caller]
    fn new(x: &[usize], w: &[usize], b: &[usize], moments: Option<&Moments>) -> Self {
        let known = moments.map(|m| [m.mean.shape(), m.variance.shape()]);
        match (x, w, b) {
            (&[images, channels, ref rest @ ..], &[c2], &[c3])
                if channels == c2 && c2 == c3 && known.is_none_or(|known| known == [&[channels]; 2]) =>
            {
                let d = Dims { images, channels, size: rest.iter().product() };
                assert!(
                    known.is_some() || d.count() > 1 || channels == 0,
                    "batch_norm: x {x:?}; wanted two numbers in every channel at least"
                );
                d
            }
            _ => {
                let known = known.map_or(String::new(), |[mean, variance]| format!(", moments {mean:?}, {variance:?}"));
                panic!("batch_norm: x {x:?}, w {w:?}, b {b:?}{known}; wanted [N, C, ..], and [C] for all others")
            }
        }
    }

    /// Numbers that a channel has in all images.
    fn count(self) -> usize {
        self.images * self.size
    }

    /// A block per channel.
    fn blocks(self) -> Launch {
        Launch::rows(self.channels, self.count().next_multiple_of(32).clamp(32, 1024))
    }

    /// `out[c]` = Σ f(c, xs) over channel c.
    #[inline(always)]
    fn sums<T: Real, const K: usize>(self, out: &mut [T], xs: [&[T]; K], f: impl Fn(usize, [T; K]) -> T + Sync) {
        // Channels of one number each lie side by side, and are added up a cache line at a time.
        let together = if self.size == 1 { 16 } else { 1 };
        out.par_chunks_mut(together).enumerate().for_each(|(task, out)| {
            cpu::simd(
                #[inline(always)]
                || {
                    out.fill(T::ZERO);
                    for image in 0..self.images {
                        for (i, out) in out.iter_mut().enumerate() {
                            let c = task * together + i;
                            let at = (image * self.channels + c) * self.size;
                            *out += if self.size == 1 {
                                f(
                                    c,
                                    xs.map(
                                        #[inline(always)]
                                        |x| x[at],
                                    ),
                                )
                            } else {
                                cpu::sum(
                                    xs.map(
                                        #[inline(always)]
                                        |x| &x[at..][..self.size],
                                    ),
                                    #[inline(always)]
                                    |x| f(c, x),
                                )
                            };
                        }
                    }
                },
            )
        });
    }

    /// Calls `kernel(c, channel c of an image of x, the same of out)` for each number or each channel, in parallel.
    #[inline(always)]
    fn each<T: Real>(self, x: &[T], out: &mut [T], f: impl Fn(usize, usize, T, &mut T) + Sync) {
        let image = self.channels * self.size;
        cpu::each_row(
            out,
            image,
            (cpu::BLOCK / image.max(1)).max(1),
            #[inline(always)]
            |n, out| {
                let x = &x[n * image..][..image];
                if self.size == 1 {
                    for (c, (out, &x)) in out.iter_mut().zip(x).enumerate() {
                        f(c, n * image + c, x, out);
                    }
                    return;
                }
                for (c, (out, x)) in out.chunks_mut(self.size).zip(x.chunks(self.size)).enumerate() {
                    for (i, (out, &x)) in out.iter_mut().zip(x).enumerate() {
                        f(c, n * image + c * self.size + i, x, out);
                    }
                }
            },
        );
    }
}

struct BatchNorm {
    moments: Moments,
    /// Whether they are those of x.
    own: bool,
    eps: f64,
}

impl BatchNorm {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> Dims {
        Dims::new(x[0].shape(), x[1].shape(), x[2].shape(), Some(&self.moments))
    }

    /// 1/√(σ² + ε) of every channel.
    fn steepness<T: Real>(&self) -> Vec<T> {
        let eps = T::of(self.eps);
        self.moments.variance.slice::<T>().iter().map(|&variance| T::ONE / (variance + eps).sqrt()).collect()
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let d = self.dims(x);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let [x, w, b] = [0, 1, 2].map(|i| x[i].slice::<T>());
            let (mean, mut by) = (self.moments.mean.slice::<T>(), self.steepness::<T>());
            by.iter_mut().zip(w).for_each(|(by, &w)| *by *= w);
            d.each(x, y.slice_mut::<T>(), #[inline(always)] |c, _, x, y| *y = (x - mean[c]) * by[c] + b[c]);
        }, gpu => {
            let Moments { mean, variance } = &self.moments;
            let sizes = [y.len(), d.channels, d.size];
            let args = args![&x[0], mean, variance, &x[1], &x[2], y.out(), sizes[0], sizes[1], sizes[2], Arg::Real(self.eps)];
            gpu.launch("batch_norm", "batch_norm_fwd", Launch::elements(y.len()), args);
        });
        vec![y]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let d = self.dims(x);
        let [of_x, of_w, of_b] = dx else { unreachable!() };
        // What both sums are needed for.
        let mixed = self.own && of_x.is_some();
        on_device!(cx, T => {
            let [x, w, dy] = [&x[0], &x[1], dy].map(Tensor::slice::<T>);
            let (mean, by) = (self.moments.mean.slice::<T>(), self.steepness::<T>());
            let [mut dw, mut db] = [0, 1].map(|_| vec![T::ZERO; d.channels]);
            if mixed || of_w.is_some() {
                d.sums(&mut dw, [x, dy], #[inline(always)] |c, [x, dy]| dy * (x - mean[c]) * by[c]);
            }
            if mixed || of_b.is_some() {
                d.sums(&mut db, [dy], #[inline(always)] |_, [dy]| dy);
            }
            for (slot, sums) in [(of_w, &dw), (of_b, &db)] {
                let Some(slot) = slot else { continue };
                slot.add::<T>().iter_mut().zip(sums).for_each(|(sum, &g)| *sum += g);
            }
            if let Some(slot) = of_x {
                let per = T::of(if self.own { 1.0 / d.count() as f64 } else { 0.0 });
                // dx = steep·dy − fixed − along·(x − μ).
                let steep: Vec<T> = by.iter().zip(w).map(|(&by, &w)| by * w).collect();
                let fixed: Vec<T> = steep.iter().zip(&db).map(|(&steep, &db)| steep * db * per).collect();
                let along: Vec<T> = (0..d.channels).map(|c| steep[c] * by[c] * dw[c] * per).collect();
                d.each(x, slot.add::<T>(), #[inline(always)] |c, i, x, dx| {
                    *dx += steep[c] * dy[i] - fixed[c] - along[c] * (x - mean[c]);
                });
            }
        }, gpu => {
            let Moments { mean, variance } = &self.moments;
            let (eps, sizes) = (Arg::Real(self.eps), [d.images, d.channels, d.size]);
            let sums = Tensor::empty(cx, &[2, d.channels]);
            if mixed || of_w.is_some() || of_b.is_some() {
                let ([dw, add_dw], [db, add_db]) = (grad(of_w), grad(of_b));
                let args = args![
                    &x[0], mean, variance, dy, sums.out(), dw, add_dw, db, add_db, sizes[0], sizes[1], sizes[2], eps
                ];
                if gpu.naive() {
                    gpu.launch("naive", "naive_batch_norm_sums", Launch::elements(d.channels), args);
                } else {
                    gpu.launch("batch_norm", "batch_norm_sums", d.blocks(), args);
                }
            }
            if of_x.is_some() {
                let ([dx, add], n) = (grad(of_x), x[0].len());
                let sums = Arg::input(mixed.then_some(&sums));
                let args = args![&x[0], mean, variance, &x[1], sums, dy, dx, add, n, sizes[0], sizes[1], sizes[2], eps];
                gpu.launch("batch_norm", "batch_norm_bwd", Launch::elements(n), args);
            }
        });
    }
}

impl<'t> Var<'t> {
    /// Every channel brought to mean 0 and variance 1 over the batch, then multiplied by w and moved by b: x `[N, C, …]`, w `[C]`,
    /// b `[C]` → `[N, C, …]`, and the moments of the channels. `eps` is added to the variance (1e-5 is usual).
    #[track_caller]
    pub fn batch_norm(self, w: Var<'t>, b: Var<'t>, eps: f64) -> (Var<'t>, Moments) {
        let d = Dims::new(&self.shape(), &w.shape(), &b.shape(), None);
        let moments = Moments::of(&self.value(), d);
        (self.tape().apply(BatchNorm { moments: moments.clone(), own: true, eps }, &[self, w, b]), moments)
    }

    /// The same by given moments, as a network that has learned does: no gradient goes through them.
    #[track_caller]
    pub fn batch_norm_by(self, moments: &Moments, w: Var<'t>, b: Var<'t>, eps: f64) -> Var<'t> {
        self.tape().apply(BatchNorm { moments: moments.clone(), own: false, eps }, &[self, w, b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::gradcheck;
    use approx::assert_abs_diff_eq;

    #[test]
    fn batch_norm_gradients() {
        for x in [&[4, 3, 2, 5][..], &[7, 3], &[2, 3, 40]] {
            assert!(gradcheck(&[x, &[3], &[3]], |_, x| x[0].batch_norm(x[1], x[2], 1e-5).0) < 1e-7);
        }
        let device = Device::cpu_f64();
        let [mean, variance] = [[0.5, -1.0, 0.0], [0.2, 3.0, 1.0]].map(|x| Tensor::from_f64(&device, &[3], &x));
        let moments = Moments { mean, variance };
        let shapes: [&[usize]; 3] = [&[4, 3, 2], &[3], &[3]];
        assert!(gradcheck(&shapes, |_, x| x[0].batch_norm_by(&moments, x[1], x[2], 0.1) + x[0]) < 1e-7);
    }

    #[test]
    fn running_moments_come_nearer_to_those_of_the_batch() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let tape = Tape::without_params(&device);
            let of = |shape: &[usize], values: &[f64]| tape.constant(Tensor::from_f64(&device, shape, values));
            let x = of(&[2, 2, 2], &[1.0, 3.0, -4.0, -4.0, 5.0, 7.0, -4.0, -4.0]);
            let (y, moments) = x.batch_norm(of(&[2], &[1.0, 2.0]), of(&[2], &[0.0, 0.5]), 1e-12);
            assert_eq!((moments.mean.to_f64(), moments.variance.to_f64()), (vec![4.0, -4.0], vec![5.0, 0.0]));
            let wanted = [-3.0, -1.0, 0.0, 0.0, 1.0, 3.0, 0.0, 0.0].map(|x: f64| x / 5f64.sqrt());
            let moved = [0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5];
            assert_abs_diff_eq!(
                y.value().to_f64()[..],
                std::array::from_fn::<_, 8, _>(|i| wanted[i] + moved[i])[..],
                epsilon = 1e-6
            );
            let mut running = Moments::new(&device, 2);
            running.follow(&moments, 4, 0.1);
            assert_abs_diff_eq!(running.mean.to_f64()[..], [0.4, -0.4][..], epsilon = 1e-6);
            assert_abs_diff_eq!(running.variance.to_f64()[..], [0.9 + 0.1 * 5.0 * 4.0 / 3.0, 0.9][..], epsilon = 1e-6);
        }
    }
}
