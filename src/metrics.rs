//! Numbers of a training run on disk: a CSV that survives interruptions, and TensorBoard's event files.

use crate::{Error, Result, files};
use std::{
    fmt::Write as _,
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
}

impl MetricsFile {
    /// Opens `path` for a run whose next step is `next_step`, creating the file if it does not exist.
    ///
    /// Rows of `next_step` and later are removed (they are about to be logged again; 0 starts afresh), and so is a last line that a
    /// crash cut short. A file with other columns is refused and left as it is. `names` must be free of commas and line ends.
    pub fn open(path: &Path, names: &[&str], next_step: u64) -> Result<Self> {
        assert!(names.iter().all(|n| !n.contains([',', '\n', '\r'])), "MetricsFile: names {names:?}");
        let header = std::iter::once("step").chain(names.iter().copied()).collect::<Vec<_>>().join(",");
        let mut kept = header.clone() + "\n";
        let old = match std::fs::read(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|e| Error::io("read", path, e))?,
        };
        let old = String::from_utf8_lossy(&old);
        let (mut rows, torn) = complete_lines(&old);
        let (found, ours) = rows.next().map_or((torn, header.starts_with(torn)), |found| (found, found == header));
        if !ours {
            return Err(Error::Usage(format!(
                "{} has the columns {found:?} but this run logs {header:?}: choose another folder, or move that file away",
                path.display()
            )));
        }
        for (i, row) in rows.enumerate() {
            if parse(row, names.len()).ok_or_else(|| bad_row(path, i + 2))?.0 < next_step {
                kept.push_str(row);
                kept.push('\n');
            }
        }
        files::write_atomically(path, |out| out.write_all(kept.as_bytes()))?;
        let file = File::options().append(true).open(path).map_err(|e| Error::io("open", path, e))?;
        Ok(Self { file, path: path.into(), columns: names.len() })
    }

    /// Appends the row of `step`, one value per name, and hands it to the operating system at once.
    ///
    /// Values are written with as few digits as read back to the same value, those that are not finite as `nan`, `inf`, `-inf`.
    pub fn log(&mut self, step: u64, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.columns, "MetricsFile: values and names");
        let mut row = step.to_string();
        for value in values {
            let text = format!("{value:?}").to_lowercase();
            let _ = write!(row, ",{}", text.strip_suffix(".0").unwrap_or(&text));
        }
        row.push('\n');
        self.file.write_all(row.as_bytes()).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// What a [`MetricsFile`] holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// The step of each row.
    pub steps: Vec<u64>,
    /// The names of the columns, without `step`.
    pub names: Vec<String>,
    /// `columns[i][row]` belongs to `names[i]`.
    pub columns: Vec<Vec<f32>>,
}

impl Metrics {
    /// Reads a file, also one that is being written: a last line without its end is left out.
    pub fn read(path: &Path) -> Result<Self> {
        let text = files::read(path)?;
        let text = String::from_utf8_lossy(&text);
        let (mut rows, _) = complete_lines(&text);
        let header = rows.next().filter(|line| line.split(',').next() == Some("step")).ok_or_else(|| {
            Error::Usage(format!("{} does not begin with the column step: it is not a file of metrics", path.display()))
        })?;
        let names: Vec<String> = header.split(',').skip(1).map(str::to_owned).collect();
        let mut metrics = Self { steps: Vec::new(), columns: vec![Vec::new(); names.len()], names };
        for (i, row) in rows.enumerate() {
            let (step, values) = parse(row, metrics.names.len()).ok_or_else(|| bad_row(path, i + 2))?;
            metrics.steps.push(step);
            for (column, value) in metrics.columns.iter_mut().zip(values) {
                column.push(value);
            }
        }
        Ok(metrics)
    }

    /// The column `name` as points `(step, value)`, ready to be plotted; `None` if there is no such column.
    pub fn points(&self, name: &str) -> Option<Vec<(f64, f64)>> {
        let column = &self.columns[self.names.iter().position(|n| n == name)?];
        Some(self.steps.iter().zip(column).map(|(&step, &value)| (step as f64, f64::from(value))).collect())
    }
}

/// The lines that are complete, and what follows the last line end.
fn complete_lines(text: &str) -> (std::str::Lines<'_>, &str) {
    let end = text.rfind('\n').map_or(0, |i| i + 1);
    (text[..end].lines(), &text[end..])
}

/// The step and the values of a row; `None` if it is not one of `columns` values.
fn parse(row: &str, columns: usize) -> Option<(u64, Vec<f32>)> {
    let mut fields = row.split(',');
    let step = fields.next()?.parse().ok()?;
    let values = fields.map(|field| field.parse().ok()).collect::<Option<Vec<f32>>>()?;
    (values.len() == columns).then_some((step, values))
}

fn bad_row(path: &Path, line: usize) -> Error {
    Error::Usage(format!("line {line} of {} is not a row of metrics: repair or remove that file", path.display()))
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
        let path = folder.join(format!("events.out.tfevents.{:010.0}.{host}.{}", now().floor(), std::process::id()));
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
    use std::fs;

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
        log(&mut MetricsFile::open(&whole, &names, 0).unwrap(), 0..10);
        log(&mut MetricsFile::open(&resumed, &names, 0).unwrap(), 0..8);
        // A crash in the middle of a row, then on from a checkpoint that is older than the last rows.
        File::options().append(true).open(&resumed).unwrap().write_all(b"8,2.66").unwrap();
        log(&mut MetricsFile::open(&resumed, &names, 5).unwrap(), 5..10);
        assert_eq!(fs::read_to_string(&resumed).unwrap(), fs::read_to_string(&whole).unwrap());
        assert!(fs::read_to_string(&whole).unwrap().starts_with("step,loss,elbo\n0,0,-0\n1,0.33333334,-1\n"));
    }

    #[test]
    fn values_read_back_as_they_were_also_those_that_are_not_finite() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        let values = [0.1, 1e-4, -3.402_823_5e38, 1e-45, 16_777_216.0, f32::INFINITY, f32::NEG_INFINITY];
        let mut file = MetricsFile::open(&path, &["a"], 0).unwrap();
        values.iter().zip(0..).for_each(|(&v, step)| file.log(step, &[v]).unwrap());
        file.log(7, &[f32::NAN]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "step,a\n0,0.1\n1,0.0001\n2,-3.4028235e38\n3,1e-45\n4,16777216\n5,inf\n6,-inf\n7,nan\n");
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!(metrics.steps, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(metrics.columns[0][..7], values);
        assert!(metrics.columns[0][7].is_nan());
        assert_eq!(metrics.points("a").unwrap()[4], (4.0, 16_777_216.0));
        assert_eq!(metrics.points("b"), None);
    }

    #[test]
    fn a_file_with_other_columns_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        for foreign in ["step,accuracy\n0,1\n", "a note", "step\n"] {
            fs::write(&path, foreign).unwrap();
            let refused = MetricsFile::open(&path, &["loss"], 3).err().unwrap().to_string();
            assert!(refused.contains("step,loss") && refused.contains("another folder"), "{refused}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
        // A header that was cut short is no foreign one.
        fs::write(&path, "step,lo").unwrap();
        MetricsFile::open(&path, &["loss"], 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "step,loss\n");
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_a_broken_row_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.csv");
        fs::write(&path, "step,a,b\n0,1,2\n1,3,4\n2,5").unwrap();
        let metrics = Metrics::read(&path).unwrap();
        assert_eq!((metrics.steps, metrics.columns), (vec![0, 1], vec![vec![1.0, 3.0], vec![2.0, 4.0]]));
        fs::write(&path, "step,a,b\n0,1,2\n1,oops,4\n").unwrap();
        for error in [Metrics::read(&path).err(), MetricsFile::open(&path, &["a", "b"], 9).err()] {
            assert!(error.unwrap().to_string().starts_with("line 3 of "));
        }
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
    }
}
