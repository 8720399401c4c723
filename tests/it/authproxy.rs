//! authproxy from the point of view of its clients, its upstream, its permissions backend and its operators.

mod access;
mod caching;
mod causes;
mod connections;
mod deadlines;
mod drain;
mod early_answers;
mod fairness;
mod framing;
mod leniency;
mod load;
mod memory;
mod outage;
mod permissions;
mod preflight;
mod proxying;
mod readings;
mod releases;
mod rights;
mod seeds;
mod streaming;
mod upgrade;
mod verbs;
mod wire;
