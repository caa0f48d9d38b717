//! The bytes of a lane's commands, kept from the moment they are accepted until they are answered: what is not written yet
//! is written from here, and what must be sent again (R26) is found here without a copy per command.

/// Answered bytes at the front are given up when they are more than this and more than half of all.
const COMPACT: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct Log {
    bytes: Vec<u8>,
    /// Everything before is answered.
    answered: usize,
    /// Everything before has been handed to the kernel.
    written: usize,
}

impl Log {
    pub(super) fn extend(&mut self, raw: &[u8]) {
        self.bytes.extend_from_slice(raw);
    }

    pub(super) fn unwritten(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    pub(super) fn wrote(&mut self, n: usize) {
        self.written += n;
    }

    /// Bytes accepted and not answered.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.answered
    }

    /// The oldest `n` unanswered bytes are answered.
    pub(super) fn answer(&mut self, n: usize) {
        self.answered += n;
        debug_assert!(self.answered <= self.written, "an answer to what was not sent");
        if self.answered == self.bytes.len() {
            self.clear();
        } else if self.answered > COMPACT && self.answered * 2 > self.bytes.len() {
            self.bytes.drain(..self.answered);
            self.written -= self.answered;
            self.answered = 0;
        }
    }

    /// `len` bytes at `offset` from the oldest unanswered one.
    pub(super) fn at(&self, offset: usize, len: usize) -> &[u8] {
        &self.bytes[self.answered + offset..self.answered + offset + len]
    }

    /// Whether the command at `offset` has not been written at all, so that upstream cannot have seen it.
    pub(super) fn unsent(&self, offset: usize) -> bool {
        self.answered + offset >= self.written
    }

    fn clear(&mut self) {
        // A burst of large commands must not keep its memory for ever.
        if self.bytes.capacity() > 16 * COMPACT {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.answered = 0;
        self.written = 0;
    }
}
