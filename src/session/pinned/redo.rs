//! Reads whose replies are too large for the lane, asked again on a connection of the session's own (decision 10).

use std::rc::Rc;

use tokio::io::AsyncReadExt;
use tokio::task::yield_now;

use super::CHUNK;
use super::own_names::own_piece;
use crate::command::Why;
use crate::observe::reasons::Peer;
use crate::resp::reply::FrameScanner;
use crate::session::Client;
use crate::upstream::pinned::Dedicated;
use crate::worker::Ctx;

impl Client {
    /// Sends reads again whose replies are too large for the lane (decision 10). False: close the client.
    pub(in crate::session) async fn redo_large(&mut self, ctx: &Rc<Ctx>) -> bool {
        let session = self.session.clone();
        let redo = std::mem::take(&mut *session.redo.borrow_mut());
        let (profile, proto) = {
            let state = session.state.borrow();
            (state.profile(), state.proto)
        };
        ctx.metrics.pinned.inc(Why::Large as usize);
        let mut conn = match ctx.checkout(&profile, proto).await {
            Ok(conn) => conn,
            Err(none) => {
                for r in &redo {
                    session.complete_error(ctx, r.slot, &none.text);
                }
                session.flush(ctx);
                return true;
            }
        };
        let all: Vec<u8> = redo.iter().flat_map(|r| r.raw.iter().copied()).collect();
        let mut scanner = FrameScanner::new();
        let mut failed = conn.link.wr.write_all(&all).await.is_err();
        for r in &redo {
            while !failed && session.outbox.borrow().head().is_some_and(|head| head < r.slot) {
                if !self.wait(ctx, false).await || session.closing.get() {
                    return false;
                }
            }
            if !failed {
                failed = !self.stream_reply(ctx, &mut conn, &mut scanner).await;
            }
            if failed && session.closing.get() {
                return false;
            }
            if failed {
                session.complete_error(ctx, r.slot, "NEARSIDE upstream connection lost");
            } else {
                session.set_fence();
                session.finish_slot(ctx, r.slot);
            }
        }
        session.flush(ctx);
        if !failed {
            ctx.pool.give_back(conn);
        }
        true
    }

    /// Passes one reply on as it comes. False: upstream or the client is gone. What was already passed on cannot be taken
    /// back, so a reply that breaks off in the middle closes the client.
    pub(super) async fn stream_reply(
        &mut self,
        ctx: &Rc<Ctx>,
        conn: &mut Dedicated,
        scanner: &mut FrameScanner,
    ) -> bool {
        let session = self.session.clone();
        let mute = session.outbox.borrow().head_is_mute();
        let mut stripper = session.own_stream(ctx);
        let (mut begun, mut size) = (false, 0);
        loop {
            let Ok(step) = scanner.advance(&conn.link.rbuf) else {
                session.closing.set(begun);
                return false;
            };
            let bytes = own_piece(ctx, stripper.as_mut(), conn.link.rbuf.split_to(step.take));
            if !mute {
                size += bytes.len();
                session.outbox.borrow_mut().ready.extend_from_slice(&bytes);
            }
            begun |= step.take > 0;
            if step.done {
                ctx.metrics.reply_sizes.note(size);
                scanner.reset();
                return true;
            }
            if session.outbox.borrow().ready.len() >= CHUNK && !self.flushed(ctx).await {
                return false;
            }
            conn.link.rbuf.reserve(CHUNK);
            let read = tokio::select! {
                read = conn.link.rd.read_buf(&mut conn.link.rbuf) => read,
                () = session.wake.called() => {
                    if session.closing.get() {
                        return false;
                    }
                    continue;
                }
            };
            match read {
                Ok(n) if n > 0 => ctx.metrics.bytes_in.add(Peer::Upstream, n as u64),
                _ => {
                    session.closing.set(begun);
                    return false;
                }
            }
            yield_now().await;
        }
    }
}
