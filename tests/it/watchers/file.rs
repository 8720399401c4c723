//! Files that are replaced in every way people and tools do it. All of it is noticed through inotify: the slow re-read
//! comes only after the patience of a test is over.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hostkit_tests::wait_until;
use synapse::settings::Discovery;
use tempfile::TempDir;

use super::Running;

/// A list of one server per port.
fn list(ports: &[u16]) -> String {
    let entries = ports
        .iter()
        .map(|port| format!("- host: 10.0.0.1\n  port: {port}\n"));
    let list: String = entries.collect();
    if list.is_empty() { "[]\n".into() } else { list }
}

fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("servers.yaml");
    (temp, file)
}

fn follow(file: &Path) -> Running {
    Running::start(&Discovery::File(file.to_owned()))
}

fn rename_over(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn a_file_renamed_over_it_is_noticed_every_time() {
    let (_temp, file) = place();
    fs::write(&file, list(&[1])).unwrap();
    let running = follow(&file);
    running.finds("the first list", &["10.0.0.1:1"]);
    for port in 2..20 {
        rename_over(&file, &list(&[port]));
        running.finds("the next list", &[&format!("10.0.0.1:{port}")]);
    }
    rename_over(&file, "[]\n");
    running.finds("the empty list", &[]);
}

#[test]
fn a_file_written_in_place_is_noticed_when_it_is_complete() {
    let (_temp, file) = place();
    fs::write(&file, list(&[1])).unwrap();
    let running = follow(&file);
    running.finds("the first list", &["10.0.0.1:1"]);
    fs::write(&file, list(&[2, 3])).unwrap();
    running.finds("the second list", &["10.0.0.1:2", "10.0.0.1:3"]);
}

#[test]
fn the_first_part_of_a_list_is_never_taken_for_the_list() {
    let (_temp, file) = place();
    rename_over(&file, &list(&[1]));
    let running = follow(&file);
    let ports: Vec<u16> = (1..=500).collect();
    let known = || {
        let known = running.now().backends.len();
        assert!([0, 1, ports.len()].contains(&known), "{known}");
        known
    };
    for _ in 0..10 {
        wait_until("the short list", || known() == 1);
        let mut writer = fs::File::create(&file).unwrap();
        for part in ports.chunks(10) {
            writer.write_all(list(part).as_bytes()).unwrap();
            known();
        }
        drop(writer);
        wait_until("the whole list", || known() == ports.len());
        rename_over(&file, &list(&[1]));
    }
}

#[test]
fn a_truncated_file_keeps_the_last_good_list() {
    let (_temp, file) = place();
    fs::write(&file, list(&[1, 2])).unwrap();
    let running = follow(&file);
    running.finds("the first list", &["10.0.0.1:1", "10.0.0.1:2"]);
    let synced = running.now().synced;
    fs::write(&file, "").unwrap();
    running.suffers("no list", &["10.0.0.1:1", "10.0.0.1:2"]);
    assert_eq!(running.now().synced, synced, "its age goes on");
    fs::write(&file, "- host: 10.0.0.1\n  po").unwrap();
    running.suffers("servers.yaml:2:", &["10.0.0.1:1", "10.0.0.1:2"]);
    fs::write(&file, list(&[3])).unwrap();
    running.finds("the repaired list", &["10.0.0.1:3"]);
}

#[test]
fn a_deleted_file_keeps_the_last_good_list_until_it_is_back() {
    let (_temp, file) = place();
    fs::write(&file, list(&[1])).unwrap();
    let running = follow(&file);
    running.finds("the first list", &["10.0.0.1:1"]);
    fs::remove_file(&file).unwrap();
    running.suffers("cannot read", &["10.0.0.1:1"]);
    fs::write(&file, list(&[2])).unwrap();
    running.finds("the recreated list", &["10.0.0.1:2"]);
}

#[test]
fn a_file_in_a_directory_that_is_not_there_yet_is_awaited() {
    let (temp, _) = place();
    let file = temp.path().join("a/b/servers.yaml");
    let running = follow(&file);
    running.suffers("cannot read", &[]);
    assert_eq!(running.now().synced, None);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, list(&[1])).unwrap();
    running.finds("the first list", &["10.0.0.1:1"]);
    fs::rename(temp.path().join("a/b"), temp.path().join("a/old")).unwrap();
    running.suffers("cannot read", &["10.0.0.1:1"]);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, list(&[2])).unwrap();
    running.finds("the list in the new directory", &["10.0.0.1:2"]);
}

#[test]
fn a_symlink_swapped_beside_the_file_is_noticed() {
    // As Kubernetes mounts a ConfigMap: list -> ..data/list, and ..data is renamed over.
    let (temp, file) = place();
    let version = |number: u16| {
        let directory = temp.path().join(format!("..{number}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("servers.yaml"), list(&[number])).unwrap();
        symlink(format!("..{number}"), temp.path().join("..tmp")).unwrap();
        fs::rename(temp.path().join("..tmp"), temp.path().join("..data")).unwrap();
    };
    version(1);
    symlink("..data/servers.yaml", &file).unwrap();
    let running = follow(&file);
    running.finds("the first version", &["10.0.0.1:1"]);
    for number in 2..6 {
        version(number);
        running.finds("the next version", &[&format!("10.0.0.1:{number}")]);
        fs::remove_dir_all(temp.path().join(format!("..{}", number - 1))).unwrap();
    }
    running.finds("the last version, still", &["10.0.0.1:5"]);
}

#[test]
fn a_symlink_replaced_far_above_the_file_is_noticed() {
    // As Puppet and Capistrano deploy: current -> releases/1.
    let temp = tempfile::tempdir().unwrap();
    let current = temp.path().join("current");
    let release = |number: u16| {
        let directory = temp.path().join(format!("releases/{number}/etc"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("servers.yaml"), list(&[number])).unwrap();
        // Removed and made again, as `ln -sfn` does.
        let _ = fs::remove_file(&current);
        symlink(format!("releases/{number}"), &current).unwrap();
    };
    release(1);
    let running = follow(&current.join("etc/servers.yaml"));
    running.finds("the first release", &["10.0.0.1:1"]);
    for number in 2..6 {
        release(number);
        running.finds("the next release", &[&format!("10.0.0.1:{number}")]);
    }
    // What the link points to now is watched too.
    rename_over(
        &temp.path().join("releases/5/etc/servers.yaml"),
        &list(&[50]),
    );
    running.finds("a change within the release", &["10.0.0.1:50"]);
}

#[test]
fn a_file_that_grows_too_large_keeps_the_last_good_list() {
    let (_temp, file) = place();
    fs::write(&file, list(&[1])).unwrap();
    let running = follow(&file);
    running.finds("the first list", &["10.0.0.1:1"]);
    rename_over(&file, &format!("{}#{}", list(&[2]), "x".repeat(8 << 20)));
    running.suffers("larger than 8 MiB", &["10.0.0.1:1"]);
}

#[test]
fn a_bad_entry_is_refused_and_the_others_are_used() {
    let (_temp, file) = place();
    fs::write(
        &file,
        "- {host: 10.0.0.1, port: 1}\n- {host: \"x\\ny\", port: 2}\n",
    )
    .unwrap();
    let running = follow(&file);
    running.finds("the good entry", &["10.0.0.1:1"]);
    assert_eq!(running.now().rejects.len(), 1);
}
