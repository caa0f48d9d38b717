//! Whether one pattern takes every key of another, so that a rule which is never asked can be told at start. Exact where it
//! says yes. Runs over configuration only.

use std::collections::HashSet;

use super::glob;
use super::pattern::{Pattern, SEPARATOR};

/// Pairs of states that are looked at for one pair of patterns. People's patterns need a few dozen; beyond this the answer
/// is "not known", which is no.
const STATES_MAX: usize = 2048;

/// A set of bytes.
type Bytes = [bool; 256];

enum Token {
    One(Box<Bytes>),
    /// Any number of these bytes.
    Many(Box<Bytes>),
}

/// Positions in a pattern's tokens; the one behind the last accepts.
type States = Vec<bool>;

/// Whether every key that `second` matches is one that `first` matches.
pub(crate) fn covers(first: &Pattern, second: &Pattern) -> bool {
    // Nearly all pairs end here.
    if !second.literal_prefix().starts_with(first.literal_prefix()) {
        return false;
    }
    let (a, b) = (tokens(first.text()), tokens(second.text()));
    let alphabet = alphabet(&a, &b);
    let mut seen: HashSet<(States, States)> = HashSet::new();
    let mut open = vec![(start(&a), start(&b))];
    while let Some((of_a, of_b)) = open.pop() {
        if of_b[b.len()] && !of_a[a.len()] {
            return false;
        }
        if !of_b.contains(&true) || !seen.insert((of_a.clone(), of_b.clone())) {
            continue;
        }
        if seen.len() > STATES_MAX {
            return false;
        }
        open.extend(alphabet.iter().map(|byte| (step(&a, &of_a, *byte), step(&b, &of_b, *byte))));
    }
    true
}

/// A `{name}` takes all bytes up to the next separator; because only that, a `*` or the end may stand behind it, the keys
/// are the same as if it took one or more bytes that are none.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'*' => out.push(Token::Many(Box::new([true; 256]))),
            b'{' => {
                let mut no_separator = [true; 256];
                no_separator[usize::from(SEPARATOR)] = false;
                out.push(Token::One(Box::new(no_separator)));
                out.push(Token::Many(Box::new(no_separator)));
            }
            _ => out.push(Token::One(Box::new(std::array::from_fn(|b| glob::one(rest, b as u8).is_some())))),
        }
        at += length(rest);
    }
    out
}

/// Bytes of the pattern that its first token takes.
fn length(rest: &[u8]) -> usize {
    match rest[0] {
        b'*' => 1,
        b'{' => rest.iter().position(|b| *b == b'}').map_or(rest.len(), |n| n + 1),
        _ => (0..=255).find_map(|byte| glob::one(rest, byte)).unwrap_or(rest.len()),
    }
}

/// One byte of each kind that no token tells apart.
fn alphabet(a: &[Token], b: &[Token]) -> Vec<u8> {
    let mut kinds = HashSet::new();
    let kind = |byte: u8| -> Vec<bool> { a.iter().chain(b).map(|token| token.has(byte)).collect() };
    (0..=255).filter(|byte| kinds.insert(kind(*byte))).collect()
}

fn start(tokens: &[Token]) -> States {
    let mut states = vec![false; tokens.len() + 1];
    enter(tokens, &mut states, 0);
    states
}

/// A token that may take nothing is left at once as well.
fn enter(tokens: &[Token], states: &mut States, mut at: usize) {
    states[at] = true;
    while let Some(Token::Many(_)) = tokens.get(at) {
        at += 1;
        states[at] = true;
    }
}

fn step(tokens: &[Token], from: &States, byte: u8) -> States {
    let mut to = vec![false; from.len()];
    for (at, token) in tokens.iter().enumerate().filter(|(at, token)| from[*at] && token.has(byte)) {
        match token {
            Token::One(_) => enter(tokens, &mut to, at + 1),
            Token::Many(_) => enter(tokens, &mut to, at),
        }
    }
    to
}

impl Token {
    fn has(&self, byte: u8) -> bool {
        match self {
            Token::One(bytes) | Token::Many(bytes) => bytes[usize::from(byte)],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covered(first: &str, second: &str) -> bool {
        let parse = |text: &str| Pattern::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        covers(&parse(first), &parse(second))
    }

    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        for (first, second) in [
            ("*", "user:*"),
            ("user:*", "user:*"),
            ("user:*", "user:{id}:name"),
            ("user:{id}:*", "user:{a}:{b}"),
            ("u*", "user:?"),
            ("*:*", "a:{b}"),
            ("[ab]:*", "a:*"),
            ("{a}", "[xy]z"),
            ("a*b*c", "a*bxc"),
        ] {
            assert!(covered(first, second), "{first} {second}");
        }
        for (first, second) in [
            ("user:*", "*"),
            ("user:{id}", "user:*"),
            ("user:{id}:name", "user:*"),
            ("user:?", "user:{id}"),
            ("a:*", "[ab]:*"),
            ("session:*", "user:*"),
            ("a*b*c", "a*c"),
        ] {
            assert!(!covered(first, second), "{first} {second}");
        }
    }

    proptest! {
        /// What is said to be covered is: no key shows otherwise.
        #[test]
        fn yes_is_true(
            first in "([ab:*?]|\\{x\\}:){1,5}",
            second in "([ab:*?]|\\{x\\}:){1,5}",
            keys in prop::collection::vec("[ab:]{1,6}", 40),
        ) {
            let (Ok(first), Ok(second)) = (Pattern::parse(&first), Pattern::parse(&second)) else { return Ok(()) };
            if covers(&first, &second) {
                for key in keys {
                    let key = key.as_bytes();
                    prop_assert!(!second.matches(key) || first.matches(key), "{:?} {:?} {:?}", first, second, key);
                }
            }
        }
    }
}
