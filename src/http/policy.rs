//! `GET /api/v1/dashboard/policy`: what the command policy has decided since the process started.

use serde::Serialize;

use super::api::{List, cut};
use crate::observe::metrics::Metrics;
use crate::observe::policy::Refusal;
use crate::observe::reasons::{Action, Decision, Limited};
use crate::observe::stamp;

#[derive(Serialize)]
pub(super) struct Policy {
    /// `off`: nothing is asked; `enforce`; `log`: nothing is denied.
    mode: &'static str,
    #[serde(flatten)]
    all: Counts,
    /// Of the commands that were denied or logged most often.
    top_denied: Vec<Command>,
    /// How many commands have ever been.
    denied_commands: usize,
    breakdown: Breakdown,
    rate: Rate,
    /// The last denials, newest first. Neither this nor the next in the whole snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    recent: Option<List<Recent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_sizes: Option<Vec<Size>>,
}

/// Replies that were at most so large, and larger than the bound before; null: than any.
#[derive(Serialize)]
struct Size {
    le_bytes: Option<u64>,
    count: u64,
}

#[derive(Serialize)]
struct Recent {
    at: String,
    command: &'static str,
    action: &'static str,
    /// The place of the policy that forbids it; never what the command was given.
    why: String,
    client: String,
}

#[derive(Serialize)]
struct Counts {
    checks: u64,
    allowed: u64,
    denied: u64,
    logged: u64,
    /// Of all checks; none before the first.
    allow_rate: Option<f64>,
}

#[derive(Serialize)]
struct Command {
    command: &'static str,
    denied: u64,
    logged: u64,
}

#[derive(Serialize)]
struct Breakdown {
    read: Counts,
    write: Counts,
    execute: Counts,
    admin: Counts,
}

/// What rate limits did.
#[derive(Serialize)]
struct Rate {
    /// Commands that had to wait, and for how long together.
    waited: u64,
    waited_ms: f64,
    /// Commands that were answered with an error.
    refused: u64,
}

impl Policy {
    pub(super) fn of(metrics: &Metrics) -> Policy {
        let denied = metrics.decided_of_all(Decision::Denied);
        let items = metrics.policy.recent().into_iter().map(Recent::of).collect();
        let sizes = metrics.reply_sizes().cells().map(|(le_bytes, count)| Size { le_bytes, count }).collect();
        let (recent, reply_sizes) = (Some(List { total: denied, items }), Some(sizes));
        Policy { recent, reply_sizes, ..Policy::without_recent(metrics) }
    }

    /// As the whole snapshot has it.
    pub(super) fn without_recent(metrics: &Metrics) -> Policy {
        let counts = &metrics.policy;
        let (top, denied_commands) = counts.top();
        let of = |action| Counts::of(|decision| metrics.decided(action, decision));
        Policy {
            mode: counts.mode().as_str(),
            all: Counts::of(|decision| metrics.decided_of_all(decision)),
            top_denied: top
                .into_iter()
                .map(|(command, of)| Command { command, denied: of.denied, logged: of.logged })
                .collect(),
            denied_commands,
            breakdown: Breakdown {
                read: of(Action::Read),
                write: of(Action::Write),
                execute: of(Action::Execute),
                admin: of(Action::Admin),
            },
            rate: Rate {
                waited: counts.limited.get(Limited::Wait),
                waited_ms: counts.waited.get() as f64 / 1e6,
                refused: counts.limited.get(Limited::Error),
            },
            recent: None,
            reply_sizes: None,
        }
    }
}

impl Recent {
    fn of(refusal: Refusal) -> Recent {
        let Refusal { at, command, action, why, client } = refusal;
        Recent { at: stamp::at(at), command, action: action.as_str(), why: cut(&why), client: cut(&client) }
    }
}

impl Counts {
    fn of(count: impl Fn(Decision) -> u64) -> Counts {
        let (allowed, denied, logged) = (count(Decision::Allowed), count(Decision::Denied), count(Decision::Logged));
        let checks = allowed + denied + logged;
        Counts { checks, allowed, denied, logged, allow_rate: (checks > 0).then(|| allowed as f64 / checks as f64) }
    }
}
