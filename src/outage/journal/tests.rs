use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{HEAD, HEADER};
use super::*;
use crate::outage::queue::{Base, Effect};

fn open_with(dir: &Path, fsync: JournalFsync, max_bytes: u64) -> Result<Opened, OpenError> {
    let metrics = Arc::new(Metrics::new(":", 10));
    Journal::open(&Settings { dir, fsync, max_bytes }, metrics)
}

fn open(dir: &Path) -> Opened {
    open_with(dir, JournalFsync::Always, 64 << 20).unwrap_or_else(|e| panic!("{e}"))
}

fn problem(dir: &Path) -> String {
    match open_with(dir, JournalFsync::Always, 64 << 20) {
        Ok(_) => panic!("it opens"),
        Err(e) => e.to_string(),
    }
}

fn who(db: u32) -> Arc<Who> {
    Arc::new(Who { db, user: b"anna"[..].into() })
}

fn set(key: &str, value: &str) -> New {
    let effect = Effect::Set { key: key.as_bytes().into(), value: value.as_bytes().into(), expire_at_ms: None };
    New { effect, base: Base::Unknown }
}

fn keys(writes: &[Write]) -> Vec<String> {
    let key = |new: &New| match &new.effect {
        Effect::Set { key, .. } | Effect::Del { key } => String::from_utf8_lossy(key).into_owned(),
    };
    writes.iter().flat_map(|write| write.effects.iter().map(key)).collect()
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(15), "not within 15 s: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What has become of everything up to this effect.
fn outcome(done: &mut UnboundedReceiver<Done>, up_to: u64) -> Result<(), Refused> {
    loop {
        let next = done.blocking_recv().expect("the thread runs");
        if next.up_to >= up_to || next.outcome.is_err() {
            return next.outcome;
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|e| e == "journal")).collect();
    found.sort();
    found
}

#[test]
fn what_was_taken_is_there_at_the_next_start_and_what_is_applied_is_not() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, writes, mut done, .. } = open(dir.path());
    assert!(writes.is_empty() && journal.next() == 1);
    let (anna, other) = (who(0), Arc::new(Who { db: 3, user: b"default"[..].into() }));
    assert_eq!(journal.append(&anna, &[set("a", "1"), set("b", "2")]), Ok(2));
    let effect = Effect::Set { key: b"c"[..].into(), value: b""[..].into(), expire_at_ms: Some(-7) };
    let base = Base::Value { value: b"before"[..].into(), expire_at_ms: Some(9) };
    journal.append(&other, &[New { effect, base }]).unwrap();
    journal.append(&anna, &[New { effect: Effect::Del { key: b"d"[..].into() }, base: Base::Absent }]).unwrap();
    assert_eq!(outcome(&mut done, 4), Ok(()));
    drop(journal);
    let opened = open(dir.path());
    assert_eq!(
        (keys(&opened.writes), opened.journal.next()),
        (vec!["a".into(), "b".into(), "c".into(), "d".into()], 5)
    );
    assert_eq!(
        (&opened.writes[1].who, opened.writes[1].effects[0].base.clone()),
        (&*other, Base::Value { value: b"before"[..].into(), expire_at_ms: Some(9) })
    );
    assert!(matches!(opened.writes[1].effects[0].effect, Effect::Set { expire_at_ms: Some(-7), .. }));
    assert_eq!(opened.cut, None);
    // Half of a write: its other effect stays.
    opened.journal.applied(&anna, 1);
    drop(opened);
    let opened = open(dir.path());
    assert_eq!((keys(&opened.writes).join(""), opened.writes[0].first), ("bcd".to_owned(), 2));
    opened.journal.applied(&anna, 4);
    opened.journal.applied(&other, 3);
    drop(opened);
    let opened = open(dir.path());
    assert!(opened.writes.is_empty() && opened.journal.next() == 5, "no number is used twice");
}

#[test]
fn files_are_for_their_owner_only_and_have_no_password() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("made/anew");
    let Opened { journal, mut done, .. } = open(&dir);
    journal.append(&who(0), &[set("a", "1")]).unwrap();
    assert_eq!(outcome(&mut done, 1), Ok(()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("lock")), mode(&files(&dir)[0])), (0o700, 0o600, 0o600));
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = TempDir::new().unwrap();
    let first = open(dir.path());
    let text = problem(dir.path());
    assert!(text.contains(&dir.path().display().to_string()) && text.contains("in use by another process"), "{text}");
    drop(first);
    drop(open(dir.path()));
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_that_names_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let text = problem(&file.join("below"));
    assert!(text.starts_with("outage.journal_dir: ") && text.contains("file/below: cannot make it"), "{text}");
    // A directory where the lock should be: what a missing right looks like to root, too.
    fs::create_dir(dir.path().join("lock")).unwrap();
    assert!(problem(dir.path()).contains("lock: cannot write there"));
}

#[test]
fn another_version_is_refused_in_clear_words() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let file = files(dir.path())[0].clone();
    let mut bytes = fs::read(&file).unwrap();
    bytes[8] = 9;
    fs::write(&file, bytes).unwrap();
    let text = problem(dir.path());
    assert!(text.contains("format version 9, and this version of nearside reads 1"), "{text}");
    fs::write(&file, b"something else altogether, and long enough").unwrap();
    assert!(problem(dir.path()).contains("is damaged at byte 0: it does not begin as a journal does"));
}

/// The bytes of a journal with these writes, and where each record ends.
fn journal_of(writes: &[(u32, Vec<New>)]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends, mut first) = (format::header(1).to_vec(), Vec::new(), 1);
    for (db, effects) in writes {
        let write = Write { first, who: Who::clone(&who(*db)), effects: effects.clone() };
        first = write.last() + 1;
        assert!(format::write(&mut bytes, &Record::Write(write)));
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn three() -> (Vec<u8>, Vec<usize>) {
    journal_of(&[
        (0, vec![set("a", "a value")]),
        (1, vec![set("b", "another"), New { effect: Effect::Del { key: b"c"[..].into() }, base: Base::Absent }]),
        (0, vec![set("d", "the last")]),
    ])
}

/// A directory with this as its only file.
fn with(bytes: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("000000000001.journal"), bytes).unwrap();
    dir
}

#[test]
fn cut_at_any_byte_every_record_before_the_cut_is_read() {
    let (bytes, ends) = three();
    for len in 0..=bytes.len() {
        let dir = with(&bytes[..len]);
        let opened = open(dir.path());
        let whole = ends.iter().filter(|end| **end <= len).count();
        assert_eq!(opened.writes.len(), whole, "cut at {len}");
        let kept = if len < HEADER { 0 } else { ends[..whole].last().copied().unwrap_or(HEADER) };
        let cut = opened.cut.as_ref().map_or(0, |cut| cut.bytes as usize);
        assert_eq!(cut, len - kept, "cut at {len}");
        // It goes on where it was cut.
        let next = opened.journal.next();
        assert_eq!(next, 1 + opened.writes.iter().map(|w| w.effects.len() as u64).sum::<u64>());
        opened.journal.append(&who(0), &[set("e", "new")]).unwrap();
        drop(opened);
        assert_eq!(keys(&open(dir.path()).writes).last().map(String::as_str), Some("e"), "cut at {len}");
    }
}

#[test]
fn zeros_or_rubbish_behind_the_last_record_are_a_torn_end() {
    let (bytes, _) = three();
    for tail in [vec![0; 5000], vec![0xa5; 700], b"\x01\0\0\0".to_vec()] {
        let opened = open(with(&[bytes.clone(), tail.clone()].concat()).path());
        assert_eq!((opened.writes.len(), opened.cut.map(|cut| cut.bytes)), (3, Some(tail.len() as u64)));
    }
}

#[test]
fn a_flipped_bit_is_never_passed_over() {
    let (bytes, ends) = three();
    for at in 0..bytes.len() {
        for bit in [0, 6] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let dir = with(&flipped);
            let last = at >= ends[1];
            match open_with(dir.path(), JournalFsync::No, 64 << 20) {
                Err(e) => {
                    let text = e.to_string();
                    assert!(!last, "{text}");
                    assert!(text.contains("000000000001.journal is"), "{text}");
                    assert_eq!(fs::read(&files(dir.path())[0]).unwrap(), flipped, "nothing was changed");
                }
                // The newest record cannot be told from one that a crash has torn; it is said that it is cut.
                Ok(opened) => {
                    assert!(last, "byte {at} was flipped and nobody saw it");
                    assert_eq!(opened.writes.len(), 2);
                    assert_eq!(opened.cut.map(|cut| cut.bytes), Some((bytes.len() - ends[1]) as u64));
                }
            }
        }
    }
}

#[test]
fn damage_in_an_older_file_and_a_missing_one_are_errors() {
    let dir = TempDir::new().unwrap();
    let path = |n: u32| dir.path().join(format!("{n:012}.journal"));
    let write = |bytes: &mut Vec<u8>, first| {
        let write = Write { first, who: Who::clone(&who(0)), effects: vec![set("k", "v")] };
        format::write(bytes, &Record::Write(write));
    };
    for n in 1..=3 {
        let mut bytes = format::header(u64::from(n)).to_vec();
        write(&mut bytes, u64::from(n));
        fs::write(path(n), bytes).unwrap();
    }
    let whole = fs::read(path(2)).unwrap();
    fs::write(path(2), &whole[..whole.len() - 1]).unwrap();
    assert!(problem(dir.path()).contains(&format!("000000000002.journal is damaged at byte {HEADER}: ")));
    fs::remove_file(path(2)).unwrap();
    assert!(problem(dir.path()).contains("000000000002.journal is missing between the others"));
    fs::write(path(2), format::header(2)).unwrap();
    let text = problem(dir.path());
    assert!(
        text.contains("000000000003.journal is damaged at byte 0: it begins with effect 3, and effect 2 is"),
        "{text}"
    );
    fs::write(path(2), whole).unwrap();
    assert_eq!(open(dir.path()).writes.len(), 3);
}

#[test]
fn a_record_that_makes_no_sense_is_an_error_also_at_the_end() {
    let (mut bytes, ends) = three();
    let body = ends[1] + HEAD;
    bytes[body] = 99;
    let crc = crc32fast::hash(&bytes[body..]).to_le_bytes();
    bytes[ends[1] + 4..ends[1] + 8].copy_from_slice(&crc);
    let of_head = crc32fast::hash(&bytes[ends[1]..ends[1] + 8]).to_le_bytes();
    bytes[ends[1] + 8..body].copy_from_slice(&of_head);
    assert!(problem(with(&bytes).path()).contains("what it says makes no sense"));
}

#[test]
fn what_does_not_fit_is_refused_and_fits_again_when_the_rest_is_applied() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open_with(dir.path(), JournalFsync::No, 1 << 20).unwrap();
    let value = "x".repeat(10_000);
    let mut last = 0;
    let refused = loop {
        match journal.append(&who(0), &[set("k", &value)]) {
            Ok(seq) => last = seq,
            Err(refused) => break refused,
        }
        assert!(last < 200);
    };
    assert_eq!((refused, last), (Refused::Full, 104), "1 MiB takes 104 of them");
    assert_eq!(outcome(&mut done, last), Ok(()));
    assert!(files(dir.path()).len() > 10);
    journal.applied(&who(0), last);
    eventually("what is applied is removed", || files(dir.path()).len() == 1);
    eventually("there is room", || journal.append(&who(0), &[set("k", &value)]).is_ok());
    drop(journal);
    assert_eq!(open(dir.path()).writes.len(), 1);
}

#[test]
fn an_effect_that_nobody_can_replay_does_not_keep_all_behind_it() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open_with(dir.path(), JournalFsync::No, 1 << 20).unwrap();
    let stuck = who(7);
    journal.append(&stuck, &[set("stuck", "s")]).unwrap();
    let value = "x".repeat(10_000);
    for _ in 0..500 {
        let seq = journal.append(&who(0), &[set("k", &value)]).expect("there is room again and again");
        assert_eq!(outcome(&mut done, seq), Ok(()));
        journal.applied(&who(0), seq);
    }
    assert!(journal.bytes() < 1 << 20);
    drop(journal);
    let opened = open_with(dir.path(), JournalFsync::No, 1 << 20).unwrap();
    assert_eq!((keys(&opened.writes), opened.writes[0].first), (vec!["stuck".to_owned()], 1));
    opened.journal.applied(&stuck, 1);
    drop(opened);
    assert!(open(dir.path()).writes.is_empty());
}

#[test]
fn a_full_disk_refuses_and_is_asked_again() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open(dir.path());
    let one = journal.append(&who(0), &[set("a", "1")]).unwrap();
    assert_eq!(outcome(&mut done, one), Ok(()));
    *journal.shared.faults.disk.lock().unwrap() = Some(journal.bytes() + 50);
    let lost = journal.append(&who(0), &[set("b", &"x".repeat(100))]).expect("nobody knows it yet");
    assert_eq!(outcome(&mut done, lost), Err(Refused::DiskFull));
    assert_eq!(journal.state(), JournalState::DiskFull);
    assert_eq!(journal.append(&who(0), &[set("c", "3")]), Err(Refused::DiskFull), "refused before it is accepted");
    let counts = &journal.shared.metrics.journal;
    assert_eq!((counts.refused.get(JournalRefusal::DiskFull), counts.lost.get(), counts.appended.get()), (1, 1, 1));
    *journal.shared.faults.disk.lock().unwrap() = None;
    eventually("it works again", || journal.state() == JournalState::Working);
    let again = journal.append(&who(0), &[set("d", "4")]).unwrap();
    assert_eq!(outcome(&mut done, again), Ok(()));
    drop(journal);
    let opened = open(dir.path());
    assert_eq!((keys(&opened.writes), opened.journal.next()), (vec!["a".to_owned(), "d".to_owned()], again + 1));
}

#[test]
fn after_a_failed_sync_nothing_is_taken_until_the_next_start() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open(dir.path());
    journal.shared.faults.sync_fails.store(true, Ordering::Release);
    let seq = journal.append(&who(0), &[set("a", "1")]).unwrap();
    assert_eq!(outcome(&mut done, seq), Err(Refused::Failed));
    journal.shared.faults.sync_fails.store(false, Ordering::Release);
    assert_eq!(journal.append(&who(0), &[set("b", "2")]), Err(Refused::Failed), "the next sync would lie");
    drop(journal);
    let opened = open(dir.path());
    opened.journal.append(&who(0), &[set("c", "3")]).unwrap();
}

#[test]
fn writers_at_the_same_time_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open(dir.path());
    // Handed over faster than a disk syncs.
    let last = (0..2000).map(|i| journal.append(&who(0), &[set(&i.to_string(), "v")]).unwrap()).last().unwrap();
    assert_eq!(outcome(&mut done, last), Ok(()));
    let syncs = journal.shared.metrics.journal.fsync.count();
    assert!((1..1000).contains(&syncs), "{syncs} syncs for 2000 writes");
}

#[test]
fn everysec_syncs_without_being_asked() {
    let dir = TempDir::new().unwrap();
    let Opened { journal, mut done, .. } = open_with(dir.path(), JournalFsync::Everysec, 64 << 20).unwrap();
    let seq = journal.append(&who(0), &[set("a", "1")]).unwrap();
    assert_eq!(outcome(&mut done, seq), Ok(()));
    eventually("it is synced", || journal.shared.metrics.journal.fsync.count() == 1);
}

fn new() -> impl Strategy<Value = New> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Vec::into_boxed_slice);
    let base = prop_oneof![
        Just(Base::Unknown),
        Just(Base::Absent),
        (bytes(20), any::<Option<i64>>()).prop_map(|(value, expire_at_ms)| Base::Value { value, expire_at_ms })
    ];
    let set = (bytes(20), bytes(300), any::<Option<i64>>()).prop_map(|(key, value, expire_at_ms)| Effect::Set {
        key,
        value,
        expire_at_ms,
    });
    let effect = prop_oneof![3 => set, 1 => bytes(20).prop_map(|key| Effect::Del { key })];
    (effect, base).prop_map(|(effect, base)| New { effect, base })
}

fn writes() -> impl Strategy<Value = Vec<(u32, Vec<New>)>> {
    prop::collection::vec((0..3u32, prop::collection::vec(new(), 1..4)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is written, marked and torn off: what stands before the tear comes back as it was, in order.
    #[test]
    fn what_is_before_a_tear_comes_back(writes in writes(), at in 0.0..1.0f64, rubbish in any::<Vec<u8>>()) {
        let (bytes, ends) = journal_of(&writes);
        let len = (at * bytes.len() as f64) as usize;
        let whole = ends.iter().filter(|end| **end <= len).count();
        let torn = [&bytes[..len], &rubbish[..]].concat();
        // Rubbish may continue a record rightly: then nothing was torn.
        prop_assume!(!bytes.starts_with(&torn[..torn.len().min(bytes.len())]) || rubbish.is_empty());
        match open_with(with(&torn).path(), JournalFsync::No, 64 << 20) {
            Ok(opened) => {
                let read: Vec<(u32, Vec<New>)> = opened.writes.into_iter().map(|w| (w.who.db, w.effects)).collect();
                prop_assert_eq!(&read[..], &writes[..whole]);
            }
            // Without a header nothing is cut that might be somebody else's.
            Err(e) => prop_assert!(len < HEADER, "{}", e),
        }
    }

    /// A real journal under any order of writes, marks and restarts holds what a list says.
    #[test]
    fn it_is_a_list_of_what_is_not_applied(steps in prop::collection::vec((0..4u8, 0..3u32, 1..9000usize), 1..60)) {
        let dir = TempDir::new().unwrap();
        let mut opened = open_with(dir.path(), JournalFsync::No, 1 << 20).unwrap();
        let mut list: Vec<(u64, u32)> = Vec::new();
        for (what, db, n) in steps {
            match what {
                0 | 1 => {
                    let effects = (0..1 + n % 3).map(|i| set(&i.to_string(), &"x".repeat(n))).collect::<Vec<_>>();
                    let first = opened.journal.next();
                    if let Ok(last) = opened.journal.append(&who(db), &effects) {
                        list.extend((first..=last).map(|seq| (seq, db)));
                    }
                }
                2 => {
                    let of_db: Vec<u64> = list.iter().filter(|(_, d)| *d == db).map(|(seq, _)| *seq).collect();
                    if let Some(seq) = of_db.get(n % of_db.len().max(1)) {
                        opened.journal.applied(&who(db), *seq);
                        list.retain(|(s, d)| *d != db || s > seq);
                    }
                }
                _ => {
                    drop(opened);
                    opened = open_with(dir.path(), JournalFsync::No, 1 << 20).unwrap();
                    let numbers = |w: &Write| (w.first..=w.last()).map(|seq| (seq, w.who.db)).collect::<Vec<_>>();
                    let read: Vec<(u64, u32)> = opened.writes.iter().flat_map(numbers).collect();
                    prop_assert_eq!(&read, &list);
                    prop_assert!(opened.cut.is_none());
                }
            }
        }
    }
}
