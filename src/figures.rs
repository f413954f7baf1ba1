//! Pictures for people: what the model saw, drew and left over (PNG), the strokes it inferred (SVG), how training went (SVG).
//!
//! Plain data in, files out; nothing here knows the model. In the data ink is bright, in the pictures it is dark on white, as in
//! the paper.

mod font;
mod grid;
mod plot;
mod strokes;
mod svg;

pub use grid::{Grid, Kind, Tile, Window};
pub use plot::{Panel, plot_svg};
pub use strokes::{Drawing, Stroke, curve, strokes_svg};

use image::{ExtendedColorType, ImageEncoder, codecs::png};
use std::io::{self, Write};

/// The colours of first, second, … strokes and of the lines of a plot: a reordering of the palette of Okabe and Ito (2008), whose
/// colours stay apart for colour-blind readers.
const COLOURS: [[u8; 3]; 8] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [70, 70, 70],
    [160, 140, 20],
];

/// The colour of the `index`-th stroke or line; they repeat after eight.
fn colour(index: usize) -> [u8; 3] {
    COLOURS[index % COLOURS.len()]
}

/// Encodes an 8-bit image as PNG.
fn write_png(out: &mut dyn Write, pixels: &[u8], width: u32, height: u32, colour: ExtendedColorType) -> io::Result<()> {
    png::PngEncoder::new_with_quality(out, png::CompressionType::Best, png::FilterType::Adaptive)
        .write_image(pixels, width, height, colour)
        .map_err(io::Error::other)
}

/// A grey level of 8 bits for ink in [0, 1]: no ink is white.
fn grey(ink: f32) -> u8 {
    (255.0 * (1.0 - ink.clamp(0.0, 1.0))).round() as u8
}
