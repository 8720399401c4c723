//! Values of the keys that only a configuration file has. They are parsed while the file is read, so that an error names
//! its line.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Error as _, Unexpected, Visitor};

/// A scalar of YAML as text, quoted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(ScalarVisitor)?;
        text.map(Self)
            .ok_or_else(|| D::Error::invalid_type(Unexpected::Unit, &ScalarVisitor))
    }
}

/// Reads a scalar as text. An empty value counts as absent.
#[derive(Clone, Copy)]
struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Option<String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number or a boolean")
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
struct NonEmptyText(String);

impl<'de> Deserialize<'de> for NonEmptyText {
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

/// A text or a path that is not empty; `None` where it is absent. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not a text, or empty.
pub fn text<'de, D: Deserializer<'de>, T: From<String>>(from: D) -> Result<Option<T>, D::Error> {
    let text = Option::<NonEmptyText>::deserialize(from)?;
    Ok(text.map(|NonEmptyText(text)| text.into()))
}

/// A list of texts none of which is empty; `None` where it is absent. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not a list of texts, or one is empty.
pub fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let texts = Option::<Vec<NonEmptyText>>::deserialize(from)?;
    Ok(texts.map(|texts| texts.into_iter().map(|NonEmptyText(text)| text).collect()))
}

/// Parses a scalar; `None` where it is empty. For `#[serde(deserialize_with)]`.
///
/// # Errors
/// It is not a scalar, or `parse` refuses it.
pub fn parsed<'de, D: Deserializer<'de>, T>(
    from: D,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let Some(text) = from.deserialize_any(ScalarVisitor)? else {
        return Ok(None);
    };
    parse(&text)
        .map(Some)
        .map_err(|why| D::Error::custom(format!("invalid value `{}`: {why}", text.escape_debug())))
}
