//! One-shot classification (section 11f, Table 1 of the paper): which of twenty characters, each seen once, is each of twenty new drawings?
//!
//! A method gives every pair of a new drawing and a character a score; the character with the highest is the guess. The methods that know
//! nothing of drawing are in [`classic`], that of the model is in [`exemplar`], what 400 decisions say is in [`statistics`].

pub mod classic;
pub mod exemplar;
pub mod statistics;

use crate::data::Run;
use serde::{Deserialize, Serialize};

/// What a method says of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Which run, counted from 1 as the official files are.
    pub run: usize,
    /// For every query the character that it shows.
    pub answers: Vec<usize>,
    /// `[queries][characters]`: how well they fit, in units of the method's own; more is better.
    pub scores: Vec<Vec<f64>>,
    /// What it took.
    pub seconds: f64,
}

impl Episode {
    /// Scores `[queries · characters]` of a run. They must be finite.
    pub fn new(number: usize, run: &Run, scores: &[f64], seconds: f64) -> Self {
        assert!(scores.iter().all(|score| score.is_finite()), "run {number}: a score that is not finite");
        let answers = run.query.labels.iter().flatten().map(|&answer| answer.into()).collect();
        let scores = scores.chunks(run.support.len()).map(<[f64]>::to_vec).collect();
        Episode { run: number, answers, scores, seconds }
    }

    /// The guess for every query: the first of the best.
    pub fn guesses(&self) -> Vec<usize> {
        let best =
            |scores: &Vec<f64>| (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
        self.scores.iter().map(best).collect()
    }

    /// Whether each guess is right.
    pub fn right(&self) -> Vec<bool> {
        self.guesses().iter().zip(&self.answers).map(|(guess, answer)| guess == answer).collect()
    }
}
