//! Looking into folders that people have made.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A file or folder in a folder.
pub(super) struct Entry {
    /// What it is opened by.
    pub path: PathBuf,
    /// What it is recognised by: its name, as far as that can be shown.
    pub name: String,
}

/// What is directly in `folder`, in the order of the names, without what is hidden or left by a Macintosh.
pub(super) fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let list =
        || -> std::io::Result<Vec<PathBuf>> { std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    let mut paths = list().map_err(|e| Error::io("list the folder", folder, e))?;
    paths.sort();
    let entry = |path: PathBuf| Entry { name: path.file_name().unwrap_or_default().display().to_string(), path };
    let wanted = |entry: &Entry| !entry.name.starts_with('.') && entry.name != "__MACOSX";
    Ok(paths.into_iter().map(entry).filter(wanted).collect())
}

/// The words of a name in lower case: `train-images.idx3-ubyte` and `TrainImages_idx3_ubyte` are `train images idx ubyte`.
pub(super) fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for letter in name.chars() {
        if !letter.is_alphanumeric() || (before.is_lowercase() && letter.is_uppercase()) {
            words.push(String::new());
        }
        if letter.is_alphanumeric() {
            words.last_mut().expect("not empty").extend(letter.to_lowercase());
        }
        before = letter;
    }
    let bare = words.iter().map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned());
    bare.filter(|word| !word.is_empty()).collect()
}

/// Whether a name is that of something unfinished, put aside, or about another file.
pub(super) fn is_aside(name: &str) -> bool {
    const ENDINGS: [&str; 17] = [
        "partial",
        "replaced",
        "part",
        "crdownload",
        "download",
        "tmp",
        "bak",
        "old",
        "orig",
        "md5",
        "sha1",
        "sha256",
        "asc",
        "txt",
        "md",
        "json",
        "csv",
    ];
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_lowercase();
    name.ends_with('~') || ENDINGS.contains(&ending.as_str())
}

/// The most folders that are looked into.
const MOST_FOLDERS: usize = 1000;

/// `folder` if it has `some` of what is looked for, or nothing below it has all; else the only folder up to two levels below that
/// has `all`.
pub(super) fn locate(folder: &Path, some: &dyn Fn(&Path) -> bool, all: &dyn Fn(&Path) -> bool) -> Result<PathBuf> {
    if some(folder) {
        return Ok(folder.into());
    }
    let below = |folder: &PathBuf| -> Vec<PathBuf> {
        let entries = entries(folder).unwrap_or_default();
        entries.into_iter().map(|entry| entry.path).filter(|path| path.is_dir()).take(MOST_FOLDERS).collect()
    };
    let first = below(&folder.to_owned());
    let second = first.iter().flat_map(below).take(MOST_FOLDERS).collect();
    for level in [first, second] {
        let found: Vec<&PathBuf> = level.iter().filter(|path| all(path)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one.clone()),
            [one, other, ..] => {
                let (count, one, other) = (found.len(), one.display(), other.display());
                let folder = folder.display();
                return Err(Error::Data(format!(
                    "{folder} has what is looked for {count} times, in {one} and in {other}: name one of these folders"
                )));
            }
        }
    }
    Ok(folder.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_words() {
        for name in [
            "train-images.idx3-ubyte",
            "TrainImages_idx3_ubyte",
            "train images (idx3) ubyte",
            "train2-images01-idx-ubyte",
        ] {
            assert_eq!(words(name), ["train", "images", "idx", "ubyte"], "{name}");
        }
        assert_eq!(words("latest-t10k.gz"), ["latest", "t10k", "gz"]);
        assert_eq!(words("\u{fffd}t\u{fffd}-\u{130}mages"), ["t", "i\u{307}mages"]);
        assert!(words("--42..").is_empty() && words("").is_empty());
    }
}
