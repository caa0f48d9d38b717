//! Names: of keys, where `upstream.key_prefix` is set, and of commands that the table does not have.

use std::borrow::Cow;
use std::rc::Rc;

use super::Ctx;
use crate::coherence::Lane;
use crate::command::Spec;
use crate::command::categories::Categories;
use crate::command::table;
use crate::observe::clock;
use crate::router::Stranger;
use crate::upstream::handshake::{self, Learned};

/// Names that upstream was asked about and that are remembered.
const LEARNED_MAX: usize = 1000;

impl Ctx {
    /// The client's name of a key: what rules and patterns are about.
    pub(crate) fn own_name<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        self.prefix.as_ref().and_then(|prefix| prefix.own(key)).unwrap_or(key)
    }

    /// Upstream's name of a client's key.
    pub(crate) fn upstream_name<'k>(&self, key: &'k [u8]) -> Cow<'k, [u8]> {
        self.prefix.as_ref().map_or(Cow::Borrowed(key), |prefix| Cow::Owned(prefix.key(key)))
    }

    /// The same of a glob.
    pub(crate) fn upstream_glob<'g>(&self, glob: &'g [u8]) -> Cow<'g, [u8]> {
        self.prefix.as_ref().map_or(Cow::Borrowed(glob), |prefix| Cow::Owned(prefix.glob(glob)))
    }

    /// What is known of a name that the table does not have.
    pub(crate) fn learned(&self, name: &[u8]) -> Result<&'static Spec, Stranger> {
        let known = self.learned.get(&name.to_ascii_lowercase()).map(|l| l.value().0.clone());
        match known {
            None => Err(Stranger::New),
            Some(Learned::Module { reads_one }) => Err(Stranger::Module { reads_one }),
            Some(Learned::Unknown | Learned::Refused) => Err(Stranger::Unknown),
            Some(Learned::Renamed(canonical)) => table::by_name(canonical.as_bytes()).ok_or(Stranger::Unknown),
        }
    }

    /// All that upstream has said of such a name; none: it has not been asked.
    pub(crate) fn explanation(&self, name: &[u8]) -> Option<(Learned, Categories)> {
        self.learned.get(&name.to_ascii_lowercase()).map(|known| known.value().clone())
    }

    /// Asks upstream once what `name` is (decision 1).
    pub(crate) async fn learn(&self, lane: &Rc<Lane>, name: &[u8]) {
        let name = name.to_ascii_lowercase();
        let answer = match lane.is_ready() {
            // COMMAND INFO knows subcommands by such names; as a command there is none.
            true if name.contains(&b'|') => Some(b"*1\r\n_\r\n".to_vec()),
            true => lane.ask(clock::now(), &[b"COMMAND", b"INFO", &name]).await.ok(),
            false => None,
        };
        // No answer: the lane is lost, and the name is asked about again.
        let Some(frame) = answer else { return };
        let learned = (handshake::learned(&frame), handshake::categories(&frame));
        if self.learned.len() >= LEARNED_MAX {
            self.learned.clear();
        }
        self.learned.insert(name, learned);
    }
}
