//! Finished drawings on the host: their strokes as numbers, and their pictures.

use super::drawing::{Densities, Drawing, Frame, Stroke};
use crate::{
    Tensor,
    model::{Drawings, Each, Model},
};

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

    /// All drawings of a pass.
    pub fn all(model: &Model, drawings: &Drawings) -> Vec<Drawn> {
        let (n, steps) = (drawings.len(), drawings.z.onoff.shape()[0]);
        let frame = Frame::of(model);
        // Values `[T, N, …]` by step and drawing.
        let read = |tensor: &Tensor| {
            let (values, width) = (tensor.to_f64(), tensor.len() / (steps * n));
            move |t: usize, i: usize| values[(t * n + i) * width..][..width].to_vec()
        };
        let densities = |each: &Each<Tensor>| {
            let Each { onoff, layout, stroke } = each.clone().map(|values| values.to_f64());
            move |t: usize, i: usize| {
                let at = t * n + i;
                Densities { onoff: onoff[at], layout: layout[at], stroke: stroke[at] }
            }
        };
        let (layouts, latents) = (read(&drawings.z.layout), read(&drawings.z.stroke));
        let pens = drawings.pen.as_ref().map(|pen| read(&pen.stroke));
        let slopes = drawings.pen.as_ref().map(|pen| pen.canvas.to_f64());
        let prior = densities(drawings.logp.as_ref().unwrap_or(&drawings.logq));
        let posterior = drawings.logp.as_ref().map(|_| densities(&drawings.logq));
        let likelihood = drawings.log_likelihood.as_ref().map(Tensor::to_f64);
        let (log_prior, log_posterior, counts) = (drawings.log_prior(), drawings.log_posterior(), drawings.counts());
        let (canvases, size) = (drawings.canvases.to_f32(), drawings.canvases.len() / (steps * n));
        let stroke = |t: usize, i: usize| {
            let layout: [f64; 4] = layouts(t, i).try_into().expect("a layout has four numbers");
            let (latent, pen) = (latents(t, i), pens.as_ref().map(|pens| pens(t, i)));
            let curve = model.draws_curves();
            Stroke {
                points: if curve { frame.to_canvas(layout, latent.as_chunks().0) } else { vec![] },
                width: pen.as_ref().filter(|_| curve).map(|pen| frame.width_on_canvas(layout, pen[0])),
                slope: pen.map(|pen| pen[1]),
                layout: Some(layout),
                latent,
                log_prior: Some(prior(t, i)),
                log_posterior: posterior.as_ref().map(|posterior| posterior(t, i)),
            }
        };
        let one = |i: usize| Drawn {
            drawing: Drawing {
                strokes: (0..counts[i]).map(|t| stroke(t, i)).collect(),
                canvas_slope: slopes.as_ref().map(|slopes| slopes[i]),
                log_likelihood: likelihood.as_ref().map(|values| values[i]),
                log_prior: Some(log_prior[i]),
                log_posterior: log_posterior.as_ref().map(|values| values[i]),
            },
            canvases: (0..counts[i].max(1)).map(|t| canvases[(t * n + i) * size..][..size].to_vec()).collect(),
        };
        (0..n).map(one).collect()
    }
}
