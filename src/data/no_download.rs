//! What a program that was built without the feature `download` knows of fetching: where a set would be kept, and that it cannot.

use super::{Set, Source};
use crate::{Error, Observer, Result, files};
use std::path::PathBuf;

/// Where a set is kept if no folder is named: `$DOOD_CACHE/SET`, `$XDG_CACHE_HOME/dood/SET` or `~/.cache/dood/SET`.
pub fn cache_folder(set: Set) -> PathBuf {
    files::cache_folder().join(set.name())
}

/// Always an [`Error::Usage`].
pub fn fetch(source: &Source, _observer: &dyn Observer) -> Result<()> {
    Err(Error::Usage(format!(
        "{source} cannot be fetched: this program was built without it (the cargo feature `download`); get its files by other means"
    )))
}
