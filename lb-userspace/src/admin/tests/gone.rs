//! A daemon that answers, and goes before it has read all that it was sent.

use std::mem::MaybeUninit;

use nix::sys::signal::{SigSet, Signal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// What no socket holds.
const LONG: usize = 16 << 20;

/// Whether this thread has been sent a SIGPIPE, which it blocks.
fn has_sigpipe() -> bool {
    let mut pending = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the kernel fills the set, which is a plain number of bits, and then it is looked at.
    unsafe {
        assert_eq!(libc::sigpending(pending.as_mut_ptr()), 0);
        libc::sigismember(pending.as_ptr(), libc::SIGPIPE) == 1
    }
}

/// Asks for the plan of a long file. Says what came of it, and whether that would have ended a command that dies of SIGPIPE.
fn ask_for_a_long_plan(socket: &Path) -> (Result<Preview, client::Error>, bool) {
    // One that is blocked is kept, also by a process that ignores it.
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    pipe.thread_block().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(async {
        let listener = UnixListener::bind(socket).unwrap();
        let refuses = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 64]).await.unwrap();
            let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"error\":\"no\"}";
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let client = Client::new(socket);
        let plan = client.plan(Path::new("tether.toml"), "#".repeat(LONG));
        tokio::join!(plan, refuses).0
    });
    (answer, has_sigpipe())
}

#[test]
fn one_that_answers_and_goes_before_it_has_read_all_ends_no_command() {
    let directory = std::env::temp_dir().join(format!("tether-gone-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let socket = directory.join("admin.sock");
    // Signals are blocked for a thread.
    let asked = std::thread::spawn(move || ask_for_a_long_plan(&socket));
    let (answer, would_end) = asked.join().unwrap();
    assert!(answer.is_err(), "{answer:?}");
    assert!(!would_end, "the command would have died without a word");
    std::fs::remove_dir_all(&directory).unwrap();
}
