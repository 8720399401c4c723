//! Events, answers and scans in every order that matters.
