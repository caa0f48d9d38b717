//! One rule put among those that run, or taken away: read as a file's rules are and checked with all the others, so that it
//! is refused for the same reasons in the same words. Pure; whoever wants it in force is `crate::live`.

use super::file::{self, Node, Value};
use super::resolve::Resolver;
use super::rules::{NAME_MAX, RULES_MAX, Rule};
use super::settings::Settings;
use super::units::shown;
use super::{Config, ConfigError, keys};

/// Where a rule goes that is new, or is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Where the rule of that name is; a new one in front of a closing `*`, which would otherwise take all its keys, else at
    /// the end.
    Natural,
    Before(String),
    /// Counted from 0.
    At(usize),
}

/// A list that is valid with everything else, and what is to be said of it.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) rules: Vec<Rule>,
    pub(crate) warnings: Vec<String>,
}

/// The rules of `base` with one of this name, as `body` says: a map in JSON or YAML with a rule's keys.
pub(crate) fn put_rule(base: &Config, name: &str, body: &str, place: &Place) -> Result<Changed, ConfigError> {
    let settings = Settings::of_body("rules", node(name, body).map_err(one)?);
    let mut resolver = Resolver::new(&settings);
    let read = resolver.rules(&base.cache).pop();
    if !resolver.problems.is_empty() {
        return Err(ConfigError { problems: resolver.problems });
    }
    let rule = read.ok_or_else(|| one("body: no rule".to_owned()))?;
    let mut rules = base.rules.clone();
    insert(&mut rules, rule, place).map_err(one)?;
    checked(base, rules, &settings)
}

/// The rules of `base` without that one; none where there is none.
pub(crate) fn without_rule(base: &Config, name: &str) -> Option<Result<Changed, ConfigError>> {
    let mut rules = base.rules.clone();
    let at = rules.iter().position(|rule| rule.name == name)?;
    rules.remove(at);
    let last = rules.is_empty();
    let mut changed = checked(base, rules, &Settings::default());
    if let (Ok(changed), true) = (&mut changed, last) {
        changed.warnings.push("rules: none is left, every key is cached as `cache` says".to_owned());
    }
    Some(changed)
}

/// The text with its suggestion for a name that no rule has.
pub(crate) fn no_such_rule(base: &Config, name: &str) -> String {
    // To compare names takes the product of their lengths.
    let short = |name: &&str| name.len() <= NAME_MAX;
    let names: Vec<&str> = base.rules.iter().map(|rule| rule.name.as_str()).filter(short).collect();
    let near = if short(&name) { keys::nearest_of(name, names.iter().copied()) } else { None };
    match near {
        Some(near) => format!("there is no rule {}; did you mean {}?", shown(name), shown(near)),
        None => format!("there is no rule {}", shown(name)),
    }
}

fn one(problem: String) -> ConfigError {
    ConfigError { problems: vec![problem] }
}

/// A list of the one rule that `body` has, with its name.
fn node(name: &str, body: &str) -> Result<Node, String> {
    let place = |line: Option<u64>| line.map_or_else(|| "body".to_owned(), |line| format!("body:{line}"));
    let tree = file::parse(body).map_err(|e| format!("{}: not valid JSON or YAML: {}", place(e.line), e.message))?;
    let Value::Map(mut pairs) = tree.value else {
        let example = r#"{"pattern": "session:*", "ttl": "5m"}"#;
        return Err(format!("{}: keys and values are wanted here, for example {example}", place(Some(tree.line))));
    };
    let given = |pairs: &[(Node, Node)], key: &str| {
        pairs.iter().find(|(k, _)| k.value == Value::Text(key.to_owned())).map(|(_, v)| v.clone())
    };
    if let Some(other) = given(&pairs, "name").filter(|other| other.value != Value::Text(name.to_owned())) {
        let other = if let Value::Text(text) = &other.value { shown(text) } else { "that".to_owned() };
        return Err(format!("body: name: {other} is not the name in the path, {}; leave it out", shown(name)));
    }
    // A rule without a name of its own is called by its pattern, which need not be allowed as a name.
    pairs.retain(|(key, _)| key.value != Value::Text("name".to_owned()));
    if given(&pairs, "pattern").is_none_or(|pattern| pattern.value != Value::Text(name.to_owned())) {
        pairs.push((Node::text("name"), Node::text(name)));
    }
    let rule = Node { line: tree.line, value: Value::Map(pairs) };
    Ok(Node { line: tree.line, value: Value::List(vec![rule]) })
}

fn insert(rules: &mut Vec<Rule>, rule: Rule, place: &Place) -> Result<(), String> {
    let old = rules.iter().position(|other| other.name == rule.name);
    if let (Place::Natural, Some(at)) = (place, old) {
        rules[at] = rule;
        return Ok(());
    }
    if let Some(at) = old {
        rules.remove(at);
    }
    let at = match place {
        Place::Natural => rules.len() - usize::from(rules.last().is_some_and(|last| last.pattern.text() == "*")),
        Place::Before(name) => rules
            .iter()
            .position(|other| other.name == *name)
            .ok_or_else(|| format!("before: {} is no other rule", shown(name)))?,
        Place::At(at) if *at <= rules.len() => *at,
        Place::At(at) => return Err(format!("at: {at} is past the end; there are {} other rules", rules.len())),
    };
    rules.insert(at, rule);
    Ok(())
}

fn checked(base: &Config, rules: Vec<Rule>, settings: &Settings) -> Result<Changed, ConfigError> {
    if rules.len() > RULES_MAX {
        return Err(one(format!("rules: {} are more than {RULES_MAX}", rules.len())));
    }
    let mut resolver = Resolver::new(settings);
    let config = Config { rules, ..base.clone() };
    resolver.check_rules(&config);
    if !resolver.problems.is_empty() {
        return Err(ConfigError { problems: resolver.problems });
    }
    Ok(Changed { rules: config.rules, warnings: resolver.warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[{name: a, pattern: 'a:*', max_share: 0.5}, {name: rest, pattern: '*'}]";

    fn put(name: &str, body: &str, place: &Place) -> Result<Vec<String>, Vec<String>> {
        let base = Config::for_tests_with_rules(BASE);
        let names = |changed: Changed| changed.rules.into_iter().map(|rule| rule.name).collect();
        put_rule(&base, name, body, place).map(names).map_err(ConfigError::into_problems)
    }

    fn refused(name: &str, body: &str) -> String {
        put(name, body, &Place::Natural).unwrap_err().join("\n")
    }

    #[test]
    fn a_rule_is_replaced_where_it_is_and_a_new_one_comes_before_the_last_resort() {
        let body = r#"{"pattern": "b:*", "ttl": "1m"}"#;
        assert_eq!(put("a", body, &Place::Natural).unwrap(), ["a", "rest"]);
        assert_eq!(put("b", body, &Place::Natural).unwrap(), ["a", "b", "rest"]);
        assert_eq!(put("b", body, &Place::Before("a".to_owned())).unwrap(), ["b", "a", "rest"]);
        assert_eq!(put("b", body, &Place::At(2)).unwrap(), ["a", "rest", "b"]);
        assert_eq!(put("a", body, &Place::At(1)).unwrap(), ["rest", "a"]);
        assert_eq!(put("b:*", body, &Place::Natural).unwrap(), ["a", "b:*", "rest"]);
        assert!(put("b", body, &Place::At(3)).unwrap_err()[0].contains("past the end"));
        assert!(put("a", body, &Place::Before("a".to_owned())).unwrap_err()[0].contains("no other rule"));
    }

    #[test]
    fn what_is_wrong_is_said_as_of_a_file() {
        for (body, problem) in [
            ("[1]", "body:1: keys and values are wanted here"),
            ("", "keys and values are wanted here"),
            ("{", "not valid JSON or YAML"),
            (r#"{"ttl": "1m"}"#, "body:1: rules: n: pattern is missing"),
            (r#"{"pattern": "b:*", "rollout": 120}"#, "rollout: \"120\" is not a share of the keys; use 0 to 100"),
            (r#"{"pattern": "b:*", "tll": "1m"}"#, "\"tll\": unknown key; did you mean ttl?"),
            (r#"{"pattern": "b:*", "tags": ["x:{id}"]}"#, "tags: "),
            ("{\"pattern\": \"b:*\",\n\"ttl\": 5}", "body:2: rules: n: ttl: \"5\" is not a duration"),
            (r#"{"pattern": "b:*", "max_share": 0.6}"#, "the max_share of a, n come to 1.1 of cache.max_bytes"),
            (r#"{"pattern": "b:*", "name": "other"}"#, "\"other\" is not the name in the path, \"n\""),
            (r#"{"pattern": "[b"}"#, "pattern: "),
        ] {
            let all = refused("n", body);
            assert!(all.contains(problem), "{body}: {all}");
        }
        assert!(refused("_n", r#"{"pattern": "b:*"}"#).contains("is no name"));
    }

    #[test]
    fn a_rule_goes_by_its_name_only_and_the_last_one_leaves_a_word() {
        let base = Config::for_tests_with_rules(BASE);
        let changed = without_rule(&base, "rest").unwrap().unwrap();
        assert_eq!(changed.rules.len(), 1);
        assert!(without_rule(&base, "b").is_none());
        assert!(no_such_rule(&base, "restt").ends_with("did you mean \"rest\"?"));
        let alone = Config { rules: changed.rules, ..base };
        let none = without_rule(&alone, "a").unwrap().unwrap();
        assert!(none.warnings[0].contains("none is left"), "{:?}", none.warnings);
    }
}
