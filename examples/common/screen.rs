//! Progress: a bar on a terminal, elsewhere a line now and then.

use dood::{Observer, observer::Unit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Without a terminal, a line of progress appears this often, the first time a little after the task began.
const LINE_EVERY: Duration = Duration::from_secs(10);
const FIRST_LINE: Duration = Duration::from_secs(2);

/// What a program says on stderr, and whether it was asked to stop. Nothing that cannot be written ends it.
pub struct Screen {
    terminal: bool,
    stopped: AtomicBool,
    quiet: AtomicBool,
    task: Mutex<Option<Task>>,
}

/// The task at hand.
struct Task {
    name: String,
    unit: Unit,
    total: Option<u64>,
    already: u64,
    done: u64,
    status: String,
    began: Instant,
    last_line: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Screen {
    pub fn new() -> Self {
        Screen {
            terminal: io::stderr().is_terminal(),
            stopped: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            task: Mutex::new(None),
        }
    }

    /// Asks the work to stop; whether this is the first time.
    pub fn stop(&self) -> bool {
        !self.stopped.swap(true, Ordering::Relaxed)
    }

    /// From here on nothing is said but errors: another process speaks for this one.
    pub fn be_quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Says that a stop was asked for, and what may come first.
    pub fn announce_stop(&self) {
        if self.is_quiet() {
            return;
        }
        let first = match &*self.task() {
            Some(task) if task.name == "Training" => "this step ends and a checkpoint is saved".into(),
            Some(task) => format!("{} comes to where it can be left", lower(&task.name)),
            None => "what is being done comes to where it can be left".to_owned(),
        };
        self.line(format_args!("Stopping once {first}; once more to stop at once."));
    }

    /// A line on stderr, above the bar if there is one.
    pub fn line(&self, words: fmt::Arguments) {
        let write = || drop(writeln!(io::stderr(), "{words}"));
        match self.task().as_ref().and_then(|task| task.bar.as_ref()) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// How the task at hand goes: its status and the time left.
    pub fn words(&self) -> String {
        self.task().as_ref().map_or_else(String::new, Task::words)
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Screen {
    fn begin(&self, task: &str, total: Option<u64>, unit: Unit) {
        if self.is_quiet() {
            return;
        }
        let bar = self.terminal.then(|| {
            let template = match (total, unit) {
                (None, Unit::Items) => "{spinner} {prefix}  {human_pos}  {msg}",
                (None, Unit::Bytes) => "{spinner} {prefix}  {decimal_bytes}  {msg}",
                (_, Unit::Items) => "{prefix}  {wide_bar} {human_pos}/{human_len}  {msg}",
                (_, Unit::Bytes) => "{prefix}  {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {msg}",
            };
            ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(4))
                .with_style(ProgressStyle::with_template(template).expect("a valid template"))
                .with_prefix(task.to_owned())
        });
        *self.task() = Some(Task {
            name: task.into(),
            unit,
            total,
            already: 0,
            done: 0,
            status: String::new(),
            began: Instant::now(),
            last_line: None,
            bar,
        });
    }

    fn already(&self, units: u64) {
        if let Some(task) = self.task().as_mut() {
            task.already = units;
            task.began = Instant::now();
            task.show();
        }
    }

    fn advance(&self, units: u64) {
        if let Some(task) = self.task().as_mut() {
            task.done = task.done.saturating_add(units);
            task.show();
        }
    }

    fn status(&self, words: &str) {
        if let Some(task) = self.task().as_mut() {
            task.status = words.into();
            task.show();
        }
    }

    fn end(&self) {
        if let Some(task) = self.task().take() {
            match &task.bar {
                Some(bar) => bar.finish_and_clear(),
                // The end of what was reported on before.
                None if task.last_line.is_some() => task.line(),
                None => {}
            }
        }
    }

    fn note(&self, sentence: &str) {
        if !self.is_quiet() {
            self.line(format_args!("{sentence}"));
        }
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

impl Task {
    fn position(&self) -> u64 {
        self.already.saturating_add(self.done)
    }

    /// Puts the bar where the task is; without one, a line if it is time for one.
    fn show(&mut self) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.position());
                bar.set_message(self.words());
            }
            None if self.last_line.map_or(self.began.elapsed() >= FIRST_LINE, |last| last.elapsed() >= LINE_EVERY) => {
                self.last_line = Some(Instant::now());
                self.line();
            }
            None => {}
        }
    }

    fn line(&self) {
        let amount = |units: u64| match self.unit {
            Unit::Items => units.to_string(),
            Unit::Bytes => indicatif::DecimalBytes(units).to_string(),
        };
        let total = self.total.map(|total| format!("/{}", amount(total))).unwrap_or_default();
        let _ = writeln!(io::stderr(), "{} {}{total}  {}", self.name, amount(self.position()), self.words());
    }

    /// The status and the time left.
    fn words(&self) -> String {
        let left = self.total.and_then(|total| {
            let left = total.saturating_sub(self.position());
            (self.done > 0 && left > 0)
                .then(|| time(self.began.elapsed().as_secs_f64() / self.done as f64 * left as f64) + " left")
        });
        let parts = [Some(self.status.clone()).filter(|words| !words.is_empty()), left];
        parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
    }
}

fn lower(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A time in words, for any number of seconds.
pub fn time(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    let units = [("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86_400.0), ("years", 365.25 * 86_400.0)];
    let rounded = |size: f64| (seconds / size).round();
    let (unit, size) = *units.iter().rev().find(|(_, size)| rounded(*size) >= 2.0).unwrap_or(&units[0]);
    match rounded(size) {
        many if many > 1000.0 && unit == "years" => "more than 1000 years".into(),
        number if number.is_finite() => format!("{number} {unit}"),
        _ => "an unknown time".into(),
    }
}
