//! Inferred strokes as vector drawings: true Bézier curves, coloured by order.

use super::{colour, grey, svg, write_png};
use crate::{Result, files::write_atomically};
use image::ExtendedColorType;
use std::{fmt::Write, io, path::Path};

/// One stroke: a Bézier curve and a round pen.
#[derive(Clone, Debug)]
pub struct Stroke {
    /// The control points, one more than the degree, in canvas coordinates in [0, 1]: x to the right, y down.
    pub points: Vec<[f32; 2]>,
    /// The pen width σ in the same unit: the standard deviation of the blob that the renderer moves along the curve. Drawn as a
    /// line 4σ wide, out to two standard deviations on both sides.
    pub sigma: f32,
}

/// The strokes of one image.
#[derive(Clone, Debug, Default)]
pub struct Drawing<'a> {
    /// In the order in which they were drawn.
    pub strokes: Vec<Stroke>,
    /// The target, shown faintly beneath: a square image row by row, ink in [0, 1].
    pub background: Option<&'a [f32]>,
}

/// The side of a drawing and the space around it, in SVG units; inside it the canvas is [0, 100]².
const CELL: f64 = 140.0;
const GAP: f64 = 12.0;
const LEGEND: f64 = 30.0;

/// Writes drawings as one SVG, `columns` beside each other, with a legend of the order of strokes.
///
/// Control points lie where the rasteriser puts them: column `j` of a `side`-wide background at `x = j / side` (section 6 of the
/// model). Panics if a stroke has fewer than two control points or a background is not square.
pub fn strokes_svg(path: &Path, drawings: &[Drawing], columns: usize) -> Result<()> {
    write_atomically(path, |out| out.write_all(render(drawings, columns)?.as_bytes()))
}

fn render(drawings: &[Drawing], columns: usize) -> io::Result<String> {
    let columns = columns.clamp(1, drawings.len().max(1));
    let rows = drawings.len().div_ceil(columns);
    let orders = drawings.iter().map(|d| d.strokes.len()).max().unwrap_or(0);
    let legend_width = 46.0 + 34.0 * orders as f64;
    let width = (columns as f64 * (CELL + GAP)).max(legend_width) + GAP;
    let height = rows as f64 * (CELL + GAP) + GAP + LEGEND;
    let mut out = svg::open(width, height);
    for (i, drawing) in drawings.iter().enumerate() {
        let (x, y) = (GAP + (i % columns) as f64 * (CELL + GAP), GAP + (i / columns) as f64 * (CELL + GAP));
        draw(&mut out, drawing, x, y)?;
    }
    legend(&mut out, orders, (width - legend_width) / 2.0, height - LEGEND / 2.0 - GAP / 4.0);
    out.push_str("</svg>\n");
    Ok(out)
}

/// One cell: background, strokes, start points.
fn draw(out: &mut String, drawing: &Drawing, x: f64, y: f64) -> io::Result<()> {
    let (x, y, cell) = (svg::number(x), svg::number(y), svg::number(CELL));
    let _ = writeln!(out, "<svg x=\"{x}\" y=\"{y}\" width=\"{cell}\" height=\"{cell}\" viewBox=\"0 0 100 100\">");
    if let Some(ink) = drawing.background {
        background(out, ink)?;
    }
    for (order, stroke) in drawing.strokes.iter().enumerate() {
        let _ = writeln!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"0.85\" stroke-width=\"{}\" stroke-linecap=\"round\" \
             stroke-linejoin=\"round\"/>",
            curve(&stroke.points),
            svg::hex(colour(order)),
            svg::number(400.0 * f64::from(stroke.sigma))
        );
    }
    for (order, stroke) in drawing.strokes.iter().enumerate() {
        let [cx, cy] = stroke.points[0].map(|v| svg::number(100.0 * f64::from(v)));
        let radius = svg::number((140.0 * f64::from(stroke.sigma)).clamp(1.3, 2.6));
        let rim = svg::hex(colour(order));
        let _ = writeln!(
            out,
            "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"{radius}\" fill=\"#ffffff\" stroke=\"{rim}\" stroke-width=\"0.8\"/>"
        );
    }
    let frame =
        "x=\"0.3\" y=\"0.3\" width=\"99.4\" height=\"99.4\" fill=\"none\" stroke=\"#cdcdcd\" stroke-width=\"0.6\"";
    let _ = writeln!(out, "<rect {frame}/>\n</svg>");
    Ok(())
}

/// The target beneath the strokes, as an embedded PNG.
fn background(out: &mut String, ink: &[f32]) -> io::Result<()> {
    let side = ink.len().isqrt();
    assert_eq!(side * side, ink.len(), "strokes_svg: a background of {} pixels is not square", ink.len());
    let pixels: Vec<u8> = ink.iter().map(|&v| grey(v)).collect();
    let mut png = Vec::new();
    write_png(&mut png, &pixels, side as u32, side as u32, ExtendedColorType::L8)?;
    // The centre of pixel j is at j / side, so the image starts half a pixel outside.
    let _ = writeln!(
        out,
        "<image x=\"{start}\" y=\"{start}\" width=\"100\" height=\"100\" opacity=\"0.3\" href=\"data:image/png;base64,{data}\"/>",
        start = svg::number(-50.0 / side as f64),
        data = svg::base64(&png)
    );
    Ok(())
}

/// `stroke 1 2 3 …`, each number beside a piece of line in its colour, centred on `y`.
fn legend(out: &mut String, orders: usize, x: f64, y: f64) {
    let text = |x: f64, what: &str| {
        let (x, y) = (svg::number(x), svg::number(y + 4.0));
        format!("<text x=\"{x}\" y=\"{y}\" font-size=\"12\" fill=\"#3c3c3c\">{what}</text>\n")
    };
    if orders > 0 {
        out.push_str(&text(x, "stroke"));
    }
    for order in 0..orders {
        let left = x + 46.0 + 34.0 * order as f64;
        let _ = writeln!(
            out,
            "<path d=\"{}\" stroke=\"{}\" stroke-width=\"5\" stroke-linecap=\"round\"/>",
            svg::polyline([(left + 2.0, y), (left + 12.0, y)]),
            svg::hex(colour(order))
        );
        out.push_str(&text(left + 18.0, &(order + 1).to_string()));
    }
}

/// A Bézier curve of any degree from 1 as an SVG path of cubic pieces, canvas [0, 1] to [0, 100].
///
/// Each piece has the end points and end derivatives of the curve, which makes it exact up to degree 3. Above, the error falls
/// with the fourth power of the number of pieces and is far below what can be seen. Panics if there are fewer than two points.
pub fn curve(points: &[[f32; 2]]) -> String {
    assert!(points.len() >= 2, "strokes_svg: a stroke of {} control points", points.len());
    let points: Vec<[f64; 2]> = points.iter().map(|p| p.map(|v| 100.0 * f64::from(v))).collect();
    let mut path = format!("M{} {}", svg::number(points[0][0]), svg::number(points[0][1]));
    for cubic in pieces(&points) {
        let [x1, y1, x2, y2, x, y] = std::array::from_fn(|i| svg::number(cubic[1 + i / 2][i % 2]));
        let _ = write!(path, "C{x1} {y1} {x2} {y2} {x} {y}");
    }
    path
}

/// Cubic Bézier pieces along a Bézier curve.
fn pieces(points: &[[f64; 2]]) -> Vec<[[f64; 2]; 4]> {
    let degree = points.len() - 1;
    let count = if degree <= 3 { 1 } else { 2 * degree };
    let along = |i: usize| point_and_derivative(points, i as f64 / count as f64);
    (0..count)
        .map(|i| {
            let ((start, out), (end, into)) = (along(i), along(i + 1));
            let third = 1.0 / (3.0 * count as f64);
            let (leave, arrive) = ([0, 1].map(|k| start[k] + third * out[k]), [0, 1].map(|k| end[k] - third * into[k]));
            [start, leave, arrive, end]
        })
        .collect()
}

/// A point of a Bézier curve and the derivative there, by de Casteljau's algorithm.
fn point_and_derivative(points: &[[f64; 2]], u: f64) -> ([f64; 2], [f64; 2]) {
    let degree = points.len() - 1;
    let mut level = points.to_vec();
    while level.len() > 2 {
        level = level.windows(2).map(|p| [0, 1].map(|k| (1.0 - u) * p[0][k] + u * p[1][k])).collect();
    }
    let (a, b) = (level[0], level[1]);
    ([0, 1].map(|k| (1.0 - u) * a[k] + u * b[k]), [0, 1].map(|k| degree as f64 * (b[k] - a[k])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_and_a_quadratic_stroke_become_exactly_one_cubic() {
        assert_eq!(curve(&[[0.0, 0.0], [0.9, 0.3]]), "M0 0C30 10 60 20 90 30");
        // Degree elevation: the inner points are 1/3 P0 + 2/3 P1 and 2/3 P1 + 1/3 P2.
        assert_eq!(curve(&[[0.0, 0.0], [0.3, 0.6], [0.6, 0.0]]), "M0 0C20 40 40 40 60 0");
        assert_eq!(curve(&[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.9]]), "M10 20C30 40 50 60 70 90");
    }

    #[test]
    fn pieces_follow_curves_of_degree_4_to_8() {
        let zigzag = |i: usize| [0.1 + 0.1 * i as f64, (i % 2) as f64];
        for degree in 4..=8 {
            let points: Vec<_> = (0..=degree).map(zigzag).collect();
            let pieces = pieces(&points);
            for (i, piece) in pieces.iter().enumerate() {
                for v in [0.0, 0.25, 0.5, 0.75, 1.0] {
                    let (exact, _) = point_and_derivative(&points, (i as f64 + v) / pieces.len() as f64);
                    let (drawn, _) = point_and_derivative(piece, v);
                    let error = (exact[0] - drawn[0]).hypot(exact[1] - drawn[1]);
                    assert!(error < 1e-3, "degree {degree}, piece {i}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_drawing_is_well_formed_and_holds_strokes_dots_background_and_legend() {
        let stroke = |sigma| Stroke { points: vec![[0.25, 0.5], [0.5, 0.5]], sigma };
        let ink = [1.0, 0.0, 0.0, 1.0];
        let full = Drawing { strokes: vec![stroke(0.02), stroke(0.01)], background: Some(&ink) };
        let text = render(&[full, Drawing::default(), Drawing::default()], 2).unwrap();
        svg::assert_well_formed(&text);
        assert!(text.contains("d=\"M25 50C"));
        assert!(text.contains("stroke=\"#0072b2\" stroke-opacity=\"0.85\" stroke-width=\"8\""));
        assert!(text.contains("stroke=\"#d55e00\" stroke-opacity=\"0.85\" stroke-width=\"4\""));
        assert_eq!(text.matches("<circle cx=\"25\" cy=\"50\"").count(), 2);
        assert!(text.contains(">1</text>") && text.contains(">2</text>") && !text.contains(">3</text>"));
        // Two columns and two rows of cells, and the legend.
        assert!(text.contains("width=\"316\" height=\"346\""));
        let coded = text.split("base64,").nth(1).unwrap().split('"').next().unwrap();
        assert!(coded.starts_with("iVBORw0KGgo") && text.contains("<image x=\"-25\""));
    }

    #[test]
    fn no_drawings_give_an_empty_page() {
        svg::assert_well_formed(&render(&[], 0).unwrap());
    }
}
