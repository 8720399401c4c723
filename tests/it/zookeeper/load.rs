//! Many paths.
