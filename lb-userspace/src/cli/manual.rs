//! `tether completions` and `tether man`: made of the command line's own description.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Man {
    /// The command whose page is printed, one of a command's own as `seed-show`; none is that of `tether` itself.
    command: Option<String>,
    /// Write the pages of all commands to this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(Completions { shell }: &Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(*shell, &mut Cli::command(), "tether", &mut text);
    put!("{}", String::from_utf8_lossy(&text));
    Ok(())
}

pub(super) fn man(Man { command, dir }: &Man) -> Result<(), Failure> {
    match dir {
        Some(dir) => Ok(write_all(dir)?),
        None => {
            let mut text = Vec::new();
            page(command.as_deref(), &mut text)?;
            put!("{}", String::from_utf8_lossy(&text));
            Ok(())
        }
    }
}

fn page(name: Option<&str>, out: &mut dyn io::Write) -> anyhow::Result<()> {
    let tether = Cli::command().display_name("tether");
    let command = match name {
        None => tether,
        Some(name) => {
            let found = of_name(&tether, name).cloned();
            // As the whole set names them.
            let display_name = format!("tether-{name}");
            found
                .map(|command| command.display_name(display_name))
                .ok_or_else(|| anyhow!("there is no command {name:?}; `tether help` lists them"))?
        }
    };
    clap_mangen::Man::new(command)
        .render(out)
        .context("the page could not be written")
}

/// The command of a name, as its page has it: those of a command are named behind it, as `seed-show`.
fn of_name<'c>(command: &'c clap::Command, name: &str) -> Option<&'c clap::Command> {
    command.get_subcommands().find_map(|one| {
        if one.get_name() == name {
            return Some(one);
        }
        let rest = name.strip_prefix(one.get_name())?.strip_prefix('-')?;
        of_name(one, rest)
    })
}

fn write_all(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("{}: the pages could not be written", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = std::env::temp_dir().join(format!("tether-man-{}", std::process::id()));
        write_all(&dir).unwrap();
        for command in Cli::command().get_subcommands() {
            let page =
                std::fs::read_to_string(dir.join(format!("tether-{}.1", command.get_name())));
            let about = command.get_about().map(ToString::to_string).unwrap();
            let first = about.split(['`', '-', '\'']).next().unwrap();
            assert!(page.unwrap().contains(first), "{about}");
        }
        let page = std::fs::read_to_string(dir.join("tether.1")).unwrap();
        assert!(
            page.contains("EXTRA") && page.contains("Exit status: 0 success"),
            "{page}"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn one_page_is_printed_by_name() {
        let mut text = Vec::new();
        page(Some("flows"), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("tether\\-flows") && text.contains("\\-\\-idle\\-for"),
            "{text}"
        );
        // One of a command's own, and one whose name has a hyphen.
        for (name, title) in [
            ("seed-show", "tether\\-seed\\-show"),
            ("upgrade-check", "tether\\-upgrade\\-check"),
        ] {
            let mut text = Vec::new();
            page(Some(name), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(title), "{text}");
        }
        let error = page(Some("seed-fly"), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("seed-fly"), "{error}");
        let error = page(Some("fly"), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("fly"), "{error}");
    }

    #[test]
    fn completions_know_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tether", &mut text);
            let text = String::from_utf8(text).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(
                    text.contains(command.get_name()),
                    "{shell}: {}",
                    command.get_name()
                );
            }
            assert!(text.contains("idle-for"), "{shell}");
        }
    }
}
