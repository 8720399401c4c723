//! Bytes as hex digits, by data-encoding.

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};

/// Lower-case digits.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// The bytes of digits in either case; none for anything else, a sign or a space too.
#[must_use]
pub fn decode(digits: &str) -> Option<Vec<u8>> {
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()
}

/// Whether there are only hex digits, of either case.
#[must_use]
pub fn is_hex(text: impl AsRef<[u8]>) -> bool {
    text.as_ref().iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pairs_of_digits_are_decoded() {
        assert_eq!(encode(&[0, 0xab]), "00ab");
        assert_eq!(decode("00aB"), Some(vec![0, 0xab]));
        for wrong in ["0", "+1", " 1", "0x", "ä"] {
            assert_eq!(decode(wrong), None, "{wrong}");
            assert_eq!(is_hex(wrong), wrong == "0", "{wrong}");
        }
    }
}
