//! Launching a kernel: its grid, its arguments by value, and the check of both against what the source says.

use super::{Arg, Gpu, Launch};
use crate::{
    DType, Error,
    kernels::{
        Kernels,
        common::{SIZES, TABLE},
    },
};
use cudarc::driver::{CudaFunction, CudaModule, DeviceRepr, DriverError, LaunchConfig, PushKernelArg, sys};
use std::{
    collections::hash_map::Entry,
    sync::{Arc, LazyLock},
};

/// The pointers of a table, as a kernel gets them.
#[repr(transparent)]
struct Pointers([u64; TABLE]);

// SAFETY: `Table` in kernels/common.cuh has the same layout.
unsafe impl DeviceRepr for Pointers {}

/// Sizes, as a kernel gets them.
#[repr(transparent)]
struct SizeList([i32; SIZES]);

// SAFETY: `SizeList` in kernels/common.cuh has the same layout.
unsafe impl DeviceRepr for SizeList {}

/// The percentage of the memory of a multiprocessor that kernels want to be shared memory: 100, or what `DOOD_CUDA_CARVEOUT` says; −1 leaves
/// it to the driver.
static CARVEOUT: LazyLock<i32> = LazyLock::new(|| {
    let asked = std::env::var("DOOD_CUDA_CARVEOUT").ok().and_then(|text| text.parse().ok());
    asked.filter(|percent| (-1..=100).contains(percent)).unwrap_or(100)
});

/// A kernel on the card.
pub(super) struct Loaded {
    function: CudaFunction,
    /// Bytes of dynamic shared memory that it may have.
    shared: usize,
}

impl Gpu {
    /// Launches kernel `name` of a program's own `kernels`. An empty grid launches nothing.
    ///
    /// Panics if the arguments are not those of the kernel; errors of the device, of which text that does not compile is one, are kept for
    /// [`Device::check`](crate::Device::check).
    #[track_caller]
    pub fn launch_from(&self, kernels: &Kernels, name: &'static str, launch: Launch, args: &[Arg]) {
        self.start(*kernels, name, launch, args);
    }

    /// The same, of `kernels/<file>.cu`.
    #[track_caller]
    pub(crate) fn launch(&self, file: &'static str, name: &'static str, launch: Launch, args: &[Arg]) {
        self.start(Kernels::own(file), name, launch, args);
    }

    #[track_caller]
    fn start(&self, kernels: Kernels, name: &'static str, launch: Launch, args: &[Arg]) {
        if self.failed() || launch.grid.contains(&0) {
            return;
        }
        let Some(function) = self.function(kernels, name, args, launch.shared) else { return };
        let (mut reads, mut writes) = (vec![], vec![]);
        for arg in args {
            match arg {
                Arg::In(span) | Arg::Bytes(span) | Arg::Words(span) => reads.push(*span),
                Arg::Table(spans) => reads.extend(spans),
                Arg::Out(span) | Arg::WordsOut(span) => writes.push(*span),
                _ => {}
            }
        }
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.threads as u32, 1, 1),
            shared_mem_bytes: launch.shared as u32,
        };
        let single: Vec<f32> = args.iter().map(|arg| if let Arg::Real(x) = arg { *x as f32 } else { 0.0 }).collect();
        let pointers =
            |arg: &Arg| if let Arg::Table(spans) = arg { Some(Pointers(spans.map(|s| s.address))) } else { None };
        let tables: Vec<Pointers> = args.iter().filter_map(pointers).collect();
        let sizes =
            args.iter().filter_map(|arg| if let Arg::Sizes(sizes) = arg { Some(SizeList(*sizes)) } else { None });
        let sizes: Vec<SizeList> = sizes.collect();
        let (mut tables, mut sizes) = (tables.iter(), sizes.iter());
        let mut builder = self.stream.launch_builder(&function);
        for (arg, single) in args.iter().zip(&single) {
            match arg {
                Arg::In(x) | Arg::Out(x) | Arg::Bytes(x) | Arg::Words(x) | Arg::WordsOut(x) => builder.arg(&x.address),
                Arg::Table(_) => builder.arg(tables.next().expect("one for each table")),
                Arg::Sizes(_) => builder.arg(sizes.next().expect("one for each list")),
                Arg::Wide(x) => builder.arg(x),
                Arg::Int(x) => builder.arg(x),
                Arg::Word(x) => builder.arg(x),
                Arg::Real(_) if self.dtype == DType::F32 => builder.arg(single),
                Arg::Real(x) => builder.arg(x),
            };
        }
        // SAFETY: the arguments have the types of the kernel's parameters, and its pointers are memory of live tensors.
        let start = || unsafe { builder.launch(config).map(drop) };
        if let Err(e) = self.submit(&reads, &writes, start) {
            return self.fail_driver(
                &format!("to launch kernel {name} on {x}x{y}x{z} blocks of {} threads", launch.threads),
                e,
            );
        }
        self.state().launches += 1;
    }

    /// The kernel, compiled and loaded at its first use, when its parameters are held against the arguments as well; allowed to have
    /// `shared` bytes of dynamic shared memory.
    #[track_caller]
    fn function(&self, kernels: Kernels, name: &'static str, args: &[Arg], shared: usize) -> Option<CudaFunction> {
        // More than 48 KB must be asked for, and what the kernel declares itself counts too.
        const FREE: usize = 32 << 10;
        let mut functions = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        let loaded = match functions.entry((kernels.key(), name)) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let file = kernels.name();
                let source = kernels.text().unwrap_or_else(|| panic!("there is no kernels/{file}.cu"));
                check_signature(&source, file, name, args);
                let failed = |e: DriverError| Error::Device(format!("kernel {name} cannot be loaded: {e}"));
                // One way to split the memory of a multiprocessor for all kernels: to change it between two would make one wait.
                let split = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
                let load = |module: Arc<CudaModule>| {
                    let function = module.load_function(name)?;
                    function.set_attribute(split, *CARVEOUT)?;
                    Ok(function)
                };
                match self.module(kernels).and_then(|module| load(module).map_err(failed)) {
                    Ok(function) => place.insert(Loaded { function, shared: FREE }),
                    Err(error) => {
                        self.fail(error);
                        return None;
                    }
                }
            }
        };
        if shared > loaded.shared {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            if let Err(e) = loaded.function.set_attribute(limit, shared as i32) {
                self.fail_driver(&format!("to reserve {shared} bytes of shared memory for kernel {name}"), e);
                return None;
            }
            loaded.shared = shared;
        }
        Some(loaded.function.clone())
    }
}

/// Holds the arguments of a launch against the parameters in the kernel's source: the most common mistake, found at the first launch.
#[track_caller]
fn check_signature(source: &str, file: &str, name: &str, args: &[Arg]) {
    let Some(parameters) = parameters(source, name) else { panic!("kernels/{file}.cu has no kernel {name}") };
    let given: Vec<&str> = args.iter().map(|a| a.declaration()).collect();
    assert!(
        parameters == given,
        "kernel {name} of kernels/{file}.cu takes {} arguments ({}) but was given {} ({})",
        parameters.len(),
        parameters.join(", "),
        given.len(),
        given.join(", ")
    );
}

/// The types of a kernel's parameters, as [`Arg::declaration`] writes them.
fn parameters(source: &str, name: &str) -> Option<Vec<String>> {
    let code: String = source.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    let mut rest = code.as_str();
    // The declaration is a `KERNEL … name(…)` with nothing but attributes between.
    let after = loop {
        let at = rest.find("KERNEL")?;
        rest = &rest[at + "KERNEL".len()..];
        let open = rest.find('{').unwrap_or(rest.len());
        let head = &rest[..open];
        if let Some(at) = head.match_indices(name).map(|(i, _)| i).find(|&i| {
            let before = head[..i].chars().next_back().is_some_and(|c| !c.is_alphanumeric() && c != '_');
            before && head[i + name.len()..].trim_start().starts_with('(')
        }) {
            break &head[at + name.len()..];
        }
    };
    let list = &after[after.find('(')? + 1..after.rfind(')')?];
    if list.trim().is_empty() {
        return Some(vec![]);
    }
    let canonical = |parameter: &str| {
        let text = parameter.replace("__restrict__", " ").replace('*', " * ");
        let mut words: Vec<&str> = text.split_whitespace().collect();
        words.pop(); // its name
        words.join(" ").replace(" *", "*")
    };
    Some(list.split(',').map(canonical).collect())
}

#[cfg(test)]
mod tests {
    use super::{super::Span, *};

    const SOURCE: &str = "
        __device__ void scale(int n) {}
        KERNEL __launch_bounds__(256) scale_all(const REAL* x, REAL* y, int n) { scale(n); } // KERNEL no(int)
        KERNEL scale(const REAL* __restrict__ x, // the input
                     unsigned *counts, const unsigned char* pixels, u64 step, REAL factor) {}
        KERNEL nothing() {}";

    #[test]
    fn parameters_are_read_from_the_source() {
        let found = parameters(SOURCE, "scale").unwrap();
        assert_eq!(found, ["const REAL*", "unsigned*", "const unsigned char*", "u64", "REAL"]);
        assert_eq!(parameters(SOURCE, "scale_all").unwrap(), ["const REAL*", "REAL*", "int"]);
        assert_eq!(parameters(SOURCE, "nothing"), Some(vec![]));
        assert_eq!(parameters(SOURCE, "no"), None);
        assert_eq!(parameters(SOURCE, "sca"), None);
    }

    #[test]
    #[should_panic(expected = "takes 3 arguments (const REAL*, REAL*, int) but was given 3 (const REAL*, REAL*, REAL)")]
    fn a_wrong_argument_type_is_refused() {
        check_signature(SOURCE, "scale", "scale_all", &[Arg::In(Span::NONE), Arg::Out(Span::NONE), Arg::Real(1.0)]);
    }

    #[test]
    #[should_panic(expected = "was given 3 (REAL*, const REAL*, int)")]
    fn an_input_in_the_place_of_an_output_is_refused() {
        check_signature(SOURCE, "scale", "scale_all", &[Arg::Out(Span::NONE), Arg::In(Span::NONE), Arg::Int(1)]);
    }
}
