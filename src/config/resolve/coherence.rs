//! `coherence`: how true what is served has to be, and how the sidecars tell each other.

use std::time::Duration;

use super::{Resolver, TTL_MAX, millis, secs};
use crate::config::units::{self, DURATION_MAX, shown};
use crate::config::{Canary, Coherence, CoherenceMode, Fence, TtlCap};

/// Probes go out every quarter of it; under 10 ms a single scheduling delay would suspend every hit.
const STALENESS_MIN: Duration = Duration::from_millis(10);

/// The sidecars' channel: the same for all sidecars of an upstream, so it has a default that fits all.
const CHANNEL: &str = "nearside:invalidate";

/// More would be a load of its own, and it is held to 1 % of the commands sent anyway.
const SAMPLES_MAX: u64 = 1000;

/// More often would be a write a moment to every upstream for a figure that nobody reads so often.
const CANARY_MIN: Duration = secs(1);

impl Resolver<'_> {
    pub(super) fn coherence(&mut self) -> Coherence {
        use CoherenceMode::{Auto, Pubsub, Tracking, Ttl};
        let words = [Auto, Tracking, Pubsub, Ttl].map(|mode| (mode.as_str(), mode));
        let cap = millis(1)..=TTL_MAX;
        Coherence {
            mode: self.word("coherence.mode", &words),
            max_staleness: self.duration("coherence.max_staleness", secs(1), STALENESS_MIN..=DURATION_MAX),
            fence: self.word("coherence.fence", &[("hold", Fence::Hold), ("session", Fence::Session)]),
            channel: self.one("coherence.channel", CHANNEL.to_owned(), channel),
            sample_per_second: self.count("coherence.sample_per_second", 1, 0..=SAMPLES_MAX),
            ttl_cap: TtlCap {
                tracking: self.duration("coherence.ttl_cap.tracking", TTL_MAX, cap.clone()),
                pubsub: self.duration("coherence.ttl_cap.pubsub", secs(5), cap.clone()),
                ttl: self.duration("coherence.ttl_cap.ttl", secs(1), cap),
            },
            pubsub_atomic: self.one("coherence.pubsub_atomic", true, units::boolean),
            canary: self.one("coherence.canary", Canary::Start, canary),
        }
    }
}

/// A channel's name is any bytes for Redis. Blanks and control characters in one are a slip, and could not be typed again.
fn channel(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let what = "has blanks or control characters; write one word, for example";
        return Err(format!("{} {what} {CHANNEL}", shown(text)));
    }
    Ok(text.to_owned())
}

fn canary(text: &str) -> Result<Canary, String> {
    match text {
        // As Helm renders `off`.
        "off" | "false" => Ok(Canary::Off),
        "start" => Ok(Canary::Start),
        _ => units::duration(text, CANARY_MIN..=DURATION_MAX).map(Canary::Every).map_err(|what| {
            let unclear = what.contains("is not a duration");
            if unclear { format!("{} is not off, start or an interval, for example 60s", shown(text)) } else { what }
        }),
    }
}
