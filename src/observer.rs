//! What long work tells whoever asked for it, and how it is stopped: the library itself prints nothing and watches no signals.

use crate::{Error, Result};

/// What a task counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things of the kind that the task's name says: updates, images, kernels.
    Items,
    /// Bytes.
    Bytes,
}

/// Follows long work. All methods do nothing by default; a program shows bars and lines, a test collects them. They may be called from
/// any thread, and never fail: a report that cannot be made does not end the work.
pub trait Observer: Sync {
    /// A task begins: its name ("Loading mnist"), how many units it has where that is known, and what they are. Tasks do not nest.
    fn begin(&self, _task: &str, _total: Option<u64>, _unit: Unit) {}

    /// So many units of the task were done before it began, in a run that is resumed: they count, but say nothing about its speed.
    fn already(&self, _units: u64) {}

    /// So many units more are done.
    fn advance(&self, _units: u64) {}

    /// How it goes, in a few words: shown beside the progress, replaced by the next.
    fn status(&self, _words: &str) {}

    /// The task is over.
    fn end(&self) {}

    /// One sentence that a person should read: a warning, or what was decided for them.
    fn note(&self, _sentence: &str) {}

    /// Whether the work should stop as soon as it can. Work that may take more than a second asks at least once a second.
    fn stopped(&self) -> bool {
        false
    }

    /// [`Error::Stopped`] once the work should stop: `observer.go_on()?` in a loop.
    fn go_on(&self) -> Result<()> {
        if self.stopped() { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// Does work as one task of `observer`'s: begun before it and over after it, however it ends.
pub fn task<T>(observer: &dyn Observer, name: &str, total: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    observer.begin(name, Some(total as u64), Unit::Items);
    let done = work();
    observer.end();
    done
}

/// Says nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
