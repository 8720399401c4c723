//! Detects files of the pex tool. Reading a zip directory takes time in proportion to the number of files in it, so the
//! index entry records the result.

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt as _;

/// The farthest that the end record of a zip can be from the end of the file: itself and a comment of 65,535 bytes.
const END_RECORD_DISTANCE: u64 = 22 + 0xffff;

/// Whether the open file is a pex, and not just a zip that Python runs.
#[must_use]
pub(crate) fn is_pex(file: &File) -> bool {
    // The zip crate reads a file without an end record from end to start.
    if !has_end_record(file).unwrap_or(false) {
        return false;
    }
    let Ok(reader) = file.try_clone() else {
        return false;
    };
    zip::ZipArchive::new(BufReader::new(reader))
        .is_ok_and(|archive| archive.index_for_name("PEX-INFO").is_some())
}

fn has_end_record(file: &File) -> std::io::Result<bool> {
    let length = file.metadata()?.len();
    let tail_length = length.min(END_RECORD_DISTANCE);
    let mut tail = vec![0; tail_length as usize];
    file.read_exact_at(&mut tail, length - tail_length)?;
    Ok(tail.windows(4).any(|window| window == b"PK\x05\x06"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn zip(name: &str) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer
            .start_file(name, zip::write::SimpleFileOptions::default())
            .unwrap();
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn pex_is_detected_by_its_zip_directory() {
        let shell = b"#!/bin/sh\n".to_vec();
        for (bytes, expected) in [
            (zip("PEX-INFO"), true),
            ([shell.clone(), zip("PEX-INFO")].concat(), true),
            ([zip("PEX-INFO"), vec![0; 0xffff]].concat(), true),
            ([zip("PEX-INFO"), vec![0; 0x1_0000]].concat(), false),
            (zip("__main__.py"), false),
            (b"PK\x05\x06".to_vec(), false),
            (shell, false),
            (Vec::new(), false),
        ] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            assert_eq!(
                is_pex(&file),
                expected,
                "{:?}",
                &bytes[..bytes.len().min(99)]
            );
        }
        // Reading all of it would take too long for a test.
        let huge = tempfile::tempfile().unwrap();
        huge.set_len(1 << 40).unwrap();
        assert!(!is_pex(&huge));
    }
}
