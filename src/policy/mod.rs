//! What the configuration decides: about keys, the rules (which of them matches first, and whether and how its replies are
//! kept), and about clients' requests, who may run what and how often (`commands`). Compiled once when configuration is read.
//! Pure: no socket, no session, no entry, no clock of its own. Rules are asked when a key is missed, written or stored, never
//! on a hit.

pub(crate) mod assign;
pub(crate) mod candidates;
pub(crate) mod commands;
mod experiments;
pub(crate) mod explain;
pub(crate) mod glob;
pub(crate) mod overlap;
pub(crate) mod pattern;
mod rollout;
pub(crate) mod rules;
pub(crate) mod tag;

use arc_swap::ArcSwap;

pub(crate) use experiments::{Change, Experiments};
pub(crate) use rollout::Act;
pub(crate) use rules::{Judged, Keep, Rule, Rules};

/// The rules in force, for whichever thread asks.
pub(crate) type Current = ArcSwap<Rules>;
