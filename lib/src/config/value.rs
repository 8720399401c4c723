//! Values of a configuration file that are written as on the command line (`90`, `1.5G`, `250ms`). They are parsed while
//! the file is read, so that an error names its line.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Error as _, Unexpected, Visitor};

use crate::units;

/// What a value is that may be any scalar.
const SCALAR: &str = "a text, a number or a boolean";
/// How a duration is written.
const DURATION: &str = "seconds, or a number with ms, s, m, h or d";
/// How a size is written.
pub const SIZE: &str = "bytes, or a number with K, M, G or T";

/// A scalar of YAML as text, quoted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = Expected(SCALAR);
        let text = from.deserialize_any(expected)?;
        text.map(Self)
            .ok_or_else(|| D::Error::invalid_type(Unexpected::Unit, &expected))
    }
}

/// Takes a scalar as text, and says of anything else what is expected. An empty value counts as absent.
#[derive(Clone, Copy)]
struct Expected(&'static str);

impl Visitor<'_> for Expected {
    type Value = Option<String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }
    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(number.to_string()))
    }
}

/// A text that is not empty: an empty one would count as set and mean nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.trim().is_empty() {
            return Err(D::Error::custom(
                "invalid empty value: write one, or remove the line",
            ));
        }
        Ok(Self(text))
    }
}

/// A text or a path that is not empty; an absent value is none. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not a text, or empty.
pub fn text<'de, D: Deserializer<'de>, T: From<String>>(from: D) -> Result<Option<T>, D::Error> {
    let text = Option::<Text>::deserialize(from)?;
    Ok(text.map(|Text(text)| text.into()))
}

/// A list of texts none of which is empty; an absent value is none. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not a list of texts, or one is empty.
pub fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let texts = Option::<Vec<Text>>::deserialize(from)?;
    Ok(texts.map(|texts| texts.into_iter().map(|Text(text)| text).collect()))
}

/// Parses a scalar; an empty value is none. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is no scalar, or `parse` refuses it.
pub fn parsed<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    parsed_as(from, SCALAR, parse)
}

/// The same for a scalar that is written as `expected` says.
///
/// # Errors
/// As [`parsed`].
pub fn parsed_as<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let Some(text) = from.deserialize_any(Expected(expected))? else {
        return Ok(None);
    };
    parse(&text)
        .map(Some)
        .map_err(|why| D::Error::custom(format!("invalid value `{}`: {why}", text.escape_debug())))
}

/// A duration.
///
/// # Errors
/// As [`units::parse_duration`].
pub fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    parsed_as(from, DURATION, units::parse_duration)
}

/// A duration after which something is given up, hence not 0.
///
/// # Errors
/// As [`units::parse_duration`], or it is 0.
pub fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    parsed_as(from, DURATION, |text| match units::parse_duration(text)? {
        Duration::ZERO => Err("a timeout of 0 would give up before it began: raise it".to_owned()),
        duration => Ok(duration),
    })
}

/// A size in bytes.
///
/// # Errors
/// As [`units::parse_size`].
pub fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    parsed_as(from, SIZE, units::parse_size)
}
