//! What is known of upstream as a whole, and what that means for clients while it is gone (DESIGN 5). The data thread tells
//! the breaker what its connections meet; sessions and lanes ask it. It opens nothing and answers nothing itself, save for
//! the journal, which keeps accepted writes on disk.

mod breaker;
pub(crate) mod journal;

pub(crate) use breaker::{Breaker, Outage, Turn};
