//! The fields of a registration beside its endpoint, checked before they become part of a backend.

use std::collections::BTreeMap;

use crate::model::{Backend, Rare, Rarely, Reason, Reject, safe_name, safe_options};

/// HAProxy's greatest weight.
const HEAVIEST: u64 = 256;

/// The greatest number of labels of one backend.
const LABELS: usize = 64;

/// The longest label or value, in bytes.
const LABEL: usize = 256;

/// What a registration says beside where it is.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Its name.
    pub(super) name: Option<String>,
    /// Its weight.
    pub(super) weight: Option<u64>,
    /// Options for its server line.
    pub(super) options: Option<String>,
    /// Its HAProxy server id.
    pub(super) server_id: Option<u32>,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
}

impl Fields {
    /// `backend` with these fields. Empty text is none.
    ///
    /// # Errors
    /// A field holds what HAProxy's configuration, or a log line, must not.
    pub(super) fn put_on(self, mut backend: Backend) -> Result<Backend, Reject> {
        let refuse =
            |backend: Backend, what: String| Err(Reject::new(backend.source, Reason::Unsafe, what));
        let name = self.name.filter(|name| !name.is_empty());
        if let Some(name) = name.as_ref().filter(|name| !safe_name(name)) {
            return refuse(backend, format!("name `{name}`"));
        }
        let options = self.options.filter(|options| !options.is_empty());
        if let Some(options) = options.as_ref().filter(|options| !safe_options(options)) {
            return refuse(backend, format!("haproxy_server_options `{options}`"));
        }
        match self.weight {
            Some(weight) if weight > HEAVIEST => {
                return refuse(backend, format!("weight {weight}, of at most {HEAVIEST}"));
            }
            weight => backend.weight = weight.and_then(|weight| u16::try_from(weight).ok()),
        }
        if self.labels.len() > LABELS {
            return refuse(backend, format!("{} labels", self.labels.len()));
        }
        let printable = |text: &str| text.len() <= LABEL && !text.chars().any(char::is_control);
        if let Some((label, value)) = self
            .labels
            .iter()
            .find(|(label, value)| !printable(label) || !printable(value))
        {
            return refuse(backend, format!("label `{label}`: `{value}`"));
        }
        backend.rare = Rarely::from(Rare {
            name: name.map(String::into_boxed_str),
            options: options.map(String::into_boxed_str),
            server_id: self.server_id,
            labels: self.labels,
        });
        Ok(backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(fields: Fields) -> Result<Backend, Reject> {
        fields.put_on(Backend::new("10.0.0.1", 80, "here").unwrap())
    }

    fn label(label: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(label.to_owned(), value.to_owned())])
    }

    #[test]
    fn what_is_safe_is_put_on() {
        let backend = put(Fields {
            name: Some("i-0abc".into()),
            weight: Some(256),
            options: Some("backup maxconn 10".into()),
            labels: label("az", "us-east-1a"),
            server_id: None,
        })
        .unwrap();
        assert_eq!(backend.name().as_deref(), Some("i-0abc"));
        assert_eq!(backend.weight, Some(256));
        assert_eq!(backend.rare.options.as_deref(), Some("backup maxconn 10"));
        assert_eq!(backend.rare.labels["az"], "us-east-1a");
    }

    #[test]
    fn what_is_not_safe_is_refused_and_named_printably() {
        let many: BTreeMap<String, String> =
            (0..65).map(|n| (n.to_string(), String::new())).collect();
        let hostile = [
            Fields {
                name: Some("a\nserver evil".into()),
                ..Fields::default()
            },
            Fields {
                name: Some("a b".into()),
                ..Fields::default()
            },
            Fields {
                options: Some("check\nbind :80".into()),
                ..Fields::default()
            },
            Fields {
                options: Some("check # rest".into()),
                ..Fields::default()
            },
            Fields {
                weight: Some(257),
                ..Fields::default()
            },
            Fields {
                weight: Some(u64::MAX),
                ..Fields::default()
            },
            Fields {
                labels: label("az", "a\u{1b}[2J"),
                ..Fields::default()
            },
            Fields {
                labels: label(&"a".repeat(257), ""),
                ..Fields::default()
            },
            Fields {
                labels: many,
                ..Fields::default()
            },
        ];
        for fields in hostile {
            let reject = put(fields).unwrap_err();
            assert_eq!(reject.reason, Reason::Unsafe, "{reject:?}");
            assert!(!reject.detail.chars().any(char::is_control), "{reject:?}");
            assert_eq!(reject.source, "here");
        }
    }
}
