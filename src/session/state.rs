//! What a Redis server keeps of a client, as far as the sidecar is that server: protocol, database, user, name, library,
//! reply mode. Answers CLIENT INFO and CLIENT LIST in Redis's format.

use std::rc::Rc;

use crate::resp::Proto;
use crate::upstream::{Credential, Profile};

/// CLIENT REPLY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Replies {
    #[default]
    On,
    Off,
    /// The next command is not answered.
    SkipNext,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) proto: Proto,
    pub(super) db: u32,
    /// What the client's own AUTH was accepted with; `None`: it is who the configuration says.
    pub(super) credential: Option<Rc<Credential>>,
    /// The client's own AUTH was accepted.
    pub(super) authenticated: bool,
    pub(super) name: Vec<u8>,
    pub(super) lib_name: Vec<u8>,
    pub(super) lib_ver: Vec<u8>,
    pub(super) replies: Replies,
    pub(super) no_evict: bool,
    pub(super) no_touch: bool,
    /// Protected mode: nothing but the way in is answered.
    pub(super) locked: bool,
    /// `NEARSIDE AUTH` was accepted.
    pub(super) admin: bool,
}

impl State {
    pub(super) fn new(defaults: &Profile, locked: bool) -> State {
        State {
            proto: Proto::Resp2,
            db: defaults.db,
            credential: defaults.credential.clone(),
            authenticated: false,
            name: Vec::new(),
            lib_name: Vec::new(),
            lib_ver: Vec::new(),
            replies: Replies::On,
            no_evict: false,
            no_touch: false,
            locked,
            admin: false,
        }
    }

    /// Who it is upstream.
    pub(super) fn user(&self) -> &[u8] {
        self.credential.as_ref().map_or(b"default", |credential| &credential.user)
    }

    pub(super) fn profile(&self) -> Profile {
        Profile { db: self.db, credential: self.credential.clone() }
    }

    /// RESET: as a fresh connection.
    pub(super) fn reset(&mut self, defaults: &Profile, locked: bool) {
        let (lib_name, lib_ver) = (std::mem::take(&mut self.lib_name), std::mem::take(&mut self.lib_ver));
        *self = State { lib_name, lib_ver, ..State::new(defaults, locked) };
    }

    /// Whether the reply to the command now being read is dropped; SKIP is used up by it.
    pub(super) fn mute(&mut self) -> bool {
        match self.replies {
            Replies::On => false,
            Replies::Off => true,
            Replies::SkipNext => {
                self.replies = Replies::On;
                true
            }
        }
    }
}

/// CLIENT SETNAME and SETINFO take printable ASCII without blanks.
pub(super) fn is_plain(word: &[u8]) -> bool {
    word.iter().all(|b| (b'!'..=b'~').contains(b))
}
