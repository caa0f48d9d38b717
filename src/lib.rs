//! Nearside: a Redis-protocol caching sidecar.

mod command;
mod config;
mod limits;
mod observe;
mod resp;
