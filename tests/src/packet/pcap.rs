//! Capture files, for the packets of a test that failed.

use std::{fs, io, path::PathBuf};

/// The packets of one test, in the order in which they went in and came out.
#[derive(Debug, Default)]
pub struct Capture {
    frames: Vec<Vec<u8>>,
}

/// How many frames are kept: a test that sends more than this is debugged otherwise.
const MOST: usize = 4_096;

impl Capture {
    /// Notes a frame; the oldest go when there are too many.
    pub fn note(&mut self, frame: &[u8]) {
        if self.frames.len() == MOST {
            self.frames.remove(0);
        }
        self.frames.push(frame.to_vec());
    }

    /// Writes the frames to a file named for the current test and says on standard error where, and how to run the test again.
    pub fn report(&self) {
        let (binary, test) = current_test();
        match self.write(&format!("{binary}-{test}.pcap").replace("::", "-")) {
            Ok(path) => eprintln!("packets (input, output, input, ...): {}", path.display()),
            Err(error) => eprintln!("the packets could not be saved: {error}"),
        }
        eprintln!("run it again: cargo test --package lab --test {binary} -- --exact {test}");
    }

    fn write(&self, name: &str) -> io::Result<PathBuf> {
        let directory = failures()?;
        fs::create_dir_all(&directory)?;
        let path = directory.join(name);
        fs::write(&path, self.file())?;
        Ok(path)
    }

    /// The file's bytes: pcap version 2.4, Ethernet, one microsecond from frame to frame.
    fn file(&self) -> Vec<u8> {
        const ETHERNET: u32 = 1;
        let mut file = Vec::new();
        file.extend(0xa1b2_c3d4_u32.to_le_bytes());
        file.extend(2_u16.to_le_bytes());
        file.extend(4_u16.to_le_bytes());
        file.extend([0; 8]);
        file.extend(u32::from(u16::MAX).to_le_bytes());
        file.extend(ETHERNET.to_le_bytes());
        for (number, frame) in self.frames.iter().enumerate() {
            let length = (frame.len() as u32).to_le_bytes();
            file.extend(0_u32.to_le_bytes());
            file.extend((number as u32).to_le_bytes());
            file.extend(length);
            file.extend(length);
            file.extend(frame);
        }
        file
    }
}

/// `packet-failures` in the target directory: two up from the test's own binary.
fn failures() -> io::Result<PathBuf> {
    let binary = std::env::current_exe()?;
    let profile = binary.ancestors().nth(2).ok_or(io::ErrorKind::NotFound)?;
    Ok(profile.join("packet-failures"))
}

/// Names of the test binary, without cargo's hash, and of the test that this thread runs.
fn current_test() -> (String, String) {
    let binary = std::env::current_exe()
        .ok()
        .and_then(|path| path.file_name()?.to_str().map(str::to_owned))
        .unwrap_or_default();
    let binary = match binary.rsplit_once('-') {
        Some((name, _hash)) => name.to_owned(),
        None => binary,
    };
    let test = std::thread::current().name().unwrap_or("").to_owned();
    (binary, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_header_and_each_frame_behind_its_length() {
        let mut capture = Capture::default();
        capture.note(&[1, 2, 3]);
        capture.note(&[4]);
        let file = capture.file();
        assert_eq!(file.len(), 24 + 16 + 3 + 16 + 1);
        assert_eq!(file[24 + 8..24 + 12], 3_u32.to_le_bytes());
        assert_eq!(&file[24 + 16..24 + 19], &[1, 2, 3]);
    }
}
