//! The scanner against a model that reads everything, with small and large lines around block borders.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// The line starts that a scan finds, last ones first, and the start of the last line.
fn scan(bytes: &[u8], pattern: &str, from: u64, first: FirstLine) -> (Vec<Vec<u8>>, Option<u64>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let pattern = LinePattern::literal(pattern).unwrap();
    let mut found = Vec::new();
    let scanned = LineScanner::new()
        .scan_lines(&file, &pattern, (from, bytes.len() as u64), first, |line| {
            found.push(line.to_vec());
            false
        })
        .unwrap();
    assert!(!scanned.is_truncated);
    (found, scanned.line)
}

/// The expected result of [`scan`], unordered.
fn model(bytes: &[u8], pattern: &str, from: usize) -> Vec<Vec<u8>> {
    let mut position = 0;
    let mut found = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        position += line.len();
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if position > from && text.starts_with(pattern.as_bytes()) {
            found.push(text[..text.len().min(MAX_LINE_START)].to_vec());
        }
    }
    found
}

#[test]
fn lines_at_block_borders_are_found() {
    for padding in [FIRST_BLOCK, FIRST_BLOCK + BLOCK] {
        // The newline and the brace move over the border of two blocks, one byte at a time.
        for shift in 0..6 {
            let mut bytes = vec![b'x'; 5];
            bytes.extend_from_slice(b"\n{{{1\n");
            bytes.resize(bytes.len() + padding - shift, b'y');
            let (found, line) = scan(&bytes, "{{{", 0, FirstLine::At(0));
            assert_eq!(found, [b"{{{1"], "{padding} {shift}");
            assert_eq!(line, Some(11));
        }
    }
}

#[test]
fn line_of_any_length_is_recognised_by_its_start() {
    let mut bytes = b"{".to_vec();
    bytes.resize(3 * BLOCK, b'z');
    let (found, line) = scan(&bytes, "{", 2 * BLOCK as u64, FirstLine::At(0));
    assert_eq!(
        (found.len(), found[0].len(), line),
        (1, MAX_LINE_START, Some(0))
    );
    // An unknown start is searched for, within a limit.
    let (found, line) = scan(&bytes, "{", 2 * BLOCK as u64, FirstLine::Behind(1 << 30));
    assert_eq!((found.len(), line), (1, Some(0)));
    let (found, line) = scan(
        &bytes,
        "{",
        2 * BLOCK as u64,
        FirstLine::Behind(BLOCK as u64),
    );
    assert_eq!((found.len(), line), (0, None));
}

#[test]
fn leading_nuls_are_not_part_of_the_line() {
    let mut bytes = vec![0; 3 * MAX_LINE_START + 5];
    let (found, line) = scan(&bytes, "{", 0, FirstLine::At(0));
    assert_eq!((found.len(), line), (0, Some(bytes.len() as u64)));
    bytes.extend_from_slice(b"{1\n\0{2\n");
    let (found, _) = scan(&bytes, "{", 0, FirstLine::At(0));
    assert_eq!(found, [b"{1"]);
    let (found, _) = scan(&bytes, "{", 10, FirstLine::Behind(1 << 20));
    assert_eq!(found, [b"{1"]);
}

#[test]
fn scan_stops_reading_once_a_line_decides() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&b"{1}\n".repeat(BLOCK)).unwrap();
    let end = 4 * BLOCK as u64;
    let mut scanner = LineScanner::new();
    let pattern = LinePattern::literal("{").unwrap();
    let scanned = scanner
        .scan_lines(&file, &pattern, (0, end), FirstLine::Behind(0), |_| true)
        .unwrap();
    assert_eq!(
        (scanner.read, scanned.line),
        (FIRST_BLOCK as u64, Some(end))
    );
}

#[test]
fn file_truncated_during_a_scan_is_reported() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"{\n").unwrap();
    let pattern = LinePattern::literal("{").unwrap();
    let scanned = LineScanner::new()
        .scan_lines(&file, &pattern, (0, 100), FirstLine::At(0), |_| false)
        .unwrap();
    assert!(scanned.is_truncated);
}

proptest! {
    #[test]
    fn scan_agrees_with_the_model(
        parts in prop::collection::vec(prop_oneof![
            Just(b"\n".to_vec()), Just(b"{a".to_vec()), Just(b"{ab".to_vec()), Just(b"x".to_vec()),
            (1..3_usize, 0..4_usize).prop_map(|(blocks, off)| vec![b'.'; blocks * FIRST_BLOCK - off]),
        ], 0..24),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = parts.concat();
        let from = at.index(bytes.len() + 1);
        for pattern in ["", "{", "{ab"] {
            let (mut found, line) = scan(&bytes, pattern, from as u64, FirstLine::Behind(u64::MAX));
            let mut expected = if from == bytes.len() { Vec::new() } else { model(&bytes, pattern, from) };
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
            let last = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
            prop_assert_eq!(line, Some(last as u64));
        }
    }
}
