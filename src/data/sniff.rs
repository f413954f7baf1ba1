//! What a file is that is not what it should be.

/// What these bytes are the beginning of, to follow "but" or "is"; `None` if that cannot be seen.
pub(crate) fn sniff(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return Some("an empty file");
    }
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    let known: &[(usize, &[u8], &str)] = &[
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"PK\x05\x06", "an empty zip archive"),
        (0, b"\x1f\x8b", "a gzip file"),
        (0, b"BZh", "a bzip2 file"),
        (0, b"\xfd7zXZ", "an xz file"),
        (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (0, b"Rar!", "a RAR archive"),
        (257, b"ustar", "a tar archive"),
        (0, b"\x93NUMPY", "a NumPy file"),
        (0, b"\x89HDF", "an HDF5 file"),
        (0, b"MATLAB", "a MATLAB file"),
        (0, b"\x89PNG", "a PNG picture"),
        (0, b"\xff\xd8\xff", "a JPEG picture"),
        (0, b"GIF8", "a GIF picture"),
        (8, b"WEBP", "a WebP picture"),
        (0, b"II*\0", "a TIFF picture"),
        (0, b"MM\0*", "a TIFF picture"),
        (4, b"ftypheic", "a HEIC picture"),
        (4, b"ftypmif1", "a HEIF picture"),
        (4, b"ftypavif", "an AVIF picture"),
        (0, b"%PDF", "a PDF document"),
        (0, b"version https://git-lfs", "a Git LFS pointer, which `git lfs pull` replaces by the file itself"),
    ];
    if let Some((.., what)) = known.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return Some(what);
    }
    if at(0, &[0, 0]) && bytes.get(2).is_some_and(|kind| (8..=14).contains(kind)) {
        return Some("an IDX file");
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let text = &text[..text.len().min(2048)];
    let lower = text.to_ascii_lowercase();
    let begins = |word: &str| lower.starts_with(word.as_bytes());
    if begins("<!doctype html") || begins("<html") || begins("<head") || begins("<body") {
        return Some("a web page");
    }
    if begins("<") && lower.windows(4).any(|some| some == b"<svg") {
        return Some("an SVG drawing");
    }
    if begins("<") && lower.windows(5).any(|some| some == b"<html") {
        return Some("a web page");
    }
    if begins("<?xml") || begins("<error") {
        return Some("an XML file, perhaps what a server answers instead of a file");
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    (!text.is_empty() && text.iter().all(printable)).then_some("a text")
}
