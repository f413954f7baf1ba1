//! Numbers of a training run on disk: a CSV that survives interruptions, and TensorBoard's event files.

use crate::{Error, Observer, Result, files};
use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Metrics as a CSV that grows by a row per logged step: `step`, then one column per name.
///
/// A run that is interrupted and resumed leaves the same file as one that never stopped.
pub struct MetricsFile {
    file: File,
    path: PathBuf,
    columns: usize,
    /// Whether the last row may have been written in part.
    torn: bool,
}

impl MetricsFile {
    /// Whether a new run could begin to log to `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] if that is a file with other columns, so somebody else's.
    pub fn check(path: &Path, names: &[&str]) -> Result<()> {
        let (text, header) = (read_if_there(path)?, header(names));
        match Lines::of(&text).header {
            Some(found) if found != header => Err(Error::Usage(format!(
                "{} has the columns {} but this run logs {}: choose another folder, or move that file away",
                path.display(),
                shortened(found),
                shortened(&header)
            ))),
            None if !header.starts_with(Lines::of(&text).torn) => Err(Error::Usage(format!(
                "{} holds {} instead of metrics: choose another folder, or move that file away",
                path.display(),
                shortened(Lines::of(&text).torn)
            ))),
            _ => Ok(()),
        }
    }

    /// Opens `path` for a run whose next step is `next_step`, creating the file if it does not exist.
    ///
    /// Rows of `next_step` and later are removed (they are about to be logged again; 0 starts afresh), and so is a last line that a
    /// crash cut short. What is no row stays where it is and is told to `observer`. If the file of a run that goes on has other columns,
    /// it is set aside, and those with our names are taken over. `names` must be free of commas and line ends.
    ///
    /// # Errors
    /// As [`MetricsFile::check`], for a run that begins. [`Error::Io`].
    pub fn open(path: &Path, names: &[&str], next_step: u64, observer: &dyn Observer) -> Result<Self> {
        assert!(names.iter().all(|n| !n.contains([',', '\n', '\r'])), "MetricsFile: names {names:?}");
        if next_step == 0 {
            Self::check(path, names)?;
        }
        let old = read_if_there(path)?;
        let lines = Lines::of(&old);
        let found: Vec<&str> = lines.header.map_or(vec![], |found| found.split(',').collect());
        // Where each of our columns is in the old file.
        let places: Vec<Option<usize>> = names.iter().map(|name| found.iter().position(|old| old == name)).collect();
        let ours = found.first() == Some(&"step") && places.iter().any(Option::is_some);
        let mut kept = header(names) + "\n";
        if next_step > 0 && ours {
            let mut strange = vec![];
            for &(number, row) in &lines.rows {
                match parse(row, found.len() - 1) {
                    Some((step, _)) if step >= next_step => {}
                    Some((step, _)) => {
                        let fields: Vec<&str> = row.split(',').collect();
                        let fields = places.iter().map(|place| place.map_or("", |place| fields[place]));
                        kept.extend([&row_of(step, fields)[..], "\n"]);
                    }
                    None => {
                        strange.push(number);
                        kept.extend([row, "\n"]);
                    }
                }
            }
            if let Some(first) = strange.first() {
                let more =
                    if strange.len() > 1 { format!(", nor are {} more", strange.len() - 1) } else { String::new() };
                observer.note(&format!("Line {first} of {} is no row of metrics{more}: passed over.", path.display()));
            }
        }
        let lost = found.iter().any(|old| *old != "step" && !names.contains(old));
        if next_step > 0 && lost && !lines.rows.is_empty() {
            let aside = (1..).map(|n| path.with_extension(format!("{n}.csv"))).find(|aside| !aside.exists());
            let aside = aside.expect("one of them is free");
            std::fs::rename(path, &aside).map_err(|e| Error::io("move", path, e))?;
            observer.note(&format!("{} had other columns and is now {}.", path.display(), aside.display()));
        }
        files::write_atomically(path, |out| out.write_all(kept.as_bytes()))?;
        let file = File::options().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { file, path: path.into(), columns: names.len(), torn: false })
    }

    /// Appends the row of `step` and hands it to the operating system at once. With fewer values than names the last columns stay empty.
    ///
    /// Values are written with as few digits as read back to the same value, those that are not finite as `nan`, `inf`, `-inf`.
    pub fn log(&mut self, step: u64, values: &[f32]) -> Result<()> {
        assert!(values.len() <= self.columns, "MetricsFile: values and names");
        let texts: Vec<String> = values.iter().map(|value| format!("{value:?}").to_lowercase()).collect();
        let fields = (0..self.columns).map(|i| texts.get(i).map_or("", |text| text.strip_suffix(".0").unwrap_or(text)));
        let row = format!("{}{}\n", if self.torn { "\n" } else { "" }, row_of(step, fields));
        self.torn = true;
        self.file.write_all(row.as_bytes()).map_err(|e| Error::io("write", &self.path, e))?;
        self.torn = false;
        Ok(())
    }
}

fn header(names: &[&str]) -> String {
    std::iter::once("step").chain(names.iter().copied()).collect::<Vec<_>>().join(",")
}

fn row_of<'a>(step: u64, fields: impl Iterator<Item = &'a str>) -> String {
    fields.fold(step.to_string(), |row, field| row + "," + field)
}

/// The beginning of a line of somebody else's.
fn shortened(line: &str) -> String {
    let start: String = line.chars().take(60).collect();
    if start.len() < line.len() { format!("{start:?}…") } else { format!("{start:?}") }
}

fn read_if_there(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => Ok(String::from_utf8_lossy(&read.map_err(|e| Error::io("read", path, e))?).into_owned()),
    }
}

/// What a [`MetricsFile`] holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The step of each row.
    pub steps: Vec<u64>,
    /// The names of the columns, without `step`.
    pub names: Vec<String>,
    /// `columns[i][row]` belongs to `names[i]`; `None` where nothing was measured.
    pub columns: Vec<Vec<Option<f32>>>,
}

impl Metrics {
    /// Reads a file, also one that is being written: a last line without its end is left out, and so is what is no row.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read(path)?;
        let text = String::from_utf8_lossy(&text);
        let lines = Lines::of(&text);
        let header = lines.header.filter(|line| line.split(',').next() == Some("step")).ok_or_else(|| {
            Error::Usage(format!("{} does not begin with the column step: it is not a file of metrics", path.display()))
        })?;
        let names: Vec<String> = header.split(',').skip(1).map(str::to_owned).collect();
        let mut metrics = Self { steps: Vec::new(), columns: vec![Vec::new(); names.len()], names };
        for (step, values) in lines.rows.iter().filter_map(|(_, row)| parse(row, metrics.names.len())) {
            metrics.steps.push(step);
            for (column, value) in metrics.columns.iter_mut().zip(values) {
                column.push(value);
            }
        }
        Ok(metrics)
    }

    /// The column `name` as points `(step, value)` where it was measured, ready to be plotted; `None` if there is no such column.
    pub fn points(&self, name: &str) -> Option<Vec<(f64, f64)>> {
        let column = &self.columns[self.names.iter().position(|n| n == name)?];
        let point = |(&step, &value): (&u64, &Option<f32>)| Some((step as f64, f64::from(value?)));
        Some(self.steps.iter().zip(column).filter_map(point).collect())
    }
}

/// The parts of a CSV as spreadsheets and editors leave it too: with a byte order mark, blank lines, carriage returns.
struct Lines<'a> {
    header: Option<&'a str>,
    /// With their numbers, from 1.
    rows: Vec<(usize, &'a str)>,
    /// What follows the last line end.
    torn: &'a str,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let end = text.rfind('\n').map_or(0, |i| i + 1);
        let lines = text[..end].lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
        let mut lines = lines.filter(|(_, line)| !line.is_empty());
        Lines { header: lines.next().map(|(_, line)| line), rows: lines.collect(), torn: &text[end..] }
    }
}

/// The step and the values of a row; `None` if it is not one of `columns` values.
fn parse(row: &str, columns: usize) -> Option<(u64, Vec<Option<f32>>)> {
    let mut fields = row.split(',').map(str::trim);
    let step = fields.next()?.parse().ok()?;
    let value = |field: &str| if field.is_empty() { Some(None) } else { field.parse().ok().map(Some) };
    let values = fields.map(value).collect::<Option<Vec<_>>>()?;
    (values.len() == columns).then_some((step, values))
}

/// Scalars as an event file that TensorBoard shows.
///
/// The file is a sequence of TFRecords, each an `Event` message of `tensorboard/compat/proto/event.proto`.
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Starts a new event file in `folder` for a run whose next step is `next_step`: TensorBoard then forgets what earlier files of
    /// the folder say about that step and later ones.
    pub fn create(folder: &Path, next_step: u64) -> Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
        let path = folder.join(format!("{PREFIX}{:010.0}.{host}.{}{SUFFIX}", now().floor(), std::process::id()));
        // Appending: a run that restarts within the same second continues its file.
        let file = File::options().create(true).append(true).open(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut events = Self { file, path };
        events.event(0, &message(3, b"brain.Event:2"))?;
        if next_step > 0 {
            // SessionLog { status: START }
            events.event(next_step, &message(7, &[1 << 3, 1]))?;
        }
        Ok(events)
    }

    /// Removes all event files of `folder` that were written here: those of other programs have other names.
    pub fn remove_all(folder: &Path) -> Result<()> {
        let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_ours = |name: &str| -> Option<bool> {
            let (time, rest) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('.')?;
            let (_, process) = rest.rsplit_once('.')?;
            Some(time.len() >= 10 && all_digits(time) && all_digits(process))
        };
        let names = files::names(folder)?;
        names.iter().filter(|name| is_ours(name) == Some(true)).try_for_each(|name| files::remove(&folder.join(name)))
    }

    /// Appends the values of `step`, each under its tag; a `/` in a tag groups charts.
    pub fn log(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = message(1, tag.as_bytes());
            entry.push(2 << 3 | 5);
            entry.extend(value.to_le_bytes());
            summary.extend(message(1, &entry));
        }
        self.event(step, &message(5, &summary))
    }

    /// Appends an `Event { wall_time, step, … }` whose remaining field is already encoded.
    fn event(&mut self, step: u64, field: &[u8]) -> Result<()> {
        let mut event = vec![1 << 3 | 1];
        event.extend(now().to_le_bytes());
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(field);
        self.file.write_all(&record(&event)).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// The names of event files: TensorBoard looks for the first part, the last one says whose they are.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".dood";

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

/// A length-delimited field of a protobuf message, numbers below 16.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![number << 3 | 2], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Protobuf's base-128 integer: seven bits per byte, low ones first, the top bit set on all but the last.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// TFRecord framing: length, its checksum, data, its checksum.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length, &masked_crc32c(&length).to_le_bytes()[..], data, &masked_crc32c(data).to_le_bytes()].concat()
}

/// The checksum of TFRecords: a rotated CRC, so that data that holds its own CRC is still protected.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli; RFC 3720, section 12.1), bit by bit: events are small.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Silent;
    use std::{fs, sync::Mutex};

    fn log(metrics: &mut MetricsFile, steps: std::ops::Range<u64>) {
        for step in steps {
            metrics.log(step, &[step as f32 / 3.0, -(step as f32)]).unwrap();
        }
    }

    #[test]
    fn a_resumed_run_leaves_the_file_of_an_uninterrupted_one() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, resumed) = (folder.path().join("whole.csv"), folder.path().join("resumed.csv"));
        let names = ["loss", "elbo"];
        log(&mut MetricsFile::open(&whole, &names, 0, &Silent).unwrap(), 0..10);
        log(&mut MetricsFile::open(&resumed, &names, 0, &Silent).unwrap(), 0..8);
        // A crash in the middle of a row, then on from a checkpoint that is older than the last rows.
        File::options().append(true).open(&resumed).unwrap().write_all(b"8,2.66").unwrap();
        log(&mut MetricsFile::open(&resumed, &names, 5, &Silent).unwrap(), 5..10);
        assert_eq!(fs::read_to_string(&resumed).unwrap(), fs::read_to_string(&whole).unwrap());
        assert!(fs::read_to_string(&whole).unwrap().starts_with("step,loss,elbo\n0,0,-0\n1,0.33333334,-1\n"));
    }

    #[test]
    fn values_read_back_as_they_were_also_those_that_are_not_finite() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let values = [0.1, 1e-4, -3.402_823_5e38, 1e-45, 16_777_216.0, f32::INFINITY, f32::NEG_INFINITY];
        let mut file = MetricsFile::open(&path, &["a"], 0, &Silent).unwrap();
        values.iter().zip(0..).for_each(|(&v, step)| file.log(step, &[v]).unwrap());
        file.log(7, &[f32::NAN]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "step,a\n0,0.1\n1,0.0001\n2,-3.4028235e38\n3,1e-45\n4,16777216\n5,inf\n6,-inf\n7,nan\n");
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!(metrics.steps, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(metrics.columns[0][..7], values.map(Some));
        assert!(metrics.columns[0][7].unwrap().is_nan());
        assert_eq!(metrics.points("a").unwrap()[4], (4.0, 16_777_216.0));
        assert_eq!(metrics.points("b"), None);
    }

    /// Collects what it is told.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Observer for Notes {
        fn note(&self, sentence: &str) {
            self.0.lock().unwrap().push(sentence.into());
        }
    }

    #[test]
    fn a_new_run_refuses_somebody_elses_file_and_leaves_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        for foreign in ["step,accuracy\n0,1\n", "a note", "step\n", "epoch,loss\n"] {
            fs::write(&path, foreign).unwrap();
            let refused = MetricsFile::open(&path, &["loss"], 0, &Silent).err().unwrap().to_string();
            assert!(refused.contains("another folder"), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
        // A header that was cut short is no foreign one.
        fs::write(&path, "step,lo").unwrap();
        MetricsFile::open(&path, &["loss"], 0, &Silent).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n");
        fs::write(&path, format!("step,{}\n", "a,".repeat(5_000))).unwrap();
        let refused = MetricsFile::open(&path, &["loss"], 0, &Silent).err().unwrap().to_string();
        assert!(refused.len() < 400, "{refused}");
    }

    #[test]
    fn a_run_that_goes_on_is_not_stopped_by_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let after = |old: &[u8]| {
            fs::write(&path, old).unwrap();
            let notes = Notes::default();
            MetricsFile::open(&path, &["loss", "elbo"], 5, &notes).unwrap().log(5, &[1.0]).unwrap();
            (fs::read_to_string(&path).unwrap(), notes.0.into_inner().unwrap())
        };
        let clean = "step,loss,elbo\n1,2,3\n5,1,\n";
        for old in [
            &b"step,loss,elbo\n1,2,3\n"[..],
            b"\xef\xbb\xbfstep,loss,elbo\n1,2,3\n",
            b"step,loss,elbo\r\n1,2,3\r\n",
            b"\n\nstep,loss,elbo\n\n1,2,3\n\n\n",
            b"step,loss,elbo\n1,2,3\n4,2",
            b"step,loss,elbo\n1, 2, 3\n7,2,3\n",
            b"step,elbo,loss\n1,3,2\n",
        ] {
            let (text, notes) = after(old);
            assert_eq!((text.replace(' ', ""), notes), (clean.into(), vec![]), "{}", String::from_utf8_lossy(old));
        }
        // A column that is new is empty where it was not measured, and not plotted.
        assert_eq!(after(b"step,loss\n1,2\n").0, "step,loss,elbo\n1,2,\n5,1,\n");
        assert_eq!(Metrics::read(&path).unwrap().points("elbo"), Some(vec![]));
        // What is no row stays.
        let (text, notes) = after(b"step,loss,elbo\n1,2,3\n# mine\n2,oops,3\n3,1,2,4\n");
        assert_eq!(text, "step,loss,elbo\n1,2,3\n# mine\n2,oops,3\n3,1,2,4\n5,1,\n");
        assert!(notes[0].starts_with("Line 3 of ") && notes[0].contains("2 more"), "{notes:?}");
        assert_eq!(Metrics::read(&path).unwrap().steps, [1, 5]);
        // Nothing of it is ours.
        let (text, notes) = after(b"epoch,accuracy\n1,2\n");
        assert_eq!(text, "step,loss,elbo\n5,1,\n");
        let aside = folder.path().join("metrics.1.csv");
        assert!(notes[0].contains(aside.to_str().unwrap()), "{notes:?}");
        assert_eq!(fs::read_to_string(aside).unwrap(), "epoch,accuracy\n1,2\n");
        let (text, notes) = after(b"step,elbo,loss,kl\n1,3,2,9\n");
        assert_eq!((&text[..], notes.len()), (clean, 1));
        let aside = folder.path().join("metrics.2.csv");
        assert_eq!(fs::read_to_string(aside).unwrap(), "step,elbo,loss,kl\n1,3,2,9\n");
        for empty in [&b""[..], b"\n\n", b"step,lo", b"\0\0\0"] {
            assert_eq!(after(empty).0, "step,loss,elbo\n5,1,\n");
        }
    }

    #[test]
    fn what_is_no_row_is_left_out_and_what_is_no_metrics_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        fs::write(&path, "step,a,b\n0,1,2\n1,oops,4\n1,3,4\n2,5").unwrap();
        let metrics = Metrics::read(&path).unwrap();
        let some = |values: [f32; 2]| values.map(Some).to_vec();
        assert_eq!((metrics.steps, metrics.columns), (vec![0, 1], vec![some([1.0, 3.0]), some([2.0, 4.0])]));
        for foreign in ["hello\n", "steps,a\n", "", "step,a"] {
            fs::write(&path, foreign).unwrap();
            assert!(Metrics::read(&path).unwrap_err().to_string().contains("not a file of metrics"), "{foreign}");
        }
    }

    #[test]
    fn checksums_and_integers_give_known_answers() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!([varint(0), varint(127), varint(300)], [vec![0], vec![127], vec![0xac, 2]]);
    }

    #[test]
    fn an_event_file_holds_version_start_and_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 300).unwrap();
        events.log(300, &[("a", 1.0), ("bc", -2.5)]).unwrap();
        let bytes = fs::read(&events.path).unwrap();
        let mut rest = &bytes[..];
        let mut bodies = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let (framed, after) = rest.split_at(16 + length);
            assert_eq!(framed, record(&framed[12..12 + length]));
            // Every event begins with the time (tag and eight bytes).
            assert_eq!(framed[12], 0x09);
            bodies.push(framed[12 + 9..12 + length].to_vec());
            rest = after;
        }
        assert_eq!(bodies[0], b"\x10\x00\x1a\x0dbrain.Event:2");
        assert_eq!(bodies[1], b"\x10\xac\x02\x3a\x02\x08\x01");
        assert_eq!(
            bodies[2],
            b"\x10\xac\x02\x2a\x15\x0a\x08\x0a\x01a\x15\x00\x00\x80\x3f\x0a\x09\x0a\x02bc\x15\x00\x00\x20\xc0"
        );
        let name = events.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.1"), "{name}");
        EventFile::remove_all(folder.path()).unwrap();
        assert!(!events.path.exists());
    }
}
