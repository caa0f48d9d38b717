//! The word for every decision and cause: metric label and word of `NEARSIDE EXPLAIN` in one. Closed lists, so that the
//! data path counts by index. A word once released stays: dashboards and alerts are built on it.

/// An enum whose variants are words: `as_str`, the lists of all, and the index for `counters::Labeled`.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)+ }

        #[allow(dead_code, reason = "not every list is asked everything")]
        impl $name {
            pub(crate) const WORDS: &'static [&'static str; Self::COUNT] = &[$($word,)+];
            pub(crate) const ALL: &'static [Self; Self::COUNT] = &[$(Self::$variant,)+];
            pub(crate) const COUNT: usize = [$($word,)+].len();

            pub(crate) fn as_str(self) -> &'static str {
                Self::WORDS[self as usize]
            }
        }

        impl From<$name> for usize {
            fn from(word: $name) -> usize {
                word as usize
            }
        }
    };
}

words! {
    /// What the cache does at all (`cache.mode`, NEARSIDE MODE).
    Mode {
        Serve = "serve",
        Observe = "observe",
        Off = "off",
    }
}

words! {
    /// What became of a queued write when upstream was back.
    Replayed {
        /// Upstream held what was known here.
        Applied = "applied",
        /// Somebody else had changed the key.
        Overwritten = "conflict_overwritten",
        Skipped = "conflict_skipped",
        /// What upstream held before was not known here.
        UnknownBase = "unknown_base",
        /// Upstream refused it, or the profile.
        Failed = "failed",
    }
}

words! {
    /// Why a write was not acknowledged while upstream was gone, although its keys' writes are.
    NotQueued {
        /// It has no meaning without an upstream.
        Command = "command",
        /// The value of a key is not known here.
        Unknown = "unknown_key",
        /// Its keys' rules do not agree.
        Mixed = "mixed_rules",
        /// Upstream has not let this user in.
        Credential = "credential",
        Full = "queue_max",
        Bytes = "queue_max_bytes",
        JournalFull = "journal_full",
        JournalDisk = "journal_disk_full",
        JournalBehind = "journal_behind",
        JournalFailed = "journal_failed",
    }
}

impl NotQueued {
    pub(crate) fn of(why: JournalRefusal) -> NotQueued {
        match why {
            JournalRefusal::Full => NotQueued::JournalFull,
            JournalRefusal::DiskFull => NotQueued::JournalDisk,
            JournalRefusal::Behind => NotQueued::JournalBehind,
            JournalRefusal::Failed => NotQueued::JournalFailed,
        }
    }
}

words! {
    /// How far a rule's rollout has come.
    RolloutState {
        /// The share is what it shall be.
        Steady = "steady",
        Ramping = "ramping",
        RolledBack = "rolled_back",
    }
}

words! {
    /// What a rollout does by itself.
    RolloutChange {
        /// The next share of its ramp.
        Step = "step",
        RollBack = "roll_back",
    }
}

words! {
    /// The commands that the cache could answer: those that `cache_candidate_requests` counts.
    Method {
        Get = "GET",
        Mget = "MGET",
        Strlen = "STRLEN",
        Getrange = "GETRANGE",
        Substr = "SUBSTR",
        Getbit = "GETBIT",
        Bitcount = "BITCOUNT",
        Bitpos = "BITPOS",
        Exists = "EXISTS",
        Type = "TYPE",
        Hget = "HGET",
        Hmget = "HMGET",
        Hgetall = "HGETALL",
        Hlen = "HLEN",
        Hexists = "HEXISTS",
        Hkeys = "HKEYS",
        Hvals = "HVALS",
        Hstrlen = "HSTRLEN",
        Lrange = "LRANGE",
        Llen = "LLEN",
        Lindex = "LINDEX",
        Lpos = "LPOS",
        Smembers = "SMEMBERS",
        Sismember = "SISMEMBER",
        Smismember = "SMISMEMBER",
        Scard = "SCARD",
        Zrange = "ZRANGE",
        Zrevrange = "ZREVRANGE",
        Zrangebyscore = "ZRANGEBYSCORE",
        Zrevrangebyscore = "ZREVRANGEBYSCORE",
        Zrangebylex = "ZRANGEBYLEX",
        Zrevrangebylex = "ZREVRANGEBYLEX",
        Zscore = "ZSCORE",
        Zmscore = "ZMSCORE",
        Zcard = "ZCARD",
        Zcount = "ZCOUNT",
        Zlexcount = "ZLEXCOUNT",
        Zrank = "ZRANK",
        Zrevrank = "ZREVRANK",
        JsonGet = "JSON.GET",
    }
}

impl Method {
    /// The command of this name, in any case. Evaluated by the compiler only; a name that is not in the list does not
    /// compile.
    pub(crate) const fn of(name: &str) -> Method {
        let mut i = 0;
        while !Self::WORDS[i].eq_ignore_ascii_case(name) {
            i += 1;
        }
        Self::ALL[i]
    }
}

words! {
    /// Why a read of a cacheable command was not looked up in the L1.
    Bypass {
        CacheOff = "cache_off",
        /// The profile is served from pinned connections.
        NoLane = "no_lane",
        /// The lane is down or its tracking is not proved yet.
        NotLive = "not_live",
        /// The last proof of coherence is older than `coherence.max_staleness`.
        Lease = "lease",
        /// Something this session has seen is newer than the lane's last proof.
        Fence = "fence",
        /// The session waits for an answer that may change the key.
        Outstanding = "outstanding",
        /// The session is on a connection of its own.
        Pinned = "pinned",
        /// A write to the key is under way through this sidecar.
        Pending = "pending",
        /// The key is remembered for a large value.
        Large = "large",
        /// Upstream refuses CLIENT TRACKING to this user.
        TrackingRefused = "tracking_refused",
        /// The key's pattern is written more than it is read: its updates are not stored.
        PausedUpdate = "paused_update",
        /// Upstream lets fields of a hash expire, which it does not signal, or does not say that it does not.
        FieldExpiry = "field_expiry",
        /// No rule's pattern matches the key.
        NoRule = "no_rule",
        /// Its rule says `mode: off`.
        RuleOff = "rule_off",
        /// The key's rule only has its reads measured.
        RuleObserve = "rule_observe",
        /// Its rule does not name the command.
        Command = "command",
        /// Its rule's rollout leaves the key out, to compare with.
        Control = "control",
        /// Upstream is gone: it was answered from before, or refused.
        Outage = "outage",
    }
}

impl Bypass {
    /// The configuration leaves the read out: it could be answered from the cache if somebody asked for it.
    pub(crate) fn by_choice(self) -> bool {
        matches!(self, Bypass::CacheOff | Bypass::NoRule | Bypass::RuleOff | Bypass::RuleObserve | Bypass::Command)
    }

    /// No configuration would change it.
    pub(crate) fn for_good(self) -> bool {
        matches!(self, Bypass::TrackingRefused | Bypass::FieldExpiry)
    }
}

words! {
    /// Why an entry that is hit is read again before it ends.
    Again {
        /// Its end is near (`refresh_ahead`).
        Ahead = "ahead",
        /// It is past its ttl (`stale_while_revalidate`).
        Stale = "stale",
    }
}

words! {
    /// What became of a hit on an entry that was to be read again.
    Reread {
        Stored = "stored",
        /// It was read, and the reading not kept; see `nearside_fills_discarded_total`.
        Discarded = "discarded",
        /// The lane was lost before the answer.
        Lost = "lost",
        /// It was not read again: more would have been above its share of what goes upstream.
        OverBudget = "over_budget",
        /// It was not read again: the lane waited for something else.
        HeldUp = "held_up",
    }
}

words! {
    /// What became of a key that was hit here, and of which upstream was to be told by TOUCH.
    Touched {
        Told = "touched",
        /// Upstream has it no more.
        Gone = "gone",
        /// Upstream answered with an error, or the lane was lost.
        Refused = "refused",
        /// Too many keys in one interval.
        Overflow = "overflow",
    }
}

words! {
    /// What became of a key that was to be loaded at start.
    Warmed {
        Stored = "stored",
        /// Upstream has no such key.
        Absent = "absent",
        /// It was here already.
        Present = "present",
        /// The rules keep no GET of it.
        NoRule = "no_rule",
        /// It is no string.
        WrongType = "wrong_type",
        TooLarge = "too_large",
        /// The lane was lost.
        Lost = "lost",
        /// Anything else that keeps a reading from being stored; see `nearside_fills_discarded_total`.
        Discarded = "discarded",
    }
}

words! {
    /// Why a reply that had come to be stored was not.
    Discard {
        /// An invalidation of the key came in between.
        Push = "push",
        /// A write through this sidecar came in between.
        Write = "write",
        /// The lane was lost in between.
        Epoch = "epoch",
        Flush = "flush",
        /// A prefix, pattern or regular expression was invalidated in between, of this key or not; or a tag of this key.
        Sweep = "sweep",
        /// Value and PTTL do not describe one state of the key.
        Inconsistent = "inconsistent",
        /// Upstream's ACL refuses GET or PTTL to this user.
        NoPerm = "noperm",
        /// Upstream answered with another error.
        Error = "error",
        /// Larger than `max_value_bytes`, or than all that its rule may take.
        TooLarge = "too_large",
        /// It would expire before it could be served.
        Ttl = "ttl",
    }
}

words! {
    /// Where an invalidation came from.
    Source {
        Push = "push",
        OwnWrite = "own_write",
        Command = "command",
        /// A message on the sidecars' channel.
        Channel = "channel",
        /// A client's PUBLISH on that channel, applied here before it was forwarded.
        Publish = "publish",
        /// A keyspace event, in `pubsub` mode.
        Keyspace = "keyspace",
        /// The side port.
        Http = "http",
    }
}

words! {
    /// Why an entry left the L1.
    Evict {
        /// Room was needed.
        Size = "size",
        Expired = "expired",
        Invalidated = "invalidated",
        /// Its rule took more than its `max_share`.
        Share = "share",
    }
}

words! {
    /// Why the whole L1 was dropped.
    Flush {
        /// A lane was lost: what was stored through it is not served any more.
        Lane = "lane",
        /// Upstream said so: FLUSHALL or FLUSHDB of somebody, or its tracking table overflowed.
        Push = "push",
        Flushdb = "flushdb",
        Flushall = "flushall",
        Swapdb = "swapdb",
        /// NEARSIDE FLUSH.
        Command = "command",
        Mode = "mode",
        /// Somebody said so on the sidecars' channel, or the channel was lost and messages may have been missed.
        Channel = "channel",
    }
}

words! {
    /// `result` of `nearside_config_reloads_total`.
    Reload {
        Ok = "ok",
        Failed = "failed",
    }
}

words! {
    /// The journal of the write queue: `state` of `nearside_journal_state`.
    JournalState {
        /// There is none.
        Off = "off",
        Working = "working",
        /// The disk has no room.
        DiskFull = "disk_full",
        /// A write or a sync has failed: nothing is taken until the process starts again.
        Failed = "failed",
    }
}

words! {
    /// Why the journal has not taken a write: `reason` of `nearside_journal_refused_total`.
    JournalRefusal {
        Full = "full",
        DiskFull = "disk_full",
        Behind = "behind",
        Failed = "failed",
    }
}

words! {
    /// `kind` of an event (`GET /api/v1/events/recent`).
    EventKind {
        /// The cache's mode was changed.
        Mode = "mode",
        /// Rules were changed in the running process.
        Rules = "rules",
        /// The configuration was read again, with success or without.
        Reload = "reload",
        /// A rollout has taken a step, or was taken back.
        Rollout = "rollout",
        /// Upstream was lost, is gone, or is back.
        Upstream = "upstream",
        /// An alert was raised, or is over.
        Alert = "alert",
        /// Queued writes were done upstream, or could not be.
        Queue = "queue",
    }
}

words! {
    /// How the process, or one part of it, is.
    Health {
        Healthy = "healthy",
        /// It serves, and somebody should look.
        Degraded = "degraded",
        /// Some or all commands cannot be answered as they should.
        Critical = "critical",
    }
}

words! {
    /// What health is made of.
    CheckName {
        Cache = "cache",
        CoherenceLink = "coherence_link",
        CoherenceMode = "coherence_mode",
        Upstream = "upstream",
        HitRate = "hit_rate",
        ErrorRate = "error_rate",
        Policy = "policy",
        Memory = "memory",
        Queue = "queue",
        Alerts = "alerts",
    }
}

words! {
    /// What is watched for, and raised when it lasts.
    AlertName {
        ErrorRate = "error_rate",
        P99 = "p99",
        HitRate = "hit_rate",
        CoherenceLost = "coherence_lost",
        UpstreamDown = "upstream_down",
        Memory = "memory",
        EvictionsThrash = "evictions_thrash",
        QueueGrowing = "queue_growing",
        QueueFailed = "queue_failed",
        ReloadFailed = "reload_failed",
    }
}

words! {
    /// `tag` of `cache_invalidate_total` for invalidations without a tag of a rule, and for a tag that nothing stored has.
    Tag {
        Key = "_key",
        Prefix = "_prefix",
        Pattern = "_pattern",
        Regex = "_regex",
        /// Of no template that is known.
        Unnamed = "_tag",
        Flush = "_flush",
        Push = "_push",
    }
}

words! {
    /// `error_type` of `cache_errors_total`.
    ErrorType {
        Upstream = "upstream",
        Timeout = "timeout",
        Protocol = "protocol",
        Oom = "oom",
        Policy = "policy",
    }
}

words! {
    /// Why a session holds a connection of its own, in the order of `command::Why`, which counts by its index.
    Pin {
        Transaction = "transaction",
        Watch = "watch",
        Blocking = "blocking",
        MayBlock = "may_block",
        Subscribe = "subscribe",
        Monitor = "monitor",
        Tracking = "tracking",
        Admin = "admin",
        Unknown = "unknown",
        Module = "module",
        Large = "large",
        NoLane = "no_lane",
        Verify = "verify",
    }
}

words! {
    /// Why a new client was turned away.
    Reject {
        MaxClients = "max_clients",
    }
}

words! {
    /// Why this side closed a client's connection.
    Dropped {
        OutputLimit = "output_limit",
        QueryLimit = "query_limit",
        BuffersMax = "buffers_max",
        IdleTimeout = "idle_timeout",
        Protocol = "protocol",
        /// CLIENT KILL.
        Killed = "killed",
        /// Its pinned connection ended.
        Upstream = "upstream",
        /// Upstream is gone, and `outage.error` is close.
        Outage = "outage",
        Drain = "drain",
    }
}

words! {
    Peer {
        Client = "client",
        Upstream = "upstream",
    }
}

words! {
    /// What a command was, for `nearside_commands_total`.
    Class {
        Read = "read",
        Write = "write",
        /// Answered here: handshake, NEARSIDE.
        Local = "local",
        Other = "other",
    }
}

words! {
    /// What a command was, for `operations` of the side port's JSON.
    Operation {
        Get = "get",
        Mget = "mget",
        /// SET, SETEX, PSETEX, GETSET.
        Set = "set",
        /// DEL, UNLINK.
        Del = "del",
        Publish = "publish",
        ReadOther = "read_other",
        WriteOther = "write_other",
        /// HELLO, AUTH, SELECT, PING, CLIENT and the like.
        Connection = "connection",
        /// INFO, CONFIG and others that name no key.
        Admin = "admin",
        Nearside = "nearside",
        /// Scripts, transactions, subscriptions, and what the table does not know.
        Other = "other",
    }
}

words! {
    /// How a client's connection ended, where this side did not close it (`Dropped` has those).
    RunEnd {
        /// The client closed it, or asked for that.
        Closed = "closed",
        /// It broke.
        Reset = "reset",
    }
}

/// Class and result of `nearside_request_duration_seconds`: only the pairs that make sense, so that eleven histograms
/// do and not five times five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    ReadHit,
    ReadMiss,
    ReadBypass,
    ReadError,
    WriteOk,
    WriteError,
    LocalOk,
    OtherOk,
    OtherError,
    /// On an upstream connection of the client's own.
    PinnedOk,
    PinnedError,
}

impl Timed {
    pub(crate) const COUNT: usize = Self::LABELS.len();

    /// (class, result) in the order of the variants.
    pub(crate) const LABELS: &'static [(&'static str, &'static str)] = &[
        ("read", "hit"),
        ("read", "miss"),
        ("read", "bypass"),
        ("read", "error"),
        ("write", "ok"),
        ("write", "error"),
        ("local", "ok"),
        ("other", "ok"),
        ("other", "error"),
        ("pinned", "ok"),
        ("pinned", "error"),
    ];

    pub(crate) fn class(self) -> Class {
        match self {
            Timed::ReadHit | Timed::ReadMiss | Timed::ReadBypass | Timed::ReadError => Class::Read,
            Timed::WriteOk | Timed::WriteError => Class::Write,
            Timed::LocalOk => Class::Local,
            // A pinned command's class is not kept, and the slow log does not know it.
            Timed::OtherOk | Timed::OtherError | Timed::PinnedOk | Timed::PinnedError => Class::Other,
        }
    }
}

words! {
    /// A lane's link.
    Link {
        /// Lost; the next attempt waits for its back-off.
        Down = "down",
        Connecting = "connecting",
        /// Connected, its invalidations not proved yet: forwards, stores nothing.
        Arming = "arming",
        Live = "live",
        /// Connected, but upstream refuses tracking: forwards, never stores.
        Untracked = "untracked",
    }
}

words! {
    /// The subscription to the sidecars' channel.
    ChannelState {
        Connecting = "connecting",
        Up = "up",
        /// Lost; tried again.
        Down = "down",
        /// Upstream wants a credential and no client has brought one yet.
        Waiting = "waiting",
        /// Upstream's ACL forbids it to every credential there is.
        Refused = "refused",
    }
}

words! {
    /// What keeps the L1 coherent now (`coherence.mode` as resolved).
    Coherence {
        /// Not decided yet.
        Probing = "probing",
        Tracking = "tracking",
        Pubsub = "pubsub",
        Ttl = "ttl",
        /// Nothing is cached.
        None = "none",
    }
}

words! {
    /// The circuit breaker of upstream.
    BreakerState {
        Closed = "closed",
        /// Upstream is gone.
        Open = "open",
        /// It is gone, and an attempt of our own is under way.
        HalfOpen = "half_open",
    }
}

words! {
    /// Why an entry may not be served stale.
    Unservable {
        /// The lane lives: what it does not vouch for is asked upstream.
        Live = "live",
        /// No such key: a negative entry says nothing about what has been written since.
        Negative = "negative",
        /// Of an older connection than the one that was lost last, or of none.
        Epoch = "epoch",
        /// A flush has come since.
        Flushed = "flushed",
        /// A write of ours to its stripe is not answered.
        Pending = "pending",
        /// Upstream's own expiry has passed.
        Expired = "expired",
        /// The last proof is too old.
        Age = "age",
        /// This session knows something newer.
        Fence = "fence",
        /// Something newer was handed out without its PONG.
        Floor = "floor",
    }
}

words! {
    /// What the command policy does now.
    PolicyMode {
        /// Nothing is asked of it.
        Off = "off",
        Enforce = "enforce",
        /// It only counts and logs what it would refuse.
        Log = "log",
    }
}

words! {
    /// What the command policy said of a command.
    Decision {
        Allowed = "allowed",
        Denied = "denied",
        /// It would have been denied: `commands.enforce` is false.
        Logged = "logged",
    }
}

words! {
    /// What a command does, as the command policy counts it.
    Action {
        Read = "read",
        Write = "write",
        /// Scripts and functions, and whatever is none of the others: transactions, messages, the connection's own.
        Execute = "execute",
        Admin = "admin",
    }
}

words! {
    /// What a rate limit did to a command.
    Limited {
        Wait = "wait",
        Error = "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_word_agree() {
        assert_eq!(Bypass::WORDS[usize::from(Bypass::Fence)], Bypass::Fence.as_str());
        assert_eq!(Bypass::Outage as usize + 1, Bypass::COUNT);
        assert_eq!(Timed::LABELS[Timed::PinnedError as usize], ("pinned", "error"));
        assert_eq!(Timed::PinnedError as usize + 1, Timed::COUNT);
    }
}
