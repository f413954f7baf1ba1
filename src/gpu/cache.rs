//! Compiled kernels on disk. An entry that is damaged or another's is as good as none; writing one may fail without harm.

use crate::files;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where the entry of a kernel file lies: its name holds everything that the machine code depends on.
pub(super) fn key(source: &str, options: &[String], version: (i32, i32)) -> PathBuf {
    let mut hash = Sha256::new();
    for part in [source, &options.join("\n"), &format!("{}.{}", version.0, version.1)] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    files::cache_folder().join("kernels").join(format!("{}.bin", files::hex(&hash.finalize())))
}

/// The contents of an entry: their SHA-256 comes first in the file.
pub(super) fn read(key: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(key).ok()?;
    let image = bytes.split_off(32.min(bytes.len()));
    (bytes == Sha256::digest(&image)[..]).then_some(image)
}

pub(super) fn write(key: &Path, image: &[u8]) {
    let folder = key.parent().expect("an entry lies in a folder");
    let _ = files::create_folder(folder).and_then(|()| {
        files::write_atomically(key, |out| {
            out.write_all(&Sha256::digest(image))?;
            out.write_all(image)
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels/entry.bin");
        write(&path, b"machine code");
        assert_eq!(read(&path).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(read(&path), None);
    }

    #[test]
    fn everything_that_matters_is_in_the_key() {
        let options = |real: &str| vec!["--std=c++17".to_string(), real.to_string()];
        let keys = [
            key("a", &options("float"), (13, 0)),
            key("b", &options("float"), (13, 0)),
            key("a", &options("double"), (13, 0)),
            key("a", &options("float"), (13, 1)),
        ];
        for (i, one) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|other| other != one));
        }
    }
}
