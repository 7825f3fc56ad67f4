//! Sees messages through, also where the kernel refuses a peer.
//!
//! The kernel does what a message says from its beginning, stops at the first thing it refuses, and does not say
//! which that was (`wg_set_device` in `drivers/net/wireguard/netlink.c`). So a refused message is sent again in
//! pieces: the peer has a name then, and the others are configured.

use std::io;

use nix::libc;
use warren_api::PublicKey;

use super::error::errno;
use super::plan::Message;

/// A peer that the kernel refused.
#[derive(Debug)]
pub struct Refusal {
    /// Which peer.
    pub peer: PublicKey,
    /// Why.
    pub source: io::Error,
}

/// Sends all messages. An error ends it that no other message would be spared; peers that are refused are listed.
pub fn deliver(
    messages: &[Message],
    mut send: impl FnMut(&Message) -> io::Result<()>,
) -> io::Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    for message in messages {
        match send(message) {
            Err(error) if is_of_a_peer(&error) => {}
            result => {
                result?;
                continue;
            }
        }
        for piece in message.singly() {
            let peer = piece.steps.first().and_then(|step| step.peer);
            match (send(&piece), peer) {
                (Err(source), Some(peer)) if is_of_a_peer(&source) => refusals.push(Refusal { peer, source }),
                (result, _) => result?,
            }
        }
    }
    Ok(refusals)
}

/// Whether another peer could fare better.
fn is_of_a_peer(error: &io::Error) -> bool {
    !matches!(
        errno(error),
        // None of the kernel's, the right, the device, the family, the kind of interface, the port, memory.
        0 | libc::EPERM
            | libc::EACCES
            | libc::ENODEV
            | libc::ENOENT
            | libc::EOPNOTSUPP
            | libc::EADDRINUSE
            | libc::ENOBUFS
            | libc::ENOMEM
    )
}
