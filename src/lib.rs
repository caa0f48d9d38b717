//! Nearside: a Redis-protocol caching sidecar.

mod command;
mod config;
mod http;
mod limits;
mod observe;
mod resp;
