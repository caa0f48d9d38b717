//! Decides that a silent lane is dead. Age alone never kills a lane: Redis may honestly take long (a big KEYS, a script,
//! CLIENT PAUSE), and killing it would lose the writes that are on their way. So the spare connection is asked (decision 9):
//! if the server answers it at once while the lane has been silent for 3 s, and the lane's oldest command is one that no
//! healthy server would still be busy with, then the lane's stream is broken.

use super::lane::Lane;

/// Silence of a lane with something outstanding before what another connection hears is held against it.
pub(super) const SILENCE: u64 = 3_000_000_000;

/// An answer that took longer comes from a server that was busy itself: the lane's may be on its way.
const AT_ONCE: u64 = 2_000_000_000;

impl Lane {
    /// The server has served another connection's PING, sent at `asked`.
    pub(super) fn is_dead(&self, now: u64, asked: u64) -> bool {
        let front = self.inner.borrow().fifo.front().map(|w| (w.t_sent, w.kind.is_question() || w.kind.may_resend()));
        // A question of ours, or a read that may be sent again: nothing that a pause or a script of its own could hold up.
        let Some((oldest, true)) = front else { return false };
        let silent_since = oldest.max(self.last_byte.get());
        self.is_live() && asked.saturating_sub(silent_since) > SILENCE && now.saturating_sub(asked) < AT_ONCE
    }
}
