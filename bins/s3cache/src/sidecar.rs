//! The `.sha256` file that is published beside an artifact: asking for it, and reading what the usual tools write into
//! one. A digest that is there but cannot be read fails a fetch; a page in place of a missing file does not.

use aws_smithy_types::base64;
use percent_encoding::percent_decode_str;

use crate::digest::{self, Hex};
use crate::source::Source;
use crate::store::{Get, Kind, ObjectStore, StoreError};

/// A longer sidecar is not read (bytes).
const LIMIT: usize = 64 << 10;
/// What its name ends in.
pub const SUFFIX: &str = ".sha256";

/// What a sidecar says of one artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SidecarDigest {
    /// There is none, or a page where one would be.
    Absent,
    /// The SHA-256 of the artifact.
    Sha256(Hex),
    /// There is something like a digest, and it cannot be read: the reason.
    NotUnderstood(&'static str),
}

/// Asks for the sidecar of an artifact. A sidecar has none of its own.
///
/// # Errors
/// The store cannot say whether there is one.
pub async fn ask(
    store: &dyn ObjectStore,
    source: &Source,
    name: &str,
) -> Result<SidecarDigest, StoreError> {
    if name.ends_with(SUFFIX) {
        return Ok(SidecarDigest::Absent);
    }
    let mut reply = match store.get(&source.with_suffix(SUFFIX), Get::default()).await {
        Ok(reply) => reply,
        // Buckets and repositories that do not let names be listed answer so for one that is missing. Any other refusal,
        // of expired credentials for one, does not say whether it is.
        Err(error) if error.kind == Kind::Absent || error.status == Some(403) => {
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

/// Reads a sidecar: a bare digest, or lines of sha256sum(1), shasum(1), sha256(1) or openssl-dgst(1), of which those for
/// `name` count. `name` may be percent-encoded, as in a URL.
#[must_use]
pub fn parse(body: &[u8], content_type: Option<&str>, name: &str) -> SidecarDigest {
    let html = is_html(content_type);
    if html && body.len() > LIMIT || is_markup(body) {
        return SidecarDigest::Absent;
    }
    if body.len() > LIMIT {
        return SidecarDigest::NotUnderstood("it is longer than 64 KiB");
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
        // Frameworks give this type to whatever a handler returns, so that it counts only where no digest is read.
        ([], ..) if html => SidecarDigest::Absent,
        ([], [], true) => SidecarDigest::NotUnderstood("it holds digests of other names only"),
        ([], [], false) if body.contains(&0) && holds_digest(text) => {
            SidecarDigest::NotUnderstood("it is not UTF-8 text")
        }
        ([], [], false) if holds_digest(text) => SidecarDigest::NotUnderstood(
            "it holds a digest, but no SHA-256 in a form that is read here",
        ),
        ([], [], false) => SidecarDigest::Absent,
        _ => SidecarDigest::NotUnderstood("it holds several digests for this name"),
    }
}

fn is_html(content_type: Option<&str>) -> bool {
    let kind = content_type.and_then(|text| text.split(';').next());
    kind.is_some_and(|kind| {
        let kind = kind.trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    })
}

/// Whether the first character, after byte order marks and white space, begins a page: no line of a digest does.
fn is_markup(body: &[u8]) -> bool {
    let skipped = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n";
    body.iter().find(|byte| !skipped.contains(byte)) == Some(&b'<')
}

/// One line: a SHA-256, and the path it is for, unless it is that of standard input.
fn read_line(line: &str) -> Option<(Hex, Option<String>)> {
    let line = line.trim();
    // coreutils marks a line whose name it has escaped.
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
fn read_tagged(line: &str) -> Option<(Hex, Option<&str>)> {
    let (algorithm, rest) = line.split_once('(')?;
    let known = ["SHA256", "SHA2-256", "SHA-256"];
    known
        .iter()
        .find(|known| known.eq_ignore_ascii_case(algorithm.trim_end()))?;
    let (path, digest) = rest.rsplit_once(')')?;
    let digest = digest.trim_start().strip_prefix('=')?;
    Some((sha256(digest.trim())?, Some(path)))
}

/// A digest alone, or followed by white space, the mark of binary mode, and the path.
fn read_plain(line: &str) -> Option<(Hex, Option<&str>)> {
    let (digest, path) = match line.split_once(char::is_whitespace) {
        Some((digest, rest)) => (digest, Some(rest.strip_prefix([' ', '*']).unwrap_or(rest))),
        None => (line, None),
    };
    Some((sha256(digest)?, path))
}

/// A SHA-256 in hex or base64, bare or as `sha256:` and `sha256-` introduce it.
fn sha256(word: &str) -> Option<Hex> {
    let prefixed = word.get(..7).filter(|start| {
        start.eq_ignore_ascii_case("sha256:") || start.eq_ignore_ascii_case("sha256-")
    });
    let word = prefixed.map_or(word, |_| &word[7..]);
    digest::parse(word).ok().or_else(|| {
        let bytes = base64::decode(word).ok()?;
        (bytes.len() == 32).then(|| digest::hex(&bytes))
    })
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

/// Whether there is anything like a digest in a text: a run of 32 hex digits or more, a base64 SHA-256, or the eight
/// words of gpg(1). NULs do not part a run, because those of UTF-16 would hide it.
fn holds_digest(text: &str) -> bool {
    let text = text.replace('\0', "");
    let hex = |word: &[u8]| word.iter().all(u8::is_ascii_hexdigit);
    let encoded = |extra: &'static str| {
        text.split(move |c: char| !c.is_ascii_alphanumeric() && !extra.contains(c))
            .any(|word| word.len() == 44 && word.find('=') == Some(43))
    };
    let words: Vec<&[u8]> = text.split_whitespace().map(str::as_bytes).collect();
    text.as_bytes()
        .split(|byte| !byte.is_ascii_hexdigit())
        .any(|run| run.len() >= 32)
        || encoded("+/=")
        || encoded("-_=")
        || words.windows(8).any(|eight| {
            eight.iter().all(|word| word.len() == 8 && hex(word))
                && eight.concat().iter().any(u8::is_ascii_alphabetic)
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

    fn read(text: &str, name: &str) -> SidecarDigest {
        parse(text.as_bytes(), Some("text/plain"), name)
    }

    #[test]
    fn sidecar_in_a_form_that_tools_write_vouches() {
        let upper = A.to_uppercase();
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
        // What a handler of a web framework returns is of this type unless it says otherwise.
        let typed = parse(A.as_bytes(), Some("text/html; charset=utf-8"), "a.pex");
        assert_eq!(typed, Sha256(A.to_owned()));
    }

    #[test]
    fn body_without_a_digest_is_absence() {
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
    fn digest_that_cannot_be_read_is_not_understood() {
        let utf16 = |text: &str| {
            text.encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<_>>()
        };
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
            utf16(A),
            utf16(&format!("\u{feff}{A}  a.pex\r\n")),
            format!("{A}  a.pex\n{}", "\n".repeat(LIMIT)).into_bytes(),
        ] {
            let found = parse(&body, Some("text/plain"), "a.pex");
            let shown = String::from_utf8_lossy(&body[..body.len().min(90)]);
            assert!(
                matches!(found, SidecarDigest::NotUnderstood(_)),
                "{shown}: {found:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn digest_read_from_any_text_stands_in_it(text in "([0-9a-fA-F]{62,66}[ *\\t]{0,3}[a-z./]{0,6}\\n?){0,4}\\PC{0,40}") {
            if let Sha256(found) = read(&text, "a.pex") {
                prop_assert!(digest::parse(&found).is_ok());
                prop_assert!(text.to_ascii_lowercase().contains(&found));
            }
        }

        #[test]
        fn readable_digest_never_passes_as_absence(before in "[a-zA-Z0-9 (=*\\\\:-]{0,12}", after in "[^<]{0,12}") {
            let found = read(&format!("{before}{A}{after}"), "a.pex");
            prop_assert_ne!(found, Absent);
        }
    }
}
