//! Every phase has a deadline: slow heads, slow bodies, slow readers, slow servers.
