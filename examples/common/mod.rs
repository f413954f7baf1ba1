//! What the programs share: how they begin and end, what they say and how they are stopped, the options that several have.
//!
//! Each program uses a part of it, hence:
#![allow(dead_code, unused_imports)]

mod arguments;
mod screen;
mod signals;

pub use arguments::{Compute, Data, source};
pub use screen::Screen;

use clap::Parser;
use dood::Result;
use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
    sync::LazyLock,
};

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

/// A line of results on stdout. If nobody reads it any more, it is dropped.
pub fn line(words: fmt::Arguments) {
    let _ = writeln!(io::stdout(), "{words}");
}

/// `println!` that never ends the program.
macro_rules! say {
    ($($words:tt)*) => { $crate::common::line(format_args!($($words)*)) };
}
pub(crate) use say;
