//! Dropout: y = keep ∘ x / (1 − rate), with keep made of ones and zeros.

use super::Op;
use crate::{
    Device, Tensor, Var, cpu,
    device::on_device,
    gpu::{Arg, Gpu, Launch, args},
    real::Real,
    rng::{Rng, Stream},
    slot::{Slot, grad},
};

/// Which elements dropout keeps.
#[derive(Clone, Debug)]
pub enum Keep {
    /// All of them: no dropout.
    All,
    /// Those where a tensor `[N, K]` of zeros and ones holds 1; `rate` sets the factor 1/(1−rate) of the kept ones.
    Given(Tensor, f64),
    /// Each with probability 1 − `rate`, drawn from `stream`.
    Random {
        /// Probability of dropping.
        rate: f64,
        /// The step's numbers.
        rng: Rng,
        /// Which of them.
        stream: Stream,
    },
}

impl Keep {
    /// Writes the factor (0 or 1/(1−rate)) of elements `from..` of row `row` of `k` columns.
    #[inline(always)]
    pub(super) fn factors<T: Real>(&self, row: usize, k: usize, from: usize, out: &mut [T]) {
        match self {
            Keep::All => out.fill(T::ONE),
            Keep::Given(mask, rate) => {
                let scale = T::of(1.0 / (1.0 - rate));
                let mask = &mask.slice::<T>()[row * k + from..][..out.len()];
                out.iter_mut().zip(mask).for_each(|(o, &m)| *o = m * scale);
            }
            Keep::Random { rate, rng, stream } if *rate == 0.5 => {
                let first = (rng.row + row) * k.div_ceil(128) + from / 128;
                for (i, out) in out.chunks_mut(128).enumerate() {
                    let words = rng.words(*stream, (first + i) as u32);
                    for (out, word) in out.chunks_mut(32).zip(words) {
                        for (bit, o) in out.iter_mut().enumerate() {
                            *o = if (word >> bit) & 1 == 1 { T::of(2.0) } else { T::ZERO };
                        }
                    }
                }
            }
            Keep::Random { rate, rng, stream } => {
                let scale = T::of(1.0 / (1.0 - rate));
                let threshold = threshold(*rate);
                let first = (rng.row + row) * k.div_ceil(4) + from / 4;
                for (i, out) in out.chunks_mut(4).enumerate() {
                    let words = rng.words(*stream, (first + i) as u32);
                    for (o, word) in out.iter_mut().zip(words) {
                        *o = if word >= threshold { scale } else { T::ZERO };
                    }
                }
            }
        }
    }

    /// What kept elements are multiplied by.
    pub(super) fn scale(&self) -> f64 {
        match self {
            Keep::All => 1.0,
            Keep::Given(_, rate) | Keep::Random { rate, .. } => 1.0 / (1.0 - rate),
        }
    }

    /// The row of the batch that is the first one here.
    fn row(&self) -> usize {
        if let Keep::Random { rng, .. } = self { rng.row } else { 0 }
    }

    /// As arguments of `dropout_bits`: mask, kind, seed, step, stream, and the least random word that keeps its element.
    fn args(&self) -> [Arg; 6] {
        let (mask, kind, seed, step, stream, least) = match self {
            Keep::All => (None, 0, 0, 0, 0, 0),
            Keep::Given(mask, _) => (Some(mask), 1, 0, 0, 0, 0),
            Keep::Random { rate, rng, stream } if *rate == 0.5 => (None, 2, rng.seed, rng.step, stream.0, 0),
            Keep::Random { rate, rng, stream } => (None, 3, rng.seed, rng.step, stream.0, threshold(*rate)),
        };
        let [seed, step] = [seed, step].map(Arg::Wide);
        [Arg::input(mask), Arg::Int(kind), seed, step, Arg::Word(stream), Arg::Word(least)]
    }
}

/// Random words below this drop their element.
fn threshold(rate: f64) -> u32 {
    (rate * (1u64 << 32) as f64) as u32
}

/// Masks of at most four calls of one rate as a bit per element of `[rows, columns]`, 32 columns to a word; zeros in rows that are not
/// live.
pub(super) fn bits<'a>(
    gpu: &Gpu,
    cx: &Device,
    calls: impl ExactSizeIterator<Item = &'a Keep>,
    live: Option<&Tensor>,
    [rows, columns]: [usize; 2],
) -> Tensor {
    let (count, words) = (calls.len(), rows * columns.div_ceil(32));
    let bits = Tensor::empty(cx, &[count * words]); // a number is as large as a word, or larger
    let calls: Vec<&Keep> = calls.collect();
    let first = calls.iter().map(|keep| keep.row()).max().unwrap_or(0);
    let mut args: Vec<Arg> = calls.into_iter().flat_map(Keep::args).collect();
    (count..4).for_each(|_| args.extend(Keep::All.args()));
    let (clock, out) = (Arg::Words(gpu.clock()), Arg::WordsOut(bits.span()));
    args.extend([clock, Arg::input(live), out, rows.into(), columns.into(), first.into()]);
    let launch = Launch::grid([words.div_ceil(256).min(4096), count, 1], 256);
    gpu.launch("dropout", "dropout_bits", launch, &args);
    bits
}

struct Dropout(Keep);

impl Dropout {
    /// Rows, and columns of a row.
    #[track_caller]
    fn dims(&self, x: &Tensor) -> [usize; 2] {
        let shape = x.shape();
        if let Keep::Given(mask, _) = &self.0 {
            assert_eq!(mask.len(), x.len(), "dropout: x {shape:?}, mask {:?}; wanted as many", mask.shape());
        }
        let rows = shape.first().copied().unwrap_or(1);
        [rows, x.len() / rows.max(1)]
    }

    /// out = x∘factors, or grows by it; its own backward.
    fn on_gpu(&self, gpu: &Gpu, x: &Tensor, bits: &Tensor, [out, add]: [Arg; 2]) {
        let [rows, columns] = self.dims(x);
        let args = args![x, Arg::Words(bits.span()), out, add, rows, columns, Arg::Real(self.0.scale())];
        gpu.launch("dropout", "dropout", Launch::elements(x.len()), args);
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let [rows, columns] = self.dims(&x[0]);
        let mut y = Tensor::empty(cx, x[0].shape());
        on_device!(cx, T => {
            let x = x[0].slice::<T>();
            cpu::each_row(y.slice_mut::<T>(), columns, 16, #[inline(always)] |row, y| {
                self.0.factors(row, columns, 0, y);
                y.iter_mut().zip(&x[row * columns..]).for_each(|(y, &x)| *y *= x);
            });
            vec![y]
        }, gpu => {
            let bits = bits(gpu, cx, [&self.0].into_iter(), None, [rows, columns]);
            self.on_gpu(gpu, &x[0], &bits, [y.out(), Arg::Int(0)]);
            vec![y, bits]
        })
    }

    fn backward(&self, _: &Device, x: &[Tensor], y: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let [_, columns] = self.dims(&x[0]);
        let Some(slot) = &mut dx[0] else { return };
        on_device!(dy.device(), T => {
            let dy = dy.slice::<T>();
            cpu::each_row(slot.add::<T>(), columns, 16, #[inline(always)] |row, dx| {
                cpu::with_scratch(columns, #[inline(always)] |factors: &mut [T]| {
                    self.0.factors(row, columns, 0, factors);
                    let terms = factors.iter().zip(&dy[row * columns..]);
                    dx.iter_mut().zip(terms).for_each(|(dx, (&factor, &dy))| *dx += factor * dy);
                });
            });
        }, gpu => self.on_gpu(gpu, dy, &y[1], grad(&mut dx[0])));
    }
}

impl<'t> Var<'t> {
    /// Sets elements to 0 and divides the others by 1 − rate, as `keep` says, so that means stay what they are. Rows are those of the
    /// first dimension. A program draws a new mask for every step by a new [`Rng`].
    #[track_caller]
    pub fn dropout(self, keep: Keep) -> Var<'t> {
        match keep {
            Keep::All => self,
            keep => self.tape().apply(Dropout(keep), &[self]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tape, gradcheck::gradcheck};

    #[test]
    fn dropout_gradients() {
        let given = Tensor::from_f64(&Device::cpu_f64(), &[3, 4], &[1., 0., 1., 1., 0., 0., 1., 0., 1., 1., 1., 0.]);
        let random = |rate| Keep::Random { rate, rng: Rng::new(1, 2), stream: Stream(3) };
        assert!(gradcheck(&[&[3, 4]], |_, x| x[0].dropout(Keep::Given(given.clone(), 0.5))) < 1e-8);
        assert!(gradcheck(&[&[3, 2, 70]], |_, x| x[0].dropout(random(0.5))) < 1e-8);
        assert!(gradcheck(&[&[3, 7]], |_, x| x[0].dropout(random(0.2)) + x[0]) < 1e-8);
    }

    #[test]
    fn dropout_keeps_the_mean() {
        let device = Device::cpu();
        for rate in [0.5, 0.3] {
            let tape = Tape::without_params(&device);
            let ones = tape.constant(Tensor::full(&device, &[40, 500], 1.0));
            let kept = ones.dropout(Keep::Random { rate, rng: Rng::new(1, 2), stream: Stream(3) }).value().to_f64();
            let mean = kept.iter().sum::<f64>() / kept.len() as f64;
            assert!((mean - 1.0).abs() < 0.03, "rate {rate}: {mean}");
            assert!(kept.iter().all(|&v| v == 0.0 || (v * (1.0 - rate) - 1.0).abs() < 1e-6));
            assert_ne!(kept[..500], kept[500..1000], "every row has a mask of its own");
        }
    }
}
