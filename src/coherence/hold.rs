//! Holds: a reply or message is kept back until every lane of the node has answered a PING that was sent after it. Then
//! all invalidations of what it announces have been applied (the push was queued before the PONG in the same stream), and
//! whoever is told may read through any connection of this sidecar without meeting the old value (R15, R21).
//!
//! A hold ends when the last PONG has come, when the lanes it waits for have died (their entries are unusable), or after B
//! at the latest: from then on the lease refuses every hit that is older than the PING.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::Notify;

use crate::resp::downgrade::Form;
use crate::session::Session;
use crate::worker::Ctx;

#[derive(Default)]
pub(crate) struct Hold {
    waiting: Cell<usize>,
    /// What is released; set when there is something to release.
    reply: RefCell<Option<Held>>,
    released: Cell<bool>,
    /// There is something to hand out (a script's reply may still be on its way, or be lost).
    announces: Cell<bool>,
    wake: Notify,
}

struct Held {
    session: Rc<Session>,
    slot: u64,
    frame: Vec<u8>,
    form: Form,
}

impl Hold {
    /// One more PONG to wait for.
    pub(crate) fn expect(&self) {
        self.waiting.set(self.waiting.get() + 1);
    }

    /// There is a PONG to wait for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.get() > 0
    }

    /// From now on there is something that waits for the PONGs.
    pub(crate) fn announce(&self) {
        self.announces.set(true);
    }

    /// A lane has died: its PONG will not come. What is handed out is newer than anything that lane has proved.
    pub(super) fn lost(&self, ctx: &Ctx) {
        if self.announces.get() && !self.released.get() {
            ctx.raise_floor();
        }
        self.passed(ctx);
    }

    /// One PONG has come, or will not come any more.
    pub(crate) fn passed(&self, ctx: &Ctx) {
        self.waiting.set(self.waiting.get().saturating_sub(1));
        if self.waiting.get() == 0 {
            self.release(ctx);
        }
    }

    /// Keeps `frame` for `slot` until the PONGs are in.
    pub(super) fn keep(&self, ctx: &Ctx, session: Rc<Session>, slot: u64, frame: &[u8], form: Form) {
        self.announce();
        session.keeps(ctx, frame.len());
        *self.reply.borrow_mut() = Some(Held { session, slot, frame: frame.to_vec(), form });
    }

    /// Releases what is held, whatever is still missing; only the first call does anything.
    pub(crate) fn release(&self, ctx: &Ctx) {
        if let Some(held) = self.reply.borrow_mut().take() {
            held.session.kept(held.frame.len());
            held.session.complete(ctx, held.slot, &held.frame, held.form);
        }
        self.released.set(true);
        self.wake.notify_one();
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.get()
    }

    /// Waits for the release; the caller bounds it by B.
    pub(crate) async fn released(&self) {
        while !self.released.get() {
            self.wake.notified().await;
        }
    }
}
