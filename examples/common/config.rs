//! Files that hold the sizes and settings of a run.

use dood::{
    Error, Result, files,
    files::quoted,
    model::Config,
    train::{Overrides, Plan, Settings},
};
use serde::Serialize;
use std::path::Path;

/// Reads the fields that a TOML file gives, in its tables `[model]` and `[run]`.
pub fn read(path: &Path) -> Result<Overrides> {
    let bytes = files::read(path)?;
    let wrong = |what: String| Error::Usage(format!("{} cannot be used as a configuration: {what}", quoted(path)));
    let text = str::from_utf8(&bytes).map_err(|_| wrong("it is not a text file in UTF-8".into()))?;
    toml::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        // The first line says what, the others point at it.
        wrong(format!("line {line}: {}", e.message().lines().next().unwrap_or_default()))
    })
}

/// What is in force, as such a file.
pub fn text(plan: &Plan) -> Result<String> {
    #[derive(Serialize)]
    struct File<'a> {
        model: &'a Config,
        run: &'a Settings,
    }
    let file = File { model: &plan.config, run: &plan.settings };
    toml::to_string(&file).map_err(|e| Error::Usage(format!("this configuration cannot be written as TOML: {e}")))
}
