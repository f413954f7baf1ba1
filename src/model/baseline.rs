//! The baseline of the score-function term (section 4, step 8). It sees the step before, and nothing learns through its inputs.

use super::view::{Recall, View};
use crate::{Var, nn::Mlp};

/// Guesses the learning signal.
pub(super) struct Baseline {
    pub memory: Recall,
    pub regressor: Mlp,
}

impl Baseline {
    /// hᵇ `[N, H]` and b `[N]`, which is 0 where the drawing has stopped.
    pub fn guess<'t>(&self, view: &mut View<'_, 't>, state: Var<'t>, mask: Var<'t>) -> (Var<'t>, Var<'t>) {
        let seen = view.join(&self.memory.inputs).detach();
        let state = view.note("baseline_state", self.memory.gru.forward(state, seen));
        let guess = self.regressor.forward(state).reshape(&mask.shape()) * mask;
        (state, view.note("baseline", guess))
    }
}
