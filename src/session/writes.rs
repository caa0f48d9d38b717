//! The L1's side of a write, done in the same step as its sending: its keys are dropped and not stored until it is answered,
//! and where the rules ask for it they are read back right behind it.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Session;
use super::batch::Batch;
use super::dispatch::Command;
use crate::cache::StripeId;
use crate::coherence::{self, Ends, Hold, Op, Refresh, RefreshKey, Relay};
use crate::command::{Effect, Kind, keys};
use crate::config::{Fence, OnWrite};
use crate::observe::reasons::{Bypass, Flush, Method, Source};
use crate::policy::Keep;
use crate::worker::Ctx;

/// A pattern whose values were refreshed so often without being read is only invalidated (decision 5).
const UPDATES_UNREAD_MAX: u32 = 1000;

/// How the keys of one write are kept, in its order.
type Keeps = SmallVec<[Keep; 1]>;

/// An MSET with more pairs is not read back.
const MSET_REFRESH_MAX: usize = 64;

impl Session {
    /// R14, R15, R16: the L1's side of a write, in the same step as its sending.
    pub(super) fn begin(&self, ctx: &Rc<Ctx>, b: &Batch, cmd: &Command<'_>, effect: Effect, relay: &mut Relay) {
        let Command { req, spec, .. } = *cmd;
        let refreshes = if effect == Effect::Write { self.wants_refresh(ctx, b, cmd) } else { None };
        let mut stripes: SmallVec<[StripeId; 4]> = SmallVec::new();
        keys::for_each(spec, req, |key| {
            let stripe = ctx.l1.begin_write(key);
            ctx.metrics.invalidations.inc(Source::OwnWrite);
            self.note_named(stripe);
            stripes.push(stripe);
        });
        if let Some(keeps) = refreshes {
            // Who has it stored means to read it: the lease is kept young for that, so that the first GET is a hit.
            b.lane.note_read(b.now);
            relay.refresh = Some(self.refresh(ctx, b, cmd, &stripes, keeps));
        }
        if b.lane.publishes() && !stripes.is_empty() {
            let mut named: SmallVec<[Box<[u8]>; 4]> = SmallVec::new();
            keys::for_each(spec, req, |key| named.push(key.into()));
            relay.tell = Some(coherence::told(ctx, Op::Key, &named));
        }
        relay.ends = Ends::from_vec(stripes);
        match effect {
            Effect::Opaque if ctx.config.coherence.fence == Fence::Session => relay.fence = true,
            Effect::Opaque => relay.hold = Some(Rc::new(Hold::default())),
            Effect::SwapDb | Effect::Flush => {
                ctx.l1.flush();
                ctx.metrics.flushes.inc(Flush::Swapdb);
                relay.flush = true;
            }
            _ => {}
        }
    }

    /// Decision 5: how the L1 should keep upstream's answer right behind this write, key by key; none: not at all.
    fn wants_refresh(&self, ctx: &Ctx, b: &Batch, cmd: &Command<'_>) -> Option<Keeps> {
        // In `pubsub` mode the write's own message would void what is read back.
        if !ctx.refreshes() || !b.lane.caches() || !b.lane.is_live() || b.lane.publishes() {
            return None;
        }
        let Command { req, spec, .. } = *cmd;
        let size = match spec.kind {
            Kind::Set if spec.name == "set" || spec.name == "getset" => req.arg(2).len(),
            Kind::Set => req.arg(3).len(),
            Kind::Mset if req.argc() % 2 == 1 && req.argc() / 2 <= MSET_REFRESH_MAX => req.raw.len(),
            _ => return None,
        };
        if size > ctx.config.cache.update_max_bytes {
            return None;
        }
        let mut keeps = Keeps::new();
        let mut wanted = true;
        let mut unread = false;
        keys::for_each(spec, req, |key| {
            let Some(keep) = ctx.judge(key, Method::Get).keep.ok() else {
                wanted = false;
                return;
            };
            wanted &= match keep.terms().on_write {
                OnWrite::Update => true,
                OnWrite::Resident => ctx.l1.get(key).is_some(),
                OnWrite::Invalidate => false,
            };
            if wanted {
                unread |= ctx.metrics.patterns.note_update(keep.pattern) > UPDATES_UNREAD_MAX;
            }
            keeps.push(keep);
        });
        if unread {
            ctx.metrics.bypass.inc(Bypass::PausedUpdate);
        }
        (wanted && !unread).then_some(keeps)
    }

    /// The tokens of a refresh, taken right after its own `begin_write`s (R17).
    fn refresh(&self, ctx: &Ctx, b: &Batch, cmd: &Command<'_>, stripes: &[StripeId], keeps: Keeps) -> Rc<Refresh> {
        let mut of_keys = stripes.iter().zip(keeps);
        let mut refreshed: SmallVec<[RefreshKey; 1]> = SmallVec::new();
        keys::for_each(cmd.spec, cmd.req, |key| {
            let Some((&stripe, keep)) = of_keys.next() else { return };
            let token = ctx.l1.refresh_token(stripe, b.lane.epoch());
            // `MSET k 1 k 2`: one reading of k is enough.
            if refreshed.iter().all(|r| *r.key != *key) {
                refreshed.push(RefreshKey { key: key.into(), token, keep, value: None });
            }
        });
        Refresh::new(b.now, refreshed)
    }
}
