//! Recognition, generation and scoring are the same loop: what one of them draws, the others know. In double precision.

use dood::{
    Device, Params, Tape, Tensor,
    model::{Config, Drawings, Each, Heat, Model, Noise, Pass, Pen, Scorer, Start, State, Variant},
    ops::{Likelihood, Placement},
    rng::{Rng, Stream},
};

const SIDE: usize = 9;
const STROKES: usize = 3;

/// The models whose prior needs no image.
const GENERATIVE: [Variant; 5] = [Variant::Dood, Variant::Sp, Variant::Dr, Variant::Air, Variant::Dair];

fn config(variant: Variant) -> Config {
    let sizes = Config {
        image: SIDE,
        conv1: 2,
        conv2: 2,
        features: 4,
        hidden: 5,
        components: 3,
        strokes: STROKES,
        points: 3,
        samples: 12,
        code: 4,
        dropout: 0.0,
        ..Config::paper(Placement::Points)
    };
    let likelihood = if variant == Variant::Air { Likelihood::Normal } else { Likelihood::Laplace };
    Config { likelihood, ..sizes.with_variant(variant) }
}

/// A model whose laws depend on what they see, but whose pen does not: then it is part of the generative model.
fn model(variant: Variant) -> (Model, Params) {
    let (model, mut params) = Model::new(&config(variant), Start::new(1), &Device::cpu_f64()).unwrap();
    for (k, spec) in params.specs().to_vec().iter().enumerate() {
        let last_of_a_pen = ["pen", "canvas_slope"].iter().any(|net| spec.name.starts_with(&format!("{net}.linear2")));
        if !last_of_a_pen {
            let id = params.find(&spec.name).unwrap();
            let moved = params.get(id).to_f64().into_iter().enumerate();
            let moved: Vec<f64> = moved.map(|(i, p)| p + 0.1 * Rng::new(8, 0).normal(Stream(k as u32), i)).collect();
            params.set(id, &moved);
        }
    }
    (model, params)
}

/// A posterior near the prior and a likelihood that tells little, so that proposals of q are often accepted.
fn vague(model: &Model, params: &mut Params) {
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let log_expm1 = |x: f64| x.exp_m1().ln();
    let learned = [Variant::Dood, Variant::Dr].contains(&model.config.variant);
    let (shift, turn) = (logit(0.2), logit(if learned { 0.2 } else { 0.4 }));
    if let (true, Some(id)) = (learned, params.find("layout_prior.linear2.bias")) {
        let mut biases = params.get(id).to_f64();
        let k = model.config.components;
        biases[5 * k..9 * k].fill(shift);
        params.set(id, &biases);
    }
    let scale = if learned { 4.0 } else { logit((0.8 - 0.25) / 0.75) };
    let d = model.config.stroke_dim();
    let (air_shift, air_turn) = (log_expm1(0.2), log_expm1(0.4));
    let air_layout = [0.0, 0.0, 0.0, log_expm1(0.8), 0.0, air_shift, air_shift, air_shift, air_turn];
    let code = [vec![0.0; d], vec![log_expm1(1.0); d]].concat();
    let points = [vec![0.0; d], vec![logit(0.2); d], vec![0.0; d / 2]].concat();
    let onoff = [if learned { 1.0 } else { 0.0 }];
    let layout = [0.0, 0.0, scale, 0.0, shift, shift, shift, turn, 0.0];
    let biases = [
        ("onoff_posterior", &onoff[..]),
        ("layout_posterior", &layout),
        ("onoff_layout_posterior", &air_layout),
        ("stroke_posterior", if model.draws_curves() || learned { &points } else { &code }),
    ];
    for (net, values) in biases {
        if let Some(id) = params.find(&format!("{net}.linear2.bias")) {
            params.set(id, values);
        }
    }
    params.set(params.find("likelihood.raw_scale").unwrap(), &[6.0; SIDE * SIDE]);
}

/// The pen that the recognition of [`model`] has for every image and stroke.
fn pen(model: &Model, n: usize) -> Option<Pen<Tensor>> {
    let sigmoid = |a: f64| 1.0 / (1.0 + (-a).exp());
    let [sigma, slope, canvas] = [0.005 + 0.035 * sigmoid(-2.0), 0.1 + 0.8 * sigmoid(2.0), 0.1 + 1.4 * sigmoid(-1.0)];
    let device = Device::cpu_f64();
    let air = [Variant::Air, Variant::Dair].contains(&model.config.variant);
    (!air).then(|| Pen {
        stroke: Tensor::from_f64(&device, &[n, 2], &[sigma, slope].repeat(n)),
        canvas: Tensor::full(&device, &[n], canvas),
    })
}

fn imagine(model: &Model, params: &Params, start: &State<Tensor>, noise: &Noise) -> Drawings {
    let tape = Tape::eval(params);
    let pen = pen(model, noise.onoff_u.shape()[1]);
    let steps = model.imagine(&tape, start, pen.as_ref(), noise, Heat::ONE).unwrap();
    Drawings::of(model, &steps, None, start)
}

fn recognise(model: &Model, params: &Params, x: &Tensor, noise: Noise, copies: usize) -> Drawings {
    let pass = Pass { copies, ..Pass::plain(noise) };
    let tape = Tape::eval(params);
    let steps = model.recognise(&tape, x, &pass);
    Drawings::of(model, &steps, Some(x), &model.blank(params.device(), x.shape()[0]))
}

#[track_caller]
fn same(what: &str, a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{what}");
    let off = a.iter().zip(b).fold(0.0f64, |most, (a, b)| most.max((a - b).abs() / a.abs().max(1.0)));
    assert!(off < 1e-9, "{what}: {off:e} apart");
}

fn numbers(each: &Each<Tensor>) -> Vec<f64> {
    [&each.onoff, &each.layout, &each.stroke].iter().flat_map(|x| x.to_f64()).collect()
}

#[test]
fn copies_of_an_image_are_drawn_as_if_nobody_knew_that_they_are_copies() {
    const IMAGES: usize = 2;
    const COPIES: usize = 3;
    for variant in Variant::ALL {
        let (model, params) = model(variant);
        let device = params.device();
        let pixels: Vec<f64> = (0..IMAGES * SIDE * SIDE).map(|i| (i * 7 % 11) as f64 / 11.0).collect();
        let images = Tensor::from_f64(device, &[IMAGES, SIDE, SIDE], &pixels);
        let x = Tensor::stack(&vec![images; COPIES]).reshape(&[IMAGES * COPIES, SIDE, SIDE]);
        let noise = Noise::for_strokes(&model, device, (STROKES, IMAGES * COPIES), Rng::new(5, 1));
        let [known, unknown] = [COPIES, 1].map(|copies| recognise(&model, &params, &x, noise.clone(), copies));
        same(&format!("{variant}: latents"), &numbers(&known.z), &numbers(&unknown.z));
        same(&format!("{variant}: log q"), &numbers(&known.logq), &numbers(&unknown.logq));
        same(&format!("{variant}: canvases"), &known.canvases.to_f64(), &unknown.canvases.to_f64());
        let layouts = known.z.layout.to_f64();
        let alike = layouts[..4 * IMAGES] == layouts[4 * IMAGES..8 * IMAGES];
        assert!(!alike, "copies have noise of their own");
    }
}

#[test]
fn what_was_imagined_is_scored_alike_and_drawn_alike() {
    for variant in GENERATIVE {
        let (model, params) = model(variant);
        let (device, n) = (params.device(), 20);
        let noise = Noise::to_imagine(&model, device, (STROKES, n), Rng::new(3, 0));
        let drawn = imagine(&model, &params, &model.blank(device, n), &noise);
        let counts = drawn.counts();
        assert!(counts.contains(&0) && counts.contains(&STROKES), "{variant}: {counts:?} strokes");
        let tape = Tape::eval(&params);
        let steps = model.score(&tape, Scorer::Prior, None, &drawn.z, drawn.pen.as_ref()).unwrap();
        let scored = Drawings::of(&model, &steps, None, &model.blank(device, n));
        same(&format!("{variant}: log p"), &drawn.log_prior(), &scored.log_prior());
        same(&format!("{variant}: latents"), &numbers(&drawn.logq), &numbers(scored.logp.as_ref().unwrap()));
        same(&format!("{variant}: canvases"), &drawn.canvases.to_f64(), &scored.canvases.to_f64());
    }
}

#[test]
fn what_was_recognised_is_scored_alike_and_drawn_alike() {
    for variant in Variant::ALL {
        let (model, params) = model(variant);
        let n = 12;
        let x = Rng::new(5, 0).uniform_tensor(params.device(), Stream(0), &[n, SIDE, SIDE]);
        let noise = Noise::draw(&model, params.device(), n, Rng::new(4, 0));
        let drawn = recognise(&model, &params, &x, noise, 1);
        let tape = Tape::eval(&params);
        let steps = model.score(&tape, Scorer::Prior, Some(&x), &drawn.z, None).unwrap();
        let scored = Drawings::of(&model, &steps, Some(&x), &model.blank(params.device(), n));
        let (one, other) = (drawn.logp.as_ref().unwrap(), scored.logp.as_ref().unwrap());
        same(&format!("{variant}: log p"), &numbers(one), &numbers(other));
        let [one, other] = [&drawn, &scored].map(|d| d.log_likelihood.as_ref().unwrap().to_f64());
        same(&format!("{variant}: log p(x | canvas)"), &one, &other);
        // Some of the drawings, particles of one image say, are those of these rows.
        let some = drawn.rows(&[3, 3, 0]);
        same(&format!("{variant}: rows"), &some.log_weight().unwrap()[2..], &drawn.log_weight().unwrap()[..1]);
        assert_eq!(some.canvases.shape(), [STROKES, 3, SIDE, SIDE]);
    }
}

#[test]
fn a_drawing_that_is_gone_on_with_is_the_one_that_was_never_left() {
    for variant in GENERATIVE {
        let (model, params) = model(variant);
        let (device, n) = (params.device(), 30);
        let all = Noise::to_imagine(&model, device, (4, n), Rng::new(3, 0));
        let part = |from: usize| Noise {
            onoff_u: all.onoff_u.rows(from, 2),
            layout_eps: all.layout_eps.rows(from, 2),
            stroke_eps: all.stroke_eps.rows(from, 2),
            picks: all.picks.as_ref().map(|picks| picks.clone().map(|pick| pick.rows(from, 2))),
        };
        let blank = model.blank(device, n);
        let whole = imagine(&model, &params, &blank, &all);
        let first = imagine(&model, &params, &blank, &part(0));
        let rest = imagine(&model, &params, &first.end, &part(2));
        let open: Vec<usize> = (0..n).filter(|&i| first.counts()[i] == 2).collect();
        assert!(open.len() > 2, "{variant}: {} drawings to go on with", open.len());
        let [whole, rest] = [&whole, &rest].map(|drawn| drawn.rows(&open));
        let half = |x: &Tensor| x.rows(2, 2).to_f64();
        same(&format!("{variant}: layouts"), &half(&whole.z.layout), &rest.z.layout.to_f64());
        same(&format!("{variant}: strokes"), &half(&whole.z.stroke), &rest.z.stroke.to_f64());
        same(&format!("{variant}: canvases"), &half(&whole.canvases), &rest.canvases.to_f64());
    }
}

#[test]
fn a_prior_that_looks_at_the_image_says_so_when_there_is_none() {
    let (model, params) = model(Variant::Eg);
    let noise = Noise::to_imagine(&model, params.device(), (STROKES, 2), Rng::new(3, 0));
    let (tape, start, pen) = (Tape::eval(&params), model.blank(params.device(), 2), pen(&model, 2));
    let refused = model.imagine(&tape, &start, pen.as_ref(), &noise, Heat::ONE).err().expect("it has no image");
    assert!(refused.to_string().contains("cannot draw without an image"), "{refused}");
    // And nothing has to be made ready in order to know.
    for variant in Variant::ALL {
        let (model, _) = self::model(variant);
        assert_eq!(model.check_imagines().is_err(), variant == Variant::Eg, "{variant}");
    }
}

/// Images drawn from p(x | canvas) `[N, H, W]`.
fn images(model: &Model, params: &Params, canvas: &Tensor, rng: Rng) -> Tensor {
    let raw = params.get(params.find("likelihood.raw_scale").unwrap()).to_f64();
    let noise = |i: usize| match model.config.likelihood {
        Likelihood::Normal => rng.normal(Stream(20), i),
        Likelihood::Laplace => {
            let u = rng.uniform(Stream(20), i) - 0.5;
            -u.signum() * (1.0 - 2.0 * u.abs()).max(1e-12).ln()
        }
    };
    let pixel = |(i, c): (usize, &f64)| c + (0.01 + 0.99 / (1.0 + (-raw[i % raw.len()]).exp())) * noise(i);
    let pixels: Vec<f64> = canvas.to_f64().iter().enumerate().map(pixel).collect();
    Tensor::from_f64(canvas.device(), canvas.shape(), &pixels)
}

/// One row per drawing: what the moments are of.
fn statistics(drawn: &Drawings, x: &Tensor) -> Vec<Vec<f64>> {
    let (o, l, s) = (drawn.z.onoff.to_f64(), drawn.z.layout.to_f64(), drawn.z.stroke.to_f64());
    let (n, x) = (drawn.len(), x.to_f64());
    let d = s.len() / o.len();
    let log_prior = drawn.log_prior();
    let row = |i: usize| {
        let x = &x[i * SIDE * SIDE..][..SIDE * SIDE];
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let mut row = vec![mean, x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64, log_prior[i]];
        for t in 0..o.len() / n {
            let (on, l, s) = (o[t * n + i], &l[(t * n + i) * 4..][..4], &s[(t * n + i) * d..][..d]);
            row.push(on);
            row.extend(l.iter().flat_map(|l| [on * l, on * l * l]));
            row.extend([
                on * s[0],
                on * s[0] * s[0],
                on * s[d - 1],
                on * s[0] * s[1],
                on * l[0] * mean,
                on * s[0] * mean,
            ]);
        }
        row
    };
    (0..n).map(row).collect()
}

/// The largest difference of two means in standard errors.
fn distance(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let moments = |rows: &[Vec<f64>], j: usize| {
        let n = rows.len() as f64;
        let mean = rows.iter().map(|row| row[j]).sum::<f64>() / n;
        (mean, rows.iter().map(|row| (row[j] - mean).powi(2)).sum::<f64>() / (n * (n - 1.0)))
    };
    let apart = |j: usize| {
        let ((a, var_a), (b, var_b)) = (moments(a, j), moments(b, j));
        (a - b).abs() / (var_a + var_b).sqrt().max(1e-12)
    };
    (0..a[0].len()).map(apart).fold(0.0, f64::max)
}

/// Geweke, "Getting it right" (2004). Latents and images are drawn from the joint p(z) p(x | z); then, by turns, z from a Markov chain
/// that leaves p(z | x) as it is (a proposal of q, accepted by the ratio of the weights p(x, z) / q(z | x)) and x from p(x | z). If
/// drawing and scoring agree, in both laws and in the likelihood, the pairs are still from the joint. Returns how far their moments are
/// from those of fresh pairs, in standard errors, and the share of accepted proposals; `log_weight` may be told to be wrong.
fn geweke(variant: Variant, log_weight: impl Fn(&Drawings) -> Vec<f64>) -> (f64, f64) {
    const CHAINS: usize = 1500;
    const TURNS: u64 = 12;
    // Fewer choices, more of which are accepted.
    const STROKES: usize = 2;
    let (model, mut params) = model(variant);
    vague(&model, &mut params);
    let (params, device) = (&params, params.device());
    let joint = |seed: u64| {
        let noise = Noise::to_imagine(&model, device, (STROKES, CHAINS), Rng::new(seed, 0));
        let drawn = imagine(&model, params, &model.blank(device, CHAINS), &noise);
        let last = drawn.canvases.rows(STROKES - 1, 1).reshape(&[CHAINS, SIDE, SIDE]);
        let x = images(&model, params, &last, Rng::new(seed, 1));
        (drawn, x)
    };
    let (fresh, fresh_x) = joint(100);
    let (mut now, mut x) = joint(200);
    let mut accepted = 0;
    for turn in 0..TURNS {
        // The weight of the present latents under q: they are scored by both laws.
        let present = score_both(&model, params, &x, &now);
        let noise = Noise::for_strokes(&model, device, (STROKES, CHAINS), Rng::new(300, turn));
        let proposal = recognise(&model, params, &x, noise, 1);
        let (old, new) = (log_weight(&present), log_weight(&proposal));
        let u = |i: usize| Rng::new(400, turn).uniform(Stream(0), i).max(1e-300).ln();
        let take: Vec<bool> = (0..CHAINS).map(|i| u(i) < new[i] - old[i]).collect();
        accepted += take.iter().filter(|&&take| take).count();
        now = choose(&take, &proposal, &present);
        let last = now.canvases.rows(STROKES - 1, 1).reshape(&[CHAINS, SIDE, SIDE]);
        x = images(&model, params, &last, Rng::new(500, turn));
    }
    let rate = accepted as f64 / (CHAINS as u64 * TURNS) as f64;
    (distance(&statistics(&fresh, &fresh_x), &statistics(&now, &x)), rate)
}

/// Known latents with what both laws say of them, and the likelihood of x.
fn score_both(model: &Model, params: &Params, x: &Tensor, drawn: &Drawings) -> Drawings {
    let (tape, pen) = (Tape::eval(params), pen(model, drawn.len()));
    let by = |scorer| {
        let steps = model.score(&tape, scorer, Some(x), &drawn.z, pen.as_ref()).unwrap();
        Drawings::of(model, &steps, Some(x), &model.blank(params.device(), drawn.len()))
    };
    let (prior, posterior) = (by(Scorer::Prior), by(Scorer::Posterior));
    Drawings { logq: posterior.logp.unwrap(), ..prior }
}

/// Drawing i of `one` where `take` says so, and else of `other`.
fn choose(take: &[bool], one: &Drawings, other: &Drawings) -> Drawings {
    let mix = |one: &Tensor, other: &Tensor| {
        let (width, values) = (one.len() / one.shape()[0] / take.len(), [one.to_f64(), other.to_f64()]);
        let from = |i: usize| values[usize::from(!take[i / width % take.len()])][i];
        Tensor::from_f64(one.device(), one.shape(), &(0..one.len()).map(from).collect::<Vec<_>>())
    };
    let each = |one: &Each<Tensor>, other: &Each<Tensor>| Each {
        onoff: mix(&one.onoff, &other.onoff),
        layout: mix(&one.layout, &other.layout),
        stroke: mix(&one.stroke, &other.stroke),
    };
    Drawings {
        z: each(&one.z, &other.z),
        canvases: mix(&one.canvases, &other.canvases),
        logp: Some(each(one.logp.as_ref().unwrap(), other.logp.as_ref().unwrap())),
        ..other.clone()
    }
}

#[test]
fn drawing_and_scoring_agree_as_geweke_has_it() {
    for variant in GENERATIVE {
        let (distance, rate) = geweke(variant, |drawn| drawn.log_weight().unwrap());
        println!("{variant}: moments at most {distance:.1} standard errors apart, {:.0} % accepted", 100.0 * rate);
        assert!(rate > 0.05, "{variant}: {rate} of the proposals were accepted, too few to show anything");
        assert!(distance < 4.5, "{variant}: moments {distance:.1} standard errors apart");
    }
}

/// The same with log q(l) left out of the weights: it must be noticed.
#[test]
fn geweke_notices_a_density_that_is_left_out() {
    let (distance, _) = geweke(Variant::Sp, |drawn| {
        let (weights, layouts) = (drawn.log_weight().unwrap(), drawn.logq.layout.to_f64());
        (0..drawn.len()).map(|i| weights[i] + layouts.iter().skip(i).step_by(drawn.len()).sum::<f64>()).collect()
    });
    assert!(distance > 6.0, "moments only {distance:.1} standard errors apart");
}
