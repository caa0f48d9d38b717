//! How much upstream holds, for the page, the cache's JSON and two metrics: every `upstream.info_poll` it is asked INFO memory
//! and INFO keyspace, over the lane of the default profile. That costs upstream some 100 us of its time and sends a kilobyte;
//! a connection of its own for it would be one more for every sidecar.
//!
//! Only while the cache serves: in `observe` and `off` upstream sees the clients' commands and no others. Where it is not asked,
//! or does not say, nothing is known: an old figure is none. Upstream may refuse INFO to this user: that is said once, and the
//! connection is not asked again, because every refusal is an entry in upstream's ACL LOG.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::lane::Lane;
use crate::observe::clock;
use crate::resp::reply;
use crate::upstream::handshake;
use crate::worker::Ctx;

/// As long as nothing is known it is looked so often whether upstream can be asked: at start the lane takes a moment.
const EAGER: Duration = Duration::from_secs(1);

/// What has come of one asking.
enum Told {
    /// There is nobody to ask now.
    Nothing,
    Size(Option<u64>, Option<u64>),
    /// Upstream's words.
    Refused(String),
}

/// Asks for as long as the process lives.
pub(crate) async fn run(ctx: Rc<Ctx>) {
    let Some(period) = ctx.config.upstream.info_poll else { return };
    let mut every = interval(period.min(EAGER));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut due, mut refused, mut said) = (0, 0, false);
    loop {
        every.tick().await;
        let lane = ctx.lanes.borrow().get(&ctx.default_profile).cloned();
        let asked = lane.filter(|lane| ctx.cache_serves() && lane.is_ready() && lane.epoch() != 0);
        let Some(lane) = asked.filter(|lane| lane.epoch() != refused) else {
            ctx.metrics.upstream_size.set(None, None);
            due = 0;
            continue;
        };
        if clock::now() < due {
            continue;
        }
        let epoch = lane.epoch();
        let (memory, keys) = match ask(&lane).await {
            Told::Nothing => (None, None),
            Told::Size(memory, keys) => (memory, keys),
            Told::Refused(why) => {
                refused = epoch;
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("upstream refuses INFO, how much it holds is not known (upstream.info_poll): {why}");
                }
                (None, None)
            }
        };
        ctx.metrics.upstream_size.set(memory, keys);
        if memory.is_some() {
            due = clock::now() + super::reader::nanos(period);
        }
    }
}

/// Versions before 7 take one section at a time.
async fn ask(lane: &Lane) -> Told {
    let (memory, keys) =
        (lane.inquire(clock::now(), &[b"INFO", b"memory"]), lane.inquire(clock::now(), &[b"INFO", b"keyspace"]));
    let (Ok(memory), Ok(keys)) = (memory.await, keys.await) else { return Told::Nothing };
    match [&memory, &keys].into_iter().find(|frame| reply::is_error(frame)) {
        Some(error) => Told::Refused(handshake::error_text(error)),
        None => Told::Size(used_memory(&memory), all_keys(&keys)),
    }
}

/// `used_memory:1048576` is a line of its own in whatever frame the text comes.
fn used_memory(info: &[u8]) -> Option<u64> {
    lines(info).find_map(|line| line.strip_prefix("used_memory:")?.parse().ok())
}

/// `db0:keys=2,expires=0,avg_ttl=0`, a line for each database that has any; none at all where there is not even the heading.
fn all_keys(info: &[u8]) -> Option<u64> {
    let of = |line: &str| {
        let (db, counts) = line.split_once(":keys=")?;
        let number = db.strip_prefix("db")?;
        number.bytes().all(|b| b.is_ascii_digit()).then_some(counts.split(',').next()?.parse::<u64>().ok()?)
    };
    lines(info).any(|line| line.contains("# Keyspace")).then(|| lines(info).filter_map(of).sum())
}

fn lines(info: &[u8]) -> impl Iterator<Item = &str> {
    info.split(|b| *b == b'\n').filter_map(|line| str::from_utf8(line).ok()).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_out_of_either_protocols_frame() {
        let memory = b"=60\r\ntxt:# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\n\r\n";
        assert_eq!(used_memory(memory), Some(1 << 20));
        assert_eq!(used_memory(b"$12\r\n# Memory\r\n\r\n\r\n"), None);
        let keys = b"$80\r\n# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0\r\ndb11:keys=40,expires=1,avg_ttl=3\r\n\r\n";
        assert_eq!(all_keys(keys), Some(42));
        assert_eq!(all_keys(b"=20\r\ntxt:# Keyspace\r\n\r\n"), Some(0), "an empty server has no line");
        assert_eq!(all_keys(b"$0\r\n\r\n"), None, "it did not say");
        assert_eq!(all_keys(b"$60\r\n# Keyspace\r\ndbx:keys=2\r\nerr:keys=1\r\ndb1:keys=x\r\n\r\n"), Some(0));
    }
}
