//! AF_PACKET sockets, `packet(7)`: a receive ring that keeps up with iperf3 on two cores, and a sender of
//! raw frames. The system calls and the walk over memory shared with the kernel, and nothing else.
#![expect(unsafe_code, reason = "nix has neither packet rings nor socket addresses of chosen interfaces")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use libc::{c_int, c_void, socklen_t};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// One block is handed over when it is full, or when [`RETIRE_MS`] have passed since its first frame.
const BLOCK_BYTES: usize = 256 << 10;
/// 32 MiB: at ~400 bytes per frame and 300,000 frames a second, a quarter of a second in which the capturing
/// thread may wait for a core.
const BLOCKS: usize = 128;
/// Milliseconds until a block that is not full is handed over.
const RETIRE_MS: u32 = 10;
/// The bytes kept of each frame: room for Ethernet, IPv6, VXLAN, Ethernet, IPv6 and TCP headers with options
/// and a canary behind them.
pub const SNAP_BYTES: u32 = 320;
/// Where a frame's `sockaddr_ll` follows its header: TPACKET_ALIGN of `struct tpacket3_hdr`.
const LINK_ADDRESS_OFFSET: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);

/// A socket that receives every frame arriving on any interface of its network namespace (not those that
/// leave), with a ring shared with the kernel (TPACKET_V3).
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    memory: NonNull<c_void>,
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread.
unsafe impl Send for Ring {}

/// One captured frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// When the kernel took it, since the Unix epoch.
    pub time: Duration,
    /// The interface it arrived on.
    pub interface: c_int,
    /// Its whole length, in bytes.
    pub length: u32,
    /// Its first [`SNAP_BYTES`] bytes, from the Ethernet header on.
    pub bytes: &'a [u8],
}

impl Ring {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        // Protocol 0 receives nothing until the ring stands and `bind` names a protocol.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a packet socket")?;
        let level = libc::SOL_PACKET;
        set_option(&socket, level, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V3 as c_int))?;
        set_option(&socket, level, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        let mut keep =
            [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: SNAP_BYTES }];
        let program = libc::sock_fprog { len: 1, filter: keep.as_mut_ptr() };
        set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        // Frames in a V3 ring have their own sizes; the frame size only has to divide the block.
        let frame_bytes = 2048;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_BYTES as u32,
            tp_block_nr: BLOCKS as u32,
            tp_frame_size: frame_bytes,
            tp_frame_nr: (BLOCK_BYTES * BLOCKS) as u32 / frame_bytes,
            tp_retire_blk_tov: RETIRE_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, level, libc::PACKET_RX_RING, &request)
            .context("allocating a 32 MiB packet ring")?;
        let bytes = NonZeroUsize::new(BLOCK_BYTES * BLOCKS).expect("the ring is not empty");
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let memory = unsafe {
            mmap(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &socket, 0)
        }
        .context("mapping a packet ring")?;
        let ring = Self { socket, memory, next: 0 };
        bind(&ring.socket, 0, libc::ETH_P_ALL as u16)?;
        Ok(ring)
    }

    /// Hands the frames of the next block to `each`, in the order they arrived; waits for a block up to
    /// `limit`. Returns whether there was one.
    pub fn read_block(&mut self, limit: Duration, mut each: impl FnMut(Frame<'_>)) -> Result<bool> {
        // SAFETY: `next` is below BLOCKS, so the block lies within the mapping, page-aligned; the kernel put
        // a block descriptor at its start.
        let (block, header, status) = unsafe {
            let block = self.memory.cast::<u8>().add(self.next * BLOCK_BYTES);
            let header = &raw mut (*block.cast::<libc::tpacket_block_desc>().as_ptr()).hdr.bh1;
            (block, header, AtomicU32::from_ptr(&raw mut (*header).block_status))
        };
        if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(limit)?).context("waiting for packets")?;
            if status.load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return Ok(false);
            }
        }
        // SAFETY: TP_STATUS_USER, read with Acquire, says that the kernel has filled the block and leaves it
        // alone until it is handed back; its offsets and lengths stay within the block.
        unsafe {
            let mut frame = block.add((*header).offset_to_first_pkt as usize);
            for _ in 0..(*header).num_pkts {
                let about = frame.cast::<libc::tpacket3_hdr>().as_ref();
                let link = frame.add(LINK_ADDRESS_OFFSET).cast::<libc::sockaddr_ll>().as_ref();
                let start = frame.add(about.tp_mac.into()).as_ptr();
                each(Frame {
                    time: Duration::new(about.tp_sec.into(), about.tp_nsec),
                    interface: link.sll_ifindex,
                    length: about.tp_len,
                    bytes: std::slice::from_raw_parts(start, about.tp_snaplen as usize),
                });
                frame = frame.add(about.tp_next_offset as usize);
            }
        }
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        Ok(true)
    }

    /// The number of frames that the kernel dropped for lack of room since the last call.
    pub fn dropped(&self) -> Result<u64> {
        let mut statistics = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of_val(&statistics) as socklen_t;
        // SAFETY: pointer and length describe `statistics`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        check(result).context("reading PACKET_STATISTICS")?;
        Ok(statistics.tp_drops.into())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing borrows from it any more. It cannot fail for a
        // mapping that exists.
        let _ = unsafe { munmap(self.memory, BLOCK_BYTES * BLOCKS) };
    }
}

/// A socket that sends whole Ethernet frames through one interface.
#[derive(Debug)]
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open(interface: &str) -> Result<Self> {
        let index =
            nix::net::if_::if_nametoindex(interface).with_context(|| format!("finding {interface}"))?;
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a packet socket")?;
        bind(&socket, index as c_int, 0)?;
        Ok(Self(socket))
    }

    /// Sends one frame, from its Ethernet header on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        nix::unistd::write(&self.0, frame).context("sending a frame")?;
        Ok(())
    }
}

/// Binds a packet socket to an interface (0: all) and a protocol (0: receive nothing).
fn bind(socket: &OwnedFd, interface: c_int, protocol: u16) -> Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: interface,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: pointer and length describe `address`.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as socklen_t)
    };
    check(result).context("binding a packet socket")
}

/// Sets a socket option to a value of the type that its manual names.
fn set_option<T>(socket: &OwnedFd, level: c_int, name: c_int, value: &T) -> Result<()> {
    // SAFETY: pointer and length describe `value`; the kernel checks the length against the option's.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            size_of::<T>() as socklen_t,
        )
    };
    check(result).with_context(|| format!("setting option {name} of a packet socket"))
}

fn check(result: c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}
