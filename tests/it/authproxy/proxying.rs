//! Requests and answers go through as they are, but for what has to change.
