//! What has brought a large reply before takes a connection of its own at once (decision 10), so that only the first one
//! delays its lane. Keys where a command names one, whole requests where it names none or several. Bounded and forgetful:
//! a key that shrinks is back on the lane after ten minutes.

use std::collections::HashMap;
use std::hash::BuildHasher;

use crate::command::table::{self, Lookup};
use crate::command::{Keys, Request, Spec};
use crate::resp::request::{Scan, Scanner};

const REMEMBERED: usize = 4096;
const FOR: u64 = 600_000_000_000;

#[derive(Default)]
pub(crate) struct Large {
    /// Hash of key or request, and until when it counts.
    until: HashMap<u64, u64, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
}

impl Large {
    pub(crate) fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// The command `raw` has a large reply.
    pub(crate) fn note(&mut self, raw: &[u8], now: u64) {
        let mut scanner = Scanner::new(raw.len(), raw.len());
        if !matches!(scanner.scan(raw), Scan::Request { .. }) {
            return;
        }
        let req = Request { raw, args: scanner.args() };
        let Lookup::Known(spec) = table::lookup(&req) else { return };
        if self.until.len() >= REMEMBERED {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < REMEMBERED {
            self.until.insert(self.hash(&req, spec), now + FOR);
        }
    }

    /// Whether this request is to be expected to have a large reply.
    pub(crate) fn has(&self, req: &Request<'_>, spec: &Spec, now: u64) -> bool {
        self.until.get(&self.hash(req, spec)).is_some_and(|until| *until > now)
    }

    fn hash(&self, req: &Request<'_>, spec: &Spec) -> u64 {
        match spec.keys {
            Keys::Range { first, last, .. }
                if i16::from(first) == i16::from(last) && req.argc() > usize::from(first) =>
            {
                self.hasher.hash_one((true, req.arg(usize::from(first))))
            }
            _ => self.hasher.hash_one((false, req.raw)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::build;

    fn raw(words: &[&[u8]]) -> Vec<u8> {
        let mut out = bytes::BytesMut::new();
        build::command(&mut out, words);
        out.to_vec()
    }

    fn has(large: &Large, words: &[&[u8]], now: u64) -> bool {
        let raw = raw(words);
        let mut scanner = Scanner::new(1 << 20, 1 << 20);
        assert!(matches!(scanner.scan(&raw), Scan::Request { .. }));
        let req = Request { raw: &raw, args: scanner.args() };
        let Lookup::Known(spec) = table::lookup(&req) else { panic!("unknown") };
        large.has(&req, spec, now)
    }

    #[test]
    fn a_key_is_remembered_for_every_command_that_names_it_alone() {
        let mut large = Large::default();
        large.note(&raw(&[b"GET", b"big"]), 1);
        assert!(has(&large, &[b"GET", b"big"], 2));
        assert!(has(&large, &[b"GETRANGE", b"big", b"0", b"-1"], 2));
        assert!(!has(&large, &[b"GET", b"small"], 2));
        assert!(!has(&large, &[b"GET", b"big"], 2 + FOR));
    }

    #[test]
    fn other_commands_are_remembered_word_for_word() {
        let mut large = Large::default();
        large.note(&raw(&[b"KEYS", b"*"]), 1);
        assert!(has(&large, &[b"KEYS", b"*"], 2));
        assert!(!has(&large, &[b"KEYS", b"a*"], 2));
    }
}
