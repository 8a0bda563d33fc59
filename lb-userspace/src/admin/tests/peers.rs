//! Who may do what, as processes of other users: threads that take on their ids. Needs root.

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
};

use super::*;

/// Users and groups that nobody has.
const USER: u32 = 61_001;
const GROUP: u32 = 61_002;
const OTHER: u32 = 61_003;

/// Has the calling thread, and no other, be a user's of these groups, the first of them its own.
fn become_user(groups: &[u32]) {
    // The system calls themselves: they change this thread alone, unlike the functions of libc.
    // SAFETY: a list of so many groups, and plain numbers.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, groups.len() - 1, groups[1..].as_ptr()),
            libc::syscall(libc::SYS_setresgid, groups[0], groups[0], groups[0]),
            libc::syscall(libc::SYS_setresuid, USER, USER, USER),
        ]
    };
    assert_eq!(results, [0; 3], "this test needs root");
}

/// What the API answers to a user of these groups, the first of them its own: the status, or that it could not connect.
fn ask_as(socket: &std::path::Path, groups: &[u32], request: &str) -> Option<u16> {
    let (socket, groups) = (socket.to_owned(), groups.to_vec());
    let request = format!("{request} HTTP/1.0\r\nHost: tether\r\n\r\n");
    std::thread::spawn(move || {
        become_user(&groups);
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Some(answer.split(' ').nth(1).unwrap().parse().unwrap())
    })
    .join()
    .unwrap()
}

async fn asked(daemon: &Daemon, groups: &'static [u32], request: &'static str) -> Option<u16> {
    let socket = daemon.socket();
    tokio::task::spawn_blocking(move || ask_as(&socket, groups, request))
        .await
        .unwrap()
}

#[tokio::test]
async fn members_of_the_group_may_look_and_change_nothing() {
    let readers = Readers::of(Gid::from_raw(GROUP));
    let daemon = Daemon::start_for("group", readers, shown::a_status()).await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&daemon.socket()) & 0o777, 0o660);
    for groups in [&[GROUP] as &[u32], &[OTHER, GROUP], &[OTHER, 5, 6, GROUP]] {
        for (request, expected) in [
            ("GET /v1/status", 200),
            ("GET /v1/flows?sort=age", 200),
            ("GET /v1/openapi.json", 200),
            ("POST /v1/reload", 403),
            ("POST /v1/services/chat/backends/b1/drain", 403),
            ("DELETE /v1/status", 403),
        ] {
            assert_eq!(
                asked(&daemon, groups, request).await,
                Some(expected),
                "{groups:?} {request}"
            );
        }
    }
    // Who is no member cannot even connect.
    assert_eq!(asked(&daemon, &[OTHER], "GET /v1/status").await, None);
    // And nothing reached the reconciler.
    let mut daemon = daemon;
    assert!(daemon.heard.try_recv().is_err());
}

/// Connections of a member of the group that each ask for the status, and read nothing of it.
fn ask_and_read_nothing(socket: &std::path::Path, count: usize) -> Vec<UnixStream> {
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        become_user(&[GROUP]);
        let held = (0..count).map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // One that finds no place is closed, and may be before it has asked.
            drop(stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: tether\r\n\r\n"));
            stream
        });
        held.collect()
    })
    .join()
    .unwrap()
}

/// More of them than any listener has places.
#[tokio::test]
async fn members_of_the_group_keep_nobody_from_changing_things() {
    let mut status = shown::a_status();
    let maps = shown::maps_of(&status);
    // An answer that no socket holds.
    let backend = status.services[0].backends[0].clone();
    status.services[0].backends = vec![backend; 4_000];
    let readers = Readers::of(Gid::from_raw(GROUP));
    let daemon = Daemon::start_with("hold", readers, status, maps).await;
    let socket = daemon.socket();
    let held = tokio::task::spawn_blocking(move || {
        ask_and_read_nothing(&socket, 2 * http::gate::CONNECTIONS)
    });
    let held = held.await.unwrap();
    let name = BackendName {
        service: "chat".into(),
        backend: "b1".into(),
    };
    let drained = tokio::time::timeout(Duration::from_secs(4), daemon.client.drain(&name, None));
    drained
        .await
        .expect("it is answered before any of those is given up")
        .unwrap();
    drop(held);
}

#[tokio::test]
async fn whoever_gets_through_to_the_socket_is_turned_away_by_id() {
    let daemon = Daemon::start("stranger").await;
    assert_eq!(asked(&daemon, &[OTHER], "GET /v1/status").await, None);
    let open = |mode| std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(daemon.socket(), open(0o666)).unwrap();
    for request in ["GET /v1/status", "POST /v1/reload"] {
        assert_eq!(
            asked(&daemon, &[OTHER], request).await,
            Some(403),
            "{request}"
        );
    }
    let daemon = Daemon::start_for(
        "stranger2",
        Readers::of(Gid::from_raw(GROUP)),
        shown::a_status(),
    )
    .await;
    std::fs::set_permissions(daemon.socket(), open(0o666)).unwrap();
    assert_eq!(asked(&daemon, &[OTHER], "GET /v1/status").await, Some(403));
}

#[test]
fn the_group_can_reach_the_socket_through_a_directory_of_the_daemons_own() {
    let directory = std::env::temp_dir().join(format!("tether-reach-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let socket = directory.join("admin.sock");
    std::fs::write(&socket, "").unwrap();
    let set = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode));
    let found = || {
        let found = std::fs::metadata(&directory).unwrap();
        (found.mode() & 0o777, found.gid())
    };
    set(0o755).unwrap();
    Readers::of(Gid::from_raw(GROUP)).admit(&socket).unwrap();
    assert_eq!(
        found(),
        (0o755, 0),
        "one that others may pass is left alone"
    );
    set(0o700).unwrap();
    Readers::default().admit(&socket).unwrap();
    assert_eq!(found(), (0o700, 0));
    Readers::of(Gid::from_raw(GROUP)).admit(&socket).unwrap();
    assert_eq!(found(), (0o710, GROUP));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn what_was_taken_from_the_group_is_given_back() {
    let directory = std::env::temp_dir().join(format!("tether-taken-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let socket = directory.join("admin.sock");
    std::fs::write(&socket, "").unwrap();
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&directory, mode).unwrap();
    let readers = Readers::of(Gid::from_raw(GROUP));
    readers.admit(&socket).unwrap();
    assert!(!readers.admit_again(&socket).unwrap());
    let groups = || [&directory, &socket].map(|path| std::fs::metadata(path).unwrap().gid());
    // As systemd does at a reload; or by halves.
    for taken in [&[&directory, &socket] as &[_], &[&directory], &[&socket]] {
        for path in taken {
            nix::unistd::chown(*path, None, Some(Gid::from_raw(0))).unwrap();
        }
        assert!(readers.admit_again(&socket).unwrap());
        assert_eq!(groups(), [GROUP, GROUP]);
    }
    // Without a group there is nothing to give.
    assert!(!Readers::default().admit_again(&socket).unwrap());
    assert_eq!(groups(), [GROUP, GROUP]);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_group_that_is_not_there_is_named_with_the_remedy() {
    let path = std::path::Path::new("/etc/tether/tether.toml");
    let error = Readers::named(Some("no-such-group-here"), path)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/etc/tether/tether.toml") && error.contains("groupadd"),
        "{error}"
    );
    assert_eq!(
        Readers::named(Some("root"), path).unwrap(),
        Readers::of(Gid::from_raw(0))
    );
    assert_eq!(Readers::named(None, path).unwrap(), Readers::default());
}
