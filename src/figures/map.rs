//! Curves at their places on a map, coloured by group.

use super::{colour, curve, svg};
use crate::{Result, files::write_atomically};
use std::{fmt::Write, path::Path};

/// Something on a map.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// Where it lies, in any unit.
    pub place: [f64; 2],
    /// Which group it is of, from 0: its colour.
    pub group: usize,
    /// Control points in [0, 1]; a dot is drawn where there are fewer than two.
    pub points: Vec<[f32; 2]>,
}

/// Side of the page without margins, of a mark, and the margin, in SVG units.
const SIDE: f64 = 900.0;
const MARK: f64 = 26.0;
const MARGIN: f64 = 24.0;
const HEADER: f64 = 58.0;

/// Writes a map as SVG. `groups` are the names of the groups, for the legend.
///
/// # Errors
/// A file that cannot be written.
pub fn map_svg(path: &Path, title: &str, marks: &[Mark], groups: &[String]) -> Result<()> {
    write_atomically(path, |out| out.write_all(render(title, marks, groups).as_bytes()))
}

fn render(title: &str, marks: &[Mark], groups: &[String]) -> String {
    let placed = marks.iter().filter(|mark| mark.place.iter().all(|v| v.is_finite()));
    let ends = |k: usize| {
        let along = placed.clone().map(|mark| mark.place[k]);
        (along.clone().fold(f64::INFINITY, f64::min), along.fold(f64::NEG_INFINITY, f64::max))
    };
    let [(left, right), (top, bottom)] = [ends(0), ends(1)];
    // One scale for both directions: distances are what a map is about.
    let scale = (SIDE - MARK) / (right - left).max(bottom - top).max(f64::MIN_POSITIVE);
    let height = if placed.clone().next().is_none() { MARK } else { scale * (bottom - top) + MARK };
    let mut out = svg::open(SIDE + 2.0 * MARGIN, HEADER + height + MARGIN);
    let heading = "font-size=\"18\" font-weight=\"bold\" fill=\"#202020\"";
    let _ = writeln!(out, "<text x=\"{MARGIN}\" y=\"26\" {heading}>{}</text>", svg::escape(title));
    let mut x = MARGIN;
    for (group, name) in groups.iter().enumerate() {
        let fill = svg::hex(colour(group));
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"46\" font-size=\"12\" fill=\"{fill}\">{}</text>",
            svg::number(x),
            svg::escape(name)
        );
        x += 6.6 * name.chars().count() as f64 + 14.0;
    }
    for mark in placed.clone() {
        let (x, y) = (MARGIN + scale * (mark.place[0] - left), HEADER + scale * (mark.place[1] - top));
        let colour = svg::hex(colour(mark.group));
        if mark.points.len() < 2 {
            let (x, y) = (svg::number(x + MARK / 2.0), svg::number(y + MARK / 2.0));
            let _ = writeln!(
                out,
                "<path d=\"M{x} {y}h0\" stroke=\"{colour}\" stroke-width=\"5\" stroke-linecap=\"round\"/>"
            );
            continue;
        }
        // The path of a curve goes from 0 to 100 where the curve goes from 0 to 1.
        let on_page =
            |[px, py]: [f32; 2]| [(x as f32 + MARK as f32 * px) / 100.0, (y as f32 + MARK as f32 * py) / 100.0];
        let points: Vec<[f32; 2]> = mark.points.iter().map(|&p| on_page(p)).collect();
        let _ = writeln!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\" stroke-linecap=\"round\"/>",
            curve(&points)
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_well_formed_and_keeps_its_proportions() {
        let mark = |x, y, points: &[[f32; 2]]| Mark { place: [x, y], group: 1, points: points.to_vec() };
        let marks = [mark(-4.0, 1.0, &[[0.0, 0.0], [1.0, 1.0]]), mark(4.0, 5.0, &[]), mark(f64::NAN, 0.0, &[])];
        let text = render("strokes & <places>", &marks, &["1: 20".into(), "2: 10".into()]);
        svg::assert_well_formed(&text);
        assert_eq!(text.matches("<path").count(), 2);
        // As wide as the page, and half as high.
        assert!(text.contains(&format!("M{MARGIN} {HEADER}C")), "{text}");
        assert!(text.contains(&format!(
            "M{} {}h0",
            MARGIN + SIDE - MARK / 2.0,
            HEADER + (SIDE - MARK) / 2.0 + MARK / 2.0
        )));
        svg::assert_well_formed(&render("", &[], &[]));
        svg::assert_well_formed(&render("", &marks[1..2], &[]));
    }
}
