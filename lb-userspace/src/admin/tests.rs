//! The API over a real socket, with a reconciler that only remembers what it was told.

mod left;

use std::os::unix::fs::MetadataExt as _;

use futures::FutureExt as _;
use nix::unistd::Gid;

use super::{client::Client, *};
use crate::{
    config::{self, BackendSpec},
    desired::{Edit, Refusal},
    inventory::tests as shown,
    model,
    preview::Preview,
    status::ConfigStatus,
};

mod described;
mod events;
mod gone;
mod lists;
mod peers;

pub(super) const CONFIG: &str = r#"
interfaces = ["eth0"]
[[service]]
name = "chat"
vip = "10.0.0.1"
port = 80
mode = "ipip"
[[service.backend]]
name = "b1"
address = "10.0.1.11"
"#;

fn some_status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 7,
        uptime_s: 9,
        at: 0,
        generation: Default::default(),
        config: ConfigStatus {
            path: "tether.toml".into(),
            error: None,
            differences: vec![],
            reloads: Default::default(),
        },
        evacuated: false,
        attachments: vec![],
        detached: vec![],
        closed_egress: vec![],
        dns: vec![],
        flows: Default::default(),
        services: vec![],
        reasons: Default::default(),
    }
}

/// A daemon's API in a directory of its own.
struct Daemon {
    directory: std::path::PathBuf,
    client: Client,
    listeners: mpsc::Sender<UnixListener>,
    stop: watch::Sender<bool>,
    status: watch::Sender<Arc<Status>>,
    maps: Arc<Maps>,
    heard: mpsc::Receiver<String>,
    lists: Places,
    history: History,
}

impl Daemon {
    fn socket(&self) -> std::path::PathBuf {
        self.directory.join("admin.sock")
    }

    fn file(&self) -> std::path::PathBuf {
        self.directory.join("tether.toml")
    }

    async fn start(test: &str) -> Self {
        Self::start_for(test, Readers::default(), some_status()).await
    }

    /// Shows a status, and maps that hold it, to a group too.
    async fn start_for(test: &str, readers: Readers, status: Status) -> Self {
        let maps = shown::maps_of(&status);
        Self::start_with(test, readers, status, maps).await
    }

    async fn start_with(test: &str, readers: Readers, status: Status, maps: Maps) -> Self {
        let directory =
            std::env::temp_dir().join(format!("tether-admin-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("tether.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let first = config::load(&file).unwrap().config;
        let socket = directory.join("admin.sock");
        let listener = listen(&socket, readers).unwrap();
        let (status, watched) = watch::channel(Arc::new(status));
        let (commands, mut received) = mpsc::channel(4);
        let (stop, shutdown) = watch::channel(false);
        let (told, heard) = mpsc::channel(16);
        let reloader = Arc::new(Reloader::new(&first, commands.clone()));
        let maps = Arc::new(maps);
        let history = History::default();
        history.heard(&watched.borrow(), 1_800_000_000);
        let admin = Admin::new(watched, maps.clone(), commands, reloader)
            .remembering(history.clone())
            .explaining(Arc::new(crate::explain::tests::opens()));
        let lists = admin.lists.clone();
        let (listeners, later) = mpsc::channel(1);
        tokio::spawn(serve(listener, later, admin, readers, shutdown));
        tokio::spawn(async move {
            let answer = |name: &BackendName| match name.backend.as_str() {
                "b1" => Ok(()),
                "b7" => Err(Refusal::Failed("no room".into())),
                "b8" => Err(Refusal::Invalid(format!(
                    "{name} is drained with all others"
                ))),
                _ => Err(Refusal::Absent(format!("there is no backend {name}"))),
            };
            while let Some(command) = received.recv().await {
                let text = match command {
                    Command::Drain { name, asked, reply } => {
                        reply.send(answer(&name)).unwrap();
                        format!("drain {name}{}", terms(asked))
                    }
                    Command::DrainAll { asked, reply } => {
                        reply.send(Ok(())).unwrap();
                        format!("drain all{}", terms(asked))
                    }
                    Command::UndrainAll { reply } => {
                        reply.send(Err(Refusal::Failed("no room".into()))).unwrap();
                        "undrain all".into()
                    }
                    Command::Undrain { name, reply } => {
                        let stays = || format!("{name} is not active in the file");
                        let stays = (name.service == "out").then(stays);
                        reply.send(answer(&name).map(|()| stays)).unwrap();
                        format!("undrain {name}")
                    }
                    Command::Edit { name, edit, reply } => {
                        let refused = || Err(Refusal::Invalid(format!("{name} is taken")));
                        let is_b1 = name.backend == "b1";
                        reply.send(if is_b1 { Ok(()) } else { refused() }).unwrap();
                        format!("edit {name} {edit:?}")
                    }
                    Command::Preview { config, reply } => {
                        let path = config.path.clone();
                        let preview = Preview {
                            path,
                            generation: 7,
                            services: vec![],
                            unchanged: config.services.len() as u64,
                            ended: vec![],
                            drained_flows: 0,
                        };
                        reply.send(Ok(preview)).unwrap();
                        "preview".into()
                    }
                    Command::Reload { config, reply } => {
                        let name = config.services[0].name.clone();
                        let refused = (name == "huge").then(|| Err("no room for huge".into()));
                        reply.send(refused.unwrap_or(Ok(42))).unwrap();
                        format!("reload {name}")
                    }
                    Command::RejectedConfig { error } => format!("rejected {error}"),
                };
                told.send(text).await.unwrap();
            }
        });
        Self {
            client: Client::new(&socket),
            directory,
            listeners,
            stop,
            status,
            maps,
            heard,
            lists,
            history,
        }
    }
}

impl Daemon {
    /// Status and body of what the API answers, whatever that is.
    async fn exchange(&self, method: &str, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let mut stream = tokio::net::UnixStream::connect(self.socket())
            .await
            .unwrap();
        // HTTP/1.0: an answer without chunks.
        let request = format!("{method} {path} HTTP/1.0\r\nHost: tether\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, body.to_owned())
    }
}

fn terms(asked: Option<Asked>) -> String {
    match asked {
        None => String::new(),
        Some(Asked {
            deadline,
            close_over,
            since: None,
        }) => format!(" within {deadline:?}, over {close_over:?}"),
        Some(asked) => panic!("{asked:?}"),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

#[tokio::test]
async fn the_status_comes_as_it_is() {
    let daemon = Daemon::start("status").await;
    assert_eq!(daemon.client.status().await.unwrap(), some_status());
    let mode = std::fs::metadata(daemon.socket()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn backends_are_drained_by_name() {
    let mut daemon = Daemon::start("drain").await;
    let name = |service: &str, backend: &str| BackendName {
        service: service.into(),
        backend: backend.into(),
    };
    daemon
        .client
        .drain(&name("chat", "b1"), None)
        .await
        .unwrap();
    assert_eq!(daemon.heard.recv().await.unwrap(), "drain chat/b1");
    let asked = |close_over| Asked {
        deadline: Duration::from_secs(90),
        close_over,
        since: None,
    };
    for (close_over, heard) in [
        (None, "drain chat/b1 within 90s, over None"),
        (
            Some(Duration::from_millis(1_500)),
            "drain chat/b1 within 90s, over Some(1.5s)",
        ),
    ] {
        let asked = Some(asked(close_over));
        daemon
            .client
            .drain(&name("chat", "b1"), asked)
            .await
            .unwrap();
        assert_eq!(daemon.heard.recv().await.unwrap(), heard);
    }
    let too_long = Some(Asked {
        deadline: Duration::from_secs(1 << 30),
        ..asked(None)
    });
    let error = daemon
        .client
        .drain(&name("chat", "b1"), too_long)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "1073741824000ms is not from 0s to 720h");
    // Names are text, not paths.
    let stays = daemon.client.undrain(&name("a b/../c%41", "b1")).await;
    assert_eq!(stays.unwrap(), None);
    assert_eq!(daemon.heard.recv().await.unwrap(), "undrain a b/../c%41/b1");
    let stays = daemon.client.undrain(&name("out", "b1")).await.unwrap();
    assert_eq!(stays.as_deref(), Some("out/b1 is not active in the file"));
    assert_eq!(daemon.heard.recv().await.unwrap(), "undrain out/b1");
    let error = daemon
        .client
        .drain(&name("chat", "b9"), None)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "there is no backend chat/b9");
}

#[tokio::test]
async fn backends_are_changed_by_name() {
    let mut daemon = Daemon::start("edit").await;
    let name = |backend: &str| BackendName {
        service: "chat".into(),
        backend: backend.into(),
    };
    let backend = PutBackend {
        address: [10, 0, 1, 14].into(),
        port: None,
        weight: 7,
        admin: model::Admin::Draining,
    };
    let put = Edit::Put(BackendSpec {
        address: backend.address,
        port: None,
        weight: 7,
        admin: model::Admin::Draining,
    });
    let b1 = name("b1");
    daemon.client.put_backend(&b1, &backend).await.unwrap();
    assert_eq!(
        daemon.heard.recv().await.unwrap(),
        format!("edit chat/b1 {put:?}")
    );
    daemon.client.set_weight(&b1, 9).await.unwrap();
    daemon.client.remove_backend(&b1).await.unwrap();
    daemon.client.revert(&b1).await.unwrap();
    for edit in [Edit::Weight(9), Edit::Remove, Edit::Revert] {
        assert_eq!(
            daemon.heard.recv().await.unwrap(),
            format!("edit chat/b1 {edit:?}")
        );
    }
    let error = daemon.client.set_weight(&name("b9"), 9).await.unwrap_err();
    assert_eq!(error.to_string(), "chat/b9 is taken");
}

#[tokio::test]
async fn a_body_that_is_not_understood_is_refused_in_json() {
    let daemon = Daemon::start("body").await;
    for (body, part) in [
        (r#"{"address":"10.0.1.14","colour":"red"}"#, "colour"),
        (r#"{"address":"here"}"#, "IP address"),
        ("{", "EOF"),
    ] {
        let text = request(&daemon, "PUT /v1/services/chat/backends/b1", body).await;
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
        let (_, json) = text.split_once("\r\n\r\n").unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert!(json["error"].as_str().unwrap().contains(part), "{json}");
    }
}

#[tokio::test]
async fn a_configuration_is_planned_as_it_is_sent() {
    let mut daemon = Daemon::start("plan").await;
    let path = std::path::Path::new("/etc/new file&.toml");
    let preview = daemon.client.plan(path, CONFIG.to_owned()).await.unwrap();
    assert_eq!((&*preview.path, preview.unchanged), (path, 1));
    assert_eq!(daemon.heard.recv().await.unwrap(), "preview");
    let bad = CONFIG.replace("port = 80", "port = 0\ncolour = \"red\"");
    let error = daemon.client.plan(path, bad).await.unwrap_err().to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
    assert!(error.contains("/etc/new file&.toml:6:8"), "{error}");
    // The largest file there may be.
    let large = CONFIG.to_owned() + &"#".repeat((16 << 20) - CONFIG.len());
    daemon.client.plan(path, large).await.unwrap();
}

/// What the daemon answers to a request line and a body of JSON.
async fn request(daemon: &Daemon, what: &str, body: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let mut stream = tokio::net::UnixStream::connect(daemon.socket())
        .await
        .unwrap();
    let request = format!(
        "{what} HTTP/1.1\r\nHost: tether\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn all_backends_are_drained_together() {
    let mut daemon = Daemon::start("all").await;
    daemon.client.drain_all(None).await.unwrap();
    assert_eq!(daemon.heard.recv().await.unwrap(), "drain all");
    let asked = Asked {
        deadline: Duration::from_secs(90),
        close_over: Some(Duration::ZERO),
        since: None,
    };
    daemon.client.drain_all(Some(asked)).await.unwrap();
    assert_eq!(
        daemon.heard.recv().await.unwrap(),
        "drain all within 90s, over Some(0ns)"
    );
    let error = daemon.client.undrain_all().await.unwrap_err();
    assert_eq!(error.to_string(), "no room");
    assert_eq!(daemon.heard.recv().await.unwrap(), "undrain all");
}

#[tokio::test]
async fn a_reload_takes_a_good_file_and_reports_all_of_a_bad_one() {
    let mut daemon = Daemon::start("reload").await;
    let file = daemon.file();
    let write = |text: String| std::fs::write(&file, text).unwrap();
    write(CONFIG.replace("chat", "talk"));
    assert_eq!(daemon.client.reload().await.unwrap(), 42);
    assert_eq!(daemon.heard.recv().await.unwrap(), "reload talk");

    write(CONFIG.replace("port = 80", "port = 0\ncolour = \"red\""));
    let error = daemon.client.reload().await.unwrap_err().to_string();
    assert!(
        error.lines().count() == 2 && error.contains("colour"),
        "{error}"
    );
    let rejected = daemon.heard.recv().await.unwrap();
    assert_eq!(rejected, format!("rejected {error}"));

    // Valid, but not for this instance.
    write(CONFIG.replace("chat", "huge"));
    let error = daemon.client.reload().await.unwrap_err().to_string();
    assert_eq!(error, "no room for huge");
    assert_eq!(daemon.heard.recv().await.unwrap(), "reload huge");
    assert_eq!(
        daemon.heard.recv().await.unwrap(),
        "rejected no room for huge"
    );
}

#[tokio::test]
async fn a_reload_goes_on_without_who_asked_for_it() {
    let directory = std::env::temp_dir().join(format!("tether-left-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("tether.toml");
    std::fs::write(&file, CONFIG).unwrap();
    let first = config::load(&file).unwrap().config;
    let (commands, mut told) = mpsc::channel(4);
    let reloader = Arc::new(Reloader::new(&first, commands.clone()));
    let status = some_status();
    let maps = Arc::new(shown::maps_of(&status));
    let (_status, watched) = watch::channel(Arc::new(status));
    let admin = Admin::new(watched, maps, commands, reloader);
    std::fs::write(&file, CONFIG.replace("chat", "talk")).unwrap();
    // As a command that is interrupted: the file is hardly looked at yet.
    assert!(super::reload(State(admin)).now_or_never().is_none());
    let told = tokio::time::timeout(Duration::from_secs(20), told.recv());
    match told.await.expect("it is handed over").unwrap() {
        Command::Reload { config, .. } => assert_eq!(config.services[0].name, "talk"),
        other => panic!("{other:?}"),
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[tokio::test]
async fn what_does_not_exist_is_said_so() {
    let daemon = Daemon::start("absent").await;
    let socket = daemon.directory.join("other.sock");
    let error = Client::new(&socket).status().await.unwrap_err().to_string();
    assert!(
        error.contains("no daemon answers") && error.contains("--socket"),
        "{error}"
    );
    // A socket whose daemon is gone is replaced; anything else in its place is not touched.
    daemon.stop.send(true).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    assert!(listen(&socket, Readers::default()).is_err());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    drop(listen(&daemon.socket(), Readers::default()).unwrap());
}

#[tokio::test]
async fn a_name_that_is_no_text_is_refused_in_json() {
    let daemon = Daemon::start("name").await;
    let path = "/v1/services/%FF/backends/b1/drain";
    let (code, body) = daemon.exchange("POST", path).await;
    assert_eq!(code, 400);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let error = body["error"].as_str().unwrap();
    assert!(error.contains("UTF-8"), "{error}");
}

#[tokio::test]
async fn a_socket_that_was_removed_is_served_where_it_is_opened_again() {
    let daemon = Daemon::start("again").await;
    std::fs::remove_file(daemon.socket()).unwrap();
    daemon.client.status().await.unwrap_err();
    let next = listen(&daemon.socket(), Readers::default()).unwrap();
    daemon.listeners.send(next).await.unwrap();
    assert_eq!(daemon.client.status().await.unwrap(), some_status());
}
