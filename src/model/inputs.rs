//! The tables of sections 2.4, 2.5 and 12: what each network takes in, in the order of the columns of its first weights.

use super::{
    config::{Choices, Posterior, Sight},
    eyes::Call::{Canvas, CanvasGlimpse, OnoffPrior, Residual, ResidualGlimpse, Target, TargetGlimpse},
    view::Input::{self, Layout, LayoutState, Onoff, Ratio, Seen, Still, Stroke, StrokeState},
};

impl Sight {
    pub(super) fn is_guided(self) -> bool {
        self == Sight::Guided
    }

    /// What a posterior sees before the stroke.
    fn images(self) -> &'static [Input] {
        match self {
            Sight::Guided => &[Seen(Target), Seen(Residual), Ratio],
            Sight::Target => &[Seen(Target)],
            Sight::Residual => &[Seen(Residual)],
        }
    }

    /// What a posterior sees through the layout.
    fn glimpses(self) -> &'static [Input] {
        match self {
            Sight::Guided => &[Seen(TargetGlimpse), Seen(ResidualGlimpse)],
            Sight::Target => &[Seen(TargetGlimpse)],
            Sight::Residual => &[Seen(ResidualGlimpse)],
        }
    }

    /// What memories and the prior may see: the work itself.
    fn work(self, call: &'static [Input]) -> &'static [Input] {
        if self.is_guided() { call } else { &[] }
    }
}

impl Choices {
    pub(super) fn layout_memory(self) -> Vec<Input> {
        match self.posterior {
            Posterior::Apart => [&[Layout], self.sight.work(&[Seen(Canvas)])].concat(),
            Posterior::Joint => [&[Onoff, Layout, Stroke], self.sight.images()].concat(),
        }
    }

    pub(super) fn stroke_memory(self) -> Vec<Input> {
        match self.posterior {
            Posterior::Apart => [&[Stroke], self.sight.work(&[Seen(Canvas)])].concat(),
            Posterior::Joint => self.sight.glimpses().to_vec(),
        }
    }

    pub(super) fn onoff_posterior(self) -> Vec<Input> {
        match self.sight {
            Sight::Guided => vec![Seen(Residual), Ratio],
            Sight::Target => vec![Still(Target)],
            Sight::Residual => vec![Still(Residual)],
        }
    }

    /// The canvas slope's, too.
    pub(super) fn layout_posterior(self) -> Vec<Input> {
        [&[LayoutState], self.sight.images()].concat()
    }

    pub(super) fn stroke_posterior(self) -> Vec<Input> {
        [&[StrokeState], self.sight.glimpses()].concat()
    }

    /// AIR's: on/off and layout, then the appearance code.
    pub(super) fn place_posterior(self) -> Vec<Input> {
        vec![LayoutState]
    }

    pub(super) fn code_posterior(self) -> Vec<Input> {
        vec![StrokeState]
    }

    pub(super) fn pen(self) -> Vec<Input> {
        [self.stroke_posterior(), vec![Layout]].concat()
    }

    pub(super) fn onoff_prior(self) -> Vec<Input> {
        vec![Seen(OnoffPrior)]
    }

    pub(super) fn layout_prior(self) -> Vec<Input> {
        vec![LayoutState]
    }

    pub(super) fn stroke_prior(self) -> Vec<Input> {
        [&[StrokeState, Layout], self.sight.work(&[Seen(CanvasGlimpse)])].concat()
    }

    pub(super) fn baseline(self) -> Vec<Input> {
        [&[Seen(Target), Onoff, Layout, Stroke], self.sight.work(&[Seen(Canvas)])].concat()
    }
}
