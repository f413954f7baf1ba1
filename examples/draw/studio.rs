//! Where the models draw: one thread, one task after the other.

use super::{
    api::{Answer, Input, Kind, Picture, Refusal, Score, Seen, Sight, Task, VERSION, bytes},
    models::Entry,
    queue::{Job, Outcome, Queue, ending, superseded},
};
use dood::{
    Device, Error, Observer, Result, Tensor,
    eval::{Artist, Beginning, Best, Brush, Drawing, DrawingFile, Drawn, MedianPen, Token, paint, token::Spread},
    figures::curve,
    measure::Protocol,
    ops::Angle,
    rng::Rng,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// So many models are held in memory.
const HELD: usize = 2;
/// How often the program looks whether it shall end, while nobody asks for anything.
const LOOK: Duration = Duration::from_millis(100);

/// Exemplars of a known drawing that are held against a new one, the drawing itself among them.
const EXEMPLARS: usize = 24;
/// How they differ: less than the exemplars that are shown as other hands', as size and middle can be fitted before.
const NEAR: Token = Token {
    motor: [0.01, 0.02, 0.03],
    ranges: [(-0.1, 0.1), (-0.1, 0.1), (0.85, 1.15), (0.85, 1.15), (-0.2, 0.2), (-0.1, 0.1), (-0.1, 0.1)],
    spread: Spread::Uniform,
    angle: Angle::Radians,
};

/// A model that is at hand.
struct Held {
    entry: Arc<Entry>,
    artist: Artist,
}

pub struct Studio {
    device: Device,
    held: Vec<Held>,
}

/// Asks both the program and whoever waits for the answer.
struct Watch<'a> {
    program: &'a dyn Observer,
    left: &'a AtomicBool,
}

impl Observer for Watch<'_> {
    fn stopped(&self) -> bool {
        self.left.load(Relaxed) || self.program.stopped()
    }
}

impl Studio {
    pub fn new(device: Device) -> Self {
        Studio { device, held: vec![] }
    }

    /// Does what comes until the program shall end.
    pub fn work(&mut self, queue: &Queue, program: &dyn Observer) {
        while !program.stopped() {
            let Some(Job { task, left, answer }) = queue.next(LOOK) else { continue };
            let watch = Watch { program, left: &left };
            let done = catch_unwind(AssertUnwindSafe(|| self.answer(&task, &watch)));
            let outcome = done.unwrap_or_else(|_| {
                // What a panic has left behind is not used again.
                self.held.clear();
                Err(Refusal::new(500, "the program has a fault: please report what you asked for"))
            });
            // Whoever asked may have gone.
            let _ = answer.send(outcome);
        }
        queue.end();
    }

    fn answer(&mut self, task: &Task, watch: &Watch) -> Outcome {
        let began = Instant::now();
        let answer = self.draw(task, watch).map_err(|error| match error {
            Error::Stopped if watch.program.stopped() => ending(),
            Error::Stopped => superseded(),
            Error::Usage(_) | Error::Data(_) => Refusal::bad(error.to_string()),
            _ => Refusal::new(500, error.to_string()),
        })?;
        let answer = Answer { seconds: began.elapsed().as_secs_f64(), ..answer };
        serde_json::to_string(&answer).map_err(|e| Refusal::new(500, format!("the answer cannot be written: {e}")))
    }

    /// The model of a menu entry, read if it is not at hand.
    pub fn artist(&mut self, entry: &Arc<Entry>) -> Result<&Artist> {
        let at = self.held.iter().position(|held| held.entry.path == entry.path && held.entry.written == entry.written);
        let held = match at {
            Some(at) => self.held.remove(at),
            None => Held { entry: entry.clone(), artist: Artist::open(&entry.path, &self.device)? },
        };
        self.held.truncate(HELD - 1);
        self.held.insert(0, held);
        Ok(&self.held[0].artist)
    }

    fn draw(&mut self, task: &Task, watch: &Watch) -> Result<Answer> {
        watch.go_on()?;
        let work = Work { artist: self.artist(&task.model)?, task, watch, rng: Rng::new(task.seed, 0) };
        match task.kind {
            Kind::Redraw => work.redraw(),
            Kind::Complete => work.complete(),
            Kind::Vary => work.vary(),
            Kind::Imagine => work.imagine(),
            Kind::Score => work.score(),
        }
    }
}

/// A task and who does it.
struct Work<'a> {
    artist: &'a Artist,
    task: &'a Task,
    watch: &'a Watch<'a>,
    rng: Rng,
}

impl Work<'_> {
    fn side(&self) -> usize {
        self.artist.model.config.image
    }

    /// The strokes that the model has learned with, unless others are asked for.
    fn strokes(&self) -> usize {
        self.task.strokes.unwrap_or(self.artist.model.config.strokes)
    }

    /// Images as the model takes them.
    fn tensor(&self, images: &[&[f32]]) -> Tensor {
        let side = self.side();
        Tensor::from_f32(self.artist.params.device(), &[images.len(), side, side], &images.concat())
    }

    /// The image of what was given.
    fn image(&self, input: &Input) -> Vec<f32> {
        match input {
            Input::Image(seen) => seen.pixels.clone(),
            Input::Strokes(drawing) => {
                let canvases =
                    paint(std::slice::from_ref(drawing), Brush::default(), self.side(), self.artist.params.device());
                canvases.last().expect("at least one").to_f32()
            }
        }
    }

    fn given(&self) -> &Input {
        self.task.input.as_ref().expect("a task of this kind has an input")
    }

    /// The pen for what is drawn from nothing: the model's own, else that of `begun`, else a middling one; none where it has no pens.
    fn pen(&self, begun: Option<&Drawing>) -> Option<MedianPen> {
        let frame = self.artist.frame();
        let of = |drawing: &Drawing| {
            let stroke = drawing.strokes.first()?;
            let layout = stroke.layout.unwrap_or_else(|| frame.around(&stroke.points));
            let sigma = frame.width_in_window(layout, stroke.width?);
            Some(MedianPen { sigma, slope: stroke.slope?, canvas_slope: drawing.canvas_slope? })
        };
        let Brush { width: sigma, slope, canvas_slope } = Brush::default();
        let pen = self.task.model.pen.or_else(|| begun.and_then(of));
        self.artist.model.has_pens().then_some(pen.unwrap_or(MedianPen { sigma, slope, canvas_slope }))
    }

    fn answer(&self, seen: Option<&[f32]>, drawn: Vec<Drawn>, picture: impl Fn(&Drawn) -> Picture) -> Answer {
        let place = match &self.task.input {
            Some(Input::Image(Seen { place, .. })) => *place,
            _ => dood::eval::ink::Place::AS_IT_IS,
        };
        let pictures = drawn.iter().map(picture).collect();
        let drawings = drawn.into_iter().map(|one| one.drawing).collect();
        Answer {
            version: VERSION,
            model: self.task.model.id.clone(),
            seed: self.task.seed,
            seconds: 0.0,
            seen: seen.map(|pixels| Sight { pixels: bytes(pixels), place }),
            drawings: DrawingFile::new(self.artist.model.config.variant.to_string(), self.side(), drawings),
            pictures,
            scores: vec![],
        }
    }

    /// How images are redrawn.
    fn protocol(&self) -> Protocol {
        Protocol { refine: self.task.refine, ..Protocol::published(self.task.particles) }
    }

    /// The best of several drawings of the image.
    fn redraw(&self) -> Result<Answer> {
        let image = self.image(self.given());
        let x = self.tensor(&[&image]);
        let keep = (self.protocol(), Best::Likelihood);
        let drawn = self.artist.redraw(&x, keep, self.strokes(), self.rng, self.watch)?;
        let drawn = drawn.into_iter().map(|one| one.drawn).collect();
        Ok(self.answer(Some(&image), drawn, |one| Picture {
            canvases: one.canvases.iter().map(|canvas| bytes(canvas)).collect(),
            residual: Some(differ(&image, one.canvas())),
            ..finished(one)
        }))
    }

    /// Several ends of what was begun. An image is redrawn first, in `begin` strokes at most.
    fn complete(&self) -> Result<Answer> {
        let Task { count, heat, begin, .. } = self.task;
        let learned = self.artist.model.config.strokes;
        let (seen, begun) = match self.given() {
            Input::Strokes(drawing) => (None, drawing.clone()),
            Input::Image(seen) => {
                // A line of a hand, with its corners, takes the model two strokes or so; some are kept for the end.
                let lines = seen.lines.map_or(learned / 2, |lines| 2 * lines);
                let begin = begin.unwrap_or(lines.clamp(1, learned.max(2) - 1));
                let keep = (self.protocol(), Best::Likelihood);
                let mut drawn = self.artist.redraw(&self.tensor(&[&seen.pixels]), keep, begin, self.rng, self.watch)?;
                (Some(&seen.pixels[..]), drawn.pop().expect("one image").drawn.drawing)
            }
        };
        let strokes = self.task.strokes.unwrap_or(learned.saturating_sub(begun.strokes.len()).max(1));
        let (pen, first) = (self.pen(Some(&begun)), begun.strokes.len());
        let beginning = Beginning::Drawings(vec![begun]);
        let how = (pen, *heat);
        let rows = self.artist.complete(&beginning, *count, how, strokes, self.rng, self.watch)?;
        let drawn = rows.into_iter().flat_map(|row| row.drawn).collect();
        Ok(self.answer(seen, drawn, |one| Picture { begun: Some(first), ..finished(one) }))
    }

    /// The same in other hands.
    fn vary(&self) -> Result<Answer> {
        let image = self.image(self.given());
        let exemplars = (self.task.count, self.task.particles);
        let rows = self.artist.vary(&self.tensor(&[&image]), &self.task.token, exemplars, self.rng, self.watch)?;
        let drawn = rows.into_iter().flat_map(|row| row.drawn).collect();
        Ok(self.answer(Some(&image), drawn, finished))
    }

    /// From nothing.
    fn imagine(&self) -> Result<Answer> {
        let Task { count, heat, .. } = self.task;
        let drawn = self.artist.imagine_many(*count, (self.pen(None), *heat), self.strokes(), self.rng, self.watch)?;
        Ok(self.answer(None, drawn, finished))
    }

    /// How well each known drawing explains what was given: the likelihood of the best of its exemplars, as other hands would draw it.
    fn score(&self) -> Result<Answer> {
        let image = self.image(self.given());
        let images: Vec<Vec<f32>> = self.task.known.iter().map(|known| self.image(known)).collect();
        let x = self.tensor(&images.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let keep = (self.protocol(), Best::Likelihood);
        let redrawn = self.artist.redraw(&x, keep, self.strokes(), self.rng, self.watch)?;
        let x = self.tensor(&vec![&image[..]; EXEMPLARS]);
        let mut best = vec![];
        for (i, (known, redrawn)) in self.task.known.iter().zip(redrawn).enumerate() {
            self.watch.go_on()?;
            // What was given as strokes is known better than by redrawing it.
            let drawing = match known {
                Input::Strokes(drawing) => drawing.clone(),
                Input::Image(_) => redrawn.drawn.drawing,
            };
            let exemplar = |e: usize| match e {
                0 => drawing.clone(),
                _ => NEAR.vary(&drawing, self.artist.frame(), Rng::new(self.rng.seed, (i * EXEMPLARS + e) as u64)),
            };
            let exemplars: Vec<Drawing> = (0..EXEMPLARS).map(exemplar).collect();
            let scored = self.artist.score(&exemplars, self.pen(None), Some(&x), usize::MAX)?;
            let scored = Drawn::all(&self.artist.model, &scored).into_iter();
            best.extend(scored.max_by(|a, b| likelihood(a).total_cmp(&likelihood(b))));
        }
        let values: Vec<f64> = best.iter().map(likelihood).collect();
        Ok(Answer { scores: shares(&values, image.len()), ..self.answer(Some(&image), best, finished) })
    }
}

fn likelihood(one: &Drawn) -> f64 {
    one.drawing.log_likelihood.expect("there is an image")
}

/// A drawing without its image.
fn finished(one: &Drawn) -> Picture {
    let points = |stroke: &dood::eval::Stroke| -> Vec<[f32; 2]> {
        stroke.points.iter().map(|point| point.map(|v| v as f32)).collect()
    };
    let paths = one.drawing.strokes.iter().map(points).filter(|points| points.len() >= 2);
    Picture {
        canvases: vec![bytes(one.canvas())],
        paths: paths.map(|p| curve(&p)).collect(),
        begun: None,
        residual: None,
    }
}

fn differ(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / a.len() as f64
}

/// Log-likelihoods and what they say of each other, by pixel.
fn shares(values: &[f64], pixels: usize) -> Vec<Score> {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |value: f64| ((value - most) / pixels as f64).exp();
    let sum: f64 = values.iter().copied().map(weight).sum();
    values.iter().map(|&value| Score { log_likelihood: value, share: weight(value) / sum }).collect()
}
