//! `observe.keys`: who sees the names of keys, and what everybody else sees in their place.

use crate::observe::hot_keys::HotKeys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyNames {
    /// Who is on this host, or has the token or password, sees them; all others a hash.
    Auto,
    Show,
    Hash,
    Hide,
}

impl KeyNames {
    /// The first word is the default.
    pub(crate) const ALL: [(&str, KeyNames); 4] =
        [("auto", KeyNames::Auto), ("show", KeyNames::Show), ("hash", KeyNames::Hash), ("hide", KeyNames::Hide)];

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// What holds for somebody who is trusted or not: never `Auto`.
    pub(crate) fn shown_to(self, trusted: bool) -> KeyNames {
        match self {
            KeyNames::Auto if trusted => KeyNames::Show,
            KeyNames::Auto => KeyNames::Hash,
            other => other,
        }
    }

    /// What stands for `key`; none: nothing.
    pub(crate) fn of(self, hot: &HotKeys, key: &[u8]) -> Option<String> {
        match self {
            KeyNames::Show => Some(readable(key)),
            KeyNames::Hash | KeyNames::Auto => Some(hot.alias(key)),
            KeyNames::Hide => None,
        }
    }
}

/// Text as it is; anything else as `\xff`, so that it can be typed again.
fn readable(key: &[u8]) -> String {
    match str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => key.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_hashed_or_hidden() {
        let hot = HotKeys::new(1, "", 0);
        let of = |names: KeyNames, trusted: bool| names.shown_to(trusted).of(&hot, b"user:1");
        assert_eq!(of(KeyNames::Auto, true).as_deref(), Some("user:1"));
        assert_eq!(of(KeyNames::Auto, false), Some(hot.alias(b"user:1")));
        assert_eq!(of(KeyNames::Show, false).as_deref(), Some("user:1"));
        assert_eq!(of(KeyNames::Hash, true), Some(hot.alias(b"user:1")));
        assert_eq!(of(KeyNames::Hide, true), None);
    }

    #[test]
    fn any_bytes_are_readable() {
        for (key, text) in [(&b"a b"[..], "a b"), ("größe".as_bytes(), "größe"), (b"\xff\x00a\n", "\\xff\\x00a\\n")]
        {
            assert_eq!(readable(key), text);
        }
    }
}
