//! The one loop: recognition, generation and the scoring of a known drawing (sections 3, 4 and 6).

use super::{
    Model, Stop,
    baseline::Baseline,
    eyes::{Call, Dropout, Scene, Target},
    latent::{Density, Each, Heat},
    law::Law,
    noise::{Choice, Noise},
    row,
    state::{Canvas, Memory, Pen, Settled, State},
    view::{Input, Moved, Net, View},
};
use crate::{Device, Error, Result, Tape, Tensor, Var, ops};

/// How a recognition is to be made.
#[derive(Clone)]
pub struct Pass {
    /// The random numbers.
    pub noise: Noise,
    /// Dropout.
    pub dropout: Dropout,
    /// Leave out what stopped images no longer need. Exact: losses and gradients stay the same.
    pub skip_stopped: bool,
    /// Run the baseline network, which only training needs, and not every model has.
    pub baseline: bool,
    /// Draw all strokes, whatever the decision to stop: for a bound over all ends.
    pub hold: bool,
    /// Keep all values of every step by their names ([`Step::trace`]), and ask the tape to keep their gradients.
    pub watch: bool,
    /// How often the images repeat: all of them, one time after the other. What looks alike in all copies is then looked at once.
    pub copies: usize,
}

impl Pass {
    /// As images are measured and redrawn: dropout off, nothing kept, nothing learned.
    pub fn plain(noise: Noise) -> Self {
        let dropout = Dropout::Off;
        Pass { noise, dropout, skip_stopped: true, baseline: false, hold: false, watch: false, copies: 1 }
    }
}

/// One stroke, and where the drawing stands after it. Log densities are masked: 0 once the drawing has stopped.
pub struct Step<'t> {
    /// o of the step before `[N]`.
    pub mask: Var<'t>,
    /// Probability of drawing on that o was drawn with, N elements; o itself in a known drawing.
    pub onoff_prob: Var<'t>,
    /// The same by the law that scores, whatever o was before; where there is one.
    pub prior_prob: Option<Var<'t>>,
    /// log density to the law that chose `[N]`.
    pub logq: Each<Var<'t>>,
    /// log density to the law that scores `[N]`, where there is one.
    pub logp: Option<Each<Var<'t>>>,
    /// Pen width σ and stroke slope ω0 `[N, 2]`, where there is a pen.
    pub pen: Option<Var<'t>>,
    /// r, the stroke alone `[N, H, W]`.
    pub stroke_image: Var<'t>,
    /// b `[N]`, where the baseline network is run.
    pub baseline: Option<Var<'t>>,
    /// Latents, memories and canvas after this step.
    pub after: State<Var<'t>>,
    /// Values by their names in the specification, if they were asked for.
    pub trace: Vec<(String, Var<'t>)>,
}

impl<'t> Step<'t> {
    /// [`Step::logp`] of a pass in which a law scores.
    #[track_caller]
    pub fn scored(&self) -> Each<Var<'t>> {
        self.logp.expect("this pass has no law that scores")
    }

    /// [`Step::prior_prob`] of a pass in which a law scores.
    #[track_caller]
    pub fn scored_prob(&self) -> Var<'t> {
        self.prior_prob.expect("this pass has no law that scores")
    }

    /// The part of [`Step::kl`] that is about the stroke, not about whether there is one.
    #[track_caller]
    pub fn kl_of_stroke(&self) -> Var<'t> {
        let (q, p) = (self.logq, self.scored());
        ops::combine(&[(1.0, q.layout), (-1.0, p.layout), (1.0, q.stroke), (-1.0, p.stroke)])
    }

    /// k_t `[N]`: single-sample estimate of the divergence of this step's latents (section 8).
    #[track_caller]
    pub fn kl(&self) -> Var<'t> {
        let pairs = self.logq.to_array().into_iter().zip(self.scored().to_array());
        ops::combine(&pairs.flat_map(|(q, p)| [(1.0, q), (-1.0, p)]).collect::<Vec<_>>())
    }
}

/// The networks that choose pen and canvas slope.
pub(super) struct Pens {
    pub pen: Net,
    pub canvas_slope: Net,
}

/// With what strokes are drawn.
pub(super) enum Ink<'a> {
    /// With what the recognition networks choose.
    Inferred(&'a Pens),
    /// With given pens.
    Given(&'a Pen<Tensor>),
    /// Without: strokes are shown as they are.
    None,
}

impl Ink<'_> {
    /// σ and ω0 `[N, 2]`, and ω1.
    fn of<'t>(&self, view: &mut View<'_, 't>) -> (Option<Var<'t>>, Option<Var<'t>>) {
        let tape = view.scene.tape;
        match self {
            Ink::Inferred(pens) => (Some(pens.pen.of(view)), Some(pens.canvas_slope.of(view))),
            Ink::Given(Pen { stroke, canvas }) => {
                let stroke = if stroke.shape().len() == 3 { row(stroke, view.t) } else { stroke.clone() };
                (Some(tape.constant(stroke)), Some(tape.constant(canvas.clone())))
            }
            Ink::None => (None, None),
        }
    }

    fn inputs(&self) -> Vec<Input> {
        match self {
            Ink::Inferred(pens) => [&pens.pen.inputs[..], &pens.canvas_slope.inputs].concat(),
            Ink::Given(_) | Ink::None => vec![],
        }
    }
}

/// Which of the model's laws scores a drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scorer {
    /// p.
    Prior,
    /// q, which looks at the images.
    Posterior,
}

/// Who does what in a pass.
pub(super) struct Roles<'a> {
    pub chooser: &'a Law,
    pub choice: Choice<'a>,
    pub scorer: Option<&'a Law>,
    pub ink: Ink<'a>,
    pub baseline: Option<&'a Baseline>,
}

/// What has to be made known in a step, because somebody takes it in.
struct Needs {
    inputs: Vec<Input>,
    /// The looks before the layout is chosen.
    before: Vec<Call>,
    /// The looks through it.
    through: Vec<Call>,
    /// Whether layouts matter after a drawing has stopped: where ω1 is that of the last step.
    stopped: bool,
}

impl Roles<'_> {
    fn needs(&self, model: &Model) -> Needs {
        let laws = [Some(self.chooser), self.scorer].into_iter().flatten();
        let mut inputs: Vec<Input> = laws.flat_map(Law::inputs).chain(self.ink.inputs()).collect();
        inputs.extend(self.baseline.iter().flat_map(|net| &net.memory.inputs));
        for (state, memory) in [(Input::LayoutState, &model.layout_memory), (Input::StrokeState, &model.stroke_memory)]
        {
            if inputs.contains(&state) {
                inputs.extend(&memory.inputs);
            }
        }
        let looks = |through: bool| {
            let wanted = |call: &Call| [Input::Seen(*call), Input::Still(*call)].iter().any(|i| inputs.contains(i));
            Call::ALL.into_iter().filter(|call| call.is_glimpse() == through).filter(wanted).collect()
        };
        let last_slope = !model.eyes.see_the_work && model.config.stop == Stop::Nvil;
        let stopped = matches!(self.ink, Ink::Inferred(_)) && last_slope;
        Needs { before: looks(false), through: looks(true), stopped, inputs }
    }
}

impl Needs {
    fn has(&self, input: Input) -> bool {
        self.inputs.contains(&input)
    }
}

impl Model {
    /// `strokes` strokes from `state` on.
    fn draw<'t>(
        &self,
        scene: &Scene<'t>,
        mut state: State<Var<'t>>,
        roles: &Roles,
        strokes: usize,
    ) -> Result<Vec<Step<'t>>> {
        let needs = roles.needs(self);
        if scene.target.is_none() {
            self.check_blind(&needs)?;
        }
        let mut drawn = Vec::with_capacity(strokes);
        for t in 0..strokes {
            let step = self.step(View::open(scene, &state, t), state, roles, &needs);
            state = step.after;
            drawn.push(step);
        }
        Ok(drawn)
    }

    fn check_blind(&self, needs: &Needs) -> Result<()> {
        if !self.eyes.see_the_target(&needs.inputs) {
            return Ok(());
        }
        Err(Error::Usage(format!("the model {} cannot draw without an image to look at", self.config.variant)))
    }

    /// Whether the prior can draw by itself ([`Model::imagine`]).
    ///
    /// # Errors
    /// [`Error::Usage`] where it looks at the image to be drawn (DooD-EG).
    pub fn check_imagines(&self) -> Result<()> {
        let (choice, ink) = (Choice::Known, Ink::None);
        self.check_blind(&Roles { chooser: &self.prior, choice, scorer: None, ink, baseline: None }.needs(self))
    }

    /// One stroke after `before`.
    fn step<'t>(&self, mut view: View<'_, 't>, before: State<Var<'t>>, roles: &Roles, needs: &Needs) -> Step<'t> {
        let (t, mask) = (view.t, view.note("mask", before.z.onoff));
        let open = mask.value();

        // What is seen before the stroke; what the baseline makes of that and of the stroke before.
        self.eyes.look(&mut view, &needs.before, (!needs.stopped).then_some(&open));
        if needs.has(Input::Ratio) {
            self.eyes.ratio(&mut view);
        }
        let baseline = roles.baseline.zip(before.memory.baseline);
        let (memory, baseline) = baseline.map(|(net, state)| net.guess(&mut view, state, mask)).unzip();

        // Whether to draw, and where.
        if needs.has(Input::LayoutState) {
            self.layout_memory.update(&mut view, Input::LayoutState);
        }
        let (onoff, layout) = roles.chooser.place(&mut view);
        let onoff = onoff.gated(&open);
        let place = roles.scorer.map(|law| law.place(&mut view));
        view.set(Input::Onoff, roles.choice.onoff(&onoff, t, mask));
        view.set(Input::Layout, roles.choice.layout(&layout, t, mask));
        let on = view.get(Input::Onoff).value();
        let window = view.get(Input::Layout).affine();
        view.window = Some(window);

        // What is seen through the layout, what to draw there, and with which pen.
        self.eyes.look(&mut view, &needs.through, Some(&on));
        if needs.has(Input::StrokeState) {
            self.stroke_memory.update(&mut view, Input::StrokeState);
        }
        let stroke = roles.chooser.shape(&mut view);
        let scored = roles.scorer.zip(place).map(|(law, (onoff, layout))| (onoff, layout, law.shape(&mut view)));
        view.set(Input::Stroke, roles.choice.stroke(&stroke, t, mask));
        let (pen, slope) = roles.ink.of(&mut view);

        // The drawing, and what the laws say of it.
        let z = view.latents();
        let stroke_image = view.note("stroke_image", self.renderer.stroke(z.stroke, (z.layout, window), pen, &on));
        let settled = match self.config.stop {
            _ if self.eyes.see_the_work => Settled::First,
            Stop::Nvil => Settled::Last,
            Stop::Exact => Settled::Drawn(z.onoff),
        };
        let canvas = before.canvas.with(stroke_image, slope, settled);
        let shown = view.note("canvas", canvas.image());
        let log = |(onoff, layout, stroke): (Density<'t, '_>, Density<'t, '_>, Density<'t, '_>)| Each {
            onoff: onoff.log(z.onoff, &open),
            layout: layout.log(z.layout, &on),
            stroke: stroke.log(z.stroke, &on),
        };
        let prior_prob = scored.and_then(|(onoff, ..)| onoff.probability());
        let (logq, logp) = (log((onoff, layout, stroke)), scored.map(log));
        view.note_each("logq", Some(logq));
        view.note_each("logp", logp);
        let onoff_prob = view.note("onoff_prob", onoff.probability().unwrap_or(z.onoff));
        let after = State { z, memory: view.memory(memory), canvas, shown };
        Step { mask, onoff_prob, prior_prob, logq, logp, pen, stroke_image, baseline, after, trace: view.trace }
    }

    /// q chooses and p scores (sections 4 and 8), as many strokes as the noise is for: for every image of x `[B, H, W]`.
    #[track_caller]
    pub fn recognise<'t>(&self, tape: &'t Tape<'t>, x: &Tensor, pass: &Pass) -> Vec<Step<'t>> {
        self.recognise_moved(tape, x, pass, Moved::default())
    }

    /// The same with networks of the posterior's side moved ([`Model::movable`]).
    #[track_caller]
    pub fn recognise_moved<'t>(&self, tape: &'t Tape<'t>, x: &Tensor, pass: &Pass, moved: Moved<'t>) -> Vec<Step<'t>> {
        let (n, side) = (x.shape()[0], self.config.image);
        assert_eq!(x.shape(), [n, side, side], "recognise: images of the wrong size");
        let mut start = self.blank(tape.device(), n);
        start.memory.baseline = pass.baseline.then(|| start.memory.layout.clone());
        let scene = Scene {
            dropout: pass.dropout.clone(),
            skip_stopped: pass.skip_stopped,
            watch: pass.watch,
            copies: pass.copies,
            moved,
            ..self.scene(tape, Some(x))
        };
        let roles = Roles {
            chooser: &self.posterior,
            choice: if pass.hold { Choice::Held(&pass.noise) } else { Choice::Sampled(&pass.noise, Heat::ONE) },
            scorer: Some(&self.prior),
            ink: self.ink(None),
            baseline: self.baseline.as_ref().filter(|_| pass.baseline),
        };
        self.draw(&scene, start.on(tape), &roles, pass.noise.strokes()).expect("there are images to look at")
    }

    /// p chooses (section 3), from `start` on: [`Model::blank`], or what recognition has left of a partial figure (sections 11c, 11e).
    /// `pen` is that of all strokes; AIR has none.
    ///
    /// # Errors
    /// [`Error::Usage`] where the prior looks at the image to be drawn (DooD-EG).
    #[track_caller]
    pub fn imagine<'t>(
        &self,
        tape: &'t Tape<'t>,
        start: &State<Tensor>,
        pen: Option<&Pen<Tensor>>,
        noise: &Noise,
        heat: Heat,
    ) -> Result<Vec<Step<'t>>> {
        let choice = Choice::Sampled(noise, heat);
        let roles = Roles { chooser: &self.prior, choice, scorer: None, ink: self.ink(pen), baseline: None };
        self.draw(&self.scene(tape, None), start.on(tape), &roles, noise.strokes())
    }

    /// A drawing that somebody made, `[T, N, …]` each, scored by p or by q. Without a `pen` that of recognition is used, which needs the
    /// images x `[N, H, W]`; so does q.
    ///
    /// # Errors
    /// [`Error::Usage`] where images are needed and there are none.
    #[track_caller]
    pub fn score<'t>(
        &self,
        tape: &'t Tape<'t>,
        by: Scorer,
        x: Option<&Tensor>,
        drawing: &Each<Tensor>,
        pen: Option<&Pen<Tensor>>,
    ) -> Result<Vec<Step<'t>>> {
        let (strokes, n) = (drawing.onoff.shape()[0], drawing.onoff.shape()[1]);
        let chooser = Law::Given(drawing.clone());
        let scorer = match by {
            Scorer::Prior => &self.prior,
            Scorer::Posterior => &self.posterior,
        };
        let (choice, ink) = (Choice::Known, self.ink(pen));
        let roles = Roles { chooser: &chooser, choice, scorer: Some(scorer), ink, baseline: None };
        self.draw(&self.scene(tape, x), self.blank(tape.device(), n).on(tape), &roles, strokes)
    }

    /// Where `n` drawings begin: nothing is drawn, nothing remembered.
    pub fn blank(&self, device: &Device, n: usize) -> State<Tensor> {
        let c = &self.config;
        let zeros = |shape: &[usize]| Tensor::zeros(device, shape);
        State {
            z: Each {
                onoff: Tensor::full(device, &[n], 1.0),
                layout: zeros(&[n, 4]),
                stroke: zeros(&[n, c.stroke_dim()]),
            },
            memory: Memory { layout: zeros(&[n, c.hidden]), stroke: zeros(&[n, c.hidden]), baseline: None },
            canvas: Canvas { ink: None, slope: None },
            shown: zeros(&[n, c.image, c.image]),
        }
    }

    /// The networks of the posterior's side, by name with the number of their columns, that a pass may move: those of the decision to
    /// stop only where that is learned exactly.
    pub fn movable(&self) -> Vec<(&'static str, usize)> {
        let of_q = self.posterior.nets().into_iter();
        let decides = |net: &&Net| net.name != "onoff_posterior" || self.config.stop == Stop::Exact;
        let of_pens = self.pens.iter().flat_map(|pens| [&pens.pen, &pens.canvas_slope]);
        of_q.filter(decides).chain(of_pens).map(|net| (net.name, net.ranges.columns())).collect()
    }

    fn ink<'a>(&'a self, pen: Option<&'a Pen<Tensor>>) -> Ink<'a> {
        match (&self.pens, pen) {
            (None, _) => Ink::None,
            (Some(_), Some(pen)) => Ink::Given(pen),
            (Some(pens), None) => Ink::Inferred(pens),
        }
    }

    fn scene<'t>(&self, tape: &'t Tape<'t>, x: Option<&Tensor>) -> Scene<'t> {
        Scene {
            tape,
            target: x.map(|x| Target::new(tape.constant(x.clone()))),
            dropout: Dropout::Off,
            skip_stopped: true,
            watch: false,
            copies: 1,
            moved: Moved::default(),
            eps: self.config.bernoulli_eps,
        }
    }
}
