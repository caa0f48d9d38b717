//! CLIENT LIST, INFO and KILL over this sidecar's own clients, in Redis's formats, and the translation between their ids
//! and those of their pinned connections upstream.

use std::fmt::Write;
use std::rc::Rc;

use super::Session;
use super::pinned::Shown;
use super::state::State;
use crate::command::{Request, Spec};
use crate::resp::Proto;
use crate::resp::reply;
use crate::upstream::facts::{
    ALWAYS, CLIENT_KILL_MAXAGE, REDIS_7_0, REDIS_7_2, REDIS_7_4, REDIS_8_0, Since, VALKEY_8_0,
};
use crate::worker::Ctx;

/// What a line is made of.
struct View<'a> {
    session: &'a Session,
    state: &'a State,
    pin: &'a Shown,
    now: u64,
}

struct Field {
    name: &'static str,
    since: Since,
    write: fn(&View<'_>, &mut String) -> std::fmt::Result,
}

const fn field(name: &'static str, since: Since, write: fn(&View<'_>, &mut String) -> std::fmt::Result) -> Field {
    Field { name, since, write }
}

const SECOND: u64 = 1_000_000_000;

/// In their order in a line. What makes no sense for a sidecar's client (argument memory, event mask) has the value of an
/// idle one.
const FIELDS: &[Field] = &[
    field("id", ALWAYS, |v, out| write!(out, "{}", v.session.id)),
    field("addr", ALWAYS, |v, out| write!(out, "{}", v.session.addr)),
    field("laddr", ALWAYS, |v, out| write!(out, "{}", v.session.laddr)),
    field("fd", ALWAYS, |_, out| out.write_str("8")),
    field("name", ALWAYS, |v, out| out.write_str(&String::from_utf8_lossy(&v.state.name))),
    field("age", ALWAYS, |v, out| write!(out, "{}", v.now.saturating_sub(v.session.since) / SECOND)),
    field("idle", ALWAYS, |v, out| write!(out, "{}", v.now.saturating_sub(v.session.last_seen().0) / SECOND)),
    field("flags", ALWAYS, |v, out| out.write_str(&flags(v))),
    field("capa", VALKEY_8_0, |_, _| Ok(())),
    field("db", ALWAYS, |v, out| write!(out, "{}", v.state.db)),
    field("sub", ALWAYS, |v, out| write!(out, "{}", v.pin.subscriptions.channels)),
    field("psub", ALWAYS, |v, out| write!(out, "{}", v.pin.subscriptions.patterns)),
    field("ssub", REDIS_7_0, |v, out| write!(out, "{}", v.pin.subscriptions.shards)),
    field("multi", ALWAYS, |v, out| write!(out, "{}", if v.pin.id == 0 { -1 } else { v.pin.multi })),
    field("watch", REDIS_7_4, |v, out| write!(out, "{}", u8::from(v.pin.watching))),
    field("qbuf", ALWAYS, zero),
    field("qbuf-free", ALWAYS, zero),
    field("argv-mem", ALWAYS, zero),
    field("multi-mem", REDIS_7_0, zero),
    field("rbs", REDIS_7_0, zero),
    field("rbp", REDIS_7_0, zero),
    field("obl", ALWAYS, unwritten),
    field("oll", ALWAYS, zero),
    field("omem", ALWAYS, unwritten),
    field("tot-mem", ALWAYS, unwritten),
    field("events", ALWAYS, |_, out| out.write_str("r")),
    field("cmd", ALWAYS, |v, out| out.write_str(v.session.last_seen().1)),
    field("user", ALWAYS, |v, out| match &v.state.credential {
        Some(credential) => out.write_str(&String::from_utf8_lossy(&credential.user)),
        None => out.write_str("default"),
    }),
    field("redir", ALWAYS, |_, out| out.write_str("-1")),
    field("resp", REDIS_7_0, |v, out| out.write_str(if v.state.proto == Proto::Resp3 { "3" } else { "2" })),
    field("lib-name", REDIS_7_2, |v, out| out.write_str(&String::from_utf8_lossy(&v.state.lib_name))),
    field("lib-ver", REDIS_7_2, |v, out| out.write_str(&String::from_utf8_lossy(&v.state.lib_ver))),
    field("io-thread", REDIS_8_0, zero),
    field("tot-net-in", VALKEY_8_0, zero),
    field("tot-net-out", VALKEY_8_0, zero),
    field("tot-cmds", VALKEY_8_0, zero),
];

fn zero(_: &View<'_>, out: &mut String) -> std::fmt::Result {
    out.write_str("0")
}

fn unwritten(view: &View<'_>, out: &mut String) -> std::fmt::Result {
    write!(out, "{}", view.session.outbox.borrow().bytes())
}

/// One client as upstream's version would print it in CLIENT LIST (without the line end).
pub(super) fn line(ctx: &Ctx, session: &Session, now: u64) -> String {
    let (state, pin) = (session.state.borrow(), session.pinned.borrow());
    let view = View { session, state: &state, pin: &pin, now };
    let server = ctx.server.borrow();
    let mut line = String::new();
    for field in FIELDS.iter().filter(|field| server.has(&field.since)) {
        let blank = if line.is_empty() { "" } else { " " };
        let _ = write!(line, "{blank}{}=", field.name);
        let _ = (field.write)(&view, &mut line);
    }
    line
}

fn flags(view: &View<'_>) -> String {
    let View { session, state, pin, .. } = view;
    let all = [
        (pin.monitor, 'O'),
        (pin.subscriptions.any(), 'P'),
        (pin.id != 0 && pin.multi >= 0, 'x'),
        (pin.blocked, 'b'),
        (session.unix, 'U'),
        (state.no_evict, 'e'),
        (state.no_touch, 'T'),
    ];
    let set: String = all.iter().filter(|(on, _)| *on).map(|(_, c)| *c).collect();
    if set.is_empty() { "N".to_owned() } else { set }
}

/// The whole list; none: words that only upstream can judge.
pub(super) fn list(ctx: &Ctx, req: &Request<'_>, now: u64) -> Option<String> {
    let sessions = ctx.sessions.borrow();
    let all = sessions.values();
    let chosen: Vec<&Rc<Session>> = match req.argc() {
        2 => all.collect(),
        4 if req.is(2, "type") => {
            let kind = Type::parse(req.arg(3))?;
            all.filter(|s| kind == Type::of(s)).collect()
        }
        n if n > 3 && req.is(2, "id") => {
            let ids: Option<Vec<u64>> = (3..n).map(|i| number(req.arg(i))).collect();
            let ids = ids?;
            all.filter(|s| ids.contains(&s.id)).collect()
        }
        _ => return None,
    };
    Some(chosen.iter().map(|s| line(ctx, s, now) + "\n").collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Normal,
    PubSub,
    /// master, slave, replica: no client of a sidecar is one.
    Replication,
}

impl Type {
    fn parse(word: &[u8]) -> Option<Type> {
        match word.to_ascii_lowercase().as_slice() {
            b"normal" => Some(Type::Normal),
            b"pubsub" => Some(Type::PubSub),
            b"master" | b"replica" | b"slave" => Some(Type::Replication),
            _ => None,
        }
    }

    fn of(session: &Session) -> Type {
        if session.pinned.borrow().subscriptions.any() { Type::PubSub } else { Type::Normal }
    }
}

/// What CLIENT KILL asks for.
pub(super) struct Kill<'a> {
    /// `CLIENT KILL addr:port`: answers OK or an error instead of a count.
    pub(super) old_form: bool,
    id: Option<u64>,
    kind: Option<Type>,
    addr: Option<&'a [u8]>,
    laddr: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    max_age: Option<u64>,
    skip_me: bool,
}

impl<'a> Kill<'a> {
    /// None: words that only upstream can judge.
    pub(super) fn parse(ctx: &Ctx, req: &Request<'a>) -> Option<Kill<'a>> {
        let mut kill = Kill {
            old_form: req.argc() == 3,
            id: None,
            kind: None,
            addr: None,
            laddr: None,
            user: None,
            max_age: None,
            skip_me: true,
        };
        if kill.old_form {
            kill.addr = Some(req.arg(2));
            kill.skip_me = false;
            return Some(kill);
        }
        let mut i = 2;
        while i + 1 < req.argc() {
            let value = req.arg(i + 1);
            match req.arg(i).to_ascii_lowercase().as_slice() {
                b"id" => kill.id = Some(number(value).filter(|id| *id > 0)?),
                b"type" => kill.kind = Some(Type::parse(value)?),
                b"addr" => kill.addr = Some(value),
                b"laddr" => kill.laddr = Some(value),
                b"user" if known_user(ctx, value) => kill.user = Some(value),
                b"maxage" if ctx.server.borrow().has(&CLIENT_KILL_MAXAGE) => kill.max_age = Some(number(value)?),
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => kill.skip_me = true,
                b"skipme" if value.eq_ignore_ascii_case(b"no") => kill.skip_me = false,
                _ => return None,
            }
            i += 2;
        }
        (i == req.argc()).then_some(kill)
    }
}

/// A user some client here is, or the default one. Of others upstream knows whether they exist.
fn known_user(ctx: &Ctx, user: &[u8]) -> bool {
    user == b"default" || ctx.sessions.borrow().values().any(|s| is_user(s, user))
}

fn is_user(session: &Session, user: &[u8]) -> bool {
    let state = session.state.borrow();
    state.credential.as_ref().map_or(&b"default"[..], |c| &c.user) == user
}

pub(super) fn victims(ctx: &Ctx, order: &Kill<'_>, me: &Session, now: u64) -> Vec<Rc<Session>> {
    let matches = |s: &Rc<Session>| {
        order.id.is_none_or(|id| s.id == id)
            && order.kind.is_none_or(|kind| Type::of(s) == kind)
            && order.addr.is_none_or(|a| s.addr.as_bytes() == a)
            && order.laddr.is_none_or(|a| s.laddr.as_bytes() == a)
            && order.user.is_none_or(|u| is_user(s, u))
            && order.max_age.is_none_or(|age| now.saturating_sub(s.since) / 1_000_000_000 >= age)
            && !(order.skip_me && s.id == me.id)
    };
    ctx.sessions.borrow().values().filter(|s| matches(s)).cloned().collect()
}

/// As Redis reads a number: nothing around it.
pub(super) fn number(word: &[u8]) -> Option<u64> {
    u64::try_from(crate::resp::integer(word)?).ok()
}

/// CLIENT TRACKING ... REDIRECT <id>: the id is one of ours, upstream knows that client's pinned connection by another. None:
/// nothing to translate. An id of nobody stays an id of nobody.
pub(super) fn translate_redirect(ctx: &Ctx, req: &Request<'_>, kept: &mut (i64, i64)) -> Option<Vec<Vec<u8>>> {
    let at = redirect_at(req)?;
    let own = number(req.arg(at + 1))?;
    let upstream = ctx.sessions.borrow().get(&own).map_or(0, |s| s.pinned.borrow().id);
    // 2^62 is no client's id; upstream then words the error. 0 switches the redirection off.
    let id = if own == 0 {
        0
    } else if upstream > 0 {
        upstream
    } else {
        1 << 62
    };
    let mut words: Vec<Vec<u8>> = (0..req.argc()).map(|i| req.arg(i).to_vec()).collect();
    words[at + 1] = id.to_string().into_bytes();
    *kept = (id, i64::try_from(own).unwrap_or(0));
    Some(words)
}

/// Where the target's id stands behind REDIRECT.
fn redirect_at(req: &Request<'_>) -> Option<usize> {
    (3..req.argc().saturating_sub(1)).find(|i| req.is(*i, "redirect"))
}

/// The client here to which this command redirects invalidations.
pub(super) fn redirects(ctx: &Ctx, spec: &Spec, req: &Request<'_>) -> Option<Rc<Session>> {
    let at = (spec.name == "client|tracking").then(|| redirect_at(req))??;
    ctx.sessions.borrow().get(&number(req.arg(at + 1))?).cloned()
}

/// The reply to CLIENT GETREDIR or TRACKINGINFO, with the id of the client here.
pub(super) fn own_redirect(ctx: &Ctx, frame: &[u8], kept: (i64, i64)) -> Vec<u8> {
    const FIELD: &[u8] = b"$8\r\nredirect\r\n";
    let at = if frame.first() == Some(&b':') {
        Some(0)
    } else {
        memchr::memmem::find(frame, FIELD).map(|at| at + FIELD.len())
    };
    let Some((at, upstream)) = at.and_then(|at| Some((at, reply::integer(&frame[at..])?))) else {
        return frame.to_vec();
    };
    let line = memchr::memchr(b'\n', &frame[at..]).map_or(frame.len(), |end| at + end + 1);
    let own = if upstream == kept.0 { kept.1 } else { own_id(ctx, upstream) };
    let own = format!(":{own}\r\n");
    [&frame[..at], own.as_bytes(), &frame[line..]].concat()
}

/// CLIENT UNBLOCK <id> inside MULTI: the id is one of ours, upstream knows that client's pinned connection by another.
pub(super) fn translate_unblock(ctx: &Ctx, req: &Request<'_>) -> Option<Vec<Vec<u8>>> {
    let own = number(req.arg(2))?;
    let upstream = ctx.sessions.borrow().get(&own).map(|s| s.pinned.borrow().clone()).filter(|p| p.blocked);
    let mut words: Vec<Vec<u8>> = (0..req.argc()).map(|i| req.arg(i).to_vec()).collect();
    // 2^62 is no client's id; upstream then answers 0.
    words[2] = upstream.map_or(1 << 62, |p| p.id).to_string().into_bytes();
    Some(words)
}

/// The client here whose pinned connection has this id upstream; special values (-1, 0) stay.
fn own_id(ctx: &Ctx, upstream: i64) -> i64 {
    let found = ctx.sessions.borrow().values().find(|s| s.pinned.borrow().id == upstream).map(|s| s.id as i64);
    if upstream <= 0 { upstream } else { found.unwrap_or(upstream) }
}
