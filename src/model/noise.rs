//! The random numbers behind a pass, and how the chooser's densities become latents.

use super::{
    Model,
    latent::{Density, Heat},
    row,
};
use crate::{
    Device, Tape, Tensor, Var,
    rng::{Rng, Stream},
};
use std::ops::Range;

/// The random numbers behind one pass, given or drawn; a pass makes as many strokes as they are for.
#[derive(Clone)]
pub struct Noise {
    /// o = \[u < p\]: `[T, N]`, uniform in [0,1).
    pub onoff_u: Tensor,
    /// `[T, N, 4]`, standard normal.
    pub layout_eps: Tensor,
    /// `[T, N, D]`, standard normal.
    pub stroke_eps: Tensor,
    /// Uniform numbers that choose the component of a mixture: `[T, N, 1]` for layouts, `[T, N, J]` for strokes. Only generation needs
    /// them.
    pub picks: Option<[Tensor; 2]>,
}

const ONOFF: Stream = Stream(1);
const LAYOUT: Stream = Stream(2);
const STROKE: Stream = Stream(3);
const LAYOUT_PICK: Stream = Stream(5);
const STROKE_PICK: Stream = Stream(6);

impl Noise {
    /// Fresh numbers to recognise `batch` images with.
    pub fn draw(model: &Model, device: &Device, batch: usize, rng: Rng) -> Self {
        Self::for_strokes(model, device, (model.config.strokes, batch), rng)
    }

    /// Of the numbers to recognise `batch` images with, those of images `rows`: what each of several GPUs needs of a batch.
    pub fn draw_rows(model: &Model, device: &Device, (rows, batch): (Range<usize>, usize), rng: Rng) -> Self {
        let all = Self::draw(model, device, batch, rng);
        if rows == (0..batch) {
            return all;
        }
        let tape = Tape::without_params(device);
        let part = |all: &Tensor| {
            let (t, width) = (all.shape()[0], all.len() / (all.shape()[0] * batch));
            let columns =
                tape.constant(all.reshape(&[t, batch * width])).columns(rows.start * width, rows.len() * width);
            columns.value().reshape(&[&[t, rows.len()], &all.shape()[2..]].concat())
        };
        let [onoff_u, layout_eps, stroke_eps] = [&all.onoff_u, &all.layout_eps, &all.stroke_eps].map(part);
        Noise { onoff_u, layout_eps, stroke_eps, picks: None }
    }

    /// Fresh numbers to recognise `batch` images with, `strokes` strokes each: another number than the model learned with.
    pub fn for_strokes(model: &Model, device: &Device, (strokes, batch): (usize, usize), rng: Rng) -> Self {
        let (t, d) = (strokes, model.config.stroke_dim());
        Noise {
            onoff_u: rng.uniform_tensor(device, ONOFF, &[t, batch]),
            layout_eps: rng.normal_tensor(device, LAYOUT, &[t, batch, 4]),
            stroke_eps: rng.normal_tensor(device, STROKE, &[t, batch, d]),
            picks: None,
        }
    }

    /// Fresh numbers to imagine `batch` drawings with, of at most `strokes` strokes.
    pub fn to_imagine(model: &Model, device: &Device, (strokes, batch): (usize, usize), rng: Rng) -> Self {
        let pick = |stream, mixtures| rng.uniform_tensor(device, stream, &[strokes, batch, mixtures]);
        Noise {
            picks: Some([pick(LAYOUT_PICK, 1), pick(STROKE_PICK, model.config.points)]),
            ..Self::for_strokes(model, device, (strokes, batch), rng)
        }
    }

    fn pick(&self, which: usize, t: usize) -> Option<Tensor> {
        self.picks.as_ref().map(|picks| row(&picks[which], t))
    }

    /// How many strokes they are for.
    pub fn strokes(&self) -> usize {
        self.onoff_u.shape()[0]
    }
}

/// How the chooser's densities become latents.
pub(super) enum Choice<'a> {
    /// They are drawn with these numbers.
    Sampled(&'a Noise, Heat),
    /// The same, but all drawings go on.
    Held(&'a Noise),
    /// They are known: [`Law::Given`](super::law::Law::Given) is the chooser.
    Known,
}

impl Choice<'_> {
    /// o of step t; `mask` is that of the step before.
    pub fn onoff<'t>(&self, law: &Density<'t, '_>, t: usize, mask: Var<'t>) -> Var<'t> {
        match self {
            Choice::Held(_) => mask,
            _ => self.sample(law, mask, |noise, _| (row(&noise.onoff_u, t), None, &[])),
        }
    }

    /// l of step t.
    pub fn layout<'t>(&self, law: &Density<'t, '_>, t: usize, mask: Var<'t>) -> Var<'t> {
        self.sample(law, mask, |noise, heat| (row(&noise.layout_eps, t), noise.pick(0, t), &heat.layout))
    }

    /// s of step t.
    pub fn stroke<'t>(&self, law: &Density<'t, '_>, t: usize, mask: Var<'t>) -> Var<'t> {
        self.sample(law, mask, |noise, heat| {
            (row(&noise.stroke_eps, t), noise.pick(1, t), std::slice::from_ref(&heat.stroke))
        })
    }

    fn sample<'t>(
        &self,
        law: &Density<'t, '_>,
        mask: Var<'t>,
        draw: impl for<'n> Fn(&'n Noise, &'n Heat) -> (Tensor, Option<Tensor>, &'n [f64]),
    ) -> Var<'t> {
        match (law, self) {
            (Density::Given(z), _) => *z,
            (_, Choice::Known) => panic!("only a given drawing is known"),
            (law, Choice::Sampled(noise, heat)) => {
                let (main, pick, heat) = draw(noise, heat);
                law.sample(&main, pick.as_ref(), mask, heat)
            }
            (law, Choice::Held(noise)) => {
                let (main, pick, heat) = draw(noise, &Heat::ONE);
                law.sample(&main, pick.as_ref(), mask, heat)
            }
        }
    }
}
