//! The little that SVG needs: numbers, text, colours, embedded images.

use std::fmt::Write;

/// The fonts of all text.
pub(super) const FONT_FAMILY: &str = "font-family=\"Helvetica, Arial, sans-serif\"";

/// The root element with a white background, up to where the content starts; close it with `</svg>`.
pub(super) fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" {FONT_FAMILY}>\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n",
        w = number(width),
        h = number(height)
    )
}

/// A number with at most two decimals.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// A colour as `#rrggbb`.
pub(super) fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text that is safe between tags and inside quotes; characters that XML forbids are dropped.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A path through `points`; a point that is not finite breaks the line. A point alone becomes a dot if line caps are round.
pub(super) fn polyline(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    let mut pen_up = true;
    for (x, y) in points {
        if x.is_finite() && y.is_finite() {
            let _ = write!(
                path,
                "{}{} {}{}",
                if pen_up { 'M' } else { 'L' },
                number(x),
                number(y),
                if pen_up { "h0" } else { "" }
            );
            pen_up = false;
        } else {
            pen_up = true;
        }
    }
    path
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648) with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0, |g, &b| g << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            out.push(if i <= chunk.len() { DIGITS[(group >> (18 - 6 * i) & 63) as usize] as char } else { '=' });
        }
    }
    out
}

/// What [`base64`] makes this text of; `None` if that is nothing.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|digit| DIGITS.iter().position(|&d| d == digit));
    let digits: Vec<usize> = digits.collect::<Option<_>>()?;
    let mut bytes = vec![];
    for chunk in digits.chunks(4) {
        let group = chunk.iter().fold(0, |group, digit| group << 6 | digit) << (6 * (4 - chunk.len()));
        bytes.extend((1..chunk.len()).map(|i| (group >> (24 - 8 * i)) as u8));
    }
    (base64(&bytes) == text).then_some(bytes)
}

/// Panics unless `text` is one well-formed XML element: tags nest and close, attributes are quoted and unique, text is escaped.
#[cfg(test)]
pub(super) fn assert_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut elements = 0;
    for (i, piece) in text.split('<').enumerate() {
        let (tag, after) = if i == 0 { ("", piece) } else { piece.split_once('>').expect("a tag without end") };
        assert!(!after.contains('>'), "a bare > in {after:?}");
        let entities = ["amp;", "lt;", "gt;", "quot;"];
        assert!(piece.split('&').skip(1).all(|e| entities.iter().any(|n| e.starts_with(n))), "a bare & in {piece:?}");
        assert!(!open.is_empty() || i > 0 || after.trim().is_empty(), "text before the root");
        if i == 0 {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed the wrong element");
            assert!(!open.is_empty() || after.trim().is_empty(), "text after the root");
            continue;
        }
        let (body, empty) = tag.strip_suffix('/').map_or((tag, false), |body| (body, true));
        let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
        assert!(!open.is_empty() || elements == 0, "a second root {name}");
        elements += 1;
        let quoted: Vec<&str> = attributes.split('"').collect();
        assert!(quoted.len() % 2 == 1 && quoted[quoted.len() - 1].trim().is_empty(), "quotes in {tag:?}");
        let names: Vec<&str> = quoted.iter().step_by(2).map(|n| n.trim()).filter(|n| !n.is_empty()).collect();
        assert!(names.iter().all(|n| n.ends_with('=') && !n.contains(' ')), "attributes of {tag:?}");
        assert!(names.iter().enumerate().all(|(i, n)| !names[..i].contains(n)), "a repeated attribute in {tag:?}");
        if !empty {
            open.push(name);
        }
    }
    assert!(open.is_empty() && elements > 0, "never closed: {open:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_answers_of_rfc_4648() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
            assert_eq!(from_base64(coded).as_deref(), Some(plain.as_bytes()));
        }
        for bad in ["Zg", "Zg=", "Zh==", "Z", "Zm9v!", "===="] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn numbers_are_short() {
        let short = [1.0, 1.5, 0.126, -0.001, 1234.0, 100.0].map(number);
        assert_eq!(short, ["1", "1.5", "0.13", "0", "1234", "100"]);
    }

    #[test]
    fn a_line_is_broken_where_a_value_is_not_finite() {
        let path = polyline([(0.0, 0.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)]);
        assert_eq!(path, "M0 0h0L1 2M3 1h0");
    }

    #[test]
    fn the_checker_of_the_tests_finds_what_is_not_well_formed() {
        assert_well_formed("<a b=\"1\"><c/>x &lt; y</a>");
        for bad in ["<a><b></a></b>", "<a>", "<a b=1/>", "<a/><b/>", "<a>x & y</a>", "<a b=\"1\" b=\"2\"/>", "<a></a>x"]
        {
            assert!(std::panic::catch_unwind(|| assert_well_formed(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b & \"c\">\u{1}"), "a&lt;b &amp; &quot;c&quot;&gt;");
    }
}
