//! The lanes there are: one a profile, started when it is asked for, remembered where upstream has refused it.

use std::collections::HashSet;
use std::rc::Rc;

use super::Ctx;
use crate::coherence::{Availability, Lane};
use crate::observe::clock;
use crate::observe::reasons::Coherence;
use crate::upstream::Profile;

/// A profile whose lane upstream refused is tried again after so long.
const REFUSED_FOR: u64 = 5_000_000_000;

/// Profiles whose lanes upstream refused and that are remembered.
const REFUSED_MAX: usize = 1000;

impl Ctx {
    /// The lane of a profile, started if it is the first time it is asked for.
    pub(crate) fn lane(self: &Rc<Self>, profile: &Profile) -> Rc<Lane> {
        if let Some(lane) = self.lanes.borrow().get(profile) {
            return lane.clone();
        }
        if let Some((since, lane)) = self.refused.borrow().get(profile)
            && clock::now().saturating_sub(*since) < REFUSED_FOR
        {
            return lane.clone();
        }
        if self.lanes.borrow().len() >= self.config.upstream.lanes_max && !self.end_unused_lane() {
            return Lane::none(self, profile.clone(), "upstream.lanes_max is reached");
        }
        let lane = Lane::spawn(self, profile.clone());
        self.lanes.borrow_mut().insert(profile.clone(), lane.clone());
        lane
    }

    /// Makes room for another lane: one that no client is on and that has nothing in flight. Its entries end with it.
    fn end_unused_lane(&self) -> bool {
        let in_use: HashSet<Profile> =
            self.sessions.borrow().values().map(|s| s.profile()).chain([self.default_profile.clone()]).collect();
        let unused = self
            .lanes
            .borrow()
            .values()
            .find(|l| l.in_flight() == 0 && !in_use.contains(&l.profile) && !self.held.waits(&l.profile))
            .cloned();
        let Some(lane) = unused else { return false };
        self.lanes.borrow_mut().remove(&lane.profile);
        lane.end(&self.status);
        true
    }

    /// The lane of clients that say neither AUTH nor SELECT.
    pub(crate) fn home_lane(&self) -> Option<Rc<Lane>> {
        self.lanes.borrow().get(&self.default_profile).cloned()
    }

    pub(crate) fn has_live_lane(&self, profile: &Profile) -> bool {
        self.lanes.borrow().get(profile).is_some_and(|lane| lane.is_live())
    }

    /// Upstream refuses what a lane of this profile needs. It is tried again when somebody asks after a while.
    pub(crate) fn lane_refused(&self, lane: &Rc<Lane>, reply: &str) {
        tracing::warn!(user = %lane.profile.user(), db = lane.profile.db,
            "upstream refuses a lane, this user is served uncached on connections of its own: {reply}");
        self.lanes.borrow_mut().remove(&lane.profile);
        lane.retire(&self.status);
        self.channel.try_now();
        // NOAUTH only says that clients bring credentials of their own; any other refusal leaves nothing to cache through.
        if lane.profile == self.default_profile && !reply.contains("NOAUTH") {
            self.status.set_coherence(Coherence::None, &format!("upstream refuses a lane: {}", first_word(reply)));
        }
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= REFUSED_MAX {
            refused.clear();
        }
        refused.insert(lane.profile.clone(), (clock::now(), lane.clone()));
    }

    /// Waits until it is known whether a lane can be had.
    pub(crate) async fn await_lane(&self, lane: &Rc<Lane>) {
        loop {
            let changed = lane.changed.notified();
            if !lane.may_be_ready_soon() {
                return;
            }
            changed.await;
        }
    }

    /// Whether upstream has told this profile to authenticate first.
    pub(crate) fn needs_auth(&self, profile: &Profile) -> bool {
        let refused = self.refused.borrow();
        let noauth = |lane: &Rc<Lane>| matches!(lane.availability(), Availability::Refused(r) if r.contains("NOAUTH"));
        // It was tried again after a while, and may have been let in.
        refused.get(profile).is_some_and(|(_, lane)| noauth(lane)) && !self.has_live_lane(profile)
    }

    /// What keeps the L1 coherent now, in a word: the default profile's mode; where that has no lane, the worst of the
    /// lanes there are.
    pub(crate) fn show_coherence(&self) {
        let lanes = self.lanes.borrow();
        let worst = || lanes.values().max_by_key(|lane| lane.mode() as usize);
        if let Some(lane) = lanes.get(&self.default_profile).or_else(worst) {
            self.status.set_coherence(lane.mode(), &lane.why_plain());
        }
    }
}

/// What everybody may know of an error: its code, without names.
fn first_word(reply: &str) -> &str {
    let error = reply.split_once(": ").map_or(reply, |(_, error)| error);
    error.split(' ').next().unwrap_or(error)
}
