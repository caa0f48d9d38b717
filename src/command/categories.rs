//! The categories of Redis's ACL (`@read`, `@dangerous` ...): which commands of the table are in which, as `ACL CAT` of Redis
//! 7.0 says it and later servers say of the commands they added. Read when a policy is compiled and when a module's command
//! is explained by upstream; never while a command of the table is served.

use super::table;

/// A set of categories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Categories(u32);

impl Categories {
    pub(crate) const NONE: Categories = Categories(0);

    /// The category of this name, without `@` and in any case.
    pub(crate) fn named(word: &str) -> Option<Categories> {
        if word.eq_ignore_ascii_case(SLOW) {
            return Some(Categories(1 << LISTS.len()));
        }
        let at = LISTS.iter().position(|(name, _)| name.eq_ignore_ascii_case(word));
        at.map(|bit| Categories(1 << bit))
    }

    /// Those of a command, by its name in the table. What no list has is in none.
    pub(crate) fn of(command: &str) -> Categories {
        let lists = |(_, all): &(&str, &str)| all.split_ascii_whitespace().any(|name| name == command);
        let bits = LISTS.iter().enumerate().filter(|(_, list)| lists(list)).fold(0, |bits, (bit, _)| bits | 1 << bit);
        let own = command == OURS;
        let slow = if own || bits & Self::bit("fast") != 0 { 0 } else { 1 << LISTS.len() };
        Categories(bits | slow)
    }

    /// Those of all rows, by `Spec::row`; the last is JSON.GET's.
    pub(crate) fn of_rows() -> Vec<Categories> {
        let slow = Categories(1 << LISTS.len());
        let mut all = vec![slow; table::LEN + 1];
        for (bit, (category, names)) in LISTS.iter().enumerate() {
            for spec in names.split_ascii_whitespace().filter_map(|name| table::by_name(name.as_bytes())) {
                let row = &mut all[usize::from(spec.row)];
                row.0 |= 1 << bit;
                if *category == "fast" {
                    row.0 &= !slow.0;
                }
            }
        }
        if let Some(ours) = table::by_name(OURS.as_bytes()) {
            all[usize::from(ours.row)] = Categories::NONE;
        }
        all[table::LEN].0 |= Self::bit("read");
        all
    }

    pub(crate) fn union(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }

    pub(crate) fn common(self, other: Categories) -> Categories {
        Categories(self.0 & other.0)
    }

    /// Whether the two have one in common.
    pub(crate) fn meets(self, other: Categories) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn has(self, word: &str) -> bool {
        Self::named(word).is_some_and(|one| self.meets(one))
    }

    /// The names of all there are.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        LISTS.iter().map(|(name, _)| *name).chain([SLOW])
    }

    fn bit(word: &str) -> u32 {
        Self::named(word).map_or(0, |one| one.0)
    }
}

/// Every command that is not fast is slow.
const SLOW: &str = "slow";

/// No command of Redis's.
const OURS: &str = "nearside";

/// Each category but `slow`, and the table's commands in it.
const LISTS: [(&str, &str); 20] = [
    (
        "keyspace",
        "copy del dump exists expire expireat expiretime keys migrate move object|encoding object|freq \
         object|help object|idletime object|refcount persist pexpire pexpireat pexpiretime pttl randomkey rename \
         renamenx restore scan touch ttl type unlink dbsize flushall flushdb restore-asking swapdb",
    ),
    (
        "read",
        "get getrange lcs mget strlen substr bitcount bitfield_ro bitpos getbit dump exists expiretime keys \
         object|encoding object|freq object|idletime object|refcount pexpiretime pttl randomkey scan sort_ro \
         touch ttl type hexists hexpiretime hget hgetall hkeys hlen hmget hpexpiretime hpttl hrandfield hscan \
         hstrlen httl hvals lindex llen lpos lrange scard sdiff sinter sintercard sismember smembers smismember \
         srandmember sscan sunion zcard zcount zdiff zinter zintercard zlexcount zmscore zrandmember zrange \
         zrangebylex zrangebyscore zrank zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunion \
         geodist geohash geopos georadius_ro georadiusbymember_ro geosearch pfcount xinfo|consumers xinfo|groups \
         xinfo|stream xlen xpending xrange xread xrevrange vcard vdim vemb vgetattr vinfo vismember vlinks \
         vrandmember vsim dbsize lolwut memory|usage",
    ),
    (
        "write",
        "append decr decrby getdel getex getset incr incrby incrbyfloat mset msetnx psetex set setex setnx \
         setrange bitfield bitop setbit copy del expire expireat migrate move persist pexpire pexpireat rename \
         renamenx restore sort unlink hdel hexpire hexpireat hgetdel hgetex hincrby hincrbyfloat hmset hpersist \
         hpexpire hpexpireat hset hsetex hsetnx blmove blmpop blpop brpop brpoplpush linsert lmove lmpop lpop \
         lpush lpushx lrem lset ltrim rpop rpoplpush rpush rpushx sadd sdiffstore sinterstore smove spop srem \
         sunionstore bzmpop bzpopmax bzpopmin zadd zdiffstore zincrby zinterstore zmpop zpopmax zpopmin \
         zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zunionstore geoadd georadius \
         georadiusbymember geosearchstore pfadd pfdebug pfmerge xack xadd xautoclaim xclaim xdel xgroup|create \
         xgroup|createconsumer xgroup|delconsumer xgroup|destroy xgroup|setid xreadgroup xsetid xtrim vadd vrem \
         vsetattr function|delete function|flush function|load function|restore flushall flushdb restore-asking \
         swapdb",
    ),
    (
        "set",
        "sort sort_ro sadd scard sdiff sdiffstore sinter sintercard sinterstore sismember smembers smismember \
         smove spop srandmember srem sscan sunion sunionstore",
    ),
    (
        "sortedset",
        "sort sort_ro bzmpop bzpopmax bzpopmin zadd zcard zcount zdiff zdiffstore zincrby zinter zintercard \
         zinterstore zlexcount zmpop zmscore zpopmax zpopmin zrandmember zrange zrangebylex zrangebyscore \
         zrangestore zrank zrem zremrangebylex zremrangebyrank zremrangebyscore zrevrange zrevrangebylex \
         zrevrangebyscore zrevrank zscan zscore zunion zunionstore",
    ),
    (
        "list",
        "sort sort_ro blmove blmpop blpop brpop brpoplpush lindex linsert llen lmove lmpop lpop lpos lpush lpushx \
         lrange lrem lset ltrim rpop rpoplpush rpush rpushx",
    ),
    (
        "hash",
        "hdel hexists hexpire hexpireat hexpiretime hget hgetall hgetdel hgetex hincrby hincrbyfloat hkeys hlen \
         hmget hmset hpersist hpexpire hpexpireat hpexpiretime hpttl hrandfield hscan hset hsetex hsetnx hstrlen \
         httl hvals",
    ),
    (
        "string",
        "append decr decrby get getdel getex getrange getset incr incrby incrbyfloat lcs mget mset msetnx psetex \
         set setex setnx setrange strlen substr",
    ),
    ("bitmap", "bitcount bitfield bitfield_ro bitop bitpos getbit setbit"),
    ("hyperloglog", "pfadd pfcount pfdebug pfmerge pfselftest"),
    (
        "geo",
        "geoadd geodist geohash geopos georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch \
         geosearchstore",
    ),
    (
        "stream",
        "xack xadd xautoclaim xclaim xdel xgroup|create xgroup|createconsumer xgroup|delconsumer xgroup|destroy \
         xgroup|help xgroup|setid xinfo|consumers xinfo|groups xinfo|help xinfo|stream xlen xpending xrange xread \
         xreadgroup xrevrange xsetid xtrim",
    ),
    (
        "pubsub",
        "psubscribe publish pubsub|channels pubsub|numpat pubsub|numsub pubsub|shardchannels pubsub|shardnumsub \
         punsubscribe spublish ssubscribe subscribe sunsubscribe unsubscribe",
    ),
    (
        "admin",
        "pfdebug pfselftest client|kill client|list client|no-evict client|pause client|unblock client|unpause \
         acl|deluser acl|dryrun acl|getuser acl|list acl|load acl|log acl|save acl|setuser acl|users bgrewriteaof \
         bgsave commandlog|get commandlog|len commandlog|reset config|get config|resetstat config|rewrite \
         config|set debug failover lastsave latency|doctor latency|graph latency|histogram latency|history \
         latency|latest latency|reset module|list module|load module|loadex module|unload monitor psync replconf \
         replicaof role save shutdown slaveof slowlog|get slowlog|len slowlog|reset sync cluster|addslots \
         cluster|addslotsrange cluster|bumpepoch cluster|count-failure-reports cluster|delslots \
         cluster|delslotsrange cluster|failover cluster|flushslots cluster|forget cluster|meet cluster|replicas \
         cluster|replicate cluster|reset cluster|saveconfig cluster|set-config-epoch cluster|setslot \
         cluster|slaves",
    ),
    (
        "fast",
        "append decr decrby get getdel getex getset incr incrby incrbyfloat mget setnx strlen bitfield_ro getbit \
         exists expire expireat expiretime move persist pexpire pexpireat pexpiretime pttl renamenx touch ttl \
         type unlink hdel hexists hexpire hexpireat hexpiretime hget hgetdel hgetex hincrby hincrbyfloat hlen \
         hmget hmset hpersist hpexpire hpexpireat hpexpiretime hpttl hset hsetex hsetnx hstrlen httl llen lpop \
         lpush lpushx rpop rpush rpushx sadd scard sismember smismember smove spop srem bzpopmax bzpopmin zadd \
         zcard zcount zincrby zlexcount zmscore zpopmax zpopmin zrank zrem zrevrank zscore pfadd xack xadd \
         xautoclaim xclaim xdel xlen xsetid vcard vdim vemb vgetattr vinfo vismember vlinks vsetattr discard \
         multi unwatch watch publish spublish auth echo hello ping quit reset select dbsize lastsave lolwut role \
         swapdb time asking readonly readwrite",
    ),
    ("blocking", "waitaof blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin xread xreadgroup"),
    (
        "dangerous",
        "keys migrate restore sort sort_ro pfdebug pfselftest client|kill client|list client|no-evict \
         client|pause client|unblock client|unpause acl|deluser acl|dryrun acl|getuser acl|list acl|load acl|log \
         acl|save acl|setuser acl|users bgrewriteaof bgsave commandlog|get commandlog|len commandlog|reset \
         config|get config|resetstat config|rewrite config|set debug failover flushall flushdb info lastsave \
         latency|doctor latency|graph latency|histogram latency|history latency|latest latency|reset module|list \
         module|load module|loadex module|unload monitor psync replconf replicaof restore-asking role save \
         shutdown slaveof slowlog|get slowlog|len slowlog|reset swapdb sync cluster|addslots \
         cluster|addslotsrange cluster|bumpepoch cluster|count-failure-reports cluster|delslots \
         cluster|delslotsrange cluster|failover cluster|flushslots cluster|forget cluster|meet cluster|replicas \
         cluster|replicate cluster|reset cluster|saveconfig cluster|set-config-epoch cluster|setslot \
         cluster|slaves",
    ),
    (
        "connection",
        "wait waitaof auth client|caching client|capa client|getname client|getredir client|help client|id \
         client|import-source client|info client|kill client|list client|maint_notifications client|no-evict \
         client|no-touch client|pause client|reply client|setinfo client|setname client|tracking \
         client|trackinginfo client|unblock client|unpause echo hello ping quit reset select command \
         command|count command|docs command|getkeys command|getkeysandflags command|help command|info \
         command|list asking readonly readwrite",
    ),
    ("transaction", "discard exec multi unwatch watch"),
    (
        "scripting",
        "eval eval_ro evalsha evalsha_ro fcall fcall_ro function|delete function|dump function|flush \
         function|help function|kill function|list function|load function|restore function|stats script|debug \
         script|exists script|flush script|help script|kill script|load script|show",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::command::table;
    use crate::resp::real::Server;
    use crate::resp::reply::{bulk, elements};

    #[test]
    fn as_the_servers_acl_cat_says() {
        let server = Server::start();
        let mut con = server.connect();
        let mut members = |category: &str| -> BTreeSet<String> {
            let reply = con.call(&[b"ACL", b"CAT", category.as_bytes()]);
            let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
            elements(&reply).filter_map(bulk).map(text).collect()
        };
        let lists: Vec<_> = Categories::names().map(|name| (name, members(name))).collect();
        let known: BTreeSet<&String> = lists.iter().flat_map(|(_, members)| members).collect();
        assert!(known.len() > 350, "{}", known.len());
        for row in table::all().filter(|row| known.iter().any(|name| *name == row.name)) {
            for (category, members) in &lists {
                assert_eq!(
                    Categories::of(row.name).has(category),
                    members.contains(row.name),
                    "{} {category}",
                    row.name
                );
            }
        }
    }

    #[test]
    fn every_list_names_rows_and_every_row_is_listed() {
        let rows: BTreeSet<&str> = table::all().map(|row| row.name).collect();
        for (category, all) in LISTS {
            let unknown: Vec<&str> = all.split_ascii_whitespace().filter(|name| !rows.contains(name)).collect();
            assert!(unknown.is_empty(), "{category}: {unknown:?}");
        }
        for name in rows.iter().filter(|name| **name != OURS) {
            assert_ne!(Categories::of(name).has("fast"), Categories::of(name).has("slow"), "{name}");
        }
        assert_eq!(Categories::of(OURS), Categories::NONE);
        let by_name: Vec<Categories> = table::all().map(|row| Categories::of(row.name)).collect();
        assert_eq!(Categories::of_rows()[..table::LEN], by_name);
    }

    #[test]
    fn names_in_any_case() {
        assert_eq!(Categories::named("DANGEROUS"), Categories::named("dangerous"));
        assert!(Categories::named("dangerus").is_none());
        assert!(Categories::of("get").has("read") && !Categories::of("get").has("write"));
        assert!(Categories::of("set").meets(Categories::of("get").union(Categories::of("append"))));
    }
}
