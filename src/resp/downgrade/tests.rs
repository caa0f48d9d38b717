//! The rules one by one, and all together against redis-server: each command is asked for in RESP3 and in RESP2, and the
//! converted reply must be the other one, byte for byte.

use proptest::prelude::*;

use super::super::real::{Connection, Server};
use super::Form::*;
use super::*;

fn converted(frame: &[u8], form: Form) -> String {
    let mut out = BytesMut::new();
    to_resp2(frame, form, &mut out);
    out.escape_ascii().to_string()
}

#[test]
fn rule_1_every_type() {
    for (resp3, resp2) in [
        ("%1\r\n+a\r\n:1\r\n", "*2\r\n+a\r\n:1\r\n"),
        ("~2\r\n#t\r\n#f\r\n", "*2\r\n:1\r\n:0\r\n"),
        (",1.5\r\n", "$3\r\n1.5\r\n"),
        ("(-123\r\n", "$4\r\n-123\r\n"),
        ("=8\r\ntxt:a\r\nb\r\n", "$4\r\na\r\nb\r\n"),
        ("!7\r\nERR a\nb\r\n", "-ERR a b\r\n"),
        ("|1\r\n+k\r\n%1\r\n+a\r\n_\r\n*1\r\n_\r\n", "*1\r\n$-1\r\n"),
        ("*2\r\n|1\r\n+k\r\n|1\r\n+k\r\n+v\r\n+v\r\n+x\r\n+y\r\n", "*2\r\n+x\r\n+y\r\n"),
        ("*3\r\n$-1\r\n*-1\r\n$2\r\n\r\n\r\n", "*3\r\n$-1\r\n*-1\r\n$2\r\n\r\n\r\n"),
        (">1\r\n+x\r\n", "*1\r\n+x\r\n"),
    ] {
        assert_eq!(converted(resp3.as_bytes(), Bulk), resp2.as_bytes().escape_ascii().to_string());
    }
}

#[test]
fn flatten_needs_pairs_throughout() {
    assert_eq!(
        converted(b"*2\r\n*2\r\n+a\r\n,1\r\n*2\r\n+b\r\n,2\r\n", Flatten),
        converted(b"*4\r\n+a\r\n,1\r\n+b\r\n,2\r\n", Bulk)
    );
    for other in [&b"*2\r\n*2\r\n+a\r\n,1\r\n*1\r\n+b\r\n"[..], b"*2\r\n+a\r\n*2\r\n+a\r\n+b\r\n", b"*0\r\n", b"_\r\n"]
    {
        assert_eq!(converted(other, Flatten), converted(other, Bulk));
    }
}

#[test]
fn same_is_untouched() {
    assert_eq!(converted(b"%1\r\n_\r\n_\r\n", Same), b"%1\r\n_\r\n_\r\n".escape_ascii().to_string());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(head in "[*%~>|$=!+,_#(-][0-9]{0,3}\r\n", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let bytes = [head.as_bytes(), &bytes].concat();
        for form in [Same, Bulk, Array, Flatten, Pairs, Xpending] {
            converted(&bytes, form);
        }
    }
}

/// The data every command finds.
const SETUP: &[&str] = &[
    "FLUSHALL",
    "FUNCTION FLUSH",
    "SET str hello",
    "SET num 10",
    "HSET h a 1 b 2 c 3",
    "RPUSH l a b c a",
    "SADD s only",
    "SADD s3 1 2 3",
    "SADD s4 x y z",
    "ZADD z 1 a 2.5 b 0.1 c inf d -inf e 1e20 f 3 g",
    "ZADD z1 7.25 only",
    "GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
    "XADD x 1-1 f v",
    "XADD x 2-1 f v g w",
    "XADD x 3-1 f v",
    "XADD empty 1-1 f v",
    "XDEL empty 1-1",
    "XGROUP CREATE x grp 0",
    "XGROUP CREATE empty idle 0",
    "XREADGROUP GROUP grp al COUNT 2 STREAMS x >",
    "XDEL x 2-1",
    "PFADD hll a b c",
];

/// Form and command. `~` in front: the digits of the reply differ from call to call.
const COMMANDS: &[(Form, &str)] = &[
    (Same, "PING"),
    (Same, "ECHO x"),
    (Same, "STRLEN str"),
    (Same, "TTL str"),
    (Same, "KEYS h*"),
    (Same, "SCAN 0 COUNT 1000"),
    (Same, "LRANGE l 0 -1"),
    (Same, "HKEYS h"),
    (Same, "HVALS h"),
    (Same, "HSCAN h 0"),
    (Same, "ZSCAN z 0"),
    (Same, "LPOS l a COUNT 0"),
    (Same, "INCRBYFLOAT num 1.5"),
    (Same, "HINCRBYFLOAT h a 1.5"),
    (Same, "XRANGE x - +"),
    (Same, "ZRANGEBYLEX z1 - +"),
    (Same, "NOSUCH a b"),
    (Bulk, "GET str"),
    (Bulk, "GET no"),
    (Bulk, "GET h"),
    (Bulk, "GETDEL no"),
    (Bulk, "GETEX no"),
    (Bulk, "GETSET no v"),
    (Bulk, "SET str v XX GET"),
    (Bulk, "SET no v XX"),
    (Bulk, "SET no v GET"),
    (Bulk, "MGET str no h num"),
    (Bulk, "LCS str num IDX WITHMATCHLEN"),
    (Bulk, "BITFIELD num OVERFLOW FAIL INCRBY u2 0 9 INCRBY u8 0 1"),
    (Bulk, "DUMP no"),
    (Bulk, "OBJECT ENCODING no"),
    (Bulk, "SORT l BY nosort GET no*"),
    (Bulk, "HGET h no"),
    (Bulk, "HMGET h a no b"),
    (Bulk, "HGETALL h"),
    (Bulk, "HGETALL no"),
    (Bulk, "HRANDFIELD no"),
    (Flatten, "HRANDFIELD h 10 WITHVALUES"),
    (Flatten, "HRANDFIELD h 10"),
    (Flatten, "HRANDFIELD no 10 WITHVALUES"),
    (Bulk, "LPOP no"),
    (Array, "LPOP no 2"),
    (Array, "LPOP l 2"),
    (Array, "LPOP l 0"),
    (Bulk, "LINDEX l 99"),
    (Bulk, "LPOS l zz"),
    (Bulk, "LMOVE no no2 LEFT LEFT"),
    (Bulk, "RPOPLPUSH no no2"),
    (Array, "LMPOP 1 no LEFT"),
    (Array, "LMPOP 2 no l LEFT COUNT 2"),
    (Array, "BLPOP no 0.01"),
    (Array, "BLPOP no l 0.01"),
    (Array, "BRPOP no 0.01"),
    (Array, "BLMOVE no no2 LEFT LEFT 0.01"),
    (Array, "BLMPOP 0.01 1 no LEFT"),
    (Bulk, "SMEMBERS s3"),
    (Bulk, "SMEMBERS s4"),
    (Bulk, "SMEMBERS no"),
    (Bulk, "SDIFF s3 s"),
    (Bulk, "SINTER s3 s4"),
    (Bulk, "SUNION s3 s"),
    (Bulk, "SPOP s 5"),
    (Bulk, "SPOP no 5"),
    (Bulk, "SPOP no"),
    (Bulk, "SRANDMEMBER no"),
    (Bulk, "SRANDMEMBER no 3"),
    (Bulk, "SMISMEMBER s3 1 9"),
    (Flatten, "ZRANGE z 0 -1"),
    (Flatten, "ZRANGE z 0 -1 WITHSCORES"),
    (Flatten, "ZRANGE no 0 -1 WITHSCORES"),
    (Flatten, "ZRANGE h 0 -1 WITHSCORES"),
    (Flatten, "ZREVRANGE z 0 -1 WITHSCORES"),
    (Flatten, "ZRANGEBYSCORE z -inf +inf WITHSCORES"),
    (Flatten, "ZREVRANGEBYSCORE z +inf -inf WITHSCORES LIMIT 1 2"),
    (Flatten, "ZRANDMEMBER z1 3 WITHSCORES"),
    (Flatten, "ZRANDMEMBER no 3 WITHSCORES"),
    (Flatten, "ZRANDMEMBER no"),
    (Flatten, "ZUNION 2 z z1 WITHSCORES"),
    (Flatten, "ZUNION 2 z z1"),
    (Flatten, "ZINTER 2 z z WITHSCORES"),
    (Flatten, "ZDIFF 2 z z1 WITHSCORES"),
    (Flatten, "ZPOPMIN z"),
    (Flatten, "ZPOPMIN z 3"),
    (Flatten, "ZPOPMAX z 1"),
    (Flatten, "ZPOPMAX no"),
    (Flatten, "ZPOPMAX no 3"),
    (Bulk, "ZSCORE z b"),
    (Bulk, "ZSCORE z no"),
    (Bulk, "ZMSCORE z a no d"),
    (Bulk, "ZINCRBY z 0.1 c"),
    (Bulk, "ZADD z INCR 0.3 c"),
    (Bulk, "ZADD z NX INCR 1 c"),
    (Bulk, "ZRANK z no"),
    (Bulk, "ZRANK z a"),
    (Array, "ZMPOP 1 no MIN"),
    (Array, "ZMPOP 1 z MIN COUNT 3"),
    (Array, "BZPOPMIN no 0.01"),
    (Array, "BZPOPMIN z 0.01"),
    (Array, "BZMPOP 0.01 1 z MAX COUNT 2"),
    (Array, "BZMPOP 0.01 1 no MAX"),
    (Array, "GEOPOS g Palermo no Catania"),
    (Array, "GEOPOS no a"),
    (Bulk, "GEODIST g Palermo Catania"),
    (Bulk, "GEODIST g Palermo no"),
    (Bulk, "GEOHASH g Palermo no"),
    (Bulk, "GEOSEARCH g FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD WITHDIST WITHHASH"),
    (Bulk, "GEORADIUS g 15 37 200 km WITHCOORD ASC"),
    (Array, "XRANGE x - + COUNT 0"),
    (Array, "XREVRANGE x + - COUNT 0"),
    (Pairs, "XREAD COUNT 2 STREAMS x 0"),
    (Pairs, "XREAD STREAMS x x empty 0 1-1 0"),
    (Pairs, "XREAD STREAMS x 9-9"),
    (Pairs, "XREAD BLOCK 5 STREAMS no $"),
    (Pairs, "XREADGROUP GROUP grp al STREAMS x 0"),
    (Pairs, "XREADGROUP GROUP grp al STREAMS x >"),
    (Pairs, "XREADGROUP GROUP idle al STREAMS empty >"),
    (Pairs, "XREADGROUP GROUP none al STREAMS x >"),
    (Xpending, "XPENDING x grp"),
    (Xpending, "XPENDING empty idle"),
    (Xpending, "~XPENDING x grp - + 10"),
    (Xpending, "XPENDING no grp"),
    (Bulk, "XAUTOCLAIM x grp bo 0 0"),
    (Bulk, "XCLAIM x grp bo 0 1-1 2-1"),
    (Bulk, "XINFO STREAM x"),
    (Bulk, "~XINFO STREAM x FULL"),
    (Bulk, "XINFO STREAM empty"),
    (Bulk, "XINFO GROUPS x"),
    (Bulk, "XINFO GROUPS empty"),
    (Bulk, "~XINFO CONSUMERS x grp"),
    (Bulk, "CONFIG GET max*"),
    (Bulk, "CONFIG GET nosuch"),
    (Bulk, "COMMAND INFO get nosuch set zadd xread"),
    (Bulk, "COMMAND DOCS get zadd"),
    (Bulk, "COMMAND GETKEYSANDFLAGS GET k"),
    (Bulk, "COMMAND LIST"),
    (Bulk, "~MEMORY STATS"),
    (Bulk, "MEMORY USAGE no"),
    (Bulk, "~MEMORY DOCTOR"),
    (Bulk, "~INFO clients"),
    (Bulk, "LOLWUT VERSION 5 1 1 1"),
    (Bulk, "LATENCY HISTOGRAM nosuch"),
    (Bulk, "LATENCY DOCTOR"),
    (Bulk, "ACL GETUSER default"),
    (Bulk, "ACL GETUSER nosuch"),
    (Bulk, "ACL WHOAMI"),
    (Bulk, "CLIENT GETNAME"),
    (Bulk, "CLIENT TRACKINGINFO"),
    (Bulk, "MODULE LIST"),
    (Bulk, "FUNCTION LIST"),
    (Bulk, "FUNCTION STATS"),
    (Bulk, "SCRIPT EXISTS abc"),
    (Bulk, "PUBSUB NUMSUB a b"),
    (Bulk, "DEBUG PROTOCOL STRING"),
    (Bulk, "DEBUG PROTOCOL INTEGER"),
    (Bulk, "DEBUG PROTOCOL DOUBLE"),
    (Bulk, "DEBUG PROTOCOL NULL"),
    (Bulk, "DEBUG PROTOCOL ARRAY"),
    (Bulk, "DEBUG PROTOCOL SET"),
    (Bulk, "DEBUG PROTOCOL MAP"),
    (Bulk, "DEBUG PROTOCOL ATTRIB"),
    (Bulk, "DEBUG PROTOCOL VERBATIM"),
    (Bulk, "DEBUG PROTOCOL TRUE"),
    (Bulk, "DEBUG PROTOCOL BIGNUM"),
    (Bulk, "EVAL return{1,'a',false,'b'} 0"),
    (Bulk, "EVAL return(nil) 0"),
    (Bulk, "EVAL return(false) 0"),
    (Bulk, "EVAL return{ok='fine'} 0"),
    (Bulk, "EVAL return{err='bad'} 0"),
    (Bulk, "EVAL return(redis.call('hgetall','h')) 1 h"),
    (Bulk, "EVAL return(redis.call('zrange','z','0','-1','withscores')) 1 z"),
    (Bulk, "EVAL return(redis.call('xread','streams','x','0')) 1 x"),
    (Bulk, "EVAL return(redis.call('lpop','no','2')) 1 no"),
    (Bulk, "EVAL redis.setresp(3);return(redis.call('hgetall','h')) 1 h"),
    (Bulk, "EVAL redis.setresp(3);return(redis.call('smembers','s')) 1 s"),
    (Bulk, "EVAL redis.setresp(3);return(redis.call('zscore','z','c')) 1 z"),
    (Bulk, "EVAL redis.setresp(3);return(redis.call('zrange','z','0','-1','withscores')) 1 z"),
    (Bulk, "EVAL redis.setresp(3);return{true,false,{double=0.1},{map={a=1}},{set={b=true}}} 0"),
    (Bulk, "EVAL redis.setresp(3);return{big_number='123'} 0"),
    (Bulk, "EVAL redis.setresp(3);return{verbatim_string={format='mkd',string='x'}} 0"),
];

fn call(connection: &mut Connection, command: &str) -> Vec<u8> {
    connection.call(&command.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// The reply of `command` on fresh data.
fn on_fresh_data(connection: &mut Connection, command: &str) -> Vec<u8> {
    for line in SETUP {
        let reply = call(connection, line);
        assert!(!reply.starts_with(b"-"), "{line}: {}", reply.escape_ascii());
    }
    call(connection, command)
}

/// Runs of digits, and dots between them, made one sign: for replies that differ from call to call.
fn masked(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_digit() || c == '.' { '#' } else { c };
        if c != '#' || !out.ends_with('#') {
            out.push(c);
        }
    }
    out
}

#[test]
fn redis_itself_sends_the_same() {
    let server = Server::start();
    let (mut three, mut two) = (server.connect(), server.connect());
    call(&mut three, "HELLO 3");
    for (form, line) in COMMANDS {
        let (command, volatile) = line.strip_prefix('~').map_or((*line, false), |command| (command, true));
        let ours = converted(&on_fresh_data(&mut three, command), *form);
        let theirs = on_fresh_data(&mut two, command).escape_ascii().to_string();
        match volatile {
            true => assert_eq!(masked(&ours), masked(&theirs), "{command}"),
            false => assert_eq!(ours, theirs, "{command}"),
        }
    }
}

/// Scores of every magnitude: the text of RESP3's double is the text of RESP2's bulk.
#[test]
fn doubles_keep_their_text() {
    let server = Server::start();
    let (mut three, mut two) = (server.connect(), server.connect());
    call(&mut three, "HELLO 3");
    for i in 0..2000u64 {
        // A step that visits exponents and mantissas of all kinds.
        let score = f64::from_bits(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if score.is_finite() {
            call(&mut two, &format!("ZADD many {score:e} m{i}"));
        }
    }
    let command = "ZRANGE many 0 -1 WITHSCORES";
    let theirs = call(&mut two, command);
    assert!(theirs.len() > 50_000);
    assert_eq!(converted(&call(&mut three, command), Flatten), theirs.escape_ascii().to_string());
}
