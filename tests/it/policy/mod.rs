//! The command policy (`commands`): what is refused is refused on every way a command can take, and nowhere else; what a rate
//! limit holds back comes in order; and all of it is counted.

/// Pipelines, MULTI, scripts, connections of a client's own, names the table does not have.
mod commands;
/// Requests that are streamed.
mod large;
/// `commands.rate`.
mod rate;
/// The side port, INFO, EXPLAIN and the log.
mod statistics;
/// `commands.overrides`: by name, user and listener, whoever answers.
mod who;

use serde_json::{Value, json};

use crate::support::proxy::Builder;
use crate::support::{Proxy, Redis, Reply};

/// A proxy with this list for `commands.deny`.
fn denying(redis: &Redis, deny: &[&str]) -> Builder {
    Proxy::to(redis).set("commands.deny", json!(deny))
}

/// The error for a command that a rule refuses.
fn noperm(command: &str, by: &str) -> Reply {
    Reply::Error(format!("NOPERM nearside policy: no permissions to run the '{command}' command ({by})").into())
}

/// The same for a key.
fn nokey(command: &str, by: &str) -> Reply {
    let what = "no permissions to access one of the keys used as arguments of";
    Reply::Error(format!("NOPERM nearside policy: {what} '{command}' ({by})").into())
}

fn is_noperm(reply: &Reply) -> bool {
    reply.is_error() && reply.text().starts_with("NOPERM nearside policy: ")
}

/// The policy section of the dashboard.
fn section(proxy: &Proxy) -> Value {
    proxy.get("/api/v1/dashboard/policy").json()
}
