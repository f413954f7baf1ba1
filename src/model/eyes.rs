//! Which image goes through which image network, and what a pass looks at.
//!
//! Nothing else in the model knows in which form the networks see an image. A look is one product per image network, whatever the
//! number of its calls.

use super::view::{Input, Moved, View};
use crate::{
    Tape, Tensor, Var,
    nn::Cnn,
    ops::{self, Keep},
    rng::{Rng, Stream},
};
use std::cell::{Cell, OnceCell};

/// The image networks' calls of one step, each with a dropout mask of its own. The numbers `call as usize` are part of a run's
/// random streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The target image.
    Target,
    /// The canvas, for the GRUs and the baseline.
    Canvas,
    /// The residual.
    Residual,
    /// The target seen through the layout.
    TargetGlimpse,
    /// The residual seen through the layout.
    ResidualGlimpse,
    /// For the on/off prior: the canvas again, or the target where there is no guidance.
    OnoffPrior,
    /// The canvas seen through the layout, for the stroke prior.
    CanvasGlimpse,
}

impl Call {
    /// All calls, in the order of the numbers `call as usize`.
    pub const ALL: [Call; 7] = [
        Call::Target,
        Call::Canvas,
        Call::Residual,
        Call::TargetGlimpse,
        Call::ResidualGlimpse,
        Call::OnoffPrior,
        Call::CanvasGlimpse,
    ];

    /// Its name in traces and fixtures.
    pub fn name(self) -> &'static str {
        ["target", "canvas", "residual", "target_glimpse", "residual_glimpse", "onoff_prior", "canvas_glimpse"]
            [self as usize]
    }

    /// Whether it looks through the layout.
    pub(super) fn is_glimpse(self) -> bool {
        matches!(self, Call::TargetGlimpse | Call::ResidualGlimpse | Call::CanvasGlimpse)
    }
}

/// Dropout behind the convolutions.
#[derive(Clone)]
pub enum Dropout {
    /// Off: evaluation mode.
    Off,
    /// Masks drawn from these numbers.
    Random(Rng),
    /// Given masks of zeros and ones, `[T, B, features of the convolutions]` for each of [`Call::ALL`]; those of calls that the model
    /// does not make are not looked at.
    Given(Vec<Option<Tensor>>),
}

const DROPOUT: u32 = 1 << 16;

impl Dropout {
    fn keep(&self, rate: f64, t: usize, call: Call) -> Keep {
        match self {
            Dropout::Off => Keep::All,
            _ if rate == 0.0 => Keep::All,
            Dropout::Random(rng) => {
                Keep::Random { rate, rng: *rng, stream: Stream(DROPOUT + (t * Call::ALL.len() + call as usize) as u32) }
            }
            Dropout::Given(masks) => {
                let masks = masks[call as usize].as_ref();
                let masks = masks.unwrap_or_else(|| panic!("no dropout mask for the call {}", call.name()));
                Keep::Given(super::row(masks, t), rate)
            }
        }
    }
}

/// What does not change during a pass.
pub(super) struct Scene<'t> {
    pub tape: &'t Tape<'t>,
    /// The target images, where there are any.
    pub target: Option<Target<'t>>,
    pub dropout: Dropout,
    pub skip_stopped: bool,
    pub watch: bool,
    /// How often the target images repeat.
    pub copies: usize,
    /// What is added to the networks' raw outputs.
    pub moved: Moved<'t>,
    /// Clamp inside log probabilities of on/off.
    pub eps: f64,
}

/// The target images, and what of them needs to be made only once.
pub(super) struct Target<'t> {
    pub image: Var<'t>,
    convolved: OnceCell<Var<'t>>,
    /// Its embedding without dropout.
    still: Cell<Option<Var<'t>>>,
}

impl<'t> Target<'t> {
    pub fn new(image: Var<'t>) -> Self {
        Target { image, convolved: OnceCell::new(), still: Cell::new(None) }
    }
}

/// One of the images that a step is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    Target,
    Canvas,
    Residual,
}

/// The image networks.
pub(super) struct Eyes {
    pub image_cnn: Cnn,
    pub residual_cnn: Option<Cnn>,
    pub dropout: f64,
    /// Pixels per side of a square that is seen as one.
    pub square: usize,
    /// Whether canvas and residual are looked at on the way.
    pub see_the_work: bool,
}

impl Eyes {
    fn image(&self, call: Call) -> Image {
        match call {
            Call::Target | Call::TargetGlimpse => Image::Target,
            Call::Canvas | Call::CanvasGlimpse => Image::Canvas,
            Call::Residual | Call::ResidualGlimpse => Image::Residual,
            Call::OnoffPrior if self.see_the_work => Image::Canvas,
            Call::OnoffPrior => Image::Target,
        }
    }

    /// Whether any of `inputs` depends on the target.
    pub fn see_the_target(&self, inputs: &[Input]) -> bool {
        inputs.iter().any(|&input| match input {
            Input::Seen(call) | Input::Still(call) => self.image(call) != Image::Canvas,
            other => other == Input::Ratio,
        })
    }

    /// Whether the call sees the same at every step of a pass.
    fn stays(&self, call: Call, keep: &Keep) -> bool {
        self.image(call) == Image::Target && !call.is_glimpse() && matches!(keep, Keep::All)
    }

    /// ρ of what is left to draw (section 4), a constant.
    pub fn ratio(&self, view: &mut View) {
        let (residual, target) = (view.image(Image::Residual), view.image(Image::Target));
        let ratio = ops::residual_ratio(&residual.value(), &target.value());
        view.set(Input::Ratio, view.scene.tape.constant(ratio));
    }

    /// Makes the embeddings of `calls` known. Rows that are not `live` may be left out; without, all matter.
    pub fn look(&self, view: &mut View, calls: &[Call], live: Option<&Tensor>) {
        let (of_residual, of_others): (Vec<Call>, Vec<Call>) =
            calls.iter().partition(|&&call| self.image(call) == Image::Residual);
        self.look_with(&self.image_cnn, view, &of_others, live);
        if let Some(cnn) = &self.residual_cnn {
            self.look_with(cnn, view, &of_residual, live);
        }
    }

    /// One product for all calls of one network.
    fn look_with(&self, cnn: &Cnn, view: &mut View, calls: &[Call], live: Option<&Tensor>) {
        let (scene, n, live) = (view.scene, view.canvas.shape()[0], live.filter(|_| view.scene.skip_stopped));
        // Until the first choice is made all copies of an image look alike.
        let alike = view.t == 0 && calls.iter().all(|call| !call.is_glimpse()) && matches!(scene.dropout, Dropout::Off);
        let copies = if alike { scene.copies } else { 1 };
        let live = live.filter(|_| copies == 1);
        let (mut images, mut convolved, mut made) = (vec![], vec![], vec![]);
        for &call in calls {
            let keep = scene.dropout.keep(self.dropout, view.t, call);
            let known = scene.target.as_ref().and_then(|target| target.still.get());
            if let (Some(known), true) = (known, self.stays(call, &keep)) {
                view.set(Input::Seen(call), known.rows(0, n));
                continue;
            }
            let image = (self.image(call), call.is_glimpse());
            let place = images.iter().position(|&known| known == image).unwrap_or_else(|| {
                images.push(image);
                convolved.push(self.convolve(cnn, view, call, live, n / copies));
                images.len() - 1
            });
            made.push((call, place, keep));
        }
        if made.is_empty() {
            return;
        }
        let embeddings =
            cnn.embed(&convolved, made.iter().map(|(_, place, keep)| (*place, keep.clone())).collect(), live);
        // They are the largest values of a pass; only that of the target is looked at again.
        for (_, convolved) in images.iter().zip(&convolved).filter(|(image, _)| **image != (Image::Target, false)) {
            convolved.forget();
        }
        for ((call, _, keep), embedding) in made.iter().zip(embeddings) {
            let embedding = match copies {
                1 => embedding,
                _ => ops::stack(&vec![embedding; copies]).reshape(&[n, embedding.shape()[1]]),
            };
            if !self.stays(*call, keep) {
                view.set(Input::Seen(*call), embedding);
                continue;
            }
            scene.target.as_ref().expect("it was looked at").still.set(Some(embedding));
            // Every step has a node of its own, whose gradient is that of this step.
            view.set(Input::Seen(*call), embedding.rows(0, n));
        }
    }

    /// What the convolutions make of the first `rows` images that `call` is about. That of the target itself is made once in a pass.
    fn convolve<'t>(
        &self,
        cnn: &Cnn,
        view: &mut View<'_, 't>,
        call: Call,
        live: Option<&Tensor>,
        rows: usize,
    ) -> Var<'t> {
        let mut image = view.image(self.image(call));
        if rows < image.shape()[0] {
            image = image.rows(0, rows);
        }
        if call.is_glimpse() {
            let window = view.window.expect("a layout was chosen");
            // Sampled at full size first, so that nothing aliases.
            let glimpse = view.note(call.name(), image.stn(window, live));
            return cnn.convolve(self.shrunk(glimpse), live);
        }
        match &view.scene.target {
            Some(target) if self.image(call) == Image::Target => {
                *target.convolved.get_or_init(|| cnn.convolve(self.shrunk(image), None))
            }
            _ => cnn.convolve(self.shrunk(image), live),
        }
    }

    /// An image at the resolution at which networks look at it.
    fn shrunk<'t>(&self, image: Var<'t>) -> Var<'t> {
        if self.square == 1 { image } else { image.average_pool(self.square) }
    }
}
