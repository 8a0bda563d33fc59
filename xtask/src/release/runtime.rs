//! What is in the binary beside crates of its own: Rust's standard library, and the C library that it stands on.

use std::fs;

use anyhow::{Context as _, Result};

use crate::setup::Toolchain;

/// The archives of `ar` begin with it.
const MAGIC: &[u8] = b"!<arch>\n";

/// Bytes of the header of an archive's member.
const HEADER: usize = 60;

/// What musl calls itself is in this member, and nowhere else in its archive.
const VERSION_MEMBER: &[u8] = b"version.lo/";

/// One library.
pub(super) struct Library {
    /// What it is called here.
    pub(super) name: &'static str,
    /// Which one it is.
    pub(super) version: String,
    /// Under which licence it is, as an SPDX expression.
    pub(super) licence: &'static str,
    /// Whose it is, in its own words.
    pub(super) copyright: &'static str,
    /// Where more on that is found.
    more: &'static str,
    /// Where it is developed.
    pub(super) repository: &'static str,
}

impl Library {
    /// What a bill of materials calls it.
    pub(super) fn reference(&self) -> String {
        format!("pkg:generic/{}@{}", self.name, self.version)
    }

    /// What goes with it: whose it is, and the terms, which are those of `mit`, as any text of that licence has them.
    ///
    /// # Errors
    /// If that text has no terms.
    pub(super) fn notice(&self, mit: &str) -> Result<String> {
        const BEGIN: &str = "Permission is hereby granted";
        let (_, terms) = mit
            .split_once(BEGIN)
            .context("the text of the MIT licence has no terms")?;
        let (copyright, more) = (self.copyright, self.more);
        Ok(format!("{copyright}\n\n{more}\n\n{BEGIN}{terms}"))
    }
}

/// The libraries that the toolchain in use puts into a binary for `target`, the first of them whatever the target is.
///
/// # Errors
/// If the toolchain does not tell which it has.
pub(super) fn libraries(target: &str) -> Result<Vec<Library>> {
    let toolchain = Toolchain::find()?;
    let mut libraries = vec![Library {
        name: "rust-std",
        version: toolchain.version.release.clone(),
        licence: "MIT OR Apache-2.0",
        copyright: "Copyright: The Rust Project Developers (see https://thanks.rust-lang.org)",
        more: "What it has from others, LLVM's libunwind among it, is listed with authors and licences in share/doc/rust/COPYRIGHT.html and \
            COPYRIGHT-library.html of the toolchain.",
        repository: "https://github.com/rust-lang/rust",
    }];
    // Elsewhere the C library is not in the binary, but of the machine that it runs on.
    if target.ends_with("-musl") {
        let path = toolchain.own_library(target, "libc.a");
        let archive = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let version = musl_version(&archive)
            .with_context(|| format!("{} does not tell its version", path.display()))?;
        libraries.push(Library {
            name: "musl",
            version,
            licence: "MIT",
            copyright: "Copyright © 2005-2020 Rich Felker, et al.",
            more: "Its contributors, and parts that have notices of their own, are listed in COPYRIGHT of its sources.",
            repository: "https://git.musl-libc.org/git/musl",
        });
    }
    Ok(libraries)
}

/// The version of musl that an archive is of.
fn musl_version(archive: &[u8]) -> Option<String> {
    let mut rest = archive.strip_prefix(MAGIC)?;
    loop {
        let (header, after) = rest.split_at_checked(HEADER)?;
        let size: usize = str::from_utf8(&header[48..58]).ok()?.trim().parse().ok()?;
        let (member, after) = after.split_at_checked(size)?;
        if header.starts_with(VERSION_MEMBER) {
            // A string of C: what is around it ends in zeros too.
            let mut strings = member.split(|byte| *byte == 0);
            return strings.find_map(version);
        }
        // Members begin at even places.
        rest = after.get(size % 2..)?;
    }
}

/// A string that is a version.
fn version(bytes: &[u8]) -> Option<String> {
    let text = str::from_utf8(bytes).ok()?;
    let numbers: Vec<&str> = text.split('.').collect();
    let is_number =
        |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (numbers.len() == 3 && numbers.iter().all(is_number)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, content) in members {
            let header = format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                "100644",
                content.len()
            );
            assert_eq!(header.len(), HEADER);
            bytes.extend(header.bytes());
            bytes.extend(*content);
            if content.len() % 2 == 1 {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    #[test]
    fn musl_says_which_it_is() {
        let even: &[u8] = b"\0\0\0\0";
        let odd: &[u8] = b"\x009.9.9\x00";
        let says: &[u8] = b"\x7fELF\x02\x00\x001.2.5\x00GNU C99 9.4.0\x00";
        let short: &[u8] = b"\x001.2\x00GNU C99 9.4.0\x00";
        let all = archive(&[
            ("/", even),
            ("strverscmp.lo/", odd),
            ("version.lo/", says),
            ("write.lo/", odd),
        ]);
        assert_eq!(musl_version(&all).as_deref(), Some("1.2.5"));
        for silent in [
            archive(&[("strverscmp.lo/", odd)]),
            archive(&[("version.lo/", short)]),
            all[..all.len() / 2].to_vec(),
            b"1.2.5".to_vec(),
        ] {
            assert_eq!(musl_version(&silent), None);
        }
    }

    #[test]
    fn what_a_library_comes_with_says_whose_it_is_and_the_terms() -> Result<()> {
        let all = libraries("x86_64-unknown-linux-gnu")?;
        let [std] = &all[..] else {
            panic!("the C library is the machine's");
        };
        assert_eq!(
            std.reference(),
            format!("pkg:generic/rust-std@{}", std.version)
        );
        let notice = std
            .notice("MIT License\n\nCopyright (c) Us\n\nPermission is hereby granted, gladly.\n")?;
        assert!(notice.starts_with("Copyright: The Rust Project Developers"));
        assert!(notice.ends_with("\n\nPermission is hereby granted, gladly.\n"));
        assert!(!notice.contains("Us"), "they are theirs: {notice}");
        assert!(std.notice("as you like").is_err());
        Ok(())
    }
}
