//! Everything that is tested from outside, in one binary: real servers, real sockets, real bytes.

/// Real client libraries and tools must not notice the sidecar.
mod clients;
/// Command line and configuration: streams and exit codes.
mod config;
/// A harness that lies would make every other test worthless.
mod harness;
/// What a redis-server answers is right: the same bytes must come through Nearside.
mod oracle;
mod support;
/// The rules of layout and layering hold because they are a test.
mod tidy;
