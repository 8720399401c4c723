//! Answers shared over real memcached servers: signed, bounded in time, never believed from anybody else.
