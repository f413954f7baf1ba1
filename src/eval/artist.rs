//! A trained model that draws: what programs and pages hold.

use super::{
    drawing::{Drawing, Frame},
    drawn::Drawn,
    gallery::Row,
    paint::{Brush, paint},
    reconstruction::{Best, Reconstruction, reconstruct},
    token::Token,
};
use crate::{
    Device, Error, Observer, Params, Result, Tape, Tensor, checkpoint,
    measure::Protocol,
    model::{Drawings, Each, Heat, Model, Noise, Pass, Pen, Scorer, State},
    observer::task,
    rng::Rng,
};
use std::path::Path;

/// Passes hold at most so many drawings, to bound their memory.
const AT_ONCE: usize = 64;

/// A model and its parameters.
pub struct Artist {
    /// The networks.
    pub model: Model,
    /// Their values.
    pub params: Params,
}

/// What somebody has begun to draw.
#[derive(Clone, Debug)]
pub enum Beginning {
    /// So many drawings of one stroke, drawn from nothing.
    Imagined(usize),
    /// Images `[N, H, W]`.
    Images(Tensor),
    /// Strokes.
    Drawings(Vec<Drawing>),
}

/// Middling values of what strokes are drawn with: medians over a batch of images (section 11c).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct MedianPen {
    /// Pen width σ of the first stroke, as the model has it.
    pub sigma: f64,
    /// ω0 of the first stroke.
    pub slope: f64,
    /// ω1.
    pub canvas_slope: f64,
}

impl MedianPen {
    /// The same for `n` drawings.
    pub fn pen(self, device: &Device, n: usize) -> Pen<Tensor> {
        Pen {
            stroke: Tensor::from_f64(device, &[n, 2], &[self.sigma, self.slope].repeat(n)),
            canvas: Tensor::full(device, &[n], self.canvas_slope),
        }
    }
}

/// The number in the middle; the lower one of two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

impl Artist {
    /// The model of a checkpoint.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a checkpoint.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let (model, params) = checkpoint::load(path, device)?;
        Ok(Artist { model, params })
    }

    /// How its strokes lie on the canvas.
    pub fn frame(&self) -> Frame {
        Frame::of(&self.model)
    }

    fn device(&self) -> &Device {
        self.params.device()
    }

    /// One drawing of each image x `[N, H, W]` in at most `strokes` strokes; q chooses and p scores.
    pub fn recognise(&self, x: &Tensor, strokes: usize, rng: Rng) -> Result<Drawings> {
        let noise = Noise::for_strokes(&self.model, self.device(), (strokes, x.shape()[0]), rng);
        let pass = Pass::plain(noise);
        let tape = Tape::eval(&self.params);
        let steps = self.model.recognise(&tape, x, &pass);
        let start = self.model.blank(self.device(), x.shape()[0]);
        let drawings = Drawings::of(&self.model, &steps, Some(x), &start);
        self.device().check()?;
        Ok(drawings)
    }

    /// The best of several drawings of each image x `[B, H, W]`, in at most `strokes` strokes: [`reconstruct`].
    ///
    /// # Errors
    /// [`Error::Stopped`] where the observer wants an end; what the device says.
    pub fn redraw(
        &self,
        x: &Tensor,
        (protocol, keep): (Protocol, Best),
        strokes: usize,
        rng: Rng,
        observer: &dyn Observer,
    ) -> Result<Vec<Reconstruction>> {
        task(observer, "Drawing", protocol.drawings(x.shape()[0]) as usize, || {
            reconstruct((&self.model, &self.params), x, (protocol, keep), strokes, rng, observer)
        })
    }

    /// What strokes are drawn with in the middle of images x `[N, H, W]`; none where the model has no pen (AIR).
    pub fn median_pen(&self, x: &Tensor, rng: Rng) -> Result<Option<MedianPen>> {
        let drawings = self.recognise(x, 1, rng)?;
        let Some(pen) = &drawings.pen else { return Ok(None) };
        let pens = pen.stroke.to_f64();
        let of = |k: usize| median(pens.iter().skip(k).step_by(2).copied().collect());
        Ok(Some(MedianPen { sigma: of(0), slope: of(1), canvas_slope: median(pen.canvas.to_f64()) }))
    }

    /// `n` drawings from nothing (section 11c).
    ///
    /// # Errors
    /// [`Error::Usage`] where the prior cannot draw by itself (DooD-EG), or the model needs a pen and there is none.
    pub fn imagine(&self, n: usize, pen: Option<MedianPen>, heat: Heat, strokes: usize, rng: Rng) -> Result<Drawings> {
        self.go_on(&self.model.blank(self.device(), n), n, pen, heat, strokes, rng)
    }

    /// Goes on with drawings from where they stand (section 11e), [`Drawings::end`], for at most `strokes` strokes more.
    ///
    /// # Errors
    /// As [`Artist::imagine`].
    pub fn go_on(
        &self,
        start: &State<Tensor>,
        n: usize,
        pen: Option<MedianPen>,
        heat: Heat,
        strokes: usize,
        rng: Rng,
    ) -> Result<Drawings> {
        let noise = Noise::to_imagine(&self.model, self.device(), (strokes, n), rng);
        let pen = pen.map(|pen| pen.pen(self.device(), n));
        let tape = Tape::eval(&self.params);
        let steps = self.model.imagine(&tape, start, pen.as_ref(), &noise, heat)?;
        let drawings = Drawings::of(&self.model, &steps, None, start);
        self.device().check()?;
        Ok(drawings)
    }

    /// `n` drawings from nothing, on the host: [`Artist::imagine`] as often as that takes.
    ///
    /// # Errors
    /// As [`Artist::imagine`], and [`Error::Stopped`].
    pub fn imagine_many(
        &self,
        n: usize,
        (pen, heat): (Option<MedianPen>, Heat),
        strokes: usize,
        rng: Rng,
        observer: &dyn Observer,
    ) -> Result<Vec<Drawn>> {
        let mut drawn = Vec::with_capacity(n);
        task(observer, "Drawing", n, || {
            while drawn.len() < n {
                observer.go_on()?;
                let round = AT_ONCE.min(n - drawn.len());
                // The same drawings, however many are wanted.
                let rng = Rng::new(rng.seed, rng.step + (drawn.len() / AT_ONCE) as u64);
                let drawings = self.imagine(AT_ONCE, pen, heat, strokes, rng)?;
                drawn.extend(Drawn::all(&self.model, &drawings).into_iter().take(round));
                observer.advance(round as u64);
            }
            Ok(drawn)
        })
    }

    /// Finishes what has been begun, each in `ways` ways with at most `strokes` strokes more (section 11e). The lead of a row is what had
    /// been begun, as the model sees it; its drawings have all strokes.
    ///
    /// # Errors
    /// As [`Artist::imagine`] and [`Artist::score`], and [`Error::Stopped`].
    pub fn complete(
        &self,
        beginning: &Beginning,
        ways: usize,
        (pen, heat): (Option<MedianPen>, Heat),
        strokes: usize,
        rng: Rng,
        observer: &dyn Observer,
    ) -> Result<Vec<Row>> {
        let begun = match beginning {
            Beginning::Imagined(n) => {
                let x = self.single_strokes(*n, (pen, heat), rng, observer)?;
                self.recognise(&x, self.model.config.strokes, Rng::new(rng.seed, rng.step + 1))?
            }
            Beginning::Images(x) => self.recognise(x, self.model.config.strokes, Rng::new(rng.seed, rng.step + 1))?,
            Beginning::Drawings(drawings) => self.score(drawings, pen, None, usize::MAX)?,
        };
        let n = begun.len();
        let first = Drawn::all(&self.model, &begun);
        let mut rows: Vec<Row> =
            first.iter().map(|one| Row { lead: Some(one.canvas().to_vec()), drawn: vec![] }).collect();
        task(observer, "Drawing", n * ways, || {
            for way in 0..ways {
                observer.go_on()?;
                let more =
                    self.go_on(&begun.end, n, pen, heat, strokes, Rng::new(rng.seed, rng.step + 2 + way as u64))?;
                for (row, (first, more)) in rows.iter_mut().zip(first.iter().zip(Drawn::all(&self.model, &more))) {
                    row.drawn.push(first.then(more));
                }
                observer.advance(n as u64);
            }
            Ok(rows)
        })
    }

    /// Images `[n, H, W]` of one stroke each, drawn from nothing. A drawing that stops before its first stroke is drawn again, but not for
    /// ever.
    fn single_strokes(
        &self,
        n: usize,
        (pen, heat): (Option<MedianPen>, Heat),
        rng: Rng,
        observer: &dyn Observer,
    ) -> Result<Tensor> {
        const ROUNDS: u64 = 100;
        let side = self.model.config.image;
        let mut images = vec![];
        for round in 0..ROUNDS {
            observer.go_on()?;
            let drawings = self.imagine(n, pen, heat, 1, Rng::new(!rng.seed, rng.step + round))?;
            let shown = drawings.canvases.reshape(&[n, side, side]);
            let drawn =
                drawings.counts().into_iter().enumerate().filter(|&(_, strokes)| strokes == 1 || round + 1 == ROUNDS);
            images.extend(drawn.take(n - images.len()).map(|(i, _)| shown.rows(i, 1)));
            if images.len() == n {
                break;
            }
        }
        Ok(Tensor::stack(&images).reshape(&[n, side, side]))
    }

    /// Refuses a model whose drawings have no curves that could be varied.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check_curves(&self) -> Result<()> {
        if self.model.draws_curves() {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "the model {} draws without curves, so there is nothing to vary: use dood, sp or eg",
            self.model.config.variant
        )))
    }

    /// Exemplars of images x `[N, H, W]` (section 11d), a row per image: each exemplar is a [`Token`] of the best of `particles` drawings
    /// of its own.
    ///
    /// # Errors
    /// [`Error::Usage`] where the model draws without curves; [`Error::Stopped`].
    pub fn vary(
        &self,
        x: &Tensor,
        token: &Token,
        (exemplars, particles): (usize, usize),
        rng: Rng,
        observer: &dyn Observer,
    ) -> Result<Vec<Row>> {
        self.check_curves()?;
        let n = x.shape()[0];
        let repeated =
            Tensor::stack(&vec![x.clone(); exemplars]).reshape(&[&[exemplars * n], &x.shape()[1..]].concat());
        let strokes = self.model.config.strokes;
        let drawn =
            self.redraw(&repeated, (Protocol::published(particles), Best::Likelihood), strokes, rng, observer)?;
        let varied: Vec<Drawing> = (drawn.iter().enumerate())
            .map(|(i, one)| token.vary(&one.drawn.drawing, self.frame(), Rng::new(rng.seed, rng.step + i as u64)))
            .collect();
        let canvas =
            paint(&varied, Brush::default(), self.model.config.image, self.device()).pop().expect("at least one");
        let pixels = self.model.config.image.pow(2);
        let (targets, canvases) = (x.to_f32(), canvas.to_f32());
        let cut = |all: &[f32], i: usize| all[i * pixels..][..pixels].to_vec();
        let exemplar = |i: usize| Drawn { drawing: varied[i].clone(), canvases: vec![cut(&canvases, i)] };
        let row = |i: usize| Row {
            lead: Some(cut(&targets, i)),
            drawn: (0..exemplars).map(|e| exemplar(e * n + i)).collect(),
        };
        Ok((0..n).map(row).collect())
    }

    /// What p says of strokes that somebody else drew; their pens are theirs, or `pen` where they have none. Where p(x | canvas) is
    /// wanted too, x `[N, H, W]` are the images.
    ///
    /// Strokes without a layout get the window [`Frame::around`] them. A drawing of `most` strokes or more ends because it may have no
    /// further one, a shorter one by a decision, which is scored as well.
    ///
    /// # Errors
    /// [`Error::Usage`] where the strokes are not such as the model draws.
    pub fn score(
        &self,
        drawings: &[Drawing],
        pen: Option<MedianPen>,
        x: Option<&Tensor>,
        most: usize,
    ) -> Result<Drawings> {
        let known = self.known(drawings, most)?;
        let pen = self.pens(drawings, pen)?;
        let tape = Tape::eval(&self.params);
        let steps = self.model.score(&tape, Scorer::Prior, x, &known, pen.as_ref())?;
        let start = self.model.blank(self.device(), drawings.len());
        let scored = Drawings::of(&self.model, &steps, x, &start);
        self.device().check()?;
        Ok(scored)
    }

    /// Latents `[T, N, …]` of known drawings, T being one more than the longest has strokes, for the decision to stop, if there is one.
    fn known(&self, drawings: &[Drawing], most: usize) -> Result<Each<Tensor>> {
        let (n, d) = (drawings.len(), self.model.config.stroke_dim());
        let longest = drawings.iter().map(|drawing| drawing.strokes.len()).max().unwrap_or(0);
        let t = if longest < most { longest + 1 } else { longest };
        let (mut onoff, mut layouts, mut strokes) = (vec![0.0; t * n], vec![0.0; t * n * 4], vec![0.0; t * n * d]);
        for (i, drawing) in drawings.iter().enumerate() {
            for (s, stroke) in drawing.strokes.iter().enumerate() {
                let layout = stroke.layout.unwrap_or_else(|| self.frame().around(&stroke.points));
                let latent = if stroke.latent.is_empty() {
                    self.frame().to_window(layout, &stroke.points).as_flattened().to_vec()
                } else {
                    stroke.latent.clone()
                };
                if latent.len() != d {
                    let what = if self.model.draws_curves() {
                        format!("{} control points; this model draws with {}", latent.len() / 2, d / 2)
                    } else {
                        format!("{} numbers; the appearance codes of this model have {d}", latent.len())
                    };
                    return Err(Error::Usage(format!("stroke {} of drawing {} has {what}", s + 1, i + 1)));
                }
                let at = s * n + i;
                onoff[at] = 1.0;
                layouts[4 * at..][..4].copy_from_slice(&layout);
                strokes[d * at..][..d].copy_from_slice(&latent);
            }
        }
        // Windows of strokes that are not drawn must be invertible.
        (0..t * n).filter(|&at| onoff[at] == 0.0).for_each(|at| layouts[4 * at + 2] = 1.0);
        let tensor = |shape: &[usize], values: &[f64]| Tensor::from_f64(self.device(), shape, values);
        Ok(Each {
            onoff: tensor(&[t, n], &onoff),
            layout: tensor(&[t, n, 4], &layouts),
            stroke: tensor(&[t, n, d], &strokes),
        })
    }

    /// The pens of known drawings, for as many steps as [`Artist::known`] has.
    fn pens(&self, drawings: &[Drawing], pen: Option<MedianPen>) -> Result<Option<Pen<Tensor>>> {
        if !self.model.has_pens() {
            return Ok(None);
        }
        let n = drawings.len();
        let longest = drawings.iter().map(|drawing| drawing.strokes.len()).max().unwrap_or(0);
        let missing = || Error::Usage("the strokes say nothing of their pen: give its width and slopes".into());
        let mut values = vec![];
        for t in 0..=longest {
            for drawing in drawings {
                let stroke = drawing.strokes.get(t);
                let layout = stroke
                    .and_then(|s| s.layout)
                    .unwrap_or_else(|| self.frame().around(stroke.map_or(&[][..], |s| &s.points)));
                let sigma = stroke.and_then(|s| s.width).map(|width| self.frame().width_in_window(layout, width));
                let slope = stroke.and_then(|s| s.slope);
                // What is not drawn needs no pen, and what is not a curve no width.
                let default = stroke.is_none_or(|s| s.points.is_empty()).then_some(1.0);
                values.push(sigma.or(pen.map(|pen| pen.sigma)).or(default).ok_or_else(missing)?);
                values.push(slope.or(pen.map(|pen| pen.slope)).or(default).ok_or_else(missing)?);
            }
        }
        let canvas: Option<Vec<f64>> =
            drawings.iter().map(|d| d.canvas_slope.or(pen.map(|pen| pen.canvas_slope))).collect();
        Ok(Some(Pen {
            stroke: Tensor::from_f64(self.device(), &[longest + 1, n, 2], &values),
            canvas: Tensor::from_f64(self.device(), &[n], &canvas.ok_or_else(missing)?),
        }))
    }
}
