//! Lists the files of `kernels/` for `src/kernels.rs`, so that a new one needs no line anywhere.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let mut names: Vec<String> = fs::read_dir(Path::new(&root).join("kernels"))
        .expect("the folder kernels")
        .map(|entry| entry.expect("its entries").file_name().into_string().expect("a name in ASCII"))
        .collect();
    names.sort();
    let list = |ending: &str| -> String {
        let files = names.iter().filter_map(|name| Some((name.strip_suffix(ending)?, name)));
        files
            .map(|(stem, name)| format!("    ({stem:?}, include_str!({:?})),\n", format!("{root}/kernels/{name}")))
            .collect()
    };
    let text = format!(
        "/// Every file of `kernels/`, without its `.cu`, and its text.\n\
         pub const SOURCES: &[(&str, &str)] = &[\n{}];\n\n\
         /// What several of them share: without its `.cuh`, and its text.\n\
         const HEADERS: &[(&str, &str)] = &[\n{}];\n",
        list(".cu"),
        list(".cuh")
    );
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    fs::write(Path::new(&out).join("kernels.rs"), text).expect("the list of kernels is written");
}
