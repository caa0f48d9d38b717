//! One database of the local engine: keys, values, expiry, and what they weigh. It decides nothing: when a key expires, who
//! is told of a change and what is evicted is the engine's.
//!
//! **Order.** Entries stand in a row (an index map); removing one moves the last into its place, so an entry only ever moves
//! to a lower position. A walk that goes from the end down therefore sees everything that was there all along: that is what
//! SCAN promises, and what the sweep needs.

use foldhash::quality::RandomState;
use indexmap::IndexMap;

/// No expiry. A time that a command can set is above zero.
pub(super) const NEVER: i64 = -1;

/// What an entry costs besides the bytes of its key and value: 64 bytes in the row, which may be twice as long as it is
/// full; up to 18 in its index; 16 for each of two allocations. While the row grows, the old one lives for a moment too.
pub(super) const OVERHEAD: usize = 192;

/// A row that is less than a quarter full gives its room back; not below so many entries, which weigh nothing.
const SHRINK_ABOVE: usize = 1024;

/// What OBJECT ENCODING tells apart besides length: how the value came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As a client sent it: a number is kept as one.
    Sent,
    /// A text even if it looks like a number (INCRBYFLOAT).
    Text,
    /// Changed in place (APPEND, SETRANGE).
    Raw,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Vec<u8>,
    /// Milliseconds since 1970, or `NEVER`.
    pub(super) expires: i64,
    /// When it was last read or written, in milliseconds; wraps after 49 days.
    pub(super) used: u32,
    pub(super) form: Form,
}

impl Entry {
    pub(super) fn is_expired(&self, now: i64) -> bool {
        self.expires != NEVER && now > self.expires
    }
}

#[derive(Debug, Default)]
pub(super) struct Db {
    row: IndexMap<Box<[u8]>, Entry, RandomState>,
    weight: usize,
    expiring: usize,
    /// The sweep has still to look at what stands before this.
    swept: usize,
}

/// What a key with this value weighs.
pub(super) fn weight(key: usize, value: usize) -> usize {
    OVERHEAD + key + value
}

impl Db {
    pub(super) fn len(&self) -> usize {
        self.row.len()
    }

    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Keys with an expiry.
    pub(super) fn expiring(&self) -> usize {
        self.expiring
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.row.get(key)
    }

    /// Changes an entry in place, with the books kept.
    pub(super) fn change<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let entry = self.row.get_mut(key)?;
        let before = (entry.value.capacity(), entry.expires);
        let result = change(entry);
        let after = (entry.value.capacity(), entry.expires);
        self.weight = self.weight - before.0 + after.0;
        self.expiring = self.expiring - usize::from(before.1 != NEVER) + usize::from(after.1 != NEVER);
        Some(result)
    }

    /// Replaces what was there.
    pub(super) fn insert(&mut self, key: &[u8], entry: Entry) {
        if self.row.contains_key(key) {
            self.change(key, |old| *old = entry);
            return;
        }
        self.weight += weight(key.len(), entry.value.capacity());
        self.expiring += usize::from(entry.expires != NEVER);
        self.row.insert(key.into(), entry);
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.row.swap_remove(key)?;
        self.weight -= weight(key.len(), entry.value.capacity());
        self.expiring -= usize::from(entry.expires != NEVER);
        if self.row.len() < self.row.capacity() / 4 && self.row.capacity() > SHRINK_ABOVE {
            self.row.shrink_to(self.row.len() * 2);
        }
        Some(entry)
    }

    pub(super) fn at(&self, position: usize) -> Option<(&[u8], &Entry)> {
        self.row.get_index(position).map(|(key, entry)| (&**key, entry))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.row.iter().map(|(key, entry)| (&**key, entry))
    }

    /// Where the sweep goes on: the position below the last one it has looked at; again from the end after the first.
    pub(super) fn next_to_sweep(&mut self) -> Option<usize> {
        if self.swept == 0 {
            self.swept = self.row.len();
        }
        // It may have become shorter meanwhile; what was unseen stands before `swept` all the same.
        self.swept = self.swept.min(self.row.len()).checked_sub(1)?;
        Some(self.swept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &[u8], expires: i64) -> Entry {
        Entry { value: value.to_vec(), expires, used: 0, form: Form::Sent }
    }

    #[test]
    fn the_books_are_right_whatever_happens() {
        let mut db = Db::default();
        db.insert(b"a", entry(b"12345", NEVER));
        db.insert(b"bb", entry(b"1", 7));
        assert_eq!((db.len(), db.weight(), db.expiring()), (2, 2 * OVERHEAD + 9, 1));
        db.insert(b"a", entry(b"1", 9));
        assert_eq!((db.weight(), db.expiring()), (2 * OVERHEAD + 5, 2));
        db.change(b"bb", |e| {
            e.value = vec![0; 100];
            e.expires = NEVER;
        });
        assert_eq!((db.weight(), db.expiring()), (2 * OVERHEAD + 104, 1));
        db.remove(b"bb");
        db.remove(b"a");
        assert!(db.remove(b"a").is_none());
        assert_eq!((db.len(), db.weight(), db.expiring()), (0, 0, 0));
    }

    #[test]
    fn room_is_given_back() {
        let mut db = Db::default();
        (0..100_000_u32).for_each(|n| db.insert(&n.to_be_bytes(), entry(b"", NEVER)));
        (10..100_000_u32).for_each(|n| drop(db.remove(&n.to_be_bytes())));
        assert!(db.row.capacity() < 4 * SHRINK_ABOVE, "{}", db.row.capacity());
    }

    #[test]
    fn a_sweep_sees_everything_while_keys_go() {
        let mut db = Db::default();
        (0..1000_u32).for_each(|n| db.insert(&n.to_be_bytes(), entry(b"", NEVER)));
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..1000_u32 {
            let at = db.next_to_sweep().unwrap();
            let key = db.at(at).unwrap().0.to_vec();
            seen.insert(u32::from_be_bytes(key.try_into().unwrap()));
            // Another key goes, anywhere.
            db.remove(&(step * 7 % 1000).to_be_bytes());
            if db.swept == 0 || db.len() == 0 {
                break;
            }
        }
        let left: Vec<u32> = db.keys().map(|(k, _)| u32::from_be_bytes(k.try_into().unwrap())).collect();
        assert!(left.iter().all(|n| seen.contains(n)), "one that was there all along was not seen");
    }
}
