//! Limits of an interface that ioctls cannot set, or not for everybody: rtnetlink(7).

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `struct nlmsghdr`, `struct ifinfomsg` and one `struct nlattr` with a number: all multiples of 4, so without gaps.
const HEADER: usize = 16;
const INFO: usize = 16;
const ATTRIBUTE: usize = 8;
const REQUEST: usize = HEADER + INFO + ATTRIBUTE;

/// Sets the most segments that a super-packet may have which is given to the interface. The kernel itself splits those
/// with more.
///
/// # Errors
/// ENODEV if there is no such interface in this namespace, EPERM, EINVAL for 0.
pub fn set_gso_max_segs(index: u32, segments: u32) -> io::Result<()> {
    set(index, libc::IFLA_GSO_MAX_SEGS, segments)
}

/// Sets how many packets may wait for the interface. There is an ioctl, too, but root of a user namespace may not use it.
///
/// # Errors
/// ENODEV if there is no such interface in this namespace, EPERM.
pub fn set_tx_queue_len(index: u32, packets: u32) -> io::Result<()> {
    set(index, libc::IFLA_TXQLEN, packets)
}

fn set(index: u32, attribute: u16, number: u32) -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let request = request(index, attribute, number);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 256];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // `struct nlmsgerr` behind the header: a negative errno, or 0.
    let error = answer[..len].get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(Errno::EBADMSG.into()),
    }
}

fn request(index: u32, attribute: u16, number: u32) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let mut put = |at: usize, bytes: &[u8]| request[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(REQUEST as u32).to_ne_bytes());
    put(4, &libc::RTM_SETLINK.to_ne_bytes());
    put(6, &((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    put(HEADER + 4, &index.to_ne_bytes());
    put(HEADER + INFO, &(ATTRIBUTE as u16).to_ne_bytes());
    put(HEADER + INFO + 2, &attribute.to_ne_bytes());
    put(HEADER + INFO + 4, &number.to_ne_bytes());
    request
}
