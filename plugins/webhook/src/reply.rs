//! What a receiver's answer means for an event.

use gantry_plugin::http;

use crate::time;

/// An hour: a receiver that asks for more gets the gateway's own pauses.
const MAX_WAIT_MS: u64 = 60 * 60 * 1000;

/// What became of one request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Reply {
    /// It arrived.
    Took,
    /// Never again, because.
    Gone(String),
    /// Later, for this event.
    Later,
    /// Later, for every event: the receiver is down, or asked for a pause of so many milliseconds.
    Down(u32),
}

/// 2xx is delivered, 410 is never, 429 and 503 may name a pause, anything else comes again.
pub(crate) fn read(answer: &Result<http::Response, http::Error>, now_ms: u64) -> Reply {
    match answer {
        Ok(response) => match response.status {
            200..=299 => Reply::Took,
            410 => Reply::Gone("the receiver is gone (410)".to_owned()),
            429 | 503 => Reply::Down(pause_ms(response, now_ms)),
            _ => Reply::Later,
        },
        // The body is what is too large, not the receiver down.
        Err(http::Error::TooLarge) => Reply::Later,
        Err(_) => Reply::Down(0),
    }
}

/// `Retry-After` in milliseconds; 0 when there is none that can be used.
fn pause_ms(response: &http::Response, now_ms: u64) -> u32 {
    let header = response
        .headers
        .iter()
        .find(|(name, _)| name == "retry-after");
    let Some((_, value)) = header else { return 0 };
    let value = value.trim();
    let pause = match value.parse::<u64>() {
        Ok(seconds) => seconds.saturating_mul(1000),
        Err(_) => time::http_date_ms(value).map_or(0, |until| until.saturating_sub(now_ms)),
    };
    u32::try_from(pause.min(MAX_WAIT_MS)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, retry_after: Option<&str>) -> Reply {
        let headers = retry_after.map(|value| ("retry-after".to_owned(), value.to_owned()));
        let response = http::Response {
            status,
            headers: headers.into_iter().collect(),
            body: Vec::new(),
        };
        read(&Ok(response), 1_700_000_000_000)
    }

    #[test]
    fn a_status_says_whether_it_arrived() {
        for status in [200, 201, 202, 204] {
            assert_eq!(answered(status, None), Reply::Took);
        }
        for status in [301, 302, 304, 400, 401, 403, 404, 408, 500, 502, 504] {
            assert_eq!(answered(status, Some("7")), Reply::Later, "{status}");
        }
        assert!(matches!(answered(410, None), Reply::Gone(_)));
        let failed = Err(http::Error::Connect);
        assert_eq!(read(&failed, 0), Reply::Down(0));
    }

    #[test]
    fn a_named_pause_is_honored_up_to_an_hour() {
        for (text, expected) in [
            ("120", 120_000),
            (" 1 ", 1_000),
            ("999999999999999999", 3_600_000),
            ("Tue, 14 Nov 2023 22:14:20 GMT", 60_000),
            ("Tue, 14 Nov 2023 22:12:20 GMT", 0),
            ("soon", 0),
            ("-1", 0),
        ] {
            assert_eq!(answered(429, Some(text)), Reply::Down(expected), "{text}");
            assert_eq!(answered(503, Some(text)), Reply::Down(expected), "{text}");
        }
        assert_eq!(answered(503, None), Reply::Down(0));
    }
}
