//! Each test makes a client leave something behind on an upstream connection, lets another client use connections until it
//! must have met that one, and looks for traces.

use super::{run, upstream_clients, wait_upstream};
use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, eventually};

/// What a client may leave: commands that pin it and change the connection, and how it ends.
const LEFT: &[&[&str]] = &[
    &["MULTI", "SET leaked 1"],
    &["MULTI", "SET leaked 1", "DISCARD"],
    &["WATCH k"],
    &["WATCH k", "SELECT 3", "UNWATCH"],
    &["WATCH k", "HELLO 3", "UNWATCH"],
    &["WATCH k", "CLIENT SETNAME left", "UNWATCH"],
    &["WATCH k", "CLIENT NO-EVICT on", "UNWATCH"],
    &["WATCH k", "AUTH ann a", "UNWATCH"],
    &["WATCH k", "READONLY", "UNWATCH"],
    &["WATCH k", "CLIENT REPLY OFF"],
    &["CLIENT TRACKING ON REDIRECT 1", "CLIENT TRACKING OFF"],
    &["CLIENT TRACKING ON BCAST", "CLIENT TRACKING OFF"],
    &["SUBSCRIBE c", "UNSUBSCRIBE c"],
    &["SUBSCRIBE c"],
    &["PSUBSCRIBE c*", "PUNSUBSCRIBE"],
    &["SSUBSCRIBE c", "SUNSUBSCRIBE"],
    &["MULTI", "SELECT 3", "HELLO 3", "CLIENT SETNAME left", "EXEC"],
    &["MULTI", "AUTH ann a", "EXEC"],
    &["MULTI", "SUBSCRIBE c", "EXEC", "UNSUBSCRIBE c"],
    &["NOSUCH command"],
    &["SELECT 99"],
    &["CLIENT NONSENSE"],
    &["WATCH k", "RESET"],
    &["SCRIPT DEBUG YES", "RESET"],
    &["BLPOP q 0.01"],
];

fn server() -> Redis {
    let redis = Redis::start();
    redis.cmd(&["ACL", "SETUSER", "ann", "on", ">a", "~*", "&*", "+@all"]);
    redis
}

/// Fails where `client`, pinned now, sees anything of another.
#[track_caller]
fn looks_clean(client: &mut Client, after: &[&str]) {
    let db = run(client, "CLIENT INFO").text();
    assert!(db.contains(" db=0 ") && db.contains(" name= ") && !db.contains("resp=3"), "after {after:?}: {db}");
    let in_transaction =
        ["ACL WHOAMI", "GET none", "GET db", "CLIENT GETNAME", "EVAL return(7) 0", "CLIENT TRACKINGINFO"];
    assert_eq!(run(client, "WATCH untouched"), Reply::ok(), "after {after:?}");
    assert_eq!(run(client, "MULTI"), Reply::ok(), "after {after:?}");
    for line in in_transaction {
        assert_eq!(run(client, line), Reply::status("QUEUED"), "after {after:?}");
    }
    client.send_cmd(&["EXEC"]);
    let exec = client.read_reply_raw().escape_ascii().to_string();
    // In RESP2, as the default user, in database 0, nameless, without debugger, not tracking, and not aborted by another's
    // WATCH.
    assert!(
        exec.starts_with("*6\\r\\n$7\\r\\ndefault\\r\\n$-1\\r\\n$4\\r\\nzero\\r\\n$-1\\r\\n:7\\r\\n*6\\r\\n$5\\r\\nflags\\r\\n*1\\r\\n$3\\r\\noff"),
        "after {after:?}: {exec}"
    );
}

#[test]
fn what_one_client_left_on_a_connection_the_next_never_sees() {
    let redis = server();
    redis.cmd(&["SET", "db", "zero"]);
    let proxy = Proxy::start(&redis);
    for left in LEFT {
        for stays in [false, true] {
            let mut first = proxy.client();
            for line in *left {
                first.send_cmd(&super::words(line));
                if line.ends_with("REPLY OFF") {
                    eventually(PATIENCE, "it to be off", || {
                        run(&mut proxy.client(), "CLIENT LIST").text().contains("cmd=client|reply")
                    });
                } else {
                    first.reply();
                }
            }
            let kept = stays.then_some(first);
            redis.cmd(&["INCR", "k"]);
            let mut second = proxy.client();
            for _ in 0..3 {
                looks_clean(&mut second, left);
            }
            drop(kept);
        }
    }
    assert_eq!(redis.cmd(&["EXISTS", "leaked"]), Reply::Int(0));
    // And the connections were indeed used again, or the test has seen nothing.
    assert!(proxy.metric_sum("nearside_pinned_total") > 3.0 * proxy.stat("pinned_connections"));
}

#[test]
fn idle_connections_upstream_carry_nothing() {
    let redis = server();
    let proxy = Proxy::start(&redis);
    for left in LEFT {
        let mut first = proxy.client();
        for line in left.iter().filter(|line| !line.ends_with("REPLY OFF")) {
            run(&mut first, line);
        }
    }
    let ours = format!(":{} ", proxy.pid());
    eventually(PATIENCE, "no state upstream", || {
        upstream_clients(&redis, &ours).iter().all(|line| {
            let clean = ["sub", "psub", "ssub"]
                .iter()
                .all(|f| !line.contains(&format!(" {f}=")) || line.contains(&format!(" {f}=0 ")));
            // The flags also say what is queued. The lane tracks; the connection of `ann` is kept for her.
            clean && (line.contains("flags=tU") || line.contains("flags=U"))
        })
    });
    assert!(upstream_clients(&redis, "name=left").is_empty());
}

#[test]
fn at_most_pinned_idle_connections_are_kept_and_pinned_max_is_an_error() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.pinned_idle", 2).set("upstream.pinned_max", 4).start();
    let mut clients: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(run(client, "MULTI"), Reply::ok());
    }
    let mut pipelined = proxy.client();
    pipelined.send(b"MULTI\r\nSET k v\r\nEXEC\r\n");
    assert!(pipelined.reply().text().contains("upstream.pinned_max"));
    pipelined.expect_closed(); // what came with it would be executed outside of its transaction
    let mut fifth = proxy.client();
    let refused = run(&mut fifth, "MULTI").text();
    assert!(refused.starts_with("NEARSIDE") && refused.contains("upstream.pinned_max"), "{refused}");
    // On the lane it is served as before.
    assert_eq!(run(&mut fifth, "SET k v"), Reply::ok());
    for client in &mut clients {
        assert_eq!(run(client, "EXEC"), Reply::Array(vec![]));
    }
    eventually(PATIENCE, "two idle ones", || proxy.stat("pinned_connections") == 2.0);
    assert_eq!(run(&mut fifth, "MULTI"), Reply::ok());
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_anything_frees_everything() {
    let redis = Redis::start();
    let proxy = Proxy::to(&redis).set("upstream.pinned_idle", 0).start();
    for left in [
        &b"MULTI\r\nSET k v\r\n"[..],
        b"SUBSCRIBE a\r\n",
        b"BLPOP q 0\r\n",
        b"MONITOR\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2000000\r\nhalf",
        b"WATCH a\r\n*2\r\n$3",
    ] {
        let mut client = proxy.client();
        client.send(left);
        eventually(PATIENCE, "a pinned connection", || proxy.stat("pinned_connections") == 1.0);
        drop(client);
        eventually(PATIENCE, &format!("none after {}", left.escape_ascii()), || {
            proxy.stat("pinned_connections") == 0.0
        });
        wait_upstream(&redis, &format!(":{} ", proxy.pid()), 1);
    }
    eventually(PATIENCE, "no client", || proxy.stat("clients") == 1.0);
    assert_eq!(redis.cmd(&["EXISTS", "k"]), Reply::Int(0));
}

#[test]
fn what_is_never_proxied_is_refused_on_a_pinned_connection_too() {
    let mut redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let mut client = proxy.client();
    for refused in ["SYNC", "PSYNC ? -1", "REPLCONF listening-port 1", "SHUTDOWN NOSAVE", "shutdown"] {
        let on_the_lane = run(&mut proxy.client(), refused);
        assert!(on_the_lane.is_error(), "{refused}: {on_the_lane:?}");
        assert_eq!(run(&mut client, "WATCH k"), Reply::ok());
        assert_eq!(run(&mut client, refused), on_the_lane);
        assert_eq!(run(&mut client, "MULTI"), Reply::ok());
        assert!(run(&mut client, refused).is_error());
        assert_eq!(run(&mut client, "EXEC").text(), "EXECABORT Transaction discarded because of previous errors.");
        assert!(!run(&mut client, "UNWATCH").is_error());
    }
    let pid = redis.pid();
    assert_eq!(redis.cmd(&["PING"]), Reply::status("PONG"));
    assert_eq!(redis.pid(), pid);
    redis.stop();
}
