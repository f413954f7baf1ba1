//! What the networks take in: the tables of sections 2.4, 2.5 and 12 are lists of [`Input`]s, and widths follow from them.

use super::{
    config::Config,
    eyes::{Call, Image, Scene},
    latent::{Density, Each},
    state::{Memory, State},
};
use crate::{
    Var,
    nn::{Gru, Mlp},
    ops::{Squash, concat},
};

/// Something that a network may take in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// o, of the step before until it is chosen; likewise the next two.
    Onoff,
    /// l.
    Layout,
    /// s.
    Stroke,
    /// hˡ.
    LayoutState,
    /// hˢ.
    StrokeState,
    /// ρ = ΣD / Σx.
    Ratio,
    /// The embedding that a call of the image network gives.
    Seen(Call),
    /// The same as a constant.
    Still(Call),
}

impl Input {
    /// Its name in traces.
    fn name(self) -> String {
        match self {
            Input::Onoff => "onoff".into(),
            Input::Layout => "layout".into(),
            Input::Stroke => "stroke".into(),
            Input::LayoutState => "layout_state".into(),
            Input::StrokeState => "stroke_state".into(),
            Input::Ratio => "ratio".into(),
            Input::Seen(call) | Input::Still(call) => format!("{}_embedding", call.name()),
        }
    }

    /// The number of its columns.
    pub fn width(self, c: &Config) -> usize {
        match self {
            Input::Onoff | Input::Ratio => 1,
            Input::Layout => 4,
            Input::Stroke => c.stroke_dim(),
            Input::LayoutState | Input::StrokeState => c.hidden,
            Input::Seen(_) | Input::Still(_) => c.features,
        }
    }
}

/// All that is known in the step at hand.
pub(super) struct View<'a, 't> {
    pub scene: &'a Scene<'t>,
    /// Which step.
    pub t: usize,
    /// The canvas before the stroke, a constant.
    pub canvas: Var<'t>,
    /// The matrix of the layout, once that is chosen.
    pub window: Option<Var<'t>>,
    /// Values by their names, where somebody asked for them.
    pub trace: Vec<(String, Var<'t>)>,
    known: Vec<(Input, Var<'t>)>,
    /// x − canvas, a constant, once somebody looked at it.
    residual: Option<Var<'t>>,
    /// Lists that were joined, to be used again whole or as the beginning of a longer one.
    joined: Vec<(Vec<Input>, Var<'t>)>,
}

impl<'a, 't> View<'a, 't> {
    pub fn open(scene: &'a Scene<'t>, state: &State<Var<'t>>, t: usize) -> Self {
        View {
            scene,
            t,
            canvas: state.shown.detach(),
            residual: None,
            window: None,
            trace: vec![],
            known: vec![
                (Input::Onoff, state.z.onoff),
                (Input::Layout, state.z.layout),
                (Input::Stroke, state.z.stroke),
                (Input::LayoutState, state.memory.layout),
                (Input::StrokeState, state.memory.stroke),
            ],
            joined: vec![],
        }
    }

    /// Makes `value` known, instead of what was known before.
    pub fn set(&mut self, input: Input, value: Var<'t>) {
        if self.scene.watch {
            self.note(&input.name(), value);
        }
        self.joined.retain(|(list, _)| !list.contains(&input));
        self.known.retain(|(known, _)| *known != input);
        self.known.push((input, value));
    }

    #[track_caller]
    pub fn get(&self, input: Input) -> Var<'t> {
        if let Input::Still(call) = input {
            return self.get(Input::Seen(call)).detach();
        }
        let known = self.known.iter().find(|(known, _)| *known == input);
        known.unwrap_or_else(|| panic!("{input:?} is not known in this step")).1
    }

    /// One of the images that this step is about `[N, H, W]`.
    pub fn image(&mut self, which: Image) -> Var<'t> {
        let target = || self.scene.target.as_ref().expect("this pass has no images").image;
        match which {
            Image::Target => target(),
            Image::Canvas => self.canvas,
            Image::Residual => {
                let made = self.residual.unwrap_or_else(|| (target() - self.canvas).detach());
                *self.residual.insert(made)
            }
        }
    }

    /// The latents as they are known.
    pub fn latents(&self) -> Each<Var<'t>> {
        Each { onoff: Input::Onoff, layout: Input::Layout, stroke: Input::Stroke }.map(|input| self.get(input))
    }

    /// Columns of all `inputs`, side by side.
    pub fn join(&mut self, inputs: &[Input]) -> Var<'t> {
        if let [one] = inputs {
            return self.get(*one);
        }
        let begun = self.joined.iter().filter(|(list, _)| inputs.starts_with(list)).max_by_key(|(list, _)| list.len());
        let (done, begun) = begun.map_or((0, None), |(list, value)| (list.len(), Some(*value)));
        if let (Some(value), true) = (begun, done == inputs.len()) {
            return value;
        }
        let rest = inputs[done..].iter().map(|&input| self.get(input));
        let joined = concat(&begun.into_iter().chain(rest).collect::<Vec<_>>());
        self.joined.push((inputs.to_vec(), joined));
        joined
    }

    /// Keeps a value under its name where somebody asked for that. Returns the value.
    pub fn note(&mut self, name: &str, value: Var<'t>) -> Var<'t> {
        if self.scene.watch {
            self.trace.push((name.into(), value.watch()));
        }
        value
    }

    pub fn note_each(&mut self, name: &str, values: Option<Each<Var<'t>>>) {
        if let (Some(Each { onoff, layout, stroke }), true) = (values, self.scene.watch) {
            self.note(&format!("{name}_onoff"), onoff);
            self.note(&format!("{name}_layout"), layout);
            self.note(&format!("{name}_stroke"), stroke);
        }
    }

    /// hˡ, hˢ as they are known; hᵇ as given.
    pub fn memory(&self, baseline: Option<Var<'t>>) -> Memory<Var<'t>> {
        Memory { layout: self.get(Input::LayoutState), stroke: self.get(Input::StrokeState), baseline }
    }
}

/// A row of the table of section 2.5: what an MLP takes in, and the ranges of what comes out.
pub(super) struct Net {
    pub name: &'static str,
    pub inputs: Vec<Input>,
    pub mlp: Mlp,
    pub ranges: Squash,
}

impl Net {
    /// The outputs `[N, …]`.
    pub fn of<'t>(&self, view: &mut View<'_, 't>) -> Var<'t> {
        let joined = view.join(&self.inputs);
        let raw = self.mlp.forward(joined);
        let raw = view.scene.moved.of(self.name, view.t).map_or(raw, |by| raw + by);
        if view.scene.watch {
            view.note(&format!("{}_raw", self.name), raw);
        }
        view.note(self.name, raw.squash(&self.ranges))
    }
}

/// What is added to the raw outputs of some networks: their names, and for each a value per step `[N, columns]`.
#[derive(Clone, Default)]
pub struct Moved<'t>(pub Vec<(&'static str, Vec<Var<'t>>)>);

impl<'t> Moved<'t> {
    fn of(&self, name: &str, t: usize) -> Option<Var<'t>> {
        self.0.iter().find(|(net, _)| *net == name).map(|(_, steps)| steps[t])
    }
}

/// A row of the table of section 2.4: what a GRU takes in, and which state it keeps.
pub(super) struct Recall {
    pub inputs: Vec<Input>,
    pub gru: Gru,
}

impl Recall {
    /// Makes the next state known instead of `state`.
    pub fn update(&self, view: &mut View, state: Input) {
        let joined = view.join(&self.inputs);
        view.set(state, self.gru.forward(view.get(state), joined));
    }
}

/// Which law the outputs of networks are.
#[derive(Clone, Copy)]
pub(super) enum Family {
    Gaussian,
    Mixture { components: usize },
}

impl Family {
    pub fn of<'t, 'a>(self, packed: Var<'t>, groups: usize) -> Density<'t, 'a> {
        match self {
            Family::Gaussian => Density::Gaussian { packed, groups },
            Family::Mixture { components } => Density::Mixture { packed, groups, components },
        }
    }
}
