//! The access log, `/status`, `/metrics`, purge and reload.
