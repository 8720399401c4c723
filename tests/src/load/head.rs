//! Parses the head of an HTTP/1.1 message (RFC 9112), as far as the load generator and the tasks need it. Chunked
//! bodies are not read: nothing here sends them.

use std::ops::Range;

const LIMIT: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MessageHead {
    /// Bytes of the message up to and with the empty line.
    pub(crate) length: usize,
    /// The request target, or the status code.
    pub(crate) second: Range<usize>,
    pub(crate) body: Option<usize>,
    pub(crate) close: bool,
}

impl MessageHead {
    /// The head at the beginning of `bytes`, or `None` while it is incomplete.
    ///
    /// # Errors
    /// The reason why it is malformed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let Some(length) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if bytes.len() > LIMIT {
                Err(format!("no end of the head within {LIMIT} bytes"))
            } else {
                Ok(None)
            };
        };
        let text = std::str::from_utf8(&bytes[..length]).map_err(|_| "a head that is not text")?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let mut words = first.splitn(3, ' ');
        let (one, two) = (words.next().unwrap_or_default(), words.next());
        let two = two.ok_or_else(|| format!("a first line of one word: {first:?}"))?;
        let start = one.len() + 1;
        let mut head = Self {
            length: length + 4,
            second: start..start + two.len(),
            body: None,
            close: first.contains("HTTP/1.0"),
        };
        for line in lines {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| format!("a header without a colon: {line:?}"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let length = value
                    .parse()
                    .map_err(|_| format!("Content-Length: {value}"))?;
                head.body = Some(length);
            } else if name.eq_ignore_ascii_case("connection") {
                head.close = value.eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(format!(
                    "Transfer-Encoding: {value}, which is not read here"
                ));
            }
        }
        Ok(Some(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<MessageHead>, String> {
        MessageHead::parse(text.as_bytes())
    }

    #[test]
    fn parse_returns_length_of_head_and_body() {
        let text = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\nConnection: Close\r\n\r\nabcdefg";
        let head = parse(text).unwrap().unwrap();
        assert_eq!(&text[head.second.clone()], "503");
        assert_eq!(&text[head.length..], "abcdefg");
        assert_eq!((head.body, head.close), (Some(7), true));
    }

    #[test]
    fn connection_stays_open_unless_head_closes_it() {
        let close = |text| parse(text).unwrap().unwrap().close;
        assert!(!close("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(close("HTTP/1.0 200 OK\r\n\r\n"));
        assert!(close("GET / HTTP/1.1\r\nconnection: close\r\n\r\n"));
    }

    #[test]
    fn incomplete_head_is_none_and_malformed_head_is_error() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\nConte").unwrap(), None);
        assert_eq!(parse("").unwrap(), None);
        for wrong in [
            "hello\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            &"x".repeat(LIMIT + 1),
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
