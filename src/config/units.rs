//! Sizes, durations and whole numbers as people write them, both ways: text to value with a range, and value to the
//! shortest text that reads back as the same value. Pure; used while configuration is read or printed. It does not know
//! keys or where a text came from: the caller puts those in front of the message.

use std::{ops::RangeInclusive, time::Duration};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// No duration of ours needs more than a year, and adding one to an `Instant` then cannot overflow on any platform.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// 1 TiB: above what one process is given anywhere, below what overflows when a few limits are added up.
pub(super) const SIZE_MAX: u64 = 1024 * GIB;

/// Reads a size within `range`, in bytes.
pub(super) fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let units = [("KiB", KIB), ("MiB", MIB), ("GiB", GIB), ("", 1)];
    let value = scaled(text, &units)
        .ok_or_else(|| format!("{} is not a size; use bytes or KiB, MiB, GiB, for example 64MiB", shown(text)))?;
    in_range(text, &value, &range, |v| show_size(*v))
}

/// Reads a number that may have decimals, within `range`; `wanted` says what would be right. No sign and no exponent, so
/// neither NaN nor infinity.
pub(super) fn decimal(text: &str, range: RangeInclusive<f64>, wanted: &str) -> Result<f64, String> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let value = text.parse::<f64>().ok().filter(|value| plain && range.contains(value));
    value.ok_or_else(|| format!("{} is not {wanted}", shown(text)))
}

/// Reads a duration within `range`. A bare `0` needs no unit; every other number does, because seconds and milliseconds
/// are confused at a factor of 1,000.
pub(crate) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let millis = if text == "0" { Some(0) } else { scaled(text, &units) };
    let value = millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{} is not a duration; use ms, s, m or h, for example 500ms", shown(text)))?;
    in_range(text, &value, &range, |v| show_duration(*v))
}

/// Reads a whole number within `range`.
pub(super) fn number(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let value = digits(text).ok_or_else(|| format!("{} is not a whole number", shown(text)))?;
    in_range(text, &value, &range, u64::to_string)
}

/// The words a key takes, first match wins. `off` and `on` also arrive as the booleans that YAML 1.1 tools (Helm) make
/// of them.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let text_as_word = match text {
        "false" if words.iter().any(|(w, _)| *w == "off") => "off",
        "true" if words.iter().any(|(w, _)| *w == "on") => "on",
        other => other,
    };
    let found = words.iter().find(|(w, _)| *w == text_as_word);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
        format!("{} is not one of {}", shown(text), names.join(", "))
    })
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        _ => Err(format!("{} is not true or false", shown(text))),
    }
}

pub(super) fn show_size(bytes: u64) -> String {
    let unit = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
        .into_iter()
        .find(|(scale, _)| bytes >= *scale && bytes.is_multiple_of(*scale));
    match unit {
        Some((scale, name)) => format!("{}{name}", bytes / scale),
        None => bytes.to_string(),
    }
}

pub(super) fn show_duration(value: Duration) -> String {
    let millis = value.as_millis();
    let unit = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(scale, _)| millis >= *scale && millis.is_multiple_of(*scale));
    match (millis, unit) {
        (0, _) => "0s".to_owned(),
        (_, Some((scale, name))) => format!("{}{name}", millis / scale),
        (_, None) => format!("{millis}ms"),
    }
}

/// A value as it may appear in a message: quoted, cut at 80 characters so that a file pasted into a variable does not
/// fill the log, and without anything before an `@`, because a URL with a password may stand in the wrong key.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let (hidden, rest) = match text.rsplit_once('@') {
        Some((_, rest)) => ("***@", rest),
        None => ("", text),
    };
    let mut cut: String = rest.chars().take(SHOWN_MAX).collect();
    if cut.len() < rest.len() {
        cut.push('…');
    }
    format!("{:?}", format!("{hidden}{cut}"))
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, scale)| {
        let count = digits(text.strip_suffix(unit)?.trim_end())?;
        count.checked_mul(*scale)
    })
}

/// `u64::from_str` also takes a leading `+`, which nobody means.
fn digits(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn in_range<T: PartialOrd + Copy>(
    text: &str,
    value: &T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if value < range.start() {
        return Err(format!("{} is too small; at least {}", shown(text), show(range.start())));
    }
    if value > range.end() {
        return Err(format!("{} is too large; at most {}", shown(text), show(range.end())));
    }
    Ok(*value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_show_the_same() {
        for (text, bytes) in [("0", 0), ("17", 17), ("64KiB", 65536), ("1MiB", MIB), ("3GiB", 3 * GIB)] {
            assert_eq!(size(text, 0..=SIZE_MAX), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(size("64 MiB", 0..=SIZE_MAX), Ok(64 * MIB));
        assert_eq!(show_size(1536), "1536");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in
            ["64MB", "64mib", "-1", "+1", "1.5MiB", "MiB", "", "0x10", "18446744073709551616", "99999999999999GiB"]
        {
            let message = size(text, 0..=SIZE_MAX).unwrap_err();
            assert!(message.contains("KiB, MiB, GiB"), "{text}: {message}");
        }
        assert_eq!(
            size("2TiB", 0..=SIZE_MAX).unwrap_err(),
            "\"2TiB\" is not a size; use bytes or KiB, MiB, GiB, for example 64MiB"
        );
        assert_eq!(size("1KiB", MIB..=SIZE_MAX).unwrap_err(), "\"1KiB\" is too small; at least 1MiB");
        assert_eq!(size("2000GiB", 0..=SIZE_MAX).unwrap_err(), "\"2000GiB\" is too large; at most 1024GiB");
    }

    #[test]
    fn durations_read_and_show_the_same() {
        for (text, millis) in
            [("0s", 0), ("5ms", 5), ("1500ms", 1500), ("8s", 8000), ("5m", 300_000), ("24h", 86_400_000)]
        {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(text, Duration::ZERO..=DURATION_MAX), Ok(value), "{text}");
            assert_eq!(show_duration(value), text);
        }
        assert_eq!(duration("0", Duration::ZERO..=DURATION_MAX), Ok(Duration::ZERO));
    }

    #[test]
    fn a_duration_without_unit_is_refused() {
        for text in ["5", "1d", "1h30m", "1.5s", "-1s", "s", "", "99999999999999999999h"] {
            assert!(duration(text, Duration::ZERO..=DURATION_MAX).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans_stand_for_off_and_on_only_where_those_are_words() {
        let words = [("auto", 0), ("on", 1), ("off", 2)];
        assert_eq!(word("false", &words), Ok(2));
        assert_eq!(word("true", &words), Ok(1));
        assert_eq!(word("true", &[("serve", 0), ("off", 1)]).unwrap_err(), "\"true\" is not one of serve, off");
    }

    #[test]
    fn a_message_never_shows_what_stands_before_an_at_sign() {
        assert_eq!(shown("redis://:hunter2@host"), "\"***@host\"");
        assert_eq!(shown(&"x".repeat(100)).chars().count(), 83);
    }
}
