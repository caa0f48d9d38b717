use std::time::Duration;

use super::{run, same_as_redis, transcript, wait_upstream, warm};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually, needs};

/// The subscription's confirmation has come, so one subscriber must hear it.
#[track_caller]
fn publish(redis: &Redis, channel: &str, message: &str) {
    assert_eq!(redis.cmd(&["PUBLISH", channel, message]), Reply::Int(1), "{channel}");
}

#[test]
fn confirmations_and_messages_have_the_form_of_each_protocol() {
    let sharded = needs(7, 0, "SSUBSCRIBE");
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let lines = &["SUBSCRIBE a", "PSUBSCRIBE b*", "SSUBSCRIBE s"][..if sharded { 3 } else { 2 }];
    let last = ["PING", "PING x", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "PING"];
    for three in [false, true] {
        let mut both = [(&plain, plain.client()), (&redis, proxy.client())];
        if three {
            both = both.map(|(server, client)| (server, client.hello3()));
        }
        let [expected, got] = both.map(|(server, mut client)| {
            let mut all = transcript(&mut client, lines);
            publish(server, "a", "one");
            all.push(client.read_reply_raw().escape_ascii().to_string());
            publish(server, "bcd", "two");
            all.push(client.read_reply_raw().escape_ascii().to_string());
            if sharded {
                assert_eq!(server.cmd(&["SPUBLISH", "s", "three"]), Reply::Int(1));
                all.push(client.read_reply_raw().escape_ascii().to_string());
            }
            all.extend(transcript(&mut client, &last));
            all
        });
        assert_eq!(got, expected);
    }
}

#[test]
fn what_a_resp2_subscriber_may_not_say_is_refused_as_redis_does() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let lines = [
        "SUBSCRIBE a",
        "GET k",
        "CLIENT ID",
        "HELLO 3",
        "SELECT 1",
        "NOSUCH",
        "MULTI",
        "PING",
        "UNSUBSCRIBE a",
        "GET k",
    ];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &lines);
    let lines = ["SUBSCRIBE a", "RESET", "GET k", "PING"];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &lines);
    let lines = ["UNSUBSCRIBE", "PUNSUBSCRIBE x", "SUNSUBSCRIBE", "GET k"];
    same_as_redis(&mut plain.client(), &mut proxy.client(), &lines);
    same_as_redis(&mut plain.client().hello3(), &mut proxy.client3(), &lines);
}

#[test]
fn a_resp3_subscriber_goes_on_with_everything_else() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client3();
    client.send_cmd(&["SUBSCRIBE", "a", "b"]);
    assert_eq!(client.push().items()[2], Reply::Int(1));
    assert_eq!(client.push().items()[2], Reply::Int(2));
    assert_eq!(run(&mut client, "SET k v"), Reply::ok());
    assert_eq!(run(&mut client, "MULTI"), Reply::ok());
    publish(&redis, "a", "inside");
    assert_eq!(run(&mut client, "GET k"), Reply::status("QUEUED"));
    assert_eq!(run(&mut client, "EXEC"), Reply::bulks(&["v"]));
    assert_eq!(client.push(), Reply::Push(vec![Reply::bulk("message"), Reply::bulk("a"), Reply::bulk("inside")]));
    assert_eq!(run(&mut client, "CLIENT SETNAME sub"), Reply::ok());
    assert!(run(&mut client, "CLIENT INFO").text().contains("name=sub"));
    assert_eq!(run(&mut client, "BLPOP none 0.01"), Reply::Nil);
    publish(&redis, "b", "after");
    assert_eq!(client.push().items()[2], Reply::bulk("after"));
}

#[test]
fn commands_behind_the_last_unsubscribe_are_back_on_the_lane() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    redis.cmd(&["SET", "k", "v"]);
    let mut client = proxy.client();
    warm(&proxy, &mut client, "k");
    client.send(b"SUBSCRIBE a b\r\nPSUBSCRIBE p*\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nGET k\r\n");
    let kinds: Vec<Reply> = (0..6).map(|_| client.reply().items()[0].clone()).collect();
    let expected = ["subscribe", "subscribe", "psubscribe", "unsubscribe", "unsubscribe", "punsubscribe"];
    assert_eq!(kinds, expected.map(Reply::bulk));
    assert_eq!(client.reply(), Reply::bulk("v"));
    warm(&proxy, &mut client, "k");
    wait_upstream(&redis, "flags=P", 0);
}

#[test]
fn a_subscriber_that_goes_away_is_unsubscribed_at_once() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    run(&mut client, "SUBSCRIBE a");
    assert_eq!(redis.cmd(&["PUBSUB", "NUMSUB", "a"]).items()[1], Reply::Int(1));
    drop(client);
    eventually(PATIENCE, "no subscriber", || redis.cmd(&["PUBSUB", "NUMSUB", "a"]).items()[1] == Reply::Int(0));
    eventually(PATIENCE, "no pinned connection", || proxy.stat("pinned_connections") == 0.0);
}

#[test]
fn client_list_shows_who_subscribes() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut sub, mut other) = (proxy.client(), proxy.client());
    let id = run(&mut sub, "CLIENT ID").int();
    run(&mut sub, "SUBSCRIBE a");
    run(&mut sub, "PSUBSCRIBE b");
    let list = run(&mut other, "CLIENT LIST TYPE pubsub").text();
    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(list.starts_with(&format!("id={id} ")) && list.contains("flags=PU"), "{list}");
    assert!(list.contains("sub=1 psub=1"), "{list}");
    assert_eq!(run(&mut other, "CLIENT KILL TYPE pubsub"), Reply::Int(1));
    sub.expect_closed();
}

#[test]
fn a_thousand_messages_arrive_in_order_beside_commands() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut sub = proxy.client3();
    sub.send_cmd(&["SUBSCRIBE", "c"]);
    sub.push();
    let mut publisher = proxy.client();
    let publishes: Vec<Vec<String>> =
        (0..1000).map(|i| vec!["PUBLISH".to_string(), "c".to_string(), i.to_string()]).collect();
    let publishes: Vec<&[String]> = publishes.iter().map(|words| words.as_slice()).collect();
    assert!(publisher.pipeline(&publishes).iter().all(|reply| *reply == Reply::Int(1)));
    for i in 0..10 {
        assert_eq!(run(&mut sub, &format!("ECHO {i}")), Reply::bulk(i.to_string()));
    }
    for i in 0..1000 {
        assert_eq!(sub.push().items()[2], Reply::bulk(i.to_string()));
    }
}

#[test]
fn monitor_shows_what_upstream_executes() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut monitor, mut other) = (proxy.client(), proxy.client());
    assert_eq!(run(&mut monitor, "MONITOR"), Reply::ok());
    run(&mut other, "SET shown 1");
    let mut seen = false;
    eventually(PATIENCE, "the SET", || {
        seen |= monitor.reply().text().ends_with("\"SET\" \"shown\" \"1\"");
        seen
    });
    assert!(run(&mut other, "CLIENT LIST").text().contains("flags=OU"));
    monitor.send_cmd(&["QUIT"]);
    let rest = monitor.expect_closed();
    assert!(rest.ends_with(b"+OK\r\n"), "{}", rest.escape_ascii());
    wait_upstream(&redis, "flags=O", 0);
}

fn tracked(client: &mut Client, line: &str) {
    assert_eq!(run(client, line), Reply::ok(), "{line}");
}

#[test]
fn an_app_that_tracks_by_itself_gets_its_own_invalidations() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client3();
    tracked(&mut client, "CLIENT TRACKING ON");
    assert_eq!(run(&mut client, "GET k"), Reply::Nil);
    redis.cmd(&["SET", "k", "v"]);
    assert_eq!(client.push(), Reply::Push(vec![Reply::bulk("invalidate"), Reply::bulks(&["k"])]));
    // Its reads go upstream as long as it tracks: a hit would not be tracked for it.
    for _ in 0..3 {
        assert_eq!(run(&mut client, "GET k"), Reply::bulk("v"));
        redis.cmd(&["SET", "k", "v"]);
        assert_eq!(client.push().items()[1], Reply::bulks(&["k"]));
    }
    assert_eq!(run(&mut client, "CLIENT GETREDIR"), Reply::Int(0));
    assert!(run(&mut client, "CLIENT TRACKINGINFO").get("flags").items().contains(&Reply::bulk("on")));
    tracked(&mut client, "CLIENT TRACKING OFF");
    warm(&proxy, &mut client, "k");
    redis.cmd(&["SET", "k", "w"]);
    eventually(PATIENCE, "the new value", || run(&mut client, "GET k") == Reply::bulk("w"));
    assert_eq!(client.pushes_seen(), 0);
}

#[test]
fn broadcast_tracking_passes_prefixes_and_pushes() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client3();
    tracked(&mut client, "CLIENT TRACKING ON BCAST PREFIX user: NOLOOP");
    redis.cmd(&["SET", "other:1", "v"]);
    redis.cmd(&["SET", "user:1", "v"]);
    assert_eq!(client.push().items()[1], Reply::bulks(&["user:1"]));
    assert_eq!(run(&mut client, "SET user:2 own"), Reply::ok());
    client.expect_silence(Duration::from_millis(20));
}

#[test]
fn a_redirection_names_a_client_by_its_id_here() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (mut target, mut client) = (proxy.client(), proxy.client());
    let id = run(&mut target, "CLIENT ID").int();
    run(&mut target, "SUBSCRIBE __redis__:invalidate");
    tracked(&mut client, &format!("CLIENT TRACKING ON REDIRECT {id}"));
    assert_eq!(run(&mut client, "CLIENT GETREDIR"), Reply::Int(id));
    assert_eq!(run(&mut client, "CLIENT TRACKINGINFO").get("redirect"), Reply::Int(id));
    run(&mut client, "GET k");
    redis.cmd(&["SET", "k", "v"]);
    let message = target.reply().items();
    assert_eq!(message[..2], [Reply::bulk("message"), Reply::bulk("__redis__:invalidate")]);
    assert_eq!(message[2], Reply::bulks(&["k"]));
    let refused = run(&mut proxy.client(), "CLIENT TRACKING ON REDIRECT 99999");
    assert_eq!(refused.text(), "ERR The client ID you want redirect to does not exist");
}

/// Everything that arrives up to the answer to a last ECHO, pushes where they stand.
fn stream(client: &mut Client, lines: &[&str]) -> String {
    let script = lines.join("\r\n") + "\r\nECHO the-end\r\n";
    client.send(script.as_bytes());
    let mut all = Vec::new();
    while !all.ends_with(b"the-end\r\n") {
        let piece = client.try_read(PATIENCE).filter(|piece| !piece.is_empty());
        all.extend(piece.unwrap_or_else(|| panic!("no end after {}", all.escape_ascii())));
    }
    all.escape_ascii().to_string()
}

#[test]
fn pushes_stand_where_redis_puts_them_among_the_replies_of_a_pipeline() {
    let (plain, redis) = (Redis::start(), Redis::start());
    let proxy = Proxy::start(&redis);
    let scripts: &[&[&str]] = &[
        &[
            "SUBSCRIBE a b",
            "SET k 1",
            "GET k",
            "PSUBSCRIBE p*",
            "GET k",
            "UNSUBSCRIBE b a",
            "GET k",
            "PUNSUBSCRIBE",
            "GET k",
        ],
        &["SUBSCRIBE a", "PUBLISH a own", "GET k", "UNSUBSCRIBE a", "PUBLISH a none"],
        &["SUBSCRIBE a a a", "UNSUBSCRIBE a a", "SUBSCRIBE a", "UNSUBSCRIBE", "UNSUBSCRIBE"],
        &["SSUBSCRIBE s t", "SPUBLISH s own", "SUNSUBSCRIBE s t", "SPUBLISH s none", "SUNSUBSCRIBE"],
        &["MULTI", "SUBSCRIBE a b", "GET k", "EXEC", "GET k", "UNSUBSCRIBE a b"],
        &["MULTI", "SUBSCRIBE a", "UNSUBSCRIBE", "EXEC", "GET k"],
        &["SUBSCRIBE a", "MULTI", "PUBLISH a own", "UNSUBSCRIBE a", "GET k", "EXEC", "GET k"],
        &["WATCH k", "SUBSCRIBE a", "SET k 2", "MULTI", "GET k", "EXEC", "UNSUBSCRIBE", "GET k"],
        &["CLIENT REPLY SKIP", "SUBSCRIBE a", "GET k", "UNSUBSCRIBE"],
        &["SUBSCRIBE a", "SUBSCRIBE", "PSUBSCRIBE", "NOSUCH", "GET", "UNSUBSCRIBE"],
        &["SUBSCRIBE a", "BLPOP q 0.01", "SELECT 1", "GET k", "SELECT 0", "UNSUBSCRIBE", "GET k"],
        &["CLIENT TRACKING ON", "GET k", "SET k 3", "GET k", "CLIENT TRACKING OFF", "SET k 4", "GET k"],
        &["CLIENT TRACKING ON", "MGET k l m", "MSET k 1 l 2 m 3", "FLUSHALL", "CLIENT TRACKING OFF", "GET k"],
        &["CLIENT TRACKING ON OPTIN", "CLIENT CACHING YES", "GET k", "SET k 5", "CLIENT TRACKING OFF"],
        &["SUBSCRIBE a", "RESET", "GET k"],
        &["SUBSCRIBE a", "HELLO 3 SETNAME x", "UNSUBSCRIBE", "CLIENT GETNAME"],
    ];
    for script in scripts {
        let no_ids: Vec<&str> = script.iter().filter(|l| !l.starts_with("HELLO")).copied().collect();
        let expected = stream(&mut plain.client().hello3(), &no_ids);
        assert_eq!(stream(&mut proxy.client3(), &no_ids), expected, "{script:?}");
        // What a RESP2 subscriber may say as well.
        let two: Vec<&str> =
            script.iter().filter(|l| l.contains("SUBSCRIBE") || l.contains("REPLY")).copied().collect();
        let unsubscribed = [&two[..], &["UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"]].concat();
        let expected = stream(&mut plain.client(), &unsubscribed);
        assert_eq!(stream(&mut proxy.client(), &unsubscribed), expected, "{unsubscribed:?}");
    }
}
