//! Tags of a rule's keys: templates like `tenant:{id}`, filled in from what the rule's pattern takes out of the key.

use std::fmt;

use super::pattern::{Captures, Pattern, Slot};

/// A tag is a name, as a key is.
const TEMPLATE_MAX: usize = 128;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TagTemplate {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Slot(Slot),
}

impl fmt::Debug for TagTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl TagTemplate {
    /// The error says what is wrong with it.
    pub(crate) fn parse(text: &str, pattern: &Pattern) -> Result<TagTemplate, String> {
        if text.is_empty() || text.len() > TEMPLATE_MAX {
            return Err(format!("a tag has 1 to {TEMPLATE_MAX} bytes"));
        }
        if text.starts_with('_') {
            return Err("begins with _, which is for names that are nobody's in metrics".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, after) = behind.split_once('}').ok_or("has a { without its }")?;
            let slot = pattern.slot(name).ok_or_else(|| {
                format!("the pattern {} has no capture {{{name}}}; it has {}", pattern.text(), pattern.slots())
            })?;
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            parts.push(Part::Slot(slot));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(TagTemplate { text: text.into(), parts: parts.into() })
    }

    /// As it was written: the bounded name under which its tags are counted.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The tag of one key.
    pub(crate) fn fill(&self, captures: &Captures, key: &[u8]) -> Vec<u8> {
        let mut tag = Vec::with_capacity(self.text.len() + 16);
        for part in &self.parts {
            tag.extend_from_slice(match part {
                Part::Text(text) => text.as_bytes(),
                Part::Slot(slot) => captures.of(*slot, key),
            });
        }
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_filled_in_from_its_key() {
        let pattern = Pattern::parse("tenant:{id}:user:*").expect("a pattern");
        let fill = |text: &str| {
            let key = b"tenant:42:user:7";
            let captures = pattern.captures(key).expect("matches");
            String::from_utf8(TagTemplate::parse(text, &pattern).expect(text).fill(&captures, key)).expect("text")
        };
        assert_eq!(fill("tenant:{id}"), "tenant:42");
        assert_eq!(fill("{1}-{id}-{1}"), "7-42-7");
        assert_eq!(fill("all"), "all");
        for (text, part) in [
            ("", "1 to"),
            ("_flush", "begins with _"),
            ("{id", "without"),
            ("{nix}", "it has {id}, {1}"),
            ("{2}", "no capture {2}"),
        ] {
            let error = TagTemplate::parse(text, &pattern).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
