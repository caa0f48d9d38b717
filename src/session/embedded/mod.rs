//! A session whose backend is the local engine (`upstream.url: embedded`): it is then the whole server its client sees. No
//! lane, no L1, no connection of its own; every request is answered before the next is looked at, so nothing is ever
//! outstanding. What the engine does not know is refused with one sentence.
//!
//! The order of checks is that of Redis 7.0's `processCommand`, because a client sees which error comes first.

mod server;
mod topics;
mod transaction;

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;

use super::dispatch::Step;
use super::{BACKPRESSURE, Client, Session};
use crate::command::table::{self, Lookup};
use crate::command::{Effect, Keys, Kind, Request, Spec, keys};
use crate::local::{self, Call, Engine};
use crate::net::drop_front;
use crate::observe::clock;
use crate::observe::reasons::{Class, Dropped, Operation, Timed};
use crate::resp::Proto;
use crate::resp::request::Scan;
use crate::worker::Ctx;

pub(super) use transaction::Seat;

/// Between two sweeps for expired keys, as Redis's `hz` of 10.
const TICK: Duration = Duration::from_millis(100);

const DENIED: &str = "DENIED Nearside runs in protected mode: it listens beyond this host, and the in-memory engine has no \
                      password. Remedies: 1) listen on loopback or a unix socket only (listen.tcp, listen.unix); 2) name an \
                      upstream that asks for one (upstream.url); 3) set listen.protected to false if the network is trusted.";

/// Commands that are answered here, not by the engine.
const OWN: &[&str] = &[
    "acl|whoami",
    "asking",
    "auth",
    "command",
    "command|count",
    "command|docs",
    "command|info",
    "command|list",
    "config|get",
    "discard",
    "echo",
    "exec",
    "hello",
    "info",
    "multi",
    "nearside",
    "ping",
    "psubscribe",
    "publish",
    "punsubscribe",
    "quit",
    "readonly",
    "readwrite",
    "reset",
    "role",
    "select",
    "spublish",
    "ssubscribe",
    "subscribe",
    "sunsubscribe",
    "time",
    "unsubscribe",
    "unwatch",
    "watch",
];

/// Of CLIENT what needs no upstream.
const OF_CLIENT: &[&str] = &[
    "client|getname",
    "client|id",
    "client|info",
    "client|kill",
    "client|list",
    "client|no-evict",
    "client|reply",
    "client|setname",
    "client|unblock",
];

/// Subcommands that the table has from servers newer than the one we say we are.
const NEWER: &[&str] =
    &["client|capa", "client|import-source", "client|maint_notifications", "client|no-touch", "client|setinfo"];

/// What holds for all requests of one read.
#[derive(Clone, Copy)]
struct Now {
    clock: u64,
    /// Milliseconds since 1970, for the engine.
    wall: i64,
}

/// Whether this backend has the command at all.
pub(super) fn has(spec: &Spec) -> bool {
    OWN.contains(&spec.name)
        || OF_CLIENT.contains(&spec.name)
        || spec.name.starts_with("cluster|")
        || local::command(spec.name).is_some()
}

/// What is said of every other command.
pub(super) fn needs_upstream(spec: &Spec) -> String {
    format!("ERR '{}' needs an upstream (none is configured)", spec.name.to_ascii_uppercase().replace('|', " "))
}

/// The engine's own time: it deletes what has expired, and what it holds becomes figures.
pub(crate) async fn tick(ctx: Rc<Ctx>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(engine) = ctx.embedded() else { return };
        engine.borrow_mut().sweep(wall_clock());
        ctx.measure();
        ctx.check_buffers();
    }
}

fn wall_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Client {
    /// Answers every whole request in the buffer.
    pub(super) fn serve_embedded(&mut self, ctx: &Rc<Ctx>) -> Step {
        let session = self.session.clone();
        let now = Now { clock: clock::now(), wall: wall_clock() };
        let (mut at, mut served) = (0, 0);
        let step = loop {
            if session.is_throttled() {
                break Step::Throttled;
            }
            let (len, step) = match self.scanner.scan(&self.rbuf[at..]) {
                Scan::Large if session.state.borrow().locked => {
                    session.answer_error(false, DENIED);
                    break Step::Close;
                }
                // A large request is collected like any other: `listen.query_limit` and `buffers_max` bound it.
                Scan::Incomplete | Scan::Large => break Step::NeedInput,
                Scan::Nothing { len } => (len, None),
                Scan::Request { len } => {
                    let req = Request { raw: &self.rbuf[at..at + len], args: self.scanner.args() };
                    (len, session.embedded(ctx, now, &req))
                }
                Scan::Inline { len } => {
                    let req = Request { raw: self.scanner.inline(), args: self.scanner.args() };
                    (len, session.embedded(ctx, now, &req))
                }
                Scan::Error(e) => {
                    session.protocol_error(ctx, &e);
                    break Step::Close;
                }
            };
            at += len;
            served += 1;
            if let Some(step) = step {
                break step;
            }
        };
        drop_front(&mut self.rbuf, at);
        self.release_buffer();
        session.account_embedded(ctx, now, served);
        session.bound_embedded(ctx, self.rbuf.len());
        // Messages for other clients.
        ctx.flush_dirty();
        step
    }
}

impl Session {
    fn account_embedded(&self, ctx: &Ctx, now: Now, served: u64) {
        self.last.set(now.clock);
        let Some(count) = std::num::NonZeroU64::new(served) else { return };
        ctx.metrics.request_n(Timed::LocalOk, clock::now().saturating_sub(now.clock) / count, served);
    }

    /// What is kept for this client besides its replies counts against `listen.buffers_max`.
    fn bound_embedded(&self, ctx: &Ctx, unfinished: usize) {
        let kept = unfinished + self.seat.borrow().bytes();
        self.unfinished.set(kept);
        if kept > BACKPRESSURE {
            ctx.check_buffers();
        }
    }

    /// One request. `None`: look at the next.
    fn embedded(self: &Rc<Self>, ctx: &Rc<Ctx>, now: Now, req: &Request<'_>) -> Option<Step> {
        let known = table::lookup(req);
        if self.state.borrow().locked && !matches!(known, Lookup::Known(spec) if spec.kind == Kind::Quit) {
            self.answer_error(false, DENIED);
            return None;
        }
        let is_reply = matches!(known, Lookup::Known(spec) if spec.name == "client|reply");
        let mute = !is_reply && self.special.get() && self.state.borrow_mut().mute();
        let spec = match known {
            Lookup::Known(spec) if !NEWER.contains(&spec.name) => spec,
            _ if table::is_cross_protocol(req.arg(0)) => {
                tracing::warn!(client = %self.addr, "closed: an HTTP request on the Redis port, a cross-protocol attack perhaps");
                return Some(Step::Close);
            }
            Lookup::Known(_) | Lookup::UnknownSub | Lookup::Unknown => {
                self.last_command.set("unknown");
                self.count(ctx, Operation::Other);
                self.reject(mute, &unknown(req));
                return None;
            }
        };
        self.last_command.set(spec.name);
        self.count(ctx, spec.operation());
        if !keys::arity_ok(spec, req.argc()) {
            let text = format!("ERR wrong number of arguments for '{}' command", spec.name);
            self.reject_command(ctx, spec, mute, &text);
            return None;
        }
        if let Some(text) = self.refused_in_context(ctx, spec) {
            self.reject_command(ctx, spec, mute, &text);
            return None;
        }
        if self.queues(spec) {
            self.queue(req, spec, mute);
            return None;
        }
        self.carry_out(ctx, now, req, spec, mute)
    }

    /// What may not be done now, or never.
    fn refused_in_context(&self, ctx: &Ctx, spec: &Spec) -> Option<Cow<'static, str>> {
        if spec.kind == Kind::Nearside && self.seat.borrow().is_open() {
            return Some("ERR NEARSIDE is not allowed inside MULTI".into());
        }
        if self.proto() == Proto::Resp2 && self.listens(ctx) && !topics::may_while_listening(spec) {
            let name = spec.name;
            let text = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context";
            return Some(format!("ERR Can't execute '{name}': {text}").into());
        }
        (!has(spec)).then(|| needs_upstream(spec).into())
    }

    /// Carries out a command that this backend has, alone or as one of EXEC's.
    fn carry_out(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: Now,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        ctx.metrics.commands.inc(match spec.effect {
            Effect::Read if spec.keys == Keys::None => Class::Local,
            Effect::Read => Class::Read,
            _ => Class::Write,
        });
        match spec.kind {
            Kind::Multi | Kind::Exec | Kind::Discard | Kind::Watch | Kind::Unwatch => {
                return self.transact(ctx, now, req, spec, mute);
            }
            Kind::Subscribe | Kind::Psubscribe | Kind::Ssubscribe => self.subscribe(ctx, req, spec.kind),
            Kind::Unsubscribe | Kind::Punsubscribe | Kind::Sunsubscribe => self.unsubscribe(ctx, req, spec.kind),
            _ => match local::command(spec.name) {
                Some(command) => self.ask_engine(ctx, now, req, spec, mute, command),
                None => return self.serve_itself(ctx, now, req, spec, mute),
            },
        }
        None
    }

    fn ask_engine(
        self: &Rc<Self>,
        ctx: &Ctx,
        now: Now,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
        command: local::Command,
    ) {
        let Some(engine) = ctx.embedded() else { return };
        let (db, proto) = (self.state.borrow().db, self.proto());
        let reply_max = ctx.config.listen.output_limit;
        let call = Call { now: now.wall, db, proto, name: spec.name, req, reply_max };
        let mut done = Ok(());
        let mut execute = |out: &mut BytesMut| {
            let start = out.len();
            done = engine.borrow_mut().execute(command, &call, out);
            if done.is_err() {
                out.truncate(start);
            }
        };
        if mute {
            execute(&mut BytesMut::new());
        } else {
            self.answer(false, execute);
        }
        if done.is_err() {
            self.drop_for(ctx, Dropped::OutputLimit, "a reply would be longer than listen.output_limit");
        }
    }

    fn engine<'c>(&self, ctx: &'c Ctx) -> &'c RefCell<Engine> {
        ctx.embedded().expect("only sessions of the embedded backend come here")
    }

    /// The client has gone: nobody is left who watches or listens.
    pub(super) fn leaves_embedded(&self, ctx: &Ctx) {
        if let Some(engine) = ctx.embedded() {
            engine.borrow_mut().forget(self.id);
        }
    }
}

/// A name, or a subcommand, that Redis 7.0 does not have; in its words.
fn unknown(req: &Request<'_>) -> Vec<u8> {
    /// Bytes of a name that are shown, and of all arguments together, about.
    const SHOWN: usize = 128;
    let shown = |word: &[u8], most: usize| {
        let text = word.split(|b| *b == 0).next().unwrap_or_default();
        text[..text.len().min(most)].to_vec()
    };
    let name = req.arg(0);
    if !name.contains(&b'|') && table::is_container(name) {
        if req.argc() == 1 {
            let name = String::from_utf8_lossy(name).to_lowercase();
            return format!("ERR wrong number of arguments for '{name}' command").into_bytes();
        }
        let container = name.to_ascii_uppercase();
        return [b"ERR unknown subcommand '", &*shown(req.arg(1), SHOWN), b"'. Try ", &*container, b" HELP."].concat();
    }
    let mut args = Vec::new();
    for i in 1..req.argc() {
        if args.len() >= SHOWN {
            break;
        }
        let word = shown(req.arg(i), SHOWN - args.len());
        args.extend([b"'", &*word, b"' "].concat());
    }
    [b"ERR unknown command '", &*shown(name, SHOWN), b"', with args beginning with: ", &*args].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lists name rows of the table, and no command twice.
    #[test]
    fn the_lists_agree_with_the_table_and_the_engine() {
        for name in OWN.iter().chain(OF_CLIENT) {
            assert!(table::by_name(name.as_bytes()).is_some(), "{name} has no row");
            assert!(local::command(name).is_none(), "{name} is the engine's");
        }
        let engine = table::all().filter(|spec| local::command(spec.name).is_some()).count();
        assert!(engine > 45, "{engine}");
        assert!(table::all().filter(|spec| !has(spec)).any(|spec| spec.name == "lpush"));
    }
}
