//! Sizes and switches of a model. Every size of the paper is a number here; [`Config::paper`] is one preset.

use crate::{
    Error, Result,
    ops::{Likelihood, Placement},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Which model of the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// DooD.
    #[default]
    #[serde(alias = "full")]
    Dood,
    /// DooD-SP: a fixed instead of a sequential prior.
    Sp,
    /// DooD-EG: without execution guidance (no canvas, no residual).
    Eg,
    /// DooD-δR: a decoder network instead of the spline renderer.
    Dr,
    /// Attend, Infer, Repeat.
    Air,
    /// Difference-AIR.
    Dair,
}

/// What the networks see of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Target, canvas and residual.
    Guided,
    /// The target alone.
    Target,
    /// The residual alone.
    Residual,
}

/// How the posterior is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posterior {
    /// A network for each latent; strokes are control points.
    Apart,
    /// On/off and layout from one network; strokes are appearance codes (AIR).
    Joint,
}

/// How the prior is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prior {
    /// A network for each latent.
    Learned,
    /// The same at every step, with the mean and standard deviation of every number of a stroke.
    Fixed(f64, f64),
}

/// What makes the image of a stroke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// A Bézier curve.
    Spline,
    /// A network.
    Neural,
}

/// How ink is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Strokes and canvas go through tanh, with slopes that a network chooses together with the pen.
    Tanh,
    /// The sum of the strokes as it is.
    Plain,
}

/// How the decision to stop is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// It is sampled, and learns from a score-function term centred by a baseline network (section 8).
    #[default]
    Nvil,
    /// All strokes are drawn, and the bound is averaged over where the drawing may end ([`prefix_bound`](crate::ops::prefix_bound)):
    /// there is no baseline network.
    Exact,
}

/// What distinguishes the models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choices {
    /// What the networks see of the work.
    pub sight: Sight,
    /// How the posterior is made.
    pub posterior: Posterior,
    /// How the prior is made.
    pub prior: Prior,
    /// What makes the image of a stroke.
    pub decoder: Decoder,
    /// How ink is shown.
    pub tone: Tone,
}

impl Variant {
    /// All of them.
    pub const ALL: [Variant; 6] = [Variant::Dood, Variant::Sp, Variant::Eg, Variant::Dr, Variant::Air, Variant::Dair];

    /// Section 12 as a table. A model of one's own is a row more, or one choice more.
    #[rustfmt::skip]
    pub const fn choices(self) -> Choices {
        use {Decoder::*, Posterior::*, Prior::*, Tone::*};
        let (sight, posterior, prior, decoder, tone) = match self {
            Variant::Dood => (Sight::Guided,   Apart, Learned,         Spline, Tanh),
            Variant::Sp   => (Sight::Guided,   Apart, Fixed(0.5, 0.2), Spline, Tanh),
            Variant::Eg   => (Sight::Target,   Apart, Learned,         Spline, Tanh),
            Variant::Dr   => (Sight::Guided,   Apart, Learned,         Neural, Tanh),
            Variant::Air  => (Sight::Target,   Joint, Fixed(0.0, 1.0), Neural, Plain),
            Variant::Dair => (Sight::Residual, Joint, Fixed(0.0, 1.0), Neural, Plain),
        };
        Choices { sight, posterior, prior, decoder, tone }
    }

    const fn word(self) -> &'static str {
        match self {
            Variant::Dood => "dood",
            Variant::Sp => "sp",
            Variant::Eg => "eg",
            Variant::Dr => "dr",
            Variant::Air => "air",
            Variant::Dair => "dair",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let found = Variant::ALL.into_iter().find(|variant| variant.word() == word);
        found.ok_or_else(|| {
            Error::Usage(format!(
                "there is no model {word:?}: choose dood, sp (fixed prior), eg (no guidance), dr (no renderer), air or dair"
            ))
        })
    }
}

/// Everything that fixes a model's parameters and computation. Stored as JSON in checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Which model.
    pub variant: Variant,
    /// `warp` renders strokes in the glimpse frame and warps the image (M), `points` moves the control points first (MT).
    pub placement: Placement,
    /// Density of a pixel around the canvas.
    pub likelihood: Likelihood,
    /// Height and width of an image.
    pub image: usize,
    /// Height and width at which networks look at images, where that is less: means over squares. Canvas and likelihood keep the
    /// size of an image.
    #[serde(default)]
    pub view: Option<usize>,
    /// Channels of the first convolution.
    pub conv1: usize,
    /// Channels of the second convolution.
    pub conv2: usize,
    /// Size of an image embedding.
    pub features: usize,
    /// Size of the GRU states and of the hidden layers of every MLP but the baseline's.
    pub hidden: usize,
    /// Control points per stroke (J).
    pub points: usize,
    /// Curve samples (S).
    pub samples: usize,
    /// Mixture components of the prior (K).
    pub components: usize,
    /// Strokes at most (T).
    pub strokes: usize,
    /// AIR: size of the appearance code.
    pub code: usize,
    /// How the decision to stop is learned.
    #[serde(default)]
    pub stop: Stop,
    /// Hidden units of the baseline regressor.
    pub baseline_hidden: usize,
    /// Hidden layers of the baseline regressor.
    pub baseline_layers: usize,
    /// Divides the log-likelihood inside the learning signal (section 8).
    pub beta: f64,
    /// Nats that a stroke costs beside its divergence, in training with the exact stop.
    #[serde(default)]
    pub price: f64,
    /// Probability of dropping a convolution output in training.
    pub dropout: f64,
    /// Clamp inside log p(o).
    pub bernoulli_eps: f64,
    /// Maxima below this are not normalised away.
    pub norm_floor: f64,
}

impl Config {
    /// The published sizes (section 2).
    pub fn paper(placement: Placement) -> Self {
        Config {
            variant: Variant::Dood,
            placement,
            likelihood: Likelihood::Laplace,
            image: 50,
            view: None,
            conv1: 8,
            conv2: 16,
            features: 256,
            hidden: 256,
            points: 5,
            samples: 100,
            components: 40,
            strokes: 6,
            code: 10,
            stop: Stop::Nvil,
            baseline_hidden: 256,
            baseline_layers: 3,
            beta: 4.0,
            price: 0.0,
            dropout: 0.5,
            bernoulli_eps: f32::EPSILON as f64,
            norm_floor: 1e-4,
        }
    }

    /// [`Config::hour`], smaller: minutes on a laptop.
    pub fn quick(placement: Placement) -> Self {
        Config {
            image: 32,
            view: Some(16),
            conv1: 4,
            conv2: 8,
            features: 128,
            hidden: 128,
            samples: 50,
            components: 10,
            strokes: 5,
            stop: Stop::Exact,
            baseline_hidden: 128,
            dropout: 0.0,
            ..Config::paper(placement)
        }
    }

    /// The published drawing, seen at half the resolution by smaller networks, with the exact decision to stop: published quality in an
    /// hour on a laptop.
    pub fn hour(placement: Placement) -> Self {
        Config {
            view: Some(25),
            features: 128,
            components: 20,
            stop: Stop::Exact,
            dropout: 0.0,
            ..Config::paper(placement)
        }
    }

    /// Sizes for tests.
    #[cfg(test)]
    pub(crate) fn tiny(placement: Placement) -> Self {
        Config {
            image: 16,
            conv1: 2,
            conv2: 2,
            features: 8,
            hidden: 8,
            points: 3,
            samples: 20,
            strokes: 2,
            ..Config::quick(placement)
        }
    }

    /// The same sizes for another model, with what the paper changes for it: AIR and Difference-AIR have β = 5 and a baseline with two
    /// hidden layers of twice the width.
    pub fn with_variant(self, variant: Variant) -> Self {
        match variant.choices().posterior {
            Posterior::Apart => Config { variant, ..self },
            Posterior::Joint => {
                Config { variant, beta: 5.0, baseline_hidden: 2 * self.hidden, baseline_layers: 2, ..self }
            }
        }
    }

    /// Size of a stroke's vector: x and y of every control point, or the appearance code.
    pub fn stroke_dim(&self) -> usize {
        match self.variant.choices().posterior {
            Posterior::Apart => 2 * self.points,
            Posterior::Joint => self.code,
        }
    }

    /// Height and width of what networks look at.
    pub fn seen(&self) -> usize {
        self.view.unwrap_or(self.image)
    }

    /// Values behind the second convolution.
    pub fn convolved(&self) -> usize {
        self.conv2 * (self.seen() - 4) * (self.seen() - 4)
    }

    /// Refuses sizes that no model can have, with a sentence.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Usage(format!("this model configuration cannot be used: {what}")));
        if self.image < 5 || self.image > 4096 {
            return wrong(format!("images are {0}x{0}; 5 to 4096 pixels a side are possible", self.image));
        }
        if self.seen() < 5 || !self.image.is_multiple_of(self.seen()) {
            return wrong(format!(
                "networks look at {0}x{0} pixels (view); at least 5 are possible, and {1} must be a multiple of them",
                self.seen(),
                self.image
            ));
        }
        let sizes = [
            ("conv1", self.conv1),
            ("conv2", self.conv2),
            ("features", self.features),
            ("hidden", self.hidden),
            ("components", self.components),
            ("strokes", self.strokes),
            ("baseline_hidden", self.baseline_hidden),
        ];
        if self.components > 4096 {
            return wrong(format!("{} components; 1 to 4096 are possible", self.components));
        }
        if let Some((name, size)) = sizes.into_iter().find(|(_, size)| *size == 0 || *size > 1 << 16) {
            return wrong(format!("{name} is {size}; 1 to 65536 is possible"));
        }
        if !(2..=32).contains(&self.points) || !(2..=10_000).contains(&self.samples) || self.baseline_layers > 64 {
            return wrong(format!(
                "points {} (2 to 32), samples {} (2 to 10000), baseline_layers {} (at most 64)",
                self.points, self.samples, self.baseline_layers
            ));
        }
        if !(2..=1 << 16).contains(&self.code) {
            return wrong(format!("code is {}; 2 to 65536 is possible", self.code));
        }
        if !((0.0..1.0).contains(&self.dropout) && self.beta > 0.0 && self.beta.is_finite()) {
            return wrong(format!("dropout {} (0 to below 1), beta {} (above 0)", self.dropout, self.beta));
        }
        if !self.price.is_finite() || (self.price != 0.0 && self.stop == Stop::Nvil) {
            return wrong(format!(
                "price {}: strokes have one only with the exact stop (stop = \"exact\")",
                self.price
            ));
        }
        if !((0.0..0.5).contains(&self.bernoulli_eps) && self.norm_floor >= 0.0 && self.norm_floor.is_finite()) {
            return wrong(format!("bernoulli_eps {}, norm_floor {}", self.bernoulli_eps, self.norm_floor));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_one_word_and_the_old_one_is_known() {
        for variant in Variant::ALL {
            assert_eq!(variant.to_string().parse::<Variant>().unwrap(), variant);
            assert_eq!(serde_json::to_value(variant).unwrap(), variant.to_string());
            Config::paper(Placement::Warp).with_variant(variant).check().unwrap();
        }
        // Checkpoints of before call the first model so.
        assert_eq!(serde_json::from_str::<Variant>("\"full\"").unwrap(), Variant::Dood);
        assert!("vae".parse::<Variant>().unwrap_err().to_string().contains("choose dood"));
    }
}
