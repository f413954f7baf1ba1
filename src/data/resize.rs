//! Pillow's bilinear resampling of 8-bit grey images, bit for bit.

use rayon::prelude::*;

/// Fractional bits of the fixed-point weights (Pillow's `PRECISION_BITS` for 8-bit channels).
const PRECISION: u32 = 22;

/// Resizes grey images to `side` x `side` as Pillow's `Image.resize((side, side), BILINEAR)` does, bit for bit.
///
/// `pixels`: one or more images, `[.., height, width]`; returns `[.., side, side]`. A triangle filter that widens when an
/// image shrinks, applied to the rows and then to the columns, each pass rounded to 8 bits in fixed point (section 10 of the
/// model). Images are shared among the threads. Panics if `pixels` is not a whole number of images.
pub fn resize(pixels: &[u8], height: usize, width: usize, side: usize) -> Vec<u8> {
    resize_to(pixels, (height, width), (side, side))
}

/// As [`resize`], from `(height, width)` to `(tall, wide)`.
pub(super) fn resize_to(pixels: &[u8], (height, width): (usize, usize), (tall, wide): (usize, usize)) -> Vec<u8> {
    let size = height * width;
    assert!(
        size > 0 && tall * wide > 0 && pixels.len().is_multiple_of(size),
        "resize: {} pixels of {height}x{width} to {tall}x{wide}",
        pixels.len()
    );
    if (height, width) == (tall, wide) {
        return pixels.to_vec();
    }
    let (across, down) = (taps(width, wide), taps(height, tall));
    let mut out = vec![0; pixels.len() / size * tall * wide];
    let images = out.par_chunks_exact_mut(tall * wide).zip(pixels.par_chunks_exact(size));
    images.with_min_len(64).for_each_init(Scratch::default, |scratch, (out, image)| {
        // A pass mixes whole rows, which the compiler vectorises; so the horizontal pass runs on the transposed image.
        let Scratch { turned, narrow, straight, sums } = scratch;
        transpose(image, height, width, turned);
        narrow.resize(wide * height, 0);
        mix_rows(turned, height, &across, sums, narrow);
        transpose(narrow, wide, height, straight);
        mix_rows(straight, wide, &down, sums, out);
    });
    out
}

/// The buffers of one thread, kept from image to image.
#[derive(Default)]
struct Scratch {
    turned: Vec<u8>,
    narrow: Vec<u8>,
    straight: Vec<u8>,
    sums: Vec<i32>,
}

/// What one output position is made of: inputs from `first` on, with fixed-point weights that sum to about 1.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(size_in: usize, size_out: usize) -> Vec<Taps> {
    let scale = size_in as f64 / size_out as f64;
    let support = scale.max(1.0);
    let one = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // `as usize` takes negative values to 0, which is the clipping at the border.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(size_in);
        let triangle = |k: usize| (1.0 - ((k as f64 + 0.5 - centre) / support).abs()).max(0.0);
        let total: f64 = (first..last).map(triangle).sum();
        let fixed = |k| (triangle(k) / total * f64::from(1 << PRECISION) + 0.5) as i32;
        Taps { first, weights: (first..last).map(fixed).collect() }
    };
    (0..size_out).map(one).collect()
}

/// Row `i` of `out` is the weighted sum of the rows of `rows` that `taps[i]` names, rounded to 8 bits.
fn mix_rows(rows: &[u8], width: usize, taps: &[Taps], sums: &mut Vec<i32>, out: &mut [u8]) {
    sums.resize(width, 0);
    for (taps, out) in taps.iter().zip(out.chunks_exact_mut(width)) {
        // At most 255 * 2^22 and a little rounding: 31 bits are enough.
        sums.fill(1 << (PRECISION - 1));
        for (&weight, row) in taps.weights.iter().zip(rows[taps.first * width..].chunks_exact(width)) {
            for (sum, &pixel) in sums.iter_mut().zip(row) {
                *sum += weight * i32::from(pixel);
            }
        }
        for (out, &sum) in out.iter_mut().zip(&*sums) {
            *out = (sum >> PRECISION).clamp(0, 255) as u8;
        }
    }
}

fn transpose(rows: &[u8], height: usize, width: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend((0..width).flat_map(|x| (0..height).map(move |y| rows[y * width + x])));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_one_grey_stays_that_grey() {
        for (height, width, side) in [(28, 28, 50), (105, 105, 50), (7, 31, 13), (1, 1, 50), (50, 50, 1)] {
            for grey in [0, 1, 127, 254, 255] {
                assert_eq!(resize(&vec![grey; height * width], height, width, side), vec![grey; side * side]);
            }
        }
    }

    #[test]
    fn many_images_at_once_equal_each_alone() {
        let images: Vec<u8> = (0..200u32 * 28 * 28).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let alone: Vec<u8> = images.chunks(28 * 28).flat_map(|image| resize(image, 28, 28, 50)).collect();
        assert_eq!(resize(&images, 28, 28, 50), alone);
    }

    #[test]
    fn rows_and_columns_are_not_mixed_up() {
        let dark_above_bright = resize(&[0, 0, 255, 255], 2, 2, 4);
        assert_eq!(&dark_above_bright[..4], &[0; 4]);
        assert_eq!(&dark_above_bright[12..], &[255; 4]);
    }
}
