//! The `.sha256` file that is published beside an artifact: fetching and parsing it. A digest that is present but
//! cannot be parsed fails a fetch; a page in place of a missing file does not.

use aws_smithy_types::base64;
use percent_encoding::percent_decode_str;

use crate::digest::{self, Sha256Hex};
use crate::source::ArtifactSource;
use crate::store::{GetRequest, ObjectStore, StoreError, StoreErrorKind};

/// The size limit of a sidecar (bytes).
const LIMIT: usize = 64 << 10;
pub(crate) const SUFFIX: &str = ".sha256";

/// The content of a sidecar, for one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SidecarDigest {
    /// The sidecar is missing, or a page is in its place.
    Absent,
    /// The SHA-256 of the artifact.
    Sha256(Sha256Hex),
    /// It contains something like a digest, which cannot be parsed: the reason.
    Unreadable(&'static str),
}

/// Fetches the sidecar of an artifact. A sidecar itself has none.
///
/// # Errors
/// The store does not show whether it exists.
pub(crate) async fn fetch_digest(
    store: &dyn ObjectStore,
    source: &ArtifactSource,
    name: &str,
) -> Result<SidecarDigest, StoreError> {
    if name.ends_with(SUFFIX) {
        return Ok(SidecarDigest::Absent);
    }
    let mut reply = match store
        .get(&source.with_suffix(SUFFIX), GetRequest::default())
        .await
    {
        Ok(reply) => reply,
        // Buckets and repositories that may not be listed answer so for a missing object. Any other denial, such as
        // expired credentials, does not show whether it exists.
        Err(error) if error.kind == StoreErrorKind::NotFound || error.status == Some(403) => {
            return Ok(SidecarDigest::Absent);
        }
        Err(error) => return Err(error),
    };
    let mut body = Vec::new();
    while body.len() <= LIMIT
        && let Some(piece) = reply.body.next().await?
    {
        body.extend_from_slice(&piece);
    }
    Ok(parse(&body, reply.meta.content_type.as_deref(), name))
}

/// Parses a sidecar: a bare digest, or lines of sha256sum(1), shasum(1), sha256(1) or openssl-dgst(1), of which those
/// for `name` count. `name` may be percent-encoded, as in a URL.
#[must_use]
pub fn parse(body: &[u8], content_type: Option<&str>, name: &str) -> SidecarDigest {
    if is_raw_digest(body) {
        return SidecarDigest::Unreadable("it has a binary digest, not text");
    }
    let html = is_html(content_type);
    if html && body.len() > LIMIT || is_markup(body) {
        return SidecarDigest::Absent;
    }
    if body.len() > LIMIT {
        return SidecarDigest::Unreadable("it is longer than 64 KiB");
    }
    let text = String::from_utf8_lossy(body);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let decoded = percent_decode_str(name).decode_utf8_lossy();
    let (mut ours, mut bare, mut others) = (Vec::new(), Vec::new(), false);
    for (digest, path) in text.split(['\n', '\r', '\0']).filter_map(read_line) {
        let file = path
            .as_deref()
            .map(|path| path.rsplit('/').next().unwrap_or(path).trim());
        match file {
            None => bare.push(digest),
            Some(file) if file == name.trim() || file == decoded.trim() => ours.push(digest),
            Some(_) => others = true,
        }
    }
    ours.dedup();
    bare.dedup();
    match (ours.as_slice(), bare.as_slice(), others) {
        ([digest], _, _) | ([], [digest], false) => SidecarDigest::Sha256(digest.clone()),
        // Frameworks set this type by default, so it only counts when no digest is found.
        ([], ..) if html => SidecarDigest::Absent,
        ([], [], true) => SidecarDigest::Unreadable("it only has digests of other names"),
        // UTF-16, a compressed body or another file: it may contain a digest.
        ([], [], false) if has_control_bytes(body) => {
            SidecarDigest::Unreadable("it is not UTF-8 text")
        }
        ([], [], false) if holds_digest(text) => {
            SidecarDigest::Unreadable("it has a digest, but no SHA-256 in a supported format")
        }
        ([], [], false) => SidecarDigest::Absent,
        _ => SidecarDigest::Unreadable("it has several digests for this name"),
    }
}

fn is_html(content_type: Option<&str>) -> bool {
    let kind = content_type.and_then(|text| text.split(';').next());
    kind.is_some_and(|kind| {
        let kind = kind.trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// Whether the first character, after byte order marks and white space, starts a page: no line with a digest does.
fn is_markup(body: &[u8]) -> bool {
    let skipped = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n";
    body.iter().find(|byte| !skipped.contains(byte)) == Some(&b'<')
}

/// Whether the body may be a binary SHA-256, -384 or -512.
fn is_raw_digest(body: &[u8]) -> bool {
    matches!(body.len(), 32 | 48 | 64) && std::str::from_utf8(body).is_err()
}

fn has_control_bytes(body: &[u8]) -> bool {
    body.iter()
        .any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace())
}

/// One line: a SHA-256 and its path, unless that is standard input.
fn read_line(line: &str) -> Option<(Sha256Hex, Option<String>)> {
    let line = line.trim();
    // coreutils marks a line with an escaped name.
    let (escaped, line) = match line.strip_prefix('\\') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (digest, path) = read_tagged(line).or_else(|| read_plain(line))?;
    let path = path.filter(|path| !matches!(path.trim(), "" | "-" | "stdin"));
    Some((
        digest,
        path.map(|path| {
            if escaped {
                unescape(path)
            } else {
                path.to_owned()
            }
        }),
    ))
}

/// `SHA256 (path) = hex` of BSD and `sha256sum --tag`, `SHA256(path)= hex` and `SHA2-256(path)= hex` of OpenSSL.
fn read_tagged(line: &str) -> Option<(Sha256Hex, Option<&str>)> {
    let (algorithm, rest) = line.split_once('(')?;
    let known = ["SHA256", "SHA2-256", "SHA-256"];
    known
        .iter()
        .find(|known| known.eq_ignore_ascii_case(algorithm.trim_end()))?;
    let (path, digest) = rest.rsplit_once(')')?;
    let digest = digest.trim_start().strip_prefix('=')?;
    Some((sha256(digest.trim())?, Some(path)))
}

/// A digest alone, or followed by white space, the mark of binary mode, and a path.
fn read_plain(line: &str) -> Option<(Sha256Hex, Option<&str>)> {
    let (digest, path) = match line.split_once(char::is_whitespace) {
        Some((digest, rest)) => (digest, Some(rest.strip_prefix([' ', '*']).unwrap_or(rest))),
        None => (line, None),
    };
    Some((sha256(digest)?, path))
}

/// A SHA-256 in hex (`openssl dgst -c` puts colons between bytes) or base64, bare or after `sha256:` or `sha256-`.
fn sha256(word: &str) -> Option<Sha256Hex> {
    let prefixed = word.get(..7).filter(|start| {
        start.eq_ignore_ascii_case("sha256:") || start.eq_ignore_ascii_case("sha256-")
    });
    let word = prefixed.map_or(word, |_| &word[7..]);
    let pairs: Vec<&str> = word.split(':').collect();
    if pairs.len() == 32 && pairs.iter().all(|pair| pair.len() == 2) {
        return digest::parse(&pairs.concat()).ok();
    }
    digest::parse(word).ok().or_else(|| {
        let bytes = if word.len() == 43 && is_mixed(word) {
            base64::decode(format!("{word}=")).ok()?
        } else {
            base64::decode(word).ok()?
        };
        (bytes.len() == 32).then(|| hostkit::hex::encode(&bytes))
    })
}

/// Whether a word has letters of both cases and digits, as base64 without padding has, and words of a language have
/// not.
fn is_mixed(word: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| word.as_bytes().iter().any(kind);
    has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit)
}

fn unescape(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('\\', Some(escaped @ ('n' | 'r' | '\\'))) => {
                plain.push(match escaped {
                    'n' => '\n',
                    'r' => '\r',
                    _ => '\\',
                });
                rest.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

/// Whether a text contains something like a digest: whole, in groups, or broken over lines or by invisible characters.
fn holds_digest(text: &str) -> bool {
    let shown = |c: &char| matches!(c, ' ' | '\t') || c.is_ascii_graphic();
    let joined: String = text.chars().filter(shown).collect();
    let joined_run = hex_runs(&joined).any(|run| run.iter().any(u8::is_ascii_alphabetic));
    let pairs = text.split(|c: char| !c.is_ascii_alphanumeric());
    hex_runs(text).next().is_some()
        || joined_run
        || [text, &joined].into_iter().any(holds_base64)
        || holds_groups(text.split_whitespace(), &[4, 8])
        || holds_groups(pairs.filter(|pair| !pair.is_empty()), &[2])
}

/// Runs of 32 hex digits or more.
fn hex_runs(text: &str) -> impl Iterator<Item = &[u8]> {
    let runs = text.as_bytes().split(|byte| !byte.is_ascii_hexdigit());
    runs.filter(|run| run.len() >= 32)
}

/// Whether a text contains a SHA-256, -384 or -512 in one of the alphabets of base64.
fn holds_base64(text: &str) -> bool {
    ["+/", "-_"].into_iter().any(|extra| {
        let splits = |c: char| !c.is_ascii_alphanumeric() && !extra.contains(c);
        let padded = text.split(|c: char| splits(c) && c != '=');
        let mut words = text.split(splits);
        words.any(|word| matches!(word.len(), 43 | 64 | 86) && is_mixed(word))
            || padded
                .into_iter()
                .any(|word| word.len() == 44 && word.find('=') == Some(43))
    })
}

/// Whether hex digits in groups of one of these widths add up to 32 or more in a row, as gpg(1) writes digests. Groups
/// of decimal digits are dates and counts.
fn holds_groups<'a>(mut words: impl Iterator<Item = &'a str>, widths: &[usize]) -> bool {
    let (mut width, mut digits, mut has_letter) = (0, 0, false);
    words.any(|word| {
        let is_group = widths.contains(&word.len()) && hostkit::hex::is_hex(word);
        if !is_group || word.len() != width {
            (width, digits, has_letter) = (word.len(), 0, false);
        }
        if is_group {
            digits += width;
            has_letter |= word.bytes().any(|byte| byte.is_ascii_alphabetic());
        }
        digits >= 32 && has_letter
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use SidecarDigest::{Absent, Sha256};
    use proptest::prelude::*;

    const A: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const A64: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
    const B: &str = "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34";

    /// Its bytes with `separator` between.
    fn in_pairs(separator: &str) -> String {
        let pairs: Vec<&str> = (0..32).map(|n| &A[2 * n..2 * n + 2]).collect();
        pairs.join(separator)
    }

    fn read(text: &str, name: &str) -> SidecarDigest {
        parse(text.as_bytes(), Some("text/plain"), name)
    }

    #[test]
    fn sidecar_in_any_common_format_is_parsed() {
        let upper = A.to_uppercase();
        let colons = in_pairs(":");
        for (text, name) in [
            (A.to_owned(), "a.pex"),
            (format!("\u{feff}{upper}\r\n"), "a.pex"),
            (format!("{A}  a.pex\n"), "a.pex"),
            (format!("{A} *a.pex\r\n"), "a.pex"),
            (format!("{A}\ta.pex"), "a.pex"),
            (format!("{A}  -\n"), "a.pex"),
            (format!("{A}  a.pex\0{B}  b.pex\0"), "a.pex"),
            (format!("{B}  dist/b.pex\n{A}  ./dist/a.pex\n"), "a.pex"),
            (format!("# made by CI\n{A}  a.pex\n{A}  a.pex\n"), "a.pex"),
            (format!("{A}  a b (1).pex\n{B}  b (1).pex\n"), "a b (1).pex"),
            (format!("{A}  a b.pex\n{B}  a\n"), "a%20b.pex"),
            (format!("{A}  a%20b.pex\n{B}  a\n"), "a%20b.pex"),
            (format!("{A}  b\u{fc}ro.pex\n{B}  x\n"), "b%C3%BCro.pex"),
            (format!("{A}  b\u{fc}ro.pex\n{B}  x\n"), "b\u{fc}ro.pex"),
            (format!("\\{A}  a\\\\b.pex\n{B}  x\n"), "a\\b.pex"),
            (format!("\\{A}  a\\nb.pex\n{B}  x\n"), "a%0Ab.pex"),
            (format!("SHA256 (a.pex) = {A}\n"), "a.pex"),
            (
                format!("SHA512 (a.pex) = {A}{A}\nSHA256 (a.pex) = {upper}\n"),
                "a.pex",
            ),
            (format!("\\SHA256 (a\\\\b) = {A}\n"), "a\\b"),
            (format!("SHA256 (a (1).pex) = {A64}\n"), "a (1).pex"),
            (format!("SHA256(dist/a.pex)= {A}\n"), "a.pex"),
            (format!("SHA2-256(a.pex)= {A}\n"), "a.pex"),
            (format!("SHA2-256(stdin)= {A}\n"), "a.pex"),
            (format!("SHA2-256(a.pex)= {colons}\n"), "a.pex"),
            (format!("sha256:{colons}  a.pex\n"), "a.pex"),
            (A64.trim_end_matches('=').to_owned(), "a.pex"),
            (format!("{A64}\n"), "a.pex"),
            (format!("sha256:{A}\n"), "a.pex"),
            (format!("sha256-{A64}\n"), "a.pex"),
            (
                format!("d41d8cd98f00b204e9800998ecf8427e  a.pex\n{A}  a.pex\n"),
                "a.pex",
            ),
        ] {
            assert_eq!(read(&text, name), Sha256(A.to_owned()), "{text:?} {name}");
        }
        // The default type of web frameworks.
        let typed = parse(A.as_bytes(), Some("text/html; charset=utf-8"), "a.pex");
        assert_eq!(typed, Sha256(A.to_owned()));
    }

    #[test]
    fn body_without_digest_counts_as_absent() {
        let page = format!("\u{feff}\n<!DOCTYPE html><a href=/{A}>not here</a>");
        let long = "x".repeat(LIMIT);
        let wide: Vec<u8> = page.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (body, kind) in [
            (b"".as_slice(), None),
            (b"not found", Some("text/plain")),
            (
                br#"{"error": "no such file", "at": "2026-11-30T07:12:14.123456Z"}"#,
                Some("application/json"),
            ),
            (
                br#"{"request": "550e8400-e29b-41d4-a716-446655440000"}"#,
                Some("application/json"),
            ),
            (
                b"20261101 20261102 20261103 20261104 20261105 20261106 20261107 20261108",
                None,
            ),
            (b"20261101\n20261102\n20261103\n20261104\n20261105\n", None),
            (
                b"2026-11-30 07:12:14 26-11-30 07:12:14 26-11-30 07:12:14",
                None,
            ),
            (
                b"2001:0db8:85a3:0000:0000:8a2e:0370:7334 52:54:00:ab:cd:ef",
                None,
            ),
            (b"at SimpleBeanFactoryAwareAspectInstanceFactory", None),
            (b"nicht verf\xfcgbar\r\n", Some("text/plain")),
            (format!("<html>{A}").as_bytes(), None),
            (page.as_bytes(), Some("application/octet-stream")),
            (&wide, None),
            (format!("commit {A}").as_bytes(), Some("TEXT/HTML")),
            (format!("{A}  other\n").as_bytes(), Some("text/html")),
            (format!("{long}{A}").as_bytes(), Some("text/html")),
            (format!("<{long}{A}").as_bytes(), None),
        ] {
            let shown = String::from_utf8_lossy(&body[..body.len().min(90)]);
            assert_eq!(parse(body, kind, "a.pex"), Absent, "{shown}");
        }
    }

    #[test]
    fn digest_in_unsupported_form_is_unreadable() {
        let utf16 = |text: &str| {
            text.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<_>>()
        };
        let raw = base64::decode(A64).unwrap();
        let sha512 = base64::encode([raw.clone(), raw.clone()].concat());
        for body in [
            b"d41d8cd98f00b204e9800998ecf8427e  a.pex\n".to_vec(),
            format!("{A}{B}  a.pex\n").into_bytes(),
            format!("SHA512 (a.pex) = {A}{B}\n").into_bytes(),
            format!("SHA3-256(a.pex)= {A}\n").into_bytes(),
            format!("BLAKE2s256 (a.pex) = {A}\n").into_bytes(),
            format!("{A}  other.pex\n").into_bytes(),
            format!("{A}  xa.pex\n{A}  a.pex.asc\n").into_bytes(),
            format!("{A}  a.pex\n{B}  a.pex\n").into_bytes(),
            format!("{A}\n{B}\n").into_bytes(),
            format!("{A}\n{B}  other.pex\n").into_bytes(),
            format!("a.pex {A}\n").into_bytes(),
            format!("# {A}  a.pex\n").into_bytes(),
            format!("{}\n", &A[..60]).into_bytes(),
            format!("integrity=\"sha256-{A64}\"").into_bytes(),
            b"a.pex: BA7816BF 8F01CFEA 414140DE 5DAE2223  B00361A3 96177A9C B410FF61 F20015AD\n"
                .to_vec(),
            in_pairs(" ").into_bytes(),
            in_pairs(" ").as_bytes()[..48].to_vec(),
            format!(
                "a.pex: {}\n    {}",
                &in_pairs(" ")[..48],
                &in_pairs(" ")[48..]
            )
            .into_bytes(),
            format!("{}\n", in_pairs("-")).into_bytes(),
            format!("{}\n{}\n{}\n", &A[..31], &A[31..62], &A[62..]).into_bytes(),
            format!("{}\u{200b}{}\u{200b}{}", &A[..30], &A[30..60], &A[60..]).into_bytes(),
            format!("digest={}", A64.trim_end_matches('=')).into_bytes(),
            sha512.clone().into_bytes(),
            sha512.trim_end_matches('=').as_bytes().to_vec(),
            format!("sha512-{}\n{}", &sha512[..76], &sha512[76..]).into_bytes(),
            raw.clone(),
            [b"<".as_slice(), &raw[1..]].concat(),
            [b"\x1f\x8b\x08".as_slice(), &raw, &raw[..15]].concat(),
            b"not found\x1b[0m".to_vec(),
            utf16("not found"),
            utf16(A),
            utf16(&format!("\u{feff}{A}  a.pex\r\n")),
            format!("{A}  a.pex\n{}", "\n".repeat(LIMIT)).into_bytes(),
        ] {
            let found = parse(&body, Some("text/plain"), "a.pex");
            let shown = String::from_utf8_lossy(&body[..body.len().min(90)]);
            assert!(
                matches!(found, SidecarDigest::Unreadable(_)),
                "{shown}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn parsed_digest_is_part_of_the_text(text in "([0-9a-fA-F]{62,66}[ *\\t]{0,3}[a-z./]{0,6}\\n?){0,4}\\PC{0,40}") {
            if let Sha256(found) = read(&text, "a.pex") {
                prop_assert!(digest::parse(&found).is_ok());
                prop_assert!(text.to_ascii_lowercase().contains(&found));
            }
        }

        #[test]
        fn text_with_digest_is_never_absent(before in "[a-zA-Z0-9 (=*\\\\:-]{0,12}", after in "[^<]{0,12}") {
            let found = read(&format!("{before}{A}{after}"), "a.pex");
            prop_assert_ne!(found, Absent);
        }
    }
}
