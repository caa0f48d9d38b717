//! Which keys of a rule are cached and which are its control group: a number from a key, the same on every sidecar, on
//! every machine and in every version, because two sidecars that disagreed would measure nothing. So the hash is written
//! out here and held by test vectors; a library's may change. It is asked on misses only: an entry knows its arm.
//!
//! The hash is FNV-1a with 64 bits over the key, started at the mixed hash of the seed (so that seed `a` with key `bc` is
//! not seed `ab` with key `c`), and mixed by the finalizer of MurmurHash3, without which the high bits of short keys would
//! hardly differ. It is no defence: whoever chooses key names can choose their side.

/// Points on the line that a rule's percentage cuts: a hundredth of a percent each.
pub(crate) const POINTS: u16 = 10_000;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The place of `key` on the line of the rule with this seed, below [`POINTS`]. A key is cached while its point is below
/// the rule's share: what is cached at 1 % is cached at every larger share.
pub(crate) fn point(seed: &[u8], key: &[u8]) -> u16 {
    scale(hash(seed, key), POINTS.into()) as u16
}

/// Which of `n` variants `key` has: not what decides its point, so a variant has the same share of keys at every
/// percentage. 0 where there is nothing to choose from.
pub(crate) fn variant(seed: &[u8], key: &[u8], n: usize) -> usize {
    scale(mix(hash(seed, key) ^ FNV_OFFSET), n as u64) as usize
}

fn hash(seed: &[u8], key: &[u8]) -> u64 {
    mix(fnv(mix(fnv(FNV_OFFSET, seed)), key))
}

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |h, byte| (h ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// fmix64 of MurmurHash3 (Appleby, public domain): every bit of the input flips every bit of the output half of the time.
fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// The hash as a number below `n`: a multiplication, because the high bits are as good as any and it needs no division.
fn scale(hash: u64, n: u64) -> u64 {
    ((u128::from(hash) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rewritten by nobody: a sidecar of another version would disagree.
    const GOLDEN: [(&str, &str, u16, usize); 8] = [
        ("", "", 7775, 108),
        ("sessions", "", 4596, 720),
        ("sessions", "session:1", 9661, 663),
        ("sessions", "session:2", 8957, 554),
        ("session", "ssession:2", 3293, 853),
        ("chat", "user:42:reply:0f9a", 4855, 589),
        ("chat", "\u{1f980}", 6310, 202),
        ("flags", "flag:a-rather-long-name-of-a-feature-that-somebody-wants-to-roll-out", 3000, 745),
    ];

    #[test]
    fn the_hash_is_the_same_for_ever() {
        let of = |(seed, key, ..): (&'static str, &'static str, u16, usize)| {
            let (s, k) = (seed.as_bytes(), key.as_bytes());
            (seed, key, point(s, k), variant(s, k, 1000))
        };
        assert_eq!(GOLDEN.map(of), GOLDEN);
        // FNV-1a's own published vectors, and fmix64's fixed point.
        assert_eq!(fnv(FNV_OFFSET, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0), 0);
    }

    fn keys(n: u32) -> impl Iterator<Item = Vec<u8>> {
        (0..n).map(|i| format!("user:{i}").into_bytes())
    }

    /// A binomial count of 100,000 keys is within 4.5 standard deviations of what is expected.
    fn is_share(count: usize, share: f64) -> bool {
        let n = 100_000.0;
        (count as f64 - n * share).abs() < 4.5 * (n * share * (1.0 - share)).sqrt()
    }

    #[test]
    fn a_share_of_the_keys_is_that_share() {
        for percent in [1, 10, 25, 50, 99] {
            let inside = keys(100_000).filter(|key| point(b"r", key) < percent * 100).count();
            assert!(is_share(inside, f64::from(percent) / 100.0), "{percent} % took {inside} of 100,000");
        }
    }

    #[test]
    fn variants_share_equally_at_every_percentage_and_rules_are_independent() {
        for share in [POINTS / 2, POINTS] {
            for n in [2, 3, 7] {
                let mut counts = vec![0; n];
                keys(100_000)
                    .filter(|key| point(b"r", key) < share)
                    .for_each(|key| counts[variant(b"r", &key, n)] += 1);
                let each = f64::from(share) / f64::from(POINTS) / n as f64;
                assert!(counts.iter().all(|count| is_share(*count, each)), "{counts:?} of {n} at {share}");
            }
        }
        let both = keys(100_000).filter(|key| point(b"r", key) < POINTS / 2 && point(b"s", key) < POINTS / 2).count();
        assert!(is_share(both, 0.25), "{both}");
    }

    #[test]
    fn nothing_to_choose_from_is_the_first() {
        assert_eq!((variant(b"r", b"k", 0), variant(b"r", b"k", 1)), (0, 0));
        assert!(keys(10_000).all(|key| point(b"r", &key) < POINTS && variant(b"r", &key, 3) < 3));
    }
}
