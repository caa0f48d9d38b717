//! What the rules say of a key, as pure functions: nothing here reads a clock, a socket or a file.

pub(crate) mod assign;
pub(crate) mod rollout;
