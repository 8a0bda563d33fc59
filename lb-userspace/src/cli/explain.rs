//! `tether explain`.

use std::net::SocketAddr;

use clap::Args;

use super::{
    Daemon, Failure, print_json,
    progress::Progress,
    table::{Colours, Style},
};
use crate::{
    admin::AskedPacket,
    explain::{Explanation, flags_of},
};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Explain {
    /// The client's address and port, like 192.0.2.7:40000 or [2001:db8::7]:40000.
    #[arg(value_name = "CLIENT:PORT", value_parser = endpoint)]
    client: SocketAddr,
    /// Address and port that it connects to.
    #[arg(value_name = "VIP:PORT", value_parser = endpoint)]
    vip: SocketAddr,
    /// Ask about the first segment of a connection.
    #[arg(long, conflicts_with_all = ["mid_stream", "flags"])]
    syn: bool,
    /// Ask about a segment in mid-stream.
    #[arg(long, conflicts_with = "flags")]
    mid_stream: bool,
    /// Ask about a segment with these flags of TCP, separated by commas: syn, ack, fin, rst, psh, urg; or none.
    #[arg(long, value_name = "FLAGS", value_parser = flags)]
    flags: Option<String>,
    /// Its sequence number. Without it, one that the flow's entry takes.
    #[arg(long, value_name = "NUMBER")]
    seq: Option<u32>,
    /// Bytes of data that it carries.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    payload: u16,
    /// The interface that it comes in by. Without it, the first one that Tether is attached to.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
    /// As one line of JSON.
    #[arg(long)]
    json: bool,
}

impl Explain {
    fn asked(&self) -> AskedPacket {
        let flags = match (self.syn, self.mid_stream) {
            (true, _) => Some("syn".to_owned()),
            (_, true) => Some("ack".to_owned()),
            _ => self.flags.clone(),
        };
        AskedPacket {
            client: self.client,
            vip: self.vip,
            flags,
            seq: self.seq,
            payload: (self.payload != 0).then_some(self.payload),
            interface: self.interface.clone(),
        }
    }
}

fn endpoint(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(
        |_| "write it with its port, like 192.0.2.7:40000 or [2001:db8::7]:40000; names are not looked up",
    )
}

fn flags(text: &str) -> Result<String, String> {
    flags_of(text).map(|_| text.to_owned())
}

pub(super) fn explain(command: &Explain) -> Result<(), Failure> {
    let asked = command.asked();
    let progress = Progress::on_stderr();
    progress.say("the kernel's verifier looks at the program");
    let explanation = super::ask(&command.daemon, async |client| client.explain(&asked).await)?;
    progress.clear();
    if command.json {
        print_json(&explanation)?;
    } else {
        put!("{}", text(&explanation, Colours::of_stdout()));
    }
    Ok(())
}

/// For people: a line for each stage's answer, and under it why.
fn text(explanation: &Explanation, colours: Colours) -> String {
    let packet = &explanation.packet;
    let verdict = &explanation.verdict;
    let style = match verdict.verdict.as_str() {
        "forward" | "pass" => Style::Good,
        "answer" => Style::Doubtful,
        _ => Style::Bad,
    };
    let mut text = format!(
        "{} -> {}: {} ({})\n",
        packet.client,
        packet.vip,
        colours.paint(style, &verdict.verdict),
        verdict.reason
    );
    for stage in &explanation.stages {
        // What a backend said of itself may be among it.
        let plain = |text: &str| text.replace(char::is_control, " ");
        let name = colours.paint(Style::Strong, &format!("{:<8}", stage.stage));
        text += &format!("  {name}  {}\n", plain(&stage.answer));
        if !stage.why.is_empty() {
            let why = colours.paint(Style::Faint, &plain(&stage.why));
            text += &format!("  {:<8}  {why}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        explain::tests::an_explanation,
    };

    fn asked(line: &str) -> Result<AskedPacket, clap::Error> {
        let line = format!("tether explain {line}");
        Cli::try_parse_from(line.split(' ')).map(|cli| match cli.command {
            Command::Explain(explain) => explain.asked(),
            other => panic!("another command: {other:?}"),
        })
    }

    #[test]
    fn what_is_asked_for() {
        let plain = asked("192.0.2.7:40000 10.0.0.1:80").unwrap();
        assert_eq!((plain.flags, plain.seq, plain.payload), (None, None, None));
        let flags = |line: &str| {
            asked(&format!("[2001:db8::7]:4 [::1]:80 {line}")).map(|asked| asked.flags)
        };
        assert_eq!(flags("--syn").unwrap().as_deref(), Some("syn"));
        assert_eq!(flags("--mid-stream").unwrap().as_deref(), Some("ack"));
        assert_eq!(
            flags("--flags fin,ack").unwrap().as_deref(),
            Some("fin,ack")
        );
        for wrong in [
            "--flags fun",
            "--syn --flags ack",
            "--syn --mid-stream",
            "--payload 70000",
        ] {
            assert_eq!(flags(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        for wrong in [
            "10.0.0.7 10.0.0.1:80",
            "10.0.0.7:1 chat.example:80",
            "10.0.0.7:1",
        ] {
            let error = asked(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
        let error = asked("10.0.0.7 10.0.0.1:80").unwrap_err().to_string();
        assert!(error.contains("192.0.2.7:40000"), "{error}");
    }

    #[test]
    fn an_explanation_reads_like_this() {
        let text = text(&an_explanation(), Colours(false));
        assert_eq!(
            text.lines().next(),
            Some("10.9.9.9:40000 -> 10.0.0.1:80: forward (opened)"),
            "{text}"
        );
        for line in [
            "  packet    TCP, syn, sequence number 1048576, 54 bytes, in by lo",
            "  service   chat, 10.0.0.1:80, ipip",
            "  flow      no entry",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
