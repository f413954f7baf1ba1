//! What the programs that draw by themselves share: the model, the temperature, the pen.

use super::{Reading, source};
use dood::{
    Device, Error, Observer, Result,
    checkpoint::{self, Checkpoint},
    data::{self, Source},
    eval::{Artist, MedianPen},
    files::{self, quoted},
    measure::{pixels, spread},
    model::Heat,
    rng::Rng,
    train::settings_of,
};
use std::{path::PathBuf, str::FromStr};

/// Images of which the middle pen is taken (section 11c).
pub const MEASURED: usize = 64;

/// Which model draws, and how freely.
#[derive(clap::Args, Clone, Debug)]
pub struct Generation {
    /// A checkpoint, a run's folder for its newest one, or the name of a model that ships (mnist, …)
    #[arg(long, value_name = "FILE", value_parser = super::checkpoint())]
    pub checkpoint: PathBuf,
    /// How freely it draws: "paper" (a tenth of the spread for places and strokes, 0.84 for size and rotation), or a factor of all
    /// standard deviations, 1 being the model as it has learned
    #[arg(long, default_value = "paper", value_name = "FACTOR")]
    pub temperature: Temperature,
    /// Strokes at most, also more than the model has learned with [default: as it has learned]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub strokes: Option<u16>,
    /// Whose pen it draws with: the medians over images of this set [default: the set that the model has learned from]
    #[arg(long, value_name = "SOURCE", value_parser = source(), conflicts_with = "pen")]
    pub pen_of: Option<Source>,
    #[command(flatten)]
    pub reading: Reading,
    /// The pen itself: its width in images (0.01 to 0.04), the slope of strokes (0.1 to 0.9), the slope of the canvas (0.1 to 1.5)
    #[arg(long, value_name = "WIDTH,SLOPE,CANVAS")]
    pub pen: Option<Pen>,
    /// Key of the random numbers
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// A model that is ready to draw by itself.
pub struct Opened {
    pub artist: Artist,
    pub pen: Option<MedianPen>,
    pub heat: Heat,
    pub strokes: usize,
}

impl Generation {
    /// Loads the model and finds its pen.
    pub fn open(&self, device: &Device, observer: &dyn Observer) -> Result<Opened> {
        let artist = Artist::open(&self.checkpoint, device)?;
        artist.model.check_imagines()?;
        let pen = match (self.pen, &self.pen_of) {
            _ if !artist.model.has_pens() => None,
            (Some(Pen(pen)), _) => Some(pen),
            (None, Some(source)) => self.measure(&artist, source, observer)?,
            (None, None) => match self.known_pen()? {
                Some(pen) => Some(pen),
                None => self.measure(&artist, &self.learned_from()?, observer)?,
            },
        };
        let strokes = self.strokes.map_or(artist.model.config.strokes, usize::from);
        Ok(Opened { artist, pen, heat: self.temperature.0, strokes })
    }

    /// The pen that a model to share comes with.
    fn known_pen(&self) -> Result<Option<MedianPen>> {
        let path = checkpoint::find(&self.checkpoint)?;
        let bytes = files::read(&path)?;
        let checkpoint = Checkpoint::parse(&bytes, &path.display().to_string())?;
        let pen = checkpoint.about().and_then(|about| about.get("pen")).cloned();
        Ok(pen.and_then(|pen| serde_json::from_value(pen).ok()))
    }

    /// The set that the model has learned from.
    fn learned_from(&self) -> Result<Source> {
        let path = checkpoint::find(&self.checkpoint)?;
        let bytes = files::read(&path)?;
        let settings = settings_of(&Checkpoint::parse(&bytes, &path.display().to_string())?);
        settings.map(|settings| settings.data).map_err(|_| {
            Error::Usage(format!(
                "{} does not say which images it has learned from: name a set whose pen it takes with --pen-of, or the pen itself \
                 with --pen",
                quoted(&path)
            ))
        })
    }

    fn measure(&self, artist: &Artist, source: &Source, observer: &dyn Observer) -> Result<Option<MedianPen>> {
        let options = self.reading.for_model(&self.checkpoint, source, observer)?;
        let images = data::load_or_fetch(source, &options, observer)?.train;
        let x = pixels(&images, spread(MEASURED, images.len()), artist.params.device());
        artist.median_pen(&x, Rng::new(self.seed, u64::MAX))
    }
}

/// A temperature as it is typed.
#[derive(Clone, Copy, Debug)]
pub struct Temperature(pub Heat);

impl FromStr for Temperature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "paper" {
            return Ok(Temperature(Heat::PAPER));
        }
        match text.parse() {
            Ok(factor) if (0.0..=10.0).contains(&factor) => Ok(Temperature(Heat::all(factor))),
            _ => Err("choose paper, or a factor from 0 to 10".into()),
        }
    }
}

/// A pen as it is typed.
#[derive(Clone, Copy, Debug)]
pub struct Pen(pub MedianPen);

impl FromStr for Pen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[sigma, slope, canvas_slope])
                if [sigma, slope, canvas_slope].iter().all(|v| (1e-4..=10.0).contains(v)) =>
            {
                Ok(Pen(MedianPen { sigma, slope, canvas_slope }))
            }
            _ => Err("give three numbers above 0, such as 0.015,0.7,0.5".into()),
        }
    }
}
