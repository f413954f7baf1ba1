//! The programs among real terminals, pipes, signals, files and folders: kind after kind of what people meet.
#![cfg(unix)]

mod common;
#[allow(dead_code)]
#[path = "../examples/common/screen.rs"]
mod screen;

use common::{
    programs::{Running, TINY, command, names, program, refused, rows, succeeds, until},
    skipped,
};
use dood::{Observer, files::quoted, observer::Unit};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};
use tempfile::TempDir;

/// A folder with data and the sizes of a model that is trained in no time.
struct Place(TempDir);

fn images(count: u32, seed: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    [count, 12, 12].iter().for_each(|n| bytes.extend(n.to_be_bytes()));
    bytes.extend((0..count * 144).map(|i| if (i * 7 + seed + i / 144).is_multiple_of(13) { 255 } else { 0 }));
    bytes
}

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("data")).unwrap();
        fs::write(place.path("data/train-images-idx3-ubyte"), images(12, 1)).unwrap();
        fs::write(place.path("data/t10k-images-idx3-ubyte"), images(45, 5)).unwrap();
        fs::write(place.path("tiny.toml"), TINY).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn data(&self) -> OsString {
        let mut data = OsString::from("idx:");
        data.push(self.path("data"));
        data
    }

    /// Training from the beginning, in the folder `run`.
    fn train(&self, more: &[&str]) -> Command {
        let mut command = program("train");
        command.arg("--data").arg(self.data()).arg("--config").arg(self.path("tiny.toml"));
        self.unless_given(command, more)
    }

    /// Going on with it.
    fn resume(&self, more: &[&str]) -> Command {
        let mut command = program("train");
        command.arg("--resume");
        self.unless_given(command, more)
    }

    fn unless_given(&self, mut command: Command, more: &[&str]) -> Command {
        let run = self.path("run");
        for (name, value) in [("--iwae", "0"), ("--device", "cpu"), ("--out", run.to_str().unwrap())] {
            if !more.contains(&name) {
                command.args([name, value]);
            }
        }
        command.args(more);
        command
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        self.path("run").join(format!("checkpoint-{step:08}.safetensors"))
    }

    /// Another program with the newest checkpoint and the data.
    fn with_model(&self, name: &str, more: &[&str]) -> Command {
        let mut command = program(name);
        command.arg("--checkpoint").arg(self.path("run")).arg("--data").arg(self.data());
        command.args(["--device", "cpu"]).args(more).current_dir(self.0.path());
        command
    }
}

fn output(mut command: Command) -> Output {
    command.output().unwrap()
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Waits until a program can be asked to stop.
fn listens(running: &Running, signal: i32) {
    until("the program to watch for signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        (u64::from_str_radix(caught.trim(), 16).unwrap() >> (signal - 1) & 1 == 1).then_some(())
    });
}

// ---- Reporting never ends the work --------------------------------------------------------------------------------

#[test]
fn a_reader_that_leaves_does_not_end_a_run() {
    let place = Place::new();
    let command = &mut place.train(&["--steps", "40", "--log-every", "1"]);
    let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    // As `2>&1 | head -1`: one line is read, then nobody listens.
    let mut line = String::new();
    BufReader::new(running.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("DooD on idx"), "{line}");
    drop(running.0.stdout.take());
    assert_eq!(running.end().code(), Some(0));
    assert_eq!(rows(&place.path("run")), 40);
    assert!(place.checkpoint(40).exists());
}

#[test]
fn output_that_cannot_be_written_is_dropped() {
    let place = Place::new();
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = place.train(&["--steps", "3"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    for (name, more) in
        [("reconstruct", &["--count", "2", "--particles", "2"][..]), ("evaluate", &["--particles", "2"])]
    {
        let status = place.with_model(name, more).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{name}");
    }
    // An error keeps its code.
    assert_eq!(place.train(&["--steps", "3"]).stdout(full()).stderr(full()).status().unwrap().code(), Some(2));
    // Closed, not merely full.
    let closed = |command: Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" >&- 2>&- <&-"]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(place.0.path()).status().unwrap().code()
    };
    assert_eq!(closed(place.resume(&["--steps", "5"])), Some(0));
    assert_eq!(closed(place.with_model("evaluate", &["--particles", "1"])), Some(0));
    assert!(place.checkpoint(5).exists());
}

#[test]
fn a_finished_program_ends_quietly_when_its_output_is_cut_off() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "1"])));
    let fit = || {
        let mut command = program("fit_stroke");
        command.args(["--steps", "3", "--out"]).arg(place.path("fit"));
        command
    };
    let help = || {
        let mut command = program("train");
        command.arg("--help");
        command
    };
    for command in [
        &mut place.with_model("reconstruct", &["--count", "2", "--particles", "1"]),
        &mut place.with_model("evaluate", &["--particles", "1"]),
        &mut place.train(&["--print-config", "--out", "elsewhere"]),
        &mut fit(),
        &mut help(),
        &mut program("tape"),
    ] {
        let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        drop(running.0.stdout.take());
        let mut said = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(running.end().code(), Some(0), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

/// A new terminal: the side of its window, and its name.
fn terminal() -> Option<(File, PathBuf)> {
    use std::os::fd::FromRawFd;
    // SAFETY: calls of the C library; the descriptor is ours from here on, and the name is copied.
    unsafe {
        let window = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if window < 0 || libc::grantpt(window) < 0 || libc::unlockpt(window) < 0 {
            return None;
        }
        let name = std::ffi::CStr::from_ptr(libc::ptsname(window)).to_bytes().to_vec();
        Some((File::from_raw_fd(window), PathBuf::from(OsStr::from_bytes(&name))))
    }
}

/// Starts a command as the owner of a terminal.
fn spawn_on(command: &mut Command, name: &Path) -> Running {
    let open = || OpenOptions::new().read(true).write(true).open(name).unwrap();
    command.stdin(open()).stdout(open()).stderr(open());
    let own = || {
        // SAFETY: allowed between fork and exec; 0 is the terminal.
        unsafe {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        Ok(())
    };
    // SAFETY: calls setsid(2) and ioctl(2) only.
    unsafe { command.pre_exec(own) };
    Running(command.spawn().unwrap())
}

#[test]
fn a_closed_terminal_saves_and_ends_with_130_for_any_number_of_steps() {
    let place = Place::new();
    let Some((window, name)) = terminal() else { return skipped("there are no terminals here") };
    // With a bar, whose arithmetic meets the largest number of steps there is.
    let command = &mut place.train(&["--steps", "18446744073709551615", "--log-every", "1"]);
    let mut running = spawn_on(command, &name);
    let mut seen = Vec::new();
    let mut reader = window.try_clone().unwrap();
    until("a bar", || {
        let mut some = [0; 4096];
        let n = reader.read(&mut some).unwrap();
        seen.extend(&some[..n]);
        String::from_utf8_lossy(&seen).contains("years left").then_some(())
    });
    until("some steps", || (rows(&place.path("run")) > 2).then_some(()));
    drop((window, reader));
    assert_eq!(running.end().code(), Some(130));
    let saved = names(&place.path("run"));
    assert!(saved.iter().any(|name| name.starts_with("checkpoint-")), "{saved:?}");
}

#[test]
fn the_arithmetic_of_reports_holds_for_all_numbers() {
    for (seconds, words) in [
        (0.0, "0 s"),
        (-1.0, "0 s"),
        (1.4, "1 s"),
        (89.0, "89 s"),
        (125.0, "2 min"),
        (3_500.0, "58 min"),
        (7_000.0, "2 h"),
        (7_300.0, "2 h"),
        (200_000.0, "2 days"),
        (1e9, "32 years"),
        (1e30, "more than 1000 years"),
        (f64::INFINITY, "more than 1000 years"),
        (f64::NAN, "0 s"),
        (f64::MIN_POSITIVE, "0 s"),
    ] {
        assert_eq!(screen::time(seconds), words, "{seconds}");
    }
    let screen = screen::Screen::new();
    for total in [None, Some(0), Some(1), Some(u64::MAX)] {
        for already in [0, 1, u64::MAX] {
            for units in [0, 1, u64::MAX] {
                screen.begin("Counting", total, Unit::Bytes);
                screen.already(already);
                screen.advance(units);
                screen.advance(units);
                screen.status("");
                screen.words();
                screen.end();
            }
        }
    }
}

#[test]
fn the_time_left_of_a_resumed_run_is_that_of_its_own_steps() {
    let screen = screen::Screen::new();
    screen.begin("Training", Some(1_000_000), Unit::Items);
    screen.already(500_000);
    assert!(!screen.words().contains("left"), "nothing is known yet");
    std::thread::sleep(Duration::from_millis(20));
    screen.advance(1);
    // 499,999 steps of at least 20 ms.
    let words = screen.words();
    assert!(words.ends_with("h left") || words.ends_with("days left"), "{words}");
    // What was there before is no sign of speed, how much it may be; and where nothing is left, nothing is said.
    for (total, already, advanced, left) in [
        (Some(100), 0, 1, true),
        (Some(100), 99, 0, false),
        (Some(100), 98, 1, true),
        (Some(100), 99, 1, false),
        (Some(100), 100, 0, false),
        (Some(100), 200, 1, false),
        (None, 7, 3, false),
    ] {
        screen.begin("Downloading", total, Unit::Bytes);
        screen.already(already);
        std::thread::sleep(Duration::from_millis(2));
        if advanced > 0 {
            screen.advance(advanced);
        }
        assert_eq!(screen.words().contains("left"), left, "{total:?} {already} {advanced}: {}", screen.words());
        screen.end();
    }
}

// ---- Signals ------------------------------------------------------------------------------------------------------

#[test]
fn signals_that_the_parent_wants_ignored_stay_ignored() {
    let place = Place::new();
    let command = &mut place.train(&["--steps", "1000000", "--log-every", "1"]);
    let ignore = || {
        for signal in [libc::SIGHUP, libc::SIGINT] {
            // SAFETY: allowed between fork and exec.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: calls signal(2) only. As nohup does for HUP, and a shell for INT of what it starts in the background.
    unsafe { command.pre_exec(ignore) };
    let mut running = Running(quiet(command).spawn().unwrap());
    for signal in [libc::SIGHUP, libc::SIGINT] {
        let before = until("steps", || Some(rows(&place.path("run"))).filter(|&rows| rows > 0));
        running.signal(signal);
        until("more steps after a signal that is ignored", || (rows(&place.path("run")) > before + 5).then_some(()));
    }
    running.signal(libc::SIGTERM);
    assert_eq!(running.end().code(), Some(130));
}

#[test]
fn a_stop_is_honoured_wherever_the_program_is() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "1"])));
    let big = ["--particles", "4000000"];
    let fit = || {
        let mut command = program("fit_stroke");
        command.args(["--steps", "100000000", "--out"]).arg(place.path("fit"));
        command
    };
    // 70,000 drawings are made before training begins.
    let drawing = || {
        let mut command = program("train");
        command.args(["--device", "cpu", "--out"]).arg(place.path("other"));
        command
    };
    for (what, command) in [
        ("measuring", &mut place.with_model("evaluate", &big)),
        ("drawing", &mut place.with_model("reconstruct", &big)),
        ("the bound", &mut place.with_model("reconstruct", &["--count", "1", "--iwae", "4000000"])),
        ("the bound at the end of training", &mut place.resume(&["--steps", "2", "--iwae", "4000000"])),
        ("fitting", &mut fit()),
        ("making synthetic images", &mut drawing()),
    ] {
        let mut running = Running(quiet(command).spawn().unwrap());
        listens(&running, libc::SIGTERM);
        if what == "the bound at the end of training" {
            until("the last checkpoint", || place.checkpoint(2).exists().then_some(()));
        }
        running.signal(libc::SIGTERM);
        assert_eq!(running.end().code(), Some(130), "{what}");
    }
    assert!(!place.path("other").exists(), "a run that never began left a folder behind");
}

// ---- Programs that came later: the same kinds -----------------------------------------------------------------------

/// What the programs around a model work on: a set of two classes, a model, a classifier.
struct Study(TempDir);

impl Study {
    fn get() -> &'static Study {
        static STUDY: OnceLock<Study> = OnceLock::new();
        STUDY.get_or_init(|| {
            let study = Study(tempfile::tempdir().unwrap());
            fs::create_dir(study.path("set")).unwrap();
            for (part, count) in [("train", 30), ("t10k", 20)] {
                let labels = [&[0, 0, 8, 1, 0, 0, 0, count as u8][..], &[0, 1].repeat(count as usize / 2)].concat();
                fs::write(study.path(&format!("set/{part}-images-idx3-ubyte")), images(count, 3)).unwrap();
                fs::write(study.path(&format!("set/{part}-labels-idx1-ubyte")), labels).unwrap();
            }
            fs::write(study.path("tiny.toml"), TINY).unwrap();
            let train =
                ["--data", "idx:set", "--config", "tiny.toml", "--steps", "2", "--iwae", "0", "--device", "cpu"];
            succeeds(&study.run("train", &[&train[..], &["--out", "run"]].concat()));
            succeeds(&study.run("classify", &study.with("classify", "seen")));
            succeeds(&study.run("evaluate", &study.with("evaluate", "numbers.json")));
            study
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, name: &str, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = program(name);
        command.args(arguments).current_dir(self.0.path());
        command
    }

    fn run(&self, name: &str, arguments: &[impl AsRef<OsStr>]) -> Output {
        output(self.command(name, arguments))
    }

    /// A quick use of a program, with these words at the end.
    fn with<'w>(&self, name: &str, out: &'w str) -> Vec<&'w str> {
        let (_, words, _) = PROGRAMS.iter().find(|(known, ..)| *known == name).unwrap();
        words.split_whitespace().chain([out]).collect()
    }
}

/// The programs with files of their own: a quick use of each, to which the name of the files is added, and what these end in.
const PROGRAMS: [(&str, &str, &[&str]); 12] = [
    ("evaluate", "--checkpoint run --data idx:set --device cpu --particles 2 --out", &[".json"]),
    ("reconstruct", "--checkpoint run --data idx:set --device cpu --particles 2 --count 2 --out", &[".png", ".svg"]),
    (
        "transfer",
        "--checkpoint run --data idx:set --device cpu --particles 2 --count 3 --out",
        &["-strokes.png", "-strokes.svg", ".csv", ".json", ".png", ".svg"],
    ),
    (
        "cluster",
        "--checkpoint run --data idx:set --device cpu --strokes 30 --k 2,3 --show 3 --map 10 --out",
        &["-drawn.safetensors", ".csv", ".json", ".png", ".svg"],
    ),
    (
        "frechet",
        "--checkpoint run --data idx:set --device cpu --classifier seen.safetensors --pen 0.05,0.7,0.5 --count 10 --runs 1 \
         --images 1 --exemplars 2 --particles 2 --out",
        &["-drawn.json", "-drawn.png", "-drawn.svg", ".csv", ".json", ".png", ".svg"],
    ),
    (
        "latents",
        "--checkpoint run --data idx:set --device cpu --updates 30 --out",
        &["-drawn.safetensors", "-learning.svg", ".csv", ".json", ".png", ".svg"],
    ),
    ("classify", "--data idx:set --side 12 --epochs 1 --device cpu --out", &[".json", ".png", ".safetensors", ".svg"]),
    ("generate", "--checkpoint run --device cpu --pen 0.05,0.7,0.5 --count 4 --out", &[".json", ".png", ".svg"]),
    ("complete", "--checkpoint run --device cpu --pen 0.05,0.7,0.5 --ways 2 --out", &[".json", ".png", ".svg"]),
    (
        "vary",
        "--checkpoint run --data idx:set --device cpu --count 2 --exemplars 2 --particles 2 --out",
        &[".json", ".png", ".svg"],
    ),
    ("export", "--checkpoint run --device cpu --out", &[".safetensors"]),
    ("report", ". --out", &[".html", ".md"]),
];

/// Those of them whose `--out` is one file.
fn names_one_file(program: &str) -> Option<&'static str> {
    [("evaluate", ".json"), ("reconstruct", ".png"), ("export", ".safetensors")]
        .into_iter()
        .find_map(|(name, end)| (name == program).then_some(end))
}

#[test]
fn no_program_needs_a_reader_and_files_are_named_as_asked() {
    let study = Study::get();
    for (name, words, ends) in PROGRAMS {
        let folder = study.path("names").join(OsStr::from_bytes(b"it's latin\xe9")).join(name);
        fs::create_dir_all(&folder).unwrap();
        // The point belongs to the name.
        let out = folder.join(format!("v1.5{}", names_one_file(name).unwrap_or_default()));
        let words: Vec<&OsStr> = words.split_whitespace().map(OsStr::new).chain([out.as_os_str()]).collect();
        let command = &mut study.command(name, &words);
        command.stdout(Stdio::piped()).stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
        let mut running = Running(command.spawn().unwrap());
        drop(running.0.stdout.take());
        assert_eq!(running.end().code(), Some(0), "{name}");
        assert_eq!(names(&folder), ends.iter().map(|end| format!("v1.5{end}")).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn what_cannot_be_written_is_known_before_the_work() {
    let study = Study::get();
    fs::create_dir_all(study.path("a folder")).unwrap();
    for (name, _, _) in PROGRAMS {
        let end = names_one_file(name).unwrap_or_default();
        let started = |out: &str| study.run(name, &study.with(name, &format!("{out}{end}")));
        let said =
            refused(&started("no such/place/x"), 2, &["cannot be written", "is no folder", "mkdir -p 'no such/place'"]);
        assert!(!study.path("no such").exists(), "{said}");
        // Nobody writes there, not even root.
        let said = refused(&started("/proc/x"), 1, &["cannot write /proc/x"]);
        assert!(!said.contains("Written"), "{name}: {said}");
        if end.is_empty() {
            refused(&started("a folder"), 2, &["'a folder'", "not a folder"]);
        } else {
            fs::create_dir_all(study.path(&format!("folder{end}"))).unwrap();
            refused(&started("folder"), 2, &["is a folder", "name a file in it"]);
        }
    }
    assert!(names(&study.path("a folder")).is_empty());
    // The advice, followed.
    let out = "no such/place/x";
    let said = refused(&study.run("generate", &study.with("generate", out)), 2, &[]);
    let mkdir = &said[said.find("mkdir").unwrap()..];
    assert!(Command::new("bash").args(["-c", mkdir]).current_dir(study.0.path()).status().unwrap().success());
    succeeds(&study.run("generate", &study.with("generate", out)));
    fs::remove_dir_all(study.path("no such")).unwrap();
}

#[test]
fn every_program_stops_when_asked_and_goes_on_if_it_says_so() {
    let study = Study::get();
    let folder = study.path("stops");
    fs::create_dir_all(&folder).unwrap();
    for (name, long, short) in [
        ("transfer", "--particles 40000000", "--particles 1 --count 2"),
        ("cluster", "--strokes 200000", "--strokes 20"),
        ("frechet", "--count 20 --runs 1000", "--count 20 --runs 1 --exemplars 0"),
        ("latents", "--updates 1000000000", "--updates 9"),
        ("classify", "--epochs 1000 --batch 1", "--epochs 1 --batch 1"),
        ("generate", "--count 100000", ""),
        ("complete", "--ways 1000 --beginnings 1000", ""),
        ("vary", "--exemplars 1000 --particles 4000", ""),
    ] {
        let out = format!("stops/{name}");
        let words = |more: &str| {
            // An option that is given twice is refused.
            let given: Vec<&str> = more.split_whitespace().filter(|word| word.starts_with("--")).collect();
            let mut words: Vec<String> = vec![];
            let usual = study.with(name, &out);
            let mut usual = usual.iter();
            while let Some(word) = usual.next() {
                if given.contains(word) {
                    usual.next();
                } else {
                    words.push(word.to_string());
                }
            }
            words.extend(more.split_whitespace().map(String::from));
            words
        };
        let command = &mut study.command(name, &words(long));
        let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        listens(&running, libc::SIGTERM);
        let kept = [".json", ".safetensors", "-drawn.safetensors"].map(|end| study.path(&format!("{out}{end}")));
        if matches!(name, "frechet" | "latents" | "classify") {
            until("a part of the work", || kept.iter().any(|kept| kept.exists()).then_some(()));
        }
        running.signal(libc::SIGTERM);
        let mut said = String::new();
        running.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(running.end().code(), Some(130), "{name}");
        // The strokes of cluster are written at its stop, if it has come that far.
        if matches!(name, "frechet" | "latents" | "classify") || kept[2].exists() {
            assert!(said.contains("the same command with --resume goes on."), "{name}: {said}");
            succeeds(&study.run(name, &words(&format!("{short} --resume"))));
        } else if name == "transfer" {
            succeeds(&study.run(name, &words(short)));
        }
    }
}

#[test]
fn damaged_files_of_any_program_are_told_and_the_advice_works() {
    let study = Study::get();
    let folder = study.path("damaged");
    fs::create_dir_all(&folder).unwrap();
    let at = |name: &str| format!("damaged/{name}");
    let (json, resume) = (".json", &["--resume"][..]);
    let drawings = [&study.with("complete", "damaged/complete")[..], &["--drawings", "damaged/generate.json"]].concat();
    for name in ["generate", "frechet", "latents", "cluster", "classify", "transfer"] {
        succeeds(&study.run(name, &study.with(name, &at(name))));
    }
    let again = |name: &str, more: &[&'static str]| {
        let out: &'static str = Box::leak(at(name).into_boxed_str());
        [&study.with(name, out)[..], more].concat()
    };
    // The file, who reads it, and what to do.
    let readers: [(&str, &str, &str, Vec<&str>, &str); 6] = [
        ("generate", json, "complete", drawings, ""),
        ("frechet", json, "frechet", again("frechet", resume), "leave --resume out"),
        ("latents", "-drawn.safetensors", "latents", again("latents", resume), "leave --resume out"),
        ("cluster", "-drawn.safetensors", "cluster", again("cluster", resume), "leave --resume out"),
        ("classify", ".safetensors", "classify", again("classify", resume), ""),
        ("transfer", json, "transfer", again("transfer", &[]), "or remove it"),
    ];
    for (written, end, reader, words, advice) in readers {
        let path = study.path(&at(&format!("{written}{end}")));
        let whole = fs::read(&path).unwrap();
        for (damaged, what) in [
            (&b""[..], "empty"),
            (b"<!DOCTYPE html><title>Log in</title>", "web page"),
            (&whole[..whole.len() / 2], if end == json { "cut off" } else { "truncated" }),
            (b"{\"a\": 1}", ""),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        ] {
            fs::write(&path, damaged).unwrap();
            let output = study.run(reader, &words);
            let code = output.status.code().unwrap();
            let said = refused(&output, code, &[&format!("{written}{end}"), what, advice]);
            assert!((code == 1 || code == 2) && said.len() < 400, "{code}: {said}");
            assert_eq!(fs::read(&path).unwrap(), damaged, "{reader} has written over what it refused");
        }
        match advice {
            "or remove it" => fs::remove_file(&path).unwrap(),
            "" => fs::write(&path, &whole).unwrap(),
            _ => {}
        }
        let words: Vec<&str> = words.into_iter().filter(|word| *word != "--resume" || advice.is_empty()).collect();
        let followed = study.run(reader, &words);
        if reader == "classify" {
            // Whole again, it has nothing left to learn.
            succeeds(&followed);
        }
        succeeds(&followed);
    }
    // Of another set or another way of learning: said, with what would be right.
    let other =
        ["--data", "idx:other", "--side", "12", "--epochs", "2", "--device", "cpu", "--out", "damaged/classify"];
    fs::create_dir_all(study.path("other")).unwrap();
    for name in names(&study.path("set")) {
        let mut bytes = fs::read(study.path("set").join(&name)).unwrap();
        if name == "train-images-idx3-ubyte" {
            bytes[500] ^= 1;
        }
        fs::write(study.path("other").join(name), bytes).unwrap();
    }
    let resumed = |words: &[&str]| study.run("classify", &[words, resume].concat());
    refused(&resumed(&other), 2, &["these images are others", "give it the same, or begin anew"]);
    let smaller = [&other[..3], &["8"], &other[4..]].concat();
    refused(
        &resumed(&smaller),
        2,
        &["has learned 2 classes of images of 12 pixels a side", "--side, or leave --resume out"],
    );
    let absent = [&other[..9], &["damaged/nothing"]].concat();
    refused(&resumed(&absent), 2, &["to resume from", "leave --resume out"]);
    succeeds(&study.run("classify", &other));
}

#[test]
fn images_are_shown_as_those_that_a_model_has_learned_from() {
    let place = Place::new();
    fs::create_dir(place.path("wide")).unwrap();
    for i in 0..12u32 {
        // Light strokes on dark paper that is wider than high: neither would be guessed.
        let picture = image::GrayImage::from_fn(24, 12, |x, y| {
            image::Luma([if (x + i).is_multiple_of(5) && y > 2 { 200 } else { 30 + i as u8 }])
        });
        picture.save(place.path(&format!("wide/{i}.png"))).unwrap();
    }
    let mut data = OsString::from("images:");
    data.push(place.path("wide"));
    let mut train = program("train");
    train.arg("--data").arg(&data).arg("--config").arg(place.path("tiny.toml")).arg("--out").arg(place.path("run"));
    train.args(["--steps", "1", "--iwae", "0", "--device", "cpu", "--fit", "crop", "--invert", "yes"]);
    succeeds(&output(train));
    let mut export = program("export");
    export.args(["--checkpoint", "run", "--device", "cpu", "--out", "shared.safetensors"]).current_dir(place.0.path());
    succeeds(&output(export));
    const SAID: &str = "Images are read as those that the model has learned from: --fit crop --invert yes.";
    let run = |name: &str, model: &str, data: &OsStr, more: &[&str]| {
        let mut command = program(name);
        command.args(["--checkpoint", model, "--device", "cpu"]).args(more).current_dir(place.0.path());
        if name != "complete" {
            command.arg("--data").arg(data);
        }
        succeeds(&output(command))
    };
    let uses: [(&str, &[&str], &str); 4] = [
        ("evaluate", &["--particles", "1", "--out", "x.csv"], "x.csv"),
        ("reconstruct", &["--particles", "1", "--count", "2", "--out", "x.png"], "x.png"),
        ("vary", &["--particles", "1", "--count", "1", "--exemplars", "1", "--out", "x"], "x.json"),
        ("complete", &["--image", "wide/3.png", "--ways", "1", "--pen", "0.05,0.7,0.5", "--out", "x"], "x.png"),
    ];
    for (name, more, written) in uses {
        let made = |model: &str, options: &[&str]| {
            let said = run(name, model, &data, &[more, options].concat());
            (said.contains(SAID), fs::read(place.path(written)).unwrap())
        };
        let explicit = made("run", &["--fit", "crop", "--invert", "yes"]);
        assert!(!explicit.0, "{name} says what was asked for");
        assert_eq!(made("run", &[]), (true, explicit.1.clone()), "{name}");
        assert!(made("shared.safetensors", &[]).0, "{name}");
        let otherwise = made("run", &["--fit", "pad", "--invert", "auto"]);
        assert!(!otherwise.0 && otherwise.1 != explicit.1, "{name}: an option wins");
    }
    // Images of another kind are not inverted because these were; they are square, so nothing else is seen.
    let said = run("evaluate", "run", &place.data(), &["--particles", "1", "--out", "y.csv"]);
    assert!(said.contains("learned from: --fit crop.") && !said.contains("bright on average"), "{said}");
}

// ---- Advice works when followed -----------------------------------------------------------------------------------

/// The error of a command that fails.
#[track_caller]
fn error(command: Command, code: i32, parts: &[&str]) -> String {
    refused(&output(command), code, parts)
}

#[test]
fn a_new_run_begins_with_the_model_of_another() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "2", "--stop", "nvil"])));
    let second = place.path("second");
    let (run, second) = (place.path("run"), second.to_str().unwrap());
    // The file has the model's sizes; what is asked for differs.
    let mut begun = program("train");
    begun.args(["--device", "cpu", "--iwae", "0", "--batch", "2", "--steps", "1", "--stop", "exact", "--price", "3"]);
    begun.arg("--data").arg(place.data()).arg("--start").arg(&run).args(["--out", second]);
    let said = succeeds(&output(begun));
    assert!(said.contains("Starting with the parameters of") && said.contains("checkpoint-00000002"), "{said}");
    let mut shown = program("train");
    shown.args(["--resume", "--steps", "2", "--print-config", "--out", second]);
    let shown = succeeds(&output(shown));
    for line in ["image = 12", "stop = \"exact\"", "price = 3.0", "checkpoint-00000002.safetensors, SHA-256 "] {
        assert!(shown.contains(line), "no {line} in {shown}");
    }
    let start = ["--start", run.to_str().unwrap()];
    error(place.resume(&[&start[..], &["--steps", "3"]].concat()), 2, &["leave --start out"]);
    let third = place.path("third");
    let more = [&start[..], &["--out", third.to_str().unwrap()]].concat();
    fs::write(place.path("tiny.toml"), TINY.replace("hidden = 16", "hidden = 17")).unwrap();
    error(place.train(&more), 1, &["of another shape", "instead of"]);
    error(place.train(&[&more[..], &["--price", "2"]].concat()), 2, &["price 2", "exact"]);
    assert!(!third.exists());
}

#[test]
fn advice_about_folders_works_when_followed() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "1"])));
    error(place.train(&["--steps", "2"]), 2, &["holds a run already", "--resume", "--out"]);
    let elsewhere = place.path("elsewhere");
    succeeds(&output(place.train(&["--steps", "1", "--out", elsewhere.to_str().unwrap()])));
    error(place.resume(&[]), 2, &["made its 1 steps", "larger number with --steps"]);
    succeeds(&output(place.resume(&["--steps", "2"])));
    // A folder in the place of a file.
    let mut named = program("train");
    named.arg("--resume").arg(place.path("run")).args(["--iwae", "0", "--steps", "3"]);
    let said = error(named, 2, &["is a folder"]);
    let advised = said.rsplit(" with ").next().unwrap();
    let train = quoted(program("train").get_program());
    let follow = |words: &str| {
        let script = format!("{train} {words} --iwae 0 --steps 3 --device cpu");
        output({
            let mut bash = Command::new("bash");
            bash.args(["-c", &script]);
            bash
        })
    };
    succeeds(&follow(advised));
    // No folder for the result.
    let to = "a new/folder/of results/x.json";
    for name in ["reconstruct", "evaluate"] {
        fs::remove_dir_all(place.path("a new")).ok();
        let said = error(place.with_model(name, &["--out", to, "--particles", "1"]), 2, &["mkdir -p"]);
        let mkdir = &said[said.find("mkdir").unwrap()..];
        assert!(Command::new("bash").args(["-c", mkdir]).current_dir(place.0.path()).status().unwrap().success());
        succeeds(&output(place.with_model(name, &["--out", to, "--particles", "1"])));
    }
    error(place.with_model("evaluate", &["--out", "x.txt"]), 2, &["must end in .json or .csv"]);
    // Somebody else's file of metrics.
    let foreign = place.path("other");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("metrics.csv"), "epoch,accuracy\n1,0.5\n").unwrap();
    let out = foreign.to_str().unwrap();
    error(place.train(&["--steps", "1", "--out", out]), 2, &["epoch,accuracy", "move that file away"]);
    assert_eq!(names(&foreign), ["metrics.csv"]);
    fs::rename(foreign.join("metrics.csv"), foreign.join("mine.csv")).unwrap();
    succeeds(&output(place.train(&["--steps", "1", "--out", out])));
}

/// What can be known wrong of a command, the words of the refusal, and the same command with its advice followed. `@` is where the
/// program writes.
const ADVICE: &[(&str, &str, &[&str], &str)] = &[
    ("evaluate", "run --data idx:set --out @.txt", &["must end in .json or .csv"], "run --data idx:set --out @.csv"),
    (
        "reconstruct",
        "run --data idx:set --out @.jpeg",
        &["must end in .png, .svg or .json"],
        "run --data idx:set --out @.svg",
    ),
    ("export", "run --out @.bin", &["must end in .safetensors"], "run --out @.safetensors"),
    (
        "generate",
        "run --temperature warm --out @",
        &["choose paper, or a factor from 0 to 10"],
        "run --temperature 10 --out @",
    ),
    (
        "generate",
        "run --pen thick --out @",
        &["give three numbers above 0, such as 0.015,0.7,0.5"],
        "run --pen 0.015,0.7,0.5 --out @",
    ),
    (
        "generate",
        "run --pen-of idx:nowhere --out @",
        &["nowhere does not exist", "name an existing folder"],
        "run --pen-of idx:set --out @",
    ),
    (
        "generate",
        "nobody --out @",
        &["neither a file or folder nor a model of that name", "mnist, omniglot, quickdraw ship"],
        "mnist --count 1 --out @",
    ),
    (
        "generate",
        "set --out @",
        &["no checkpoint in the folder set: name the folder of a run, or a file"],
        "run --out @",
    ),
    ("complete", "run --drawings none.json --out @", &["nothing has been begun"], "run --out @"),
    (
        "cluster",
        "run --data idx:set --strokes 30 --map 0 --k 2 --out @",
        &["--show 8 is not among the numbers of clusters: add it to --k"],
        "run --data idx:set --strokes 30 --map 0 --k 2,8 --out @",
    ),
    (
        "cluster",
        "run --data idx:set --strokes 30 --map 0 --k 2,900 --show 2 --out @",
        &["make no 900 clusters: ask for fewer with --k"],
        "run --data idx:set --strokes 30 --map 0 --k 2,9 --show 2 --out @",
    ),
    (
        "latents",
        "run --data idx:set --rate 0 --out @",
        &["choose a number above 0, such as 1e-4"],
        "run --data idx:set --rate 1e-4 --updates 3 --out @",
    ),
    (
        "latents",
        "run --data idx:blank --updates 3 --out @",
        &["cannot be classified", "or a set with labels of your own"],
        "run --data idx:set --updates 3 --out @",
    ),
    (
        "transfer",
        "run --data idx:set --data idx:set --count 1 --particles 1 --out @",
        &["the same: name them once"],
        "run --data idx:set --count 1 --particles 1 --out @",
    ),
    (
        "transfer",
        "run --checkpoint run --data idx:set --count 1 --particles 1 --out @",
        &["named twice: name it once"],
        "run --data idx:set --count 1 --particles 1 --out @",
    ),
    (
        "vary",
        "run --data set --out @",
        &["`set` is not a data source", "images:set"],
        "run --data idx:set --count 1 --exemplars 1 --particles 1 --out @",
    ),
    (
        "evaluate",
        "run --data mnist:nowhere",
        &["does not exist", "--download", "as in mnist:FOLDER"],
        "run --data mnist:set --particles 1",
    ),
    (
        "evaluate",
        "run --data idx:set --device tpu",
        &["choose auto, cpu, cuda or cuda:N"],
        "run --data idx:set --particles 1 --device auto",
    ),
    (
        "evaluate",
        "run --data idx:set --math f16",
        &["choose f32, tf32 or bf16"],
        "run --data idx:set --particles 1 --math bf16",
    ),
    (
        "frechet",
        "run --data idx:set --classifier seen.safetensors --exemplars 1 --out @",
        &["choose 0, or 2 and more"],
        "run --data idx:set --classifier seen.safetensors --exemplars 0 --count 5 --runs 1 --pen 0.05,0.7,0.5 --out @",
    ),
    (
        "frechet",
        "run --data idx:set --classifier run/checkpoint-00000002.safetensors --exemplars 0 --count 5 --runs 1 --out @",
        &["name one that classify has written"],
        "run --data idx:set --classifier seen.safetensors --exemplars 0 --count 5 --runs 1 --out @",
    ),
];

#[test]
fn what_a_sentence_advises_works() {
    let study = Study::get();
    fs::create_dir_all(study.path("advice")).unwrap();
    fs::create_dir_all(study.path("blank")).unwrap();
    for part in ["train", "t10k"] {
        fs::write(study.path(&format!("blank/{part}-images-idx3-ubyte")), images(4, 3)).unwrap();
    }
    let none = "{\"format\": \"dood-drawings\", \"version\": 1, \"drawings\": []}";
    fs::write(study.path("none.json"), none).unwrap();
    let ship = Path::new("models/mnist.safetensors").exists();
    if !ship {
        skipped("advice about models that ship, because they are no part of a package");
    }
    for (i, (name, wrong, parts, right)) in
        ADVICE.iter().enumerate().filter(|(_, row)| ship || !row.3.starts_with("mnist"))
    {
        let run = |words: &str| {
            let words = format!("--checkpoint {}", words.replace('@', &format!("advice/{i}")));
            study.run(name, &words.split_whitespace().collect::<Vec<_>>())
        };
        let output = run(wrong);
        refused(&output, output.status.code().filter(|code| [1, 2].contains(code)).unwrap(), parts);
        succeeds(&run(right));
    }
    // Programs without a model.
    let run = |name: &str, words: &str| study.run(name, &words.split_whitespace().collect::<Vec<_>>());
    refused(&run("classify", "--data idx:blank --out advice/c"), 2, &["has no labels to learn: choose another set"]);
    refused(&run("classify", "--data idx:set --side 3"), 2, &["4..=128"]);
    refused(&run("report", "set"), 2, &["write some with --out set/NAME"]);
    succeeds(&study.run("evaluate", &study.with("evaluate", "set/NAME.json")));
    succeeds(&run("report", "set"));
    fs::remove_file(study.path("set/NAME.json")).unwrap();
    refused(&run("fit_stroke", "--data idx:set --index 20 --out advice"), 2, &["--index goes up to 19"]);
    succeeds(&run("fit_stroke", "--data idx:set --index 19 --steps 1 --out advice"));
    refused(&run("train", "--config tiny.toml --threads 1025"), 2, &["1025", "1..=1024"]);
    // Several GPUs, where there is none, and where none is wanted.
    let gpus = "--data idx:set --config tiny.toml --steps 1 --iwae 0 --out advice/gpus";
    refused(&run("train", &format!("{gpus} --gpus 2 --device cpu")), 2, &["--device cpu is for a run without --gpus"]);
    succeeds(&run("train", &format!("{gpus} --device cpu")));
    // The runs of one-shot classification are named otherwise than sets.
    refused(&run("one_shot", "--runs set"), 1, &["--download", "as in --runs FOLDER"]);
    // A picture is named with what a shell takes as one word.
    fs::create_dir_all(study.path("one picture")).unwrap();
    image::GrayImage::new(12, 12).save(study.path("one picture/it's.png")).unwrap();
    let only = refused(
        &study.run("evaluate", &["--checkpoint", "run", "--data", "images:one picture"]),
        1,
        &["holds one picture"],
    );
    let word = only.split("name the file itself, ").nth(1).unwrap().split(", to look").next().unwrap();
    let evaluate = quoted(program("evaluate").get_program());
    let script = format!("{evaluate} --checkpoint run --particles 1 --data {word}");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(study.0.path());
    succeeds(&output(bash));
    // A model without the state of a training begins a new run instead.
    succeeds(&run("export", "--checkpoint run --device cpu --out advice/shared.safetensors"));
    let on = run("train", "--resume advice/shared.safetensors --out advice/on --device cpu");
    refused(&on, 1, &["for evaluation only", "train --start"]);
    succeeds(&run(
        "train",
        "--start advice/shared.safetensors --data idx:set --batch 2 --steps 1 --iwae 0 --device cpu --out advice/on",
    ));
}

#[test]
fn every_option_that_a_sentence_names_is_one_of_the_program_that_says_it() {
    let help = |name: &str| {
        String::from_utf8(
            output({
                let mut command = program(name);
                command.arg("--help");
                command
            })
            .stdout,
        )
        .unwrap()
    };
    let has = |help: &str, option: &str| help.split_whitespace().any(|word| word.trim_end_matches(',') == option);
    let all: Vec<(&str, String)> = [
        "train",
        "evaluate",
        "reconstruct",
        "transfer",
        "cluster",
        "frechet",
        "latents",
        "classify",
        "generate",
        "complete",
        "vary",
        "export",
        "fit_stroke",
        "one_shot",
        "draw",
        "report",
    ]
    .map(|name| (name, help(name)))
    .into();
    for (name, help) in &all {
        // Readers of data say these three, whoever calls them; devices say the fourth.
        if (has(help, "--data") && *name != "one_shot") || has(help, "--pen-of") || *name == "export" {
            for option in ["--download", "--fit", "--invert"] {
                assert!(has(help, option), "{name} has no {option}, which its sentences advise");
            }
        }
        if has(help, "--math") {
            assert!(has(help, "--device") && has(help, "--threads"), "{name}");
        }
    }
    // Whatever else a sentence of the library or of a program names, some program has.
    let mut named = 0;
    let mut folders = vec![PathBuf::from("src"), PathBuf::from("examples")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|end| end == "rs") && !entry.ends_with("src/kernels.rs") {
                let text = fs::read_to_string(&entry).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap().lines();
                for line in code.filter(|line| !line.trim_start().starts_with("//")) {
                    for (at, _) in line.match_indices(" --") {
                        let letter = |c: char| c.is_ascii_lowercase() || c == '-';
                        let option = line[at + 1..].split(|c| !letter(c)).next().unwrap();
                        let foreign = ["--logdir", "--ntasks", "--nproc", "--nnodes", "--no-python", "--"];
                        if option.len() > 2 && !foreign.iter().any(|other| option.starts_with(other) && *other != "--")
                        {
                            named += 1;
                            let known = all.iter().any(|(_, help)| has(help, option));
                            assert!(known, "no program has {option}, which {} names: {line}", entry.display());
                        }
                    }
                }
            }
        }
    }
    assert!(named > 100, "{named}");
}

#[test]
fn a_batch_is_no_larger_than_the_training_set_and_the_memory() {
    let place = Place::new();
    let said = error(place.train(&["--batch", "13"]), 2, &["13", "training set of 12", "--batch 12"]);
    assert!(!place.path("run").exists(), "{said}");
    // Known before the data are read.
    let mut huge = program("train");
    huge.args(["--batch", "1000000000", "--preset", "paper", "--device", "cpu", "--data", "idx:/nowhere"]);
    error(huge, 2, &["GiB of memory", "are free", "would fit (--batch "]);
    // Also where a file says it; all of the set is a batch.
    let file = |batch: &str| fs::write(place.path("tiny.toml"), TINY.replace("batch = 2", batch)).unwrap();
    file("batch = 13");
    error(place.train(&[]), 2, &["13", "--batch 12"]);
    succeeds(&output(place.train(&["--steps", "1", "--batch", "12", "--out", place.path("all").to_str().unwrap()])));
    file("batch = 4294967295\nfaint = true");
    error(place.train(&[]), 2, &["would fit (--batch "]);
    error(place.train(&["--batch", "4294967296"]), 2, &["4294967296", "--batch"]);
    for model in ["sp", "air"] {
        error(place.train(&["--model", model]), 2, &["GiB of memory", "would fit (--batch "]);
    }
    // A default is made smaller without a word.
    fs::write(place.path("tiny.toml"), TINY.replace("batch = 2", "")).unwrap();
    succeeds(&output(place.train(&["--steps", "1"])));
    error(place.resume(&["--steps", "2", "--batch", "5"]), 2, &["batch 5 instead of 12"]);
}

// ---- Paths and commands -------------------------------------------------------------------------------------------

/// Stops a run after some steps, and gives the command that it prints.
fn stopped(command: &mut Command, folder: &Path) -> Vec<u8> {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());
    until("a step", || (rows(folder) > 0).then_some(()));
    running.signal(libc::SIGINT);
    let mut said = Vec::new();
    running.0.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(running.end().code(), Some(130));
    let line = said.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap();
    line.trim_ascii().to_vec()
}

/// Types a command in another folder, with more arguments.
fn typed(command: &[u8], more: &str) -> Output {
    let script = [command, b" ", more.as_bytes()].concat();
    output({
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(OsStr::from_bytes(&script)).current_dir("/");
        bash
    })
}

#[test]
fn the_printed_command_continues_the_same_run_from_anywhere() {
    for name in
        [&b"plain"[..], b"two words", b"it's \"quoted\"", b"latin\xe9", b"new\nline", "gr\u{fc}n $HOME".as_bytes()]
    {
        let place = Place::new();
        let folder = place.0.path().join(OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        // The program itself, the data and the run are in such a folder, all named relative to it.
        let bin = folder.join("my train");
        std::os::unix::fs::symlink(program("train").get_program(), &bin).unwrap();
        fs::rename(place.path("data"), folder.join("data")).unwrap();
        let mut data = OsString::from("idx:../");
        data.push(OsStr::from_bytes(name));
        data.push("/data");
        let mut command = command("./my train");
        command.current_dir(&folder).arg("--data").arg(&data).arg("--config").arg(place.path("tiny.toml"));
        command.args(["--steps", "1000000", "--log-every", "1", "--iwae", "0", "--out", "run"]);
        command.args(["--device", "cpu", "--math", "tf32", "--threads", "1"]);
        let printed = stopped(&mut command, &folder.join("run"));
        let text = String::from_utf8_lossy(&printed);
        for part in ["--device cpu", "--math tf32", "--threads 1", "--iwae 0"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        let steps = rows(&folder.join("run"));
        let on = typed(&printed, &format!("--steps {}", steps + 3));
        succeeds(&on);
        assert!(rows(&folder.join("run")) > steps, "{text}");
    }
}

#[test]
fn a_resumed_run_is_the_same_run_also_when_the_data_have_changed() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "6", "--out", place.path("straight").to_str().unwrap()])));
    succeeds(&output(place.train(&["--steps", "3"])));
    let path = place.path("data/train-images-idx3-ubyte");
    let before = fs::read(&path).unwrap();
    let mut changed = before.clone();
    changed[16 + 700] ^= 1;
    fs::write(&path, &changed).unwrap();
    let said = error(place.resume(&["--steps", "6"]), 1, &["same number of images", "other pixels", "same data"]);
    assert!(said.len() < 400, "{said}");
    fs::write(&path, &before).unwrap();
    // The data may be elsewhere, and are looked for there from then on.
    fs::rename(place.path("data"), place.path("moved")).unwrap();
    let moved = format!("idx:{}", place.path("moved").display());
    error(place.resume(&["--steps", "6"]), 1, &["does not exist"]);
    succeeds(&output(place.resume(&["--steps", "4", "--data", &moved])));
    succeeds(&output(place.resume(&["--steps", "5"])));
    fs::rename(place.path("moved"), place.path("data")).unwrap();
    let back = format!("idx:{}", place.path("data").display());
    succeeds(&output(place.resume(&["--steps", "6", "--data", &back])));
    let straight = fs::read(place.path("straight/checkpoint-00000006.safetensors")).unwrap();
    assert!(fs::read(place.checkpoint(6)).unwrap() == straight, "the resumed run is another");
    error(
        place.resume(&["--steps", "7", "--fit", "crop", "--data", "synthetic"]),
        2,
        &["fit crop instead of pad", "data synthetic instead of idx"],
    );
}

#[test]
fn resume_goes_on_from_a_named_checkpoint_and_keeps_the_later_ones_aside() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "6", "--checkpoint-every", "2", "--log-every", "1"])));
    let from = |file: &Path, more: &[&str]| {
        let mut command = program("train");
        command.arg("--resume").arg(file).args(["--iwae", "0", "--device", "cpu"]).args(more);
        output(command)
    };
    let said = succeeds(&from(&place.checkpoint(2), &["--steps", "3"]));
    assert!(said.contains("set-aside"), "{said}");
    let files = |folder: &Path| {
        let mut names = names(folder);
        names.retain(|name| name.starts_with("checkpoint-"));
        names
    };
    assert_eq!(
        files(&place.path("run/set-aside")),
        ["checkpoint-00000004.safetensors", "checkpoint-00000006.safetensors"]
    );
    assert_eq!(files(&place.path("run")), ["checkpoint-00000002.safetensors", "checkpoint-00000003.safetensors"]);
    assert_eq!(rows(&place.path("run")), 3);
    // In a folder of its own; a file that was renamed needs one.
    let renamed = place.path("best.safetensors");
    fs::copy(place.checkpoint(2), &renamed).unwrap();
    refused(&from(&renamed, &["--steps", "3"]), 2, &["name a folder with --out"]);
    let branch = place.path("branch");
    succeeds(&from(&renamed, &["--steps", "3", "--out", branch.to_str().unwrap()]));
    assert_eq!(files(&branch), ["checkpoint-00000003.safetensors"]);
    let taken = from(&renamed, &["--steps", "3", "--out", place.path("run").to_str().unwrap()]);
    refused(&taken, 2, &["another run", "--out"]);
    refused(&from(&place.path("none.safetensors"), &["--out", branch.to_str().unwrap()]), 1, &["cannot read"]);
}

#[test]
fn resume_takes_a_checkpoint_however_it_is_named() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "4", "--checkpoint-every", "2"])));
    let run = place.path("run");
    let go_on = |file: &Path, folder: &Path, more: &[&str]| {
        let mut command = program("train");
        command.arg("--resume").arg(file).args(["--iwae", "0", "--device", "cpu"]).args(more).current_dir(folder);
        output(command)
    };
    let name = |step: u64| PathBuf::from(format!("checkpoint-{step:08}.safetensors"));
    // The newest one: nothing is set aside. From its own folder, without a folder in the name.
    succeeds(&go_on(&name(4), &run, &["--steps", "5"]));
    assert!(!run.join("set-aside").exists());
    // With steps that it has made already.
    refused(&go_on(&name(5), &run, &["--steps", "5"]), 2, &["made its 5 steps", "larger number with --steps"]);
    // Twice from the same one: what was set aside before is not lost.
    succeeds(&go_on(&Path::new("run").join(name(2)), place.0.path(), &["--steps", "4"]));
    succeeds(&go_on(&Path::new("./run").join(name(2)), place.0.path(), &["--steps", "5"]));
    assert_eq!(names(&run.join("set-aside")), [4, 5].map(|step| name(step).display().to_string()));
    assert_eq!(names(&run.join("set-aside-2")), [name(4).display().to_string()]);
    // Through a link to the folder, which is the same folder, also for --out.
    std::os::unix::fs::symlink(&run, place.path("link")).unwrap();
    let linked = place.path("link").join(name(5));
    succeeds(&go_on(&linked, place.0.path(), &["--steps", "6", "--out", "run"]));
    // A link to the file in another place is in no run's folder.
    std::os::unix::fs::symlink(run.join(name(6)), place.path("best.safetensors")).unwrap();
    refused(&go_on(Path::new("best.safetensors"), place.0.path(), &["--steps", "7"]), 2, &["name a folder with --out"]);
    succeeds(&go_on(Path::new("best.safetensors"), place.0.path(), &["--steps", "7", "--out", "branch"]));
    // A folder that is called like one.
    fs::create_dir(place.path("checkpoint-00000009.safetensors")).unwrap();
    refused(&go_on(&name(9), place.0.path(), &["--steps", "10"]), 2, &["is a folder"]);
}

// ---- A used folder ------------------------------------------------------------------------------------------------

/// The steps of all scalars that TensorBoard would show from a folder, if no file says to forget any.
fn points(folder: &Path) -> Vec<u64> {
    let mut steps = vec![];
    for name in names(folder).iter().filter(|name| name.contains("tfevents")) {
        let bytes = fs::read(folder.join(name)).unwrap();
        let mut rest = &bytes[..];
        while rest.len() >= 12 {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = &rest[12..12 + length];
            // Time, then the step as a varint, then field 5: a summary.
            let (mut step, mut at) = (0u64, 10);
            for shift in (0..).step_by(7) {
                step |= u64::from(event[at] & 127) << shift;
                at += 1;
                if event[at - 1] < 128 {
                    break;
                }
            }
            if event.get(at) == Some(&(5 << 3 | 2)) {
                steps.push(step);
            }
            rest = &rest[16 + length..];
        }
    }
    steps.sort_unstable();
    steps
}

#[test]
fn a_new_run_begins_cleanly_where_a_dead_one_lies() {
    let place = Place::new();
    let run = place.path("run");
    fs::create_dir(&run).unwrap();
    // Nothing of this is ours.
    let theirs = [
        "checkpoint-9.safetensors",
        "checkpoint-best.safetensors",
        "events.out.tfevents.1700000000.host.12",
        "notes.txt",
    ];
    for name in theirs {
        fs::write(run.join(name), "").unwrap();
    }
    let command = &mut place.train(&["--steps", "1000000", "--log-every", "1", "--picture-every", "3", "--seed", "7"]);
    let mut dead = Running(quiet(command).spawn().unwrap());
    until("many steps", || (rows(&run) > 20).then_some(()));
    dead.0.kill().unwrap();
    dead.0.wait().unwrap();
    fs::write(run.join(".metrics.csv.77.partial"), "half").unwrap();
    assert!(points(&run).len() > 20);
    succeeds(&output(place.train(&["--steps", "5", "--log-every", "1"])));
    assert_eq!(points(&run), [1, 2, 3, 4, 5]);
    assert_eq!(rows(&run), 5);
    assert_eq!(names(&run.join("history")), ["reconstruction-00000005.png", "reconstruction-00000005.svg"]);
    let found = names(&run);
    assert!(theirs.iter().all(|name| found.iter().any(|found| found == name)), "{found:?}");
    assert!(found.iter().all(|name| !name.ends_with(".partial")), "{found:?}");
}

// ---- An error says what still works -------------------------------------------------------------------------------

#[test]
fn a_damaged_checkpoint_is_answered_with_one_that_is_whole() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "6", "--checkpoint-every", "2"])));
    for step in [4, 6] {
        let bytes = fs::read(place.checkpoint(step)).unwrap();
        fs::write(place.checkpoint(step), &bytes[..bytes.len() - 100]).unwrap();
    }
    let (good, bad) = (place.checkpoint(2), place.checkpoint(6));
    let parts = [&format!("{} is whole", good.display())[..], &format!("delete {}", bad.display())];
    error(place.resume(&["--steps", "7"]), 1, &parts);
    error(place.with_model("evaluate", &[]), 1, &parts);
    // The data are not looked at before.
    fs::rename(place.path("data"), place.path("gone")).unwrap();
    error(place.resume(&["--steps", "7"]), 1, &parts);
    fs::rename(place.path("gone"), place.path("data")).unwrap();
    // Naming it works, and so does deleting.
    let mut evaluate = program("evaluate");
    evaluate.arg("--checkpoint").arg(&good).arg("--data").arg(place.data()).args(["--particles", "1"]);
    succeeds(&output(evaluate));
    fs::remove_file(&bad).unwrap();
    error(place.resume(&["--steps", "7"]), 1, &[&format!("delete {}", place.checkpoint(4).display())]);
    fs::remove_file(place.checkpoint(4)).unwrap();
    succeeds(&output(place.resume(&["--steps", "3"])));
}

#[test]
fn a_log_never_stops_the_work() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "2", "--log-every", "1"])));
    let csv = place.path("run/metrics.csv");
    let text = fs::read_to_string(&csv).unwrap();
    let mut step = 2;
    let with_blanks = format!("\u{feff}{}\r\n", text.replace('\n', "\r\n\r\n"));
    for damaged in [with_blanks, format!("{text}9,1"), format!("{text}a note\n"), String::new(), "a,b\n1,2\n".into()] {
        step += 1;
        fs::write(&csv, damaged).unwrap();
        succeeds(&output(place.resume(&["--steps", &step.to_string()])));
        let last = fs::read_to_string(&csv).unwrap().lines().last().unwrap().to_owned();
        assert!(last.starts_with(&format!("{step},")), "{last}");
    }
    // Pictures that cannot be written are told once, and training goes on.
    fs::remove_dir_all(place.path("run/history")).unwrap();
    fs::write(place.path("run/history"), "a file").unwrap();
    let said = succeeds(&output(place.resume(&["--steps", "20", "--picture-every", "2"])));
    assert_eq!(said.matches("Training goes on without pictures").count(), 1, "{said}");
    assert!(place.checkpoint(20).exists());
}

// ---- Numbers ------------------------------------------------------------------------------------------------------

fn number(text: &str, name: &str) -> f64 {
    let line = text.lines().rfind(|line| line.trim_start().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.trim_start().strip_prefix(name).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn evaluate_says_what_its_numbers_are_and_writes_them() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "2"])));
    let said = succeeds(&output(place.with_model("evaluate", &["--particles", "8", "--out", "x.json"])));
    assert!(said.contains("45 of 45 test images of idx:") && said.contains("8 drawings of each") && said.contains('±'));
    assert!(number(&said, "ELBO") < number(&said, "IWAE bound"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&fs::read(place.path("x.json")).unwrap()).unwrap();
    for (name, field) in [("ELBO", "elbo"), ("IWAE bound", "bound"), ("log-likelihood", "log_likelihood")] {
        assert!((json[field]["mean"].as_f64().unwrap() - number(&said, name)).abs() < 0.051);
        assert!(json[field]["standard_error"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(
        (json["images"].as_u64(), json["particles"].as_u64(), json["seed"].as_u64()),
        (Some(45), Some(8), Some(0))
    );
    // A row per image, with the same mean; from everywhere in the set.
    succeeds(&output(place.with_model("evaluate", &["--particles", "8", "--out", "x.csv"])));
    let csv = fs::read_to_string(place.path("x.csv")).unwrap();
    let column = |name: &str| -> Vec<f64> {
        let at = csv.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
        csv.lines().skip(1).map(|row| row.split(',').nth(at).unwrap().parse().unwrap()).collect()
    };
    let elbo = column("elbo");
    assert_eq!(elbo.len(), 45);
    assert!((elbo.iter().sum::<f64>() / 45.0 - json["elbo"]["mean"].as_f64().unwrap()).abs() < 1e-9);
    assert!(elbo.iter().zip(column("bound")).all(|(elbo, bound)| *elbo <= bound));
    assert_eq!(names(&place.path("run")).iter().filter(|name| name.ends_with(".json")).count(), 0);
    let some =
        succeeds(&output(place.with_model("evaluate", &["--count", "9", "--split", "train", "--particles", "1"])));
    assert!(some.contains("9 of 12 training images") && !some.contains("IWAE"), "{some}");
    // The rows of a run have columns of the test set, and where it was not measured nothing.
    let metrics = fs::read_to_string(place.path("run/metrics.csv")).unwrap();
    assert!(metrics.lines().next().unwrap().ends_with(",test_elbo,test_log_likelihood,test_strokes"));
    assert!(metrics.lines().nth(1).unwrap().ends_with(",,,") && !metrics.lines().last().unwrap().ends_with(','));
}

#[test]
fn the_best_of_several_drawings_is_not_called_a_bound() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "2"])));
    let draw = |particles: &str| {
        let more = ["--count", "45", "--particles", particles, "--iwae", "400"];
        let said = succeeds(&output(place.with_model("reconstruct", &more)));
        let shown = said.split("the drawings that are shown").nth(1).unwrap().split("all ").next().unwrap().to_owned();
        let all = said.split("drawings of each").nth(1).unwrap().to_owned();
        (number(&shown, "log-likelihood"), number(&all, "ELBO"), number(&said, "IWAE bound"))
    };
    let ((one_shown, one, bound), (best_shown, twenty, _)) = (draw("1"), draw("20"));
    assert!(best_shown > one_shown, "the best of 20 is better than the first");
    assert!(one < bound && twenty < bound, "ELBO {one} and {twenty}, bound {bound}");
}

#[test]
fn many_drawings_come_on_pages_and_pictures_are_optional() {
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "1"])));
    succeeds(&output(place.with_model("reconstruct", &["--count", "45", "--particles", "1", "--out", "x.json"])));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(place.path("x.json")).unwrap()).unwrap();
    assert_eq!((json["format"].as_str(), json["drawings"].as_array().unwrap().len()), (Some("dood-drawings"), 45));
    let stroke = &json["drawings"][0]["strokes"][0];
    assert_eq!(stroke["points"].as_array().unwrap().len(), 4);
    assert!(names(place.0.path()).iter().all(|name| !name.contains("png") && !name.contains("svg")));
    let said =
        succeeds(&output(place.with_model("reconstruct", &["--count", "45", "--particles", "1", "--out", "a b.png"])));
    for page in ["a b-01.png", "a b-02.png", "a b-03.png"] {
        let (width, height) = image::image_dimensions(place.path(page)).unwrap();
        assert!(width < 2_000 && height < 4_000, "{page} has {width}x{height} pixels");
        assert!(said.contains(&format!("'{page}'")), "{said}");
    }
    assert!(place.path("a b.svg").exists() && !place.path("a b.png").exists());
}

#[test]
fn every_model_of_the_paper_is_trained_drawn_and_measured() {
    for (model, title) in [("dair", "Difference-AIR"), ("sp", "DooD-SP"), ("dr", "DooD-δR")] {
        let place = Place::new();
        let said = succeeds(&output(place.train(&["--steps", "2", "--model", model])));
        assert!(said.contains(&format!("{title} on idx")), "{said}");
        succeeds(&output(place.with_model("reconstruct", &["--count", "3", "--particles", "2"])));
        let said =
            succeeds(&output(place.with_model("evaluate", &["--count", "3", "--particles", "2", "--refine", "2"])));
        assert!(said.contains("after 2 updates for it"), "{said}");
        error(place.resume(&["--steps", "3", "--model", "eg"]), 2, &[&format!("variant eg instead of {model}")]);
        succeeds(&output(place.resume(&["--steps", "3"])));
    }
    error(Place::new().train(&["--model", "vae"]), 2, &["vae", "dood", "air"]);
    // It cannot draw by itself, which is said before anything is read.
    let place = Place::new();
    succeeds(&output(place.train(&["--steps", "1", "--model", "eg"])));
    fs::remove_dir_all(place.path("data")).unwrap();
    let mut generate = program("generate");
    generate.arg("--checkpoint").arg(place.path("run")).args(["--out", "x"]).current_dir(place.0.path());
    error(generate, 2, &["the model eg cannot draw without an image"]);
}

// ---- Sizes from a file --------------------------------------------------------------------------------------------

#[test]
fn every_size_and_setting_can_come_from_a_file_and_be_printed() {
    let place = Place::new();
    let print = |more: &[&str]| {
        let output = output(place.train(&[&["--print-config"], more].concat()));
        succeeds(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    let config = print(&["--seed", "11"]);
    assert!(!place.path("run").exists(), "printing begins nothing");
    for line in ["hidden = 16", "image = 12", "batch = 2", "seed = 11", "points = 4", "preset = \"quick\""] {
        assert!(config.contains(line), "{line} is not in {config}");
    }
    // What is printed is what is read.
    fs::write(
        place.path("tiny.toml"),
        config.replace("log_every = 10", "log_every = 1").replace("steps = 4000", "steps = 4"),
    )
    .unwrap();
    let again = print(&[]);
    assert_eq!(again, config.replace("log_every = 10", "log_every = 1").replace("steps = 4000", "steps = 4"));
    // The command line has precedence.
    assert!(print(&["--steps", "3"]).contains("steps = 3\n"));
    succeeds(&output(place.train(&["--steps", "3"])));
    assert_eq!(rows(&place.path("run")), 3);
    // A resumed run shows its own, and takes what may change.
    let file = place.path("tiny.toml");
    let file = file.to_str().unwrap();
    let shown = String::from_utf8(output(place.resume(&["--steps", "9", "--print-config"])).stdout).unwrap();
    assert!(shown.contains("hidden = 16") && shown.contains("steps = 9") && shown.contains("images = 12"), "{shown}");
    succeeds(&output(place.resume(&["--config", file])));
    assert!(place.checkpoint(4).exists());
    fs::write(file, "[model]\nhidden = 17\n[run]\nseed = 1\nsteps = 8\n").unwrap();
    error(place.resume(&["--config", file]), 2, &["hidden 17 instead of 16", "seed 1 instead of 11"]);
    for (text, parts) in [
        ("[model]\nhiden = 3\n", &["no hiden in the table [model]", "hidden"][..]),
        ("[run]\nsteps = \"many\"\n", &["steps in the table [run]", "many"]),
        ("[run]\nsteps = -1\n", &["steps", "-1"]),
        ("[run]\nrates = [0.1]\n", &["rates"]),
        ("[run]\nrates = [0.1, nan, 0.1, 0.1]\n", &["rates"]),
        ("[model]\nstrokes = 0\n", &["strokes is 0"]),
        ("[other]\n", &["other", "line 1"]),
        ("[model]\nimage = \n", &["line 2"]),
        ("[run]\ndata = \"cifar\"\n", &["cifar"]),
        ("[run]\nlog_every = 0\n", &["interval"]),
        ("\u{0}", &["line 1"]),
    ] {
        fs::write(file, text).unwrap();
        let mut command = program("train");
        command.args(["--config", file, "--out"]).arg(place.path("never"));
        error(command, 2, parts);
    }
    fs::write(file, b"[model]\n# \xff").unwrap();
    error(place.train(&[]), 2, &["not a text file"]);
    fs::remove_file(place.path("tiny.toml")).unwrap();
    error(place.train(&[]), 1, &["cannot read", "tiny.toml"]);
    fs::write(place.path("tiny.toml"), TINY).unwrap();
    assert!(!place.path("never").exists());
    let said = output(place.train(&["--print-config", "--seed", "18446744073709551615", "--out", "x"]));
    assert!(!String::from_utf8_lossy(&said.stderr).contains("panicked"));
}
