//! All that the next stroke depends on: on a tape (`V = Var`), or between two of them (`V = Tensor`).

use super::latent::Each;
use crate::{Tape, Tensor, Var};

/// Where a drawing stands.
#[derive(Clone, Copy, Debug)]
pub struct State<V> {
    /// The latents of the step before: o `[N]`, l `[N, 4]`, s `[N, D]`.
    pub z: Each<V>,
    /// What the networks remember.
    pub memory: Memory<V>,
    /// The ink so far.
    pub canvas: Canvas<V>,
    /// The canvas as it is shown `[N, H, W]`. The likelihood's gradient goes through it; networks look at it as a constant.
    pub shown: V,
}

/// States of the GRUs `[N, H]`.
#[derive(Clone, Copy, Debug)]
pub struct Memory<V> {
    /// hˡ.
    pub layout: V,
    /// hˢ.
    pub stroke: V,
    /// hᵇ, where a baseline runs.
    pub baseline: Option<V>,
}

/// Strokes that were added up.
#[derive(Clone, Copy, Debug)]
pub struct Canvas<V> {
    /// Σ r `[N, H, W]`; none before the first stroke.
    pub ink: Option<V>,
    /// ω1 under which it is shown, N elements; none before the first stroke, and none where ink is shown as it is (AIR).
    pub slope: Option<V>,
}

/// Which step's ω1 the canvas is shown with.
#[derive(Clone, Copy)]
pub(super) enum Settled<'t> {
    /// The first one's: networks look at the canvas from then on.
    First,
    /// The last one's, whether it draws or not.
    Last,
    /// The last one's that draws, by its o `[N]`: a drawing that may end anywhere does not depend on what follows.
    Drawn(Var<'t>),
}

/// With what strokes are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Pen<V> {
    /// Pen width σ and stroke slope ω0: `[N, 2]` for all strokes, or `[T, N, 2]`.
    pub stroke: V,
    /// Canvas slope ω1, N elements.
    pub canvas: V,
}

impl<V> State<V> {
    /// The same of another kind.
    pub fn map<U>(self, mut f: impl FnMut(V) -> U) -> State<U> {
        let State { z, memory, canvas, shown } = self;
        State {
            z: z.map(&mut f),
            memory: Memory {
                layout: f(memory.layout),
                stroke: f(memory.stroke),
                baseline: memory.baseline.map(&mut f),
            },
            canvas: Canvas { ink: canvas.ink.map(&mut f), slope: canvas.slope.map(&mut f) },
            shown: f(shown),
        }
    }
}

impl State<Tensor> {
    /// As constants of a tape.
    pub fn on<'t>(&self, tape: &'t Tape<'t>) -> State<Var<'t>> {
        self.clone().map(|value| tape.constant(value))
    }
}

impl State<Var<'_>> {
    /// Off its tape.
    pub fn value(&self) -> State<Tensor> {
        self.map(Var::value)
    }
}

impl<'t> Canvas<Var<'t>> {
    /// One stroke more. ω1 is that of the moment `when` it is settled.
    pub(super) fn with(self, stroke: Var<'t>, slope: Option<Var<'t>>, when: Settled<'t>) -> Self {
        let ink = self.ink.map_or(stroke, |ink| ink + stroke);
        let slope = match (when, self.slope.zip(slope)) {
            (Settled::First, Some((first, _))) => Some(first),
            (Settled::Drawn(on), Some((before, new))) => Some(before + (new - before) * on.reshape(&before.shape())),
            _ => slope,
        };
        Canvas { ink: Some(ink), slope }
    }

    /// tanh(Σ r / ω1), or Σ r where there is no ω1.
    pub(super) fn image(&self) -> Var<'t> {
        let ink = self.ink.expect("at least one stroke");
        self.slope.map_or(ink, |slope| ink.tanh_ratio(slope))
    }
}
