//! Rows of image tiles as one PNG: target, canvas after each stroke, residual.

use super::{NOT_FINITE, blend, colour, enlarged, font, grey, write_png};
use crate::{Result, files::write_atomically};
use image::{ExtendedColorType, Rgb, RgbImage, imageops};
use std::path::Path;

const TEXT: [u8; 3] = [60; 3];
const FRAME: [u8; 3] = [205; 3];
/// Ends of the scale of signed tiles: ink that is missing (+1) and ink that is too much (−1).
const MISSING: [u8; 3] = [200, 20, 45];
const TOO_MUCH: [u8; 3] = [25, 90, 185];

/// What stands below a grid with signed tiles.
const LEGEND: [([u8; 3], &str); 2] = [(MISSING, "ink is missing"), (TOO_MUCH, "too much ink")];

/// What the pixels of a tile mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Kind {
    /// Ink in [0, 1], shown dark on white.
    #[default]
    Ink,
    /// Signed values in [−1, 1], as in the residual: red where ink is missing (positive), blue where there is too much of it.
    Signed,
}

/// A write window: where on the canvas a stroke was written (section 11b of the model).
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The layout as `[a, b, c, d, e, f]` of `A = [[a, b, c], [d, e, f]]`, from the glimpse to the canvas, both in corner-aligned
    /// coordinates in [−1, 1], x to the right and y down.
    pub affine: [f32; 6],
    /// Which stroke it belongs to, from 0: picks the colour, the same as in [`strokes_svg`](super::strokes_svg).
    pub stroke: usize,
}

/// One image of a [`Grid`].
#[derive(Clone, Debug, Default)]
pub struct Tile<'a> {
    /// `side × side` values, row by row; no values at all for a tile that is left blank.
    pub pixels: &'a [f32],
    /// What they mean.
    pub kind: Kind,
    /// Outlined on the tile: the image of the square ±0.99.
    pub window: Option<Window>,
}

/// Rows of tiles, with captions above the columns and labels left of the rows.
#[derive(Clone, Debug, Default)]
pub struct Grid<'a> {
    /// Height and width of every tile, in pixels of the data.
    pub side: usize,
    /// How many pixels of the picture show one pixel of the data, along each axis.
    pub scale: usize,
    /// What stands above the columns (ASCII); may be fewer than columns.
    pub captions: &'a [&'a str],
    /// What stands left of the rows (ASCII); may be fewer than rows.
    pub labels: &'a [&'a str],
    /// The tiles; rows may differ in length.
    pub rows: &'a [Vec<Tile<'a>>],
}

impl Grid<'_> {
    /// Draws the grid and writes it as a PNG.
    ///
    /// Panics if a tile is neither blank nor `side × side`, or if `side` or `scale` is 0.
    pub fn write(&self, path: &Path) -> Result<()> {
        let image = self.draw();
        let (width, height) = image.dimensions();
        write_atomically(path, |out| write_png(out, image.as_raw(), width, height, ExtendedColorType::Rgb8))
    }

    /// Draws the grid.
    fn draw(&self) -> RgbImage {
        assert!(self.side > 0 && self.scale > 0, "Grid: side {} and scale {} must be positive", self.side, self.scale);
        let place = Placement::of(self);
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let (mut width, mut height) = (place.x(columns), place.y(self.rows.len()));
        let bottom = height;
        let signed = self.rows.iter().flatten().any(|tile| tile.kind == Kind::Signed && !tile.pixels.is_empty());
        if signed {
            width = width.max(place.legend_width());
            height += font::HEIGHT * place.font + place.gap;
        }
        let mut image = RgbImage::from_pixel(width, height, Rgb([255; 3]));
        if signed {
            place.legend(&mut image, width, bottom);
        }

        for (c, caption) in self.captions.iter().enumerate().take(columns) {
            let indent = (i64::from(place.tile) - i64::from(font::width(caption) * place.font)) / 2;
            font::draw(&mut image, (i64::from(place.x(c)) + indent, place.gap.into()), caption, place.font, TEXT);
        }
        for (r, label) in self.labels.iter().enumerate().take(self.rows.len()) {
            let y = place.y(r) + (place.tile.saturating_sub(7 * place.font)) / 2;
            font::draw(&mut image, (place.gap.into(), y.into()), label, place.font, TEXT);
        }
        for (r, row) in self.rows.iter().enumerate() {
            for (c, tile) in row.iter().enumerate().filter(|(_, tile)| !tile.pixels.is_empty()) {
                let tile = tile.draw(self.side, self.scale);
                let (x, y) = (place.x(c), place.y(r));
                frame(&mut image, x - 1, y - 1, place.tile + 2);
                imageops::replace(&mut image, &tile, x.into(), y.into());
            }
        }
        image
    }
}

/// Where things lie in the picture, in its pixels.
struct Placement {
    tile: u32,
    gap: u32,
    left: u32,
    top: u32,
    font: u32,
}

impl Placement {
    fn of(grid: &Grid) -> Self {
        let tile = (grid.side * grid.scale) as u32;
        let gap = (tile / 16).max(6);
        let widest = |texts: &[&str]| texts.iter().map(|text| font::width(text)).max().unwrap_or(0);
        // The largest letters with which every caption stays above its column, but not larger than is pleasant.
        let font = (tile / widest(grid.captions).max(1)).clamp(1, (tile / 70).max(1));
        let left = if grid.labels.is_empty() { gap } else { widest(grid.labels) * font + 2 * gap };
        let top = if grid.captions.is_empty() { gap } else { font::HEIGHT * font + gap + gap / 2 };
        Self { tile, gap, left, top, font }
    }

    /// What the colours of signed tiles mean: squares with words, at the right below the rows.
    fn legend(&self, image: &mut RgbImage, width: u32, y: u32) {
        let mut x = width.saturating_sub(self.legend_width()) + self.gap;
        let side = 7 * self.font;
        for (colour, words) in LEGEND {
            for (dx, dy) in (0..side).flat_map(|dx| (0..side).map(move |dy| (dx, dy))) {
                image.put_pixel(x + dx, y + dy, Rgb(colour));
            }
            x += side + 3 * self.font;
            font::draw(image, (x.into(), y.into()), words, self.font, TEXT);
            x += font::width(words) * self.font + self.gap;
        }
    }

    fn legend_width(&self) -> u32 {
        let entry = |words: &str| (10 + font::width(words)) * self.font + self.gap;
        LEGEND.iter().map(|(_, words)| entry(words)).sum::<u32>() + self.gap
    }

    fn x(&self, column: usize) -> u32 {
        self.left + column as u32 * (self.tile + self.gap)
    }

    fn y(&self, row: usize) -> u32 {
        self.top + row as u32 * (self.tile + self.gap)
    }
}

/// The outline of a square, one pixel thick.
fn frame(image: &mut RgbImage, x: u32, y: u32, side: u32) {
    for i in 0..side {
        for (px, py) in [(x + i, y), (x + i, y + side - 1), (x, y + i), (x + side - 1, y + i)] {
            image.put_pixel(px, py, Rgb(FRAME));
        }
    }
}

impl Tile<'_> {
    /// The tile in colours, enlarged smoothly, with its window.
    fn draw(&self, side: usize, scale: usize) -> RgbImage {
        assert_eq!(self.pixels.len(), side * side, "Grid: a tile of side {side} needs {} pixels", side * side);
        let small = RgbImage::from_fn(side as u32, side as u32, |x, y| {
            Rgb(shade(self.pixels[y as usize * side + x as usize], self.kind))
        });
        let large = (side * scale) as u32;
        let mut image = enlarged(&small, large);
        if let Some(window) = self.window {
            outline(
                &mut image,
                corners(&window.affine, side, scale),
                1.5_f32.max(scale as f32 / 2.0),
                colour(window.stroke),
            );
        }
        image
    }
}

/// The colour of one value.
fn shade(value: f32, kind: Kind) -> [u8; 3] {
    if !value.is_finite() {
        return NOT_FINITE;
    }
    match kind {
        Kind::Ink => [grey(value); 3],
        Kind::Signed => blend([255; 3], if value > 0.0 { MISSING } else { TOO_MUCH }, value.abs().min(1.0)),
    }
}

/// The corners of the square ±0.99 under an affine map, in pixels of the enlarged tile.
fn corners([a, b, c, d, e, f]: &[f32; 6], side: usize, scale: usize) -> [[f32; 2]; 4] {
    // Corner-aligned: −1 and 1 are the centres of the first and the last pixel.
    let pixel = |v: f32| ((v + 1.0) / 2.0 * (side - 1) as f32 + 0.5) * scale as f32;
    [(-0.99, -0.99), (0.99, -0.99), (0.99, 0.99), (-0.99, 0.99)]
        .map(|(x, y)| [pixel(a * x + b * y + c), pixel(d * x + e * y + f)])
}

/// Draws a closed polygon `thickness` pixels wide, with smooth edges.
fn outline(image: &mut RgbImage, polygon: [[f32; 2]; 4], thickness: f32, colour: [u8; 3]) {
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let centre = [x as f32 + 0.5, y as f32 + 0.5];
        let distance =
            (0..4).map(|i| to_segment(centre, polygon[i], polygon[(i + 1) % 4])).fold(f32::INFINITY, f32::min);
        let covered = (thickness / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
        pixel.0 = blend(pixel.0, colour, covered);
    }
}

/// The distance of `p` from the segment between `a` and `b`.
fn to_segment(p: [f32; 2], a: [f32; 2], b: [f32; 2]) -> f32 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy).max(f32::MIN_POSITIVE);
    let t = along.clamp(0.0, 1.0);
    (p[0] - a[0] - t * dx).hypot(p[1] - a[1] - t * dy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A grid written and decoded again.
    fn written(grid: &Grid) -> RgbImage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        grid.write(&path).unwrap();
        image::load_from_memory(&std::fs::read(&path).unwrap()).unwrap().to_rgb8()
    }

    #[test]
    fn ink_is_dark_on_white_and_rows_go_down() {
        let (bright_left, bright_bottom) = ([1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]);
        let tile = |pixels| Tile { pixels, ..Tile::default() };
        let rows = [vec![tile(&bright_left), tile(&bright_bottom)], vec![tile(&bright_bottom)]];
        let image = written(&Grid { side: 2, scale: 8, rows: &rows, ..Grid::default() });
        // Two tiles of 16 pixels and three gaps of 6, both ways.
        assert_eq!(image.dimensions(), (50, 50));
        let at = |x, y| image.get_pixel(x, y).0;
        assert_eq!([at(6, 6), at(6, 21), at(21, 6)], [[0; 3], [0; 3], [255; 3]]);
        assert_eq!([at(28, 6), at(28, 21), at(43, 21)], [[255; 3], [0; 3], [0; 3]]);
        assert_eq!([at(6, 28), at(6, 43)], [[255; 3], [0; 3]]);
        assert_eq!(at(35, 35), [255; 3], "a missing tile is left white");
        assert_eq!(at(5, 5), FRAME);
    }

    #[test]
    fn residuals_are_red_where_ink_is_missing_blue_where_it_is_too_much_and_nan_stands_out() {
        let shades = [1.0, -1.0, 0.0, f32::NAN, 7.0].map(|v| shade(v, Kind::Signed));
        assert_eq!(shades, [MISSING, TOO_MUCH, [255; 3], NOT_FINITE, MISSING]);
        let [r, g, b] = shade(0.5, Kind::Signed);
        assert!(r > g && r > b);
        assert_eq!(
            [shade(0.0, Kind::Ink), shade(1.0, Kind::Ink), shade(-3.0, Kind::Ink)],
            [[255; 3], [0; 3], [255; 3]]
        );
    }

    #[test]
    fn the_colours_of_a_residual_are_explained_below_it_and_only_there() {
        let pixels = [0.5, -0.5, 0.0, 0.0];
        let tile = |kind| [vec![Tile { pixels: &pixels, kind, window: None }]];
        let draw = |rows: &[Vec<Tile>]| Grid { side: 2, scale: 8, rows, ..Grid::default() }.draw();
        let (plain, signed) = (draw(&tile(Kind::Ink)), draw(&tile(Kind::Signed)));
        assert!(signed.height() > plain.height() && signed.width() > plain.width());
        let below = |colour| signed.enumerate_pixels().any(|(_, y, p)| y >= plain.height() && p.0 == colour);
        assert!(below(MISSING) && below(TOO_MUCH) && below(TEXT));
        // Blank tiles need no explanation.
        let blank = [vec![Tile { kind: Kind::Signed, ..Tile::default() }, Tile { pixels: &pixels, ..Tile::default() }]];
        assert_eq!(draw(&blank).height(), plain.height());
    }

    #[test]
    fn a_window_is_outlined_where_its_affine_puts_it() {
        let blank = vec![0.0; 50 * 50];
        // Half the size, moved right by 0.25 and up by 0.5.
        let window = Window { affine: [0.5, 0.0, 0.25, 0.0, 0.5, -0.5], stroke: 1 };
        let rows = [vec![Tile { pixels: &blank, kind: Kind::Ink, window: Some(window) }]];
        let image = written(&Grid { side: 50, scale: 4, rows: &rows, ..Grid::default() });
        let gap = 12.0;
        let pixel = |v: f32| (gap + ((v + 1.0) / 2.0 * 49.0 + 0.5) * 4.0) as u32;
        let at = |x: f32, y: f32| image.get_pixel(pixel(x), pixel(y)).0;
        let (left, right, top, bottom) = (0.25 - 0.495, 0.25 + 0.495, -0.5 - 0.495, -0.5 + 0.495);
        for (x, y) in [(left, -0.5), (right, -0.5), (0.25, top), (0.25, bottom), (left, bottom)] {
            assert_eq!(at(x, y), colour(1), "at {x}, {y}");
        }
        assert_eq!([at(0.25, -0.5), at(-0.9, -0.5), at(0.25, 0.9)], [[255; 3]; 3]);
    }

    #[test]
    fn captions_are_centred_above_their_columns_and_labels_stand_left_of_rows() {
        let blank = vec![0.0; 50 * 50];
        let rows = [vec![Tile { pixels: &blank, ..Tile::default() }; 2]];
        let grid = Grid { side: 50, scale: 3, captions: &["", "I"], labels: &["row"], rows: &rows };
        let image = written(&grid);
        let place = Placement::of(&grid);
        let text: Vec<_> = image.enumerate_pixels().filter(|(.., p)| p.0 == TEXT).map(|(x, y, _)| (x, y)).collect();
        let (above, left): (Vec<_>, Vec<_>) = text.into_iter().partition(|&(_, y)| y < place.top - 1);
        let centre = place.x(1) + place.tile / 2;
        assert!(!above.is_empty() && above.iter().all(|&(x, _)| x.abs_diff(centre) <= 3 * place.font));
        assert!(!left.is_empty() && left.iter().all(|&(x, y)| x < place.left - 1 && y >= place.y(0)));
    }

    #[test]
    #[should_panic(expected = "needs 4 pixels")]
    fn a_tile_of_the_wrong_size_is_refused() {
        Grid { side: 2, scale: 1, rows: &[vec![Tile { pixels: &[0.0; 3], ..Tile::default() }]], ..Grid::default() }
            .draw();
    }
}
