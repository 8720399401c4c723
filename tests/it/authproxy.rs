//! authproxy: as its clients, its server, its permissions engine and its operators see it.

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
