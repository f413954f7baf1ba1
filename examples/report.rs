//! One page of everything that was measured: the paper's tables and figures from the files of the other programs.

mod common;

use clap::Parser;
use common::{Screen, say};
use dood::{
    Result,
    eval::report::Report,
    files::{quoted, write_atomically},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Puts what transfer, one_shot, cluster, latents, frechet and evaluate have written on one page, beside the paper's numbers: every table
/// and figure of the paper, with what nobody has measured yet.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  report results
  report runs/evaluations --title \"DooD on my own drawings\" --out report

Writes OUT.html, one file that needs no other one and no network, is readable on a phone and prints well, and OUT.md, which shows the
pictures where they lie. Every row that was measured has its command, its seed and the digest of its checkpoint. The folder's own
folders are looked into as well; JSON of other programs is passed over.")]
struct Arguments {
    /// Where the programs' JSON files and pictures are
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Names the files: OUT.html and OUT.md [default: FOLDER/report]
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// What stands above all
    #[arg(long, default_value = "Drawing out of distribution: what was measured", value_name = "WORDS")]
    title: String,
}

fn report(arguments: Arguments, screen: &Screen) -> Result<ExitCode> {
    let mut out = arguments.out.unwrap_or_else(|| arguments.folder.join("report"));
    if out.extension().is_some_and(|end| end == "html" || end == "md") {
        out.set_extension("");
    }
    let report = Report::read(&arguments.folder, arguments.title)?;
    common::check_out(&out)?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for (end, text) in [(".html", report.html()), (".md", report.markdown(folder))] {
        let path = common::beside(&out, end);
        write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
        say!("Written: {}", quoted(&path));
    }
    for (path, why) in report.left_out() {
        screen.line(format_args!("left out: {}: {why}", quoted(path)));
    }
    let (ours, missing) = report.counts();
    say!("{} files, {ours} rows that were measured, {missing} of the paper that were not.", report.files());
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    common::main(report)
}
