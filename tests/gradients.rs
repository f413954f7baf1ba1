//! Gradients of the whole model against central differences, in double precision with fixed noise.
//!
//! The training loss stops gradients on purpose: canvases and residuals are seen as images, the baseline's inputs, the learning
//! signal and the on/off decisions are constants, and so is the maximum of a stroke's image. Its plain finite differences are
//! therefore not its gradient. Three checks together leave no gap:
//!
//! 1. One stroke. Nothing is drawn before it, so the ELBO holds no stopped path but the maximum, which a large `norm_floor`
//!    leaves out. Plain differences are exact: no path through glimpses, networks, densities or renderer is lost.
//! 2. Several strokes, with networks that see only the layout and the strokes: first convolutions and ratio columns have zero
//!    weights, so the images on the way do not matter to first order. Plain differences are exact again: no recurrent path is
//!    lost, nor that of an earlier stroke to the last canvas. Also the score term and the baseline term with given factors.
//! 3. The whole training loss as it is, where whatever the loss holds constant is frozen while parameters move
//!    ([`Tape::eval_frozen`]).

use dood::{
    Device, Grads, Params, Slot, Tape, Tensor, Var,
    gradcheck::gradcheck,
    measure::over_ends,
    model::{
        Call, Config, Dropout, Model, Moved, Noise, Pass, Start, Step, Stop,
        Variant::{self, Air, Dair, Dood, Dr, Eg, Sp},
        objective::{Loss, Running},
    },
    ops::{
        Likelihood, Op,
        Placement::{self, Points, Warp},
    },
    optim::Adam,
    rng::{Rng, Stream},
};

const BATCH: usize = 3;
const LIMIT: f64 = 1e-6;
/// Every model, and DooD with both placements. What a decoder makes is always warped.
const MODELS: [(Variant, Placement); 7] =
    [(Dood, Warp), (Dood, Points), (Sp, Points), (Eg, Warp), (Dr, Warp), (Air, Warp), (Dair, Warp)];
/// DooD alone, where the others can show nothing new.
const DOOD: [(Variant, Placement); 2] = [(Dood, Warp), (Dood, Points)];
/// Above every maximum, so that nothing is divided by it.
const NO_NORM: f64 = 1e9;

fn config((variant, placement): (Variant, Placement), strokes: usize) -> Config {
    let sizes = Config {
        image: 12,
        conv1: 2,
        conv2: 3,
        features: 6,
        hidden: 7,
        components: 3,
        strokes,
        samples: 15,
        code: 4,
        norm_floor: NO_NORM,
        ..Config::paper(placement)
    };
    // The likelihood that the paper has for AIR on Omniglot.
    let likelihood = if variant == Dair { Likelihood::Normal } else { Likelihood::Laplace };
    Config { likelihood, baseline_hidden: 5, ..sizes.with_variant(variant) }
}

/// Every model with the sampled decision to stop; and with the exact one, seen at half the resolution, with a price for strokes.
fn ways_to_learn(strokes: usize) -> Vec<(String, Config)> {
    let of = |kind| {
        let sampled = config(kind, strokes);
        let exact = Config { stop: Stop::Exact, view: Some(6), price: 1.5, ..sampled.clone() };
        [(format!("{kind:?}"), sampled), (format!("{kind:?}, exact stop"), exact)]
    };
    MODELS.into_iter().flat_map(of).collect()
}

/// A model whose last layers are random, too: as initialised, their zero weights keep every gradient from the layers before.
fn model(config: &Config, device: &Device) -> (Model, Params) {
    let (model, mut params) = Model::new(config, Start::new(1), device).unwrap();
    for (k, spec) in params.specs().to_vec().iter().enumerate() {
        let id = params.find(&spec.name).unwrap();
        let moved = params.get(id).to_f64().into_iter().enumerate();
        let moved: Vec<f64> = moved.map(|(i, p)| p + 0.2 * Rng::new(8, 0).normal(Stream(k as u32), i)).collect();
        params.set(id, &moved);
    }
    (model, params)
}

fn images(device: &Device, batch: usize, side: usize) -> Tensor {
    Rng::new(5, 0).uniform_tensor(device, Stream(0), &[batch, side, side])
}

/// Image 0 never stops, image 1 stops after its first stroke, image 2 before it, and so on.
fn pass(model: &Model, device: &Device, batch: usize, dropout: Dropout, skip_stopped: bool) -> Pass {
    let t = model.config.strokes;
    let go_on = |i: usize| (i % batch).is_multiple_of(3) || (i % batch % 3 == 1 && i < batch);
    let u: Vec<f64> = (0..t * batch).map(|i| if go_on(i) { 0.0 } else { 0.9999999 }).collect();
    let noise = Noise {
        onoff_u: Tensor::from_f64(device, &[t, batch], &u),
        ..Noise::draw(model, device, batch, Rng::new(6, model.config.variant as u64))
    };
    Pass {
        noise,
        dropout,
        skip_stopped,
        baseline: true,
        hold: model.config.stop == Stop::Exact,
        watch: false,
        copies: 1,
    }
}

fn given_masks(model: &Model, device: &Device) -> Dropout {
    let shape = [model.config.strokes, BATCH, model.config.convolved()];
    let mask = |call: Call| {
        let u = Rng::new(7, 0).uniform_tensor(device, Stream(call as u32), &shape).to_f64();
        Tensor::from_f64(device, &shape, &u.iter().map(|&u| f64::from(u < 0.5)).collect::<Vec<_>>())
    };
    Dropout::Given(Call::ALL.map(|call| Some(mask(call))).to_vec())
}

fn running(device: &Device) -> Running {
    Running { statistics: Tensor::from_f64(device, &[2], &[3.0, 40.0]), iteration: 5 }
}

fn train_loss<'t>(tape: &'t Tape<'t>, model: &Model, x: &Tensor, pass: &Pass) -> Loss<'t> {
    model.loss(x, &model.recognise(tape, x, pass), &running(tape.device()))
}

/// The same values in memory of their own, to be changed.
fn copy(model: &Model, params: &Params) -> Params {
    let (_, mut copy) = Model::new(&model.config, Start::new(1), params.device()).unwrap();
    for spec in params.specs() {
        let id = params.find(&spec.name).unwrap();
        copy.set(id, &params.get(id).to_f64());
    }
    copy
}

/// How far the slope at 0 of `f`, in which the products `terms` of gradient and direction are summed, is from that of differences.
///
/// The numeric derivative is of fourth order. Where a sample crosses from one pixel to the next, or a ReLU its kink, between the
/// points of the difference, there is no derivative to compare with; so smaller steps are tried before an error counts; and a larger one, where
/// the loss is large and its derivative small. A wrong
/// derivative agrees at no step.
fn slope_error(terms: &[f64], mut f: impl FnMut(f64) -> f64) -> f64 {
    let exact: f64 = terms.iter().sum();
    let size = terms.iter().map(|t| t * t).sum::<f64>().sqrt();
    let mut error = |h: f64| {
        let [near, far] = [h, 2.0 * h].map(|h| [f(h), f(-h)]);
        let numeric = (8.0 * (near[0] - near[1]) - (far[0] - far[1])) / (12.0 * h);
        // What the rounding of f alone makes of the difference does not count, if it is little.
        let size = size.max(numeric.abs()).max(1e-9);
        let rounding = (2.0 * f64::EPSILON * near[0].abs() / h).min(10.0 * LIMIT * size);
        ((numeric - exact).abs() - rounding).max(0.0) / size
    };
    let mut best = f64::INFINITY;
    for h in [1e-3, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7] {
        best = best.min(error(h));
        if best < LIMIT {
            break;
        }
    }
    best
}

/// The worst [`slope_error`] of `grads` along one random direction of every parameter whose name `wanted` accepts, and its name.
fn worst_error(
    (model, params): (&Model, &Params),
    grads: &Grads,
    wanted: impl Fn(&str) -> bool,
    f: impl Fn(&Params) -> f64,
) -> (f64, String) {
    let mut worst = (0.0, String::new());
    let mut moved = copy(model, params);
    for (k, spec) in params.specs().iter().enumerate().filter(|(_, spec)| wanted(&spec.name)) {
        let id = params.find(&spec.name).unwrap();
        let (values, grad) = (params.get(id).to_f64(), grads.get(id).to_f64());
        let v = |i: usize| Rng::new(9, 0).normal(Stream(k as u32), i);
        let terms: Vec<f64> = grad.iter().enumerate().map(|(i, g)| g * v(i)).collect();
        let error = slope_error(&terms, |h| {
            moved.set(id, &values.iter().enumerate().map(|(i, p)| p + h * v(i)).collect::<Vec<_>>());
            f(&moved)
        });
        moved.set(id, &values);
        if error > worst.0 {
            worst = (error, spec.name.clone());
        }
    }
    worst
}

/// The gradients of what `f` makes of the steps, and the worst error against plain central differences.
fn plain_error(
    (model, params): &(Model, Params),
    pass: &Pass,
    wanted: impl Fn(&str) -> bool,
    f: impl for<'t> Fn(&Tensor, &[Step<'t>]) -> Var<'t>,
) -> (f64, String) {
    let x = images(params.device(), BATCH, model.config.image);
    let tape = Tape::new(params);
    let mut grads = Grads::zeros(params);
    tape.backward(f(&x, &model.recognise(&tape, &x, pass)), &mut grads);
    worst_error((model, params), &grads, wanted, |params| {
        let tape = Tape::eval(params);
        f(&x, &model.recognise(&tape, &x, pass)).value().item()
    })
}

fn elbo<'t>(model: &Model, x: &Tensor, steps: &[Step<'t>]) -> Var<'t> {
    let kl = steps.iter().map(Step::kl).reduce(|a, b| a + b).unwrap();
    (model.log_likelihood(x, steps) - kl).mean()
}

fn not_baseline(name: &str) -> bool {
    !name.starts_with("baseline")
}

/// DooD-EG decides whether to draw on from an embedding held constant, so plain differences of log q(o) see a path that is none.
fn through_onoff(variant: Variant, name: &str) -> bool {
    variant != Eg || !name.starts_with("image_cnn")
}

#[test]
fn the_elbo_of_one_stroke_has_the_gradient_of_its_finite_differences() {
    let device = Device::cpu_f64();
    for kind in MODELS {
        let m = model(&config(kind, 1), &device);
        for (dropout, masks) in [(Dropout::Off, "no"), (given_masks(&m.0, &device), "given")] {
            for skip in [false, true] {
                let pass = pass(&m.0, &device, BATCH, dropout.clone(), skip);
                let wanted = |name: &str| not_baseline(name) && through_onoff(kind.0, name);
                let (error, name) = plain_error(&m, &pass, wanted, |x, steps| elbo(&m.0, x, steps));
                assert!(error < LIMIT, "{kind:?}, {masks} dropout, skip {skip}: {name} is wrong by {error:e}");
                let rest = |name: &str| not_baseline(name) && !through_onoff(kind.0, name);
                let (error, name) =
                    plain_error(&m, &pass, rest, |x, steps| elbo(&m.0, x, steps) + steps[0].logq.onoff.mean());
                assert!(error < LIMIT, "{kind:?}, {masks} dropout, skip {skip}: {name} is wrong by {error:e}");
            }
        }
    }
}

/// Zero weights wherever the networks look at images, so that they do not notice what was drawn. Where they see the target alone,
/// there is nothing to notice.
fn blind(params: &mut Params) {
    for spec in params.specs().to_vec() {
        let id = params.find(&spec.name).unwrap();
        let mut values = params.get(id).to_f64();
        if spec.name.ends_with("conv1.weight") {
            values.fill(0.0);
        } else if ["onoff_posterior", "layout_posterior", "canvas_slope"]
            .iter()
            .any(|n| spec.name == format!("{n}.linear0.weight"))
        {
            // The ratio of what is left to draw is the last input, but for DooD-EG, which is not made blind.
            values.chunks_mut(spec.shape[1]).for_each(|row| row[spec.shape[1] - 1] = 0.0);
        }
        params.set(id, &values);
    }
}

#[test]
fn gradients_reach_earlier_strokes_through_states_and_the_last_canvas() {
    let device = Device::cpu_f64();
    for kind in MODELS {
        let mut m = model(&config(kind, 3), &device);
        if ![Eg, Air].contains(&kind.0) {
            blind(&mut m.1);
        }
        let pass = pass(&m.0, &device, BATCH, Dropout::Off, true);
        let wanted = |name: &str| not_baseline(name) && through_onoff(kind.0, name);
        let (error, name) = plain_error(&m, &pass, wanted, |x, steps| elbo(&m.0, x, steps));
        assert!(error < LIMIT, "ELBO, {kind:?}: {name} is wrong by {error:e}");

        let factor = Rng::new(3, 0).normal_tensor(&device, Stream(0), &[3, BATCH]);
        let row = |t: usize| factor.rows(t, 1).reshape(&[BATCH]);
        let (error, name) = plain_error(&m, &pass, wanted, |_, steps| {
            let scores = steps.iter().enumerate().map(|(t, s)| s.logq.onoff * s.mask.tape().constant(row(t)));
            scores.reduce(|a, b| a + b).unwrap().sum()
        });
        assert!(error < LIMIT, "score term, {kind:?}: {name} is wrong by {error:e}");

        // Nothing learns through the baseline's inputs, so only its own parameters have these differences.
        let (error, name) = plain_error(
            &m,
            &pass,
            |name| !not_baseline(name),
            |_, steps| {
                let errors = steps.iter().enumerate().map(|(t, s)| {
                    let error = s.baseline.unwrap() - s.mask.tape().constant(row(t));
                    s.mask * error * error
                });
                errors.reduce(|a, b| a + b).unwrap().sum()
            },
        );
        assert!(error < LIMIT, "baseline term, {kind:?}: {name} is wrong by {error:e}");
    }
}

#[test]
fn the_training_loss_has_the_gradient_of_its_finite_differences() {
    let device = Device::cpu_f64();
    let x = images(&device, BATCH, 12);
    for (kind, config) in ways_to_learn(3) {
        let (model, params) = model(&config, &device);
        for (dropout, masks) in [(Dropout::Off, "no"), (given_masks(&model, &device), "given")] {
            for skip in [false, true] {
                let pass = pass(&model, &device, BATCH, dropout.clone(), skip);
                let recorded = Tape::new(&params);
                let mut grads = Grads::zeros(&params);
                recorded.backward(train_loss(&recorded, &model, &x, &pass).loss, &mut grads);
                let (error, name) = worst_error(
                    (&model, &params),
                    &grads,
                    |_| true,
                    |params| {
                        let tape = Tape::eval_frozen(params, &recorded);
                        train_loss(&tape, &model, &x, &pass).loss.value().item()
                    },
                );
                assert!(error < LIMIT, "{kind}, {masks} dropout, skip {skip}: {name} is wrong by {error:e}");
            }
        }
    }
}

/// The likelihood counted by a hundredth too much in the gradient alone.
#[test]
fn a_planted_error_of_the_training_loss_is_caught() {
    let device = Device::cpu_f64();
    let x = images(&device, BATCH, 12);
    for (kind, config) in ways_to_learn(3) {
        let (model, params) = model(&config, &device);
        let pass = pass(&model, &device, BATCH, Dropout::Off, true);
        let recorded = Tape::new(&params);
        let mut grads = Grads::zeros(&params);
        let loss = train_loss(&recorded, &model, &x, &pass);
        recorded.backward(loss.loss + loss.log_likelihood.mean() * 1e-2, &mut grads);
        // Both learn from the likelihood alone.
        let drawing = if model.draws_curves() { "pen.linear2.weight" } else { "decoder.linear2.weight" };
        for name in [drawing, "likelihood.raw_scale"] {
            let frozen = |params: &Params| {
                let tape = Tape::eval_frozen(params, &recorded);
                train_loss(&tape, &model, &x, &pass).loss.value().item()
            };
            let (error, _) = worst_error((&model, &params), &grads, |n| n == name, frozen);
            assert!(error > 100.0 * LIMIT, "{kind}: {name} is wrong by {error:e}, which nobody noticed");
        }
    }
}

/// Random numbers for the raw outputs of a network at step t.
fn random_move(device: &Device, name: &str, t: usize, columns: usize) -> Vec<f64> {
    let stream = Stream((100 * t + name.len()) as u32);
    Rng::new(11, columns as u64).normal_tensor(device, stream, &[BATCH, columns]).to_f64()
}

/// Moves of everything that may move; those of one network at one step go further by a part of random numbers.
fn moves<'t>(tape: &'t Tape<'t>, model: &Model, further: Option<(&str, usize, f64)>) -> Moved<'t> {
    let of = |name: &str, t: usize, columns: usize| {
        let by = further.filter(|(net, step, _)| (*net, *step) == (name, t)).map_or(0.0, |(_, _, by)| by);
        let values = random_move(tape.device(), name, t, columns).into_iter().map(|way| (0.3 + by) * way);
        tape.input(Tensor::from_f64(tape.device(), &[BATCH, columns], &values.collect::<Vec<_>>()))
    };
    let steps = |name, columns| (0..model.config.strokes).map(|t| of(name, t, columns)).collect();
    Moved(model.movable().into_iter().map(|(name, columns)| (name, steps(name, columns))).collect())
}

/// What refinement climbs: the bound of each image as a function of what is added to the raw outputs of q's networks.
#[test]
fn the_gradient_with_respect_to_moves_of_the_posterior_is_right() {
    let device = Device::cpu_f64();
    let x = images(&device, BATCH, 12);
    for (kind, config) in ways_to_learn(3) {
        let (model, params) = model(&config, &device);
        let pass = Pass { baseline: false, ..pass(&model, &device, BATCH, Dropout::Off, true) };
        let recorded = Tape::frozen(&params);
        let moved = moves(&recorded, &model, None);
        let sum = model.elbo(&x, &model.recognise_moved(&recorded, &x, &pass, moved.clone())).sum();
        let found = recorded.backward(sum, &mut Grads::none(&device));
        let decides = moved.0.iter().any(|(name, _)| *name == "onoff_posterior");
        assert_eq!(decides, config.stop == Stop::Exact && ![Air, Dair].contains(&config.variant), "{kind}");
        for (name, steps) in &moved.0 {
            for (t, &var) in steps.iter().enumerate() {
                let way = random_move(&device, name, t, var.shape()[1]);
                let terms: Vec<f64> = found.of(var).to_f64().iter().zip(way).map(|(g, way)| g * way).collect();
                let error = slope_error(&terms, |by| {
                    let tape = Tape::eval_frozen(&params, &recorded);
                    let moved = moves(&tape, &model, Some((name, t, by)));
                    model.elbo(&x, &model.recognise_moved(&tape, &x, &pass, moved)).sum().value().item()
                });
                assert!(error < LIMIT, "{kind}: {name} at step {t} is wrong by {error:e}");
            }
        }
        // Nothing moved is nothing changed, to the bit.
        let tape = Tape::eval(&params);
        let zero = |columns| tape.constant(Tensor::zeros(&device, &[BATCH, columns]));
        let still = model.movable().into_iter().map(|(name, columns)| (name, vec![zero(columns); 3])).collect();
        let sum = |moved| model.elbo(&x, &model.recognise_moved(&tape, &x, &pass, moved)).sum().value().item();
        assert_eq!(sum(Moved(still)), sum(Moved::default()), "{kind}");
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for device in [Device::cpu(), Device::cpu_f64()] {
        for (kind, config) in ways_to_learn(3) {
            let config = Config { norm_floor: 1e-4, ..config };
            let (model, params) = model(&config, &device);
            let pass = pass(&model, &device, BATCH, Dropout::Random(Rng::new(4, 0)), true);
            let tape = Tape::new(&params);
            let mut grads = Grads::zeros(&params);
            tape.backward(train_loss(&tape, &model, &images(&device, BATCH, 12), &pass).loss, &mut grads);
            let zero = |name: &str| grads.get(params.find(name).unwrap()).to_f64().iter().all(|&g| g == 0.0);
            let without: Vec<&str> = params.specs().iter().map(|s| s.name.as_str()).filter(|n| zero(n)).collect();
            // The target of Difference-AIR enters the baseline only, whose inputs are constants (section 12.2).
            let unreached = |name: &&str| config.variant == Dair && name.starts_with("image_cnn.");
            let expected: Vec<&str> = params.specs().iter().map(|s| s.name.as_str()).filter(unreached).collect();
            assert_eq!(without, expected, "{kind}, {:?}: parameters without a gradient", device.dtype());
            assert!(grads.slab().is_finite(), "{kind}: a gradient is not finite");
        }
    }
}

#[test]
fn leaving_out_stopped_images_changes_neither_loss_nor_gradients() {
    let device = Device::cpu_f64();
    for (kind, config) in ways_to_learn(3) {
        let config = Config { norm_floor: 1e-4, ..config };
        let (model, params) = model(&config, &device);
        let run = |none_live: bool, skip: bool| {
            let mut pass = pass(&model, &device, BATCH, Dropout::Random(Rng::new(4, 0)), skip);
            if none_live {
                pass.noise.onoff_u = Tensor::full(&device, &[3, BATCH], 0.9999999);
            }
            let tape = Tape::new(&params);
            let mut grads = Grads::zeros(&params);
            let loss = train_loss(&tape, &model, &images(&device, BATCH, 12), &pass);
            tape.backward(loss.loss, &mut grads);
            (loss.loss.value().item(), grads)
        };
        for none_live in [false, true] {
            let ((all, all_grads), (some, some_grads)) = (run(none_live, false), run(none_live, true));
            assert!((all - some).abs() <= 1e-12 * all.abs(), "{kind}: loss {all} and {some}");
            for spec in params.specs() {
                let id = params.find(&spec.name).unwrap();
                let (all, some) = (all_grads.get(id).to_f64(), some_grads.get(id).to_f64());
                let size = all.iter().fold(0.0f64, |most, g| most.max(g.abs()));
                let apart = all.iter().zip(&some).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
                assert!(apart <= 1e-12 * size, "{kind}: {} differs by {apart:e} of {size:e}", spec.name);
            }
        }
    }
}

fn weight_over_ends(model: &Model, params: &Params, x: &Tensor, held: &Pass) -> f64 {
    let tape = Tape::eval(params);
    over_ends(model, x, &model.recognise(&tape, x, held))[1][0]
}

/// With q(n) the probability to stop after n strokes and f_n what is sampled then, Σ_n q(n)·∇f_n + f_n·∇q(n): the mean over all
/// outcomes of what the score-function estimator would make of each.
#[test]
fn the_exact_gradient_is_the_mean_of_the_sampled_one_over_all_outcomes() {
    let device = Device::cpu_f64();
    let strokes = 4;
    for kind in MODELS {
        let config = Config { stop: Stop::Exact, norm_floor: 1e-4, ..config(kind, strokes) };
        let (model, params) = model(&config, &device);
        let x = images(&device, 1, 12);
        let held = pass(&model, &device, 1, Dropout::Off, true);
        let tape = Tape::new(&params);
        let mut exact = Grads::zeros(&params);
        let loss = train_loss(&tape, &model, &x, &held);
        tape.backward(loss.elbo.sum(), &mut exact);

        let (mut chance, mut bound, mut outcomes) = (0.0, 0.0, vec![]);
        let mut mean = vec![0.0; params.slab().len()];
        for ends in 0..=strokes {
            let u: Vec<f64> = (0..strokes).map(|t| if t < ends { 0.0 } else { 1.0 - 1e-15 }).collect();
            let noise = Noise { onoff_u: Tensor::from_f64(&device, &[strokes, 1], &u), ..held.noise.clone() };
            let tape = Tape::new(&params);
            let steps = model.recognise(&tape, &x, &Pass { noise, hold: false, baseline: false, ..held.clone() });
            let sampled = elbo(&model, &x, &steps);
            let logq = steps.iter().map(|s| s.logq.onoff).reduce(|a, b| a + b).unwrap().sum();
            let q = logq.value().item().exp();
            chance += q;
            bound += q * sampled.value().item();
            outcomes.push((q, sampled.value().item()));
            let mut grads = Grads::zeros(&params);
            tape.backward(sampled + sampled.detach() * logq, &mut grads);
            mean.iter_mut().zip(grads.slab().to_f64()).for_each(|(mean, g)| *mean += q * g);
        }
        // Weighed together, all ends of a drawing are worth more than the mean over them.
        let together = weight_over_ends(&model, &params, &x, &held);
        let spread = outcomes.iter().map(|(_, w)| w).fold(f64::NEG_INFINITY, |most, w| most.max(*w));
        let sum: f64 = outcomes.iter().map(|(q, w)| q * (w - spread).exp()).sum();
        assert!((together - (spread + sum.ln())).abs() < 1e-9 * together.abs(), "{kind:?}: {together}");
        assert!(together >= bound, "{kind:?}: {together} is below {bound}");
        assert!((chance - 1.0).abs() < 1e-12, "{kind:?}: the outcomes have {chance} together");
        let found = loss.elbo.value().item();
        assert!((found - bound).abs() < 1e-9 * bound.abs(), "{kind:?}: {found} instead of {bound}");
        let size = mean.iter().fold(0.0f64, |most, g| most.max(g.abs()));
        let off = exact.slab().to_f64().iter().zip(&mean).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 1e-9 * size, "{kind:?}: off by {off:e} of {size:e}");
    }
}

#[test]
fn a_training_step_has_the_same_bits_on_one_and_on_two_threads() {
    let device = Device::cpu();
    let batch = 9;
    for kind in DOOD {
        // Wide enough that every op splits its work.
        let config = Config { image: 28, conv1: 4, conv2: 8, features: 40, hidden: 48, ..config(kind, 3) };
        let config = Config { samples: 40, components: 10, norm_floor: 1e-4, ..config };
        let step = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (model, mut params) = model(&config, &device);
                let pass = pass(&model, &device, batch, Dropout::Random(Rng::new(4, 0)), true);
                let (mut grads, mut adam) = (Grads::zeros(&params), Adam::new(&params, &[1e-3, 1e-2, 1e-3, 1e-2]));
                let tape = Tape::new(&params);
                let loss = train_loss(&tape, &model, &images(&device, batch, 28), &pass);
                tape.backward(loss.loss, &mut grads);
                let value = loss.loss.value().to_f32()[0].to_bits();
                drop(tape);
                adam.step(&mut params, &grads);
                let bits = |t: &Tensor| t.to_f32().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                (value, bits(grads.slab()), bits(params.slab()))
            })
        };
        let (one, two) = (step(1), step(2));
        assert_eq!(one.0, two.0, "{kind:?}: the loss differs");
        assert!(one.1 == two.1, "{kind:?}: the gradients differ");
        assert!(one.2 == two.2, "{kind:?}: the updated parameters differ");
    }
}

/// y = a·b², and ways to get its derivative wrong.
#[derive(Clone, Copy)]
enum Planted {
    Right,
    Factor,
    Sign,
    MissingTerm,
}

impl Op for Planted {
    fn name(&self) -> &'static str {
        "planted"
    }

    fn forward(&self, cx: &Device, x: &[Tensor]) -> Vec<Tensor> {
        let (a, b) = (x[0].to_f64(), x[1].to_f64());
        vec![Tensor::from_f64(cx, x[0].shape(), &a.iter().zip(&b).map(|(a, b)| a * b * b).collect::<Vec<_>>())]
    }

    fn backward(&self, cx: &Device, x: &[Tensor], _: &[Tensor], dy: &Tensor, dx: &mut [Option<Slot>]) {
        let [a, b, dy] = [&x[0], &x[1], dy].map(Tensor::to_f64);
        let (da, db) = match self {
            Planted::Right => (1.0, 2.0),
            Planted::Factor => (1.001, 2.0),
            Planted::Sign => (1.0, -2.0),
            Planted::MissingTerm => (1.0, 1.0),
        };
        let factors = [(da, &b), (db, &a)];
        for (slot, (factor, other)) in dx.iter_mut().zip(factors) {
            let Some(slot) = slot else { continue };
            let g: Vec<f64> = (0..dy.len()).map(|i| factor * dy[i] * other[i] * b[i]).collect();
            slot.add_tensor(&Tensor::from_f64(cx, x[0].shape(), &g));
        }
    }
}

#[test]
fn a_planted_wrong_derivative_is_caught() {
    let error = |op: Planted| gradcheck(&[&[2, 5], &[2, 5]], |tape, x| tape.apply(op, x));
    assert!(error(Planted::Right) < LIMIT, "the right derivative: {:e}", error(Planted::Right));
    for (op, what) in
        [(Planted::Factor, "a factor 1.001"), (Planted::Sign, "a wrong sign"), (Planted::MissingTerm, "a missing term")]
    {
        assert!(error(op) > 1e-4, "{what} was not noticed: {:e}", error(op));
    }
}
