//! From a stroke's latents to its image (section 6), by spline or by a decoder (section 12).

use crate::{
    Tensor, Var,
    nn::Mlp,
    ops::{Placement, RenderSettings, render_stroke},
};

/// Draws single strokes.
pub(super) struct Renderer {
    pub settings: RenderSettings,
    /// Makes the glimpse out of the numbers of a stroke, instead of the spline.
    pub decoder: Option<Mlp>,
}

/// Subtracted from the decoder's output before the softplus, so that glimpses begin dark.
const DARK: f64 = -2.0;

impl Renderer {
    /// One stroke per image `[N, H, W]`: `window` is the matrix of `layout`, `pen` `[N, 2]` (the strokes of AIR have none). Where `on`
    /// is 0 the image is 0.
    pub fn stroke<'t>(
        &self,
        stroke: Var<'t>,
        (layout, window): (Var<'t>, Var<'t>),
        pen: Option<Var<'t>>,
        on: &Tensor,
    ) -> Var<'t> {
        let Some(decoder) = &self.decoder else {
            let matrix = match self.settings.placement {
                Placement::Points => window,
                Placement::Warp => layout.inverse_affine(),
            };
            return render_stroke(stroke, matrix, pen.expect("a spline has a pen"), on, self.settings);
        };
        let side = self.settings.side;
        let glimpse = (decoder.forward(stroke) + DARK).softplus().reshape(&[on.len(), side, side]);
        let placed = glimpse.stn(layout.inverse_affine(), Some(on));
        match pen {
            Some(pen) => placed.max_norm(self.settings.norm_floor).tanh_ratio(pen.column(1)),
            None => placed,
        }
    }
}
