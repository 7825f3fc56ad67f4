//! Socket options that nix does not know.
#![expect(unsafe_code, reason = "setsockopt of options without a wrapper in nix")]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// Lets the kernel fragment datagrams that are larger than the path, instead of refusing them. Kernel
/// WireGuard does the same (`socket.c`: no DF, `ignore_df`): the inner MTU is what avoids fragments, and a
/// forged ICMP message must not be able to shrink the path.
pub fn allow_fragments(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    if ipv6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    Ok(())
}

fn set_int(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; the kernel only reads
    // it. The descriptor is open, because it is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}
