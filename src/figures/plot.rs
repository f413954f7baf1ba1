//! How training went: metrics against steps, a panel each.

use super::{colour, svg};
use crate::{Result, files::write_atomically};
use std::{fmt::Write, path::Path};

/// One set of axes.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Stands above it.
    pub title: String,
    /// What the vertical axis shows, with its unit.
    pub y_label: String,
    /// Lines: a label (may be empty) and points `(step, value)` in the order of steps. A value that is not finite breaks the line.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Size of a panel with its labels, and of the space between its edge and its axes, in SVG units.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 308.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 58.0;
const BOTTOM: f64 = 48.0;
/// Room for the title of the page.
const HEADER: f64 = 44.0;
/// Groups into which a line is thinned: more could not be told apart.
const GROUPS: usize = 400;
/// The points of lines of so many or fewer are marked.
const DOTS: usize = 60;

/// Writes panels as one SVG, two beside each other, horizontal axis "step".
///
/// Every line is drawn thin as it is and bold as its exponential moving average, run forth and back so that it does not lag, over
/// 1/100 of its length (lines of fewer than 200 points only as they are, with dots if there are few). Beside its label stands the
/// last value of the bold line. With 200 values or more, outliers are left out of the vertical axis, so that the first steps of
/// training do not flatten the rest.
pub fn plot_svg(path: &Path, title: &str, panels: &[Panel]) -> Result<()> {
    write_atomically(path, |out| out.write_all(render(title, panels).as_bytes()))
}

fn render(title: &str, panels: &[Panel]) -> String {
    let columns = panels.len().clamp(1, 2);
    let (width, height) = (columns as f64 * WIDTH, HEADER + panels.len().div_ceil(columns) as f64 * HEIGHT);
    let mut out = svg::open(width, height);
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"29\" font-size=\"18\" font-weight=\"bold\" text-anchor=\"middle\" fill=\"#202020\">{}</text>",
        svg::number(width / 2.0),
        svg::escape(title)
    );
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = ((i % columns) as f64 * WIDTH, HEADER + (i / columns) as f64 * HEIGHT);
        // A nested element cuts off what leaves the panel and gives it coordinates of its own.
        let (x, y) = (svg::number(x), svg::number(y));
        let _ = writeln!(out, "<svg x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{HEIGHT}\">");
        draw(&mut out, panel);
        out.push_str("</svg>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// One panel: title, axes with ticks, lines, legend.
fn draw(out: &mut String, panel: &Panel) {
    let (inner_width, inner_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    text(out, LEFT, TOP - 32.0, "start", "font-size=\"14\" font-weight=\"bold\"", &panel.title);
    text(out, LEFT + inner_width / 2.0, HEIGHT - 10.0, "middle", "", "step");
    let middle = svg::number(TOP + inner_height / 2.0);
    let _ = writeln!(out, "<g transform=\"translate(15 {middle}) rotate(-90)\">");
    text(out, 0.0, 0.0, "middle", "", &panel.y_label);
    out.push_str("</g>\n");

    let finite: Vec<(f64, f64)> = panel
        .series
        .iter()
        .flat_map(|(_, points)| points.iter().copied())
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .collect();
    if finite.is_empty() {
        text(out, LEFT + inner_width / 2.0, TOP + inner_height / 2.0, "middle", "", "nothing was logged");
        return;
    }
    let (x_axis, y_axis) = (Axis::exactly(finite.iter().map(|p| p.0)), Axis::roomy(finite.iter().map(|p| p.1)));
    let x = |value: f64| LEFT + inner_width * x_axis.share(value);
    let y = |value: f64| TOP + inner_height * (1.0 - y_axis.share(value));
    for (tick, label) in x_axis.ticks(6, 1.0) {
        rule(out, (x(tick), TOP), (x(tick), TOP + inner_height), "#ececec");
        text(out, x(tick), TOP + inner_height + 16.0, "middle", "", &label);
    }
    for (tick, label) in y_axis.ticks(5, 0.0) {
        rule(out, (LEFT, y(tick)), (LEFT + inner_width, y(tick)), "#ececec");
        text(out, LEFT - 7.0, y(tick) + 4.0, "end", "", &label);
    }
    rule(out, (LEFT, TOP), (LEFT, TOP + inner_height), "#8c8c8c");
    rule(out, (LEFT, TOP + inner_height), (LEFT + inner_width, TOP + inner_height), "#8c8c8c");

    // The lines live in an element of exactly the size of the axes: what leaves the axes is cut off.
    let (w, h) = (svg::number(inner_width), svg::number(inner_height));
    let _ = writeln!(out, "<svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{w}\" height=\"{h}\">");
    for (i, (_, points)) in panel.series.iter().enumerate() {
        let smooth = smoothed(points);
        // A dot is a line that breaks at once.
        let dots = points.iter().flat_map(|&point| [point, (f64::NAN, f64::NAN)]).collect::<Vec<_>>();
        let raw = if points.len() <= DOTS { (5.0, 1.0, &dots) } else { (1.0, 0.3, points) };
        for (width, opacity, points) in [raw, (2.0, 1.0, &smooth)] {
            let path = svg::polyline(thinned(points).into_iter().map(|(px, py)| (x(px) - LEFT, y(py) - TOP)));
            let stroke = svg::hex(colour(i));
            let _ = writeln!(
                out,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity}\" \
                 stroke-linejoin=\"round\" stroke-linecap=\"round\"/>"
            );
        }
    }
    out.push_str("</svg>\n");
    legend(out, panel);
}

/// The labels and last smoothed values, in a line between the title and the axes.
fn legend(out: &mut String, panel: &Panel) {
    let mut left = LEFT;
    for (i, (label, points)) in panel.series.iter().enumerate() {
        let Some((_, last)) = smoothed(points).pop() else { continue };
        let entry = format!("{} {}", if label.is_empty() { "last" } else { label }, significant(last));
        text(out, left, TOP - 12.0, "start", &format!("fill=\"{}\"", svg::hex(colour(i))), &entry);
        left += 6.4 * entry.chars().count() as f64 + 12.0;
    }
}

/// A number with about four digits.
fn significant(value: f64) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    if !value.is_finite() || (-4.0..9.0).contains(&magnitude) {
        format!("{value:.*}", (3.0 - magnitude).clamp(0.0, 7.0) as usize)
    } else {
        format!("{value:.2e}")
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, attributes: &str, what: &str) {
    let size = if attributes.contains("font-size") { "" } else { " font-size=\"11\"" };
    let fill = if attributes.contains("fill") { "" } else { " fill=\"#3c3c3c\"" };
    let (x, y, what) = (svg::number(x), svg::number(y), svg::escape(what));
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\"{size}{fill} {attributes}>{what}</text>");
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let _ = writeln!(out, "<path d=\"{}\" stroke=\"{stroke}\" stroke-width=\"1\"/>", svg::polyline([from, to]));
}

/// The range of values that an axis shows.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// From the lowest to the highest of finite `values` (at least one).
    fn exactly(values: impl Iterator<Item = f64> + Clone) -> Self {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
        let room = if high > low { 0.0 } else { 0.5 * low.abs().max(1e-3) };
        Self { low: low - room, high: high + room }
    }

    /// The same with 6 % more on both sides. Outliers of many values are left out: no side reaches further than a quarter of the
    /// range of all but the lowest and the highest hundredth of them.
    fn roomy(values: impl Iterator<Item = f64> + Clone) -> Self {
        let mut sorted: Vec<f64> = values.clone().collect();
        sorted.sort_by(f64::total_cmp);
        let all = Self::exactly(values);
        let cut = sorted.len() / 100;
        let most = Self { low: sorted[cut], high: sorted[sorted.len() - 1 - cut] };
        let (room, limit) = (0.06 * (all.high - all.low), 0.25 * (most.high - most.low));
        let (low, high) = (all.low - room, all.high + room);
        if cut < 2 || limit == 0.0 {
            return Self { low, high };
        }
        Self { low: low.max(most.low - limit), high: high.min(most.high + limit) }
    }

    /// Where a value lies: 0 at the low end, 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// About `count` round values in the range, 1, 2 or 5 times a power of ten and at least `finest` apart, with labels.
    fn ticks(&self, count: usize, finest: f64) -> Vec<(f64, String)> {
        let rough = ((self.high - self.low) / count as f64).max(finest);
        let power = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= 0.7 * rough).unwrap_or(10.0 * power);
        let (first, last) = ((self.low / step).ceil() as i64, (self.high / step + 1e-9).floor() as i64);
        let largest = self.low.abs().max(self.high.abs());
        let (unit, suffix) = if largest >= 1e6 {
            (1e6, "M")
        } else if largest >= 1e4 {
            (1e3, "k")
        } else {
            (1.0, "")
        };
        let decimals = (-(step / unit).log10().floor()).max(0.0) as usize;
        let label = |value: f64| match value / unit {
            0.0 => "0".to_owned(),
            _ if decimals > 5 => format!("{value:.1e}"),
            shown => format!("{shown:.decimals$}{suffix}").replace('-', "−"),
        };
        (first..=last).map(|i| i as f64 * step).map(|value| (value, label(value))).collect()
    }
}

/// The line averaged exponentially over about 1/100 of its points, from its start to its end and back.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let span = points.len() / 100;
    if span < 2 {
        return points.to_vec();
    }
    let mut line = averaged(points.iter(), span);
    line = averaged(line.iter().rev(), span);
    line.reverse();
    line
}

/// The exponential moving average over about `span` points, corrected for its start; values that are not finite are left out of it
/// and stay in the line.
fn averaged<'a>(points: impl Iterator<Item = &'a (f64, f64)>, span: usize) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / span as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = |&(x, y): &(f64, f64)| {
        if !y.is_finite() {
            return (x, y);
        }
        sum = keep * sum + y;
        weight = keep * weight + 1.0;
        (x, sum / weight)
    };
    points.map(average).collect()
}

/// A long line with only the lowest and the highest point of every group of neighbours, in their order: looks the same.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= 2 * GROUPS {
        return points.to_vec();
    }
    let extremes = |group: &[(f64, f64)]| {
        let by_value = |&a: &usize, &b: &usize| group[a].1.total_cmp(&group[b].1);
        let finite = || (0..group.len()).filter(|&i| group[i].1.is_finite());
        match (finite().min_by(by_value), finite().max_by(by_value)) {
            (Some(low), Some(high)) if low == high => vec![group[low]],
            (Some(low), Some(high)) => vec![group[low.min(high)], group[low.max(high)]],
            _ => vec![group[0]],
        }
    };
    points.chunks(points.len().div_ceil(GROUPS)).flat_map(extremes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        Axis { low, high }.ticks(5, 0.0).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_short() {
        assert_eq!(labels(0.0, 10.0), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels(-0.3, 0.75), ["−0.2", "0", "0.2", "0.4", "0.6"]);
        assert_eq!(labels(0.0, 500_000.0), ["0", "100k", "200k", "300k", "400k", "500k"]);
        assert_eq!(labels(0.0, 2.4e6), ["0", "0.5M", "1.0M", "1.5M", "2.0M"]);
        assert_eq!(labels(-12_000.0, 1_000.0), ["−12k", "−10k", "−8k", "−6k", "−4k", "−2k", "0"]);
        assert_eq!(labels(1e-4, 5.5e-4), ["0.0001", "0.0002", "0.0003", "0.0004", "0.0005"]);
    }

    #[test]
    fn ticks_of_few_steps_are_whole_numbers() {
        let ticks = Axis { low: 0.0, high: 3.0 }.ticks(6, 1.0);
        assert_eq!(ticks.iter().map(|(_, label)| label.as_str()).collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }

    #[test]
    fn few_points_are_marked_also_one_alone() {
        let panel = Panel { series: vec![("a".into(), vec![(3.0, 5.0)])], ..Panel::default() };
        let text = render("", &[panel]);
        assert!(text.contains("d=\"M198 101h0\" fill=\"none\" stroke=\"#0072b2\" stroke-width=\"5\""));
    }

    #[test]
    fn one_value_alone_still_has_an_axis() {
        for value in [0.0, 7.0, -3.0] {
            let axis = Axis::roomy(std::iter::once(value));
            assert_eq!(axis.share(value), 0.5);
            assert!(!axis.ticks(5, 0.0).is_empty());
        }
    }

    #[test]
    fn the_average_of_a_constant_is_that_constant_and_steps_over_nan() {
        let points: Vec<_> = (0..1000).map(|i| (i as f64, if i == 50 { f64::NAN } else { 3.0 })).collect();
        let smooth = smoothed(&points);
        assert!(smooth.iter().enumerate().all(|(i, &(_, y))| if i == 50 {
            y.is_nan()
        } else {
            (y - 3.0).abs() < 1e-12
        }));
    }

    #[test]
    fn the_average_calms_noise_does_not_lag_and_ends_at_the_forward_average() {
        let line = |f: &dyn Fn(usize) -> f64| (0..1000).map(|i| (i as f64, f(i))).collect::<Vec<_>>();
        let noise = smoothed(&line(&|i| if i.is_multiple_of(2) { 1.0 } else { -1.0 }));
        assert!(noise[10..990].iter().all(|&(_, y)| y.abs() < 0.06));
        let ramp = smoothed(&line(&|i| i as f64));
        assert!((ramp[500].1 - 500.0).abs() < 1e-6 && ramp.iter().zip(0..).all(|(&(x, _), i)| x == i as f64));
        let step = line(&|i| if i < 990 { 0.0 } else { 1.0 });
        assert_eq!(smoothed(&step)[999].1, averaged(step.iter(), 10)[999].1);
        assert_eq!(smoothed(&step[..199]), step[..199], "a short line stays as it is");
    }

    #[test]
    fn thinning_keeps_peaks_and_order() {
        let points: Vec<_> = (0..100_000).map(|i| (i as f64, if i == 77_777 { 9.0 } else { (i % 7) as f64 })).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= 2 * GROUPS && thin.contains(&(77_777.0, 9.0)));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn a_plot_is_well_formed_and_its_line_ends_where_the_axes_say() {
        let line = |values: &[f64]| values.iter().enumerate().map(|(i, &v)| (i as f64, v)).collect::<Vec<_>>();
        let panel = Panel {
            title: "ELBO <nats>".into(),
            y_label: "a & b".into(),
            series: vec![("train".into(), line(&[0.0, 5.0, 10.0])), ("test".into(), line(&[1.0, f64::NAN, 2.0]))],
        };
        let text = render("run \"1\"", &[panel, Panel::default(), Panel::default()]);
        svg::assert_well_formed(&text);
        assert!(
            text.contains("ELBO &lt;nats&gt;") && text.contains("a &amp; b") && text.contains("nothing was logged")
        );
        // 396 × 202 inside the axes, with 6 % of the range above and below.
        assert!(text.contains("d=\"M0 191.18h0L198 101L396 10.82\""));
        assert!(text.contains(">train 10.00</text>"));
        assert!(text.contains("width=\"960\" height=\"660\""));
    }

    #[test]
    fn title_legend_and_axes_have_lines_of_their_own_and_labels_do_not_meet() {
        let line = |value: f64| vec![(0.0, value), (1.0, value)];
        let panel = Panel {
            title: "A title as long as the panel is wide, which a legend beside it would meet".into(),
            series: vec![("on/off".into(), line(12.5)), ("layouts".into(), line(1.0)), ("strokes".into(), line(88.2))],
            ..Panel::default()
        };
        let text = render("", &[panel]);
        let place = |what: &str, attribute: &str| {
            let tag = text[..text.find(&format!(">{what}")).unwrap()].rsplit('<').next().unwrap();
            let value = tag.split(&format!(" {attribute}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert!(place("A title", "y") + 12.0 < place("on/off", "y") && place("on/off", "y") + 8.0 < TOP);
        let labels = ["on/off 12.50", "layouts 1.000", "strokes 88.20"];
        for pair in labels.windows(2) {
            assert!(place(pair[0], "x") + 6.0 * pair[0].len() as f64 + 6.0 < place(pair[1], "x"), "{pair:?}");
        }
        assert!(place(labels[2], "x") + 6.4 * labels[2].len() as f64 <= WIDTH);
    }

    #[test]
    fn early_outliers_do_not_flatten_the_plot() {
        let axis = Axis::roomy((0..1000).map(|i| if i < 5 { -1e6 } else { 100.0 + (i % 10) as f64 }));
        assert!(axis.low > 90.0 && axis.low < 100.0 && axis.high > 109.0 && axis.high < 120.0);
        // Few values are all shown.
        let axis = Axis::roomy((0..100).map(|i| if i == 0 { -1e6 } else { 100.0 }));
        assert!(axis.low < -1e6);
    }
}
