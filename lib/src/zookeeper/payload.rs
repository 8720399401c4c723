//! Decoding of registrations. The bytes are hostile: none of them may cause a panic, or take more memory than a small
//! multiple of their length.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::member::{
    Member, MemberEndpoint, MemberError, MemberErrorKind, MemberFormat, MemberPort, MemberStatus,
    NerveAttributes, sequence_number,
};

/// ZooKeeper's default limit of a znode (`jute.maxbuffer`).
const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// Additional endpoints per member. Aurora's tasks have one per named port.
const MAX_ENDPOINTS: usize = 256;

/// Labels per member.
const MAX_LABELS: usize = 64;

/// Nerve's encoding of payloads in names.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Strings that many members share, stored once: hosts and names of ports.
#[derive(Debug, Default)]
pub(super) struct StringInterner(Mutex<InternedStrings>);

#[derive(Debug, Default)]
struct InternedStrings {
    texts: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl StringInterner {
    fn intern(&self, text: &str) -> Arc<str> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = known.texts.get(text) {
            return Arc::clone(text);
        }
        if known.texts.len() >= known.sweep_at {
            known.texts.retain(|text| Arc::strong_count(text) > 1);
            known.sweep_at = 1024.max(known.texts.len() * 2);
        }
        let text: Arc<str> = text.into();
        known.texts.insert(Arc::clone(&text));
        text
    }
}

/// Decodes the payload of the child `name`.
pub(super) fn decode_payload(
    format: MemberFormat,
    name: &str,
    payload: &[u8],
    interner: &StringInterner,
) -> Result<Member, MemberError> {
    let mut member = match format {
        MemberFormat::ServerSet => decode_server_set(&parse_object(payload)?, interner),
        MemberFormat::Nerve => decode_nerve(parse_object(payload)?, interner),
    };
    member.sequence = sequence_number(name);
    Ok(member)
}

/// Decodes the payload that the name itself carries, if it does: such a child need not be read.
pub(super) fn decode_name(
    format: MemberFormat,
    name: &str,
    interner: &StringInterner,
) -> Option<Result<Member, MemberError>> {
    let rest = name.strip_prefix("base64_")?;
    if format != MemberFormat::Nerve {
        return None;
    }
    let (length, rest) = rest.split_once('_')?;
    // The alphabet includes `_`, so only the length tells where the payload ends.
    let encoded = rest.get(..length.parse().ok()?)?;
    Some(match BASE64.decode(encoded) {
        Ok(payload) => decode_payload(format, name, &payload, interner),
        Err(error) => Err(malformed(error.to_string())),
    })
}

fn malformed(detail: impl AsRef<str>) -> MemberError {
    MemberError::new(MemberErrorKind::Malformed, detail)
}

fn parse_object<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T, MemberError> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        let detail = format!("{} bytes", payload.len());
        return Err(MemberError::new(MemberErrorKind::Oversized, detail));
    }
    match payload.trim_ascii_start().first() {
        // serde would also accept an array for a structure.
        Some(b'{') => {}
        None => return Err(malformed("empty")),
        Some(_) => return Err(malformed("not a JSON object")),
    }
    let text = std::str::from_utf8(payload).map_err(|error| malformed(error.to_string()))?;
    serde_json::from_str(text).map_err(|error| malformed(error.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServerSet {
    #[serde(default)]
    status: LooseValue,
    #[serde(default)]
    shard: LooseValue,
    service_endpoint: Option<RawEndpoint>,
    additional_endpoints: Option<BoundedMap<RawEndpoint, MAX_ENDPOINTS>>,
}

#[derive(Deserialize)]
struct RawEndpoint {
    host: String,
    #[serde(default)]
    port: LooseValue,
}

#[derive(Deserialize)]
struct RawNerve {
    host: String,
    #[serde(default)]
    port: LooseValue,
    #[serde(default)]
    name: LooseValue,
    #[serde(default)]
    weight: LooseValue,
    #[serde(default)]
    haproxy_server_options: LooseValue,
    #[serde(default)]
    haproxy_server_id: LooseValue,
    labels: Option<BoundedMap<LooseValue, MAX_LABELS>>,
}

fn decode_server_set(raw: &RawServerSet, interner: &StringInterner) -> Member {
    let endpoint = |raw: &RawEndpoint| MemberEndpoint {
        host: interner.intern(&raw.host),
        port: raw.port.to_port(),
    };
    let entries = raw.additional_endpoints.iter().flat_map(|all| &all.0);
    let mut additional: Vec<_> = entries
        .map(|(name, raw)| (interner.intern(name), endpoint(raw)))
        .collect();
    additional.sort_by(|one, other| one.0.cmp(&other.0));
    // The first of several endpoints with one name counts.
    additional.dedup_by(|second, first| second.0 == first.0);
    Member {
        sequence: None,
        status: MemberStatus::parse(raw.status.text().unwrap_or_default()),
        shard: raw.shard.as_u32(),
        service: raw.service_endpoint.as_ref().map(endpoint),
        additional: additional.into(),
        nerve: None,
    }
}

fn decode_nerve(raw: RawNerve, interner: &StringInterner) -> Member {
    let labels = raw.labels.into_iter().flat_map(|all| all.0);
    let attributes = NerveAttributes {
        weight: raw.weight.as_u32(),
        server_id: raw.haproxy_server_id.as_u32(),
        name: raw.name.into_text(),
        options: raw.haproxy_server_options.into_text(),
        labels: labels
            .filter_map(|(label, value)| Some((label, value.into_text()?)))
            .collect::<BTreeMap<_, _>>(),
    };
    Member {
        sequence: None,
        status: MemberStatus::Alive,
        shard: None,
        service: Some(MemberEndpoint {
            host: interner.intern(&raw.host),
            port: raw.port.to_port(),
        }),
        additional: Box::default(),
        nerve: Some(Box::new(attributes)),
    }
}

/// Any JSON value, reduced to what a field can hold.
#[derive(Default)]
enum LooseValue {
    Text(String),
    Number(u64),
    /// A negative or fractional number, or one beyond 64 bits.
    OtherNumber,
    #[default]
    Other,
}

impl LooseValue {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as text: Synapse compares labels as text, and people write `port: 80` for a label.
    fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string()),
            Self::OtherNumber | Self::Other => None,
        }
    }

    fn as_u32(&self) -> Option<u32> {
        match self {
            Self::Number(number) => u32::try_from(*number).ok(),
            _ => None,
        }
    }

    fn to_port(&self) -> MemberPort {
        match self {
            Self::Number(number) => {
                u16::try_from(*number).map_or(MemberPort::OutOfRange, MemberPort::Number)
            }
            Self::OtherNumber => MemberPort::OutOfRange,
            Self::Text(_) | Self::Other => MemberPort::NotANumber,
        }
    }
}

impl<'de> Deserialize<'de> for LooseValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseValueVisitor)
    }
}

struct LooseValueVisitor;

impl<'de> Visitor<'de> for LooseValueVisitor {
    type Value = LooseValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<LooseValue, E> {
        Ok(LooseValue::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<LooseValue, E> {
        Ok(LooseValue::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<LooseValue, E> {
        Ok(LooseValue::OtherNumber)
    }

    fn visit_f64<E>(self, _: f64) -> Result<LooseValue, E> {
        Ok(LooseValue::OtherNumber)
    }

    fn visit_bool<E>(self, _: bool) -> Result<LooseValue, E> {
        Ok(LooseValue::Other)
    }

    fn visit_unit<E>(self) -> Result<LooseValue, E> {
        Ok(LooseValue::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<LooseValue, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(LooseValue::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<LooseValue, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(LooseValue::Other)
    }
}

/// A JSON object of at most `MAX` entries.
struct BoundedMap<T, const MAX: usize>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedMap<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BoundedMapVisitor(PhantomData))
    }
}

struct BoundedMapVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedMapVisitor<T, MAX> {
    type Value = BoundedMap<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            if all.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} entries")));
            }
            all.push(entry);
        }
        Ok(BoundedMap(all))
    }
}

/// Fuzz target: any bytes as the payload and as the name of a child, in both formats.
pub fn fuzz_member_payload(bytes: &[u8]) {
    let interner = StringInterner::default();
    let text = String::from_utf8_lossy(bytes);
    for format in [MemberFormat::ServerSet, MemberFormat::Nerve] {
        let children = [
            Some(decode_payload(format, &text, bytes, &interner)),
            decode_name(format, &text, &interner),
            decode_name(format, &format!("base64_{text}"), &interner),
        ];
        for child in children.into_iter().flatten() {
            match child {
                Ok(member) => {
                    assert!(member.additional.len() <= MAX_ENDPOINTS);
                    for (name, endpoint) in &member.additional {
                        assert_eq!(member.endpoint(Some(name)), Some(endpoint));
                    }
                }
                Err(refusal) => {
                    assert!(!refusal.detail.chars().any(char::is_control));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
