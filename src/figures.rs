//! Pictures for people: what the model saw, drew and left over (PNG), the strokes it inferred (SVG), how training went (SVG), tables
//! of numbers on colours (both).
//!
//! Plain data in, files out; nothing here knows the model. In the data ink is bright, in the pictures it is dark on white, as in
//! the paper.

mod font;
mod grid;
mod heatmap;
mod map;
mod plot;
mod strokes;
mod svg;

pub use grid::{Grid, Kind, Tile, Window};
pub use heatmap::{HeatCell, Heatmap};
pub use map::{Mark, map_svg};
pub use plot::{Panel, plot_svg};
pub use strokes::{Drawing, Stroke, curve, strokes_svg};
pub(crate) use svg::{base64, escape};

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png, imageops};
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

/// Marks values that are not finite, so that nobody takes them for ink.
const NOT_FINITE: [u8; 3] = [255, 0, 255];

/// `share` of the way from one colour to another.
fn blend(from: [u8; 3], to: [u8; 3], share: f32) -> [u8; 3] {
    [0, 1, 2].map(|i| (f32::from(from[i]) + share * (f32::from(to[i]) - f32::from(from[i]))).round() as u8)
}

/// A square image so many pixels wide, smoothly.
fn enlarged(small: &RgbImage, side: u32) -> RgbImage {
    imageops::resize(small, side, side, imageops::FilterType::CatmullRom)
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

/// A square image with ink in [0, 1], row by row, as a link that holds it: 8-bit grey, ink dark, as PNG.
///
/// Panics if it is not square.
pub fn picture_link(pixels: &[f32]) -> String {
    let side = pixels.len().isqrt();
    assert_eq!(side * side, pixels.len(), "picture_link: {} pixels are no square", pixels.len());
    let pixels: Vec<u8> = pixels.iter().map(|&ink| grey(ink)).collect();
    let mut png = vec![];
    write_png(&mut png, &pixels, side as u32, side as u32, ExtendedColorType::L8)
        .expect("memory takes what is written");
    format!("{LINK}{}", svg::base64(&png))
}

/// The pixels of a [`picture_link`]; `None` if it is none.
pub fn linked_picture(link: &str) -> Option<Vec<f32>> {
    let png = svg::from_base64(link.strip_prefix(LINK)?)?;
    let image = image::load_from_memory_with_format(&png, image::ImageFormat::Png).ok()?.into_luma8();
    let square = image.width() == image.height() && image.width() <= MOST;
    square.then(|| image.as_raw().iter().map(|&grey| 1.0 - f32::from(grey) / 255.0).collect())
}

const LINK: &str = "data:image/png;base64,";
/// No image that is linked is larger.
const MOST: u32 = 4096;

/// Panics unless `text` is a page whose tags nest, apart from those that never close.
#[cfg(test)]
pub(crate) fn assert_well_formed_html(text: &str) {
    let body = text.strip_prefix("<!DOCTYPE html>\n").expect("a doctype");
    let (before, style) = body.split_once("<style>").expect("a style");
    let (_, after) = style.split_once("</style>").expect("its end");
    // As XML has it: elements without an end close themselves.
    let closed = ["<meta ", "<img "].iter().fold(format!("{before}{after}"), |text, open| {
        let mut parts = text.split(open);
        let first = parts.next().expect("a beginning").to_owned();
        parts.fold(first, |out, part| format!("{out}{open}{}", part.replacen('>', "/>", 1)))
    });
    svg::assert_well_formed(closed.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linked_picture_comes_back() {
        let pixels: Vec<f32> = (0..49).map(|i| i as f32 / 51.0).collect();
        let back = linked_picture(&picture_link(&pixels)).unwrap();
        assert!(pixels.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1.0 / 255.0));
        assert_eq!(picture_link(&back), picture_link(&pixels));
        for bad in ["", "data:image/png;base64,", "data:image/png;base64,AAAA", "data:image/png;base64,A", "x"] {
            assert_eq!(linked_picture(bad), None, "{bad}");
        }
    }
}
