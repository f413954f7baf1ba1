//! What was measured, on one page: every table and figure of the paper that a folder of runs has something for, beside the published
//! numbers, and what is missing of them.
//!
//! [`Report::read`] finds the JSON files that `transfer`, `one_shot`, `cluster`, `latents`, `frechet` and `evaluate` have written, and the
//! pictures beside them. [`Report::html`] is one file that needs no other and no network, [`Report::markdown`] the same for a repository.
//! Every row that was measured has its command, seed and digest of the checkpoint.

mod page;
mod sections;

use crate::{
    Error, Result,
    files::{self, quoted},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A page.
#[derive(Clone, Debug)]
pub struct Report {
    /// What stands above all.
    pub title: String,
    sections: Vec<Section>,
    /// Files that were not understood, and why.
    left_out: Vec<(PathBuf, String)>,
    /// Files that were.
    files: usize,
}

/// What belongs to one table or figure of the paper.
#[derive(Clone, Debug, Default)]
struct Section {
    title: &'static str,
    /// What it shows, in a few sentences.
    about: &'static str,
    tables: Vec<Table>,
    figures: Vec<Figure>,
    /// How the rows came to be.
    made: Vec<Made>,
    /// How to get what is not there.
    missing: Option<String>,
}

/// Rows under a head.
#[derive(Clone, Debug, Default)]
struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    kind: Kind,
    cells: Vec<String>,
}

/// Who says what a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It was measured here.
    Ours,
    /// The paper, or what was released with it.
    Published,
    /// Nobody yet.
    Missing,
}

/// A picture that is on the page.
#[derive(Clone, Debug)]
struct Figure {
    caption: String,
    path: PathBuf,
    /// `image/png` or `image/svg+xml`.
    kind: &'static str,
    bytes: Vec<u8>,
}

/// How something was measured.
#[derive(Clone, Debug, PartialEq)]
struct Made {
    what: String,
    command: String,
    seed: String,
    checkpoint: String,
    /// SHA-256 of the checkpoint.
    digest: String,
}

/// A JSON file of one of the programs.
struct Found {
    path: PathBuf,
    value: Value,
}

/// Folders are looked into so deep.
const DEPTH: usize = 4;
/// Larger files are none of the programs'.
const LARGEST: u64 = 64 << 20;
/// Larger vector pictures are shown as pixels where there are such.
const LARGEST_SVG: u64 = 1 << 20;

impl Report {
    /// Reads what is in a folder and the folders in it.
    ///
    /// # Errors
    /// A folder that cannot be listed; [`Error::Usage`] where there is nothing for a report.
    pub fn read(folder: &Path, title: String) -> Result<Self> {
        let (mut paths, mut found, mut left_out) = (vec![], vec![], vec![]);
        list(folder, DEPTH, &mut paths)?;
        paths.sort();
        for path in paths {
            match parse(&path) {
                Ok(Some(value)) => found.push(Found { path, value }),
                Ok(None) => {}
                Err(error) => left_out.push((path, error)),
            }
        }
        let files = found.len();
        if files == 0 {
            return Err(Error::Usage(format!(
                "{} has no JSON file of transfer, one_shot, cluster, latents, frechet or evaluate: write some with --out {}/NAME",
                quoted(folder),
                quoted(folder)
            )));
        }
        Ok(Report { title, sections: sections::all(&found), left_out, files })
    }

    /// The page as one file for browsers.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// The page as Markdown that lies in `folder`; pictures stay where they are.
    pub fn markdown(&self, folder: &Path) -> String {
        page::markdown(self, folder)
    }

    /// Files that were understood.
    pub fn files(&self) -> usize {
        self.files
    }

    /// Rows that were measured, and those that nobody has measured.
    pub fn counts(&self) -> (usize, usize) {
        let rows = || self.sections.iter().flat_map(|section| &section.tables).flat_map(|table| &table.rows);
        let count = |kind| rows().filter(|row| row.kind == kind).count();
        (count(Kind::Ours), count(Kind::Missing))
    }

    /// Files that were not understood, and why.
    pub fn left_out(&self) -> &[(PathBuf, String)] {
        &self.left_out
    }
}

/// JSON files in a folder and those below it.
fn list(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("list the folder", folder, e))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Not through links, which may lead round in circles.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 && !hidden => {
                // One that may not be read is no reason to show nothing.
                let _ = list(&path, depth - 1, paths);
            }
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|end| end == "json") => paths.push(path),
            _ => {}
        }
    }
    Ok(())
}

/// What a file of one of the programs holds; `None` for other JSON.
fn parse(path: &Path) -> Result<Option<Value>, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > LARGEST {
        return Err("it is too large".into());
    }
    let bytes = files::read(path).map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| format!("it is not JSON ({e})"))?;
    Ok(sections::format(&value).is_some().then_some(value))
}

impl Found {
    /// The path without `.json`.
    fn stem(&self) -> PathBuf {
        self.path.with_extension("")
    }

    /// Its name.
    fn name(&self) -> String {
        self.stem().file_name().unwrap_or_default().display().to_string()
    }

    /// The first of some files beside it, named by what follows its own name: a picture of one kind or of another.
    fn figure(&self, ends: &[&str], caption: &str) -> Option<Figure> {
        let beside = |end: &&str| {
            let mut path = self.stem().into_os_string();
            path.push(end);
            PathBuf::from(path)
        };
        let there = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file());
        let mut paths: Vec<PathBuf> = ends.iter().map(beside).filter(there).collect();
        // What is too large comes last.
        paths.sort_by_key(|path| fs::metadata(path).is_ok_and(|file| file.len() > LARGEST_SVG));
        let path = paths.into_iter().next()?;
        let bytes = files::read(&path).ok()?;
        let kind = if path.extension().is_some_and(|end| end == "svg") { "image/svg+xml" } else { "image/png" };
        Some(Figure { caption: caption.into(), path, kind, bytes })
    }
}

#[cfg(test)]
mod tests;
