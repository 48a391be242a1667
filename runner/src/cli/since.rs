//! The value of `--since` in `hookrun log` and `hookrun sync`: a point in time.

use chrono::{DateTime, Local, NaiveDate, NaiveTime, TimeZone as _};

use hookrun_nix::event::now_ms;

/// Returns the time in milliseconds since 1970: a duration before now (`90s`, `2h`, `3d`), a time
/// in RFC 3339 (`2026-11-23T06:00:00+01:00`), or a local date (`2026-11-23`).
///
/// # Errors
/// The text has none of these forms.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    parse_at(text, now_ms())
}

fn parse_at(text: &str, now_ms: u64) -> Result<u64, String> {
    if let Ok(duration) = humantime::parse_duration(text) {
        return Ok(now_ms.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)));
    }
    let time = DateTime::parse_from_rfc3339(text)
        .map(|time| time.with_timezone(&Local))
        .ok()
        .or_else(|| {
            let date = text.parse::<NaiveDate>().ok()?;
            Local.from_local_datetime(&date.and_time(NaiveTime::MIN)).earliest()
        });
    match time {
        // Times before 1970 count as 1970.
        Some(time) => Ok(u64::try_from(time.timestamp_millis()).unwrap_or(0)),
        None => Err(
            "not a time; write `2h` or `3d`, a date such as 2026-11-23, or 2026-11-23T06:00:00Z"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_dates_and_times_are_understood() {
        let now = 1_800_000_000_000;
        assert_eq!(parse_at("2h", now), Ok(now - 7_200_000));
        assert_eq!(parse_at("3d", now), Ok(now - 3 * 86_400_000));
        assert_eq!(parse_at("1970-01-01T01:00:00+01:00", now), Ok(0));
        assert_eq!(parse_at("2026-11-23T06:00:00Z", now), Ok(1_795_413_600_000));
        assert_eq!(parse_at("1969-01-01T00:00:00Z", now), Ok(0));
        assert!(parse_at("2026-11-23", now).is_ok());
        insta::assert_snapshot!(parse_at("yesterday", now).unwrap_err(), @"not a time; write `2h` or `3d`, a date such as 2026-11-23, or 2026-11-23T06:00:00Z");
    }

    proptest! {
        #[test]
        fn any_text_is_accepted_or_refused(text in ".{0,40}", now in any::<u64>()) {
            let _ = parse_at(&text, now);
        }
    }
}
