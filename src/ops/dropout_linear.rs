//! Dropout and the wide linear layer behind it, fused: y = act(x̂·Wᵀ + b) with x̂ = keep ∘ x / (1 − rate).
//!
//! One op serves several *calls*: each picks one of the inputs and has a dropout mask of its own, and their results are stacked.
//! So the weights, which are by far the largest tensor of the model, are read once for all of them. x̂ exists only in pieces of
//! [`CHUNK`] columns; in the backward it is made again. A CPU leaves zeros out where they are most of it (`sparse.rs`). On the GPU the
//! masks are drawn once, as a bit per element, and x̂ exists only in the products' shared memory.

mod launches;
mod sparse;

use super::{Activation, Cost, Keep, Op, linear, live::live_rows, size};
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    matmul::{Matrix, Output},
    real::Real,
    slot::Slot,
};
use rayon::prelude::*;

/// Columns of x̂ that are made at a time. A multiple of 128, the number of masks in one Philox block.
const CHUNK: usize = 1024;

struct DropoutLinear {
    /// Index of the input and its mask.
    calls: Vec<(usize, Keep)>,
    live: Option<Tensor>,
    activation: Activation,
    /// Whether the zeros of x̂ are left out on a CPU.
    sparse: bool,
}

/// Several dropout calls through one linear layer: inputs `[N, K]` each, w `[O, K]`, b `[O]` → `[calls·N, O]`, call by call.
///
/// `calls` name the input that each call reads and its dropout. Rows whose entry of `live` `[N]` is 0 are skipped: zeros come out,
/// and no gradient goes back.
#[track_caller]
pub fn dropout_linear<'t>(
    inputs: &[Var<'t>],
    calls: Vec<(usize, Keep)>,
    w: Var<'t>,
    b: Var<'t>,
    activation: Activation,
    live: Option<&Tensor>,
) -> Var<'t> {
    assert!(calls.iter().all(|(i, _)| *i < inputs.len()), "dropout_linear: a call names an input that is not there");
    let sparse = inputs.iter().all(|x| x.rectified()) && calls.iter().all(|(_, keep)| sparse::pays(keep));
    let op = DropoutLinear { calls, live: live.cloned(), activation, sparse };
    w.tape().apply(op, &[&[w, b], inputs].concat())
}

#[derive(Clone, Copy)]
struct Dims {
    n: usize,
    k: usize,
    o: usize,
}

impl Dims {
    /// Words with a bit for each element of an input.
    fn words(self) -> usize {
        self.n * self.k.div_ceil(32)
    }
}

/// A row of the product: which call, which image.
#[derive(Clone, Copy)]
struct Row {
    call: usize,
    image: usize,
}

impl DropoutLinear {
    #[track_caller]
    fn dims(&self, x: &[Tensor]) -> Dims {
        match (x[0].shape(), x[1].shape(), x[2].shape()) {
            (&[o, k], &[o2], &[n, k2]) if o == o2 && k == k2 && x[2..].iter().all(|f| f.shape() == [n, k]) => {
                Dims { n, k, o }
            }
            (w, b, f) => panic!("dropout_linear: w {w:?}, b {b:?}, x {f:?}; wanted [O, K], [O], [N, K]"),
        }
    }

    fn rows(&self, n: usize) -> Vec<Row> {
        let live = live_rows(self.name(), self.live.as_ref(), n);
        let images = || (0..n).filter(|&i| live[i]);
        (0..self.calls.len()).flat_map(|call| images().map(move |image| Row { call, image })).collect()
    }

    /// The masks' factors and x̂ of columns `from..from + width`, one row after the other.
    #[inline(always)]
    fn gather<T: Real>(
        &self,
        d: Dims,
        rows: &[Row],
        x: &[Tensor],
        (from, width): (usize, usize),
        factors: &mut [T],
        kept: &mut [T],
    ) {
        for (i, row) in rows.iter().enumerate() {
            let (input, keep) = &self.calls[row.call];
            let (factors, kept) = (&mut factors[i * width..][..width], &mut kept[i * width..][..width]);
            keep.factors(row.image, d.k, from, factors);
            let x = &x[2 + input].slice::<T>()[row.image * d.k + from..][..width];
            for j in 0..width {
                kept[j] = x[j] * factors[j];
            }
        }
    }
}

impl Op for DropoutLinear {
    fn name(&self) -> &'static str {
        "dropout_linear"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let d = self.dims(x);
        let shape = [self.calls.len() * d.n, d.o];
        on_device!(cx, T => {
            let rows = self.rows(d.n);
            let mut y = Tensor::zeros(cx, &shape);
            let weight = Matrix::new(x[0].slice::<T>(), d.o, d.k);
            let size = rows.len() * d.o;
            let mut parts = vec![T::ZERO; size * d.k.div_ceil(CHUNK)];
            parts.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, part)| {
                let from = i * CHUNK;
                let width = CHUNK.min(d.k - from);
                cpu::with_scratch(2 * rows.len() * width, |scratch: &mut [T]| {
                    let (factors, kept) = scratch.split_at_mut(rows.len() * width);
                    cpu::simd(#[inline(always)] || self.gather(d, &rows, x, (from, width), factors, kept));
                    if self.sparse {
                        let weight = weight.columns(from, width);
                        return sparse::forward(sparse::Piece { rows: rows.len(), width, weight, outputs: d.o }, kept, part);
                    }
                    let kept = Matrix::new(kept, rows.len(), width);
                    // SAFETY: `part` is this task's own.
                    unsafe {
                        let out = Output::new(part, rows.len(), d.o);
                        out.product_into(0, 0, kept, weight.columns(from, width).t(), false);
                    }
                });
            });
            let (sum, rest) = parts.split_at_mut(size);
            for part in rest.chunks(size.max(1)) {
                sum.iter_mut().zip(part).for_each(|(s, &p)| *s += p);
            }
            linear::finish(sum, x[1].slice(), self.activation);
            let out = y.slice_mut::<T>();
            for (row, sum) in rows.iter().zip(sum.chunks(d.o)) {
                out[(row.call * d.n + row.image) * d.o..][..d.o].copy_from_slice(sum);
            }
            vec![y]
        }, gpu => {
            let y = Tensor::empty(cx, &shape);
            let bits = self.forward_gpu(gpu, cx, x, &y);
            [vec![y], bits].concat()
        })
    }

    fn backward(&self, cx: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let d = self.dims(x);
        on_device!(cx, T => {
            let rows = self.rows(d.n);
            let compact = |all: &[T]| -> Vec<T> {
                rows.iter().flat_map(|r| &all[(r.call * d.n + r.image) * d.o..][..d.o]).copied().collect()
            };
            let (dw, rest) = dx.split_first_mut().unwrap();
            let (db, inputs) = rest.split_first_mut().unwrap();
            let dz = linear::undo(&compact(y[0].slice()), &compact(dy.slice()), self.activation, db, d.o);
            let panels = if self.sparse { sparse::panels(&dz, rows.len(), d.o) } else { vec![] };
            let dz = Matrix::new(&dz, rows.len(), d.o);
            let weight = Matrix::new(x[0].slice::<T>(), d.o, d.k);
            let dw = dw.as_mut().map(|slot| Output::new(slot.add::<T>(), d.o, d.k));
            let inputs: Vec<Option<(Output<T>, bool)>> = inputs
                .iter_mut()
                .map(|slot| {
                    let (values, fresh) = slot.as_mut()?.write::<T>();
                    Some((Output::new(values, d.n, d.k), fresh))
                })
                .collect();
            (0..d.k.div_ceil(CHUNK)).into_par_iter().for_each(|i| {
                let from = i * CHUNK;
                let width = CHUNK.min(d.k - from);
                cpu::with_scratch(2 * rows.len() * width, |scratch: &mut [T]| {
                    let (factors, kept) = scratch.split_at_mut(rows.len() * width);
                    cpu::simd(#[inline(always)] || self.gather(d, &rows, x, (from, width), factors, kept));
                    // SAFETY: every task writes only its own columns of `dw` and of the inputs' gradients.
                    unsafe {
                        let weight = weight.columns(from, width);
                        if self.sparse {
                            let piece = sparse::Piece { rows: rows.len(), width, weight, outputs: d.o };
                            sparse::backward(piece, kept, &panels, dw.as_ref().map(|dw| (dw, from)));
                        } else {
                            if let Some(dw) = &dw {
                                dw.product_into(0, from, dz.t(), Matrix::new(kept, rows.len(), width), true);
                            }
                            Output::new(kept, rows.len(), width).product_into(0, 0, dz, weight, false);
                        }
                        for (out, _) in inputs.iter().flatten().filter(|(_, fresh)| *fresh) {
                            (0..d.n).for_each(|image| out.window(image, from, width).fill(T::ZERO));
                        }
                        for (i, row) in rows.iter().enumerate() {
                            let Some((out, _)) = &inputs[self.calls[row.call].0] else { continue };
                            let out = out.window(row.image, from, width);
                            let (g, factors) = (&kept[i * width..][..width], &factors[i * width..][..width]);
                            cpu::simd(#[inline(always)] || {
                                for j in 0..width {
                                    out[j] += g[j] * factors[j];
                                }
                            });
                        }
                    }
                });
            });
        }, gpu => self.backward_gpu(gpu, x, y, dy, dx));
    }

    fn cost(&self, x: &[Tensor], _: &Tensor) -> Cost {
        let d = self.dims(x);
        let rows = match x[0].device().gpu() {
            None => self.rows(d.n).len(),
            Some(_) => self.calls.len() * d.n, // to ask which of them are live would be to wait
        };
        Cost { flops: 2.0 * (rows * d.k * d.o) as f64, bytes: size(x) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Tape,
        gradcheck::gradcheck,
        rng::{Rng, Stream},
    };

    #[test]
    fn dropout_linear_gradients_with_several_calls_masks_and_skipped_rows() {
        let device = Device::cpu_f64();
        let k = CHUNK + 40;
        let bits: Vec<f64> = (0..3 * k).map(|i| (i * 7 % 3 % 2) as f64).collect();
        let given = Tensor::from_f64(&device, &[3, k], &bits);
        let live = Tensor::from_f64(&device, &[3], &[1.0, 0.0, 1.0]);
        for live in [None, Some(&live)] {
            let error = gradcheck(&[&[4, k], &[4], &[3, k], &[3, k]], |_, x| {
                let random = |rate| Keep::Random { rate, rng: Rng::new(1, 2), stream: Stream(3) };
                let calls =
                    vec![(0, Keep::Given(given.clone(), 0.5)), (1, random(0.5)), (1, random(0.3)), (0, Keep::All)];
                dropout_linear(&x[2..], calls, x[0] * 0.03, x[1], Activation::Tanh, live)
            });
            assert!(error < 1e-6, "{error}");
        }
    }

    #[test]
    fn dropout_keeps_the_share_it_should_and_scales_what_it_keeps() {
        let device = Device::cpu();
        for rate in [0.5, 0.3] {
            let tape = Tape::without_params(&device);
            let n = 4096;
            let keep = Keep::Random { rate, rng: Rng::new(1, 2), stream: Stream(3) };
            let w = tape.constant(Tensor::full(&device, &[1, n], 1.0));
            let b = tape.constant(Tensor::zeros(&device, &[1]));
            let x = tape.constant(Tensor::full(&device, &[50, n], 1.0 / n as f64));
            let y = dropout_linear(&[x], vec![(0, keep)], w, b, Activation::None, None).value().to_f64();
            let mean = y.iter().sum::<f64>() / 50.0;
            assert!((mean - 1.0).abs() < 0.01, "rate {rate}: {mean}");
            assert!(y.iter().any(|&v| v != y[0]), "every row has a mask of its own");
        }
    }
}
