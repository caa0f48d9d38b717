//! Who listens to what: channels, patterns and shard channels of the local engine. It delivers nothing: `receivers` says to
//! whom a message goes and as what, whoever holds the connections writes it.

use std::collections::HashMap;

use crate::policy::glob;

/// The three spaces of names. Channels and patterns share one count in confirmations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Channel,
    Pattern,
    Shard,
}

#[derive(Debug, Default)]
pub(crate) struct Topics {
    spaces: [HashMap<Box<[u8]>, Vec<u64>>; 3],
    by_client: HashMap<u64, [Vec<Box<[u8]>>; 3]>,
}

/// One delivery of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    pub(crate) client: u64,
    /// The pattern it matched, where the client listens to that.
    pub(crate) pattern: Option<Box<[u8]>>,
}

impl Topics {
    /// True where this is new.
    pub(crate) fn subscribe(&mut self, client: u64, space: Space, name: &[u8]) -> bool {
        let listeners = self.spaces[space as usize].entry(name.into()).or_default();
        if listeners.contains(&client) {
            return false;
        }
        listeners.push(client);
        self.by_client.entry(client).or_default()[space as usize].push(name.into());
        true
    }

    /// True where there was such a subscription.
    pub(crate) fn unsubscribe(&mut self, client: u64, space: Space, name: &[u8]) -> bool {
        let Some(names) = self.by_client.get_mut(&client) else { return false };
        let own = &mut names[space as usize];
        let Some(at) = own.iter().position(|n| **n == *name) else { return false };
        own.remove(at);
        if names.iter().all(Vec::is_empty) {
            self.by_client.remove(&client);
        }
        let listeners = self.spaces[space as usize].get_mut(name);
        if let Some(listeners) = listeners {
            listeners.retain(|c| *c != client);
            if listeners.is_empty() {
                self.spaces[space as usize].remove(name);
            }
        }
        true
    }

    /// What a client listens to, oldest first.
    pub(crate) fn of(&self, client: u64, space: Space) -> &[Box<[u8]>] {
        self.by_client.get(&client).map_or(&[], |names| &names[space as usize])
    }

    pub(crate) fn count(&self, client: u64, space: Space) -> usize {
        self.of(client, space).len()
    }

    pub(crate) fn forget(&mut self, client: u64) {
        for space in [Space::Channel, Space::Pattern, Space::Shard] {
            for name in self.of(client, space).to_vec() {
                self.unsubscribe(client, space, &name);
            }
        }
    }

    /// To whom a message on this channel goes, in order.
    pub(crate) fn receivers(&self, space: Space, channel: &[u8]) -> Vec<Receiver> {
        let plain = self.spaces[space as usize].get(channel).into_iter().flatten();
        let mut all: Vec<Receiver> = plain.map(|&client| Receiver { client, pattern: None }).collect();
        if space == Space::Channel {
            let matching = self.spaces[Space::Pattern as usize].iter().filter(|(p, _)| glob::matches(p, channel));
            all.extend(matching.flat_map(|(pattern, clients)| {
                clients.iter().map(|&client| Receiver { client, pattern: Some(pattern.clone()) })
            }));
        }
        all
    }

    /// Names that somebody listens to and that match.
    pub(crate) fn channels(&self, space: Space, pattern: Option<&[u8]>) -> Vec<&[u8]> {
        let names = self.spaces[space as usize].keys().map(|name| &**name);
        names.filter(|name| pattern.is_none_or(|p| glob::matches(p, name))).collect()
    }

    /// How many listen to a name.
    pub(crate) fn listeners(&self, space: Space, name: &[u8]) -> usize {
        self.spaces[space as usize].get(name).map_or(0, Vec::len)
    }

    /// How many patterns somebody listens to.
    pub(crate) fn patterns(&self) -> usize {
        self.spaces[Space::Pattern as usize].len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_to_channels_first_and_to_each_pattern() {
        let mut topics = Topics::default();
        assert!(topics.subscribe(1, Space::Channel, b"news") && !topics.subscribe(1, Space::Channel, b"news"));
        assert!(topics.subscribe(2, Space::Pattern, b"n*"));
        assert!(topics.subscribe(3, Space::Shard, b"news"));
        let receivers = topics.receivers(Space::Channel, b"news");
        let of_pattern = Receiver { client: 2, pattern: Some(b"n*"[..].into()) };
        assert_eq!(receivers, [Receiver { client: 1, pattern: None }, of_pattern]);
        assert_eq!(topics.receivers(Space::Shard, b"news"), [Receiver { client: 3, pattern: None }]);
        assert_eq!((topics.patterns(), topics.listeners(Space::Channel, b"news")), (1, 1));
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let mut topics = Topics::default();
        topics.subscribe(1, Space::Channel, b"a");
        topics.subscribe(1, Space::Pattern, b"p*");
        topics.forget(1);
        assert!(topics.channels(Space::Channel, None).is_empty() && topics.patterns() == 0);
        assert!(topics.by_client.is_empty());
    }
}
