//! What the paper reports, to stand beside what is measured here (section 13 of the model).

use crate::{
    model::{Config, Variant},
    ops::{Likelihood, Placement},
};
use serde::Serialize;
use std::{str::FromStr, sync::LazyLock};

/// A published log marginal likelihood: the importance-weighted bound on log p(x) in nats per image of a whole test set, of models that
/// were trained for 500,001 updates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// The model.
    #[serde(skip)]
    pub model: Variant,
    /// How its strokes got onto the canvas, where it draws with curves.
    pub placement: Option<Placement>,
    /// The set that it was trained on, as [`Source::word`](crate::data::Source::word) has it.
    #[serde(skip)]
    pub train: &'static str,
    /// The set that it was measured on.
    #[serde(skip)]
    pub test: &'static str,
    /// The mean over runs.
    pub mean: f64,
    /// Their population standard deviation; `None` for a single run.
    pub std: Option<f64>,
    /// How many runs.
    pub runs: u32,
    /// Particles per image.
    pub samples: u32,
    /// Of the images.
    pub likelihood: Likelihood,
}

/// All of them, a row each, as a table that people can read.
const CSV: &str = include_str!("published.csv");

static ALL: LazyLock<Vec<Published>> = LazyLock::new(|| CSV.lines().skip(1).map(parse).collect());

fn parse(line: &'static str) -> Published {
    fn word<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_value(text.into()).unwrap_or_else(|e| panic!("published.csv: {text}: {e}"))
    }
    fn number<T: FromStr>(text: &str) -> T {
        text.parse().unwrap_or_else(|_| panic!("published.csv: {text} is no number"))
    }
    let fields: Vec<&str> = line.split(',').collect();
    let [model, placement, train, test, mean, std, runs, samples, likelihood] = fields[..] else {
        panic!("published.csv: {line} has not nine fields")
    };
    Published {
        model: word(model),
        placement: (!placement.is_empty()).then(|| word(placement)),
        train,
        test,
        mean: number(mean),
        std: (!std.is_empty()).then(|| number(std)),
        runs: number(runs),
        samples: number(samples),
        likelihood: word(likelihood),
    }
}

/// All that is published, train × test for every model.
pub fn all() -> &'static [Published] {
    &ALL
}

/// What is published of such a model, trained on one set and measured on the other by the published protocol. The ablations exist with
/// one placement of strokes only, which then stands for both.
pub fn of(config: &Config, train: &str, test: &str) -> Option<&'static Published> {
    let same = |row: &&Published| {
        (row.model, row.train, row.test, row.likelihood) == (config.variant, train, test, config.likelihood)
            && row.samples == 200
    };
    let mut rows = ALL.iter().filter(same);
    let first = rows.next()?;
    match config.variant {
        Variant::Dood => std::iter::once(first).chain(rows).find(|row| row.placement == Some(config.placement)),
        _ => Some(first),
    }
}

/// The sets on which [`latents`] were classified.
const LATENTS_OF: [&str; 4] = ["mnist", "emnist", "kmnist", "quickdraw"];

/// What the layer finds right: of DooD with points (MT), of DooD with warp (M), of Difference-AIR; a row per set that the model learned
/// from.
const LATENTS: [(&str, [[f64; 4]; 3]); 5] = [
    ("mnist", [[0.949, 0.531, 0.492, 0.668], [0.934, 0.525, 0.478, 0.663], [0.954, 0.496, 0.465, 0.657]]),
    ("emnist", [[0.857, 0.677, 0.463, 0.652], [0.848, 0.649, 0.431, 0.642], [0.829, 0.730, 0.503, 0.759]]),
    ("kmnist", [[0.781, 0.542, 0.663, 0.698], [0.797, 0.567, 0.664, 0.704], [0.797, 0.564, 0.717, 0.720]]),
    ("quickdraw", [[0.829, 0.501, 0.451, 0.832], [0.812, 0.515, 0.455, 0.835], [0.800, 0.538, 0.520, 0.851]]),
    ("omniglot", [[0.782, 0.476, 0.438, 0.639], [0.750, 0.452, 0.399, 0.611], [0.744, 0.419, 0.432, 0.684]]),
];

/// The mean share of test images whose class a linear layer finds by the latents of such a model, trained on one set, of another
/// (section 11i): the best of all epochs, with gradients that were never cleared. Released with the authors' program.
pub fn latents(config: &Config, train: &str, of: &str) -> Option<f64> {
    let model = match (config.variant, config.placement) {
        (Variant::Dood, Placement::Points) => 0,
        (Variant::Dood, Placement::Warp) => 1,
        (Variant::Dair, _) => 2,
        _ => return None,
    };
    let (_, rows) = LATENTS.iter().find(|(set, _)| *set == train)?;
    Some(rows[model][LATENTS_OF.iter().position(|set| *set == of)?])
}

/// The same for a report: the sets, and model, set that it learned from, and shares.
pub(super) fn all_latents() -> ([&'static str; 4], impl Iterator<Item = (&'static str, &'static str, [f64; 4])>) {
    const MODELS: [&str; 3] = ["DooD, control points placed", "DooD", "Difference-AIR"];
    let of_model = |m: usize| LATENTS.iter().map(move |(train, shares)| (MODELS[m], *train, shares[m]));
    (LATENTS_OF, (0..MODELS.len()).flat_map(of_model))
}

/// The shares of right decisions in one-shot classification (Table 1): what was computed, and how many of the 400 decisions were right.
pub(super) const ONE_SHOT: [(&str, f64); 5] = [
    ("AIR", 0.145),
    ("DooD", 0.735),
    ("VHE (augmented data)", 0.813),
    ("GNS (recorded strokes, both ways)", 0.943),
    ("BPL (recorded strokes, both ways)", 0.967),
];

/// The same of methods that are computed here, by their names.
pub(super) const ONE_SHOT_BASELINES: [(&str, f64); 3] = [("hausdorff", 0.612), ("pixels", 0.217), ("reference", 0.735)];

/// The Fréchet distances of Fig. 6 on the class probabilities of Inception-v3: mean and standard deviation over five runs.
pub(super) const FID: [(&str, f64, Option<f64>); 7] = [
    ("mnist", 0.134, Some(0.013)),
    ("emnist", 0.137, Some(0.006)),
    ("kmnist", 0.123, Some(0.020)),
    ("quickdraw", 0.084, Some(0.009)),
    ("omniglot", 0.051, Some(0.007)),
    ("omniglot, GNS", 0.133, Some(0.007)),
    ("omniglot, real images", 0.025, Some(0.004)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_paper_is_complete_and_is_found_by_model_and_sets() {
        assert_eq!(all().len(), 5 * (5 + 6 + 5 + 5 + 4 + 1));
        let mean = |config: &Config, train, test| of(config, train, test).map(|row| row.mean);
        let paper = Config::paper(Placement::Warp);
        assert_eq!(mean(&paper, "mnist", "mnist"), Some(7094.0));
        assert_eq!(mean(&paper, "mnist", "kmnist"), Some(-2859.4));
        assert_eq!(mean(&Config::paper(Placement::Points), "quickdraw", "omniglot"), Some(5399.3));
        assert_eq!(mean(&Config::paper(Placement::Points), "synthetic", "emnist"), Some(5887.1));
        assert_eq!(mean(&paper, "synthetic", "emnist"), None);
        let dair = paper.clone().with_variant(Variant::Dair);
        assert_eq!(mean(&dair, "emnist", "emnist"), Some(6549.0));
        // Only measured with one particle and another likelihood.
        assert_eq!(mean(&dair, "omniglot", "omniglot"), None);
        assert_eq!(mean(&paper.clone().with_variant(Variant::Sp), "kmnist", "mnist"), Some(6083.6));
        assert_eq!(mean(&paper.clone().with_variant(Variant::Air), "mnist", "mnist"), None);
        assert_eq!(latents(&paper, "mnist", "mnist"), Some(0.934));
        assert_eq!(latents(&Config::paper(Placement::Points), "omniglot", "quickdraw"), Some(0.639));
        assert_eq!(latents(&dair, "quickdraw", "kmnist"), Some(0.520));
        assert_eq!((latents(&paper, "synthetic", "mnist"), latents(&paper, "mnist", "omniglot")), (None, None));
        // The diagonal of DooD is the best of its column, as the paper says.
        for own in all().iter().filter(|row| row.train == row.test && row.model == Variant::Dood) {
            let rivals = all().iter().filter(|row| (row.model, row.placement) == (own.model, own.placement));
            assert!(rivals.filter(|row| row.test == own.test).all(|row| row.mean <= own.mean), "{own:?}");
        }
    }
}
