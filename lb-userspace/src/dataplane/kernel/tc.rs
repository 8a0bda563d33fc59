//! Traffic control over rtnetlink, as far as a filter on egress needs it: the clsact qdisc that it stands in, and the filter. (Before Linux 6.6 a
//! program on egress is a filter, and no link.)

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::sys::socket::SockProtocol;

use super::netlink::Socket;

// Numbers of the kernel's include/uapi/linux/rtnetlink.h and pkt_sched.h, pkt_cls.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's own word is the action.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Length of `struct nlmsghdr` and of `struct tcmsg`.
const HEADER: usize = 16;
const MESSAGE: usize = 20;

/// Filters of a clsact qdisc: on what comes in.
pub const INGRESS: u32 = 0xffff_fff2;
/// Filters of a clsact qdisc: on what goes out.
pub const EGRESS: u32 = 0xffff_fff3;
/// Where tether's filter stands: before all others, since one that says that a packet may go ends the row.
const PRIORITY: u16 = 1;
/// What it is called there.
pub const NAME: &str = "tether";
/// By what it is told from others there: "teth".
const HANDLE: u32 = 0x7465_7468;

/// A filter that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// Id of its program, if it is one of BPF.
    pub program: Option<u32>,
}

impl Filter {
    /// Whether it stands where tether's does.
    pub fn is_in_place(&self) -> bool {
        (self.priority, self.handle) == (PRIORITY, HANDLE)
    }
}

/// Whether an interface has a clsact qdisc.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn has_qdisc(ifindex: u32) -> io::Result<bool> {
    let request = Request::new(RTM_GETQDISC, libc::NLM_F_DUMP, 0, 0, 0, 0);
    let found = request.send()?;
    Ok(found.iter().any(|message| {
        word(message, 4) == Some(ifindex) && word(message, 8) == Some(CLSACT_HANDLE)
    }))
}

/// Gives an interface a clsact qdisc.
///
/// # Errors
/// EEXIST if it has one, or one for ingress.
pub fn add_qdisc(ifindex: u32) -> io::Result<()> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut request = Request::new(RTM_NEWQDISC, flags, ifindex, CLSACT_HANDLE, CLSACT, 0);
    request.attribute(TCA_KIND, b"clsact\0");
    request.send().map(drop)
}

/// Takes the clsact qdisc off an interface, with all that is in it.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_qdisc(ifindex: u32) -> io::Result<()> {
    let request = Request::new(
        RTM_DELQDISC,
        libc::NLM_F_ACK,
        ifindex,
        CLSACT_HANDLE,
        CLSACT,
        0,
    );
    request.send().map(drop)
}

/// The filters of an interface's clsact qdisc, [`INGRESS`] or [`EGRESS`]; none if it has no such qdisc.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn filters(ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
    let request = Request::new(RTM_GETTFILTER, libc::NLM_F_DUMP, ifindex, 0, parent, 0);
    let found = match request.send() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            return Ok(vec![]);
        }
        found => found?,
    };
    let filters = found.iter().filter_map(|message| {
        let (handle, info) = (word(message, 8)?, word(message, 16)?);
        // One message for each priority names no filter.
        (handle != 0).then(|| Filter {
            priority: (info >> 16) as u16,
            handle,
            program: message
                .get(MESSAGE..)
                .and_then(|attributes| attribute(attributes, TCA_OPTIONS))
                .and_then(|options| attribute(options, TCA_BPF_ID))
                .and_then(|id| word(id, 0)),
        })
    });
    Ok(filters.collect())
}

/// Puts a program into tether's filter on what goes out, in the place of the one that is there, if there is one: atomically, each packet meets the
/// one or the other.
///
/// # Errors
/// When there is no clsact qdisc, or a filter of another kind has this priority.
pub fn set_filter(ifindex: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE;
    let mut request = Request::new(RTM_NEWTFILTER, flags, ifindex, HANDLE, EGRESS, place());
    request.attribute(TCA_KIND, b"bpf\0");
    request.nested(TCA_OPTIONS, |options| {
        options.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
        options.attribute(TCA_BPF_NAME, &[NAME.as_bytes(), b"\0"].concat());
        options.attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    });
    request.send().map(drop)
}

/// Removes tether's filter.
///
/// # Errors
/// ENOENT if there is none.
pub fn remove_filter(ifindex: u32) -> io::Result<()> {
    let flags = libc::NLM_F_ACK;
    let mut request = Request::new(RTM_DELTFILTER, flags, ifindex, HANDLE, EGRESS, place());
    request.attribute(TCA_KIND, b"bpf\0");
    request.send().map(drop)
}

/// Priority, and the protocol that is filtered: all.
fn place() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

/// A message to the kernel.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, ifindex: u32, handle: u32, parent: u32, info: u32) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number, port; then the family, which is none.
        bytes.resize(HEADER + 4, 0);
        for word in [ifindex, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.attribute(kind, &[]);
        fill(self);
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sends it, and gives what is answered, each without its header.
    fn send(mut self) -> io::Result<Vec<Vec<u8>>> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        socket.send(&self.0)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut rest = socket.receive(&mut buffer)?;
            while let Some(length) = word(rest, 0).map(|length| length as usize)
                && let Some(message) = rest.get(HEADER..length)
            {
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(answers),
                    libc::NLMSG_ERROR => {
                        return match word(message, 0).unwrap_or(0) as i32 {
                            0 => Ok(answers),
                            errno => Err(io::Error::from_raw_os_error(-errno)),
                        };
                    }
                    _ => answers.push(message.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

/// The value of an attribute among others.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    const TYPE: u16 = 0x3fff;
    loop {
        let [length, of] =
            [bytes.get(0..2)?, bytes.get(2..4)?].map(|half| u16::from_ne_bytes([half[0], half[1]]));
        let value = bytes.get(4..usize::from(length))?;
        if of & TYPE == kind {
            return Some(value);
        }
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others_and_within_them() {
        let mut request = Request(vec![]);
        request.attribute(TCA_KIND, b"bpf\0");
        request.nested(TCA_OPTIONS, |options| {
            options.attribute(TCA_BPF_NAME, b"odd");
            options.attribute(TCA_BPF_ID, &7u32.to_ne_bytes());
        });
        let options = attribute(&request.0, TCA_OPTIONS).unwrap();
        assert_eq!(attribute(&request.0, TCA_KIND), Some(&b"bpf\0"[..]));
        assert_eq!(
            attribute(options, TCA_BPF_ID).and_then(|id| word(id, 0)),
            Some(7)
        );
        assert_eq!(attribute(options, TCA_BPF_FD), None);
        for end in 0..request.0.len() {
            // What is cut short is not there, and nothing worse.
            let _ = attribute(&request.0[..end], TCA_OPTIONS);
        }
    }
}
