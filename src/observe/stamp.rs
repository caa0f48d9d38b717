//! RFC 3339 in UTC with milliseconds, for `at` in every answer. Formats only; leap seconds as Unix time has them: not.

use std::time::{SystemTime, UNIX_EPOCH};

const MS_PER_DAY: u64 = 86_400_000;

/// The time of day as text, such as `2026-01-31T23:59:59.999Z`.
pub(crate) fn now() -> String {
    at(SystemTime::now())
}

/// That moment as text.
pub(crate) fn at(time: SystemTime) -> String {
    format(since_1970(time))
}

/// Now, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    since_1970(SystemTime::now())
}

/// That moment, in milliseconds since 1970, as text.
pub(crate) fn at_ms(unix_ms: u64) -> String {
    format(unix_ms)
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The same of a moment that many nanoseconds ago.
pub(crate) fn ago(nanos: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    format(now.saturating_sub(nanos / 1_000_000))
}

fn format(unix_ms: u64) -> String {
    let (year, month, day) = civil(unix_ms / MS_PER_DAY);
    let ms = unix_ms % MS_PER_DAY;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// Days since 1970-01-01 to (year, month, day). Years are counted from March, so that the leap day comes last and the
/// months' lengths repeat every 153 days (Hinnant's `civil_from_days`, for days that are not negative).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(format(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(format(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(format(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(format(1_709_251_199_000), "2024-02-29T23:59:59.000Z");
        assert_eq!(format(1_735_689_599_001), "2024-12-31T23:59:59.001Z");
        assert_eq!(format(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(0);
        for days in 1..100_000 {
            let day = civil(days);
            assert!(day > before && day.1 <= 12 && day.2 <= 31, "{days}");
            before = day;
        }
    }
}
