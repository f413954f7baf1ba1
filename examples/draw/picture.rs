//! Pictures that somebody sends: untrusted bytes, to the image that a model takes.

use dood::{
    data::{Fit, Grey, Invert, pictures},
    eval::ink::Place,
};
use image::ImageReader;
use std::io::Cursor;

/// The most pixels of a picture.
pub const MOST_PIXELS: usize = 4_000_000;
/// What is brighter than this part of the brightest pixel counts as ink where a picture is fitted.
const INK: u8 = 80;

/// Decodes a PNG, JPEG, GIF or BMP into ink `[side, side]` in [0, 1], and says where the picture, padded to a square, lies in it. With
/// `fit` the ink's longer side becomes that part of the image, its centre of mass the middle.
///
/// # Errors
/// One sentence.
pub fn read(bytes: &[u8], side: usize, fit: Option<f64>, invert: Invert) -> Result<(Vec<f32>, Place), String> {
    // The size is looked at before memory is taken for the pixels.
    let size = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok().map(|reader| reader.into_dimensions());
    if let Some(Ok((width, height))) = size
        && (width as usize).saturating_mul(height as usize) > MOST_PIXELS
    {
        return Err(format!("the image has {width}x{height} pixels; at most {MOST_PIXELS} in all are possible"));
    }
    let mut grey = pictures::decode(bytes, "the image").map_err(|e| e.to_string())?;
    let mean = grey.pixels.iter().map(|&v| f64::from(v)).sum::<f64>() / grey.pixels.len() as f64;
    if invert == Invert::Yes || invert == Invert::Auto && mean > 127.5 {
        grey.pixels.iter_mut().for_each(|v| *v = 255 - *v);
    }
    let (pixels, place) = match fit.and_then(|part| window(&grey, part)) {
        Some((square, place)) => {
            let edge = square.len().isqrt();
            (Fit::Pad.square(&square, edge, edge, side), place)
        }
        None => (Fit::Pad.square(&grey.pixels, grey.height, grey.width, side), Place::AS_IT_IS),
    };
    Ok((pixels.into_iter().map(|v| f32::from(v) / 255.0).collect(), place))
}

/// The square of a picture in which its ink is fitted, black where that reaches beyond it; none where there is no ink.
fn window(Grey { height, width, pixels }: &Grey, part: f64) -> Option<(Vec<u8>, Place)> {
    let most = pixels.iter().copied().max().unwrap_or(0);
    let least = (u32::from(most) * u32::from(INK) / 255).max(1) as u8;
    let (mut ends, mut mass, mut sums) = ([usize::MAX, 0, usize::MAX, 0], 0.0, [0.0; 2]);
    for (i, &ink) in pixels.iter().enumerate().filter(|&(_, &ink)| ink >= least && ink > 20) {
        let (x, y) = (i % width, i / width);
        ends = [ends[0].min(x), ends[1].max(x), ends[2].min(y), ends[3].max(y)];
        mass += f64::from(ink);
        sums[0] += f64::from(ink) * (x as f64 + 0.5);
        sums[1] += f64::from(ink) * (y as f64 + 0.5);
    }
    if mass == 0.0 {
        return None;
    }
    let longer = (ends[1] - ends[0]).max(ends[3] - ends[2]) + 1;
    let edge = (longer as f64 / part).ceil().min(4096.0) as usize;
    let corner = sums.map(|sum| (sum / mass - edge as f64 / 2.0).round() as isize);
    let mut square = vec![0; edge * edge];
    for (y, row) in square.chunks_exact_mut(edge).enumerate() {
        let from = corner[1] + y as isize;
        if !(0..*height as isize).contains(&from) {
            continue;
        }
        let line = &pixels[from as usize * width..][..*width];
        for (x, pixel) in row.iter_mut().enumerate() {
            let column = corner[0] + x as isize;
            *pixel = usize::try_from(column).ok().and_then(|column| line.get(column)).copied().unwrap_or(0);
        }
    }
    // From the picture, padded to a square, to the window.
    let whole = (*height).max(*width);
    let margin = [(whole - width) / 2, (whole - height) / 2];
    let scale = whole as f64 / edge as f64;
    let shift = [0, 1].map(|k| -(margin[k] as f64 + corner[k] as f64) / edge as f64);
    Some((square, Place { scale, shift }))
}
