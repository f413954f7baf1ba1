//! The modules of the library stand in one order, the table "Rooms" of `src/lib.rs`, and a file uses only what comes before its own.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The modules in their order.
fn table(lib: &str) -> Vec<String> {
    let (_, rest) = lib.split_once("//! # Rooms\n").expect("src/lib.rs has a table of rooms");
    let text = rest.split("//! ```").nth(1).expect("the table is a block of text");
    // The first line is the kind of the block, and the first word of the others names a floor.
    let rows = text.lines().skip(1).filter_map(|line| line.strip_prefix("//! "));
    rows.flat_map(|row| row.split_whitespace().skip(1).map(String::from).collect::<Vec<_>>()).collect()
}

/// `src/lib.rs`'s `pub use module::{Name, …};`: where a name of the crate's root comes from.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let uses = lib.lines().filter_map(|line| line.strip_prefix("pub use ")?.strip_suffix(';')?.split_once("::"));
    let names = |list: &str| -> Vec<String> {
        list.trim_matches(['{', '}']).split(',').map(|name| name.trim().to_string()).collect()
    };
    uses.flat_map(|(module, list)| names(list).into_iter().map(|name| (name, module.to_string()))).collect()
}

/// The text with the same lines, but neither comments nor what is compiled for tests only: tests may use everything.
fn code(text: &str) -> String {
    let (mut kept, mut test) = (String::new(), false);
    for line in text.lines() {
        test |= line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test");
        if !test {
            kept += line.split("//").next().expect("a part");
        }
        // An item ends with a line at the left margin.
        test &= line.starts_with('#') || !(line.starts_with('}') || !line.starts_with(' ') && line.ends_with(';'));
        kept.push('\n');
    }
    kept
}

/// The first names of the paths that follow `crate::`, or as many `super::` as lead out of a file `depth` modules deep, each with
/// the number of its line.
fn roots(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = vec![];
    for root in ["crate::".to_string(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let (line, rest) = (code[..at].matches('\n').count() + 1, &code[at + root.len()..]);
            let name =
                |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
            let Some(list) = rest.strip_prefix('{') else {
                found.push((line, name(rest)));
                continue;
            };
            let (mut nested, mut from) = (0, 0);
            for (i, c) in list.char_indices() {
                nested += (c == '{') as i32 - (c == '}') as i32;
                if nested < 0 || nested == 0 && c == ',' {
                    let item = list[from..i].trim_start();
                    found.push((line + list[..i].trim_end().matches('\n').count(), name(item)));
                    from = i + 1;
                }
                if nested < 0 {
                    break;
                }
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty() && name != "super" && name != "self");
    found
}

/// Every use of a module that does not come before the user's own, as a sentence.
fn violations(table: &[String], exports: &BTreeMap<String, String>, files: &[(PathBuf, String)]) -> Vec<String> {
    let place = |module: &str| table.iter().position(|other| other == module);
    let mut wrong = vec![];
    for (path, text) in files {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().replace(".rs", "")).collect();
        let Some(own) = place(&parts[0]) else {
            wrong.push(format!("src/{}: {} has no place in the table of src/lib.rs", path.display(), parts[0]));
            continue;
        };
        for (line, name) in roots(&code(text), parts.len()) {
            let module = exports.get(&name).unwrap_or(&name);
            // Whatever is no module is a macro or an item of the root.
            if place(module).is_some_and(|place| place > own) {
                wrong.push(format!("src/{}:{line}: {} uses {module}, which comes after it", path.display(), parts[0]));
            }
        }
    }
    wrong
}

/// Every file of the library but its root and files of tests.
fn files(folder: &Path, under: &Path, found: &mut Vec<(PathBuf, String)>) {
    let mut entries: Vec<_> = fs::read_dir(folder.join(under)).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let path = under.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files(folder, &path, found);
        } else if path != Path::new("lib.rs") && !path.ends_with("tests.rs") {
            found.push((path, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

#[test]
fn a_file_uses_only_rooms_before_its_own() {
    let lib = fs::read_to_string(source().join("lib.rs")).unwrap();
    let (table, mut found) = (table(&lib), vec![]);
    files(&source(), Path::new(""), &mut found);
    assert!(found.len() > 60, "{} files", found.len());
    for module in &table {
        assert!(
            source().join(format!("{module}.rs")).exists(),
            "the table of src/lib.rs names {module}, which is not there"
        );
    }
    let wrong = violations(&table, &exports(&lib), &found);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_planted_violation_is_named_with_its_file_and_line() {
    let lib = "//! # Rooms\n//!\n//! ```text\n//! ground  real gpu\n//! engine  tensor ops\n//! ```\npub use tensor::{Slot, Tensor};\n";
    let planted = [
        ("real.rs", "use std::fmt;\n// crate::gpu::Gpu\n"),
        ("gpu/launch.rs", "use super::Gpu;\nuse crate::{\n    real::Real,\n    ops::{self, A, B},\n    Slot,\n};\n"),
        (
            "ops.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::ops;\n    use crate::train;\n}\nuse crate::gpu;\n",
        ),
        ("tensor.rs", "\nfn f(x: crate::ops::X) {}\nmacro_rules! m { () => { $crate::ops::f() } }\nuse super::ops;\n"),
        ("train.rs", ""),
    ];
    let files = planted.map(|(path, text)| (PathBuf::from(path), text.to_string()));
    assert_eq!(
        violations(&table(lib), &exports(lib), &files),
        [
            "src/gpu/launch.rs:4: gpu uses ops, which comes after it",
            "src/gpu/launch.rs:5: gpu uses tensor, which comes after it",
            "src/tensor.rs:2: tensor uses ops, which comes after it",
            "src/tensor.rs:3: tensor uses ops, which comes after it",
            "src/tensor.rs:4: tensor uses ops, which comes after it",
            "src/train.rs: train has no place in the table of src/lib.rs",
        ]
    );
}
