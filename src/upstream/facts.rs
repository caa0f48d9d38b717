//! What servers do differently from version to version, in one place: each fact with the release that brought it. Where
//! upstream's own words can be asked for, they are, and nothing stands here.

use super::handshake::ServerInfo;

type Release = [u32; 3];

/// From which release on something is so.
pub(crate) struct Since {
    /// The last one is the first release that kept it; those before it got it within their minor version only. Empty:
    /// no Redis.
    redis: &'static [Release],
    /// `None`: no Valkey.
    valkey: Option<Release>,
}

/// Every Valkey: it began as Redis 7.2.4.
const ALL: Option<Release> = Some([0, 0, 0]);

pub(crate) const ALWAYS: Since = Since { redis: &[[0, 0, 0]], valkey: ALL };
pub(crate) const REDIS_7_0: Since = Since { redis: &[[7, 0, 0]], valkey: ALL };
pub(crate) const REDIS_7_2: Since = Since { redis: &[[7, 2, 0]], valkey: ALL };
pub(crate) const REDIS_7_4: Since = Since { redis: &[[7, 4, 0]], valkey: Some([8, 0, 0]) };
pub(crate) const REDIS_8_0: Since = Since { redis: &[[8, 0, 0]], valkey: None };
pub(crate) const VALKEY_8_0: Since = Since { redis: &[], valkey: Some([8, 0, 0]) };

pub(crate) const CLIENT_NO_EVICT: Since = REDIS_7_0;
pub(crate) const CLIENT_NO_TOUCH: Since = REDIS_7_2;
pub(crate) const CLIENT_SETINFO: Since = REDIS_7_2;
pub(crate) const CLIENT_KILL_MAXAGE: Since = REDIS_7_4;
/// Fields of a hash can expire, which nothing signals (COHERENCE fact 29).
pub(crate) const HASH_FIELD_EXPIRY: Since = Since { redis: &[[7, 4, 0]], valkey: Some([9, 0, 0]) };
/// Pushes and confirmations of subscriptions pass CLIENT REPLY OFF and SKIP.
pub(crate) const PUSHES_UNMUTED: Since = Since { redis: &[[6, 2, 12], [7, 0, 10]], valkey: ALL };

impl Since {
    fn holds(&self, valkey: bool, version: Release) -> bool {
        if valkey {
            return self.valkey.is_some_and(|first| version >= first);
        }
        let backport = |first: &Release| version[..2] == first[..2] && version >= *first;
        self.redis.last().is_some_and(|first| version >= *first) || self.redis.iter().any(backport)
    }
}

impl ServerInfo {
    pub(crate) fn has(&self, fact: &Since) -> bool {
        let mut parts = self.version.split('.').map(|p| p.parse().unwrap_or(0));
        fact.holds(self.server == "valkey", std::array::from_fn(|_| parts.next().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_holds_from_its_release_on_and_in_the_minor_versions_it_was_brought_to() {
        let of = |server: &str, version: &str, fact: &Since| {
            let (server, version) = (server.to_owned(), version.to_owned());
            ServerInfo { server, version, ..ServerInfo::default() }.has(fact)
        };
        let unmuted = |version| of("redis", version, &PUSHES_UNMUTED);
        assert!(!unmuted("6.0.20") && !unmuted("6.2.11") && unmuted("6.2.14") && !unmuted("7.0.9"));
        assert!(unmuted("7.0.10") && unmuted("7.2.0") && unmuted("8.0.6") && of("valkey", "7.2.5", &PUSHES_UNMUTED));
        assert!(of("redis", "8.0.2", &REDIS_8_0) && !of("valkey", "9.1.2", &REDIS_8_0), "each counts its own releases");
        assert!(!of("redis", "8.0.2", &VALKEY_8_0) && of("valkey", "8.1.1", &VALKEY_8_0));
        assert!(!of("valkey", "7.2.5", &REDIS_7_4) && of("valkey", "8.0.0", &REDIS_7_4));
        assert!(!of("redis", "garbage", &REDIS_7_0) && of("redis", "garbage", &ALWAYS));
    }
}
