//! Requests as bytes: one character is one byte, so that a case can be written and printed.

/// The bytes of a text whose characters are below 256.
pub(super) fn encode_latin1(text: &str) -> Vec<u8> {
    text.chars()
        .map(|c| u8::try_from(u32::from(c)).expect("one character is one byte"))
        .collect()
}

/// A head from its request line and its other lines, without line endings.
pub(super) fn head(line: &str, headers: &[&str]) -> String {
    let mut text = format!("{line}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text + "\r\n"
}

/// The request after every case: a valid one, and the last of its connection.
pub(super) fn trailing_request(name: &str) -> String {
    head(
        &format!("GET /victim-{name} HTTP/1.1"),
        &["Host: x", "X-API-Key: valid-key", "Connection: close"],
    )
}
