//! Times as texts: RFC 3339 out, HTTP dates in.

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1000;

/// The date of a day counted from 1970-01-01, as year, month, day. Howard Hinnant's `civil_from_days`, for days from 1970 on.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// The day of a date, counted from 1970-01-01.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

/// `2026-01-02T03:04:05.678` and as many zeros as `digits` wants beyond the milliseconds, `Z`.
pub(crate) fn rfc3339(at_ms: u64, digits: usize) -> String {
    let (year, month, day) = civil(at_ms / MS_PER_DAY);
    let ms = at_ms % MS_PER_DAY;
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, fraction) = (ms / 1000 % 60, ms % 1000);
    let zeros = "0".repeat(digits.saturating_sub(3));
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}{zeros}Z")
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that is still written (RFC 9110 section 5.6.7).
pub(crate) fn http_date_ms(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_weekday, rest) = text.split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts.as_slice() else {
        return None;
    };
    let month = MONTHS.iter().position(|name| name == month)? as u64 + 1;
    let clock: Vec<u64> = time
        .split(':')
        .map(|part| part.parse().ok())
        .collect::<Option<_>>()?;
    let [hour, minute, second] = clock.as_slice() else {
        return None;
    };
    let seconds = hour
        .checked_mul(3600)?
        .checked_add(minute.checked_mul(60)?)?
        .checked_add(*second)?;
    let days = days(year.parse().ok()?, month, day.parse().ok()?)?;
    days.checked_mul(MS_PER_DAY)?
        .checked_add(seconds.checked_mul(1000)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (at_ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_102_444_799_999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(at_ms, 3), expected);
        }
        assert_eq!(rfc3339(1, 9), "1970-01-01T00:00:00.001000000Z");
    }

    #[test]
    fn every_day_is_its_own_inverse() {
        for day in 0..60_000 {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), Some(day));
        }
    }

    #[test]
    fn http_dates_are_read_and_nothing_else_is() {
        let read = http_date_ms("Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(read, Some(1_700_000_000_000));
        for wrong in [
            "",
            "120",
            "Tue, 14 Nov 2023 22:13:20 CET",
            "Tue, 14 Foo 2023 22:13:20 GMT",
            "Tue, 14 Nov 2023 22:13 GMT",
            "Tue, 14 Nov 99999999999999999999 22:13:20 GMT",
            "Tue, 14 Nov 2023 18446744073709551615:13:20 GMT",
        ] {
            assert_eq!(http_date_ms(wrong), None, "{wrong}");
        }
    }
}
