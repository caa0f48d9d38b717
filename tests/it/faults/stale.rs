//! C71: which entries could be served while upstream is gone, as `NEARSIDE ENTRY` says it. Upstream is scripted, because a
//! lane has to be lost between a reply and its PONG.

use super::{secs, within};
use crate::support::fake::Conn;
use crate::support::{Client, Fake, PATIENCE, Proxy, Reply, eventually};

struct Gone {
    lane: Conn,
    proxy: Proxy,
    fake: Fake,
}

impl Gone {
    /// `k` is in the L1, with this PTTL.
    #[track_caller]
    fn start(pttl: &str, fence: &str) -> (Gone, Client) {
        let fake = Fake::builder().scripted("PING").start();
        // Every PING of a lane is the script's to answer, also that behind a canary.
        let proxy = within(secs(60), Proxy::upstream(&fake.url()).set("coherence.canary", "off"));
        let proxy = proxy.set("coherence.fence", fence).start();
        let mut lane = fake.lane();
        let mut c = proxy.client();
        c.send_cmd(&["GET", "k"]);
        lane.expect(&["GET", "k"]).reply("$1\r\n1\r\n").expect(&["PTTL", "k"]).reply(format!(":{pttl}\r\n"));
        c.reply();
        eventually(PATIENCE, "an entry", || super::served(&mut c, "k").is_some());
        assert_eq!(stale(&mut c), "live");
        (Gone { lane, proxy, fake }, c)
    }

    /// The lane is lost, and there is no other.
    fn lose(self, c: &mut Client) -> Proxy {
        let Gone { lane, proxy, fake } = self;
        drop((lane, fake));
        eventually(PATIENCE, "the lane to be lost", || stale(c) != "live");
        proxy
    }
}

#[track_caller]
fn stale(c: &mut Client) -> String {
    c.cmd(&["NEARSIDE", "ENTRY", "k"]).get("stale_servable").text()
}

#[test]
fn c71_an_entry_of_the_lane_that_was_lost_last_is_good() {
    let (gone, mut c) = Gone::start("-1", "hold");
    let _proxy = gone.lose(&mut c);
    assert_eq!(stale(&mut c), "yes");
    eventually(PATIENCE, "upstream to be gone", || super::served(&mut c, "k").as_deref() == Some("stale"));
}

#[test]
fn c71_past_upstreams_own_expiry_it_is_not() {
    let (gone, mut c) = Gone::start("900", "hold");
    let _proxy = gone.lose(&mut c);
    // The cache frees what is past its deadline when it pleases; as long as it is there it says so.
    eventually(PATIENCE, "the entry to expire", || {
        let entry = c.cmd(&["NEARSIDE", "ENTRY", "k"]);
        entry == Reply::Nil || entry.get("stale_servable").text() == "expired"
    });
}

/// The script's reply was read, its PONG was not: it may have changed k, and its client knows that it has run.
#[test]
fn c71_not_behind_a_script_that_was_acknowledged_without_its_pong() {
    let (mut gone, mut c) = Gone::start("-1", "hold");
    let mut other = gone.proxy.client();
    c.send_cmd(&["EVAL", "return 1", "0"]);
    gone.lane.expect(&["EVAL", "return 1", "0"]).expect(&["PING"]).reply(":1\r\n");
    c.expect_silence(super::ms(50));
    let _proxy = gone.lose(&mut other);
    assert_eq!(c.reply(), Reply::Int(1), "the hold ends with the lane");
    assert_eq!((stale(&mut c), stale(&mut other)), ("floor".to_owned(), "floor".to_owned()));
}

#[test]
fn c71_behind_a_script_with_its_pong_it_is_good() {
    let (mut gone, mut c) = Gone::start("-1", "hold");
    c.send_cmd(&["EVAL", "return 1", "0"]);
    gone.lane.expect(&["EVAL", "return 1", "0"]).expect(&["PING"]).reply(":1\r\n").reply("+PONG\r\n");
    assert_eq!(c.reply(), Reply::Int(1));
    let _proxy = gone.lose(&mut c);
    assert_eq!(stale(&mut c), "yes");
}

/// The script itself was lost: nobody has been told anything.
#[test]
fn c71_a_script_that_was_lost_too_hands_nothing_out() {
    let (mut gone, mut c) = Gone::start("-1", "hold");
    let mut other = gone.proxy.client();
    c.send_cmd(&["EVAL", "return 1", "0"]);
    gone.lane.expect(&["EVAL", "return 1", "0"]);
    let _proxy = gone.lose(&mut other);
    assert!(c.reply().is_error());
    assert_eq!(stale(&mut other), "yes");
}

/// `session` hands it out without any PONG; the proof that follows makes old entries good again.
#[test]
fn c71_the_floor_of_fence_session() {
    let (mut gone, mut c) = Gone::start("-1", "session");
    let mut other = gone.proxy.client();
    c.send_cmd(&["EVAL", "return 1", "0"]);
    gone.lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(c.reply(), Reply::Int(1));
    let _proxy = gone.lose(&mut other);
    assert_eq!(stale(&mut other), "floor");
    let (mut gone, mut c) = Gone::start("-1", "session");
    c.send_cmd(&["EVAL", "return 1", "0"]);
    gone.lane.expect(&["EVAL", "return 1", "0"]).reply(":1\r\n");
    assert_eq!(c.reply(), Reply::Int(1));
    c.send_cmd(&["STRLEN", "other"]);
    gone.lane.expect(&["STRLEN", "other"]).reply(":0\r\n");
    assert_eq!(c.reply(), Reply::Int(0));
    let _proxy = gone.lose(&mut c);
    assert_eq!(stale(&mut c), "yes");
}

/// A job that was handed out while the lane was lost already.
#[test]
fn c71_the_fence_of_a_session_that_read_elsewhere() {
    let (mut gone, mut c) = Gone::start("-1", "hold");
    let mut other = gone.proxy.client();
    c.send_cmd(&["BLPOP", "q", "0"]);
    let mut pinned = gone.fake.other();
    pinned.expect(&["BLPOP", "q", "0"]).reply("*2\r\n$1\r\nq\r\n$1\r\n1\r\n");
    gone.lane.expect(&["PING"]).reply("+PONG\r\n");
    assert_eq!(c.reply(), Reply::bulks(&["q", "1"]));
    let _proxy = gone.lose(&mut other);
    // F is the PING's send time, which is later than the fence: the session's own word is in the proof.
    assert_eq!((stale(&mut c), stale(&mut other)), ("yes".to_owned(), "yes".to_owned()));
}
