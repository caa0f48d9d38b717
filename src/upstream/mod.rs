//! Connections to upstream: how one is opened (`connect`), introduced (`handshake`), lent to a session (`pinned`), and how
//! long to wait before the next attempt (`backoff`). Knows neither L1 nor sessions.

mod backoff;
mod connect;
pub(crate) mod facts;
pub(crate) mod handshake;
pub(crate) mod pinned;

use std::rc::Rc;

pub(crate) use backoff::Backoff;
pub(crate) use connect::{ConnectError, connect};

use crate::config::Upstream;

/// What a client's AUTH was accepted with, or what the configuration gives for clients that never say AUTH.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credential {
    pub(crate) user: Box<[u8]>,
    pub(crate) password: Box<[u8]>,
}

impl Credential {
    /// In a time that does not depend on how much of the password agrees.
    pub(crate) fn is(&self, user: &[u8], password: &[u8]) -> bool {
        let same_length = self.password.len() == password.len();
        let differ = self.password.iter().zip(password).fold(0, |all, (a, b)| all | (a ^ b));
        *self.user == *user && same_length && differ == 0
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "user {}", String::from_utf8_lossy(&self.user))
    }
}

/// What distinguishes one lane from another, and decides whose entries a hit may come from: database and credential.
/// `None` is the connection that never said AUTH.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Profile {
    pub(crate) db: u32,
    pub(crate) credential: Option<Rc<Credential>>,
}

impl Profile {
    /// What a client is before it says AUTH or SELECT.
    pub(crate) fn configured(upstream: &Upstream) -> Profile {
        let credential = upstream.password.as_ref().map(|password| {
            let user = upstream.username.as_deref().unwrap_or("default");
            Rc::new(Credential { user: user.as_bytes().into(), password: password.expose().as_bytes().into() })
        });
        Profile { db: upstream.db, credential }
    }

    pub(crate) fn user(&self) -> String {
        String::from_utf8_lossy(self.user_bytes()).into_owned()
    }

    pub(crate) fn user_bytes(&self) -> &[u8] {
        self.credential.as_ref().map_or(b"default", |credential| &credential.user)
    }
}
