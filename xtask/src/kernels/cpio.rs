//! Archives that the kernel unpacks into its first file system: cpio, "newc" (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written. The kernel unpacks several that follow each other as one.
pub(crate) struct Archive<W> {
    writer: W,
    /// Bytes written: names and contents are padded to multiples of four.
    length: u64,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive<BufWriter<File>> {
    /// Starts one at `path`, behind a copy of another.
    ///
    /// # Errors
    /// If the other cannot be read, or this one not be written.
    pub(crate) fn behind(other: &Path, path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| path.display().to_string())?;
        File::open(other)
            .and_then(|mut other| io::copy(&mut other, &mut file))
            .with_context(|| other.display().to_string())?;
        Self::append_to(file)
    }

    /// Starts one at the end of a file.
    ///
    /// # Errors
    /// If the file's length cannot be had.
    pub(crate) fn append_to(mut file: File) -> Result<Self> {
        let length = file.seek(io::SeekFrom::End(0))?;
        Ok(Self::new(BufWriter::new(file), length))
    }
}

impl<W: Write> Archive<W> {
    fn new(writer: W, length: u64) -> Self {
        Self {
            writer,
            length,
            entries: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory, and those above it, unless they are there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        if path.is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.make_parent(path)?;
        self.entry(path, LINK | 0o777, target.as_bytes())
    }

    /// Adds a file of this content.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn content(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.make_parent(path)?;
        self.entry(path, REGULAR | mode, content)
    }

    /// Adds a copy of a file of this machine.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(crate) fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        let read = || {
            Ok((
                fs::metadata(source)?.permissions().mode(),
                fs::read(source)?,
            ))
        };
        let (mode, content) =
            read().map_err(|error: io::Error| anyhow::anyhow!("{}: {error}", source.display()))?;
        self.content(path, mode & 0o777, &content)
    }

    /// Adds everything below a directory of this machine, under the same names.
    ///
    /// # Errors
    /// If it cannot be read or written, or holds what is neither file nor directory.
    pub(crate) fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        self.directory(path)?;
        let mut entries: Vec<_> = fs::read_dir(source)
            .and_then(Iterator::collect)
            .with_context(|| source.display().to_string())?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let path = format!("{path}/{}", name.to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.tree(&path, &entry.path())?;
            } else if kind.is_file() {
                self.file(&path, &entry.path())?;
            } else {
                bail!("{}: neither file nor directory", entry.path().display());
            }
        }
        Ok(())
    }

    /// Ends it, so that another may follow.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.writer.flush()?)
    }

    fn make_parent(&mut self, path: &str) -> Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too long"))?;
        let name_size = u32::try_from(path.len() + 1)?;
        // Inode, mode, owner, group, links, time, size, device and node numbers, the name's size, an unused checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header += &format!("{field:08x}");
        }
        self.write(header.as_bytes())?;
        self.write(path.as_bytes())?;
        self.write(&[0])?;
        self.pad()?;
        self.write(content)?;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        while !self.length.is_multiple_of(4) {
            self.write(&[0])?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        Ok(self.writer.write_all(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut Archive<&mut Vec<u8>>) -> Result<()>) -> Vec<u8> {
        let mut bytes = vec![];
        let mut archive = Archive::new(&mut bytes, 0);
        fill(&mut archive).unwrap();
        archive.finish().unwrap();
        bytes
    }

    /// Name, mode and content of each entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = vec![];
        let padded = |length: usize| length.div_ceil(4) * 4;
        while !bytes.is_empty() {
            let text = std::str::from_utf8(&bytes[..110]).unwrap();
            assert_eq!(&text[..6], "070701");
            let field = |index: usize| {
                usize::from_str_radix(&text[6 + 8 * index..14 + 8 * index], 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_size]).unwrap();
            let start = padded(110 + name_size);
            entries.push((
                name.trim_end_matches('\0').to_owned(),
                u32::try_from(mode).unwrap(),
                bytes[start..start + size].to_vec(),
            ));
            bytes = &bytes[padded(start + size)..];
        }
        entries
    }

    #[test]
    fn what_goes_in_comes_out_with_its_parents_first_and_once() {
        let bytes = archive(|archive| {
            archive.content("usr/bin/a", 0o755, b"one")?;
            archive.link("usr/b", "bin/a")?;
            archive.content("c", 0o644, b"")
        });
        let entry = |name: &str, mode, content: &str| (name.to_owned(), mode, content.into());
        let expected = [
            entry("usr", 0o040_755, ""),
            entry("usr/bin", 0o040_755, ""),
            entry("usr/bin/a", 0o100_755, "one"),
            entry("usr/b", 0o120_777, "bin/a"),
            entry("c", 0o100_644, ""),
            entry("TRAILER!!!", 0, ""),
        ];
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn a_file_keeps_its_mode() {
        let own = std::env::current_exe().unwrap();
        let bytes = archive(|archive| archive.file("init", &own));
        let (name, mode, content) = read(&bytes).remove(0);
        assert_eq!((name.as_str(), mode & 0o100_100), ("init", 0o100_100));
        assert_eq!(content, fs::read(&own).unwrap());
    }
}
