//! What is known of upstream as a whole, and what that means for clients while it is gone (DESIGN 5). The data thread tells
//! the breaker what its connections meet; sessions and lanes ask it. Writes that are acknowledged meanwhile wait in a
//! `queue`, `accept` says which may. It opens nothing and answers nothing itself.

pub(crate) mod accept;
mod breaker;
pub(crate) mod queue;

pub(crate) use breaker::{Breaker, Outage, Turn};
