//! Downloading data sets from a small server on the loopback.
#![cfg(feature = "download")]

mod common;

use common::{assert_says, characters, real, run_files, source, write, zip_file};
use dood::{
    Error, Observer,
    data::{
        Set,
        download::{Check, Downloader, Remote, remotes},
        load, one_shot_runs,
    },
    observer::Silent,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
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
            let _ = answer(&mut stream.unwrap(), &list, manner, &seen);
        }
    });
    Server { address, requests }
}

fn answer(
    stream: &mut (impl Read + Write),
    list: &[(String, Vec<u8>)],
    manner: Manner,
    requests: &Requests,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(&mut *stream).lines();
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
    Downloader { mirror: None, attempts: 3, pause: Duration::from_millis(1), certificates: None }
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
    assert_says(
        &result.unwrap_err(),
        &["cannot download http://127.0.0.1", "404", "may have moved", "put file.bin into"],
    );
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
    assert_says(
        &downloader().file(&packed, folder.path(), &Silent).unwrap_err().to_string(),
        &["SHA-256", "file.bin into"],
    );
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

// ---- Files that are there already ----

/// Collects notes.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn note(&self, sentence: &str) {
        self.0.lock().unwrap().push(sentence.into());
    }
}

#[test]
fn a_file_that_fails_its_check_is_fetched_anew() {
    let bytes = contents();
    let mut flipped = bytes.clone();
    flipped[200_000] ^= 1;
    for (held, why, kept) in [
        (&bytes[..1000], "1000 bytes instead of 300000", true),
        (b"", "an empty file", false),
        (b" <!DOCTYPE html><title>Log in</title>", "a web page", false),
        (b"<?xml version='1.0'?><Error/>", "an XML file", false),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer", false),
        (&flipped, "SHA-256", true),
    ] {
        let (folder, notes) = (tempdir().unwrap(), Notes::default());
        let server = serve(vec![("file.bin".into(), bytes.clone())], Manner::Honest);
        write(folder.path(), "file.bin", held);
        downloader().file(&remote(&server, &bytes), folder.path(), &notes).unwrap();
        assert_eq!(fs::read(folder.path().join("file.bin")).unwrap(), bytes);
        assert_eq!(listing(folder.path()).len(), if kept { 2 } else { 1 }, "{why}");
        if kept {
            assert_eq!(fs::read(folder.path().join("file.bin.replaced")).unwrap(), held);
        }
        let notes = notes.0.into_inner().unwrap();
        assert_eq!(notes.len(), 1);
        assert_says(&notes[0], &["file.bin is not the file that it should be", why, "fetched anew"]);
    }
}

#[test]
fn a_wrong_file_stays_where_it_is_if_no_right_one_can_be_had() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let server = serve(vec![], Manner::Honest);
    write(folder.path(), "file.bin", b"mine");
    assert!(downloader().file(&remote(&server, &bytes), folder.path(), &Silent).is_err());
    assert_eq!(fs::read(folder.path().join("file.bin")).unwrap(), b"mine");
    assert_eq!(listing(folder.path()), ["file.bin"]);
}

#[test]
fn an_unpacked_file_stands_for_the_packed_one() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let server = serve(vec![("file.gz".into(), bytes.clone())], Manner::Honest);
    let remote = Remote {
        address: format!("{}/file.gz", server.address),
        name: "file.gz".into(),
        check: Check::Unpacked(sha256(&bytes)),
    };
    write(folder.path(), "file", &bytes);
    downloader().file(&remote, folder.path(), &Silent).unwrap();
    assert!(server.requests.lock().unwrap().is_empty());
    // A damaged one would be read instead of the packed one, so it is put aside.
    write(folder.path(), "file", &bytes[..7]);
    downloader().file(&remote, folder.path(), &Silent).unwrap();
    assert_eq!(listing(folder.path()), ["file.gz", "file.replaced"]);
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

#[test]
fn a_page_to_log_in_is_called_one_and_other_means_work() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let page = b"<html><body>Welcome to our hotel".to_vec();
    let server = serve(vec![("file.bin".into(), page)], Manner::Honest);
    let mut wanted = remote(&server, &bytes);
    wanted.check = Check::Unpacked(sha256(&bytes));
    let error = downloader().file(&wanted, folder.path(), &Silent).unwrap_err().to_string();
    let place = format!("put file.bin into {} by other means", folder.path().display());
    assert_says(&error, &["not the expected file: it is a web page", "log in", &place]);
    // The advice, followed.
    write(folder.path(), "file.bin", &bytes);
    downloader().file(&wanted, folder.path(), &Silent).unwrap();
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

#[test]
fn running_the_same_command_again_goes_on_where_it_stopped() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let list = || vec![("file.bin".to_string(), bytes.clone())];
    let cut = serve(list(), Manner::Cuts(1));
    let once = Downloader { attempts: 1, ..downloader() };
    let error = once.file(&remote(&cut, &bytes), folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["run the same command again", "after the 150000 bytes"]);
    once.file(&remote(&cut, &bytes), folder.path(), &Silent).unwrap();
    assert_eq!(cut.requests.lock().unwrap()[1].1.as_deref(), Some("bytes=150000-"));
}

#[test]
fn what_the_errors_of_a_damaged_set_advise_works() {
    let Some(real) = real("mnist") else { return };
    let list = listing(&real).into_iter().map(|name| (name.clone(), fs::read(real.join(name)).unwrap()));
    let list: Vec<(String, Vec<u8>)> = list.filter(|(name, _)| name.ends_with(".gz")).collect();
    let server = serve(list.clone(), Manner::Honest);
    let mirrored = Downloader { mirror: Some(server.address.clone()), ..downloader() };
    let name = "t10k-labels-idx1-ubyte.gz";
    let whole = &list.iter().find(|(found, _)| found == name).unwrap().1;
    for damaged in [&whole[..whole.len() / 2], b"", b"<!doctype html>"] {
        for delete in [true, false] {
            let folder = tempdir().unwrap();
            list.iter().for_each(|(name, bytes)| write(folder.path(), name, bytes));
            write(folder.path(), name, damaged);
            let source = source("mnist", folder.path());
            let error = load(&source, 1).unwrap_err().to_string();
            let advice = format!("delete {}, and --download fetches it anew", folder.path().join(name).display());
            assert_says(&error, &[&advice]);
            if delete {
                fs::remove_file(folder.path().join(name)).unwrap();
                assert_says(&load(&source, 1).unwrap_err().to_string(), &["--download"]);
            }
            mirrored.fetch(&source, &Silent).unwrap();
            assert_eq!(load(&source, 1).unwrap().test.len(), 10_000);
        }
    }
    assert_eq!(server.requests.lock().unwrap().len(), 6, "only the damaged file is fetched");
    // Labels of other images.
    let folder = tempdir().unwrap();
    list.iter().for_each(|(name, bytes)| write(folder.path(), name, bytes));
    fs::copy(folder.path().join("train-labels-idx1-ubyte.gz"), folder.path().join(name)).unwrap();
    let source_of = source("mnist", folder.path());
    let error = load(&source_of, 1).unwrap_err().to_string();
    assert_says(&error, &["10000 images", "60000 labels", "delete both, and --download fetches them anew"]);
    ["t10k-images-idx3-ubyte.gz", name].iter().for_each(|name| fs::remove_file(folder.path().join(name)).unwrap());
    mirrored.fetch(&source_of, &Silent).unwrap();
    assert_eq!(load(&source_of, 1).unwrap().test.len(), 10_000);
    // What an earlier download has begun is not taken for the file.
    let folder = tempdir().unwrap();
    list.iter().filter(|(found, _)| found != name).for_each(|(name, bytes)| write(folder.path(), name, bytes));
    write(folder.path(), &format!("{name}.partial"), &whole[..100]);
    let source = source("mnist", folder.path());
    assert_says(&load(&source, 1).unwrap_err().to_string(), &["no t10k-labels-idx1-ubyte"]);
    mirrored.fetch(&source, &Silent).unwrap();
    assert_eq!(load(&source, 1).unwrap().test.len(), 10_000);
}

#[test]
fn a_damaged_zip_is_fetched_anew() {
    let (whole, folder) = (zip_file(&run_files()), tempdir().unwrap());
    let server = serve(vec![("all_runs.zip".into(), whole.clone())], Manner::Honest);
    let mut runs = remotes(Set::Omniglot).pop().unwrap();
    runs.address = format!("{}/all_runs.zip", server.address);
    write(folder.path(), "all_runs.zip", &whole[..5000]);
    let error = one_shot_runs(folder.path(), 1).unwrap_err().to_string();
    let advice = format!("delete {}, and --download fetches it anew", folder.path().join("all_runs.zip").display());
    assert_says(&error, &["not a zip that can be read", &advice]);
    for _ in 0..2 {
        downloader().file(&runs, folder.path(), &Silent).unwrap();
        assert_eq!(one_shot_runs(folder.path(), 1).unwrap().len(), 20);
    }
    assert_eq!(listing(folder.path()), ["all_runs.zip", "all_runs.zip.replaced"]);
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

// ---- The network as it is at work ----

/// A server with TLS, whose certificate a self-made authority has signed; how many connections there were, and the authority's
/// certificate in PEM form.
fn serve_tls(list: Vec<(String, Vec<u8>)>) -> (String, Arc<AtomicUsize>, String) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Gate 7");
    params.distinguished_name.push(DnType::OrganizationName, "Ourselves Ltd");
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let authority = Issuer::new(params, key);
    let own_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_string()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let own = params.signed_by(&own_key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], PrivateKeyDer::Pkcs8(own_key.serialize_der().into()))
        .unwrap();
    let (config, count) = (Arc::new(config), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let seen = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            seen.fetch_add(1, Relaxed);
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream.unwrap());
            let _ = answer(&mut stream, &list, Manner::Honest, &Mutex::default());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (address, count, pem)
}

#[test]
fn a_certificate_that_is_refused_is_not_tried_again_and_its_signer_is_named() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    let (address, connections, pem) = serve_tls(vec![("file.bin".into(), bytes.clone())]);
    let wanted = Remote {
        address: format!("{address}/file.bin"),
        name: "file.bin".into(),
        check: Check::File(300_000, sha256(&bytes)),
    };
    let fetch = |certificates: Option<&Path>| {
        let downloader =
            Downloader { certificates: certificates.map(Into::into), pause: Duration::from_secs(9), ..downloader() };
        downloader.file(&wanted, folder.path(), &Silent).map_err(|e| e.to_string())
    };
    let begun = Instant::now();
    let error = fetch(None).unwrap_err();
    assert_says(
        &error,
        &[
            "certificate of the server is refused",
            "`localhost`",
            "`Gate 7` of `Ourselves Ltd` signed",
            "SSL_CERT_FILE=FILE.pem",
        ],
    );
    // One to fetch the file, one to see who signed.
    assert_eq!(connections.load(Relaxed), 2);
    assert!(begun.elapsed() < Duration::from_secs(9), "no pause");
    assert!(listing(folder.path()).is_empty());
    let file = tempdir().unwrap();
    write(file.path(), "other.pem", b"not a certificate");
    assert_says(
        &fetch(Some(&file.path().join("other.pem"))).unwrap_err(),
        &["other.pem holds no certificates", "SSL_CERT_FILE"],
    );
    assert_says(&fetch(Some(&file.path().join("none.pem"))).unwrap_err(), &["cannot read", "none.pem"]);
    // The advice, followed.
    write(file.path(), "gate.pem", pem.as_bytes());
    fetch(Some(&file.path().join("gate.pem"))).unwrap();
    assert_eq!(fs::read(folder.path().join("file.bin")).unwrap(), bytes);
}

/// The tests below run again in a process of its own with other variables, where this names the server.
const AGAIN: &str = "DOOD_TEST_ADDRESS";

fn in_a_process_with(test: &str, variables: &[(&str, &str)]) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    for name in ["SSL_CERT_DIR", "SSL_CERT_FILE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    let output = command.args(["--exact", test]).envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn ssl_cert_file_is_honoured() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    if let Ok(address) = std::env::var(AGAIN) {
        let check = Check::File(300_000, sha256(&bytes));
        let wanted = Remote { address: format!("{address}/file.bin"), name: "file.bin".into(), check };
        return Downloader::default().file(&wanted, folder.path(), &Silent).unwrap();
    }
    let (address, _, pem) = serve_tls(vec![("file.bin".into(), bytes)]);
    write(folder.path(), "gate.pem", pem.as_bytes());
    let file = folder.path().join("gate.pem");
    in_a_process_with("ssl_cert_file_is_honoured", &[(AGAIN, &address), ("SSL_CERT_FILE", file.to_str().unwrap())]);
    // With SSL_CERT_DIR beside it, both count.
    in_a_process_with(
        "ssl_cert_file_is_honoured",
        &[
            (AGAIN, &address),
            ("SSL_CERT_FILE", file.to_str().unwrap()),
            ("SSL_CERT_DIR", folder.path().to_str().unwrap()),
        ],
    );
}

#[test]
fn a_proxy_is_used() {
    let (bytes, folder) = (contents(), tempdir().unwrap());
    if std::env::var(AGAIN).is_ok() {
        let check = Check::File(300_000, sha256(&bytes));
        let wanted = Remote { address: "http://data.invalid/file.bin".into(), name: "file.bin".into(), check };
        return Downloader::default().file(&wanted, folder.path(), &Silent).unwrap();
    }
    // A proxy is asked for whole addresses, or for a tunnel; this one knows a single file, whatever its host.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            if line.starts_with("CONNECT") {
                while reader.read_line(&mut line).unwrap() > 2 {}
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n").unwrap();
            }
            while reader.read_line(&mut line).unwrap() > 2 {}
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len()).unwrap();
            let _ = stream.write_all(&bytes);
        }
    });
    in_a_process_with("a_proxy_is_used", &[(AGAIN, "x"), ("HTTP_PROXY", &proxy)]);
}

#[test]
fn what_cannot_pass_is_not_tried_again() {
    for status in [400, 401, 403, 404, 407, 410, 451] {
        let (result, left, ranges) = download(Manner::Fails(status), None);
        assert_says(&result.unwrap_err(), &[&status.to_string(), "put file.bin into"]);
        assert_eq!((left.len(), ranges.len()), (0, 1));
    }
    let folder = tempdir().unwrap();
    let patient = Downloader { pause: Duration::from_secs(60), ..downloader() };
    let fetch = |address: &str| {
        let wanted = Remote { address: address.into(), name: "file.bin".into(), check: Check::File(9, "") };
        patient.file(&wanted, folder.path(), &Silent).unwrap_err().to_string()
    };
    // Each would take minutes if it were tried again.
    assert_says(&fetch("not an address"), &["cannot download not an address", "put file.bin into"]);
    assert_says(&fetch("ftp://127.0.0.1/file.bin"), &["cannot download ftp://127.0.0.1/file.bin"]);
    // TLS is spoken to a server that does not speak it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}/file.bin", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]).and_then(|_| write!(stream, "HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    assert_says(&fetch(&address), &["cannot download https://127.0.0.1", "put file.bin into"]);
}

#[test]
fn a_name_that_does_not_exist_is_tried_twice_at_most() {
    let folder = tempdir().unwrap();
    let patient = Downloader { attempts: 9, pause: Duration::from_millis(300), ..downloader() };
    let address = "http://nowhere.invalid/file.bin".to_string();
    let wanted = Remote { address, name: "file.bin".into(), check: Check::File(9, "") };
    let begun = Instant::now();
    let error = patient.file(&wanted, folder.path(), &Silent).unwrap_err().to_string();
    assert_says(&error, &["cannot download http://nowhere.invalid/file.bin", "network connection", "by other means"]);
    // Eight pauses that double would be more than a minute.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

// ---- Stopping ----

/// Asks for a stop after a while.
struct Until(Instant);

impl Observer for Until {
    fn stopped(&self) -> bool {
        Instant::now() >= self.0
    }
}

#[test]
fn a_download_stops_soon_and_keeps_what_has_arrived() {
    // Half of the file, and then nothing more; or nothing at all; or an error each time, between which there are pauses.
    for (begin, kept) in
        [("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it", 10), ("", 0), ("HTTP/1.1 503 No\r\n\r\n", 0)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/file.bin", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(begin.as_bytes());
                open.push(stream);
            }
        });
        let folder = tempdir().unwrap();
        let wanted = Remote { address, name: "file.bin".into(), check: Check::File(100, "") };
        let patient = Downloader { attempts: 100, pause: Duration::from_secs(60), ..downloader() };
        let end = Instant::now() + Duration::from_millis(500);
        let result = patient.file(&wanted, folder.path(), &Until(end));
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        // Within a second, but on a very busy machine; every pause is a minute.
        assert!(end.elapsed() < Duration::from_secs(20), "{:?}", end.elapsed());
        let left = fs::metadata(folder.path().join("file.bin.partial")).map_or(0, |file| file.len());
        assert_eq!(left, kept);
    }
}
