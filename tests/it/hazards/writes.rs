//! Writes through the sidecar, against entries and fills of everybody: C10 to C16.

use std::time::Duration;

use super::{QUIET, Real, Scripted, bulk, fill, is_served, is_stored, wait_served};
use crate::support::proxy::Builder;
use crate::support::{Client, Fake, PATIENCE, Reply, encode, eventually};

const ON_WRITE: [&str; 3] = ["update", "resident", "invalidate"];

fn invalidating(builder: Builder) -> Builder {
    builder.set("cache.on_write", "invalidate")
}

#[test]
fn c10_own_set() {
    for on_write in ON_WRITE {
        let real = Real::with(|builder| builder.set("cache.on_write", on_write));
        let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client3());
        real.redis.cmd(&["SET", "k", "1"]);
        fill(&mut c1, "k", "1");
        assert_eq!(c1.cmd(&["SET", "k", "2"]), Reply::ok());
        assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("2"), "{on_write}");
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"), "{on_write}");
        assert_eq!(real.proxy.stat("pending_writes"), 0.0);
    }
}

#[test]
fn c10_the_entry_is_gone_before_the_write_is_sent() {
    for on_write in ON_WRITE {
        let mut s = Scripted::over(Fake::start(), |builder| builder.set("cache.on_write", on_write));
        let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
        s.fill(&mut c1, "k", "1");
        c1.send_cmd(&["SET", "k", "2"]);
        s.lane.expect(&["SET", "k", "2"]);
        assert!(!is_stored(&mut c2, "k"), "{on_write}");
        assert_eq!(s.proxy.stat("pending_writes"), 1.0);
    }
}

#[test]
fn c10_an_update_is_upstreams_own_answer() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["SET", "k", "mine"]);
    s.lane.expect(&["SET", "k", "mine"]).reply("+OK\r\n");
    assert_eq!(c1.reply(), Reply::ok());
    // Somebody else's SET lies between ours and our GET: its value is what counts.
    s.lane.expect(&["GET", "k"]).reply(bulk("theirs")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    wait_served(&mut c2, "k");
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("theirs"));
    assert_eq!(s.proxy.stat("refreshes_stored"), 1.0);
}

#[test]
fn c11_own_pipeline() {
    for on_write in ON_WRITE {
        let real = Real::with(|builder| builder.set("cache.on_write", on_write));
        let mut c1 = real.proxy.client();
        real.redis.cmd(&["SET", "k", "1"]);
        for state in ["missing", "cached"] {
            let replies = c1.pipeline(&[&["GET", "k"][..], &["SET", "k", "9"], &["GET", "k"], &["SET", "k", "1"]]);
            let expected = [Reply::bulk("1"), Reply::ok(), Reply::bulk("9"), Reply::ok()];
            assert_eq!(replies, expected, "{state}, {on_write}");
            fill(&mut c1, "k", "1");
        }
    }
}

/// A split MGET whose hits are void asks again; by then it must not see what its own pipeline did later.
#[test]
fn c11_a_split_mget_keeps_its_place_in_the_pipeline() {
    for later in [&["SET", "a", "9"][..], &["DEL", "a"], &["INCR", "a"], &["EVAL", "return redis.call('DEL','a')", "0"]]
    {
        let real = Real::with(invalidating);
        let mut c1 = real.proxy.client();
        real.redis.cmd(&["SET", "a", "1"]);
        fill(&mut c1, "a", "1");
        c1.send(&[encode(&["MGET", "a", "b"]), encode(later)].concat());
        assert_eq!(c1.reply(), Reply::Array(vec![Reply::bulk("1"), Reply::Nil]), "before {later:?}");
        assert!(!c1.reply().is_error());
    }
}

/// The same where the later command comes in a write of its own, while the split MGET is in the air: a read must not be
/// older than the MGET before it, a write not seen by it.
#[test]
fn c11_a_split_mget_in_flight_is_not_overtaken() {
    for (behind, answered) in [(&["STRLEN", "a"][..], Reply::Int(3)), (&["SET", "a", "late"], Reply::ok())] {
        let mut s = Scripted::over(Fake::start(), invalidating);
        let mut c1 = s.proxy.client();
        s.fill(&mut c1, "a", "1");
        c1.send_cmd(&["MGET", "a", "b"]);
        s.lane.expect(&["MGET", "b"]).expect(&["PTTL", "b"]);
        c1.send_cmd(behind);
        let early = s.lane.try_next(QUIET);
        // The hit is void, so it is asked for again. What was sent before is answered before `a` changes once more.
        s.lane.invalidate(&["a"]).reply("*1\r\n$1\r\n2\r\n").reply(":-1\r\n");
        let mut written = false;
        if let Some(words) = early {
            written = words[0] == b"SET";
            s.lane.reply(if written { "+OK\r\n" } else { ":2\r\n" });
        }
        let replies = std::thread::scope(|scope| {
            let reader = scope.spawn(|| (c1.reply(), c1.reply()));
            serve_until(&mut s, |words| changed_again(words, &mut written), || reader.is_finished());
            reader.join().expect("two replies")
        });
        assert_eq!(replies, (Reply::bulks(&["333", "2"]), answered), "{behind:?}");
    }
}

/// What upstream says from now on: `a` is 333, or what the client has written.
fn changed_again(words: &[Vec<u8>], written: &mut bool) -> &'static str {
    match words[0].as_slice() {
        b"MGET" if *written => "*2\r\n$4\r\nlate\r\n$1\r\n2\r\n",
        b"MGET" => "*2\r\n$3\r\n333\r\n$1\r\n2\r\n",
        b"STRLEN" => ":3\r\n",
        b"SET" => {
            *written = true;
            "+OK\r\n"
        }
        other => panic!("upstream is asked {:?}", other.escape_ascii().to_string()),
    }
}

/// Answers whatever the lane and one other connection ask.
fn serve_until(s: &mut Scripted, mut answer: impl FnMut(&[Vec<u8>]) -> &'static str, done: impl Fn() -> bool) {
    const GLANCE: Duration = Duration::from_millis(5);
    let mut other = None;
    eventually(PATIENCE, "the replies", || {
        while let Some(words) = s.lane.try_next(GLANCE) {
            s.lane.reply(answer(&words));
        }
        other = other.take().or_else(|| s.fake.try_other(GLANCE));
        if let Some(conn) = &mut other {
            while let Some(words) = conn.try_next(GLANCE) {
                conn.reply(answer(&words));
            }
        }
        done()
    });
}

#[test]
fn c12_a_fetch_in_flight_against_an_own_write() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    c2.send_cmd(&["SET", "k", "2"]);
    s.lane.expect(&["SET", "k", "2"]).expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    s.lane.reply(bulk("old")).reply(":-1\r\n");
    assert_eq!(c1.reply(), Reply::bulk("old"));
    eventually(PATIENCE, "the refusal", || s.proxy.stat("fills_discarded_write") == 1.0);
    s.lane.reply("+OK\r\n");
    assert_eq!(c2.reply(), Reply::ok());
    assert!(!is_stored(&mut c1, "k"));
    c2.send_cmd(&["GET", "k"]);
    s.lane.reply(bulk("2")).reply(":-1\r\n");
    if let Some(words) = s.lane.try_next(QUIET) {
        assert_eq!(words[0], b"GET");
        s.lane.reply(bulk("2"));
    }
    assert_eq!(c2.reply(), Reply::bulk("2"));
}

/// The same with a real upstream, whose replies are on their way while the write is acknowledged.
#[test]
fn c12_replies_on_their_way() {
    for on_write in ON_WRITE {
        let real = Real::with(|builder| builder.set("cache.on_write", on_write));
        real.redis.cmd(&["SET", "k", "1"]);
        let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
        real.stall_lane();
        c1.send_cmd(&["GET", "k"]);
        eventually(PATIENCE, "the GET upstream", || real.calls("get") == 1);
        c2.send_cmd(&["SET", "k", "2"]);
        eventually(PATIENCE, "the SET upstream", || real.calls("set") == 2);
        real.resume_lane();
        assert_eq!(c2.reply(), Reply::ok());
        assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("2"), "{on_write}");
        assert_eq!(c1.reply(), Reply::bulk("1"));
        assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"), "{on_write}");
    }
}

#[test]
fn c13_join_rule() {
    let mut s = Scripted::over(Fake::start(), invalidating);
    let (mut c1, mut c2, mut c3) = (s.proxy.client(), s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    c3.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "c3 to join", || s.proxy.stat("coalesced") == 1.0);
    c2.send(&[encode(&["SET", "k", "2"]), encode(&["GET", "k"])].concat());
    s.lane.expect(&["SET", "k", "2"]).expect(&["GET", "k"]);
    s.lane.reply(bulk("1")).reply(":-1\r\n").reply("+OK\r\n").reply(bulk("2"));
    assert_eq!((c1.reply(), c3.reply()), (Reply::bulk("1"), Reply::bulk("1")));
    assert_eq!((c2.reply(), c2.reply()), (Reply::ok(), Reply::bulk("2")));
    assert!(!is_stored(&mut c1, "k"));
}

/// After the write's reply its flight is joined by nobody either, though it is still in the air.
#[test]
fn c13_join_rule_after_a_transaction() {
    let mut s = Scripted::start();
    let (mut c1, mut c2, mut c3) = (s.proxy.client(), s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    transaction(&s, &mut c2, &["SET", "k", "2"], "+OK\r\n");
    // c3 is not fenced; what keeps it from the flight is the flight's token.
    c3.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    c2.send_cmd(&["GET", "k"]);
    eventually(PATIENCE, "c2 to join c3", || s.proxy.stat("coalesced") == 1.0);
    s.lane.reply(bulk("1")).reply(":-1\r\n").reply(bulk("2"));
    assert_eq!(c1.reply(), Reply::bulk("1"));
    assert_eq!((c2.reply(), c3.reply()), (Reply::bulk("2"), Reply::bulk("2")));
}

/// What a session has read elsewhere fences it: a flight that began before may be older.
#[test]
fn c13_a_fenced_session_does_not_join() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c1.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    transaction(&s, &mut c2, &["GET", "k"], &bulk("2"));
    c2.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    s.lane.reply(bulk("1")).reply(":-1\r\n").reply(bulk("2")).reply(":-1\r\n");
    assert_eq!((c1.reply(), c2.reply()), (Reply::bulk("1"), Reply::bulk("2")));
}

/// MULTI, `command`, EXEC by `client`, answered by the script on the connection that it gets.
#[track_caller]
fn transaction(s: &Scripted, client: &mut Client, command: &[&str], result: &str) {
    client.send_cmd(&["MULTI"]);
    let mut pinned = s.fake.other();
    pinned.expect(&["MULTI"]).reply("+OK\r\n");
    client.send_cmd(command);
    pinned.expect(command).reply("+QUEUED\r\n");
    client.send_cmd(&["EXEC"]);
    pinned.expect(&["EXEC"]).reply(format!("*1\r\n{result}"));
    assert_eq!((client.reply(), client.reply()), (Reply::ok(), Reply::status("QUEUED")));
    assert!(matches!(client.reply(), Reply::Array(_)));
}

#[test]
fn c14_dedicated_write_declared() {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c1, "k", "1");
    // The push cannot help: it is held on the lane.
    real.stall_lane();
    let replies = c1.pipeline(&[&["MULTI"][..], &["SET", "k", "3"], &["EXEC"]]);
    assert_eq!(replies[2], Reply::Array(vec![Reply::ok()]));
    for client in [&mut c1, &mut c2] {
        client.send_cmd(&["GET", "k"]);
        client.expect_silence(QUIET);
    }
    real.resume_lane();
    assert_eq!((c1.reply(), c2.reply()), (Reply::bulk("3"), Reply::bulk("3")));
    assert_eq!(real.proxy.stat("pending_writes"), 0.0);
}

#[test]
fn c15_fetch_between_exec_sent_and_answered() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c1.send(&[encode(&["MULTI"]), encode(&["SET", "k", "3"]), encode(&["EXEC"])].concat());
    let mut pinned = s.fake.other();
    pinned.expect(&["MULTI"]).expect(&["SET", "k", "3"]).expect(&["EXEC"]);
    // Upstream took the GET before the EXEC; the EXEC's reply overtakes the GET's.
    c2.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]);
    pinned.reply("+OK\r\n").reply("+QUEUED\r\n").reply("*1\r\n+OK\r\n");
    assert_eq!((c1.reply(), c1.reply()), (Reply::ok(), Reply::status("QUEUED")));
    assert_eq!(c1.reply(), Reply::Array(vec![Reply::ok()]));
    s.lane.reply(bulk("old"));
    if s.lane.try_next(QUIET).is_some() {
        s.lane.reply(":-1\r\n");
    }
    assert_eq!(c2.reply(), Reply::bulk("old"), "it was asked before the EXEC was acknowledged");
    s.miss(&mut c1, "k");
    s.lane.reply(bulk("3"));
    assert_eq!(c1.reply(), Reply::bulk("3"));
    // Everything before this reply has had its effect; c1's own PTTL is not answered.
    assert!(!is_stored(&mut c2, "k"));
}

/// The same for a fetch that was under way when EXEC was sent.
#[test]
fn c15_fetch_sent_before_the_exec() {
    let mut s = Scripted::start();
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c2.send_cmd(&["GET", "k"]);
    s.lane.expect(&["GET", "k"]).expect(&["PTTL", "k"]);
    transaction(&s, &mut c1, &["SET", "k", "3"], "+OK\r\n");
    s.lane.reply(bulk("old")).reply(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("old"));
    eventually(PATIENCE, "the refusal", || s.proxy.metric_sum("nearside_fills_discarded_total") == 1.0);
    assert!(!is_stored(&mut c2, "k"));
}

#[test]
fn c16_opaque_eval() {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client3());
    fill(&mut c1, "k", "1");
    c1.cmd(&["EVAL", "return redis.call('SET','k','7')", "0"]);
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("7"));
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("7"));
}

/// Push and reply of one script in one turn, for as many rounds as make an accident unlikely.
#[test]
fn c16_opaque_eval_is_seen_by_all_at_its_reply() {
    let real = Real::start();
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    for round in 0..200 {
        let value = round.to_string();
        c1.cmd(&["EVAL", "return redis.call('SET','k',ARGV[1])", "0", &value]);
        assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk(&value));
        wait_served(&mut c2, "k");
    }
}

#[test]
fn c16_the_reply_of_an_opaque_command_waits_for_the_pong() {
    let mut s = Scripted::over(Fake::builder().scripted("PING").start(), |builder| builder);
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    s.fill(&mut c2, "k", "1");
    c1.send_cmd(&["EVAL", "return 1", "0"]);
    s.lane.expect(&["EVAL", "return 1", "0"]).expect(&["PING"]).reply(":1\r\n");
    c1.expect_silence(QUIET);
    assert!(is_served(&mut c2, "k"));
    // Redis before 7.0 may say so behind the script's reply.
    s.lane.invalidate(&["k"]).reply("+PONG\r\n");
    assert_eq!(c1.reply(), Reply::Int(1));
    s.miss(&mut c2, "k");
}

/// The undeclared keys of a script may be cached in other databases' and users' lanes: each is asked.
#[test]
fn c16_every_lane_with_entries_answers_first() {
    let mut s = Scripted::over(Fake::builder().scripted("PING").start(), |builder| builder);
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    c2.cmd(&["SELECT", "3"]);
    c2.send_cmd(&["GET", "k"]);
    let mut third = s.fake.lane();
    third.expect(&["GET", "k"]).reply(bulk("1")).expect(&["PTTL", "k"]).reply(":-1\r\n");
    assert_eq!(c2.reply(), Reply::bulk("1"));
    wait_served(&mut c2, "k");
    c1.send_cmd(&["EVAL", "return 1", "0"]);
    s.lane.expect(&["EVAL", "return 1", "0"]).expect(&["PING"]).reply(":1\r\n").reply("+PONG\r\n");
    third.expect(&["PING"]);
    c1.expect_silence(QUIET);
    third.invalidate(&["k"]).reply("+PONG\r\n");
    assert_eq!(c1.reply(), Reply::Int(1));
    assert!(!is_stored(&mut c2, "k"));
}
