//! Old server.
