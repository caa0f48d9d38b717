//! Coherence: drives the frames of a lane into the L1 in the order in which upstream sent them, and is the only writer of
//! what a lane vouches for (`live`, `epoch`, `F`).
//!
//! **The ordering argument.** In CLIENT TRACKING's default mode upstream appends an invalidation to our connection's output
//! at the instant the write executes (COHERENCE fact 1). So on a lane *stream order is execution order*: a reply that
//! follows a push was computed after the write, a reply that precedes it before. The reader applies each frame's effect on
//! the L1 before it looks at the next frame (R2). Hence, when a reply to a command sent at `t` has been read, every write
//! that executed before `t` has been applied to the L1. `F` is the newest such `t`; a hit at `now` is legal only if
//! `now - F <= B` (the lease, G1) and `F > session.fence` (the fence, G2 and G4).
//!
//! What this module does not do: it parses no client's request and knows no connection state of a client.

mod again;
mod channel;
mod events;
mod facts;
mod fill;
mod hold;
mod invalidate;
mod judge;
mod lane;
mod last_run;
mod life;
mod log;
mod loss;
mod mode;
mod payload;
mod prefix;
#[cfg(feature = "bench")]
mod probe;
mod reader;
mod recovery;
mod replay;
mod sample;
mod silence;
mod size;
mod spare;
mod stale;
mod tell;
mod touch;
mod wait;
mod warm;

pub(crate) use again::Question;
pub(crate) use channel::Channel;
pub(crate) use facts::{LaneFacts, Vouched};
pub(crate) use fill::share_of;
pub(crate) use hold::Hold;
pub(crate) use invalidate::{
    Applied, Asker, NotDropped, apply, come_back, drop_all, drop_everywhere, publish, publish_flush,
};
pub(crate) use lane::{Availability, FetchRequest, Lane, MgetRequest};
pub(crate) use last_run::{LastRun, begin_last_run, save_last_run};
pub(crate) use loss::Redo;
pub(crate) use payload::{Malformed, Message, Op, Wanted, parse};
pub(crate) use prefix::{check_prefix, outside};
#[cfg(feature = "bench")]
pub(crate) use probe::LaneProbe;
pub(crate) use recovery::Place;
pub(crate) use sample::Samples;
pub(crate) use size::run as ask_how_much;
pub(crate) use stale::StaleView;
pub(crate) use tell::told;
pub(crate) use touch::{Touches, run as tell_what_is_hit};
pub(crate) use wait::{Ends, FetchRead, Miss, Part, Refresh, RefreshKey, Relay};
pub(crate) use warm::warm;

#[cfg(test)]
mod tests;
