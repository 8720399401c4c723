//! Percent-decoding where the percent-encoding crate alone does not do: escapes that must be valid, and forms.

use percent_encoding::{percent_decode, percent_decode_str};

/// The byte of the escape `%XX` that a text begins with. The crate leaves an invalid escape as it is; a path with one is
/// read differently by servers, and so it has to be found.
pub(crate) fn leading_escape(text: &[u8]) -> Option<u8> {
    // Three bytes become one only if they are an escape.
    let mut decoded = percent_decode(text.first_chunk::<3>()?);
    let byte = decoded.next()?;
    decoded.next().is_none().then_some(byte)
}

/// Decodes a name or a value of a query once (WHATWG URL, `application/x-www-form-urlencoded` parsing): `+` is a space, and
/// an invalid escape stands for itself.
pub(crate) fn decode_form(text: &str) -> impl Iterator<Item = u8> {
    let parts = text.split('+').enumerate();
    parts.flat_map(|(index, part)| {
        let space = (index > 0).then_some(b' ');
        space.into_iter().chain(percent_decode_str(part))
    })
}
