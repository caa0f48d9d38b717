//! What upstream pushes about keys: keyspace events, and invalidations of clients that track by themselves.

use super::*;

fn with_events() -> Redis {
    Redis::builder().args(&["--notify-keyspace-events", "KEA"]).start()
}

/// The next frame, push or not, without the difference of the two.
#[track_caller]
fn next(client: &mut Client) -> String {
    format!("{:?}", client.frame()).trim_start_matches('>').to_owned()
}

#[test]
fn keyspace_events_are_of_own_keys_under_own_names() {
    let redis = with_events();
    let proxy = app(&redis);
    for mut client in both(&proxy) {
        client.send_cmd(&["SUBSCRIBE", "c", "__keyspace@0__:k", "__keyevent@0__:set"]);
        for (i, channel) in ["c", "__keyspace@0__:k", "__keyevent@0__:set"].iter().enumerate() {
            assert_eq!(next(&mut client), format!(r#"["subscribe", "{channel}", :{}]"#, i + 1));
        }
        client.send_cmd(&["PSUBSCRIBE", "__keyspace@*__:h*", "__keysp*__:*p*"]);
        for (i, glob) in ["__keyspace@*__:h*", "__keysp*__:*p*"].iter().enumerate() {
            assert_eq!(next(&mut client), format!(r#"["psubscribe", "{glob}", :{}]"#, i + 4));
        }
        // Nobody else's: neither the name itself, nor another prefix, nor one that only looks alike.
        for foreign in ["k", "other:k", "ap", "hash", "lamp"] {
            redis.cmd(&["SET", foreign, "v"]);
            redis.cmd(&["DEL", foreign]);
        }
        let mut writer = proxy.client();
        say(&mut writer, "PUBLISH c app:message");
        assert_eq!(next(&mut client), r#"["message", "c", "app:message"]"#);
        say(&mut writer, "SET k v");
        let mut both = [next(&mut client), next(&mut client)];
        both.sort();
        assert_eq!(both, [r#"["message", "__keyevent@0__:set", "k"]"#, r#"["message", "__keyspace@0__:k", "set"]"#]);
        say(&mut writer, "HSET h f v");
        assert_eq!(next(&mut client), r#"["pmessage", "__keyspace@*__:h*", "__keyspace@0__:h", "hset"]"#);
        // The general glob is held against the client's name of the key.
        say(&mut writer, "RPUSH l v");
        say(&mut writer, "RPUSH lp v");
        assert_eq!(next(&mut client), r#"["pmessage", "__keysp*__:*p*", "__keyspace@0__:lp", "rpush"]"#);
        let channels = ["__keyspace@0__:k", "__keyspace@0__:none"];
        let numbers = writer.cmd(&[&["PUBSUB", "NUMSUB"][..], &channels].concat());
        assert_eq!(format!("{numbers:?}"), r#"["__keyspace@0__:k", :1, "__keyspace@0__:none", :0]"#);
        let shown = sorted(&writer.cmd(&["PUBSUB", "CHANNELS", "__key*"]));
        assert_eq!(shown, ["__keyevent@0__:set", "__keyspace@0__:k"]);
        client.send_cmd(&["UNSUBSCRIBE", "__keyspace@0__:k"]);
        assert_eq!(next(&mut client), r#"["unsubscribe", "__keyspace@0__:k", :4]"#);
        client.send_cmd(&["PUNSUBSCRIBE", "__keyspace@*__:h*"]);
        assert_eq!(next(&mut client), r#"["punsubscribe", "__keyspace@*__:h*", :3]"#);
        say(&mut writer, "DEL k h l lp");
        drop(client);
        eventually(PATIENCE, "its subscriptions to end", || redis.cmd(&["PUBSUB", "NUMPAT"]).int() == 0);
    }
}

#[test]
fn somebody_elses_channels_of_keyspace_events_are_not_shown() {
    let redis = with_events();
    let proxy = app(&redis);
    let mut other = redis.client();
    other.cmd(&["SUBSCRIBE", "__keyspace@0__:other:secret"]);
    other.cmd(&["SUBSCRIBE", "news"]);
    for mut client in both(&proxy) {
        let shown = sorted(&client.cmd(&["PUBSUB", "CHANNELS"]));
        assert_eq!(shown, ["nearside:invalidate", "news"]);
    }
}

#[test]
fn a_client_that_tracks_is_told_of_own_keys_under_own_names() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut client = proxy.client3();
    assert_eq!(say(&mut client, "CLIENT TRACKING ON"), "+OK");
    say(&mut client, "MGET k l");
    redis.cmd(&["SET", "k", "foreign"]);
    redis.cmd(&["SET", "app:k", "v"]);
    assert_eq!(format!("{:?}", client.push()), r#">["invalidate", ["k"]]"#);
    // In the midst of a transaction's reply, where Redis 7.0 writes it.
    say(&mut client, "GET l");
    say(&mut client, "MULTI");
    say(&mut client, "SET l v");
    say(&mut client, "KEYS l");
    assert_eq!(say(&mut client, "EXEC"), r#"[+OK, ["l"]]"#);
    assert_eq!(format!("{:?}", client.push()), r#">["invalidate", ["l"]]"#);

    let mut all = proxy.client3();
    assert_eq!(say(&mut all, "CLIENT TRACKING ON BCAST"), "+OK");
    assert!(say(&mut all, "CLIENT TRACKINGINFO").contains(r#""prefixes": [""]"#));
    redis.cmd(&["MSET", "x", "1", "other:x", "1", "app:x", "1"]);
    assert_eq!(format!("{:?}", all.push()), r#">["invalidate", ["x"]]"#);
    let mut some = proxy.client3();
    assert_eq!(say(&mut some, "CLIENT TRACKING ON BCAST PREFIX u: PREFIX v:"), "+OK");
    let info = say(&mut some, "CLIENT TRACKINGINFO");
    assert!(info.contains(r#""u:""#) && info.contains(r#""v:""#) && !info.contains("app:"), "{info}");
    redis.cmd(&["MSET", "u:1", "1", "app:w", "1", "app:v:1", "1"]);
    assert_eq!(format!("{:?}", some.push()), r#">["invalidate", ["v:1"]]"#);
    redis.cmd(&["FLUSHALL"]);
    assert_eq!(format!("{:?}", some.push()), r#">["invalidate", nil]"#);
}

#[test]
fn tracking_is_redirected_to_a_client_of_resp2() {
    let redis = Redis::start();
    let proxy = app(&redis);
    let mut target = proxy.client();
    let id = target.cmd(&["CLIENT", "ID"]).int().to_string();
    target.cmd(&["SUBSCRIBE", "__redis__:invalidate"]);
    let mut client = proxy.client();
    assert_eq!(client.cmd(&["CLIENT", "TRACKING", "ON", "REDIRECT", &id]), Reply::ok());
    say(&mut client, "GET k");
    redis.cmd(&["SET", "app:k", "v"]);
    assert_eq!(next(&mut target), r#"["message", "__redis__:invalidate", ["k"]]"#);
}
