//! TUN interfaces: creating one with several queues, its MTU, and what it does in super-packets.
//!
//! Kernel `Documentation/networking/tuntap.rst` and `drivers/net/tun.c`. Each queue is a descriptor of its
//! own; flows are spread over them, and each stays on its own ([`steering`]).
#![expect(unsafe_code, reason = "ioctls of /dev/net/tun and of interfaces have no wrapper in nix")]

use std::ffi::{CStr, c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::IFNAMSIZ;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::namespace::{self, Identity};
use super::{link, steering};
use crate::offload::vnet;

/// `struct ifreq` as the kernel reads and writes it: a name, then a union of 24 bytes, of which the
/// requests here use the first 2 or 4. Unlike libc's it has no byte that is not initialised.
#[repr(C)]
#[derive(Clone, Copy)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, InterfaceRequest);
nix::ioctl_read_bad!(tun_get_iff, libc::TUNGETIFF as libc::Ioctl, InterfaceRequest);
nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU as libc::Ioctl, InterfaceRequest);
nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU as libc::Ioctl, InterfaceRequest);
nix::ioctl_none_bad!(tun_get_namespace, TUNGETDEVNETNS);
nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD as libc::Ioctl);
nix::ioctl_write_ptr_bad!(tun_set_vnet_header_len, libc::TUNSETVNETHDRSZ, c_int);

/// `_IO('T', 227)`, since Linux 5.2 (`linux/if_tun.h`); libc does not have it.
const TUNGETDEVNETNS: libc::Ioctl = 0x54e3;

/// Packets that wait for the reader of a queue at most. The kernel's default for TUN, 500, is 4 ms of full packets at
/// 1.5 Gbit/s, about as long as a lane may wait for a processor: 0.6 % of UDP at that rate were lost. As for Ethernet:
const QUEUE_LEN: u32 = 1000;

/// The reader completes checksums.
const OFFLOAD_CHECKSUM: c_int = libc::TUN_F_CSUM as c_int;
/// The reader splits super-packets of TCP, also where the first segment alone has CWR.
const OFFLOAD_TCP: c_int = (libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN) as c_int;
/// The reader splits super-packets of UDP (since Linux 6.2).
const OFFLOAD_UDP: c_int = (libc::TUN_F_USO4 | libc::TUN_F_USO6) as c_int;
/// The reader splits super-packets within VXLAN and the like, without a checksum of the outer UDP and with one (since
/// Linux 6.17): TUN_F_UDP_TUNNEL_GSO and TUN_F_UDP_TUNNEL_GSO_CSUM, which libc lacks.
const OFFLOAD_TUNNEL: c_int = 0x080 | 0x100;

/// One queue of a TUN interface, non-blocking. The interface goes when its last queue is closed.
#[derive(Debug)]
pub struct Queue {
    file: File,
    /// The namespace in which the interface was made, which is the program's; `None` if the kernel does not tell.
    home: Option<Identity>,
    offloads: Offloads,
}

/// What a TUN takes in super-packets; it gives no other, but for those in tunnels, which it does not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Of TCP, over IPv4 and IPv6.
    pub tcp: bool,
    /// Of UDP, over IPv4 and IPv6.
    pub udp: bool,
}

impl Queue {
    /// What keeps the interface alive when its queues are closed.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Creates the interface `name` with `count` queues, and sets its MTU. Packets have a vnet header in front
    /// (`linux/virtio_net.h`), and are super-packets as far as the kernel can make them.
    ///
    /// # Errors
    /// EBUSY if there is an interface of this name, EPERM without CAP_NET_ADMIN, ENOENT without
    /// `/dev/net/tun`.
    pub fn create(name: &str, count: usize, mtu: u16) -> io::Result<Vec<Self>> {
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if count > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        // Exclusively: an interface with queues to spare would otherwise be joined, not refused.
        let mut first = Self::attach(name, flags | libc::IFF_TUN_EXCL)?;
        first.set_mtu(mtu)?;
        first.set_tx_queue_len(QUEUE_LEN)?;
        first.set_vnet_header_len()?;
        first.offloads = first.take_super_packets();
        let offloads = first.offloads;
        let mut queues = vec![first];
        while queues.len() < count {
            queues.push(Self { offloads, ..Self::attach(name, flags)? });
        }
        Ok(queues)
    }

    /// Has the queue of a flow follow from its addresses and ports alone. Holds for the whole interface.
    ///
    /// # Errors
    /// Those of [`steering::steer`]. Then the kernel goes on choosing, and packets of a flow that it moves may change places.
    pub fn steer(&self) -> io::Result<()> {
        steering::steer(self.as_fd())
    }

    /// A queue of no interface, for tests of what is around it.
    #[cfg(test)]
    pub fn fake(file: File) -> Self {
        Self { file, home: None, offloads: Offloads::default() }
    }

    fn attach(name: &str, flags: c_int) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        // All flags of TUNSETIFF fit into the 16 bits of ifr_flags; IFF_TUN_EXCL is the uppermost of them.
        let mut request = InterfaceRequest::new(name)?;
        request.value[..2].copy_from_slice(&(flags as c_short).to_ne_bytes());
        // SAFETY: the request is the `struct ifreq` that TUNSETIFF reads, and lives through the call.
        unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
        let queue = Self { file, home: None, offloads: Offloads::default() };
        let home = queue.namespace().and_then(|namespace| Identity::of(&namespace)).ok();
        Ok(Self { home, ..queue })
    }

    /// The interface's request, under its present name: it may have been renamed.
    fn request(&self) -> io::Result<InterfaceRequest> {
        let mut request = InterfaceRequest { name: [0; IFNAMSIZ], value: [0; 24] };
        // SAFETY: TUNGETIFF fills in a `struct ifreq`, which the request is.
        unsafe { tun_get_iff(self.file.as_raw_fd(), &raw mut request) }?;
        Ok(request)
    }

    /// The namespace in which the interface is now.
    fn namespace(&self) -> io::Result<File> {
        // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor.
        let namespace = unsafe { tun_get_namespace(self.file.as_raw_fd()) }?;
        // SAFETY: the descriptor is open and nobody else's.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(namespace) }))
    }

    /// Runs `work` where the interface is: its name means another one elsewhere.
    fn at_interface<T: Send>(
        &self,
        work: impl FnOnce(InterfaceRequest) -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let request = self.request()?;
        let Some(home) = self.home else { return work(request) };
        let namespace = self.namespace()?;
        if Identity::of(&namespace)? == home {
            work(request)
        } else {
            namespace::inside(&namespace, || work(request))
        }
    }

    /// The MTU, in bytes.
    ///
    /// # Errors
    /// EBADFD if the interface was deleted, EPERM if it was moved to a namespace that this program may not enter.
    pub fn mtu(&self) -> io::Result<usize> {
        self.at_interface(|mut request| {
            let control = control()?;
            // SAFETY: SIOCGIFMTU reads the name and writes an int behind it, both within the request.
            unsafe { get_mtu(control.as_raw_fd(), &raw mut request) }?;
            let [a, b, c, d, ..] = request.value;
            Ok(c_int::from_ne_bytes([a, b, c, d]).max(0) as usize)
        })
    }

    fn set_tx_queue_len(&self, packets: u32) -> io::Result<()> {
        self.at_interface(|request| link::set_tx_queue_len(request.index()?, packets))
    }

    fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let (control, mut request) = (control()?, self.request()?);
        request.value = [0; 24];
        request.value[..4].copy_from_slice(&c_int::from(mtu).to_ne_bytes());
        // SAFETY: SIOCSIFMTU reads the name and an int behind it, both within the request.
        unsafe { set_mtu(control.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    /// Asks the kernel for as much in super-packets, and with checksums to be completed, as it can give. Holds for the
    /// whole interface.
    fn take_super_packets(&self) -> Offloads {
        // An unknown flag is refused with EINVAL, and all others with it.
        let plain = OFFLOAD_CHECKSUM | OFFLOAD_TCP;
        let udp = [OFFLOAD_UDP | OFFLOAD_TUNNEL, OFFLOAD_UDP]
            .iter()
            .any(|more| self.set_offload(plain | more).is_ok());
        Offloads { tcp: udp || self.set_offload(plain).is_ok(), udp }
    }

    /// Has headers with room for what is told of tunnels. Holds for the whole interface.
    fn set_vnet_header_len(&self) -> io::Result<()> {
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        unsafe { tun_set_vnet_header_len(self.file.as_raw_fd(), &(vnet::LEN as c_int)) }?;
        Ok(())
    }

    /// What the kernel gives and takes in super-packets.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Sets the most segments that a super-packet may have which the kernel gives.
    ///
    /// # Errors
    /// As for [`mtu`](Self::mtu), and those of [`link::set_gso_max_segs`].
    pub fn set_gso_max_segs(&self, segments: u32) -> io::Result<()> {
        self.at_interface(|request| link::set_gso_max_segs(request.index()?, segments))
    }

    fn set_offload(&self, flags: c_int) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        unsafe { tun_set_offload(self.file.as_raw_fd(), flags) }?;
        Ok(())
    }

    /// Reads one packet with its vnet header.
    ///
    /// # Errors
    /// EAGAIN if there is none, EBADFD if the interface was deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Hands one packet, in pieces, to the kernel: first its vnet header.
    ///
    /// # Errors
    /// EIO while the interface is down, EBADFD if it was deleted, EINVAL for a super-packet that is none.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Any socket of the thread's namespace: requests about interfaces go through one.
fn control() -> io::Result<OwnedFd> {
    let open = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    Ok(open(AddressFamily::Inet).or_else(|_| open(AddressFamily::Unix))?)
}

impl InterfaceRequest {
    fn new(name: &str) -> io::Result<Self> {
        let mut bytes = [0; IFNAMSIZ];
        // The last byte stays 0.
        let target = bytes[..IFNAMSIZ - 1].get_mut(..name.len()).ok_or(io::ErrorKind::InvalidInput)?;
        target.copy_from_slice(name.as_bytes());
        Ok(Self { name: bytes, value: [0; 24] })
    }

    /// The number of the interface of this name.
    fn index(&self) -> io::Result<u32> {
        let name = CStr::from_bytes_until_nul(&self.name).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(if_nametoindex(name)?)
    }
}
