//! Decides that a silent lane is dead. Age alone never kills a lane: Redis may honestly take long (a big KEYS, a script,
//! CLIENT PAUSE), and killing it would lose the writes that are on their way. So a fresh connection is asked (decision 9):
//! if the server answers it at once while the lane has been silent for 3 s, and the lane's oldest command is one that no
//! healthy server would still be busy with, then the lane's stream is broken.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::lane::Lane;
use crate::observe::clock;
use crate::worker::Ctx;

/// Silence of a lane with something outstanding before a fresh connection is asked.
const SILENCE: u64 = 3_000_000_000;

/// A fresh connection that does not answer within this proves nothing.
const PATIENCE: Duration = Duration::from_secs(2);

impl Lane {
    pub(super) fn judge(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64) {
        if self.is_live() && !self.judging.get() && self.silent_since(now) && self.oldest_is_innocent() {
            self.judging.set(true);
            let (lane, ctx) = (self.clone(), ctx.clone());
            tokio::task::spawn_local(async move {
                lane.ask_a_fresh_connection(&ctx).await;
                lane.judging.set(false);
            });
        }
    }

    fn silent_since(&self, now: u64) -> bool {
        now.saturating_sub(self.last_byte.get()) > SILENCE && self.oldest_age(now) > SILENCE
    }

    fn oldest_age(&self, now: u64) -> u64 {
        self.inner.borrow().fifo.front().map_or(0, |w| now.saturating_sub(w.t_sent))
    }

    /// A PING of ours, or a read that may be sent again: nothing that a pause or a script of its own could hold up.
    fn oldest_is_innocent(&self) -> bool {
        self.inner.borrow().fifo.front().is_some_and(|w| w.kind.is_ping() || w.kind.may_resend())
    }

    async fn ask_a_fresh_connection(&self, ctx: &Rc<Ctx>) {
        let (heard, epoch) = (self.last_byte.get(), self.epoch.get());
        // The PING must be sent 3 s after the lane's last byte, which is so since `silent_since`.
        let answered = timeout(PATIENCE, async {
            let mut conn = ctx.pool.fresh(&self.profile, self.proto.get()).await.ok()?;
            conn.link.ask(&[b"PING"]).await.ok()
        });
        let Ok(Some(frame)) = answered.await else { return };
        let healthy = [&b"+PONG"[..], b"-NOPERM", b"-MISCONF"].iter().any(|start| frame.starts_with(start));
        let unchanged = self.last_byte.get() == heard && self.epoch.get() == epoch;
        if healthy && unchanged && self.oldest_is_innocent() && self.silent_since(clock::now()) {
            self.kill("silent for 3 s while a fresh connection is answered");
        }
    }
}
