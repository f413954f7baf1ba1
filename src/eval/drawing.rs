//! Finished drawings as plain numbers, and the JSON file that holds them.
//!
//! # The format `dood-drawings`, version 1
//!
//! ```json
//! {"format": "dood-drawings", "version": 1, "model": "dood", "image": 50,
//!  "drawings": [{
//!    "strokes": [{
//!      "points": [[0.20, 0.31], [0.35, 0.28], [0.50, 0.52], [0.64, 0.80], [0.80, 0.71]],
//!      "width": 0.014, "slope": 0.8, "layout": [0.1, -0.2, 0.6, 0.3],
//!      "latent": [0.1, 0.2, 0.3, 0.1, 0.5, 0.5, 0.7, 0.9, 0.9, 0.8],
//!      "log_prior": {"onoff": -0.3, "layout": 2.1, "stroke": 4.0},
//!      "log_posterior": {"onoff": -0.1, "layout": 6.5, "stroke": 11.2}}],
//!    "canvas_slope": 0.47, "log_likelihood": 6901.2, "log_prior": 23.1, "log_posterior": 61.9}]}
//! ```
//!
//! | field | meaning |
//! | --- | --- |
//! | `strokes` | in the order in which they are drawn |
//! | `points` | control points of a Bézier curve in canvas coordinates in \[0, 1\]: x to the right, y down; column j of `image` pixels is at x = j/`image`. Absent where the model draws without curves (δR, AIR) |
//! | `width` | pen width σ in the same unit: the standard deviation of the blob that moves along the curve |
//! | `slope`, `canvas_slope` | ω0 of a stroke and ω1 of the drawing (section 6) |
//! | `layout` | (shift x, shift y, scale, rotation in radians) of the window in which the stroke was drawn (section 5) |
//! | `latent` | the stroke as the model has it, in that window: x and y of every control point, or an appearance code |
//! | `log_prior`, `log_posterior` of a stroke | log densities in nats of its three decisions |
//! | `log_likelihood`, `log_prior`, `log_posterior` of a drawing | log p(x ∣ canvas), log p(z), log q(z ∣ x): with the decision to stop |
//!
//! Only `format`, `version` and `drawings`, and of a stroke `points` or `layout` with `latent`, must be there. Numbers are written so
//! that reading them gives the same bits. Fields of later versions are passed over.

use super::kept::from_json;
use crate::{Error, Result, files, model::Model, ops::Placement};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The name in the first field of a file.
const FORMAT: &str = "dood-drawings";
/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
/// More of either is taken for a mistake.
const MOST_STROKES: usize = 1000;
const MOST_POINTS: usize = 33;

/// A value for each decision of a stroke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Densities {
    /// Whether to draw.
    pub onoff: f64,
    /// Where.
    pub layout: f64,
    /// What.
    pub stroke: f64,
}

impl Densities {
    /// Of all three together.
    pub fn sum(&self) -> f64 {
        self.onoff + self.layout + self.stroke
    }
}

/// One stroke of a [`Drawing`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stroke {
    /// Control points in canvas coordinates; none where the model draws without curves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub points: Vec<[f64; 2]>,
    /// Pen width σ on the canvas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<f64>,
    /// ω0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slope: Option<f64>,
    /// Shift x, shift y, scale, rotation in radians.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<[f64; 4]>,
    /// The stroke in its window: x and y of every control point, or an appearance code.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latent: Vec<f64>,
    /// log p of each decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_prior: Option<Densities>,
    /// log q of each decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_posterior: Option<Densities>,
}

/// A finished drawing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drawing {
    /// In the order in which they were drawn.
    pub strokes: Vec<Stroke>,
    /// ω1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canvas_slope: Option<f64>,
    /// log p(x | canvas) of the image that was redrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_likelihood: Option<f64>,
    /// log p(z) of all decisions, with that to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_prior: Option<f64>,
    /// log q(z | x) of all decisions, with that to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_posterior: Option<f64>,
}

/// The contents of a JSON file of drawings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawingFile {
    format: String,
    version: u32,
    /// Which model drew: `dood`, `sp`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Pixels per side of the canvas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<usize>,
    /// All drawings.
    pub drawings: Vec<Drawing>,
}

impl DrawingFile {
    /// Drawings and who made them.
    pub fn new(model: impl Into<String>, image: usize, drawings: Vec<Drawing>) -> Self {
        DrawingFile { format: FORMAT.into(), version: VERSION, model: Some(model.into()), image: Some(image), drawings }
    }

    /// As text: a stroke a line, so that people and `diff` can read it.
    pub fn to_json(&self) -> String {
        let head = DrawingFile { drawings: vec![], ..self.clone() };
        let head = text(&head);
        let head = head.strip_suffix("]}").expect("an empty list is last");
        let drawings: Vec<String> = self
            .drawings
            .iter()
            .map(|drawing| {
                let rest = text(&Drawing { strokes: vec![], ..drawing.clone() });
                let (before, after) = rest.split_once("[]").expect("an empty list is there");
                let strokes: Vec<String> =
                    drawing.strokes.iter().map(|stroke| format!("\n  {}", text(stroke))).collect();
                format!("\n {before}[{}]{after}", strokes.join(","))
            })
            .collect();
        format!("{head}{}\n]}}\n", drawings.join(","))
    }

    /// Writes [`DrawingFile::to_json`].
    ///
    /// # Errors
    /// [`Error::Io`] if that is not possible; what was there before is then untouched.
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_atomically(path, |out| out.write_all(self.to_json().as_bytes()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Data`] if it is not what the [module](self) describes.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&files::read(path)?, &path.display().to_string())
    }

    /// Reads the bytes of a file; `name` is what a message calls it.
    ///
    /// # Errors
    /// [`Error::Data`] if they are not what the [module](self) describes.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let wrong = |what: String| Error::Data(format!("{name} cannot be read as drawings: {what}"));
        let head: Head = from_json(bytes).map_err(wrong)?;
        match (head.format.as_deref(), head.version) {
            (Some(FORMAT), Some(version)) if version <= VERSION => {}
            (Some(FORMAT), Some(version)) => {
                return Err(wrong(format!(
                    "it has version {version}, this program knows versions up to {VERSION}; use a newer one"
                )));
            }
            _ => {
                return Err(wrong(format!("its fields \"format\" and \"version\" must be \"{FORMAT}\" and {VERSION}")));
            }
        }
        let file: DrawingFile = from_json(bytes).map_err(wrong)?;
        for (i, drawing) in file.drawings.iter().enumerate() {
            drawing.check().map_err(|what| wrong(format!("drawing {}, {what}", i + 1)))?;
        }
        Ok(file)
    }
}

/// What says whether the rest can be read.
#[derive(Deserialize)]
struct Head {
    format: Option<String>,
    version: Option<u32>,
}

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain numbers, lists and names")
}

impl Drawing {
    /// What is wrong with it, if anything.
    fn check(&self) -> Result<(), String> {
        let limit = |count: usize, most: usize, what: &str| {
            if count <= most { Ok(()) } else { Err(format!("{count} {what}; at most {most} are possible")) }
        };
        limit(self.strokes.len(), MOST_STROKES, "strokes")?;
        let positive = |value: Option<f64>| value.is_none_or(|v| v > 0.0 && v <= 100.0);
        if !positive(self.canvas_slope) {
            return Err("its canvas_slope must be above 0".into());
        }
        for (i, stroke) in self.strokes.iter().enumerate() {
            let wrong = |what: &str| Err(format!("stroke {}: {what}", i + 1));
            let placed = stroke.layout.is_some() && !stroke.latent.is_empty();
            if stroke.points.len() < 2 && !placed {
                return wrong("it needs at least two points, or a layout and a latent");
            }
            limit(stroke.points.len(), MOST_POINTS, "points").map_err(|what| format!("stroke {}: {what}", i + 1))?;
            let near = |v: &f64| v.abs() <= 1e6;
            let numbers = stroke.points.iter().flatten().chain(&stroke.latent).chain(stroke.layout.iter().flatten());
            if !numbers.into_iter().all(near) {
                return wrong("its numbers must lie within ±1,000,000");
            }
            if !(positive(stroke.width) && positive(stroke.slope)) {
                return wrong("its width and slope must be above 0");
            }
            if stroke.layout.is_some_and(|[_, _, scale, _]| scale == 0.0) {
                return wrong("the scale of its layout is 0");
            }
        }
        Ok(())
    }
}

/// How strokes get from their windows onto a canvas of `side`² pixels: the arithmetic of the renderer (sections 5 and 6).
///
/// The rasteriser has column j at j/W, the warp at −1 + 2j/(W−1). With point placement only the first matters; a warped stroke goes
/// from the one to the other and back, and its pen grows with the window.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Warped or placed by points.
    pub placement: Placement,
    /// Pixels per side.
    pub side: usize,
}

impl Frame {
    /// That of a model's strokes.
    pub fn of(model: &Model) -> Self {
        Frame { placement: model.config.placement, side: model.config.image }
    }

    /// The ratio of the two grids.
    fn grid(self) -> f64 {
        let side = self.side as f64;
        if self.placement == Placement::Warp { side / (side - 1.0) } else { 1.0 }
    }

    /// Points of the window `layout` in canvas coordinates.
    pub fn to_canvas(self, layout: [f64; 4], points: &[[f64; 2]]) -> Vec<[f64; 2]> {
        let ([m0, m1, m2, m3, m4, m5], grid) = (affine(layout), self.grid());
        let place = |&[x, y]: &[f64; 2]| {
            let (x, y) = (2.0 * grid * x - 1.0, 2.0 * grid * y - 1.0);
            [(m0 * x + m1 * y + m2 + 1.0) / (2.0 * grid), (m3 * x + m4 * y + m5 + 1.0) / (2.0 * grid)]
        };
        points.iter().map(place).collect()
    }

    /// The inverse of [`Frame::to_canvas`].
    pub fn to_window(self, layout: [f64; 4], points: &[[f64; 2]]) -> Vec<[f64; 2]> {
        let ([a, b, scale, angle], grid) = (layout, self.grid());
        let (c, s) = (angle.cos() / scale, angle.sin() / scale);
        let place = |&[x, y]: &[f64; 2]| {
            let (x, y) = (2.0 * grid * x - 1.0 - a, 2.0 * grid * y - 1.0 - b);
            [(c * x + s * y + 1.0) / (2.0 * grid), (c * y - s * x + 1.0) / (2.0 * grid)]
        };
        points.iter().map(place).collect()
    }

    /// A pen width of the model as it is on the canvas.
    pub fn width_on_canvas(self, layout: [f64; 4], sigma: f64) -> f64 {
        if self.placement == Placement::Warp { sigma * layout[2].abs() } else { sigma }
    }

    /// The inverse of [`Frame::width_on_canvas`].
    pub fn width_in_window(self, layout: [f64; 4], width: f64) -> f64 {
        if self.placement == Placement::Warp { width / layout[2].abs() } else { width }
    }

    /// A window for strokes that nobody has placed: the square around the control points, a fifth of it left free at every side where
    /// the scales that a posterior can choose (section 2.5) allow that; no rotation.
    pub fn around(self, points: &[[f64; 2]]) -> [f64; 4] {
        let grid = self.grid();
        let [(left, right), (top, bottom)] = [0, 1].map(|k| {
            let along = points.iter().map(|p| 2.0 * grid * p[k] - 1.0);
            (along.clone().fold(f64::INFINITY, f64::min), along.fold(f64::NEG_INFINITY, f64::max))
        });
        let half = (right - left).max(bottom - top) / 2.0;
        [(left + right) / 2.0, (top + bottom) / 2.0, (half / 0.6).clamp(0.25, 1.0), 0.0]
    }
}

/// The matrix of a layout, from window to canvas (section 5).
pub fn affine([a, b, scale, angle]: [f64; 4]) -> [f64; 6] {
    let (c, s) = (scale * angle.cos(), scale * angle.sin());
    [c, -s, a, s, c, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> DrawingFile {
        let densities = Some(Densities { onoff: -0.1, layout: 1.0 / 3.0, stroke: 2e-17 });
        let stroke = Stroke {
            points: vec![[0.1, 0.2], [0.3, 1.0 / 7.0], [0.9, 0.8]],
            width: Some(0.02),
            slope: Some(0.7),
            layout: Some([0.1, -0.2, 0.6, 0.3]),
            latent: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            log_prior: densities,
            log_posterior: densities,
        };
        let full = Drawing {
            strokes: vec![stroke.clone(), stroke],
            canvas_slope: Some(0.5),
            log_likelihood: Some(-3.5),
            log_prior: Some(1.5),
            log_posterior: Some(f64::MIN_POSITIVE),
        };
        DrawingFile::new("dood", 50, vec![full, Drawing::default()])
    }

    #[test]
    fn what_is_written_is_read_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        example().write(&path).unwrap();
        assert_eq!(DrawingFile::read(&path).unwrap(), example());
        let empty = DrawingFile::new("air", 50, vec![]);
        assert_eq!(DrawingFile::parse(empty.to_json().as_bytes(), "e").unwrap(), empty);
        let lines = example().to_json().lines().count();
        assert_eq!(lines, 1 + 2 + 2 + 1, "the head, two drawings, two strokes, the end");
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let text = include_str!("drawing.rs");
        let json: String = text
            .lines()
            .skip_while(|l| *l != "//! ```json")
            .skip(1)
            .take_while(|l| *l != "//! ```")
            .map(|l| l.trim_start_matches("//!"))
            .collect();
        let file = DrawingFile::parse(json.as_bytes(), "the example").unwrap();
        assert_eq!((file.drawings[0].strokes[0].points.len(), file.drawings[0].canvas_slope), (5, Some(0.47)));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_in_one_sentence() {
        let with =
            |drawings: &str| format!("{{\"format\": \"dood-drawings\", \"version\": 1, \"drawings\": {drawings}}}");
        let cases = [
            ("{}".into(), "its fields \"format\" and \"version\""),
            ("{\"format\": \"other\", \"version\": 1}".into(), "its fields \"format\""),
            ("{\"format\": \"dood-drawings\", \"version\": 2, \"drawings\": []}".into(), "use a newer one"),
            ("{\"format\": \"dood-drawings\", \"version\": 1}".into(), "missing field `drawings`"),
            (with("[{\"strokes\": [{}]}]"), "drawing 1, stroke 1: it needs at least two points"),
            (with("[{\"strokes\": [{\"points\": [[0.5, 0.5]]}]}]"), "at least two points"),
            (
                with("[{}, {\"strokes\": [{\"points\": [[0, 0], [1e9, 0]]}]}]"),
                "drawing 2, stroke 1: its numbers must lie within",
            ),
            (with("[{\"strokes\": [{\"points\": [[0, 0], [1e999, 0]]}]}]"), "number out of range"),
            (
                with("[{\"strokes\": [{\"points\": [[0, 0], [1, 0]], \"width\": -1}]}]"),
                "width and slope must be above 0",
            ),
            (with("[{\"strokes\": [{\"layout\": [0, 0, 0, 0], \"latent\": [1]}]}]"), "the scale of its layout is 0"),
            (with("[{\"canvas_slope\": 0}]"), "canvas_slope must be above 0"),
            (with(&format!("[{{\"strokes\": [{}{{}}]}}]", "{},".repeat(1000))), "1001 strokes; at most 1000"),
            (with("[{\"strokes\": [{\"points\": \"two\"}]}]"), "invalid type: string"),
            ("nonsense".into(), "line 1 column"),
            (String::new(), "it is an empty file"),
            ("<html>".into(), "it is a web page"),
            (with("[{\"strokes\": [")[..60].into(), "it is cut off"),
        ];
        for (text, expected) in cases {
            let error = DrawingFile::parse(text.as_bytes(), "x.json").unwrap_err().to_string();
            assert!(error.contains(expected) && error.starts_with("x.json cannot be read as drawings: "), "{error}");
            assert!(error.len() < 250 && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn frames_go_to_the_canvas_and_back() {
        let (layout, points) = ([0.1, -0.2, 0.6, 0.3], [[0.2, 0.2], [0.5, 0.5], [0.8, 0.7]]);
        for placement in [Placement::Warp, Placement::Points] {
            let frame = Frame { placement, side: 50 };
            let back = frame.to_window(layout, &frame.to_canvas(layout, &points));
            for (a, b) in back.iter().flatten().zip(points.iter().flatten()) {
                assert!((a - b).abs() < 1e-14);
            }
            let sigma = frame.width_in_window(layout, frame.width_on_canvas(layout, 0.02));
            assert!((sigma - 0.02).abs() < 1e-16);
            let inside = frame.to_window(frame.around(&points), &points);
            assert!(inside.iter().flatten().all(|v| (0.15..0.85).contains(v)), "{inside:?}");
        }
        // Appendix A of the model.
        let placed = Frame { placement: Placement::Points, side: 50 }.to_canvas(layout, &points);
        assert!((placed[0][0] - 0.431233).abs() < 1e-6 && (placed[0][1] - 0.174846).abs() < 1e-6);
    }
}
