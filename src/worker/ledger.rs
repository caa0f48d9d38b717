//! The journal as the data thread uses it (`outage.journal_dir`): who is told when what was written is safe, and whose the
//! writes are that were accepted before this process. The journal's own thread writes; nothing here waits for it.
//!
//! **Order.** A write is in the journal's hands before it is in the queue, and its client is answered when the journal says
//! that it is as safe as `outage.journal_fsync` asks. Until then it is visible here: so whoever is told of queued data
//! waits as well for everything that was handed over before (`unsafe_up_to`). Nobody has seen what a crash may take back.
//!
//! **Users.** A password is never written down. What another user than the sidecar's own wrote waits until a client of that
//! user has been let in by upstream, and is done with what that client said.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Ctx;
use crate::observe::clock;
use crate::observe::metrics::Metrics;
use crate::outage::journal::{Done, Journal, OpenError, Opened, Refused, Settings, Who, Write};
use crate::outage::queue::New;
use crate::session::Session;
use crate::upstream::{Credential, Profile};

/// A reply that is kept back until the effect with this number is safe. As many as clients have requests outstanding.
struct Waiting {
    number: u64,
    session: Rc<Session>,
    slot: u64,
    reply: BytesMut,
}

pub(crate) struct Ledger {
    journal: Journal,
    /// Everything up to this number is safe, or its clients were told.
    done: Cell<u64>,
    waiting: RefCell<VecDeque<Waiting>>,
    /// Writes of users that nobody has been here as.
    orphans: RefCell<Vec<Write>>,
    /// Some of them have found their user.
    adopted: Notify,
}

/// What was accepted before this process.
pub(crate) struct Before {
    pub(crate) ledger: Rc<Ledger>,
    writes: Vec<Write>,
    done: UnboundedReceiver<Done>,
}

impl Ledger {
    pub(crate) fn open(settings: &Settings<'_>, metrics: Arc<Metrics>) -> Result<Before, OpenError> {
        let Opened { journal, writes, cut, done } = Journal::open(settings, metrics)?;
        if let Some(cut) = cut {
            tracing::warn!(
                "outage.journal_dir: {} ended within a record, as after a crash: {} bytes are cut off, and what was \
                 acknowledged before is there",
                cut.path.display(),
                cut.bytes
            );
        }
        let ledger = Ledger {
            done: Cell::new(journal.next() - 1),
            journal,
            waiting: RefCell::default(),
            orphans: RefCell::default(),
            adopted: Notify::new(),
        };
        Ok(Before { ledger: Rc::new(ledger), writes, done })
    }

    pub(crate) fn append(&self, who: &Arc<Who>, new: &[New]) -> Result<u64, Refused> {
        self.journal.append(who, new)
    }

    pub(crate) fn applied(&self, who: &Arc<Who>, up_to: u64) {
        self.journal.applied(who, up_to);
    }

    /// What was handed over last, if that is not safe yet.
    pub(crate) fn unsafe_up_to(&self) -> Option<u64> {
        let last = self.journal.next() - 1;
        (last > self.done.get()).then_some(last)
    }

    /// The slot has its reply when everything up to `number` is safe.
    pub(crate) fn wait(&self, number: u64, session: Rc<Session>, slot: u64, reply: BytesMut) {
        self.waiting.borrow_mut().push_back(Waiting { number, session, slot, reply });
    }

    fn settle(&self, ctx: &Ctx, done: &Done) {
        self.done.set(done.up_to);
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let Some(next) = waiting.pop_front_if(|next| next.number <= done.up_to) else { return };
            drop(waiting);
            match done.outcome {
                Ok(()) => next.session.complete_here(ctx, next.slot, &next.reply),
                Err(why) => next.session.complete_error(ctx, next.slot, &unknown(why)),
            }
        }
    }

    /// Effects that are on disk only, because nobody of their user has been here.
    pub(crate) fn orphans(&self) -> usize {
        self.orphans.borrow().iter().map(|write| write.effects.len()).sum()
    }

    pub(crate) fn close(&self) {
        self.journal.close();
    }
}

/// The write is in the queue and not in the journal: whether it is done depends on whether this process lives as long.
fn unknown(why: Refused) -> String {
    format!(
        "NEARSIDE outcome unknown: {}: the write is done when upstream is back, unless this process ends before",
        why.text()
    )
}

/// Whose it is, in the journal's words.
pub(crate) fn who(profile: &Profile) -> Arc<Who> {
    Arc::new(Who { db: profile.db, user: profile.user_bytes().into() })
}

impl Ctx {
    /// What the journal holds is in the queues from here on; what is queued goes to the journal first. Called once, before
    /// any client is let in.
    pub(crate) fn begin_journal(self: &Rc<Self>, before: Before) {
        let Before { ledger, writes, done } = before;
        let own = self.default_profile.clone();
        let effects: usize = writes.iter().map(|write| write.effects.len()).sum();
        self.held.set_ledger(ledger.clone());
        let (of_own, orphans): (Vec<Write>, Vec<Write>) =
            writes.into_iter().partition(|write| *write.who.user == *own.user_bytes());
        *ledger.orphans.borrow_mut() = orphans;
        self.restore(of_own, own.credential.as_ref());
        if effects > 0 {
            tracing::info!(
                "outage.journal_dir: {effects} writes that were acknowledged before wait for upstream, {} of them for a \
                 client of their user",
                ledger.orphans()
            );
        }
        tokio::task::spawn_local(tell(self.clone(), ledger.clone(), done));
        tokio::task::spawn_local(start_lanes(self.clone(), ledger));
    }

    /// Puts writes from before into their queues.
    fn restore(&self, writes: Vec<Write>, credential: Option<&Rc<Credential>>) {
        let now = clock::now();
        for write in writes {
            let profile = Profile { db: write.who.db, credential: credential.cloned() };
            self.held.begin(&profile).borrow_mut().restore(now, write);
        }
        self.show_held();
    }

    /// Upstream has let this user in.
    pub(crate) fn adopt(&self, credential: &Rc<Credential>) {
        let Some(ledger) = self.held.ledger() else { return };
        let mut orphans = ledger.orphans.borrow_mut();
        if !orphans.iter().any(|write| write.who.user == credential.user) {
            return;
        }
        let all = std::mem::take(&mut *orphans);
        let (found, left) = all.into_iter().partition(|write| write.who.user == credential.user);
        *orphans = left;
        drop(orphans);
        self.restore(found, Some(credential));
        ledger.adopted.notify_one();
    }
}

/// Every profile with something queued has a lane: that is what does it.
async fn start_lanes(ctx: Rc<Ctx>, ledger: Rc<Ledger>) {
    loop {
        for profile in ctx.held.waiting_profiles() {
            ctx.lane(&profile);
        }
        ledger.adopted.notified().await;
    }
}

async fn tell(ctx: Rc<Ctx>, ledger: Rc<Ledger>, mut done: UnboundedReceiver<Done>) {
    while let Some(next) = done.recv().await {
        ledger.settle(&ctx, &next);
        ctx.flush_dirty();
    }
}
