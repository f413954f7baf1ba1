//! How noisy the gradient of the decision to stop is, for the same parameters and images: sampled with a baseline (`nvil`, as published)
//! and averaged over all ends (`exact`).
//!
//! `cargo bench --bench stop -- --checkpoint RUN [--images 32] [--draws 200] [--threads N]`
//!
//! RUN is a run that was trained with `--stop nvil`, so that its baseline is a good one; the images are the first of its test set.
//! Printed is the noise-to-signal ratio tr Cov(g) / |E g|² of the gradient g with respect to the parameters of the network of q that
//! decides, dropout off, from so many draws of all noise. It does not depend on the scale of the gradient, which NVIL normalises.

mod common;

use dood::{
    Error, Grads, Params, Result, Tape, Tensor,
    checkpoint::{self, Checkpoint},
    data, files,
    measure::pixels,
    model::{Config, Dropout, Model, Noise, Start, Stop, objective::Running},
    rng::Rng,
    train::settings_of,
};

/// Draws that the running statistics of the sampled signal settle over first.
const SETTLE: u64 = 30;

fn main() {
    common::main(run);
}

fn run() -> Result<()> {
    let arguments = common::Arguments::new();
    let device = arguments.device()?;
    let Some(run) = arguments.value("--checkpoint") else {
        println!("name a run with --checkpoint, one that was trained with --stop nvil: nothing is measured without");
        return Ok(());
    };
    let path = checkpoint::find(run.as_ref())?;
    let bytes = files::read(&path)?;
    let file = Checkpoint::parse(&bytes, run)?;
    let (sampled, params) = file.model(&device)?;
    if sampled.config.stop != Stop::Nvil {
        return Err(Error::Usage(format!(
            "{run} was trained with --stop exact and has no baseline: name a run with nvil"
        )));
    }
    let config = Config { stop: Stop::Exact, ..sampled.config.clone() };
    let (exact, mut same) = Model::new(&config, Start::new(0), &device)?;
    file.start(&mut same)?;

    let images = data::load(&settings_of(&file)?.data, config.image)?.test;
    let count = arguments.parse("--images").unwrap_or(32).min(images.len());
    let x = pixels(&images, 0..count, &device);
    let draws = arguments.parse("--draws").unwrap_or(200);
    println!("{count} images, {draws} draws, {}", path.display());
    for (name, model, params) in [("nvil", &sampled, &params), ("exact", &exact, &same)] {
        let (ratio, strokes) = noise_to_signal(model, params, &x, draws)?;
        println!("{name:6} noise-to-signal ratio {ratio:10.3e}, {strokes:.2} strokes");
    }
    Ok(())
}

/// tr Cov(g) / |E g|² of one gradient g over the batch, both without bias, and strokes per image.
fn noise_to_signal(model: &Model, params: &Params, x: &Tensor, draws: u64) -> Result<(f64, f64)> {
    let decides = params.specs().iter().filter(|spec| spec.name.starts_with("onoff_posterior"));
    let wanted: Vec<_> = decides.map(|spec| params.find(&spec.name).expect("it is declared")).collect();
    let mut running = Running { statistics: Tensor::zeros(params.device(), &[2]), iteration: 0 };
    let (mut grads, mut drawn) = (Grads::zeros(params), 0.0);
    let size = wanted.iter().map(|&id| params.get(id).len()).sum();
    let (mut sum, mut squares) = (vec![0.0; size], 0.0);
    for draw in 0..SETTLE + draws {
        let noise = Noise::draw(model, params.device(), x.shape()[0], Rng::new(1, draw));
        let tape = Tape::new(params);
        let steps = model.recognise(&tape, x, &model.lesson(noise, Dropout::Off));
        let loss = model.loss(x, &steps, &running);
        running.iteration += 1;
        if let Some(nvil) = &loss.nvil {
            running.statistics = nvil.advantage.running.clone();
        }
        if draw < SETTLE {
            continue;
        }
        grads.clear();
        tape.backward(loss.loss, &mut grads);
        let g = wanted.iter().flat_map(|&id| grads.get(id).to_f64());
        for (sum, g) in sum.iter_mut().zip(g) {
            *sum += g;
            squares += g * g;
        }
        let totals = model.totals(&loss, &steps);
        let of = |(sign, value): &(f64, dood::Var)| sign * value.value().to_f64().iter().sum::<f64>();
        drawn += totals.strokes.iter().map(of).sum::<f64>() / x.shape()[0] as f64;
    }
    let n = draws as f64;
    let of_mean = sum.iter().map(|sum| (sum / n).powi(2)).sum::<f64>();
    let variance = (squares - n * of_mean) / (n - 1.0);
    Ok((variance / (of_mean - variance / n), drawn / n))
}
