//! What the user's rules say of a key: which of them matches first, and whether and how its replies are kept. Pure: it knows
//! no connection and no entry. Looked at when a key is missed, written or stored, never on a hit.

pub(crate) mod assign;
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
