//! Reading a root while pexes unpack themselves, and after they were killed.

use std::path::Path;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Creates a directory that a pex was unpacking to until `age` ago.
fn work_directory(path: &Path, age: Duration) {
    std::fs::create_dir_all(path).unwrap();
    let written = clock::now() - age;
    std::fs::File::open(path)
        .unwrap()
        .set_modified(written)
        .unwrap();
}

#[test]
fn work_directory_is_unpacking_then_trash_after_a_day() {
    let (hash, part) = ("ab".repeat(20), "cd".repeat(20));
    for place in [
        format!("unzipped_pexes/4/{hash}.lck.work"),
        format!("unzipped_pexes/{hash}.{}.work", "0f".repeat(16)),
        format!("venvs/4/{hash}/{part}.lck.work"),
        format!("installed_wheels/2/{hash}.lck.work"),
        format!("installed_wheels/3/{hash}/six-1.0.whl.lck.work"),
        format!("installed_wheels/3/{hash}/long-1.0...{}", "0f".repeat(32)),
        format!("interpreters/2/{part}/{part}.lck.work"),
        "venvs/4/s/988e3f0a.lck.work".to_owned(),
    ] {
        for (age, unpacking, trash) in [
            (Duration::ZERO, 1, 0),
            (HOUR * 9 / 10, 1, 0),
            (HOUR * 2, 0, 0),
            (HOUR * 25, 0, 1),
        ] {
            let temp = tempfile::tempdir().unwrap();
            work_directory(&temp.path().join(&place), age);
            let layout = PexRootLayout::read(&Dir::open(temp.path()).unwrap(), HOUR).unwrap();
            assert_eq!(
                (layout.unpacking.len(), layout.trash.len()),
                (unpacking, trash),
                "{place}, {age:?}"
            );
        }
    }
}

/// Pexes that earlier releases or others than pexrun start take no lease.
#[test]
fn root_is_read_during_renames_and_removals() {
    let temp = tempfile::tempdir().unwrap();
    let hash = "ab".repeat(20);
    let folders = [
        "unzipped_pexes/4",
        "venvs/4/s",
        "installed_wheels/3",
        "interpreters/2",
    ];
    let root = Dir::open(temp.path()).unwrap();
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| {
            for folder in folders.iter().cycle().take(1000) {
                let folder = temp.path().join(folder);
                let (work, whole) = (folder.join(format!("{hash}.lck.work")), folder.join(&hash));
                std::fs::create_dir_all(work.join("below")).unwrap();
                std::fs::rename(&work, &whole).unwrap();
                std::fs::remove_dir_all(folder).unwrap();
            }
        });
        while !starts.is_finished() {
            PexRootLayout::read(&root, HOUR).unwrap();
        }
    });
}
