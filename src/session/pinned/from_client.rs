//! What a pinned client says: each request forwarded, with what its reply will mean, or answered here once everything
//! before it is answered.

use std::borrow::Cow;
use std::rc::Rc;

use bytes::Buf;

use super::upload::Upload;
use super::{Broken, CHUNK, End, Pin, begin_all, flush, is_new};
use crate::coherence::Message;
use crate::command::strip::Strip;
use crate::command::table::{self, Lookup};
use crate::command::{Effect, Kind, Need, Request, Spec, keys, prefix};
use crate::observe::clock;
use crate::observe::reasons::Operation;
use crate::resp::request::Scan;
use crate::resp::{Proto, build};
use crate::router::{self, Stranger};
use crate::session::dispatch::Owned;
use crate::session::local::{Local, asks_for_entry, greeting};
use crate::session::transaction::{Expect, Queued, Role, Subscriptions, What, is_subscription};
use crate::session::{Client, Session};
use crate::upstream::Credential;
use crate::worker::Ctx;

impl Pin {
    /// Forwards what the client has sent, as far as it may go now.
    pub(super) async fn read_client(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> Option<End> {
        self.paced = None;
        loop {
            if let Some(end) = self.run_local(ctx, client).await {
                return Some(end);
            }
            // What comes after the state is over belongs on the lane (and may hit).
            if self.local.is_some()
                || self.broken.is_some()
                || self.quit
                || self.out.len() >= CHUNK
                || self.is_over()
                || client.rbuf.is_empty()
            {
                return None;
            }
            if self.upload.is_some() {
                if self.upload(ctx, client) {
                    continue;
                }
                return None;
            }
            if self.waits_for_state() {
                return None;
            }
            self.paced = client.session.pace(ctx);
            if self.paced.is_some() {
                return None;
            }
            let (len, owned) = match client.scanner.scan(&client.rbuf) {
                Scan::Incomplete => return None,
                Scan::Nothing { len } => (len, None),
                Scan::Request { len } => {
                    let req = Request { raw: &client.rbuf[..len], args: client.scanner.args() };
                    (len, Some(Owned::of(&req)))
                }
                Scan::Inline { len } => {
                    let req = Request { raw: client.scanner.inline(), args: client.scanner.args() };
                    (len, Some(Owned::of(&req)))
                }
                Scan::Large if self.asks_for_large(ctx, client) => return None,
                Scan::Large => {
                    self.upload = Some(Upload::new(ctx, client));
                    continue;
                }
                Scan::Error(e) => {
                    self.broken = Some(Broken::Protocol(e));
                    continue;
                }
            };
            if owned.as_ref().is_some_and(|owned| self.asks_for(ctx, client, &owned.request())) {
                return None;
            }
            client.rbuf.advance(len);
            if let Some(owned) = owned {
                self.receive(ctx, client, owned);
            }
        }
    }

    /// Whether the next request must wait, because what is outstanding decides where it belongs: after a blocking command
    /// or an EXEC the session may be free to go back to the lane, and Redis would not look at it either.
    pub(super) fn waits_for_state(&self) -> bool {
        match self.expect.back().map(|e| &e.what) {
            Some(What::Blocking | What::Exec(_) | What::Aborted(_) | What::Discard | What::Unwatch) => true,
            Some(What::Hello(_) | What::Auth(_) | What::Select(_) | What::Tracking(_)) => true,
            Some(What::Subscription { .. }) => true,
            Some(What::Command) => !self.sticky && !self.is_stateful(),
            _ => false,
        }
    }

    /// One request of the client's, if it may run.
    pub(super) fn request(&mut self, ctx: &Rc<Ctx>, client: &Client, req: &Request<'_>) {
        client.session.count(ctx, known(ctx, req).map_or(Operation::Other, Spec::operation));
        match refused(ctx, client, req) {
            Some(why) => self.refuse(&client.session, req, why),
            None => self.take(ctx, client, req),
        }
    }

    /// The request that the connection was taken for. It has been judged, unless nobody could say what it is: there is no lane.
    pub(super) fn first(&mut self, ctx: &Rc<Ctx>, client: &Client, req: &Request<'_>) {
        let refused = if is_new(ctx, req) { client.session.judge(ctx, Err(Stranger::New), req) } else { None };
        match refused {
            Some(why) => self.refuse(&client.session, req, why),
            None => self.take(ctx, client, req),
        }
    }

    /// What may not run is not sent; what goes in its place aborts an open MULTI, as a refusal by upstream would.
    pub(super) fn refuse(&mut self, session: &Session, req: &Request<'_>, why: String) {
        session.last.set(clock::now());
        let reply = req.is(0, "client") && req.is(1, "reply");
        let mute = !reply && session.state.borrow_mut().mute();
        if req.is(0, "exec") {
            self.queue = None;
            build::command(&mut self.out, &[b"DISCARD"]);
            return self.expect.push_back(Expect::of(What::Aborted(why.into()), mute));
        }
        self.stand_in(why.into(), mute);
    }

    pub(super) fn stand_in(&mut self, why: Cow<'static, str>, mute: bool) {
        build::command(&mut self.out, &[b"NEARSIDE"]);
        self.expect.push_back(Expect::of(What::Refused(why), mute));
    }

    /// One that may run.
    pub(super) fn take(&mut self, ctx: &Rc<Ctx>, client: &Client, req: &Request<'_>) {
        let spec = known(ctx, req).ok();
        let session = &client.session;
        session.last_command.set(spec.map_or("unknown", |s| s.name));
        session.last.set(clock::now());
        self.spent |= spec.is_none();
        if matches!(spec.map(|s| s.kind), Some(Kind::Get | Kind::Mget)) {
            ctx.metrics.bypass.inc(self.bypass);
        }
        let known = spec.filter(|s| keys::arity_ok(s, req.argc()));
        if let Some(why) = known.and_then(|s| self.refusal(ctx, s)) {
            let mute = session.state.borrow_mut().mute();
            return self.stand_in(why.into(), mute);
        }
        let restricted = self.subs.any() && self.conn.proto == Proto::Resp2;
        if let Some(spec) = known.filter(|_| !restricted) {
            if self.queue.is_some() && self.stands_in(ctx, client, spec, req) {
                return;
            }
            let at_once = matches!(spec.kind, Kind::Reset | Kind::Quit);
            let alone = self.queue.is_none() && asks_for_entry(spec, req) && !self.expect.is_empty();
            if at_once || alone || (self.queue.is_none() && spec.need == Need::Local && is_own(spec)) {
                self.local = Some(Owned::of(req));
                return;
            }
        }
        if matches!(known.map(|s| s.kind), Some(Kind::Reset | Kind::Quit)) {
            self.local = Some(Owned::of(req));
            return;
        }
        if self.queue.is_none() && known.is_some_and(|s| crate::session::inspect::redirects(ctx, s, req).is_some()) {
            // Its target may have to be given a connection first.
            self.local = Some(Owned::of(req));
            return;
        }
        self.send(ctx, client, known, req);
    }

    /// The same, where the next mute is this one's.
    pub(super) fn refuse_name(&mut self, session: &Session, why: Cow<'static, str>) {
        let mute = session.state.borrow_mut().mute();
        self.stand_in(why, mute);
    }

    pub(super) fn send(&mut self, ctx: &Rc<Ctx>, client: &Client, known: Option<&'static Spec>, req: &Request<'_>) {
        let mute = client.session.state.borrow_mut().mute();
        let expect = self.expectation(ctx, &client.session, known, req, mute);
        self.translate_and_send(ctx, known, req);
        self.expect.push_back(expect);
    }

    /// What upstream must not see: what is never proxied, and inside MULTI what is the sidecar's own.
    pub(super) fn refusal(&self, ctx: &Ctx, spec: &Spec) -> Option<&'static str> {
        let own = self.queue.is_some() && spec.kind == Kind::Nearside;
        let own = own.then_some("ERR NEARSIDE is not allowed inside MULTI");
        own.or_else(|| router::refused(spec, ctx.config.commands.shutdown))
    }

    /// Inside MULTI: a command that we answer ourselves is queued upstream as a PING, so that EXEC's array has its place.
    pub(super) fn stands_in(&mut self, ctx: &Ctx, client: &Client, spec: &'static Spec, req: &Request<'_>) -> bool {
        let ours =
            spec.kind == Kind::Client && spec.need == Need::Local && crate::session::local::answers(ctx, req, spec);
        if !ours {
            return false;
        }
        let mute = client.session.state.borrow_mut().mute();
        let role = Role::Local { raw: req.raw.to_vec(), args: req.args.to_vec() };
        let (keys, strip) = (Vec::new(), Strip::None);
        let queued = Queued { spec: Some(spec), effect: Effect::Read, keys, message: None, role, strip };
        build::command(&mut self.out, &[b"PING"]);
        self.expect.push_back(Expect::of(What::Queued(queued), mute));
        true
    }

    /// What the reply to `req` will mean. The writes it may do begin here (R20).
    pub(super) fn expectation(
        &mut self,
        ctx: &Rc<Ctx>,
        session: &Session,
        spec: Option<&'static Spec>,
        req: &Request<'_>,
        mute: bool,
    ) -> Expect {
        let kind = spec.map_or(Kind::Other, |s| s.kind);
        if is_subscription(kind)
            || matches!(kind, Kind::Monitor | Kind::Hello | Kind::Auth | Kind::Select | Kind::Client)
        {
            self.soiled = true;
        }
        self.spent |= spec.is_some_and(|s| s.name == "client|tracking" || s.kind == Kind::ScriptDebug);
        if self.queue.is_some() {
            return self.expectation_in_multi(ctx, session, spec, req, mute);
        }
        let what = match kind {
            Kind::Multi => What::Multi,
            Kind::Exec => What::Exec(Vec::new()),
            Kind::Discard => What::Discard,
            Kind::Watch => What::Watch,
            Kind::Unwatch => What::Unwatch,
            Kind::Monitor => What::Monitor,
            kind if is_subscription(kind) => {
                What::Subscription { kind, left: (req.argc() > 1).then(|| req.argc() - 1) }
            }
            Kind::Hello => What::Hello(greeting(req, self.conn.proto)),
            Kind::Auth => What::Auth(credential(req)),
            Kind::Select => select_db(req).map_or(What::Command, What::Select),
            Kind::Client => match spec.map(|s| s.name) {
                Some("client|tracking") => What::Tracking(req.is(2, "on")),
                Some("client|getredir" | "client|trackinginfo") => What::Redirect,
                _ => What::Command,
            },
            Kind::BlockingPop | Kind::Wait => What::Blocking,
            _ if spec.is_some_and(|s| keys::blocks(s, req)) => What::Blocking,
            _ => What::Command,
        };
        if matches!(what, What::Multi) {
            // From here on, not from its +OK on: what the client has pipelined behind it is queued too.
            self.queue = Some(Vec::new());
        }
        let mut expect = Expect::of(what, mute);
        expect.strip = spec.map_or(Strip::None, prefix::strip);
        expect.messages.extend(announced(ctx, spec, req));
        self.begin(ctx, session, spec, req, &mut expect);
        expect
    }

    pub(super) fn begin(
        &self,
        ctx: &Rc<Ctx>,
        session: &Session,
        spec: Option<&'static Spec>,
        req: &Request<'_>,
        expect: &mut Expect,
    ) {
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        expect.write = effect != Effect::Read;
        ctx.watch_write(spec, req);
        if !ctx.cache_serves() {
            expect.unseen = expect.write;
            return;
        }
        match effect {
            Effect::Read => {}
            Effect::Flush | Effect::SwapDb => {
                flush(ctx, spec);
                expect.flush = true;
                expect.swap = effect == Effect::SwapDb;
                if !expect.swap {
                    expect.tell = super::tells(ctx, session, &[], true);
                }
            }
            Effect::Write | Effect::Opaque => {
                let mut named: Vec<Box<[u8]>> = Vec::new();
                if let Some(spec) = spec {
                    keys::for_each(spec, req, |key| named.push(key.into()));
                }
                expect.hold = effect == Effect::Opaque;
                expect.tell = super::tells(ctx, session, &named, false);
                if matches!(expect.what, What::Blocking) {
                    expect.hold = true;
                    expect.drops = named;
                } else {
                    expect.ends = begin_all(ctx, &named);
                }
            }
        }
    }

    pub(super) fn expectation_in_multi(
        &mut self,
        ctx: &Rc<Ctx>,
        session: &Session,
        spec: Option<&'static Spec>,
        req: &Request<'_>,
        mute: bool,
    ) -> Expect {
        let role = match spec.map(|s| s.kind) {
            Some(Kind::Exec) => return self.expect_exec(ctx, session, mute),
            Some(Kind::Discard) => {
                self.queue = None;
                return Expect::of(What::Discard, mute);
            }
            // Refused inside MULTI, by upstream's own words.
            Some(Kind::Multi | Kind::Watch) => return Expect::of(What::Command, mute),
            Some(kind) if is_subscription(kind) => Role::Subscription { kind, words: req.argc() - 1 },
            Some(Kind::Hello) => Role::Hello(greeting(req, self.conn.proto)),
            Some(Kind::Auth) => Role::Auth(credential(req)),
            Some(Kind::Select) => select_db(req).map_or(Role::Plain, Role::Select),
            Some(Kind::Client) if spec.is_some_and(|s| s.name == "client|tracking") => Role::Tracking(req.is(2, "on")),
            _ => Role::Plain,
        };
        let message = announced(ctx, spec, req);
        ctx.watch_write(spec, req);
        Expect::of(What::Queued(Queued { message, ..Queued::of(spec, req, role) }), mute)
    }

    /// EXEC has the union of its queue's effects. Commands whose +QUEUED has not come yet are part of it too.
    pub(super) fn expect_exec(&mut self, ctx: &Rc<Ctx>, session: &Session, mute: bool) -> Expect {
        let mut queue = self.queue.take().unwrap_or_default();
        for waiting in &mut self.expect {
            if matches!(waiting.what, What::Queued(_))
                && let What::Queued(queued) = std::mem::replace(&mut waiting.what, What::Command)
            {
                queue.push(queued);
            }
        }
        let mut expect = Expect::of(What::Command, mute);
        expect.write = queue.iter().any(|q| q.effect != Effect::Read);
        expect.swap = queue.iter().any(|q| q.effect == Effect::SwapDb);
        expect.messages = queue.iter_mut().filter_map(|q| q.message.take()).collect();
        expect.unseen = expect.write && !ctx.cache_serves();
        if ctx.cache_serves() {
            let named: Vec<Box<[u8]>> = queue.iter().flat_map(|q| q.keys.iter().cloned()).collect();
            expect.ends = begin_all(ctx, &named);
            expect.hold = queue.iter().any(|q| q.effect == Effect::Opaque);
            if let Some(q) = queue.iter().find(|q| matches!(q.effect, Effect::Flush | Effect::SwapDb)) {
                flush(ctx, q.spec);
                expect.flush = true;
            }
            if let Some(tell) = super::tells(ctx, session, &named, expect.flush) {
                // Part of the client's transaction, so that it is published if and when that is executed.
                self.out.extend_from_slice(&tell);
                self.expect.push_back(Expect::of(What::Told, true));
                queue.push(Queued::told());
            }
        }
        expect.what = What::Exec(queue);
        expect
    }

    pub(super) fn translate_and_send(&mut self, ctx: &Rc<Ctx>, spec: Option<&'static Spec>, req: &Request<'_>) {
        // WAIT counts from the connection's own last write; this one brings it up to the lanes' (fact 46). Inside MULTI it
        // would be an element too many, and WAIT does not wait there.
        if self.queue.is_none() && spec.is_some_and(|s| s.kind == Kind::Wait) {
            build::command(&mut self.out, &[b"PUBLISH", b"nearside:wait", b""]);
            let mut expect = Expect::of(What::Command, true);
            expect.hold = false;
            self.expect.push_back(expect);
        }
        let translated = match spec.map(|s| s.name) {
            Some("client|tracking") => crate::session::inspect::translate_redirect(ctx, req, &mut self.redirect),
            Some("client|unblock") if self.queue.is_some() => crate::session::inspect::translate_unblock(ctx, req),
            _ => None,
        };
        if let Some(words) = translated {
            let words: Vec<&[u8]> = words.iter().map(|w| w.as_slice()).collect();
            return build::command(&mut self.out, &words);
        }
        self.out.extend_from_slice(req.raw);
    }

    /// Runs a local command once everything before it is answered.
    pub(super) async fn run_local(&mut self, ctx: &Rc<Ctx>, client: &mut Client) -> Option<End> {
        if !self.expect.is_empty() || self.hold.is_some() || self.streaming {
            return None;
        }
        if let Some(broken) = self.broken.take() {
            match broken {
                Broken::Protocol(e) => client.session.protocol_error(ctx, &e),
                Broken::Refused(why) => client.session.answer_error(false, &why),
            }
            self.quit = true;
            return Some(End::Close);
        }
        if self.waits_to_learn(ctx) {
            self.learn(ctx, client).await;
            return None;
        }
        let owned = self.local.take()?;
        let req = owned.request();
        let Lookup::Known(spec) = table::lookup(&req) else { return None };
        let session = client.session.clone();
        if let Some(target) = crate::session::inspect::redirects(ctx, spec, &req) {
            target.show_pin(ctx).await;
            self.send(ctx, client, Some(spec), &req);
            return None;
        }
        if asks_for_entry(spec, &req) {
            self.send(ctx, client, Some(spec), &req);
            return None;
        }
        let mute = session.state.borrow_mut().mute();
        match spec.kind {
            Kind::Reset => {
                if !session.try_reset(ctx).await {
                    return None;
                }
                self.queue = None;
                self.watching = false;
                self.subs = Subscriptions::default();
                self.monitor = false;
                self.tracking = false;
                self.sticky = false;
                self.soiled = true;
                // Its protocol and user are not the session's any more; released at once.
                return Some(End::Released);
            }
            Kind::Quit => {
                session.answer(mute, |out| build::simple(out, "OK"));
                self.quit = true;
                return Some(End::Close);
            }
            _ => {}
        }
        match session.local_slow(ctx, spec, &req, mute).await {
            Local::Done => None,
            Local::Close => {
                self.quit = true;
                Some(End::Close)
            }
            Local::Upstream => {
                self.soiled = true;
                self.out.extend_from_slice(req.raw);
                self.expect.push_back(Expect::of(What::Command, mute));
                None
            }
        }
    }
}

/// What a rate limit or the command policy says against a request.
pub(super) fn refused(ctx: &Ctx, client: &Client, req: &Request<'_>) -> Option<String> {
    let judged = || if ctx.policy.is_open() { None } else { client.session.judge(ctx, known(ctx, req), req) };
    client.session.spend(ctx, Some(req)).or_else(judged)
}

/// The row of a request's name, also of one that upstream has explained.
fn known(ctx: &Ctx, req: &Request<'_>) -> Result<&'static Spec, Stranger> {
    match table::lookup(req) {
        Lookup::Known(spec) => Ok(spec),
        Lookup::UnknownSub => Err(Stranger::Unknown),
        Lookup::Unknown => ctx.learned(req.arg(0)),
    }
}

/// What a PUBLISH on the sidecars' channel says; none for what nobody will understand.
fn announced(ctx: &Ctx, spec: Option<&'static Spec>, req: &Request<'_>) -> Option<Message> {
    let spec = spec.filter(|s| crate::session::relay::announces(ctx, s, req));
    spec.and_then(|_| crate::coherence::parse(req.arg(2)).ok())
}

/// A local command that a pinned session may run without its connection. HELLO, AUTH and SELECT change the connection.
fn is_own(spec: &Spec) -> bool {
    !matches!(spec.kind, Kind::Hello | Kind::Auth | Kind::Select | Kind::Readonly)
}

fn credential(req: &Request<'_>) -> Credential {
    let user: &[u8] = if req.argc() > 2 { req.arg(1) } else { b"default" };
    Credential { user: user.into(), password: req.arg(req.argc() - 1).into() }
}

fn select_db(req: &Request<'_>) -> Option<u32> {
    u32::try_from(crate::resp::integer(req.arg(1))?).ok()
}
