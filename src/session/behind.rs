//! Writes of rules with `write: behind`, while upstream is there: answered here, done upstream behind the reply, in order,
//! by the same queue as in an outage (`worker::held`, `coherence::replay`). Asked on the way to a lane, of nothing that the
//! L1 answers.
//!
//! **Read your writes.** A key with a queued effect is in no L1: it was evicted when its write was accepted, and counts as a
//! write under way (`Lane::cover`) until upstream has executed it, so nothing that is read of it is stored. So a hit is never
//! of such a key, and everything else comes by here (`lane_stop`) or by `Ctx::checkout`. Here a read of such keys is answered
//! from the queue's own state, if the local engine has the command; all else that touches them, or may (scripts, commands
//! that name no keys), waits until the queue of its profile is empty (`Lane::drain_first`), and meanwhile nothing is
//! added to it: so that it ends. Then it goes to the lane, or to a connection that is lent, behind everything that was
//! answered before. That holds for all clients of this sidecar with the same user and database.
//!
//! **Order.** A profile's effects are executed in the order of their replies, on the lane's one connection. What went to the
//! lane before stands before them in its stream. A write that cannot be accepted here takes the way of all else: it waits
//! for the queue if that has its keys, and is executed behind it.
//!
//! **What it costs.** The reply does not mean that upstream has it (guarantee 5 excepts this, by the rule's choice). What
//! upstream refuses for good, by a right that is missing, is lost behind a reply that said OK, and counted
//! (`nearside_queue_replayed_total`). Other sidecars see the value when upstream has it.

use std::rc::Rc;

use super::Session;
use super::batch::{Batch, LaneAt};
use super::dispatch::{Command, Step, Work};
use super::outage_writes::{Beside, Plan, Write};
use crate::command::{Effect, Keys, Request, Spec, keys};
use crate::local;
use crate::observe::clock;
use crate::observe::reasons::Dropped;
use crate::outage::accept::{self, Needs};
use crate::worker::Ctx;
use crate::worker::held::{How, NotTaken};

/// These tell nothing of the data: they need not wait for it.
const ABOUT_NO_DATA: [&str; 4] = ["ping", "echo", "time", "lolwut"];

impl Session {
    /// A command on its way to a lane that is ready. `None`: it may go.
    pub(super) fn behind(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &Batch, cmd: &Command<'_>) -> Option<Option<Step>> {
        let Command { req, spec, mute } = *cmd;
        let lane = b.lane();
        if spec.effect == Effect::Write
            && spec.keys != Keys::None
            && all_behind(ctx, req, spec)
            && let Some(step) = self.write_behind(ctx, b, cmd)
        {
            return Some(step);
        }
        if !ctx.held.waits(&lane.profile) || ABOUT_NO_DATA.contains(&spec.name) {
            return None;
        }
        let by_keys = spec.keys != Keys::None && matches!(spec.effect, Effect::Read | Effect::Write);
        if by_keys && !self.names_held(ctx, lane, req, spec) {
            return None;
        }
        if let Some(reply) = self.reads_held(ctx, b.lane_at(), cmd, Beside::Nothing) {
            self.answer_safely(ctx, b.now, reply, mute);
            return Some(None);
        }
        lane.drain_first();
        Some(Some(Step::Suspend(Work::AwaitLane(cmd.owned()))))
    }

    /// `None`: it is not for the queue.
    fn write_behind(self: &Rc<Self>, ctx: &Rc<Ctx>, b: &Batch, cmd: &Command<'_>) -> Option<Option<Step>> {
        let (lane, Command { req, spec, .. }) = (b.lane(), *cmd);
        if !keys::arity_ok(spec, req.argc()) || !ctx.is_accepted(&lane.profile) {
            return None;
        }
        let (needs, command) = (accept::needs(spec.name, req)?, local::command(spec.name)?);
        // R18: what is outstanding on the spare connection is executed first.
        if self.on_spare.get() && self.outbox.borrow().outstanding() > 0 {
            return Some(Some(Step::Suspend(Work::Settle(cmd.owned()))));
        }
        let names = self.names(ctx, b.lane_at(), cmd);
        let held = ctx.held.of(&lane.profile);
        let queued = |key: &[u8]| held.as_ref().is_some_and(|held| held.borrow().knows(key));
        // R22: the L1 says nothing of what an outstanding command of this session may change.
        let l1_counts = self.may_be_told_old(ctx, spec, req);
        if needs == Needs::Keys && !names.iter().all(|n| queued(n.key) || (n.found.is_some() && l1_counts)) {
            return None;
        }
        match self.accept(ctx, b.lane_at(), cmd, &Write { how: How::Queue, command, names }) {
            Ok(()) => {
                lane.do_behind(ctx);
                Some(None)
            }
            Err(NotTaken::TooLong) => {
                self.drop_for(ctx, Dropped::OutputLimit, "a reply would be longer than listen.output_limit");
                Some(None)
            }
            // Upstream is there: where there is no room the write waits for its reply, as without the rule.
            Err(NotTaken::Count | NotTaken::Bytes | NotTaken::Journal(_)) => None,
        }
    }
}

impl Session {
    /// What EXPLAIN says of a write: whether it would be answered before upstream has it, and what would become of it if
    /// upstream were gone now. Room in the queue is not looked at.
    pub(super) fn explain_write(&self, ctx: &Rc<Ctx>, cmd: &Command<'_>) -> [(&'static str, String); 2] {
        let lane = self.lane(ctx);
        let plan = self.plan_write(ctx, LaneAt { lane: &lane, now: clock::now() }, cmd);
        let behind = cmd.spec.keys != Keys::None && all_behind(ctx, cmd.req, cmd.spec);
        let write = match &plan {
            _ if !behind => "through".to_owned(),
            Plan::Take(_) => "behind".to_owned(),
            Plan::Refuse(why) => format!("through: {}", why.as_str()),
            Plan::Fail | Plan::Arity => "through".to_owned(),
        };
        let outage = match &plan {
            Plan::Fail => "fail".to_owned(),
            Plan::Refuse(why) => format!("refused: {}", why.as_str()),
            Plan::Arity => "wrong number of arguments".to_owned(),
            Plan::Take(Write { how: How::Queue, .. }) => "queue".to_owned(),
            Plan::Take(Write { how: How::Local, .. }) => "local".to_owned(),
        };
        [("write", write), ("outage_writes", outage)]
    }
}

fn all_behind(ctx: &Ctx, req: &Request<'_>, spec: &Spec) -> bool {
    let mut all = true;
    keys::for_each(spec, req, |key| all &= ctx.is_behind(key));
    all
}
