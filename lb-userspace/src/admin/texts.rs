//! Answers about everything. With tens of thousands of backends one takes a CPU for a good part of a tenth of a second, which the checks of health must not wait
//! for: so it is made elsewhere, and few are at a time.

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};

use crate::http::{self, turns::Turns};

/// Answers that are made at once, at most.
const WRITERS: usize = 2;

/// Who makes them.
#[derive(Clone, Debug)]
pub(super) struct Texts(Turns);

impl Default for Texts {
    fn default() -> Self {
        Self(Turns::of(WRITERS))
    }
}

impl Texts {
    /// The answer that `make` gives the JSON of, which may take its time.
    pub(super) async fn answer(
        &self,
        make: impl FnOnce() -> serde_json::Result<Vec<u8>> + Send + 'static,
    ) -> Response {
        let made = self.0.take(make).await;
        match made.and_then(|text| text.map_err(|error| error.to_string())) {
            Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
            Err(error) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn few_are_made_at_once_and_all_are_whoever_goes() {
        let texts = Texts::default();
        let (made, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (goes_on, waits) = mpsc::channel::<()>();
        let waits = Arc::new(std::sync::Mutex::new(waits));
        let begin = || {
            let (texts, made, at_once, waits) =
                (texts.clone(), made.clone(), at_once.clone(), waits.clone());
            tokio::spawn(async move {
                let answer = texts.answer(move || {
                    assert!(at_once.fetch_add(1, Ordering::SeqCst) < WRITERS);
                    waits.lock().unwrap().recv().unwrap();
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    made.fetch_add(1, Ordering::SeqCst);
                    serde_json::to_vec("text")
                });
                answer.await.status()
            })
        };
        let all: Vec<_> = (0..10).map(|_| begin()).collect();
        // One that goes while it is made leaves its turn when that has an end.
        while at_once.load(Ordering::SeqCst) < WRITERS {
            tokio::task::yield_now().await;
        }
        all[0].abort();
        for _ in 0..10 {
            goes_on.send(()).unwrap();
        }
        for (number, one) in all.into_iter().enumerate() {
            match one.await {
                Ok(status) => assert_eq!(status, StatusCode::OK),
                Err(error) => assert!(number == 0 && error.is_cancelled(), "{number}: {error}"),
            }
        }
        while made.load(Ordering::SeqCst) < 10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(at_once.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn one_that_cannot_be_made_is_told() {
        let texts = Texts::default();
        let panics = texts.answer(|| panic!("on purpose")).await;
        assert_eq!(panics.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let made = texts.answer(|| serde_json::to_vec(&1)).await;
        assert_eq!(made.headers()[header::CONTENT_TYPE], "application/json");
    }
}
