//! WebSockets, and no other upgrade.
