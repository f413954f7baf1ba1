//! Criterion by the clock of a device: CUDA events on a GPU.

use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use dood::{Device, profile::Moment};
use std::time::Duration;

/// Time on a device, in nanoseconds.
pub struct OnDevice(pub Device);

impl Measurement for OnDevice {
    type Intermediate = Moment;
    type Value = f64;

    fn start(&self) -> Moment {
        Moment::now(&self.0)
    }

    fn end(&self, start: Moment) -> f64 {
        1e9 * Moment::now(&self.0).since(&start)
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Rates
    }
}

/// Times as usual; "elements" are operations, and bytes are counted in thousands.
struct Rates;

impl ValueFormatter for Rates {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (amount, unit) = match *throughput {
            Throughput::Elements(operations) => (operations, "GFLOP/s"),
            Throughput::Bytes(bytes) | Throughput::BytesDecimal(bytes) => (bytes, "GB/s"),
            ref other => unreachable!("{other:?}"),
        };
        // So many in a nanosecond are as many billions in a second.
        values.iter_mut().for_each(|ns| *ns = amount as f64 / *ns);
        unit
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns"
    }
}

/// Criterion with samples for `long` each time. The result of every benchmark is kept in `target/criterion` and compared with the one before it,
/// or with that of `--baseline NAME`, which `--save-baseline NAME` has made.
pub fn criterion(arguments: &super::Arguments, device: &Device, long: Duration) -> Criterion<OnDevice> {
    let criterion = Criterion::default()
        .with_measurement(OnDevice(device.clone()))
        .without_plots()
        .sample_size(SAMPLES)
        .warm_up_time(long / 6)
        .measurement_time(long)
        // As few as criterion has no warning for: it knows ten samples only.
        .nresamples(1001);
    match (arguments.value("--save-baseline"), arguments.value("--baseline")) {
        (Some(name), _) => criterion.save_baseline(name.into()),
        (_, Some(name)) => criterion.retain_baseline(name.into(), false),
        _ => criterion,
    }
}

/// The fewest that criterion takes.
const SAMPLES: usize = 10;

/// What one iteration tells of itself: the part of it that counts.
pub struct Watch<'a> {
    device: &'a Device,
    times: Vec<[Moment; 2]>,
}

impl Watch<'_> {
    /// Takes the time of `work`. Once in an iteration.
    pub fn time<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let before = Moment::now(self.device);
        let result = std::hint::black_box(work());
        self.times.push([before, Moment::now(self.device)]);
        result
    }

    /// Seconds of each iteration. Nobody waits for a GPU before this.
    fn seconds(&self) -> impl Iterator<Item = f64> {
        self.times.iter().map(|[before, after]| after.since(before))
    }
}

/// Benchmarks `iteration`, whose own time is longer by `extra` seconds than what is asked for. Returns the seconds of the fastest
/// iteration, and of a typical one: the median of all samples' means.
pub fn samples(
    group: &mut BenchmarkGroup<OnDevice>,
    device: &Device,
    name: &str,
    extra: f64,
    mut iteration: impl FnMut(&mut Watch),
) -> [f64; 2] {
    let (mut seen, mut fastest) = (vec![], f64::INFINITY);
    group.sampling_mode(SamplingMode::Flat).bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let mut watch = Watch { device, times: Vec::with_capacity(count as usize) };
            (0..count).for_each(|_| iteration(&mut watch));
            // Never nothing: criterion takes that for a mistake.
            let net = |seconds: f64| (seconds - extra).max(1e-9);
            fastest = watch.seconds().map(net).fold(fastest, f64::min);
            let mean = net(watch.seconds().sum::<f64>() / count as f64);
            seen.push(mean);
            1e9 * count as f64 * mean
        });
    });
    // Those before were warming up.
    let mut samples = seen.split_off(seen.len().saturating_sub(SAMPLES));
    samples.sort_by(f64::total_cmp);
    [fastest, samples[samples.len() / 2]]
}

/// Seconds of the fastest iteration out of several, for what is only measured in order to compare with it.
pub fn fastest(device: &Device, runs: usize, mut iteration: impl FnMut(&mut Watch)) -> f64 {
    let mut watch = Watch { device, times: vec![] };
    (0..=runs).for_each(|_| iteration(&mut watch));
    // The first run fills caches and scratch memory.
    watch.seconds().skip(1).fold(f64::INFINITY, f64::min)
}
