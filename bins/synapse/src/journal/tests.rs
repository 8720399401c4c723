//! What is appended is read, whatever happened to the files.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::metrics::Counter;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn journal(directory: &Path) -> Journal {
    Journal::open(directory, Counter::default()).unwrap()
}

fn entry(second: u64, service: &str) -> Entry {
    Entry {
        time: UNIX_EPOCH + Duration::from_millis(second * 1000 + 7),
        service: Some(service.to_owned()),
        ..Entry::now(Kind::MemberAdded)
    }
}

fn all(directory: &Path) -> Vec<Entry> {
    read(directory, &Filter::default()).unwrap().collect()
}

fn damage(directory: &Path, bytes: &[u8]) {
    let mut options = OpenOptions::new();
    let options = options.append(true).create(true);
    let mut file = options.open(directory.join(CURRENT)).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn entries_are_lines_of_json_and_are_read_back() {
    let temp = scratch();
    let whole = Entry {
        member: Some("10.0.0.1:31000".to_owned()),
        source: Some("/aurora/www-data/prod/web/member_0000000001".to_owned()),
        slot: Some("slot3".to_owned()),
        cause: Some("a \"cause\"\nof two lines".to_owned()),
        reload: Some(4),
        duration_ms: Some(120),
        ..entry(1_700_000_000, "web")
    };
    let journal = journal(temp.path());
    journal.append(whole.clone());
    journal.append(entry(1_700_000_001, "db"));
    drop(journal);
    let text = std::fs::read_to_string(temp.path().join(CURRENT)).unwrap();
    assert_eq!(text.lines().count(), 2);
    assert_eq!(
        text.lines().nth(1).unwrap(),
        r#"{"time":"2023-11-14T22:13:21.007Z","kind":"member-added","service":"db"}"#
    );
    assert_eq!(all(temp.path()), [whole, entry(1_700_000_001, "db")]);
}

#[test]
fn filters_select_by_time_and_service_and_the_last_are_the_newest() {
    let temp = scratch();
    let journal = journal(temp.path());
    for second in 0..10 {
        journal.append(entry(second, if second % 2 == 0 { "web" } else { "db" }));
    }
    journal.append(Entry::now(Kind::Stop));
    drop(journal);
    let filter = Filter {
        since: Some(entry(4, "").time),
        service: Some("web".to_owned()),
    };
    let found: Vec<Entry> = read(temp.path(), &filter).unwrap().collect();
    assert_eq!(found, [entry(4, "web"), entry(6, "web"), entry(8, "web")]);
    let newest = last(found.into_iter(), 2);
    assert_eq!(newest, [entry(6, "web"), entry(8, "web")]);
    assert_eq!(last(all(temp.path()).into_iter(), 0).len(), 0);
    assert_eq!(
        read(&temp.path().join("none"), &filter)
            .map(drop)
            .unwrap_err()
            .kind(),
        std::io::ErrorKind::NotFound
    );
}

#[test]
fn a_torn_line_costs_only_itself() {
    let temp = scratch();
    for round in 0..3 {
        let journal = journal(temp.path());
        journal.append(entry(round, "web"));
        drop(journal);
        damage(temp.path(), b"{\"time\":\"2023-11-14T22:13:21.0");
        assert_eq!(all(temp.path()).len() as u64, round + 1, "while it is torn");
    }
    drop(journal(temp.path()));
    assert_eq!(
        all(temp.path()),
        [entry(0, "web"), entry(1, "web"), entry(2, "web")]
    );
}

#[test]
fn a_kind_of_a_later_version_is_read_as_unknown() {
    let temp = scratch();
    damage(
        temp.path(),
        b"{\"time\":\"2023-11-14T22:13:21Z\",\"kind\":\"newer\",\"more\":1}\n",
    );
    assert_eq!(all(temp.path())[0].kind, Kind::Unknown);
}

#[test]
fn a_full_file_becomes_the_older_one_and_followers_miss_nothing() {
    let temp = scratch();
    let mut follow = Follow::new(temp.path(), Filter::default()).unwrap();
    let mut followed = 0;
    let mut number = 0;
    // Each some 4.1 KB with its escapes: three files' worth.
    for _ in 0..30 {
        let journal = journal(temp.path());
        for _ in 0..100 {
            journal.append(Entry {
                detail: Some("\u{1}".repeat(TEXT)),
                cause: Some("x".repeat(5000)),
                ..entry(number, "web")
            });
            number += 1;
        }
        drop(journal);
        for entry in follow.more().unwrap() {
            assert_eq!(entry.time, self::entry(followed, "web").time);
            assert_eq!(
                entry.cause.as_ref().unwrap().len(),
                TEXT,
                "long texts are cut"
            );
            followed += 1;
        }
    }
    assert_eq!(followed, number);
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 2);
    for name in [CURRENT, OLDER] {
        assert!(std::fs::metadata(temp.path().join(name)).unwrap().len() <= FULL);
    }
    let kept = all(temp.path());
    let first = number - kept.len() as u64;
    assert!(first > 0 && kept.len() > 1000, "{} are left", kept.len());
    assert!(
        kept.iter()
            .zip(first..)
            .all(|(kept, n)| kept.time == entry(n, "").time)
    );
}

#[test]
fn a_follower_takes_only_whole_lines_and_may_come_first() {
    let temp = scratch();
    let mut follow = Follow::new(temp.path(), Filter::default()).unwrap();
    assert!(follow.more().unwrap().is_empty());
    let line = serde_json::to_vec(&entry(1, "web")).unwrap();
    damage(temp.path(), &line[..20]);
    assert!(follow.more().unwrap().is_empty());
    damage(temp.path(), &line[20..]);
    damage(temp.path(), b"\n");
    assert_eq!(follow.more().unwrap(), [entry(1, "web")]);
    let mut late = Follow::new(temp.path(), Filter::default()).unwrap();
    assert!(late.more().unwrap().is_empty());
}

#[test]
fn entries_that_were_dropped_are_told_before_the_next_one() {
    let temp = scratch();
    let dropped = Counter::default();
    let journal = Journal::open(temp.path(), dropped.clone()).unwrap();
    // What the queue would have done had it been full.
    dropped.inc_by(5);
    journal.append(entry(1, "web"));
    drop(journal);
    let entries = all(temp.path());
    assert_eq!(entries[0].kind, Kind::Dropped);
    assert_eq!(entries[0].detail.as_deref(), Some("5"));
    assert_eq!(entries[1], entry(1, "web"));
}

proptest! {
    #[test]
    fn any_file_can_be_read_and_written_on(bytes: Vec<u8>, older: Vec<u8>) {
        let temp = scratch();
        std::fs::write(temp.path().join(OLDER), &older).unwrap();
        damage(temp.path(), &bytes);
        let before = all(temp.path()).len();
        let journal = journal(temp.path());
        journal.append(entry(1, "web"));
        drop(journal);
        let after = all(temp.path());
        prop_assert_eq!(after.last(), Some(&entry(1, "web")));
        prop_assert!(after.len() > before);
    }
}
