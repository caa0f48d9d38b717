//! Commands the sidecar answers as the server its clients see: handshake and CLIENT. What upstream alone can judge (a
//! password, a database not seen before, words we do not understand) it is asked about, so that errors are its own.

use std::rc::Rc;

use bytes::BytesMut;

use super::dispatch::{Owned, Step, Work};
use super::state::{Replies, is_plain};
use super::transaction::Greeting;
use super::{Session, inspect};
use crate::command::{Kind, Request, Spec};
use crate::observe::clock;
use crate::observe::reasons::{Class, Dropped, Timed};
use crate::resp::reply;
use crate::resp::{Proto, build};
use crate::upstream::handshake::ServerInfo;
use crate::upstream::{Credential, facts};
use crate::worker::Ctx;

/// What became of a local command that was allowed to wait.
pub(super) enum Local {
    Done,
    Close,
    /// Upstream has to answer it, on a connection of the session's own.
    Upstream,
}

/// What can be said without waiting.
pub(super) enum Now {
    Done,
    Close,
    /// Needs upstream's judgement, or everything before it answered first.
    Wait,
    Upstream,
}

const DENIED: &str = "DENIED Nearside runs in protected mode: it listens beyond this host and this client has not authenticated. \
                      Remedies: 1) authenticate with AUTH as a user of the upstream; 2) listen on loopback or a unix socket only \
                      (listen.tcp, listen.unix); 3) set listen.protected to false if the network is trusted.";
const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";
const NOT_PRINTABLE: &str = "cannot contain spaces, newlines or special characters.";

impl Session {
    /// A local command met in the stream of requests.
    pub(super) fn local(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: u64,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        ctx.metrics.commands.inc(Class::Local);
        let settled = self.outbox.borrow().outstanding() == 0;
        match self.local_now(ctx, now, req, spec, mute, settled) {
            Now::Done => {
                ctx.metrics.request(Timed::LocalOk, clock::now().saturating_sub(now));
                if matches!(spec.kind, Kind::Hello | Kind::Auth | Kind::Client | Kind::Reset) {
                    self.introduce();
                }
                None
            }
            Now::Close => Some(Step::Close),
            Now::Wait => Some(Step::Suspend(Work::Local(spec, Owned::of(req)))),
            Now::Upstream => Some(Step::Suspend(Work::Pinned(crate::command::Why::Verify, Owned::of(req)))),
        }
    }

    pub(super) fn unmute(&self, mute: bool) {
        let mut state = self.state.borrow_mut();
        if mute && state.replies == Replies::On {
            state.replies = Replies::SkipNext;
            self.special.set(true);
        }
    }

    /// A local command with nothing outstanding before it.
    pub(super) async fn local_slow(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        spec: &'static Spec,
        req: &Request<'_>,
        mute: bool,
    ) -> Local {
        if self.own_keys(ctx, spec, req, mute).await {
            return Local::Done;
        }
        let now = clock::now();
        match self.local_now(ctx, now, req, spec, mute, true) {
            Now::Done => return Local::Done,
            Now::Close => return Local::Close,
            Now::Upstream => return Local::Upstream,
            Now::Wait => {}
        }
        match spec.kind {
            Kind::Auth => self.auth(ctx, req, mute).await,
            Kind::Hello => self.hello_with_auth(ctx, req, mute).await,
            Kind::Reset => drop(self.try_reset(ctx).await),
            Kind::Nearside => self.nearside_slow(ctx, req, mute).await,
            _ => return Local::Upstream,
        }
        Local::Done
    }

    /// What EXEC's element says for a command that was queued as a stand-in.
    pub(super) fn local_in_exec(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>) -> BytesMut {
        let before = std::mem::take(&mut self.outbox.borrow_mut().ready);
        if let crate::command::table::Lookup::Known(spec) = crate::command::table::lookup(req) {
            self.local_now(ctx, clock::now(), req, spec, false, true);
        }
        let own = std::mem::replace(&mut self.outbox.borrow_mut().ready, before);
        if own.is_empty() { BytesMut::from(&b"+OK\r\n"[..]) } else { own }
    }

    fn local_now(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: u64,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        settled: bool,
    ) -> Now {
        let way_in = matches!(spec.kind, Kind::Auth | Kind::Reset | Kind::Quit | Kind::Nearside)
            || (spec.kind == Kind::Hello && has_auth(req));
        if !way_in && self.needs_auth(ctx) {
            // Upstream's own words, which differ from version to version.
            return Now::Upstream;
        }
        match spec.kind {
            Kind::Client => self.client(ctx, now, req, spec, mute),
            Kind::Nearside if super::invalidate::is_slow(req) => Now::Wait,
            Kind::Nearside => {
                self.nearside(ctx, now, req, mute);
                Now::Done
            }
            Kind::Quit => {
                self.answer(mute, |out| build::simple(out, "OK"));
                Now::Close
            }
            _ if !settled => Now::Wait,
            // An upstream without RESP3, or without HELLO at all, answers in its own words.
            Kind::Hello if self.lane(ctx).speaks_resp2() => Now::Upstream,
            Kind::Hello => self.hello(ctx, req, mute),
            Kind::Select => self.select(ctx, req, mute),
            Kind::Auth => Now::Wait,
            Kind::Reset if self.needs_auth(ctx) => Now::Wait,
            Kind::Reset => {
                self.reset(ctx);
                Now::Done
            }
            _ => Now::Upstream,
        }
    }

    fn needs_auth(&self, ctx: &Ctx) -> bool {
        ctx.needs_auth(&self.state.borrow().profile())
    }

    // ---- HELLO, AUTH, SELECT, RESET ----

    fn hello(self: &Rc<Self>, ctx: &Ctx, req: &Request<'_>, mute: bool) -> Now {
        let hello = match Hello::parse(req, self.proto()) {
            Ok(hello) => hello,
            Err(error) => {
                self.answer_error(mute, &error);
                return Now::Done;
            }
        };
        if hello.credential.is_some() {
            return Now::Wait;
        }
        self.apply_hello(ctx, hello, mute);
        Now::Done
    }

    async fn hello_with_auth(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, mute: bool) {
        let hello = match Hello::parse(req, self.proto()) {
            Ok(hello) => hello,
            Err(error) => return self.answer_error(mute, &error),
        };
        let Some((user, password)) = hello.credential else { return };
        let words: [&[u8]; 3] = [b"AUTH", user, password];
        match self.judged(ctx, &words, user, password).await {
            Ok(reply) if reply::is_error(&reply) => self.answer(mute, |out| out.extend_from_slice(&reply)),
            Ok(_) => {
                self.authenticated(ctx, Credential { user: user.into(), password: password.into() });
                self.apply_hello(ctx, hello, mute);
            }
            Err(text) => self.answer_error(mute, &text),
        }
    }

    pub(super) fn apply_hello(&self, ctx: &Ctx, hello: Hello<'_>, mute: bool) {
        let mut state = self.state.borrow_mut();
        state.proto = hello.proto;
        if let Some(name) = hello.name {
            state.name = name.to_vec();
        }
        drop(state);
        self.changed_identity();
        let info = ctx.server.borrow();
        self.answer(mute, |out| hello_reply(out, &info, hello.proto, self.id));
    }

    /// What upstream says to a credential; while it is gone, what it said before, if that was yes.
    async fn judged(&self, ctx: &Ctx, words: &[&[u8]], user: &[u8], password: &[u8]) -> Result<Vec<u8>, String> {
        if ctx.is_gone() && words.len() <= 3 && ctx.was_accepted(user, password) {
            return Ok(b"+OK\r\n".to_vec());
        }
        let reply = ctx.verify(words).await?;
        if reply.starts_with(b"-WRONGPASS") {
            ctx.forget_accepted(user, password);
        }
        Ok(reply)
    }

    async fn auth(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, mute: bool) {
        let words: Vec<&[u8]> = (0..req.argc()).map(|i| req.arg(i)).collect();
        let user = if words.len() > 2 { words[1] } else { b"default" };
        let password = words[words.len() - 1];
        match self.judged(ctx, &words, user, password).await {
            Ok(reply) => {
                if !reply::is_error(&reply) {
                    self.authenticated(ctx, Credential { user: user.into(), password: password.into() });
                }
                self.answer(mute, |out| out.extend_from_slice(&reply));
            }
            Err(text) => self.answer_error(mute, &text),
        }
    }

    /// Upstream has accepted this credential from this client.
    pub(super) fn authenticated(&self, ctx: &Ctx, credential: Credential) {
        let credential = ctx.intern(credential);
        ctx.note_accepted(&credential);
        let mut state = self.state.borrow_mut();
        state.credential = Some(credential);
        state.authenticated = true;
        state.locked = false;
        drop(state);
        self.changed_identity();
        self.changed_profile();
    }

    /// R18: what the session has seen as one user, or in one database, fences its reads as another.
    fn changed_profile(&self) {
        // A front's hits are not seen here; it has none while no lane lives.
        let fronted = self.agent.is_some() && self.lane.borrow().as_ref().is_some_and(|lane| lane.is_live());
        self.forget_lane();
        if self.told.get() || fronted {
            self.set_fence();
        }
        self.note_special();
    }

    pub(super) fn forget_lane(&self) {
        self.lane.borrow_mut().take();
    }

    fn note_special(&self) {
        let state = self.state.borrow();
        self.special.set(state.locked || state.replies != Replies::On);
    }

    /// SELECT of a database whose lane is up needs nobody's leave; upstream judges all others.
    fn select(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) -> Now {
        let db = crate::resp::integer(req.arg(1)).and_then(|n| u32::try_from(n).ok());
        let mut profile = self.state.borrow().profile();
        let same = db == Some(profile.db);
        let Some(db) = db else { return Now::Upstream };
        profile.db = db;
        let asks_nobody = ctx.has_live_lane(&profile) || (ctx.is_gone() && ctx.may_select(db));
        if !asks_nobody {
            return Now::Upstream;
        }
        if !same {
            self.state.borrow_mut().db = db;
            self.changed_profile();
        }
        self.answer(mute, |out| build::simple(out, "OK"));
        Now::Done
    }

    /// Redis 6.2 refuses the RESET of a client that has not authenticated, and to such a one upstream does not say its
    /// version: so it is asked. False: it refused, which is answered.
    pub(super) async fn try_reset(&self, ctx: &Ctx) -> bool {
        if self.needs_auth(ctx) {
            match ctx.verify(&[b"RESET"]).await {
                Ok(reply) if reply::is_error(&reply) => {
                    self.answer(false, |out| out.extend_from_slice(&reply));
                    return false;
                }
                Ok(_) => {}
                Err(text) => {
                    self.answer_error(false, &text);
                    return false;
                }
            }
        }
        self.reset(ctx);
        true
    }

    /// Answered whatever CLIENT REPLY said: RESET ends that first.
    pub(super) fn reset(&self, ctx: &Ctx) {
        self.state.borrow_mut().reset(&ctx.default_profile, ctx.locks_out(self.near));
        self.changed_identity();
        self.changed_profile();
        self.answer(false, |out| build::simple(out, "RESET"));
    }

    /// Protected mode (DESIGN 3): true when the command was answered with why it is not served.
    pub(super) fn refused_by_protection(&self, spec: &Spec, req: &Request<'_>) -> bool {
        if !self.state.borrow().locked {
            return false;
        }
        let way_in =
            matches!(spec.kind, Kind::Auth | Kind::Quit | Kind::Reset) || (spec.kind == Kind::Hello && has_auth(req));
        if way_in {
            return false;
        }
        self.answer_error(false, DENIED);
        true
    }

    /// The same for a request too large to look at; its client cannot stay, as nobody reads the rest.
    pub(super) fn refused_unread(&self) -> bool {
        let locked = self.state.borrow().locked;
        if locked {
            self.answer_error(false, DENIED);
        }
        locked
    }

    // ---- CLIENT ----

    pub(super) fn client(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: u64,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Now {
        match spec.name {
            "client|id" => self.answer(mute, |out| build::integer(out, self.id as i64)),
            "client|getname" => {
                let (name, proto) = (self.state.borrow().name.clone(), self.proto());
                self.answer(
                    mute,
                    |out| if name.is_empty() { build::null(out, proto) } else { build::bulk(out, &name) },
                );
            }
            "client|setname" if is_plain(req.arg(2)) => {
                self.state.borrow_mut().name = req.arg(2).to_vec();
                self.changed_identity();
                self.answer(mute, |out| build::simple(out, "OK"));
            }
            "client|setname" => self.answer_error(mute, BAD_NAME),
            "client|setinfo" => return self.set_info(ctx, req, mute),
            "client|info" => {
                let (line, proto) = (inspect::line(ctx, self, now) + "\n", self.proto());
                self.answer(mute, |out| build::verbatim_or_bulk(out, proto, "txt", line.as_bytes()));
            }
            "client|list" => return self.list(ctx, now, req, mute),
            "client|kill" => return self.kill(ctx, now, req, mute),
            "client|unblock" => return self.unblock(ctx, now, req, mute),
            "client|no-evict" if ctx.server.borrow().has(&facts::CLIENT_NO_EVICT) => {
                return self.switch(req, mute, |s, on| s.no_evict = on);
            }
            "client|no-touch" if ctx.server.borrow().has(&facts::CLIENT_NO_TOUCH) => {
                return self.switch(req, mute, |s, on| s.no_touch = on);
            }
            "client|reply" => return self.reply_mode(req),
            _ => return Now::Upstream,
        }
        Now::Done
    }

    fn switch(&self, req: &Request<'_>, mute: bool, set: impl FnOnce(&mut super::State, bool)) -> Now {
        let on = match req.arg(2) {
            w if w.eq_ignore_ascii_case(b"on") => true,
            w if w.eq_ignore_ascii_case(b"off") => false,
            _ => return Now::Upstream,
        };
        set(&mut self.state.borrow_mut(), on);
        self.answer(mute, |out| build::simple(out, "OK"));
        Now::Done
    }

    fn set_info(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) -> Now {
        // An upstream that is gone cannot say that it does not know it, and nobody is harmed.
        if !(ctx.is_gone() || ctx.server.borrow().has(&facts::CLIENT_SETINFO)) || req.argc() != 4 {
            return Now::Upstream;
        }
        let (attribute, value) = (req.arg(2).to_ascii_lowercase(), req.arg(3));
        if !matches!(attribute.as_slice(), b"lib-name" | b"lib-ver") {
            return Now::Upstream;
        }
        if !is_plain(value) {
            let name = String::from_utf8_lossy(&attribute).into_owned();
            self.answer_error(mute, &format!("ERR {name} {NOT_PRINTABLE}"));
            return Now::Done;
        }
        let mut state = self.state.borrow_mut();
        if attribute == b"lib-name" {
            state.lib_name = value.to_vec();
        } else {
            state.lib_ver = value.to_vec();
        }
        drop(state);
        self.answer(mute, |out| build::simple(out, "OK"));
        Now::Done
    }

    fn list(&self, ctx: &Ctx, now: u64, req: &Request<'_>, mute: bool) -> Now {
        let Some(text) = inspect::list(ctx, req, now) else { return Now::Upstream };
        let proto = self.proto();
        self.answer(mute, |out| build::verbatim_or_bulk(out, proto, "txt", text.as_bytes()));
        Now::Done
    }

    fn kill(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64, req: &Request<'_>, mute: bool) -> Now {
        let Some(order) = inspect::Kill::parse(ctx, req) else { return Now::Upstream };
        let victims = inspect::victims(ctx, &order, self, now);
        if order.old_form && victims.is_empty() {
            self.answer_error(mute, "ERR No such client");
            return Now::Done;
        }
        let suicide = victims.iter().any(|v| v.id == self.id);
        self.answer(mute, |out| match order.old_form {
            true => build::simple(out, "OK"),
            false => build::integer(out, victims.len() as i64),
        });
        for victim in victims.iter().filter(|v| v.id != self.id) {
            victim.drop_for(ctx, Dropped::Killed, "CLIENT KILL");
        }
        if suicide { Now::Close } else { Now::Done }
    }

    /// The blocked command waits upstream, so upstream ends it, by the id it knows.
    fn unblock(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64, req: &Request<'_>, mute: bool) -> Now {
        let Some(id) = inspect::number(req.arg(2)) else {
            return Now::Upstream;
        };
        if req.argc() > 4 || (req.argc() == 4 && !req.is(3, "timeout") && !req.is(3, "error")) {
            return Now::Upstream;
        }
        let target = ctx.sessions.borrow().get(&id).cloned();
        let blocked = target.map(|t| t.pinned.borrow().clone()).filter(|p| p.blocked);
        let lane = self.lane(ctx);
        let Some(blocked) = blocked.filter(|_| lane.is_ready()) else {
            self.answer(mute, |out| build::integer(out, 0));
            return Now::Done;
        };
        let upstream_id = blocked.id.to_string();
        let mut words: Vec<&[u8]> = vec![b"CLIENT", b"UNBLOCK", upstream_id.as_bytes()];
        if req.argc() == 4 {
            words.push(req.arg(3));
        }
        let mut raw = BytesMut::new();
        build::command(&mut raw, &words);
        let slot = self.outbox.borrow_mut().reserve(self.proto(), mute, false, super::outbox::Asked::other(now));
        let form = crate::resp::downgrade::Form::Same;
        lane.relay(ctx, now, &raw, crate::coherence::Relay::plain(self.clone(), slot, form, false));
        Now::Done
    }

    fn reply_mode(&self, req: &Request<'_>) -> Now {
        let mode = match req.arg(2) {
            w if w.eq_ignore_ascii_case(b"on") => Replies::On,
            w if w.eq_ignore_ascii_case(b"off") => Replies::Off,
            // SKIP while OFF stays OFF.
            w if w.eq_ignore_ascii_case(b"skip") => match self.state.borrow().replies {
                Replies::Off => Replies::Off,
                _ => Replies::SkipNext,
            },
            _ => return Now::Upstream,
        };
        self.state.borrow_mut().replies = mode;
        self.note_special();
        if mode == Replies::On {
            self.answer(false, |out| build::simple(out, "OK"));
        }
        Now::Done
    }
}

/// Whether a CLIENT command inside MULTI can be answered here at EXEC. Others upstream queues, or refuses at once.
pub(super) fn answers(ctx: &Ctx, req: &Request<'_>, spec: &Spec) -> bool {
    let on_or_off = req.argc() > 2 && (req.is(2, "on") || req.is(2, "off"));
    let has = |fact| ctx.server.borrow().has(fact);
    match spec.name {
        "client|no-evict" => has(&facts::CLIENT_NO_EVICT) && on_or_off,
        "client|no-touch" => has(&facts::CLIENT_NO_TOUCH) && on_or_off,
        "client|setinfo" => has(&facts::CLIENT_SETINFO) && (req.is(2, "lib-name") || req.is(2, "lib-ver")),
        "client|reply" => on_or_off || req.is(2, "skip"),
        "client|kill" => inspect::Kill::parse(ctx, req).is_some(),
        "client|list" => inspect::list(ctx, req, clock::now()).is_some(),
        // Upstream does it, by the id it knows.
        "client|unblock" => false,
        _ => true,
    }
}

/// Whether upstream decides by this command who the client is. Redis 7.2 to 8 and Valkey 8 do not answer a refused one while
/// earlier replies wait to be written, so it is sent with nothing before it.
pub(super) fn asks_for_entry(spec: &Spec, req: &Request<'_>) -> bool {
    spec.kind == Kind::Auth || (spec.kind == Kind::Hello && has_auth(req))
}

fn has_auth(hello: &Request<'_>) -> bool {
    (2..hello.argc()).any(|i| hello.is(i, "auth"))
}

/// A HELLO that is well formed.
pub(super) struct Hello<'a> {
    proto: Proto,
    pub(super) credential: Option<(&'a [u8], &'a [u8])>,
    name: Option<&'a [u8]>,
}

/// For a connection of the session's own, which carries the HELLO to upstream. Of one that is malformed upstream says so.
pub(super) fn greeting(req: &Request<'_>, now: Proto) -> Greeting {
    let hello = Hello::parse(req, now).unwrap_or(Hello { proto: now, credential: None, name: None });
    let credential = |(user, password): (&[u8], &[u8])| Credential { user: user.into(), password: password.into() };
    Greeting { proto: hello.proto, credential: hello.credential.map(credential), name: hello.name.map(<[u8]>::to_vec) }
}

impl<'a> Hello<'a> {
    /// As `helloCommand` reads it; the errors are Redis's own.
    pub(super) fn parse(req: &Request<'a>, now: Proto) -> Result<Hello<'a>, String> {
        let mut hello = Hello { proto: now, credential: None, name: None };
        if req.argc() > 1 {
            hello.proto = match crate::resp::integer(req.arg(1)) {
                None => return Err("ERR Protocol version is not an integer or out of range".to_owned()),
                Some(2) => Proto::Resp2,
                Some(3) => Proto::Resp3,
                Some(_) => return Err("NOPROTO unsupported protocol version".to_owned()),
            };
        }
        let mut i = 2;
        while i < req.argc() {
            let more = req.argc() - 1 - i;
            if req.is(i, "auth") && more >= 2 {
                hello.credential = Some((req.arg(i + 1), req.arg(i + 2)));
                i += 3;
            } else if req.is(i, "setname") && more >= 1 {
                if !is_plain(req.arg(i + 1)) {
                    return Err(BAD_NAME.to_owned());
                }
                hello.name = Some(req.arg(i + 1));
                i += 2;
            } else {
                let option = String::from_utf8_lossy(req.arg(i)).into_owned();
                return Err(format!("ERR Syntax error in HELLO option '{option}'"));
            }
        }
        Ok(hello)
    }
}

/// HELLO's reply, with the client's id here instead of ours upstream.
pub(super) fn hello_reply(out: &mut BytesMut, info: &ServerInfo, proto: Proto, id: u64) {
    build::map_or_array(out, proto, 7);
    for (name, value) in [("server", &info.server), ("version", &info.version)] {
        build::bulk(out, name.as_bytes());
        build::bulk(out, value.as_bytes());
    }
    build::bulk(out, b"proto");
    build::integer(out, if proto == Proto::Resp3 { 3 } else { 2 });
    build::bulk(out, b"id");
    build::integer(out, id as i64);
    for (name, value) in [("mode", &info.mode), ("role", &info.role)] {
        build::bulk(out, name.as_bytes());
        build::bulk(out, value.as_bytes());
    }
    build::bulk(out, b"modules");
    match proto {
        Proto::Resp3 => out.extend_from_slice(&info.modules),
        Proto::Resp2 => {
            crate::resp::downgrade::to_resp2(&info.modules, crate::resp::downgrade::Form::Bulk, out);
        }
    }
}
