//! What the programs share: how they begin and end, what they say and how they are stopped, the options that several have.
//!
//! Each program uses a part of it, hence:
#![allow(dead_code, unused_imports)]

mod arguments;
pub mod config;
pub mod generation;
mod screen;
mod signals;

pub use arguments::{Compute, Data, Reading, Split, checkpoint, source, word};
pub use screen::Screen;

use clap::Parser;
use dood::{
    Error, Result,
    files::{self, quoted},
    measure::{Estimate, Measured},
};
use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::LazyLock,
};

/// `println!` that never ends the program.
macro_rules! say {
    ($($words:tt)*) => { $crate::common::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// Exit code of a program that was stopped.
pub const STOPPED: u8 = 130;

static SCREEN: LazyLock<Screen> = LazyLock::new(Screen::new);

/// Reads the arguments and does the work; an error becomes one sentence and an exit code. The first Ctrl-C asks the work to stop, a
/// second one ends the program.
pub fn main<A: Parser>(work: impl FnOnce(A, &Screen) -> Result<ExitCode>) -> ExitCode {
    let arguments = A::parse();
    signals::watch(&SCREEN);
    work(arguments, &SCREEN).unwrap_or_else(|error| {
        SCREEN.line(format_args!("error: {error}"));
        ExitCode::from(error.exit_code())
    })
}

/// Ends a program whose GPU waits for others that do not come.
pub fn stuck(why: &str) {
    SCREEN.line(format_args!("error: {why}"));
    std::process::exit(1);
}

/// This program, as it can be started from any folder.
pub fn own_path() -> OsString {
    let name = std::env::args_os().next().unwrap_or_default();
    // A bare name is looked for in PATH.
    if Path::new(&name).components().count() > 1 {
        std::path::absolute(&name).map_or(name, OsString::from)
    } else {
        name
    }
}

/// A path as it can be named from any folder.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, e))
}

/// Refuses a file that cannot be written, before work is done for it.
pub fn check_file(file: &Path) -> Result<()> {
    if file.is_dir() {
        return Err(Error::Usage(format!("--out {} is a folder: name a file in it", quoted(file))));
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Error::Usage(format!(
            "{} cannot be written, as {} is no folder: create it with mkdir -p {2}",
            quoted(file),
            folder.display(),
            quoted(folder)
        )));
    }
    files::check_writable(file)
}

/// Refuses names of files that cannot be written with something after them.
pub fn check_out(out: &Path) -> Result<()> {
    if out.file_name().is_none() || out.is_dir() {
        return Err(Error::Usage(format!("--out {} must be the beginning of files' names, not a folder", quoted(out))));
    }
    check_file(out)
}

/// OUT with something after it; a point in its name is none of an extension.
pub fn beside(out: &Path, end: &str) -> PathBuf {
    let mut path = out.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// Does work whose parts are kept in a file; where it is stopped and has written that, says how to go on.
pub fn resumable<T>(kept: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let written = || kept.metadata().and_then(|file| file.modified()).ok();
    let before = written();
    let done = work();
    if matches!(done, Err(Error::Stopped)) && written() != before {
        line(format_args!("What was done is in {}; the same command with --resume goes on.", quoted(kept)));
    }
    done
}

/// The command of this program, without the folder that it is in.
pub fn command(name: &str) -> String {
    let words = std::env::args_os().skip(1).map(quoted);
    std::iter::once(name.to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// A table of what was measured, with standard errors.
pub fn measured(measured: &Measured) {
    let line = |name: &str, Estimate { mean, standard_error }: Estimate, decimals: usize| {
        let error = standard_error.map_or_else(String::new, |error| format!("  ± {error:.decimals$}"));
        say!("  {name:<18} {mean:10.decimals$}{error}");
    };
    line("log-likelihood", measured.log_likelihood, 1);
    line("ELBO", measured.elbo, 1);
    if measured.particles > 1 {
        line("IWAE bound", measured.bound, 1);
    }
    line("strokes per image", measured.strokes, 2);
}

/// A line of results on stdout. If nobody reads it any more, it is dropped.
pub fn line(words: fmt::Arguments) {
    let _ = writeln!(io::stdout(), "{words}");
}
