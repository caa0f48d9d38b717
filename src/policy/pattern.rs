//! The patterns of rules: Redis's globs with captures. `*`, `?`, `[a-z]` and `\x` are the glob's own; `{name}` takes one or
//! more bytes up to the next separator or the end, and the n-th `*` is the capture `{n}`. A literal brace is `\{`. Parsed
//! when configuration is read, matched when a key is missed or written, never on a hit.
//!
//! **One way to match.** Each `*` takes as few bytes as let the rest match, from the left; a `{name}` takes all bytes up to
//! the next separator, so it has one length at each place. Of a `*` that has been left behind nothing needs to be tried
//! again: what stands between it and the next `*` was found at the leftmost place, and starting further right it would not
//! end further left, so the rest would only have fewer bytes to match. Time is at most key times pattern, as for globs.

use std::fmt;
use std::ops::Range;

use smallvec::SmallVec;

use super::glob;

/// What ends a `{name}`, and in metrics the family of a key.
pub(crate) const SEPARATOR: u8 = b':';

/// Keys are names; a longer pattern is a mistake.
const PATTERN_MAX: usize = 512;

/// What a pattern takes out of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The n-th `*`, from 0.
    Star(u8),
    /// The n-th `{name}`, from 0.
    Name(u8),
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: Box<str>,
    /// What every key that matches begins with.
    prefix: Box<[u8]>,
    names: Box<[Box<str>]>,
    stars: u8,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// Where in a key its pattern's captures are.
#[derive(Debug, Default)]
pub(crate) struct Captures {
    stars: SmallVec<[Range<usize>; 4]>,
    names: SmallVec<[Range<usize>; 4]>,
}

impl Captures {
    /// The bytes of `slot` in the key that they were taken from.
    pub(crate) fn of<'k>(&self, slot: Slot, key: &'k [u8]) -> &'k [u8] {
        let range = match slot {
            Slot::Star(n) => self.stars.get(usize::from(n)),
            Slot::Name(n) => self.names.get(usize::from(n)),
        };
        range.and_then(|range| key.get(range.clone())).unwrap_or_default()
    }

    fn put(&mut self, slot: Slot, range: Range<usize>) {
        let (list, n) = match slot {
            Slot::Star(n) => (&mut self.stars, usize::from(n)),
            Slot::Name(n) => (&mut self.names, usize::from(n)),
        };
        if list.len() <= n {
            list.resize(n + 1, 0..0);
        }
        list[n] = range;
    }
}

/// The last `*` that was met.
struct Star {
    /// The pattern behind it.
    behind: usize,
    /// Where it begins in the key, and up to where it has taken.
    from: usize,
    to: usize,
    /// How many `*` and names stand before and with it.
    stars: u8,
    names: u8,
}

impl Pattern {
    /// The error says what is wrong with the pattern, and what would be right.
    pub(crate) fn parse(text: &str) -> Result<Pattern, String> {
        if text.is_empty() {
            return Err("is empty; * matches every key".to_owned());
        }
        if text.len() > PATTERN_MAX {
            return Err(format!("is longer than {PATTERN_MAX} bytes"));
        }
        let read = Read::all(text)?;
        Ok(Pattern {
            text: text.into(),
            prefix: read.prefix.into(),
            names: read.names.iter().map(|name| (*name).into()).collect(),
            stars: read.stars,
        })
    }

    /// `*`.
    pub(crate) fn all() -> Pattern {
        Pattern { text: "*".into(), prefix: Box::default(), names: Box::default(), stars: 1 }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn literal_prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The capture of this name, `id` or `1`.
    pub(crate) fn slot(&self, name: &str) -> Option<Slot> {
        if let Some(n) = self.names.iter().position(|known| **known == *name) {
            return Some(Slot::Name(n as u8));
        }
        let n: u8 = name.parse().ok()?;
        (1..=self.stars).contains(&n).then(|| Slot::Star(n - 1))
    }

    /// All captures as one would write them, for messages.
    pub(crate) fn slots(&self) -> String {
        let stars = (1..=self.stars).map(|n| format!("{{{n}}}"));
        let all: Vec<String> = self.names.iter().map(|name| format!("{{{name}}}")).chain(stars).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    }

    pub(crate) fn matches(&self, key: &[u8]) -> bool {
        self.walk(key, |_, _| {})
    }

    pub(crate) fn captures(&self, key: &[u8]) -> Option<Captures> {
        let mut captures = Captures::default();
        self.walk(key, |slot, range| captures.put(slot, range)).then_some(captures)
    }

    /// Whether all of `key` matches. `note` is told of every capture, of some more than once: the last time counts.
    fn walk(&self, key: &[u8], mut note: impl FnMut(Slot, Range<usize>)) -> bool {
        let pattern = self.text.as_bytes();
        let (mut p, mut k) = (0, 0);
        let (mut stars, mut names) = (0, 0);
        let mut last: Option<Star> = None;
        loop {
            if pattern.get(p) == Some(&b'*') {
                p += 1;
                note(Slot::Star(stars), k..k);
                stars += 1;
                last = Some(Star { behind: p, from: k, to: k, stars, names });
                if p == pattern.len() {
                    note(Slot::Star(stars - 1), k..key.len());
                    return true;
                }
                continue;
            }
            let taken = match pattern.get(p) {
                None if k == key.len() => return true,
                None => None,
                Some(b'{') => name(&pattern[p..], &key[k..]),
                Some(_) => key.get(k).and_then(|byte| glob::one(&pattern[p..], *byte)).map(|len| (len, 1)),
            };
            match (taken, &mut last) {
                (Some((of_pattern, of_key)), _) => {
                    if pattern[p] == b'{' {
                        note(Slot::Name(names), k..k + of_key);
                        names += 1;
                    }
                    p += of_pattern;
                    k += of_key;
                }
                (None, Some(star)) if star.to < key.len() => {
                    star.to += 1;
                    note(Slot::Star(star.stars - 1), star.from..star.to);
                    (p, k, stars, names) = (star.behind, star.to, star.stars, star.names);
                }
                (None, _) => return false,
            }
        }
    }
}

/// How many bytes of pattern and key a `{name}` at the start of `pattern` takes.
fn name(pattern: &[u8], key: &[u8]) -> Option<(usize, usize)> {
    let of_pattern = memchr::memchr(b'}', pattern)? + 1;
    let of_key = memchr::memchr(SEPARATOR, key).unwrap_or(key.len());
    (of_key > 0).then_some((of_pattern, of_key))
}

/// What one reading of a pattern says of it.
#[derive(Default)]
struct Read<'t> {
    prefix: Vec<u8>,
    /// Something that is not literal has come.
    open: bool,
    names: Vec<&'t str>,
    stars: u8,
}

impl<'t> Read<'t> {
    fn all(text: &'t str) -> Result<Read<'t>, String> {
        let mut read = Read::default();
        let mut at = 0;
        while let Some(rest) = text.as_bytes().get(at..).filter(|rest| !rest.is_empty()) {
            let first = rest[0];
            let len = match first {
                b'*' => read.star()?,
                b'{' => read.name(&text[at..])?,
                b'[' => class(rest).ok_or("has a [ without its ]; a literal one is \\[")?,
                b'\\' if rest.len() == 1 => return Err("ends with a lone \\; a literal one is \\\\".to_owned()),
                b'\\' => read.literal(rest[1]) + 1,
                b'?' => 1,
                plain => read.literal(plain),
            };
            read.open |= matches!(first, b'*' | b'{' | b'[' | b'?');
            at += len;
        }
        Ok(read)
    }

    fn literal(&mut self, byte: u8) -> usize {
        if !self.open {
            self.prefix.push(byte);
        }
        1
    }

    fn star(&mut self) -> Result<usize, String> {
        self.stars = self.stars.checked_add(1).ok_or("has too many *")?;
        Ok(1)
    }

    /// `{name}`, and that what stands behind it lets it match at all.
    fn name(&mut self, rest: &'t str) -> Result<usize, String> {
        let literal = "a literal brace is \\{";
        let Some((name, behind)) = rest[1..].split_once('}') else {
            return Err(format!("has a {{ without its }}; {literal}"));
        };
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !name.bytes().all(word) || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(format!("has {{{name}}}, which is no name of letters, digits and _; {literal}"));
        }
        if self.names.contains(&name) {
            return Err(format!("has {{{name}}} twice"));
        }
        if !behind.is_empty() && !behind.starts_with([char::from(SEPARATOR), '*']) {
            let end = char::from(SEPARATOR);
            return Err(format!("has {{{name}}}, which takes all up to the next {end}, with something else behind it"));
        }
        self.names.push(name);
        Ok(name.len() + 2)
    }
}

/// The length of the class at the start of `bytes`, if it is closed. As the glob reads it.
fn class(bytes: &[u8]) -> Option<usize> {
    let mut at = if bytes.get(1) == Some(&b'^') { 2 } else { 1 };
    loop {
        match bytes.get(at..)? {
            [b'\\', _, ..] => at += 2,
            [b']', ..] => return Some(at + 1),
            [_, b'-', _, ..] => at += 3,
            [_, ..] => at += 1,
            [] => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn taken(text: &str, key: &str, slot: &str) -> Option<String> {
        let pattern = pattern(text);
        let slot = pattern.slot(slot).unwrap_or_else(|| panic!("{text} has no {slot}"));
        let captures = pattern.captures(key.as_bytes())?;
        Some(String::from_utf8_lossy(captures.of(slot, key.as_bytes())).into_owned())
    }

    #[test]
    fn captures_are_what_stands_there() {
        for (text, key, slot, is) in [
            ("session:*", "session:abc", "1", Some("abc")),
            ("session:*", "session:", "1", Some("")),
            ("session:*", "sessions", "1", None),
            ("tenant:{id}:user:*", "tenant:42:user:7:x", "id", Some("42")),
            ("tenant:{id}:user:*", "tenant:42:user:7:x", "1", Some("7:x")),
            ("tenant:{id}:user:*", "tenant::user:7", "id", None),
            ("tenant:{id}", "tenant:42:x", "id", None),
            ("tenant:{id}*", "tenant:42:x", "1", Some(":x")),
            ("*:{last}", "a:b:c", "last", Some("c")),
            ("*:{last}", "a:b:c", "1", Some("a:b")),
            ("*:*", "a:b:c", "1", Some("a")),
            ("*:*", "a:b:c", "2", Some("b:c")),
            ("{a}:*:{b}", "x:1:2:y", "1", Some("1:2")),
            ("**", "ab", "1", Some("")),
            ("**", "ab", "2", Some("ab")),
            ("\\{user\\}:*", "{user}:1", "1", Some("1")),
            ("[{]{a}", "{x", "a", Some("x")),
            ("k?y:{a}", "key:1", "a", Some("1")),
        ] {
            assert_eq!(taken(text, key, slot).as_deref(), is, "{text} {key} {{{slot}}}");
        }
    }

    #[test]
    fn a_bad_pattern_says_what_would_be_right() {
        for (text, part) in [
            ("", "* matches every key"),
            ("a[bc", "\\["),
            ("a\\", "\\\\"),
            ("a{b", "a literal brace is \\{"),
            ("a{}", "a literal brace is \\{"),
            ("{user:1}:x", "a literal brace is \\{"),
            ("{1}", "letters, digits and _"),
            ("{a}:{a}", "twice"),
            ("{a}b", "with something else behind it"),
            ("{a}{b}", "with something else behind it"),
        ] {
            let error = Pattern::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Pattern::parse(&"x".repeat(PATTERN_MAX + 1)).is_err());
        assert_eq!(pattern("a:{b}:*").slots(), "{b}, {1}");
        assert_eq!(pattern("a").slots(), "none");
        assert_eq!(pattern("a*b*").slot("3"), None);
        assert_eq!(pattern("a*").slot("0"), None);
    }

    #[test]
    fn the_literal_prefix_ends_where_something_else_begins() {
        for (text, prefix) in
            [("a:*", "a:"), ("a", "a"), ("*", ""), ("a\\*b?", "a*b"), ("a{b}", "a"), ("x[ab]", "x"), ("é:*", "é:")]
        {
            assert_eq!(pattern(text).literal_prefix(), prefix.as_bytes(), "{text}");
        }
    }

    /// What can stand in a pattern, and how a reader without any idea of speed matches it: every length of every `*`.
    #[derive(Clone, Debug)]
    enum Piece {
        Text(&'static str),
        Any,
        Class,
        Star,
        Name,
    }

    fn reference(pieces: &[Piece], key: &[u8], at: usize, found: &mut Vec<Range<usize>>) -> bool {
        let Some((piece, rest)) = pieces.split_first() else { return at == key.len() };
        let one = |is: bool, found: &mut Vec<Range<usize>>| is && reference(rest, key, at + 1, found);
        match piece {
            Piece::Text(text) => key[at..].starts_with(text.as_bytes()) && reference(rest, key, at + text.len(), found),
            Piece::Any => one(at < key.len(), found),
            Piece::Class => one(matches!(key.get(at), Some(b'a' | b':')), found),
            Piece::Star => (at..=key.len()).any(|to| {
                let depth = found.len();
                found.push(at..to);
                let is = reference(rest, key, to, found);
                if !is {
                    found.truncate(depth);
                }
                is
            }),
            Piece::Name => {
                let to = key[at..].iter().position(|b| *b == SEPARATOR).map_or(key.len(), |n| at + n);
                let depth = found.len();
                found.push(at..to);
                let is = to > at && reference(rest, key, to, found);
                if !is {
                    found.truncate(depth);
                }
                is
            }
        }
    }

    fn piece() -> impl Strategy<Value = Piece> {
        prop_oneof![
            4 => prop::sample::select(&["a", "b", ":", "ab", "a:"][..]).prop_map(Piece::Text),
            1 => Just(Piece::Any),
            1 => Just(Piece::Class),
            3 => Just(Piece::Star),
            2 => Just(Piece::Name),
        ]
    }

    /// A `{name}` has to be followed by a separator, a `*` or nothing.
    fn written(pieces: &[Piece]) -> (Vec<Piece>, String) {
        let (mut kept, mut text) = (Vec::new(), String::new());
        for piece in pieces {
            if matches!(kept.last(), Some(Piece::Name)) && !matches!(piece, Piece::Star | Piece::Text(":")) {
                kept.push(Piece::Text(":"));
                text.push(':');
            }
            match piece {
                Piece::Text(part) => text.push_str(part),
                Piece::Any => text.push('?'),
                Piece::Class => text.push_str("[a:]"),
                Piece::Star => text.push('*'),
                Piece::Name => text.push_str(&format!("{{n{}}}", kept.len())),
            }
            kept.push(piece.clone());
        }
        (kept, text)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]
        #[test]
        fn matches_and_takes_what_trying_everything_does(
            pieces in prop::collection::vec(piece(), 1..7),
            key in "[ab:]{0,9}",
        ) {
            let (pieces, text) = written(&pieces);
            let pattern = pattern(&text);
            let mut found = Vec::new();
            let is = reference(&pieces, key.as_bytes(), 0, &mut found);
            prop_assert_eq!(pattern.matches(key.as_bytes()), is, "{} {}", text, key);
            if let Some(captures) = pattern.captures(key.as_bytes()) {
                let (mut stars, mut names) = (captures.stars.iter(), captures.names.iter());
                let ours: Vec<Range<usize>> = pieces.iter().filter_map(|piece| match piece {
                    Piece::Star => stars.next().cloned(),
                    Piece::Name => names.next().cloned(),
                    _ => None,
                }).collect();
                prop_assert_eq!(ours, found, "{} {}", text, key);
            }
        }

        /// Without braces a pattern is Redis's glob, save that Redis's finds nothing in an empty name but with `*`.
        #[test]
        fn without_names_it_is_the_glob(text in "[ab*?:\\\\^\\[\\]-]{1,8}", key in "[ab:*]{1,8}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(pattern.matches(key.as_bytes()), glob::matches(text.as_bytes(), key.as_bytes()));
            }
        }
    }
}
