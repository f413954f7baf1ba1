//! The lines of `benches/peer/compare.py` in candle and in burn, on the CPU, in single precision: `peer candle|burn [--runs 25]`. As many
//! threads as `RAYON_NUM_THREADS` says.
//!
//! A line of JSON for each: milliseconds of the fastest forward pass, and of that and the fastest backward pass together; and sums over
//! the result and the gradients of Σy², by which the table's programs are shown to compute the same.

mod in_burn;
mod in_candle;

use std::{hint::black_box, time::Instant};

/// Images in a batch.
const BATCH: usize = 64;
/// Sizes of the parameters of the classifier: weights and biases of two convolutions and two linear layers, and what their numbers are
/// multiplied with.
const CLASSIFIER: [(&[usize], f64); 8] = [
    (&[16, 1, 3, 3], 0.3),
    (&[16], 0.3),
    (&[32, 16, 3, 3], 0.08),
    (&[32], 0.08),
    (&[128, 1568], 0.03),
    (&[128], 0.03),
    (&[10, 128], 0.1),
    (&[10], 0.1),
];
const RATE: f64 = 2e-3;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runs = arguments.iter().position(|a| a == "--runs").map_or("25", |at| &arguments[at + 1]);
    let lines = Lines { runs: runs.parse().expect("--runs: a number") };
    match arguments.get(1).map(String::as_str) {
        Some("burn") => in_burn::all(&lines),
        Some("candle") => in_candle::all(&lines).expect("candle computes"),
        _ => panic!("peer candle|burn [--runs 25]"),
    }
}

/// The numbers of input `key`, the same in every program: multiples of two irrational numbers, brought into [−scale, scale).
fn values(len: usize, key: usize, scale: f64) -> Vec<f32> {
    let value = |i: usize| (i as f64 * 0.618_033_988_749_894_9 + key as f64 * 0.754_877_666_246_692_8).fract();
    (0..len).map(|i| (scale * (2.0 * value(i) - 1.0)) as f32).collect()
}

/// Σ v·c for numbers c of their own, and Σ |v|.
fn sums(v: &[f32]) -> [f64; 2] {
    let weighted = v.iter().zip(values(v.len(), 9, 1.0)).map(|(&v, c)| f64::from(v) * f64::from(c)).sum();
    [weighted, v.iter().map(|v| f64::from(v.abs())).sum()]
}

struct Lines {
    runs: usize,
}

impl Lines {
    /// Milliseconds of `forward` alone, of `tracked` and of `backward` of what it has made; the first run fills caches.
    fn line<Y, G>(
        &self,
        name: &str,
        mut forward: impl FnMut(),
        mut tracked: impl FnMut() -> Y,
        mut backward: impl FnMut(Y) -> G,
        results: Vec<Vec<f32>>,
    ) {
        let mut fastest = [f64::INFINITY; 3];
        for run in 0..=self.runs {
            let began = [Instant::now(), {
                forward();
                Instant::now()
            }];
            let y = tracked();
            let between = Instant::now();
            black_box(backward(y));
            let times = [began[1] - began[0], between - began[1], between.elapsed()];
            for (fastest, time) in fastest.iter_mut().zip(times).filter(|_| run > 0) {
                *fastest = fastest.min(1e3 * time.as_secs_f64());
            }
        }
        let [forward, tracked, backward] = fastest;
        self.say(name, forward, tracked + backward, results);
    }

    /// Milliseconds of a whole update.
    fn step(&self, name: &str, mut step: impl FnMut(), results: Vec<Vec<f32>>) {
        step();
        let time = |_| {
            let began = Instant::now();
            step();
            1e3 * began.elapsed().as_secs_f64()
        };
        let ms = (0..self.runs).map(time).fold(f64::INFINITY, f64::min);
        self.say(name, ms, ms, results);
    }

    fn say(&self, name: &str, forward: f64, both: f64, results: Vec<Vec<f32>>) {
        let sums: Vec<_> = results.iter().map(|v| sums(v)).collect();
        println!("{}", serde_json::json!({ "name": name, "forward_ms": forward, "both_ms": both, "sums": sums }));
    }
}
