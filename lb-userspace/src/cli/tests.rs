//! What the command line accepts, and what it makes of it.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_is_told_of_in_the_documents() {
    let page = include_str!("../../../docs/commands.md");
    let (_, table) = page
        .split_once("| command | |")
        .expect("a table of commands");
    let (table, _) = table.split_once("\n\n").expect("its end");
    let told: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" | ").next())
        .flat_map(|names| names.trim_end_matches('`').split("`, `"))
        .collect();
    let commands = Cli::command();
    let mut there: Vec<&str> = commands
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let mut sorted = told.clone();
    sorted.sort_unstable();
    there.sort_unstable();
    assert_eq!(sorted, there);
}

#[test]
fn defaults_are_those_of_the_configuration() {
    let Command::Status { daemon, json } = parse("tether status").unwrap() else {
        panic!("another command");
    };
    assert_eq!(daemon.socket, Path::new("/run/tether/admin.sock"));
    assert!(!json);
    assert_eq!(
        parse("tether cleanup").unwrap(),
        Command::Cleanup {
            config: None,
            bpffs: "/sys/fs/bpf/tether".into(),
            state_dir: "/run/tether".into(),
        }
    );
    let minimal = "interfaces = [\"eth0\"]\n";
    let config = config::parse(Path::new("x.toml"), minimal).unwrap().config;
    assert_eq!(config.state_dir, Path::new(STATE_DIR));
    assert_eq!(config.bpffs, Path::new(BPFFS));
}

#[test]
fn backends_are_named_with_their_service() {
    let named = Named::from_str("chat/b1").unwrap();
    assert_eq!(named.0.to_string(), "chat/b1");
    for wrong in ["chat", "chat/", "/b1", ""] {
        assert!(Named::from_str(wrong).is_err(), "{wrong}");
    }
    assert_eq!(parse("tether drain chat").unwrap_err().exit_code(), 2);
}

#[test]
fn a_drain_may_have_a_deadline_of_its_own_and_be_waited_for() {
    for line in [
        "chat/b1",
        "chat/b1 --deadline 30m",
        "chat/b1 --deadline 2h --close-over 60s",
        "chat/b1 --wait",
        "--all",
        "--all --deadline 30m --wait --idle-after 10m",
    ] {
        assert!(parse(&format!("tether drain {line}")).is_ok(), "{line}");
    }
    for wrong in [
        "",
        "chat/b1 --all",
        "chat/b1 --deadline 30",
        "chat/b1 --deadline 721h",
        "chat/b1 --close-over 60s",
        "chat/b1 --idle-after 10m",
        "chat/b1 --wait --idle-after 9s",
    ] {
        let error = parse(&format!("tether drain {wrong}")).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong}");
    }
    assert!(parse("tether undrain --all").is_ok());
    assert_eq!(parse("tether undrain").unwrap_err().exit_code(), 2);
}

#[test]
fn backends_are_changed_within_bounds() {
    for line in [
        "tether weight chat/b1 0",
        "tether weight chat/b1 1000 --socket /run/other.sock",
        "tether add chat/b1 --address 2001:db8::1 --weight 50",
        "tether remove chat/b1",
        "tether revert chat/b1",
        "tether plan --config a.toml --json",
        "tether check --schema",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "tether weight chat/b1 1001",
        "tether weight chat/b1 -1",
        "tether add chat/b1",
        "tether add chat/b1 --address b1.example",
        "tether add chat/b1 --address 10.0.0.1 --weight 1001",
        "tether plan",
        "tether check",
        "tether check --schema --config a.toml",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn the_daemon_needs_a_configuration() {
    assert_eq!(parse("tether run").unwrap_err().exit_code(), 2);
    assert_eq!(
        parse("tether run --config a.toml --log-format json").unwrap(),
        Command::Run {
            config: ConfigFile {
                path: "a.toml".into()
            },
            log_format: logging::Format::Json,
        }
    );
    assert!(parse("tether cleanup --config a.toml --bpffs /x").is_err());
}

#[test]
fn a_bad_configuration_is_another_exit_status_than_a_failure() {
    let error = load(Path::new("/nonexistent/tether.toml"), |_| ()).unwrap_err();
    assert!(matches!(error, Failure::Config(_)));
    assert_eq!(error.exit_code(), ExitCode::from(2));
    assert!(error.to_string().contains("/nonexistent/tether.toml"));
    let other = Failure::Other(anyhow::anyhow!("x"));
    assert_eq!(other.exit_code(), ExitCode::FAILURE);
    // What clap cannot see is wrong with a command line is that all the same.
    let Command::Events(events) = parse("tether events --service chat").unwrap() else {
        panic!("another command");
    };
    assert_eq!(events.run().unwrap_err().exit_code(), ExitCode::from(2));
}
