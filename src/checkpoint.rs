//! Checkpoints: one safetensors file with the parameters under their names, and what training needs to go on as if it had never
//! stopped.
//!
//! | entry | what |
//! | --- | --- |
//! | `<name>` | a parameter, `F32` (or `F64` from a double-precision device) |
//! | `adam.m.<name>`, `adam.v.<name>`, `adam.step` | Adam's moments and its number of updates (`I64`) |
//! | `nvil.mean`, `nvil.var`, `iteration` | running statistics of the learning signal, number of updates (`I64`) |
//!
//! The metadata hold the model's [`Config`] (`config`) and the run's settings (`settings`) as JSON. The same state gives the same
//! bytes.

use crate::{
    DType, Device, Error, Params, ParamsBuilder, Result, Spec, Tensor,
    device::on_device,
    files,
    model::{Config, Model, Start, objective::Running},
    optim::Adam,
    real::Real,
};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

/// What a checkpoint holds beside the parameters.
pub struct Progress<'a> {
    /// The optimiser.
    pub adam: &'a Adam,
    /// Statistics of the learning signal, and the number of updates so far.
    pub running: &'a Running,
    /// What identifies the run, as JSON; given back by [`Checkpoint::settings`].
    pub settings: &'a Value,
}

/// An entry of the file: what it is called and what it holds.
struct Entry {
    name: String,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    Count(u64),
    Values(Tensor),
}

impl Entry {
    fn count(name: &str, value: u64) -> Self {
        Entry { name: name.into(), shape: vec![], content: Content::Count(value) }
    }

    /// `slab` is laid out like the parameters; this is the part that belongs to `spec`.
    fn values(name: String, slab: &Tensor, spec: &Spec) -> Self {
        let window = slab.window(spec.range().start, &spec.shape);
        Entry { name, shape: spec.shape.clone(), content: Content::Values(window) }
    }

    fn dtype(&self) -> &'static str {
        match &self.content {
            Content::Count(_) => "I64",
            Content::Values(values) if values.device().dtype() == DType::F64 => "F64",
            Content::Values(_) => "F32",
        }
    }

    fn bytes(&self) -> usize {
        let size = if self.dtype() == "F32" { 4 } else { 8 };
        size * self.shape.iter().product::<usize>()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        const { assert!(cfg!(target_endian = "little"), "safetensors are little-endian") };
        match &self.content {
            Content::Count(value) => out.write_all(&(*value as i64).to_le_bytes()),
            Content::Values(values) => {
                on_device!(values.device(), T => out.write_all(bytemuck::cast_slice(values.slice::<T>())))
            }
        }
    }
}

/// Writes a checkpoint atomically: whatever happens, `path` holds a complete file or what it held before.
///
/// Without `progress` it is good for evaluation only. Nothing is copied but one buffer of a few kilobytes.
pub fn save(path: &Path, config: &Config, params: &Params, progress: Option<&Progress>) -> Result<()> {
    let named = |slab, prefix: &'static str| {
        params.specs().iter().map(move |spec| Entry::values(format!("{prefix}{}", spec.name), slab, spec))
    };
    // 8-byte entries come first, so that every entry is aligned.
    let mut entries = vec![];
    let mut metadata = vec![("config", json(config))];
    if let Some(Progress { adam, running, settings }) = progress {
        entries.push(Entry::count("adam.step", adam.steps()));
        entries.push(Entry::count("iteration", running.iteration));
        metadata.push(("settings", json(settings)));
    }
    entries.extend(named(params.slab(), ""));
    if let Some(Progress { adam, running, .. }) = progress {
        let [m, v] = adam.moments();
        entries.extend(named(m, "adam.m."));
        entries.extend(named(v, "adam.v."));
        for (i, name) in ["nvil.mean", "nvil.var"].into_iter().enumerate() {
            let content = Content::Values(running.statistics.window(i, &[]));
            entries.push(Entry { name: name.into(), shape: vec![], content });
        }
    }
    let header = header(&entries, &metadata);
    files::write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        entries.iter().try_for_each(|entry| entry.write(out))
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data can be written as JSON")
}

/// The JSON header of a safetensors file, padded with spaces to a multiple of 8 bytes.
fn header(entries: &[Entry], metadata: &[(&str, String)]) -> String {
    let pairs: Vec<String> = metadata.iter().map(|(key, text)| format!("{}:{}", json(key), json(text))).collect();
    let mut header = format!("{{\"__metadata__\":{{{}}}", pairs.join(","));
    let mut at = 0;
    for entry in entries {
        let end = at + entry.bytes();
        let _ = write!(
            header,
            ",{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}",
            json(&entry.name),
            entry.dtype(),
            entry.shape
        );
        at = end;
    }
    header.push('}');
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    header
}

/// A checkpoint in memory, its header and configuration checked.
pub struct Checkpoint<'a> {
    /// What error messages call it.
    name: String,
    entries: Metadata,
    data: &'a [u8],
    config: Config,
    settings: Option<Value>,
}

impl<'a> Checkpoint<'a> {
    /// Reads the header of `bytes`; `name` is what error messages call the file.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is no complete safetensors file, or has no configuration that this version can use.
    pub fn parse(bytes: &'a [u8], name: &str) -> Result<Self> {
        let fail = |what: String| Error::Checkpoint(format!("{name} cannot be used as a checkpoint: {what}"));
        let (header, entries) = SafeTensors::read_metadata(bytes).map_err(|e| fail(damage(bytes, &e)))?;
        let text = |key| entries.metadata().as_ref().and_then(|m| m.get(key));
        let foreign = || fail("it holds no model configuration, so another program wrote it".into());
        let config = parse_config(text("config").ok_or_else(foreign)?).map_err(fail)?;
        let settings = text("settings").map(|s| serde_json::from_str(s)).transpose();
        let settings = settings.map_err(|e| fail(format!("its settings are not JSON ({e})")))?;
        Ok(Checkpoint { name: name.into(), data: &bytes[8 + header..], entries, config, settings })
    }

    /// The model's configuration; its sizes are possible ones, but see [`Checkpoint::model`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What [`Progress::settings`] was; `None` in a checkpoint for evaluation only.
    pub fn settings(&self) -> Option<&Value> {
        self.settings.as_ref()
    }

    /// The model and its parameters. Parameters of the other precision are converted.
    ///
    /// No memory is taken before every name and shape was found to be what the configuration asks for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with all names that are missing, unexpected, or of another shape or type, or with a parameter that
    /// holds a value that is not finite.
    pub fn model(&self, device: &Device) -> Result<(Model, Params)> {
        let mut builder = ParamsBuilder::blank();
        let model = Model::declare(&self.config, Start::new(0), &mut builder)?;
        self.check(builder.specs(), &[""], true)?;
        let mut params = builder.build(device);
        let specs = params.specs().to_vec();
        on_device!(device, T => self.fill("", &specs, params.slab_mut::<T>()))?;
        Ok((model, params))
    }

    /// Puts the optimiser where it was, and returns the running statistics with the number of updates.
    ///
    /// # Errors
    /// As [`Checkpoint::model`]; also if this is a checkpoint for evaluation only.
    pub fn resume(&self, params: &Params, adam: &mut Adam) -> Result<Running> {
        self.check(params.specs(), &["adam.m.", "adam.v."], false)?;
        let device = params.device();
        let moments = ["adam.m.", "adam.v."].map(|prefix| {
            let mut slab = Tensor::zeros(device, params.slab().shape());
            on_device!(device, T => self.fill(prefix, params.specs(), slab.slice_mut::<T>())).map(|()| slab)
        });
        let [m, v] = moments;
        let count = |name: &str| {
            let bytes = self.bytes(name).try_into().expect("checked to be one I64");
            u64::try_from(i64::from_le_bytes(bytes)).map_err(|_| self.fail(format!("{name} is negative")))
        };
        adam.restore(m?, v?, count("adam.step")?);
        let statistics = on_device!(device, T => {
            let mut statistics = [T::ZERO; 2];
            self.read("nvil.mean", &mut statistics[..1])?;
            self.read("nvil.var", &mut statistics[1..])?;
            Tensor::from_vec(device, &[2], statistics.to_vec())
        });
        Ok(Running { statistics, iteration: count("iteration")? })
    }

    fn fail(&self, what: String) -> Error {
        Error::Checkpoint(format!("{} cannot be used as a checkpoint: {what}", self.name))
    }

    /// Compares the names, shapes and types of all entries `prefix + name` with `specs`; with `all`, there may be no others but
    /// those of [`Checkpoint::resume`], otherwise the single numbers of training must be there.
    fn check(&self, specs: &[Spec], prefixes: &[&str], all: bool) -> Result<()> {
        let (mut missing, mut shapes, mut types) = (vec![], vec![], vec![]);
        let mut expect = |name: String, shape: &[usize], allowed: &[Dtype]| match self.entries.info(&name) {
            None => missing.push(name),
            Some(info) if info.shape != shape => {
                shapes.push(format!("{name} is {:?} instead of {shape:?}", info.shape))
            }
            Some(info) if !allowed.contains(&info.dtype) => types.push(format!("{name} is {}", info.dtype)),
            Some(_) => {}
        };
        for prefix in prefixes {
            for spec in specs {
                expect(format!("{prefix}{}", spec.name), &spec.shape, &[Dtype::F32, Dtype::F64]);
            }
        }
        let mut unexpected = vec![];
        if all {
            let known: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            let ours = |name: &str| {
                let name = name.strip_prefix("adam.m.").or_else(|| name.strip_prefix("adam.v.")).unwrap_or(name);
                known.contains(name) || NUMBERS.iter().any(|(number, _)| *number == name)
            };
            unexpected = self.entries.offset_keys();
            unexpected.retain(|name| !ours(name));
        } else {
            NUMBERS.iter().for_each(|(name, allowed)| expect(name.to_string(), &[], allowed));
        }
        let problems = [
            ("missing: ", missing),
            ("of another shape: ", shapes),
            ("of another type than they should: ", types),
            ("unexpected: ", unexpected),
        ];
        let problems: Vec<String> = problems
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| what.to_owned() + &names.join(", "))
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(self.fail(format!("entries are wrong; {}", problems.join("; ")))) }
    }

    fn bytes(&self, name: &str) -> &'a [u8] {
        let (start, end) = self.entries.info(name).expect("the entry was checked to be there").data_offsets;
        &self.data[start..end]
    }

    fn fill<T: Real>(&self, prefix: &str, specs: &[Spec], slab: &mut [T]) -> Result<()> {
        specs.iter().try_for_each(|spec| self.read(&format!("{prefix}{}", spec.name), &mut slab[spec.range()]))
    }

    fn read<T: Real>(&self, name: &str, values: &mut [T]) -> Result<()> {
        let bytes = self.bytes(name);
        if bytes.len() == 8 * values.len() {
            let numbers = bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b));
            values.iter_mut().zip(numbers).for_each(|(x, number)| *x = T::of(number));
        } else {
            let numbers = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
            values.iter_mut().zip(numbers).for_each(|(x, number)| *x = T::of(number.into()));
        }
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(i) => Err(self.fail(format!("element {i} of {name} is {:?}", values[i]))),
        }
    }
}

/// The single numbers of training, and the types they may have.
const NUMBERS: [(&str, &[Dtype]); 4] = [
    ("adam.step", &[Dtype::I64]),
    ("iteration", &[Dtype::I64]),
    ("nvil.mean", &[Dtype::F32, Dtype::F64]),
    ("nvil.var", &[Dtype::F32, Dtype::F64]),
];

/// Why a file is no safetensors file, in words.
fn damage(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError::*;
    let header = bytes.first_chunk().map_or(u64::MAX, |&n| u64::from_le_bytes(n));
    let looks_right = bytes.get(8) == Some(&b'{') && header < 1 << 30;
    match error {
        _ if bytes.is_empty() => "it is empty".into(),
        MetadataIncompleteBuffer | InvalidHeaderLength if looks_right => {
            format!("it is truncated or has bytes too many ({} bytes)", bytes.len())
        }
        _ if looks_right => format!("its header is damaged ({error})"),
        _ => "it is not a safetensors file".into(),
    }
}

/// The configuration in `text`, or what is wrong with it.
fn parse_config(text: &str) -> Result<Config, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("its configuration is not JSON ({e})"))?;
    let config =
        Config::deserialize(&value).map_err(|e| format!("its configuration is not one of this version ({e})"))?;
    let known = serde_json::to_value(&config).expect("plain data can be written as JSON");
    let fields = value.as_object().map(|object| object.keys());
    let newer: Vec<&str> =
        fields.into_iter().flatten().map(String::as_str).filter(|&field| known.get(field).is_none()).collect();
    if !newer.is_empty() {
        return Err(format!("its configuration has fields that this version does not know ({})", newer.join(", ")));
    }
    config.check().map_err(|e| e.to_string())?;
    Ok(config)
}

/// The checkpoint of update `step` in `folder`.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("checkpoint-{step:08}.safetensors"))
}

/// The steps of all checkpoints in `folder`, in ascending order; none if there is no such folder.
pub fn steps(folder: &Path) -> Result<Vec<u64>> {
    let list = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(vec![]),
        list => list.and_then(|list| list.collect::<io::Result<Vec<_>>>()),
    };
    let list = list.map_err(|e| Error::io("list the folder", folder, e))?;
    let step = |name: &str| name.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?.parse().ok();
    let mut steps: Vec<u64> = list.iter().filter_map(|entry| step(entry.file_name().to_str()?)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The newest checkpoint in `folder`. It is complete, because a checkpoint gets its name only once it is.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(steps(folder)?.last().map(|&step| path(folder, step)))
}

/// Removes all but the newest `keep` checkpoints of `folder`, and what interrupted writes have left behind.
pub fn prune(folder: &Path, keep: usize) -> Result<()> {
    let steps = steps(folder)?;
    let old = steps.iter().rev().skip(keep).map(|&step| path(folder, step));
    let abandoned = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(".checkpoint-") && name.ends_with(".partial")
    };
    let list = fs::read_dir(folder).map_err(|e| Error::io("list the folder", folder, e))?;
    let partial = list.filter_map(|entry| Some(entry.ok()?.path())).filter(abandoned);
    old.chain(partial).try_for_each(|path| match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
        _ => Ok(()),
    })
}

/// The model and its parameters from a file, for evaluation.
pub fn load(path: &Path, device: &Device) -> Result<(Model, Params)> {
    let bytes = files::read(path)?;
    Checkpoint::parse(&bytes, &path.display().to_string())?.model(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ops::Placement, rng};
    use serde_json::json;

    fn config() -> Config {
        Config {
            image: 8,
            conv1: 1,
            conv2: 2,
            features: 4,
            hidden: 4,
            points: 2,
            samples: 5,
            components: 2,
            strokes: 2,
            baseline_hidden: 4,
            ..Config::paper(Placement::Warp)
        }
    }

    /// A model with moments and statistics as after some training.
    fn trained(device: &Device) -> (Params, Adam, Running) {
        let (_, params) = Model::new(&config(), Start::new(1), device).unwrap();
        let mut adam = Adam::new(&params, &[1e-3; 3]);
        let [m, v] =
            [1, 2].map(|step| rng::Rng::new(9, step).uniform_tensor(device, rng::Stream(0), params.slab().shape()));
        adam.restore(m, v, 17);
        (params, adam, Running { statistics: Tensor::from_f64(device, &[2], &[0.1, 0.7]), iteration: 17 })
    }

    fn bytes(device: &Device) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let (params, adam, running) = trained(device);
        let settings = json!({"seed": 1});
        let progress = Progress { adam: &adam, running: &running, settings: &settings };
        save(&path, &config(), &params, Some(&progress)).unwrap();
        fs::read(path).unwrap()
    }

    /// The same file after a change of its header; data that are no longer referred to are cut off, missing ones are zero.
    fn altered(bytes: &[u8], change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
        let (length, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(header.as_object_mut().unwrap());
        // Entries are laid out anew, in the order of their old places; the data do not matter here.
        let mut entries: Vec<&mut Value> =
            header.as_object_mut().unwrap().iter_mut().filter(|(k, _)| *k != "__metadata__").map(|(_, v)| v).collect();
        entries.sort_by_key(|e| e["data_offsets"][0].as_u64());
        let mut at = 0;
        for entry in entries {
            let size = if ["F32", "I32"].contains(&entry["dtype"].as_str().unwrap()) { 4 } else { 8 };
            let count: u64 = entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
            entry["data_offsets"] = json!([at, at + size * count]);
            at += size * count;
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut data = bytes[8 + length..].to_vec();
        assert_eq!(data.len(), metadata.data_len());
        data.resize(at as usize, 0);
        [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
    }

    fn with_config(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
        altered(bytes, |header| {
            let text = header["__metadata__"]["config"].as_str().unwrap();
            let mut config: Value = serde_json::from_str(text).unwrap();
            change(&mut config);
            header["__metadata__"]["config"] = config.to_string().into();
        })
    }

    /// Everything that a program does with a checkpoint.
    fn use_all(bytes: &[u8]) -> Result<()> {
        let device = Device::cpu();
        let checkpoint = Checkpoint::parse(bytes, "the file")?;
        let (_, params) = checkpoint.model(&device)?;
        checkpoint.resume(&params, &mut Adam::new(&params, &[1e-3; 3])).map(|_| ())
    }

    fn refusal(bytes: &[u8]) -> String {
        let sentence = use_all(bytes).expect_err("it should be refused").to_string();
        assert!(sentence.starts_with("the file cannot be used as a checkpoint: "), "{sentence}");
        sentence
    }

    #[test]
    fn everything_comes_back_to_the_bit_in_both_precisions() {
        for device in [Device::cpu(), Device::cpu_f64()] {
            let (params, adam, running) = trained(&device);
            let bytes = bytes(&device);
            let checkpoint = Checkpoint::parse(&bytes, "a").unwrap();
            assert_eq!(checkpoint.config(), &config());
            assert_eq!(checkpoint.settings(), Some(&json!({"seed": 1})));
            let (_, loaded) = checkpoint.model(&device).unwrap();
            assert_eq!(loaded.slab().to_f64(), params.slab().to_f64());
            let mut restored = Adam::new(&loaded, &[1e-3; 3]);
            let back = checkpoint.resume(&loaded, &mut restored).unwrap();
            assert_eq!((back.iteration, restored.steps()), (running.iteration, 17));
            assert_eq!(back.statistics.to_f64(), running.statistics.to_f64());
            for (ours, theirs) in adam.moments().into_iter().zip(restored.moments()) {
                for spec in params.specs() {
                    let window = |slab: &Tensor| slab.window(spec.range().start, &spec.shape).to_f64();
                    assert_eq!(window(ours), window(theirs), "{}", spec.name);
                }
            }
        }
    }

    #[test]
    fn another_reader_of_safetensors_finds_aligned_entries_under_their_names() {
        let bytes = bytes(&Device::cpu());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("layout_gru.weight_ih").unwrap().shape(), [12, 8]);
        assert_eq!(file.tensor("adam.v.layout_gru.weight_ih").unwrap().shape(), [12, 8]);
        assert_eq!(file.tensor("iteration").unwrap().data(), 17i64.to_le_bytes());
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).unwrap();
            assert_eq!((8 + header + info.data_offsets.0) % (info.dtype.bitsize() / 8), 0, "{name}");
        }
    }

    #[test]
    fn parameters_alone_are_good_for_evaluation_and_not_for_training() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let (params, ..) = trained(&Device::cpu());
        save(&path, &config(), &params, None).unwrap();
        let (_, loaded) = load(&path, &Device::cpu_f64()).unwrap();
        assert_eq!(loaded.slab().to_f64(), params.slab().to_f64());
        let refused = refusal(&fs::read(path).unwrap());
        assert!(refused.contains("missing: adam.m.") && refused.contains("iteration"), "{refused}");
    }

    #[test]
    fn a_file_that_is_not_whole_or_not_ours_is_refused_in_words() {
        let whole = bytes(&Device::cpu());
        for end in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
            let expected = if end == 0 {
                "empty"
            } else if end < 9 {
                "not a safetensors file"
            } else {
                "truncated"
            };
            assert!(refusal(&whole[..end]).contains(expected), "{end} bytes");
        }
        assert!(refusal(&[&whole[..], b"x"].concat()).contains("bytes too many"));
        assert!(refusal(b"step,loss\n1,2\n and so on").contains("not a safetensors file"));
        let mut damaged = whole.clone();
        damaged[20] = 0xff;
        assert!(refusal(&damaged).contains("header is damaged"));
        let foreign = altered(&whole, |header| drop(header.remove("__metadata__")));
        assert!(refusal(&foreign).contains("another program"));
    }

    #[test]
    fn every_wrong_entry_is_named_in_one_sentence() {
        let refused = refusal(&altered(&bytes(&Device::cpu()), |header| {
            header.remove("pen.linear0.bias");
            header.remove("likelihood.raw_scale");
            header["image_cnn.conv1.bias"]["shape"] = json!([3]);
            header["baseline.linear1.bias"]["dtype"] = json!("I32");
            header.insert("decoder.weight".into(), json!({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}));
        }));
        for part in [
            "missing: pen.linear0.bias, likelihood.raw_scale;",
            "of another shape: image_cnn.conv1.bias is [3] instead of [1];",
            "of another type than they should: baseline.linear1.bias is I32;",
            "unexpected: decoder.weight",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
        let refused = refusal(&altered(&bytes(&Device::cpu()), |header| {
            header.remove("adam.v.pen.linear0.bias");
            header["iteration"]["dtype"] = json!("F64");
        }));
        assert!(
            refused.contains("missing: adam.v.pen.linear0.bias; ") && refused.contains("iteration is F64"),
            "{refused}"
        );
    }

    #[test]
    fn a_configuration_of_another_version_is_refused_and_costs_no_memory() {
        let whole = bytes(&Device::cpu());
        let refused = |change: fn(&mut Value)| refusal(&with_config(&whole, change));
        assert!(refused(|c| c["heads"] = json!(8)).contains("does not know (heads)"));
        assert!(refused(|c| c["variant"] = json!("transformer")).contains("transformer"));
        assert!(refused(|c| c["variant"] = json!("air")).contains("not implemented"));
        assert!(refused(|c| drop(c.as_object_mut().unwrap().remove("hidden"))).contains("missing field `hidden`"));
        assert!(refused(|c| c["hidden"] = json!(0)).contains("hidden is 0"));
        assert!(refused(|c| *c = json!([1, 2])).contains("not one of this version"));
        // 65,536² values would be 17 GB.
        let refused = refused(|c| c["hidden"] = json!(65536));
        assert!(refused.contains("layout_gru.weight_hh is [12, 4] instead of [196608, 65536]"), "{refused}");
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let mut whole = bytes(&Device::cpu());
        let (header, metadata) = SafeTensors::read_metadata(&whole).unwrap();
        for name in ["pen.linear1.weight", "adam.m.pen.linear1.weight", "nvil.var"] {
            let place = 8 + header + metadata.info(name).unwrap().data_offsets.0;
            let keep: [u8; 4] = whole[place..place + 4].try_into().unwrap();
            whole[place..place + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
            assert!(refusal(&whole).contains(&format!("element 0 of {name} is inf")));
            whole[place..place + 4].copy_from_slice(&keep);
        }
        use_all(&whole).unwrap();
    }

    #[test]
    fn random_damage_never_panics() {
        let whole = bytes(&Device::cpu());
        let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
        let mut accepted = 0;
        for round in 0..3_000 {
            let rng = rng::Rng::new(11, round);
            let mut damaged = whole.clone();
            // The header is a small part of the file, and the part that is read with care.
            for i in 0..=rng.below(rng::Stream(0), 0, 4) {
                let place = rng.below(rng::Stream(1), i, if round % 4 == 0 { damaged.len() } else { header });
                let value = rng.words(rng::Stream(2), i as u32)[0] as u8;
                match rng.below(rng::Stream(3), i, 4) {
                    0 => drop(damaged.remove(place)),
                    1 => damaged.insert(place, value),
                    2 => damaged[place] = b'0' + value % 10,
                    _ => damaged[place] = value,
                }
            }
            accepted += u32::from(use_all(&damaged).is_ok());
        }
        println!("{accepted} of 3000 damaged files were read: the damage hit numbers");
        assert!(accepted < 1_500);
    }
}
