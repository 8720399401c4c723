//! The configuration file: the keys that only it has. All others are the flags of `cli`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use clap::ValueEnum as _;
use hostkit::config::value::{self, Scalar};
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::settings::PreflightPolicy;

/// The keys of [`FileRules`].
pub(crate) const FILE_KEYS: &[&str] = &["routes", "open", "host-param", "host_param", "cors"];

/// What only a file can set. Maps and lists have no flag.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct FileRules {
    /// Rights that some paths need.
    pub routes: Option<Vec<RouteEntry>>,
    /// Paths that need no key.
    #[serde(deserialize_with = "list")]
    pub open: Option<Vec<String>>,
    /// The query parameter that names the host that a request is about.
    #[serde(alias = "host_param")]
    pub host_param: Option<String>,
    /// The CORS headers of our own responses.
    pub cors: Option<BTreeMap<String, CorsValue>>,
}

/// An entry of `routes`, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct RouteEntry {
    /// The name in metrics; the path by default.
    pub name: Option<String>,
    /// The beginning of the path.
    pub path: String,
    /// Methods it is for; all by default.
    #[serde(deserialize_with = "list")]
    pub methods: Option<Vec<String>>,
    /// Rights that are needed, all of them.
    #[serde(deserialize_with = "list")]
    pub rights: Option<Vec<String>>,
    /// No right and no key is needed.
    pub open: bool,
    /// CORS preflights for this path; `--cors-preflight` by default.
    #[serde(deserialize_with = "preflight")]
    pub cors_preflight: Option<PreflightPolicy>,
}

/// A value of `cors`, as written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a text, a number, a boolean or a list")]
pub(crate) enum CorsValue {
    /// One.
    One(Scalar),
    /// A list.
    List(Vec<Scalar>),
}

impl CorsValue {
    /// As it stands in a header.
    pub(crate) fn join(&self) -> String {
        match self {
            Self::One(Scalar(text)) => text.clone(),
            Self::List(values) => {
                let texts: Vec<&str> = values.iter().map(|Scalar(text)| text.as_str()).collect();
                texts.join(", ")
            }
        }
    }
}

/// The policy for CORS preflights. `off` is a boolean in YAML.
fn preflight<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PreflightPolicy>, D::Error> {
    value::parsed(from, |text| match text {
        "false" => Ok(PreflightPolicy::Off),
        text => PreflightPolicy::from_str(text, false)
            .map_err(|_| "expected off, answer or pass".to_owned()),
    })
}

/// A list of YAML, or one text with commas.
fn list<'de, D, T>(from: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    from.deserialize_any(ListVisitor)?
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error: T::Err| D::Error::custom(format!("{text:?}: {error}")))
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list, or a text with commas")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(text.split(',').map(|part| part.trim().to_owned()).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(part) = parts.next_element()? {
            list.push(part);
        }
        Ok(list)
    }
}
