//! Many drawings at once that have left their tape: what every task and every picture starts from.

use super::drawing::{Densities, Drawing, Frame, Stroke};
use crate::{
    Tensor,
    model::{Each, Model, State, Step},
};

/// Drawings of one pass, on their device; T strokes at most, N drawings.
pub struct Drawings {
    frame: Frame,
    curves: bool,
    /// o `[T, N]`, l `[T, N, 4]`, s `[T, N, D]`.
    pub z: Each<Tensor>,
    /// Pen width σ (in its window, or on the canvas where points are placed) and slope ω0 `[T, N, 2]`; none in AIR.
    pub pen: Option<Tensor>,
    /// log density of each decision to the law that chose, `[T, N]` each.
    pub log_chosen: Each<Tensor>,
    /// log density of each decision to the law that scored, where there was one.
    pub log_scored: Option<Each<Tensor>>,
    /// log p(x | canvas) of each, where there are images x.
    pub log_likelihood: Option<Vec<f64>>,
    /// Where the drawings stood after each stroke.
    pub states: Vec<State<Tensor>>,
}

/// A drawing on the host, with its pictures.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Its strokes.
    pub drawing: Drawing,
    /// The canvas `[H, W]` after each stroke; where nothing was drawn, the canvas that is left.
    pub canvases: Vec<Vec<f32>>,
}

impl Drawn {
    /// The finished canvas `[H, W]`.
    pub fn canvas(&self) -> &[f32] {
        self.canvases.last().expect("at least one canvas")
    }
}

impl Drawn {
    /// This one, gone on with by the strokes of `more`. The decision to stop is that of `more`.
    pub fn then(&self, more: Drawn) -> Drawn {
        let mut canvases = self.canvases[..self.drawing.strokes.len()].to_vec();
        if canvases.is_empty() || !more.drawing.strokes.is_empty() {
            canvases.extend(more.canvases);
        }
        let before: Option<f64> = self.drawing.strokes.iter().map(|s| s.log_prior.as_ref().map(Densities::sum)).sum();
        let log_prior = before.zip(more.drawing.log_prior).map(|(before, more)| before + more);
        let strokes = [&self.drawing.strokes[..], &more.drawing.strokes].concat();
        let canvas_slope = more.drawing.canvas_slope.or(self.drawing.canvas_slope);
        Drawn { drawing: Drawing { strokes, canvas_slope, log_prior, ..Drawing::default() }, canvases }
    }
}

impl Drawings {
    /// The drawings of a pass, and their log p(x | canvas) where there are images.
    pub fn of(model: &Model, log_likelihood: Option<&[f64]>, steps: &[Step]) -> Self {
        let over = |value: &dyn Fn(&Step) -> Tensor| {
            let n = steps[0].mask.value().len();
            let all: Vec<Tensor> = steps
                .iter()
                .map(|step| {
                    let value = value(step);
                    if value.len() == n { value.reshape(&[n]) } else { value }
                })
                .collect();
            Tensor::stack(&all)
        };
        let config = &model.config;
        Drawings {
            frame: Frame { placement: config.placement, side: config.image },
            curves: model.draws_curves(),
            z: Each {
                onoff: over(&|s| s.after.z.onoff.value()),
                layout: over(&|s| s.after.z.layout.value()),
                stroke: over(&|s| s.after.z.stroke.value()),
            },
            pen: steps[0].pen.is_some().then(|| over(&|s| s.pen.expect("as the first").value())),
            log_chosen: Each {
                onoff: over(&|s| s.logq.onoff.value()),
                layout: over(&|s| s.logq.layout.value()),
                stroke: over(&|s| s.logq.stroke.value()),
            },
            log_scored: steps[0].logp.is_some().then(|| Each {
                onoff: over(&|s| s.scored().onoff.value()),
                layout: over(&|s| s.scored().layout.value()),
                stroke: over(&|s| s.scored().stroke.value()),
            }),
            log_likelihood: log_likelihood.map(<[f64]>::to_vec),
            states: steps.iter().map(|step| step.after.value()).collect(),
        }
    }

    /// How many there are (N).
    pub fn len(&self) -> usize {
        self.z.onoff.shape()[1]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Strokes of each drawing `[N]`.
    pub fn strokes(&self) -> Vec<usize> {
        let (n, onoff) = (self.len(), self.z.onoff.to_f64());
        (0..n).map(|i| onoff.iter().skip(i).step_by(n).filter(|&&on| on == 1.0).count()).collect()
    }

    /// log p(z) and log q(z | x) of drawings that one law chose and another scored, `[N]` in nats; log p(z) alone where one law did it
    /// all.
    pub fn log_laws(&self) -> (Vec<f64>, Option<Vec<f64>>) {
        let n = self.len();
        let total = |each: &Each<Tensor>| {
            let mut sums = vec![0.0; n];
            for values in each.clone().to_array() {
                values.to_f64().iter().enumerate().for_each(|(i, value)| sums[i % n] += value);
            }
            sums
        };
        match &self.log_scored {
            Some(scored) => (total(scored), Some(total(&self.log_chosen))),
            None => (total(&self.log_chosen), None),
        }
    }

    /// Where the drawings stood after their last strokes, each with its pen still down: from here they can be gone on with. `blank` is
    /// where those begin that have no stroke.
    pub fn ends(&self, blank: &State<Tensor>) -> State<Tensor> {
        let strokes = self.strokes();
        let last = self.states.last().expect("at least one step");
        // Nothing of a canvas changes after the last stroke, and before the first there is none.
        let slope = last.canvas.slope.clone();
        let at = |of: &dyn Fn(&State<Tensor>) -> &Tensor| {
            let choices: Vec<Tensor> =
                std::iter::once(of(blank).clone()).chain(self.states.iter().map(|s| of(s).clone())).collect();
            select(&choices, &strokes)
        };
        let ink = self.states.iter().map(|s| s.canvas.ink.clone().expect("ink after a stroke")).collect::<Vec<_>>();
        let ink = [vec![zeros_like(&ink[0])], ink].concat();
        State {
            z: Each { onoff: at(&|s| &s.z.onoff), layout: at(&|s| &s.z.layout), stroke: at(&|s| &s.z.stroke) },
            memory: crate::model::Memory {
                layout: at(&|s| &s.memory.layout),
                stroke: at(&|s| &s.memory.stroke),
                baseline: None,
            },
            canvas: crate::model::Canvas { ink: Some(select(&ink, &strokes)), slope },
            shown: at(&|s| &s.shown),
        }
    }

    /// All of them on the host.
    pub fn to_host(&self) -> Vec<Drawn> {
        let n = self.len();
        let (log_prior, log_posterior) = self.log_laws();
        let rows = |tensor: &Tensor| (tensor.to_f64(), tensor.len() / (self.states.len() * n));
        let z = self.z.clone().map(|tensor| rows(&tensor));
        let pen = self.pen.as_ref().map(rows);
        let densities = |each: &Each<Tensor>| each.clone().map(|values| values.to_f64());
        let (chosen, scored) = (densities(&self.log_chosen), self.log_scored.as_ref().map(densities));
        let slope = self.states.last().and_then(|state| state.canvas.slope.as_ref()).map(|slope| slope.to_f64());
        let canvases: Vec<Vec<f32>> = self.states.iter().map(|state| state.shown.to_f32()).collect();
        let of =
            |(values, width): &(Vec<f64>, usize), t: usize, i: usize| values[(t * n + i) * width..][..*width].to_vec();
        let log = |each: &Each<Vec<f64>>, t: usize, i: usize| Densities {
            onoff: each.onoff[t * n + i],
            layout: each.layout[t * n + i],
            stroke: each.stroke[t * n + i],
        };
        let strokes = self.strokes();
        let one = |i: usize| {
            let stroke = |t: usize| {
                let layout: [f64; 4] = of(&z.layout, t, i).try_into().expect("a layout has four numbers");
                let (latent, pen) = (of(&z.stroke, t, i), pen.as_ref().map(|pen| of(pen, t, i)));
                let points = if self.curves { self.frame.to_canvas(layout, latent.as_chunks().0) } else { vec![] };
                let width = pen.as_ref().filter(|_| self.curves).map(|pen| self.frame.width_on_canvas(layout, pen[0]));
                Stroke {
                    points,
                    width,
                    slope: pen.map(|pen| pen[1]),
                    layout: Some(layout),
                    latent,
                    log_prior: Some(log(scored.as_ref().unwrap_or(&chosen), t, i)),
                    log_posterior: scored.is_some().then(|| log(&chosen, t, i)),
                }
            };
            let size = canvases[0].len() / n;
            let canvas = |t: usize| canvases[t][i * size..][..size].to_vec();
            Drawn {
                drawing: Drawing {
                    strokes: (0..strokes[i]).map(stroke).collect(),
                    canvas_slope: slope.as_ref().map(|slope| slope[i]),
                    log_likelihood: self.log_likelihood.as_ref().map(|values| values[i]),
                    log_prior: Some(log_prior[i]),
                    log_posterior: log_posterior.as_ref().map(|values| values[i]),
                },
                canvases: (0..strokes[i].max(1)).map(canvas).collect(),
            }
        };
        (0..n).map(one).collect()
    }
}

fn zeros_like(tensor: &Tensor) -> Tensor {
    Tensor::zeros(tensor.device(), tensor.shape())
}

/// Row i of the `which[i]`-th of `choices`, which all have the same shape `[N, …]`.
fn select(choices: &[Tensor], which: &[usize]) -> Tensor {
    let shape = choices[0].shape();
    let width = choices[0].len() / which.len();
    let values: Vec<Vec<f64>> = choices.iter().map(Tensor::to_f64).collect();
    let rows = which.iter().enumerate().flat_map(|(i, &choice)| values[choice][i * width..][..width].iter().copied());
    Tensor::from_f64(choices[0].device(), shape, &rows.collect::<Vec<_>>())
}
