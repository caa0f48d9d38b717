//! What a session learned over another connection, or from somebody else, fences its hits: C17 to C20.

use std::time::Duration;

use super::{LANE, QUIET, Real, Scripted, bulk, fill, is_served, is_stored};
use crate::support::{Client, Dir, Fake, PATIENCE, Proxy, Reply, Scope, eventually};

/// The old value is in the L1, its invalidation is on its way, and a foreign writer has been told OK.
fn overtaken() -> (Real, Client) {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let mut client = real.proxy.client();
    fill(&mut client, "k", "1");
    real.stall_lane();
    real.redis.cmd(&["SET", "k", "2"]);
    assert!(is_served(&mut client, "k"), "nobody has told us, and the lease is young");
    (real, client)
}

#[test]
fn c17_read_in_multi_is_newer() {
    let (real, mut c1) = overtaken();
    let replies = c1.pipeline(&[&["MULTI"][..], &["GET", "k"], &["EXEC"]]);
    assert_eq!(replies[2], Reply::bulks(&["2"]));
    c1.send_cmd(&["GET", "k"]);
    c1.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulk("2"));
    assert!(real.proxy.stat("bypass_fence") >= 1.0);
}

/// The fence holds whatever the next read is and whatever the session is by then.
#[test]
fn c17_the_fence_survives_mget_select_and_reset() {
    let (real, mut c1) = overtaken();
    c1.pipeline(&[&["MULTI"][..], &["GET", "k"], &["EXEC"]]);
    c1.cmd(&["SELECT", "1"]);
    c1.cmd(&["SELECT", "0"]);
    c1.cmd(&["RESET"]);
    c1.send_cmd(&["MGET", "k"]);
    c1.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulks(&["2"]));
}

#[test]
fn c18_watch() {
    let (real, mut c1) = overtaken();
    assert_eq!(c1.cmd(&["WATCH", "k"]), Reply::ok());
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("2"), "behind WATCH reads go upstream");
    let replies = c1.pipeline(&[&["MULTI"][..], &["SET", "k", "3"], &["EXEC"]]);
    assert_eq!(replies[2], Reply::Array(vec![Reply::ok()]), "what was watched is what was read");
    real.resume_lane();
    assert_eq!(c1.cmd(&["GET", "k"]), Reply::bulk("3"));
}

#[test]
fn c18_unwatch_keeps_the_fence() {
    let (real, mut c1) = overtaken();
    c1.pipeline(&[&["WATCH", "k"][..], &["GET", "k"], &["UNWATCH"]]);
    c1.send_cmd(&["GET", "k"]);
    c1.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulk("2"));
}

#[test]
fn c19_notify_then_read() {
    let real = Real::start();
    real.redis.cmd(&["SET", "k", "1"]);
    let (mut two, mut three) = (real.proxy.client(), real.proxy.client3());
    two.cmd(&["SUBSCRIBE", "ch"]);
    three.send_cmd(&["PSUBSCRIBE", "c*"]);
    three.push();
    let mut c2 = real.proxy.client();
    fill(&mut c2, "k", "1");
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "k", "2"][..], &["PUBLISH", "ch", "k"]]);
    two.expect_silence(QUIET);
    three.expect_silence(QUIET);
    assert!(is_served(&mut c2, "k"), "so the message would have been the first to know");
    real.resume_lane();
    assert_eq!(two.reply(), Reply::bulks(&["message", "ch", "k"]));
    assert_eq!(c2.cmd(&["GET", "k"]), Reply::bulk("2"));
    assert_eq!(three.push().items()[3], Reply::bulk("k"));
}

#[test]
fn c20_queue_job() {
    let real = Real::start();
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c2, "job:1", None);
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "job:1", "x"][..], &["LPUSH", "q", "1"]]);
    c1.send_cmd(&["BLPOP", "q", "0"]);
    c1.expect_silence(QUIET);
    assert!(is_served(&mut c2, "job:1"), "so the job would have been the first to know");
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
    assert_eq!(c2.cmd(&["GET", "job:1"]), Reply::bulk("x"));
}

/// A lane that says nothing keeps a job from its worker for B at the most; from then on the lease keeps the old value from
/// everybody.
#[test]
fn c20_a_hold_ends_after_b() {
    let real = Real::with(|builder| builder.set("coherence.max_staleness", "400ms"));
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c2, "job:1", None);
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "job:1", "x"][..], &["LPUSH", "q", "1"]]);
    c1.send_cmd(&["BLPOP", "q", "0"]);
    assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
    // The lane answers nobody yet; its spare connection does.
    assert_eq!(c2.cmd(&["GET", "job:1"]), Reply::bulk("x"));
    assert!(real.proxy.stat("bypass_lease") >= 1.0);
    real.resume_lane();
}

/// A lane that has stored nothing yet, but has read something that it is about to store, is asked as well.
#[test]
fn c20_a_first_fill_in_flight_counts() {
    for (command, reply) in [(&["GET", "job:1"][..], "_\r\n"), (&["MGET", "job:1", "job:2"], "*2\r\n_\r\n_\r\n")] {
        let mut s = Scripted::over(Fake::builder().scripted("PING").start(), |builder| builder);
        let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
        c1.send_cmd(&["BLPOP", "q", "0"]);
        let mut pinned = s.fake.other();
        pinned.expect(&["BLPOP", "q", "0"]);
        c2.send_cmd(command);
        s.lane.expect(command).reply(reply);
        c2.reply();
        // Upstream has answered the read, not yet its PTTLs; then the job comes to be, and is handed out.
        pinned.reply("*2\r\n$1\r\nq\r\n$1\r\n1\r\n");
        for key in &command[1..] {
            s.lane.expect(&["PTTL", *key]);
        }
        s.lane.expect(&["PING"]);
        c1.expect_silence(QUIET);
        for _ in &command[1..] {
            s.lane.reply(":-2\r\n");
        }
        s.lane.invalidate(&["job:1"]).reply("+PONG\r\n");
        assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
        s.miss(&mut c2, "job:1");
    }
}

/// R22 beside the fence: behind a script of its own pipeline a session takes no hit.
#[test]
fn c20_no_hit_behind_an_opaque_command_of_the_same_pipeline() {
    let mut s = Scripted::start();
    let mut c1 = s.proxy.client();
    s.fill(&mut c1, "k", "1");
    c1.send(b"*3\r\n$4\r\nEVAL\r\n$1\r\nx\r\n$1\r\n0\r\nGET k\r\n");
    s.lane.expect(&["EVAL", "x", "0"]).reply(":1\r\n").expect(&["GET", "k"]).reply(bulk("7"));
    assert_eq!((c1.reply(), c1.reply()), (Reply::Int(1), Reply::bulk("7")));
    c1.expect_silence(Duration::from_millis(1));
}

/// R15: "a hold ends after B at the latest", also where nothing else comes that would write the reply out.
#[test]
fn a_script_is_answered_after_b_though_its_pong_never_comes() {
    let upstream = Fake::builder().scripted("PING").start();
    let proxy = Proxy::upstream(&upstream.url()).set("coherence.max_staleness", "100ms").start();
    let mut client = proxy.client();
    client.send_cmd(&["EVAL", "return 1", "0"]);
    let mut lane = upstream.lane();
    lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Int(1));
}

/// Where no lane has anything that a hit could come from, there is nothing to wait for.
#[test]
fn c20_a_lane_without_entries_is_not_asked() {
    let mut s = Scripted::over(Fake::builder().scripted("PING").start(), |builder| builder);
    let mut c1 = s.proxy.client();
    c1.send_cmd(&["BLPOP", "q", "0"]);
    let mut pinned = s.fake.other();
    pinned.expect(&["BLPOP", "q", "0"]).reply("*2\r\n$1\r\nq\r\n$1\r\n1\r\n");
    assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
    assert!(s.lane.try_next(QUIET).is_none(), "a PING for nothing");
    // One that has something is asked, so the test can see it.
    s.fill(&mut c1, "k", "1");
    c1.send_cmd(&["BLPOP", "q", "0"]);
    pinned.expect(&["BLPOP", "q", "0"]).reply("*2\r\n$1\r\nq\r\n$1\r\n1\r\n");
    s.lane.expect(&["PING"]).reply("+PONG\r\n");
    assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
}

/// The entries of a lane that has died serve nobody: what waited for its PONG need not wait for B.
#[test]
fn c20_a_hold_ends_with_its_lane() {
    let real = Real::with(|builder| builder.set("coherence.max_staleness", "600s"));
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c2, "job:1", None);
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "job:1", "x"][..], &["LPUSH", "q", "1"]]);
    c1.send_cmd(&["BLPOP", "q", "0"]);
    c1.expect_silence(QUIET);
    real.relay.cut(LANE);
    assert_eq!(c1.reply(), Reply::bulks(&["q", "1"]));
    assert_eq!(c2.cmd(&["GET", "job:1"]), Reply::bulk("x"));
}

/// A lane of another database has something to serve and does not answer; `held` got its script's reply back from upstream.
fn held(output_limit: &str) -> (Real, Client, usize) {
    let real =
        Real::with(|builder| builder.set("listen.output_limit", output_limit).set("coherence.max_staleness", "600s"));
    let (mut held, mut third) = (real.proxy.client(), real.proxy.client());
    fill(&mut held, "mine", None);
    let before = real.relay.connections();
    third.cmd(&["SELECT", "3"]);
    fill(&mut third, "k", None);
    let after = real.relay.connections();
    let slow = *after.iter().rfind(|link| !before.contains(link)).expect("a lane of database 3");
    real.relay.stall(Scope::One(slow), Dir::Down);
    held.send_cmd(&["EVAL", "return redis.call('GET', 'big') or 7", "0"]);
    held.expect_silence(QUIET);
    (real, held, slow)
}

/// Whoever waits for a lane waits alone: other sessions, other lanes, connections of one's own.
#[test]
fn c16_nothing_else_waits_for_a_hold() {
    let (real, mut held, slow) = held("64MiB");
    let mut other = real.proxy.client3();
    assert_eq!(other.cmd(&["GET", "mine"]), Reply::Nil);
    assert_eq!(other.cmd(&["SET", "mine", "1"]), Reply::ok());
    assert_eq!(other.cmd(&["GET", "mine"]), Reply::bulk("1"));
    let exec = other.pipeline(&[&["MULTI"][..], &["INCR", "n"], &["EXEC"]]).remove(2);
    assert_eq!(exec, Reply::Array(vec![Reply::Int(1)]), "it names what it changes");
    other.cmd(&["SELECT", "5"]);
    assert_eq!(other.cmd(&["GET", "mine"]), Reply::Nil);
    // Its own next request is executed, and answered in its turn.
    held.send_cmd(&["INCR", "n"]);
    eventually(PATIENCE, "the next request of the session that waits", || {
        real.redis.cmd(&["GET", "n"]) == Reply::bulk("2")
    });
    held.expect_silence(QUIET);
    real.relay.resume(Scope::One(slow), Dir::Down);
    assert_eq!((held.reply(), held.reply()), (Reply::Int(7), Reply::Int(2)));
}

#[test]
fn c16_what_is_held_counts_against_the_output_limit() {
    let (real, mut held, _) = held("1MiB");
    real.redis.cmd(&["SET", "big", &"x".repeat(300_000)]);
    let dropped = "nearside_clients_dropped_total{reason=\"output_limit\"}";
    for _ in 0..3 {
        held.send_cmd(&["EVAL", "return redis.call('GET', 'big')", "0"]);
        held.expect_silence(QUIET);
    }
    assert_eq!(real.proxy.metric(dropped), 0.0, "900 KB");
    held.send_cmd(&["EVAL", "return redis.call('GET', 'big')", "0"]);
    eventually(PATIENCE, "the client to be dropped", || real.proxy.metric(dropped) == 1.0);
    held.expect_closed();
}

/// One user's script, another user's entry: an ACL user has a lane of its own, and its reply is awaited, too.
#[test]
fn c66_script_of_one_user_entry_of_another() {
    let real = Real::start();
    real.redis.cmd(&["ACL", "SETUSER", "a", "on", ">a", "~*", "&*", "+@all"]);
    real.redis.cmd(&["ACL", "SETUSER", "b", "on", ">b", "~*", "&*", "+@all"]);
    real.redis.cmd(&["SET", "k", "1"]);
    let (mut a, mut b) = (real.proxy.client(), real.proxy.client());
    assert_eq!(a.cmd(&["AUTH", "a", "a"]), Reply::ok());
    fill(&mut a, "k", "1");
    let before = real.relay.connections();
    assert_eq!(b.cmd(&["AUTH", "b", "b"]), Reply::ok());
    fill(&mut b, "k", "1");
    let after = real.relay.connections();
    let lane_b = *after.iter().rfind(|link| !before.contains(link)).expect("a lane of user b");
    real.relay.stall(Scope::One(lane_b), Dir::Down);
    a.send_cmd(&["EVAL", "return redis.call('SET', 'k', '2')", "0"]);
    a.expect_silence(QUIET);
    real.relay.resume(Scope::One(lane_b), Dir::Down);
    assert_eq!(a.reply(), Reply::ok());
    assert_eq!(b.cmd(&["GET", "k"]), Reply::bulk("2"));
}

// ---- coherence.fence: session ----

fn session_fence() -> Real {
    Real::with(|builder| builder.set("coherence.fence", "session"))
}

/// Nothing waits, and whoever ran the script reads nothing older than it; others are told when the invalidation comes.
#[test]
fn c16_session_fence_of_a_script() {
    let fake = Fake::builder().scripted("PING").start();
    let mut s = Scripted::over(fake, |builder| builder.set("coherence.fence", "session"));
    let (mut c1, mut c2) = (s.proxy.client(), s.proxy.client());
    s.fill(&mut c2, "k", "1");
    c1.send_cmd(&["EVAL", "return 1", "0"]);
    s.lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(c1.reply(), Reply::Int(1), "no PONG is awaited");
    assert!(is_served(&mut c2, "k"), "others may read the old value until they are told");
    s.miss(&mut c1, "k");
    s.lane.invalidate(&["k"]).reply(bulk("2"));
    assert_eq!(c1.reply(), Reply::bulk("2"));
    assert!(!is_served(&mut c2, "k"));
}

#[test]
fn c17_c18_session_fence_of_reads_elsewhere() {
    for words in [&[&["MULTI"][..], &["GET", "k"], &["EXEC"]][..], &[&["WATCH", "k"], &["GET", "k"], &["UNWATCH"]]] {
        let real = session_fence();
        real.redis.cmd(&["SET", "k", "1"]);
        let mut c1 = real.proxy.client();
        fill(&mut c1, "k", "1");
        real.stall_lane();
        real.redis.cmd(&["SET", "k", "2"]);
        assert!(is_served(&mut c1, "k"));
        c1.pipeline(words);
        c1.send_cmd(&["GET", "k"]);
        c1.expect_silence(QUIET);
        real.resume_lane();
        assert_eq!(c1.reply(), Reply::bulk("2"));
    }
}

/// The message does not wait. Whoever got it reads what it means; another client may not yet (guarantee 2 does not hold).
#[test]
fn c19_session_fence_of_a_message() {
    let real = session_fence();
    real.redis.cmd(&["SET", "k", "1"]);
    let (mut c1, mut c2) = (real.proxy.client3(), real.proxy.client());
    c1.send_cmd(&["SUBSCRIBE", "ch"]);
    c1.push();
    fill(&mut c2, "k", "1");
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "k", "2"][..], &["PUBLISH", "ch", "k"]]);
    assert_eq!(c1.push().items()[2], Reply::bulk("k"));
    assert!(is_served(&mut c2, "k"), "the message has overtaken the invalidation");
    c1.send_cmd(&["UNSUBSCRIBE"]);
    c1.push();
    c1.send_cmd(&["GET", "k"]);
    c1.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulk("2"));
}

#[test]
fn c20_session_fence_of_a_job() {
    let real = session_fence();
    let (mut c1, mut c2) = (real.proxy.client(), real.proxy.client());
    fill(&mut c2, "job:1", None);
    real.stall_lane();
    real.redis.client().pipeline(&[&["SET", "job:1", "x"][..], &["LPUSH", "q", "1"]]);
    assert_eq!(c1.cmd(&["BLPOP", "q", "0"]), Reply::bulks(&["q", "1"]));
    assert!(is_served(&mut c2, "job:1"), "the job has overtaken the invalidation");
    c1.send_cmd(&["GET", "job:1"]);
    c1.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c1.reply(), Reply::bulk("x"));
}
