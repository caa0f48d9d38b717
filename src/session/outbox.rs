//! Replies on their way to one client, in the order of its requests. A reply that is known at once goes straight into the
//! bytes to be written if nothing is awaited before it; else it takes a *slot* behind the slots that wait for upstream.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::resp::Proto;
use crate::resp::downgrade::{self, Form};

#[derive(Default)]
pub(super) struct Outbox {
    /// Bytes that may be written now.
    pub(super) ready: BytesMut,
    slots: VecDeque<Slot>,
    /// Number of `slots[0]`.
    head: u64,
    /// Bytes in answered slots behind an unanswered one.
    parked: usize,
}

struct Slot {
    /// The protocol the client spoke when it asked.
    proto: Proto,
    /// CLIENT REPLY OFF or SKIP: the answer is awaited and dropped.
    mute: bool,
    /// Nothing may be answered from the L1 while this one is outstanding (R22).
    blocks: bool,
    answer: Option<Vec<u8>>,
}

/// What became of an answer.
pub(super) struct Completed {
    /// The slot was there and unanswered.
    pub(super) counted: bool,
    pub(super) unblocked: bool,
}

impl Outbox {
    /// A slot at the end, to be answered by `complete`.
    pub(super) fn reserve(&mut self, proto: Proto, mute: bool, blocks: bool) -> u64 {
        self.slots.push_back(Slot { proto, mute, blocks, answer: None });
        self.head + self.slots.len() as u64 - 1
    }

    /// Appends a reply that is known now.
    pub(super) fn push(&mut self, mute: bool, write: impl FnOnce(&mut BytesMut)) {
        if mute {
            return;
        }
        if self.slots.is_empty() {
            return write(&mut self.ready);
        }
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.parked += bytes.len();
        let answer = Some(bytes.to_vec());
        self.slots.push_back(Slot { proto: Proto::Resp2, mute: false, blocks: false, answer });
    }

    /// Answers slot `number` with upstream's frame (RESP3), in the form its client expects.
    pub(super) fn complete(&mut self, number: u64, frame: &[u8], form: Form) -> Completed {
        self.answer(number, |proto, out| match proto {
            Proto::Resp3 => out.extend_from_slice(frame),
            Proto::Resp2 => downgrade::to_resp2(frame, form, out),
        })
    }

    /// Answers slot `number` with bytes that are already in the client's form.
    pub(super) fn complete_raw(&mut self, number: u64, bytes: &[u8]) -> Completed {
        self.answer(number, |_, out| out.extend_from_slice(bytes))
    }

    fn answer(&mut self, number: u64, write: impl FnOnce(Proto, &mut BytesMut)) -> Completed {
        let nothing = Completed { counted: false, unblocked: false };
        let Some(index) = number.checked_sub(self.head) else { return nothing };
        let Some(slot) = self.slots.get_mut(index as usize) else { return nothing };
        if slot.answer.is_some() {
            return nothing;
        }
        let completed = Completed { counted: true, unblocked: slot.blocks };
        if index == 0 {
            if !slot.mute {
                write(slot.proto, &mut self.ready);
            }
            self.slots.pop_front();
            self.head += 1;
            self.release();
        } else {
            let mut bytes = BytesMut::new();
            if !slot.mute {
                write(slot.proto, &mut bytes);
            }
            self.parked += bytes.len();
            slot.answer = Some(bytes.to_vec());
        }
        completed
    }

    /// Moves answered slots at the front into `ready`.
    fn release(&mut self) {
        while let Some(answer) = self.slots.front_mut().and_then(|s| s.answer.take()) {
            self.parked -= answer.len();
            self.ready.extend_from_slice(&answer);
            self.slots.pop_front();
            self.head += 1;
        }
    }

    /// Requests that are not answered, and answers that wait behind them.
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len()
    }

    /// The oldest unanswered slot.
    pub(super) fn head(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.head)
    }

    /// The oldest unanswered slot is muted.
    pub(super) fn head_is_mute(&self) -> bool {
        self.slots.front().is_some_and(|s| s.mute)
    }

    /// Bytes kept for this client.
    pub(super) fn bytes(&self) -> usize {
        self.ready.len() + self.parked
    }

    pub(super) fn clear(&mut self) {
        *self = Outbox { head: self.head + self.slots.len() as u64, ..Outbox::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &Outbox) -> String {
        String::from_utf8_lossy(&out.ready).into_owned()
    }

    #[test]
    fn answers_leave_in_the_order_of_the_requests() {
        let mut out = Outbox::default();
        let a = out.reserve(Proto::Resp3, false, false);
        out.push(false, |b| b.extend_from_slice(b"hit"));
        let c = out.reserve(Proto::Resp3, false, true);
        assert!(out.complete(c, b"C", Form::Same).unblocked);
        assert_eq!(text(&out), "");
        assert_eq!(out.bytes(), 4);
        assert!(out.complete(a, b"A", Form::Same).counted);
        assert_eq!(text(&out), "AhitC");
        assert_eq!(out.outstanding(), 0);
        assert_eq!(out.bytes(), 5);
    }

    #[test]
    fn a_second_answer_to_a_slot_is_ignored() {
        let mut out = Outbox::default();
        let a = out.reserve(Proto::Resp3, false, false);
        out.complete(a, b"A", Form::Same);
        assert!(!out.complete(a, b"B", Form::Same).counted);
        assert_eq!(text(&out), "A");
    }

    #[test]
    fn a_muted_slot_keeps_its_place_and_says_nothing() {
        let mut out = Outbox::default();
        let a = out.reserve(Proto::Resp2, true, false);
        let b = out.reserve(Proto::Resp2, false, false);
        out.complete(b, b"_\r\n", Form::Bulk);
        out.complete(a, b"+OK\r\n", Form::Same);
        assert_eq!(text(&out), "$-1\r\n");
    }
}
