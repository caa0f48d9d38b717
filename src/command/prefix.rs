//! `upstream.key_prefix`: which words of a request name keys, channels of keyspace events or patterns of either, and the
//! same request with the prefix in them; which replies name keys. Runs on the client's edge, before anything else looks at
//! the request, so that all below knows upstream's names only. A command whose keys cannot be known, or whose answer is
//! about everybody's keys, is refused by name. Pure: it knows no session; what a script builds for itself it cannot see.

use bytes::BytesMut;

use super::keys::{self, c_str};
use super::strip::Strip;
use super::{Effect, Keys, Request, Spec};
use crate::resp::build;
use crate::resp::request::Arg;

/// The longest prefix: it is sent with every key, and kept with every entry.
pub(crate) const PREFIX_MAX: usize = 128;

/// Words that a connection's rewritten requests may keep allocated; one MSET of many keys should not cost it for life.
const KEPT: usize = 64 * 1024;

const KEYSPACE: &[u8] = b"__keyspace@";
const KEYEVENT: &[u8] = b"__keyevent@";
const BEHIND_DB: &[u8] = b"__:";

const EVERYBODYS: &str = "it shows commands and keys of everybody";
const REPLACES: &str = "it concerns the keys of everybody";
const UNKNOWN_KEYS: &str = "which of its words are keys is not known";
const COUNTS: &str = "it counts the keys of everybody; count what SCAN finds";

/// A prefix that is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    text: Box<[u8]>,
    /// The same where a glob is read.
    glob: Box<[u8]>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It names nothing: it goes up as it is.
    Same,
    /// `Words` has what goes up.
    Changed,
    /// Answered by commands of ours that see own keys only: FLUSHDB, FLUSHALL, RANDOMKEY.
    Own,
    /// Refused, and why.
    Refused(&'static str),
}

/// How a command names keys, as far as its row does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// By the row's column, and nowhere else.
    Row,
    Nothing,
    Own,
    Refused(&'static str),
    /// One argument is a key.
    Key(usize),
    /// One argument is a glob.
    Glob(usize),
    Scan,
    /// BY and GET name keys by a pattern that is no glob.
    Sort,
    /// From this argument on: channels.
    Channels(usize),
    /// From this argument on: globs of channels.
    ChannelGlobs(usize),
    Publish,
    /// A whole command stands from this argument on.
    Inner(usize),
    Tracking,
    Debug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    Key,
    Glob,
    Channel,
    ChannelGlob,
}

/// A rewritten request, and what it was made with; kept from one to the next, so that none allocates.
#[derive(Debug, Default)]
pub(crate) struct Words {
    raw: BytesMut,
    args: Vec<Arg>,
    /// By argument, ascending.
    edits: Vec<(usize, Edit)>,
    /// In front of this argument: MATCH or PREFIX and its value.
    insert: Option<(usize, &'static [u8])>,
}

impl Words {
    pub(crate) fn request(&self) -> Request<'_> {
        Request { raw: &self.raw, args: &self.args }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// To be called between two requests.
    pub(crate) fn release(&mut self) {
        if self.raw.capacity() + self.args.capacity() + self.edits.capacity() > KEPT {
            *self = Words::default();
        }
    }

    /// A request of these words.
    pub(crate) fn set(&mut self, words: &[&[u8]]) {
        self.begin(words.len());
        words.iter().for_each(|word| self.push([word, b"", b""]));
    }

    fn begin(&mut self, argc: usize) {
        self.raw.clear();
        self.args.clear();
        build::array(&mut self.raw, argc);
    }

    fn push(&mut self, pieces: [&[u8]; 3]) {
        let at = build::bulk_of(&mut self.raw, pieces);
        self.args.push(Arg { start: at.start as u32, end: at.end as u32 });
    }
}

impl Prefix {
    /// None for the empty one.
    pub(crate) fn new(text: &str) -> Option<Prefix> {
        let special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
        let escaped = |byte: &u8| if special(byte) { vec![b'\\', *byte] } else { vec![*byte] };
        let glob = text.as_bytes().iter().flat_map(escaped).collect();
        (!text.is_empty()).then(|| Prefix { text: text.as_bytes().into(), glob })
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// A glob of the client's as upstream must have it.
    pub(crate) fn glob(&self, of_client: &[u8]) -> Vec<u8> {
        [&*self.glob, of_client].concat()
    }

    pub(crate) fn key(&self, of_client: &[u8]) -> Vec<u8> {
        [&*self.text, of_client].concat()
    }

    /// The client's name of an upstream key; none: it is somebody else's.
    pub(crate) fn own<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        key.strip_prefix(&*self.text)
    }

    /// The client's name of a channel. None: it tells of a key that is somebody else's.
    pub(crate) fn own_channel(&self, channel: &[u8]) -> Option<Vec<u8>> {
        strip_channel(channel, &self.text)
    }

    /// The client's own words for a glob of channels that has been rewritten.
    pub(crate) fn own_channel_glob(&self, glob: &[u8]) -> Vec<u8> {
        strip_channel(glob, &self.glob).unwrap_or_else(|| glob.to_vec())
    }

    /// Writes into `words` what goes up for a request of the client's.
    pub(crate) fn rewrite(&self, spec: &Spec, req: &Request<'_>, words: &mut Words) -> Outcome {
        words.edits.clear();
        words.insert = None;
        match plan(spec, req, 0, words) {
            Outcome::Changed if words.edits.is_empty() && words.insert.is_none() => Outcome::Same,
            Outcome::Changed => {
                self.write(req, words);
                Outcome::Changed
            }
            other => other,
        }
    }

    fn write(&self, req: &Request<'_>, words: &mut Words) {
        let argc = req.argc() + if words.insert.is_some() { 2 } else { 0 };
        let edits = std::mem::take(&mut words.edits);
        let mut next = edits.iter().peekable();
        words.begin(argc);
        for i in 0..=req.argc() {
            if let Some((_, option)) = words.insert.filter(|(at, _)| *at == i) {
                words.push([option, b"", b""]);
                let rest: &[u8] = if option == MATCH { b"*" } else { b"" };
                words.push([if option == MATCH { &self.glob } else { &self.text }, rest, b""]);
            }
            if i < req.argc() {
                let edit = next.next_if(|(at, _)| *at == i).map(|(_, edit)| *edit);
                words.push(self.edited(req.arg(i), edit));
            }
        }
        words.edits = edits;
    }

    fn edited<'w>(&'w self, word: &'w [u8], edit: Option<Edit>) -> [&'w [u8]; 3] {
        match edit {
            None => [word, b"", b""],
            Some(Edit::Key) => [&self.text, word, b""],
            Some(Edit::Glob) => [&self.glob, word, b""],
            Some(Edit::Channel) => within(word, &self.text),
            Some(Edit::ChannelGlob) => within(word, &self.glob),
        }
    }
}

/// `prefix` in front of the key that a channel of keyspace events is named after. Of globs only where the beginning is
/// spelled out: what else a glob may match cannot be told.
fn within<'w>(channel: &'w [u8], prefix: &'w [u8]) -> [&'w [u8]; 3] {
    match key_at(channel) {
        Some(at) => [&channel[..at], prefix, &channel[at..]],
        None => [channel, b"", b""],
    }
}

/// Where the key begins in a channel of keyspace events.
fn key_at(channel: &[u8]) -> Option<usize> {
    let db = channel.strip_prefix(KEYSPACE)?;
    Some(KEYSPACE.len() + memchr::memmem::find(db, BEHIND_DB)? + BEHIND_DB.len())
}

fn strip_channel(channel: &[u8], prefix: &[u8]) -> Option<Vec<u8>> {
    match key_at(channel) {
        None => Some(channel.to_vec()),
        Some(at) => channel[at..].strip_prefix(prefix).map(|key| [&channel[..at], key].concat()),
    }
}

/// A channel whose messages are names of keys.
pub(crate) fn is_keyevent(channel: &[u8]) -> bool {
    channel.starts_with(KEYEVENT)
}

const MATCH: &[u8] = b"MATCH";
const PREFIX: &[u8] = b"PREFIX";

/// Notes in `words` what of the command at argument `base` is to be changed.
fn plan(spec: &Spec, req: &Request<'_>, base: usize, words: &mut Words) -> Outcome {
    let inner = Request { raw: req.raw, args: &req.args[base..] };
    let mut edit = |i: usize, edit: Edit| words.edits.push((base + i, edit));
    // Also where the number of words is wrong: another server may take it.
    match rule(spec) {
        Rule::Nothing => return Outcome::Same,
        Rule::Own => return Outcome::Own,
        Rule::Refused(why) => return Outcome::Refused(why),
        Rule::Row => keys::for_each_place(spec, &inner, |i| edit(i, Edit::Key)),
        Rule::Key(i) => one(&inner, i).for_each(|i| edit(i, Edit::Key)),
        Rule::Glob(i) => one(&inner, i).for_each(|i| edit(i, Edit::Glob)),
        Rule::Scan => scan(&inner, base, words),
        Rule::Sort => sort(&inner, edit),
        Rule::Channels(from) => (from..inner.argc()).for_each(|i| edit(i, Edit::Channel)),
        Rule::ChannelGlobs(from) => (from..inner.argc()).for_each(|i| edit(i, Edit::ChannelGlob)),
        Rule::Publish if inner.argc() > 2 && is_keyevent(inner.arg(1)) => edit(2, Edit::Key),
        Rule::Publish => one(&inner, 1).for_each(|i| edit(i, Edit::Channel)),
        Rule::Inner(at) if inner.argc() <= at => return Outcome::Same,
        Rule::Inner(at) => return within_command(req, base + at, words),
        Rule::Tracking => tracking(&inner, base, words),
        Rule::Debug => return debug(&inner, edit),
    }
    // GEORADIUS and SORT find them in the order of the options, others in that of the words.
    words.edits.sort_by_key(|(at, _)| *at);
    words.edits.dedup();
    drop_idle_channels(req, words);
    Outcome::Changed
}

/// Argument `i`, if it is there.
fn one(req: &Request<'_>, i: usize) -> std::ops::Range<usize> {
    i..req.argc().min(i + 1)
}

/// A channel that is none of keyspace events stays as it is, and with it mostly the whole request.
fn drop_idle_channels(req: &Request<'_>, words: &mut Words) {
    let idle = |(at, edit): &(usize, Edit)| {
        matches!(edit, Edit::Channel | Edit::ChannelGlob) && key_at(req.arg(*at)).is_none()
    };
    words.edits.retain(|edit| !idle(edit));
}

/// The last MATCH counts; without one it is ours.
fn scan(req: &Request<'_>, base: usize, words: &mut Words) {
    let mut found = false;
    let mut i = 2;
    while i < req.argc() {
        if keys::is_word(req, i, "match") && i + 1 < req.argc() {
            words.edits.push((base + i + 1, Edit::Glob));
            found = true;
        }
        i += keys::step_over(req, i, &[("match", 2), ("count", 2), ("type", 2)]);
    }
    if !found && req.argc() > 1 {
        words.insert = Some((base + 2, MATCH));
    }
}

/// BY and GET substitute the first `*`, of which a prefix has none; `#` is the element itself.
fn sort(req: &Request<'_>, mut edit: impl FnMut(usize, Edit)) {
    one(req, 1).for_each(|i| edit(i, Edit::Key));
    let mut i = 2;
    while i < req.argc() {
        let names = ["by", "get", "store"].iter().any(|word| keys::is_word(req, i, word)) && i + 1 < req.argc();
        let element = keys::is_word(req, i, "get") && names && c_str(req.arg(i + 1)) == b"#";
        if names && !element {
            edit(i + 1, Edit::Key);
        }
        i += keys::step_over(req, i, &[("store", 2), ("by", 2), ("get", 2), ("limit", 3)]);
    }
}

/// CLIENT TRACKING ON BCAST is about keys that begin with PREFIX; without one it would be about everybody's.
fn tracking(req: &Request<'_>, base: usize, words: &mut Words) {
    let (mut bcast, mut named) = (false, false);
    let mut i = 3;
    while i < req.argc() {
        bcast |= keys::is_word(req, i, "bcast");
        if keys::is_word(req, i, "prefix") && i + 1 < req.argc() {
            words.edits.push((base + i + 1, Edit::Key));
            named = true;
        }
        i += keys::step_over(req, i, &[("redirect", 2), ("prefix", 2)]);
    }
    if bcast && !named {
        words.insert = Some((base + req.argc(), PREFIX));
    }
}

/// The subcommands that are told apart: those that name keys, and those that name none and change none.
fn debug(req: &Request<'_>, mut edit: impl FnMut(usize, Edit)) -> Outcome {
    let is = |words: &[&str]| req.argc() > 1 && words.iter().any(|word| keys::is_word(req, 1, word));
    if is(&["object", "ziplist", "listpack", "quicklist", "sdslen", "htstats-key"]) {
        one(req, 2).for_each(|i| edit(i, Edit::Key));
    } else if is(&["digest-value"]) {
        (2..req.argc()).for_each(|i| edit(i, Edit::Key));
    } else if req.argc() > 1 && !is(&["help", "sleep", "set-active-expire", "protocol", "error", "stringmatch-len"]) {
        return Outcome::Refused(UNKNOWN_KEYS);
    }
    Outcome::Changed
}

/// A command among the arguments of another (ACL DRYRUN).
fn within_command(req: &Request<'_>, at: usize, words: &mut Words) -> Outcome {
    let inner = Request { raw: req.raw, args: &req.args[at..] };
    match super::table::lookup(&inner) {
        super::table::Lookup::Known(spec) => match plan(spec, req, at, words) {
            Outcome::Own => Outcome::Same,
            outcome => outcome,
        },
        _ => Outcome::Refused(UNKNOWN_KEYS),
    }
}

fn rule(spec: &Spec) -> Rule {
    if spec.keys != Keys::None && !matches!(spec.name, "sort" | "sort_ro") {
        return Rule::Row;
    }
    match spec.name {
        "sort" | "sort_ro" => Rule::Sort,
        "keys" => Rule::Glob(1),
        "scan" => Rule::Scan,
        "randomkey" | "flushdb" | "flushall" => Rule::Own,
        "subscribe" | "unsubscribe" => Rule::Channels(1),
        "psubscribe" | "punsubscribe" => Rule::ChannelGlobs(1),
        "pubsub|numsub" => Rule::Channels(2),
        "pubsub|channels" => Rule::ChannelGlobs(2),
        "publish" => Rule::Publish,
        "acl|dryrun" => Rule::Inner(3),
        "client|tracking" => Rule::Tracking,
        "cluster|keyslot" => Rule::Key(2),
        "debug" => Rule::Debug,
        "dbsize" => Rule::Refused(COUNTS),
        "monitor" | "acl|log" | "function|stats" => Rule::Refused(EVERYBODYS),
        "cluster|getkeysinslot" | "cluster|countkeysinslot" => Rule::Refused(EVERYBODYS),
        name if is_log(name) => Rule::Refused(EVERYBODYS),
        _ if spec.effect != Effect::Read => Rule::Refused(REPLACES),
        _ => Rule::Nothing,
    }
}

/// SLOWLOG, and COMMANDLOG, its name in newer servers.
fn is_log(name: &str) -> bool {
    let of_log = name.split_once('|').filter(|(container, _)| matches!(*container, "slowlog" | "commandlog"));
    of_log.is_some_and(|(_, sub)| sub != "help")
}

/// Whether a container's subcommands that the table does not have may name keys.
pub(crate) fn may_name_keys(container: &[u8]) -> bool {
    const NONE: [&str; 9] = ["acl", "client", "command", "config", "function", "latency", "module", "pubsub", "script"];
    !NONE.iter().any(|name| container.eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether argument `i` of a request that is not all here is a key; `counted` is what its key count says, as far as it has
/// come. None: that cannot be told before all of it is here.
pub(crate) fn key_in_part(spec: &Spec, argc: usize, i: usize, counted: usize) -> Option<bool> {
    match rule(spec) {
        Rule::Nothing => Some(false),
        Rule::Row => match spec.keys {
            Keys::Range { .. } => Some(keys::is_key_position(spec, argc, i)),
            Keys::Count { at, dest } => {
                let first = usize::from(at) + 1;
                Some((1..=usize::from(dest)).contains(&i) || (first..first.saturating_add(counted)).contains(&i))
            }
            _ => None,
        },
        // Its channel may be one of keyspace events, but who says as much on those.
        Rule::Publish => Some(false),
        _ => None,
    }
}

/// How many keys argument `i` says there are, where it is the one that says so.
pub(crate) fn counted(spec: &Spec, i: usize, arg: &[u8]) -> Option<usize> {
    matches!(spec.keys, Keys::Count { at, .. } if usize::from(at) == i).then(|| keys::number(arg))
}

/// Why a request that is streamed is refused.
pub(crate) fn large_refusal(spec: Option<&Spec>) -> String {
    refusal(spec.map_or("this command", |s| s.name), "larger than 1 MiB, it is not looked through for keys")
}

/// Why a request of a name that nothing is known of is refused.
pub(crate) fn stranger_refusal(req: &Request<'_>) -> String {
    let name = String::from_utf8_lossy(&req.arg(0)[..req.arg(0).len().min(64)]).to_uppercase();
    refusal(&name, UNKNOWN_KEYS)
}

/// The refusal of a command by its canonical name.
pub(crate) fn refusal(name: &str, why: &str) -> String {
    format!("NEARSIDE {} is refused with upstream.key_prefix: {why}", name.to_uppercase().replace('|', " "))
}

/// Where a command's reply names keys.
pub(crate) fn strip(spec: &Spec) -> Strip {
    match spec.name {
        "keys" => Strip::Keys,
        "scan" => Strip::Scan,
        "blpop" | "brpop" | "bzpopmin" | "bzpopmax" | "blmpop" | "bzmpop" | "lmpop" | "zmpop" => Strip::First,
        "xread" | "xreadgroup" => Strip::Streams,
        "pubsub|channels" => Strip::Channels,
        "pubsub|numsub" => Strip::ChannelCounts,
        "client|trackinginfo" => Strip::Prefixes,
        "acl|dryrun" => Strip::Quoted,
        _ => Strip::None,
    }
}
