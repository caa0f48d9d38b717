use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::task::LocalSet;

use super::*;
use crate::cache::{Bounds, L1};
use crate::config::Config;
use crate::observe::metrics::Metrics;
use crate::observe::reasons::Mode;
use crate::observe::status::Status;

const PREFIX: &[u8] = b"*3\r\n$7\r\nmessage\r\n$19\r\nnearside:invalidate\r\n$8\r\nprefix k\r\n";
const KEY: &[u8] = b"*3\r\n$7\r\nmessage\r\n$19\r\nnearside:invalidate\r\n$5\r\nkey k\r\n";
const CONFIRMED: &[u8] = b"*3\r\n$10\r\npsubscribe\r\n$1\r\np\r\n:2\r\n";
const PONG: &[u8] = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n";

fn ctx() -> Rc<Ctx> {
    let metrics = Arc::new(Metrics::new(":", 10));
    let l1 = L1::new(Bounds { max_bytes: 1 << 20, max_entries: None, lru: false }, metrics.clone());
    let status = Arc::new(Status::new("upstream", Mode::Serve));
    Ctx::new(Arc::new(Config::for_tests("redis://127.0.0.1:1")), Arc::new(l1), metrics, status)
}

fn stream(bytes: &[u8]) -> Stream {
    let (ours, _) = UnixStream::pair().expect("sockets");
    let (rd, wr) = crate::net::Stream::Unix(ours).split();
    Stream { rd, wr, rbuf: bytes.into(), scanner: FrameScanner::new(), discarding: false, waiting: false, more: false }
}

/// A PONG says that all before it has been applied. A sweep that is not over has not.
#[tokio::test]
async fn a_pong_behind_a_prefix_counts_when_the_sweep_is_over() {
    let in_task = async {
        let ctx = ctx();
        let channel = ctx.channel.clone();
        channel.ping(7, None);
        channel.ping(8, None);
        let mut s = stream(&[PREFIX, KEY, PONG, PONG].concat());
        let l1 = ctx.l1.clone();
        l1.with_stripe_locked(b"other", || {
            process(&ctx, &channel, &mut s).expect("frames");
            // The key's message behind it has been applied, the PONGs are still there.
            assert_eq!(ctx.metrics.invalidations.get(Source::Channel), 2);
            assert!(s.waiting && channel.f() == 0 && s.rbuf.len() == 2 * PONG.len());
        });
        while channel.sweeping.get() > 0 {
            channel.wake.called().await;
        }
        process(&ctx, &channel, &mut s).expect("frames");
        assert!(!s.waiting && channel.f() == 8 && s.rbuf.is_empty());
    };
    LocalSet::new().run_until(in_task).await;
}

/// A storm of events leaves the sessions their turns, and nothing of it is left out.
#[tokio::test]
async fn a_storm_has_turns() {
    let ctx = ctx();
    let event = b"*4\r\n$8\r\npmessage\r\n$1\r\np\r\n$16\r\n__keyspace@0__:k\r\n$3\r\nset\r\n";
    let mut s = stream(&event.repeat(2 * MESSAGES_A_TURN + 1));
    for (more, applied) in [(true, MESSAGES_A_TURN), (true, 2 * MESSAGES_A_TURN), (false, 2 * MESSAGES_A_TURN + 1)] {
        process(&ctx, &ctx.channel, &mut s).expect("frames");
        assert_eq!((s.more, ctx.metrics.invalidations.get(Source::Keyspace)), (more, applied as u64));
    }
    assert!(s.rbuf.is_empty());
}

#[tokio::test]
async fn an_error_answers_a_ping_and_what_nothing_asked_for_ends_the_connection() {
    let ctx = ctx();
    let channel = ctx.channel.clone();
    channel.ping(7, None);
    process(&ctx, &channel, &mut stream(b"-BUSY Redis is busy\r\n")).expect("an answer");
    assert_eq!(channel.f(), 7);
    // A PING is not answered by a confirmation.
    channel.ping(8, None);
    for bytes in [CONFIRMED, PONG, b"+OK\r\n", b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n", b"@\r\n"] {
        assert!(process(&ctx, &channel, &mut stream(bytes)).is_err(), "{}", bytes.escape_ascii());
    }
}
