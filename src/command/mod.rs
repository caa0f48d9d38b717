//! What a command is: one static table (`table`) answers which keys it names, what it does to them, which kind of
//! upstream connection it needs, which RESP2 form its reply has and whether it may be sent again; `keys` finds the keys of
//! one concrete request. Pure: knows no connection, no cache, no configuration.

pub(crate) mod cacheable;
pub(crate) mod categories;
pub(crate) mod keys;
mod operation;
pub(crate) mod prefix;
pub(crate) mod strip;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use crate::resp::request::Arg;

/// One request as it came from the client: parsed once, forwarded unchanged. `args` are ranges of `raw`.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The whole request as multibulk RESP (an inline request has been rewritten into that form).
    pub(crate) raw: &'a [u8],
    pub(crate) args: &'a [Arg],
}

impl<'a> Request<'a> {
    /// Argument `i`; 0 is the command's name. Panics past the end, as a slice does.
    pub(crate) fn arg(&self, i: usize) -> &'a [u8] {
        &self.raw[self.args[i].range()]
    }

    pub(crate) fn argc(&self) -> usize {
        self.args.len()
    }

    /// Argument `i`, if there is one, equals `word` without regard to case (`word` in lower case).
    pub(crate) fn is(&self, i: usize, word: &str) -> bool {
        i < self.argc() && self.arg(i).eq_ignore_ascii_case(word.as_bytes())
    }
}

/// What a command does to the data, as far as the L1 must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Changes no key and no other state worth a rule: reads (GET, HGETALL, SCAN ...), PING, INFO, PUBLISH, CONFIG ...
    Read,
    /// May change the keys that `keys` finds, and no others.
    Write,
    /// May change keys that cannot be known: scripts, functions, SORT .. STORE by pattern, unknown and module commands.
    /// The keys `keys` finds are treated as written besides.
    Opaque,
    /// Empties a database or all of them (FLUSHDB, FLUSHALL).
    Flush,
    /// SWAPDB: like a flush of the L1, because Redis signals nothing (COHERENCE fact 25).
    SwapDb,
}

/// Which connection a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The shared lane.
    Lane,
    /// The shared lane unless the words of this request make it block (`keys::blocks`): XREAD, XREADGROUP.
    LaneUnlessBlock,
    /// A connection of the session's own, for as long as the named state lasts.
    Pinned(Why),
    /// Answered by the sidecar from the session's own state (HELLO, AUTH, SELECT, CLIENT ..., RESET, QUIT, NEARSIDE).
    Local,
    /// Never forwarded: SYNC, PSYNC, REPLCONF.
    Refuse,
}

/// Why a session is pinned: the metric label and the word in EXPLAIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// MULTI, EXEC, DISCARD.
    Transaction,
    /// WATCH, UNWATCH.
    Watch,
    /// Waits in upstream by design: BLPOP, XREAD BLOCK, WAIT ...
    Blocking,
    /// May hold its connection for long without being a blocking command: FLUSHALL, VSIM, FT.*, ...
    MayBlock,
    /// The SUBSCRIBE family.
    Subscribe,
    Monitor,
    /// CLIENT TRACKING and what belongs to it, asked for by the app itself.
    Tracking,
    /// Acts on the server or on a connection: SCRIPT KILL, CLIENT PAUSE, DEBUG, SHUTDOWN, FAILOVER ...
    Admin,
    /// A name that neither the table nor upstream's COMMAND INFO explains.
    Unknown,
    /// A module's command for a RESP2 client: its RESP3 reply cannot be converted exactly.
    Module,
    /// More than `limits::LARGE` bytes of request or reply.
    Large,
    /// This profile has no lane: upstream refused RESP3, or `upstream.lanes_max` is reached.
    NoLane,
    /// A local command that upstream must judge: SELECT of a database not seen before, malformed CLIENT ...
    Verify,
}

impl Why {
    /// Metric label and the word of EXPLAIN; `observe` counts by it without knowing this type.
    pub(crate) fn as_str(self) -> &'static str {
        crate::observe::reasons::Pin::WORDS[self as usize]
    }
}

/// Where the keys are among the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    None,
    /// `first`, then every `step`-th up to `last`; a negative `last` counts from the end (-1 is the last argument).
    Range {
        first: u8,
        last: i8,
        step: u8,
    },
    /// Argument `at` says how many keys follow it; `dest` keys more stand from argument 1 on (ZUNIONSTORE: dest 1, at 2).
    Count {
        at: u8,
        dest: u8,
    },
    /// XREAD, XREADGROUP: behind the word STREAMS, the first half of the rest.
    Streams,
    /// SORT: argument 1 and what STORE names.
    Sort,
    /// GEORADIUS, GEORADIUSBYMEMBER: argument 1 and what STORE or STOREDIST names.
    Georadius,
    /// MIGRATE: argument 3, or all behind KEYS where argument 3 is empty.
    Migrate,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Spec {
    /// Its place in the table, for whoever keeps something of his own about each command.
    pub(crate) row: u16,
    /// Canonical name in lower case; a subcommand as `client|setname`.
    pub(crate) name: &'static str,
    /// As Redis counts: positive exact, negative at least; the container's name counts for a subcommand too.
    pub(crate) arity: i16,
    pub(crate) keys: Keys,
    pub(crate) effect: Effect,
    pub(crate) need: Need,
    pub(crate) resp2: Resp2,
    /// R26: a core read without effects, which may be sent a second time.
    pub(crate) resend: bool,
    /// What the data path singles out.
    pub(crate) kind: Kind,
    /// R9: whether its replies may be kept in the L1.
    pub(crate) caching: cacheable::Caching,
}

/// Commands that the data path treats by name. All others are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Other,
    Get,
    Mget,
    /// SET, SETEX, PSETEX, GETSET: one key, whose new value GET can read back (dual write).
    Set,
    Mset,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Subscribe,
    Psubscribe,
    Ssubscribe,
    Unsubscribe,
    Punsubscribe,
    Sunsubscribe,
    Monitor,
    /// A pop that removes what it waited for: its keys are dropped at the reply (R20).
    BlockingPop,
    /// WAIT, WAITAOF.
    Wait,
    Auth,
    Hello,
    Select,
    Reset,
    Quit,
    Ping,
    Publish,
    Info,
    Shutdown,
    /// READONLY, READWRITE, ASKING: one answer for all three on a standalone server.
    Readonly,
    /// Any `client|...` row; `name` says which.
    Client,
    Nearside,
    /// EVAL, EVALSHA, FCALL and their _RO forms.
    Script,
    ScriptDebug,
}

/// How the RESP2 bytes are rebuilt from the RESP3 reply (RESP-FORMS rules 1 to 5), resolved per request by `keys::form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resp2 {
    /// The same bytes whatever the data.
    Same,
    /// Generic conversion, null `$-1`.
    Bulk,
    /// Generic conversion, null `*-1`.
    Array,
    /// Null `*-1` with this many words or more, else `$-1` (LPOP, RPOP: 3; ZRANK, ZREVRANK: 4).
    ArrayFrom(u8),
    /// Pairs at the top are flattened (ZRANGE family, HRANDFIELD ...), null `$-1`.
    Flatten,
    /// The map at the top becomes an array of pairs, null `*-1` (XREAD, XREADGROUP).
    Pairs,
    /// XPENDING's summary: nulls `$-1`, `$-1`, `*-1` by element.
    Xpending,
    /// Null `*-1` when it comes directly, `$-1` inside EXEC (BLMOVE, BRPOPLPUSH). Only ever pinned, so only documented.
    Direct,
}
