//! Permissions engines: files, servers, the live configuration; dead, slow, lying and flapping.
