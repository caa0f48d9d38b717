use serde_json::json;

use super::{denying, nokey, noperm};
use crate::sessions::{run, warm, words};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

#[test]
fn a_name_holds_from_the_next_command_on_in_one_pipeline() {
    let redis = Redis::start();
    let overrides = json!([{"client": "reader-*", "allow": ["@read", "@connection"]}]);
    let proxy = denying(&redis, &["get"]).set("commands.overrides", overrides).start();
    redis.cmd(&["SET", "k", "v"]);
    for mut client in [proxy.client(), proxy.client3()] {
        let lines = [
            "GETRANGE k 0 -1",
            "SET j 1",
            "CLIENT SETNAME reader-1",
            "SET j 1",
            "STRLEN k",
            "CLIENT SETNAME x",
            "SET j 1",
        ];
        let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
        let expected = [
            Reply::bulk("v"),
            Reply::ok(),
            Reply::ok(),
            noperm("set", "commands.overrides[0].allow: not named"),
            Reply::Int(1),
            Reply::ok(),
            Reply::ok(),
        ];
        assert_eq!(replies, expected);
        // deny is not given there, so it is that of commands.
        run(&mut client, "CLIENT SETNAME reader-2");
        assert_eq!(run(&mut client, "GET k"), noperm("get", "commands.deny: get"));
        run(&mut client, "RESET");
        assert_eq!(run(&mut client, "SET j 1"), Reply::ok());
        assert!(!run(&mut client, "HELLO 3 SETNAME reader-3").is_error());
        assert_eq!(run(&mut client, "SET j 1"), noperm("set", "commands.overrides[0].allow: not named"));
    }
}

#[test]
fn a_name_given_on_a_connection_of_its_own_holds_there_too() {
    let redis = Redis::start();
    let overrides = json!([{"client": "batch", "deny": ["set"]}]);
    let proxy = Proxy::to(&redis).set("commands.overrides", overrides).start();
    let refused = noperm("set", "commands.overrides[0].deny: set");
    let mut client = proxy.client();
    let lines = [
        "WATCH w",
        "SET a 1",
        "CLIENT SETNAME batch",
        "SET a 2",
        "MULTI",
        "CLIENT SETNAME other",
        "SET a 3",
        "EXEC",
        "SET a 4",
    ];
    let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    assert_eq!(replies[1..4], [Reply::ok(), Reply::ok(), refused.clone()]);
    // Inside MULTI a name is given at EXEC.
    assert_eq!(replies[6], refused);
    assert!(replies[7].text().starts_with("EXECABORT"), "{replies:?}");
    assert_eq!(replies[8], refused);
    let lines = ["MULTI", "CLIENT SETNAME other", "EXEC", "SET a 5"];
    let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
    assert_eq!(replies[3], Reply::ok(), "{replies:?}");
    assert_eq!(redis.cmd(&["GET", "a"]), Reply::bulk("5"));
}

#[test]
fn by_listener_and_by_user() {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "ops", "on", ">pw", "~*", "&*", "+@all"]);
    let overrides = json!([
        {"user": "ops", "deny": []},
        {"listener": "127.0.0.1:0", "deny": ["@write", "@dangerous"]},
    ]);
    let proxy = denying(&redis, &["flushall"]).set("commands.overrides", overrides).tcp().start();
    let (mut tcp, mut unix) = (Client::tcp(proxy.address()), proxy.client());
    assert_eq!(run(&mut unix, "SET k v"), Reply::ok());
    assert_eq!(run(&mut unix, "FLUSHALL"), noperm("flushall", "commands.deny: flushall"));
    assert_eq!(run(&mut tcp, "SET k v"), noperm("set", "commands.overrides[1].deny: @write"));
    assert_eq!(run(&mut tcp, "GET k"), Reply::bulk("v"));
    for client in [&mut tcp, &mut unix] {
        assert_eq!(run(client, "AUTH ops pw"), Reply::ok());
        assert_eq!(run(client, "FLUSHALL"), Reply::ok());
    }
}

/// A front that has been granted hits must not go on answering under a name that may not have them.
#[test]
fn another_workers_client_is_judged_as_any_other() {
    let redis = Redis::start();
    let overrides = json!([{"client": "blind", "deny": ["~k*"]}]);
    let proxy = Proxy::to(&redis)
        .set("commands.overrides", overrides)
        .set("workers", 2)
        // A busy machine must not cost the lease, or nobody would be answered by a front.
        .set("coherence.max_staleness", "60s")
        .start();
    redis.cmd(&["SET", "k", "v"]);
    let mut clients = [(); 4].map(|()| proxy.client());
    warm(&proxy, &mut clients[0], "k");
    for client in &mut clients {
        run(client, "PING");
        // From here on the front answers.
        (0..5).for_each(|_| assert_eq!(run(client, "GET k"), Reply::bulk("v")));
        for _ in 0..20 {
            let lines = ["GET k", "CLIENT SETNAME blind", "GET k", "MGET k k", "CLIENT SETNAME seer", "GET k"];
            let replies = client.pipeline(&lines.map(words).each_ref().map(Vec::as_slice));
            let refused = |command| nokey(command, "commands.overrides[0].deny: ~k*");
            let expected =
                [Reply::bulk("v"), Reply::ok(), refused("get"), refused("mget"), Reply::ok(), Reply::bulk("v")];
            assert_eq!(replies, expected);
            assert_eq!(run(client, "GET k"), Reply::bulk("v"));
        }
    }
    let by_worker = proxy.stats()["hits_by_worker"].clone();
    assert!(by_worker.split(',').all(|hits| hits != "0"), "{by_worker}");
    // What fronts answered was judged as well.
    let asked = 4.0 * (1.0 + 5.0 + 20.0 * 7.0);
    eventually(PATIENCE, "every command to be counted", || {
        proxy.stat("policy_allowed") + proxy.stat("policy_denied") > asked
    });
}
