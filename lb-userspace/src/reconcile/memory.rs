//! What a restart must not forget and the maps do not hold: drains and changes that were asked for at runtime, answers of the DNS, and names.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io,
    io::Write,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::answers::Remembered;
use crate::{
    desired::{Changes, Endpoint},
    model::BackendName,
};

/// The file's name in the state directory.
const FILE: &str = "runtime.json";
/// Its name while it is being written.
const ASIDE: &str = "runtime.json.new";
/// Its name once it could not be used.
const BROKEN: &str = "runtime.json.broken";
/// What may be left in a state directory: for who removes it.
pub const FILES: [&str; 3] = [FILE, ASIDE, BROKEN];
/// Version of the file's form.
const VERSION: u32 = 1;

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    version: u32,
    /// Backends that are drained.
    pub(super) drained: BTreeSet<BackendName>,
    /// What is otherwise than the file says. A version before this one leaves it out.
    #[serde(default)]
    pub(super) changes: Changes,
    /// The latest answers of the DNS, for a daemon that finds it silent.
    #[serde(default)]
    pub(super) answers: Vec<Remembered>,
    services: Vec<ServiceName>,
    /// By identity.
    backends: std::collections::BTreeMap<u64, BackendName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceName {
    vip: IpAddr,
    port: u16,
    name: String,
}

impl Memory {
    /// With these drains, changes and names.
    pub(super) fn new(
        drained: BTreeSet<BackendName>,
        changes: Changes,
        answers: Vec<Remembered>,
        services: impl Iterator<Item = (Endpoint, String)>,
        backends: impl Iterator<Item = (u64, BackendName)>,
    ) -> Self {
        Self {
            version: VERSION,
            drained,
            changes,
            answers,
            services: services
                .map(|(Endpoint { vip, port }, name)| ServiceName { vip, port, name })
                .collect(),
            backends: backends.collect(),
        }
    }

    /// The name that a service had.
    pub(super) fn service(&self, endpoint: Endpoint) -> Option<String> {
        self.services
            .iter()
            .find(|service| (service.vip, service.port) == (endpoint.vip, endpoint.port))
            .map(|service| service.name.clone())
    }

    /// The name that a backend had.
    pub(super) fn backend(&self, identity: u64) -> Option<BackendName> {
        self.backends.get(&identity).cloned()
    }

    /// What was saved in a state directory; nothing if nothing was. What cannot be used is set aside and told: it must not keep the
    /// configuration from being served.
    pub(super) fn load(directory: &Path) -> Self {
        Self::read(directory).unwrap_or_else(|error| {
            set_aside(directory, &error);
            Self::default()
        })
    }

    fn read(directory: &Path) -> io::Result<Self> {
        let text = match fs::read(path(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        let memory: Self = serde_json::from_slice(&text)?;
        if memory.version != VERSION {
            let wrong = format!(
                "it has form {}, and this version knows {VERSION}",
                memory.version
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        Ok(memory)
    }

    /// Saves it, whole or not at all: under another name first, then renamed.
    ///
    /// # Errors
    /// When it cannot be written; the file is then as it was.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let aside = directory.join(ASIDE);
        let mut file = fs::File::create(&aside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&aside, path(directory))
    }
}

/// The file in a state directory.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Keeps an unusable file for people to look at, and says what is lost with it.
fn set_aside(directory: &Path, error: &io::Error) {
    const LOST: &str = "backends that were drained with `tether drain` take new flows unless they are drained again, what was changed at \
                        runtime is as the configuration says, and what was removed from that is listed by its addresses";
    let (file, broken) = (path(directory), directory.join(BROKEN));
    match fs::rename(&file, &broken) {
        Ok(()) => tracing::error!(
            file = %file.display(), kept = %broken.display(), %error,
            "what the last run remembered cannot be used: {LOST}"
        ),
        Err(rename) => tracing::error!(
            file = %file.display(), %error, %rename,
            "what the last run remembered cannot be used, nor be set aside: {LOST}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tether-memory-{test}-{}", std::process::id()))
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = directory("saved");
        assert_eq!(Memory::load(&directory), Memory::default());
        let name = BackendName {
            service: "chat".to_owned(),
            backend: "b1".to_owned(),
        };
        let endpoint = Endpoint {
            vip: "2001:db8::1".parse().unwrap(),
            port: 80,
        };
        let memory = Memory::new(
            BTreeSet::from([name.clone()]),
            serde_json::from_str(
                r#"[{"name":{"service":"chat","backend":"b2"},"change":{"weight":7}}]"#,
            )
            .unwrap(),
            serde_json::from_str(
                r#"[{"question":{"name":"chat.example.","kind":"srv"},"found":[{"address":"10.0.1.1","port":80,"weight":7}]}]"#,
            )
            .unwrap(),
            std::iter::once((endpoint, "chat".to_owned())),
            std::iter::once((u64::MAX, name.clone())),
        );
        memory.save(&directory).unwrap();
        let loaded = Memory::load(&directory);
        assert_eq!(loaded, memory);
        assert_eq!(loaded.backend(u64::MAX), Some(name));
        assert_eq!(loaded.service(endpoint).as_deref(), Some("chat"));
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            1,
            "nothing is left aside"
        );
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_is_not_understood_is_set_aside() {
        let directory = directory("broken");
        fs::create_dir_all(&directory).unwrap();
        for text in [
            "",
            "{",
            r#"{"version":2,"drained":[],"services":[],"backends":{}}"#,
        ] {
            fs::write(path(&directory), text).unwrap();
            assert_eq!(Memory::load(&directory), Memory::default());
            assert!(!path(&directory).exists(), "{text}");
            let kept = fs::read_to_string(directory.join(BROKEN)).unwrap();
            assert_eq!(kept, text);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
