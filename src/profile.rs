//! Time per op: set `DOOD_PROFILE=1` and call [`report`] at the end. [`Moment`] is for clocks of your own.

use crate::{Device, gpu::Event, op::Cost};
use std::{
    collections::BTreeMap,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

/// A moment in the work of a device: on the CPU now, on a GPU when it has done everything that was asked of it so far.
///
/// ```
/// use dood::{Device, Tensor, profile::Moment};
///
/// let device = Device::cpu();
/// let before = Moment::now(&device);
/// Tensor::zeros(&device, &[1000]);
/// assert!(Moment::now(&device).since(&before) > 0.0);
/// ```
pub struct Moment {
    device: Device,
    at: At,
}

enum At {
    Host(Instant),
    Gpu(Event),
}

impl Moment {
    /// Asks a GPU to note the time when it gets here (an event of CUDA); nobody waits for it.
    pub fn now(device: &Device) -> Self {
        let at = device.gpu().map_or_else(|| At::Host(Instant::now()), |gpu| At::Gpu(gpu.mark()));
        Moment { device: device.clone(), at }
    }

    /// Seconds from an earlier moment of the same device, by its own clock. Waits for both. NaN after an error, which
    /// [`Device::check`] has.
    pub fn since(&self, earlier: &Moment) -> f64 {
        match (&self.at, &earlier.at, self.device.gpu()) {
            (At::Host(late), At::Host(early), _) => (*late - *early).as_secs_f64(),
            (At::Gpu(late), At::Gpu(early), Some(gpu)) => 1e-3 * gpu.milliseconds(early, late),
            _ => panic!("two moments of different devices"),
        }
    }
}

static ON: LazyLock<bool> = LazyLock::new(|| std::env::var_os("DOOD_PROFILE").is_some_and(|v| v != "0"));
static LINES: Mutex<BTreeMap<(&'static str, Phase), Line>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Forward,
    Backward,
}

#[derive(Default)]
struct Line {
    calls: u64,
    time: Duration,
    flops: f64,
    bytes: f64,
}

/// A running clock, or nothing when profiling is off.
pub(crate) struct Timer<'a>(Option<(Instant, &'a Device)>);

/// Whether ops are timed.
pub(crate) fn is_on() -> bool {
    *ON
}

/// Profiling waits for a GPU before and after each op, so the sum is more than what a step takes.
pub(crate) fn start(device: &Device) -> Timer<'_> {
    Timer(ON.then(|| {
        device.wait();
        (Instant::now(), device)
    }))
}

impl Timer<'_> {
    pub(crate) fn stop(self, name: &'static str, phase: Phase, cost: impl FnOnce() -> Cost) {
        let Some((began, device)) = self.0 else { return };
        device.wait();
        let (time, cost) = (began.elapsed(), cost());
        // A backward pass does about twice the work of its forward pass: one product per operand.
        let times = if phase == Phase::Backward { 2.0 } else { 1.0 };
        let mut lines = LINES.lock().unwrap();
        let line = lines.entry((name, phase)).or_default();
        line.calls += 1;
        line.time += time;
        line.flops += times * cost.flops;
        line.bytes += times * cost.bytes;
    }
}

/// The table of all ops so far, slowest first; `None` when profiling is off.
pub fn report() -> Option<String> {
    ON.then(|| {
        let lines = LINES.lock().unwrap();
        let mut rows: Vec<_> = lines.iter().collect();
        rows.sort_by_key(|(_, line)| std::cmp::Reverse(line.time));
        let total: f64 = rows.iter().map(|(_, l)| l.time.as_secs_f64()).sum();
        let mut text = format!("{:24} {:>9} {:>10} {:>6} {:>9} {:>8}\n", "op", "calls", "ms", "%", "GFLOP/s", "GB/s");
        for ((name, phase), line) in rows {
            let seconds = line.time.as_secs_f64();
            text += &format!(
                "{:24} {:>9} {:>10.1} {:>6.1} {:>9.1} {:>8.1}\n",
                format!("{name} {}", if *phase == Phase::Forward { "→" } else { "←" }),
                line.calls,
                1e3 * seconds,
                100.0 * seconds / total,
                line.flops / seconds / 1e9,
                line.bytes / seconds / 1e9,
            );
        }
        text
    })
}
