//! The rules of layout that a machine can hold: imports go down, no file is orphaned, functions stay short, foreign
//! formats are known in one place, documented configuration keys exist. It reads the sources as text: rustfmt has made
//! them regular.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Layers from the top; a module imports from its own layer or below. The composition and the program's edge come first.
const LAYERS: &[&[&str]] = &[
    &["main", "lib", "cli"],
    &["app", "audit", "bench"],
    &["worker", "session", "http", "coherence", "front", "live"],
    &["router"],
    &["cache", "upstream", "local", "outage"],
    &["policy", "command", "config"],
    &["resp", "net"],
    &["observe", "limits", "error", "wake", "mutation", "sync"],
];

/// The layer whose members do not know each other.
const STRANGERS: usize = 4;

/// Talks RESP only, and imports nothing else of ours.
const APART: &str = "loadtest";

/// Longer functions hide a second one.
const LONGEST_FUNCTION: usize = 100;

/// Crates that one place knows, so that replacing them stays one place's work.
const KNOWN_IN_ONE_PLACE: &[(&str, &str)] = &[("redis_protocol", "resp"), ("serde_saphyr", "config")];

struct Source {
    /// Relative to src.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The module at the top of the tree that the file belongs to.
    fn module(&self) -> String {
        let first = self.path.components().next().expect("a path").as_os_str();
        Path::new(first).file_stem().expect("a name").to_string_lossy().into_owned()
    }

    fn is_test(&self) -> bool {
        self.path.file_stem().is_some_and(|stem| stem == "tests")
    }

    /// The lines of the product: no comments, and nothing from the tests at the foot on.
    fn code(&self) -> String {
        let product = self.text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        let code = product.filter(|line| !line.trim_start().starts_with("//"));
        code.collect::<Vec<_>>().join("\n")
    }
}

fn sources() -> Vec<Source> {
    let (root, mut found) = (Path::new(ROOT).join("src"), Vec::new());
    let mut open = vec![root.clone()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory of src") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                found.push(Source { path: path.strip_prefix(&root).expect("below src").into(), text });
            }
        }
    }
    found
}

/// The first segments of all paths that start at the crate's root.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_members(group)),
            None => found.extend(first_segment(rest)),
        }
    }
    found
}

/// The names at the first level of `a::{b, c}, d}`.
fn group_members(group: &str) -> Vec<String> {
    let (mut depth, mut found, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                found.extend(first_segment(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    found
}

/// A module's name; a type or function that the root re-exports is none.
fn first_segment(path: &str) -> Option<String> {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    let name = &path[..end];
    name.starts_with(|c: char| c.is_lowercase()).then(|| name.to_string())
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn complaint(from: &str, to: &str) -> Option<String> {
    if from == to || (from == APART && to == "resp") {
        return None;
    }
    let Some(own) = layer(from) else {
        return Some(format!("module {from} has no layer, or may not import {to}"));
    };
    match layer(to) {
        None => Some(format!("{to} has no layer")),
        Some(other) if other < own => Some(format!("{from} imports {to}, which is above it")),
        Some(other) if other == own && own == STRANGERS => Some(format!("{from} imports its neighbour {to}")),
        Some(_) => None,
    }
}

#[test]
fn imports_go_down_only() {
    let mut complaints = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for to in crate_paths(&source.code()) {
            complaints.extend(complaint(&source.module(), &to).map(|c| format!("{}: {c}", source.path.display())));
        }
    }
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn a_foreign_format_is_known_in_one_place() {
    let sources = sources();
    for (name, place) in KNOWN_IN_ONE_PLACE {
        let users = sources.iter().filter(|source| source.module() != *place && source.code().contains(name));
        let users: Vec<_> = users.map(|source| &source.path).collect();
        assert!(users.is_empty(), "{name} belongs to {place}, not to {users:?}");
    }
}

#[test]
fn every_file_is_named_by_a_mod() {
    let sources = sources();
    let orphans: Vec<_> = sources.iter().filter(|source| !is_named(source, &sources)).map(|s| &s.path).collect();
    assert!(orphans.is_empty(), "no mod names {orphans:?}");
}

/// Whether the file's parent module says `mod name;`.
fn is_named(source: &Source, sources: &[Source]) -> bool {
    let stem = source.path.file_stem().expect("a name").to_string_lossy().into_owned();
    let dir = source.path.parent().expect("a directory");
    if dir == Path::new("") && matches!(stem.as_str(), "main" | "lib") {
        return true;
    }
    let (dir, name) = match stem.as_str() {
        "mod" => (dir.parent().expect("not the root"), dir.file_name().expect("a name").to_string_lossy().into_owned()),
        _ => (dir, stem),
    };
    let parents = if dir == Path::new("") {
        vec!["lib.rs".into(), "main.rs".into()]
    } else {
        vec![dir.join("mod.rs"), dir.with_extension("rs")]
    };
    let declares = |line: &str| line.trim_start().trim_end().ends_with(&format!("mod {name};"));
    sources.iter().filter(|s| parents.contains(&s.path)).any(|s| s.text.lines().any(declares))
}

#[test]
fn functions_are_short() {
    let long: Vec<String> = sources().iter().flat_map(long_functions).collect();
    assert!(long.is_empty(), "longer than {LONGEST_FUNCTION} lines: {long:#?}");
}

/// A function ends at the brace that stands where its first line starts.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
        let end = lines[start..].iter().position(|l| l.trim_end() == format!("{}}}", " ".repeat(indent(line))));
        let length = end.unwrap_or(0) + 1;
        if length > LONGEST_FUNCTION {
            found.push(format!("{}:{}: {length} lines", source.path.display(), start + 1));
        }
    }
    found
}

fn is_function(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "fn");
    let before = |n: usize| words[..n].iter().all(|w| w.starts_with("pub") || matches!(*w, "async" | "const"));
    at.is_some_and(before) && line.trim_end().ends_with(['{', '(', ')', '>'])
}

/// The configuration module's own test loads the file; this one finds keys it would not have to know.
#[test]
fn documented_configuration_keys_exist() {
    let Ok(yaml) = fs::read_to_string(Path::new(ROOT).join("config/nearside.yaml")) else {
        return; // until the file is there
    };
    let config: String = sources().into_iter().filter(|s| s.module() == "config").map(|s| s.text).collect();
    let keys = yaml.lines().filter_map(|line| line.trim_start().split_once(':')).map(|(key, _)| key);
    let is_key = |key: &&str| !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let unknown: BTreeSet<&str> = keys.filter(is_key).filter(|key| !config.contains(*key)).collect();
    assert!(unknown.is_empty(), "config/nearside.yaml has keys that src/config does not: {unknown:?}");
}

#[test]
fn the_readers_of_this_test_see() {
    let code = "use crate::{a, b::{c, d}, e};\npub(crate) fn f() { crate::g::h(); crate::Type::new(); }";
    assert_eq!(crate_paths(code).into_iter().collect::<Vec<_>>(), ["a", "b", "e", "g"]);
    assert!(complaint("router", "session").is_some() && complaint("session", "router").is_none());
    assert!(complaint("cache", "upstream").is_some() && complaint("policy", "command").is_none());
    assert!(complaint(APART, "resp").is_none() && complaint(APART, "config").is_some());
    let text = format!("fn long() {{\n{}}}\nfn short() {{\n}}\n", "    x();\n".repeat(LONGEST_FUNCTION));
    assert_eq!(long_functions(&Source { path: "a.rs".into(), text }), ["a.rs:1: 102 lines"]);
}
