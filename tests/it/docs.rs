//! What the documents say about the tree is true: keys, metric families, dependencies and links. Reads them as text.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Those at the root, and every page in docs/.
fn documents() -> Vec<String> {
    let pages =
        fs::read_dir(Path::new(ROOT).join("docs")).expect("docs/").map(|page| page.expect("a page").file_name());
    let pages = pages.map(|page| format!("docs/{}", page.display())).filter(|page| page.ends_with(".md"));
    let root = ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"];
    root.into_iter().map(str::to_owned).chain(pages).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The first cell of every table row, where it is one piece of code.
fn first_cells(text: &str) -> BTreeSet<&str> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    cells.map(|(cell, _)| cell).collect()
}

/// The texts between quotes in lines that `wanted` picks.
fn quoted<'t>(text: &'t str, wanted: impl Fn(&str) -> bool + 't) -> BTreeSet<&'t str> {
    text.lines().filter(move |line| wanted(line)).filter_map(|line| line.split('"').nth(1)).collect()
}

#[test]
fn every_configuration_key_is_documented_and_no_other() {
    let (document, source) = (read("docs/configuration.md"), read("src/config/keys.rs"));
    let list = source.split("const KEYS").nth(1).and_then(|s| s.split("];").next()).expect("the list of keys");
    let (documented, keys) = (first_cells(&document), quoted(list, |line| line.trim_start().starts_with('"')));
    assert!(keys.len() > 40, "{keys:?}");
    let (of_maps, keys_documented): (BTreeSet<&str>, BTreeSet<&str>) =
        documented.iter().filter(|cell| !cell.starts_with("--")).partition(|cell| cell.contains("[]."));
    assert_eq!(keys_documented, keys);
    let source = read("src/config/rules.rs");
    let list = source.split("const RULE_KEYS").nth(1).and_then(|s| s.split("];").next()).expect("the keys of a rule");
    let rule_keys: BTreeSet<String> =
        quoted(list, |line| line.trim_start().starts_with('"')).iter().map(|key| format!("rules[].{key}")).collect();
    let of_rules = of_maps.iter().filter(|cell| cell.starts_with("rules[].")).map(|cell| (*cell).to_owned());
    assert_eq!(of_rules.collect::<BTreeSet<_>>(), rule_keys);
}

#[test]
fn the_keys_that_change_at_once_are_those_that_the_code_adopts() {
    let (document, source) = (read("docs/configuration.md"), read("src/config/live.rs"));
    let list = source.split("const LIVE").nth(1).and_then(|s| s.split("];").next()).expect("the list of keys");
    let keys = quoted(list, |line| line.trim_start().starts_with('"'));
    let row = document.lines().find(|line| line.starts_with("| at once")).expect("the row");
    let documented: BTreeSet<&str> = row.split('`').skip(1).step_by(2).collect();
    assert_eq!(documented, keys);
}

#[test]
fn every_metric_family_is_documented_and_no_other() {
    let (document, source) = (read("docs/metrics.md"), read("src/observe/families.rs"));
    let families = quoted(&source, |line| line.trim_start().starts_with("family!("));
    assert!(families.len() > 40, "{families:?}");
    assert_eq!(first_cells(&document), families);
}

#[test]
fn every_dependency_has_its_reason_in_the_readme() {
    let (readme, manifest) = (read("README.md"), read("Cargo.toml"));
    let section = readme.split("## Dependencies").nth(1).and_then(|s| s.split("\n## ").next()).expect("the section");
    let named: BTreeSet<&str> =
        section.lines().filter_map(|l| l.strip_prefix("| ")?.split(" |").next()).flat_map(|c| c.split(", ")).collect();
    let tables = manifest.split("dependencies]").skip(1).map(|table| table.split("\n[").next().unwrap_or_default());
    let names = tables.flat_map(str::lines).filter_map(|line| Some(line.split_once(" = ")?.0));
    let missing: Vec<&str> = names.filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "no reason in README for {missing:?}");
}

fn all_of(dir: &str) -> String {
    let (mut all, mut open) = (String::new(), vec![Path::new(ROOT).join(dir)]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                all.push_str(&fs::read_to_string(&path).expect("a source"));
            }
        }
    }
    all
}

/// A guarantee without its test is a promise that nobody keeps.
#[test]
fn every_test_the_guarantees_name_exists() {
    let document = read("docs/guarantees.md");
    let cells = document.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.rsplit(" | ").next());
    let names: BTreeSet<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 30, "{names:?}");
    let sources = all_of("src") + &all_of("tests/it");
    let missing: Vec<&&str> = names.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/guarantees.md names {missing:?}, which are no tests");
}

/// `[text](target)`, without those that leave the tree.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.contains("://"))
}

/// A heading as hosts make an anchor of it.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase();
    plain.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let (text, dir) = (read(&document), Path::new(&document).parent().expect("a directory"));
        for link in links(&text) {
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { Path::new(&document).into() } else { dir.join(path) };
            let there = Path::new(ROOT).join(&target).exists();
            let headed = fragment.is_empty()
                || fs::read_to_string(Path::new(ROOT).join(&target))
                    .is_ok_and(|t| t.lines().any(|l| l.starts_with('#') && anchor(l) == fragment));
            if !(there && headed) {
                broken.push(format!("{document}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Functions and types that ARCHITECTURE names as `Type::name` or `module::name` exist under that last name.
#[test]
fn every_item_the_architecture_names_exists() {
    let text = read("ARCHITECTURE.md");
    let code = text.split('`').skip(1).step_by(2).filter(|c| c.contains("::") && !c.contains(' '));
    let names: BTreeSet<&str> = code.filter_map(|c| c.rsplit("::").next()).collect();
    assert!(names.len() > 20, "{names:?}");
    let sources = all_of("src");
    let declared = |name: &str| {
        let forms = [format!("fn {name}("), format!("fn {name}<"), format!("struct {name}"), format!("{name}(")];
        forms.iter().any(|form| sources.contains(form)) || sources.contains(&format!("mod {name};"))
    };
    let missing: Vec<&&str> = names.iter().filter(|name| !declared(name)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names {missing:?}, which src does not have");
}
