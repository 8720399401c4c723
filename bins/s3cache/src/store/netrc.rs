//! `~/.netrc` as curl reads it: comments, quoted words with escapes, macros, any layout, `default`. An invalid line
//! matters only to its own host.

use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{StoreError, StoreErrorKind};

const LIMIT: u64 = 1 << 20;

/// The login for a host: any bytes but those that end a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetrcLogin {
    pub(super) name: Vec<u8>,
    pub(super) password: Vec<u8>,
}

/// A file of logins.
#[derive(Debug)]
pub(super) struct NetrcFile {
    path: PathBuf,
    text: Vec<u8>,
}

impl NetrcFile {
    /// Reads the file that `$NETRC` names, else `~/.netrc`; `None` when it does not exist.
    ///
    /// # Errors
    /// It cannot be read, or is too long. A `~/.netrc` without read permission is ignored.
    pub(super) fn read() -> Result<Option<Self>, StoreError> {
        let named = hostkit::env::var_os("NETRC");
        let home = hostkit::env::var_os("HOME");
        let implied = home.map(|home| Path::new(&home).join(".netrc"));
        let is_named = named.is_some();
        let Some(path) = named.map(PathBuf::from).or(implied) else {
            return Ok(None);
        };
        match hostkit::file::read(&path, LIMIT) {
            Ok(text) => Ok(Some(Self { path, text })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_named => {
                warn!(path = %path.display(), %error, "cannot read the logins; continuing without them");
                Ok(None)
            }
            Err(error) => {
                let setting = if is_named { "NETRC: " } else { "" };
                let message = format!("{setting}cannot read {}", path.display());
                Err(StoreError::new(StoreErrorKind::Denied, message)
                    .remedy("correct it or remove it; a file of logins has at most 1 MiB")
                    .because(error))
            }
        }
    }

    /// The login for a host.
    ///
    /// # Errors
    /// A line of this host is invalid.
    pub(super) fn login(&self, host: &str) -> Result<Option<NetrcLogin>, StoreError> {
        find(&self.text, host).map_err(|UnterminatedQuote { line }| {
            let place = format!("{}:{line}", self.path.display());
            StoreError::new(
                StoreErrorKind::Denied,
                format!("{place}: unterminated quote"),
            )
            .remedy("correct this line")
        })
    }
}

/// An unterminated quote in a line of the host. The text is not shown, because it may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UnterminatedQuote {
    line: usize,
}

/// The expected next word.
enum NetrcToken {
    Keyword,
    Machine,
    Login,
    Password,
    Ignored,
}

fn find(text: &[u8], host: &str) -> Result<Option<NetrcLogin>, UnterminatedQuote> {
    // An IPv6 address has brackets in a URL.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (mut name, mut password) = (None, None);
    let (mut is_ours, mut in_macro) = (false, false);
    let mut expected = NetrcToken::Keyword;
    'lines: for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if in_macro {
            in_macro = !line.trim_ascii().is_empty();
            continue;
        }
        let mut rest = line;
        while let Some(word) = next_word(&mut rest) {
            let Ok(word) = word else {
                if is_ours {
                    return Err(UnterminatedQuote { line: index + 1 });
                }
                expected = NetrcToken::Keyword;
                continue 'lines;
            };
            let is = |keyword: &str| word.eq_ignore_ascii_case(keyword.as_bytes());
            expected = match expected {
                NetrcToken::Machine => {
                    is_ours = is(host);
                    NetrcToken::Keyword
                }
                NetrcToken::Login if is_ours => {
                    name = Some(word);
                    NetrcToken::Keyword
                }
                NetrcToken::Password if is_ours => {
                    password = Some(word);
                    NetrcToken::Keyword
                }
                NetrcToken::Login | NetrcToken::Password | NetrcToken::Ignored => {
                    NetrcToken::Keyword
                }
                NetrcToken::Keyword if is("machine") || is("default") => {
                    if password.is_some() {
                        break 'lines;
                    }
                    is_ours = is("default");
                    if is_ours {
                        NetrcToken::Keyword
                    } else {
                        NetrcToken::Machine
                    }
                }
                NetrcToken::Keyword if is("login") => NetrcToken::Login,
                NetrcToken::Keyword if is("password") => NetrcToken::Password,
                NetrcToken::Keyword if is("account") => NetrcToken::Ignored,
                NetrcToken::Keyword if is("macdef") => {
                    in_macro = true;
                    continue 'lines;
                }
                NetrcToken::Keyword => NetrcToken::Keyword,
            };
        }
    }
    Ok((name.is_some() || password.is_some()).then(|| NetrcLogin {
        name: name.unwrap_or_default(),
        password: password.unwrap_or_default(),
    }))
}

/// A quoted word without an end.
struct UnclosedWord;

/// Takes the next word off a line. `#` starts a comment.
fn next_word(rest: &mut &[u8]) -> Option<Result<Vec<u8>, UnclosedWord>> {
    let line = rest.trim_ascii_start();
    let quoted = match line.first()? {
        b'#' => return None,
        b'"' => &line[1..],
        _ => {
            let end = line.iter().position(u8::is_ascii_whitespace);
            let (word, after) = line.split_at(end.unwrap_or(line.len()));
            *rest = after;
            return Some(Ok(word.to_vec()));
        }
    };
    let mut word = Vec::new();
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                *rest = bytes.as_slice();
                return Some(Ok(word));
            }
            b'\\' => word.push(match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(other) => *other,
                None => break,
            }),
            other => word.push(*other),
        }
    }
    *rest = &[];
    Some(Err(UnclosedWord))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn invalid_line_affects_only_its_host() {
        let text = b"machine a login b password \"open\nmachine c login \"d\\\"\" password e\nmachine \"f\nlogin g\n";
        assert_eq!(find(text, "a"), Err(UnterminatedQuote { line: 1 }));
        let login = |name: &str, password: &str| {
            Ok(Some(NetrcLogin {
                name: name.into(),
                password: password.into(),
            }))
        };
        assert_eq!(find(text, "C"), login("d\"", "e"));
        assert_eq!(find(text, "f"), Ok(None));
        assert_eq!(find(b"machine ::1 password x", "[::1]"), login("", "x"));
    }

    /// A word as some writers quote it.
    fn written(word: &str, quote: bool) -> String {
        if !quote
            && !word.is_empty()
            && !word.starts_with(['#', '"'])
            && !word.contains([' ', '\t'])
        {
            return word.to_owned();
        }
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
    }

    proptest! {
        #[test]
        fn written_login_is_parsed_in_any_context(
            name in "[!-~]{1,8}",
            password in "[ -~]{0,12}",
            quote in any::<bool>(),
            gaps in prop::collection::vec(prop::sample::select(vec![" ", "\t", "\n", "\r\n", " # said \"x\n\t"]), 6),
            before in "(#[ -~]{0,12}\n|macdef x\n[ -~]{1,9}\n\n|machine o login [a-z]{1,4} password \"[a-z ]{0,6}\n|[a-c ]{0,6}\n){0,3}",
            after in "(\nmachine [a-z]{1,4} \"[ -~]{0,12})?",
        ) {
            let (user, secret) = (written(&name, quote), written(&password, quote));
            let [g0, g1, g2, g3, g4, g5] = <[&str; 6]>::try_from(gaps).unwrap();
            let text = format!("{before}machine{g0}Host.example{g1}login{g2}{user}{g3}password{g4}{secret}{g5}{after}");
            let login = NetrcLogin { name: name.into(), password: password.into() };
            prop_assert_eq!(find(text.as_bytes(), "host.example"), Ok(Some(login)), "{}", text);
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = find(&text, "h");
        }
    }
}
