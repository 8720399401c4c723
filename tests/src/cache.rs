//! The cache directory as tests prepare it.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::Duration;

/// Makes every blob below a `blobs` directory look as if it had been used earlier by this much: what was used within the
/// last hour is protected. Their order of use stays.
pub fn age_blobs(blobs: &Path, by: Duration) {
    let directories = |path: &Path| {
        let entries = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    for shelf in directories(blobs) {
        for folder in directories(&shelf) {
            for entry in fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    let accessed = entry.metadata().unwrap().accessed().unwrap() - by;
                    let file = File::open(entry.path()).unwrap();
                    file.set_times(FileTimes::new().set_accessed(accessed))
                        .unwrap();
                }
            }
            let modified = folder.metadata().unwrap().modified().unwrap() - by;
            File::open(&folder).unwrap().set_modified(modified).unwrap();
        }
    }
}
