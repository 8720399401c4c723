//! The engine and every memcached die in mid-load.
