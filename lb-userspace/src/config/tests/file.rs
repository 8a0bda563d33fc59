//! Files that are no configuration, or none that can be read.

use super::*;

#[test]
fn broken_syntax_has_a_place_too() {
    let errors = errors("interfaces = [\"eth0\"]\nstate_dir = \n");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].starts_with("t.toml:2:"), "{}", errors[0]);
    assert!(
        errors[0].contains(": configuration: this is not TOML: "),
        "{}",
        errors[0]
    );
}

#[test]
fn a_key_given_twice_is_not_toml() {
    let errors = errors(&SMALL.replace("port = 80", "port = 80\nport = 81"));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].starts_with("t.toml:6:1: configuration: this is not TOML: "),
        "{}",
        errors[0]
    );
}

#[test]
fn columns_count_characters_not_bytes() {
    let text = SMALL.replace(
        "name = \"b1\"",
        "name = \"b1\"\nextra = { \"ümläut\" = 1, weight = 1 }",
    );
    assert_eq!(errors(&text).len(), 1);
    let text = SMALL.replace(
        "[[service.backend]]\nname",
        "[[service.backend]]\n\"ü\" = 1\nname",
    );
    let error = &errors(&text)[0];
    assert!(error.starts_with("t.toml:8:1: "), "{error}");
    let text = SMALL.replace("[\"eth0\"]", "[\"ü\", 1]");
    let error = &errors(&text)[0];
    assert!(error.starts_with("t.toml:1:20: "), "{error}");
}

#[test]
fn an_unreadable_file_is_named() {
    let error = load(Path::new("/nonexistent/tether.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "/nonexistent/tether.toml: configuration: cannot be read: No such file or directory (os error 2); name a readable file of UTF-8 text with --config"
    );
}

/// What is said about a file that is made in a directory of its own; fails if nothing is for a while.
fn told_of(test: &str, make: impl FnOnce(&Path)) -> String {
    let directory =
        std::env::temp_dir().join(format!("tether-config-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("tether.toml");
    make(&path);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn({
        let path = path.clone();
        move || sender.send(load(&path).map(drop))
    });
    let told = receiver.recv_timeout(std::time::Duration::from_secs(20));
    std::fs::remove_dir_all(&directory).unwrap();
    let told = told
        .expect("reading ends")
        .expect_err("it is no configuration");
    let told = told.to_string();
    let begin = format!("{}: configuration: cannot be read: ", path.display());
    let end = "; name a readable file of UTF-8 text with --config";
    told.strip_prefix(&begin)
        .and_then(|told| told.strip_suffix(end))
        .unwrap_or_else(|| panic!("{told}"))
        .to_owned()
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    const EXPECTED: &str = "it is no regular file";
    let pipe = |path: &Path| mkfifo(path, Mode::S_IRWXU).unwrap();
    assert_eq!(told_of("pipe", pipe), EXPECTED);
    let directory = |path: &Path| std::fs::create_dir(path).unwrap();
    assert_eq!(told_of("directory", directory), EXPECTED);
    let device = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    assert_eq!(told_of("device", device), EXPECTED);
}

#[test]
fn a_file_that_is_too_large_is_refused_whatever_is_in_it() {
    const EXPECTED: &str = "it is larger than 16 MiB, which no configuration is";
    let large = |length, byte| {
        move |path: &Path| {
            let mut text = vec![byte; length];
            text[0] = b'#';
            std::fs::write(path, text).unwrap();
        }
    };
    let most = MAX_FILE as usize;
    assert_eq!(told_of("large", large(most + 1, b' ')), EXPECTED);
    // Its last byte that is read is half a character.
    assert_eq!(told_of("binary", large(most + 1, 0xc3)), EXPECTED);
    let directory = std::env::temp_dir().join(format!("tether-config-{}", std::process::id()));
    large(most, b' ')(&directory);
    assert_eq!(read_file(&directory).unwrap().len(), most);
    std::fs::remove_file(&directory).unwrap();
}

#[test]
fn a_file_that_is_no_text_is_refused_with_the_line() {
    let bytes = |path: &Path| std::fs::write(path, b"# \n# \xff\n").unwrap();
    assert_eq!(
        told_of("bytes", bytes),
        "it is no UTF-8 text, from line 2 on"
    );
}
