//! Finished drawings, off their tape: what evaluations, pictures and files start from.

use super::{
    Model,
    draw::Step,
    latent::Each,
    state::{Memory, Pen, State},
};
use crate::{Tensor, Var};

/// N drawings of at most T strokes, on their device. Whoever wants numbers reads each tensor back once.
#[derive(Clone)]
pub struct Drawings {
    /// o `[T, N]`, l `[T, N, 4]`, s `[T, N, D]`. What follows the first o = 0 means nothing.
    pub z: Each<Tensor>,
    /// σ and ω0 `[T, N, 2]`, and the ω1 `[N]` under which the canvas is shown. AIR has none.
    pub pen: Option<Pen<Tensor>>,
    /// The strokes alone `[T, N, H, W]`.
    pub strokes: Tensor,
    /// The canvas after each stroke `[T, N, H, W]`.
    pub canvases: Tensor,
    /// log density of every latent to the law that chose it `[T, N]`; 0 once the drawing has stopped.
    pub logq: Each<Tensor>,
    /// The same to the law that scored it, if one did.
    pub logp: Option<Each<Tensor>>,
    /// log p(x | canvas) `[N]`, if there was an image.
    pub log_likelihood: Option<Tensor>,
    /// Where the drawing can be gone on with: as it was after its last stroke.
    pub end: State<Tensor>,
}

impl Drawings {
    /// Takes the drawings of a pass off its tape. `x` are the images that they are drawings of, `start` is where they began, for those
    /// of no stroke at all.
    pub fn of(model: &Model, steps: &[Step], x: Option<&Tensor>, start: &State<Tensor>) -> Self {
        let stack = |value: &dyn Fn(&Step) -> Tensor| Tensor::stack(&steps.iter().map(value).collect::<Vec<_>>());
        let each = |value: &dyn Fn(&Step) -> Each<Tensor>| Each {
            onoff: stack(&|s| value(s).onoff),
            layout: stack(&|s| value(s).layout),
            stroke: stack(&|s| value(s).stroke),
        };
        let last = steps.last().expect("at least one stroke");
        let n = last.mask.value().len();
        let pen = last.pen.zip(last.after.canvas.slope).map(|(_, slope)| Pen {
            stroke: stack(&|s| s.pen.expect("every step has a pen or none has").value()),
            canvas: slope.value().reshape(&[n]),
        });
        Drawings {
            z: each(&|s| s.after.z.map(Var::value)),
            pen,
            strokes: stack(&|s| s.stroke_image.value()),
            canvases: stack(&|s| s.after.shown.value()),
            logq: each(&|s| s.logq.map(Var::value)),
            logp: last.logp.map(|_| each(&|s| s.scored().map(Var::value))),
            log_likelihood: x.map(|x| model.log_likelihood(x, steps).value()),
            end: end(steps, start),
        }
    }

    /// N.
    pub fn len(&self) -> usize {
        self.z.onoff.shape()[1]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The strokes of every drawing.
    pub fn counts(&self) -> Vec<usize> {
        sum_over_steps(&self.z.onoff).into_iter().map(|count| count as usize).collect()
    }

    /// log density of every drawing to the law that scored it, or else to the one that chose it: with a model's prior there, log p(z).
    pub fn log_prior(&self) -> Vec<f64> {
        total(self.logp.as_ref().unwrap_or(&self.logq))
    }

    /// log density of every drawing to the law that chose it, where another one scored: log q(z | x) of a recognition.
    pub fn log_posterior(&self) -> Option<Vec<f64>> {
        self.logp.as_ref().map(|_| total(&self.logq))
    }

    /// log p(x, z) − log q(z | x) of every drawing, where an image was drawn and a prior scored.
    pub fn log_weight(&self) -> Option<Vec<f64>> {
        let (likelihood, logq) = (self.log_likelihood.as_ref()?.to_f64(), self.log_posterior()?);
        Some(likelihood.iter().zip(self.log_prior()).zip(logq).map(|((l, p), q)| l + p - q).collect())
    }

    /// Some of the drawings, in the order of `which`; a number may occur again.
    #[track_caller]
    pub fn rows(&self, which: &[usize]) -> Self {
        let (of_steps, of_all) = (|x: &Tensor| pick(x, 1, which), |x: &Tensor| pick(x, 0, which));
        let each = |each: &Each<Tensor>| each.clone().map(|x| of_steps(&x));
        Drawings {
            z: each(&self.z),
            pen: self.pen.as_ref().map(|pen| Pen { stroke: of_steps(&pen.stroke), canvas: of_all(&pen.canvas) }),
            strokes: of_steps(&self.strokes),
            canvases: of_steps(&self.canvases),
            logq: each(&self.logq),
            logp: self.logp.as_ref().map(each),
            log_likelihood: self.log_likelihood.as_ref().map(of_all),
            end: self.end.clone().map(|x| of_all(&x)),
        }
    }
}

/// The state after each drawing's last stroke, or `start` where there is none. Strokes that are off add no ink, so the canvas is that
/// of the last step.
fn end(steps: &[Step], start: &State<Tensor>) -> State<Tensor> {
    let last = steps.last().expect("at least one stroke").after.value();
    let drawn: Vec<usize> = {
        let onoff = Tensor::stack(&steps.iter().map(|s| s.after.z.onoff.value()).collect::<Vec<_>>());
        sum_over_steps(&onoff).into_iter().map(|count| count as usize).collect()
    };
    let after = |first: &Tensor, of: &dyn Fn(&State<Var>) -> Tensor| {
        let all: Vec<Vec<f64>> =
            std::iter::once(first.to_f64()).chain(steps.iter().map(|s| of(&s.after).to_f64())).collect();
        let width = first.len() / drawn.len().max(1);
        let rows = drawn.iter().enumerate().flat_map(|(i, &count)| all[count][i * width..][..width].iter().copied());
        Tensor::from_f64(first.device(), first.shape(), &rows.collect::<Vec<_>>())
    };
    State {
        z: Each {
            onoff: Tensor::full(start.z.onoff.device(), start.z.onoff.shape(), 1.0),
            layout: after(&start.z.layout, &|s| s.z.layout.value()),
            stroke: after(&start.z.stroke, &|s| s.z.stroke.value()),
        },
        memory: Memory {
            layout: after(&start.memory.layout, &|s| s.memory.layout.value()),
            stroke: after(&start.memory.stroke, &|s| s.memory.stroke.value()),
            baseline: None,
        },
        ..last
    }
}

/// `[T, N]` → N sums.
fn sum_over_steps(x: &Tensor) -> Vec<f64> {
    let mut sums = vec![0.0; x.shape()[1]];
    for row in x.to_f64().chunks(sums.len().max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}

fn total(log: &Each<Tensor>) -> Vec<f64> {
    let [onoff, layout, stroke] = [&log.onoff, &log.layout, &log.stroke].map(sum_over_steps);
    onoff.iter().zip(&layout).zip(&stroke).map(|((o, l), s)| o + l + s).collect()
}

/// Some of the entries along dimension `axis`.
#[track_caller]
fn pick(x: &Tensor, axis: usize, which: &[usize]) -> Tensor {
    let (mut shape, values) = (x.shape().to_vec(), x.to_f64());
    let (count, width) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
    let blocks = values.chunks((count * width).max(1));
    let picked = blocks.flat_map(|block| which.iter().flat_map(|&i| block[i * width..][..width].iter().copied()));
    let picked: Vec<f64> = picked.collect();
    shape[axis] = which.len();
    Tensor::from_f64(x.device(), &shape, &picked)
}
