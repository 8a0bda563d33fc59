//! Errors with their causes, as people read them.

use std::error::Error;

/// An error with all its causes, each once: many errors tell of their cause in their own words.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_told_already_is_not_told_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("the lock: {source}; mend it")]
        struct Told {
            source: std::io::Error,
        }
        let told = Told {
            source: std::io::Error::other("no space"),
        };
        let error = anyhow::Error::new(told).context("the daemon failed");
        assert_eq!(
            chain(error.as_ref()),
            "the daemon failed: the lock: no space; mend it"
        );
    }
}
