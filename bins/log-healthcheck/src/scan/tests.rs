//! The scanner against a reader of everything, with small and large lines around the borders of its blocks.

use std::io::Write as _;

use proptest::prelude::*;

use super::*;

/// The beginnings that a scan finds, those in front last, and where the last line begins.
fn scan(bytes: &[u8], pattern: &str, from: u64, first: First) -> (Vec<Vec<u8>>, Option<u64>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let pattern = Pattern::literal(pattern).unwrap();
    let mut found = Vec::new();
    let scanned = Scanner::new()
        .lines(&file, &pattern, (from, bytes.len() as u64), first, |line| {
            found.push(line.to_vec());
            false
        })
        .unwrap();
    assert!(!scanned.shrunk);
    (found, scanned.line)
}

/// What [`scan`] should find, without an order.
fn model(bytes: &[u8], pattern: &str, from: usize) -> Vec<Vec<u8>> {
    let mut place = 0;
    let mut found = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        place += line.len();
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if place > from && text.starts_with(pattern.as_bytes()) {
            found.push(text[..text.len().min(LINE)].to_vec());
        }
    }
    found
}

#[test]
fn lines_at_every_border() {
    for padding in [FIRST, FIRST + BLOCK] {
        // The newline and the brace move over the border of two blocks, one byte at a time.
        for shift in 0..6 {
            let mut bytes = vec![b'x'; 5];
            bytes.extend_from_slice(b"\n{{{1\n");
            bytes.resize(bytes.len() + padding - shift, b'y');
            let (found, line) = scan(&bytes, "{{{", 0, First::At(0));
            assert_eq!(found, [b"{{{1"], "{padding} {shift}");
            assert_eq!(line, Some(11));
        }
    }
}

#[test]
fn a_line_of_any_length_is_known_by_its_beginning() {
    let mut bytes = b"{".to_vec();
    bytes.resize(3 * BLOCK, b'z');
    let (found, line) = scan(&bytes, "{", 2 * BLOCK as u64, First::At(0));
    assert_eq!((found.len(), found[0].len(), line), (1, LINE, Some(0)));
    // Where its beginning is not known it is looked for, but not without end.
    let (found, line) = scan(&bytes, "{", 2 * BLOCK as u64, First::Behind(1 << 30));
    assert_eq!((found.len(), line), (1, Some(0)));
    let (found, line) = scan(&bytes, "{", 2 * BLOCK as u64, First::Behind(BLOCK as u64));
    assert_eq!((found.len(), line), (0, None));
}

#[test]
fn nuls_in_front_are_not_of_the_line() {
    let mut bytes = vec![0; 3 * LINE + 5];
    let (found, line) = scan(&bytes, "{", 0, First::At(0));
    assert_eq!((found.len(), line), (0, Some(bytes.len() as u64)));
    bytes.extend_from_slice(b"{1\n\0{2\n");
    let (found, _) = scan(&bytes, "{", 0, First::At(0));
    assert_eq!(found, [b"{1"]);
    let (found, _) = scan(&bytes, "{", 10, First::Behind(1 << 20));
    assert_eq!(found, [b"{1"]);
}

#[test]
fn no_more_is_read_than_decides() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&b"{1}\n".repeat(BLOCK)).unwrap();
    let end = 4 * BLOCK as u64;
    let mut scanner = Scanner::new();
    let pattern = Pattern::literal("{").unwrap();
    let scanned = scanner
        .lines(&file, &pattern, (0, end), First::Behind(0), |_| true)
        .unwrap();
    assert_eq!((scanner.read, scanned.line), (FIRST as u64, Some(end)));
}

#[test]
fn a_file_that_becomes_shorter_is_told() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"{\n").unwrap();
    let pattern = Pattern::literal("{").unwrap();
    let scanned = Scanner::new()
        .lines(&file, &pattern, (0, 100), First::At(0), |_| false)
        .unwrap();
    assert!(scanned.shrunk);
}

proptest! {
    #[test]
    fn finds_what_a_reader_of_everything_finds(
        parts in prop::collection::vec(prop_oneof![
            Just(b"\n".to_vec()), Just(b"{a".to_vec()), Just(b"{ab".to_vec()), Just(b"x".to_vec()),
            (1..3_usize, 0..4_usize).prop_map(|(blocks, off)| vec![b'.'; blocks * FIRST - off]),
        ], 0..24),
        at in any::<prop::sample::Index>(),
    ) {
        let bytes = parts.concat();
        let from = at.index(bytes.len() + 1);
        for pattern in ["", "{", "{ab"] {
            let (mut found, line) = scan(&bytes, pattern, from as u64, First::Behind(u64::MAX));
            let mut expected = if from == bytes.len() { Vec::new() } else { model(&bytes, pattern, from) };
            found.sort();
            expected.sort();
            prop_assert_eq!(found, expected);
            let last = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
            prop_assert_eq!(line, Some(last as u64));
        }
    }
}
