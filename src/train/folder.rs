//! The folder of a run: taken by one process, begun cleanly.

use crate::{
    Error, Observer, Result, checkpoint,
    files::{self, quoted},
    metrics::EventFile,
};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

const LOCK: &str = ".lock";

/// A folder that no other process can train in. Until [`Claim::keep`] it can be given back as it was.
pub(super) struct Claim {
    /// What was created, innermost first.
    made: Vec<PathBuf>,
    _lock: File,
    kept: bool,
}

impl Claim {
    /// Creates `folder` where it is missing, and locks it.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let folders = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists());
        let mut made: Vec<PathBuf> = folders.map(Path::to_owned).collect();
        let path = folder.join(LOCK);
        if !path.exists() {
            made.insert(0, path.clone());
        }
        files::create_folder(folder)?;
        let lock = File::create(&path).map_err(|e| Error::io("write", &path, e))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let folder = folder.display();
            return Err(Error::Usage(format!(
                "another process is training in {folder}: wait for it, or choose another folder with --out"
            )));
        }
        // Some file systems cannot lock; nothing is lost there but this check.
        Ok(Claim { made, _lock: lock, kept: false })
    }

    /// From here on the folder is a run's.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            for path in &self.made {
                let _ = if path.ends_with(LOCK) { fs::remove_file(path) } else { fs::remove_dir(path) };
            }
        }
    }
}

/// The names of pictures in `history/`.
pub(super) fn picture(step: u64) -> String {
    format!("reconstruction-{step:08}")
}

fn is_picture(name: &str) -> bool {
    let step = |name: &str| name.strip_prefix("reconstruction-")?.parse().ok();
    let stem = name.strip_suffix(".png").or_else(|| name.strip_suffix(".svg"));
    stem.is_some_and(|stem| step(stem).is_some_and(|step| picture(step) == stem))
}

/// Removes what an earlier run without a checkpoint has left in the folder of a new one: files with exactly our names, no others.
pub(super) fn begin(folder: &Path) -> Result<()> {
    EventFile::remove_all(folder)?;
    let history = folder.join("history");
    for name in files::names(&history)?.iter().filter(|name| is_picture(name)) {
        files::remove(&history.join(name))?;
    }
    clear(folder)
}

/// Removes what interrupted writes have left behind.
pub(super) fn clear(folder: &Path) -> Result<()> {
    let ours = ["metrics.csv", "metrics.svg", "reconstruction.png", "reconstruction.svg"];
    files::remove_abandoned(folder, |name| ours.contains(&name))?;
    files::remove_abandoned(&folder.join("history"), is_picture)?;
    checkpoint::prune(folder, usize::MAX)
}

/// Sets aside the checkpoints of `folder` that are newer than update `step`, at which the run goes on.
pub(super) fn set_aside(folder: &Path, step: u64, observer: &dyn Observer) -> Result<()> {
    let newer: Vec<u64> = checkpoint::steps(folder)?.into_iter().filter(|&other| other > step).collect();
    if newer.is_empty() {
        return Ok(());
    }
    let place = |n: u64| folder.join(if n == 1 { "set-aside".to_owned() } else { format!("set-aside-{n}") });
    let place = (1..).map(place).find(|place| !place.exists()).expect("one of them is free");
    files::create_folder(&place)?;
    for &step in &newer {
        let (from, to) = (checkpoint::path(folder, step), checkpoint::path(&place, step));
        fs::rename(&from, &to).map_err(|e| Error::io("move", &from, e))?;
    }
    observer.note(&format!("The checkpoints of later steps ({}) are now in {}.", newer.len(), quoted(&place)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_not_used_is_given_back_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b/c");
        drop(Claim::new(&folder).unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        let old = root.path().join("old");
        fs::create_dir(&old).unwrap();
        fs::write(old.join("note"), "mine").unwrap();
        let first = Claim::new(&old.join("new")).unwrap();
        assert!(Claim::new(&old.join("new")).err().unwrap().to_string().contains("another process"));
        drop(first);
        assert_eq!(files::names(&old).unwrap(), ["note"]);
        let mut kept = Claim::new(&folder).unwrap();
        kept.keep();
        drop(kept);
        assert!(folder.join(LOCK).exists());
    }

    #[test]
    fn a_new_run_takes_away_exactly_what_a_dead_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let history = folder.path().join("history");
        fs::create_dir(&history).unwrap();
        let theirs = ["reconstruction-1.png", "reconstruction-00000001.jpg", "reconstruction-best.png", "note.txt"];
        for name in theirs.iter().chain(&["reconstruction-00000001.png", "reconstruction-00000500.svg"]) {
            fs::write(history.join(name), "").unwrap();
        }
        let foreign = [
            "events.out.tfevents.1700000000.host.12",
            "events.out.tfevents.1700000000.host.12.0",
            "events.out.tfevents.profile.dood",
            "my.events.out.tfevents.1700000000.host.12.dood",
            "reconstruction-00000001.png",
        ];
        let ours = ["events.out.tfevents.1700000000.host.12.dood", "events.out.tfevents.1700000001.a.host.name.7.dood"];
        let partial = [".metrics.csv.12.partial", ".reconstruction.png.3.partial"];
        for name in foreign.iter().chain(&ours).chain(&partial) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        begin(folder.path()).unwrap();
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let expected = |names: &[&str]| sorted(names.iter().map(|name| name.to_string()).collect());
        assert_eq!(sorted(files::names(&history).unwrap()), expected(&theirs));
        assert_eq!(sorted(files::names(folder.path()).unwrap()), expected(&foreign));
    }
}
