//! Every request line that a backend could see carries a valid key, whatever is sent.
