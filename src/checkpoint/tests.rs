use super::*;
use crate::{ops::Placement, rng};
use serde_json::json;
use std::fs;

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
    let mut adam = Adam::new(&params, &[1e-3; crate::model::GROUPS.len()]);
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
    checkpoint.resume(&params, &mut Adam::new(&params, &[1e-3; crate::model::GROUPS.len()])).map(|_| ())
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
        let mut restored = Adam::new(&loaded, &[1e-3; crate::model::GROUPS.len()]);
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
    assert!(refused.contains("missing: adam.m.") && refused.contains(" more"), "{refused}");
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

#[test]
fn a_sentence_about_many_entries_stays_short_and_names_the_common_cause() {
    let whole = bytes(&Device::cpu());
    let all = |change: fn(&str) -> String, dtype: Option<&str>| {
        refusal(&altered(&whole, |header| {
            let old = std::mem::take(header);
            for (name, mut entry) in old {
                if name == "__metadata__" {
                    header.insert(name, entry);
                    continue;
                }
                if let Some(dtype) = dtype.filter(|_| entry["dtype"] == "F32") {
                    entry["dtype"] = json!(dtype);
                }
                header.insert(change(&name), entry);
            }
        }))
    };
    let same = |name: &str| name.to_owned();
    // `altered` lays out everything but these two in 8 bytes, so the types are of that size.
    let refused = all(same, Some("I64"));
    assert!(refused.contains(" more") && refused.len() < 400, "{refused}");
    let refused = all(|name| format!("module.{name}"), None);
    assert!(refused.contains("begin with \"module.\"") && refused.len() < 300, "{refused}");
    let refused = all(|name| format!("_orig_mod.{name}"), None);
    assert!(refused.contains("begin with \"_orig_mod.\""), "{refused}");
    let refused = all(|name| name.replace('a', "o"), None);
    assert!(refused.contains("missing: ") && refused.contains("unexpected: ") && refused.len() < 500, "{refused}");
}

/// A file whose values are in half precision: parameters are read, moments are not gone on with.
#[test]
fn parameters_may_be_in_half_precision() {
    let device = Device::cpu();
    let (model, params) = Checkpoint::parse(&bytes(&device), "whole").unwrap().model(&device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.safetensors");
    let about = json!({ "learned_from": "nothing" });
    export(&path, &model.config, &params, &about).unwrap();
    let shared = std::fs::read(&path).unwrap();
    assert!(shared.len() < 2 * params.values() + (32 << 10), "{} bytes", shared.len());
    let checkpoint = Checkpoint::parse(&shared, "shared").unwrap();
    assert_eq!(checkpoint.about(), Some(&about));
    for device in [Device::cpu(), Device::cpu_f64()] {
        let (_, read) = checkpoint.model(&device).unwrap();
        for (read, value) in read.slab().to_f32().iter().zip(params.slab().to_f32()) {
            assert_eq!(*read, half::f16::from_f32(value).to_f32());
        }
    }
    let mut adam = Adam::new(&params, &[1e-3; crate::model::GROUPS.len()]);
    assert!(checkpoint.resume(&params, &mut adam).err().unwrap().to_string().contains("missing"));

    // The other kind of half, as other programs write it.
    let (length, _) = SafeTensors::read_metadata(&shared).unwrap();
    let header = std::str::from_utf8(&shared[8..8 + length]).unwrap().replace("\"F16\"", "\"BF16\"");
    let ones = [half::bf16::ONE.to_le_bytes()].concat().repeat((shared.len() - 8 - length) / 2);
    let other = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &ones].concat();
    let (_, read) = Checkpoint::parse(&other, "other").unwrap().model(&device).unwrap();
    assert!(read.specs().iter().all(|spec| read.window(spec).to_f32().iter().all(|&value| value == 1.0)));
}

#[test]
fn files_of_other_kinds_are_called_what_they_are() {
    for (start, called) in [
        (&b"PK\x03\x04 and so on"[..], "torch.save"),
        (b"\x80\x02}q\x00.", "torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"<html>", "web page"),
        (&[0; 300], "zeros"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "not a safetensors file"),
    ] {
        let refused = refusal(start);
        assert!(refused.contains(called), "{refused}");
    }
}

#[test]
fn only_files_with_exactly_our_names_are_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (
        ["checkpoint-00000000.safetensors", "checkpoint-00000007.safetensors", "checkpoint-123456789.safetensors"],
        [
            "checkpoint-9.safetensors",
            "checkpoint-+0000009.safetensors",
            "checkpoint-000000009.safetensors",
            "checkpoint-00000009.safetensors.bak",
            "my-checkpoint-00000009.safetensors",
            "checkpoint-best.safetensors",
            ".checkpoint-best.safetensors.1.partial",
            ".checkpoint-00000009.safetensors.partial",
        ],
    );
    let partial = ".checkpoint-00000009.safetensors.41.partial";
    for name in ours.iter().chain(&others).chain([&partial]) {
        fs::write(folder.path().join(name), "").unwrap();
    }
    fs::create_dir(folder.path().join("checkpoint-00000099.safetensors")).unwrap();
    assert_eq!(steps(folder.path()).unwrap(), [0, 7, 123_456_789]);
    prune(folder.path(), 0).unwrap();
    let left: Vec<String> = files::names(folder.path()).unwrap();
    assert_eq!(left.len(), others.len(), "{left:?}");
    assert!(folder.path().join("checkpoint-00000099.safetensors").is_dir());
    assert!(matches!(find(folder.path()), Err(Error::Usage(_))));
}

#[test]
fn an_error_names_the_newest_checkpoint_that_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole = bytes(&Device::cpu());
    let at = |step| path(folder.path(), step);
    for (step, bytes) in [(1, &whole[..]), (2, &whole), (3, &whole[..900]), (4, &whole[..800])] {
        fs::write(at(step), bytes).unwrap();
    }
    let refused = load(folder.path(), &Device::cpu()).err().unwrap().to_string();
    assert!(refused.contains(&format!("{} is whole", at(2).display())), "{refused}");
    assert!(refused.ends_with(&format!("delete {}", at(4).display())), "{refused}");
    // Both pieces of advice are good.
    load(&at(2), &Device::cpu()).unwrap();
    fs::remove_file(at(4)).unwrap();
    let refused = load(folder.path(), &Device::cpu()).err().unwrap().to_string();
    assert!(refused.contains(&format!("delete {}", at(3).display())), "{refused}");
    fs::remove_file(at(3)).unwrap();
    load(folder.path(), &Device::cpu()).unwrap();
}

#[test]
fn a_new_run_takes_over_all_parameters_but_those_of_a_baseline_that_is_not_there() {
    let device = Device::cpu();
    let sampled = bytes(&device);
    let sampled = Checkpoint::parse(&sampled, "a").unwrap();
    let exact = Config { stop: crate::model::Stop::Exact, price: 5.0, dropout: 0.1, ..config() };
    let values = |params: &Params, name: &str| params.find(name).map(|id| params.get(id).to_f32());
    let (_, there) = sampled.model(&device).unwrap();
    // Without a baseline network, from a file with one; and the other way round, from a file of parameters alone.
    let (_, mut params) = Model::new(&exact, Start::new(7), &device).unwrap();
    sampled.check_start(&exact).unwrap();
    sampled.start(&mut params).unwrap();
    let alike = |a: &Params, b: &Params| a.specs().iter().all(|spec| values(a, &spec.name) == values(b, &spec.name));
    assert!(alike(&params, &there));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("exact.safetensors");
    save(&path, &exact, &params, None).unwrap();
    let file = fs::read(path).unwrap();
    let [mut back, fresh] = [(); 2].map(|()| Model::new(&config(), Start::new(7), &device).unwrap().1);
    Checkpoint::parse(&file, "b").unwrap().start(&mut back).unwrap();
    for spec in back.specs() {
        let origin = if GROUPS[spec.group] == "baseline" { &fresh } else { &params };
        assert_eq!(values(&back, &spec.name), values(origin, &spec.name), "{}", spec.name);
    }
    // Another size.
    let wider = Config { hidden: 5, ..config() };
    let refused = sampled.check_start(&wider).unwrap_err().to_string();
    assert!(refused.contains("of another shape") && refused.contains("instead of"), "{refused}");
}
