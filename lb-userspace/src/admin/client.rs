//! The command line's side of the admin API.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::{
    model::{Asked, BackendName},
    status::Status,
};

/// Time in which the daemon answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes: the status of tens of thousands of backends.
const ANSWER: usize = 64 << 20;

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "no daemon answers at {}: {source}; start one with `tether run --config FILE`, or name its socket with --socket (it is `admin.sock` in the daemon's `state_dir`)",
        path.display()
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not for this user.
    #[error("{} is for root and the daemon's own user only; run this as root", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It did not answer, or not as it should.
    #[error("the daemon at {} gave no usable answer: {why}; see its log", path.display())]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A daemon, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct Done {}

#[derive(Deserialize)]
struct Reloaded {
    generation: u64,
}

impl Client {
    /// The daemon whose socket is at `path`. Nothing is opened yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The state of things.
    ///
    /// # Errors
    /// When there is no daemon, or it does not answer.
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask(Method::GET, "/v1/status").await
    }

    /// Stops new flows to a backend; with a deadline of this drain's own, if one is asked for.
    ///
    /// # Errors
    /// When there is no daemon, or no such backend.
    pub async fn drain(&self, name: &BackendName, asked: Option<Asked>) -> Result<(), Error> {
        let ms = |time: Duration| format!("{}ms", time.as_millis());
        let mut verb = "drain".to_owned();
        if let Some(asked) = asked {
            verb += &format!("?deadline={}", ms(asked.deadline));
            if let Some(over) = asked.close_over {
                verb += &format!("&close_over={}", ms(over));
            }
        }
        self.change(name, &verb).await
    }

    /// Ends a drain.
    ///
    /// # Errors
    /// When there is no daemon, or no such backend.
    pub async fn undrain(&self, name: &BackendName) -> Result<(), Error> {
        self.change(name, "undrain").await
    }

    /// Has the configuration read again; gives the generation that it became.
    ///
    /// # Errors
    /// When there is no daemon, or the configuration is refused: all its errors, a line each.
    pub async fn reload(&self) -> Result<u64, Error> {
        let reloaded: Reloaded = self.ask(Method::POST, "/v1/reload").await?;
        Ok(reloaded.generation)
    }

    async fn change(&self, name: &BackendName, verb: &str) -> Result<(), Error> {
        let path = format!(
            "/v1/services/{}/backends/{}/{verb}",
            encoded(&name.service),
            encoded(&name.backend)
        );
        let Done {} = self.ask(Method::POST, &path).await?;
        Ok(())
    }

    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Error> {
        match tokio::time::timeout(PATIENCE, self.exchange(method, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unusable(format!("nothing within {} s", PATIENCE.as_secs()))),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Error> {
        let stream = UnixStream::connect(&self.path).await.map_err(|source| {
            let path = self.path.clone();
            if source.kind() == io::ErrorKind::PermissionDenied {
                Error::Forbidden { path }
            } else {
                Error::Absent { path, source }
            }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unusable(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "tether")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unusable(error))?;
        let answer = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.unusable(error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER)
                .collect()
                .await
                .map_err(|error| self.unusable(error))?
                .to_bytes();
            Ok((status, body))
        };
        tokio::pin!(answer, connection);
        let (status, body) = tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = &mut connection => answer.await,
        }?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.unusable(error));
        }
        if status == StatusCode::FORBIDDEN {
            return Err(Error::Forbidden {
                path: self.path.clone(),
            });
        }
        let failure: Failure =
            serde_json::from_slice(&body).map_err(|_| self.unusable(format!("status {status}")))?;
        let text = failure.error.unwrap_or_else(|| failure.errors.join("\n"));
        Err(Error::Refused(text))
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Error {
        Error::Unusable {
            path: self.path.clone(),
            why: why.to_string(),
        }
    }
}

/// A name as one segment of a URL's path (RFC 3986, section 2.3: what is not unreserved is percent-encoded).
fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}
