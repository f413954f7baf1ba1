//! A report as HTML and as Markdown.

use super::{Figure, Kind, Made, Report, Section, Table};
use crate::figures::{base64, escape};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

/// The page works without network, on a phone, by night and in print.
const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5b5b60;--paper:#fff;--rule:#d8d8dc;--tint:#f3f5f8;--mark:#0060a0}
@media(prefers-color-scheme:dark){:root{--ink:#ececee;--soft:#a9a9b0;--paper:#17181a;--rule:#3a3b40;--tint:#222428;--mark:#7cc0ee}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.7rem;margin:.5rem 0}h2{font-size:1.25rem;margin:2.5rem 0 .5rem;border-top:1px solid var(--rule);padding-top:1rem}
p{max-width:46rem}a{color:var(--mark)}.soft{color:var(--soft)}
.wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.3rem 0}th,td{padding:.3rem .7rem;border-bottom:1px solid var(--rule);text-align:left}
td:first-child,th:first-child{min-width:8.5rem}td:not(:first-child){white-space:nowrap}tr.ours{background:var(--tint)}tr.ours td:first-child{font-weight:600}
tr.published td,tr.missing td{color:var(--soft)}tr.missing td{font-style:italic}
code{font:.85em/1.4 ui-monospace,monospace;overflow-wrap:anywhere}td code{white-space:normal;display:block;min-width:18rem}
figure{margin:1.2rem 0}figcaption{color:var(--soft);font-size:.9rem}figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--rule)}
nav ul{padding-left:1.2rem}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--rule:#bbb;--tint:#f3f3f3}body{max-width:none;font-size:9pt}
.wide{overflow:visible}td:not(:first-child){white-space:normal}h2,figure,tr{break-inside:avoid}h2{break-after:avoid}nav{display:none}}
";

/// What each table says of its rows.
const KEY: &str = "Rows on a tint were measured by this library; grey rows are the paper's, or were released with it; rows in italics are \
                   those that nobody has measured yet.";

pub(super) fn html(report: &Report) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p>{}</p>\n<p class=\"soft\">{KEY}</p>\n<nav><ul>\n",
        escape(&summary(report)),
        title = escape(&report.title)
    );
    for (i, section) in report.sections.iter().enumerate() {
        let _ = writeln!(out, "<li><a href=\"#s{i}\">{}</a></li>", escape(section.title));
    }
    out.push_str("</ul></nav>\n<main>\n");
    for (i, section) in report.sections.iter().enumerate() {
        let _ = writeln!(
            out,
            "<section>\n<h2 id=\"s{i}\">{}</h2>\n<p>{}</p>",
            escape(section.title),
            escape(section.about)
        );
        if let Some(command) = &section.missing {
            let _ =
                writeln!(out, "<p>Nothing of it is in the folder. To measure it: <code>{}</code></p>", escape(command));
        }
        section.tables.iter().for_each(|table| table_html(&mut out, table));
        section.figures.iter().for_each(|figure| figure_html(&mut out, figure));
        made_html(&mut out, section);
        out.push_str("</section>\n");
    }
    out.push_str("</main>\n");
    if !report.left_out.is_empty() {
        out.push_str("<h2>Files that could not be read</h2>\n<ul>\n");
        for (path, why) in &report.left_out {
            let _ = writeln!(out, "<li><code>{}</code>: {}</li>", escape(&path.display().to_string()), escape(why));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</body>\n</html>\n");
    out
}

fn summary(report: &Report) -> String {
    let (ours, missing) = report.counts();
    let rows = |n: usize| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
    format!(
        "{} of {} measured here; {} of the paper still to be measured.",
        rows(ours),
        files(report.files),
        rows(missing)
    )
}

fn files(n: usize) -> String {
    if n == 1 { "1 file,".into() } else { format!("{n} files,") }
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Ours => "ours",
        Kind::Published => "published",
        Kind::Missing => "missing",
    }
}

fn table_html(out: &mut String, table: &Table) {
    let cells = |tag: &str, cells: &[String]| {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>()
    };
    let _ = writeln!(
        out,
        "<div class=\"wide\"><table>\n<caption>{}</caption>\n<thead><tr>{}</tr></thead>\n<tbody>",
        escape(&table.caption),
        cells("th", &table.head)
    );
    for row in &table.rows {
        let _ = writeln!(out, "<tr class=\"{}\">{}</tr>", class(row.kind), cells("td", &row.cells));
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn figure_html(out: &mut String, figure: &Figure) {
    let _ = writeln!(
        out,
        "<figure><img alt=\"{caption}\" src=\"data:{};base64,{}\"><figcaption>{caption}</figcaption></figure>",
        figure.kind,
        base64(&figure.bytes),
        caption = escape(&figure.caption)
    );
}

/// So much of a digest tells files apart.
const DIGEST: usize = 12;

fn short(digest: &str) -> &str {
    digest.get(..DIGEST).unwrap_or(digest)
}

fn made_html(out: &mut String, section: &Section) {
    if section.made.is_empty() {
        return;
    }
    out.push_str("<div class=\"wide\"><table>\n<caption>How it was measured</caption>\n<thead><tr><th>what</th><th>command</th><th>seed</th><th>checkpoint</th><th>its SHA-256</th></tr></thead>\n<tbody>\n");
    for Made { what, command, seed, checkpoint, digest } in &section.made {
        let code = |text: &str| if text.is_empty() { "–".into() } else { format!("<code>{}</code>", escape(text)) };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td title=\"{}\">{}</td></tr>",
            escape(what),
            code(command),
            if seed.is_empty() { "–".into() } else { escape(seed) },
            code(checkpoint),
            escape(digest),
            code(short(digest))
        );
    }
    out.push_str("</tbody>\n</table></div>\n");
}

pub(super) fn markdown(report: &Report, folder: &Path) -> String {
    let mut out = format!("# {}\n\n{}\n\n{}\n", plain(&report.title), plain(&summary(report)), MARKDOWN_KEY);
    for section in &report.sections {
        let _ = writeln!(out, "\n## {}\n\n{}", plain(section.title), plain(section.about));
        if let Some(command) = &section.missing {
            let _ = writeln!(out, "\nNothing of it is in the folder. To measure it: `{command}`");
        }
        for table in &section.tables {
            let _ = writeln!(out, "\n**{}**\n", plain(&table.caption));
            line(&mut out, table.head.iter().map(|cell| plain(cell)));
            line(&mut out, table.head.iter().map(|_| "---".into()));
            for row in &table.rows {
                let cells = row.cells.iter().enumerate();
                line(
                    &mut out,
                    cells.map(|(i, cell)| match row.kind {
                        Kind::Ours if i == 0 => format!("**{}**", plain(cell)),
                        Kind::Missing => format!("*{}*", plain(cell)),
                        _ => plain(cell),
                    }),
                );
            }
        }
        for figure in &section.figures {
            let path = relative(&figure.path, folder);
            let link = path.display().to_string().replace('\\', "/").replace(' ', "%20");
            let _ = writeln!(out, "\n![{}]({link})", plain(&figure.caption));
        }
        if !section.made.is_empty() {
            out.push_str("\n**How it was measured**\n\n");
            line(&mut out, ["what", "command", "seed", "checkpoint", "its SHA-256"].map(String::from).into_iter());
            line(&mut out, (0..5).map(|_| "---".into()));
            for Made { what, command, seed, checkpoint, digest } in &section.made {
                let code = |text: &str| {
                    if text.is_empty() { "–".to_owned() } else { format!("`{}`", text.replace('|', "\\|")) }
                };
                let seed = if seed.is_empty() { "–".into() } else { plain(seed) };
                line(&mut out, [plain(what), code(command), seed, code(checkpoint), code(short(digest))].into_iter());
            }
        }
    }
    if !report.left_out.is_empty() {
        out.push_str("\n## Files that could not be read\n\n");
        for (path, why) in &report.left_out {
            let _ = writeln!(out, "- `{}`: {}", path.display(), plain(why));
        }
    }
    out
}

const MARKDOWN_KEY: &str = "Bold rows were measured by this library; plain rows are the paper's, or were released with it; rows in italics are \
                            those that nobody has measured yet.";

fn line(out: &mut String, cells: impl Iterator<Item = String>) {
    let _ = writeln!(out, "| {} |", cells.collect::<Vec<_>>().join(" | "));
}

/// Text that Markdown shows as it is.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if "\\`*_[]<>|#".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A file as it is named from a folder, where it lies in that or beside it; else as it is.
fn relative(path: &Path, folder: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let (path_there, folder) = (absolute(path), absolute(folder));
    let mut up = PathBuf::new();
    for ancestor in folder.ancestors().take(4) {
        if let Ok(rest) = path_there.strip_prefix(ancestor) {
            return up.join(rest);
        }
        up.push("..");
    }
    path_there
}
