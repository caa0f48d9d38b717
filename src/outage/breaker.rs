//! The circuit breaker of an upstream node: a pure state machine. `worker` feeds it with what connections meet, and acts on
//! the turns it reports.
//!
//! - *Closed*: upstream answered when it was last asked. A lost connection changes nothing yet: the next attempt decides.
//! - *Open*: upstream is gone. Nothing waits for it.
//! - *Half-open*: one of our own attempts is under way, a handshake and a PING. Clients are answered as while it is open: no
//!   command of theirs is ever the probe.
//!
//! One failed attempt opens it: every attempt tries all addresses within `connect_timeout`, so a second failure would say
//! nothing that the first has not, and clients would wait for it. What counts as failed, and when attempts are made, with
//! back-off and jitter, is the lanes' affair (`coherence::reader`).

use crate::observe::reasons::BreakerState;

/// An outage as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outage {
    /// Since when upstream has not been heard.
    pub(crate) since: u64,
    /// What the last attempt has met.
    pub(crate) why: String,
}

impl Outage {
    /// The text of the error.
    pub(crate) fn text(&self, now: u64) -> String {
        format!(
            "NEARSIDE upstream unavailable: {} (for {} s)",
            self.why,
            now.saturating_sub(self.since) / 1_000_000_000
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    New,
    Up,
    /// A connection was lost, and nothing has been heard since.
    Lost {
        since: u64,
    },
    Open {
        outage: Outage,
        probing: bool,
    },
}

/// What is worth a line in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Upstream has answered for the first time.
    First,
    Lost {
        why: String,
    },
    /// Upstream is gone: from here on the table of outages holds.
    Gone {
        why: String,
    },
    /// It answers again. `open`: it was gone, and not merely lost.
    Back {
        after: u64,
        open: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker { state: State::New }
    }
}

impl Breaker {
    pub(crate) fn outage(&self) -> Option<&Outage> {
        match &self.state {
            State::Open { outage, .. } => Some(outage),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match &self.state {
            State::New | State::Up | State::Lost { .. } => BreakerState::Closed,
            State::Open { probing: false, .. } => BreakerState::Open,
            State::Open { probing: true, .. } => BreakerState::HalfOpen,
        }
    }

    /// A connection was lost.
    pub(crate) fn lost(&mut self, now: u64, why: &str) -> Option<Turn> {
        match self.state {
            State::New | State::Up => {
                self.state = State::Lost { since: now };
                Some(Turn::Lost { why: why.to_owned() })
            }
            State::Lost { .. } | State::Open { .. } => None,
        }
    }

    /// An attempt failed, or nothing was answered for too long.
    pub(crate) fn gone(&mut self, now: u64, why: &str) -> Option<Turn> {
        let since = match &self.state {
            State::New | State::Up => now,
            State::Lost { since } => *since,
            State::Open { outage, .. } => outage.since,
        };
        let news = self.outage().is_none();
        self.state = State::Open { outage: Outage { since, why: why.to_owned() }, probing: false };
        news.then(|| Turn::Gone { why: why.to_owned() })
    }

    /// Nothing was heard since `since`, which is longer ago than the loss or failure that is known.
    pub(crate) fn stalled(&mut self, now: u64, since: u64, why: &str) -> Option<Turn> {
        let turn = self.gone(now, why);
        if let (Some(_), State::Open { outage, .. }) = (&turn, &mut self.state) {
            outage.since = outage.since.min(since);
        }
        turn
    }

    /// An attempt begins.
    pub(crate) fn probe(&mut self) {
        if let State::Open { probing, .. } = &mut self.state {
            *probing = true;
        }
    }

    /// Our own handshake and PING have succeeded, or a lane has answered.
    pub(crate) fn answered(&mut self, now: u64) -> Option<Turn> {
        match std::mem::replace(&mut self.state, State::Up) {
            State::Up => None,
            State::New => Some(Turn::First),
            State::Lost { since } => Some(Turn::Back { after: now.saturating_sub(since), open: false }),
            State::Open { outage, .. } => Some(Turn::Back { after: now.saturating_sub(outage.since), open: true }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn back(after: u64, open: bool) -> Option<Turn> {
        Some(Turn::Back { after, open })
    }

    #[test]
    fn a_loss_alone_is_no_outage() {
        let mut b = Breaker::default();
        assert_eq!(b.answered(1), Some(Turn::First));
        assert_eq!(b.lost(2, "cut"), Some(Turn::Lost { why: "cut".to_owned() }));
        assert_eq!(
            (b.lost(3, "cut"), b.outage(), b.state()),
            (None, None, BreakerState::Closed),
            "several lanes are one upstream"
        );
        assert_eq!(b.answered(7), back(5, false));
        assert_eq!(b.answered(8), None);
    }

    #[test]
    fn one_failed_attempt_opens_it_and_only_an_answer_closes_it() {
        let mut b = Breaker::default();
        b.answered(1);
        b.lost(10 * S, "cut");
        assert_eq!(b.gone(11 * S, "refused"), Some(Turn::Gone { why: "refused".to_owned() }));
        assert_eq!(b.state(), BreakerState::Open);
        let text = b.outage().expect("an outage").text(22 * S);
        assert_eq!(text, "NEARSIDE upstream unavailable: refused (for 12 s)", "since the loss");
        b.probe();
        assert_eq!(b.state(), BreakerState::HalfOpen);
        assert!(b.outage().is_some(), "half-open is no leave for clients");
        assert_eq!(b.gone(12 * S, "timed out"), None, "no news");
        assert_eq!(b.state(), BreakerState::Open);
        assert_eq!(b.outage().map(|o| (o.since, o.why.as_str())), Some((10 * S, "timed out")));
        assert_eq!(b.lost(13 * S, "another lane"), None);
        b.probe();
        assert_eq!(b.answered(15 * S), back(5 * S, true));
        assert_eq!((b.state(), b.outage()), (BreakerState::Closed, None));
    }

    #[test]
    fn what_never_came_is_gone_since_the_first_attempt() {
        let mut b = Breaker::default();
        b.probe();
        assert_eq!(b.state(), BreakerState::Closed, "nothing is known before the first attempt has ended");
        assert!(b.gone(5, "refused").is_some());
        assert_eq!(b.outage().map(|o| o.since), Some(5));
    }

    #[test]
    fn a_stall_counts_from_when_something_was_heard() {
        let mut b = Breaker::default();
        b.answered(1);
        assert!(b.stalled(20 * S, 12 * S, "silent").is_some());
        assert_eq!(b.outage().map(|o| o.since), Some(12 * S));
        assert_eq!(b.stalled(21 * S, 3 * S, "silent"), None);
        assert_eq!(b.outage().map(|o| o.since), Some(12 * S), "it began when it began");
    }
}
