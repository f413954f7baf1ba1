//! Downloading data sets from a small server on the loopback.

mod common;

use common::{assert_says, characters, real, run_files, source, write, zip_file};
use dood::{
    data::{
        Set,
        download::{Check, Downloader, Remote, remotes},
        load,
    },
    observer::Silent,
};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::tempdir;

/// How the server answers requests.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// With what was asked for.
    Honest,
    /// The connection breaks halfway through each of the first `n` answers.
    Cuts(usize),
    /// As `Cuts(1)`, and `Range` is ignored.
    CutsAndIgnoresRange,
    /// With the whole file as `200`, whatever the range.
    IgnoresRange,
    /// With an error status.
    Fails(u16),
    /// With 503 twice, then honestly.
    BusyTwice,
}

/// The path and the `Range` of each request.
type Requests = Mutex<Vec<(String, Option<String>)>>;

/// A file server on the loopback. It runs until the test program ends.
struct Server {
    address: String,
    requests: Arc<Requests>,
}

fn serve(list: Vec<(String, Vec<u8>)>, manner: Manner) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = answer(stream.unwrap(), &list, manner, &seen);
        }
    });
    Server { address, requests }
}

fn answer(
    mut stream: TcpStream,
    list: &[(String, Vec<u8>)],
    manner: Manner,
    requests: &Requests,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap_or(Ok(String::new()))?.split(' ').nth(1).unwrap_or("").to_string();
    let mut range = None;
    for line in lines.by_ref() {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        range = range.or(line.strip_prefix("range: ").map(str::to_string));
    }
    let count = {
        let mut requests = requests.lock().unwrap();
        requests.push((path.clone(), range.clone()));
        requests.len()
    };
    let status = match manner {
        Manner::Fails(status) => Some(status),
        Manner::BusyTwice if count <= 2 => Some(503),
        _ => None,
    };
    let found = list.iter().find(|(name, _)| path == format!("/{}", name.replace(' ', "%20")));
    let (Some((_, body)), None) = (found, status) else {
        let status = status.unwrap_or(404);
        return write!(stream, "HTTP/1.1 {status} Sorry\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry");
    };
    let deaf = matches!(manner, Manner::IgnoresRange | Manner::CutsAndIgnoresRange);
    let start = range.filter(|_| !deaf).map(|r| r["bytes=".len()..r.len() - 1].parse::<usize>().unwrap());
    match start {
        Some(start) if start >= body.len() => {
            let whole = body.len();
            return write!(
                stream,
                "HTTP/1.1 416 No\r\nContent-Range: bytes */{whole}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Some(start) => write!(
            stream,
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes {start}-{}/{}\r\n",
            body.len() - 1,
            body.len()
        )?,
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    let rest = &body[start.unwrap_or(0)..];
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", rest.len())?;
    let cut = match manner {
        Manner::Cuts(n) => count <= n,
        Manner::CutsAndIgnoresRange => count == 1,
        _ => false,
    };
    stream.write_all(if cut { &rest[..rest.len() / 2] } else { rest })
}

fn sha256(bytes: &[u8]) -> &'static str {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    digest.leak()
}

fn contents() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

fn remote(server: &Server, bytes: &[u8]) -> Remote {
    Remote {
        address: format!("{}/file.bin", server.address),
        name: "file.bin".into(),
        check: Check::File(bytes.len() as u64, sha256(bytes)),
    }
}

fn downloader() -> Downloader {
    Downloader { mirror: None, attempts: 3, pause: Duration::from_millis(1) }
}

/// Everything in a folder, hidden or not.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Downloads `file.bin` from a server of this manner: the outcome, what the folder holds then, and the ranges asked for.
fn download(manner: Manner, begun: Option<&[u8]>) -> (Result<(), String>, Vec<String>, Vec<Option<String>>) {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let server = serve(vec![("file.bin".into(), bytes.clone())], manner);
    if let Some(begun) = begun {
        write(folder.path(), "file.bin.partial", begun);
    }
    let result = downloader().file(&remote(&server, &bytes), folder.path(), &Silent).map_err(|e| e.to_string());
    if result.is_ok() {
        assert_eq!(fs::read(folder.path().join("file.bin")).unwrap(), bytes);
    }
    let ranges = server.requests.lock().unwrap().iter().map(|(_, range)| range.clone()).collect();
    (result, listing(folder.path()), ranges)
}

#[test]
fn a_download_leaves_the_file_and_nothing_else_and_is_not_repeated() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let server = serve(vec![("file.bin".into(), bytes.clone())], Manner::Honest);
    for _ in 0..2 {
        downloader().file(&remote(&server, &bytes), folder.path(), &Silent).unwrap();
    }
    assert_eq!(fs::read(folder.path().join("file.bin")).unwrap(), bytes);
    assert_eq!(listing(folder.path()), ["file.bin"]);
    assert_eq!(*server.requests.lock().unwrap(), [("/file.bin".to_string(), None)]);
}

#[test]
fn a_cut_connection_is_continued_where_it_stopped() {
    let (result, left, ranges) = download(Manner::Cuts(2), None);
    assert_eq!((result, left), (Ok(()), vec!["file.bin".to_string()]));
    assert_eq!(ranges, [None, Some("bytes=150000-".into()), Some("bytes=225000-".into())]);
}

#[test]
fn a_download_of_an_earlier_run_is_continued() {
    let begun = &contents()[..100_000];
    let (result, left, ranges) = download(Manner::Honest, Some(begun));
    assert_eq!((result, left), (Ok(()), vec!["file.bin".to_string()]));
    assert_eq!(ranges, [Some("bytes=100000-".into())]);
    // It may even have been whole.
    let (result, left, ranges) = download(Manner::Honest, Some(&contents()));
    assert_eq!((result, left), (Ok(()), vec!["file.bin".to_string()]));
    assert_eq!(ranges, [Some("bytes=300000-".into())]);
}

#[test]
fn a_wrong_beginning_is_thrown_away_and_fetched_again() {
    for begun in [vec![0; 100_000], vec![0; 300_000], vec![0; 400_000]] {
        let (result, left, ranges) = download(Manner::Honest, Some(&begun));
        assert_eq!((result, left), (Ok(()), vec!["file.bin".to_string()]));
        assert_eq!(ranges.last().unwrap(), &None);
    }
}

#[test]
fn a_server_that_ignores_ranges_sends_the_file_from_the_start() {
    for manner in [Manner::IgnoresRange, Manner::CutsAndIgnoresRange] {
        let (result, left, _) = download(manner, Some(&contents()[..1000]));
        assert_eq!((result, left), (Ok(()), vec!["file.bin".to_string()]));
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    let (result, _, ranges) = download(Manner::BusyTwice, None);
    assert_eq!((result, ranges.len()), (Ok(()), 3));
    let (result, left, ranges) = download(Manner::Fails(500), None);
    assert_says(&result.unwrap_err(), &["cannot download http://127.0.0.1", "500", "by other means"]);
    assert_eq!((left.len(), ranges.len()), (0, 3));
}

#[test]
fn a_missing_file_is_said_at_once() {
    let (result, left, ranges) = download(Manner::Fails(404), None);
    assert_says(&result.unwrap_err(), &["file.bin cannot be fetched", "404", "may have moved"]);
    assert_eq!((left.len(), ranges.len()), (0, 1));
}

#[test]
fn a_wrong_file_is_not_kept() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let mut other = bytes.clone();
    other[77] ^= 1;
    let server = serve(vec![("file.bin".into(), other)], Manner::Honest);
    let error = downloader().file(&remote(&server, &bytes), folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["not the expected file", "SHA-256", "instead of", sha256(&bytes)]);
    let mut short = remote(&server, &bytes);
    short.check = Check::File(299_999, sha256(&bytes));
    let error = downloader().file(&short, folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["300000 bytes instead of 299999"]);
    let mut packed = remote(&server, &bytes);
    packed.check = Check::Unpacked(sha256(&bytes));
    assert_says(&downloader().file(&packed, folder.path(), &Silent).unwrap_err().to_string(), &["cannot be unpacked"]);
    assert!(listing(folder.path()).is_empty(), "{:?}", listing(folder.path()));
}

#[test]
fn a_server_that_cannot_be_reached_is_named_and_what_arrived_is_kept() {
    let folder = tempdir().unwrap();
    write(folder.path(), "file.bin.partial", b"some");
    // A port that was free a moment ago: nobody listens.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("http://127.0.0.1:{port}/file.bin");
    let gone = Remote { address: address.clone(), name: "file.bin".into(), check: Check::File(9, "") };
    let error = downloader().file(&gone, folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &[&address, "check the network connection", "after the 4 bytes", "by other means"]);
    assert_eq!(listing(folder.path()), ["file.bin.partial"]);
}

#[test]
fn two_downloads_of_one_file_do_not_mix() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let server = serve(vec![("file.bin".into(), bytes.clone())], Manner::Honest);
    let other = fs::File::create(folder.path().join("file.bin.partial")).unwrap();
    other.lock().unwrap();
    let error = downloader().file(&remote(&server, &bytes), folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["being downloaded by another process"]);
    drop(other);
    downloader().file(&remote(&server, &bytes), folder.path(), &Silent).unwrap();
}

#[test]
fn only_public_sets_can_be_downloaded() {
    for text in ["idx:x", "synthetic"] {
        let error = downloader().fetch(&text.parse().unwrap(), &Silent).unwrap_err();
        assert_says(&error.to_string(), &[text, "cannot be downloaded"]);
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn every_set_has_an_address_and_a_check_for_each_of_its_files() {
    for (set, count) in Set::ALL.into_iter().zip([4, 4, 1, 10, 3]) {
        let list = remotes(set);
        assert_eq!(list.len(), count);
        for Remote { address, name, check } in list {
            assert!(address.starts_with("http") && address.ends_with(&name.replace(' ', "%20")), "{address}");
            if let Check::File(_, digest) | Check::Unpacked(digest) = check {
                assert!(digest.len() == 64 && digest.bytes().all(|c| b"0123456789abcdef".contains(&c)), "{digest}");
            }
        }
    }
}

#[test]
fn a_whole_set_is_fetched_from_a_mirror_and_loads() {
    for set in ["mnist", "kmnist"] {
        let Some(real) = real(set) else { return };
        let list = listing(&real).into_iter().map(|name| (name.clone(), fs::read(real.join(name)).unwrap())).collect();
        let server = serve(list, Manner::Cuts(1));
        let folder = tempdir().unwrap();
        let source = source(set, &folder.path().join("new/folder"));
        let mirrored = Downloader { mirror: Some(server.address.clone()), ..downloader() };
        mirrored.fetch(&source, &Silent).unwrap();
        assert_eq!(load(&source, 28).unwrap().train.len(), 60_000);
        // Now there is nothing left to fetch.
        let asked = server.requests.lock().unwrap().len();
        mirrored.fetch(&source, &Silent).unwrap();
        assert_eq!(server.requests.lock().unwrap().len(), asked);
    }
}

#[test]
fn omniglot_from_a_mirror_with_other_bytes_is_refused_but_its_runs_are_accepted() {
    let folder = tempdir().unwrap();
    let list = vec![
        ("images_background.zip".into(), zip_file(&characters("images_background"))),
        ("all_runs.zip".into(), zip_file(&run_files())),
    ];
    let server = serve(list, Manner::Honest);
    let mirrored = Downloader { mirror: Some(server.address.clone()), ..downloader() };
    let error = mirrored.fetch(&source("omniglot", folder.path()), &Silent).unwrap_err().to_string();
    assert_says(&error, &["images_background.zip is not the expected file", "instead of 9464212"]);
    let mut runs = remotes(Set::Omniglot).pop().unwrap();
    runs.address = format!("{}/all_runs.zip", server.address);
    mirrored.file(&runs, folder.path(), &Silent).unwrap();
    runs.address = format!("{}/images_background.zip", server.address);
    runs.name = "wrong.zip".into();
    let error = mirrored.file(&runs, folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["not the expected file", "holds 0 runs"]);
    assert_eq!(listing(folder.path()), ["all_runs.zip"]);
}
