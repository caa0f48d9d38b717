use super::{lasting, quick, refused, until_answered, wait_back, wait_gone, warm};
use crate::support::{Client, Fake, PATIENCE, Proxy, Redis, Reply, eventually, needs, poll, proxy};

#[test]
fn nothing_from_before_is_trusted_after() {
    let mut redis = lasting();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    c.cmd(&["MSET", "k", "1", "l", "1"]);
    warm(&proxy, &mut c, "k");
    warm(&proxy, &mut c, "l");
    redis.stop();
    wait_gone(&proxy);
    assert_eq!(c.cmd(&["MGET", "k", "l"]), Reply::bulks(&["1", "1"]));
    redis.restart();
    // Behind the sidecar's back, before or after it is back: it has no copy that this could have invalidated.
    eventually(PATIENCE, "its data to be loaded", || redis.cmd(&["SET", "k", "2"]) == Reply::ok());
    wait_back(&proxy);
    let mut last = Reply::Nil;
    let seen = poll(PATIENCE, || {
        last = c.cmd(&["GET", "k"]);
        (last == Reply::bulk("2")).then_some(())
    });
    assert!(seen.is_some(), "GET k is answered {last:?}; upstream has {:?}", redis.cmd(&["GET", "k"]));
    assert_eq!(c.cmd(&["GET", "l"]), Reply::bulk("1"), "its data came back");
    assert_eq!(warm(&proxy, &mut c, "k"), Reply::bulk("2"));
    let stale = proxy.metric("nearside_stale_served_total");
    redis.cmd(&["SET", "k", "3"]);
    c.cmd(&["EXISTS", "nobody-writes-this"]);
    assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("3"), "coherence is armed again");
    assert_eq!(proxy.metric("nearside_stale_served_total"), stale);
}

/// A server that loads its data answers HELLO, and no client's command: it is not back yet.
#[test]
fn a_server_that_is_loading_is_not_back() {
    if !needs(7, 0, "loading-process-events-interval-bytes") {
        return;
    }
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let mut redis = Redis::builder().args(&slow).start();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    redis.cmd(&["DEBUG", "POPULATE", "3000", "filler", "100"]);
    redis.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    redis.cmd(&["SAVE"]);
    redis.restart();
    let mut loading = 0;
    // Until it has loaded everything is answered as in an outage.
    eventually(PATIENCE, "the end of the loading", || {
        let write = c.cmd(&["SET", "w", "1"]);
        let text = write.text();
        loading += u32::from(text.contains("LOADING"));
        assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
        !write.is_error()
    });
    assert!(loading > 0, "it was never seen loading");
    assert_eq!(c.cmd(&["GET", "w"]), Reply::bulk("1"));
}

#[test]
fn lost_gone_and_back_are_a_line_each_with_what_they_cost() {
    let mut redis = lasting();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    c.cmd(&["SET", "k", "1"]);
    warm(&proxy, &mut c, "k");
    for round in 1..=2 {
        redis.stop();
        wait_gone(&proxy);
        for _ in 0..round {
            assert_eq!(c.cmd(&["GET", "k"]), Reply::bulk("1"));
        }
        refused(&c.cmd(&["SET", "k", "2"]));
        redis.restart();
        wait_back(&proxy);
        // With the channel's new subscription the L1 is flushed: it may have missed a message.
        eventually(PATIENCE, "the channel", || proxy.count_logged("INFO subscribed to the channel") == round + 1);
        warm(&proxy, &mut c, "k");
        proxy.wait_logged(&format!("{round} keys answered stale, 1 commands refused"));
        for line in ["lost the connection to upstream", "is gone, trying again", "is back"] {
            assert_eq!(proxy.count_logged(line), round, "{line}");
        }
    }
}

/// No canary, and no spare connection for a lane that waits for the script.
fn undisturbed(builder: proxy::Builder) -> proxy::Builder {
    let builder = builder.set("coherence.canary", "off").set("upstream.stall_timeout", "0s");
    builder.set("coherence.max_staleness", "60s")
}

/// A sidecar that has lost its upstream and has it back, with so many places.
fn recovered(places: u32) -> (Fake, Proxy, crate::support::fake::Conn) {
    let fake = Fake::start();
    let proxy = undisturbed(quick(Proxy::upstream(&fake.url()))).set("cache.refills_max", places).start();
    let mut lane = fake.lane();
    let mut c = proxy.client();
    c.send_cmd(&["STRLEN", "x"]);
    lane.expect(&["STRLEN", "x"]).reply(":0\r\n");
    c.reply();
    lane.close();
    let lane = fake.lane();
    proxy.wait_logged("is back");
    (fake, proxy, lane)
}

fn asks(proxy: &Proxy, words: &[&str]) -> Client {
    let mut c = proxy.client();
    c.send_cmd(words);
    c
}

#[test]
fn so_many_fetches_are_under_way_and_the_others_wait_in_order() {
    let (_fake, proxy, mut lane) = recovered(2);
    let waiting = |n: f64| eventually(PATIENCE, "who waits", || proxy.metric("nearside_refills_waiting") == n);
    let mut all = vec![asks(&proxy, &["GET", "a"])];
    lane.expect(&["GET", "a"]).expect(&["PTTL", "a"]);
    all.push(asks(&proxy, &["MGET", "b", "c"]));
    lane.expect(&["MGET", "b", "c"]).expect(&["PTTL", "b"]).expect(&["PTTL", "c"]);
    for (i, key) in ["d", "e", "f"].iter().enumerate() {
        all.push(asks(&proxy, &["GET", key]));
        waiting(i as f64 + 1.0);
    }
    // Who wants what is being fetched already waits for that, and needs no place.
    let mut joined = asks(&proxy, &["GET", "a"]);
    // A write needs none.
    let mut writer = asks(&proxy, &["APPEND", "w", "1"]);
    lane.expect(&["APPEND", "w", "1"]);
    assert!(lane.try_next(super::ms(100)).is_none(), "more than two fetches");
    lane.reply("$1\r\n1\r\n").reply(":-1\r\n");
    assert_eq!((all[0].reply(), joined.reply()), (Reply::bulk("1"), Reply::bulk("1")));
    lane.expect(&["GET", "d"]).expect(&["PTTL", "d"]);
    waiting(2.0);
    lane.reply("*2\r\n$1\r\n2\r\n$1\r\n3\r\n").reply(":-1\r\n").reply(":-1\r\n");
    assert_eq!(all[1].reply(), Reply::bulks(&["2", "3"]));
    lane.expect(&["GET", "e"]).expect(&["PTTL", "e"]);
    waiting(1.0);
    lane.reply(":1\r\n");
    assert_eq!(writer.reply(), Reply::Int(1));
    for key in ["d", "e"] {
        lane.reply(format!("$1\r\n{key}\r\n")).reply(":-1\r\n");
    }
    lane.expect(&["GET", "f"]).expect(&["PTTL", "f"]).reply("$1\r\nf\r\n").reply(":-1\r\n");
    for (c, key) in all[2..].iter_mut().zip(["d", "e", "f"]) {
        assert_eq!(c.reply(), Reply::bulk(key));
    }
    waiting(0.0);
}

/// Who waits for a place when the lane is lost again is not forgotten.
#[test]
fn who_waits_for_a_place_is_answered_when_upstream_goes_again() {
    let (fake, proxy, mut lane) = recovered(1);
    let mut first = asks(&proxy, &["GET", "a"]);
    lane.expect(&["GET", "a"]).expect(&["PTTL", "a"]);
    let mut second = asks(&proxy, &["GET", "b"]);
    eventually(PATIENCE, "it to wait", || proxy.metric("nearside_refills_waiting") == 1.0);
    drop((lane, fake));
    refused(&first.reply());
    refused(&second.reply());
    assert_eq!(proxy.metric("nearside_refills_waiting"), 0.0);
}

#[test]
fn request_timeout_bounds_the_wait_for_a_place() {
    let fake = Fake::start();
    let proxy = undisturbed(quick(Proxy::upstream(&fake.url()))).set("cache.refills_max", 1);
    let proxy = proxy.set("upstream.request_timeout", "700ms").start();
    let mut c = proxy.client();
    fake.lane().close();
    let mut lane = fake.lane();
    proxy.wait_logged("is back");
    let mut first = asks(&proxy, &["GET", "a"]);
    lane.expect(&["GET", "a"]).expect(&["PTTL", "a"]);
    c.send_cmd(&["GET", "b"]);
    assert!(c.reply().text().contains("upstream.request_timeout"));
    assert!(first.reply().text().contains("upstream.request_timeout"));
    lane.reply("$1\r\n1\r\n").reply(":-1\r\n");
    c.send_cmd(&["GET", "b"]);
    lane.expect(&["GET", "b"]).expect(&["PTTL", "b"]).reply("$1\r\n2\r\n").reply(":-1\r\n");
    assert_eq!(c.reply(), Reply::bulk("2"));
}

/// A crowd comes at once, for few keys: each is fetched once.
#[test]
fn a_crowd_for_one_key_is_one_fetch() {
    let mut redis = lasting();
    let proxy = quick(Proxy::to(&redis)).start();
    let mut c = proxy.client();
    c.cmd(&["SET", "k", "1"]);
    redis.restart();
    wait_back(&proxy);
    until_answered(&mut c, &["EXISTS", "k"]);
    let mut crowd: Vec<Client> = (0..50).map(|_| proxy.client()).collect();
    crowd.iter_mut().for_each(|c| c.send_cmd(&["GET", "k"]));
    crowd.iter_mut().for_each(|c| assert_eq!(c.reply(), Reply::bulk("1")));
    let stats = redis.cmd(&["INFO", "commandstats"]).text();
    let gets = stats.lines().find_map(|l| l.strip_prefix("cmdstat_get:calls=")?.split(',').next()?.parse::<u32>().ok());
    assert!(gets.is_some_and(|n| (1..10).contains(&n)), "{gets:?} GETs for 50 clients");
}
