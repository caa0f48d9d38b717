//! `NEARSIDE <sub>`: what redis-cli sees and changes of this sidecar, and our section of INFO.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use super::batch::Batch;
use super::dispatch::{Command, STRANGER};
use super::own_names::{self, Named};
use super::{Session, counts};
use crate::cache::{Entry, FormEntry, Value};
use crate::coherence;
use crate::command::prefix::{self, Outcome, Words};
use crate::command::{Effect, Request, table};
use crate::config::{AdminResp, CacheMode, Variant, show_percent};
use crate::live;
use crate::local::Engine;
use crate::observe::arms::ArmId;
use crate::observe::clock;
use crate::observe::events::Actor;
use crate::observe::latency::Window;
use crate::observe::reasons::{Bypass, Coherence, Decision, JournalState, Limited, Method};
use crate::policy::Rule;
use crate::policy::explain::explain;
use crate::policy::tag::TagTemplate;
use crate::resp::reply;
use crate::resp::{Proto, build};
use crate::router;
use crate::worker::Ctx;

const HELP: &[&str] = &[
    "NEARSIDE <subcommand> [<arg> [value] ...]. Subcommands are:",
    "AUTH <password>",
    "    Allow this connection to change the sidecar, where admin.password_file is set.",
    "CANDIDATES [n]",
    "    What observe mode has found to be worth caching, what saves most first, each with a rule to paste.",
    "DELETE PATTERN <glob> [<glob> ...]",
    "    Delete upstream what the globs match in this connection's database, in batches of SCAN and UNLINK.",
    "    Returns how many keys were scanned and deleted, and in how many batches. Stops when the client leaves.",
    "ENTRY <key>",
    "    What the L1 holds for a key as this connection would read it.",
    "EXPLAIN <command> [<arg> ...]",
    "    Where a command would go now, and why. It is not executed.",
    "FLUSH",
    "    Drop all entries, here and in all sidecars of this upstream, which is not touched itself. Returns how many",
    "    they were here.",
    "HELP",
    "    Print this help.",
    "INFO",
    "    All figures, as INFO prints them.",
    "INVALIDATE KEY|PREFIX|PATTERN|REGEX|TAG <x> [<x> ...]",
    "    Drop the entries that are named so, here and in all sidecars of this upstream. PATTERN is a glob as KEYS",
    "    takes it, REGEX finds its expression anywhere in the key, TAG is one that a rule gives its keys. Returns",
    "    how many they were here.",
    "MODE [serve|observe|off]",
    "    Print the cache's mode, or change it until the configuration is read again.",
    "RULES",
    "    The rules in force, in the order in which they are asked, each with its settings and counts.",
    "SLOWLOG [<n>]",
    "    The last commands that took longer than observe.slow_log, without keys and values, and how many there were.",
    "STATS",
    "    The dozen figures one looks at first.",
    "TOP [<n>] [BY hits|misses|bytes]",
    "    The keys that are asked for most, and the largest values. Counts are sampled; error_bound is what one may lack.",
];

/// Who may change the sidecar over RESP.
pub(super) enum Refusal {
    NeedsPassword,
    Forbidden,
}

impl Session {
    pub(super) fn nearside(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64, req: &Request<'_>, mute: bool) {
        if req.argc() < 2 {
            return self.answer_error(mute, "ERR wrong number of arguments for 'nearside' command. Try NEARSIDE HELP.");
        }
        let sub = req.arg(1).to_ascii_lowercase();
        if ctx.embedded().is_some() && self.without_upstream(ctx, req, &sub, mute) {
            return;
        }
        match (sub.as_slice(), req.argc()) {
            (b"help", 2) => self.answer(mute, |out| {
                build::array(out, HELP.len());
                HELP.iter().for_each(|line| build::simple(out, line));
            }),
            (b"stats", 2) => self.answer(mute, |out| build::bulk(out, stats(ctx, now).as_bytes())),
            (b"info", 2) => self.answer(mute, |out| build::bulk(out, self.own_section(ctx, now).as_bytes())),
            (b"rules", 2) => self.rules(ctx, mute),
            (b"candidates", 2) => self.candidates(ctx, None, mute),
            (b"candidates", 3) => self.candidates(ctx, Some(req.arg(2)), mute),
            (b"mode", 2) => self.answer(mute, |out| build::bulk(out, ctx.mode_word().as_bytes())),
            (b"explain", 3..) => self.explain(ctx, req, mute),
            (b"entry", 3) => self.entry(ctx, now, &ctx.upstream_name(req.arg(2)), mute),
            (b"top", 2..=5) => self.top(ctx, req, mute),
            (b"slowlog", 2 | 3) => self.slow_log(ctx, req, mute),
            (b"auth", 3) => self.nearside_auth(ctx, req.arg(2), mute),
            (b"mode", 3) => match self.may_change(ctx) {
                Ok(()) => self.change_mode(ctx, req.arg(2), mute),
                Err(refusal) => self.answer_error(mute, refusal.text()),
            },
            _ => {
                let name = String::from_utf8_lossy(req.arg(1)).into_owned();
                let text =
                    format!("ERR unknown subcommand or wrong number of arguments for '{name}'. Try NEARSIDE HELP.");
                self.answer_error(mute, &text);
            }
        }
    }

    /// What is different where the local engine is the backend. False: nothing is.
    fn without_upstream(&self, ctx: &Ctx, req: &Request<'_>, sub: &[u8], mute: bool) -> bool {
        let (argc, proto) = (req.argc(), self.proto());
        let changes = matches!((sub, argc), (b"mode", 3) | (b"flush", 2) | (b"invalidate" | b"delete", 4..));
        if changes && let Err(refusal) = self.may_change(ctx) {
            self.answer_error(mute, refusal.text());
            return true;
        }
        match (sub, argc) {
            (b"explain", 3..) => self.explain_embedded(req, mute),
            // There is no copy of anything.
            (b"entry", 3) => self.answer(mute, |out| build::null(out, proto)),
            (b"flush", 2) | (b"invalidate", 4..) => self.answer(mute, |out| build::integer(out, 0)),
            (b"delete", 4..) => self.answer_error(mute, "ERR 'NEARSIDE DELETE' needs an upstream (none is configured)"),
            (b"mode", 3) => self.answer_error(mute, "ERR there is nothing to cache in front of the in-memory engine"),
            _ => return false,
        }
        true
    }

    fn explain_embedded(&self, req: &Request<'_>, mute: bool) {
        let words: Vec<&[u8]> = (2..req.argc()).map(|i| req.arg(i)).collect();
        let with_sub = [words[0], b"|", words.get(1).copied().unwrap_or_default()].concat();
        let found = table::by_name(&with_sub).or_else(|| table::by_name(words[0]));
        let (name, route, reason) = match found {
            Some(spec) if super::embedded::has(spec) => (spec.name, "local engine", String::new()),
            Some(spec) => (spec.name, "refuse", super::embedded::needs_upstream(spec)),
            None => ("unknown", "refuse", "ERR unknown command".to_owned()),
        };
        let fields = [("command", name.to_owned()), ("route", route.to_owned()), ("reason", reason)];
        let proto = self.proto();
        self.answer(mute, |out| {
            build::map_or_array(out, proto, fields.len());
            pairs(out, &fields);
        });
    }

    fn change_mode(&self, ctx: &Rc<Ctx>, word: &[u8], mute: bool) {
        let mode = match word.to_ascii_lowercase().as_slice() {
            b"serve" => CacheMode::Serve,
            b"observe" => CacheMode::Observe,
            b"off" => CacheMode::Off,
            other => {
                let text = format!("ERR unknown mode '{}'; use serve, observe or off", String::from_utf8_lossy(other));
                return self.answer_error(mute, &text);
            }
        };
        live::set_mode(ctx, mode, &Actor::Client { id: self.id, addr: self.addr.clone() });
        self.answer(mute, |out| build::simple(out, "OK"));
    }

    /// Empty where every key is cached as `cache` says.
    fn rules(&self, ctx: &Ctx, mute: bool) {
        let rules = ctx.rules().load();
        let proto = self.proto();
        self.answer(mute, |out| {
            build::array(out, rules.list().len());
            for rule in rules.list() {
                let fields = rule_fields(ctx, rule);
                build::map_or_array(out, proto, fields.len());
                pairs(out, &fields);
            }
        });
    }

    pub(super) fn may_change(&self, ctx: &Ctx) -> Result<(), Refusal> {
        let admin = &ctx.config.admin;
        match admin.resp {
            AdminResp::Off => Err(Refusal::Forbidden),
            _ if self.state.borrow().admin => Ok(()),
            _ if admin.password.is_some() => Err(Refusal::NeedsPassword),
            AdminResp::On => Ok(()),
            AdminResp::Auto if self.near => Ok(()),
            AdminResp::Auto => Err(Refusal::Forbidden),
        }
    }

    fn nearside_auth(&self, ctx: &Ctx, password: &[u8], mute: bool) {
        let Some(expected) = &ctx.config.admin.password else {
            return self.answer_error(mute, "ERR no admin password is configured (admin.password_file)");
        };
        if same(expected.expose().as_bytes(), password) {
            self.state.borrow_mut().admin = true;
            self.answer(mute, |out| build::simple(out, "OK"));
        } else {
            self.answer_error(mute, "WRONGPASS invalid admin password");
        }
    }

    fn explain(self: &Rc<Self>, ctx: &Rc<Ctx>, req: &Request<'_>, mute: bool) {
        let words: Vec<&[u8]> = (2..req.argc()).map(|i| req.arg(i)).collect();
        let mut raw = BytesMut::new();
        build::command(&mut raw, &words);
        let mut scanner = crate::resp::request::Scanner::new(raw.len(), raw.len().max(1));
        if !matches!(scanner.scan(&raw), crate::resp::request::Scan::Request { .. }) {
            return self.answer_error(mute, "ERR a command this large is streamed on a connection of its own");
        }
        let of_client = Request { raw: &raw, args: scanner.args() };
        let mut own = Words::default();
        let edge = self.rewrite_explained(ctx, &of_client, &mut own);
        let asked = if own.is_empty() { of_client } else { own.request() };
        let batch = Batch::new(ctx, self);
        let found = self.spec(ctx, &asked);
        let (name, spec, route) = match found {
            Ok(spec) => {
                let view = self.view(ctx, &batch, &asked, spec);
                (spec.name, Some(spec), router::route(spec, &asked, &view))
            }
            Err(stranger) => {
                let view = self.view(ctx, &batch, &asked, &STRANGER);
                ("unknown", None, router::route_stranger(stranger, &view))
            }
        };
        // Rules speak of the client's names.
        let said = explain(&ctx.rules().load(), &ctx.metrics.patterns, spec.unwrap_or(&STRANGER), &of_client);
        let effect = spec.map_or(Effect::Opaque, |s| s.effect);
        let lane = self.lane(ctx);
        let tags = said.keys.first().map_or_else(Vec::new, |key| tags_of(ctx, key));
        let mut fields = vec![
            ("command", name.to_owned()),
            ("route", edge.as_ref().map_or(route.as_str(), |(route, _)| route).to_owned()),
            ("reason", edge.map_or_else(|| route.reason().to_owned(), |(_, reason)| reason)),
            ("policy", self.explain_policy(ctx, found, &asked)),
            ("effect", format!("{effect:?}").to_ascii_lowercase()),
            ("may_be_sent_again", yes(spec.is_some_and(|s| s.resend))),
            ("in_l1", yes(spec.is_some_and(|spec| self.holds(ctx, lane.id, &asked, spec)))),
            ("rule", said.rule),
            ("rule_says", said.says),
            ("not_kept_because", said.not_kept_because),
            ("not_stored_because", lane.uncached().unwrap_or_default()),
        ];
        if let Some(spec) = spec.filter(|spec| spec.effect == Effect::Write) {
            fields.extend(self.explain_write(ctx, &Command { req: &asked, spec, mute: false }));
        }
        if spec.is_some_and(|spec| self.names_held(ctx, &lane, &asked, spec)) {
            fields.push(("waits_for_upstream", "a key was written here while upstream was gone".to_owned()));
        }
        let proto = self.proto();
        self.answer(mute, |out| {
            build::map_or_array(out, proto, fields.len() + 2);
            pairs(out, &fields);
            names(out, "tags", &tags);
            names(out, "keys", &said.keys);
        });
    }

    /// What `upstream.key_prefix` makes of a command that is explained: its words, or the route and reason of what goes no
    /// further than this.
    fn rewrite_explained(&self, ctx: &Ctx, req: &Request<'_>, words: &mut Words) -> Option<(&'static str, String)> {
        let own = ctx.prefix.as_ref()?;
        match own_names::named(ctx, req) {
            Named::Known(spec) => match own.rewrite(spec, req, words) {
                Outcome::Refused(why) => Some(("refuse", prefix::refusal(spec.name, why))),
                Outcome::Own => Some(("local", "own keys are found by SCAN (upstream.key_prefix)".to_owned())),
                Outcome::Same | Outcome::Changed => None,
            },
            Named::Unknown => Some(("refuse", prefix::stranger_refusal(req))),
            Named::Keyless | Named::New => None,
        }
    }

    /// GET's entry, and in `forms` those of other commands.
    fn entry(self: &Rc<Self>, ctx: &Rc<Ctx>, now: u64, key: &[u8], mute: bool) {
        let proto = self.proto();
        let lane = self.lane(ctx);
        if let Some(fields) = self.held_entry(ctx, &lane, key) {
            return self.answer(mute, |out| {
                build::map_or_array(out, proto, fields.len());
                pairs(out, &fields);
            });
        }
        let forms = ctx.l1.get(key).unwrap_or_default();
        let of_get = forms.entries.iter().find(|e| e.lane == lane.id);
        let others: Vec<&FormEntry> =
            forms.others.iter().map(|form| &**form).filter(|form| form.entry.lane == lane.id).collect();
        let Some(first) = of_get.or(others.first().map(|form| &form.entry)) else {
            return self.answer(mute, |out| build::null(out, proto));
        };
        let vouched = lane.vouches(now, self.fence.get(), ctx.max_staleness);
        let view = lane.stale_view(ctx, self, now);
        let stale = |entry: &Entry| view.servable(ctx, key, entry);
        let served = |entry: &Entry| match vouched {
            Err(_) if lane.is_gone() && ctx.serves_stale() && stale(entry).is_ok() => "stale",
            Ok(epoch) if entry.may_serve(epoch, ctx.l1.flush_gen(), now) => "yes",
            Ok(_) => Bypass::NotLive.as_str(),
            Err(why) => why.as_str(),
        };
        let times = |entry: &Entry| {
            let ms = |ns: u64| (ns / 1_000_000).to_string();
            let (age, left) = (now.saturating_sub(entry.t_sent), entry.deadline.saturating_sub(now));
            let stale = stale(entry).map_or_else(|why| why.as_str(), |()| "yes");
            [
                ("age_ms", ms(age)),
                ("ttl_ms", ms(left)),
                ("refresh_in_ms", until(entry.soft, now)),
                ("served", served(entry).to_owned()),
                ("stale_servable", stale.to_owned()),
            ]
        };
        let kind = match of_get.map(|entry| &entry.value) {
            Some(Value::Bulk(_)) => "string",
            Some(Value::Nil) => "absent",
            None => "none",
        };
        let mut fields =
            vec![("kind", kind.to_owned()), ("key_pattern", ctx.metrics.patterns.name(first.pattern).to_owned())];
        if let Some(entry) = of_get {
            fields.push(("value_bytes", reply::bulk(entry.value.frame()).map_or(0, <[u8]>::len).to_string()));
            fields.extend(times(entry));
        }
        self.answer(mute, |out| {
            build::map_or_array(out, proto, fields.len() + 2);
            pairs(out, &fields);
            names(out, "tags", &forms.tags().collect::<Vec<_>>());
            build::bulk(out, b"forms");
            build::array(out, others.len());
            for form in others {
                let size = ("reply_bytes", form.entry.value.wire_len().to_string());
                let fields: Vec<_> =
                    [("command", form.id.text()), size].into_iter().chain(times(&form.entry)).collect();
                build::map_or_array(out, proto, fields.len());
                pairs(out, &fields);
            }
        });
    }
}

/// One row of NEARSIDE RULES. Counts are those of the key pattern that has the rule's name.
fn rule_fields(ctx: &Ctx, rule: &Rule) -> Vec<(&'static str, String)> {
    let terms = &rule.terms;
    let ms = |d: Duration| d.as_millis().to_string();
    let list = |words: Vec<&str>| words.join(" ");
    let counts = ctx.metrics.counts_of(rule.label);
    let (state, reason, arms) = experiment_of(ctx, rule);
    let share = coherence::share_of(ctx, terms);
    let taken = ctx.l1.share_bytes(&terms.name).unwrap_or(0);
    let variant = |v: &Variant| format!("{}:{}", v.name, v.ttl.as_millis());
    vec![
        ("name", terms.name.clone()),
        ("pattern", terms.pattern.text().to_owned()),
        ("mode", terms.mode.as_str().to_owned()),
        ("commands", list(terms.commands.iter().map(Method::as_str).collect())),
        ("ttl_ms", ms(terms.ttl)),
        ("negative_ttl_ms", ms(terms.negative_ttl)),
        ("refresh_ahead_ms", terms.refresh_ahead.map_or(String::new(), ms)),
        ("stale_while_revalidate_ms", ms(terms.stale_while_revalidate)),
        ("max_value_bytes", terms.max_value_bytes.to_string()),
        ("on_write", terms.on_write.as_str().to_owned()),
        ("write", terms.write.as_str().to_owned()),
        ("rollout_percent", show_percent(rule.share)),
        ("rollout_state", state.to_owned()),
        ("rollout_reason", reason),
        ("arms", arms),
        ("variants_ms", terms.variants.iter().map(variant).collect::<Vec<_>>().join(" ")),
        ("tags", list(terms.tags.iter().map(TagTemplate::text).collect())),
        ("max_share_bytes", share.map_or_else(String::new, |share| share.max_bytes.to_string())),
        ("share_bytes", share.map_or_else(String::new, |_| taken.to_string())),
        ("hits", counts.hits.to_string()),
        ("misses", counts.misses.to_string()),
        ("stored", counts.sets.to_string()),
    ]
}

/// How far the rollout of a rule has come, why it was taken back, and what its arms have seen since the start. Empty where it
/// has no experiment.
fn experiment_of(ctx: &Ctx, rule: &Rule) -> (&'static str, String, String) {
    let arms = &ctx.metrics.arms;
    let shown = arms.shown();
    let Some(found) = shown.iter().find(|shown| shown.rule == rule.terms.name) else { return Default::default() };
    let control = found.control.map(|arm| ("control", arm));
    let cached = found.cached.iter().map(|(name, arm)| (name.as_str(), *arm));
    let one = |(name, arm): (&str, ArmId)| {
        let (seen, _) = arms.seen(arm, clock::now(), Window::Start);
        let mean = seen.moments().map_or(0.0, |moments| moments.mean / 1e6);
        let (requests, hits, misses, errors) = (seen.count(), seen.hits, seen.misses, seen.errors);
        format!("{name}:requests={requests},hits={hits},misses={misses},errors={errors},mean_ms={mean:.3}")
    };
    let arms: Vec<String> = control.into_iter().chain(cached).map(one).collect();
    let reason = found.why.as_ref().map_or_else(String::new, |why| why.sentence.clone());
    (found.state.as_str(), reason, arms.join(" "))
}

/// The tags that an entry of `key` would have.
fn tags_of(ctx: &Ctx, key: &[u8]) -> Vec<Vec<u8>> {
    let rules = ctx.rules().load();
    let tags = rules.find(key).map_or_else(Vec::new, |rule| rule.terms.tags_of(key));
    tags.into_iter().map(|(tag, _)| tag).collect()
}

fn names<N: AsRef<[u8]>>(out: &mut BytesMut, field: &str, names: &[N]) {
    build::bulk(out, field.as_bytes());
    build::array(out, names.len());
    names.iter().for_each(|name| build::bulk(out, name.as_ref()));
}

pub(super) fn pairs(out: &mut BytesMut, fields: &[(&str, String)]) {
    for (name, value) in fields {
        build::bulk(out, name.as_bytes());
        build::bulk(out, value.as_bytes());
    }
}

impl Refusal {
    pub(super) fn text(&self) -> &'static str {
        match self {
            Refusal::NeedsPassword => "NOAUTH this changes the sidecar: say NEARSIDE AUTH <password> first",
            Refusal::Forbidden => {
                "NOPERM this changes the sidecar and is not allowed on this connection (admin.resp, admin.password_file)"
            }
        }
    }
}

/// Milliseconds until then; empty for never.
fn until(time: u64, now: u64) -> String {
    if time == u64::MAX { String::new() } else { (time.saturating_sub(now) / 1_000_000).to_string() }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// Compares secrets without telling by the time it takes how much of them agrees.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// The dozen lines of STATS.
fn stats(ctx: &Ctx, now: u64) -> String {
    if let Some(engine) = ctx.embedded() {
        return stats_embedded(ctx, &engine.borrow());
    }
    let m = &ctx.metrics;
    let (hits, misses) = (m.hits(), m.misses());
    ctx.l1.settle();
    let (entries, bytes) = ctx.l1.size();
    let rate = if hits + misses == 0 { String::new() } else { format!("{:.4}", hits as f64 / (hits + misses) as f64) };
    let age = ctx.home_lane().and_then(|l| l.lease_age(now));
    let mut text = String::new();
    let lines: [(&str, String); 14] = [
        ("mode", ctx.mode_word().to_owned()),
        ("backend", ctx.status.backend().to_owned()),
        ("coherence", ctx.status.coherence().as_str().to_owned()),
        ("coherence_why", coherence_why(ctx)),
        ("upstream", if ctx.status.upstream_up() { "up" } else { "down" }.to_owned()),
        ("hits", hits.to_string()),
        ("misses", misses.to_string()),
        ("hit_rate", rate),
        ("entries", entries.to_string()),
        ("bytes", bytes.to_string()),
        ("max_bytes", ctx.config.cache.max_bytes.to_string()),
        ("invalidations", m.invalidations.sum().to_string()),
        ("clients", ctx.sessions.borrow().len().to_string()),
        ("lease_age_ms", age.map_or(String::new(), |ns| (ns / 1_000_000).to_string())),
    ];
    for (name, value) in lines {
        let _ = write!(text, "{name}:{value}\r\n");
    }
    text
}

/// What clients get while upstream is gone, and what they have got.
fn outage(ctx: &Ctx, now: u64) -> String {
    let (config, m) = (&ctx.config.outage, &ctx.metrics);
    let stall_timeout = ctx.config.upstream.stall_timeout.unwrap_or_default();
    let outage = ctx.outage();
    let mut lines = vec![
        ("upstream_state".to_owned(), ctx.status.breaker().as_str().to_owned()),
        ("outage_for_ms".to_owned(), {
            outage.as_ref().map_or(String::new(), |o| (now.saturating_sub(o.since) / 1_000_000).to_string())
        }),
        ("outage_why".to_owned(), outage.map_or(String::new(), |o| o.why)),
        ("outage_reads".to_owned(), config.reads.as_str().to_owned()),
        ("outage_writes".to_owned(), config.writes.as_str().to_owned()),
        ("outage_error".to_owned(), config.error.as_str().to_owned()),
        ("max_stale_ms".to_owned(), config.max_stale.as_millis().to_string()),
        ("stall_timeout_ms".to_owned(), stall_timeout.as_millis().to_string()),
        ("stale_served".to_owned(), m.stale_served.get().to_string()),
        ("refills_waiting".to_owned(), m.refills_waiting.get().to_string()),
        ("journal_state".to_owned(), JournalState::WORDS[m.journal.state.get() as usize].to_owned()),
        ("journal_bytes".to_owned(), m.journal.bytes.get().to_string()),
        ("journal_orphans".to_owned(), ctx.held.ledger().map_or(0, |ledger| ledger.orphans()).to_string()),
        ("queue_depth".to_owned(), m.queue.depth.get().to_string()),
        ("queue_bytes".to_owned(), m.queue.bytes.get().to_string()),
        ("queue_age_ms".to_owned(), (m.queue.age() / 1_000_000).to_string()),
        ("queue_conflict".to_owned(), config.queue_conflict.as_str().to_owned()),
        ("queued_writes".to_owned(), m.queue.queued.get().to_string()),
        ("local_writes".to_owned(), m.queue.local_writes.get().to_string()),
        ("local_writes_dropped".to_owned(), m.queue.local_dropped.get().to_string()),
    ];
    lines.extend(m.queue.replayed.iter().map(|(what, n)| (format!("queue_replayed_{what}"), n.to_string())));
    lines.extend(m.queue.refused.iter().map(|(why, n)| (format!("queue_refused_{why}"), n.to_string())));
    lines.extend(m.outage_failed.iter().map(|(class, n)| (format!("outage_failed_{class}"), n.to_string())));
    lines.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect()
}

/// The same where the local engine is the backend.
fn stats_embedded(ctx: &Ctx, engine: &Engine) -> String {
    let (keys, bytes) = engine.size();
    let counts = engine.counts();
    let lines = [
        ("mode", ctx.mode_word().to_owned()),
        ("backend", ctx.status.backend().to_owned()),
        ("keys", keys.to_string()),
        ("bytes", bytes.to_string()),
        ("max_bytes", engine.max_bytes().to_string()),
        ("reads_found", counts.hits.to_string()),
        ("reads_not_found", counts.misses.to_string()),
        ("expired", counts.expired.to_string()),
        ("evicted", counts.evicted.to_string()),
        ("refused", counts.refused.to_string()),
        ("clients", ctx.sessions.borrow().len().to_string()),
    ];
    lines.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect()
}

/// The sidecars' channel, in words.
fn channel(ctx: &Ctx, now: u64) -> String {
    let channel = &ctx.status.channel;
    let ms = |ns: u64| (ns / 1_000_000).to_string();
    let asked = ctx.channel.is_confirmed() && ctx.channel.f() > 0;
    let lines = [
        ("channel", channel.state().as_str().to_owned()),
        ("channel_error", channel.why()),
        ("channel_for_ms", channel.age().map_or(String::new(), ms)),
        ("channel_lease_age_ms", if asked { ms(now.saturating_sub(ctx.channel.f())) } else { String::new() }),
        ("keyspace_events", channel.events()),
    ];
    lines.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect()
}

/// Of the lane that most clients are on; whoever sees this is one of its clients or of this host.
fn coherence_why(ctx: &Ctx) -> String {
    let Some(lane) = ctx.home_lane() else { return ctx.status.coherence_why() };
    lane.why() + ctx.status.channel.second_source(lane.mode())
}

/// Our section of INFO: everything STATS says, and each counter under its reason.
pub(super) fn own_section(ctx: &Ctx, now: u64) -> String {
    let m = &ctx.metrics;
    let mut text = format!("# Nearside\r\nnearside_version:{}\r\n", env!("CARGO_PKG_VERSION"));
    let _ = write!(text, "upstream_client_name:{}\r\n", ctx.name);
    let _ = write!(text, "key_prefix:{}\r\n", ctx.config.upstream.key_prefix);
    text.push_str(&stats(ctx, now));
    let by_worker: Vec<String> = m.hits_by_worker().iter().map(u64::to_string).collect();
    let _ = write!(text, "hits_by_worker:{}\r\n", by_worker.join(","));
    text.push_str(&channel(ctx, now));
    if ctx.embedded().is_none() {
        text.push_str(&outage(ctx, now));
    }
    let coherence = &ctx.config.coherence;
    let _ = write!(text, "coherence_mode:{}\r\n", ctx.status.coherence().as_str());
    let _ = write!(text, "coherence_asked:{}\r\n", coherence.mode.as_str());
    let _ = write!(text, "fence:{}\r\n", coherence.fence.as_str());
    let _ = write!(text, "pubsub_atomic:{}\r\n", yes(coherence.pubsub_atomic));
    let _ = write!(text, "policy_mode:{}\r\n", m.policy.mode().as_str());
    let mut line = |name: &str, value: u64| {
        let _ = write!(text, "{name}:{value}\r\n");
    };
    line("max_staleness_ms", ctx.max_staleness / 1_000_000);
    line("ttl_cap_pubsub_ms", coherence.ttl_cap.pubsub.as_millis() as u64);
    line("ttl_cap_ttl_ms", coherence.ttl_cap.ttl.as_millis() as u64);
    line("coalesced", m.coalesced.get());
    line("refreshes_stored", m.updates.get());
    line("pending_writes", ctx.l1.pending());
    line("audit_checked", m.audit_checked.get());
    line("audit_stale", m.audit_stale.get());
    line("audit_age_ms", m.audit_age.get() / 1_000_000);
    line("policy_allowed", m.decided_of_all(Decision::Allowed));
    line("policy_denied", m.decided_of_all(Decision::Denied));
    line("policy_logged", m.decided_of_all(Decision::Logged));
    line("rate_limit_waits", m.policy.limited.get(Limited::Wait));
    line("rate_limit_waited_ms", m.policy.waited.get() / 1_000_000);
    line("rate_limit_errors", m.policy.limited.get(Limited::Error));
    line("slow_commands", m.slow.last(0).1);
    line("pinned_connections", ctx.pool.open() as u64);
    line("upstream_reconnects", m.reconnects.get());
    line("channel_epoch", ctx.channel.epoch());
    line("channel_malformed", m.malformed.get());
    line("lanes", ctx.lanes.borrow().len() as u64);
    line("lane_epoch", ctx.home_lane().map_or(0, |l| l.epoch()));
    line("in_flight", ctx.lanes.borrow().values().map(|l| l.in_flight() as u64).sum());
    text.push_str(&counts::of_process(ctx, now));
    text.push_str(&counts::by_word(ctx));
    text
}

/// Whether upstream's answer to this INFO is one that ours belongs to.
pub(super) fn wants_own_info(req: &Request<'_>) -> bool {
    req.argc() == 1
        || (1..req.argc()).any(|i| ["default", "all", "everything", "nearside"].iter().any(|word| req.is(i, word)))
}

/// `INFO nearside`: nothing of it is upstream's.
pub(super) fn is_own_info(req: &Request<'_>) -> bool {
    req.argc() == 2 && req.is(1, "nearside")
}

impl Session {
    /// With the mode of the lane of whoever asks: each user's may be in one of its own.
    fn own_section(&self, ctx: &Ctx, now: u64) -> String {
        let mode = self.lane.borrow().as_ref().map_or(Coherence::Probing, |lane| lane.mode());
        let mut text = own_section(ctx, now);
        let _ = write!(text, "session_coherence:{}\r\n", mode.as_str());
        text
    }

    pub(super) fn own_info(&self, ctx: &Ctx, now: u64, mute: bool) {
        let (text, proto) = (self.own_section(ctx, now), self.proto());
        self.answer(mute, |out| build::verbatim_or_bulk(out, proto, "txt", text.as_bytes()));
    }
}

/// Upstream's INFO with our section behind it.
pub(crate) fn with_own_info(ctx: &Ctx, frame: &[u8]) -> Vec<u8> {
    let Some(upstream) = reply::bulk(frame).filter(|_| !reply::is_error(frame)) else { return frame.to_vec() };
    let upstream = upstream.strip_prefix(b"txt:").unwrap_or(upstream);
    let mut text = upstream.to_vec();
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(own_section(ctx, crate::observe::clock::now()).as_bytes());
    let mut out = BytesMut::new();
    build::verbatim_or_bulk(&mut out, Proto::Resp3, "txt", &text);
    out.to_vec()
}
