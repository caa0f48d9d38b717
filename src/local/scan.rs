//! The commands that look at many keys or channels: KEYS, SCAN, RANDOMKEY, DBSIZE, PUBSUB.

use bytes::BytesMut;

use super::{Call, Engine, Outcome, Refusal, SYNTAX, Space, integer, is};
use crate::policy::glob;
use crate::resp::build;

/// As SCAN returns without COUNT.
const COUNT: usize = 10;

/// Draws of RANDOMKEY that may meet expired keys, which are deleted; then any key is as good, as in Redis.
const DRAWS_MAX: usize = 100;

pub(super) fn dbsize(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    build::integer(out, engine.dbs[call.db as usize].len() as i64);
    Ok(())
}

pub(super) fn keys(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let pattern = call.req.arg(1);
    let live = engine.dbs[call.db as usize].keys().filter(|(_, entry)| !entry.is_expired(call.now));
    let (mut found, mut bodies) = (0, BytesMut::new());
    for (key, _) in live.filter(|(key, _)| glob::matches(pattern, key)) {
        build::bulk(&mut bodies, key);
        found += 1;
        if bodies.len() > call.reply_max {
            break;
        }
    }
    build::array(out, found);
    out.unsplit(bodies);
    Ok(())
}

/// What SCAN was asked.
struct Scan<'a> {
    count: usize,
    pattern: Option<&'a [u8]>,
    /// TYPE names another type than the only one there is.
    of_other_type: bool,
}

impl<'a> Scan<'a> {
    fn parse(call: &Call<'a>) -> Result<Scan<'a>, Refusal> {
        let mut scan = Scan { count: COUNT, pattern: None, of_other_type: false };
        let mut i = 2;
        while i < call.req.argc() {
            let (word, value) = (call.req.arg(i), (i + 1 < call.req.argc()).then(|| call.req.arg(i + 1)));
            match value {
                Some(n) if is(word, "count") => {
                    let n = integer(n)?;
                    scan.count = usize::try_from(n).ok().filter(|n| *n > 0).ok_or(SYNTAX)?;
                }
                Some(pattern) if is(word, "match") => scan.pattern = Some(pattern),
                Some(kind) if is(word, "type") => scan.of_other_type = !is(kind, "string"),
                _ => return Err(SYNTAX),
            }
            i += 2;
        }
        Ok(scan)
    }
}

/// The cursor is how many positions are still to be looked at, from the end down (`db`); 0 begins and ends.
pub(super) fn scan(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    let cursor = cursor(call.req.arg(1)).ok_or("ERR invalid cursor")?;
    let scan = Scan::parse(call)?;
    let length = engine.dbs[call.db as usize].len();
    let from = usize::try_from(cursor).ok().filter(|n| *n > 0).map_or(length, |n| n.min(length));
    let to = from.saturating_sub(scan.count);
    let (mut found, mut bodies, mut at) = (0, BytesMut::new(), from);
    while at > to && bodies.len() <= call.reply_max {
        at -= 1;
        let Some((key, entry)) = engine.dbs[call.db as usize].at(at) else { continue };
        if scan.pattern.is_some_and(|p| !glob::matches(p, key)) {
            continue;
        }
        if entry.is_expired(call.now) {
            // Below `at` everything stays where it is.
            let key = key.to_vec();
            engine.reap(call.now, call.db, &key);
        } else if !scan.of_other_type {
            build::bulk(&mut bodies, key);
            found += 1;
        }
    }
    build::array(out, 2);
    build::bulk(out, at.to_string().as_bytes());
    build::array(out, found);
    out.unsplit(bodies);
    Ok(())
}

/// As `strtoul` reads it: a sign, digits, and a number that fits; nothing at all is 0.
fn cursor(word: &[u8]) -> Option<u64> {
    let text = word.split(|b| *b == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Some(0);
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if negative { n.wrapping_neg() } else { n })
}

pub(super) fn randomkey(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    for draw in 0.. {
        let length = engine.dbs[call.db as usize].len();
        if length == 0 {
            break;
        }
        let nth = engine.next_random() as usize % length;
        let Some((key, entry)) = engine.dbs[call.db as usize].at(nth) else { break };
        if !entry.is_expired(call.now) || draw >= DRAWS_MAX {
            build::bulk(out, key);
            return Ok(());
        }
        let key = key.to_vec();
        engine.reap(call.now, call.db, &key);
    }
    build::null(out, call.proto);
    Ok(())
}

fn space(call: &Call<'_>) -> Space {
    if call.name.starts_with("pubsub|shard") { Space::Shard } else { Space::Channel }
}

pub(super) fn channels(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    if call.req.argc() > 3 {
        return Err(unknown_sub(call));
    }
    let pattern = (call.req.argc() == 3).then(|| call.req.arg(2));
    let names = engine.topics.channels(space(call), pattern);
    build::array(out, names.len());
    names.iter().for_each(|name| build::bulk(out, name));
    Ok(())
}

fn unknown_sub(call: &Call<'_>) -> Refusal {
    let sub = super::shown(call.req.arg(1));
    format!("ERR unknown subcommand or wrong number of arguments for '{sub}'. Try PUBSUB HELP.").into()
}

pub(super) fn numsub(engine: &mut Engine, call: &Call<'_>, out: &mut BytesMut) -> Outcome {
    build::array(out, 2 * (call.req.argc() - 2));
    for i in 2..call.req.argc() {
        build::bulk(out, call.req.arg(i));
        build::integer(out, engine.topics.listeners(space(call), call.req.arg(i)) as i64);
    }
    Ok(())
}

pub(super) fn numpat(engine: &mut Engine, _: &Call<'_>, out: &mut BytesMut) -> Outcome {
    build::integer(out, engine.topics.patterns() as i64);
    Ok(())
}
