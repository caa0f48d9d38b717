//! More than one worker: a client whose socket another thread has is served as any other, and what is counted, bounded and
//! drained is all of them. The suites of sessions, hazards, faults and limits run whole with NEARSIDE_TEST_WORKERS=2; here
//! is what only exists with several, and a sample of the rest.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Proxy, Redis, Reply, encode, eventually};

fn two(redis: &Redis) -> Proxy {
    Proxy::to(redis).set("workers", 2).start()
}

/// Clients of which at least one is on each worker, whoever else has connected meanwhile.
fn both(proxy: &Proxy) -> [Client; 4] {
    std::array::from_fn(|_| proxy.client())
}

/// Hits by worker, the data thread first.
fn hits_by_worker(proxy: &Proxy) -> Vec<u64> {
    let said = proxy.stats()["hits_by_worker"].clone();
    said.split(',').map(|n| n.parse().expect("a count")).collect()
}

#[test]
fn every_worker_answers_hits_and_all_are_counted() {
    let redis = Redis::start();
    let proxy = two(&redis);
    redis.cmd(&["MSET", "a", "1", "b", "2"]);
    let mut clients = both(&proxy);
    // Nothing is stored before the lane's canary has come, and then only behind the key's PTTL.
    eventually(PATIENCE, "both entries", || {
        clients[0].expect(&["GET", "a"], "$1\r\n1\r\n");
        clients[0].expect(&["GET", "b"], "$1\r\n2\r\n");
        proxy.stat("entries") == 2.0
    });
    let before = proxy.stat("hits");
    for client in &mut clients {
        // The first request makes the session known to its lane; from the second on the front may answer.
        client.cmd(&["PING"]);
        for _ in 0..10 {
            client.expect(&["GET", "a"], "$1\r\n1\r\n");
            assert_eq!(client.cmd(&["MGET", "a", "b"]), Reply::bulks(&["1", "2"]));
        }
    }
    assert_eq!(proxy.stat("hits") - before, 4.0 * 30.0);
    assert_eq!(proxy.metric("cache_hits_total{impl=\"l1\",key_pattern=\"_plain\"}"), proxy.stat("hits"));
    let operations = proxy.get("/api/v1/dashboard/metrics").json()["operations"].clone();
    assert_eq!(operations["mget"].as_u64(), Some(40), "{operations}");
    assert!(operations["get"].as_u64() >= Some(42), "{operations}");
    assert_eq!(proxy.metric_sum("cache_candidate_requests"), 0.0, "hits are none");
    let by_worker = hits_by_worker(&proxy);
    assert!(by_worker.len() == 2 && by_worker.iter().all(|hits| *hits >= 40), "{by_worker:?}");
    let read = proxy.metric("nearside_bytes_total{peer=\"client\",direction=\"in\"}");
    assert!(read >= 40.0 * encode(&["GET", "a"]).len() as f64, "{read}");
    let timed = proxy.metric("nearside_request_duration_seconds_count{class=\"read\",result=\"hit\"}");
    assert!(timed >= 80.0, "{timed}");
}

#[test]
fn clients_are_dealt_evenly() {
    let redis = Redis::start();
    let proxy = two(&redis);
    redis.cmd(&["SET", "k", "v"]);
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.cmd(&["PING"]);
        client.cmd(&["GET", "k"]);
        client.cmd(&["GET", "k"]);
    }
    let by_worker = hits_by_worker(&proxy);
    assert!(by_worker.iter().all(|hits| *hits >= 15), "{by_worker:?}");
}

#[test]
fn a_write_by_one_workers_client_is_read_by_anothers_at_once() {
    let redis = Redis::start();
    let proxy = two(&redis);
    let mut clients = both(&proxy);
    for round in 0..200 {
        let value = round.to_string();
        let writer = round % clients.len();
        assert_eq!(clients[writer].cmd(&["SET", "k", &value]), Reply::ok());
        for client in &mut clients {
            assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk(&value));
            assert_eq!(client.cmd(&["GET", "k"]), Reply::bulk(&value));
        }
    }
    let by_worker = hits_by_worker(&proxy);
    assert!(by_worker[1] > 100, "{by_worker:?}");
}

/// Hits, misses, writes and local answers mixed, in pieces of every size: the front must neither overtake its session nor
/// leave a byte behind.
#[test]
fn replies_keep_their_order_across_the_threads() {
    let redis = Redis::start();
    let proxy = two(&redis);
    let mut clients = both(&proxy);
    for (number, client) in clients.iter_mut().enumerate() {
        let key = format!("key:{number}");
        let mut expected = Vec::new();
        let mut sent = Vec::new();
        for i in 0..300 {
            let value = format!("{number}-{}", i / 7);
            let other = format!("cold:{number}:{i}");
            match i % 7 {
                0 => {
                    sent.extend(encode(&["SET", &key, &value]));
                    expected.extend(b"+OK\r\n");
                }
                3 => {
                    sent.extend(encode(&["GET", &other]));
                    expected.extend(b"$-1\r\n");
                }
                5 => {
                    sent.extend(encode(&["ECHO", &value]));
                    expected.extend(format!("${}\r\n{value}\r\n", value.len()).bytes());
                }
                _ => {
                    sent.extend(encode(&["GET", &key]));
                    expected.extend(format!("${}\r\n{value}\r\n", value.len()).bytes());
                }
            }
        }
        let mut writer = client.writer();
        let pieces = thread::spawn(move || {
            for (i, piece) in sent.chunks(37).enumerate() {
                writer.write_all(piece).expect("sent");
                if i % 5 == 0 {
                    // Lets a read end in the middle of a request, and the session come to rest in the middle of it all.
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        let got = client.read_exact(expected.len());
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
        pieces.join().expect("sent");
        client.expect_silence(Duration::from_millis(20));
    }
}

/// What a session may only do itself ends the front's hits: after each of these a GET is answered as a session in that
/// state answers it.
#[test]
fn a_front_answers_nothing_while_its_session_is_in_a_state_of_its_own() {
    let redis = Redis::start();
    let proxy = two(&redis);
    let mut by_front = 0;
    for mut client in both(&proxy) {
        redis.cmd(&["SET", "k", "v"]);
        let get = |client: &mut Client| client.cmd(&["GET", "k"]);
        assert_eq!((get(&mut client), get(&mut client)), (Reply::bulk("v"), Reply::bulk("v")));
        client.expect(&["MULTI"], "+OK\r\n");
        client.expect(&["GET", "k"], "+QUEUED\r\n");
        assert_eq!(client.cmd(&["EXEC"]), Reply::Array(vec![Reply::bulk("v")]));
        assert_eq!(get(&mut client), Reply::bulk("v"));
        client.send_cmd(&["CLIENT", "REPLY", "OFF"]);
        client.send_cmd(&["GET", "k"]);
        client.send_cmd(&["CLIENT", "REPLY", "ON"]);
        assert_eq!(client.reply(), Reply::ok());
        client.send_cmd(&["CLIENT", "REPLY", "SKIP"]);
        client.send_cmd(&["GET", "k"]);
        client.expect(&["ECHO", "x"], "$1\r\nx\r\n");
        client.expect(&["SELECT", "1"], "+OK\r\n");
        client.expect(&["GET", "k"], "$-1\r\n");
        client.expect(&["GET", "k"], "$-1\r\n");
        client.expect(&["SELECT", "0"], "+OK\r\n");
        assert_eq!(get(&mut client), Reply::bulk("v"));
        client.expect(&["SUBSCRIBE", "c"], "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
        assert!(get(&mut client).is_error(), "a RESP2 subscriber may not GET");
        client.expect(&["UNSUBSCRIBE", "c"], "*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n");
        assert_eq!((get(&mut client), get(&mut client)), (Reply::bulk("v"), Reply::bulk("v")));
        // All of that is over, and the front answers again.
        let before = hits_by_worker(&proxy)[1];
        (0..10).for_each(|_| client.expect(&["GET", "k"], "$1\r\nv\r\n"));
        by_front += hits_by_worker(&proxy)[1] - before;
        let mut client = client.hello3();
        client.expect(&["GET", "none"], "_\r\n");
        client.expect(&["GET", "none"], "_\r\n");
    }
    assert!(by_front >= 10, "{by_front}");
}

#[test]
fn switching_the_cache_off_ends_every_workers_hits() {
    let redis = Redis::start();
    let proxy = two(&redis);
    redis.cmd(&["SET", "k", "1"]);
    let mut clients = both(&proxy);
    for client in &mut clients {
        (0..3).for_each(|_| client.expect(&["GET", "k"], "$1\r\n1\r\n"));
    }
    assert_eq!(proxy.client().cmd(&["NEARSIDE", "MODE", "off"]), Reply::ok());
    let hits = proxy.stat("hits");
    for client in &mut clients {
        client.expect(&["GET", "k"], "$1\r\n1\r\n");
    }
    assert_eq!(proxy.stat("hits"), hits);
}

#[test]
fn killed_and_idle_clients_are_closed_whichever_worker_has_them() {
    let redis = Redis::start();
    let proxy = two(&redis);
    for mut client in both(&proxy) {
        let id = client.cmd(&["CLIENT", "ID"]).int().to_string();
        assert_eq!(proxy.client().cmd(&["CLIENT", "KILL", "ID", &id]), Reply::Int(1));
        assert!(client.expect_closed().is_empty());
    }
    let proxy = Proxy::to(&redis).set("workers", 2).set("listen.idle_timeout", "400ms").start();
    redis.cmd(&["SET", "k", "v"]);
    let mut clients = both(&proxy);
    let start = Instant::now();
    // Hits that the session does not see keep a client from being idle all the same.
    while start.elapsed() < Duration::from_millis(1200) {
        for client in &mut clients {
            client.expect(&["GET", "k"], "$1\r\nv\r\n");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let asked = Instant::now();
    for client in &mut clients {
        assert!(client.expect_closed().is_empty());
    }
    // The last of them was asked a moment before.
    assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
}

#[test]
fn a_list_of_clients_knows_what_fronts_have_answered() {
    let redis = Redis::start();
    let proxy = two(&redis);
    redis.cmd(&["SET", "k", "v"]);
    let mut clients = both(&proxy);
    for client in &mut clients {
        client.cmd(&["CLIENT", "SETNAME", "worker"]);
        (0..3).for_each(|_| client.expect(&["GET", "k"], "$1\r\nv\r\n"));
    }
    let list = proxy.client().cmd(&["CLIENT", "LIST"]).text();
    let ours: Vec<&str> = list.lines().filter(|line| line.contains("name=worker")).collect();
    assert_eq!(ours.len(), 4);
    assert!(ours.iter().all(|line| line.contains(" cmd=get ")), "{list}");
}

#[test]
fn what_was_asked_before_a_drain_is_answered_by_every_worker() {
    let redis = Redis::start();
    let mut proxy = two(&redis);
    redis.cmd(&["SET", "k", "v"]);
    let mut clients = both(&proxy);
    for client in &mut clients {
        (0..2).for_each(|_| client.expect(&["GET", "k"], "$1\r\nv\r\n"));
        client.send_cmd(&["BLPOP", "q", "0"]);
    }
    eventually(PATIENCE, "all to block", || redis.cmd(&["CLIENT", "LIST"]).text().matches("cmd=blpop").count() == 4);
    proxy.sigterm();
    proxy.wait_logged("draining");
    redis.cmd(&["RPUSH", "q", "1", "2", "3", "4"]);
    for client in &mut clients {
        assert_eq!(client.reply().items()[0], Reply::bulk("q"));
        assert!(client.expect_closed().is_empty());
    }
    assert!(proxy.wait_exit(PATIENCE).success());
}

/// 8 MiB of replies that nobody reads, hits all of them: the front stops reading instead of collecting.
#[test]
fn hits_wait_for_a_reader_in_bounded_memory() {
    let redis = Redis::start();
    let proxy = two(&redis);
    redis.cmd(&["SET", "big", &"x".repeat(500_000)]);
    for mut client in both(&proxy) {
        (0..2).for_each(|_| drop(client.cmd(&["GET", "big"])));
        let before = proxy.rss();
        let mut writer = client.writer();
        let hits = proxy.stat("hits");
        let asking = thread::spawn(move || writer.write_all(&encode(&["GET", "big"]).repeat(400)));
        eventually(PATIENCE, "hits that nobody reads", || proxy.stat("hits") > hits);
        let grown = proxy.rss().saturating_sub(before);
        assert!(grown < 16 << 20, "{} MiB for 200 MB of hits", grown >> 20);
        for _ in 0..400 {
            assert!(client.read_exact(500_011).starts_with(b"$500000\r\nxxx"));
        }
        asking.join().expect("a writer").expect("sent");
    }
}
