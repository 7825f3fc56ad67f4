//! One queue of the TUN interface, in packets: reads segments, writes what was coalesced.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};

use super::counters::{Counters, Io};
use super::recycle::recycle;
use super::sender::{MAX_RUN, MAX_SEGMENTS};
use crate::device::{MAX_PACKET, OVERHEAD, Packets};
use crate::offload::vnet::{self, VnetHeader};
use crate::offload::{Coalescer, Malformed, SPARE, Segments};
use crate::sys::tun::Queue;

/// The queue, and what is needed to split and coalesce.
pub struct Interface {
    queue: Queue,
    coalescer: Coalescer,
    /// One packet from the TUN, with its vnet header in front and room for padding behind.
    buffer: Box<[u8]>,
    /// The MTU for which the limit of segments is set.
    limited: Option<usize>,
    /// Whether it was said that the limit cannot be set.
    told: bool,
    /// Memory for a batch, which it takes from one to the next.
    slices: Vec<&'static [u8]>,
}

impl Interface {
    /// Takes over a queue.
    pub fn new(queue: Queue) -> Self {
        let offloads = queue.offloads();
        Self {
            queue,
            coalescer: Coalescer::new(offloads.tcp, offloads.udp),
            buffer: vec![0; vnet::LEN + MAX_PACKET + SPARE].into_boxed_slice(),
            limited: None,
            told: false,
            slices: Vec::new(),
        }
    }

    /// Reads one packet, or super-packet. `None`: there is none, or one that cannot be had, which is counted.
    ///
    /// # Errors
    /// EBADFD when the interface was deleted.
    pub fn read(&mut self, counters: &Counters) -> io::Result<Option<Result<Segments<'_>, Malformed>>> {
        match self.queue.read(&mut self.buffer[..vnet::LEN + MAX_PACKET]) {
            Ok(len) => Ok(Some(self.segments(len))),
            Err(error) if is_gone(&error) => Err(error),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => {
                tracing::debug!(%error, "a packet of the TUN cannot be read");
                counters.count(Io::TunUnreadable, 1);
                Ok(None)
            }
        }
    }

    fn segments(&mut self, len: usize) -> Result<Segments<'_>, Malformed> {
        let (header, packet) = self.buffer.split_first_chunk_mut().ok_or(Malformed)?;
        let header = VnetHeader::decode(header).ok_or(Malformed)?;
        Segments::new(header, packet, len.checked_sub(vnet::LEN).ok_or(Malformed)?)
    }

    /// Writes all packets, and empties the batch. What the TUN does not take is dropped and counted.
    ///
    /// # Errors
    /// EBADFD when the interface was deleted.
    pub fn write(&mut self, packets: &mut Packets, counters: &Counters) -> io::Result<()> {
        if packets.is_empty() {
            return Ok(());
        }
        let mut slices = recycle(std::mem::take(&mut self.slices));
        slices.extend(packets.iter().map(|(packet, ())| packet));
        let (queue, mut result) = (&self.queue, Ok(()));
        self.coalescer.coalesce(&slices, |parts, count| match queue.write(parts) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && count > 1 => {
                counters.count(Io::SuperPacketRefused, 1);
                false
            }
            Err(error) => {
                counters.count(Io::TunRefused, count);
                if is_gone(&error) {
                    result = Err(error);
                }
                true
            }
        });
        self.slices = recycle(slices);
        packets.clear();
        result
    }

    /// The MTU of the interface. When it has changed, the kernel is told how many segments of it fit into one run of
    /// datagrams, so that a super-packet is sent as one.
    ///
    /// # Errors
    /// Those of [`Queue::mtu`].
    pub fn mtu(&mut self) -> io::Result<usize> {
        let mtu = self.queue.mtu()?;
        if self.limited != Some(mtu) {
            let segments = (MAX_RUN / (mtu + OVERHEAD)).clamp(1, MAX_SEGMENTS);
            match self.queue.set_gso_max_segs(segments as u32) {
                Ok(()) => self.limited = Some(mtu),
                // Then some leave as two, until it succeeds at a later look.
                Err(error) if !std::mem::replace(&mut self.told, true) => {
                    tracing::info!(%error, segments, "the limit of segments in a super-packet cannot be set");
                }
                Err(_) => {}
            }
        }
        Ok(mtu)
    }
}

impl AsFd for Interface {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// What the TUN answers once its interface was deleted.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Reads once from what is no TUN, and returns whether there was something, and what was counted.
    fn read(file: File) -> (bool, u64) {
        let counters = Counters::default();
        let there = Interface::new(Queue::fake(file)).read(&counters).unwrap().is_some();
        let unreadable = counters.counts(true).find(|(name, _)| *name == "tun_unreadable");
        (there, unreadable.expect("a counter of this name").1)
    }

    #[test]
    fn an_error_is_not_the_same_as_nothing_there() {
        let (silent, _other_end) = UnixStream::pair().unwrap();
        silent.set_nonblocking(true).unwrap();
        assert_eq!(read(OwnedFd::from(silent).into()), (false, 0));
        // EBADF: it cannot be read.
        let write_only = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert_eq!(read(write_only), (false, 1));
    }
}
