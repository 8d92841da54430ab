//! Dates as HTTP writes them (RFC 9110, section 5.6.7) and as a person reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest time that a server's `Retry-After` can keep the agent away.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

const DAY: u64 = 86_400;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Reads a `Retry-After` value (RFC 9110, section 10.2.3): seconds, or a date that is compared with `now` (seconds
/// since 1970). At most [`RETRY_AFTER_MAX`]; `None` when it is neither.
pub fn retry_after(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    let seconds = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a very long time.
        value.parse().unwrap_or(u64::MAX)
    } else {
        http_date(value)?.saturating_sub(now)
    };
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// [`retry_after`] by the wall clock.
pub(super) fn retry_after_now(value: &str) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    retry_after(value, now.as_secs())
}

/// Prints seconds since 1970 as `2026-11-24 05:51:50 UTC`.
pub fn utc(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / DAY);
    let rest = seconds % DAY;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Seconds since 1970 of a time as container engines write it: `2026-11-24T05:51:50.1Z`, `2026-11-24 05:51:50 +0100 CET`.
pub fn seconds(text: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| number(text.get(from..to)?, to - from);
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    let fits =
        year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    let local = fits.then(|| days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)?;
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit()).trim_start();
    let offset = |digits: &str| {
        let plain: String = digits.chars().filter(char::is_ascii_digit).take(4).collect();
        Some(number(plain.get(..2)?, 2)? * 3600 + number(plain.get(2..4)?, 2)? * 60)
    };
    match zone.split_at_checked(1)? {
        ("Z", _) => Some(local),
        ("+", rest) => local.checked_sub(offset(rest)?),
        ("-", rest) => local.checked_add(offset(rest)?),
        _ => None,
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may still send.
fn http_date(text: &str) -> Option<u64> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = number(words.next()?, 2)?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|m| *m == name)? as u64 + 1;
    let year = number(words.next()?, 4)?;
    let mut clock = words.next()?.split(':');
    let hour = number(clock.next()?, 2)?;
    let minute = number(clock.next()?, 2)?;
    let second = number(clock.next()?, 2)?;
    let zone = words.next()?;
    let fits = zone == "GMT"
        && words.next().is_none()
        && clock.next().is_none()
        && (1..=31).contains(&day)
        && year >= 1970
        && hour < 24
        && minute < 60
        && second <= 60;
    fits.then(|| days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, for years from 1970 on. Years begin in March here, so
/// that the leap day is a year's last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    (year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1) - 719_468
}

/// The opposite of [`days`]: year, month, day.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_engines_write_them() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(seconds(text), expected, "{text}");
        check("2026-11-24T05:51:50Z", Some(1_795_499_510));
        check("2026-11-24T05:51:50.123456789Z", Some(1_795_499_510));
        check("2026-11-24 05:51:50 +0000 UTC", Some(1_795_499_510));
        check("2026-11-24 06:51:50.5 +0100 CET", Some(1_795_499_510));
        check("2026-11-24T00:51:50-05:00", Some(1_795_499_510));
        for bad in ["", "2026-11-24", "2026-13-24T05:51:50Z", "2026-11-24T05:51:50", "2026-11-24T05:51:50 x"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn waits_that_servers_ask_for() {
        let now = 1_700_000_000;
        let check = |value: &str, seconds: Option<u64>| {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        };
        check("0", Some(0));
        check(" 17 ", Some(17));
        check("99999999999999999999999", Some(3600));
        check("Tue, 14 Nov 2023 22:13:50 GMT", Some(30));
        check("Tue, 14 Nov 2023 22:13:10 GMT", Some(0));
        check("Wed, 15 Nov 2023 22:13:10 GMT", Some(3600));
        for bad in ["", "-1", "1.5", "soon", "Tue, 14 Nov 2023", "Tue, 99 Nov 2023 22:13:10 GMT", "+5"] {
            check(bad, None);
        }
        check("Tue, 14 Nov 2023 22:13:10 CET", None);
        check("Sun, 06 Nov 0000 08:49:37 GMT", None);
    }

    #[test]
    fn dates_both_ways() {
        // From `date -u -d @SECONDS`.
        let check = |seconds: u64, text: &str| assert_eq!(utc(seconds), text);
        check(0, "1970-01-01 00:00:00 UTC");
        check(784_111_777, "1994-11-06 08:49:37 UTC");
        check(951_782_400, "2000-02-29 00:00:00 UTC");
        check(4_107_542_399, "2100-02-28 23:59:59 UTC");
        check(4_107_542_400, "2100-03-01 00:00:00 UTC");
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for day in (0..200_000).step_by(13) {
            let (y, m, d) = civil(day);
            assert_eq!(days(y, m, d), day);
        }
        // A certificate without an end, and whatever else a peer may claim, prints.
        assert_eq!(utc(253_402_300_799), "9999-12-31 23:59:59 UTC");
        assert!(!utc(u64::MAX).is_empty());
    }
}
