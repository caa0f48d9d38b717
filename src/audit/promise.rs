//! What each mode of coherence promises: the one table by which replies are judged. docs/guarantees.md is the same
//! table for people.
//!
//! | | tracking | pubsub | ttl |
//! |---|---|---|---|
//! | own writes, on one connection | yes | yes | yes |
//! | writes of others through the same sidecar | yes (with `coherence.fence: session` as pubsub) | those that name their keys | those that name their keys |
//! | what was handed over by message or pop | as above | no: the audit's is written past all sidecars | no |
//! | no way back | all reads | GET, MGET, and behind reads on a connection of its own | as pubsub |
//! | order between keys, several keys at once | yes | no | no |
//! | writes that were announced | B | B | cap |
//! | all other writes | B | cap | cap |
//!
//! A write is announced if its sidecar is in `pubsub` mode and serves, it names its keys, and message and write are one
//! transaction. Where the audit switches `cache.mode` to and fro, it counts no write as announced.
//! With `auto`, `pubsub` falls to `ttl` whenever the channel is lost, so there what counts is what both promise.
//!
//! While upstream is gone for a sidecar with `outage.reads: stale`, ages count from the last proof: `max_stale` takes B's place in
//! `tracking`, where the proof is the lane's. In the other modes it is added: an entry is served for so long behind the time
//! that it was good for. All other rows stay: an entry is no answer to who has been told something newer.

use std::time::Duration;

use super::truth::Property;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Tracking,
    Pubsub,
    Ttl,
}

/// What a sidecar says of how it keeps copies true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Coherence {
    /// As it is now, for the user who asks.
    pub(super) mode: String,
    /// As it is configured.
    pub(super) asked: String,
    pub(super) bound: Duration,
    pub(super) pubsub_cap: Duration,
    pub(super) ttl_cap: Duration,
    pub(super) atomic: bool,
    /// `coherence.fence` is `hold`.
    pub(super) holds: bool,
    pub(super) outage: Outage,
}

/// What becomes of reads and writes while upstream is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outage {
    /// `outage.reads: stale`; none: no read is answered.
    pub(super) max_stale: Option<Duration>,
    pub(super) queues: bool,
    /// `outage.queue_conflict`.
    pub(super) overwrites: bool,
    /// `local` reads or writes, of which upstream never hears.
    pub(super) local: bool,
    /// `upstream.stall_timeout`; none: silence is never an outage.
    pub(super) silence: Option<Duration>,
}

impl Outage {
    /// Whether anything is different while upstream is gone.
    pub(super) fn matters(&self) -> bool {
        self.max_stale.is_some() || self.queues
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    mode: Mode,
    /// Its own writes are announced to others.
    pub(super) announces: bool,
    /// How old an answer may be by what was announced, and by anything else.
    pub(super) announced: Duration,
    pub(super) others: Duration,
    /// Scripts that do not name what they write, and hand-overs, hold for everybody on the sidecar.
    pub(super) covers_unnamed: bool,
    pub(super) outage: Outage,
    /// Upstream is taken away on purpose.
    pub(super) has_outages: bool,
}

impl Promise {
    /// `None`: this mode is none of ours.
    pub(super) fn of(c: &Coherence) -> Option<Promise> {
        let falls = c.asked == "auto";
        let promise = |mode, announces, announced, others| {
            let covers_unnamed = mode == Mode::Tracking && c.holds;
            let outage = c.outage.clone();
            Promise { mode, announces, announced, others, covers_unnamed, outage, has_outages: false }
        };
        Some(match (c.mode.as_str(), c.asked.as_str()) {
            ("pubsub", _) | ("none", "pubsub") => {
                let worst = if falls { c.ttl_cap } else { Duration::ZERO };
                promise(Mode::Pubsub, c.atomic && !falls, c.bound.max(worst), c.pubsub_cap.max(worst))
            }
            ("ttl", _) | ("none", "ttl") => promise(Mode::Ttl, false, c.ttl_cap, c.ttl_cap),
            // Without a cache nothing can be stale.
            ("tracking" | "none", _) => promise(Mode::Tracking, false, c.bound, c.bound),
            _ => return None,
        })
    }

    /// The same where `cache.mode` is switched: a sidecar that does not serve tells nobody of what its clients write.
    pub(super) fn under_switches(self) -> Promise {
        Promise { announces: false, announced: self.longest(), ..self }
    }

    pub(super) fn judges(&self, property: Property) -> bool {
        match property {
            Property::Prefix | Property::Torn | Property::Sampled => self.mode == Mode::Tracking,
            Property::Queued => self.has_outages && self.outage.queues,
            Property::Recovery => self.has_outages,
            Property::ReadYourWrites
            | Property::SidecarWrites
            | Property::Monotonic
            | Property::Staleness
            | Property::Expiry
            | Property::Invented
            | Property::AtRest
            | Property::Unanswered => true,
        }
    }

    /// No later read of the kinds that it orders falls behind this one.
    pub(super) fn orders(&self, how: &str) -> bool {
        self.mode == Mode::Tracking || !how.starts_with("GETRANGE")
    }

    pub(super) fn longest(&self) -> Duration {
        self.announced.max(self.others)
    }

    /// How old an answer may be by what was announced, and by anything else, while upstream is gone.
    pub(super) fn while_gone(&self, max_stale: Duration) -> (Duration, Duration) {
        match self.mode {
            Mode::Tracking => (self.announced.max(max_stale), self.others.max(max_stale)),
            Mode::Pubsub | Mode::Ttl => (self.announced + max_stale, self.others + max_stale),
        }
    }

    /// The same, whatever comes.
    pub(super) fn longest_ever(&self) -> Duration {
        let (announced, others) = self.while_gone(self.outage.max_stale.unwrap_or_default());
        announced.max(others)
    }
}

#[cfg(test)]
impl Promise {
    pub(super) fn tracking(bound: Duration) -> Promise {
        let c = Coherence { mode: "tracking".to_owned(), bound, holds: true, ..Coherence::default() };
        Promise::of(&c).expect("a mode")
    }

    pub(super) fn pubsub(bound: Duration, pubsub_cap: Duration) -> Promise {
        let (mode, asked) = ("pubsub".to_owned(), "pubsub".to_owned());
        let c = Coherence { mode, asked, bound, pubsub_cap, atomic: true, holds: true, ..Coherence::default() };
        Promise::of(&c).expect("a mode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(mode: &str, asked: &str, atomic: bool) -> Option<Promise> {
        let ms = Duration::from_millis;
        let (mode, asked) = (mode.to_owned(), asked.to_owned());
        let (pubsub_cap, ttl_cap) = (ms(900), ms(300));
        let c =
            Coherence { mode, asked, bound: ms(150), pubsub_cap, ttl_cap, atomic, holds: true, ..Coherence::default() };
        Promise::of(&c)
    }

    /// (mode, configured, atomic) to (announces, how old by what was announced, by others).
    #[test]
    fn each_mode_has_bounds_of_its_own() {
        for (said_so, wanted) in [
            (("tracking", "auto", true), (false, 150, 150)),
            (("none", "auto", true), (false, 150, 150)),
            (("pubsub", "pubsub", true), (true, 150, 900)),
            (("pubsub", "pubsub", false), (false, 150, 900)),
            (("none", "pubsub", true), (true, 150, 900)), // its channel is on its way
            (("pubsub", "auto", true), (false, 300, 900)),
            (("ttl", "ttl", true), (false, 300, 300)),
            (("ttl", "pubsub", true), (false, 300, 300)),
        ] {
            let (mode, asked, atomic) = said_so;
            let p = said(mode, asked, atomic).unwrap();
            assert_eq!((p.announces, p.announced.as_millis(), p.others.as_millis()), wanted, "{said_so:?}");
        }
        assert_eq!(said("magic", "auto", true), None);
    }

    #[test]
    fn what_is_switched_off_announces_nothing() {
        let switched = |mode| said(mode, mode, true).unwrap().under_switches();
        let told = |p: &Promise| (p.announces, p.announced.as_millis(), p.others.as_millis());
        assert_eq!(told(&switched("pubsub")), (false, 900, 900));
        assert_eq!(told(&switched("tracking")), (false, 150, 150));
    }

    #[test]
    fn order_between_keys_is_a_promise_of_tracking() {
        let judged = |p: &Promise| Property::ALL.into_iter().filter(|x| p.judges(*x)).count();
        let (tracking, pubsub) = (said("tracking", "auto", true).unwrap(), said("pubsub", "pubsub", true).unwrap());
        assert_eq!((judged(&tracking), judged(&pubsub)), (Property::ALL.len() - 2, Property::ALL.len() - 5));
        let outages = Promise { has_outages: true, ..tracking.clone() };
        assert!(outages.judges(Property::Recovery) && !outages.judges(Property::Queued), "nothing is queued");
        assert!(tracking.orders("GETRANGE") && !pubsub.orders("GETRANGE") && pubsub.orders("MULTI GET EXEC"));
    }
}
