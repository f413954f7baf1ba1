//! What the networks begin with (section 2.6).

use super::{
    config::{Choices, Config, Posterior, Prior},
    draw::Pens,
    latent::Each,
    law::Law,
    ranges::thinnest,
    view::{Family, Input, Net, Recall},
};
use crate::{
    ParamsBuilder,
    nn::{
        Cnn, Gru, Init,
        LastLayer::{self, Biases, Random},
        Mlp,
    },
    ops::{Placement, Squash},
};

/// What the initial values depend on.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Key of the run.
    pub seed: u64,
    /// Begin by drawing almost every stroke: on/off bias 10 (p = 0.99995) instead of 2 (0.881). AIR does not look at it: all its values
    /// are random.
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

/// Declares the parts of a model, in the order of checkpoints.
pub(super) struct Parts<'a> {
    pub p: &'a mut ParamsBuilder,
    pub c: &'a Config,
    pub choices: Choices,
    pub start: Start,
}

impl Parts<'_> {
    fn init(&self) -> Init {
        Init { seed: self.start.seed }
    }

    fn width(&self, inputs: &[Input]) -> usize {
        inputs.iter().map(|input| input.width(self.c)).sum()
    }

    pub fn cnn(&mut self, name: &str) -> Cnn {
        let (init, c) = (self.init(), self.c);
        Cnn::new(self.p, init, name, c.seen(), [c.conv1, c.conv2], c.features)
    }

    pub fn recall(&mut self, name: &str, inputs: Vec<Input>) -> Recall {
        let (init, width) = (self.init(), self.width(&inputs));
        Recall { inputs, gru: Gru::new(self.p, init, name, width, self.c.hidden) }
    }

    pub fn mlp(&mut self, name: &str, inputs: usize, hidden: (usize, usize), last: LastLayer) -> Mlp {
        let init = self.init();
        Mlp::new(self.p, init, name, inputs, hidden, last)
    }

    fn net(&mut self, name: &'static str, inputs: Vec<Input>, last: LastLayer, ranges: Squash) -> Net {
        let mlp = self.mlp(name, self.width(&inputs), (self.c.hidden, 2), last);
        Net { name, inputs, mlp, ranges }
    }

    /// The posterior, and the networks that choose the pen.
    pub fn posterior(&mut self) -> (Law, Option<Pens>) {
        match self.choices.posterior {
            Posterior::Apart => self.posterior_apart(),
            Posterior::Joint => (self.posterior_joint(), None),
        }
    }

    fn posterior_apart(&mut self) -> (Law, Option<Pens>) {
        let (c, choices) = (self.c, self.choices);
        let faint = self.start.faint && c.placement == Placement::Warp;
        let draws_on = [if self.start.eager { 10.0 } else { 2.0 }];
        let pen = if faint { [-4.0, 4.0] } else { [-2.0, 2.0] };
        let slope = [if faint { 4.0 } else { -1.0 }];
        self.p.group(2);
        let onoff = self.net("onoff_posterior", choices.onoff_posterior(), Biases(&draws_on), Squash::onoff());
        self.p.group(0);
        let layout = self.net("layout_posterior", choices.layout_posterior(), Biases(&LAYOUT), Squash::layout());
        let inputs = choices.layout_posterior();
        let canvas_slope = self.net("canvas_slope", inputs, Biases(&slope), Squash::canvas_slope());
        let (random, range) = (Random(5 * c.points), Squash::stroke(c.points));
        let stroke = self.net("stroke_posterior", choices.stroke_posterior(), random, range);
        let pen = self.net("pen", choices.pen(), Biases(&pen), Squash::pen(thinnest(c.placement)));
        let nets = Each { onoff, layout, stroke };
        (Law::Networks { nets, family: Family::Gaussian, points: c.points }, Some(Pens { pen, canvas_slope }))
    }

    pub fn prior(&mut self) -> Law {
        match self.choices.prior {
            Prior::Learned => self.learned_prior(),
            Prior::Fixed(mean, std) => {
                let d = self.c.stroke_dim();
                Law::Fixed { on: 0.5, layout: FIXED_LAYOUT, stroke: [vec![mean; d], vec![std; d]] }
            }
        }
    }

    fn learned_prior(&mut self) -> Law {
        let (c, choices) = (self.c, self.choices);
        let k = c.components;
        let onoff = self.net("onoff_prior", choices.onoff_prior(), Biases(&[1.0]), Squash::onoff());
        let biases = layout_prior(c, self.init());
        let layout = self.net("layout_prior", choices.layout_prior(), Biases(&biases), Squash::layout_prior(k));
        let biases = stroke_prior(c, self.init());
        let range = Squash::stroke_prior(c.points, k);
        let stroke = self.net("stroke_prior", choices.stroke_prior(), Biases(&biases), range);
        let nets = Each { onoff, layout, stroke };
        Law::Networks { nets, family: Family::Mixture { components: k }, points: c.points }
    }

    /// AIR's networks begin with random values throughout.
    fn posterior_joint(&mut self) -> Law {
        let (code, choices) = (self.c.code, self.choices);
        let inputs = choices.place_posterior();
        let place = self.net("onoff_layout_posterior", inputs, Random(9), Squash::air_place());
        let inputs = choices.code_posterior();
        let shape = self.net("stroke_posterior", inputs, Random(2 * code), Squash::air_code(code));
        Law::Joint { place, shape }
    }
}

/// Mean and standard deviation of a layout where the prior is fixed.
const FIXED_LAYOUT: [[f64; 4]; 2] = [[0.0, 0.0, 0.8, 0.0], [0.2, 0.2, 0.2, 0.4]];

/// Layout posterior: shift 0, scale 0.9981, rotation 0, stds 0.018, no coupling.
const LAYOUT: [f64; 9] = [0.0, 0.0, 6.0, 0.0, -4.0, -4.0, -4.0, -4.0, 0.0];

/// Spread of the initial component means, so that components are not all alike.
const MEAN_NOISE: f64 = 0.001;

/// Logits 4, −4, …; means (0, 0, 4, 0) of every component, noisy but for the first; stds −4; cors 0.
fn layout_prior(c: &Config, init: Init) -> Vec<f64> {
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
fn stroke_prior(c: &Config, init: Init) -> Vec<f64> {
    let (j, m) = (c.points, c.points * c.components);
    let mut noise = init.normal("stroke_prior.means", MEAN_NOISE);
    let mut biases = vec![4.0; j];
    biases.resize(m, -4.0);
    biases.extend((0..2 * m).map(|i| if i < 2 * j { 0.0 } else { noise(i) }));
    biases.resize(5 * m, -1.386);
    biases.resize(6 * m, 0.0);
    biases
}
