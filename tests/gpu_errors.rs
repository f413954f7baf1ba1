//! What can go wrong with a GPU is one clear sentence: a missing driver, card or compiler, one that is too old, memory that runs out, a
//! kernel that fails, a damaged cache. Planted on the stand-in, also where there is a real GPU.
#![cfg(all(unix, feature = "cuda"))]

#[path = "common/stand_in.rs"]
mod stand_in;

use dood::{
    DType, Device, Error, MathMode, Observer, Slot, Tape, Tensor, Var,
    observer::{Silent, Unit},
    ops::{Cost, Op},
    rng::{Rng, Stream},
};
use sha2::{Digest, Sha256};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

const MIB: usize = 1 << 20;

/// The stand-in to oneself, and a kernel cache in `folder`; `None`, after a line that says why, where there is no stand-in.
fn prepare(folder: &Path) -> Option<stand_in::Alone> {
    let alone = stand_in::alone();
    if let Err(why) = stand_in::install_stand_in() {
        println!("{why}");
        return None;
    }
    stand_in::set("quiet", "1");
    // SAFETY: the other tests of this binary wait for `alone`.
    unsafe { env::set_var("DOOD_CACHE", folder) };
    Some(alone)
}

/// Kernels that all tests but those of the cache share.
fn shared_cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

fn open(ordinal: usize) -> dood::Result<Device> {
    Device::cuda(ordinal, DType::F32, MathMode::F32)
}

fn cuda() -> Device {
    open(0).unwrap_or_else(|e| panic!("{e}"))
}

/// Holds that opening a device fails with one sentence that has all `parts`.
#[track_caller]
fn refused(opened: dood::Result<Device>, parts: &[&str]) {
    let error = opened.expect_err("a device that cannot be used");
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    says(&error.to_string(), parts);
}

#[track_caller]
fn says(sentence: &str, parts: &[&str]) {
    println!("{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "`{sentence}` does not say `{part}`");
    }
    assert!(!sentence.contains('\n'), "more than one line: {sentence}");
}

/// Kernels run, and run right.
#[track_caller]
fn works(device: &Device) {
    let y = Tensor::full(device, &[1000], 2.5).to_f32();
    device.check().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(y, vec![2.5; 1000]);
}

// ---- What is missing -----------------------------------------------------------------------------------------------

/// What a process says that sees the given part of an installation only. In this process the stand-in is loaded already.
fn in_another_process(sees: &str) -> String {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--ignored", "--nocapture"])
        .env("DOOD_TEST_SEES", sees)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
#[ignore = "run by the other tests in a process of its own"]
fn the_other_process() {
    let present = |names: &[&str]| {
        // SAFETY: NVIDIA's libraries do nothing when they are opened.
        names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
    };
    let (parts, auto) = match env::var("DOOD_TEST_SEES").as_deref() {
        Ok("nothing") if present(&["libcuda.so", "libcuda.so.1"]) => {
            return println!("skipped: this machine has a driver");
        }
        Ok("nothing") => (["there is no NVIDIA driver on this machine", "libcuda.so.1"], "cpu"),
        Ok("driver") if present(&["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]) => {
            return println!("skipped: this machine has NVRTC");
        }
        Ok("driver") => {
            if let Err(why) = stand_in::install_driver_only() {
                return println!("{why}");
            }
            (["the CUDA compiler NVRTC was not found", "pip install nvidia-cuda-nvrtc"], "cpu")
        }
        _ => return println!("skipped: nothing was asked for"),
    };
    refused(open(0), &["device cuda cannot be used: ", parts[0], parts[1], "--device cpu runs everything"]);
    assert_eq!(Device::from_name("auto", MathMode::F32).unwrap().to_string(), auto);
    println!("held");
}

#[test]
fn without_a_driver_the_sentence_says_so_and_auto_is_the_cpu() {
    let said = in_another_process("nothing");
    assert!(said.contains("held") || said.contains("skipped: this machine has a driver"), "{said}");
    print!("{said}");
}

#[test]
fn without_the_compiler_the_sentence_says_how_to_get_it_and_auto_is_the_cpu() {
    let said = in_another_process("driver");
    assert!(said.contains("held") || said.contains("skipped: "), "{said}");
    print!("{said}");
}

#[test]
fn an_old_driver_is_refused_with_its_version() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("driver_version", "11040");
    let parts =
        ["the NVIDIA driver is too old: it supports CUDA 11.4, and 12.0 or newer is needed", "update the driver"];
    refused(open(0), &parts);
    assert_eq!(Device::from_name("auto", MathMode::F32).unwrap(), Device::cpu());
}

#[test]
fn a_driver_older_than_the_compiler_is_refused_with_both_versions() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("driver_version", "12020");
    let parts = ["it supports CUDA 12.2, the compiler is NVRTC 13.0", "update the driver, or install NVRTC 12"];
    refused(open(0), &parts);
    assert_eq!(Device::from_name("auto", MathMode::F32).unwrap(), Device::cpu());
}

#[test]
fn no_gpu_and_one_that_is_not_there_are_told_apart() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    refused(open(7), &["there is no GPU number 7: this machine has 1, counted from 0"]);
    refused(Device::from_name("cuda:7", MathMode::F32), &["there is no GPU number 7"]);
    stand_in::set("devices", "0");
    refused(open(0), &["the NVIDIA driver finds no GPU", "CUDA_VISIBLE_DEVICES"]);
    refused(Device::from_name("cuda", MathMode::F32), &["the NVIDIA driver finds no GPU"]);
    assert_eq!(Device::from_name("auto", MathMode::F32).unwrap(), Device::cpu());
}

/// Keeps what an observer is told.
#[derive(Default)]
struct Told {
    notes: Mutex<Vec<String>>,
    /// Name and size of each task, and how far it came.
    tasks: Mutex<Vec<(String, Option<u64>, u64)>>,
}

impl Observer for Told {
    fn begin(&self, task: &str, total: Option<u64>, _: Unit) {
        self.tasks.lock().unwrap().push((task.into(), total, 0));
    }
    fn advance(&self, units: u64) {
        self.tasks.lock().unwrap().last_mut().unwrap().2 += units;
    }
    fn note(&self, sentence: &str) {
        self.notes.lock().unwrap().push(sentence.into());
    }
}

#[test]
fn a_driver_that_does_not_start_says_why_and_auto_tells_it_and_takes_the_cpu() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    for (code, said, help) in [
        (802, "system not yet initialized", "nvidia-fabricmanager"),
        (803, "unsupported display driver / cuda driver combination", "restart the machine"),
        (804, "forward compatibility was attempted", "cuda-compat"),
        (999, "unknown error", "nvidia_uvm"),
        (34, "stub library", "take its folder `stubs` out of LD_LIBRARY_PATH"),
        (46, "busy or unavailable", "another process"),
        (801, "operation not supported", "see nvidia-smi"),
    ] {
        stand_in::set("init", &code.to_string());
        let number = format!("(error {code}); ");
        let parts =
            ["device cuda cannot be used: the NVIDIA driver does not start: ", said, &number, help, "--device cpu"];
        refused(open(0), &parts);
        let told = Told::default();
        assert_eq!(Device::open("auto", MathMode::F32, &told).unwrap(), Device::cpu());
        let notes = told.notes.into_inner().unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        says(&notes[0], &[said, &number, help, "; this run uses the CPU"]);
        refused(Device::open("cuda", MathMode::F32, &Silent), &parts);
    }
    // Where there is nothing to be used, there is nothing to say.
    stand_in::set("init", "100");
    refused(open(0), &["the NVIDIA driver finds no GPU"]);
    let told = Told::default();
    assert_eq!(Device::open("auto", MathMode::F32, &told).unwrap(), Device::cpu());
    assert!(told.notes.into_inner().unwrap().is_empty());
}

#[test]
fn a_card_that_runs_no_kernel_is_left_for_the_cpu_with_a_line() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("fail_launch", "1");
    let parts =
        ["GPU number 0 (a stand-in GPU, ", "does not run a first kernel", "unspecified launch failure", "--device cpu"];
    refused(open(0), &parts);
    stand_in::set("fail_launch", "1");
    let told = Told::default();
    assert_eq!(Device::open("auto", MathMode::F32, &told).unwrap(), Device::cpu());
    let notes = told.notes.into_inner().unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    says(&notes[0], &["does not run a first kernel", "; this run uses the CPU"]);
    works(&cuda());
}

#[test]
fn a_word_that_is_no_device_is_a_wrong_command() {
    for name in ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""] {
        let error = Device::from_name(name, MathMode::F32).unwrap_err();
        says(&error.to_string(), &[&format!("unknown device {name:?}"), "auto, cpu, cuda or cuda:N"]);
        assert_eq!(error.exit_code(), 2);
    }
    let error = "fp8".parse::<MathMode>().unwrap_err();
    says(&error.to_string(), &["unknown math mode \"fp8\"", "f32, tf32 or bf16"]);
}

#[test]
fn a_card_that_is_too_old_is_refused_by_name() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    for capability in ["6.1", "7.5"] {
        stand_in::set("capability", capability);
        let part = format!("has compute capability {capability}, and 8.0 (Ampere) or newer is needed");
        refused(open(0), &[&part]);
        assert_eq!(Device::from_name("auto", MathMode::F32).unwrap(), Device::cpu());
    }
}

#[test]
fn a_card_newer_than_the_compiler_gets_portable_code() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    for capability in ["8.0", "8.9", "9.0", "10.3", "12.1"] {
        stand_in::set("capability", capability);
        works(&cuda());
    }
}

#[test]
fn auto_takes_the_gpu_where_there_is_one() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    let device = Device::from_name("auto", MathMode::Tf32).unwrap();
    assert_ne!(device, Device::cpu());
    assert!(device.to_string().starts_with("cuda (") && device.to_string().ends_with(", tf32)"), "{device}");
    works(&device);
}

#[test]
fn each_device_is_one_of_its_own() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("devices", "2");
    let (first, second) = (cuda(), open(1).unwrap());
    assert_ne!(first, second);
    works(&first);
    works(&second);
    refused(open(2), &["there is no GPU number 2: this machine has 2"]);
}

// ---- What fails while it works ---------------------------------------------------------------------------------------

/// So many numbers, all equal.
struct Plain(usize);

impl Op for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn forward(&self, cx: &Device, _: &[Tensor]) -> Vec<Tensor> {
        vec![Tensor::full(cx, &[self.0], 1.5)]
    }

    fn backward(&self, _: &Device, _: &[Tensor], _: &[Tensor], _: &Tensor, _: &mut [Option<Slot>]) {}

    fn cost(&self, _: &[Tensor], _: &Tensor) -> Cost {
        Cost { flops: 0.0, bytes: 0.0 }
    }
}

fn plain<'t>(tape: &'t Tape<'t>, bytes: usize) -> Var<'t> {
    tape.apply(Plain(bytes / 4), &[])
}

#[test]
fn running_out_of_memory_names_the_op_and_later_calls_work_again() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    let total = 100 * MIB;
    stand_in::set("memory", &total.to_string());
    let device = cuda();
    for _ in 0..2 {
        let tape = Tape::without_params(&device);
        assert_eq!(plain(&tape, MIB).value().to_f32(), vec![1.5; MIB / 4]);
        let large = plain(&tape, 128 * MIB);
        // What follows is skipped and reads as NaN, until the error is asked for.
        let small = plain(&tape, 4096);
        assert!(large.value().to_f32().iter().chain(&small.value().to_f32()).all(|x| x.is_nan()));
        let error = device.check().unwrap_err();
        let Error::DeviceMemory { op, asked, free, total: all, held, fitting } = error else { panic!("{error}") };
        assert_eq!((op, asked, all, fitting), ("plain", 128 * MIB, total, None));
        assert!(free < total - MIB && held >= MIB && free + held <= total, "{free} free, {held} held");
        says(
            &error.to_string(),
            &["out of GPU memory: the op plain asked for 128.0 MiB more", "of 100.0 MiB are free"],
        );
        assert_eq!(error.exit_code(), 1);
        drop(tape);

        device.check().unwrap();
        works(&device);
        let tape = Tape::without_params(&device);
        assert_eq!(plain(&tape, 4096).value().to_f32(), vec![1.5; 1024]);
        device.check().unwrap();
    }
}

#[test]
fn memory_outside_a_step_can_run_out_too() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("memory", &(64 * MIB).to_string());
    let device = cuda();
    for _ in 0..2 {
        let x = Rng::new(1, 0).normal_tensor(&device, Stream(0), &[32 * MIB]);
        assert!(matches!(device.check(), Err(Error::DeviceMemory { asked, .. }) if asked == 128 * MIB));
        drop(x);
        let x = Tensor::zeros(&device, &[32 * MIB]);
        assert!(matches!(device.check(), Err(Error::DeviceMemory { .. })));
        drop(x);
        works(&device);
    }
    // Memory is given back: 20 times 12 MiB would not fit at once.
    for _ in 0..20 {
        assert_eq!(Tensor::zeros(&device, &[3 * MIB]).len(), 3 * MIB);
        device.check().unwrap();
    }
}

#[test]
fn a_launch_that_fails_names_the_kernel_and_its_grid() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    let device = cuda();
    works(&device);
    let tape = Tape::without_params(&device);
    stand_in::set("fail_launch", "1");
    let y = plain(&tape, 4000);
    let error = device.check().unwrap_err();
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    let parts = ["kernel fill on 4x1x1 blocks of 256 threads", "op plain", "CUDA_ERROR_LAUNCH_FAILED"];
    says(&error.to_string(), &parts);
    assert_eq!(y.value().len(), 1000);
    works(&device);
}

#[test]
fn the_first_error_is_the_one_that_is_told() {
    let Some(_alone) = prepare(&shared_cache()) else { return };
    stand_in::set("memory", &(100 * MIB).to_string());
    let device = cuda();
    let tape = Tape::without_params(&device);
    plain(&tape, 128 * MIB);
    stand_in::set("fail_launch", "1");
    plain(&tape, 4000);
    assert!(matches!(device.check(), Err(Error::DeviceMemory { .. })));
    // The launch that would have failed was skipped, so the next one fails.
    plain(&tape, 4000);
    assert!(matches!(device.check(), Err(Error::Device(_))));
    works(&device);
}

// ---- The cache of compiled kernels -----------------------------------------------------------------------------------

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(listing) = fs::read_dir(folder.join("kernels")) else { return vec![] };
    let mut paths: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_damaged_or_foreign_cache_entry_is_built_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_alone) = prepare(folder.path()) else { return };
    works(&cuda());
    let paths = entries(folder.path());
    assert_eq!(paths.len(), 1, "{paths:?}");
    let good = fs::read(&paths[0]).unwrap();
    assert_eq!(good[..32], Sha256::digest(&good[32..])[..]);

    let foreign = b"machine code of another driver, whole and with the right sum".to_vec();
    let signed = |image: Vec<u8>| [Sha256::digest(&image).to_vec(), image].concat();
    // What the stand-in's compiler makes ends with the folder of the stand-in, which differs from version to version.
    let other_version = [&good[32..good.len() - 2], b"?\n"].concat();
    let flipped: Vec<u8> = good.iter().enumerate().map(|(i, b)| if i == 40 { b ^ 1 } else { *b }).collect();
    for bad in
        [flipped, good[..20].to_vec(), good[..good.len() - 1].to_vec(), vec![], signed(foreign), signed(other_version)]
    {
        fs::write(&paths[0], &bad).unwrap();
        works(&cuda());
        assert_eq!(fs::read(&paths[0]).unwrap(), good, "the entry was not replaced");
    }
    assert_eq!(entries(folder.path()), paths, "something else was left behind");
}

#[test]
fn each_precision_and_architecture_has_its_own_entry() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_alone) = prepare(folder.path()) else { return };
    works(&cuda());
    works(&Device::cuda(0, DType::F64, MathMode::F32).unwrap());
    assert_eq!(entries(folder.path()).len(), 2);
    stand_in::set("capability", "8.0");
    works(&cuda());
    assert_eq!(entries(folder.path()).len(), 3);
    works(&cuda());
    assert_eq!(entries(folder.path()).len(), 3);
}

#[test]
fn a_device_opened_by_name_has_all_its_kernels_compiled() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_alone) = prepare(folder.path()) else { return };
    let (told, all) = (Told::default(), dood::kernels::SOURCES.len());
    let device = Device::open("cuda", MathMode::F32, &told).unwrap();
    let compiled = entries(folder.path());
    assert_eq!(compiled.len(), all);
    // The first one was compiled to see whether the card runs it.
    let rest = all as u64 - 1;
    assert_eq!(*told.tasks.lock().unwrap(), [("Compiling kernels".to_string(), Some(rest), rest)]);
    // Compiled once, there is nothing to wait for and nothing to say.
    Device::open("cuda", MathMode::F32, &told).unwrap();
    assert_eq!(told.tasks.lock().unwrap().len(), 1);
    works(&device);
    assert_eq!(entries(folder.path()), compiled);
}

#[test]
fn a_cache_that_cannot_be_written_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let Some(_alone) = prepare(&file) else { return };
    works(&cuda());
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a folder");
}

#[test]
fn a_kernel_that_does_not_compile_is_a_sentence_with_its_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_alone) = prepare(folder.path()) else { return };
    let kernels = folder.path().join("sources");
    fs::create_dir(&kernels).unwrap();
    fs::write(kernels.join("common.cuh"), "#define KERNEL extern \"C\" __global__ void\n").unwrap();
    fs::write(kernels.join("memory.cu"), "\nKERNEL fill(REAL* y, int n, REAL value) { y[0] = nothing; }\n").unwrap();
    // SAFETY: the other tests of this binary wait for `alone`.
    unsafe { env::set_var("DOOD_KERNELS", &kernels) };
    let opened = open(0);
    // SAFETY: as above.
    unsafe { env::remove_var("DOOD_KERNELS") };
    let error = opened.expect_err("a card that cannot be tried out").to_string();
    // The compiler's own lines follow the sentence.
    assert!(error.contains("does not run a first kernel: kernels/memory.cu does not compile for sm_90a: "), "{error}");
    assert!(error.contains("kernels/memory.cu:2") || error.contains("kernels/memory.cu(2)"), "{error}");
    assert!(error.contains("nothing"), "{error}");
    assert_eq!(entries(folder.path()), [] as [PathBuf; 0], "a failure was kept");
}
