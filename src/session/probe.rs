//! A session without a client, for tests of what lies below it and for the instruction counts (`bench`): requests go in as bytes, replies come out as bytes, and
//! nothing happens in between that the test has not asked for. No reactor needs to run.

use std::rc::Rc;

use bytes::BytesMut;

use super::dispatch::Step;
use super::{Client, Peering, Session};
use crate::net::Peer;
use crate::resp::request::Scanner;
use crate::upstream::Profile;
use crate::worker::Ctx;

pub(crate) struct Probe {
    client: Client,
    peer: Peer,
}

impl Probe {
    /// Must be called inside a tokio runtime.
    pub(crate) fn new(ctx: &Ctx, profile: &Profile) -> Probe {
        let (ours, peer) = Peer::new();
        let peering = Peering {
            addr: "test".to_owned(),
            laddr: "test".to_owned(),
            near: true,
            unix: true,
            listener: None,
            link: None,
        };
        let (session, rd) = Session::new(ctx, ours, peering);
        session.state.borrow_mut().db = profile.db;
        session.state.borrow_mut().credential = profile.credential.clone();
        let scanner = Scanner::new(1 << 20, 1 << 20);
        Probe { client: Client { session, rd, rbuf: BytesMut::new(), scanner, eof: false, paced: None }, peer }
    }

    pub(crate) fn session(&self) -> &Rc<Session> {
        &self.client.session
    }

    /// Dispatches what one read of the client's socket brought, and what had to wait for replies before.
    #[track_caller]
    pub(crate) fn feed(&mut self, ctx: &Rc<Ctx>, raw: &[u8]) {
        self.client.rbuf.extend_from_slice(raw);
        let step = self.client.process(ctx);
        assert!(matches!(step, Step::NeedInput | Step::Throttled), "a request that needs more than the lane");
    }

    /// The replies so far: those that were written to its client, and those that were about to be.
    pub(crate) fn output(&mut self) -> BytesMut {
        let mut all = self.peer.read();
        let ready = &mut self.session().outbox.borrow_mut().ready;
        all.extend_from_slice(ready);
        // The buffer stays, as it does when its bytes are written.
        ready.clear();
        BytesMut::from(&*all)
    }

    /// tokio writes to a socket only after it has seen it writable; until this has been awaited nothing is written.
    #[cfg(feature = "bench")]
    pub(crate) async fn writable(&self) {
        self.session().writable().await;
    }

    /// Writes what is ready, as the session's task does after each batch.
    #[cfg(feature = "bench")]
    pub(crate) fn flush(&self, ctx: &Ctx) {
        self.session().flush(ctx);
    }

    #[cfg(test)]
    pub(crate) fn outstanding(&self) -> usize {
        self.session().outbox.borrow().outstanding()
    }

    /// Forgets which keys outstanding commands name: what R22 forbids to forget.
    #[cfg(test)]
    pub(crate) fn forget_named(&self) {
        self.session().named.set(0);
    }
}
