//! Errors at the edges of the library: devices, files, user input. Shape mistakes inside it panic where they are made.

use std::path::Path;

/// What the library's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every message is one sentence that says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument or a combination of arguments that cannot be used. Programs exit with code 2.
    #[error("{0}")]
    Usage(String),
    /// A file or folder that could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A data set that is not what it should be.
    #[error("{0}")]
    Data(String),
    /// A checkpoint that cannot be used.
    #[error("{0}")]
    Checkpoint(String),
    /// A device that is not there or cannot be used.
    #[error("{0}")]
    Device(String),
    /// Device memory ran out.
    #[error(
        "out of GPU memory: the op {op} asked for {} more, {} of {} are free and the current step holds {}; {}",
        mebibytes(*asked), mebibytes(*free), mebibytes(*total), mebibytes(*held), batch_advice(*fitting)
    )]
    DeviceMemory {
        /// What asked for it.
        op: &'static str,
        /// Bytes asked for.
        asked: usize,
        /// Bytes free.
        free: usize,
        /// Bytes on the card.
        total: usize,
        /// Bytes that the current step holds.
        held: usize,
        /// Images per batch that would fit, where that is known.
        fitting: Option<usize>,
    },
    /// A download that failed.
    #[error("{0}")]
    Download(String),
    /// A value that is not finite appeared during training.
    #[error("{0}")]
    NotFinite(String),
    /// Ranks of one run that do not belong together, or one that was lost.
    #[error("{0}")]
    Ranks(String),
    /// The caller asked for an end before the work was done; nothing that is half done was kept. Programs exit with code 130.
    #[error("stopped before it was done")]
    Stopped,
}

fn batch_advice(fitting: Option<usize>) -> String {
    match fitting {
        Some(0) => "not even one image fits".into(),
        Some(images) => format!("a batch of {images} images would fit (--batch {images})"),
        None => "use a smaller batch".into(),
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

impl Error {
    /// An I/O error with the action and the path in front: `cannot read /x/y: permission denied`.
    pub fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        Error::Io { what: format!("cannot {action} {}", path.display()), source }
    }

    /// The exit code of a program that ends with this error: 2 for usage, 130 where it was stopped, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Stopped => 130,
            _ => 1,
        }
    }
}
