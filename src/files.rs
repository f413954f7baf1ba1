//! Writing files so that a reader never sees half of one.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufWriter, ErrorKind, Write},
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

/// `name` with another end after its point: in place of one of `ends`, else behind all of it, as a point may be part of a name (`v1.5`).
pub fn with_end(name: &Path, end: &str, ends: &[&str]) -> PathBuf {
    let known = name.extension().is_some_and(|own| ends.iter().any(|end| own == *end));
    let mut path = if known { name.with_extension("") } else { name.to_owned() }.into_os_string();
    path.push(".");
    path.push(end);
    path.into()
}

/// Refuses a file that [`write_atomically`] could not begin to write, before work is done for it.
pub fn check_writable(path: &Path) -> Result<()> {
    let beside = partial(path);
    File::create(&beside).map_err(|e| Error::io("write", path, e))?;
    remove(&beside)
}

/// Where [`write_atomically`] collects the new contents of `path`: `.NAME.PID.partial` in the same folder.
fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().map_or_else(|| "file".into(), |n| n.to_string_lossy());
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

/// Removes from `folder` what writes that were interrupted have left behind of files that are `ours`.
pub(crate) fn remove_abandoned(folder: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    let partial_of = |name: &str| {
        let (name, process) = name.strip_prefix('.')?.strip_suffix(".partial")?.rsplit_once('.')?;
        (ours(name) && !process.is_empty() && process.bytes().all(|digit| digit.is_ascii_digit())).then_some(())
    };
    for name in names(folder)? {
        if partial_of(&name).is_some() {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

/// The names of all files in `folder`, as far as they are UTF-8; folders and the like are left out. None if there is no such folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let list = || -> std::io::Result<Vec<String>> {
        let mut names = vec![];
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // Follows links.
            if fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    };
    match list() {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(vec![]),
        names => names.map_err(|e| Error::io("list the folder", folder, e)),
    }
}

/// Removes a file; that it is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// A path or another word of a command so that a shell takes it as one word with exactly these bytes: as it is where that is possible,
/// else in quotes, `$'…'` (bash, zsh, ksh) where it is not UTF-8 or holds control characters.
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(plain) => text.into(),
        Some(text) if !text.contains(char::is_control) => format!("'{}'", text.replace('\'', "'\\''")),
        _ => {
            let escaped = word.as_encoded_bytes().iter().map(|&byte| match byte {
                b'\'' | b'\\' => format!("\\{}", byte as char),
                b' '..=b'~' => (byte as char).to_string(),
                // Octal, because a digit may follow: at most three are read.
                _ => format!("\\{byte:03o}"),
            });
            format!("$'{}'", escaped.collect::<String>())
        }
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of `bytes` as hexadecimal digits, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
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

    #[test]
    fn a_point_in_a_name_is_kept() {
        for (name, wanted) in [
            ("a", "a.png"),
            ("a.png", "a.png"),
            ("a.json", "a.png"),
            ("v1.5", "v1.5.png"),
            ("v1.5.json", "v1.5.png"),
            ("runs/.hidden", "runs/.hidden.png"),
            ("a.PNG", "a.PNG.png"),
            ("a.", "a..png"),
        ] {
            assert_eq!(with_end(Path::new(name), "png", &["png", "json"]), Path::new(wanted), "{name}");
        }
    }

    #[test]
    fn only_partial_files_of_our_own_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let kept = [
            ".a.csv.partial",
            ".b.csv.12.partial",
            ".a.csv.x2.partial",
            "a.csv.12.partial",
            ".a.csv.12.partial2",
            "a.csv",
        ];
        for name in kept.into_iter().chain([".a.csv.12.partial", ".a.csv.7.partial"]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join(".a.csv.3.partial")).unwrap();
        remove_abandoned(folder.path(), |name| name == "a.csv").unwrap();
        let mut left = names(folder.path()).unwrap();
        left.sort();
        let mut kept = kept.map(String::from);
        kept.sort();
        assert_eq!(left, kept);
        assert!(folder.path().join(".a.csv.3.partial").is_dir());
    }

    /// What bash makes of a quoted word.
    #[cfg(unix)]
    fn read_by_bash(word: &OsStr) -> Vec<u8> {
        let script = format!("printf %s {}", quoted(word));
        std::process::Command::new("bash").args(["-c", &script]).output().unwrap().stdout
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_the_same_bytes_from_a_quoted_word() {
        use std::os::unix::ffi::OsStrExt;
        if std::process::Command::new("bash").arg("--version").output().is_err() {
            let _ = writeln!(std::io::stderr(), "skipped: there is no bash");
            return;
        }
        let words: [&[u8]; 14] = [
            b"plain/name-1.2",
            b"",
            b"two words",
            b"it's",
            b"\"double\"",
            b"$HOME `id` $(id)",
            b"a\\b",
            b"back\\",
            "gr\u{fc}n".as_bytes(),
            b"latin\xe9",
            b"latin\xe97",
            b"new\nline",
            b"tab\t'and quote\xff",
            b"~/#!*?[x];&|<>",
        ];
        for word in words {
            assert_eq!(read_by_bash(OsStr::from_bytes(word)), word, "{}", quoted(OsStr::from_bytes(word)));
        }
        assert_eq!(quoted("runs/a"), "runs/a");
    }
}
