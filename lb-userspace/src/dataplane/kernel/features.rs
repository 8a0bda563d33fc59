//! What an interface's driver can do with XDP, as the kernel tells from Linux 6.3 on: generic netlink's family `netdev`. And how it is set up to put
//! frames into buffers: the family `ethtool`.
//!
//! The messages are small and built by hand here: header, command, one attribute.

use std::io;

use nix::sys::socket::SockProtocol;

use super::netlink::Socket;

// include/uapi/linux/netlink.h, genetlink.h, netdev.h, ethtool.h and ethtool_netlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 1 << 2;
const ETHTOOL_MSG_RINGS_GET: u8 = 15;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_RINGS_HEADER: u16 = 1;
const ETHTOOL_A_RINGS_TCP_DATA_SPLIT: u16 = 11;
const ETHTOOL_TCP_DATA_SPLIT_ENABLED: u64 = 2;
const NLA_F_NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that are none: nested, and network byte order.
const TYPE_FLAGS: u16 = 0xc000;
/// Bytes of the netlink header and the generic one behind it.
const HEADERS: usize = 16 + 4;

/// Whether an interface takes frames that an XDP program on another one redirects to it. None if this kernel is too old to tell.
///
/// # Errors
/// ENODEV if there is no such interface in this network namespace, or what else keeps the kernel from answering.
pub fn takes_redirected(ifindex: u32) -> io::Result<Option<bool>> {
    let features = of(ifindex)?;
    Ok(features.map(|features| features & NETDEV_XDP_ACT_NDO_XMIT != 0))
}

/// All that the driver of an interface can do with XDP: bits of `netdev_xdp_act`. None if this kernel is too old to tell.
///
/// # Errors
/// As [`takes_redirected`].
pub fn of(ifindex: u32) -> io::Result<Option<u64>> {
    let socket = Socket::open(SockProtocol::NetlinkGeneric)?;
    let Some(family) = family(&socket, b"netdev\0")? else {
        return Ok(None);
    };
    let features = request(
        family,
        NETDEV_CMD_DEV_GET,
        NETDEV_A_DEV_IFINDEX,
        &ifindex.to_ne_bytes(),
    );
    attribute(&ask(&socket, &features)?, NETDEV_A_DEV_XDP_FEATURES).map(Some)
}

/// Whether the driver of an interface puts the headers of a TCP segment and its data into buffers of their own. None if it does not tell.
///
/// # Errors
/// As [`takes_redirected`].
pub fn splits_headers(ifindex: u32) -> io::Result<Option<bool>> {
    let socket = Socket::open(SockProtocol::NetlinkGeneric)?;
    let Some(family) = family(&socket, b"ethtool\0")? else {
        return Ok(None);
    };
    let mut device = Vec::new();
    device.extend(8u16.to_ne_bytes());
    device.extend(ETHTOOL_A_HEADER_DEV_INDEX.to_ne_bytes());
    device.extend(ifindex.to_ne_bytes());
    let rings = request(
        family,
        ETHTOOL_MSG_RINGS_GET,
        ETHTOOL_A_RINGS_HEADER | NLA_F_NESTED,
        &device,
    );
    match ask(&socket, &rings) {
        // Its driver has no rings that could be told of.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        answer => {
            // The attribute is left out where it is not known.
            let split = attribute(&answer?, ETHTOOL_A_RINGS_TCP_DATA_SPLIT).ok();
            Ok(split.map(|split| split == ETHTOOL_TCP_DATA_SPLIT_ENABLED))
        }
    }
}

/// The number of a family of generic netlink, whose name ends with a zero; none if this kernel has none of that name.
fn family(socket: &Socket, name: &[u8]) -> io::Result<Option<u16>> {
    let asked = request(
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        name,
    );
    match ask(socket, &asked) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        answer => Ok(Some(attribute(&answer?, CTRL_ATTR_FAMILY_ID)? as u16)),
    }
}

/// A message with one attribute.
fn request(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let mut message = vec![0; HEADERS];
    message[4..6].copy_from_slice(&family.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[16] = command;
    message[17] = 1;
    message.extend((value.len() as u16 + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn ask(socket: &Socket, request: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(request)?;
    let mut answer = vec![0; 1 << 13];
    let length = socket.receive(&mut answer)?.len();
    answer.truncate(length);
    read(answer)
}

/// The answer, unless it is an error.
fn read(answer: Vec<u8>) -> io::Result<Vec<u8>> {
    if answer.len() < HEADERS {
        return Err(malformed());
    }
    if u16::from_ne_bytes([answer[4], answer[5]]) != NLMSG_ERROR {
        return Ok(answer);
    }
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    Err(io::Error::from_raw_os_error(-code))
}

/// The value of an attribute that is a number of up to eight bytes.
fn attribute(answer: &[u8], wanted: u16) -> io::Result<u64> {
    let mut rest = answer.get(HEADERS..).unwrap_or_default();
    while let [low, high, kind_low, kind_high, value @ ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let kind = u16::from_ne_bytes([*kind_low, *kind_high]) & !TYPE_FLAGS;
        let value = length
            .checked_sub(4)
            .and_then(|length| value.get(..length))
            .ok_or_else(malformed)?;
        if kind == wanted && value.len() <= 8 {
            let mut number = [0; 8];
            number[..value.len()].copy_from_slice(value);
            return Ok(u64::from_le_bytes(number));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(malformed())
}

fn malformed() -> io::Error {
    io::Error::other("an answer over generic netlink is not what it should be")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_takes_no_redirected_frames() {
        // On a kernel before 6.3 nothing is told.
        assert_ne!(takes_redirected(1).unwrap(), Some(true));
    }

    #[test]
    fn an_absent_interface_is_an_error_where_anything_is_told() {
        match takes_redirected(u32::MAX >> 1) {
            Ok(told) => assert_eq!(told, None),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENODEV)),
        }
    }

    #[test]
    fn the_loopback_does_not_tell_of_its_buffers_and_an_absent_interface_is_an_error() {
        assert_eq!(splits_headers(1).unwrap(), None);
        match splits_headers(u32::MAX >> 1) {
            Ok(told) => assert_eq!(told, None),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENODEV)),
        }
    }

    #[test]
    fn a_message_is_laid_out_as_the_kernel_has_it() {
        let message = request(0x1c, 1, 1, &7u32.to_ne_bytes());
        assert_eq!(
            message,
            [
                28, 0, 0, 0, 0x1c, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // netlink
                1, 1, 0, 0, // generic
                8, 0, 1, 0, 7, 0, 0, 0 // the attribute
            ]
        );
        // A name is padded, and its length is that without the padding.
        let message = request(16, 3, 2, b"netdev\0");
        assert_eq!((message.len(), message[20]), (32, 11));
    }

    #[test]
    fn an_attribute_is_found_behind_others_and_nonsense_is_refused() {
        let mut answer = request(1, 1, 9, b"odd");
        answer.extend([12, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(attribute(&answer, 3).unwrap(), NETDEV_XDP_ACT_NDO_XMIT);
        assert!(attribute(&answer, 4).is_err());
        for cut in HEADERS..answer.len() {
            assert!(attribute(&answer[..cut], 3).is_err(), "cut at {cut}");
        }
        assert!(read(vec![0; HEADERS - 1]).is_err());
        let mut refused = vec![0; 36];
        refused[4] = NLMSG_ERROR as u8;
        refused[16..20].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(
            read(refused).unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
    }
}
