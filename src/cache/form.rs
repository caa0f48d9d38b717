//! Replies that are kept under a whole command (`LRANGE l 0 9`), beside GET's. A form is one command's words; a change of
//! the key ends all of its forms at once, because they live in the key's one entry of the store.

use std::fmt::Write;
use std::sync::Arc;

use super::entry::{Entry, Forms};
use crate::command::Request;
use crate::observe::reasons::Method;

/// Forms of one key that a profile keeps. A client that asks for ever other ranges of a list would else make one entry
/// grow without end, and a look-up, which walks over them, as long.
const FORMS_MAX: usize = 64;

/// The bytes of those replies and commands together: four times the largest reply that is kept at all.
const FORM_BYTES_MAX: usize = 4 << 20;

/// What a form takes beside its words and its reply: two counted allocations, a third for the reply, its place in the
/// list, and what the allocator adds. Measured: 343 bytes for a reply of 100, 337 weighed (`forms_weigh_what_they_take`).
const FORM_OVERHEAD: usize = 96;

/// The question that a reply answers: the command, and its words behind the key byte for byte. That `withscores` and
/// `WITHSCORES` are two questions costs a copy and is never wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FormId(Arc<[u8]>);

/// The length of a word stands before it, so that `a bc` is not `ab c`.
const LENGTH: usize = size_of::<u32>();

impl FormId {
    /// The key is argument 1; no command of the lane is longer than a `u32` can say.
    pub(crate) fn of(method: Method, req: &Request<'_>) -> FormId {
        let words = (2..req.argc()).map(|i| req.arg(i));
        let mut id = Vec::with_capacity(1 + words.clone().map(|word| LENGTH + word.len()).sum::<usize>());
        id.push(method as u8);
        for word in words {
            id.extend_from_slice(&length(word));
            id.extend_from_slice(word);
        }
        FormId(id.into())
    }

    fn is_of(&self, method: Method, req: &Request<'_>) -> bool {
        let mut rest = &self.0[..];
        let mut take = |part: &[u8]| rest.strip_prefix(part).map(|tail| rest = tail).is_some();
        take(&[method as u8])
            && (2..req.argc()).all(|i| take(&length(req.arg(i))) && take(req.arg(i)))
            && rest.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    #[cfg(test)]
    pub(crate) fn for_test(method: Method) -> FormId {
        FormId(Arc::new([method as u8]))
    }

    pub(crate) fn method(&self) -> Method {
        Method::ALL[usize::from(self.0[0])]
    }

    /// The words behind the key.
    pub(crate) fn words(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[1..];
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first_chunk()?;
            let (word, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
            rest = tail;
            Some(word)
        })
    }

    /// The command without its key, as a person would write it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.method().as_str().to_owned();
        for word in self.words() {
            let _ = write!(text, " {}", String::from_utf8_lossy(word));
        }
        text
    }
}

fn length(word: &[u8]) -> [u8; LENGTH] {
    (word.len() as u32).to_le_bytes()
}

/// One kept reply, whole, as the lane read it.
#[derive(Debug)]
pub(crate) struct FormEntry {
    pub(crate) id: FormId,
    pub(crate) entry: Entry,
}

impl FormEntry {
    fn payload(&self) -> usize {
        self.id.len() + self.entry.value.wire_len()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<FormEntry>() + FORM_OVERHEAD + self.payload()
    }
}

/// What had to go for a form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Displaced {
    /// For room.
    pub(crate) oldest: usize,
    /// Nobody would ever have been served them: a lost connection's, or from before a flush.
    pub(crate) void: usize,
}

impl Forms {
    /// The entry that a lane connection numbered `epoch` may answer this request from at `now`.
    pub(crate) fn usable(&self, of: Method, req: &Request<'_>, at: (u64, u64, u64)) -> Option<&Entry> {
        let (epoch, flush_gen, now) = at;
        let form = self.others.iter().find(|form| form.entry.epoch == epoch && form.id.is_of(of, req))?;
        form.entry.may_serve(epoch, flush_gen, now).then_some(&form.entry)
    }

    /// This key's forms with `form` in place of what the same lane stored before under the same words.
    pub(super) fn with_form(&self, form: FormEntry) -> (Forms, Displaced) {
        let new = &form.entry;
        let mut displaced = Displaced::default();
        let mut worth = |old: &Entry| {
            let void = old.is_void_beside(new);
            displaced.void += usize::from(void);
            !void
        };
        let entries = self.entries.iter().filter(|old| worth(old)).cloned().collect();
        let replaced = |old: &FormEntry| old.entry.lane == new.lane && old.id == form.id;
        let mut others: Vec<Arc<FormEntry>> =
            self.others.iter().filter(|old| !replaced(old) && worth(&old.entry)).cloned().collect();
        displaced.oldest = make_room(&mut others, &form);
        others.push(Arc::new(form));
        (Forms { entries, others: others.into(), marks: None }, displaced)
    }
}

/// Drops the oldest forms of `form`'s lane until there is room for it; returns how many.
fn make_room(others: &mut Vec<Arc<FormEntry>>, form: &FormEntry) -> usize {
    let own = |old: &FormEntry| old.entry.lane == form.entry.lane;
    let of_lane = || others.iter().filter(|old| own(old));
    let mut count = of_lane().count() + 1;
    let mut bytes = of_lane().map(|old| old.payload()).sum::<usize>() + form.payload();
    let before = others.len();
    others.retain(|old| {
        let goes = own(old) && (count > FORMS_MAX || bytes > FORM_BYTES_MAX);
        if goes {
            count -= 1;
            bytes -= old.payload();
        }
        !goes
    });
    before - others.len()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{EPOCH, HOUR, entry, small};
    use super::*;
    use crate::cache::{L1, Value};
    use crate::observe::clock;
    use crate::resp::build;
    use crate::resp::request::{Scan, Scanner};

    /// Calls `f` with the request of these words.
    fn with<T>(words: &[&[u8]], f: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut raw = bytes::BytesMut::new();
        build::command(&mut raw, words);
        let mut scanner = Scanner::new(1 << 20, 1 << 22);
        assert!(matches!(scanner.scan(&raw), Scan::Request { .. }));
        f(&Request { raw: &raw, args: scanner.args() })
    }

    fn id(method: Method, words: &[&[u8]]) -> FormId {
        with(words, |req| FormId::of(method, req))
    }

    /// A reply of 100 bytes.
    pub(in crate::cache) fn lrange(l1: &L1, stop: usize) -> FormEntry {
        of_lane(l1, 0, stop, &[b'x'; 100])
    }

    /// `LRANGE l 0 <stop>` as read by a lane.
    fn of_lane(l1: &L1, lane: u32, stop: usize, reply: &[u8]) -> FormEntry {
        let stop = stop.to_string();
        let id = id(Method::Lrange, &[b"LRANGE", b"l", b"0", stop.as_bytes()]);
        FormEntry { id, entry: Entry { value: Value::Bulk(reply.into()), ..entry(l1, lane, b"") } }
    }

    pub(in crate::cache) fn store(l1: &L1, key: &[u8], form: FormEntry) -> Displaced {
        let token = l1.token(key, EPOCH).expect("nothing pending");
        l1.insert_form(key, &token, form).expect("stored")
    }

    fn served(l1: &L1, lane: u64, stop: usize) -> Option<Vec<u8>> {
        let forms = l1.get(b"l")?;
        let stop = stop.to_string();
        with(&[b"lrange", b"l", b"0", stop.as_bytes()], |req| {
            let found = forms.usable(Method::Lrange, req, (EPOCH + lane, l1.flush_gen(), clock::now()));
            found.map(|entry| entry.value.frame().to_vec())
        })
    }

    #[test]
    fn two_questions_are_one_only_if_every_byte_agrees() {
        let questions: &[(Method, &[&[u8]])] = &[
            (Method::Lrange, &[b"LRANGE", b"k", b"0", b"1"]),
            (Method::Lrange, &[b"LRANGE", b"k", b"01", b""]),
            (Method::Lrange, &[b"LRANGE", b"k", b"0", b"1", b""]),
            (Method::Lrange, &[b"LRANGE", b"k", b"0"]),
            (Method::Zrange, &[b"ZRANGE", b"k", b"0", b"1"]),
            (Method::Zrange, &[b"ZRANGE", b"k", b"0", b"1", b"withscores"]),
            (Method::Zrange, &[b"ZRANGE", b"k", b"0", b"1", b"WITHSCORES"]),
            (Method::Llen, &[b"LLEN", b"k"]),
            (Method::Sismember, &[b"SISMEMBER", b"k", b"\x00\x00\x00\x00"]),
            (Method::Sismember, &[b"SISMEMBER", b"k", b"\x01\x00\x00\x00a"]),
        ];
        for (i, (method, words)) in questions.iter().enumerate() {
            let asked = id(*method, words);
            for (j, (other, others)) in questions.iter().enumerate() {
                assert_eq!(with(others, |req| asked.is_of(*other, req)), i == j, "{words:?} {others:?}");
                assert_eq!(asked == id(*other, others), i == j);
            }
        }
        // The name's case and the key are no part of it: the key is where the form lives.
        assert_eq!(id(Method::Llen, &[b"LLEN", b"k"]), id(Method::Llen, &[b"llen", b"other"]));
        let asked = id(Method::Lrange, &[b"lrange", b"k", b"0", b"-1"]);
        assert_eq!(asked.text(), "LRANGE 0 -1");
        assert_eq!((asked.method(), asked.words().collect::<Vec<_>>()), (Method::Lrange, vec![&b"0"[..], b"-1"]));
    }

    #[test]
    fn one_change_drops_all_forms_of_a_key_and_gets_entry() {
        let l1 = small();
        store(&l1, b"l", of_lane(&l1, 0, 1, b"*0\r\n"));
        store(&l1, b"l", of_lane(&l1, 0, 2, b"*1\r\n:1\r\n"));
        let token = l1.token(b"l", EPOCH).expect("nothing pending");
        l1.insert(b"l", &token, entry(&l1, 0, b"x")).expect("stored");
        assert_eq!(served(&l1, 0, 1).as_deref(), Some(&b"*0\r\n"[..]));
        assert_eq!(served(&l1, 0, 2).as_deref(), Some(&b"*1\r\n:1\r\n"[..]));
        assert_eq!((served(&l1, 0, 3), served(&l1, 1, 1)), (None, None));
        assert_eq!(l1.invalidate(b"l"), 3);
        assert!(l1.get(b"l").is_none());
        store(&l1, b"l", of_lane(&l1, 0, 1, b"*0\r\n"));
        l1.end_write(l1.begin_write(b"l"));
        assert!(l1.get(b"l").is_none());
    }

    #[test]
    fn a_form_is_served_until_its_deadline_to_its_own_epoch_and_flush() {
        let l1 = small();
        store(&l1, b"l", of_lane(&l1, 0, 1, b"*0\r\n"));
        let forms = l1.get(b"l").expect("stored");
        let deadline = forms.others[0].entry.deadline;
        let at = |at| with(&[b"LRANGE", b"l", b"0", b"1"], |req| forms.usable(Method::Lrange, req, at).is_some());
        assert!(at((EPOCH, 0, deadline - 1)));
        assert!(!at((EPOCH, 0, deadline)) && !at((EPOCH + 1, 0, deadline - 1)) && !at((EPOCH, 1, deadline - 1)));
    }

    #[test]
    fn a_newer_reply_takes_the_place_of_the_older_and_the_oldest_go_for_room() {
        let l1 = small();
        for stop in 0..FORMS_MAX {
            assert_eq!(store(&l1, b"l", of_lane(&l1, 0, stop, b"*0\r\n")), Displaced::default());
        }
        assert_eq!(store(&l1, b"l", of_lane(&l1, 0, 0, b"*-1\r\n")), Displaced::default(), "the same question again");
        store(&l1, b"l", of_lane(&l1, 1, 0, b"*0\r\n"));
        assert_eq!(store(&l1, b"l", of_lane(&l1, 0, FORMS_MAX, b"*0\r\n")), Displaced { oldest: 1, void: 0 });
        assert_eq!(served(&l1, 0, 0).as_deref(), Some(&b"*-1\r\n"[..]), "asked again, so not the oldest");
        assert_eq!(served(&l1, 0, 1), None);
        assert!(served(&l1, 1, 0).is_some(), "another profile's are its own");
        assert_eq!(l1.get(b"l").expect("stored").others.len(), FORMS_MAX + 1);
    }

    #[test]
    fn large_replies_leave_room_for_few() {
        let l1 = small();
        let reply = vec![b'x'; FORM_BYTES_MAX / 4];
        let stored: Vec<Displaced> = (0..5)
            .map(|stop| {
                let (forms, displaced) = match l1.get(b"l") {
                    Some(old) => old.with_form(of_lane(&l1, 0, stop, &reply)),
                    None => Forms::default().with_form(of_lane(&l1, 0, stop, &reply)),
                };
                l1.store.insert(b"l"[..].into(), Arc::new(forms));
                displaced
            })
            .collect();
        // The words count as well, so four quarters are a little too much.
        assert_eq!(stored.iter().map(|d| d.oldest).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn what_a_lost_connection_or_a_flush_has_left_goes_with_the_next_reading() {
        let l1 = small();
        let stale =
            |form: FormEntry, entry: Entry| FormEntry { entry: Entry { value: form.entry.value, ..entry }, ..form };
        let base = entry(&l1, 0, b"");
        let old = |stop: usize, entry: Entry| stale(of_lane(&l1, 0, stop, b"*0\r\n"), entry);
        store(&l1, b"l", old(1, Entry { epoch: EPOCH - 1, ..base.clone() }));
        store(&l1, b"l", old(2, Entry { epoch: EPOCH - 1, ..base.clone() }));
        store(&l1, b"l", old(3, Entry { lane: 9, epoch: EPOCH - 1, ..base.clone() }));
        let displaced = store(&l1, b"l", of_lane(&l1, 0, 4, b"*0\r\n"));
        assert_eq!(displaced, Displaced { oldest: 0, void: 2 });
        let expired = Entry { deadline: clock::now(), t_sent: 0, ..base };
        store(&l1, b"l", old(5, expired));
        let later = Entry { t_sent: clock::now(), deadline: clock::now() + HOUR, ..entry(&l1, 0, b"") };
        assert_eq!(store(&l1, b"l", old(6, later)), Displaced { oldest: 0, void: 1 });
        assert!(served(&l1, 0, 4).is_some());
    }
}
