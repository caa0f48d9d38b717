//! One set of words, compiled: for each row of the table whether it may run, may run on some keys only, or which word refuses
//! it. So a command of the table costs one look into an array, and only where keys matter a look at them.

use std::fmt::Write;

use super::{Word, rows};
use crate::command::categories::Categories;
use crate::command::prefix::Prefix;
use crate::command::{Keys, Kind, Request, Spec, keys};
use crate::policy::glob;

/// May run, whatever its keys.
const FREE: u16 = 0;
/// May run if its keys may be had.
const LOOK: u16 = 1;
/// No word of `allow` covers it.
const UNLISTED: u16 = 2;
/// From here on: refused by that word of `deny`.
const DENIED: u16 = 3;

/// What a name is shown of at most: it is a client's.
const SHOWN_MAX: usize = 64;

pub(crate) struct Rights {
    enforce: bool,
    deny: List,
    /// None: everything may be had that `deny` does not refuse.
    allow: Option<List>,
    /// By `Spec::row`.
    rows: Box<[u16]>,
}

#[derive(Clone)]
struct List {
    /// `commands.deny`, `commands.overrides[2].allow`.
    place: String,
    words: Vec<Word>,
}

/// Why a command is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    what: What,
    /// The rule: `commands.deny: @dangerous`.
    pub(crate) by: String,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Command,
    Key,
    /// Keys matter, and which ones it uses cannot be told.
    Hidden,
}

/// A command that the table does not have, as far as it is known.
pub(crate) struct Unlisted<'a> {
    /// In lower case; of a container `object|new`.
    pub(crate) name: &'a str,
    /// Those upstream gives it; of a container's unknown subcommand those of all it has: `deny` takes the worst of it.
    pub(crate) categories: Categories,
    /// Those it is in for certain, for `allow`.
    pub(crate) surely: Categories,
    pub(crate) keys: UnlistedKeys<'a>,
}

#[derive(Clone, Copy)]
pub(crate) enum UnlistedKeys<'a> {
    One(&'a [u8]),
    None,
    Unknown,
}

impl Rights {
    pub(super) fn new(place: &str, enforce: bool, deny: &[Word], allow: Option<&[Word]>) -> Rights {
        let list = |which: &str, words: &[Word]| List { place: format!("{place}.{which}"), words: words.to_vec() };
        Rights {
            enforce,
            deny: list("deny", deny),
            allow: allow.map(|words| list("allow", words)),
            rows: Box::default(),
        }
    }

    /// The same, but for what an override gives.
    pub(super) fn with(
        &self,
        place: &str,
        enforce: Option<bool>,
        deny: Option<&[Word]>,
        allow: Option<&[Word]>,
    ) -> Rights {
        let own = Rights::new(place, enforce.unwrap_or(self.enforce), deny.unwrap_or_default(), allow);
        Rights {
            deny: if deny.is_some() { own.deny } else { self.deny.clone() },
            allow: if allow.is_some() { own.allow } else { self.allow.clone() },
            ..own
        }
    }

    /// `categories`: of the table's rows in their order.
    pub(super) fn compile(&mut self, categories: &[Categories]) {
        if !self.is_open() {
            self.rows = rows().zip(categories).map(|(spec, of)| self.row(spec, *of)).collect();
        }
    }

    fn row(&self, spec: &Spec, categories: Categories) -> u16 {
        let looks = self.minds_keys() && (spec.keys != Keys::None || spec.kind == Kind::Nearside);
        let otherwise = if looks { LOOK } else { FREE };
        if needs_no_rights(spec) {
            let named = |word: &Word| matches!(word, Word::Command(name) if name == spec.name);
            return self.deny.words.iter().position(named).map_or(otherwise, denied);
        }
        match self.refusing(spec.name, categories) {
            Some(at) => denied(at),
            None if !self.lists(spec.name, categories) => UNLISTED,
            None => otherwise,
        }
    }

    /// The word of `deny` that covers a command.
    fn refusing(&self, name: &str, categories: Categories) -> Option<usize> {
        self.deny.words.iter().position(|word| word.covers(name, categories))
    }

    /// `allow` has it, or speaks of keys only.
    fn lists(&self, name: &str, categories: Categories) -> bool {
        let Some(allow) = &self.allow else { return true };
        let mut commands = allow.words.iter().filter(|word| word.key().is_none()).peekable();
        commands.peek().is_none() || commands.any(|word| word.covers(name, categories))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.deny.words.is_empty() && self.allow.is_none()
    }

    pub(crate) fn enforces(&self) -> bool {
        self.enforce
    }

    /// Keys decide about some commands.
    pub(crate) fn minds_keys(&self) -> bool {
        self.denied_keys().next().is_some() || self.allowed_keys().next().is_some()
    }

    fn denied_keys(&self) -> impl Iterator<Item = &str> {
        self.deny.words.iter().filter_map(Word::key)
    }

    fn allowed_keys(&self) -> impl Iterator<Item = &str> {
        self.allow.iter().flat_map(|list| &list.words).filter_map(Word::key)
    }

    /// It may run whatever its keys are.
    pub(crate) fn leaves_free(&self, spec: &Spec) -> bool {
        self.of(spec) == FREE
    }

    fn of(&self, spec: &Spec) -> u16 {
        if self.is_open() { FREE } else { self.rows.get(usize::from(spec.row)).copied().unwrap_or(UNLISTED) }
    }

    /// Why this request is refused, if it is. Patterns speak of the client's names: `own` takes upstream's prefix off.
    pub(crate) fn refuses(&self, spec: &Spec, req: &Request<'_>, own: Option<&Prefix>) -> Option<Denial> {
        match self.of(spec) {
            FREE => None,
            LOOK => self.refuses_keys(spec, req, own),
            _ => self.refuses_command(spec),
        }
    }

    /// The same by its name alone.
    pub(crate) fn refuses_command(&self, spec: &Spec) -> Option<Denial> {
        match self.of(spec) {
            FREE | LOOK => None,
            UNLISTED => Some(self.not_listed(What::Command)),
            row => Some(self.named(What::Command, usize::from(row - DENIED))),
        }
    }

    fn refuses_keys(&self, spec: &Spec, req: &Request<'_>, own: Option<&Prefix>) -> Option<Denial> {
        let hides = match spec.kind {
            Kind::Nearside => req.is(1, "delete"),
            _ => keys::reads_by_pattern(spec, req),
        };
        let mut refused = if hides { self.refuses_hidden() } else { None };
        keys::for_each(spec, req, |key| {
            if refused.is_none() {
                refused = self.refuses_key(own.and_then(|own| own.own(key)).unwrap_or(key));
            }
        });
        refused
    }

    pub(crate) fn refuses_key(&self, key: &[u8]) -> Option<Denial> {
        let matched = |word: &Word| word.key().is_some_and(|glob| glob::matches(glob.as_bytes(), key));
        if let Some(at) = self.deny.words.iter().position(matched) {
            return Some(self.named(What::Key, at));
        }
        let mut allowed = self.allowed_keys().peekable();
        let outside = allowed.peek().is_some() && !allowed.any(|glob| glob::matches(glob.as_bytes(), key));
        outside.then(|| self.not_listed(What::Key))
    }

    /// The answer where keys matter and a command's are not known.
    pub(crate) fn refuses_hidden(&self) -> Option<Denial> {
        if let Some(at) = self.deny.words.iter().position(|word| word.key().is_some()) {
            return Some(self.named(What::Hidden, at));
        }
        self.minds_keys().then(|| self.not_listed(What::Hidden))
    }

    /// The same for a command that the table does not have.
    pub(crate) fn refuses_unlisted(&self, what: &Unlisted<'_>) -> Option<Denial> {
        if let Some(at) = self.refusing(what.name, what.categories) {
            return Some(self.named(What::Command, at));
        }
        if !self.lists(what.name, what.surely) {
            return Some(self.not_listed(What::Command));
        }
        match what.keys {
            UnlistedKeys::None => None,
            UnlistedKeys::One(key) => self.refuses_key(key),
            UnlistedKeys::Unknown => self.refuses_hidden(),
        }
    }

    /// Nobody could be asked what a name stands for: it may be a renamed command that a word covers.
    pub(crate) fn refuses_unexplained(&self) -> Option<Denial> {
        let list = if self.deny.words.is_empty() { self.allow.as_ref()? } else { &self.deny };
        Some(Denial { what: What::Command, by: format!("{}: upstream could not be asked what it is", list.place) })
    }

    fn named(&self, what: What, at: usize) -> Denial {
        let word = self.deny.words.get(at).map_or_else(String::new, ToString::to_string);
        Denial { what, by: format!("{}: {word}", self.deny.place) }
    }

    fn not_listed(&self, what: What) -> Denial {
        let place = self.allow.as_ref().map_or("commands.allow", |list| &list.place);
        let why = match what {
            What::Command => "not named",
            What::Key => "no pattern matches",
            What::Hidden => "has patterns of keys",
        };
        Denial { what, by: format!("{place}: {why}") }
    }
}

impl Word {
    /// Whether it speaks of this command of the table, or of upstream's.
    fn covers(&self, name: &str, categories: Categories) -> bool {
        match self {
            Word::All => true,
            Word::Command(word) => {
                name.strip_prefix(word.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('|'))
            }
            Word::Category(word) => categories.has(word),
            Word::Key(_) => false,
        }
    }

    fn key(&self) -> Option<&str> {
        match self {
            Word::Key(glob) => Some(glob),
            _ => None,
        }
    }
}

impl Denial {
    /// The error, without the dash: the code is Redis's own, so that client libraries know it.
    pub(crate) fn text(&self, command: &str) -> String {
        let mut name = String::new();
        // Escaped and cut: what the table does not know is whatever a client sent.
        for c in command.escape_debug().take(SHOWN_MAX) {
            let _ = name.write_char(c);
        }
        let by = &self.by;
        match self.what {
            What::Command => format!("NOPERM nearside policy: no permissions to run the '{name}' command ({by})"),
            What::Key => format!(
                "NOPERM nearside policy: no permissions to access one of the keys used as arguments of '{name}' ({by})"
            ),
            What::Hidden => format!(
                "NOPERM nearside policy: no permissions to run the '{name}' command, whose keys are not known ({by})"
            ),
        }
    }
}

fn denied(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX - DENIED).saturating_add(DENIED)
}

/// Commands by which a client gets or gives up rights, and our own.
fn needs_no_rights(spec: &Spec) -> bool {
    matches!(spec.kind, Kind::Auth | Kind::Hello | Kind::Quit | Kind::Reset | Kind::Nearside)
}
