//! Replies on their way to one client, in the order of its requests. A reply that is known at once goes straight into the
//! bytes to be written if nothing is awaited before it; else it takes a *slot* behind the slots that wait for upstream.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use crate::command::strip::Strip;
use crate::observe::arms::ArmId;
use crate::observe::patterns::PatternId;
use crate::observe::reasons::Timed;
use crate::observe::sizes::Sizes;
use crate::resp::Proto;
use crate::resp::downgrade::{self, Form};
use crate::resp::reply;

#[derive(Default)]
pub(super) struct Outbox {
    /// Bytes that may be written now.
    pub(super) ready: BytesMut,
    slots: VecDeque<Slot>,
    /// Number of `slots[0]`.
    head: u64,
    /// Bytes in answered slots behind an unanswered one.
    parked: usize,
    /// Of all replies to all clients.
    sizes: Arc<Sizes>,
}

struct Slot {
    /// The protocol the client spoke when it asked.
    proto: Proto,
    /// CLIENT REPLY OFF or SKIP: the answer is awaited and dropped.
    mute: bool,
    /// Nothing may be answered from the L1 while this one is outstanding (R22).
    blocks: bool,
    asked: Asked,
    /// Where its reply names keys (`upstream.key_prefix`).
    strip: Strip,
    answer: Option<Vec<u8>>,
}

/// When a request was received, and what its duration counts as.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) at: u64,
    pub(super) ok: Timed,
    pub(super) failed: Timed,
    /// Of which part of an experiment.
    pub(super) arm: ArmId,
    /// For the slow log.
    pub(super) command: &'static str,
    pub(super) family: Family,
    /// Whose costs its reply counts in; none: the rest's.
    pub(super) payer: Option<PatternId>,
}

/// What a request's first key is counted under. Few are slow, so what is not known anyway is found when one was.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    Known(PatternId),
    Of(KeyCopy),
}

/// A key that is short enough to be carried along; longer ones than most keys are not.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyCopy {
    length: u8,
    bytes: [u8; KEY_COPIED],
}

/// With its length and the mark of `Family` 42 bytes.
const KEY_COPIED: usize = 40;

impl KeyCopy {
    pub(super) fn of(key: &[u8]) -> Option<KeyCopy> {
        let mut bytes = [0; KEY_COPIED];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(KeyCopy { length: key.len() as u8, bytes })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl Asked {
    fn new(at: u64, ok: Timed, failed: Timed) -> Asked {
        Asked { at, ok, failed, arm: ArmId::NONE, command: "", family: Family::Known(PatternId::OTHER), payer: None }
    }

    pub(super) fn read(at: u64, ok: Timed) -> Asked {
        Asked::new(at, ok, Timed::ReadError)
    }

    pub(super) fn write(at: u64) -> Asked {
        Asked::new(at, Timed::WriteOk, Timed::WriteError)
    }

    pub(super) fn other(at: u64) -> Asked {
        Asked::new(at, Timed::OtherOk, Timed::OtherError)
    }

    pub(super) fn of(self, arm: ArmId) -> Asked {
        Asked { arm, ..self }
    }

    /// What it is called and what its first key is counted under.
    pub(super) fn about(self, command: &'static str, pattern: PatternId) -> Asked {
        Asked { command, family: Family::Known(pattern), ..self }
    }

    /// What it is called, and its first key where that is not looked up.
    pub(super) fn named(self, command: &'static str, key: Option<KeyCopy>) -> Asked {
        Asked { command, family: key.map_or(self.family, Family::Of), ..self }
    }

    /// The same as `about`, and its reply counts in the costs of that.
    pub(super) fn paid_by(self, command: &'static str, pattern: PatternId) -> Asked {
        Asked { payer: Some(pattern), ..self.about(command, pattern) }
    }
}

/// An answer that found its slot.
pub(super) struct Completed {
    pub(super) unblocked: bool,
    pub(super) asked: Asked,
    pub(super) failed: bool,
}

impl Outbox {
    pub(super) fn new(sizes: Arc<Sizes>) -> Outbox {
        Outbox { sizes, ..Outbox::default() }
    }

    /// A slot at the end, to be answered by `complete`.
    pub(super) fn reserve(&mut self, proto: Proto, mute: bool, blocks: bool, asked: Asked) -> u64 {
        self.slots.push_back(Slot { proto, mute, blocks, asked, strip: Strip::None, answer: None });
        self.head + self.slots.len() as u64 - 1
    }

    /// Appends a reply that is known now.
    pub(super) fn push(&mut self, mute: bool, write: impl FnOnce(&mut BytesMut)) {
        if mute {
            return;
        }
        if self.slots.is_empty() {
            let before = self.ready.len();
            write(&mut self.ready);
            return self.sizes.note(self.ready.len() - before);
        }
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.sizes.note(bytes.len());
        self.parked += bytes.len();
        let answer = Some(bytes.to_vec());
        let asked = Asked::other(0);
        let (proto, strip) = (Proto::Resp2, Strip::None);
        self.slots.push_back(Slot { proto, mute: false, blocks: false, asked, strip, answer });
    }

    /// The reply for slot `number`, which waits, names keys.
    pub(super) fn strips(&mut self, number: u64, strip: Strip) {
        let index = number.checked_sub(self.head).and_then(|i| usize::try_from(i).ok());
        if let Some(slot) = index.and_then(|i| self.slots.get_mut(i)) {
            slot.strip = strip;
        }
    }

    pub(super) fn strip(&self, number: u64) -> Strip {
        let index = number.checked_sub(self.head).and_then(|i| usize::try_from(i).ok());
        index.and_then(|i| self.slots.get(i)).map_or(Strip::None, |slot| slot.strip)
    }

    /// Slot `number` has no request of its own upstream.
    pub(super) fn free(&mut self, number: u64) {
        let index = number.checked_sub(self.head).and_then(|i| usize::try_from(i).ok());
        if let Some(slot) = index.and_then(|i| self.slots.get_mut(i)) {
            slot.asked.payer = None;
        }
    }

    /// From now on nothing may be answered from the L1 while slot `number` is outstanding. False: it was so already.
    pub(super) fn block(&mut self, number: u64) -> bool {
        let index = number.checked_sub(self.head).and_then(|i| usize::try_from(i).ok());
        let slot = index.and_then(|i| self.slots.get_mut(i)).filter(|s| s.answer.is_none());
        slot.is_some_and(|slot| !std::mem::replace(&mut slot.blocks, true))
    }

    /// Answers slot `number` with upstream's frame (RESP3), in the form its client expects.
    pub(super) fn complete(&mut self, number: u64, frame: &[u8], form: Form) -> Option<Completed> {
        self.answer(number, reply::is_error(frame), |proto, out| match proto {
            Proto::Resp3 => out.extend_from_slice(frame),
            Proto::Resp2 => downgrade::to_resp2(frame, form, out),
        })
    }

    /// Answers slot `number` with bytes that are already in the client's form.
    pub(super) fn complete_raw(&mut self, number: u64, bytes: &[u8]) -> Option<Completed> {
        self.answer(number, reply::is_error(bytes), |_, out| out.extend_from_slice(bytes))
    }

    /// None: the slot is not there any more, or answered.
    fn answer(&mut self, number: u64, failed: bool, write: impl FnOnce(Proto, &mut BytesMut)) -> Option<Completed> {
        let index = number.checked_sub(self.head)?;
        let slot = self.slots.get_mut(usize::try_from(index).ok()?)?;
        if slot.answer.is_some() {
            return None;
        }
        let completed = Completed { unblocked: slot.blocks, asked: slot.asked, failed };
        if index == 0 {
            if !slot.mute {
                let before = self.ready.len();
                write(slot.proto, &mut self.ready);
                self.sizes.note(self.ready.len() - before);
            }
            self.slots.pop_front();
            self.head += 1;
            self.release();
        } else {
            let mut bytes = BytesMut::new();
            if !slot.mute {
                write(slot.proto, &mut bytes);
            }
            self.sizes.note(bytes.len());
            self.parked += bytes.len();
            slot.answer = Some(bytes.to_vec());
        }
        Some(completed)
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
        let head = self.head + self.slots.len() as u64;
        *self = Outbox { head, ..Outbox::new(self.sizes.clone()) };
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
        let a = out.reserve(Proto::Resp3, false, false, Asked::other(0));
        out.push(false, |b| b.extend_from_slice(b"hit"));
        let c = out.reserve(Proto::Resp3, false, true, Asked::other(0));
        assert!(out.complete(c, b"C", Form::Same).is_some_and(|c| c.unblocked));
        assert_eq!(text(&out), "");
        assert_eq!(out.bytes(), 4);
        assert!(out.complete(a, b"A", Form::Same).is_some());
        assert_eq!(text(&out), "AhitC");
        assert_eq!(out.outstanding(), 0);
        assert_eq!(out.bytes(), 5);
    }

    #[test]
    fn a_second_answer_to_a_slot_is_ignored() {
        let mut out = Outbox::default();
        let a = out.reserve(Proto::Resp3, false, false, Asked::other(0));
        out.complete(a, b"A", Form::Same);
        assert!(out.complete(a, b"B", Form::Same).is_none());
        assert_eq!(text(&out), "A");
    }

    #[test]
    fn a_muted_slot_keeps_its_place_and_says_nothing() {
        let mut out = Outbox::default();
        let a = out.reserve(Proto::Resp2, true, false, Asked::other(0));
        let b = out.reserve(Proto::Resp2, false, false, Asked::other(0));
        out.complete(b, b"_\r\n", Form::Bulk);
        out.complete(a, b"+OK\r\n", Form::Same);
        assert_eq!(text(&out), "$-1\r\n");
    }
}
