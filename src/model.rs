//! The model in the paper's words: its networks ([`Model`]), what it infers from an image ([`recognition`]), and the quantity that
//! training minimises ([`objective`]).

pub mod config;
pub mod objective;
pub mod recognition;

pub use config::{Config, Variant};

use crate::{
    Device, ParamId, Params, ParamsBuilder, Result,
    nn::{Cnn, Gru, Init, LastLayer, Mlp},
    ops::Placement,
};

/// Learning-rate groups of the parameters. Section 9 trains the on/off posterior at the model's rate; the reference meant to give
/// it one of its own.
pub const GROUPS: [&str; 3] = ["model", "baseline", "onoff"];

/// All networks of DooD: parameter ids and sizes, no values (those are in a [`Params`]).
pub struct Model {
    /// Sizes and switches.
    pub config: Config,
    image_cnn: Cnn,
    residual_cnn: Cnn,
    layout_gru: Gru,
    stroke_gru: Gru,
    onoff_posterior: Mlp,
    layout_posterior: Mlp,
    canvas_slope: Mlp,
    stroke_posterior: Mlp,
    pen: Mlp,
    onoff_prior: Mlp,
    layout_prior: Mlp,
    stroke_prior: Mlp,
    baseline_gru: Gru,
    baseline: Mlp,
    raw_scale: ParamId,
}

/// What the initial values depend on (section 2.6).
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Key of the run.
    pub seed: u64,
    /// Begin by drawing almost every stroke: on/off bias 10 (p = 0.99995) instead of 2 (0.881).
    pub eager: bool,
    /// With warp placement, begin with thin, faint strokes: pen biases (−4, 4) instead of (−2, 2), canvas slope 4 instead of −1.
    pub faint: bool,
}

impl Start {
    /// As the reference starts on most sets.
    pub fn new(seed: u64) -> Self {
        Start { seed, eager: false, faint: false }
    }

    /// As the reference starts on Omniglot.
    pub fn omniglot(seed: u64) -> Self {
        Start { seed, eager: true, faint: true }
    }
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

    /// As [`Model::new`], leaving the builder to the caller.
    pub(crate) fn declare(config: &Config, start: Start, p: &mut ParamsBuilder) -> Result<Self> {
        config.check()?;
        let c = config;
        let init = Init { seed: start.seed };
        let (f, h) = (c.features, c.hidden);
        let cnn = |p: &mut ParamsBuilder, name| Cnn::new(p, init, name, c.image, [c.conv1, c.conv2], f);
        let (image_cnn, residual_cnn) = (cnn(p, "image_cnn"), cnn(p, "residual_cnn"));
        let layout_gru = Gru::new(p, init, "layout_gru", 4 + f, h);
        let stroke_gru = Gru::new(p, init, "stroke_gru", c.stroke_dim() + f, h);
        let faint = start.faint && c.placement == Placement::Warp;
        let mlp = |p: &mut ParamsBuilder, name, inputs, last| Mlp::new(p, init, name, inputs, (h, 2), last);
        let onoff_bias = [if start.eager { 10.0 } else { 2.0 }];
        let layout_bias = [0.0, 0.0, 6.0, 0.0, -4.0, -4.0, -4.0, -4.0, 0.0];
        let pen_bias = if faint { [-4.0, 4.0] } else { [-2.0, 2.0] };
        let seen = h + f + f + 1;
        Ok(Model {
            config: c.clone(),
            image_cnn,
            residual_cnn,
            layout_gru,
            stroke_gru,
            onoff_posterior: {
                p.group(2);
                mlp(p, "onoff_posterior", f + 1, LastLayer::Biases(&onoff_bias))
            },
            layout_posterior: {
                p.group(0);
                mlp(p, "layout_posterior", seen, LastLayer::Biases(&layout_bias))
            },
            canvas_slope: mlp(p, "canvas_slope", seen, LastLayer::Biases(&[if faint { 4.0 } else { -1.0 }])),
            stroke_posterior: mlp(p, "stroke_posterior", h + 2 * f, LastLayer::Random(5 * c.points)),
            pen: mlp(p, "pen", h + 2 * f + 4, LastLayer::Biases(&pen_bias)),
            onoff_prior: mlp(p, "onoff_prior", f, LastLayer::Biases(&[1.0])),
            layout_prior: mlp(p, "layout_prior", h, LastLayer::Biases(&layout_prior_biases(c, init))),
            stroke_prior: mlp(p, "stroke_prior", h + 4 + f, LastLayer::Biases(&stroke_prior_biases(c, init))),
            baseline_gru: {
                p.group(1);
                Gru::new(p, init, "baseline_gru", f + 1 + 4 + c.stroke_dim() + f, h)
            },
            baseline: Mlp::new(p, init, "baseline", h, (c.baseline_hidden, c.baseline_layers), LastLayer::Random(1)),
            raw_scale: {
                p.group(0);
                p.scope("likelihood", |p| p.add("raw_scale", &[c.image, c.image], |_| 0.0))
            },
        })
    }
}

/// Spread of the initial component means, so that components are not all alike.
const MEAN_NOISE: f64 = 0.001;

/// Logits 4, −4, …; means (0, 0, 4, 0) of every component, noisy but for the first; stds −4; cors 0.
fn layout_prior_biases(c: &Config, init: Init) -> Vec<f64> {
    let k = c.components;
    let mut noise = init.normal("layout_prior.means", MEAN_NOISE);
    let mut biases = vec![4.0];
    biases.resize(k, -4.0);
    biases.extend((0..4 * k).map(|i| if i % 4 == 2 { 4.0 } else { 0.0 } + if i < 4 { 0.0 } else { noise(i) }));
    biases.resize(9 * k, -4.0);
    biases.resize(10 * k, 0.0);
    biases
}

/// Logits 4 for the first J of all, then −4; means 0, noisy but for the first 2J; stds −1.386; cors 0.
fn stroke_prior_biases(c: &Config, init: Init) -> Vec<f64> {
    let (j, m) = (c.points, c.points * c.components);
    let mut noise = init.normal("stroke_prior.means", MEAN_NOISE);
    let mut biases = vec![4.0; j];
    biases.resize(m, -4.0);
    biases.extend((0..2 * m).map(|i| if i < 2 * j { 0.0 } else { noise(i) }));
    biases.resize(5 * m, -1.386);
    biases.resize(6 * m, 0.0);
    biases
}
