//! The programs among the examples, as a user starts them. A plain `cargo test` builds them.
#![allow(dead_code)]

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

/// The sizes of a model that is trained in no time, as an editor saves them that begins files with a mark.
pub const TINY: &str = "\u{feff}[model]
image = 12
view = 12
conv1 = 2
conv2 = 3
features = 16
hidden = 16
points = 4
samples = 20
components = 3
strokes = 3
baseline_hidden = 16

[run]
batch = 2
decay = 1.0
";

/// A program among the examples, which lie beside the folder of this test's executable.
pub fn program(name: &str) -> Command {
    let here = std::env::current_exe().unwrap();
    let path = here.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: run `cargo build --examples` in the same profile", path.display());
    command(path)
}

/// A program for which signals do what they do by default, also where whoever started the tests ignores some.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    #[cfg(unix)]
    default_signals(&mut command);
    command
}

#[cfg(unix)]
fn default_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let reset = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: allowed between fork and exec.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: calls nothing but signal(2).
    unsafe { command.pre_exec(reset) };
}

pub fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Output {
    program(name).args(arguments).output().unwrap()
}

/// A run that is killed if a test fails.
pub struct Running(pub Child);

impl Running {
    /// Sends `INT`, `TERM` or `HUP`.
    #[cfg(unix)]
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child is ours and not waited for yet.
        assert_eq!(unsafe { libc::kill(self.0.id() as libc::pid_t, signal) }, 0);
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        until("the program to end", || self.0.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for something, for as long as a very busy machine may need.
#[track_caller]
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(300), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Rows in a run's metrics, without the header.
pub fn rows(folder: &Path) -> usize {
    fs::read_to_string(folder.join("metrics.csv")).map_or(0, |text| text.lines().count().saturating_sub(1))
}

/// A folder of 12 small images for training and testing, as a source.
pub fn idx(folder: &Path) -> String {
    let part = |count: u32, kind: &str| {
        let mut bytes = vec![0, 0, 8, 3];
        [count, 12, 12].iter().for_each(|n| bytes.extend(n.to_be_bytes()));
        bytes.extend((0..count * 144).map(|i| if i % 13 == 0 { 255 } else { 0 }));
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(format!("{kind}-images-idx3-ubyte")), bytes).unwrap();
    };
    part(12, "train");
    part(12, "t10k");
    format!("idx:{}", folder.display())
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Asserts a failure with this code, and one sentence (for `clap`'s messages: a first line) that contains all `parts`.
#[track_caller]
pub fn refused(output: &Output, code: i32, parts: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let last =
        stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error in {stderr}"));
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in: {stderr}");
    }
    for ugly in ["panicked", "RUST_BACKTRACE", "Usage(", "Some("] {
        assert!(!stderr.contains(ugly), "{stderr}");
    }
    last.into()
}

#[track_caller]
pub fn succeeds(output: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}
