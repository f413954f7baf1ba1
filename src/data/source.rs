//! Naming where images come from: `mnist`, `mnist:FOLDER`, `idx:FOLDER`, `synthetic`.

use super::{Set, download};
use crate::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where images come from. Parsed from `mnist`, `mnist:FOLDER`, `idx:FOLDER`, `synthetic`.
///
/// A folder is kept as it was given, also where its name is not UTF-8: a program takes its argument with
/// `Source::try_from(OsString)` (clap: `OsStringValueParser::new().try_map(Source::try_from)`), prints the command that names
/// it again from [`Source::to_os_string`], and stores it through serde. [`Display`](fmt::Display) is for sentences: it shows
/// what is not UTF-8 as `�`.
///
/// In JSON it is the text that it was parsed from; where that is not UTF-8, the list of its bytes (on Windows of its 16-bit
/// units).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One of the public sets, in a folder; the cache folder of the set if none was given.
    Public {
        /// Which set.
        set: Set,
        /// Where its files are.
        folder: PathBuf,
    },
    /// A folder of IDX files with images of any size (see [`idx`](super::idx)).
    Idx(PathBuf),
    /// Images drawn by the model itself from a fixed prior; no files.
    Synthetic,
}

impl Source {
    /// The word that stands before the colon.
    pub fn word(&self) -> &'static str {
        match self {
            Source::Public { set, .. } => set.name(),
            Source::Idx(_) => "idx",
            Source::Synthetic => "synthetic",
        }
    }

    /// The folder, where there is one.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Source::Public { folder, .. } | Source::Idx(folder) => Some(folder),
            Source::Synthetic => None,
        }
    }

    /// What [`Source::try_from`] takes back, without loss.
    pub fn to_os_string(&self) -> OsString {
        let mut text = OsString::from(self.word());
        if let Some(folder) = self.folder() {
            text.push(":");
            text.push(folder);
        }
        text
    }

    /// The same source, named so that it is found from any working folder.
    pub fn absolute(&self) -> Result<Self> {
        let whole = |folder: &Path| std::path::absolute(folder).map_err(|e| Error::io("find the folder", folder, e));
        Ok(match self {
            Source::Public { set, folder } => Source::Public { set: *set, folder: whole(folder)? },
            Source::Idx(folder) => Source::Idx(whole(folder)?),
            Source::Synthetic => Source::Synthetic,
        })
    }
}

impl TryFrom<&OsStr> for Source {
    type Error = Error;

    fn try_from(text: &OsStr) -> Result<Self> {
        let units = units(text);
        let (word, folder) = match units.iter().position(|&unit| unit == u16::from(b':')) {
            Some(at) if at + 1 == units.len() => {
                let text = text.display();
                return Err(Error::Usage(format!("the data source `{text}` names no folder after the colon")));
            }
            Some(at) => (&units[..at], of_units(&units[at + 1..]).map(expand_home)),
            None => (&units[..], None),
        };
        let word = String::from_utf16_lossy(word);
        let set = Set::ALL.into_iter().find(|set| set.name() == word);
        match (word.as_str(), set, folder) {
            (_, Some(set), folder) => {
                Ok(Source::Public { set, folder: folder.unwrap_or_else(|| download::cache_folder(set)) })
            }
            ("idx", _, Some(folder)) => Ok(Source::Idx(folder)),
            ("synthetic", _, None) => Ok(Source::Synthetic),
            _ => Err(Error::Usage(format!(
                "`{}` is not a data source: use mnist, kmnist, emnist, quickdraw or omniglot, each with an optional \
                 folder as in mnist:FOLDER, or idx:FOLDER for a folder of IDX files, or synthetic",
                text.display()
            ))),
        }
    }
}

impl TryFrom<OsString> for Source {
    type Error = Error;

    fn try_from(text: OsString) -> Result<Self> {
        text.as_os_str().try_into()
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        OsStr::new(text).try_into()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.to_os_string().display().fmt(f)
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_os_string();
        match text.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(units(&text)),
        }
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Stored {
            Text(String),
            Units(Vec<u16>),
        }
        let text = match Stored::deserialize(deserializer)? {
            Stored::Text(text) => text.into(),
            Stored::Units(units) => of_units(&units).ok_or_else(|| de::Error::custom("not the units of a path"))?,
        };
        Source::try_from(text).map_err(de::Error::custom)
    }
}

/// A shell leaves the `~` of `mnist:~/data` alone, so it is replaced here.
fn expand_home(folder: OsString) -> PathBuf {
    let folder = PathBuf::from(folder);
    match (folder.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => folder,
    }
}

/// The units of which the system's texts are made: bytes, on Windows 16 bits.
#[cfg(not(windows))]
fn units(text: &OsStr) -> Vec<u16> {
    std::os::unix::ffi::OsStrExt::as_bytes(text).iter().map(|&byte| byte.into()).collect()
}

#[cfg(not(windows))]
fn of_units(units: &[u16]) -> Option<OsString> {
    let bytes: Result<Vec<u8>, _> = units.iter().map(|&unit| unit.try_into()).collect();
    bytes.ok().map(std::os::unix::ffi::OsStringExt::from_vec)
}

#[cfg(windows)]
fn units(text: &OsStr) -> Vec<u16> {
    std::os::windows::ffi::OsStrExt::encode_wide(text).collect()
}

#[cfg(windows)]
fn of_units(units: &[u16]) -> Option<OsString> {
    Some(std::os::windows::ffi::OsStringExt::from_wide(units))
}
