use super::*;
use std::io::Write;

/// Ranks of one run in this process.
fn places(count: usize) -> Vec<Place> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let first = Place::own(0, count, port);
    (0..count).map(|rank| first.of(rank)).collect()
}

fn meet(place: Place, about: Value) -> Result<Ranks> {
    Ranks::meet(place, &about, |_| {})
}

/// What each rank comes to, in threads.
fn all<T: Send>(
    places: Vec<Place>,
    about: impl Fn(usize) -> Value + Sync,
    work: impl Fn(Ranks) -> T + Sync,
) -> Vec<Result<T>> {
    thread::scope(|scope| {
        let one = |place: Place| {
            let (about, work) = (&about, &work);
            scope.spawn(move || {
                let about = about(place.rank);
                meet(place, about).map(work)
            })
        };
        let threads: Vec<_> = places.into_iter().map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn quick(patience: &str) {
    // SAFETY: all tests of this module set the same.
    unsafe { std::env::set_var("DOOD_RANKS_PATIENCE", patience) };
}

#[test]
fn ranks_meet_and_tell_each_other() {
    quick("2");
    let done = all(
        places(4),
        |_| json!({}),
        |ranks| {
            let said = ranks.broadcast(|| Ok(b"go".to_vec())).unwrap();
            assert_eq!(said, b"go");
            let all = ranks.gather(vec![ranks.rank() as u8; 3]).unwrap();
            if ranks.leads() {
                assert_eq!(all, [vec![0; 3], vec![1; 3], vec![2; 3], vec![3; 3]]);
            }
            ranks.agree(&json!({ "images": 12 })).unwrap();
            let differ =
                ranks.agree(&json!({ "images": if ranks.rank() == 2 { 11 } else { 12 } })).unwrap_err().to_string();
            assert!(differ.contains("rank 2 (host ") && differ.contains("images 11 instead of 12"), "{differ}");
            ranks.part();
        },
    );
    done.into_iter().for_each(|one| one.unwrap());
}

#[test]
fn a_rank_with_other_settings_is_refused_by_name_on_all_of_them() {
    quick("2");
    let about = |rank| json!({ "settings": { "batch": if rank == 1 { 32 } else { 64 }, "seed": 0 }, "version": "1" });
    let done = all(places(2), about, |_| ());
    let said: Vec<String> = done.into_iter().filter_map(|one| one.err()).map(|e| e.to_string()).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    let named = said.iter().filter(|said| said.contains("rank 1 (host ") && said.contains("batch 32 instead of 64"));
    assert_eq!(named.count(), 2, "{said:?}");
}

#[test]
fn a_port_in_use_is_passed_over_and_strangers_are_ignored() {
    quick("2");
    let taken = (20_000..60_000).step_by(64).find_map(|port| {
        let pair = [
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?,
            TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).ok()?,
        ];
        Some((pair, port))
    });
    let (_taken, port) = taken.unwrap();
    let first = Place { width: 16, ..Place::own(0, 2, port) };
    let stranger = thread::spawn(move || {
        // Speaks another language, to whoever is there.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port + 2)) {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    // Those of another run try the same ports.
    let other = Place { width: 16, ..Place::own(1, 2, port) };
    let other = thread::spawn(move || meet(Place { job: "another".into(), ..other }, json!({})).map(drop));
    let met = all(vec![first.clone(), first.of(1)], |_| json!({}), |ranks| ranks.part());
    met.into_iter().for_each(|one| one.unwrap());
    stranger.join().unwrap();
    drop(other); // gives up in its own time
}

#[test]
fn a_rank_that_leaves_or_fails_ends_all_with_its_name() {
    quick("2");
    let done = all(
        places(3),
        |_| json!({}),
        |ranks| {
            ranks.at(41, Phase::Launching);
            if ranks.rank() == 2 {
                ranks.fail("its card fell off");
            }
            let why = ranks.broadcast(|| {
                thread::sleep(Duration::from_millis(300));
                ranks.check()?;
                Ok(vec![])
            });
            why.err().map_or_else(|| ranks.receive(0).unwrap_err().to_string(), |e| e.to_string())
        },
    );
    for said in done.into_iter().map(|one| one.unwrap()) {
        assert!(said.contains("rank 2 (host ") && said.contains("step 41: its card fell off"), "{said}");
    }
}

#[test]
fn a_rank_that_does_not_come_is_missed_by_number() {
    let place = places(3).remove(0);
    let said = lead(place.clone(), listen(&place).unwrap(), &json!({}), &mut [], Duration::from_millis(200));
    let said = said.err().unwrap().to_string();
    assert!(said.contains("of 3 ranks these have not come") && said.ends_with(": 1, 2"), "{said}");
}

#[test]
fn differences_have_the_names_of_fields() {
    let (a, b) =
        (json!({"x": {"batch": 64, "seed": 0}, "v": "1"}), json!({"x": {"batch": 32, "seed": 0}, "v": "2", "w": true}));
    assert_eq!(differences(&a, &b), ["v 2 instead of 1", "w true instead of null", "batch 32 instead of 64"]);
    assert!(differences(&a, &a).is_empty());
}
