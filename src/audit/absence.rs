//! When upstream was gone for a place, as far as can be said from outside. Pure bookkeeping of times; `outages` and `faults`
//! tell it, `truth` asks it.
//!
//! Two things are kept apart. A *doubt* is a time in which the sidecar may hold that upstream is gone: it begins before the
//! fault does and ends when the sidecar has proved that its lane is live and its queue is empty, so it is never too short,
//! and what it excuses is excused rightly. *Away* is the time in which no byte can have passed between sidecar and upstream:
//! it begins behind the fault and ends before upstream is back, so it is never too long, and what is acknowledged within it
//! was certainly acknowledged without upstream.

use std::collections::VecDeque;

use super::truth::Micros;

/// Of doubts of one place that are remembered, whatever their age. Each outlives a fault by a round trip or more.
const DOUBTS_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    place: usize,
    number: u64,
}

impl Doubt {
    pub(super) fn place(self) -> usize {
        self.place
    }
}

/// One outage, and since when nothing can have passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) number: u64,
    pub(super) since: Micros,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    number: u64,
    from: Micros,
    /// `Micros::MAX` while it lasts.
    until: Micros,
}

#[derive(Clone, Debug, Default)]
struct Place {
    spans: VecDeque<Span>,
    away: Option<Away>,
}

#[derive(Debug)]
pub(super) struct Absences {
    places: Vec<Place>,
    last: u64,
}

impl Absences {
    pub(super) fn new(places: usize) -> Absences {
        Absences { places: vec![Place::default(); places], last: 0 }
    }

    /// From then on, which may lie ahead, the sidecar may hold that upstream is gone. No reply is judged any more that was
    /// there before `horizon`.
    pub(super) fn doubt(&mut self, place: usize, from: Micros, horizon: Micros) -> Doubt {
        self.last += 1;
        let spans = &mut self.places[place].spans;
        while spans.front().is_some_and(|span| span.until < horizon || spans.len() >= DOUBTS_MAX) {
            spans.pop_front();
        }
        spans.push_back(Span { number: self.last, from, until: Micros::MAX });
        Doubt { place, number: self.last }
    }

    /// False: it never began, and is forgotten.
    pub(super) fn has_begun(&mut self, doubt: Doubt, now: Micros) -> bool {
        let spans = &mut self.places[doubt.place].spans;
        spans.retain(|span| span.number != doubt.number || span.from <= now);
        spans.iter().any(|span| span.number == doubt.number)
    }

    /// Upstream's answer has been read through this place at `now`.
    pub(super) fn end(&mut self, doubt: Doubt, now: Micros) {
        let spans = self.places[doubt.place].spans.iter_mut();
        spans.filter(|span| span.number == doubt.number).for_each(|span| span.until = now);
    }

    /// Whether there was doubt at any time between the two: it may be just then that the sidecar made up its answer.
    pub(super) fn covers(&self, place: usize, sent: Micros, replied: Micros) -> bool {
        self.places[place].spans.iter().any(|span| span.from <= replied && sent <= span.until)
    }

    pub(super) fn leaves(&mut self, place: usize, now: Micros) {
        self.last += 1;
        self.places[place].away = Some(Away { number: self.last, since: now });
    }

    pub(super) fn returns(&mut self, place: usize) {
        self.places[place].away = None;
    }

    pub(super) fn away(&self, place: usize) -> Option<Away> {
        self.places[place].away
    }

    pub(super) fn all_away(&self) -> Vec<usize> {
        (0..self.places.len()).filter(|place| self.places[*place].away.is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_covers_whatever_touches_it() {
        let mut a = Absences::new(2);
        let doubt = a.doubt(0, 100, 0);
        assert!(!a.covers(0, 50, 99) && a.covers(0, 50, 100) && a.covers(0, 5_000, 6_000), "it lasts");
        assert!(!a.covers(1, 50, 100), "of its own place");
        a.end(doubt, 200);
        assert!(a.covers(0, 200, 300) && !a.covers(0, 201, 300));
    }

    #[test]
    fn one_that_never_began_is_none() {
        let mut a = Absences::new(1);
        let doubt = a.doubt(0, 100, 0);
        assert!(!a.has_begun(doubt, 99));
        assert!(!a.covers(0, 100, 200));
        let doubt = a.doubt(0, 100, 0);
        assert!(a.has_begun(doubt, 100) && a.covers(0, 100, 200));
    }

    #[test]
    fn what_nothing_can_be_held_against_is_forgotten_and_what_lasts_is_not() {
        let mut a = Absences::new(1);
        let first = a.doubt(0, 10, 0);
        a.end(first, 20);
        a.doubt(0, 30, 20);
        assert!(a.covers(0, 20, 20), "the horizon itself");
        a.doubt(0, 40, 21);
        assert!(!a.covers(0, 20, 20) && a.covers(0, 35, 35));
    }

    #[test]
    fn away_is_one_outage_of_one_place() {
        let mut a = Absences::new(2);
        a.leaves(1, 7);
        let first = a.away(1).unwrap();
        assert_eq!((first.since, a.away(0), a.all_away()), (7, None, vec![1]));
        a.returns(1);
        a.leaves(1, 9);
        assert_ne!(a.away(1).unwrap().number, first.number);
    }
}
