//! The command lines of the seeds.
