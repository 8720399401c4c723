//! authproxy: checks the API key of every request, and passes the request on to the server.

pub mod credential;
pub mod door;
pub mod grant;
pub mod lifecycle;
pub mod permissions;
pub mod refusal;
pub mod scope;
pub mod settings;
