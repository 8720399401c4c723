//! What a check found, in a word and in a sentence.

use std::fmt;

/// The longest detail, in characters.
const DETAIL: usize = 200;

/// Why something is sick, in at most 7 characters, because that many bytes of an answer reach Aurora's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthReason(ReasonText);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReasonText {
    Word(&'static str),
    Status(u16),
}

impl HealthReason {
    /// Not sick: what Aurora expects.
    pub const OK: Self = Self::word("ok");
    /// Not asked: [`super::SNOOZE_FILE`] is there.
    pub const SNOOZED: Self = Self::word("snoozed");
    /// Told to end.
    pub const QUIT: Self = Self::word("quit");
    /// No verdict in time.
    pub const TIMEOUT: Self = Self::word("timeout");
    /// The checker itself failed.
    pub const ERROR: Self = Self::word("error");

    /// A reason of the tool's own: 1 to 7 lower-case letters and digits. Evaluated in a `const`, a wrong one does not
    /// compile.
    ///
    /// # Panics
    /// It is not such a word.
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
    /// The status has not three digits.
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

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    reason: HealthReason,
    detail: String,
}

impl ProbeResult {
    /// Healthy; `detail` says what was seen.
    #[must_use]
    pub fn healthy(detail: impl AsRef<str>) -> Self {
        Self::unhealthy(HealthReason::OK, detail)
    }

    /// Sick for a reason; `detail` names the object and what was seen. It is cut at 200 characters.
    #[must_use]
    pub fn unhealthy(reason: HealthReason, detail: impl AsRef<str>) -> Self {
        Self {
            reason,
            detail: detail.as_ref().chars().take(DETAIL).collect(),
        }
    }

    /// Whether it is healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.reason == HealthReason::OK
    }

    /// Why, or [`HealthReason::OK`].
    #[must_use]
    pub const fn reason(&self) -> HealthReason {
        self.reason
    }

    /// What was seen.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_fits_into_what_aurora_shows() {
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
    fn a_long_reason_is_refused() {
        let _ = HealthReason::word("unreachable");
    }

    #[test]
    fn details_are_cut_between_characters() {
        let verdict = ProbeResult::unhealthy(HealthReason::ERROR, "ä".repeat(500));
        assert_eq!(verdict.detail().chars().count(), DETAIL);
    }
}
