//! Nearside: a Redis-protocol caching sidecar.

mod app;
mod cli;
mod command;
mod config;
mod http;
mod limits;
mod observe;
mod resp;

pub use cli::main;
