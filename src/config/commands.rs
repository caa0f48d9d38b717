//! The section `commands`: its words, and the lists of maps `overrides` and `rate`. Runs at start with the rest of `resolve`;
//! what the words then mean for each command is `policy::commands`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use super::{
    Commands,
    fields::{Fields, Kind},
    file::{Node, Value, quoted},
    keys,
    resolve::{Resolver, TCP_DEFAULT},
    units::{self, shown},
};
use crate::command::categories::Categories;
use crate::command::table;
use crate::policy::commands::{Listener, OnLimit, Override, Rate, Scope, Who, Word};

/// Each override is compiled for the whole table (2 bytes a command), and each entry looked at once for every client.
const ENTRIES_MAX: usize = 100;

/// Words of one list: they are looked at in turn where keys matter.
const WORDS_MAX: usize = 1000;

/// Above this the distance between two tokens would be no whole number of nanoseconds to within 0.1 %.
const PER_SECOND: RangeInclusive<u64> = 1..=1_000_000;

const WHO: [&str; 3] = ["client", "user", "listener"];
const OF_OVERRIDE: [&str; 6] = ["client", "user", "listener", "deny", "allow", "enforce"];
const OF_RATE: [&str; 7] = ["client", "user", "listener", "per_second", "burst", "on_limit", "scope"];

const ON_LIMIT: [(&str, OnLimit); 2] = [("wait", OnLimit::Wait), ("error", OnLimit::Error)];
const SCOPE: [(&str, Scope); 2] = [("shared", Scope::Shared), ("connection", Scope::Connection)];

impl Resolver<'_> {
    pub(super) fn commands(&mut self) -> Commands {
        let tcp = self.listen_tcp();
        Commands {
            shutdown: self.one("commands.shutdown", false, units::boolean),
            deny: self.words("commands.deny").unwrap_or_default(),
            allow: self.words("commands.allow").map(|words| self.not_empty("commands.allow", words)),
            enforce: self.one("commands.enforce", true, units::boolean),
            overrides: self.entries("commands.overrides", &OF_OVERRIDE, |fields| Some(an_override(fields, &tcp))),
            rate: self.entries("commands.rate", &OF_RATE, |fields| a_rate(fields, &tcp)),
        }
    }

    /// None: not given.
    fn words(&mut self, key: &str) -> Option<Vec<Word>> {
        self.settings.get(key)?;
        let words = self.list(key, &[], word);
        if words.len() > WORDS_MAX {
            self.problem(key, &format!("has {} words; at most {WORDS_MAX}", words.len()));
        }
        Some(words)
    }

    fn not_empty(&mut self, key: &str, words: Vec<Word>) -> Vec<Word> {
        let empty = self.settings.get(key).is_some_and(|s| matches!(&s.node.value, Value::List(l) if l.is_empty()));
        if empty {
            self.problem(key, EMPTY_ALLOW);
        }
        words
    }

    /// Reads a list of maps whose words are `known`.
    fn entries<T>(&mut self, key: &str, known: &[&str], read: impl Fn(&mut Fields<'_>) -> Option<T>) -> Vec<T> {
        let Some(setting) = self.settings.get(key) else { return Vec::new() };
        let Value::List(items) = &setting.node.value else {
            self.problem(key, &format!("a list of maps is wanted here, for example {}", example(known)));
            return Vec::new();
        };
        if items.len() > ENTRIES_MAX {
            self.problem(key, &format!("has {} entries; at most {ENTRIES_MAX}", items.len()));
        }
        let mut all = Vec::new();
        for (at, item) in items.iter().enumerate() {
            if !matches!(item.value, Value::Map(_)) {
                let what = format!("each element is a map here, for example {}", example(known));
                self.problems.push(format!("{}: {key}: {what}", setting.place(item.line)));
                continue;
            }
            let name = format!("{key}[{at}]");
            let Some(mut fields) = Fields::new(Kind::Numbered, name, item, setting, &mut self.problems) else {
                continue;
            };
            fields.only(known);
            all.extend(read(&mut fields));
        }
        all
    }

    /// What is wrong with the addresses themselves is said where they stand.
    fn listen_tcp(&self) -> Vec<SocketAddr> {
        match self.settings.get("listen.tcp").map(|setting| &setting.node.value) {
            Some(Value::List(items)) => {
                let text = |item: &Node| if let Value::Text(text) = &item.value { text.parse().ok() } else { None };
                items.iter().filter_map(text).collect()
            }
            _ => TCP_DEFAULT.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }
}

fn an_override(fields: &mut Fields<'_>, tcp: &[SocketAddr]) -> Override {
    let who = who(fields, tcp);
    let deny = entry_words(fields, "deny");
    let allow = entry_words(fields, "allow");
    if allow.as_ref().is_some_and(Vec::is_empty) && fields.node("allow").is_some_and(is_empty_list) {
        fields.problem_of("allow", EMPTY_ALLOW);
    }
    let enforce = fields.one("enforce", units::boolean);
    let changes = ["deny", "allow", "enforce"].iter().any(|word| fields.node(word).is_some());
    needs(fields, &WHO, "for whom it is");
    if !changes {
        fields.problem("says nothing; give deny, allow or enforce");
    }
    Override { who, deny, allow, enforce }
}

fn a_rate(fields: &mut Fields<'_>, tcp: &[SocketAddr]) -> Option<Rate> {
    let who = who(fields, tcp);
    let number = |text: &str| units::number(text, PER_SECOND).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let per_second = fields.one("per_second", number);
    let burst = fields.one("burst", number);
    let on_limit = fields.one("on_limit", |text| units::word(text, &ON_LIMIT));
    let scope = fields.one("scope", |text| units::word(text, &SCOPE));
    needs(fields, &["per_second"], "how many commands a second");
    let per_second = per_second?;
    Some(Rate {
        who,
        per_second,
        burst: burst.unwrap_or(per_second),
        on_limit: on_limit.unwrap_or(OnLimit::Wait),
        scope: scope.unwrap_or(Scope::Shared),
    })
}

fn needs(fields: &mut Fields<'_>, one_of: &[&str], why: &str) {
    if one_of.iter().all(|word| fields.node(word).is_none()) {
        fields.problem(&format!("does not say {why}; give {}", one_of.join(", ")));
    }
}

fn who(fields: &mut Fields<'_>, tcp: &[SocketAddr]) -> Who {
    let listener = |text: &str| match text {
        "tcp" => Ok(Listener::Tcp),
        "unix" => Ok(Listener::Unix),
        _ => match text.parse() {
            Ok(address) if tcp.contains(&address) => Ok(Listener::Address(address)),
            _ => {
                let listed: Vec<String> = tcp.iter().map(ToString::to_string).collect();
                Err(format!("{} is not tcp, unix or one of listen.tcp ({})", shown(text), listed.join(", ")))
            }
        },
    };
    Who {
        client: fields.one("client", a_glob),
        user: fields.one("user", a_glob),
        listener: fields.one("listener", listener),
    }
}

fn entry_words(fields: &mut Fields<'_>, which: &str) -> Option<Vec<Word>> {
    let words = fields.list_like(which, "[\"@dangerous\"]", word)?;
    if let Some(Value::List(items)) = fields.node(which).map(|node| &node.value)
        && items.len() > WORDS_MAX
    {
        fields.problem_of(which, &format!("has {} words; at most {WORDS_MAX}", items.len()));
    }
    Some(words)
}

const EMPTY_ALLOW: &str = "an empty list would refuse every command; null allows all, else name what is allowed";

fn is_empty_list(node: &Node) -> bool {
    matches!(&node.value, Value::List(items) if items.is_empty())
}

fn example(known: &[&str]) -> &'static str {
    if known.contains(&"per_second") {
        "[{client: \"batch-*\", per_second: 1000}]"
    } else {
        "[{client: \"batch-*\", deny: [\"@write\"]}]"
    }
}

/// One word of a policy.
fn word(text: &str) -> Result<Word, String> {
    let text = text.trim();
    match text.chars().next() {
        Some('~') => a_glob(&text[1..]).map(Word::Key),
        Some('@') => category(&text[1..]),
        Some('+' | '-') => {
            Err(format!("{}: write the command without + or -; deny and allow say which it is", shown(text)))
        }
        Some('%' | '&') => Err(format!("{}: only ~pattern, for reading and writing, is known here", shown(text))),
        _ => command(text),
    }
}

fn category(name: &str) -> Result<Word, String> {
    if name.eq_ignore_ascii_case("all") {
        return Ok(Word::All);
    }
    if Categories::named(name).is_some() {
        return Ok(Word::Category(name.to_ascii_lowercase()));
    }
    let hint = match keys::nearest_of(&name.to_ascii_lowercase(), Categories::names()) {
        Some(near) => format!("did you mean @{near}?"),
        None => format!("there are @all, @{}", Categories::names().collect::<Vec<_>>().join(", @")),
    };
    Err(format!("\"@{}\" is no category; {hint}", shown(name).trim_matches('"')))
}

fn command(text: &str) -> Result<Word, String> {
    let name = text.to_ascii_lowercase().split_whitespace().collect::<Vec<_>>().join("|");
    let known = table::by_name(name.as_bytes()).is_some() || table::is_container(name.as_bytes());
    // Modules name their commands so, and the table does not have them.
    let of_module = name.contains('.') && !name.contains('|') && name.bytes().all(|b| b.is_ascii_graphic());
    if known || of_module {
        return Ok(Word::Command(name));
    }
    let all = || table::all().map(|spec| spec.name).chain(table::containers());
    let hint = match keys::nearest_of(&name, all()) {
        Some(near) => format!("did you mean {near}?"),
        None => "use Redis's own name (also where upstream has renamed it), a subcommand as client|kill, @category or ~pattern".to_owned(),
    };
    Err(format!("{} is no command that Nearside knows; {hint}", shown(text)))
}

/// A glob as KEYS takes it. Redis reads broken ones in its own way; here they are a slip.
fn a_glob(text: &str) -> Result<String, String> {
    let bad = |what: &str| {
        Err(format!("{} is not a pattern: {what}; write it as for KEYS, for example session:*", shown(text)))
    };
    if text.is_empty() {
        return bad("it is empty");
    }
    let mut bytes = text.bytes();
    let mut class = false;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.next().is_none() => return bad("nothing follows the last \\"),
            b'[' => class = true,
            b']' => class = false,
            _ => {}
        }
    }
    if class { bad("a [ is not closed by ]") } else { Ok(text.to_owned()) }
}

// ---- as YAML again ----

pub(super) fn words_yaml(words: &[Word]) -> String {
    let all: Vec<String> = words.iter().map(|word| quoted(&word.to_string())).collect();
    format!("[{}]", all.join(", "))
}

pub(super) fn overrides_yaml(overrides: &[Override]) -> String {
    let one = |o: &Override| {
        let mut fields = who_yaml(&o.who);
        fields.extend(o.deny.as_deref().map(|words| format!("deny: {}", words_yaml(words))));
        fields.extend(o.allow.as_deref().map(|words| format!("allow: {}", words_yaml(words))));
        fields.extend(o.enforce.map(|on| format!("enforce: {on}")));
        format!("{{{}}}", fields.join(", "))
    };
    format!("[{}]", overrides.iter().map(one).collect::<Vec<_>>().join(", "))
}

pub(super) fn rates_yaml(rates: &[Rate]) -> String {
    let one = |rate: &Rate| {
        let mut fields = who_yaml(&rate.who);
        fields.push(format!("per_second: {}", rate.per_second));
        fields.push(format!("burst: {}", rate.burst));
        fields
            .extend(ON_LIMIT.iter().find(|(_, on)| *on == rate.on_limit).map(|(word, _)| format!("on_limit: {word}")));
        fields.extend(SCOPE.iter().find(|(_, on)| *on == rate.scope).map(|(word, _)| format!("scope: {word}")));
        format!("{{{}}}", fields.join(", "))
    };
    format!("[{}]", rates.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn who_yaml(who: &Who) -> Vec<String> {
    let glob = |word: &str, glob: &Option<String>| glob.as_ref().map(|glob| format!("{word}: {}", quoted(glob)));
    let listener = who.listener.map(|listener| format!("listener: {}", quoted(&listener.to_string())));
    [glob("client", &who.client), glob("user", &who.user), listener].into_iter().flatten().collect()
}
