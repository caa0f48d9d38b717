//! All clients together: who has something to write, what they keep, who has to go, and who they are to upstream.

use std::rc::Rc;
use std::time::Duration;

use super::Ctx;
use crate::observe::reasons::Dropped;
use crate::session::Session;
use crate::upstream::Credential;

impl Ctx {
    /// `session` has something to write, or to be told, when the batch is over.
    pub(crate) fn mark_dirty(&self, session: &Rc<Session>) {
        if session.becomes_dirty() {
            self.dirty.borrow_mut().push(session.clone());
        }
    }

    /// The batch is over: writes what has been completed.
    pub(crate) fn flush_dirty(&self) {
        let mut dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        for session in dirty.drain(..) {
            session.flush_for(self);
        }
        let mut place = self.dirty.borrow_mut();
        if place.is_empty() {
            *place = dirty;
        }
    }

    /// `listen.buffers_max`: while all clients together keep more, the one that keeps most is dropped. Looked at whenever
    /// one client keeps much, and every B/4 for many that keep a little each.
    pub(crate) fn check_buffers(&self) {
        let mut kept: Vec<(usize, Rc<Session>)> =
            self.sessions.borrow().values().map(|s| (s.buffered(), s.clone())).filter(|(n, _)| *n > 0).collect();
        let mut total: usize = kept.iter().map(|(n, _)| n).sum();
        if total <= self.config.listen.buffers_max {
            return;
        }
        kept.sort_unstable_by_key(|(n, _)| std::cmp::Reverse(*n));
        for (n, session) in kept {
            if total <= self.config.listen.buffers_max {
                return;
            }
            session.drop_for(self, Dropped::BuffersMax, "all clients together keep more than listen.buffers_max");
            total -= n;
        }
    }

    pub(crate) fn count_clients(&self) {
        self.metrics.clients.set(self.sessions.borrow().len() as u64);
    }

    /// Protected mode for a client that comes from far: it has to authenticate where the sidecar would otherwise lend it
    /// rights, its own credential's or an upstream's that asks for none.
    pub(crate) fn locks_out(&self, near: bool) -> bool {
        let lends_rights = self.default_profile.credential.is_some() || !self.needs_auth(&self.default_profile);
        self.config.listen.protected && !near && lends_rights
    }

    /// Begins the end: every session closes as soon as nothing is outstanding.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        self.sessions.borrow().values().for_each(|s| s.wake.call());
    }

    /// What upstream answers to a client that is nobody yet, on a connection of its own (AUTH, RESET); or an error of ours.
    pub(crate) async fn verify(&self, words: &[&[u8]]) -> Result<Vec<u8>, String> {
        if let Some(text) = self.outage_text() {
            return Err(text);
        }
        let unavailable = |e: &dyn std::fmt::Display| format!("NEARSIDE upstream unavailable: {e}");
        let mut link = self.pool.bare().await.map_err(|e| unavailable(&e))?;
        let limit = Duration::from_secs(5);
        match tokio::time::timeout(limit, link.ask(words)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(e)) => Err(unavailable(&e)),
            Err(_) => Err(unavailable(&"no answer within 5 s")),
        }
    }

    pub(crate) fn intern(&self, credential: Credential) -> Rc<Credential> {
        let mut all = self.credentials.borrow_mut();
        if let Some(known) = all.iter().find(|c| ***c == credential) {
            return known.clone();
        }
        // Those that nobody holds any more are forgotten.
        all.retain(|c| Rc::strong_count(c) > 1);
        let fresh = Rc::new(credential);
        all.push(fresh.clone());
        fresh
    }
}
