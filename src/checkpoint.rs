//! Checkpoints: one safetensors file with the parameters under their names, and what training needs to go on as if it had never
//! stopped.
//!
//! | entry | what |
//! | --- | --- |
//! | `<name>` | a parameter, `F32` (`F64` from a double-precision device, `F16` in a model to share; `BF16` is read, too) |
//! | `adam.m.<name>`, `adam.v.<name>`, `adam.step` | Adam's moments and its number of updates (`I64`) |
//! | `nvil.mean`, `nvil.var`, `iteration` | running statistics of the learning signal, number of updates (`I64`) |
//!
//! The metadata hold the model's [`Config`] (`config`) and the run's settings (`settings`) as JSON; in a model to share what is worth
//! knowing of it (`about`). The same state gives the same bytes.

#[cfg(test)]
mod tests;

use crate::{
    DType, Device, Error, Params, ParamsBuilder, Result, Spec, Tensor,
    device::on_device,
    files::{self, quoted},
    model::{Config, GROUPS, Model, Start, objective::Running},
    optim::Adam,
    real::Real,
};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashSet,
    fmt::Write as _,
    io::{self, Write},
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
    Half(Tensor),
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
            Content::Half(_) => "F16",
        }
    }

    fn bytes(&self) -> usize {
        let size = match self.dtype() {
            "F16" => 2,
            "F32" => 4,
            _ => 8,
        };
        size * self.shape.iter().product::<usize>()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        const { assert!(cfg!(target_endian = "little"), "safetensors are little-endian") };
        match &self.content {
            Content::Count(value) => out.write_all(&(*value as i64).to_le_bytes()),
            Content::Half(values) => {
                let half: Vec<f16> = values.to_f32().into_iter().map(f16::from_f32).collect();
                half.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
            }
            Content::Values(values) => {
                on_device!(
                    values.device(),
                    T => out.write_all(bytemuck::cast_slice(values.slice::<T>())),
                    _gpu => out.write_all(&values.bytes())
                )
            }
        }
    }
}

/// Writes a checkpoint atomically: whatever happens, `path` holds a complete file or what it held before.
///
/// Without `progress` it is good for evaluation only. The values are written from where they lie, without a copy.
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
    write(path, &entries, &metadata)
}

/// Writes a model to share, atomically: the parameters in half precision, and what is worth knowing `about` it as JSON, which
/// [`Checkpoint::about`] gives back.
pub fn export(path: &Path, config: &Config, params: &Params, about: &Value) -> Result<()> {
    let entry = |spec: &Spec| {
        let window = params.slab().window(spec.range().start, &spec.shape);
        Entry { name: spec.name.clone(), shape: spec.shape.clone(), content: Content::Half(window) }
    };
    let entries: Vec<Entry> = params.specs().iter().map(entry).collect();
    write(path, &entries, &[("config", json(config)), ("about", json(about))])
}

fn write(path: &Path, entries: &[Entry], metadata: &[(&str, String)]) -> Result<()> {
    let header = header(entries, metadata);
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

/// Entries of a checkpoint that are not asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    /// May be there.
    Ignored,
    /// There may be none but those of [`Checkpoint::resume`].
    Refused,
    /// The single numbers of training must be there.
    Numbers,
}

/// A checkpoint in memory, its header and configuration checked.
pub struct Checkpoint<'a> {
    /// What error messages call it.
    name: String,
    entries: Metadata,
    data: &'a [u8],
    config: Config,
    settings: Option<Value>,
    about: Option<Value>,
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
        let optional = |key: &'static str| {
            let value = text(key).map(|s| serde_json::from_str(s)).transpose();
            value.map_err(|e| fail(format!("its {key} are not JSON ({e})")))
        };
        let (settings, about) = (optional("settings")?, optional("about")?);
        Ok(Checkpoint { name: name.into(), data: &bytes[8 + header..], entries, config, settings, about })
    }

    /// The model's configuration; its sizes are possible ones, but see [`Checkpoint::model`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What [`Progress::settings`] was; `None` in a checkpoint for evaluation only.
    pub fn settings(&self) -> Option<&Value> {
        self.settings.as_ref()
    }

    /// What is worth knowing of a model to share, as [`export`] was told.
    pub fn about(&self) -> Option<&Value> {
        self.about.as_ref()
    }

    /// The model and its parameters. Parameters of another precision, also half, are converted.
    ///
    /// No memory is taken before every name and shape was found to be what the configuration asks for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with all names that are missing, unexpected, or of another shape or type, or with a parameter that
    /// holds a value that is not finite.
    pub fn model(&self, device: &Device) -> Result<(Model, Params)> {
        let mut builder = ParamsBuilder::blank();
        let model = Model::declare(&self.config, Start::new(0), &mut builder)?;
        self.check(builder.specs(), &[""], Others::Refused)?;
        let mut params = builder.build(device);
        let specs = params.specs().to_vec();
        on_device!(
            device,
            T => self.fill("", &specs, params.slab_mut::<T>()),
            _gpu => self.send("", &specs, params.slab())
        )?;
        Ok((model, params))
    }

    /// Puts the optimiser where it was, and returns the running statistics with the number of updates.
    ///
    /// # Errors
    /// As [`Checkpoint::model`]; also if this is a checkpoint for evaluation only.
    pub fn resume(&self, params: &Params, adam: &mut Adam) -> Result<Running> {
        self.check(params.specs(), &["adam.m.", "adam.v."], Others::Numbers)?;
        let device = params.device();
        let moments = ["adam.m.", "adam.v."].map(|prefix| {
            let mut slab = Tensor::zeros(device, params.slab().shape());
            on_device!(
                device,
                T => self.fill(prefix, params.specs(), slab.slice_mut::<T>()),
                _gpu => self.send(prefix, params.specs(), &slab)
            )
            .map(|()| slab)
        });
        let [m, v] = moments;
        adam.restore(m?, v?, self.count("adam.step")?);
        let mut statistics = [0.0; 2];
        self.read("nvil.mean", &mut statistics[..1])?;
        self.read("nvil.var", &mut statistics[1..])?;
        let statistics = Tensor::from_f64(device, &[2], &statistics);
        Ok(Running { statistics, iteration: self.count("iteration")? })
    }

    /// Compares all names, shapes and types with what training needs, without reading a value.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] as for [`Checkpoint::model`] and [`Checkpoint::resume`].
    pub fn check_all(&self) -> Result<()> {
        let mut builder = ParamsBuilder::blank();
        Model::declare(&self.config, Start::new(0), &mut builder)?;
        self.check(builder.specs(), &[""], Others::Refused)?;
        self.check(builder.specs(), &["adam.m.", "adam.v."], Others::Numbers)
    }

    /// The number of updates that were made, of a checkpoint of a run.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if it is not one of a run.
    pub fn updates(&self) -> Result<u64> {
        self.check(&[], &[], Others::Numbers)?;
        self.count("iteration")
    }

    fn count(&self, name: &str) -> Result<u64> {
        let bytes = self.bytes(name).try_into().expect("checked to be one I64");
        u64::try_from(i64::from_le_bytes(bytes)).map_err(|_| self.fail(&format!("{name} is negative")))
    }

    /// Fills a slab on the GPU, by way of the host.
    fn send(&self, prefix: &str, specs: &[Spec], slab: &Tensor) -> Result<()> {
        let mut values = vec![0.0f64; slab.len()];
        self.fill(prefix, specs, &mut values)?;
        slab.send(values.into_iter());
        slab.device().check()
    }

    /// What is wrong with this file, as an error that names it.
    pub(crate) fn fail(&self, what: &str) -> Error {
        Error::Checkpoint(format!("{} cannot be used as a checkpoint: {what}", self.name))
    }

    /// What a new run takes over: all of its parameters, but for those of the baseline network that are not here.
    fn taken(&self, specs: &[Spec]) -> Vec<Spec> {
        let baseline = |spec: &Spec| GROUPS[spec.group] == "baseline";
        specs.iter().filter(|spec| !baseline(spec) || self.entries.info(&spec.name).is_some()).cloned().collect()
    }

    /// Whether a new run of a model of this configuration can begin with these parameters.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with all names that are missing or of another shape.
    pub fn check_start(&self, config: &Config) -> Result<()> {
        let mut builder = ParamsBuilder::blank();
        Model::declare(config, Start::new(0), &mut builder)?;
        self.check(&self.taken(builder.specs()), &[""], Others::Ignored)
    }

    /// Puts these values into the parameters of a new run; the baseline network's stay where they are not here.
    ///
    /// # Errors
    /// As [`Checkpoint::check_start`]; a value that is not finite.
    pub fn start(&self, params: &mut Params) -> Result<()> {
        let (specs, device) = (self.taken(params.specs()), params.device().clone());
        self.check(&specs, &[""], Others::Ignored)?;
        on_device!(
            device,
            T => self.fill("", &specs, params.slab_mut::<T>()),
            _gpu => {
                let mut values = params.slab().to_f64();
                self.fill("", &specs, &mut values)?;
                params.slab().send(values.into_iter());
                device.check()
            }
        )
    }

    /// Compares the names, shapes and types of all entries `prefix + name` with `specs`.
    fn check(&self, specs: &[Spec], prefixes: &[&str], others: Others) -> Result<()> {
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
            // Moments are as precise as they were; parameters alone may be rounded.
            let allowed: &[Dtype] = match *prefix {
                "" => &[Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16],
                _ => &[Dtype::F32, Dtype::F64],
            };
            for spec in specs {
                expect(format!("{prefix}{}", spec.name), &spec.shape, allowed);
            }
        }
        let mut unexpected = vec![];
        if others == Others::Refused {
            let known: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            let ours = |name: &str| {
                let name = name.strip_prefix("adam.m.").or_else(|| name.strip_prefix("adam.v.")).unwrap_or(name);
                known.contains(name) || NUMBERS.iter().any(|(number, _)| *number == name)
            };
            unexpected = self.entries.offset_keys();
            unexpected.retain(|name| !ours(name));
        } else if others == Others::Numbers {
            NUMBERS.iter().for_each(|(name, allowed)| expect(name.to_string(), &[], allowed));
        }
        if let Some(cause) = self.common_cause(&missing) {
            return Err(self.fail(&cause));
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
            .map(|(what, names)| what.to_owned() + &few(&names))
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(self.fail(&format!("entries are wrong; {}", problems.join("; "))))
        }
    }

    /// What explains all names that are missing at once.
    fn common_cause(&self, missing: &[String]) -> Option<String> {
        let names = self.entries.offset_keys();
        let first = missing.first()?;
        let prefix = names.iter().find_map(|name| name.strip_suffix(first).filter(|prefix| !prefix.is_empty()))?;
        names.iter().all(|name| name.starts_with(prefix)).then(|| {
            format!(
                "all its names begin with {prefix:?}, as a wrapper (DataParallel, torch.compile, Lightning) puts it there: write it again \
                 without, from the state of the model inside"
            )
        })
    }

    fn bytes(&self, name: &str) -> &'a [u8] {
        let (start, end) = self.entries.info(name).expect("the entry was checked to be there").data_offsets;
        &self.data[start..end]
    }

    fn fill<T: Real>(&self, prefix: &str, specs: &[Spec], slab: &mut [T]) -> Result<()> {
        specs.iter().try_for_each(|spec| self.read(&format!("{prefix}{}", spec.name), &mut slab[spec.range()]))
    }

    fn read<T: Real>(&self, name: &str, values: &mut [T]) -> Result<()> {
        fn convert<T: Real, const N: usize>(bytes: &[u8], values: &mut [T], number: impl Fn([u8; N]) -> f64) {
            let numbers = bytes.as_chunks().0.iter().map(|&bytes| number(bytes));
            values.iter_mut().zip(numbers).for_each(|(x, number)| *x = T::of(number));
        }
        let bytes = self.bytes(name);
        match self.entries.info(name).expect("the entry was checked to be there").dtype {
            Dtype::F64 => convert(bytes, values, f64::from_le_bytes),
            Dtype::F16 => convert(bytes, values, |b| f16::from_le_bytes(b).into()),
            Dtype::BF16 => convert(bytes, values, |b| bf16::from_le_bytes(b).into()),
            _ => convert(bytes, values, |b| f32::from_le_bytes(b).into()),
        }
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(i) => Err(self.fail(&format!("element {i} of {name} is {:?}", values[i]))),
        }
    }
}

/// A few of many names.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 3;
    match names.len() {
        all if all <= SHOWN + 1 => names.join(", "),
        all => format!("{} and {} more", names[..SHOWN].join(", "), all - SHOWN),
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
pub(crate) fn damage(bytes: &[u8], error: &safetensors::SafeTensorError) -> String {
    use safetensors::SafeTensorError::*;
    let header = bytes.first_chunk().map_or(u64::MAX, |&n| u64::from_le_bytes(n));
    let looks_right = bytes.get(8) == Some(&b'{') && header < 1 << 30;
    match error {
        _ if bytes.is_empty() => "it is empty".into(),
        _ if bytes.iter().all(|&byte| byte == 0) => "it holds nothing but zeros, as after a power failure".into(),
        _ if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02") => {
            "it is a file of torch.save or a zip archive, not a safetensors file".into()
        }
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS, not the file itself: fetch that with `git lfs pull`".into()
        }
        _ if is_web_page(bytes) => "it is a web page, not a safetensors file: download the file itself".into(),
        MetadataIncompleteBuffer | InvalidHeaderLength if looks_right => {
            format!("it is truncated or has bytes too many ({} bytes)", bytes.len())
        }
        _ if looks_right => format!("its header is damaged ({error})"),
        _ => "it is not a safetensors file".into(),
    }
}

fn is_web_page(bytes: &[u8]) -> bool {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).trim_start().to_lowercase();
    start.starts_with("<!doctype html") || start.starts_with("<html")
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

/// The update that `name` belongs to, if it is exactly the name of a checkpoint.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?.parse().ok()?;
    (path(Path::new(""), step).to_str() == Some(name)).then_some(step)
}

/// The update that a file belongs to, by its name.
pub(crate) fn step_of_path(path: &Path) -> Option<u64> {
    step_of(path.file_name()?.to_str()?)
}

/// The steps of all checkpoints in `folder`, in ascending order; none if there is no such folder. Files with names that are only
/// similar, and folders, are not among them.
pub fn steps(folder: &Path) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> = files::names(folder)?.iter().filter_map(|name| step_of(name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The newest checkpoint in `folder`. It is complete, because a checkpoint gets its name only once it is.
pub fn latest(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(steps(folder)?.last().map(|&step| path(folder, step)))
}

/// The file itself, or the newest checkpoint of a run's folder.
///
/// # Errors
/// [`Error::Usage`] if there is none in that folder.
pub fn find(file_or_folder: &Path) -> Result<PathBuf> {
    if !file_or_folder.is_dir() {
        return Ok(file_or_folder.into());
    }
    latest(file_or_folder)?.ok_or_else(|| {
        Error::Usage(format!(
            "there is no checkpoint in the folder {}: name the folder of a run, or a file",
            quoted(file_or_folder)
        ))
    })
}

/// Removes all but the newest `keep` checkpoints of `folder`, and what interrupted writes have left behind.
pub fn prune(folder: &Path, keep: usize) -> Result<()> {
    prune_after(folder, None, keep)
}

/// The same, but those up to the update `held` stay.
pub(crate) fn prune_after(folder: &Path, held: Option<u64>, keep: usize) -> Result<()> {
    let newer: Vec<u64> = steps(folder)?.into_iter().filter(|&step| Some(step) > held).collect();
    newer.iter().rev().skip(keep).try_for_each(|&step| files::remove(&path(folder, step)))?;
    files::remove_abandoned(folder, |name| step_of(name).is_some())
}

/// The model and its parameters from a file, or from the newest checkpoint of a run's folder, for evaluation.
///
/// # Errors
/// [`Error::Checkpoint`] if it cannot be used; then the sentence names the newest one beside it that can.
pub fn load(file_or_folder: &Path, device: &Device) -> Result<(Model, Params)> {
    let path = find(file_or_folder)?;
    let bytes = files::read(&path)?;
    Checkpoint::parse(&bytes, &path.display().to_string())
        .and_then(|checkpoint| checkpoint.model(device))
        .map_err(|error| with_advice(error, &path))
}

/// Adds to an error about the checkpoint `path` of a run what still works: the newest one beside it that is whole.
pub(crate) fn with_advice(error: Error, path: &Path) -> Error {
    let Error::Checkpoint(sentence) = error else { return error };
    let folder = path.parent().unwrap_or(Path::new("."));
    let own = step_of_path(path);
    let others = |own: u64| steps(folder).ok().map(|steps| steps.into_iter().filter(move |&step| step != own));
    let whole = own.and_then(others).and_then(|others| {
        let mut others: Vec<PathBuf> = others.map(|step| self::path(folder, step)).collect();
        others.reverse();
        others.into_iter().find(|other| is_whole(other))
    });
    Error::Checkpoint(match whole {
        Some(whole) => format!("{sentence}; {} is whole: name that one, or delete {}", quoted(&whole), quoted(path)),
        None => sentence,
    })
}

/// Whether training can go on from a file.
fn is_whole(path: &Path) -> bool {
    let whole = || -> Result<()> {
        let bytes = files::read(path)?;
        let checkpoint = Checkpoint::parse(&bytes, "")?;
        checkpoint.check_all()?;
        checkpoint.model(&Device::cpu()).map(|_| ())
    };
    whole().is_ok()
}
