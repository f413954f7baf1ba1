//! Whether the memory of a step is there, before it is tried: a system that runs out of it ends the program without a word.

use crate::{Error, Result, model::Config};

/// Bytes that a training step on the CPU needs, roughly: four numbers for every parameter, and what the tape keeps of every image.
fn needed(config: &Config, batch: usize, parameters: usize) -> f64 {
    16.0 * parameters as f64 + batch as f64 * per_image(config)
}

/// Bytes per image; the factors were fitted to peak memories: 0.56 MiB per image of quick, 1.03 MiB of quick without a smaller view,
/// 4.28 MiB of paper.
fn per_image(config: &Config) -> f64 {
    let [pixels, seen] = [config.image, config.seen()].map(|side| (side * side) as f64);
    let convolved = config.convolved() as f64 + config.conv1 as f64 * seen;
    let sizes = PIXELS * pixels + SEEN * seen + CONVOLVED * convolved + HIDDEN * config.hidden as f64;
    4.0 * config.strokes as f64 * sizes
}

const PIXELS: f64 = 20.0;
const SEEN: f64 = 12.0;
const CONVOLVED: f64 = 2.0;
const HIDDEN: f64 = 20.0;

/// Refuses a batch whose step would not fit into the memory that is free, as far as the system tells.
pub(super) fn check(config: &Config, batch: usize, parameters: usize) -> Result<()> {
    available().map_or(Ok(()), |available| compare(config, batch, parameters, available))
}

fn compare(config: &Config, batch: usize, parameters: usize, available: f64) -> Result<()> {
    let needed = needed(config, batch, parameters);
    if needed <= available {
        return Ok(());
    }
    let gib = |bytes: f64| format!("{:.1} GiB", bytes / f64::from(1 << 30));
    let fitting = ((0.9 * available - 16.0 * parameters as f64) / per_image(config)).floor();
    let advice = if fitting >= 1.0 {
        format!("a batch of {fitting} would fit (--batch {fitting})")
    } else {
        "not even one image fits: use a smaller model".into()
    };
    Err(Error::Usage(format!(
        "a step with a batch of {batch} images needs about {} of memory and {} are free: {advice}",
        gib(needed),
        gib(available)
    )))
}

/// Bytes that this process may still take: what the system has free, and no more than its control group allows.
fn available() -> Option<f64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let field = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| 1024.0 * kib)
    };
    let free = field("MemAvailable:")? + field("SwapFree:").unwrap_or(0.0);
    let number = |path: &str| read(path)?.trim().parse::<f64>().ok();
    let group = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ];
    let allowed = group.into_iter().find_map(|(most, used)| Some(number(most)? - number(used)?));
    Some(allowed.map_or(free, |allowed| free.min(allowed.max(0.0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Placement;

    #[test]
    fn the_estimate_is_near_what_was_measured() {
        let quick = Config::quick(Placement::Warp);
        let sharp = Config { view: None, ..quick.clone() };
        for (config, measured) in [(quick, 0.56), (sharp, 1.03), (Config::paper(Placement::Points), 4.28)] {
            let estimated = per_image(&config) / f64::from(1 << 20);
            assert!((0.9..1.2).contains(&(estimated / measured)), "{estimated} MiB instead of {measured}");
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_is_refused_with_one_that_does() {
        let config = Config::paper(Placement::Warp);
        let gib = f64::from(1 << 30);
        compare(&config, 64, 3_000_000, 4.0 * gib).unwrap();
        let refused = compare(&config, 100_000_000, 3_000_000, 4.0 * gib).unwrap_err().to_string();
        let batch = refused.split("--batch ").nth(1).unwrap().trim_end_matches(')').parse().unwrap();
        assert!(batch > 64, "{refused}");
        compare(&config, batch, 3_000_000, 4.0 * gib).unwrap();
        assert!(compare(&config, 2 * batch, 3_000_000, 4.0 * gib).is_err());
        assert!(compare(&config, 1, 3_000_000, 1e6).unwrap_err().to_string().contains("smaller model"));
        assert!(compare(&config, usize::MAX, 3_000_000, 1e15).is_err());
    }
}
