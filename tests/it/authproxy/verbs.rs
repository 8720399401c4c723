//! `key` and `serve-acl`.
