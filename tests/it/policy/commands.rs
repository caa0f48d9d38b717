use serde_json::json;

use super::{denying, is_noperm, nokey, noperm};
use crate::sessions::{run, same_as_redis, transcript, warm, words};
use crate::support::{Proxy, Redis, Reply, version};

#[test]
fn a_refusal_stands_in_its_place_in_a_pipeline_over_both_protocols() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["@dangerous", "append"]).start();
    for mut client in [proxy.client(), proxy.client3()] {
        let lines = ["SET k v", "FLUSHALL", "GET k", "append k x", "KEYS *", "CLIENT KILL TYPE normal", "GET k"];
        let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
        let expected = [
            Reply::ok(),
            noperm("flushall", "commands.deny: @dangerous"),
            Reply::bulk("v"),
            noperm("append", "commands.deny: append"),
            noperm("keys", "commands.deny: @dangerous"),
            noperm("client|kill", "commands.deny: @dangerous"),
            Reply::bulk("v"),
        ];
        assert_eq!(replies, expected);
    }
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("v"));
}

#[test]
fn inline_commands_and_wrong_numbers_of_words_are_judged_too() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall", "get"]).start();
    let mut client = proxy.client();
    client.send(b"flushall\r\nPING\r\nFLUSHALL too many words\r\nget\r\n");
    assert_eq!(client.reply(), noperm("flushall", "commands.deny: flushall"));
    assert_eq!(client.reply(), Reply::status("PONG"));
    assert_eq!(client.reply(), noperm("flushall", "commands.deny: flushall"));
    assert_eq!(client.reply(), noperm("get", "commands.deny: get"));
}

#[test]
fn client_reply_skip_swallows_a_refusal() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall"]).start();
    let mut client = proxy.client();
    client.send(b"CLIENT REPLY SKIP\r\nFLUSHALL\r\nPING\r\nMULTI\r\nCLIENT REPLY SKIP\r\nFLUSHALL\r\nEXEC\r\n");
    assert_eq!(client.reply(), Reply::status("PONG"));
    assert_eq!(client.reply(), Reply::ok());
    // What follows SKIP inside MULTI is as at Redis: the +QUEUED of CLIENT itself is what is skipped or not.
    let mut last = client.reply();
    while last == Reply::status("QUEUED") || is_noperm(&last) {
        last = client.reply();
    }
    assert!(last.text().starts_with("EXECABORT"), "{last:?}");
}

#[test]
fn a_refused_command_inside_multi_aborts_the_exec() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall", "~secret:*"]).start();
    for mut client in [proxy.client(), proxy.client3()] {
        for refused in ["FLUSHALL", "GET secret:1"] {
            let lines = ["MULTI", "SET a 1", refused, "SET b 2", "EXEC", "EXISTS a b"];
            let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
            assert_eq!(replies[..2], [Reply::ok(), Reply::status("QUEUED")]);
            assert!(is_noperm(&replies[2]), "{replies:?}");
            assert_eq!(replies[3], Reply::status("QUEUED"));
            assert_eq!(
                replies[4].text(),
                "EXECABORT Transaction discarded because of previous errors.",
                "as at Redis: {replies:?}"
            );
            assert_eq!(replies[5], Reply::Int(0));
        }
        // DISCARD ends it as well, and one without a refusal goes through.
        let lines = ["MULTI", "FLUSHALL", "DISCARD", "MULTI", "SET a 1", "DEL a", "EXEC"];
        let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
        assert!(is_noperm(&replies[1]), "{replies:?}");
        assert_eq!(replies[6], Reply::Array(vec![Reply::ok(), Reply::Int(1)]));
    }
}

#[test]
fn a_refused_exec_discards_as_redis_does() {
    let redis = Redis::start();
    if !version().at_least(7, 0) {
        return; // before, EXEC was refused like any other
    }
    redis.cmd(&["ACL", "SETUSER", "default", "-exec"]);
    let direct = Redis::start();
    direct.cmd(&["ACL", "SETUSER", "default", "-exec"]);
    let proxy = denying(&direct, &["exec"]).start();
    let lines =
        ["EXEC", "WATCH w", "MULTI", "SET a 1", "EXEC", "EXISTS a", "MULTI", "SET a 1", "EXEC", "PING", "DISCARD"];
    let mut client = proxy.client();
    let told = transcript(&mut client, &lines);
    let own = transcript(&mut redis.client(), &lines);
    for (line, (told, own)) in lines.iter().zip(told.iter().zip(&own)) {
        // The reason is ours, everything else Redis's.
        let head = "-EXECABORT Transaction discarded because of: NOPERM ";
        match own.starts_with(head) {
            true => assert!(told.starts_with(&format!("{head}nearside policy: ")), "{line}: {told}"),
            false => assert_eq!(told, own, "{line}"),
        }
    }
}

#[test]
fn keys_of_every_kind_of_command() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["~secret:*"]).start();
    let by = "commands.deny: ~secret:*";
    redis.cmd(&["SET", "secret:1", "x"]);
    let mut client = proxy.client3();
    for (line, command) in [
        ("GET secret:1", "get"),
        ("MGET a secret:1", "mget"),
        ("SET secret:1 y", "set"),
        ("EVAL return:1 2 a secret:1", "eval"),
        ("FCALL f 1 secret:1", "fcall"),
        ("BLPOP q secret:1 0", "blpop"),
        ("XREAD BLOCK 0 STREAMS secret:1 $", "xread"),
        ("WATCH a secret:1", "watch"),
        ("OBJECT ENCODING secret:1", "object|encoding"),
        ("SORT a STORE secret:1", "sort"),
    ] {
        assert_eq!(run(&mut client, line), nokey(command, by), "{line}");
    }
    for line in ["SET open:1 v", "EVAL return{1} 1 open:1", "GET open:1", "EXISTS secretly"] {
        assert!(!run(&mut client, line).is_error(), "{line}");
    }
    // Which keys these use is not known.
    for line in ["SORT a BY w_*", "NOSUCHCOMMAND secret:1", "OBJECT NEWSUB secret:1"] {
        let reply = run(&mut client, line);
        assert!(is_noperm(&reply) && reply.text().contains("whose keys are not known"), "{line}: {reply:?}");
    }
    assert_eq!(redis.cmd(&["GET", "secret:1"]), Reply::bulk("x"));
}

#[test]
fn only_what_allow_names() {
    let redis = Redis::start();
    let allow = json!(["@read", "set", "multi", "exec", "~app:*"]);
    let proxy = Proxy::to(&redis).set("commands.allow", allow).start();
    let mut client = proxy.client();
    let out = "commands.allow: not named";
    assert_eq!(run(&mut client, "SET app:1 v"), Reply::ok());
    assert_eq!(run(&mut client, "GET app:1"), Reply::bulk("v"));
    assert_eq!(run(&mut client, "GET other"), nokey("get", "commands.allow: no pattern matches"));
    assert_eq!(run(&mut client, "DEL app:1"), noperm("del", out));
    assert_eq!(run(&mut client, "NOSUCHCOMMAND"), noperm("nosuchcommand", out));
    assert_eq!(run(&mut client, "CLIENT NOSUCHSUB"), noperm("client|nosuchsub", out));
    let lines = ["MULTI", "SET app:1 w", "GET app:1", "EXEC"];
    let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    assert_eq!(replies[3], Reply::Array(vec![Reply::ok(), Reply::bulk("w")]));
    // The way in and out, and our own, need no rights.
    assert!(!run(&mut client, "HELLO 3").is_error());
    assert!(!run(&mut client, "NEARSIDE STATS").is_error());
    assert_eq!(run(&mut client, "RESET"), Reply::status("RESET"));
    assert_eq!(run(&mut client, "QUIT"), Reply::ok());
}

#[test]
fn on_a_connection_of_the_clients_own() {
    let redis = Redis::start();
    let proxy = denying(&redis, &["flushall", "client|getname"]).start();
    let refused = noperm("flushall", "commands.deny: flushall");
    let mut client = proxy.client3();
    assert_eq!(run(&mut client, "WATCH w"), Reply::ok());
    assert_eq!(run(&mut client, "FLUSHALL"), refused);
    assert_eq!(run(&mut client, "CLIENT GETNAME"), noperm("client|getname", "commands.deny: client|getname"));
    assert_eq!(run(&mut client, "UNWATCH"), Reply::ok());
    let mut client = proxy.client();
    client.send(b"SUBSCRIBE c\r\n");
    client.frame();
    // Redis asks its ACL before it says what a subscriber may do.
    assert_eq!(run(&mut client, "FLUSHALL"), refused);
    client.send(b"PING\r\n");
    assert_eq!(client.frame(), Reply::bulks(&["pong", ""]));
}

#[test]
fn a_refused_read_is_not_answered_from_the_cache() {
    let redis = Redis::start();
    for workers in [1, 2] {
        let overrides = json!([{"client": "reader", "deny": []}]);
        let proxy = denying(&redis, &["~k*"]).set("commands.overrides", overrides).set("workers", workers).start();
        redis.cmd(&["SET", "k", "v"]);
        let mut reader = proxy.client();
        run(&mut reader, "CLIENT SETNAME reader");
        assert_eq!(warm(&proxy, &mut reader, "k"), Reply::bulk("v"));
        // On each worker there is one of them.
        for mut client in [(); 4].map(|()| proxy.client()) {
            run(&mut client, "PING");
            for _ in 0..3 {
                assert_eq!(run(&mut client, "GET k"), nokey("get", "commands.deny: ~k*"));
                assert_eq!(run(&mut client, "MGET k k"), nokey("mget", "commands.deny: ~k*"));
            }
        }
    }
}

#[test]
fn renamed_commands_are_judged_by_what_they_are() {
    let redis =
        Redis::builder().args(&["--rename-command", "FLUSHALL", "WIPE", "--rename-command", "CONFIG", "CFG"]).start();
    let proxy = denying(&redis, &["flushall", "config|set"]).start();
    redis.cmd(&["SET", "k", "v"]);
    let refused = noperm("flushall", "commands.deny: flushall");
    let unsettable = noperm("config|set", "commands.deny: config|set");
    // Not known yet, inside MULTI: it is found out before it is sent.
    let mut client = proxy.client();
    let replies = client.pipeline(&[&["MULTI"][..], &["WIPE"], &["CFG", "SET", "maxmemory", "1"], &["EXEC"]]);
    assert_eq!(replies[1], refused, "{replies:?}");
    assert!(is_noperm(&replies[2]), "{replies:?}");
    assert!(replies[3].text().starts_with("EXECABORT"), "{replies:?}");
    assert_eq!(run(&mut client, "WIPE"), refused);
    assert!(is_noperm(&run(&mut client, "CFG SET maxmemory 1")));
    assert_eq!(run(&mut client, "GET k"), Reply::bulk("v"));
    // And on the lane's way, by a sidecar that has heard of neither.
    let proxy = denying(&redis, &["flushall", "config|set"]).start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "wipe"), refused);
    let reply = run(&mut client, "CFG SET maxmemory 1");
    assert!(reply == unsettable || is_noperm(&reply), "{reply:?}");
    assert!(!run(&mut client, "CFG GET maxmemory").is_error());
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("v"));
}

/// Without a lane there is nobody to ask: a name that is not known is refused, also as the first there is.
#[test]
fn a_name_that_nobody_explains_is_not_let_through() {
    let redis = Redis::builder().args(&["--rename-command", "FLUSHALL", "WIPE"]).start();
    redis.cmd(&["SET", "k", "v"]);
    let proxy = denying(&redis, &["flushall"]).set("upstream.lanes_max", 1).start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "SELECT 1"), Reply::ok());
    for _ in 0..2 {
        let reply = run(&mut client, "WIPE");
        assert!(is_noperm(&reply) && reply.text().contains("could not be asked"), "{reply:?}");
    }
    assert_eq!(run(&mut client, "SET j 1"), Reply::ok());
    assert!(is_noperm(&run(&mut client, "WIPE")));
    assert_eq!(redis.cmd(&["GET", "k"]), Reply::bulk("v"));
}

#[test]
fn who_may_not_ask_what_a_name_is_may_not_use_it() {
    let redis = Redis::builder().args(&["--rename-command", "FLUSHALL", "WIPE"]).start();
    redis.cmd(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-command"]);
    let proxy = denying(&redis, &["flushall"]).start();
    let mut client = proxy.client();
    assert_eq!(run(&mut client, "AUTH app pw"), Reply::ok());
    for _ in 0..2 {
        let reply = run(&mut client, "WIPE");
        assert!(is_noperm(&reply) && reply.text().contains("could not be asked"), "{reply:?}");
    }
    run(&mut client, "WATCH w");
    assert!(is_noperm(&run(&mut client, "WIPE")));
}

#[test]
fn what_no_rule_speaks_of_is_as_at_redis() {
    let (redis, upstream) = (Redis::start(), Redis::start());
    let proxy = denying(&upstream, &["flushall", "ft.search"]).start();
    let lines = [
        "SET k v",
        "GET k",
        "NOSUCHCOMMAND a b",
        "CLIENT NOSUCHSUB",
        "GET",
        "CONFIG",
        "MULTI",
        "NOSUCHCOMMAND",
        "EXEC",
        "LPUSH k 1",
        "OBJECT ENCODING k",
        "EVAL return{1,2} 0",
        "ECHO x",
    ];
    same_as_redis(&mut redis.client(), &mut proxy.client(), &lines);
    same_as_redis(&mut redis.client().hello3(), &mut proxy.client3(), &lines);
}
