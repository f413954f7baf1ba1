//! Making images square, and ink bright.

use super::resize::{resize, resize_to};
use serde::{Deserialize, Serialize};

/// How images that are not square become square. Written and read as `pad`, `crop`, `stretch`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// All of the image, in the middle of a black square.
    #[default]
    Pad,
    /// The largest square from the middle of the image.
    Crop,
    /// All of the image, with one direction longer than it was.
    Stretch,
}

impl Fit {
    /// What happens to images, to follow "images are".
    pub(super) fn done(self) -> &'static str {
        match self {
            Fit::Pad => "padded with black to squares (crop cuts, stretch distorts them)",
            Fit::Crop => "cropped to the square in their middle",
            Fit::Stretch => "stretched to squares",
        }
    }

    /// Makes grey images, `[.., height, width]`, ink bright, into `[.., side, side]`; [`resize`] does the scaling.
    ///
    /// Panics if `pixels` is not a whole number of images.
    pub fn square(self, pixels: &[u8], height: usize, width: usize, side: usize) -> Vec<u8> {
        if height == width || self == Fit::Stretch {
            return resize(pixels, height, width, side);
        }
        match self {
            Fit::Pad => {
                // `side` for the longer side, and at least one pixel for the shorter.
                let scaled = |n: usize| ((n * side + height.max(width) / 2) / height.max(width)).max(1);
                let (tall, wide) = (scaled(height), scaled(width));
                let small = resize_to(pixels, (height, width), (tall, wide));
                let mut out = vec![0; small.len() / (tall * wide) * side * side];
                let (above, before) = ((side - tall) / 2, (side - wide) / 2);
                for (square, image) in out.chunks_exact_mut(side * side).zip(small.chunks_exact(tall * wide)) {
                    for (row, line) in square.chunks_exact_mut(side).skip(above).zip(image.chunks_exact(wide)) {
                        row[before..before + wide].copy_from_slice(line);
                    }
                }
                out
            }
            _ => {
                let edge = height.min(width);
                let (above, before) = ((height - edge) / 2, (width - edge) / 2);
                let rows = pixels.chunks_exact(height * width).flat_map(|image| {
                    image.chunks_exact(width).skip(above).take(edge).flat_map(|row| &row[before..before + edge])
                });
                resize(&rows.copied().collect::<Vec<u8>>(), edge, edge, side)
            }
        }
    }
}

/// Whether dark and bright are exchanged: a model draws bright ink on black. Written and read as `auto`, `yes`, `no`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invert {
    /// Only where the format has dark ink on white paper.
    #[default]
    Auto,
    /// In any case.
    Yes,
    /// In no case.
    No,
}
