//! Tables as pictures: numbers on colours, with small images or bars in the cells, as PNG and as SVG.

use super::{NOT_FINITE, blend, enlarged, font, grey, svg, write_png};
use crate::{Result, files::write_atomically};
use image::{ExtendedColorType, Rgb, RgbImage, imageops};
use std::{fmt::Write, io, path::Path};

/// A cell of a [`Heatmap`], or what stands above a column.
#[derive(Clone, Debug, Default)]
pub struct HeatCell<'a> {
    /// What its colour shows; without it, it is white. Not finite stands out.
    pub value: Option<f64>,
    /// What is written in it (ASCII and ±): the first line large and dark, the others small.
    pub lines: Vec<String>,
    /// Square images beside each other, row by row, ink in [0, 1].
    pub pictures: Vec<&'a [f32]>,
    /// Bars in percent for 0, 1, 2, …
    pub bars: Vec<f64>,
}

/// Rows and columns of cells, with a title above and notes below.
#[derive(Clone, Debug, Default)]
pub struct Heatmap<'a> {
    /// Stands above everything.
    pub title: String,
    /// What the rows are, above their labels.
    pub corner: String,
    /// What stands above the columns.
    pub columns: Vec<HeatCell<'a>>,
    /// What stands left of the rows, in lines, the first one dark.
    pub rows: Vec<Vec<String>>,
    /// The cells of each row.
    pub cells: Vec<Vec<HeatCell<'a>>>,
    /// What stands below.
    pub notes: Vec<String>,
}

const DARK: [u8; 3] = [25; 3];
const SOFT: [u8; 3] = [95; 3];
const BAR: [u8; 3] = [0, 114, 178];
const RULE: [u8; 3] = [215; 3];
/// The ends of the scale of values.
const LOW: [u8; 3] = [255, 250, 240];
const HIGH: [u8; 3] = [136, 190, 220];

/// Lengths in units: an SVG's own, [`ZOOM`] pixels of a PNG.
const GAP: f64 = 8.0;
const PICTURE: f64 = 46.0;
const BARS: f64 = 60.0;
const LINE: f64 = 14.0;
const ZOOM: f64 = 2.0;

/// How large text is: bitmap letters are so many font pixels high.
#[derive(Clone, Copy, PartialEq)]
enum Size {
    Small,
    Large,
}

impl Size {
    /// Pixels of a PNG per font pixel.
    fn scale(self) -> u32 {
        match self {
            Size::Small => 2,
            Size::Large => 3,
        }
    }

    /// Units from the top of a letter to the next line.
    fn line(self) -> f64 {
        LINE * if self == Size::Small { 1.0 } else { 1.4 }
    }

    /// Units from left to right: of the bitmap letters, which are wider than those of an SVG.
    fn width(self, text: &str) -> f64 {
        f64::from(font::width(text) * self.scale()) / ZOOM
    }
}

/// What a picture is made of, in units.
enum Mark<'a> {
    Rect {
        at: [f64; 4],
        colour: [u8; 3],
    },
    /// Its top is at `y`, and it begins, has its middle or ends at `x` as `anchor` is 0, ½ or 1.
    Text {
        x: f64,
        y: f64,
        anchor: f64,
        size: Size,
        colour: [u8; 3],
        text: String,
    },
    Picture {
        x: f64,
        y: f64,
        pixels: &'a [f32],
    },
}

/// All marks of a picture, and its size.
struct Page<'a> {
    width: f64,
    height: f64,
    marks: Vec<Mark<'a>>,
}

impl<'a> Page<'a> {
    fn text(&mut self, (x, y, anchor): (f64, f64, f64), size: Size, colour: [u8; 3], text: &str) {
        self.marks.push(Mark::Text { x, y, anchor, size, colour, text: text.into() });
    }

    fn rect(&mut self, at: [f64; 4], colour: [u8; 3]) {
        self.marks.push(Mark::Rect { at, colour });
    }

    /// What a cell holds, from its upper edge on, centred.
    fn cell(&mut self, cell: &HeatCell<'a>, (x, y): (f64, f64), width: f64) {
        let middle = x + width / 2.0;
        let mut top = y + GAP;
        let wide = cell.pictures.len() as f64 * (PICTURE + 4.0) - 4.0;
        for (i, pixels) in cell.pictures.iter().enumerate() {
            self.marks.push(Mark::Picture { x: middle - wide / 2.0 + i as f64 * (PICTURE + 4.0), y: top, pixels });
        }
        top += if cell.pictures.is_empty() { 0.0 } else { PICTURE + GAP };
        if !cell.bars.is_empty() {
            self.bars(&cell.bars, (x + GAP, top), width - 2.0 * GAP);
            top += BARS + LINE + GAP;
        }
        for (i, line) in cell.lines.iter().enumerate() {
            let (size, colour) = if i == 0 { (Size::Large, DARK) } else { (Size::Small, SOFT) };
            self.text((middle, top, 0.5), size, colour, line);
            top += size.line();
        }
    }

    /// Bars from a common base, the tallest labelled, with their numbers below.
    fn bars(&mut self, bars: &[f64], (x, y): (f64, f64), width: f64) {
        let step = width / bars.len() as f64;
        let tallest = bars.iter().copied().fold(0.0, f64::max);
        // Room for the label above the tallest one.
        let full = BARS - LINE;
        for (i, &share) in bars.iter().enumerate() {
            let (left, height) = (x + i as f64 * step, full * share / 100.0);
            if height > 0.0 {
                self.rect([left + 0.1 * step, y + BARS - height.max(0.5), 0.8 * step, height.max(0.5)], BAR);
            }
            let middle = left + step / 2.0;
            self.text((middle, y + BARS + 3.0, 0.5), Size::Small, SOFT, &i.to_string());
            if share == tallest && bars[..i].iter().all(|&earlier| earlier < tallest) && tallest > 0.0 {
                self.text((middle, y + BARS - height - LINE + 2.0, 0.5), Size::Small, DARK, &format!("{share:.0}%"));
            }
        }
        self.rect([x, y + BARS, width, 1.0], SOFT);
    }
}

impl HeatCell<'_> {
    /// Width and height that it needs.
    fn size(&self) -> (f64, f64) {
        let sizes = (0..self.lines.len()).map(|i| if i == 0 { Size::Large } else { Size::Small });
        let texts = self.lines.iter().zip(sizes.clone()).map(|(line, size)| size.width(line));
        let pictures = self.pictures.len() as f64 * (PICTURE + 4.0);
        let bars = self.bars.len() as f64 * 13.0;
        let tall = [(self.pictures.is_empty(), PICTURE + GAP), (self.bars.is_empty(), BARS + LINE + GAP)];
        let width = texts.fold(pictures.max(bars), f64::max);
        let height = tall.iter().map(|&(absent, tall)| if absent { 0.0 } else { tall }).sum::<f64>();
        (width + 2.0 * GAP, height + sizes.map(Size::line).sum::<f64>() + 1.5 * GAP)
    }
}

impl<'a> Heatmap<'a> {
    /// Writes it as a PNG or as an SVG, as the path ends.
    ///
    /// Panics if an image is not square.
    pub fn write(&self, path: &Path) -> Result<()> {
        let page = self.page();
        if path.extension().is_some_and(|kind| kind == "svg") {
            let text = page.svg();
            return write_atomically(path, |out| out.write_all(text?.as_bytes()));
        }
        let image = page.png();
        let (width, height) = image.dimensions();
        write_atomically(path, |out| write_png(out, image.as_raw(), width, height, ExtendedColorType::Rgb8))
    }

    fn page(&self) -> Page<'a> {
        let cells = || self.columns.iter().chain(self.cells.iter().flatten());
        let width = cells().map(|cell| cell.size().0).fold(80.0, f64::max).ceil();
        let labels = self.rows.iter().flatten().chain([&self.corner]).map(|line| Size::Small.width(line));
        let left = labels.fold(0.0, f64::max).ceil() + 2.0 * GAP;
        let head = self.columns.iter().map(|cell| cell.size().1).fold(2.0 * LINE, f64::max).ceil();
        let heights: Vec<f64> = (self.cells.iter().zip(&self.rows))
            .map(|(row, label)| {
                let tallest = row.iter().map(|cell| cell.size().1).fold(0.0, f64::max);
                tallest.max(label.len() as f64 * LINE + 2.0 * GAP).ceil()
            })
            .collect();
        let top = 2.0 * GAP + Size::Large.line();
        let below = top + head + heights.iter().map(|height| height + 2.0).sum::<f64>() + GAP;
        let texts = self.notes.iter().map(|note| Size::Small.width(note)).chain([Size::Large.width(&self.title)]);
        let wide = texts.fold(left + self.columns.len() as f64 * (width + 2.0), f64::max);
        let height = below + self.notes.len() as f64 * LINE + GAP;
        let mut page = Page { width: wide + 2.0 * GAP, height, marks: vec![] };

        page.text((GAP, GAP, 0.0), Size::Large, DARK, &self.title);
        page.text((GAP, top + head - GAP - LINE, 0.0), Size::Small, SOFT, &self.corner);
        for (i, cell) in self.columns.iter().enumerate() {
            page.cell(cell, (left + i as f64 * (width + 2.0), top + head - cell.size().1), width);
        }
        let finite = self.cells.iter().flatten().filter_map(|cell| cell.value.filter(|value| value.is_finite()));
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let mut y = top + head;
        for ((row, label), height) in self.cells.iter().zip(&self.rows).zip(heights) {
            page.rect([GAP, y - 1.0, left - GAP, 1.0], RULE);
            for (i, line) in label.iter().enumerate() {
                let colour = if i == 0 { DARK } else { SOFT };
                page.text((GAP, y + GAP + i as f64 * LINE, 0.0), Size::Small, colour, line);
            }
            for (i, cell) in row.iter().enumerate() {
                let x = left + i as f64 * (width + 2.0);
                let colour = match cell.value {
                    None => [250; 3],
                    Some(value) if !value.is_finite() => NOT_FINITE,
                    Some(value) => blend(LOW, HIGH, if high > low { (value - low) / (high - low) } else { 0.5 } as f32),
                };
                page.rect([x, y, width, height], colour);
                page.cell(cell, (x, y), width);
            }
            y += height + 2.0;
        }
        for (i, note) in self.notes.iter().enumerate() {
            page.text((GAP, below + i as f64 * LINE, 0.0), Size::Small, SOFT, note);
        }
        page
    }
}

impl Page<'_> {
    fn svg(&self) -> io::Result<String> {
        let mut out = svg::open(self.width.ceil(), self.height.ceil());
        for mark in &self.marks {
            match mark {
                Mark::Rect { at, colour } => {
                    let [x, y, width, height] = at.map(svg::number);
                    let fill = svg::hex(*colour);
                    let _ = writeln!(
                        out,
                        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"/>"
                    );
                }
                Mark::Text { x, y, anchor, size, colour, text } => {
                    let anchor = ["start", "middle", "end"][(2.0 * anchor) as usize];
                    let points = if *size == Size::Large { 15 } else { 11 };
                    // The base line of the bitmap letters.
                    let y = y + 7.0 * f64::from(size.scale()) / ZOOM;
                    let (x, y, fill) = (svg::number(*x), svg::number(y), svg::hex(*colour));
                    let text = svg::escape(text);
                    let _ = writeln!(
                        out,
                        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{points}\" fill=\"{fill}\">{text}</text>"
                    );
                }
                Mark::Picture { x, y, pixels } => {
                    let side = square(pixels) as u32;
                    let mut png = vec![];
                    let pixels: Vec<u8> = pixels.iter().map(|&v| grey(v)).collect();
                    write_png(&mut png, &pixels, side, side, ExtendedColorType::L8)?;
                    let (x, y, side, data) = (svg::number(*x), svg::number(*y), PICTURE, svg::base64(&png));
                    let _ = writeln!(
                        out,
                        "<image x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" href=\"data:image/png;base64,{data}\"/>"
                    );
                }
            }
        }
        out.push_str("</svg>\n");
        Ok(out)
    }

    fn png(&self) -> RgbImage {
        let pixel = |units: f64| (units * ZOOM).round() as i64;
        let mut image = RgbImage::from_pixel(pixel(self.width) as u32, pixel(self.height) as u32, Rgb([255; 3]));
        for mark in &self.marks {
            match mark {
                Mark::Rect { at: [x, y, width, height], colour } => {
                    let (right, bottom) = (pixel(x + width).max(pixel(*x) + 1), pixel(y + height).max(pixel(*y) + 1));
                    for (x, y) in (pixel(*x)..right).flat_map(|x| (pixel(*y)..bottom).map(move |y| (x, y))) {
                        if let Some(pixel) = image.get_pixel_mut_checked(x as u32, y as u32) {
                            *pixel = Rgb(*colour);
                        }
                    }
                }
                Mark::Text { x, y, anchor, size, colour, text } => {
                    let left = pixel(x - anchor * size.width(text));
                    font::draw(&mut image, (left, pixel(*y)), text, size.scale(), *colour);
                }
                Mark::Picture { x, y, pixels } => {
                    let side = square(pixels) as u32;
                    let ink = RgbImage::from_fn(side, side, |x, y| Rgb([grey(pixels[(y * side + x) as usize]); 3]));
                    imageops::replace(&mut image, &enlarged(&ink, pixel(PICTURE) as u32), pixel(*x), pixel(*y));
                }
            }
        }
        image
    }
}

fn square(pixels: &[f32]) -> usize {
    let side = pixels.len().isqrt();
    assert_eq!(side * side, pixels.len(), "Heatmap: an image of {} pixels is not square", pixels.len());
    side
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pixels: &[f32]) -> Heatmap<'_> {
        let cell = |value: f64, text: &str| HeatCell {
            value: Some(value),
            lines: vec![text.into(), "± 3 & more".into()],
            pictures: vec![pixels; 2],
            bars: vec![],
        };
        Heatmap {
            title: "A table".into(),
            corner: "trained on".into(),
            columns: ["one", "two"].map(|name| HeatCell { lines: vec![name.into()], ..HeatCell::default() }).into(),
            rows: vec![vec!["first".into(), "3 runs".into()], vec!["second".into()]],
            cells: vec![
                vec![cell(-5.0, "-5.0"), cell(10.0, "10.0")],
                vec![
                    cell(f64::NAN, "nan"),
                    HeatCell { bars: vec![0.0, 75.0, 25.0], lines: vec!["x".into()], ..HeatCell::default() },
                ],
            ],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn low_and_high_values_have_the_ends_of_the_scale_and_what_is_not_finite_stands_out() {
        let pixels = vec![1.0; 16];
        let image = map(&pixels).page().png();
        let count = |colour: [u8; 3]| image.pixels().filter(|pixel| pixel.0 == colour).count();
        for colour in [LOW, HIGH, NOT_FINITE, BAR, [0; 3]] {
            assert!(count(colour) > 200, "{colour:?}: {}", count(colour));
        }
        // Six small images of full ink.
        let side = (PICTURE * ZOOM) as usize;
        assert_eq!(count([0; 3]), 6 * side * side);
        // Three quarters and one quarter of the whole height.
        let bars: f64 = [0.75, 0.25].iter().map(|share| (BARS - LINE) * share).sum::<f64>() * ZOOM;
        let wide = count(BAR) as f64 / bars;
        assert!((15.0..80.0).contains(&wide), "{wide}");
    }

    #[test]
    fn a_heat_map_is_a_whole_svg_with_its_words_and_its_images() {
        let pixels = vec![0.5; 9];
        let text = map(&pixels).page().svg().unwrap();
        svg::assert_well_formed(&text);
        assert_eq!(text.matches("<image").count(), 6);
        for words in ["A table", "trained on", "± 3 &amp; more", "3 runs", "75%", "a note"] {
            assert!(text.contains(words), "{words}");
        }
    }

    #[test]
    fn nothing_overlaps_the_edge() {
        let pixels = vec![0.0; 4];
        let page = map(&pixels).page();
        for mark in &page.marks {
            let [x, y, width, height] = match mark {
                Mark::Rect { at, .. } => *at,
                Mark::Picture { x, y, .. } => [*x, *y, PICTURE, PICTURE],
                Mark::Text { x, y, anchor, size, text, .. } => {
                    [x - anchor * size.width(text), *y, size.width(text), 9.0]
                }
            };
            assert!(x >= 0.0 && y >= 0.0 && x + width <= page.width && y + height <= page.height);
        }
        // Without anything it is a picture, too.
        Heatmap::default().page().png();
    }
}
