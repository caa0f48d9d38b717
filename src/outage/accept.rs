//! Which writes may be acknowledged while upstream is gone: a pure decision over one command. What it does to the data and
//! what is answered is the local engine's affair; here it is only asked what must be known of the keys beforehand, so that
//! reply and effect are upstream's own.

use crate::command::Request;

/// What a write rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Its reply and its effect are the same whatever upstream holds.
    Nothing,
    /// The state of every key it names.
    Keys,
}

/// What this write rests on; none: it cannot be done without an upstream.
pub(crate) fn needs(name: &str, req: &Request<'_>) -> Option<Needs> {
    match name {
        // A word that SET does not know is an error whatever the key holds.
        "set" => Some(match (3..req.argc()).any(|i| ["nx", "xx", "get", "keepttl"].iter().any(|w| req.is(i, w))) {
            true => Needs::Keys,
            false => Needs::Nothing,
        }),
        "setex" | "psetex" | "mset" => Some(Needs::Nothing),
        "del" | "unlink" | "expire" | "pexpire" | "expireat" | "pexpireat" | "persist" | "setnx" | "msetnx"
        | "getset" | "getdel" | "getex" | "append" | "setrange" | "incr" | "decr" | "incrby" | "decrby"
        | "incrbyfloat" | "rename" | "renamenx" => Some(Needs::Keys),
        // Another database is another queue.
        "copy" if !(3..req.argc()).any(|i| req.is(i, "db")) => Some(Needs::Keys),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::request::{Scan, Scanner};

    fn asked(words: &[&str]) -> Option<Needs> {
        let mut raw = bytes::BytesMut::new();
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        crate::resp::build::command(&mut raw, &words);
        let mut scanner = Scanner::new(1 << 20, 1 << 20);
        assert!(matches!(scanner.scan(&raw), Scan::Request { .. }));
        let name = String::from_utf8_lossy(words[0]).to_lowercase();
        needs(&name, &Request { raw: &raw, args: scanner.args() })
    }

    #[test]
    fn only_what_says_the_same_to_every_state_needs_none() {
        for words in [
            &["SET", "k", "v"][..],
            &["SET", "k", "v", "EX", "5"],
            &["SET", "k", "v", "pxat", "5"],
            &["SET", "nx", "get"],
            &["SET", "k", "v", "NONSENSE"],
            &["SETEX", "k", "5", "v"],
            &["PSETEX", "k", "5", "v"],
            &["MSET", "k", "v", "l", "w"],
        ] {
            assert_eq!(asked(words), Some(Needs::Nothing), "{words:?}");
        }
        for words in [
            &["SET", "k", "v", "NX"][..],
            &["SET", "k", "v", "EX", "5", "xx"],
            &["SET", "k", "v", "GET"],
            &["SET", "k", "v", "KeepTTL"],
            &["DEL", "k"],
            &["INCR", "k"],
            &["EXPIRE", "k", "5"],
            &["GETEX", "k"],
            &["RENAME", "k", "l"],
            &["COPY", "k", "l", "REPLACE"],
        ] {
            assert_eq!(asked(words), Some(Needs::Keys), "{words:?}");
        }
        for words in [
            &["LPUSH", "k", "v"][..],
            &["COPY", "k", "l", "DB", "1"],
            &["MOVE", "k", "1"],
            &["FLUSHDB"],
            &["HSET", "k", "f", "v"],
            &["EVAL", "return 1", "0"],
            &["SETBIT", "k", "1", "1"],
        ] {
            assert_eq!(asked(words), None, "{words:?}");
        }
    }

    /// What is accepted is the engine's: it has all of it (`worker::held` asks it).
    #[test]
    fn every_one_of_them_is_a_write_of_the_table() {
        use crate::command::{Effect, table};
        for name in ["set", "mset", "del", "getex", "copy", "incrbyfloat"] {
            assert_eq!(table::by_name(name.as_bytes()).map(|spec| spec.effect), Some(Effect::Write), "{name}");
        }
    }
}
