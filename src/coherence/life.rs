//! When an entry ends, and from when on a hit on it has the key read again (`refresh_ahead`, `stale_while_revalidate`).
//! Pure; all times in nanoseconds from the sending of the command that read the value, which is what every bound counts
//! from.
//!
//! An entry has two ends. Its *rule's*: the ttl, or the cap of the lane's mode where that is less. And its *key's*: upstream's
//! expiry less `cache.ttl_buffer`, which nothing moves. `stale_while_revalidate` moves the first one only. So an entry is
//! served at most that long beyond its ttl or cap, and never past its key's end.
//!
//! What ends with its key is not read ahead of its end: the reading would find the same end, and every hit from there on
//! would ask again.

use std::time::Duration;

use super::reader::nanos;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    /// `u64::MAX`: never, else before `end`.
    pub(super) soft: u64,
    pub(super) end: u64,
}

/// What its rule says of the end of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The ttl, the mode's cap applied.
    pub(super) ttl: u64,
    pub(super) ahead: Option<Duration>,
    pub(super) stale: Duration,
}

impl Life {
    /// `key`: how long the key itself is good for, where it ends at all. None: nothing could be served.
    pub(super) fn of(terms: &Terms, key: Option<u64>) -> Option<Life> {
        let key = key.unwrap_or(u64::MAX);
        if terms.ttl.min(key) == 0 {
            return None;
        }
        let end = terms.ttl.saturating_add(nanos(terms.stale)).min(key);
        let soft = match terms.ahead.map(nanos) {
            _ if key <= terms.ttl => u64::MAX,
            Some(ahead) if ahead < terms.ttl => terms.ttl - ahead,
            // The rule's ttl is longer than this, but the mode's cap, or `negative_ttl`, is not.
            Some(_) => terms.ttl / 2,
            None if terms.stale.is_zero() => u64::MAX,
            None => terms.ttl,
        };
        Some(Life { soft, end })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn life(ttl: u64, ahead: Option<u64>, stale: u64, key: Option<u64>) -> Option<(Option<u64>, u64)> {
        let terms =
            Terms { ttl: ttl * MS, ahead: ahead.map(Duration::from_millis), stale: Duration::from_millis(stale) };
        let life = Life::of(&terms, key.map(|key| key * MS))?;
        Some(((life.soft != u64::MAX).then_some(life.soft / MS), life.end / MS))
    }

    #[test]
    fn each_end_and_what_moves_it() {
        // ttl, refresh_ahead, stale_while_revalidate, what is left of the key; soft, end.
        type Row = (u64, Option<u64>, u64, Option<u64>, Option<(Option<u64>, u64)>);
        const ROWS: &[Row] = &[
            (1000, None, 0, None, Some((None, 1000))),
            (1000, None, 0, Some(400), Some((None, 400))),
            (1000, Some(200), 0, None, Some((Some(800), 1000))),
            (1000, Some(200), 0, Some(1001), Some((Some(800), 1000))),
            // It ends with its key: reading it again would find the same end.
            (1000, Some(200), 0, Some(1000), Some((None, 1000))),
            (1000, Some(200), 500, Some(900), Some((None, 900))),
            (1000, None, 500, None, Some((Some(1000), 1500))),
            (1000, None, 500, Some(1200), Some((Some(1000), 1200))),
            (1000, Some(200), 500, Some(1200), Some((Some(800), 1200))),
            // A cap below refresh_ahead: half, or every hit would ask.
            (1000, Some(5000), 0, None, Some((Some(500), 1000))),
            (0, None, 500, None, None),
            (1000, Some(200), 500, Some(0), None),
        ];
        for (ttl, ahead, stale, key, expected) in ROWS {
            assert_eq!(life(*ttl, *ahead, *stale, *key), *expected, "{ttl} {ahead:?} {stale} {key:?}");
        }
    }

    proptest! {
        #[test]
        fn no_entry_outlives_its_key_or_its_rule(
            ttl in 0..10_000u64,
            ahead in prop::option::of(1..10_000u64),
            stale in 0..10_000u64,
            key in prop::option::of(0..20_000u64),
        ) {
            let Some((soft, end)) = life(ttl, ahead, stale, key) else {
                prop_assert!(ttl == 0 || key == Some(0));
                return Ok(());
            };
            prop_assert!(end <= ttl + stale && key.is_none_or(|key| end <= key));
            // What it would have without either of them it has at the least.
            prop_assert!(end >= ttl.min(key.unwrap_or(u64::MAX)));
            if let Some(soft) = soft {
                prop_assert!(soft < end && soft <= ttl && (ahead.is_some() || stale > 0));
            }
        }
    }
}
