//! Each command whose reply names keys, in both protocols, directly, in EXEC, and where the reply is streamed.

use super::*;

/// Commands in order, and what a client sees.
const REPLIES: &[(&str, &str, &str)] = &[
    ("RPUSH q one", ":1", ":1"),
    ("KEYS *", r#"["q"]"#, r#"["q"]"#),
    ("KEYS app:*", "[]", "[]"),
    ("SCAN 0 COUNT 1000", r#"["0", ["q"]]"#, r#"["0", ["q"]]"#),
    ("SCAN 0 MATCH q* COUNT 1000 TYPE list", r#"["0", ["q"]]"#, r#"["0", ["q"]]"#),
    ("SCAN 0 COUNT 1000 TYPE hash", r#"["0", []]"#, r#"["0", []]"#),
    ("RANDOMKEY", r#""q""#, r#""q""#),
    ("BLPOP none q 0", r#"["q", "one"]"#, r#"["q", "one"]"#),
    ("RANDOMKEY", "nil", "nil"),
    ("RPUSH q two three four five", ":4", ":4"),
    ("BRPOP q 0", r#"["q", "five"]"#, r#"["q", "five"]"#),
    ("LMPOP 2 none q LEFT", r#"["q", ["two"]]"#, r#"["q", ["two"]]"#),
    ("BLMPOP 0 2 none q LEFT COUNT 5", r#"["q", ["three", "four"]]"#, r#"["q", ["three", "four"]]"#),
    ("LMPOP 2 none q LEFT", "nil", "nil"),
    ("ZADD z 1 a 2 b 3 c 4 app:d", ":4", ":4"),
    ("BZPOPMIN none z 0", r#"["z", "a", "1"]"#, r#"["z", "a", ,1]"#),
    ("ZMPOP 1 z MIN", r#"["z", [["b", "2"]]]"#, r#"["z", [["b", ,2]]]"#),
    ("BZMPOP 0 1 z MIN", r#"["z", [["c", "3"]]]"#, r#"["z", [["c", ,3]]]"#),
    ("BZPOPMAX z 0", r#"["z", "app:d", "4"]"#, r#"["z", "app:d", ,4]"#),
    ("XADD s 1-1 app:f v", r#""1-1""#, r#""1-1""#),
    ("XREAD STREAMS none s 0 0", r#"[["s", [["1-1", ["app:f", "v"]]]]]"#, r#"{"s": [["1-1", ["app:f", "v"]]]}"#),
    ("XREAD BLOCK 0 STREAMS s 0", r#"[["s", [["1-1", ["app:f", "v"]]]]]"#, r#"{"s": [["1-1", ["app:f", "v"]]]}"#),
    ("XGROUP CREATE s g 0", "+OK", "+OK"),
    (
        "XREADGROUP GROUP g c STREAMS s >",
        r#"[["s", [["1-1", ["app:f", "v"]]]]]"#,
        r#"{"s": [["1-1", ["app:f", "v"]]]}"#,
    ),
    ("MSET w_1 20 w_2 10 o_1 first o_2 second", "+OK", "+OK"),
    ("RPUSH l 1 2", ":2", ":2"),
    ("SORT l BY w_* GET # GET o_*", r#"["2", "second", "1", "first"]"#, r#"["2", "second", "1", "first"]"#),
    ("SORT_RO l BY w_* GET o_*", r#"["second", "first"]"#, r#"["second", "first"]"#),
    ("SORT l BY w_* STORE d", ":2", ":2"),
    ("LRANGE d 0 -1", r#"["2", "1"]"#, r#"["2", "1"]"#),
    ("LCS w_1 w_2", r#""0""#, r#""0""#),
    ("COPY d e", ":1", ":1"),
    ("RENAME e f", "+OK", "+OK"),
    ("TYPE f", "+list", "+list"),
    ("OBJECT ENCODING o_1", r#""embstr""#, r#""embstr""#),
    ("MEMORY USAGE none", "nil", "nil"),
    ("COMMAND GETKEYS MSET a 1 b 2", r#"["a", "b"]"#, r#"["a", "b"]"#),
    ("COMMAND GETKEYSANDFLAGS GET a", r#"[["a", [+RO, +access]]]"#, r#"[["a", {+RO, +access}]]"#),
    ("EVAL return+redis.call('GET',KEYS[1]) 1 o_1", r#""first""#, r#""first""#),
    (
        "DEBUG DIGEST-VALUE none",
        r#"["0000000000000000000000000000000000000000"]"#,
        r#"[+0000000000000000000000000000000000000000]"#,
    ),
    ("DEBUG OBJECT none", "-ERR no such key", "-ERR no such key"),
    ("PFADD h a", ":1", ":1"),
    ("PFCOUNT h none", ":1", ":1"),
    ("GEOADD geo 1 1 m", ":1", ":1"),
    ("GEORADIUS geo 1 1 1 km STORE store", ":1", ":1"),
    ("ZCARD store", ":1", ":1"),
    ("TYPE store", "+zset", "+zset"),
];

#[test]
fn replies_name_keys_as_the_client_does() {
    for resp3 in [false, true] {
        let redis = Redis::start();
        let proxy = app(&redis);
        redis.cmd(&["MSET", "q", "foreign", "b:q", "foreign", "apq:q", "foreign"]);
        let mut client = if resp3 { proxy.client3() } else { proxy.client() };
        for (line, resp2, three) in REPLIES {
            let words: Vec<String> = line.split(' ').map(|word| word.replace('+', " ")).collect();
            let got = format!("{:?}", client.cmd(&words));
            let expected = if resp3 { three } else { resp2 };
            if line.starts_with("DEBUG DIGEST") {
                assert_eq!(got.replace(['"', '+'], ""), expected.replace(['"', '+'], ""), "{line}");
            } else {
                assert_eq!(got, *expected, "{line} (RESP{})", if resp3 { 3 } else { 2 });
            }
        }
        let foreign: Vec<String> = upstream_keys(&redis).into_iter().filter(|k| !k.starts_with("app:")).collect();
        assert_eq!(foreign, ["apq:q", "b:q", "q"]);
    }
}

#[test]
fn exec_replies_are_stripped_by_what_was_queued() {
    let redis = Redis::start();
    let proxy = app(&redis);
    for (i, mut client) in both(&proxy).into_iter().enumerate() {
        // With CLIENT in it, EXEC's reply is read element by element.
        for special in [&[][..], &["CLIENT GETNAME"], &["SELECT 0"]] {
            say(&mut client, "DEL l s k");
            say(&mut client, "RPUSH l one app:two");
            say(&mut client, "XADD s 1-1 f app:v");
            say(&mut client, "MULTI");
            let lines =
                ["SET k app:v", "GET k", "LMPOP 1 l LEFT", "XREAD STREAMS s 0", "KEYS l", "SCAN 0 MATCH k COUNT 1000"];
            for line in lines.iter().chain(special) {
                assert_eq!(say(&mut client, line), "+QUEUED", "{line}");
            }
            let stream = [r#"[["s", [["1-1", ["f", "app:v"]]]]]"#, r#"{"s": [["1-1", ["f", "app:v"]]]}"#][i];
            let mut expected = format!(r#"[+OK, "app:v", ["l", ["one"]], {stream}, ["l"], ["0", ["k"]]"#);
            expected += match special {
                [] => "]",
                ["SELECT 0"] => ", +OK]",
                _ => ", nil]",
            };
            assert_eq!(say(&mut client, "EXEC"), expected, "{special:?}");
        }
    }
}

#[test]
fn inline_commands_and_pipelines_are_rewritten() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut client = proxy.client();
    client.send(b"SET k v\r\nGET k\r\nKEYS *k\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    let got: Vec<String> = (0..4).map(|_| format!("{:?}", client.reply())).collect();
    assert_eq!(got, ["+OK", r#""v""#, r#"["k"]"#, r#""v""#]);
    assert_eq!(redis.cmd(&["GET", "app:k"]), Reply::bulk("v"));
}

#[test]
fn a_scan_meets_every_own_key_and_no_other() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut own: Vec<String> = (0..300).map(|i| format!("k{i}")).collect();
    for i in 0..300 {
        redis.cmd(&["MSET", &format!("app:k{i}"), "v", &format!("other:k{i}"), "v"]);
    }
    own.sort();
    for mut client in both(&proxy) {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let page = client.cmd(&["SCAN", &cursor, "COUNT", "50", "MATCH", "k*"]).items();
            found.extend(page[1].items().iter().map(Reply::text));
            cursor = page[0].text();
            if cursor == "0" {
                break;
            }
        }
        found.sort();
        found.dedup();
        assert_eq!(found, own);
        let random = client.cmd(&["RANDOMKEY"]).text();
        assert!(own.contains(&random), "{random}");
    }
}

#[test]
fn large_values_and_large_requests_are_streamed_under_own_names() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let big = vec![b'x'; 5 << 20];
    for mut client in both(&proxy) {
        assert_eq!(client.cmd(&[&b"SET"[..], b"big", &big]), Reply::ok());
        assert_eq!(redis.cmd(&["STRLEN", "app:big"]).int(), 5 << 20);
        assert_eq!(client.cmd(&["GET", "big"]), Reply::Bulk(big.clone()));
        assert_eq!(client.cmd(&[&b"MSET"[..], b"m1", &big, b"m2", b"v"]), Reply::ok());
        assert_eq!(redis.cmd(&["GET", "app:m2"]), Reply::bulk("v"));
        // Keys too many to be looked at in one piece, and more bytes up than came down.
        let many: Vec<Vec<u8>> = (0..150_000).map(|i| format!("n{i}").into_bytes()).collect();
        let words: Vec<&[u8]> =
            std::iter::once(&b"DEL"[..]).chain(many.iter().map(Vec::as_slice)).chain([&b"m2"[..]]).collect();
        assert_eq!(client.cmd(&words), Reply::Int(1));
        // Values of megabytes behind a key's name.
        assert_eq!(client.cmd(&[&b"RPUSH"[..], b"q", &big]), Reply::Int(1));
        assert_eq!(client.cmd(&["BLPOP", "q", "0"]), Reply::Array(vec![Reply::bulk("q"), Reply::Bulk(big.clone())]));
        assert_eq!(client.cmd(&[&b"XADD"[..], b"s", b"*", b"f", &big]).text().split('-').count(), 2);
        let read = format!("{:?}", client.cmd(&["XREAD", "STREAMS", "s", "0"]));
        assert!(read.starts_with(r#"[["s", [["#) || read.starts_with(r#"{"s": [["#), "{}", &read[..60]);
        assert_eq!(
            client
                .cmd(&["EVAL", &format!("--{}\nreturn redis.call('STRLEN', KEYS[1])", "x".repeat(2 << 20)), "1", "big"])
                .int(),
            5 << 20
        );
        assert_eq!(client.cmd(&["DEL", "s", "big", "m1"]), Reply::Int(3));
        // In a transaction.
        say(&mut client, "MULTI");
        assert_eq!(client.cmd(&[&b"SET"[..], b"big", &big]), Reply::status("QUEUED"));
        assert_eq!(say(&mut client, "GET big"), "+QUEUED");
        assert_eq!(say(&mut client, "KEYS big"), "+QUEUED");
        let exec = client.cmd(&["EXEC"]).items();
        assert_eq!(exec[1..], [Reply::Bulk(big.clone()), Reply::bulks(&["big"])]);
        assert_eq!(client.cmd(&["DEL", "big"]), Reply::Int(1));
    }
}

#[test]
fn a_list_of_keys_that_is_streamed_loses_the_prefix() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut own: Vec<String> = (0..40_000).map(|i| format!("{i:06}:{}", "n".repeat(40))).collect();
    for chunk in own.chunks(2000) {
        let pairs = chunk.iter().flat_map(|key| [format!("app:{key}"), "v".to_owned()]);
        let words: Vec<String> = std::iter::once("MSET".to_owned()).chain(pairs).collect();
        assert_eq!(redis.cmd(&words), Reply::ok());
    }
    own.sort();
    for mut client in both(&proxy) {
        assert_eq!(sorted(&client.cmd(&["KEYS", "*n"])), own);
        say(&mut client, "MULTI");
        say(&mut client, "KEYS *n");
        say(&mut client, "PING");
        let exec = client.cmd(&["EXEC"]).items();
        assert_eq!(sorted(&exec[0]), own);
        assert_eq!(exec[1], Reply::status("PONG"));
    }
}
