//! Configuration as given: one value per key with where it came from, merged from file, environment and flags. Runs at
//! start. It checks names only; types, ranges and defaults are `resolve`'s.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    hash::{DefaultHasher, Hasher},
    io::Read,
    path::Path,
};

use super::{
    file::{self, Node, SyntaxError, Value},
    keys::{self, Name},
};

/// A configuration is a few KiB. The bound keeps a wrong path (a device, a dump) from filling memory.
const FILE_MAX: u64 = 1 << 20;

pub(super) const PREFIX: &str = "NEARSIDE_";

/// Names the file; not a key itself.
pub(super) const FILE_VARIABLE: &str = "NEARSIDE_CONFIG";

/// What the command line sets; each entry wins over environment and file. No `Debug`, here and below: an upstream URL
/// may hold a password.
#[derive(Clone, Default)]
pub(crate) struct Overrides {
    pub(super) file: Option<String>,
    values: Vec<(&'static str, &'static str, Node)>,
}

impl Overrides {
    pub(crate) fn file(&mut self, path: Option<String>) {
        self.file = path;
    }

    /// `flag` is how the user wrote it, for messages; `key` is one of the configuration's keys.
    pub(crate) fn value(&mut self, flag: &'static str, key: &'static str, text: Option<String>) {
        self.values.extend(text.map(|text| (flag, key, Node::text(text))));
    }

    pub(crate) fn list(&mut self, flag: &'static str, key: &'static str, items: Option<Vec<String>>) {
        self.values.extend(items.map(|items| (flag, key, Node::list(items))));
    }
}

/// Where a value came from, as it stands at the head of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    File(String),
    Variable(String),
    Flag(&'static str),
    /// What was sent to the running process.
    Body,
}

pub(super) struct Setting {
    origin: Origin,
    pub(super) node: Node,
}

impl Setting {
    /// `config/x.yaml:12`, `NEARSIDE_WORKERS` or `--workers`. `line` is that of an element of the value, where one is
    /// at fault.
    pub(super) fn place(&self, line: u64) -> String {
        match &self.origin {
            Origin::File(path) => at_line(path, line),
            Origin::Variable(name) => name.clone(),
            Origin::Flag(flag) => (*flag).to_owned(),
            Origin::Body => at_line("body", line),
        }
    }
}

/// Bytes of a file that were looked at, as a number: another one means that they have changed.
pub(crate) type Digest = u64;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// All that was given, and what was wrong with the names.
#[derive(Default)]
pub(super) struct Settings {
    given: BTreeMap<&'static str, Setting>,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// The file could not be read at all: what seems to be missing may stand in it.
    pub(super) incomplete: bool,
    /// A configuration file is named, readable or not.
    pub(super) has_file: bool,
    /// Of the file; none where there is none, or it could not be read.
    pub(super) digest: Option<Digest>,
}

impl Settings {
    /// Reads the layers, lowest first, so that later ones win.
    pub(super) fn gather(overrides: &Overrides, env: impl Iterator<Item = (String, String)>) -> Settings {
        Settings::gather_with(overrides, env, None)
    }

    /// The same, with this text in place of what the file has.
    pub(super) fn gather_with(
        overrides: &Overrides,
        env: impl Iterator<Item = (String, String)>,
        text: Option<&str>,
    ) -> Settings {
        let mut settings = Settings::default();
        // Sorted, so that NEARSIDE_UPSTREAM__RETRY (a map) comes before NEARSIDE_UPSTREAM__RETRY__BASE_DELAY, which wins.
        let variables: BTreeMap<String, String> =
            env.filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty()).collect();
        let path = overrides.file.as_ref().or_else(|| variables.get(FILE_VARIABLE));
        if let Some(path) = path {
            settings.has_file = true;
            settings.add_file(path, text);
        }
        settings.add_environment(&variables);
        for (flag, key, node) in &overrides.values {
            settings.given.insert(key, Setting { origin: Origin::Flag(flag), node: node.clone() });
        }
        settings
    }

    /// One key, as somebody has sent it.
    pub(super) fn of_body(key: &'static str, node: Node) -> Settings {
        let setting = Setting { origin: Origin::Body, node };
        Settings { given: BTreeMap::from([(key, setting)]), ..Settings::default() }
    }

    /// The flag or the variable that gives a key, where it is not the file.
    pub(super) fn overridden(&self, key: &str) -> Option<String> {
        let setting = self.get(key)?;
        (!matches!(setting.origin, Origin::File(_))).then(|| setting.place(0))
    }

    /// The value of a key. `null` and the empty text count as not given, in every layer: it is what templates render
    /// for a value that nobody set.
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        let empty = |value: &Value| matches!(value, Value::Null) || *value == Value::Text(String::new());
        self.given.get(key).filter(|setting| !empty(&setting.node.value))
    }

    fn add_file(&mut self, path: &str, text: Option<&str>) {
        let bytes = text.map_or_else(|| read(Path::new(path)), |text| Ok(text.as_bytes().to_vec()));
        self.digest = bytes.as_ref().ok().map(|bytes| digest(bytes));
        let parsed = bytes
            .and_then(as_text)
            .map_err(|why| format!("{path}: cannot be read: {why}"))
            .and_then(|source| file::parse(&source).map_err(|e| not_yaml(path, &e)));
        match parsed {
            Ok(tree) => self.add_tree("", tree, &Origin::File(path.to_owned())),
            Err(problem) => {
                self.incomplete = true;
                self.problems.push(problem);
            }
        }
    }

    fn add_environment(&mut self, variables: &BTreeMap<String, String>) {
        let mut ignored = Vec::new();
        for (name, text) in variables.iter().filter(|(name, _)| *name != FILE_VARIABLE) {
            match keys::find(&key_of(name)) {
                Name::Key(key) => self.add_variable(name, key, text),
                Name::Section => self.add_section_variable(name, text),
                Name::Unknown => ignored.push(unknown_variable(name)),
            }
        }
        if !ignored.is_empty() {
            let names = ignored.join(", ");
            self.warnings.push(format!("ignored environment variables that are no settings: {names}"));
        }
    }

    /// A scalar is taken as it is: quoting rules would surprise in a password. Only what begins like a list is YAML.
    fn add_variable(&mut self, name: &str, key: &'static str, text: &str) {
        let node = if text.starts_with('[') || text.starts_with("- ") {
            self.variable_as_yaml(name, text)
        } else {
            Some(Node::text(text))
        };
        let origin = Origin::Variable(name.to_owned());
        self.given.extend(node.map(|node| (key, Setting { origin, node })));
    }

    fn add_section_variable(&mut self, name: &str, text: &str) {
        if let Some(node) = self.variable_as_yaml(name, text) {
            self.add_tree(&key_of(name), node, &Origin::Variable(name.to_owned()));
        }
    }

    fn variable_as_yaml(&mut self, name: &str, text: &str) -> Option<Node> {
        let parsed = file::parse(text);
        parsed.map_err(|e| self.problems.push(format!("{name}: not valid YAML: {}", e.message))).ok()
    }

    /// Walks a section down to its keys.
    fn add_tree(&mut self, section: &str, node: Node, origin: &Origin) {
        let line = node.line;
        match node.value {
            Value::Map(pairs) => {
                for (word, value) in pairs {
                    self.add_pair(section, &word, value, origin);
                }
            }
            Value::Null => {}
            Value::Text(_) | Value::List(_) => {
                let name = if section.is_empty() { "the file" } else { section };
                let what = "keys and values are wanted here, not a single value";
                self.problem(origin, line, &format!("{name}: {what}"));
            }
        }
    }

    fn add_pair(&mut self, section: &str, word: &Node, node: Node, origin: &Origin) {
        let Value::Text(text) = &word.value else {
            return self.problem(origin, word.line, "a key must be a plain word");
        };
        let name = keys::join(section, text);
        match keys::find(&name) {
            Name::Key(key) => {
                self.given.insert(key, Setting { origin: origin.clone(), node });
            }
            Name::Section => self.add_tree(&name, node, origin),
            Name::Unknown => {
                let name = printable(&name);
                self.problem(origin, word.line, &format!("{name}: unknown key; {}", keys::hint(&name)));
            }
        }
    }

    fn problem(&mut self, origin: &Origin, line: u64, what: &str) {
        let setting = Setting { origin: origin.clone(), node: Node { line, value: Value::Null } };
        self.problems.push(format!("{}: {what}", setting.place(line)));
    }
}

/// The dotted key of a variable: `NEARSIDE_UPSTREAM__RETRY__BASE_DELAY` is `upstream.retry.base_delay`.
fn key_of(variable: &str) -> String {
    let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
    name.replace("__", ".").to_ascii_lowercase()
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// Only names with two underscores are guessed at: Kubernetes injects NEARSIDE_PORT and NEARSIDE_SERVICE_HOST for a
/// Service of our name, and those were not meant for us.
fn unknown_variable(name: &str) -> String {
    let guess = name.contains("__").then(|| keys::nearest(&key_of(name))).flatten();
    match guess {
        Some(key) => format!("{name} (did you mean {}?)", variable_of(&key)),
        None => name.to_owned(),
    }
}

fn not_yaml(path: &str, error: &SyntaxError) -> String {
    let place = at_line(path, error.line.unwrap_or(0));
    format!("{place}: not valid YAML: {}", error.message)
}

fn at_line(path: &str, line: u64) -> String {
    if line == 0 { path.to_owned() } else { format!("{path}:{line}") }
}

/// A key is shown as written, save for control characters and length: the log is one line a message.
fn printable(name: &str) -> String {
    const NAME_MAX: usize = 100;
    name.chars().filter(|c| !c.is_control()).take(NAME_MAX).collect()
}

/// One byte more than a configuration may have, at most.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn as_text(bytes: Vec<u8>) -> Result<String, ReadError> {
    if bytes.len() as u64 > FILE_MAX {
        return Err(ReadError::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NoText)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("longer than 1 MiB, so hardly a configuration")]
    TooLong,
    #[error("not text in UTF-8")]
    NoText,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place(self.node.line))
    }
}
