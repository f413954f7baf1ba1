//! Whole training steps and the importance-weighted bound: losses, every traced value, every gradient.

use crate::{
    Limit, Tally,
    file::{Fixture, fan_in, hashed_mask, hashed_weights},
};
use dood::{
    Device, Grads, NodeGrads, Params, Tape, Tensor,
    model::{Call, Config, Dropout, Model, Noise, Pass, Start, Step, objective::Running},
};

pub fn compare(fixture: &Fixture, device: &Device, limit: Limit, tally: &mut Tally) -> Result<(), String> {
    let config: Config = serde_json::from_value(fixture.json("config")?).map_err(|e| format!("config: {e}"))?;
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

fn noise(fixture: &Fixture, device: &Device, config: &Config) -> Noise {
    let part = |name: &str, last: usize| {
        let all = fixture.tensor(device, &format!("input.{name}"));
        let images = all.len() / config.strokes / last;
        all.reshape(&if last == 1 { vec![config.strokes, images] } else { vec![config.strokes, images, last] })
    };
    Noise {
        onoff_u: part("onoff_u", 1),
        layout_eps: part("layout_eps", 4),
        stroke_eps: part("stroke_eps", config.stroke_dim()),
        picks: None,
    }
}

fn dropout(fixture: &Fixture, device: &Device, config: &Config, case: &str) -> Dropout {
    if case != "dropout" {
        return Dropout::Off;
    }
    let batch = fixture.shape("input.image")[0];
    let shape = [config.strokes, batch, config.convolved()];
    let seed = fixture.json("seed").ok().and_then(|s| s.as_str().map(String::from));
    let mask = |call: Call| match &seed {
        Some(seed) => Some(Tensor::from_f64(device, &shape, &hashed_mask(seed, call.name(), shape.iter().product()))),
        None => {
            let name = format!("mask.{}", call.name());
            fixture.has(&name).then(|| fixture.tensor(device, &name).reshape(&shape))
        }
    };
    Dropout::Given(Call::ALL.map(mask).to_vec())
}

/// Where the library has a value of the fixtures: under which names in the trace, and in which columns if not in all.
fn place(name: &str, c: &Config) -> (Vec<String>, Option<(usize, usize)>) {
    let d = c.stroke_dim();
    let (source, columns) = match name {
        "layout_mean" => ("layout_posterior", Some((0, 4))),
        "layout_std" => ("layout_posterior", Some((4, 4))),
        "layout_cor" => ("layout_posterior", Some((8, 1))),
        "stroke_mean" => ("stroke_posterior", Some((0, d))),
        "stroke_std" => ("stroke_posterior", Some((d, d))),
        "stroke_cor" => ("stroke_posterior", Some((2 * d, c.points))),
        "pen_sigma" => ("pen", Some((0, 1))),
        "pen_slope" => ("pen", Some((1, 1))),
        "onoff_prior_prob" => ("onoff_prior", None),
        "glimpse" | "glimpse_embedding" => {
            return (["target", "residual"].map(|image| format!("{image}_{name}")).to_vec(), None);
        }
        name => (name, None),
    };
    (vec![source.into()], columns)
}

/// Those columns of a packed `[B, D]` tensor.
fn cut(packed: &Tensor, columns: Option<(usize, usize)>) -> Vec<f64> {
    let Some((from, width)) = columns else { return packed.to_f64() };
    packed.to_f64().chunks(packed.shape()[1]).flat_map(|row| row[from..from + width].to_vec()).collect()
}

/// Compares every value of every step that the fixture holds, and every gradient of one.
fn traces(
    (fixture, case): (&Fixture, &str),
    config: &Config,
    steps: &[Step],
    nodes: &NodeGrads,
    check: &mut dyn FnMut(&str, &[f64], bool),
) {
    let kinds = ["trace", "trace_summary", "node_grad"].map(|kind| format!("{case}.{kind}."));
    for stored in fixture.names().filter(|name| kinds.iter().any(|kind| name.starts_with(kind))) {
        let (kind, name) = stored[case.len() + 1..].split_once('.').expect("a kind and a name");
        let (sources, columns) = place(name, config);
        let of_step = |i: usize| steps[i].trace.iter().find(|(name, _)| sources.contains(name));
        let vars: Vec<_> = (0..steps.len()).filter_map(of_step).map(|(_, var)| *var).collect();
        let of = |var: &dood::Var| if kind == "node_grad" { nodes.of(*var) } else { var.value() };
        let ours: Vec<f64> = vars.iter().flat_map(|var| cut(&of(var), columns)).collect();
        check(&format!("{}.{name}", kind.replace("_summary", "")), &ours, kind == "node_grad");
    }
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
        noise: noise(fixture, device, c),
        dropout: dropout(fixture, device, c, case),
        skip_stopped,
        baseline: true,
        hold: false,
        watch: true,
        copies: 1,
    };
    let tape = Tape::new(params);
    let steps = model.recognise(&tape, &x, &pass);
    let loss = model.loss(&x, &steps, &running);
    let nvil = loss.nvil.as_ref().expect("fixtures are of the sampled decision");
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
    let running = nvil.advantage.running.to_f64();
    let terms: [(&str, Vec<f64>); 12] = [
        ("loss", loss.loss.value().to_f64()),
        ("loss_per_image", loss.per_image.value().to_f64()),
        ("log_likelihood", loss.log_likelihood.value().to_f64()),
        ("elbo", loss.elbo.value().to_f64()),
        ("kl", stack(&loss.kl)),
        ("signal", nvil.advantage.signal.to_f64()),
        ("raw_advantage", nvil.advantage.raw.to_f64()),
        ("advantage", nvil.advantage.normalised.to_f64()),
        ("score_term", nvil.score_term.value().to_f64()),
        ("baseline_term", nvil.baseline_term.value().to_f64()),
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
    check("final_canvas", &steps.last().unwrap().after.shown.value().to_f64(), limit.forward);

    if !skip_stopped {
        traces((fixture, case), c, &steps, &nodes, &mut |name, ours, gradient| {
            check(name, ours, if gradient { limit.gradient } else { limit.forward });
        });
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
    let (x, noise) = (fixture.tensor(device, "input.image"), noise(fixture, device, &model.config));
    let weights = model.log_weights(params, &x, particles, noise.clone());
    tally.check(fixture, "out.log_weight", &weights.to_f64(), limit.forward);
    let tape = Tape::eval(params);
    let marginal = tape.constant(weights).log_mean_exp().value();
    tally.check(fixture, "out.log_marginal", &marginal.to_f64(), limit.forward);
    let repeated = Tensor::stack(&vec![x.clone(); particles]);
    let repeated = repeated.reshape(&[particles * x.shape()[0], model.config.image, model.config.image]);
    let pass = Pass::plain(noise);
    let steps = model.recognise(&tape, &repeated, &pass);
    let onoff: Vec<f64> = steps.iter().flat_map(|s| s.after.z.onoff.value().to_f64()).collect();
    tally.check(fixture, "out.onoff", &onoff, 0.0);
    tally.check(fixture, "out.final_canvas", &steps.last().unwrap().after.shown.value().to_f64(), limit.forward);
    tally.complete(fixture, |name| name.starts_with("out."));
    Ok(())
}
