//! Which reads the L1 may keep (R9), what each answers for a key that is not there, and why the others are never kept. A
//! property of a command's row in `table`; which of them a process does keep is its configuration's choice.

use super::{Effect, Keys, Request};
use crate::observe::reasons::Method;
use crate::resp::reply;

/// Whether a command's replies may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    Kept(Kept),
    Never(Never),
}

/// A deterministic read of one key, all of whose changes upstream signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) method: Method,
    absent: Absent,
    part: Part,
}

/// What a reply is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Something in the key: a key that is there may answer as an absent one does.
    Some,
    /// The key as a whole: only an absent key answers as one.
    Whole,
    /// The same two, of a hash: its fields may expire on their own, and no push says so (fact 29).
    Field,
    Fields,
}

/// The reply of an absent key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    Null,
    Zero,
    /// BITPOS: 0 where a zero bit is looked for, else -1.
    Bit,
    /// The empty string.
    Text,
    /// An array, set or map without elements.
    Empty,
    /// A null for each word behind the key.
    Nulls,
    /// A zero for each word behind the key.
    Zeros,
    /// LPOS: null, with COUNT an empty array. None of its forms has both.
    NullOrEmpty,
    /// TYPE's `+none`.
    Word,
}

/// Why a command's replies are never kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Never {
    NoRead,
    NoKey,
    Clock,
    Chance,
    Cursor,
    Upkeep,
    Stream,
    External,
    Several,
    Script,
    Module,
    Unlisted,
}

impl Never {
    pub(crate) fn why(self) -> &'static str {
        match self {
            Never::NoRead => "it is not a read",
            Never::NoKey => "it reads no key whose change would end the copy",
            Never::Clock => "its answer changes as time passes, and Redis does not signal that",
            Never::Chance => "its answer is left to chance",
            Never::Cursor => "the answer to a cursor depends on more than the data",
            Never::Upkeep => "it tells how upstream keeps the key, and Redis does not signal when that changes",
            Never::Stream => "Redis does not signal every change of a stream and its groups",
            Never::External => "it may read keys that it does not name, and Redis does not signal their changes for it",
            Never::Several => "it reads several keys, and copies are kept by key",
            Never::Script => "what a script reads is not known",
            Never::Module => "it is a module's, and what modules signal is not known",
            Never::Unlisted => "it is not among the reads that this version keeps",
        }
    }
}

/// A row's value where the table says nothing of its own. A read of a key has to say something: a test holds it.
pub(super) const fn otherwise(effect: Effect, keys: Keys) -> Caching {
    match (effect, keys) {
        (Effect::Read, Keys::None) => Caching::Never(Never::NoKey),
        (Effect::Read, _) => Caching::Never(Never::Unlisted),
        _ => Caching::Never(Never::NoRead),
    }
}

pub(super) const fn kept(name: &str, part: Part, absent: Absent) -> Caching {
    Caching::Kept(Kept { method: Method::of(name), absent, part })
}

impl Kept {
    /// Its replies depend on fields that may expire unheard on some servers.
    pub(crate) fn of_fields(self) -> bool {
        matches!(self.part, Part::Field | Part::Fields)
    }

    /// What this request's reply has to be for the L1 to take it.
    pub(crate) fn shape(self, req: &Request<'_>) -> Shape {
        let words = req.argc().saturating_sub(2);
        Shape { kept: self, words, for_set_bit: self.absent == Absent::Bit && words > 0 && req.arg(2) == b"1" }
    }
}

/// How one request is answered for an absent key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    kept: Kept,
    words: usize,
    for_set_bit: bool,
}

impl Shape {
    /// GET's.
    pub(crate) const GET: Shape = Shape {
        kept: Kept { method: Method::Get, absent: Absent::Null, part: Part::Whole },
        words: 0,
        for_set_bit: false,
    };

    /// R12: whether a reply and the PTTL behind it describe one state of the key, if nothing was signalled between the
    /// two. Some(true): the key is absent.
    ///
    /// PTTL -2 says that it is absent at the second's position. An absent key has one answer to a request, so a reply that
    /// is that answer is true there, also where a key that was still there gave it (a hash without the field) and has
    /// expired since. Any other reply was true of a key that is gone.
    ///
    /// PTTL -1 or more says that the key is there. To come into being it would have been written, which is signalled and
    /// would have voided the token, since the read registered the key, absent or not (fact 12). So the reply is of a key
    /// that was there. Where such a key cannot give the absent key's answer the two contradict each other (a wrong type
    /// in MGET, a clock that was set back), and nothing is taken.
    pub(crate) fn agrees(self, reply: &[u8], pttl: i64) -> Option<bool> {
        let absent = self.is_absent(reply);
        match pttl {
            -2 => absent.then_some(true),
            -1.. => (!absent || matches!(self.kept.part, Part::Some | Part::Field)).then_some(false),
            _ => None,
        }
    }

    fn is_absent(self, reply: &[u8]) -> bool {
        let each = |is: fn(&[u8]) -> bool| {
            let mut elements = reply::elements(reply);
            elements.left() == self.words && elements.all(is)
        };
        let empty = || matches!(reply, [b'*' | b'~' | b'%', b'0', ..]);
        let zero = |frame: &[u8]| reply::integer(frame) == Some(0);
        match self.kept.absent {
            Absent::Null => reply::is_null(reply),
            Absent::Zero => zero(reply),
            Absent::Bit => reply::integer(reply) == Some(if self.for_set_bit { -1 } else { 0 }),
            Absent::Text => reply::bulk(reply) == Some(b""),
            Absent::Empty => empty(),
            Absent::Nulls => each(reply::is_null),
            Absent::Zeros => each(zero),
            Absent::NullOrEmpty => reply::is_null(reply) || empty(),
            Absent::Word => reply == b"+none\r\n",
        }
    }
}

/// The commands whose replies this process keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeptCommands(u64);

const _: () = assert!(Method::COUNT <= 64);

impl KeptCommands {
    pub(crate) fn has(self, method: Method) -> bool {
        self.0 & (1 << method as usize) != 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.iter().copied().filter(move |method| self.has(*method))
    }

    /// Whether any of them reads fields of a hash.
    pub(crate) fn reads_fields(self) -> bool {
        let of_fields = |method: Method| match super::table::caching(method.as_str()) {
            Some(Caching::Kept(kept)) => kept.of_fields(),
            _ => false,
        };
        self.iter().any(of_fields)
    }
}

impl FromIterator<Method> for KeptCommands {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> KeptCommands {
        KeptCommands(methods.into_iter().fold(0, |set, method| set | 1 << method as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::table::{self, Lookup};
    use crate::resp::request::{Scan, Scanner};

    fn shape(line: &str) -> Shape {
        let mut scanner = Scanner::new(1 << 20, 1 << 20);
        assert!(matches!(scanner.scan(format!("{line}\r\n").as_bytes()), Scan::Inline { .. }), "{line}");
        let req = Request { raw: scanner.inline(), args: scanner.args() };
        let spec = match table::lookup(&req) {
            Lookup::Known(spec) => spec,
            _ => &table::JSON_GET,
        };
        let Caching::Kept(kept) = spec.caching else { panic!("{line} is never kept") };
        kept.shape(&req)
    }

    /// A request, what an absent key answers, something that a key that is there answers, and whether such a key may
    /// also give the first answer.
    const ANSWERS: &[(&str, &str, &str, bool)] = &[
        ("GET k", "_", "$1\r\nv", false),
        ("STRLEN k", ":0", ":1", true),
        ("GETRANGE k 0 -1", "$0\r\n", "$1\r\nv", true),
        ("SUBSTR k 0 -1", "$0\r\n", "$1\r\nv", true),
        ("GETBIT k 7", ":0", ":1", true),
        ("BITCOUNT k", ":0", ":9", true),
        ("BITPOS k 0", ":0", ":-1", true),
        ("BITPOS k 1", ":-1", ":0", true),
        ("EXISTS k", ":0", ":1", false),
        ("TYPE k", "+none", "+list", false),
        ("HGET k f", "_", "$1\r\nv", true),
        ("HMGET k f g", "*2\r\n_\r\n_", "*2\r\n_\r\n$1\r\nv", true),
        ("HMGET k f", "*1\r\n_", "*2\r\n_\r\n_", true),
        ("HGETALL k", "%0", "%1\r\n$1\r\nf\r\n$1\r\nv", false),
        ("HLEN k", ":0", ":1", false),
        ("HEXISTS k f", ":0", ":1", true),
        ("HKEYS k", "*0", "*1\r\n$1\r\nf", false),
        ("HVALS k", "*0", "*1\r\n$1\r\nv", false),
        ("HSTRLEN k f", ":0", ":1", true),
        ("LRANGE k 0 -1", "*0", "*1\r\n$1\r\nv", true),
        ("LLEN k", ":0", ":1", false),
        ("LINDEX k 0", "_", "$1\r\nv", true),
        ("LPOS k v", "_", ":0", true),
        ("LPOS k v COUNT 0", "*0", "*1\r\n:0", true),
        ("SMEMBERS k", "~0", "~1\r\n$1\r\nm", false),
        ("SISMEMBER k m", ":0", ":1", true),
        ("SMISMEMBER k m n", "*2\r\n:0\r\n:0", "*2\r\n:0\r\n:1", true),
        ("SCARD k", ":0", ":1", false),
        ("ZRANGE k 0 -1", "*0", "*1\r\n$1\r\nm", true),
        ("ZREVRANGE k 0 -1", "*0", "*1\r\n$1\r\nm", true),
        ("ZRANGEBYSCORE k 0 1", "*0", "*1\r\n$1\r\nm", true),
        ("ZREVRANGEBYSCORE k 1 0", "*0", "*1\r\n$1\r\nm", true),
        ("ZRANGEBYLEX k - +", "*0", "*1\r\n$1\r\nm", true),
        ("ZREVRANGEBYLEX k + -", "*0", "*1\r\n$1\r\nm", true),
        ("ZSCORE k m", "_", ",1.5", true),
        ("ZMSCORE k m n", "*2\r\n_\r\n_", "*2\r\n,1\r\n_", true),
        ("ZCARD k", ":0", ":1", false),
        ("ZCOUNT k 0 1", ":0", ":1", true),
        ("ZLEXCOUNT k - +", ":0", ":1", true),
        ("ZRANK k m", "_", ":0", true),
        ("ZREVRANK k m", "_", ":0", true),
        ("JSON.GET k", "_", "$2\r\n{}", true),
    ];

    #[test]
    fn a_reply_and_its_pttl_describe_one_state_or_are_not_taken() {
        for (request, absent, there, both) in ANSWERS {
            let shape = shape(request);
            let agrees = |reply: &str, pttl| shape.agrees(format!("{reply}\r\n").as_bytes(), pttl);
            assert_eq!(agrees(absent, -2), Some(true), "{request}");
            assert_eq!(agrees(there, -2), None, "{request}: of a key that is gone");
            for pttl in [-1, 0, 5000] {
                assert_eq!(agrees(there, pttl), Some(false), "{request}");
                assert_eq!(agrees(absent, pttl), both.then_some(false), "{request}");
            }
            assert_eq!(agrees(absent, -3), None, "{request}");
        }
        for method in Method::ALL.iter().filter(|method| **method != Method::Mget) {
            let asked = ANSWERS.iter().any(|(request, ..)| request.split(' ').next() == Some(method.as_str()));
            assert!(asked, "{method:?} is not among the answers");
        }
    }

    #[test]
    fn every_read_of_a_key_says_whether_it_may_be_kept() {
        for row in table::all().filter(|row| row.effect == Effect::Read) {
            match row.caching {
                Caching::Kept(kept) => assert!(kept.method.as_str().eq_ignore_ascii_case(row.name), "{}", row.name),
                Caching::Never(Never::NoKey) => assert_eq!(row.keys, Keys::None, "{}", row.name),
                Caching::Never(never) => assert_ne!(never, Never::NoRead, "{}", row.name),
            }
        }
        let kept = table::all().filter(|row| matches!(row.caching, Caching::Kept(_))).count();
        assert_eq!(kept + 1, Method::COUNT, "JSON.GET alone is no row");
        let of_fields = |row: &&crate::command::Spec| matches!(row.caching, Caching::Kept(kept) if kept.of_fields());
        let hashes: Vec<&str> = table::all().filter(of_fields).map(|row| row.name).collect();
        assert!(hashes.iter().all(|name| name.starts_with('h')) && hashes.len() == 8, "{hashes:?}");
    }
}
