//! A name that the table does not have, met on a connection of the client's own: before the command policy can judge it,
//! upstream has to say what it is, because it may be a command that was renamed. The lane is asked, as ever; this client's
//! next requests wait meanwhile, and what upstream sends it passes.

use std::cell::Cell;
use std::rc::Rc;

use super::Pin;
use crate::command::Request;
use crate::command::table::{self, Lookup};
use crate::router::Stranger;
use crate::session::Client;
use crate::worker::Ctx;

/// A question under way, or answered, or given up.
pub(super) struct Asked(Rc<Cell<bool>>);

impl Client {
    /// The same for the large request at the front of the buffer, on the lane's way.
    pub(super) async fn explained_large(&self, ctx: &Rc<Ctx>) {
        let req = Request { raw: &self.rbuf, args: self.scanner.args() };
        if is_new(ctx, &req) {
            let (lane, name) = (self.session.lane(ctx), req.arg(0).to_vec());
            let limit = ctx.config.upstream.connect_timeout;
            let _ = tokio::time::timeout(limit, ctx.learn(&lane, &name)).await;
        }
    }
}

impl Pin {
    pub(super) fn asks_for_large(&mut self, ctx: &Rc<Ctx>, client: &Client) -> bool {
        let req = Request { raw: &client.rbuf, args: client.scanner.args() };
        self.asks_for(ctx, client, &req)
    }

    /// The request has to wait until its name is explained. It waits once: where nobody can be asked (the user has no lane, or
    /// that is lost or held up for as long as a connection may take), the policy decides without.
    pub(super) fn asks_for(&mut self, ctx: &Rc<Ctx>, client: &Client, req: &Request<'_>) -> bool {
        if !is_new(ctx, req) {
            self.asked = None;
            return false;
        }
        match &self.asked {
            Some(Asked(over)) if over.get() => {
                self.asked = None;
                false
            }
            Some(_) => true,
            None => {
                let over = Rc::new(Cell::new(false));
                self.asked = Some(Asked(over.clone()));
                let (ctx, session, name) = (ctx.clone(), client.session.clone(), req.arg(0).to_vec());
                tokio::task::spawn_local(async move {
                    let lane = session.lane(&ctx);
                    let learned = ctx.learn(&lane, &name);
                    if tokio::time::timeout(ctx.config.upstream.connect_timeout, learned).await.is_err() {
                        tracing::debug!("nobody has explained a command's name in time");
                    }
                    over.set(true);
                    session.wake.call();
                });
                true
            }
        }
    }
}

/// Its name is not known, and has to be.
pub(super) fn is_new(ctx: &Ctx, req: &Request<'_>) -> bool {
    ctx.policy.judges()
        && req.argc() > 0
        && matches!(table::lookup(req), Lookup::Unknown)
        && matches!(ctx.learned(req.arg(0)), Err(Stranger::New))
}
