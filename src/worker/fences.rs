//! What concerns all lanes at once: the fences that a reply is held for, and what the sidecars' channel says.

use std::rc::Rc;

use super::Ctx;
use crate::coherence::{Hold, Lane, Malformed};
use crate::mutation::{self, Rule};
use crate::observe::clock;
use crate::observe::reasons::Coherence;

/// A message without effect is shown so often.
const MALFORMED_EVERY: u64 = 1_000_000_000;

impl Ctx {
    /// R15: one PING on every other lane, for a reply that is held already.
    pub(crate) fn fence_others(&self, own: &Lane, hold: &Rc<Hold>) {
        let now = clock::now();
        for lane in self.lanes.borrow().values().filter(|l| l.id != own.id) {
            self.fence(lane, now, hold);
        }
        self.fence_channel(now, hold);
        if !hold.is_waiting() {
            return hold.release(self);
        }
        self.holds.borrow_mut().push_back((now + self.max_staleness, hold.clone()));
    }

    /// R21: one PING on every lane that has anything to serve. False: none has, nothing needs to be held.
    pub(crate) fn fence_all(&self, hold: &Rc<Hold>) -> bool {
        let now = clock::now();
        hold.announce();
        self.lanes.borrow().values().for_each(|lane| self.fence(lane, now, hold));
        self.fence_channel(now, hold);
        hold.is_waiting() && !mutation::off(Rule::Fence)
    }

    /// P5: for lanes that live by the channel, its PONG.
    fn fence_channel(&self, now: u64, hold: &Rc<Hold>) {
        if self.lives_by_channel() {
            self.channel.fence(now, hold);
        }
    }

    /// A lane's copies are true because of what the channel says.
    pub(crate) fn lives_by_channel(&self) -> bool {
        self.lanes.borrow().values().any(|lane| lane.mode() == Coherence::Pubsub)
    }

    /// A lane that is lost answers no PING, but its entries may be asked for while upstream is gone.
    fn fence(&self, lane: &Lane, now: u64, hold: &Rc<Hold>) {
        if lane.is_live() {
            lane.fence(now, hold);
        } else {
            self.raise_floor();
        }
    }

    /// Something that announces changes is handed out now, although not every lane has proved that it has seen them
    /// (decision 6).
    pub(crate) fn raise_floor(&self) {
        self.floor.set(clock::now());
    }

    #[cfg(test)]
    pub(crate) fn forget_floor(&self) {
        self.floor.set(0);
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor.get()
    }

    /// A hold ends after B at the latest.
    pub(crate) fn release_overdue_holds(&self, now: u64) {
        loop {
            let due = {
                let mut holds = self.holds.borrow_mut();
                match holds.front() {
                    Some((limit, hold)) if *limit <= now || hold.is_released() => holds.pop_front(),
                    _ => None,
                }
            };
            let Some((_, hold)) = due else { return };
            if !hold.is_released() {
                self.raise_floor();
            }
            hold.release(self);
        }
    }

    /// The subscription stands, is lost, or could not be had: lanes that live by it learn of that.
    pub(crate) fn channel_changed(self: &Rc<Self>) {
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.channel_changed(self));
    }

    /// Everything that was published before `f` has been applied.
    pub(crate) fn channel_proved(&self, f: u64) {
        self.lanes.borrow().values().for_each(|lane| lane.channel_proved(f));
    }

    /// A message names the key of a canary.
    pub(crate) fn heard_canary(self: &Rc<Self>, key: &[u8]) {
        let lanes: Vec<Rc<Lane>> = self.lanes.borrow().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.heard_canary(self, key));
    }

    /// A message that has no effect: counted, and shown once a second at most, escaped and cut, because anybody who may
    /// publish decides what is in it.
    pub(crate) fn malformed(&self, payload: &[u8], why: &Malformed) {
        self.metrics.malformed.inc();
        let now = clock::now();
        if self.malformed_logged.get() != 0 && now.saturating_sub(self.malformed_logged.get()) < MALFORMED_EVERY {
            return;
        }
        self.malformed_logged.set(now);
        // Neither the message nor a part of it: it may have a key, or whatever somebody took this channel for.
        tracing::warn!(
            bytes = payload.len(),
            "a message on the channel {} has no effect: {}",
            self.config.coherence.channel,
            why.kind()
        );
    }
}
