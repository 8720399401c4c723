//! Environment variables as the AWS tools and curl read them, as a value that tests can replace.

use std::collections::HashMap;

/// The variables that are set. An empty variable counts as unset.
#[derive(Debug, Clone, Default)]
pub(crate) struct EnvironmentVariables(HashMap<String, String>);

impl EnvironmentVariables {
    #[must_use]
    pub(crate) fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for EnvironmentVariables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .collect(),
        )
    }
}
