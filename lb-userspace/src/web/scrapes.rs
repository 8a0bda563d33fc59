//! Texts of `/metrics`, of which one can be tens of megabytes: however many ask, one is made at a time, and however slowly they read, few are held.
//!
//! Who has to wait takes what was begun after they asked, as fresh as one of their own. Where too many are being read still, who comes gets the latest of
//! those: it is a little old, but nobody is kept out by others who do not read.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::body::Bytes;
use tokio::{sync::Mutex, task::spawn_blocking};

/// Texts that are held at once, at most.
const HELD: usize = 4;

/// All that are made for one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrapes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many wait for their turn.
    waiting: AtomicUsize,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// The latest, and when it was begun; for as long as somebody waits, for whom it may do.
    latest: Option<(Instant, Arc<String>)>,
    /// Those that are being read, the latest last.
    read: Vec<Weak<String>>,
}

/// A text, for as long as it is being read.
struct Held(Arc<String>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Made {
    /// What does for one who has asked at `asked`, without another being made.
    fn for_one_who(&self, asked: Instant) -> Option<Arc<String>> {
        match &self.latest {
            Some((begun, text)) if *begun >= asked => Some(text.clone()),
            _ if self.read.len() < HELD => None,
            _ => self.read.iter().rev().find_map(Weak::upgrade),
        }
    }

    /// Another.
    async fn anew(
        &mut self,
        make: impl FnOnce() -> Result<String, fmt::Error> + Send + 'static,
    ) -> Result<Arc<String>, String> {
        let begun = Instant::now();
        let text = spawn_blocking(make)
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        let text = Arc::new(text);
        self.read.push(Arc::downgrade(&text));
        self.latest = Some((begun, text.clone()));
        Ok(text)
    }
}

impl Scrapes {
    /// A text: made now, or one that does as well. `make` may block.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn text(
        &self,
        make: impl FnOnce() -> Result<String, fmt::Error> + Send + 'static,
    ) -> Result<Bytes, String> {
        let asked = Instant::now();
        let shared = self.0.clone();
        // To its end, whoever goes meanwhile: else those who ask and go would have many made at once.
        let made = tokio::spawn(async move { shared.text(asked, make).await });
        made.await.map_err(|error| error.to_string())?
    }
}

impl Shared {
    async fn text(
        &self,
        asked: Instant,
        make: impl FnOnce() -> Result<String, fmt::Error> + Send + 'static,
    ) -> Result<Bytes, String> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut made = self.made.lock().await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        made.read.retain(|text| text.strong_count() > 0);
        let text = match made.for_one_who(asked) {
            Some(text) => Ok(text),
            None => made.anew(make).await,
        };
        // Also where that failed: the one before is nobody's any more.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            made.latest = None;
        }
        text.map(|text| Bytes::from_owner(Held(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn texts_that_nobody_reads_are_few_and_keep_nobody_out() {
        let scrapes = Scrapes::default();
        let mut held = Vec::new();
        for number in 0..20 {
            let text = scrapes.text(move || Ok(number.to_string())).await.unwrap();
            held.push(text);
        }
        for (number, text) in held.iter().enumerate() {
            // Of those that are too many, each has the latest.
            let expected = number.min(HELD - 1).to_string();
            assert_eq!(&text[..], expected.as_bytes());
        }
        drop(held);
        let fresh = scrapes.text(|| Ok("fresh".to_owned())).await.unwrap();
        assert_eq!(&fresh[..], b"fresh");
        assert!(scrapes.0.made.lock().await.latest.is_none());
    }

    #[tokio::test]
    async fn who_waits_together_is_served_by_one() {
        let made = Arc::new(AtomicUsize::new(0));
        let scrapes = Scrapes::default();
        let all = (0..50).map(|_| {
            let made = made.clone();
            scrapes.text(move || {
                made.fetch_add(1, Ordering::Relaxed);
                Ok("the same".to_owned())
            })
        });
        for text in futures::future::join_all(all).await {
            assert_eq!(&text.unwrap()[..], b"the same");
        }
        // Those who had asked when the first was begun take that, and whoever came after it the second.
        assert!(made.load(Ordering::Relaxed) <= 2);
        assert!(scrapes.0.made.lock().await.latest.is_none());
    }

    #[tokio::test]
    async fn one_that_cannot_be_made_is_an_error_and_the_next_is_made() {
        let scrapes = Scrapes::default();
        scrapes.text(|| Err(fmt::Error)).await.unwrap_err();
        scrapes.text(|| panic!("on purpose")).await.unwrap_err();
        let text = scrapes.text(|| Ok("made".to_owned())).await.unwrap();
        assert_eq!(&text[..], b"made");
    }

    #[tokio::test]
    async fn none_is_held_for_one_who_came_too_late_for_it_and_whose_own_cannot_be_made() {
        let scrapes = Scrapes::default();
        let (begins, begun) = tokio::sync::oneshot::channel();
        let (goes_on, waits) = std::sync::mpsc::channel();
        let first = scrapes.text(move || {
            begins.send(()).unwrap();
            waits.recv().unwrap();
            Ok("first".to_owned())
        });
        let second = async {
            begun.await.unwrap();
            let second = scrapes.text(|| Err(fmt::Error));
            let ends_first = async {
                while scrapes.0.waiting.load(Ordering::Relaxed) == 0 {
                    tokio::task::yield_now().await;
                }
                goes_on.send(()).unwrap();
            };
            let (second, ()) = tokio::join!(second, ends_first);
            second
        };
        let (first, second) = tokio::join!(first, second);
        assert_eq!(&first.unwrap()[..], b"first");
        second.unwrap_err();
        assert!(scrapes.0.made.lock().await.latest.is_none());
    }
}
