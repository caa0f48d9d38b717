//! Nearside: a Redis-protocol caching sidecar.

mod app;
mod cache;
mod cli;
mod coherence;
mod command;
mod config;
mod http;
mod limits;
mod net;
mod observe;
mod resp;
mod router;
mod session;
mod upstream;
mod worker;

pub use cli::main;
