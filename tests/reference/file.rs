//! Fixture files, and the numbers that they leave to a generator (`NAMES.md` of the reference implementation).

use dood::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::{collections::BTreeMap, path::Path};

/// A file in memory; every tensor as f64.
pub struct Fixture {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    metadata: std::collections::HashMap<String, String>,
}

impl Fixture {
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| e.to_string())?;
        let metadata = header.metadata().clone().ok_or("no metadata")?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F64 => data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::I64 => data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
                Dtype::U8 => data.iter().map(|&b| b as f64).collect(),
                other => return Err(format!("{name}: unexpected type {other:?}")),
            };
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Ok(Fixture { tensors, metadata })
    }

    pub fn kind(&self) -> &str {
        self.metadata.get("kind").map_or("", |k| k)
    }

    /// A metadata entry as JSON.
    pub fn json(&self, key: &str) -> Result<serde_json::Value, String> {
        let text = self.metadata.get(key).ok_or_else(|| format!("no metadata entry {key}"))?;
        serde_json::from_str(text).map_err(|e| format!("metadata entry {key}: {e}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn values(&self, name: &str) -> &[f64] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no tensor {name}")).1
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no tensor {name}")).0
    }

    pub fn tensor(&self, device: &Device, name: &str) -> Tensor {
        Tensor::from_f64(device, self.shape(name), self.values(name))
    }
}

fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xcbf29ce484222325, |h, b| (h ^ b as u64).wrapping_mul(0x100000001b3))
}

fn splitmix(key: u64, i: u64) -> u64 {
    let z = key.wrapping_add((i + 1).wrapping_mul(0x9e3779b97f4a7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
    z ^ (z >> 31)
}

fn unit(key: u64, i: u64) -> f64 {
    (splitmix(key, i) >> 40) as f64 / (1u64 << 24) as f64
}

/// Parameter `name` of a file that stores only its seed: uniform in ±2/√fan_in.
pub fn hashed_weights(seed: &str, name: &str, count: usize, fan_in: usize) -> Vec<f64> {
    let (key, bound) = (fnv1a64(&format!("{seed}:{name}")), 2.0 / (fan_in as f64).sqrt());
    (0..count as u64).map(|i| ((2.0 * unit(key, i) - 1.0) * bound) as f32 as f64).collect()
}

/// The dropout mask of `call`: 0 or 1.
pub fn hashed_mask(seed: &str, call: &str, count: usize) -> Vec<f64> {
    let key = fnv1a64(&format!("{seed}:mask:{call}"));
    (0..count as u64).map(|i| (splitmix(key, i) >> 63) as f64).collect()
}

/// The fan-in that bounds a parameter's initial range.
pub fn fan_in(name: &str, shapes: &dyn Fn(&str) -> Vec<usize>) -> usize {
    if name == "likelihood.raw_scale" {
        return 1;
    }
    if let Some((gru, _)) = name.rsplit_once('.').filter(|(gru, _)| gru.ends_with("_gru")) {
        return shapes(&format!("{gru}.weight_hh"))[1];
    }
    let layer = name.rsplit_once('.').expect("layer.kind").0;
    shapes(&format!("{layer}.weight"))[1..].iter().product()
}

#[test]
fn the_generator_gives_the_documented_numbers() {
    assert_eq!((fnv1a64(""), fnv1a64("a")), (0xcbf29ce484222325, 0xaf63dc4c8601ec8c));
    assert_eq!((splitmix(0, 0), splitmix(0, 1)), (0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4));
    let w = hashed_weights("public/paper8", "image_cnn.conv1.weight", 72, 9);
    assert_eq!(w[..3], [0.016172567382454872, 0.47821322083473206, -0.5510699152946472]);
    assert!((w.iter().sum::<f64>() - 1.2665047580376267).abs() < 1e-12);
    let mask = hashed_mask("public/paper8", "target", 6 * 2 * 16 * 46 * 46);
    assert_eq!(mask[..16], [0., 1., 0., 0., 1., 0., 0., 0., 1., 1., 1., 1., 1., 0., 1., 1.]);
    assert_eq!(mask.iter().sum::<f64>(), 203413.0);
}
