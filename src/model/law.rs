//! Where the latents of a step come from, and what they are scored by. The posterior q and the prior p are two values of one type.

use super::{
    latent::{Density, Each},
    row,
    view::{Family, Input, Net, View},
};
use crate::{Tensor, Var, ops::concat};

/// A law of all latents of a step.
pub(super) enum Law {
    /// A network for each latent: DooD's posterior, and its learned prior.
    Networks {
        nets: Each<Net>,
        family: Family,
        /// Control points of a stroke.
        points: usize,
    },
    /// On/off and layout from one network, the stroke from another: the posterior of AIR.
    Joint { place: Net, shape: Net },
    /// The same at every step and for every image: the prior of AIR and DooD-SP.
    Fixed {
        on: f64,
        /// Mean and standard deviation of every column.
        layout: [[f64; 4]; 2],
        stroke: [Vec<f64>; 2],
    },
    /// A known drawing, `[T, N, …]` each.
    Given(Each<Tensor>),
}

impl Law {
    /// Whether to draw, and where.
    pub fn place<'t, 'a>(&'a self, view: &mut View<'_, 't>) -> (Density<'t, 'a>, Density<'t, 'a>) {
        let eps = view.scene.eps;
        match self {
            Law::Networks { nets, family, .. } => {
                (Density::Bernoulli { p: nets.onoff.of(view), eps }, family.of(nets.layout.of(view), 1))
            }
            Law::Joint { place, .. } => {
                let joint = place.of(view);
                let packed = uncoupled("layout_posterior", view, joint.columns(1, 8));
                (Density::Bernoulli { p: joint.columns(0, 1), eps }, Density::Gaussian { packed, groups: 1 })
            }
            Law::Fixed { on, layout: [mean, std], .. } => {
                let tape = view.scene.tape;
                let p = tape.constant(Tensor::full(tape.device(), &view.get(Input::Onoff).shape(), *on));
                (Density::Bernoulli { p, eps }, Density::Normal { mean, std })
            }
            Law::Given(z) => (given(view, &z.onoff), given(view, &z.layout)),
        }
    }

    /// What, once it is known whether and where.
    pub fn shape<'t, 'a>(&'a self, view: &mut View<'_, 't>) -> Density<'t, 'a> {
        match self {
            Law::Networks { nets, family, points } => family.of(nets.stroke.of(view), *points),
            Law::Joint { shape, .. } => {
                let moments = shape.of(view);
                Density::Gaussian { packed: uncoupled("stroke_posterior", view, moments), groups: 1 }
            }
            Law::Fixed { stroke: [mean, std], .. } => Density::Normal { mean, std },
            Law::Given(z) => given(view, &z.stroke),
        }
    }

    /// Its networks.
    pub fn nets(&self) -> Vec<&Net> {
        match self {
            Law::Networks { nets, .. } => vec![&nets.onoff, &nets.layout, &nets.stroke],
            Law::Joint { place, shape, .. } => vec![place, shape],
            Law::Fixed { .. } | Law::Given(_) => vec![],
        }
    }

    /// What they take in.
    pub fn inputs(&self) -> Vec<Input> {
        self.nets().into_iter().flat_map(|net| net.inputs.iter().copied()).collect()
    }
}

/// Means and standard deviations `[N, 2d]` as one Gaussian without coupling.
fn uncoupled<'t>(name: &str, view: &mut View<'_, 't>, moments: Var<'t>) -> Var<'t> {
    let tape = view.scene.tape;
    let cor = tape.constant(Tensor::zeros(tape.device(), &[moments.shape()[0], 1]));
    view.note(name, concat(&[moments, cor]))
}

fn given<'t, 'a>(view: &View<'_, 't>, all: &Tensor) -> Density<'t, 'a> {
    Density::Given(view.scene.tape.constant(row(all, view.t)))
}
