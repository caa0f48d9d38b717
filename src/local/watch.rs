//! Who watches which key (WATCH), and whose transaction may not run any more. Told by the engine of every change; knows no
//! value.

use std::collections::{HashMap, HashSet};

type Place = (u32, Box<[u8]>);

#[derive(Debug, Default)]
pub(super) struct Watches {
    by_key: HashMap<Place, Vec<Watcher>>,
    by_client: HashMap<u64, Vec<Place>>,
    /// A key of theirs has changed since they watched it.
    dirty: HashSet<u64>,
}

#[derive(Debug)]
struct Watcher {
    client: u64,
    /// The key was there when it was watched, but past its expiry: that it goes is no change.
    expired: bool,
}

/// How a key is before and after all of a database changes at once.
pub(super) struct Change {
    pub(super) was_there: bool,
    pub(super) is_there: bool,
    pub(super) is_expired: bool,
}

impl Watches {
    /// True where this is new.
    pub(super) fn watch(&mut self, client: u64, db: u32, key: &[u8], expired: bool) -> bool {
        let place: Place = (db, key.into());
        let watchers = self.by_key.entry(place.clone()).or_default();
        if watchers.iter().any(|w| w.client == client) {
            return false;
        }
        watchers.push(Watcher { client, expired });
        self.by_client.entry(client).or_default().push(place);
        true
    }

    /// UNWATCH, and the end of every transaction.
    pub(super) fn unwatch(&mut self, client: u64) {
        self.dirty.remove(&client);
        self.forget_keys(client);
    }

    fn forget_keys(&mut self, client: u64) {
        for place in self.by_client.remove(&client).unwrap_or_default() {
            let Some(watchers) = self.by_key.get_mut(&place) else { continue };
            watchers.retain(|w| w.client != client);
            if watchers.is_empty() {
                self.by_key.remove(&place);
            }
        }
    }

    pub(super) fn is_dirty(&self, client: u64) -> bool {
        self.dirty.contains(&client)
    }

    /// The keys a client watches that were not expired when it began to.
    pub(super) fn of(&self, client: u64) -> impl Iterator<Item = (u32, &[u8])> {
        let places = self.by_client.get(&client).map_or(&[][..], Vec::as_slice);
        let expired = move |place: &Place| {
            self.by_key.get(place).is_some_and(|all| all.iter().any(|w| w.client == client && w.expired))
        };
        places.iter().filter(move |place| !expired(place)).map(|(db, key)| (*db, &**key))
    }

    /// The key has changed; `there`: it still exists.
    pub(super) fn touch(&mut self, db: u32, key: &[u8], there: bool) {
        if self.by_key.is_empty() {
            return;
        }
        let Some(watchers) = self.by_key.get_mut(&(db, Box::from(key))) else { return };
        let mut fouled = Vec::new();
        for watcher in watchers {
            if watcher.expired && !there {
                watcher.expired = false;
            } else {
                fouled.push(watcher.client);
            }
        }
        fouled.into_iter().for_each(|client| self.foul(client));
    }

    /// All of a database is emptied, or exchanged for another.
    pub(super) fn touch_all(&mut self, db: u32, change: impl Fn(&[u8]) -> Change) {
        let mut fouled = Vec::new();
        for ((_, key), watchers) in self.by_key.iter_mut().filter(|((at, _), _)| *at == db) {
            let change = change(key);
            if !change.was_there && !change.is_there {
                continue;
            }
            for watcher in watchers {
                match watcher.expired {
                    true if !change.is_there => watcher.expired = false,
                    true if change.is_expired => {}
                    false if !change.was_there && change.is_expired => watcher.expired = true,
                    _ => fouled.push(watcher.client),
                }
            }
        }
        fouled.into_iter().for_each(|client| self.foul(client));
    }

    /// Its transaction will not run; what it watches need not be remembered for that.
    fn foul(&mut self, client: u64) {
        self.dirty.insert(client);
        self.forget_keys(client);
    }
}
