//! What a session learned over another connection, or from somebody else, fences its hits: C17 to C20.

use std::time::Duration;

use super::{QUIET, Real, Scripted, bulk, fill, is_served};
use crate::support::{Client, Fake, Proxy, Reply};

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
    c2.send_cmd(&["GET", "job:1"]);
    c2.expect_silence(QUIET);
    real.resume_lane();
    assert_eq!(c2.reply(), Reply::bulk("x"));
    assert!(real.proxy.stat("bypass_lease") >= 1.0);
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
    let proxy = Proxy::upstream(&upstream.url()).set("coherence.max_staleness", "100ms").set("coherence.canary", "off");
    let proxy = proxy.start();
    let mut client = proxy.client();
    client.send_cmd(&["EVAL", "return 1", "0"]);
    let mut lane = upstream.lane();
    lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Int(1));
}
