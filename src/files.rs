//! Writing files so that a reader never sees half of one.

use crate::{Error, Result};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Writes `path` through `fill`: into a file beside it, synced to disk, then renamed over the old one.
///
/// On any error the partial file is removed and whatever `path` held before is untouched.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let beside = partial(path);
    let written = File::create(&beside).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&beside, path));
    if let Err(source) = renamed {
        let _ = fs::remove_file(&beside);
        return Err(Error::io("write", path, source));
    }
    // The rename itself is durable only once the folder is synced. Not every file system allows that; losing it is harmless.
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    Ok(())
}

/// Where [`write_atomically`] collects the new contents of `path`: `.NAME.PID.partial` in the same folder.
fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().map_or_else(|| "file".into(), |n| n.to_string_lossy());
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

/// Creates `folder` and its parents, with a sentence if that is not possible.
pub fn create_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))
}

/// Where downloads and compiled kernels are kept: `$DOOD_CACHE`, else `$XDG_CACHE_HOME/dood`, else `~/.cache/dood`.
pub fn cache_folder() -> PathBuf {
    let folder = |variable: &str, below: &str| {
        let value = std::env::var_os(variable).filter(|value| !value.is_empty())?;
        Some(Path::new(&value).join(below))
    };
    folder("DOOD_CACHE", "")
        .or_else(|| folder("XDG_CACHE_HOME", "dood"))
        .or_else(|| folder("HOME", ".cache/dood"))
        .or_else(|| folder("LOCALAPPDATA", "dood"))
        .unwrap_or_else(|| ".cache/dood".into())
}

/// Reads a whole file, with a sentence if that is not possible.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io("read", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_contents_and_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |out| {
            out.write_all(b"new")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
