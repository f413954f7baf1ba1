//! Single operations: outputs, and the gradients of Σ up·out.

use crate::{Limit, Tally, file::Fixture};
use dood::{
    Device, Grads, ParamsBuilder, Tape, Tensor, Var,
    model::{Config, Model, Start},
    ops::{self, Activation, Angle, Keep, Likelihood, Placement, RenderSettings, Squash, concat, dropout_linear},
    optim::Adam,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// One case: its inputs on a tape, and its attributes.
struct Case<'a, 't> {
    tape: &'t Tape<'t>,
    fixture: &'a Fixture,
    prefix: &'a str,
    inputs: BTreeMap<String, Var<'t>>,
    attrs: &'a Value,
}

impl<'t> Case<'_, 't> {
    fn var(&self, name: &str) -> Var<'t> {
        *self.inputs.get(name).unwrap_or_else(|| panic!("{} has no input {name}", self.prefix))
    }
    fn has(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }
    /// Input `name` as `[N, rest]`.
    fn flat(&self, name: &str) -> Var<'t> {
        let v = self.var(name);
        let n = v.shape()[0];
        v.reshape(&[n, v.shape()[1..].iter().product()])
    }
    fn constant(&self, name: &str) -> Tensor {
        self.fixture.tensor(self.tape.device(), &format!("{}/in.{name}", self.prefix))
    }
    fn size(&self, name: &str) -> usize {
        self.attrs[name].as_u64().unwrap_or_else(|| panic!("{} has no attribute {name}", self.prefix)) as usize
    }
    /// Distribution parameters in the packed order of the library.
    fn packed(&self) -> Var<'t> {
        let names = ["logits", "mean", "std", "cor"];
        concat(&names.into_iter().filter(|n| self.has(n)).map(|n| self.flat(n)).collect::<Vec<_>>())
    }
    fn layers(&self, x: Var<'t>) -> Var<'t> {
        let count = (0..).take_while(|i| self.has(&format!("w{i}"))).count();
        (0..count).fold(x, |x, i| {
            let activation = if i + 1 < count { Activation::Tanh } else { Activation::None };
            x.linear(self.var(&format!("w{i}")), self.var(&format!("b{i}")), activation)
        })
    }
}

fn placement(attrs: &Value) -> Placement {
    serde_json::from_value(attrs["placement"].clone()).expect("a placement")
}

/// The differentiable operations: name → outputs.
fn evaluate<'t>(op: &str, c: &Case<'_, 't>) -> Option<Vec<(&'static str, Var<'t>)>> {
    let y = |v: Var<'t>| Some(vec![("y", v)]);
    match op {
        "conv_pair" => y(c.var("x").conv_pair(c.var("w1"), c.var("b1"), c.var("w2"), c.var("b2"), None)),
        "cnn" => {
            let convolved = c.var("x").conv_pair(c.var("cw1"), c.var("cb1"), c.var("cw2"), c.var("cb2"), None);
            let keep = if c.has("mask") { Keep::Given(c.constant("mask"), 0.5) } else { Keep::All };
            let calls = vec![(0, keep)];
            let hidden = dropout_linear(&[convolved], calls, c.var("w0"), c.var("b0"), Activation::Tanh, None);
            y(hidden.linear(c.var("w1"), c.var("b1"), Activation::None))
        }
        "linear" => y(c.var("x").linear(c.var("w"), c.var("b"), Activation::None)),
        "mlp" => y(c.layers(c.var("x"))),
        "gru_cell" => {
            let from_input = c.var("x").linear(c.var("weight_ih"), c.var("bias_ih"), Activation::None);
            let from_state = c.var("h").linear(c.var("weight_hh"), c.var("bias_hh"), Activation::None);
            y(c.var("h").gru_cell(from_input, from_state))
        }
        "decoder" => y((c.var("raw") + -2.0).softplus()),
        "affine" => y(c.var("layout").affine()),
        "inverse_affine" => y(c.var("layout").inverse_affine()),
        "affine7" => y(c.var("params").affine7(Angle::Degrees)),
        "stn" => y(c.var("image").stn(c.var("layout").affine(), None)),
        "inverse_warp" => y(c.var("image").stn(c.var("layout").inverse_affine(), None)),
        "place_points" => y(c.var("points").place_points(c.var("layout").affine())),
        "bezier" => y(c.var("points").bezier(c.size("samples"))),
        "raster" => y(c.var("curve").raster(c.var("sigma"), c.size("side"))),
        "max_norm" => y(c.var("ink").max_norm(1e-4)),
        "stroke_tanh" => y(c.var("ink").tanh_ratio(c.var("slope"))),
        "canvas_tanh" => y(c.var("total").tanh_ratio(c.var("slope"))),
        "render_stroke" => {
            let pen = concat(&[c.var("sigma"), c.var("slope")]);
            y(stroke(c, c.flat("points"), c.var("layout"), pen, &c.constant("on")))
        }
        "render_canvas" => {
            let (on, shape) = (c.constant("on"), c.var("points").shape());
            let (n, t, d) = (shape[0], shape[1], shape[2] * shape[3]);
            let (points, layout) = (c.var("points").reshape(&[n, t * d]), c.var("layout").reshape(&[n, t * 4]));
            let total = (0..t).map(|t| {
                let pen = concat(&[c.var("sigma").column(t), c.var("slope").column(t)]);
                let on = c.tape.constant(on.clone()).column(t).value();
                stroke(c, points.columns(t * d, d), layout.columns(t * 4, 4), pen, &on)
            });
            y(total.reduce(|a, b| a + b).unwrap().tanh_ratio(c.var("canvas_slope")))
        }
        "layout_head" => Some(split(c.var("raw").squash(&Squash::layout()), &[("mean", 4), ("std", 4), ("cor", 1)])),
        "stroke_head" => {
            let j = c.size("points");
            Some(split(c.var("raw").squash(&Squash::stroke(j)), &[("mean", 2 * j), ("std", 2 * j), ("cor", j)]))
        }
        "layout_prior_head" => {
            let k = c.size("components");
            let parts = [("logits", k), ("mean", 4 * k), ("std", 4 * k), ("cor", k)];
            Some(split(c.var("raw").squash(&Squash::layout_prior(k)), &parts))
        }
        "stroke_prior_head" => {
            let (j, k) = (c.size("points"), c.size("components"));
            let parts = [("logits", j * k), ("mean", 2 * j * k), ("std", 2 * j * k), ("cor", j * k)];
            Some(split(c.var("raw").squash(&Squash::stroke_prior(j, k)), &parts))
        }
        "pen_head" => {
            let low = c.attrs["pen_range"][0].as_f64().expect("a pen range");
            Some(split(c.var("raw").squash(&Squash::pen(low)), &[("sigma", 1), ("slope", 1)]))
        }
        "canvas_slope_head" => Some(vec![("slope", c.var("raw").squash(&Squash::canvas_slope()))]),
        "layout_logpdf" => y(c.var("z").gaussian_logpdf(c.packed(), 1, None)),
        "layout_rsample" => y(c.packed().gaussian_sample(&c.constant("eps"), 1)),
        "stroke_logpdf" => y(c.flat("z").gaussian_logpdf(c.packed(), c.var("z").shape()[1], None)),
        "stroke_rsample" => {
            let eps = c.constant("eps");
            let (n, j) = (eps.shape()[0], eps.shape()[1]);
            y(c.packed().gaussian_sample(&eps.reshape(&[n, 2 * j]), j))
        }
        "layout_mixture" => y(c.var("z").mixture_logpdf(c.packed(), 1, c.var("logits").shape()[1], None)),
        "stroke_mixture" => {
            let (j, k) = (c.var("logits").shape()[1], c.var("logits").shape()[2]);
            y(c.flat("z").mixture_logpdf(c.packed(), j, k, None))
        }
        "layout_prior" => {
            let k = c.size("components");
            y(c.var("z").mixture_logpdf(c.var("raw").squash(&Squash::layout_prior(k)), 1, k, None))
        }
        "stroke_prior" => {
            let (j, k) = (c.size("points"), c.size("components"));
            y(c.flat("z").mixture_logpdf(c.var("raw").squash(&Squash::stroke_prior(j, k)), j, k, None))
        }
        "onoff_logq" => {
            let (on, previous) = (c.constant("on"), c.constant("previous"));
            let prob = c.var("raw").squash(&Squash::onoff()).reshape(&[on.len()]).onoff_probability(&previous);
            Some(vec![("prob", prob), ("logq", prob.bernoulli_logpdf(&on, &previous, f32::EPSILON as f64))])
        }
        "laplace" | "normal" => {
            let kind = if op == "laplace" { Likelihood::Laplace } else { Likelihood::Normal };
            y(c.var("canvas").image_logpdf(&c.constant("x"), c.var("raw_scale"), kind))
        }
        "log_mean_exp" => y(c.var("log_weight").log_mean_exp()),
        _ => None,
    }
}

fn stroke<'t>(c: &Case<'_, 't>, points: Var<'t>, layout: Var<'t>, pen: Var<'t>, on: &Tensor) -> Var<'t> {
    let placement = placement(c.attrs);
    let matrix = if placement == Placement::Warp { layout.inverse_affine() } else { layout.affine() };
    let (side, samples) = (c.size("side"), c.size("samples"));
    ops::render_stroke(points, matrix, pen, on, RenderSettings { placement, side, samples, norm_floor: 1e-4 })
}

fn split<'t>(packed: Var<'t>, parts: &[(&'static str, usize)]) -> Vec<(&'static str, Var<'t>)> {
    let mut at = 0;
    let cut = |&(name, width): &(&'static str, usize)| {
        at += width;
        (name, packed.columns(at - width, width))
    };
    parts.iter().map(cut).collect()
}

pub fn compare(fixture: &Fixture, device: &Device, limit: Limit, tally: &mut Tally) -> Result<(), String> {
    let attributes = fixture.json("attributes")?;
    let attributes = attributes.as_object().ok_or("the attributes are not an object")?;
    for (prefix, attrs) in attributes {
        let op = prefix.split('/').next().unwrap();
        let before = tally.compared;
        match op {
            "adam" => adam(fixture, device, prefix, attrs, limit, tally),
            "nvil" => nvil(fixture, device, prefix, attrs, limit, tally),
            "init" => init(fixture, prefix, attrs, tally)?,
            "resize" => resize(fixture, prefix, attrs, tally),
            "residual_ratio" => {
                let part = |n: &str| fixture.tensor(device, &format!("{prefix}/in.{n}"));
                let ratio = ops::residual_ratio(&part("residual"), &part("x"));
                tally.check(fixture, &format!("{prefix}/out.y"), &ratio.to_f64(), limit.forward);
            }
            _ => differentiable(op, fixture, device, prefix, attrs, limit, tally)?,
        }
        if tally.compared == before {
            return Err(format!("{prefix}: nothing to compare"));
        }
    }
    tally.complete(fixture, |name| name.contains("/out.") || name.contains("/grad."));
    Ok(())
}

fn differentiable(
    op: &str,
    fixture: &Fixture,
    device: &Device,
    prefix: &str,
    attrs: &Value,
    limit: Limit,
    tally: &mut Tally,
) -> Result<(), String> {
    let tape = Tape::without_params(device);
    let start = format!("{prefix}/in.");
    let constants = attrs["constants"].as_array().cloned().unwrap_or_default();
    let mut inputs = BTreeMap::new();
    for name in fixture.names().filter_map(|n| n.strip_prefix(&start)) {
        let value = fixture.tensor(device, &format!("{start}{name}"));
        let constant = constants.iter().any(|c| c == name) || name == "mask";
        inputs.insert(name.to_string(), if constant { tape.constant(value) } else { tape.input(value) });
    }
    let case = Case { tape: &tape, fixture, prefix, inputs, attrs };
    let outputs = evaluate(op, &case).ok_or_else(|| format!("{prefix}: unknown operation {op}"))?;
    let mut sum: Option<Var> = None;
    for (name, value) in outputs {
        tally.check(fixture, &format!("{prefix}/out.{name}"), &value.value().to_f64(), limit.forward);
        let up = fixture.tensor(device, &format!("{prefix}/up.{name}")).reshape(&value.shape());
        let term = (value * tape.constant(up)).sum();
        sum = Some(sum.map_or(term, |s| s + term));
    }
    let grads = tape.backward(sum.unwrap(), &mut Grads::none(device));
    for (name, &var) in &case.inputs {
        let stored = format!("{prefix}/grad.{name}");
        if fixture.has(&stored) {
            tally.check(fixture, &stored, &grads.of(var).to_f64(), limit.gradient);
        }
    }
    Ok(())
}

fn adam(fixture: &Fixture, device: &Device, prefix: &str, attrs: &Value, limit: Limit, tally: &mut Tally) {
    let rates = attrs["rates"].as_object().expect("rates");
    let mut builder = ParamsBuilder::new();
    let mut ids = vec![];
    for (group, name) in rates.keys().enumerate() {
        let key = format!("{prefix}/in.{name}.p");
        builder.group(group);
        ids.push((name, builder.add(name, fixture.shape(&key), |i| fixture.values(&key)[i])));
    }
    let mut params = builder.build(device);
    let mut adam = Adam::new(&params, &rates.values().map(|r| r.as_f64().unwrap()).collect::<Vec<_>>());
    let mut grads = Grads::zeros(&params);
    for step in 1..=attrs["steps"].as_u64().expect("steps") {
        // The gradient of Σ g·p is g.
        grads.clear();
        let tape = Tape::new(&params);
        let terms = ids.iter().map(|(name, id)| {
            (tape.param(*id) * tape.constant(fixture.tensor(device, &format!("{prefix}/in.{name}.g{step}")))).sum()
        });
        tape.backward(terms.reduce(|a, b| a + b).unwrap(), &mut grads);
        drop(tape);
        adam.step(&mut params, &grads);
        for (name, id) in &ids {
            let spec = params.specs().iter().find(|s| s.name == **name).unwrap();
            let [m, v] = adam.moments().map(|slab| slab.to_f64()[spec.range()].to_vec());
            for (kind, ours) in [("p", params.get(*id).to_f64()), ("m", m), ("v", v)] {
                tally.check(fixture, &format!("{prefix}/out.{name}.{kind}{step}"), &ours, limit.forward);
            }
        }
    }
}

fn nvil(fixture: &Fixture, device: &Device, prefix: &str, attrs: &Value, limit: Limit, tally: &mut Tally) {
    let mut running = Tensor::zeros(device, &[2]);
    for i in 0..attrs["iterations"].as_u64().expect("iterations") {
        let part = |n: &str| fixture.tensor(device, &format!("{prefix}/in.{n}{i}"));
        let (advantage, updated) = ops::nvil::normalise(&part("raw"), &part("mask"), &running, i);
        running = updated;
        let [mean, var] = running.to_f64()[..] else { unreachable!() };
        for (kind, ours) in [("advantage", advantage.to_f64()), ("mean", vec![mean]), ("var", vec![var])] {
            tally.check(fixture, &format!("{prefix}/out.{kind}{i}"), &ours, limit.forward);
        }
    }
}

/// Initial biases. The fixture leaves out the noise on the component means, so those entries are compared with room for it.
fn init(fixture: &Fixture, prefix: &str, attrs: &Value, tally: &mut Tally) -> Result<(), String> {
    let mut config = Config::paper(placement(&attrs["config"]));
    config.components = attrs["config"]["components"].as_u64().ok_or("init without components")? as usize;
    let omniglot = attrs["omniglot"].as_bool().ok_or("init without omniglot")?;
    let start = if omniglot { Start::omniglot(1) } else { Start::new(1) };
    let (_, params) = Model::new(&config, start, &Device::cpu()).map_err(|e| e.to_string())?;
    let (j, k) = (config.points, config.components);
    let out = format!("{prefix}/out.");
    for name in fixture.names().filter_map(|n| n.strip_prefix(&out)) {
        let id = params.find(name).ok_or_else(|| format!("no parameter {name}"))?;
        let mut ours = params.get(id).to_f64();
        let stored = format!("{out}{name}");
        let noisy = match name {
            "layout_prior.linear2.bias" => k + 4..5 * k,
            "stroke_prior.linear2.bias" => j * k + 2 * j..3 * j * k,
            _ => 0..0,
        };
        let noise: Vec<f64> = noisy.clone().map(|i| ours[i] - fixture.values(&stored)[i]).collect();
        if noise.iter().any(|n| n.abs() > 0.006) || (!noise.is_empty() && noise.iter().all(|&n| n == noise[0])) {
            tally.failures.push(format!("{stored}: the means' noise is not N(0, 0.001²)"));
        }
        ours[noisy.clone()].copy_from_slice(&fixture.values(&stored)[noisy]);
        tally.check(fixture, &stored, &ours, 1e-12);
    }
    Ok(())
}

fn resize(fixture: &Fixture, prefix: &str, attrs: &Value, tally: &mut Tally) {
    let name = format!("{prefix}/in.image");
    let &[n, h, w] = fixture.shape(&name) else { panic!("{name}: not a stack of images") };
    let pixels: Vec<u8> = fixture.values(&name).iter().map(|&v| v as u8).collect();
    let side = attrs["side"].as_u64().expect("side") as usize;
    let ours: Vec<f64> =
        (0..n).flat_map(|i| dood::data::resize(&pixels[i * h * w..][..h * w], h, w, side)).map(|v| v as f64).collect();
    tally.check(fixture, &format!("{prefix}/out.y"), &ours, 0.0);
}
