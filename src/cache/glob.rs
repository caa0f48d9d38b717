//! Redis's glob, byte for byte as KEYS and SCAN MATCH read it (`stringmatchlen` of Redis 7, case kept), with its oddities:
//! an unclosed class counts, `[a-]` is a range up to `]`, bytes compare as signed. Time is at most key times pattern, where
//! Redis's own recursion needed a limit: each token but `*` takes one byte, so only the last `*` is ever gone back to.

/// Whether the whole of `text` matches `pattern`.
pub(crate) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // KEYS and SCAN do not even look at it. Otherwise Redis's glob finds nothing in an empty name.
    if pattern == b"*" {
        return true;
    }
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and the text's byte that it was last tried at.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if t == text.len() {
            return pattern[p..].iter().all(|b| *b == b'*');
        }
        let taken = match pattern.get(p) {
            Some(b'*') => {
                p += pattern[p..].iter().take_while(|b| **b == b'*').count();
                if p == pattern.len() {
                    return true;
                }
                star = Some((p, t));
                continue;
            }
            Some(_) => one(&pattern[p..], text[t]),
            None => None,
        };
        match (taken, star) {
            (Some(len), _) => {
                p += len;
                t += 1;
            }
            (None, Some((behind, at))) => {
                (p, t) = (behind, at + 1);
                star = Some((p, t));
                if t == text.len() {
                    return false;
                }
            }
            (None, None) => return false,
        }
    }
}

/// The length of the token at the start of `pattern`, which is no `*`, if it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', ..] => class(pattern, byte),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [plain, ..] => (*plain == byte).then_some(1),
        [] => None,
    }
}

fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let not = pattern.get(1) == Some(&b'^');
    let mut at = if not { 2 } else { 1 };
    let mut found = false;
    let end = loop {
        match &pattern[at.min(pattern.len())..] {
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => break at + 1,
            // Not closed: the class ends with the pattern.
            [] => break pattern.len(),
            [from, b'-', to, ..] => {
                let (from, to, byte) = (*from as i8, *to as i8, byte as i8);
                found |= (from.min(to)..=from.max(to)).contains(&byte);
                at += 3;
            }
            [plain, ..] => {
                found |= *plain == byte;
                at += 1;
            }
        }
    };
    (found != not).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::real::Server;
    use crate::resp::reply::{bulk, elements};

    #[test]
    fn as_people_write_them() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("**", "", false),
            ("", "", true),
            ("", "a", false),
            ("user:*", "user:1", true),
            ("user:*", "user:", true),
            ("user:*", "users", false),
            ("*:1", "a:b:1", true),
            ("h?llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[a-b]llo", "hbllo", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[", "a", false),
            ("[^", "a", true),
            ("[a-]", "^", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), is, "{pattern} {text}");
        }
    }

    /// 50 stars over 10,000 bytes that nearly match would take Redis's older recursion for ever.
    #[test]
    fn many_stars_end() {
        assert!(!matches(&b"a*".repeat(50).into_iter().chain(*b"b").collect::<Vec<_>>(), &[b'a'; 10_000]));
    }

    /// Against KEYS of a real server: random patterns out of all that is special, over random names of the same bytes.
    #[test]
    fn matches_what_redis_matches() {
        let server = Server::start();
        let mut redis = server.connect();
        const BYTES: &[u8] = b"ab*?[]^-\\\x00\x80\xff";
        let mut random = fastrand();
        let mut word =
            |max: usize| -> Vec<u8> { (0..random() % (max + 1)).map(|_| BYTES[random() % BYTES.len()]).collect() };
        let names: Vec<Vec<u8>> = (0..300).map(|_| word(6)).collect();
        for name in &names {
            redis.call(&[b"SET", name, b"1"]);
        }
        let mut found = 0;
        for _ in 0..4000 {
            let pattern = word(8);
            let keys = redis.call(&[b"KEYS", &pattern]);
            let mut theirs: Vec<Vec<u8>> = elements(&keys).filter_map(bulk).map(<[u8]>::to_vec).collect();
            let mut ours: Vec<Vec<u8>> = names.iter().filter(|name| matches(&pattern, name)).cloned().collect();
            theirs.sort();
            ours.sort();
            ours.dedup();
            assert_eq!(ours, theirs, "pattern {:?}", pattern.escape_ascii().to_string());
            found += ours.len();
        }
        assert!(found > 2000, "the comparison has compared hardly anything: {found}");
    }

    /// xorshift: the same words in every run.
    fn fastrand() -> impl FnMut() -> usize {
        let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
        move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 33) as usize
        }
    }
}
