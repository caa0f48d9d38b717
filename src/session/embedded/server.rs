//! What a Redis server says of itself and of a connection, where the engine is the server: handshake, CLIENT, INFO, CONFIG,
//! COMMAND. Truthful: what is not so is not said, and what cannot be done is refused.

use std::fmt::Write as _;
use std::rc::Rc;

use bytes::BytesMut;

use super::{Now, has};
use crate::command::table;
use crate::command::{Effect, Keys, Kind, Request, Spec};
use crate::local::{self, DATABASES, Space};
use crate::observe::clock;
use crate::policy::glob;
use crate::resp::{Proto, build};
use crate::session::Session;
use crate::session::dispatch::Step;
use crate::session::local::{Hello, Now as Said};
use crate::session::nearside::{own_section, wants_own_info};
use crate::worker::Ctx;

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";
const NO_PASSWORD: &str = "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                           your configuration is correct?";

impl Session {
    /// A command of `OWN` or `OF_CLIENT`.
    pub(super) fn serve_itself(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: Now,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        match spec.kind {
            Kind::Hello => self.hello_embedded(ctx, req, mute),
            Kind::Auth => self.auth_embedded(req, mute),
            Kind::Select => match local::database(req.arg(1)) {
                Ok(db) => {
                    self.state.borrow_mut().db = db;
                    self.answer(mute, |out| build::simple(out, "OK"));
                }
                Err(text) => self.answer_error(mute, &text),
            },
            Kind::Reset => {
                self.end_transaction(ctx);
                self.leave_all(ctx);
                self.reset(ctx);
            }
            Kind::Quit => {
                self.answer(mute, |out| build::simple(out, "OK"));
                return Some(Step::Close);
            }
            Kind::Client => return self.client_embedded(ctx, now, req, spec, mute),
            Kind::Nearside => self.nearside(ctx, now.clock, req, mute),
            Kind::Ping => self.ping(ctx, req, mute),
            Kind::Info => self.info(ctx, now, req, mute),
            Kind::Publish => self.publish(ctx, req, Space::Channel, mute),
            Kind::Readonly => self.answer_error(mute, NO_CLUSTER),
            _ => self.say(ctx, now, req, spec, mute),
        }
        None
    }

    fn say(self: &Rc<Self>, ctx: &Rc<Ctx>, now: Now, req: &Request<'_>, spec: &'static Spec, mute: bool) {
        let proto = self.proto();
        match spec.name {
            "echo" => self.answer(mute, |out| build::bulk(out, req.arg(1))),
            "spublish" => self.publish(ctx, req, Space::Shard, mute),
            "time" => self.answer(mute, |out| {
                // The engine's clock counts milliseconds.
                build::array(out, 2);
                build::bulk(out, (now.wall / 1000).to_string().as_bytes());
                build::bulk(out, (now.wall % 1000 * 1000).to_string().as_bytes());
            }),
            "role" => self.answer(mute, |out| {
                build::array(out, 3);
                build::bulk(out, b"master");
                build::integer(out, 0);
                build::array(out, 0);
            }),
            "acl|whoami" => self.answer(mute, |out| build::bulk(out, b"default")),
            "config|get" => self.answer(mute, |out| config_get(ctx, req, proto, out)),
            "command|docs" => self.answer(mute, |out| build::map_or_array(out, proto, 0)),
            "command|count" => self.answer(mute, |out| build::integer(out, commands().count() as i64)),
            "command|list" if req.argc() > 2 => self.answer_error(mute, "ERR syntax error"),
            "command|list" => self.answer(mute, |out| {
                build::array(out, commands().count());
                commands().for_each(|spec| build::bulk(out, spec.name.as_bytes()));
            }),
            "command" => self.answer(mute, |out| {
                build::array(out, commands().count());
                commands().for_each(|spec| command_info(out, spec));
            }),
            "command|info" => self.answer(mute, |out| {
                build::array(out, req.argc() - 2);
                for i in 2..req.argc() {
                    match table::by_name(req.arg(i)).filter(|spec| has(spec)) {
                        Some(spec) => command_info(out, spec),
                        None if proto == Proto::Resp3 => build::null(out, proto),
                        None => out.extend_from_slice(b"*-1\r\n"),
                    }
                }
            }),
            // All of CLUSTER.
            _ => self.answer_error(mute, NO_CLUSTER),
        }
    }

    /// There is one user, and he needs no password: as a Redis without one takes it.
    fn hello_embedded(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) {
        match Hello::parse(req, self.proto()) {
            Ok(Hello { credential: Some((user, _)), .. }) if user != b"default" => {
                self.answer_error(mute, WRONG_PASSWORD);
            }
            Ok(hello) => self.apply_hello(ctx, hello, mute),
            Err(text) => self.answer_error(mute, &text),
        }
    }

    fn auth_embedded(&self, req: &Request<'_>, mute: bool) {
        match req.argc() {
            2 => self.answer_error(mute, NO_PASSWORD),
            3 if req.arg(1) == b"default" => self.answer(mute, |out| build::simple(out, "OK")),
            3 => self.answer_error(mute, WRONG_PASSWORD),
            _ => self.answer_error(mute, "ERR syntax error"),
        }
    }

    fn ping(&self, ctx: &Ctx, req: &Request<'_>, mute: bool) {
        if req.argc() > 2 {
            return self.answer_error(mute, "ERR wrong number of arguments for 'ping' command");
        }
        let text = (req.argc() == 2).then(|| req.arg(1));
        if self.proto() == Proto::Resp2 && self.listens(ctx) {
            return self.answer(mute, |out| {
                build::array(out, 2);
                build::bulk(out, b"pong");
                build::bulk(out, text.unwrap_or_default());
            });
        }
        self.answer(mute, |out| match text {
            Some(text) => build::bulk(out, text),
            None => build::simple(out, "PONG"),
        });
    }

    /// Most of CLIENT is answered as with an upstream; what that would judge is judged here.
    fn client_embedded(
        self: &Rc<Self>,
        ctx: &Rc<Ctx>,
        now: Now,
        req: &Request<'_>,
        spec: &'static Spec,
        mute: bool,
    ) -> Option<Step> {
        if spec.name == "client|unblock" {
            // Nobody ever waits.
            match unblock_error(req) {
                Some(text) => self.answer_error(mute, text),
                None => self.answer(mute, |out| build::integer(out, 0)),
            }
            return None;
        }
        match self.client(ctx, now.clock, req, spec, mute) {
            Said::Close => Some(Step::Close),
            Said::Done => None,
            Said::Wait | Said::Upstream => {
                self.answer_error(mute, &client_error(req, spec));
                None
            }
        }
    }

    fn info(&self, ctx: &Ctx, now: Now, req: &Request<'_>, mute: bool) {
        let wanted = |section: &str| {
            let all = ["all", "everything", "default"];
            req.argc() == 1 || (1..req.argc()).any(|i| req.is(i, section) || all.iter().any(|word| req.is(i, word)))
        };
        let mut sections: Vec<String> = Vec::new();
        for (name, write) in SECTIONS {
            if wanted(name) {
                sections.push(write(ctx, now));
            }
        }
        if wants_own_info(req) {
            sections.push(own_section(ctx, now.clock));
        }
        let (text, proto) = (sections.join("\r\n"), self.proto());
        self.answer(mute, |out| build::verbatim_or_bulk(out, proto, "txt", text.as_bytes()));
    }
}

fn unblock_error(req: &Request<'_>) -> Option<&'static str> {
    if crate::resp::integer(req.arg(2)).is_none() {
        return Some("ERR value is not an integer or out of range");
    }
    match req.argc() {
        3 => None,
        4 if req.is(3, "timeout") || req.is(3, "error") => None,
        4 => Some("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR"),
        _ => Some("ERR syntax error"),
    }
}

/// Why Redis refuses these words.
fn client_error(req: &Request<'_>, spec: &Spec) -> String {
    let word = |i: usize| String::from_utf8_lossy(req.arg(i)).into_owned();
    let option = |name: &str| (2..req.argc().saturating_sub(1)).find(|i| req.is(*i, name));
    match spec.name {
        "client|list" if req.argc() == 4 && req.is(2, "type") => format!("ERR Unknown client type '{}'", word(3)),
        "client|list" if req.argc() > 3 && req.is(2, "id") => "ERR Invalid client ID".to_owned(),
        "client|kill" if req.argc() % 2 == 1 => "ERR syntax error".to_owned(),
        "client|kill" => match (option("id"), option("type"), option("user")) {
            (Some(_), ..) => "ERR client-id should be greater than 0".to_owned(),
            (_, Some(at), _) => format!("ERR Unknown client type '{}'", word(at + 1)),
            (_, _, Some(at)) => format!("ERR No such user '{}'", word(at + 1)),
            _ => "ERR syntax error".to_owned(),
        },
        _ => "ERR syntax error".to_owned(),
    }
}

/// What `CONFIG GET` knows: what clients and tools look at before they begin.
fn config_get(ctx: &Ctx, req: &Request<'_>, proto: Proto, out: &mut BytesMut) {
    let listen = &ctx.config.listen;
    let max_bytes = ctx.embedded().map_or(0, |engine| engine.borrow().max_bytes());
    let known = [
        ("appendonly", "no".to_owned()),
        ("databases", DATABASES.to_string()),
        ("maxclients", listen.max_clients.to_string()),
        ("maxmemory", max_bytes.to_string()),
        ("maxmemory-policy", "allkeys-lru".to_owned()),
        ("proto-max-bulk-len", crate::limits::BULK_MAX.to_string()),
        ("save", String::new()),
        ("timeout", listen.idle_timeout.map_or(0, |t| t.as_secs()).to_string()),
    ];
    let wanted = |name: &str| (2..req.argc()).any(|i| glob::matches(&req.arg(i).to_ascii_lowercase(), name.as_bytes()));
    let found: Vec<_> = known.iter().filter(|(name, _)| wanted(name)).collect();
    build::map_or_array(out, proto, found.len());
    for (name, value) in found {
        build::bulk(out, name.as_bytes());
        build::bulk(out, value.as_bytes());
    }
}

/// Commands of their own name; subcommands are their container's.
fn commands() -> impl Iterator<Item = &'static Spec> {
    table::all().filter(|spec| has(spec) && !spec.name.contains('|'))
}

/// Name, arity, flags, first key, last key, step; the rest is empty.
fn command_info(out: &mut BytesMut, spec: &Spec) {
    build::array(out, 10);
    build::bulk(out, spec.name.as_bytes());
    build::integer(out, i64::from(spec.arity));
    build::array(out, 1);
    build::simple(out, if spec.effect == Effect::Read { "readonly" } else { "write" });
    let (first, last, step) = match spec.keys {
        Keys::Range { first, last, step } => (i64::from(first), i64::from(last), i64::from(step)),
        _ => (0, 0, 0),
    };
    [first, last, step].iter().for_each(|n| build::integer(out, *n));
    (0..4).for_each(|_| build::array(out, 0));
}

type Section = fn(&Ctx, Now) -> String;

const SECTIONS: &[(&str, Section)] = &[
    ("server", of_server),
    ("clients", of_clients),
    ("memory", of_memory),
    ("stats", of_stats),
    ("replication", |_, _| {
        lines("Replication", &[("role", "master".to_owned()), ("connected_slaves", "0".to_owned())])
    }),
    ("keyspace", of_keyspace),
];

fn lines(title: &str, fields: &[(&str, String)]) -> String {
    let mut text = format!("# {title}\r\n");
    for (name, value) in fields {
        let _ = write!(text, "{name}:{value}\r\n");
    }
    text
}

fn of_server(ctx: &Ctx, _: Now) -> String {
    let up = clock::now().saturating_sub(ctx.started) / 1_000_000_000;
    let server = ctx.server.borrow();
    lines(
        "Server",
        &[
            ("redis_version", server.version.clone()),
            ("redis_mode", server.mode.clone()),
            ("nearside_version", env!("CARGO_PKG_VERSION").to_owned()),
            ("process_id", std::process::id().to_string()),
            ("run_id", ctx.instance.clone()),
            ("uptime_in_seconds", up.to_string()),
            ("uptime_in_days", (up / 86_400).to_string()),
        ],
    )
}

fn of_clients(ctx: &Ctx, _: Now) -> String {
    lines(
        "Clients",
        &[
            ("connected_clients", ctx.sessions.borrow().len().to_string()),
            ("maxclients", ctx.config.listen.max_clients.to_string()),
            ("blocked_clients", "0".to_owned()),
        ],
    )
}

fn of_memory(ctx: &Ctx, _: Now) -> String {
    let Some(engine) = ctx.embedded() else { return String::new() };
    let engine = engine.borrow();
    lines(
        "Memory",
        &[
            ("used_memory", engine.size().1.to_string()),
            ("used_memory_human", format!("{:.2}M", engine.size().1 as f64 / 1_048_576.0)),
            ("maxmemory", engine.max_bytes().to_string()),
            ("maxmemory_policy", "allkeys-lru".to_owned()),
        ],
    )
}

fn of_stats(ctx: &Ctx, _: Now) -> String {
    let Some(engine) = ctx.embedded() else { return String::new() };
    let engine = engine.borrow();
    let counts = engine.counts();
    lines(
        "Stats",
        &[
            ("total_connections_received", ctx.metrics.clients_accepted.get().to_string()),
            ("total_commands_processed", ctx.metrics.commands.sum().to_string()),
            ("expired_keys", counts.expired.to_string()),
            ("evicted_keys", counts.evicted.to_string()),
            ("keyspace_hits", counts.hits.to_string()),
            ("keyspace_misses", counts.misses.to_string()),
            ("pubsub_channels", engine.topics.channels(Space::Channel, None).len().to_string()),
            ("pubsub_patterns", engine.topics.patterns().to_string()),
        ],
    )
}

fn of_keyspace(ctx: &Ctx, _: Now) -> String {
    let mut text = "# Keyspace\r\n".to_owned();
    if let Some(engine) = ctx.embedded() {
        for (db, keys, expires) in engine.borrow().keyspace() {
            let _ = write!(text, "db{db}:keys={keys},expires={expires},avg_ttl=0\r\n");
        }
    }
    text
}
