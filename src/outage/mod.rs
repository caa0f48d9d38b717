//! What is known of upstream as a whole, and what that means for clients while it is gone (DESIGN 5). The data thread tells
//! the breaker what its connections meet; sessions and lanes ask it. Writes that are acknowledged meanwhile wait in a
//! `queue`, `accept` says which may, the `journal` keeps them on disk. It answers nothing itself, and opens nothing but the
//! journal.

pub(crate) mod accept;
mod breaker;
pub(crate) mod journal;
pub(crate) mod queue;

pub(crate) use breaker::{Breaker, Outage, Turn};
