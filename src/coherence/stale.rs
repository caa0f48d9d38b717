//! Which entries would be a true enough answer while upstream is gone (decision 6): a pure decision over an entry, what is
//! known of its lane's last proof, and what has been handed out that the lane never proved. `NEARSIDE ENTRY` prints it.
//!
//! When a lane is lost its entries stay: they are upstream's state at the last position of the stream that was read, and
//! every command sent up to `F_lost` had been answered by then. So an entry contradicts nothing that became known before
//! `F_lost`. What became known later is of two kinds: to one session, by a connection of its own (its fence), and to anybody,
//! by an opaque reply, a message or a pop that was handed out without its PONG (the *floor*). Either being newer than
//! `F_lost` forbids the entry.

use crate::cache::{Entry, StripeId};
use crate::observe::reasons::Unservable;
use crate::session::Session;
use crate::worker::Ctx;

use super::lane::Lane;

/// How old the last proof may be (`outage.max_stale`'s default in the design).
const MAX_STALE: u64 = 300_000_000_000;

/// A lane's connection that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LostLane {
    pub(super) epoch: u64,
    /// `F` when it died.
    pub(super) f: u64,
}

/// What the decision depends on besides the entry.
#[derive(Clone, Copy, Debug)]
struct View {
    now: u64,
    /// `None` while the lane lives.
    lost: Option<LostLane>,
    flush_gen: u64,
    pending: bool,
    fence: u64,
    floor: u64,
}

impl Lane {
    /// Whether `entry`, of a key in `stripe`, could be served to `session` although upstream is gone.
    pub(crate) fn stale_servable(
        &self,
        ctx: &Ctx,
        session: &Session,
        now: u64,
        entry: &Entry,
        stripe: StripeId,
    ) -> Result<(), Unservable> {
        let view = View {
            now,
            lost: (!self.is_live()).then(|| self.lost.get()),
            flush_gen: ctx.l1.flush_gen(),
            pending: ctx.l1.is_pending(stripe),
            fence: session.fence.get(),
            floor: ctx.floor(),
        };
        servable(entry, &view)
    }
}

fn servable(entry: &Entry, view: &View) -> Result<(), Unservable> {
    let lost = view.lost.ok_or(Unservable::Live)?;
    let refused = [
        (entry.expires == 0, Unservable::Negative),
        (lost.epoch == 0 || entry.epoch != lost.epoch, Unservable::Epoch),
        (entry.flush_gen != view.flush_gen, Unservable::Flushed),
        (view.pending, Unservable::Pending),
        (view.now >= entry.expires, Unservable::Expired),
        (view.now.saturating_sub(lost.f) > MAX_STALE, Unservable::Age),
        (lost.f <= view.fence, Unservable::Fence),
        (lost.f <= view.floor, Unservable::Floor),
    ];
    refused.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, why)| Err(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Due, Value};
    use crate::observe::patterns::PatternId;

    const LOST: LostLane = LostLane { epoch: 7, f: 1_000 };
    const VIEW: View = View { now: 2_000, lost: Some(LOST), flush_gen: 3, pending: false, fence: 999, floor: 999 };

    fn entry() -> Entry {
        Entry {
            epoch: 7,
            lane: 0,
            flush_gen: 3,
            // Its own deadline is about serving while the lane lives.
            deadline: 1_500,
            soft: u64::MAX,
            touch: Due::never(),
            expires: 2_001,
            t_sent: 500,
            pattern: PatternId::PLAIN,
            arm: crate::observe::arms::ArmId::NONE,
            value: Value::Bulk((*b"$1\r\nv\r\n").into()),
        }
    }

    #[test]
    fn every_condition_refuses_alone() {
        assert_eq!(servable(&entry(), &VIEW), Ok(()));
        let late = View { now: LOST.f + MAX_STALE, ..VIEW };
        let lasting = Entry { expires: u64::MAX, ..entry() };
        assert_eq!(servable(&lasting, &late), Ok(()), "at the very end");
        let rows = [
            (entry(), View { lost: None, ..VIEW }, Unservable::Live),
            (Entry { expires: 0, ..entry() }, VIEW, Unservable::Negative),
            (Entry { epoch: 6, ..entry() }, VIEW, Unservable::Epoch),
            (Entry { epoch: 0, ..entry() }, View { lost: Some(LostLane::default()), ..VIEW }, Unservable::Epoch),
            (entry(), View { flush_gen: 4, ..VIEW }, Unservable::Flushed),
            (entry(), View { pending: true, ..VIEW }, Unservable::Pending),
            (entry(), View { now: 2_001, ..VIEW }, Unservable::Expired),
            (lasting, View { now: LOST.f + MAX_STALE + 1, ..VIEW }, Unservable::Age),
            (entry(), View { fence: 1_000, ..VIEW }, Unservable::Fence),
            (entry(), View { floor: 1_000, ..VIEW }, Unservable::Floor),
        ];
        for (entry, view, why) in rows {
            assert_eq!(servable(&entry, &view), Err(why), "{entry:?} under {view:?}");
        }
    }
}
