//! The protocol, version 1: what a request says, and what is refused before a model is asked. `docs/page.md` describes it for users.

use super::{models::Entry, picture};
use base64::{DecodeError, Engine, prelude::BASE64_STANDARD};
use dood::{
    data::Invert,
    eval::{Drawing, DrawingFile, Ink, Token, ink::Place},
    model::Heat,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// The version that is spoken.
pub const VERSION: u32 = 1;
/// The most bytes of a request.
pub const MOST_BYTES: usize = 1 << 20;
/// Limits of what may be asked for, so that an answer takes seconds at most.
const MOST_COUNT: usize = 64;
const MOST_PARTICLES: usize = 200;
const MOST_STROKES: usize = 40;
const MOST_KNOWN: usize = 20;
const MOST_REFINE: usize = 100;
const MOST_DRAWINGS: usize = 1000;

/// Why there is no answer: an HTTP status and one sentence.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    pub sentence: String,
}

impl Refusal {
    pub fn new(status: u16, sentence: impl Into<String>) -> Self {
        // It may quote what was sent.
        const MOST: usize = 250;
        let mut sentence = sentence.into();
        if let Some((end, _)) = sentence.char_indices().nth(MOST) {
            sentence.truncate(end);
            sentence.push('…');
        }
        Refusal { status, sentence }
    }

    /// A mistake in the request.
    pub fn bad(sentence: impl Into<String>) -> Self {
        Refusal::new(400, sentence)
    }

    pub fn to_json(&self) -> String {
        json!({ "version": VERSION, "error": self.sentence }).to_string()
    }
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Redraw,
    Complete,
    Vary,
    Imagine,
    Score,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Redraw, Kind::Complete, Kind::Vary, Kind::Imagine, Kind::Score];

    fn name(self) -> &'static str {
        match self {
            Kind::Redraw => "redraw",
            Kind::Complete => "complete",
            Kind::Vary => "vary",
            Kind::Imagine => "imagine",
            Kind::Score => "score",
        }
    }

    /// The kind that `/api/NAME` asks for.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The fields that a request may have beside those of all requests.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Kind::Redraw => &["ink", "image", "drawing", "fit", "invert", "particles", "strokes", "refine"],
            Kind::Complete => {
                &["ink", "image", "drawing", "fit", "invert", "particles", "strokes", "begin", "count", "temperature"]
            }
            Kind::Vary => &["ink", "image", "drawing", "fit", "invert", "particles", "count", "token"],
            Kind::Imagine => &["strokes", "count", "temperature"],
            Kind::Score => &["ink", "image", "drawing", "fit", "invert", "particles", "known"],
        }
    }
}

/// Fields of all requests.
const COMMON: [&str; 4] = ["version", "model", "client", "seed"];

/// What a request says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    version: Option<u32>,
    model: Option<String>,
    client: Option<String>,
    seed: u64,
    #[serde(flatten)]
    source: Source,
    known: Vec<Source>,
    fit: Option<f64>,
    invert: Option<Invert>,
    particles: Option<usize>,
    refine: usize,
    strokes: Option<usize>,
    begin: Option<usize>,
    count: Option<usize>,
    temperature: Option<Temperature>,
    token: Option<String>,
}

/// Something that was drawn, in one of three forms.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    ink: Option<Ink>,
    image: Option<String>,
    drawing: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Temperature {
    Factor(f64),
    Word(String),
}

/// What was drawn, as the model takes it.
#[derive(Clone, Debug)]
pub enum Input {
    Image(Seen),
    Strokes(Drawing),
}

/// An image `[side, side]` of a hand's drawing.
#[derive(Clone, Debug)]
pub struct Seen {
    pub pixels: Vec<f32>,
    pub place: Place,
    /// The lines of the hand, where they are known.
    pub lines: Option<usize>,
}

/// A request that can be done.
#[derive(Clone, Debug)]
pub struct Task {
    pub kind: Kind,
    pub model: Arc<Entry>,
    /// Of one client only the newest request is done.
    pub client: Option<String>,
    pub seed: u64,
    pub input: Option<Input>,
    pub known: Vec<Input>,
    pub particles: usize,
    pub refine: usize,
    pub count: usize,
    pub strokes: Option<usize>,
    pub begin: Option<usize>,
    pub heat: Heat,
    pub token: Token,
}

impl Task {
    /// Reads a request. `models` are those that it may ask for, the first where it names none.
    pub fn parse(kind: Kind, body: &[u8], models: &[Arc<Entry>]) -> Result<Task, Refusal> {
        let value: Value =
            serde_json::from_slice(body).map_err(|e| Refusal::bad(format!("the body is not JSON: {e}")))?;
        let fields = value.as_object().ok_or_else(|| Refusal::bad("the body must be a JSON object"))?;
        let known = |field: &&String| !COMMON.iter().chain(kind.fields()).any(|known| known == field);
        if let Some(field) = fields.keys().find(known) {
            let fields = [&COMMON, kind.fields()].concat().join(", ");
            return Err(Refusal::bad(format!("{} has no field {field:?}: it has {fields}", kind.name())));
        }
        let request =
            Request::deserialize(&value).map_err(|e| Refusal::bad(format!("the request cannot be read: {e}")))?;
        request.task(kind, models)
    }
}

impl Request {
    fn task(self, kind: Kind, models: &[Arc<Entry>]) -> Result<Task, Refusal> {
        if self.version != Some(VERSION) {
            return Err(Refusal::bad(format!("the field \"version\" must be {VERSION}")));
        }
        let client = self.client;
        if client.as_ref().is_some_and(|name| name.is_empty() || name.len() > 100) {
            return Err(Refusal::bad("\"client\" must have 1 to 100 characters"));
        }
        let model = match &self.model {
            None => models.first().cloned().ok_or_else(|| Refusal::new(404, "there is no model")),
            Some(id) => models.iter().find(|entry| entry.id == *id).cloned().ok_or_else(|| {
                Refusal::new(404, format!("there is no model {id:?}: GET /api/models says which there are"))
            }),
        }?;
        let number = |name: &str, value: Option<usize>, default: usize, most: usize| match value.unwrap_or(default) {
            n if (1..=most).contains(&n) => Ok(n),
            _ => Err(Refusal::bad(format!("{name:?} must lie between 1 and {most}"))),
        };
        let limited = |name, value: Option<usize>| value.map(|n| number(name, Some(n), n, MOST_STROKES)).transpose();
        if self.fit.is_some_and(|part| !(0.1..=1.0).contains(&part)) {
            return Err(Refusal::bad("\"fit\" must lie between 0.1 and 1"));
        }
        let heat = match self.temperature {
            None => Heat::PAPER,
            Some(Temperature::Word(word)) if word == "paper" => Heat::PAPER,
            Some(Temperature::Factor(factor)) if (0.0..=10.0).contains(&factor) => Heat::all(factor),
            Some(_) => return Err(Refusal::bad("\"temperature\" must be \"paper\" or a factor from 0 to 10")),
        };
        let token = match self.token.as_deref() {
            None | Some("paper") => Token::PAPER,
            Some("reference") => Token::REFERENCE,
            Some(_) => return Err(Refusal::bad("\"token\" must be \"paper\" or \"reference\"")),
        };
        if self.refine > MOST_REFINE {
            return Err(Refusal::bad(format!("\"refine\" must lie between 0 and {MOST_REFINE}")));
        }
        let invert = self.invert.unwrap_or_default();
        let read = |source: Source| source.read(model.image, self.fit, invert);
        let input = read(self.source)?;
        if input.is_none() && kind != Kind::Imagine {
            return Err(Refusal::bad("give what was drawn as \"ink\", \"image\" or \"drawing\""));
        }
        if kind == Kind::Score && !(1..=MOST_KNOWN).contains(&self.known.len()) {
            return Err(Refusal::bad(format!("\"known\" must hold 1 to {MOST_KNOWN} drawings")));
        }
        let nothing = || Refusal::bad("every entry of \"known\" must have \"ink\", \"image\" or \"drawing\"");
        let known: Result<Vec<Input>, Refusal> =
            self.known.into_iter().map(|source| read(source)?.ok_or_else(nothing)).collect();
        let (known, count) = (known?, number("count", self.count, 8, MOST_COUNT)?);
        // An exemplar needs fewer, as it differs from its original anyway.
        let default = if kind == Kind::Vary { 4 } else { 8 };
        let particles = number("particles", self.particles, default, MOST_PARTICLES)?;
        let times = match kind {
            Kind::Vary => count,
            Kind::Score => known.len(),
            _ => 1,
        };
        if times * particles > MOST_DRAWINGS {
            return Err(Refusal::bad(format!(
                "{times} times {particles} drawings are more than {MOST_DRAWINGS}: ask for fewer \"particles\""
            )));
        }
        Ok(Task {
            known,
            particles,
            count,
            strokes: limited("strokes", self.strokes)?,
            begin: limited("begin", self.begin)?,
            refine: self.refine,
            seed: self.seed,
            kind,
            client,
            model,
            input,
            heat,
            token,
        })
    }
}

impl Source {
    /// What was drawn, of `side`² pixels where it is an image.
    fn read(self, side: usize, fit: Option<f64>, invert: Invert) -> Result<Option<Input>, Refusal> {
        Ok(match (self.ink, self.image, self.drawing) {
            (None, None, None) => None,
            (Some(ink), None, None) => {
                ink.check().map_err(|e| Refusal::bad(e.to_string()))?;
                let (pixels, place) = ink.image(side, fit);
                Some(Input::Image(Seen { pixels, place, lines: Some(ink.lines.len()) }))
            }
            (None, Some(image), None) => {
                let wrong = |e: DecodeError| Refusal::bad(format!("\"image\" is not Base64: {e}"));
                let bytes = BASE64_STANDARD.decode(image).map_err(wrong)?;
                let (pixels, place) = picture::read(&bytes, side, fit, invert).map_err(Refusal::bad)?;
                Some(Input::Image(Seen { pixels, place, lines: None }))
            }
            (None, None, Some(drawing)) => Some(Input::Strokes(strokes(drawing)?)),
            _ => return Err(Refusal::bad("give only one of \"ink\", \"image\" and \"drawing\"")),
        })
    }
}

/// A drawing of a `dood-drawings` file.
fn strokes(drawing: Value) -> Result<Drawing, Refusal> {
    let file = json!({ "format": "dood-drawings", "version": 1, "drawings": [drawing] }).to_string();
    let mut read =
        DrawingFile::parse(file.as_bytes(), "\"drawing\"").map_err(|e| Refusal::bad(e.to_string()))?.drawings;
    let drawing = read.pop().expect("one was given");
    match drawing.strokes.len() {
        1..=MOST_STROKES => Ok(drawing),
        n => Err(Refusal::bad(format!("\"drawing\" has {n} strokes; 1 to {MOST_STROKES} are possible"))),
    }
}

/// What is answered.
#[derive(Debug, Serialize)]
pub struct Answer {
    pub version: u32,
    /// Which model drew.
    pub model: String,
    /// Key of the random numbers.
    pub seed: u64,
    /// How long it drew.
    pub seconds: f64,
    /// What it saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<Sight>,
    /// What it drew, as a file of drawings.
    pub drawings: DrawingFile,
    /// The same as pictures, in the same order.
    pub pictures: Vec<Picture>,
    /// What it says of every drawing of `known`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<Score>,
}

/// An image as the model saw it.
#[derive(Debug, Serialize)]
pub struct Sight {
    /// Ink, a byte per pixel, row by row, in Base64.
    pub pixels: String,
    /// Where what was given lies in it.
    pub place: Place,
}

/// Pictures of a drawing.
#[derive(Debug, Serialize)]
pub struct Picture {
    /// Ink after every stroke, or of the finished drawing alone; as in [`Sight`].
    pub canvases: Vec<String>,
    /// Every stroke as the data of an SVG path, in hundredths of the canvas; none where the model draws without curves.
    pub paths: Vec<String>,
    /// So many strokes were there before the model went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begun: Option<usize>,
    /// Mean |image − drawing| per pixel, of 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual: Option<f64>,
}

/// How well a known drawing explains what was given.
#[derive(Debug, Serialize)]
pub struct Score {
    /// log p(image | drawing) in nats.
    pub log_likelihood: f64,
    /// The same per pixel, compared with the others: e^… over their sum.
    pub share: f64,
}

/// Ink in [0, 1] as bytes in Base64.
pub fn bytes(ink: &[f32]) -> String {
    let bytes: Vec<u8> = ink.iter().map(|&v| (v.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
    BASE64_STANDARD.encode(bytes)
}

/// What `GET /api` says.
pub fn description() -> Value {
    let kinds: serde_json::Map<String, Value> = Kind::ALL
        .into_iter()
        .map(|kind| (format!("POST /api/{}", kind.name()), json!([&COMMON, kind.fields()].concat())))
        .collect();
    json!({
        "version": VERSION,
        "documentation": "docs/page.md",
        "requests": kinds,
        "GET /api/models": "the models that \"model\" can name",
        "GET /api/examples": "images to begin with",
        "limits": { "bytes": MOST_BYTES, "pixels": picture::MOST_PIXELS, "count": MOST_COUNT, "particles": MOST_PARTICLES,
            "strokes": MOST_STROKES, "known": MOST_KNOWN, "refine": MOST_REFINE, "drawings": MOST_DRAWINGS },
    })
}
