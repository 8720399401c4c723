//! Archives: unpacking changes no file outside the target directory and creates no link that leads out of it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use hostkit::Exit;
use s3cache::testing::Deadline;

/// The size of a tar header.
const BLOCK: usize = 512;

/// Corrects the header checksums, so that mutated headers are read.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let blocks = bytes.chunks_exact_mut(BLOCK);
    for block in blocks.filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    bytes
}

fn check_links(directory: &Path, root: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            let to = path.canonicalize();
            assert!(to.is_ok_and(|to| to.starts_with(root)) || !path.exists());
        } else if path.is_dir() {
            check_links(&path, root);
        }
    }
}

pub(super) fn run(bytes: &[u8]) {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let root = temp.path().canonicalize().expect("its path").join("app");
    fs::write(temp.path().join("victim"), "untouched").expect("a file");
    let mut blob = tempfile::tempfile().expect("a temporary file");
    blob.write_all(&with_checksums(bytes)).expect("its content");
    let deadline = Deadline::new("a.tar", Duration::from_secs(3600));
    match s3cache::testing::unpack(&blob, "a.tar", "00", &root, None, &deadline) {
        Ok(()) => check_links(&root, &root),
        // The filesystem may reject a name.
        Err(failure) => assert!(
            [Exit::CORRUPT, Exit::CANNOT_CREATE].contains(&failure.exit()) && !root.exists(),
            "{failure:?}"
        ),
    }
    let victim = fs::read(temp.path().join("victim"));
    assert_eq!(victim.expect("it is still there"), b"untouched");
    let left = fs::read_dir(temp.path()).expect("the directory").count();
    assert_eq!(left, 1 + usize::from(root.exists()));
}
