//! The result of a probe: a reason of at most 7 bytes, and a detail for people.

use std::fmt;

/// The longest detail, in characters.
const MAX_DETAIL: usize = 200;

/// Why a task is unhealthy, in at most 7 characters: Aurora's page shows that many bytes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthReason(ReasonText);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReasonText {
    Word(&'static str),
    Status(u16),
}

impl HealthReason {
    /// Healthy: the body that Aurora expects.
    pub const OK: Self = Self::word("ok");
    /// Not checked: [`super::SNOOZE_FILE`] exists.
    pub const SNOOZED: Self = Self::word("snoozed");
    /// After a shutdown request.
    pub const QUIT: Self = Self::word("quit");
    /// No result within the deadline.
    pub const TIMEOUT: Self = Self::word("timeout");
    /// The checker itself failed.
    pub const ERROR: Self = Self::word("error");

    /// A reason of the tool's own: 1 to 7 lower-case letters and digits. Evaluated in a `const`, an invalid one does
    /// not compile.
    ///
    /// # Panics
    /// The word is invalid.
    #[must_use]
    pub const fn word(word: &'static str) -> Self {
        let bytes = word.as_bytes();
        assert!(
            !bytes.is_empty() && bytes.len() <= 7,
            "Aurora shows 7 bytes"
        );
        let mut index = 0;
        while index < bytes.len() {
            assert!(bytes[index].is_ascii_lowercase() || bytes[index].is_ascii_digit());
            index += 1;
        }
        Self(ReasonText::Word(word))
    }

    /// An HTTP status that is not the expected one: `http503`.
    ///
    /// # Panics
    /// The status does not have three digits.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        assert!(status >= 100 && status <= 999, "a status has three digits");
        Self(ReasonText::Status(status))
    }
}

impl fmt::Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ReasonText::Word(word) => f.write_str(word),
            ReasonText::Status(status) => write!(f, "http{status}"),
        }
    }
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    reason: HealthReason,
    detail: String,
}

impl ProbeResult {
    /// Healthy; `detail` describes what was checked.
    #[must_use]
    pub fn healthy(detail: impl AsRef<str>) -> Self {
        Self::unhealthy(HealthReason::OK, detail)
    }

    /// Unhealthy; `detail` names the object and the cause, and is truncated at 200 characters.
    #[must_use]
    pub fn unhealthy(reason: HealthReason, detail: impl AsRef<str>) -> Self {
        Self {
            reason,
            detail: detail.as_ref().chars().take(MAX_DETAIL).collect(),
        }
    }

    /// Whether it is healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.reason == HealthReason::OK
    }

    /// The reason; [`HealthReason::OK`] if healthy.
    #[must_use]
    pub const fn reason(&self) -> HealthReason {
        self.reason
    }

    /// The detail.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_at_most_7_bytes() {
        for reason in [
            HealthReason::OK,
            HealthReason::SNOOZED,
            HealthReason::QUIT,
            HealthReason::TIMEOUT,
            HealthReason::ERROR,
            HealthReason::status(100),
            HealthReason::status(999),
        ] {
            assert!(reason.to_string().len() <= 7, "{reason}");
        }
        assert_eq!(HealthReason::status(503).to_string(), "http503");
    }

    #[test]
    #[should_panic(expected = "7 bytes")]
    fn long_reason_panics() {
        let _ = HealthReason::word("unreachable");
    }

    #[test]
    fn long_detail_is_truncated_between_characters() {
        let result = ProbeResult::unhealthy(HealthReason::ERROR, "ä".repeat(500));
        assert_eq!(result.detail().chars().count(), MAX_DETAIL);
    }
}
