//! A client's connection as a span of the log: who it is, when it came, how it ended. At `log.level: debug` and below only:
//! above, no span is made and the task is not wrapped, so that a request costs what it did. A level that is changed while
//! clients are connected holds for those that come.

use std::rc::Rc;

use tracing::field::Empty;
use tracing::instrument::Instrument;

use super::{Session, run};
use crate::net::ReadHalf;
use crate::observe::clock;
use crate::observe::log;
use crate::observe::runs::Who;
use crate::worker::Ctx;

/// Begins the task of one client.
pub(crate) fn start(ctx: Rc<Ctx>, session: Rc<Session>, rd: ReadHalf) {
    let span = tracing::debug_span!("client", id = session.id, addr = %session.addr, name = Empty, user = Empty);
    if span.is_disabled() {
        tokio::task::spawn_local(run(ctx, session, rd));
        return;
    }
    span.in_scope(|| tracing::debug!(laddr = %session.laddr, "client connected"));
    tokio::task::spawn_local(run(ctx, session, rd).instrument(span));
}

/// What it is called has changed. Called in the client's own task, whose span is the current one. What is recorded twice
/// would be shown twice.
pub(super) fn introduce(before: &Who, now: &Who) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let span = tracing::Span::current();
    for (field, before, now) in [("name", &before.name, &now.name), ("user", &before.user, &now.user)] {
        if let Some(now) = now.as_ref().filter(|now| before.as_ref() != Some(now)) {
            span.record(field, log::name(now.as_bytes()));
        }
    }
}

/// The last line of a client.
pub(super) fn closed(session: &Session, why: &'static str) {
    tracing::debug!(why, for_ms = clock::now().saturating_sub(session.since) / 1_000_000, "client disconnected");
}
