//! What the configuration decides about a client's requests, compiled once when it is loaded and asked for every request.
//! Pure: no socket, no session, no clock of its own.

pub(crate) mod commands;
