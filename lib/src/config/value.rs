//! Values of a configuration file that are written as on the command line (`90`, `1.5G`, `250ms`). They are parsed while
//! the file is read, so that an error names its line.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Error as _, Visitor};

use crate::units;

/// A scalar of YAML as text, quoted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number or a boolean")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }
        from.deserialize_any(Any)
    }
}

/// Parses a scalar; an empty value is none. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is no scalar, or `parse` refuses it.
pub fn parsed<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let Some(Scalar(text)) = Option::deserialize(from)? else {
        return Ok(None);
    };
    parse(&text)
        .map(Some)
        .map_err(|why| D::Error::custom(format!("invalid value `{}`: {why}", text.escape_debug())))
}

/// A duration.
///
/// # Errors
/// As [`units::duration`].
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    parsed(from, units::duration)
}

/// A duration after which something is given up, hence not 0.
///
/// # Errors
/// As [`units::duration`], or it is 0.
pub fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    parsed(from, |text| match units::duration(text)? {
        Duration::ZERO => Err("a timeout of 0 would give up before it began: raise it".to_owned()),
        duration => Ok(duration),
    })
}

/// A size in bytes.
///
/// # Errors
/// As [`units::size`].
pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    parsed(from, units::size)
}
