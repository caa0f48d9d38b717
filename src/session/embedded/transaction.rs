//! MULTI, EXEC, DISCARD, WATCH and UNWATCH of a session whose backend is the engine. The queue is the session's; what has
//! become of watched keys the engine knows.

use std::rc::Rc;

use super::Now;
use crate::command::{Kind, Request, Spec};
use crate::observe::reasons::Dropped;
use crate::resp::{Proto, build};
use crate::session::Session;
use crate::session::dispatch::{Owned, Step};
use crate::worker::Ctx;

/// What one queued command or one watched or listened-to name costs besides its bytes, about.
const EACH: usize = 96;

/// What such a session keeps of its client besides `State`.
#[derive(Default)]
pub(in crate::session) struct Seat {
    /// The queue of an open MULTI.
    queue: Option<Queue>,
    /// Bytes of names that it watches.
    watched: usize,
    /// Bytes of names that it listens to.
    pub(super) listened: usize,
}

#[derive(Default)]
struct Queue {
    commands: Vec<(Owned, &'static Spec)>,
    bytes: usize,
    /// A command was refused: EXEC will not run.
    broken: bool,
}

impl Seat {
    pub(in crate::session) fn bytes(&self) -> usize {
        self.watched + self.listened + self.queue.as_ref().map_or(0, |q| q.bytes)
    }

    pub(super) fn is_open(&self) -> bool {
        self.queue.is_some()
    }
}

pub(super) fn cost(name: &[u8]) -> usize {
    EACH + name.len()
}

impl Session {
    /// Whether MULTI takes the command into its queue now.
    pub(super) fn queues(&self, spec: &Spec) -> bool {
        let at_once =
            matches!(spec.kind, Kind::Multi | Kind::Exec | Kind::Discard | Kind::Watch | Kind::Quit | Kind::Reset);
        self.seat.borrow().is_open() && !at_once
    }

    pub(super) fn queue(&self, req: &Request<'_>, spec: &'static Spec, mute: bool) {
        let mut seat = self.seat.borrow_mut();
        if let Some(queue) = &mut seat.queue {
            queue.bytes += EACH + req.raw.len() + size_of_val(req.args);
            queue.commands.push((Owned::of(req), spec));
        }
        drop(seat);
        self.show_seat();
        self.answer(mute, |out| build::simple(out, "QUEUED"));
    }

    /// Refuses what is no command here; an open transaction will not run.
    pub(super) fn reject(&self, mute: bool, error: &[u8]) {
        if let Some(queue) = &mut self.seat.borrow_mut().queue {
            queue.broken = true;
        }
        self.answer(mute, |out| build::error_bytes(out, error));
    }

    /// The same for a command; a refused EXEC ends the transaction at once.
    pub(super) fn reject_command(&self, ctx: &Ctx, spec: &Spec, mute: bool, error: &str) {
        if spec.kind != Kind::Exec {
            return self.reject(mute, error.as_bytes());
        }
        self.end_transaction(ctx);
        let error = error.strip_prefix("ERR ").unwrap_or(error);
        self.answer_error(mute, &format!("EXECABORT Transaction discarded because of: {error}"));
    }

    pub(super) fn transact(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: Now,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        let open = self.seat.borrow().is_open();
        match spec.kind {
            Kind::Multi if open => self.answer_error(mute, "ERR MULTI calls can not be nested"),
            Kind::Multi => {
                self.seat.borrow_mut().queue = Some(Queue::default());
                self.show_seat();
                self.answer(mute, |out| build::simple(out, "OK"));
            }
            Kind::Watch if open => self.answer_error(mute, "ERR WATCH inside MULTI is not allowed"),
            Kind::Watch => {
                self.watch(ctx, now, req);
                self.answer(mute, |out| build::simple(out, "OK"));
            }
            Kind::Unwatch => {
                self.unwatch(ctx);
                self.answer(mute, |out| build::simple(out, "OK"));
            }
            Kind::Discard if !open => self.answer_error(mute, "ERR DISCARD without MULTI"),
            Kind::Discard => {
                self.end_transaction(ctx);
                self.answer(mute, |out| build::simple(out, "OK"));
            }
            _ if !open => self.answer_error(mute, "ERR EXEC without MULTI"),
            _ => return self.exec(ctx, now, mute),
        }
        None
    }

    fn watch(&self, ctx: &Ctx, now: Now, req: &Request<'_>) {
        let db = self.state.borrow().db;
        let mut engine = self.engine(ctx).borrow_mut();
        let keys = (1..req.argc()).map(|i| req.arg(i));
        let fresh = keys.filter(|key| engine.watch(now.wall, self.id, db, key)).map(cost);
        self.seat.borrow_mut().watched += fresh.sum::<usize>();
        drop(engine);
        self.show_seat();
    }

    fn unwatch(&self, ctx: &Ctx) {
        self.engine(ctx).borrow_mut().unwatch(self.id);
        self.seat.borrow_mut().watched = 0;
        self.show_seat();
    }

    /// Forgets queue and watches.
    pub(super) fn end_transaction(&self, ctx: &Ctx) {
        self.seat.borrow_mut().queue = None;
        self.unwatch(ctx);
    }

    fn exec(self: &Rc<Self>, ctx: &Rc<Ctx>, now: Now, mute: bool) -> Option<Step> {
        let queue = self.seat.borrow_mut().queue.take().unwrap_or_default();
        let fouled = self.engine(ctx).borrow().is_fouled(now.wall, self.id);
        self.unwatch(ctx);
        if queue.broken {
            self.answer_error(mute, "EXECABORT Transaction discarded because of previous errors.");
            return None;
        }
        if fouled {
            let null: &[u8] = if self.proto() == Proto::Resp3 { b"_\r\n" } else { b"*-1\r\n" };
            self.answer(mute, |out| out.extend_from_slice(null));
            return None;
        }
        self.answer(mute, |out| build::array(out, queue.commands.len()));
        let before = self.unsent();
        for (command, spec) in &queue.commands {
            if let Some(step) = self.carry_out(ctx, now, &command.request(), spec, mute) {
                return Some(step);
            }
            if self.unsent() - before > ctx.config.listen.output_limit {
                self.drop_for(ctx, Dropped::OutputLimit, "a reply would be longer than listen.output_limit");
                return Some(Step::Close);
            }
        }
        None
    }

    /// For CLIENT LIST.
    pub(super) fn show_seat(&self) {
        let seat = self.seat.borrow();
        let mut shown = self.pinned.borrow_mut();
        shown.id = i64::from(seat.is_open());
        shown.multi = seat.queue.as_ref().map_or(-1, |q| q.commands.len() as i64);
        shown.watching = seat.watched > 0;
    }
}
