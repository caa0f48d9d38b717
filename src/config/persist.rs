//! The rules that run, written back into the configuration file: only its section `rules` is replaced, and of that only what
//! has changed; everything else stays byte for byte. It is done on the text, by the lines that the parser names, and then
//! proved: the new text must come to the configuration that the old one came to, with these rules. What that proof does not
//! hold for is refused with the reason, and nothing is written.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::file::{self, Node, Value};
use super::layers::Layers;
use super::rules::Rule;
use super::settings::{Digest, as_text, digest, read};
use super::{Cache, Config};

impl Layers {
    /// Puts `rules` into the file, whole or not at all. `known` is the text that runs: another one has not been looked at
    /// yet. Returns the new text's digest; the error is a sentence for whoever asked.
    pub(crate) fn persist(&self, rules: &[Rule], known: Option<Digest>) -> Result<Digest, String> {
        let path = self.file().ok_or("there is no configuration file (--config), only flags and variables")?;
        let shown = path.display();
        self.can_be_read_again()?;
        let target = fs::canonicalize(&path).map_err(|e| format!("{shown}: {e}"))?;
        let bytes = read(&target).map_err(|e| format!("{shown}: {e}"))?;
        if known != Some(digest(&bytes)) {
            return Err(format!("{shown} has changed since it was loaded; reload it first (POST /api/v1/reload)"));
        }
        let old = as_text(bytes).map_err(|e| format!("{shown}: {e}"))?;
        let new = self.rewritten(&old, rules).map_err(|why| format!("{shown}: {why}"))?;
        replace(&target, new.as_bytes()).map_err(|why| format!("{shown} cannot be written: {why}"))?;
        Ok(digest(new.as_bytes()))
    }

    /// The text with these rules, proved to mean just that.
    fn rewritten(&self, old: &str, rules: &[Rule]) -> Result<String, String> {
        if let Some(place) = self.settings(Some(old)).overridden("rules") {
            return Err(format!("the rules come from {place}, which wins over the file"));
        }
        let before = self.load_text(old).map_err(|e| format!("it is not valid as it is: {e}"))?;
        let new = with_rules(old, rules, &before.rules, &before.cache)?;
        let wanted = Config { rules: rules.to_vec(), ..before };
        match self.load_text(&new) {
            Ok(after) if after == wanted => Ok(new),
            Ok(_) | Err(_) => Err("its section rules cannot be replaced without a change of something else".to_owned()),
        }
    }
}

/// Where the section `rules` is in a text, in lines.
struct Section {
    /// Its first line, `rules:`.
    head: usize,
    /// Behind its last line.
    end: usize,
    /// Where each rule's lines begin, the comments above it included (not those above the first, which stay whatever becomes
    /// of it), and where it begins itself. Empty where the rules are not in lines of their own.
    rules: Vec<(usize, usize)>,
}

/// `text` with the section `rules` as these are. `present` are the rules that it has, in order; those that stay keep their
/// lines.
fn with_rules(text: &str, rules: &[Rule], present: &[Rule], cache: &Cache) -> Result<String, String> {
    let tree = file::parse(text).map_err(|e| e.message)?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let eol = if lines.first().is_some_and(|line| line.ends_with("\r\n")) { "\r\n" } else { "\n" };
    let Some(section) = find(&tree, &lines)? else {
        return Ok(appended(text, rules, cache, eol));
    };
    let mut out: Vec<String> = lines[..section.head].iter().map(|line| (*line).to_owned()).collect();
    let first = section.rules.first().map(|(_, at)| *at);
    let indent = first.map_or("  ", |at| indent(lines[at]));
    if rules.is_empty() {
        out.push(format!("rules: []{eol}"));
    } else {
        match first {
            // With the comments between it and the first rule.
            Some(at) => out.extend(lines[section.head..at].iter().map(|line| (*line).to_owned())),
            None => out.push(format!("rules:{eol}")),
        }
        for rule in rules {
            let old = present.iter().take(section.rules.len()).position(|old| old.name == rule.name);
            let Some(i) = old else {
                out.push(rule.yaml_block(cache, indent, eol));
                continue;
            };
            let (from, at) = section.rules[i];
            let end = section.rules.get(i + 1).map_or(section.end, |(next, _)| *next);
            let kept = if present[i] == *rule { from..end } else { from..at };
            out.extend(lines[kept.clone()].iter().map(|line| whole_line(line, eol)));
            if kept.end == at {
                out.push(rule.yaml_block(cache, indent, eol));
            }
        }
    }
    out.extend(lines[section.end..].iter().map(|line| (*line).to_owned()));
    Ok(out.concat())
}

fn find(tree: &Node, lines: &[&str]) -> Result<Option<Section>, String> {
    let pairs = match &tree.value {
        Value::Map(pairs) => &pairs[..],
        Value::Null | Value::Text(_) | Value::List(_) => &[],
    };
    // Each key at the start of its line: braces around everything, or several keys in a line, are not taken apart here.
    let at = |node: &Node| usize::try_from(node.line).unwrap_or(0).saturating_sub(1);
    let plain = |node: &Node| {
        let Value::Text(word) = &node.value else { return false };
        lines.get(at(node)).is_some_and(|line| line.trim_start_matches(['"', '\'']).starts_with(word.as_str()))
    };
    if !pairs.iter().all(|(key, _)| plain(key)) {
        return Err("it is not written as one key a line at its top, so a section cannot be replaced in it".to_owned());
    }
    let Some((key, value)) = pairs.iter().find(|(key, _)| key.value == Value::Text("rules".to_owned())) else {
        return Ok(None);
    };
    let head = at(key);
    let next = pairs.iter().map(|(key, _)| at(key)).filter(|line| *line > head).min().unwrap_or(lines.len());
    let marker = |line: &&str| line.starts_with("...") || line.starts_with("---");
    let next = lines[head..next].iter().position(marker).map_or(next, |i| head + i);
    let end = next - lines[head + 1..next].iter().rev().take_while(|line| is_comment(line)).count();
    Ok(Some(Section { head, end, rules: rules_of(value, lines, head, at) }))
}

/// Where each rule of a list with one `- ` a rule begins.
fn rules_of(value: &Node, lines: &[&str], head: usize, at: impl Fn(&Node) -> usize) -> Vec<(usize, usize)> {
    let Value::List(items) = &value.value else { return Vec::new() };
    let mut rules = Vec::new();
    let mut last = head;
    for item in items {
        let line = at(item);
        let own = line > last && lines.get(line).is_some_and(|text| text.trim_start().starts_with("- "));
        if !own || matches!(item.value, Value::Null) {
            return Vec::new();
        }
        let above = lines[last + 1..line].iter().rev().take_while(|line| is_comment(line)).count();
        let from = if rules.is_empty() { line } else { line - above };
        rules.push((from, line));
        last = line;
    }
    rules
}

fn appended(text: &str, rules: &[Rule], cache: &Cache, eol: &str) -> String {
    let mut out = text.to_owned();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push_str(eol);
    }
    if !rules.is_empty() {
        out.push_str(&format!("rules:{eol}"));
        rules.iter().for_each(|rule| out.push_str(&rule.yaml_block(cache, "  ", eol)));
    }
    out
}

fn is_comment(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// The last line of a file may lack its end.
fn whole_line(line: &str, eol: &str) -> String {
    if line.ends_with('\n') { line.to_owned() } else { format!("{line}{eol}") }
}

/// A reader sees the old bytes or the new ones. Owner and mode stay.
fn replace(target: &Path, bytes: &[u8]) -> Result<(), String> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let draft = dir.join(format!(".{name}.nearside-{}", std::process::id()));
    let done = write_draft(target, &draft, bytes).and_then(|()| fs::rename(&draft, target).map_err(|e| e.to_string()));
    if done.is_err() {
        // Where it was not even created there is nothing to remove.
        let _ = fs::remove_file(&draft);
        return done;
    }
    // The new text is in its place whatever this says; it tells whether a crash of the host could bring back the old one.
    if let Err(e) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::warn!("{}: the directory is not known to be on disk: {e}", dir.display());
    }
    Ok(())
}

fn write_draft(target: &Path, draft: &PathBuf, bytes: &[u8]) -> Result<(), String> {
    let said = |e: std::io::Error| e.to_string();
    let old = fs::metadata(target).map_err(said)?;
    // Left over from a process of this number that was killed in between.
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft).map_err(said)?;
    let new = file.metadata().map_err(said)?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))
            .map_err(|e| format!("its owner could not be kept: {e}"))?;
    }
    file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777)).map_err(said)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Place, put_rule, without_rule};

    const FILE: &str = "# head
upstream: {url: 'redis://h'}   # where

# What is cached.
rules:   # in order
  # the first
  - name: a   # keeps its text
    pattern: 'a:*'
    ttl: 60s

  # the second
  - {name: b, pattern: \"b:*\"}
  - pattern: '*'

# How much is said.
log:
  level: warn
";

    struct Kept {
        dir: tempfile::TempDir,
    }

    impl Kept {
        fn new(text: &str) -> Kept {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join("n.yaml"), text).expect("a file");
            Kept { dir }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("n.yaml")
        }

        fn layers(&self, env: &[(&str, &str)]) -> Layers {
            let mut overrides = Overrides::default();
            overrides.file(Some(self.path().display().to_string()));
            Layers::new(overrides, env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path()).expect("the file")
        }

        /// Puts or removes (no body) a rule of what is loaded, and persists.
        fn change(&self, env: &[(&str, &str)], name: &str, body: Option<&str>) -> Result<(), String> {
            let layers = self.layers(env);
            let loaded = layers.load();
            let (config, _) = loaded.result.expect("a valid file");
            let changed = match body {
                Some(body) => put_rule(&config, name, body, &Place::Natural),
                None => without_rule(&config, name).expect("that rule"),
            };
            let rules = changed.expect("a valid change").rules;
            layers.persist(&rules, loaded.digest)?;
            assert_eq!(layers.load().result.expect("a valid file").0.rules, rules);
            Ok(())
        }
    }

    fn changed(text: &str, name: &str, body: Option<&str>) -> String {
        let kept = Kept::new(text);
        kept.change(&[], name, body).unwrap_or_else(|why| panic!("{text}: {why}"));
        kept.text()
    }

    #[test]
    fn only_the_rule_that_changed_is_written_anew() {
        let new = changed(FILE, "b", Some(r#"{"pattern": "b:*", "ttl": "1m"}"#));
        let wanted = "  - name: \"b\"\n    pattern: \"b:*\"\n    ttl: 1m\n";
        assert_eq!(new, FILE.replace("  - {name: b, pattern: \"b:*\"}\n", wanted));
        let new = changed(FILE, "a", None);
        assert_eq!(new, FILE.replace("  - name: a   # keeps its text\n    pattern: 'a:*'\n    ttl: 60s\n", ""));
        let new = changed(FILE, "c:*", Some(r#"{"pattern": "c:*", "rollout": 25}"#));
        assert_eq!(
            new,
            FILE.replace("  - pattern: '*'\n", "  - pattern: \"c:*\"\n    rollout: 25\n  - pattern: '*'\n")
        );
    }

    #[test]
    fn a_section_in_one_line_none_and_the_last_one_are_written_too() {
        let body = Some(r#"{"pattern": "c:*"}"#);
        let block = "rules:\n  - name: \"c\"\n    pattern: \"c:*\"\n";
        let head = "upstream: {url: 'redis://h'}\n";
        assert_eq!(changed(&format!("{head}rules: []\nworkers: 1\n"), "c", body), format!("{head}{block}workers: 1\n"));
        assert_eq!(
            changed(&format!("{head}rules:\n# c\nworkers: 1"), "c", body),
            format!("{head}{block}# c\nworkers: 1")
        );
        assert_eq!(changed(head.trim_end(), "c", body), format!("{head}{block}"));
        assert_eq!(changed(&format!("{head}{block}"), "c", None), format!("{head}rules: []\n"));
        let last = format!("{head}rules:\n- pattern: x");
        assert_eq!(changed(&last, "c", body), format!("{last}\n- name: \"c\"\n  pattern: \"c:*\"\n"));
        let dos = FILE.replace('\n', "\r\n");
        let wanted = "  - pattern: \"c:*\"\r\n  - pattern: '*'\r\n";
        assert_eq!(changed(&dos, "c:*", body), dos.replace("  - pattern: '*'\r\n", wanted));
    }

    #[test]
    fn what_cannot_be_proved_is_refused_and_nothing_is_touched() {
        let body = Some(r#"{"pattern": "c:*"}"#);
        let in_braces = "{\"upstream\": {\"url\": \"redis://h\"},\n \"rules\": []}\n";
        let anchored = "upstream: {url: 'redis://h'}\nrules:\n  - pattern: &p 'a:*'\n    ttl: 1m\nlisten: {unix: *p}\n";
        let in_env = [("NEARSIDE_RULES", "[{pattern: x}]")];
        for (text, env, name, body, why) in [
            (in_braces, &[][..], "c", body, "not written as one key a line"),
            (anchored, &[], "a:*", Some(r#"{"pattern": "a:*", "ttl": "2m"}"#), "without a change of something else"),
            (FILE, &in_env, "c", body, "the rules come from NEARSIDE_RULES"),
        ] {
            let kept = Kept::new(text);
            let error = kept.change(env, name, body).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert_eq!(kept.text(), text);
            assert_eq!(fs::read_dir(kept.dir.path()).expect("the directory").count(), 1, "no draft is left");
        }
        let kept = Kept::new(FILE);
        let layers = kept.layers(&[]);
        assert!(layers.persist(&[], Some(1)).unwrap_err().contains("has changed since it was loaded"));
        assert!(Layers::default().persist(&[], None).unwrap_err().contains("no configuration file"));
        assert_eq!(kept.text(), FILE);
    }

    #[test]
    fn mode_and_the_link_to_the_file_stay() {
        let kept = Kept::new(FILE);
        let real = kept.dir.path().join("real.yaml");
        fs::rename(kept.path(), &real).expect("renamed");
        std::os::unix::fs::symlink("real.yaml", kept.path()).expect("a link");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("a mode");
        kept.change(&[], "b", None).expect("written");
        assert!(fs::symlink_metadata(kept.path()).expect("the link").is_symlink());
        assert_eq!(fs::metadata(&real).expect("the file").mode() & 0o777, 0o640);
        assert!(!fs::read_to_string(&real).expect("the file").contains("name: b"));
    }
}
