//! Load by tools that nobody here wrote.
