//! Answers that come line by line, and are taken as they come.

use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};

use serde::Serialize;

use super::{Answer, Body, Client, Error, PATIENCE};
use crate::{
    admin::{AskedCapture, AskedEvents},
    history::Event,
    inventory::{FlowEnd, FlowLine, FlowQuery, FlowRow},
    watch::{flow::FlowEvent, wish::Wish},
};

/// The longest line, in bytes.
const LINE: usize = 64 << 10;

impl Client {
    /// Gives each flow that `query` asks for to `take`, until that says false; and then the end, none if `take` had enough.
    ///
    /// # Errors
    /// When there is no daemon, the question means nothing, or the answer breaks off.
    pub async fn flows(
        &self,
        query: &FlowQuery,
        mut take: impl FnMut(FlowRow) -> bool,
    ) -> Result<Option<FlowEnd>, Error> {
        let path = format!("/v1/flows?{}", text_of(query));
        let answer = self.begin(Method::GET, &path).await?;
        let mut end = None;
        let lines = self.lines(answer, |line| match line {
            FlowLine::Flow(row) => take(row),
            FlowLine::End(found) => {
                end = Some(found);
                false
            }
        });
        if lines.await? {
            Ok(end)
        } else {
            Err(self.unusable("its list of flows broke off"))
        }
    }

    /// Gives each change that is asked for to `take`, until that says false. Does not end by itself if what comes is asked for too.
    ///
    /// # Errors
    /// When there is no daemon, or the answer breaks off.
    pub async fn events(
        &self,
        asked: AskedEvents,
        take: impl FnMut(Event) -> bool,
    ) -> Result<(), Error> {
        let path = format!("/v1/events?{}", text_of(&asked));
        let answer = self.begin(Method::GET, &path).await?;
        let is_enough = self.lines::<Event>(answer, take).await?;
        if asked.follow && !is_enough {
            return Err(self.unusable("it has ended, or its list of changes broke off"));
        }
        Ok(())
    }

    /// Gives each event of a flow that is asked for to `take`, until that says false; `begun` is told when the program that watches is in its place. Does
    /// not end by itself.
    ///
    /// # Errors
    /// When there is no daemon, the question means nothing, or the answer breaks off.
    pub async fn flow_events(
        &self,
        wish: &Wish,
        begun: impl FnOnce(),
        take: impl FnMut(FlowEvent) -> bool,
    ) -> Result<(), Error> {
        let path = format!("/v1/flow-events?{}", text_of(wish));
        let answer = self.begin(Method::POST, &path).await?;
        begun();
        if self.lines::<FlowEvent>(answer, take).await? {
            Ok(())
        } else {
            Err(self.unusable("it has ended, or its list of events broke off"))
        }
    }

    /// Gives a capture to `take` as it comes, until that says false or it ends.
    ///
    /// # Errors
    /// When there is no daemon, the question means nothing, or the answer breaks off.
    pub async fn capture(
        &self,
        asked: &AskedCapture,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        let path = format!("/v1/capture?{}", text_of(asked));
        let (mut body, _connection) = self.begin(Method::POST, &path).await?;
        // Nothing may come for as long as it lasts.
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unusable(error))?;
            if let Ok(bytes) = frame.into_data()
                && !take(&bytes)
            {
                break;
            }
        }
        Ok(())
    }

    /// Asks for an answer that comes line by line.
    async fn begin(&self, method: Method, path: &str) -> Result<Answer<Incoming>, Error> {
        let answer = tokio::time::timeout(PATIENCE, self.send(method, path, Body::None));
        match answer.await {
            Ok(answer) => self.succeeded(answer?).await,
            Err(_) => Err(self.silent()),
        }
    }

    /// Gives each line to `take` as it comes, until that says false or the answer ends. Empty ones mean nothing. Whether `take` has said false.
    async fn lines<T: serde::de::DeserializeOwned>(
        &self,
        (mut body, _connection): Answer<Incoming>,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<bool, Error> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            text.extend_from_slice(&chunk);
            let mut begin = 0;
            while let Some(length) = text[begin..].iter().position(|byte| *byte == b'\n') {
                let line = &text[begin..begin + length];
                begin += length + 1;
                if line.is_empty() {
                    continue;
                }
                let line = serde_json::from_slice(line).map_err(|error| self.unusable(error))?;
                if !take(line) {
                    return Ok(true);
                }
            }
            text.drain(..begin);
            if text.len() > LINE {
                return Err(self.unusable("a line without an end"));
            }
        }
        Ok(false)
    }

    async fn chunk(&self, body: &mut Incoming) -> Result<Option<hyper::body::Bytes>, Error> {
        loop {
            let frame = match tokio::time::timeout(PATIENCE, body.frame()).await {
                Err(_) => return Err(self.silent()),
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| self.unusable(error))?,
            };
            if let Ok(chunk) = frame.into_data() {
                return Ok(Some(chunk));
            }
        }
    }
}

/// As it stands in a URL.
pub(super) fn text_of(query: &impl Serialize) -> String {
    let fields = serde_json::to_value(query).unwrap_or_default();
    let fields = fields.as_object().into_iter().flatten();
    let pairs = fields.map(|(name, value)| {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{name}={}", super::encoded(&value))
    });
    pairs.collect::<Vec<_>>().join("&")
}
