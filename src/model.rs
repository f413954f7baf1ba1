//! The model in the paper's words, and its relatives.
//!
//! The posterior q and the prior p are two values of one type, and one loop draws (`model/draw.rs`): [`Model::recognise`] (q chooses, p
//! scores), [`Model::imagine`] (p chooses) and [`Model::score`] (a known drawing, scored by p) are calls of it. [`Variant::choices`]
//! is the table of what the six models differ in, `model/view.rs` has what each network takes in. [`objective`] is what training
//! minimises.

mod baseline;
pub mod config;
mod draw;
mod drawings;
mod eyes;
mod init;
mod inputs;
mod latent;
mod law;
mod noise;
pub mod objective;
mod ranges;
mod renderer;
mod state;
mod view;

pub use config::{Config, Stop, Variant};
pub use draw::{Pass, Scorer, Step};
pub use drawings::Drawings;
pub use eyes::{Call, Dropout};
pub use init::Start;
pub use latent::{Each, Heat};
pub use noise::Noise;
pub use state::{Canvas, Memory, Pen, State};
pub use view::Moved;

use crate::{Device, ParamId, Params, ParamsBuilder, Result, Tensor, Var, nn::LastLayer, ops::RenderSettings};
use baseline::Baseline;
use config::{Decoder, Posterior, Sight};
use draw::Pens;
use eyes::Eyes;
use init::Parts;
use law::Law;
use renderer::Renderer;
use view::Recall;

/// Learning-rate groups of the parameters. Section 9 trains the on/off posterior at the model's rate; the reference meant to give
/// it a rate of its own. The likelihood's scale is no network and has far to go.
pub const GROUPS: [&str; 4] = ["model", "baseline", "onoff", "scale"];

/// All networks of a model: parameter ids and sizes, no values (those are in a [`Params`]).
pub struct Model {
    /// Sizes and switches.
    pub config: Config,
    eyes: Eyes,
    layout_memory: Recall,
    stroke_memory: Recall,
    posterior: Law,
    /// Of the posterior's side, too: with what it draws.
    pens: Option<Pens>,
    prior: Law,
    renderer: Renderer,
    /// Where the decision to stop needs one.
    baseline: Option<Baseline>,
    raw_scale: ParamId,
}

impl Model {
    /// Declares every parameter, in the order and under the names of checkpoints, with the initial values of section 2.6.
    ///
    /// # Errors
    /// Sizes that cannot be.
    pub fn new(config: &Config, start: Start, device: &Device) -> Result<(Self, Params)> {
        let mut builder = ParamsBuilder::new();
        let model = Self::declare(config, start, &mut builder)?;
        Ok((model, builder.build(device)))
    }

    /// Whether strokes are Bézier curves; otherwise a network makes their images.
    pub fn draws_curves(&self) -> bool {
        self.config.variant.choices().decoder == Decoder::Spline
    }

    /// Whether strokes are drawn with a pen that has a width and slopes; otherwise they are shown as they are (AIR).
    pub fn has_pens(&self) -> bool {
        self.pens.is_some()
    }

    /// The images `[N, H, W]` of single strokes with layouts `[N, 4]` and, where the model has them, pens `[N, 2]`; 0 where `on` is.
    pub(crate) fn stroke<'t>(&self, stroke: Var<'t>, layout: Var<'t>, pen: Option<Var<'t>>, on: &Tensor) -> Var<'t> {
        self.renderer.stroke(stroke, (layout, layout.affine()), pen, on)
    }

    /// As [`Model::new`], leaving the builder to the caller.
    pub(crate) fn declare(config: &Config, start: Start, p: &mut ParamsBuilder) -> Result<Self> {
        config.check()?;
        let (c, choices) = (config, config.variant.choices());
        let mut parts = Parts { p, c, start, choices };
        let eyes = Eyes {
            image_cnn: parts.cnn("image_cnn"),
            residual_cnn: (choices.sight != Sight::Target).then(|| parts.cnn("residual_cnn")),
            see_the_work: choices.sight != Sight::Target,
            dropout: c.dropout,
            square: c.image / c.seen(),
        };
        let layout_memory = match choices.posterior {
            Posterior::Apart => parts.recall("layout_gru", choices.layout_memory()),
            Posterior::Joint => parts.recall("onoff_layout_gru", choices.layout_memory()),
        };
        let stroke_memory = parts.recall("stroke_gru", choices.stroke_memory());
        let (posterior, pens) = parts.posterior();
        let prior = parts.prior();
        let decoder = (choices.decoder == Decoder::Neural)
            .then(|| parts.mlp("decoder", c.stroke_dim(), (c.hidden, 2), LastLayer::Random(c.image * c.image)));
        let settings =
            RenderSettings { placement: c.placement, side: c.image, samples: c.samples, norm_floor: c.norm_floor };
        parts.p.group(1);
        let baseline = (c.stop == Stop::Nvil).then(|| {
            let memory = parts.recall("baseline_gru", choices.baseline());
            let sizes = (c.baseline_hidden, c.baseline_layers);
            Baseline { memory, regressor: parts.mlp("baseline", c.hidden, sizes, LastLayer::Random(1)) }
        });
        parts.p.group(3);
        let raw_scale = parts.p.scope("likelihood", |p| p.add("raw_scale", &[c.image, c.image], |_| 0.0));
        let renderer = Renderer { settings, decoder };
        Ok(Model {
            config: c.clone(),
            eyes,
            layout_memory,
            stroke_memory,
            posterior,
            pens,
            prior,
            renderer,
            baseline,
            raw_scale,
        })
    }
}

/// Row t of `[T, N, …]`.
fn row(all: &Tensor, t: usize) -> Tensor {
    all.rows(t, 1).reshape(&all.shape()[1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Placement;

    /// The numbers of values in section 15.1.
    #[test]
    fn every_model_has_the_published_number_of_parameters() {
        let published = [21_138_668, 20_265_899, 11_485_964, 21_849_776, 11_320_710, 20_055_142];
        for (variant, published) in Variant::ALL.into_iter().zip(published) {
            let config = Config::paper(Placement::Warp).with_variant(variant);
            let mut builder = ParamsBuilder::blank();
            Model::declare(&config, Start::new(0), &mut builder).unwrap();
            let values: usize = builder.specs().iter().map(|spec| spec.range().len()).sum();
            assert_eq!(values, published, "{variant}");
        }
    }
}
