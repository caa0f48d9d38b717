//! The command policy (`commands` of the configuration): who may run what, on which keys, how often. A [`Policy`] is compiled
//! when a configuration is loaded, shared by all threads and never changed; a session asks once what holds for it
//! ([`Policy::rights_of`], [`Policy::rates_of`]) and then of each command with one look at the command's row.
//!
//! **Who.** The first entry of `commands.overrides` that fits a client decides instead of `commands.deny` and
//! `commands.allow`, each of the two as far as it gives it. Of `commands.rate` every entry that fits counts.
//!
//! **What.** A command is refused that a word of `deny` covers, or that no word of `allow` does; a key that a pattern of
//! `deny` matches, or none of `allow`'s where it has any. HELLO, AUTH, QUIT and RESET are never refused unless `deny` names
//! them, as in Redis, where they need no rights; nor is NEARSIDE, which is ours.
//!
//! What it does not do: it does not see what a script does beyond the keys it declares, and knows of a module's command only
//! what upstream says of it.

mod rate;
mod rights;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use crate::command::categories::Categories;
use crate::command::{Spec, table};
use crate::config::Commands;
use crate::observe::reasons::{Action, PolicyMode};
use crate::policy::glob;

pub(crate) use rate::Bucket;
pub(crate) use rights::{Denial, Rights, Unlisted, UnlistedKeys};

/// One word of `deny` or `allow`, as in Redis's ACL rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// `@all`.
    All,
    /// `get`; `client` with all its subcommands; `client|kill`; `ft.search`. In lower case.
    Command(String),
    /// `@dangerous`, without the `@`.
    Category(String),
    /// `~session:*`, without the `~`: a glob as KEYS takes it.
    Key(String),
}

/// Whom an entry of `overrides` or `rate` is for: everything that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    /// Globs on what CLIENT SETNAME and AUTH said.
    pub(crate) client: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) listener: Option<Listener>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    Tcp,
    Unix,
    /// One of `listen.tcp`, as it stands there.
    Address(SocketAddr),
}

/// An entry of `commands.overrides`. What is not given is as in `commands`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Override {
    pub(crate) who: Who,
    pub(crate) deny: Option<Vec<Word>>,
    pub(crate) allow: Option<Vec<Word>>,
    pub(crate) enforce: Option<bool>,
}

/// An entry of `commands.rate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) who: Who,
    /// 1 to 1,000,000.
    pub(crate) per_second: u32,
    /// At least 1.
    pub(crate) burst: u32,
    pub(crate) on_limit: OnLimit,
    pub(crate) scope: Scope,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnLimit {
    /// The client is not read until its next command may go.
    Wait,
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All clients that fit share one bucket.
    Shared,
    /// Each connection has one of its own.
    Connection,
}

/// A client as entries look at it.
pub(crate) struct Caller<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) user: &'a [u8],
    /// The address it came in by, as configured; none: the unix socket.
    pub(crate) listener: Option<SocketAddr>,
}

/// The whole policy.
pub(crate) struct Policy {
    /// That of `commands` itself, then those of `overrides`.
    rights: Vec<Rights>,
    overrides: Vec<Who>,
    rates: Vec<Rate>,
    /// One for each of `rates`; idle where each connection has its own.
    buckets: Vec<Bucket>,
    /// What each row of the table does; empty where nothing is asked.
    actions: Box<[Action]>,
}

impl Policy {
    /// The one that refuses nothing.
    pub(crate) fn open() -> Policy {
        let base = Rights::new("commands", true, &[], None);
        Policy {
            rights: vec![base],
            overrides: Vec::new(),
            rates: Vec::new(),
            buckets: Vec::new(),
            actions: Box::default(),
        }
    }

    pub(crate) fn new(commands: &Commands) -> Policy {
        let with_words = !commands.deny.is_empty() || commands.allow.is_some() || !commands.overrides.is_empty();
        let categories = if with_words { Categories::of_rows() } else { Vec::new() };
        let base = Rights::new("commands", commands.enforce, &commands.deny, commands.allow.as_deref());
        let of_override = |(at, o): (usize, &Override)| {
            let own = format!("commands.overrides[{at}]");
            base.with(&own, o.enforce, o.deny.as_deref(), o.allow.as_deref())
        };
        let overrides: Vec<Rights> = commands.overrides.iter().enumerate().map(of_override).collect();
        let mut rights: Vec<Rights> = std::iter::once(base).chain(overrides).collect();
        rights.iter_mut().for_each(|rights| rights.compile(&categories));
        Policy {
            rights,
            overrides: commands.overrides.iter().map(|o| o.who.clone()).collect(),
            buckets: commands.rate.iter().map(Bucket::new).collect(),
            rates: commands.rate.clone(),
            actions: categories.into_iter().map(action_of).collect(),
        }
    }

    /// It refuses nothing to anybody and holds nobody back: nobody need ask.
    pub(crate) fn is_open(&self) -> bool {
        self.judges_nothing() && self.rates.is_empty()
    }

    /// There are rates.
    pub(crate) fn paces(&self) -> bool {
        !self.rates.is_empty()
    }

    /// No client's commands are looked at.
    pub(crate) fn judges_nothing(&self) -> bool {
        self.rights.iter().all(Rights::is_open)
    }

    pub(crate) fn mode(&self) -> PolicyMode {
        let enforced = self.rights.iter().any(|rights| !rights.is_open() && rights.enforces());
        match self.judges_nothing() {
            true => PolicyMode::Off,
            false if enforced => PolicyMode::Enforce,
            false => PolicyMode::Log,
        }
    }

    /// The number of what holds for this client.
    pub(crate) fn rights_of(&self, caller: &Caller<'_>) -> usize {
        self.overrides.iter().position(|who| who.is(caller)).map_or(0, |at| at + 1)
    }

    /// What has this number.
    pub(crate) fn rights(&self, number: usize) -> &Rights {
        &self.rights[number.min(self.rights.len() - 1)]
    }

    /// The numbers of the rates that hold for this client.
    pub(crate) fn rates_of(&self, caller: &Caller<'_>) -> impl Iterator<Item = usize> {
        self.rates.iter().enumerate().filter(move |(_, rate)| rate.who.is(caller)).map(|(at, _)| at)
    }

    pub(crate) fn rate(&self, number: usize) -> &Rate {
        &self.rates[number]
    }

    /// The bucket that all clients of a rate share.
    pub(crate) fn bucket(&self, number: usize) -> &Bucket {
        &self.buckets[number]
    }

    /// What a command of the table does, for the statistics.
    pub(crate) fn action(&self, spec: &Spec) -> Action {
        self.actions.get(usize::from(spec.row)).copied().unwrap_or(Action::Execute)
    }
}

impl Who {
    fn is(&self, caller: &Caller<'_>) -> bool {
        let fits = |glob: &Option<String>, text| glob.as_ref().is_none_or(|g| glob::matches(g.as_bytes(), text));
        fits(&self.client, caller.name)
            && fits(&self.user, caller.user)
            && match self.listener {
                None => true,
                Some(Listener::Tcp) => caller.listener.is_some(),
                Some(Listener::Unix) => caller.listener.is_none(),
                Some(Listener::Address(address)) => caller.listener == Some(address),
            }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::All => f.write_str("@all"),
            Word::Command(name) => f.write_str(name),
            Word::Category(name) => write!(f, "@{name}"),
            Word::Key(glob) => write!(f, "~{glob}"),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp => f.write_str("tcp"),
            Listener::Unix => f.write_str("unix"),
            Listener::Address(address) => write!(f, "{address}"),
        }
    }
}

/// The table, and behind it the one module command that has a row.
fn rows() -> impl Iterator<Item = &'static Spec> {
    table::all().chain([&table::JSON_GET])
}

/// One of four: a script executes, whatever it is said to write; FLUSHALL writes, although it is the administrator's.
pub(crate) fn action_of(categories: Categories) -> Action {
    let is = |word| categories.has(word);
    match () {
        () if is("scripting") => Action::Execute,
        () if is("write") => Action::Write,
        () if is("read") => Action::Read,
        () if is("admin") || is("dangerous") => Action::Admin,
        () => Action::Execute,
    }
}
