//! The static command table: every command and subcommand of Redis 7.0 to 7.4, and those of the Redis 8.0 and Valkey 8.1
//! cores, one row each. Consulted once per request, before anything else is decided.
//!
//! It is `const` data with a hash index built by the compiler, so there is nothing to initialise and nothing to lock. It does
//! not know renamed commands, modules or newer servers (the caller asks upstream's `COMMAND INFO` about those), and it does
//! not check a request's words: upstream does, and words the error.

use super::cacheable::{self, Absent, Caching, Never, Part};
use super::{Effect, Keys, Kind, Need, Request, Resp2, Spec};

/// What the table says about a request's name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lookup {
    Known(&'static Spec),
    /// A container (CLIENT, OBJECT, ...) with a subcommand that is missing or not in the table, or a name with a bar in
    /// it. Upstream words the error (or knows more than the table does), on a connection that only this session uses: a
    /// newer server's `CLIENT <new>` may change it. A name with a bar must not be asked about with COMMAND INFO, which
    /// would explain `client|kill` although no server accepts it as a command.
    UnknownSub,
    /// Renamed, a module's, of a newer server, or nonsense.
    Unknown,
}

/// The row of a request: 3 ns for GET, SET and MGET, 20 to 40 ns for others, 60 ns with a subcommand (measured, one core).
pub(crate) fn lookup(req: &Request<'_>) -> Lookup {
    if req.argc() == 0 {
        return Lookup::Unknown;
    }
    let name = req.arg(0);
    if let Some(spec) = hot(name) {
        return Lookup::Known(spec);
    }
    if name.len() > NAME_MAX {
        return Lookup::Unknown;
    }
    if name.contains(&b'|') {
        return Lookup::UnknownSub;
    }
    match find(name) {
        Some(spec) if req.argc() == 1 || spec.name != "command" => Lookup::Known(spec),
        _ if !is_container(name) => Lookup::Unknown,
        _ if req.argc() == 1 => Lookup::UnknownSub,
        _ => find_sub(name, req.arg(1)).map_or(Lookup::UnknownSub, Lookup::Known),
    }
}

/// The row with this canonical name (`get`, `client|setname`) in any case: for names that upstream explained.
pub(crate) fn by_name(name: &[u8]) -> Option<&'static Spec> {
    if name.len() > NAME_MAX { None } else { find(name) }
}

/// Whether the replies of the command that a configuration names so may be kept, in any case, a subcommand behind a blank
/// or a bar. A container's name alone stands for its first subcommand.
pub(crate) fn caching(name: &str) -> Option<Caching> {
    let name = name.trim().to_ascii_lowercase().replace(' ', "|");
    if name == JSON_GET.name {
        return Some(JSON_GET.caching);
    }
    let of_container = |row: &&Spec| row.name.split_once('|').is_some_and(|(container, _)| container == name);
    Some(by_name(name.as_bytes()).or_else(|| TABLE.iter().find(of_container))?.caching)
}

/// The one module command whose replies may be kept. Not in the table, which is the core's: a server without the module
/// has no such command, and one that has it says so (`COMMAND INFO`).
pub(crate) static JSON_GET: Spec = Spec {
    row: LEN as u16,
    name: "json.get",
    arity: -2,
    keys: Keys::Range { first: 1, last: 1, step: 1 },
    effect: Effect::Read,
    need: Need::Lane,
    resp2: Resp2::Bulk,
    resend: false,
    kind: Kind::Other,
    caching: cacheable::kept("json.get", Part::Some, Absent::Null),
};

/// Every row, in the order of `Spec::row`.
pub(crate) fn all() -> impl Iterator<Item = &'static Spec> {
    TABLE.iter()
}

/// Rows of the table; JSON.GET's number is one more.
pub(crate) const LEN: usize = ROWS.len();

pub(crate) fn containers() -> impl Iterator<Item = &'static str> {
    CONTAINERS.into_iter()
}

/// `POST` and `HOST:`: somebody's browser is made to talk to us; the caller closes the connection as Redis does. Redis
/// compares C strings, so what stands behind a NUL does not count: such a name on a lane would end it for everybody.
pub(crate) fn is_cross_protocol(name: &[u8]) -> bool {
    let name = super::keys::c_str(name);
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

/// The names most sessions send, without hashing. Setting bit 5 maps exactly the two cases of a letter to the lower one.
fn hot(name: &[u8]) -> Option<&'static Spec> {
    match *name {
        [a, b, c] => match u32::from_le_bytes([a, b, c, 0]) | 0x0020_2020 {
            WORD_GET => Some(&TABLE[GET]),
            WORD_SET => Some(&TABLE[SET]),
            _ => None,
        },
        [a, b, c, d] if u32::from_le_bytes([a, b, c, d]) | 0x2020_2020 == WORD_MGET => Some(&TABLE[MGET]),
        _ => None,
    }
}

const WORD_GET: u32 = u32::from_le_bytes(*b"get\0");
const WORD_SET: u32 = u32::from_le_bytes(*b"set\0");
const WORD_MGET: u32 = u32::from_le_bytes(*b"mget");
const GET: usize = position("get");
const SET: usize = position("set");
const MGET: usize = position("mget");

fn find(name: &[u8]) -> Option<&'static Spec> {
    probe(hash(HASH_SEED, name), |row| row.eq_ignore_ascii_case(name))
}

fn find_sub(container: &[u8], sub: &[u8]) -> Option<&'static Spec> {
    if container.len() + 1 + sub.len() > NAME_MAX {
        return None;
    }
    let hash = hash(hash(hash(HASH_SEED, container), b"|"), sub);
    probe(hash, |row| {
        row.len() == container.len() + 1 + sub.len()
            && row[..container.len()].eq_ignore_ascii_case(container)
            && row[container.len()] == b'|'
            && row[container.len() + 1..].eq_ignore_ascii_case(sub)
    })
}

/// Walks the slots from `hash` on to the first free one; there always is one, as `SLOTS` is more than the rows.
fn probe(hash: u32, is: impl Fn(&[u8]) -> bool) -> Option<&'static Spec> {
    let mut slot = slot(hash);
    while INDEX[slot] != FREE {
        let spec = &TABLE[INDEX[slot] as usize];
        if is(spec.name.as_bytes()) {
            return Some(spec);
        }
        slot = (slot + 1) % SLOTS;
    }
    None
}

/// Whether a command of this name is known by its subcommands only.
pub(crate) fn is_container(name: &[u8]) -> bool {
    CONTAINERS.iter().any(|c| c.as_bytes().eq_ignore_ascii_case(name))
}

/// Commands whose first argument names the row. DEBUG is not among them, in Redis neither.
const CONTAINERS: [&str; 16] = [
    "acl",
    "client",
    "cluster",
    "command",
    "commandlog",
    "config",
    "function",
    "latency",
    "memory",
    "module",
    "object",
    "pubsub",
    "script",
    "slowlog",
    "xgroup",
    "xinfo",
];

/// Slots of the index: a power of two that leaves 60 % of them free. A probe that hits looks at 1.3 rows on average; none,
/// whatever name a client makes up, at more than `RUN_MAX`.
const SLOTS: usize = 1024;
const FREE: u16 = u16::MAX;

/// The longest run of taken slots; 10 today. If new rows exceed it, another seed spreads them.
const RUN_MAX: usize = 12;
const HASH_SEED: u32 = 0x811c_9dc5;

static TABLE: [Spec; LEN] = numbered(ROWS);
static INDEX: [u16; SLOTS] = build_index();

/// No name that is longer is looked at: a request may name 512 MiB.
const NAME_MAX: usize = longest();

const fn numbered(mut rows: [Spec; LEN]) -> [Spec; LEN] {
    let mut row = 0;
    while row < LEN {
        rows[row].row = row as u16;
        row += 1;
    }
    rows
}

const fn build_index() -> [u16; SLOTS] {
    let mut index = [FREE; SLOTS];
    let mut row = 0;
    while row < ROWS.len() {
        let mut at = slot(hash(HASH_SEED, ROWS[row].name.as_bytes()));
        while index[at] != FREE {
            at = (at + 1) % SLOTS;
        }
        index[at] = row as u16;
        row += 1;
    }
    assert!(longest_run(&index) <= RUN_MAX);
    index
}

/// Twice around, for the run that goes on from the last slot to the first.
const fn longest_run(index: &[u16; SLOTS]) -> usize {
    let (mut max, mut run, mut at) = (0, 0, 0);
    while at < 2 * SLOTS {
        run = if index[at % SLOTS] == FREE { 0 } else { run + 1 };
        if run > max {
            max = run;
        }
        at += 1;
    }
    max
}

/// FNV-1a over the lower-cased bytes: it runs in the compiler too and can be continued over a subcommand. Nobody outside
/// chooses what is stored, so it needs no secret seed.
const fn hash(mut hash: u32, name: &[u8]) -> u32 {
    let mut i = 0;
    while i < name.len() {
        hash = (hash ^ name[i].to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

const fn slot(hash: u32) -> usize {
    (hash ^ (hash >> 15)) as usize % SLOTS
}

const fn longest() -> usize {
    let (mut max, mut row) = (0, 0);
    while row < ROWS.len() {
        if ROWS[row].name.len() > max {
            max = ROWS[row].name.len();
        }
        row += 1;
    }
    max
}

/// Where a row stands. Evaluated by the compiler only; a name without a row does not compile.
const fn position(name: &str) -> usize {
    let mut row = 0;
    while !same(ROWS[row].name.as_bytes(), name.as_bytes()) {
        row += 1;
    }
    row
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// The words of the table's columns `keys`, `need` and `again`.
mod col {
    use crate::command::{Keys, Need, Why};

    pub(super) const NONE: Keys = Keys::None;
    pub(super) const ONE: Keys = range(1, 1, 1);
    pub(super) const TWO: Keys = range(1, 2, 1);
    /// All arguments.
    pub(super) const ALL: Keys = range(1, -1, 1);
    /// Every other one: key value key value.
    pub(super) const PAIRS: Keys = range(1, -1, 2);
    /// All but the last, which is a timeout.
    pub(super) const POP: Keys = range(1, -2, 1);
    /// All from the second on (BITOP).
    pub(super) const FROM2: Keys = range(2, -1, 1);
    /// The one behind the subcommand.
    pub(super) const SECOND: Keys = range(2, 2, 1);
    pub(super) const COUNT1: Keys = Keys::Count { at: 1, dest: 0 };
    pub(super) const COUNT2: Keys = Keys::Count { at: 2, dest: 0 };
    pub(super) const STORE: Keys = Keys::Count { at: 2, dest: 1 };
    pub(super) const STREAMS: Keys = Keys::Streams;
    pub(super) const SORT: Keys = Keys::Sort;
    pub(super) const GEORADIUS: Keys = Keys::Georadius;
    pub(super) const MIGRATE: Keys = Keys::Migrate;

    pub(super) const LANE: Need = Need::Lane;
    pub(super) const UNLESS: Need = Need::LaneUnlessBlock;
    pub(super) const LOCAL: Need = Need::Local;
    pub(super) const REFUSE: Need = Need::Refuse;
    pub(super) const TXN: Need = Need::Pinned(Why::Transaction);
    pub(super) const WATCH: Need = Need::Pinned(Why::Watch);
    pub(super) const BLOCKS: Need = Need::Pinned(Why::Blocking);
    pub(super) const SLOW: Need = Need::Pinned(Why::MayBlock);
    pub(super) const SUBS: Need = Need::Pinned(Why::Subscribe);
    pub(super) const MONITOR: Need = Need::Pinned(Why::Monitor);
    pub(super) const TRACKING: Need = Need::Pinned(Why::Tracking);
    pub(super) const ADMIN: Need = Need::Pinned(Why::Admin);

    /// `resend`: may be sent a second time (R26).
    pub(super) const AGAIN: bool = true;
    pub(super) const ONCE: bool = false;

    const fn range(first: u8, last: i8, step: u8) -> Keys {
        Keys::Range { first, last, step }
    }
}

/// The column `caching`: nothing for what is no read of a key, else `Never(why)` or `part(answer of an absent key)`.
macro_rules! caching {
    ($name:literal $effect:ident $keys:ident) => {
        cacheable::otherwise(Effect::$effect, col::$keys)
    };
    ($name:literal $effect:ident $keys:ident Never $why:ident) => {
        Caching::Never(Never::$why)
    };
    ($name:literal $effect:ident $keys:ident $part:ident $absent:ident) => {
        cacheable::kept($name, Part::$part, Absent::$absent)
    };
}

macro_rules! table {
    ($($name:literal $arity:literal $keys:ident $effect:ident $need:ident
       $resp2:ident $(($words:literal))? $again:ident $kind:ident $($caching:ident ($what:ident))?;)*) => {
        const ROWS: [Spec; [$($name),*].len()] = [$(Spec {
            row: 0,
            name: $name,
            arity: $arity,
            keys: col::$keys,
            effect: Effect::$effect,
            need: col::$need,
            resp2: Resp2::$resp2 $(($words))?,
            resend: col::$again,
            kind: Kind::$kind,
            caching: caching!($name $effect $keys $($caching $what)?),
        }),*];
    };
}

// Where servers differ the arity is the loosest (ZRANK takes WITHSCORE from 7.2 on). Rows that look odd:
// PFCOUNT writes its cached cardinality; SORT is a write because of STORE; FUNCTION LOAD and its kin change no key; the
// _RO scripts cannot write; vector sets are a module inside Redis 8, so R26 does not have them sent again; REPLICAOF and
// what moves cluster slots replace data that no key names.
table! {
    // name                    arity  keys      effect need     resp2        again kind   caching
    // strings
    "append"                         3  ONE       Write  LANE     Same         ONCE  Other;
    "decr"                           2  ONE       Write  LANE     Same         ONCE  Other;
    "decrby"                         3  ONE       Write  LANE     Same         ONCE  Other;
    "get"                            2  ONE       Read   LANE     Bulk         AGAIN Get    Whole(Null);
    "getdel"                         2  ONE       Write  LANE     Bulk         ONCE  Other;
    "getex"                         -2  ONE       Write  LANE     Bulk         ONCE  Other;
    "getrange"                       4  ONE       Read   LANE     Same         AGAIN Other  Some(Text);
    "getset"                         3  ONE       Write  LANE     Bulk         ONCE  Set;
    "incr"                           2  ONE       Write  LANE     Same         ONCE  Other;
    "incrby"                         3  ONE       Write  LANE     Same         ONCE  Other;
    "incrbyfloat"                    3  ONE       Write  LANE     Same         ONCE  Other;
    "lcs"                           -3  TWO       Read   LANE     Bulk         AGAIN Other  Never(Several);
    "mget"                          -2  ALL       Read   LANE     Bulk         AGAIN Mget   Whole(Null);
    "mset"                          -3  PAIRS     Write  LANE     Same         ONCE  Mset;
    "msetnx"                        -3  PAIRS     Write  LANE     Same         ONCE  Other;
    "psetex"                         4  ONE       Write  LANE     Same         ONCE  Set;
    "set"                           -3  ONE       Write  LANE     Bulk         ONCE  Set;
    "setex"                          4  ONE       Write  LANE     Same         ONCE  Set;
    "setnx"                          3  ONE       Write  LANE     Same         ONCE  Other;
    "setrange"                       4  ONE       Write  LANE     Same         ONCE  Other;
    "strlen"                         2  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "substr"                         4  ONE       Read   LANE     Same         AGAIN Other  Some(Text);
    // bitmaps
    "bitcount"                      -2  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "bitfield"                      -2  ONE       Write  LANE     Bulk         ONCE  Other;
    "bitfield_ro"                   -2  ONE       Read   LANE     Same         AGAIN Other  Never(Unlisted);
    "bitop"                         -4  FROM2     Write  LANE     Same         ONCE  Other;
    "bitpos"                        -3  ONE       Read   LANE     Same         AGAIN Other  Some(Bit);
    "getbit"                         3  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "setbit"                         4  ONE       Write  LANE     Same         ONCE  Other;
    // keys of any type
    "copy"                          -3  TWO       Write  LANE     Same         ONCE  Other;
    "del"                           -2  ALL       Write  LANE     Same         ONCE  Other;
    "dump"                           2  ONE       Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "exists"                        -2  ALL       Read   LANE     Same         AGAIN Other  Whole(Zero);
    "expire"                        -3  ONE       Write  LANE     Same         ONCE  Other;
    "expireat"                      -3  ONE       Write  LANE     Same         ONCE  Other;
    "expiretime"                     2  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "keys"                           2  NONE      Read   LANE     Same         AGAIN Other;
    "migrate"                       -6  MIGRATE   Write  SLOW     Same         ONCE  Other;
    "move"                           3  ONE       Write  LANE     Same         ONCE  Other;
    "object|encoding"                3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "object|freq"                    3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "object|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "object|idletime"                3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "object|refcount"                3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "persist"                        2  ONE       Write  LANE     Same         ONCE  Other;
    "pexpire"                       -3  ONE       Write  LANE     Same         ONCE  Other;
    "pexpireat"                     -3  ONE       Write  LANE     Same         ONCE  Other;
    "pexpiretime"                    2  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "pttl"                           2  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "randomkey"                      1  NONE      Read   LANE     Bulk         AGAIN Other  Never(Chance);
    "rename"                         3  TWO       Write  LANE     Same         ONCE  Other;
    "renamenx"                       3  TWO       Write  LANE     Same         ONCE  Other;
    "restore"                       -4  ONE       Write  LANE     Same         ONCE  Other;
    "scan"                          -2  NONE      Read   LANE     Same         AGAIN Other  Never(Cursor);
    "sort"                          -2  SORT      Write  LANE     Bulk         ONCE  Other;
    "sort_ro"                       -2  ONE       Read   LANE     Bulk         AGAIN Other  Never(External);
    "touch"                         -2  ALL       Read   LANE     Same         AGAIN Other  Never(Upkeep);
    "ttl"                            2  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "type"                           2  ONE       Read   LANE     Same         AGAIN Other  Whole(Word);
    "unlink"                        -2  ALL       Write  LANE     Same         ONCE  Other;
    "wait"                           3  NONE      Read   BLOCKS   Same         ONCE  Wait;
    "waitaof"                        4  NONE      Read   BLOCKS   Same         ONCE  Wait;
    // hashes
    "hdel"                          -3  ONE       Write  LANE     Same         ONCE  Other;
    "hexists"                        3  ONE       Read   LANE     Same         AGAIN Other  Field(Zero);
    "hexpire"                       -6  ONE       Write  LANE     Same         ONCE  Other;
    "hexpireat"                     -6  ONE       Write  LANE     Same         ONCE  Other;
    "hexpiretime"                   -5  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "hget"                           3  ONE       Read   LANE     Bulk         AGAIN Other  Field(Null);
    "hgetall"                        2  ONE       Read   LANE     Bulk         AGAIN Other  Fields(Empty);
    "hgetdel"                       -5  ONE       Write  LANE     Bulk         ONCE  Other;
    "hgetex"                        -5  ONE       Write  LANE     Bulk         ONCE  Other;
    "hincrby"                        4  ONE       Write  LANE     Same         ONCE  Other;
    "hincrbyfloat"                   4  ONE       Write  LANE     Same         ONCE  Other;
    "hkeys"                          2  ONE       Read   LANE     Same         AGAIN Other  Fields(Empty);
    "hlen"                           2  ONE       Read   LANE     Same         AGAIN Other  Fields(Zero);
    "hmget"                         -3  ONE       Read   LANE     Bulk         AGAIN Other  Field(Nulls);
    "hmset"                         -4  ONE       Write  LANE     Same         ONCE  Other;
    "hpersist"                      -5  ONE       Write  LANE     Same         ONCE  Other;
    "hpexpire"                      -6  ONE       Write  LANE     Same         ONCE  Other;
    "hpexpireat"                    -6  ONE       Write  LANE     Same         ONCE  Other;
    "hpexpiretime"                  -5  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "hpttl"                         -5  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "hrandfield"                    -2  ONE       Read   LANE     Flatten      AGAIN Other  Never(Chance);
    "hscan"                         -3  ONE       Read   LANE     Same         AGAIN Other  Never(Cursor);
    "hset"                          -4  ONE       Write  LANE     Same         ONCE  Other;
    "hsetex"                        -6  ONE       Write  LANE     Same         ONCE  Other;
    "hsetnx"                         4  ONE       Write  LANE     Same         ONCE  Other;
    "hstrlen"                        3  ONE       Read   LANE     Same         AGAIN Other  Field(Zero);
    "httl"                          -5  ONE       Read   LANE     Same         AGAIN Other  Never(Clock);
    "hvals"                          2  ONE       Read   LANE     Same         AGAIN Other  Fields(Empty);
    // lists
    "blmove"                         6  TWO       Write  BLOCKS   Direct       ONCE  BlockingPop;
    "blmpop"                        -5  COUNT2    Write  BLOCKS   Array        ONCE  BlockingPop;
    "blpop"                         -3  POP       Write  BLOCKS   Array        ONCE  BlockingPop;
    "brpop"                         -3  POP       Write  BLOCKS   Array        ONCE  BlockingPop;
    "brpoplpush"                     4  TWO       Write  BLOCKS   Direct       ONCE  BlockingPop;
    "lindex"                         3  ONE       Read   LANE     Bulk         AGAIN Other  Some(Null);
    "linsert"                        5  ONE       Write  LANE     Same         ONCE  Other;
    "llen"                           2  ONE       Read   LANE     Same         AGAIN Other  Whole(Zero);
    "lmove"                          5  TWO       Write  LANE     Bulk         ONCE  Other;
    "lmpop"                         -4  COUNT1    Write  LANE     Array        ONCE  Other;
    "lpop"                          -2  ONE       Write  LANE     ArrayFrom(3) ONCE  Other;
    "lpos"                          -3  ONE       Read   LANE     Bulk         AGAIN Other  Some(NullOrEmpty);
    "lpush"                         -3  ONE       Write  LANE     Same         ONCE  Other;
    "lpushx"                        -3  ONE       Write  LANE     Same         ONCE  Other;
    "lrange"                         4  ONE       Read   LANE     Same         AGAIN Other  Some(Empty);
    "lrem"                           4  ONE       Write  LANE     Same         ONCE  Other;
    "lset"                           4  ONE       Write  LANE     Same         ONCE  Other;
    "ltrim"                          4  ONE       Write  LANE     Same         ONCE  Other;
    "rpop"                          -2  ONE       Write  LANE     ArrayFrom(3) ONCE  Other;
    "rpoplpush"                      3  TWO       Write  LANE     Bulk         ONCE  Other;
    "rpush"                         -3  ONE       Write  LANE     Same         ONCE  Other;
    "rpushx"                        -3  ONE       Write  LANE     Same         ONCE  Other;
    // sets
    "sadd"                          -3  ONE       Write  LANE     Same         ONCE  Other;
    "scard"                          2  ONE       Read   LANE     Same         AGAIN Other  Whole(Zero);
    "sdiff"                         -2  ALL       Read   LANE     Bulk         AGAIN Other  Never(Several);
    "sdiffstore"                    -3  ALL       Write  LANE     Same         ONCE  Other;
    "sinter"                        -2  ALL       Read   LANE     Bulk         AGAIN Other  Never(Several);
    "sintercard"                    -3  COUNT1    Read   LANE     Same         AGAIN Other  Never(Several);
    "sinterstore"                   -3  ALL       Write  LANE     Same         ONCE  Other;
    "sismember"                      3  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "smembers"                       2  ONE       Read   LANE     Bulk         AGAIN Other  Whole(Empty);
    "smismember"                    -3  ONE       Read   LANE     Same         AGAIN Other  Some(Zeros);
    "smove"                          4  TWO       Write  LANE     Same         ONCE  Other;
    "spop"                          -2  ONE       Write  LANE     Bulk         ONCE  Other;
    "srandmember"                   -2  ONE       Read   LANE     Bulk         AGAIN Other  Never(Chance);
    "srem"                          -3  ONE       Write  LANE     Same         ONCE  Other;
    "sscan"                         -3  ONE       Read   LANE     Same         AGAIN Other  Never(Cursor);
    "sunion"                        -2  ALL       Read   LANE     Bulk         AGAIN Other  Never(Several);
    "sunionstore"                   -3  ALL       Write  LANE     Same         ONCE  Other;
    // sorted sets
    "bzmpop"                        -5  COUNT2    Write  BLOCKS   Array        ONCE  BlockingPop;
    "bzpopmax"                      -3  POP       Write  BLOCKS   Array        ONCE  BlockingPop;
    "bzpopmin"                      -3  POP       Write  BLOCKS   Array        ONCE  BlockingPop;
    "zadd"                          -4  ONE       Write  LANE     Bulk         ONCE  Other;
    "zcard"                          2  ONE       Read   LANE     Same         AGAIN Other  Whole(Zero);
    "zcount"                         4  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "zdiff"                         -3  COUNT1    Read   LANE     Flatten      AGAIN Other  Never(Several);
    "zdiffstore"                    -4  STORE     Write  LANE     Same         ONCE  Other;
    "zincrby"                        4  ONE       Write  LANE     Bulk         ONCE  Other;
    "zinter"                        -3  COUNT1    Read   LANE     Flatten      AGAIN Other  Never(Several);
    "zintercard"                    -3  COUNT1    Read   LANE     Same         AGAIN Other  Never(Several);
    "zinterstore"                   -4  STORE     Write  LANE     Same         ONCE  Other;
    "zlexcount"                      4  ONE       Read   LANE     Same         AGAIN Other  Some(Zero);
    "zmpop"                         -4  COUNT1    Write  LANE     Array        ONCE  Other;
    "zmscore"                       -3  ONE       Read   LANE     Bulk         AGAIN Other  Some(Nulls);
    "zpopmax"                       -2  ONE       Write  LANE     Flatten      ONCE  Other;
    "zpopmin"                       -2  ONE       Write  LANE     Flatten      ONCE  Other;
    "zrandmember"                   -2  ONE       Read   LANE     Flatten      AGAIN Other  Never(Chance);
    "zrange"                        -4  ONE       Read   LANE     Flatten      AGAIN Other  Some(Empty);
    "zrangebylex"                   -4  ONE       Read   LANE     Same         AGAIN Other  Some(Empty);
    "zrangebyscore"                 -4  ONE       Read   LANE     Flatten      AGAIN Other  Some(Empty);
    "zrangestore"                   -5  TWO       Write  LANE     Same         ONCE  Other;
    "zrank"                         -3  ONE       Read   LANE     ArrayFrom(4) AGAIN Other  Some(Null);
    "zrem"                          -3  ONE       Write  LANE     Same         ONCE  Other;
    "zremrangebylex"                 4  ONE       Write  LANE     Same         ONCE  Other;
    "zremrangebyrank"                4  ONE       Write  LANE     Same         ONCE  Other;
    "zremrangebyscore"               4  ONE       Write  LANE     Same         ONCE  Other;
    "zrevrange"                     -4  ONE       Read   LANE     Flatten      AGAIN Other  Some(Empty);
    "zrevrangebylex"                -4  ONE       Read   LANE     Same         AGAIN Other  Some(Empty);
    "zrevrangebyscore"              -4  ONE       Read   LANE     Flatten      AGAIN Other  Some(Empty);
    "zrevrank"                      -3  ONE       Read   LANE     ArrayFrom(4) AGAIN Other  Some(Null);
    "zscan"                         -3  ONE       Read   LANE     Same         AGAIN Other  Never(Cursor);
    "zscore"                         3  ONE       Read   LANE     Bulk         AGAIN Other  Some(Null);
    "zunion"                        -3  COUNT1    Read   LANE     Flatten      AGAIN Other  Never(Several);
    "zunionstore"                   -4  STORE     Write  LANE     Same         ONCE  Other;
    // geo
    "geoadd"                        -5  ONE       Write  LANE     Same         ONCE  Other;
    "geodist"                       -4  ONE       Read   LANE     Bulk         AGAIN Other  Never(Unlisted);
    "geohash"                       -2  ONE       Read   LANE     Bulk         AGAIN Other  Never(Unlisted);
    "geopos"                        -2  ONE       Read   LANE     Array        AGAIN Other  Never(Unlisted);
    "georadius"                     -6  GEORADIUS Write  LANE     Bulk         ONCE  Other;
    "georadius_ro"                  -6  ONE       Read   LANE     Bulk         AGAIN Other  Never(Unlisted);
    "georadiusbymember"             -5  GEORADIUS Write  LANE     Bulk         ONCE  Other;
    "georadiusbymember_ro"          -5  ONE       Read   LANE     Bulk         AGAIN Other  Never(Unlisted);
    "geosearch"                     -7  ONE       Read   LANE     Bulk         AGAIN Other  Never(Unlisted);
    "geosearchstore"                -8  TWO       Write  LANE     Same         ONCE  Other;
    // hyperloglog
    "pfadd"                         -2  ONE       Write  LANE     Same         ONCE  Other;
    "pfcount"                       -2  ALL       Write  LANE     Same         ONCE  Other;
    "pfdebug"                        3  SECOND    Write  LANE     Same         ONCE  Other;
    "pfmerge"                       -2  ALL       Write  LANE     Same         ONCE  Other;
    "pfselftest"                     1  NONE      Read   SLOW     Same         ONCE  Other;
    // streams
    "xack"                          -4  ONE       Write  LANE     Same         ONCE  Other;
    "xadd"                          -5  ONE       Write  LANE     Bulk         ONCE  Other;
    "xautoclaim"                    -6  ONE       Write  LANE     Same         ONCE  Other;
    "xclaim"                        -6  ONE       Write  LANE     Same         ONCE  Other;
    "xdel"                          -3  ONE       Write  LANE     Same         ONCE  Other;
    "xgroup|create"                 -5  SECOND    Write  LANE     Same         ONCE  Other;
    "xgroup|createconsumer"          5  SECOND    Write  LANE     Same         ONCE  Other;
    "xgroup|delconsumer"             5  SECOND    Write  LANE     Same         ONCE  Other;
    "xgroup|destroy"                 4  SECOND    Write  LANE     Same         ONCE  Other;
    "xgroup|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "xgroup|setid"                  -5  SECOND    Write  LANE     Same         ONCE  Other;
    "xinfo|consumers"                4  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Stream);
    "xinfo|groups"                   3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Stream);
    "xinfo|help"                     2  NONE      Read   LANE     Same         ONCE  Other;
    "xinfo|stream"                  -3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Stream);
    "xlen"                           2  ONE       Read   LANE     Same         AGAIN Other  Never(Stream);
    "xpending"                      -3  ONE       Read   LANE     Xpending     AGAIN Other  Never(Stream);
    "xrange"                        -4  ONE       Read   LANE     Array        AGAIN Other  Never(Stream);
    "xread"                         -4  STREAMS   Read   UNLESS   Pairs        AGAIN Other  Never(Stream);
    "xreadgroup"                    -7  STREAMS   Write  UNLESS   Pairs        ONCE  Other;
    "xrevrange"                     -4  ONE       Read   LANE     Array        AGAIN Other  Never(Stream);
    "xsetid"                        -3  ONE       Write  LANE     Same         ONCE  Other;
    "xtrim"                         -4  ONE       Write  LANE     Same         ONCE  Other;
    // vector sets (Redis 8, built in)
    "vadd"                          -1  ONE       Write  SLOW     Bulk         ONCE  Other;
    "vcard"                         -1  ONE       Read   LANE     Same         ONCE  Other  Never(Module);
    "vdim"                          -1  ONE       Read   LANE     Same         ONCE  Other  Never(Module);
    "vemb"                          -1  ONE       Read   LANE     Bulk         ONCE  Other  Never(Module);
    "vgetattr"                      -1  ONE       Read   LANE     Bulk         ONCE  Other  Never(Module);
    "vinfo"                         -1  ONE       Read   LANE     Array        ONCE  Other  Never(Module);
    "vismember"                     -1  ONE       Read   LANE     Bulk         ONCE  Other  Never(Module);
    "vlinks"                        -1  ONE       Read   LANE     Bulk         ONCE  Other  Never(Module);
    "vrandmember"                   -1  ONE       Read   LANE     Bulk         ONCE  Other  Never(Chance);
    "vrem"                          -1  ONE       Write  LANE     Bulk         ONCE  Other;
    "vsetattr"                      -1  ONE       Write  LANE     Bulk         ONCE  Other;
    "vsim"                          -1  ONE       Read   SLOW     Bulk         ONCE  Other  Never(Module);
    // transactions
    "discard"                        1  NONE      Read   TXN      Same         ONCE  Discard;
    "exec"                           1  NONE      Read   TXN      Array        ONCE  Exec;
    "multi"                          1  NONE      Read   TXN      Same         ONCE  Multi;
    "unwatch"                        1  NONE      Read   WATCH    Same         ONCE  Unwatch;
    "watch"                         -2  ALL       Read   WATCH    Same         ONCE  Watch;
    // publish and subscribe
    "psubscribe"                    -2  NONE      Read   SUBS     Bulk         ONCE  Psubscribe;
    "publish"                        3  NONE      Read   LANE     Same         ONCE  Publish;
    "pubsub|channels"               -2  NONE      Read   LANE     Same         ONCE  Other;
    "pubsub|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "pubsub|numpat"                  2  NONE      Read   LANE     Same         ONCE  Other;
    "pubsub|numsub"                 -2  NONE      Read   LANE     Same         ONCE  Other;
    "pubsub|shardchannels"          -2  NONE      Read   LANE     Same         ONCE  Other;
    "pubsub|shardnumsub"            -2  NONE      Read   LANE     Same         ONCE  Other;
    "punsubscribe"                  -1  NONE      Read   SUBS     Bulk         ONCE  Punsubscribe;
    "spublish"                       3  NONE      Read   LANE     Same         ONCE  Other;
    "ssubscribe"                    -2  NONE      Read   SUBS     Bulk         ONCE  Ssubscribe;
    "subscribe"                     -2  NONE      Read   SUBS     Bulk         ONCE  Subscribe;
    "sunsubscribe"                  -1  NONE      Read   SUBS     Bulk         ONCE  Sunsubscribe;
    "unsubscribe"                   -1  NONE      Read   SUBS     Bulk         ONCE  Unsubscribe;
    // scripts and functions
    "eval"                          -3  COUNT2    Opaque LANE     Bulk         ONCE  Script;
    "eval_ro"                       -3  COUNT2    Read   LANE     Bulk         ONCE  Script Never(Script);
    "evalsha"                       -3  COUNT2    Opaque LANE     Bulk         ONCE  Script;
    "evalsha_ro"                    -3  COUNT2    Read   LANE     Bulk         ONCE  Script Never(Script);
    "fcall"                         -3  COUNT2    Opaque LANE     Bulk         ONCE  Script;
    "fcall_ro"                      -3  COUNT2    Read   LANE     Bulk         ONCE  Script Never(Script);
    "function|delete"                3  NONE      Read   LANE     Same         ONCE  Other;
    "function|dump"                  2  NONE      Read   LANE     Same         ONCE  Other;
    "function|flush"                -2  NONE      Read   LANE     Same         ONCE  Other;
    "function|help"                  2  NONE      Read   LANE     Same         ONCE  Other;
    "function|kill"                  2  NONE      Read   ADMIN    Same         ONCE  Other;
    "function|list"                 -2  NONE      Read   LANE     Bulk         ONCE  Other;
    "function|load"                 -3  NONE      Read   LANE     Same         ONCE  Other;
    "function|restore"              -3  NONE      Read   LANE     Same         ONCE  Other;
    "function|stats"                 2  NONE      Read   LANE     Bulk         ONCE  Other;
    "script|debug"                   3  NONE      Read   ADMIN    Same         ONCE  ScriptDebug;
    "script|exists"                 -3  NONE      Read   LANE     Same         ONCE  Other;
    "script|flush"                  -2  NONE      Read   LANE     Same         ONCE  Other;
    "script|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "script|kill"                    2  NONE      Read   ADMIN    Same         ONCE  Other;
    "script|load"                    3  NONE      Read   LANE     Same         ONCE  Other;
    "script|show"                    3  NONE      Read   LANE     Same         ONCE  Other;
    // connection
    "auth"                          -2  NONE      Read   LOCAL    Same         ONCE  Auth;
    "client|caching"                 3  NONE      Read   TRACKING Same         ONCE  Client;
    "client|capa"                   -3  NONE      Read   ADMIN    Same         ONCE  Client;
    "client|getname"                 2  NONE      Read   LOCAL    Bulk         ONCE  Client;
    "client|getredir"                2  NONE      Read   TRACKING Same         ONCE  Client;
    "client|help"                    2  NONE      Read   ADMIN    Same         ONCE  Client;
    "client|id"                      2  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|import-source"           3  NONE      Read   ADMIN    Same         ONCE  Client;
    "client|info"                    2  NONE      Read   LOCAL    Bulk         ONCE  Client;
    "client|kill"                   -3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|list"                   -2  NONE      Read   LOCAL    Bulk         ONCE  Client;
    "client|maint_notifications"    -2  NONE      Read   ADMIN    Bulk         ONCE  Client;
    "client|no-evict"                3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|no-touch"                3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|pause"                  -3  NONE      Read   ADMIN    Same         ONCE  Client;
    "client|reply"                   3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|setinfo"                 4  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|setname"                 3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|tracking"               -3  NONE      Read   TRACKING Same         ONCE  Client;
    "client|trackinginfo"            2  NONE      Read   TRACKING Bulk         ONCE  Client;
    "client|unblock"                -3  NONE      Read   LOCAL    Same         ONCE  Client;
    "client|unpause"                 2  NONE      Read   ADMIN    Same         ONCE  Client;
    "echo"                           2  NONE      Read   LANE     Same         AGAIN Other;
    "hello"                         -1  NONE      Read   LOCAL    Bulk         ONCE  Hello;
    "ping"                          -1  NONE      Read   LANE     Same         AGAIN Ping;
    "quit"                          -1  NONE      Read   LOCAL    Same         ONCE  Quit;
    "reset"                          1  NONE      Read   LOCAL    Same         ONCE  Reset;
    "select"                         2  NONE      Read   LOCAL    Same         ONCE  Select;
    // server
    "acl|cat"                       -2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|deluser"                   -3  NONE      Read   LANE     Same         ONCE  Other;
    "acl|dryrun"                    -4  NONE      Read   LANE     Same         ONCE  Other;
    "acl|genpass"                   -2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|getuser"                    3  NONE      Read   LANE     Bulk         ONCE  Other;
    "acl|help"                       2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|list"                       2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|load"                       2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|log"                       -2  NONE      Read   LANE     Bulk         ONCE  Other;
    "acl|save"                       2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|setuser"                   -3  NONE      Read   LANE     Same         ONCE  Other;
    "acl|users"                      2  NONE      Read   LANE     Same         ONCE  Other;
    "acl|whoami"                     2  NONE      Read   LANE     Same         ONCE  Other;
    "bgrewriteaof"                   1  NONE      Read   LANE     Same         ONCE  Other;
    "bgsave"                        -1  NONE      Read   LANE     Same         ONCE  Other;
    "command"                       -1  NONE      Read   LANE     Bulk         ONCE  Other;
    "commandlog|get"                 4  NONE      Read   LANE     Same         ONCE  Other;
    "commandlog|help"                2  NONE      Read   LANE     Same         ONCE  Other;
    "commandlog|len"                 3  NONE      Read   LANE     Same         ONCE  Other;
    "commandlog|reset"               3  NONE      Read   LANE     Same         ONCE  Other;
    "command|count"                  2  NONE      Read   LANE     Same         ONCE  Other;
    "command|docs"                  -2  NONE      Read   LANE     Bulk         ONCE  Other;
    "command|getkeys"               -3  NONE      Read   LANE     Same         ONCE  Other;
    "command|getkeysandflags"       -3  NONE      Read   LANE     Bulk         ONCE  Other;
    "command|help"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "command|info"                  -2  NONE      Read   LANE     Bulk         ONCE  Other;
    "command|list"                  -2  NONE      Read   LANE     Same         ONCE  Other;
    "config|get"                    -3  NONE      Read   LANE     Bulk         ONCE  Other;
    "config|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "config|resetstat"               2  NONE      Read   LANE     Same         ONCE  Other;
    "config|rewrite"                 2  NONE      Read   ADMIN    Same         ONCE  Other;
    "config|set"                    -4  NONE      Read   LANE     Same         ONCE  Other;
    "dbsize"                         1  NONE      Read   LANE     Same         AGAIN Other;
    "debug"                         -2  NONE      Opaque ADMIN    Bulk         ONCE  Other;
    "failover"                      -1  NONE      Opaque ADMIN    Same         ONCE  Other;
    "flushall"                      -1  NONE      Flush  SLOW     Same         ONCE  Other;
    "flushdb"                       -1  NONE      Flush  SLOW     Same         ONCE  Other;
    "info"                          -1  NONE      Read   LANE     Bulk         AGAIN Info;
    "lastsave"                       1  NONE      Read   LANE     Same         ONCE  Other;
    "latency|doctor"                 2  NONE      Read   LANE     Bulk         ONCE  Other;
    "latency|graph"                  3  NONE      Read   LANE     Bulk         ONCE  Other;
    "latency|help"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "latency|histogram"             -2  NONE      Read   LANE     Bulk         ONCE  Other;
    "latency|history"                3  NONE      Read   LANE     Same         ONCE  Other;
    "latency|latest"                 2  NONE      Read   LANE     Same         ONCE  Other;
    "latency|reset"                 -2  NONE      Read   LANE     Same         ONCE  Other;
    "lolwut"                        -1  NONE      Read   LANE     Bulk         AGAIN Other;
    "memory|doctor"                  2  NONE      Read   LANE     Bulk         ONCE  Other;
    "memory|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "memory|malloc-stats"            2  NONE      Read   LANE     Bulk         ONCE  Other;
    "memory|purge"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "memory|stats"                   2  NONE      Read   LANE     Bulk         ONCE  Other;
    "memory|usage"                  -3  SECOND    Read   LANE     Bulk         AGAIN Other  Never(Upkeep);
    "module|help"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "module|list"                    2  NONE      Read   LANE     Bulk         ONCE  Other;
    "module|load"                   -3  NONE      Read   ADMIN    Same         ONCE  Other;
    "module|loadex"                 -3  NONE      Read   ADMIN    Same         ONCE  Other;
    "module|unload"                  3  NONE      Read   ADMIN    Same         ONCE  Other;
    "monitor"                        1  NONE      Read   MONITOR  Same         ONCE  Monitor;
    "psync"                         -3  NONE      Read   REFUSE   Same         ONCE  Other;
    "replconf"                      -1  NONE      Read   REFUSE   Same         ONCE  Other;
    "replicaof"                      3  NONE      Opaque ADMIN    Same         ONCE  Other;
    "restore-asking"                -4  ONE       Write  LANE     Same         ONCE  Other;
    "role"                           1  NONE      Read   LANE     Same         ONCE  Other;
    "save"                           1  NONE      Read   SLOW     Same         ONCE  Other;
    "shutdown"                      -1  NONE      Read   ADMIN    Same         ONCE  Shutdown;
    "slaveof"                        3  NONE      Opaque ADMIN    Same         ONCE  Other;
    "slowlog|get"                   -2  NONE      Read   LANE     Same         ONCE  Other;
    "slowlog|help"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "slowlog|len"                    2  NONE      Read   LANE     Same         ONCE  Other;
    "slowlog|reset"                  2  NONE      Read   LANE     Same         ONCE  Other;
    "swapdb"                         3  NONE      SwapDb LANE     Same         ONCE  Other;
    "sync"                           1  NONE      Read   REFUSE   Same         ONCE  Other;
    "time"                           1  NONE      Read   LANE     Same         AGAIN Other;
    // cluster
    "asking"                         1  NONE      Read   LOCAL    Same         ONCE  Readonly;
    "cluster|addslots"              -3  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|addslotsrange"         -4  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|bumpepoch"              2  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|count-failure-reports"  3  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|countkeysinslot"        3  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|delslots"              -3  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|delslotsrange"         -4  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|failover"              -2  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|flushslots"             2  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|forget"                 3  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|getkeysinslot"          4  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|help"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|info"                   2  NONE      Read   LANE     Bulk         ONCE  Other;
    "cluster|keyslot"                3  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|links"                  2  NONE      Read   LANE     Bulk         ONCE  Other;
    "cluster|meet"                  -4  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|myid"                   2  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|myshardid"              2  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|nodes"                  2  NONE      Read   LANE     Bulk         ONCE  Other;
    "cluster|replicas"               3  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|replicate"              3  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|reset"                 -2  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|saveconfig"             2  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|set-config-epoch"       3  NONE      Read   ADMIN    Same         ONCE  Other;
    "cluster|setslot"               -4  NONE      Opaque ADMIN    Same         ONCE  Other;
    "cluster|shards"                 2  NONE      Read   LANE     Bulk         ONCE  Other;
    "cluster|slaves"                 3  NONE      Read   LANE     Same         ONCE  Other;
    "cluster|slot-stats"            -4  NONE      Read   LANE     Bulk         ONCE  Other;
    "cluster|slots"                  2  NONE      Read   LANE     Bulk         ONCE  Other;
    "readonly"                       1  NONE      Read   LOCAL    Same         ONCE  Readonly;
    "readwrite"                      1  NONE      Read   LOCAL    Same         ONCE  Readonly;
    // this sidecar
    "nearside"                      -1  NONE      Read   LOCAL    Bulk         ONCE  Nearside;
}
