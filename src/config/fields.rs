//! One map of a list of maps (`rules`, `commands.overrides`, `commands.rate`), read key by key: what is missing, unknown or
//! wrong is a problem that names the line, the map and the key. What the keys mean is their section's.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::file::{Node, Value};
use super::keys;
use super::settings::Setting;
use super::units::{self, shown};

/// How the maps of a list are named in problems, and what an empty text in them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `rules: sessions: ttl`. An empty text counts as not given.
    Titled,
    /// `commands.rate[0].burst`. An empty text is a slip: taken for left out, the entry would hold for more clients.
    Numbered,
}

/// Reads the keys of one map, and finds those that nobody knows.
pub(super) struct Fields<'a> {
    kind: Kind,
    /// `rules: sessions`, as it stands in problems.
    what: String,
    line: u64,
    pairs: &'a [(Node, Node)],
    setting: &'a Setting,
    problems: &'a mut Vec<String>,
}

impl<'a> Fields<'a> {
    /// None where `node` is no map; that is a problem then.
    pub(super) fn new(
        kind: Kind,
        what: String,
        node: &'a Node,
        setting: &'a Setting,
        problems: &'a mut Vec<String>,
    ) -> Option<Fields<'a>> {
        match &node.value {
            Value::Map(pairs) => Some(Fields { kind, what, line: node.line, pairs, setting, problems }),
            _ => {
                problems.push(format!("{}: {what}: keys and values are wanted here", setting.place(node.line)));
                None
            }
        }
    }

    /// Names the keys that are none of `known`, and what was probably meant.
    pub(super) fn only(&mut self, known: &[&str]) {
        for (key, _) in self.pairs {
            let word = match &key.value {
                Value::Text(word) if known.contains(&word.as_str()) => continue,
                Value::Text(word) => word.as_str(),
                _ => "",
            };
            let hint = match keys::nearest_of(word, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known keys here: {}", known.join(", ")),
            };
            self.problem_at(key.line, &format!("{}: unknown key; {hint}", shown(word)));
        }
    }

    /// None: not given, which `null` says too.
    pub(super) fn node(&self, key: &str) -> Option<&'a Node> {
        let (_, node) = self.pairs.iter().find(|(k, _)| k.value == Value::Text(key.to_owned()))?;
        let given = match &node.value {
            Value::Null => false,
            Value::Text(text) => self.kind == Kind::Numbered || !text.is_empty(),
            _ => true,
        };
        given.then_some(node)
    }

    /// The names of its keys, as they are written.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |key: &Node| if let Value::Text(name) = &key.value { Some(name.clone()) } else { None };
        self.pairs.iter().filter_map(|(key, _)| name(key)).collect()
    }

    pub(super) fn one<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = self.node(key)?;
        let result = match &node.value {
            Value::Text(text) => read(text),
            _ => Err("one value is wanted here, not a list or a map".to_owned()),
        };
        self.take(key, node.line, result)
    }

    pub(super) fn list<T>(&mut self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        self.list_like(key, "[\"a\", \"b\"]", read)
    }

    /// The same with an example of one's own.
    pub(super) fn list_like<T>(
        &mut self,
        key: &str,
        example: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let node = self.node(key)?;
        let Value::List(items) = &node.value else {
            let what = format!("a list is wanted here, for example {example}");
            return self.take(key, node.line, Err(what));
        };
        let mut out = Vec::new();
        for item in items {
            let result = match &item.value {
                Value::Text(text) => read(text),
                _ => Err("has an element that is not a plain value".to_owned()),
            };
            out.extend(self.take(key, item.line, result));
        }
        Some(out)
    }

    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.one(key, |text| units::duration(text, range.clone()))
    }

    /// The map below `key`, as one of its own.
    pub(super) fn map(&mut self, key: &str) -> Option<Fields<'_>> {
        let node = self.node(key)?;
        Fields::new(self.kind, self.name_of(key), node, self.setting, self.problems)
    }

    fn take<T>(&mut self, key: &str, line: u64, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.push(line, &self.name_of(key), &what)).ok()
    }

    /// Of the map as a whole.
    pub(super) fn problem(&mut self, what: &str) {
        self.problem_at(self.line, what);
    }

    pub(super) fn problem_at(&mut self, line: u64, what: &str) {
        let name = self.what.clone();
        self.push(line, &name, what);
    }

    /// Of one key: on its line, where it is given.
    pub(super) fn problem_of(&mut self, key: &str, what: &str) {
        let line = self.node(key).map_or(self.line, |node| node.line);
        self.push(line, &self.name_of(key), what);
    }

    fn name_of(&self, key: &str) -> String {
        match self.kind {
            Kind::Titled => format!("{}: {key}", self.what),
            Kind::Numbered => format!("{}.{key}", self.what),
        }
    }

    fn push(&mut self, line: u64, name: &str, what: &str) {
        self.problems.push(format!("{}: {name}: {what}", self.setting.place(line)));
    }
}
