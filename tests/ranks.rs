//! Several GPUs make one run: as many ranks as one likes come to the parameters of one alone, and one that is lost ends all of them. On the
//! stand-ins for the driver and for NCCL, in processes.
#![cfg(all(unix, feature = "cuda"))]

mod common;
#[path = "common/stand_in.rs"]
mod stand_in;

use common::{
    Recipe,
    programs::{Running, TINY, idx, names, program, refused, rows, succeeds, until},
    tiny,
};
use dood::{
    DType, Device, MathMode,
    checkpoint::Checkpoint,
    data::{Source, synthetic},
    model::Config,
    observer::Silent,
    ops::Placement,
    ranks::{Place, Ranks},
    train::{Preset, Settings, Trainer},
};
use serde_json::json;
use std::{
    env, fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Updates of the comparisons.
const UPDATES: usize = 20;

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

/// The stand-in to oneself, and its folder.
fn prepare() -> Option<(stand_in::Alone, PathBuf)> {
    let alone = stand_in::alone();
    if let Err(why) = stand_in::install_stand_in() {
        println!("{why}");
        return None;
    }
    // SAFETY: the other tests of this binary wait for `alone`.
    unsafe { env::set_var("DOOD_CACHE", kernels()) };
    Some((alone, stand_in::folder().unwrap().to_owned()))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The variables of rank `rank`, as torchrun sets them.
fn place(command: &mut Command, rank: usize, count: usize, port: u16) {
    let variables = [("RANK", rank), ("WORLD_SIZE", count), ("LOCAL_RANK", rank), ("MASTER_PORT", port.into())];
    for (name, value) in variables {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "127.0.0.1").env("STAND_IN_DEVICES", "4").env("DOOD_CACHE", kernels());
}

// ---- What several come to is what one comes to ---------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    placement: Placement,
}

const CASES: [Case; 4] = [
    Case { dtype: DType::F64, placement: Placement::Warp },
    Case { dtype: DType::F64, placement: Placement::Points },
    Case { dtype: DType::F32, placement: Placement::Warp },
    Case { dtype: DType::F32, placement: Placement::Points },
];

/// Batches of 7, and of 3 at the end of an epoch: they do not divide among two or four. With points the decision to stop is averaged over,
/// with warp it is sampled, so its statistics go over all GPUs.
fn trainer(case: Case, ordinal: usize) -> Trainer {
    let device = Device::cuda(ordinal, case.dtype, MathMode::F32).unwrap_or_else(|e| panic!("{e}"));
    device.prepare(&Silent);
    let recipe = if case.placement == Placement::Points { Recipe::Hour } else { Recipe::Published };
    let settings = Settings { batch: 7, seed: 3, rates: [1e-3; 4], ..Preset::Quick.settings(&Source::Synthetic) };
    let (config, settings) = recipe.apply(tiny(case.placement), settings);
    let config = Config {
        image: 12,
        view: config.view.map(|_| 6),
        features: 8,
        hidden: 8,
        baseline_hidden: 8,
        strokes: 2,
        ..config
    };
    Trainer::new(&config, settings, synthetic::draw(24, 12, 5), &device).unwrap_or_else(|e| panic!("{e}"))
}

/// Parameters after the updates, and the numbers reported on the way.
fn train(trainer: &mut Trainer) -> (Vec<f64>, Vec<f64>) {
    let mut reported = vec![];
    while trainer.updates() < UPDATES as u64 {
        let most = (UPDATES - trainer.updates() as usize).min(8);
        let reports = trainer.run_steps(most).unwrap_or_else(|e| panic!("{e}"));
        reported.extend(reports.iter().flat_map(|report| report.values().map(f64::from)));
    }
    assert_eq!(trainer.take_notes(), [""; 0], "a step that is not captured as it should be");
    assert!(trainer.graph().is_some() && reported.iter().all(|x| x.is_finite()));
    (trainer.params().slab().to_f64(), reported)
}

#[test]
#[ignore = "run by the other tests in a process of its own"]
fn a_rank() {
    let Ok(out) = env::var("DOOD_TEST_OUT") else { return println!("skipped: nothing was asked for") };
    let Some((_alone, _)) = prepare() else { return };
    stand_in::set("devices", "4");
    stand_in::install_nccl();
    stand_in::set_order(&env::var("STAND_IN_ORDER").unwrap_or("forward".into()));
    let case = CASES[env::var("DOOD_TEST_CASE").unwrap().parse::<usize>().unwrap()];
    let place = Place::from_environment().unwrap().unwrap();
    let mut trainer = trainer(case, place.local);
    let ranks = Ranks::meet(place, &json!({}), |why| panic!("{why}")).unwrap_or_else(|e| panic!("{e}"));
    let ranks = Arc::new(ranks);
    if ranks.rank() != 0 {
        // It is given those of rank 0.
        let id = trainer.params().find("pen.linear0.bias").unwrap();
        let n = trainer.params().get(id).len();
        trainer.params_mut().set(id, &vec![0.25; n]);
    }
    trainer.join(&ranks).unwrap_or_else(|e| panic!("{e}"));
    let (parameters, reported) = train(&mut trainer);
    trainer.part();
    let bytes: Vec<u8> = parameters.iter().chain(&reported).flat_map(|x| x.to_le_bytes()).collect();
    fs::write(Path::new(&out).join(ranks.rank().to_string()), bytes).unwrap();
}

/// What each of `count` ranks has written in a case.
fn of_ranks(case: usize, count: usize) -> Vec<Vec<f64>> {
    let out = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |rank: usize| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "a_rank", "--ignored", "--nocapture"]).env("DOOD_TEST_OUT", out.path());
        // Kernels that do not wait for each other run in another order on each.
        command.env("STAND_IN_ORDER", ["forward", "reverse", "random:3", "random:4"][rank]);
        command.env("DOOD_TEST_CASE", case.to_string());
        place(&mut command, rank, count, port);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    let mut all: Vec<Running> = (0..count).map(start).collect();
    for running in &mut all {
        let status = running.end();
        let mut said = String::new();
        running.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.success(), "{said}");
    }
    let numbers = |rank: usize| -> Vec<f64> {
        let bytes = fs::read(out.path().join(rank.to_string())).unwrap();
        bytes.chunks(8).map(|x| f64::from_le_bytes(x.try_into().unwrap())).collect()
    };
    (0..count).map(numbers).collect()
}

/// The largest difference, as a part of each number that is not small.
fn off(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0f64, |m, (a, b)| m.max((a - b).abs() / b.abs().max(0.1)))
}

/// Holds that so many ranks come to what one comes to.
fn compare(case: usize, counts: &[usize]) {
    let Case { dtype, placement } = CASES[case];
    let mut alone = trainer(CASES[case], 0);
    let (parameters, reported) = train(&mut alone);
    let limit = if dtype == DType::F64 { 1e-9 } else { 2e-3 };
    for &count in counts {
        let ranks = of_ranks(case, count);
        let (mine, reports) = ranks[0].split_at(parameters.len());
        let (parameters_off, reports_off) = (off(mine, &parameters), off(reports, &reported));
        println!("{count} ranks, {dtype:?}, {placement:?}: {parameters_off:.1e}, reports {reports_off:.1e}");
        // Reports are in single precision.
        assert!(parameters_off < limit && reports_off < limit.max(1e-6), "{count} ranks, {dtype:?}, {placement:?}");
        // All ranks have the same, to the last bit.
        assert!(ranks.iter().all(|other| other[..mine.len()] == *mine), "{count} ranks, {dtype:?}, {placement:?}");
    }
}

#[test]
fn several_ranks_come_to_the_parameters_of_one() {
    let Some((_alone, _)) = prepare() else { return };
    compare(0, &[4]);
    compare(1, &[2]);
}

#[test]
#[ignore = "takes minutes"]
fn several_ranks_come_to_the_parameters_of_one_in_all_cases() {
    let Some((_alone, _)) = prepare() else { return };
    (0..CASES.len()).for_each(|case| compare(case, &[2, 3, 4]));
}

#[test]
fn the_same_number_of_ranks_comes_to_the_same_bits() {
    let Some((_alone, _)) = prepare() else { return };
    assert!(of_ranks(2, 2) == of_ranks(2, 2));
}

// ---- The program ---------------------------------------------------------------------------------------------------

struct Runs {
    _alone: stand_in::Alone,
    libraries: PathBuf,
    folder: tempfile::TempDir,
    data: String,
}

fn runs() -> Option<Runs> {
    let (_alone, libraries) = prepare()?;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiny.toml"), TINY).unwrap();
    let data = idx(&folder.path().join("data"));
    Some(Runs { _alone, libraries, folder, data })
}

impl Runs {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train(&self, out: &str) -> Command {
        let mut command = program("train");
        command
            .args(["--math", "f32", "--iwae", "0", "--log-every", "1", "--threads", "1", "--out"])
            .arg(self.path(out));
        command.env("LD_LIBRARY_PATH", &self.libraries).env("STAND_IN_DEVICES", "4").env("STAND_IN_QUIET", "1");
        command.env("DOOD_CACHE", kernels()).env("DOOD_RANKS_PATIENCE", "3");
        command
    }

    fn fresh(&self, out: &str, steps: u64) -> Command {
        self.with_batch(out, steps, 5)
    }

    fn with_batch(&self, out: &str, steps: u64, batch: usize) -> Command {
        let mut command = self.train(out);
        command.args(["--data", &self.data, "--config"]).arg(self.path("tiny.toml"));
        command.args([
            "--batch",
            &batch.to_string(),
            "--picture-every",
            "1000",
            "--checkpoint-every",
            "4",
            "--steps",
            &steps.to_string(),
        ]);
        command
    }

    fn resumed(&self, out: &str, steps: u64) -> Command {
        let mut command = self.train(out);
        command.args(["--resume", "--steps", &steps.to_string()]);
        command
    }

    fn checkpoint(&self, out: &str, step: u64) -> Vec<f64> {
        let path = self.path(out).join(format!("checkpoint-{step:08}.safetensors"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let checkpoint = Checkpoint::parse(&bytes, "the checkpoint").unwrap();
        checkpoint.check_all().unwrap();
        checkpoint.model(&Device::cpu()).unwrap().1.slab().to_f64()
    }

    fn newest(&self, out: &str) -> Option<u64> {
        let step = |name: &String| name.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?.parse().ok();
        let folder = self.path(out);
        if folder.exists() { names(&folder).iter().filter_map(step).max() } else { None }
    }
}

/// Starts a command whose ranks all hold one end of a pipe: what they say has ended when the last of them has.
fn start(mut command: Command) -> (Running, std::thread::JoinHandle<String>) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let said = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    (Running(child), said)
}

/// The processes that a rank 0 has started.
fn children(child: &Child) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: the process is one that this test has started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn the_program_trains_on_several_gpus_and_goes_on_with_another_number() {
    let Some(runs) = runs() else { return };
    let gpus = |mut command: Command, count: &str| -> Output { command.args(["--gpus", count]).output().unwrap() };
    succeeds(&gpus(runs.fresh("one", 8), "1"));
    let said = succeeds(&gpus(runs.fresh("three", 8), "3"));
    assert!(said.contains("3 times cuda (a stand-in GPU"), "{said}");
    assert!(off(&runs.checkpoint("three", 8), &runs.checkpoint("one", 8)) < 2e-3);
    // Only one of them writes.
    assert_eq!(rows(&runs.path("three")), 8);
    assert_eq!(names(&runs.path("three")).len(), names(&runs.path("one")).len());
    // On with other numbers: one that never stopped comes to the same.
    succeeds(&gpus(runs.resumed("three", 14), "2"));
    succeeds(&gpus(runs.resumed("one", 14), "1"));
    assert!(off(&runs.checkpoint("three", 14), &runs.checkpoint("one", 14)) < 2e-3);

    let output = gpus(runs.fresh("five", 8), "5");
    refused(&output, 2, &["--gpus 5 is more than this machine has", "4 can be seen"]);
    let mut command = runs.fresh("cpu", 8);
    refused(
        &command.args(["--gpus", "2", "--device", "cpu"]).output().unwrap(),
        2,
        &["every rank takes a GPU of its own"],
    );
    let mut command = runs.fresh("twice", 8);
    command.args(["--gpus", "2"]);
    place(&mut command, 0, 2, free_port());
    refused(&command.output().unwrap(), 2, &["--gpus 2 would start ranks", "one of 2"]);
    // Without NCCL there is a sentence: what is found first is none.
    let bare = runs.path("bare");
    fs::create_dir(&bare).unwrap();
    ["libnccl.so.2", "libnccl.so"].iter().for_each(|name| fs::write(bare.join(name), "").unwrap());
    let path = format!("{}:{}", bare.display(), runs.libraries.display());
    let mut command = runs.fresh("bare-run", 8);
    let output = command.args(["--gpus", "2"]).env("LD_LIBRARY_PATH", path).output().unwrap();
    refused(&output, 1, &["NCCL was not found", "pip install nvidia-nccl-cu13"]);
    for never in ["five", "cpu", "twice", "bare-run"] {
        assert!(!runs.path(never).exists(), "{never} was left behind");
    }
}

#[test]
fn ranks_that_differ_are_refused_by_name() {
    let Some(runs) = runs() else { return };
    let port = free_port();
    // Something else is at the port.
    let taken = TcpListener::bind(("127.0.0.1", port));
    let mut all = vec![];
    for (rank, batch) in [(0, 5), (1, 4)] {
        let mut command = runs.with_batch("differ", 8, batch);
        place(&mut command, rank, 2, port);
        all.push(start(command));
    }
    for (mut running, said) in all {
        assert_eq!(running.end().code(), Some(1));
        let said = said.join().unwrap();
        assert!(said.contains("rank 1 (host ") && said.contains("batch 4 instead of 5"), "{said}");
    }
    drop(taken);
    assert!(!runs.path("differ").exists());
}

/// Kills or stops a rank of a run at a moment, and holds that all end in time, with a word, and that the run can be gone on with.
/// Returns what was said.
fn lose(
    runs: &Runs,
    out: &str,
    ranks: usize,
    fault: Option<&str>,
    act: impl FnOnce(&Running),
    named: &[&str],
) -> String {
    let mut command = runs.fresh(out, 100_000);
    command.args(["--gpus", &ranks.to_string()]);
    if let Some(fault) = fault {
        command.env("STAND_IN_NCCL_FAULT", fault);
    }
    let (mut running, said) = start(command);
    act(&running);
    let began = SystemTime::now();
    let status = running.end();
    let said = said.join().unwrap();
    // Since the last update that was made, if there was one.
    let last = fs::metadata(runs.path(out).join("metrics.csv")).and_then(|file| file.modified());
    let took = last.map_or(began, |last| last.max(began)).elapsed().unwrap_or_default();
    println!("{out}: all ended after {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(30), "{said}");
    assert!(!status.success());
    named.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not in: {said}"));
    assert!(!said.contains("panicked"), "{said}");
    if let Some(step) = runs.newest(out) {
        runs.checkpoint(out, step);
    }
    said
}

/// Holds that a run that was lost comes to what one comes to that never stopped.
fn goes_on(runs: &Runs, out: &str) {
    if let Some(step) = runs.newest(out) {
        succeeds(&runs.resumed(out, step + 4).args(["--gpus", "1"]).output().unwrap());
        let name = format!("{out}-whole");
        succeeds(&runs.fresh(&name, step + 4).args(["--gpus", "1"]).output().unwrap());
        assert!(off(&runs.checkpoint(out, step + 4), &runs.checkpoint(&name, step + 4)) < 2e-3);
    }
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_can_be_gone_on_with() {
    let Some(runs) = runs() else { return };
    let after = |count: usize| {
        let folder = runs.path("lost-0");
        move |running: &Running| {
            until("some updates", || (rows(&folder) >= count).then_some(()));
            signal(running.0.id() as i32, libc::SIGKILL);
        }
    };
    // Rank 0, from outside: nobody is left to say it but the others.
    lose(&runs, "lost-0", 3, None, after(6), &["rank 0 (host ", "is gone since step"]);
    // In its first collective, in the middle, and between two.
    let named = ["rank 1 (host ", "is gone since step", "checkpoint"];
    lose(&runs, "lost-1", 2, Some("kill:1:2"), |_| (), &named[..2]);
    lose(&runs, "lost-2", 2, Some("kill:1:17"), |_| (), &named);
    goes_on(&runs, "lost-2");
    let folder = runs.path("lost-3");
    let between = |running: &Running| {
        until("some updates", || (rows(&folder) >= 7).then_some(()));
        signal(children(&running.0)[1], libc::SIGKILL);
    };
    lose(&runs, "lost-3", 3, None, between, &["rank 2 (host "]);
}

/// The same at many moments.
#[test]
#[ignore = "takes minutes"]
fn a_rank_that_is_killed_at_any_moment_ends_all() {
    let Some(runs) = runs() else { return };
    for moment in 0..20 {
        let (rank, number) = (moment % 3, 1 + 7 * moment);
        let name = format!("moment-{moment}");
        let named = format!("rank {rank} (host ");
        lose(&runs, &name, 3, Some(&format!("kill:{rank}:{number}")), |_| (), &[&named]);
        goes_on(&runs, &name);
    }
}

#[test]
fn a_rank_that_hangs_or_stops_is_found_by_its_silence() {
    let Some(runs) = runs() else { return };
    let folder = runs.path("stopped");
    let mut stopped = 0;
    let stop = |running: &Running| {
        until("some updates", || (rows(&folder) >= 6).then_some(()));
        stopped = children(&running.0)[0];
        signal(stopped, libc::SIGSTOP);
    };
    // Its silence is noticed, or before that the GPU of rank 0, which waits for it.
    let said = lose(&runs, "stopped", 2, None, stop, &["rank 1 (host "]);
    assert!(
        ["has said nothing for 3 s", "have not come to the end of step"].iter().any(|part| said.contains(part)),
        "{said}"
    );
    lose(&runs, "size", 2, Some("size:1:9"), |_| (), &["NCCL failed", "invalid argument"]);
    lose(&runs, "error", 2, Some("error:1:9"), |_| (), &["rank 1 (host ", "NCCL failed", "system error"]);
}

#[test]
#[ignore = "waits for half a minute"]
fn a_gpu_that_does_not_come_to_an_end_is_given_up() {
    let Some(runs) = runs() else { return };
    lose(&runs, "hangs", 2, Some("hang:1:16"), |_| (), &["the GPUs have not come to the end of step"]);
}

#[test]
fn a_signal_to_any_rank_saves_and_ends_all() {
    let Some(runs) = runs() else { return };
    for (out, which, number) in [("first", 0, libc::SIGTERM), ("other", 1, libc::SIGUSR1)] {
        let mut command = runs.fresh(out, 100_000);
        // One that comes late is waited for.
        let (mut running, said) = start({
            command.args(["--gpus", "2"]).env("STAND_IN_NCCL_FAULT", "late:1:9");
            command
        });
        until("some updates", || (rows(&runs.path(out)) >= 5).then_some(()));
        signal(if which == 0 { running.0.id() as i32 } else { children(&running.0)[0] }, number);
        let status = running.end();
        let said = said.join().unwrap();
        assert_eq!(status.code(), Some(130), "{said}");
        assert!(!said.contains("error"), "{said}");
        let step = runs.newest(out).unwrap();
        runs.checkpoint(out, step);
        assert_eq!(rows(&runs.path(out)) as u64, step, "the checkpoint is that of the last update");
    }
}
