//! Tar headers: the checksum and the numbers, read as GNU tar reads them.

/// The size of a header, and the unit of padding.
pub(crate) const BLOCK: usize = 512;

/// Whether the checksum is right: the sum of all bytes, with spaces in place of the checksum. Old tars added signed
/// bytes.
#[must_use]
pub(crate) fn is_header(block: &[u8; BLOCK]) -> bool {
    let field = 148..156;
    let (mut plain, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if field.contains(&at) { b' ' } else { *byte };
        plain += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    number(&block[field]).is_some_and(|sum| sum == plain || sum == signed)
}

/// A number in octal, or in base 256 as GNU tar writes large and negative ones. One NUL before the digits is skipped
/// (an old tar wrote it when the previous field was full), and a field without digits is 0.
#[must_use]
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let append =
        |number: i64, base: i64, digit: u8| number.checked_mul(base)?.checked_add(i64::from(digit));
    let binary = |start, rest: &[u8]| {
        (rest.iter()).try_fold(start, |number, byte| append(number, 256, *byte))
    };
    match field {
        [0x80, rest @ ..] => binary(0, rest),
        [0xff, rest @ ..] => binary(-1, rest),
        _ => {
            let field = field.strip_prefix(b"\0").unwrap_or(field);
            let mut words = field
                .trim_ascii_start()
                .split(|byte| matches!(byte, b' ' | 0));
            words.next()?.iter().try_fold(0, |number, byte| match byte {
                b'0'..=b'7' => append(number, 8, byte - b'0'),
                _ => None,
            })
        }
    }
}

/// A number that is a size or a mode.
#[must_use]
pub(crate) fn unsigned(field: &[u8]) -> Option<u64> {
    number(field).and_then(|number| number.try_into().ok())
}
