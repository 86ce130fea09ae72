//! Times and durations as Python prints them: what readers of Bakapara's results expect.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write;

/// `2014-12-13T01:17:05.593718`: local and naive, no fraction when the microseconds are 0.
pub fn isoformat(time: Timestamp, zone: &TimeZone) -> String {
    let t = zone.to_datetime(time);
    let precision = if t.subsec_nanosecond() < 1000 { 0 } else { 6 };
    format!("{t:.precision$}")
}

/// `2014-12-21 10:39:59,288`: the time at the head of a log line.
pub fn log_time(time: Timestamp, zone: &TimeZone) -> String {
    let t = zone.to_datetime(time);
    t.strftime("%Y-%m-%d %H:%M:%S,%3f").to_string()
}

/// `0:00:10.006281`, `1 day, 0:00:10`, `-1 day, 23:59:59`: `str(datetime.timedelta(microseconds=micros))`.
pub fn timedelta(micros: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let days = micros.div_euclid(DAY);
    let rest = micros.rem_euclid(DAY);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let mut text = String::with_capacity(16);
    if days != 0 {
        let plural = if days.abs() == 1 { "" } else { "s" };
        let _ = write!(text, "{days} day{plural}, ");
    }
    let _ = write!(
        text,
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    if micros != 0 {
        let _ = write!(text, ".{micros:06}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_python_prints_them() {
        assert_eq!(timedelta(10_006_281), "0:00:10.006281");
        assert_eq!(timedelta(0), "0:00:00");
        assert_eq!(timedelta(86_410_000_000), "1 day, 0:00:10");
        assert_eq!(timedelta(2 * 86_400_000_000 + 5), "2 days, 0:00:00.000005");
        assert_eq!(timedelta(36_000_000_000 + 62_000_000), "10:01:02");
        assert_eq!(timedelta(-1_000_000), "-1 day, 23:59:59");
        assert_eq!(timedelta(-86_400_000_001), "-2 days, 23:59:59.999999");
    }

    #[test]
    fn times_are_local_and_naive() {
        let zone = TimeZone::fixed(jiff::tz::offset(9));
        let t: Timestamp = "2014-12-12T16:17:05.593718Z".parse().unwrap();
        assert_eq!(isoformat(t, &zone), "2014-12-13T01:17:05.593718");
        let t: Timestamp = "2014-12-12T16:17:05.000000999Z".parse().unwrap();
        assert_eq!(isoformat(t, &zone), "2014-12-13T01:17:05");
        let t: Timestamp = "2014-12-21T01:39:59.288999Z".parse().unwrap();
        assert_eq!(log_time(t, &zone), "2014-12-21 10:39:59,288");
    }
}
