//! Whole training steps and the importance-weighted bound: losses, every traced value, every gradient.

use crate::{
    Limit, Tally,
    file::{Fixture, fan_in, hashed_mask, hashed_weights},
};
use dood::{
    Device, Grads, Params, Tape, Tensor,
    model::{
        Config, Model, Start, Variant,
        objective::Running,
        recognition::{Dropout, Noise, Pass, Step},
    },
};

/// The calls' names in fixtures, in the order of `Call::ALL`.
const CALLS: [&str; 7] =
    ["target", "canvas", "residual", "target_glimpse", "residual_glimpse", "onoff_prior", "canvas_glimpse"];

pub fn compare(fixture: &Fixture, device: &Device, limit: Limit, tally: &mut Tally) -> Result<(), String> {
    let config: Config = serde_json::from_value(fixture.json("config")?).map_err(|e| format!("config: {e}"))?;
    if config.variant != Variant::Full {
        return Err(format!("not yet: variant {:?}", config.variant));
    }
    let (model, mut params) = Model::new(&config, Start::new(0), device).map_err(|e| e.to_string())?;
    load(fixture, &mut params)?;
    if fixture.kind() == "iwae" {
        return iwae(fixture, device, &model, &params, limit, tally);
    }
    for case in fixture.json("cases")?.as_array().ok_or("cases is not a list")? {
        let case = case.as_str().ok_or("a case is not a word")?;
        // Leaving out what stopped images no longer need must change neither loss nor gradient.
        for skip_stopped in [false, true] {
            step(fixture, device, (&model, &params), case, skip_stopped, limit, tally)?;
        }
    }
    let results = |name: &str| !["param.", "input.", "mask.", "probe."].iter().any(|p| name.starts_with(p));
    tally.complete(fixture, results);
    Ok(())
}

/// Takes the parameters from the file, or from its seed.
fn load(fixture: &Fixture, params: &mut Params) -> Result<(), String> {
    let specs = params.specs().to_vec();
    let seed = fixture.json("seed").ok().and_then(|s| s.as_str().map(String::from));
    for spec in &specs {
        let id = params.find(&spec.name).unwrap();
        let stored = format!("param.{}", spec.name);
        if fixture.has(&stored) {
            if fixture.shape(&stored) != spec.shape {
                return Err(format!("{stored} has shape {:?}, the model {:?}", fixture.shape(&stored), spec.shape));
            }
            params.set(id, fixture.values(&stored));
        } else if let Some(seed) = &seed {
            let shapes = |name: &str| specs.iter().find(|s| s.name == name).unwrap().shape.clone();
            let fan_in = fan_in(&spec.name, &shapes);
            params.set(id, &hashed_weights(seed, &spec.name, spec.range().len(), fan_in));
        } else if !spec.name.starts_with("baseline") {
            return Err(format!("{stored} is missing"));
        }
    }
    let unknown = fixture.names().filter_map(|n| n.strip_prefix("param.")).find(|n| params.find(n).is_none());
    unknown.map_or(Ok(()), |name| Err(format!("parameter {name} is not in the model")))
}

fn noise(fixture: &Fixture, device: &Device, steps: usize) -> Noise {
    let part = |name: &str, last: usize| {
        let all = fixture.tensor(device, &format!("input.{name}"));
        let images = all.len() / steps / last;
        all.reshape(&if last == 1 { vec![steps, images] } else { vec![steps, images, last] })
    };
    let points = fixture.shape("input.stroke_eps").iter().rev().take(2).product();
    Noise { onoff_u: part("onoff_u", 1), layout_eps: part("layout_eps", 4), stroke_eps: part("stroke_eps", points) }
}

fn dropout(fixture: &Fixture, device: &Device, config: &Config, case: &str) -> Result<Dropout, String> {
    if case != "dropout" {
        return Ok(Dropout::Off);
    }
    let batch = fixture.shape("input.image")[0];
    let shape = [config.strokes, batch, config.convolved()];
    let seed = fixture.json("seed").ok().and_then(|s| s.as_str().map(String::from));
    let mask = |call: &&str| match &seed {
        Some(seed) => Tensor::from_f64(device, &shape, &hashed_mask(seed, call, shape.iter().product())),
        None => fixture.tensor(device, &format!("mask.{call}")).reshape(&shape),
    };
    Ok(Dropout::Given(CALLS.iter().map(mask).collect()))
}

/// A value of every step, possibly some of its columns: the name in fixtures, and how to get it.
type Traced<'a> =
    (&'static str, &'a dyn Fn(&Tensor, &Step) -> Vec<f64>, &'a dyn for<'t> Fn(&Step<'t>) -> dood::Var<'t>);

/// Columns of a packed `[B, D]` tensor.
fn columns(packed: &Tensor, from: usize, width: usize) -> Vec<f64> {
    let d = packed.shape()[1];
    packed.to_f64().chunks(d).flat_map(|row| row[from..from + width].to_vec()).collect()
}

fn step(
    fixture: &Fixture,
    device: &Device,
    (model, params): (&Model, &Params),
    case: &str,
    skip_stopped: bool,
    limit: Limit,
    tally: &mut Tally,
) -> Result<(), String> {
    let c = &model.config;
    let x = fixture.tensor(device, "input.image");
    let iteration = fixture.json("iteration")?.as_u64().ok_or("iteration is not a number")?;
    let running = Running { statistics: fixture.tensor(device, "input.running"), iteration };
    let pass = Pass {
        noise: noise(fixture, device, c.strokes),
        dropout: dropout(fixture, device, c, case)?,
        skip_stopped,
        baseline: true,
        watch: true,
    };
    let tape = Tape::new(params);
    let steps = model.recognise(&tape, &x, &pass);
    let loss = model.loss(&x, &steps, &running);
    let mut grads = Grads::zeros(params);
    let nodes = tape.backward(loss.loss, &mut grads);

    let mut check = |name: &str, ours: &[f64], limit: f64| {
        let name = format!("{case}.{name}");
        if fixture.has(&name) {
            tally.check(fixture, &name, ours, limit);
            return;
        }
        // Paper-size files hold sums and norms of the large values.
        let summary = name.replacen(".trace.", ".trace_summary.", 1);
        if fixture.has(&summary) {
            let rows = fixture.shape(&summary)[..2].iter().product::<usize>();
            let sums: Vec<f64> = ours.chunks(ours.len() / rows).flat_map(sum_and_norm).collect();
            tally.check(fixture, &summary, &sums, limit);
        }
    };
    let stack = |vars: &[dood::Var]| vars.iter().flat_map(|v| v.value().to_f64()).collect::<Vec<_>>();
    let running = loss.nvil.running.to_f64();
    let terms: [(&str, Vec<f64>); 12] = [
        ("loss", loss.loss.value().to_f64()),
        ("loss_per_image", loss.per_image.value().to_f64()),
        ("log_likelihood", loss.log_likelihood.value().to_f64()),
        ("elbo", loss.elbo.value().to_f64()),
        ("kl", stack(&loss.kl)),
        ("signal", loss.nvil.signal.to_f64()),
        ("raw_advantage", loss.nvil.raw.to_f64()),
        ("advantage", loss.nvil.normalised.to_f64()),
        ("score_term", loss.score_term.value().to_f64()),
        ("baseline_term", loss.baseline_term.value().to_f64()),
        ("running_mean", vec![running[0]]),
        ("running_var", vec![running[1]]),
    ];
    for (name, ours) in &terms {
        // Beyond a stop the baseline may differ when its inputs were left out; the fixtures do not mask these two there.
        if skip_stopped && ["raw_advantage", "advantage"].contains(name) {
            continue;
        }
        check(&format!("loss.{name}"), ours, limit.forward);
    }
    check("final_canvas", &steps.last().unwrap().canvas.value().to_f64(), limit.forward);

    if !skip_stopped {
        let all = |v: &Tensor, _: &Step| v.to_f64();
        let cut = |from: usize, width: usize| move |v: &Tensor, _: &Step| columns(v, from, width);
        let (j, d) = (c.points, c.stroke_dim());
        let (mean4, std4, cor1) = (cut(0, 4), cut(4, 4), cut(8, 1));
        let (mean, std, cor) = (cut(0, d), cut(d, d), cut(2 * d, j));
        let (first, second) = (cut(0, 1), cut(1, 1));
        let traced: [Traced; 37] = [
            ("target_embedding", &all, &|s| s.target_embedding),
            ("canvas_embedding", &all, &|s| s.canvas_embedding),
            ("residual_embedding", &all, &|s| s.residual_embedding),
            ("ratio", &all, &|s| s.ratio),
            ("layout_state", &all, &|s| s.layout_state),
            ("mask", &all, &|s| s.mask),
            ("onoff_prob", &all, &|s| s.onoff_prob),
            ("onoff", &all, &|s| s.onoff),
            ("logq_onoff", &all, &|s| s.logq_onoff),
            ("layout_mean", &mean4, &|s| s.layout_posterior),
            ("layout_std", &std4, &|s| s.layout_posterior),
            ("layout_cor", &cor1, &|s| s.layout_posterior),
            ("layout", &all, &|s| s.layout),
            ("logq_layout", &all, &|s| s.logq_layout),
            ("canvas_slope", &all, &|s| s.canvas_slope),
            ("target_glimpse", &all, &|s| s.target_glimpse),
            ("target_glimpse_embedding", &all, &|s| s.target_glimpse_embedding),
            ("residual_glimpse", &all, &|s| s.residual_glimpse),
            ("residual_glimpse_embedding", &all, &|s| s.residual_glimpse_embedding),
            ("canvas_glimpse", &all, &|s| s.canvas_glimpse),
            ("canvas_glimpse_embedding", &all, &|s| s.canvas_glimpse_embedding),
            ("stroke_state", &all, &|s| s.stroke_state),
            ("stroke_mean", &mean, &|s| s.stroke_posterior),
            ("stroke_std", &std, &|s| s.stroke_posterior),
            ("stroke_cor", &cor, &|s| s.stroke_posterior),
            ("stroke", &all, &|s| s.stroke),
            ("logq_stroke", &all, &|s| s.logq_stroke),
            ("pen_sigma", &first, &|s| s.pen),
            ("pen_slope", &second, &|s| s.pen),
            ("baseline_state", &all, &|s| s.baseline_state.unwrap()),
            ("baseline", &all, &|s| s.baseline.unwrap()),
            ("onoff_prior_embedding", &all, &|s| s.onoff_prior_embedding),
            ("onoff_prior_prob", &all, &|s| s.onoff_prior_prob),
            ("layout_prior_raw", &all, &|s| s.layout_prior_raw),
            ("stroke_prior_raw", &all, &|s| s.stroke_prior_raw),
            ("logp_onoff", &all, &|s| s.logp_onoff),
            ("logp_layout", &all, &|s| s.logp_layout),
        ];
        let more: [Traced; 3] = [
            ("logp_stroke", &all, &|s| s.logp_stroke),
            ("stroke_image", &all, &|s| s.stroke_image),
            ("canvas", &all, &|s| s.canvas),
        ];
        for (name, part, var) in traced.into_iter().chain(more) {
            let values: Vec<f64> = steps.iter().flat_map(|s| part(&var(s).value(), s)).collect();
            check(&format!("trace.{name}"), &values, limit.forward);
            if fixture.has(&format!("{case}.node_grad.{name}")) {
                let grads: Vec<f64> = steps.iter().flat_map(|s| part(&nodes.of(var(s)), s)).collect();
                check(&format!("node_grad.{name}"), &grads, limit.gradient);
            }
        }
    }

    let mut norms = vec![];
    for spec in params.specs() {
        let ours = grads.get(params.find(&spec.name).unwrap()).to_f64();
        check(&format!("grad.{}", spec.name), &ours, limit.gradient);
        let probes = format!("probe.{}", spec.name);
        if fixture.has(&probes) {
            let summary = format!("grad_summary.{}", spec.name);
            check(&summary, &sum_and_norm(&ours), limit.gradient);
            norms.push((format!("{case}.{summary}"), sum_and_norm(&ours)[1]));
            let probed: Vec<f64> = fixture.values(&probes).iter().map(|&i| ours[i as usize]).collect();
            check(&format!("grad_probe.{}", spec.name), &probed, limit.gradient);
        }
    }
    // A sum can be small by cancellation; the norm has a limit of its own.
    for (name, norm) in norms {
        let stored = fixture.values(&name)[1];
        if (norm - stored).abs() > limit.norm * stored.abs() {
            tally.failures.push(format!("{name}: norm {norm:e}, stored {stored:e}"));
        }
    }
    Ok(())
}

fn sum_and_norm(values: &[f64]) -> [f64; 2] {
    [values.iter().sum(), values.iter().map(|v| v * v).sum::<f64>().sqrt()]
}

fn iwae(
    fixture: &Fixture,
    device: &Device,
    model: &Model,
    params: &Params,
    limit: Limit,
    tally: &mut Tally,
) -> Result<(), String> {
    let particles = fixture.json("particles")?.as_u64().ok_or("particles is not a number")? as usize;
    let (x, noise) = (fixture.tensor(device, "input.image"), noise(fixture, device, model.config.strokes));
    let weights = model.log_weights(params, &x, particles, noise.clone());
    tally.check(fixture, "out.log_weight", &weights.to_f64(), limit.forward);
    let tape = Tape::eval(params);
    let marginal = tape.constant(weights).log_mean_exp().value();
    tally.check(fixture, "out.log_marginal", &marginal.to_f64(), limit.forward);
    let repeated = Tensor::stack(&vec![x.clone(); particles]);
    let repeated = repeated.reshape(&[particles * x.shape()[0], model.config.image, model.config.image]);
    let pass = Pass { noise, dropout: Dropout::Off, skip_stopped: true, baseline: false, watch: false };
    let steps = model.recognise(&tape, &repeated, &pass);
    let onoff: Vec<f64> = steps.iter().flat_map(|s| s.onoff.value().to_f64()).collect();
    tally.check(fixture, "out.onoff", &onoff, 0.0);
    tally.check(fixture, "out.final_canvas", &steps.last().unwrap().canvas.value().to_f64(), limit.forward);
    tally.complete(fixture, |name| name.starts_with("out."));
    Ok(())
}
