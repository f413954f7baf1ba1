//! The stand-in for a GPU (`tests/stand_in_driver`) under test: right kernels pass, planted faults are found.
#![cfg(all(unix, feature = "cuda"))]

#[path = "common/stand_in.rs"]
mod stand_in;

use std::ffi::{CStr, CString};
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig, PushKernelArg, result, sys,
};
use cudarc::nvrtc::{self, Ptx};

const CORRECT: &str = include_str!("stand_in/correct.cu");
const FAULTY: &str = include_str!("stand_in/faulty.cu");
const ORDERS: [&str; 4] = ["forward", "reverse", "random:1", "random:2"];

struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    _alone: stand_in::Alone,
}

/// `None`, after a line that says why, where there is no C++ compiler.
fn gpu() -> Option<Gpu> {
    let alone = stand_in::alone();
    if let Err(line) = stand_in::install_stand_in() {
        println!("{line}");
        return None;
    }
    stand_in::set("quiet", "1");
    stand_in::reports();
    let context = CudaContext::new(0).unwrap();
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    Some(Gpu { context, stream, _alone: alone })
}

fn compile(source: &str, options: &[&str]) -> Result<Vec<u8>, String> {
    let program = nvrtc::result::create_program(&CString::new(source).unwrap(), Some(c"test.cu")).unwrap();
    let compiled = unsafe { nvrtc::result::compile_program(program, options) };
    let log = unsafe { nvrtc::result::get_program_log(program).unwrap() };
    let log = unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned();
    let mut bytes = 0;
    let mut image = vec![];
    unsafe {
        nvrtc::sys::nvrtcGetCUBINSize(program, &mut bytes).result().unwrap();
        image.resize(bytes, 0);
        nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().unwrap();
        nvrtc::result::destroy_program(program).unwrap();
    }
    compiled.map(|()| image).map_err(|e| format!("{e:?}: {log}"))
}

impl Gpu {
    fn module(&self, source: &str, check: bool) -> Arc<CudaModule> {
        stand_in::set_check(check);
        let image = compile(source, &["--std=c++17", "--gpu-architecture=sm_90"]).unwrap();
        self.context.load_module(Ptx::from_binary(image)).unwrap()
    }

    /// Runs a kernel with one input, one output of poisoned memory and one number.
    fn run(&self, module: &Arc<CudaModule>, kernel: &str, case: &Case) -> Result<Vec<f32>, DriverError> {
        let x = self.stream.clone_htod(&case.x)?;
        let mut out = unsafe { self.stream.alloc::<f32>(case.out) }?;
        let function = module.load_function(kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(&x).arg(&mut out).arg(&case.n);
        unsafe { launch.launch(config(case.grid, case.block, case.shared)) }?;
        self.stream.clone_dtoh(&out)
    }
}

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr(stream).0
}

struct Case {
    x: Vec<f32>,
    out: usize,
    n: i32,
    grid: u32,
    block: u32,
    shared: u32,
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 16.0 - 3.0).collect()
}

// ---- Correct kernels -----------------------------------------------------------------------------------------------

/// Runs `test` with the right kernels in every order, plain and checked, and wants no report.
fn in_all_ways(test: impl Fn(&Gpu, &Arc<CudaModule>)) {
    let Some(gpu) = gpu() else { return };
    for check in [false, true] {
        let module = gpu.module(CORRECT, check);
        for order in ORDERS {
            stand_in::set_order(order);
            let errors = stand_in::errors();
            test(&gpu, &module);
            gpu.stream.synchronize().unwrap();
            assert_eq!(stand_in::errors(), errors, "check {check}, order {order}: {}", stand_in::reports());
        }
    }
}

#[test]
fn block_sums_are_right_in_every_order() {
    in_all_ways(|gpu, module| {
        let case = Case { x: numbers(5 * 777), out: 5, n: 777, grid: 5, block: 256, shared: 0 };
        let sums = gpu.run(module, "row_sums", &case).unwrap();
        for (row, sum) in case.x.chunks(777).zip(&sums) {
            assert!((row.iter().sum::<f32>() - sum).abs() < 1e-2, "{sum}");
        }
    });
}

#[test]
fn vector_loads_and_a_tail_are_right_in_every_order() {
    in_all_ways(|gpu, module| {
        let (n, a) = (1003, 0.5f32);
        let x = gpu.stream.clone_htod(&numbers(n)).unwrap();
        let mut y = gpu.stream.clone_htod(&vec![1f32; n]).unwrap();
        let function = module.load_function("axpy_relu").unwrap();
        let count = n as i32;
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&x).arg(&mut y).arg(&a).arg(&count);
        unsafe { launch.launch(config(2, 128, 0)) }.unwrap();
        let expected: Vec<f32> = numbers(n).iter().map(|x| (a * x + 1.0).max(0.0)).collect();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), expected);
    });
}

#[test]
fn dynamic_shared_memory_is_right_in_every_order() {
    in_all_ways(|gpu, module| {
        let case = Case { x: numbers(384), out: 384, n: 0, grid: 3, block: 128, shared: 512 };
        let x = gpu.stream.clone_htod(&case.x).unwrap();
        let mut out = unsafe { gpu.stream.alloc::<f32>(384) }.unwrap();
        let function = module.load_function("reverse_blocks").unwrap();
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&x).arg(&mut out);
        unsafe { launch.launch(config(case.grid, case.block, case.shared)) }.unwrap();
        let expected: Vec<f32> = case.x.chunks(128).flat_map(|block| block.iter().rev().copied()).collect();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), expected);
    });
}

#[test]
fn neighbouring_bytes_and_atomics_are_no_races() {
    in_all_ways(|gpu, module| {
        let n = 301i32;
        let x = gpu.stream.clone_htod(&numbers(301)).unwrap();
        let mut marks = unsafe { gpu.stream.alloc::<u8>(301) }.unwrap();
        let function = module.load_function("threshold").unwrap();
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&x).arg(&mut marks).arg(&n);
        unsafe { launch.launch(config(3, 128, 0)) }.unwrap();
        let expected: Vec<u8> = numbers(301).iter().map(|&x| u8::from(x > 0.0)).collect();
        assert_eq!(gpu.stream.clone_dtoh(&marks).unwrap(), expected);

        let values = gpu.stream.clone_htod(&(0..301u32).collect::<Vec<_>>()).unwrap();
        let mut bins = gpu.stream.alloc_zeros::<u32>(8).unwrap();
        let function = module.load_function("histogram").unwrap();
        let mut launch = gpu.stream.launch_builder(&function);
        launch.arg(&values).arg(&mut bins).arg(&n);
        unsafe { launch.launch(config(3, 128, 0)) }.unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&bins).unwrap(), [38, 38, 38, 38, 38, 37, 37, 37]);
    });
}

#[test]
fn constants_are_set_by_name() {
    in_all_ways(|gpu, module| {
        let mut coefficients = module.get_global("coefficients", &gpu.stream).unwrap();
        let bytes: Vec<u8> = [1f32, -2.0, 0.5, 0.25].iter().flat_map(|c| c.to_ne_bytes()).collect();
        gpu.stream.memcpy_htod(&bytes, &mut coefficients).unwrap();
        let case = Case { x: numbers(40), out: 40, n: 40, grid: 1, block: 64, shared: 0 };
        let y = gpu.run(module, "cubic", &case).unwrap();
        for (x, y) in case.x.iter().zip(y) {
            assert!((((0.25 * x + 0.5) * x - 2.0) * x + 1.0 - y).abs() < 1e-4);
        }
    });
}

fn bits_to_tf32(x: f32) -> f32 {
    f32::from_bits((x.to_bits() + 0x1000) & 0xffff_e000)
}

fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// c[16, 8] += a[16, K]·b[K, 8], operands rounded.
fn plain_product(a: &[f32], b: &[f32], c: &[f32], round: fn(f32) -> f32) -> Vec<f32> {
    let inner = a.len() / 16;
    let at = |i: usize| (0..inner).map(|k| round(a[i / 8 * inner + k]) * round(b[k * 8 + i % 8])).sum::<f32>();
    (0..128).map(|i| c[i] + at(i)).collect()
}

#[test]
fn tensor_core_products_are_those_of_a_plain_product() {
    in_all_ways(|gpu, module| {
        for (kernel, inner, round) in
            [("product_tf32", 8, bits_to_tf32 as fn(f32) -> f32), ("product_bf16", 16, to_bf16)]
        {
            let a: Vec<f32> = (0..16 * inner).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..inner * 8).map(|i| (i as f32 * 0.91).cos()).collect();
            let before: Vec<f32> = (0..128).map(|i| if inner == 16 { i as f32 / 32.0 } else { 0.0 }).collect();
            let device_a = gpu.stream.clone_htod(&a).unwrap();
            let device_b = gpu.stream.clone_htod(&b).unwrap();
            let mut c = gpu.stream.clone_htod(&before).unwrap();
            let function = module.load_function(kernel).unwrap();
            let mut launch = gpu.stream.launch_builder(&function);
            launch.arg(&device_a).arg(&device_b).arg(&mut c);
            unsafe { launch.launch(config(1, 32, 0)) }.unwrap();
            let got = gpu.stream.clone_dtoh(&c).unwrap();
            for (got, expected) in got.iter().zip(plain_product(&a, &b, &before, round)) {
                assert!((got - expected).abs() < 1e-5, "{kernel}: {got} instead of {expected}");
            }
        }
    });
}

#[test]
fn tf32_rounds_half_away_and_bf16_half_to_even() {
    let Some(gpu) = gpu() else { return };
    let cases: [(f32, u32, u32); 6] = [
        (1.0, 0x3f80_0000, 0x3f80),
        (f32::from_bits(0x3f80_1000), 0x3f80_2000, 0x3f80), // half of tf32's last place
        (f32::from_bits(0x3f80_0fff), 0x3f80_0000, 0x3f80), // just below
        (f32::from_bits(0x3f80_8000), 0x3f80_8000, 0x3f80), // half of bf16's last place, even below
        (f32::from_bits(0x3f81_8000), 0x3f81_8000, 0x3f82), // even above
        (f32::INFINITY, 0x7f80_0000, 0x7f80),
    ];
    let module = gpu.module(CORRECT, false);
    let x = gpu.stream.clone_htod(&cases.map(|c| c.0)).unwrap();
    let mut tf32 = gpu.stream.alloc_zeros::<u32>(cases.len()).unwrap();
    let mut bf16 = gpu.stream.alloc_zeros::<u32>(cases.len()).unwrap();
    let function = module.load_function("roundings").unwrap();
    let n = cases.len() as i32;
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&x).arg(&mut tf32).arg(&mut bf16).arg(&n);
    unsafe { launch.launch(config(1, 32, 0)) }.unwrap();
    let (tf32, bf16) = (gpu.stream.clone_dtoh(&tf32).unwrap(), gpu.stream.clone_dtoh(&bf16).unwrap());
    for (i, (x, as_tf32, as_bf16)) in cases.into_iter().enumerate() {
        assert_eq!(tf32[i], as_tf32, "tf32 of {x:e}");
        assert_eq!(bf16[i], as_bf16 | (as_bf16 | 0x8000) << 16, "bf16 of {x:e} and its negative");
    }
}

#[test]
fn asynchronous_copies_arrive_at_the_wait() {
    in_all_ways(|gpu, module| {
        let case = Case { x: numbers(320), out: 320, n: 5, grid: 1, block: 64, shared: 0 };
        let expected: Vec<f32> = case.x.chunks(64).flat_map(|block| block.iter().rev().copied()).collect();
        assert_eq!(gpu.run(module, "reverse_staged", &case).unwrap(), expected);
    });
}

// ---- Planted faults ------------------------------------------------------------------------------------------------

/// What shows a fault in plain runs, without the check mode.
#[derive(PartialEq, Clone, Copy)]
enum Shows {
    /// The launch fails at the next synchronisation.
    Error,
    /// NaN in the output.
    Nan,
    /// The outputs of two orders differ.
    Orders,
    /// Only the check mode finds it.
    CheckOnly,
}

#[test]
fn planted_faults_are_found() {
    use Shows::*;
    let Some(gpu) = gpu() else { return };
    // kernel, what shows it, words of the check mode's report
    let faults = [
        ("write_past_end", Error, "out-of-bounds 4-byte write"),
        ("read_past_end", Error, "out-of-bounds 4-byte read"),
        ("no_guard", Error, "out-of-bounds 4-byte write"),
        ("missing_barrier", Orders, "read of uninitialised shared memory"),
        ("missing_warp_barrier", Orders, "read of uninitialised shared memory"),
        ("missing_second_barrier", CheckOnly, "race"),
        ("race_between_blocks", Orders, "race"),
        ("divergent_barrier", Error, "__syncthreads() in divergent code"),
        ("deadlock", Error, "deadlock"),
        ("shuffle_outside_mask", Error, "shuffle reads a lane that does not take part"),
        ("misaligned", Error, "misaligned"),
        ("shared_past_end", Error, "out-of-bounds 4-byte write"),
        ("shared_unwritten", Nan, "read of uninitialised shared memory"),
        ("array_index", Nan, "undefined behaviour"),
        ("index_overflow", CheckOnly, "undefined behaviour"),
        ("division_by_zero", Error, "undefined behaviour"),
        ("copy_not_awaited", Nan, "read of uninitialised shared memory"),
        ("copy_not_committed", Nan, "read of uninitialised shared memory"),
        ("mma_in_divergent_code", Error, "mma without all lanes"),
    ];
    let case = Case { x: numbers(128), out: 128, n: 128, grid: 2, block: 128, shared: 512 };
    let single = Case { grid: 1, ..Case { x: numbers(128), ..case } };
    for check in [false, true] {
        let module = gpu.module(FAULTY, check);
        for (kernel, shows, words) in faults {
            let mut outputs = vec![];
            let mut failed = 0;
            for order in ["forward", "reverse"] {
                stand_in::set_order(order);
                let one = !matches!(kernel, "write_past_end" | "no_guard" | "race_between_blocks");
                match gpu.run(&module, kernel, if one { &single } else { &case }) {
                    Ok(out) => outputs.push(out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
                    Err(e) => {
                        assert_eq!(e.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "{kernel}");
                        failed += 1;
                    }
                }
            }
            let reports = stand_in::reports();
            if check {
                assert!(failed > 0 && reports.contains(words), "{kernel}, checked: {reports}");
                assert!(reports.contains(&format!("kernel {kernel}, block (")), "{reports}");
                assert!(kernel == "deadlock" || reports.contains("test.cu:"), "no line is named: {reports}");
            } else {
                let nan = outputs.iter().flatten().any(|&bits| f32::from_bits(bits).is_nan());
                let found = match shows {
                    Error => failed == 2,
                    Nan => nan,
                    Orders => outputs.len() == 2 && outputs[0] != outputs[1],
                    CheckOnly => failed == 0,
                };
                assert!(found, "{kernel}, plain: {failed} failed, NaN {nan}; {reports}");
            }
        }
    }
}

#[test]
fn unwritten_memory_is_nan_and_reading_it_is_reported() {
    let Some(gpu) = gpu() else { return };
    let case = || Case { x: numbers(64), out: 64, n: 64, grid: 1, block: 64, shared: 0 };
    let module = gpu.module(FAULTY, true);
    let out = gpu.run(&module, "partly_written", &case()).unwrap();
    assert!(out[63].is_nan() && out[62] == numbers(64)[62]);

    // The same output as another kernel's input.
    let correct = gpu.module(CORRECT, true);
    let unwritten = unsafe { gpu.stream.alloc::<f32>(64) }.unwrap();
    let mut sum = unsafe { gpu.stream.alloc::<f32>(1) }.unwrap();
    let function = correct.load_function("row_sums").unwrap();
    let n = 64i32;
    let mut launch = gpu.stream.launch_builder(&function);
    launch.arg(&unwritten).arg(&mut sum).arg(&n);
    unsafe { launch.launch(config(1, 32, 0)) }.unwrap();
    assert!(gpu.stream.synchronize().is_err());
    let reports = stand_in::reports();
    assert!(reports.contains("read of uninitialised global memory"), "{reports}");
    assert!(reports.contains("offset 0 of the 256-byte allocation"), "{reports}");
}

#[test]
fn use_after_free_is_found_and_later_work_goes_on() {
    let Some(gpu) = gpu() else { return };
    for check in [false, true] {
        let module = gpu.module(CORRECT, check);
        let function = module.load_function("add_one").unwrap();
        let n = 8i32;
        let freed = gpu.stream.alloc_zeros::<f32>(8).unwrap();
        let pointer = address(&freed, &gpu.stream);
        drop(freed); // in stream order: it is still there when the launch is accepted
        unsafe { gpu.stream.launch_builder(&function).arg(&pointer).arg(&n).launch(config(1, 8, 0)) }.unwrap();
        assert_eq!(gpu.stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(stand_in::reports().contains("use after free"));

        let mut y = gpu.stream.alloc_zeros::<f32>(8).unwrap();
        unsafe { gpu.stream.launch_builder(&function).arg(&mut y).arg(&n).launch(config(1, 8, 0)) }.unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [1.0; 8]);
    }
}

#[test]
fn launches_that_no_gpu_accepts_are_refused() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let add_one = module.load_function("add_one").unwrap();
    let row_sums = module.load_function("row_sums").unwrap();
    let n = 8i32;
    let mut y = gpu.stream.alloc_zeros::<f32>(8).unwrap();
    let mut refused = |f, config| {
        let mut launch = gpu.stream.launch_builder(f);
        launch.arg(&mut y).arg(&n);
        unsafe { launch.launch(config) }.unwrap_err().0
    };
    assert_eq!(refused(&add_one, config(0, 32, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(refused(&add_one, config(1, 1025, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(refused(&add_one, config(1, 32, 100 << 10)), CUresult::CUDA_ERROR_INVALID_VALUE);
    // More threads than __launch_bounds__ allows.
    assert_eq!(refused(&row_sums, config(1, 512, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);

    let host = [0f32; 8];
    let pointer = host.as_ptr() as u64;
    let launched = unsafe { gpu.stream.launch_builder(&add_one).arg(&pointer).arg(&n).launch(config(1, 8, 0)) };
    assert_eq!(launched.unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(stand_in::reports().contains("not device memory"));
}

// ---- Streams and graphs --------------------------------------------------------------------------------------------

const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

#[test]
fn work_runs_when_something_waits_for_it() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let function = module.load_function("add_one").unwrap();
    let n = 4i32;
    let mut y = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    let other = gpu.context.new_stream().unwrap();
    gpu.stream.synchronize().unwrap();
    unsafe { gpu.stream.launch_builder(&function).arg(&mut y).arg(&n).launch(config(1, 4, 0)) }.unwrap();
    assert_eq!(other.clone_dtoh(&y).unwrap(), [0.0; 4], "no event between the streams");
    other.join(&gpu.stream).unwrap();
    assert_eq!(other.clone_dtoh(&y).unwrap(), [1.0; 4]);
}

#[test]
fn a_graph_does_its_work_at_every_launch() {
    let Some(gpu) = gpu() else { return };
    for check in [false, true] {
        let module = gpu.module(CORRECT, check);
        let function = module.load_function("add_one").unwrap();
        let n = 6i32;
        let mut y = gpu.stream.alloc_zeros::<f32>(6).unwrap();
        let mut copy = gpu.stream.alloc_zeros::<f32>(6).unwrap();
        let mut cleared = gpu.stream.clone_htod(&[7f32; 6]).unwrap();
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        for _ in 0..3 {
            unsafe { gpu.stream.launch_builder(&function).arg(&mut y).arg(&n).launch(config(1, 32, 0)) }.unwrap();
        }
        gpu.stream.memcpy_dtod(&y, &mut copy).unwrap();
        gpu.stream.memset_zeros(&mut cleared).unwrap();
        unsafe {
            sys::cuMemsetD32Async(address(&cleared, &gpu.stream), 2f32.to_bits(), 1, gpu.stream.cu_stream());
        }
        let graph = gpu.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [0.0; 6], "capture runs nothing");
        for _ in 0..4 {
            graph.launch().unwrap();
        }
        assert_eq!(gpu.stream.clone_dtoh(&copy).unwrap(), [12.0; 6]);
        assert_eq!(gpu.stream.clone_dtoh(&cleared).unwrap(), [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn the_nodes_of_a_graph_are_listed_and_kernels_left_out() {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nodes");
    stand_in::set("nodes", path.to_str().unwrap());
    stand_in::set("only", "something_else");
    let function = gpu.module(CORRECT, false).load_function("add_one").unwrap();
    let n = 6i32;
    let mut y = gpu.stream.clone_htod(&[7f32; 6]).unwrap();
    let mut copy = gpu.stream.alloc_zeros::<f32>(6).unwrap();
    gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
    unsafe { gpu.stream.launch_builder(&function).arg(&mut y).arg(&n).launch(config(2, 32, 64)) }.unwrap();
    gpu.stream.memcpy_dtod(&y, &mut copy).unwrap();
    let graph = gpu.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    let kernel = r#"{"after": [], "priority": 0, "kernel": "add_one", "grid": [2, 1, 1], "threads": 32, "shared": 64, "numbers": [6]}"#;
    let listed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), [kernel, r#"{"after": [0], "priority": 0, "copy": 24}"#]);
    graph.launch().unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&copy).unwrap(), [7.0; 6]);
}

#[test]
fn waiting_and_allocating_while_capturing_is_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |what: &dyn Fn() -> Option<DriverError>| {
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        let error = what().expect("it was accepted");
        assert_eq!(error.0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        let ended = gpu.stream.end_capture(CUgraphInstantiate_flags(0));
        assert_eq!(ended.err().unwrap().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    };
    refused(&|| gpu.stream.synchronize().err());
    refused(&|| gpu.context.synchronize().err());
    refused(&|| gpu.stream.alloc_zeros::<f32>(4).err());
    refused(&|| unsafe { result::malloc_sync(16) }.err());
    let null_stream = gpu.context.default_stream();
    assert!(null_stream.begin_capture(THREAD_LOCAL).is_err());
}

#[test]
fn a_fork_must_be_joined_before_the_capture_ends() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let function = module.load_function("add_one").unwrap();
    let n = 6i32;
    let mut y = gpu.stream.alloc_zeros::<f32>(6).unwrap();
    let other = gpu.context.new_stream().unwrap();
    for joined in [false, true] {
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        other.join(&gpu.stream).unwrap();
        unsafe { other.launch_builder(&function).arg(&mut y).arg(&n).launch(config(1, 32, 0)) }.unwrap();
        if joined {
            gpu.stream.join(&other).unwrap();
        }
        let ended = gpu.stream.end_capture(CUgraphInstantiate_flags(0));
        match ended {
            Ok(graph) => {
                assert!(joined);
                graph.unwrap().launch().unwrap();
            }
            Err(e) => assert!(!joined && e.0 == CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "{e:?}"),
        }
    }
    assert_eq!(gpu.stream.clone_dtoh(&y).unwrap(), [1.0; 6]);
}

/// y + 1 and then y · 2, in a capture where the second waits for the first or does not.
#[test]
fn a_kernel_of_a_graph_that_does_not_wait_shows_in_another_order() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let [add_one, double] = ["add_one", "double_all"].map(|name| module.load_function(name).unwrap());
    let run = |waits: bool, order: &str| {
        stand_in::set_order(order);
        let (mut y, n, none) = (gpu.stream.clone_htod(&[3f32; 6]).unwrap(), 6i32, std::ptr::null_mut());
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        unsafe { gpu.stream.launch_builder(&add_one).arg(&mut y).arg(&n).launch(config(1, 32, 0)) }.unwrap();
        if !waits {
            let set = sys::CUstreamUpdateCaptureDependencies_flags_enum::CU_STREAM_SET_CAPTURE_DEPENDENCIES as u32;
            let stream = gpu.stream.cu_stream();
            unsafe { sys::cuStreamUpdateCaptureDependencies_v2(stream, none, std::ptr::null(), 0, set) }
                .result()
                .unwrap();
        }
        unsafe { gpu.stream.launch_builder(&double).arg(&mut y).arg(&n).launch(config(1, 32, 0)) }.unwrap();
        gpu.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap().launch().unwrap();
        gpu.stream.clone_dtoh(&y).unwrap()[0]
    };
    assert_eq!([run(true, "forward"), run(true, "reverse")], [8.0, 8.0]);
    assert_eq!([run(false, "forward"), run(false, "reverse")], [8.0, 7.0]);
    stand_in::set_order("forward");
}

// ---- Settings ------------------------------------------------------------------------------------------------------

#[test]
fn settings_change_what_the_driver_reports() {
    let Some(gpu) = gpu() else { return };
    assert_eq!(gpu.context.name().unwrap(), "a stand-in GPU");
    assert_eq!(gpu.context.compute_capability().unwrap(), (9, 0));
    stand_in::set("capability", "6.1");
    assert_eq!(gpu.context.compute_capability().unwrap(), (6, 1));

    stand_in::set("driver_version", "11040");
    let mut version = 0;
    unsafe { sys::cuDriverGetVersion(&mut version).result().unwrap() };
    assert_eq!(version, 11040);

    stand_in::set("devices", "0");
    assert_eq!(CudaContext::device_count().unwrap_err().0, CUresult::CUDA_ERROR_NO_DEVICE);
    stand_in::set("devices", "2");
    assert_eq!(CudaContext::device_count().unwrap(), 2);
}

#[test]
fn memory_has_a_limit() {
    let Some(gpu) = gpu() else { return };
    gpu.stream.synchronize().unwrap();
    let (free, total) = gpu.context.mem_get_info().unwrap();
    stand_in::set("memory", &(total - free + 1000).to_string());
    let first = gpu.stream.alloc_zeros::<u8>(900).unwrap();
    assert_eq!(gpu.stream.alloc_zeros::<u8>(200).unwrap_err().0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(first);
    gpu.stream.synchronize().unwrap();
    gpu.stream.alloc_zeros::<u8>(200).unwrap();
}

#[test]
fn a_launch_fails_when_told_to() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let function = module.load_function("add_one").unwrap();
    let n = 4i32;
    let mut y = gpu.stream.alloc_zeros::<f32>(4).unwrap();
    stand_in::set("fail_launch", "2");
    let mut launch =
        || unsafe { gpu.stream.launch_builder(&function).arg(&mut y).arg(&n).launch(config(1, 4, 0)) }.map(|_| ());
    launch().unwrap();
    assert_eq!(launch().unwrap_err().0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    launch().unwrap();
}

#[test]
fn parameters_of_a_kernel_are_known() {
    let Some(gpu) = gpu() else { return };
    let module = gpu.module(CORRECT, false);
    let (mut function, mut offset, mut bytes) = (std::ptr::null_mut(), 0usize, 0usize);
    // SAFETY: the module outlives the function; all other arguments are our own variables.
    let found: Vec<(usize, usize)> = unsafe {
        let mut handle = std::ptr::null_mut();
        let image = CString::new(
            compile(CORRECT, &["--gpu-architecture=sm_90"]).unwrap()[..].split(|&b| b == 0).next().unwrap(),
        );
        sys::cuModuleLoadData(&mut handle, image.unwrap().as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&mut function, handle, c"axpy_relu".as_ptr()).result().unwrap();
        (0..)
            .map_while(|i| {
                sys::cuFuncGetParamInfo(function, i, &mut offset, &mut bytes).result().ok().map(|()| (offset, bytes))
            })
            .collect()
    };
    assert_eq!(found, [(0, 8), (8, 8), (16, 4), (20, 4)]);
    drop(module);
}

#[test]
fn a_compile_error_names_the_line() {
    let Some(_gpu) = gpu() else { return };
    let error = compile("\n#line 7 \"kernels/foo.cu\"\nextern \"C\" __global__ void k(float* p) { p[0] = nope; }", &[]);
    assert!(error.as_ref().is_err_and(|e| e.contains("kernels/foo.cu:7") && e.contains("nope")), "{error:?}");
    assert!(compile("", &["--gpu-architecture=sm_61"]).unwrap_err().contains("invalid value for --gpu-architecture"));
    assert!(compile("", &["--no-such-option"]).unwrap_err().contains("unrecognized option"));
}

// ---- Speed ---------------------------------------------------------------------------------------------------------

/// `cargo test --release --test stand_in -- --ignored --nocapture` prints what a launch costs.
#[test]
#[ignore = "prints timings"]
fn timings() {
    let Some(gpu) = gpu() else { return };
    const LAUNCHES: u32 = 200;
    let n = 64 * 256;
    let x = gpu.stream.clone_htod(&numbers(n)).unwrap();
    let mut y = gpu.stream.alloc_zeros::<f32>(n).unwrap();
    let (count, a, row, stages) = (n as i32, 0.5f32, 256i32, 16i32);
    for check in [false, true] {
        let began = std::time::Instant::now();
        let module = gpu.module(CORRECT, check);
        println!("check {check}: module {:.2} s", began.elapsed().as_secs_f64());
        for (kernel, blocks, threads) in [
            ("add_one", 1, 32),
            ("axpy_relu", 16, 256),
            ("row_sums", 64, 256),
            ("product_tf32", 1, 32),
            ("reverse_staged", 1, 64),
        ] {
            let function = module.load_function(kernel).unwrap();
            let began = std::time::Instant::now();
            for _ in 0..LAUNCHES {
                let mut launch = gpu.stream.launch_builder(&function);
                match kernel {
                    "add_one" => launch.arg(&mut y).arg(&count),
                    "axpy_relu" => launch.arg(&x).arg(&mut y).arg(&a).arg(&count),
                    "row_sums" => launch.arg(&x).arg(&mut y).arg(&row),
                    "product_tf32" => launch.arg(&x).arg(&x).arg(&mut y),
                    _ => launch.arg(&x).arg(&mut y).arg(&stages),
                };
                unsafe { launch.launch(config(blocks, threads, 0)) }.unwrap();
            }
            gpu.stream.synchronize().unwrap();
            let seconds = began.elapsed().as_secs_f64();
            let each = seconds / f64::from(LAUNCHES) * 1e6;
            println!(
                "  {kernel:<16} {blocks:>3} blocks of {threads:>3}: {each:>8.1} µs per launch, {seconds:.2} s in all"
            );
        }
    }
}
