//! Answers that come line by line, and are taken as they come.

use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};

use super::{Body, Client, Error, PATIENCE};
use crate::inventory::{FlowEnd, FlowLine, FlowQuery, FlowRow};

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
        let answer = tokio::time::timeout(PATIENCE, self.send(Method::GET, &path, Body::None));
        let (mut body, _connection) = match answer.await {
            Ok(answer) => self.succeeded(answer?).await?,
            Err(_) => return Err(self.silent()),
        };
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            text.extend_from_slice(&chunk);
            let mut begin = 0;
            while let Some(length) = text[begin..].iter().position(|byte| *byte == b'\n') {
                let line = serde_json::from_slice(&text[begin..begin + length])
                    .map_err(|error| self.unusable(error))?;
                match line {
                    FlowLine::Flow(row) => {
                        if !take(row) {
                            return Ok(None);
                        }
                    }
                    FlowLine::End(end) => return Ok(Some(end)),
                }
                begin += length + 1;
            }
            text.drain(..begin);
            if text.len() > LINE {
                return Err(self.unusable("a line without an end"));
            }
        }
        Err(self.unusable("its list of flows broke off"))
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
fn text_of(query: &FlowQuery) -> String {
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
