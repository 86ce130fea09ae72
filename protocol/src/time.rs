//! Dates as the wire and the result lines have them.

use std::time::{Duration, UNIX_EPOCH};

use jiff::{Timestamp, tz::TimeZone};

/// Now, as headers carry it: ISO 8601, UTC, microseconds, `Z`.
#[must_use]
pub fn now_utc() -> String {
    utc(Timestamp::now())
}

/// Seconds since 1970, now.
#[must_use]
pub fn unix_seconds() -> f64 {
    UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A moment as headers carry it.
#[must_use]
pub fn utc(moment: Timestamp) -> String {
    // Several times in each message of a busy cluster: by hand, an order faster than a format string.
    let t = TimeZone::UTC.to_datetime(moment);
    if !(0..=9999).contains(&t.year()) {
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    }
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |at: usize, width: usize, mut value: u32| {
        for place in (at..at + width).rev() {
            text[place] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, t.year().unsigned_abs().into());
    put(5, 2, t.month().unsigned_abs().into());
    put(8, 2, t.day().unsigned_abs().into());
    put(11, 2, t.hour().unsigned_abs().into());
    put(14, 2, t.minute().unsigned_abs().into());
    put(17, 2, t.second().unsigned_abs().into());
    put(20, 6, t.subsec_nanosecond().unsigned_abs() / 1000);
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads an ISO 8601 date; without an offset it is taken as UTC.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    civil
        .to_zoned(TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

/// Seconds of a duration as users write it: `90`, `90s`, `15m`, `2h`, `1d`, `1w`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let each = match unit.trim() {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        "w" => 7.0 * 86400.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Some(number * each)
}

/// The same, for a command line.
///
/// # Errors
/// In words, when it is no duration, or not a finite one.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a time such as 90s, 10m, 2h or 1d".to_owned())
}

/// The time between two moments, zero when the second is earlier.
#[must_use]
pub fn between(from: Timestamp, to: Timestamp) -> Duration {
    let nanos = to.as_nanosecond() - from.as_nanosecond();
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Seconds between two ISO 8601 dates, 0 when the second is earlier.
#[must_use]
pub fn seconds_between(from: &str, to: &str) -> Option<f64> {
    // Of one minute, most are: then the rest is two numbers.
    const MINUTE: usize = "0000-00-00T00:00:".len();
    if let (Some((minute, from)), Some((same, to))) =
        (from.split_at_checked(MINUTE), to.split_at_checked(MINUTE))
        && minute == same
        && minute
            .bytes()
            .zip(*b"0000-00-00T00:00:")
            .all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                shape => byte == shape,
            })
        && let (Some(from), Some(to)) = (micros(from), micros(to))
    {
        return Some(to.saturating_sub(from) as f64 / 1e6);
    }
    Some(between(parse(from)?, parse(to)?).as_secs_f64())
}

/// `SS.ffffffZ` in microseconds.
fn micros(text: &str) -> Option<u32> {
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0, |value, digit| {
            digit
                .is_ascii_digit()
                .then(|| value * 10 + u32::from(digit - b'0'))
        })
    };
    match text.as_bytes() {
        [a, b, b'.', fraction @ .., b'Z'] if fraction.len() == 6 => {
            Some(number(&[*a, *b])? * 1_000_000 + number(fraction)?)
        }
        _ => None,
    }
}

/// `moment` moved by `seconds`, for clocks that are known to be off.
#[must_use]
pub fn shifted(moment: Timestamp, seconds: f64) -> Timestamp {
    let micros = (seconds * 1e6).round() as i64;
    Timestamp::from_microsecond(moment.as_microsecond().saturating_add(micros)).unwrap_or(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_round_trip() {
        let moment = parse("2014-12-13T01:17:05.593718Z").unwrap();
        assert_eq!(utc(moment), "2014-12-13T01:17:05.593718Z");
        for text in [
            "1970-01-01T00:00:00.000000Z",
            "0001-02-03T04:05:06.000007Z",
            "9999-12-30T21:59:59.999999Z",
        ] {
            let moment: Timestamp = text.parse().unwrap();
            assert_eq!(utc(moment), text);
            assert_eq!(
                utc(moment),
                moment.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
            );
        }
        assert_eq!(parse("2014-12-13T01:17:05.593718"), Some(moment));
        assert_eq!(parse("2014-12-13T02:17:05.593718+01:00"), Some(moment));
        assert_eq!(parse("yesterday"), None);
        assert_eq!(utc(shifted(moment, -47.0)), "2014-12-13T01:16:18.593718Z");
    }

    #[test]
    fn seconds_between_dates() {
        for (from, to, seconds) in [
            (
                "2014-12-13T01:17:05.593718Z",
                "2014-12-13T01:17:07.000000Z",
                Some(1.406282),
            ),
            (
                "2014-12-13T01:17:05.593718Z",
                "2014-12-13T01:17:05.000000Z",
                Some(0.0),
            ),
            (
                "2014-12-13T01:17:05.593718Z",
                "2014-12-13T02:18:05.593718Z",
                Some(3660.0),
            ),
            (
                "2014-12-13T01:17:05.593718Z",
                "2014-12-13T01:17:06.593718+00:00",
                Some(1.0),
            ),
            ("2014-12-13T01:17:05Z", "2014-12-13T01:17:06.5Z", Some(1.5)),
            ("2014-12-13T01:17:05.593718Z", "", None),
            (
                "yesterday, 17:00: 05.593718Z",
                "yesterday, 17:00: 06.593718Z",
                None,
            ),
            (
                "2014-12-13T01:17:5x.593718Z",
                "2014-12-13T01:17:06.593718Z",
                None,
            ),
        ] {
            let found = seconds_between(from, to);
            assert!(
                match (found, seconds) {
                    (Some(found), Some(seconds)) => f64::abs(found - seconds) < 1e-9,
                    (found, seconds) => found == seconds,
                },
                "{from} to {to}: {found:?}"
            );
        }
    }
}
