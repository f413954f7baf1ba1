//! Drawings as people want them: a picture, curves, and numbers beside each other.

use super::{
    drawing::{Drawing, DrawingFile},
    drawn::Drawn,
};
use crate::{
    Result,
    figures::{self, Grid, Tile, strokes_svg},
    files::with_end,
    model::Model,
};
use std::path::{Path, PathBuf};

/// A row of a gallery.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// What the drawings began with `[H, W]`, at the left.
    pub lead: Option<Vec<f32>>,
    /// The drawings.
    pub drawn: Vec<Drawn>,
}

/// Rows of `columns` drawings each, without a lead.
pub fn rows(drawn: Vec<Drawn>, columns: usize) -> Vec<Row> {
    drawn.chunks(columns.max(1)).map(|row| Row { lead: None, drawn: row.to_vec() }).collect()
}

/// Writes `out` with the ends `.png` (finished canvases, after the leads), `.svg` (the strokes as curves, coloured by order) and `.json`
/// ([`DrawingFile`]), and returns what was written. A model that draws without curves has no `.svg`.
///
/// `caption` stands above the leads.
///
/// # Errors
/// A file that cannot be written.
pub fn write(out: &Path, model: &Model, caption: &str, rows: &[Row]) -> Result<Vec<PathBuf>> {
    let (side, columns) = (model.config.image, rows.iter().map(|row| row.drawn.len()).max().unwrap_or(1).max(1));
    let ink = |pixels| Tile { pixels, ..Tile::default() };
    let tiles: Vec<Vec<Tile>> = rows
        .iter()
        .map(|row| row.lead.iter().map(|lead| ink(lead)).chain(row.drawn.iter().map(|d| ink(d.canvas()))).collect())
        .collect();
    let captions: &[&str] = if caption.is_empty() { &[] } else { &[caption] };
    let named = |end: &str| with_end(out, end, &["png", "svg", "json"]);
    let png = named("png");
    Grid { side, scale: (110 / side).max(1), captions, labels: &[], rows: &tiles }.write(&png)?;
    let mut written = vec![png];
    if model.draws_curves() {
        let curves = |drawn: &Drawn| figures::Drawing { strokes: curves(&drawn.drawing), background: None };
        let cells: Vec<figures::Drawing> = rows.iter().flat_map(|row| row.drawn.iter().map(curves)).collect();
        let svg = named("svg");
        strokes_svg(&svg, &cells, columns)?;
        written.push(svg);
    }
    let json = named("json");
    let drawings = rows.iter().flat_map(|row| row.drawn.iter().map(|drawn| drawn.drawing.clone())).collect();
    DrawingFile::new(model.config.variant.to_string(), side, drawings).write(&json)?;
    written.push(json);
    Ok(written)
}

/// The strokes of a drawing for a picture.
pub(super) fn curves(drawing: &Drawing) -> Vec<figures::Stroke> {
    let curve = |stroke: &super::Stroke| figures::Stroke {
        points: stroke.points.iter().map(|p| p.map(|v| v as f32)).collect(),
        sigma: stroke.width.unwrap_or(super::Brush::default().width) as f32,
    };
    drawing.strokes.iter().filter(|stroke| stroke.points.len() >= 2).map(curve).collect()
}
