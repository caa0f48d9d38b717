//! What is known of upstream as a whole, and what that means for clients while it is gone (DESIGN 5). The data thread tells
//! the breaker what its connections meet; sessions and lanes ask it. It opens nothing and answers nothing itself.

mod breaker;

pub(crate) use breaker::{Breaker, Outage, Turn};
