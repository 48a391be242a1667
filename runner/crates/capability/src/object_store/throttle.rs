//! The number of requests to one server at the same time. It grows while the server answers, and is
//! halved when the server asks for fewer requests (additive increase, multiplicative decrease).
//!
//! Requests with a large body may not use all of it, so that small ones never wait for them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests at the same time before anything is known about the server.
const FIRST: u32 = 64;
/// The most requests at the same time. Each has a connection of its own.
const MOST: u32 = 128;
/// The size from which on a body is large.
pub(super) const LARGE: usize = 1 << 20;
/// The share of the requests that may have a large body.
const LARGE_SHARE: f64 = 0.75;
/// The most requests with a large body at the same time: they need bandwidth, not patience.
const MOST_LARGE: u32 = 16;

/// The throttle of one store.
#[derive(Debug)]
pub(super) struct Throttle {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug)]
struct State {
    allowed: f64,
    under_way: u32,
    large: u32,
    /// When the number was last reduced.
    reduced: Option<Instant>,
}

/// The permission to send one request, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    throttle: &'a Throttle,
    is_large: bool,
    begun: Instant,
}

impl Default for Throttle {
    fn default() -> Self {
        let state = State { allowed: f64::from(FIRST), under_way: 0, large: 0, reduced: None };
        Self { state: Mutex::new(state), freed: Notify::new() }
    }
}

impl Throttle {
    /// Waits until a request with a body of this size may be sent.
    pub(super) async fn permit(&self, body: usize) -> Permit<'_> {
        let is_large = body >= LARGE;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no notification is missed.
            freed.as_mut().enable();
            if self.lock().take(is_large) {
                return Permit { throttle: self, is_large, begun: Instant::now() };
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, is_large: bool) -> bool {
        let large = (self.allowed * LARGE_SHARE).clamp(1.0, f64::from(MOST_LARGE));
        if f64::from(self.under_way) + 1.0 > self.allowed
            || is_large && f64::from(self.large) + 1.0 > large
        {
            return false;
        }
        self.under_way += 1;
        self.large += u32::from(is_large);
        true
    }
}

impl Permit<'_> {
    /// The server has answered; `slow_down` says whether it asked for fewer requests.
    pub(super) fn answered(&self, slow_down: bool) {
        let mut state = self.throttle.lock();
        if slow_down {
            // Answers to requests that were sent before the last reduction say nothing new.
            if state.reduced.is_none_or(|reduced| self.begun >= reduced) {
                state.allowed = (state.allowed / 2.0).max(1.0);
                state.reduced = Some(Instant::now());
            }
        } else {
            // One more for each request until the server first objects, then for each round.
            let step = if state.reduced.is_none() { 1.0 } else { 1.0 / state.allowed };
            state.allowed = (state.allowed + step).min(f64::from(MOST));
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.throttle.lock();
            state.under_way -= 1;
            state.large -= u32::from(self.is_large);
        }
        self.throttle.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    fn allowed(throttle: &Throttle) -> String {
        format!("{:.1}", throttle.lock().allowed)
    }

    #[tokio::test]
    async fn the_number_grows_with_answers_and_is_halved_once_per_round() {
        let throttle = Throttle::default();
        for _ in 0..200 {
            throttle.permit(0).await.answered(false);
        }
        assert_eq!(allowed(&throttle), "128.0");
        let round = futures_util::future::join_all((0..10).map(|_| throttle.permit(0))).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
        for permit in &round {
            permit.answered(true);
        }
        assert_eq!(allowed(&throttle), "64.0", "one reduction for the whole round");
        drop(round);
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            throttle.permit(0).await.answered(true);
        }
        assert_eq!(allowed(&throttle), "1.0");
        for _ in 0..3 {
            throttle.permit(0).await.answered(false);
        }
        assert_eq!(allowed(&throttle), "2.9", "it grows by about one in each round");
    }

    #[tokio::test]
    async fn small_requests_do_not_wait_for_large_ones() {
        let throttle = Throttle::default();
        let mut held = Vec::new();
        while let Some(permit) = throttle.permit(LARGE).now_or_never() {
            held.push(permit);
        }
        assert_eq!(held.len(), usize::try_from(MOST_LARGE).unwrap());
        assert!(throttle.permit(LARGE - 1).now_or_never().is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn never_more_requests_than_allowed_are_under_way_and_all_end() {
        let throttle = Arc::new(Throttle::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..500)
            .map(|number| {
                let (throttle, now, most) = (throttle.clone(), now.clone(), most.clone());
                tokio::spawn(async move {
                    let permit = throttle.permit(if number % 3 == 0 { LARGE } else { 0 }).await;
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    permit.answered(number % 10 == 0);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= usize::try_from(MOST).unwrap());
    }
}
