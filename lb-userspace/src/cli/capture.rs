//! `tether capture`.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Write},
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;

use super::{Daemon, Failure, progress::Progress};
use crate::admin::AskedCapture;

/// What a command says while the daemon replaces the program.
pub(super) const LOADS: &str = "the program that watches is put in its place";
/// Time between two looks at how many packets have come.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Capture {
    /// The file that is written; without it, standard output, as for `tether capture | tshark -r -`.
    #[arg(long, short, value_name = "FILE")]
    write: Option<PathBuf>,
    #[command(flatten)]
    of: Of,
    /// Only packets that come to these reasons, separated by commas, like opened,no_backend; `tether status` lists them. Without it, all that are
    /// not left to the host.
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// One of so many packets, by chance.
    #[arg(long, value_name = "N")]
    sample: Option<u32>,
    /// Bytes of each packet that are kept, at most. [default: 2047, which is the most]
    #[arg(long, value_name = "BYTES")]
    snap: Option<u32>,
    /// End with so many packets. [default: 10000]
    #[arg(long, value_name = "N")]
    packets: Option<u64>,
    /// End before the file is longer. [default: 100000000]
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u64>,
    /// End after so many seconds. [default: 60]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Whose packets or flows.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Of {
    /// Only of this service.
    #[arg(long)]
    pub(super) service: Option<String>,
    /// Only on this backend, as SERVICE/BACKEND.
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Only of clients in this prefix, like 10.0.0.0/8, or of this one address.
    #[arg(long, value_name = "PREFIX")]
    pub(super) client: Option<String>,
}

/// Names with commas between them; none if there are none.
pub(super) fn joined(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names.join(","))
}

impl Capture {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let out: Box<dyn Write> = match &self.write {
            None if io::stdout().is_terminal() => {
                return Err(Failure::CommandLine(
                    "a capture is no text for a terminal: name a file with --write, or pipe it to a program",
                ));
            }
            None => Box::new(io::stdout().lock()),
            Some(path) => Box::new(
                File::create(path)
                    .with_context(|| format!("{}: it cannot be written", path.display()))?,
            ),
        };
        let mut blocks = Blocks::new(BufWriter::new(out));
        let asked = AskedCapture {
            service: self.of.service.clone(),
            backend: self.of.backend.clone(),
            client: self.of.client.clone(),
            reason: joined(&self.reason),
            sample: self.sample,
            snap: self.snap,
            packets: self.packets,
            bytes: self.bytes,
            seconds: self.seconds,
        };
        let progress = self.progress();
        // Packets; none before the program that watches is in its place.
        let so_far = Cell::new(None::<u64>);
        let mut failed = None;
        let captured = super::ask(&self.daemon, async |client| {
            let mut capture = pin!(client.capture(&asked, |bytes| {
                let taken = blocks.take(bytes);
                so_far.set(Some(blocks.packets));
                let is_well = taken.is_ok();
                failed = taken.err();
                is_well
            }));
            let mut interrupted = pin!(tokio::signal::ctrl_c());
            let mut looks = tokio::time::interval(LOOK);
            loop {
                tokio::select! {
                    captured = &mut capture => return captured,
                    // What came so far is a whole file.
                    _ = &mut interrupted => return Ok(()),
                    _ = looks.tick() => match so_far.get() {
                        None => progress.say(LOADS),
                        Some(packets) => progress.say(&format!("packets so far: {packets}")),
                    },
                }
            }
        });
        progress.clear();
        let written = blocks.finish();
        captured?;
        if let Some(error) = failed.or(written.err()) {
            return Err(anyhow::Error::from(error)
                .context("the capture could not be written")
                .into());
        }
        let name = self
            .write
            .as_ref()
            .map_or_else(String::new, |path| format!(" to {}", path.display()));
        let missed = match blocks.dropped {
            0 => String::new(),
            missed => {
                format!("; {missed} more came too fast: --sample, --snap or a narrower choice help")
            }
        };
        eprintln!("{} packets written{name}{missed}", blocks.packets);
        Ok(())
    }

    /// A program that is given the capture may write to the same terminal.
    fn progress(&self) -> Progress {
        match self.write {
            Some(_) => Progress::on_stderr(),
            None => Progress::none(),
        }
    }
}

/// Writes whole blocks of pcapng only, and counts packets.
struct Blocks<W> {
    out: W,
    pending: Vec<u8>,
    packets: u64,
    dropped: u64,
}

impl<W: Write> Blocks<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            pending: Vec::new(),
            packets: 0,
            dropped: 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        const PACKET: u32 = 6;
        const STATISTICS: u32 = 5;
        self.pending.extend_from_slice(bytes);
        let mut begin = 0;
        while let Some(length) = u32_at(&self.pending, begin + 4).map(|length| length as usize) {
            let Some(block) = self.pending.get(begin..begin + length.max(12)) else {
                break;
            };
            match u32_at(block, 0) {
                Some(PACKET) => self.packets += 1,
                // Type, length, interface, time, received, dropped: as the daemon orders them.
                Some(STATISTICS) => self.dropped = u64::from(u32_at(block, 36).unwrap_or(0)),
                _ => {}
            }
            self.out.write_all(block)?;
            begin += block.len();
        }
        self.pending.drain(..begin);
        // Who reads it by a pipe is to see it now.
        self.out.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{Seen, pcapng::Writer};

    #[test]
    fn however_a_file_comes_only_whole_blocks_are_written() {
        let (mut writer, mut file) = Writer::begin(64);
        let seen = Seen {
            head: lb_common::watch::Head::default(),
            data: vec![7; 33],
        };
        file.extend(writer.packet(&seen, 1, "why", |_| "eth0".into()));
        file.extend(writer.packet(&seen, 2, "why", |_| "eth0".into()));
        let whole = file.len();
        file.extend(writer.end(3, 9));
        for step in [1, 7, 50, file.len()] {
            let mut blocks = Blocks::new(Vec::new());
            for chunk in file.chunks(step) {
                blocks.take(chunk).unwrap();
            }
            assert_eq!((blocks.packets, blocks.dropped), (2, 9));
            assert_eq!(blocks.out, file);
        }
        let mut blocks = Blocks::new(Vec::new());
        blocks.take(&file[..whole + 5]).unwrap();
        assert_eq!(blocks.out, file[..whole]);
    }
}
