//! The rate that a server asks for: after an answer with `Retry-After`, no request is sent to it
//! before that time, by any call of this process. The number of requests at the same time follows
//! its answers, too ([`super::throttle`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::throttle::{Permit, Throttle};

/// The longest time that a call waits by itself. If the server asks for more, calls fail, and the
/// queue waits.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// The most time that is added by chance, so that waiting requests are not all sent at once.
const MAX_JITTER: Duration = Duration::from_secs(2);

/// The pace of one store.
#[derive(Debug, Default)]
pub(super) struct Pace {
    until: Mutex<Option<Instant>>,
    throttled: AtomicU64,
    throttle: Throttle,
}

/// The server asked to wait longer than a call waits.
#[derive(Debug, thiserror::Error)]
#[error("the server asks for a pause of {}", humantime::format_duration(*.0))]
pub(super) struct Paused(pub Duration);

impl Pace {
    /// Waits until a request may be sent.
    pub(super) async fn wait(&self) -> Result<(), Paused> {
        while let Some(left) = self.left() {
            if left > MAX_WAIT {
                return Err(Paused(Duration::from_secs(left.as_secs())));
            }
            let jitter = (left / 2).min(MAX_JITTER).mul_f64(rand::random());
            tokio::time::sleep(left + jitter).await;
        }
        Ok(())
    }

    /// Waits until one more request, with a body of this size, may be under way.
    pub(super) async fn permit(&self, body: usize) -> Permit<'_> {
        self.throttle.permit(body).await
    }

    /// Notes an answer.
    pub(super) fn answered(&self, status: StatusCode, headers: &HeaderMap) {
        if !is_throttled(status) {
            return;
        }
        self.throttled.fetch_add(1, Ordering::Relaxed);
        let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        if let Some(wait) = asked.and_then(|text| retry_after(text, SystemTime::now())) {
            let Some(then) = Instant::now().checked_add(wait) else { return };
            let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            *until = Some(until.map_or(then, |until| until.max(then)));
        }
    }

    /// The time that the server still wants to be left alone.
    pub(super) fn left(&self) -> Option<Duration> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The number of answers that asked for fewer requests.
    pub(super) fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }
}

/// Returns whether an answer asks for fewer requests.
pub(super) fn is_throttled(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// The value of `Retry-After` (RFC 9110, section 10.2.3): seconds or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pace: &Pace, status: u16, value: &str) {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        pace.answered(StatusCode::from_u16(status).unwrap(), &headers);
    }

    #[tokio::test]
    async fn requests_wait_as_long_as_the_server_asks() {
        let pace = Pace::default();
        let start = Instant::now();
        told(&pace, 500, "7");
        assert_eq!(pace.left(), None, "an error that does not ask for a pause");
        told(&pace, 503, "1");
        told(&pace, 429, "0");
        pace.wait().await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
        assert_eq!(pace.throttled(), 2);
        told(&pace, 503, "300");
        let error = pace.wait().await.unwrap_err();
        assert_eq!(error.to_string(), "the server asks for a pause of 4m 59s");
    }

    #[test]
    fn retry_after_has_two_forms() {
        let now = httpdate::parse_http_date("Sat, 28 Nov 2026 12:00:00 GMT").unwrap();
        let seconds = |text| retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(seconds(" 120 "), Some(120));
        assert_eq!(seconds("Sat, 28 Nov 2026 12:00:05 GMT"), Some(5));
        assert_eq!(seconds("Sat, 28 Nov 2026 11:00:05 GMT"), None);
        assert_eq!(seconds("-3"), None);
    }
}
