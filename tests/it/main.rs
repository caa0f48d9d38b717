//! The one integration binary.

/// Command line and configuration: streams and exit codes.
mod config;
