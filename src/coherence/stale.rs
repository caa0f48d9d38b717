//! Which entries are a true enough answer while upstream is gone (decision 6): a pure decision over an entry, what is known
//! of its lane's last proof, and what has been handed out that the lane never proved. `session::outage` serves by it,
//! `NEARSIDE ENTRY` prints it.
//!
//! When a lane is lost its entries stay: they are upstream's state at the last position of the stream that was read, and
//! every command sent up to `F_lost` had been answered by then. So an entry contradicts nothing that became known before
//! `F_lost`. What became known later is of two kinds: to one session, by a connection of its own (its fence), and to anybody,
//! by an opaque reply, a message or a pop that was handed out without its PONG (the *floor*). Either being newer than
//! `F_lost` forbids the entry.
//!
//! **How old.** An entry was good at its lane's last proof, or until its own deadline where that came first: from then on
//! its age counts against `outage.max_stale`. (In `ttl` mode nothing but the deadline says that an entry is good; there F is
//! the lane's last answer, which proves nothing of it, so a session's fence and the floor are held against the time when the
//! entry was read. In `pubsub` mode F proves what was announced; a script that does not name its keys announces nothing, so
//! there too a session's fence is held against that time, as it is for a hit.)
//!
//! A lane that is silent and lives is judged as if it had been lost at its last proof.

use crate::cache::Entry;
use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::reasons::{Coherence, Unservable};
use crate::session::Session;
use crate::worker::Ctx;

use super::lane::Lane;

/// A lane's connection that is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LostLane {
    pub(super) epoch: u64,
    /// `F` when it died.
    pub(super) f: u64,
    proof: Proof,
    /// When it died; 0: none has.
    pub(super) at: u64,
}

/// What `F` says of what was read before, by the lane's mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Proof {
    #[default]
    Nothing,
    /// That nothing had changed which its writer announced.
    Announced,
    /// That nothing had changed.
    Everything,
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
    max_stale: u64,
}

impl Lane {
    /// The connection, or what its copies rested on, ends; called before its epoch does. Where a lane has not answered
    /// anything since its last end (it broke right behind the channel that it lived by, or as soon as it was up again), nobody
    /// has been told anything newer by it, and the entries from before stay what they were.
    pub(super) fn note_end(&self) {
        let before = self.lost.get();
        if before.at == 0 || self.held.progress.get() > before.at {
            self.lost.set(self.present(clock::now()));
        }
    }

    fn present(&self, at: u64) -> LostLane {
        let proof = match self.mode() {
            Coherence::Tracking => Proof::Everything,
            Coherence::Pubsub => Proof::Announced,
            Coherence::Ttl | Coherence::Probing | Coherence::None => Proof::Nothing,
        };
        LostLane { epoch: self.epoch.get(), f: self.f.get(), proof, at }
    }

    /// What any entry has to stand up to that is to be served to `session` although upstream is gone.
    pub(crate) fn stale_view(&self, ctx: &Ctx, session: &Session, now: u64) -> StaleView {
        let lost = match (self.is_live(), self.is_gone()) {
            (false, _) => Some(self.lost.get()),
            (true, true) => Some(self.present(now)),
            (true, false) => None,
        };
        let (fence, floor) = (session.fence.get(), ctx.floor());
        let (flush_gen, limit) = (ctx.l1.flush_gen(), ctx.max_stale_of_all());
        let of_all = View { now, lost, flush_gen, pending: false, fence, floor, max_stale: limit.unwrap_or(0) };
        StaleView { lane: self.id, of_all, by_rule: limit.is_none() }
    }
}

/// Taken once for all keys of a read, as the lease is; what depends on the key comes with the key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StaleView {
    lane: u32,
    of_all: View,
    /// The key's rule has a say in how old it may be.
    by_rule: bool,
}

impl StaleView {
    /// `entry` of `key` is this lane's, and may be served.
    pub(crate) fn allows(&self, ctx: &Ctx, key: &[u8], entry: &Entry) -> bool {
        entry.lane == self.lane && self.servable(ctx, key, entry).is_ok()
    }

    pub(crate) fn servable(&self, ctx: &Ctx, key: &[u8], entry: &Entry) -> Result<(), Unservable> {
        let l1 = &ctx.l1;
        // Whoever writes through us has been told that upstream is gone, so as a rule nothing is pending of any key.
        let pending = l1.pending() > 0 && l1.is_pending(l1.stripe(key));
        if !pending && !self.by_rule {
            return servable(entry, &self.of_all);
        }
        servable(entry, &View { pending, max_stale: ctx.max_stale(key), ..self.of_all })
    }
}

fn servable(entry: &Entry, view: &View) -> Result<(), Unservable> {
    let lost = view.lost.ok_or(Unservable::Live)?;
    let good_until = lost.f.min(entry.deadline);
    let read = entry.t_sent.min(lost.f);
    let (for_fence, for_floor) = match lost.proof {
        Proof::Nothing => (read, read),
        Proof::Announced => (read, lost.f),
        Proof::Everything => (lost.f, lost.f),
    };
    let is_old = || view.now.saturating_sub(good_until) > view.max_stale && !mutation::off(Rule::MaxStale);
    Err(if entry.expires == 0 {
        Unservable::Negative
    } else if lost.epoch == 0 || entry.epoch != lost.epoch {
        Unservable::Epoch
    } else if entry.flush_gen != view.flush_gen {
        Unservable::Flushed
    } else if view.pending {
        Unservable::Pending
    } else if view.now >= entry.expires {
        Unservable::Expired
    } else if is_old() {
        Unservable::Age
    } else if for_fence <= view.fence {
        Unservable::Fence
    } else if for_floor <= view.floor {
        Unservable::Floor
    } else {
        return Ok(());
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Due, Value};
    use crate::observe::patterns::PatternId;

    const MAX_STALE: u64 = 300_000_000_000;
    const LOST: LostLane = LostLane { epoch: 7, f: 1_000, proof: Proof::Everything, at: 1_200 };
    const VIEW: View = View {
        now: 2_000,
        lost: Some(LOST),
        flush_gen: 3,
        pending: false,
        fence: 999,
        floor: 999,
        max_stale: MAX_STALE,
    };

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
        let ended = Entry { deadline: 400, ..entry() };
        assert_eq!(
            servable(&ended, &View { max_stale: 1_600, ..VIEW }),
            Ok(()),
            "behind its deadline, and young enough"
        );
        let rows = [
            (entry(), View { lost: None, ..VIEW }, Unservable::Live),
            (Entry { expires: 0, ..entry() }, VIEW, Unservable::Negative),
            (Entry { epoch: 6, ..entry() }, VIEW, Unservable::Epoch),
            (Entry { epoch: 0, ..entry() }, View { lost: Some(LostLane::default()), ..VIEW }, Unservable::Epoch),
            (entry(), View { flush_gen: 4, ..VIEW }, Unservable::Flushed),
            (entry(), View { pending: true, ..VIEW }, Unservable::Pending),
            (entry(), View { now: 2_001, ..VIEW }, Unservable::Expired),
            (lasting, View { now: LOST.f + MAX_STALE + 1, ..VIEW }, Unservable::Age),
            (entry(), View { max_stale: 0, ..VIEW }, Unservable::Age),
            // Its deadline came before the last proof.
            (Entry { deadline: 400, ..entry() }, View { max_stale: 1_599, ..VIEW }, Unservable::Age),
            (entry(), View { fence: 1_000, ..VIEW }, Unservable::Fence),
            (entry(), View { floor: 1_000, ..VIEW }, Unservable::Floor),
        ];
        for (entry, view, why) in rows {
            assert_eq!(servable(&entry, &view), Err(why), "{entry:?} under {view:?}");
        }
    }
    /// Where nothing is announced, only what was read later knows of what a session has seen or done.
    #[test]
    fn without_a_proof_the_time_of_the_reading_counts() {
        let unproved = Some(LostLane { proof: Proof::Nothing, ..LOST });
        let view = View { lost: unproved, fence: 499, floor: 499, ..VIEW };
        assert_eq!(servable(&entry(), &view), Ok(()));
        assert_eq!(servable(&entry(), &View { fence: 500, ..view }), Err(Unservable::Fence));
        assert_eq!(servable(&entry(), &View { floor: 500, ..view }), Err(Unservable::Floor));
    }

    /// The session's own script has written what it did not name: the channel's proof knows nothing of that.
    #[test]
    fn what_was_not_announced_is_covered_by_a_later_reading_only() {
        let announced = Some(LostLane { proof: Proof::Announced, ..LOST });
        let view = View { lost: announced, fence: 499, ..VIEW };
        assert_eq!(servable(&entry(), &view), Ok(()));
        assert_eq!(servable(&entry(), &View { fence: 500, ..view }), Err(Unservable::Fence));
    }
}
