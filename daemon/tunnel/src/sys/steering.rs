//! Which queue of a TUN a packet goes to: a small eBPF program, which the kernel asks for each packet.
//!
//! Left to itself, the kernel moves a flow to the queue where packets of the other direction were last written, and
//! forgets that after three seconds (`tun.c`, tun_flow_update); at each such move, packets of the flow are in two queues
//! at once and may overtake each other. Here a flow's queue follows from its addresses and ports alone, and is the same
//! for both directions and on both ends.
#![expect(unsafe_code, reason = "bpf(2) and TUNSETSTEERINGEBPF have no wrapper in nix")]

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

nix::ioctl_read_bad!(set_steering, libc::TUNSETSTEERINGEBPF as libc::Ioctl, c_int);

/// One instruction: `struct bpf_insn` of `linux/bpf.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    number: i32,
}

/// The head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is missing at its end as zeros.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

const BPF_PROG_LOAD: c_int = 5;
const SOCKET_FILTER: u32 = 1;
const LICENSE: &CStr = c"Apache-2.0";

/// Makes the interface of this queue choose queues by [`program`].
///
/// # Errors
/// EPERM without CAP_BPF where the system asks for it, ENOSYS or EINVAL without eBPF. Then the kernel goes on choosing.
pub fn steer(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = load(&program())?;
    let mut descriptor = program.as_raw_fd();
    // SAFETY: TUNSETSTEERINGEBPF reads a descriptor from where the pointer points; the kernel takes a reference of its own
    // to the program.
    unsafe { set_steering(queue.as_raw_fd(), &raw mut descriptor) }?;
    Ok(())
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: SOCKET_FILTER,
        instructions: program.len() as u32,
        program: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attribute and what it points to are alive during the call and only read; its size is given.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let descriptor = Errno::result(descriptor)? as c_int;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

// Codes of instructions (RFC 9669), with what they are used for here.
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const XOR: u8 = 0xaf;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const SHIFT_LEFT: u8 = 0x67;
/// Of 32 bits, so that the rest is cut off.
const MULTIPLY_32: u8 = 0x24;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;
/// From the packet into [`RESULT`]: a byte, two, or four, in network order. Beyond its end, the program returns 0.
const LOAD_1: u8 = 0x30;
const LOAD_2: u8 = 0x28;
const LOAD_4: u8 = 0x20;
/// The same, at a register's value further on.
const LOAD_2_AT: u8 = 0x48;

const RESULT: u8 = 0;
const ARGUMENT: u8 = 1;
/// Where loads from the packet look for it.
const PACKET: u8 = 6;
const HASH: u8 = 7;
const PROTOCOL: u8 = 8;
const L4: u8 = 9;

/// Sums addresses without regard to their order; ports, too, for TCP and UDP that is not in fragments; spreads the sum.
/// A packet points to its IP header when the kernel asks.
fn program() -> Vec<Instruction> {
    let step = |code, to: u8, from: u8, offset, number| Instruction {
        code,
        registers: to | from << 4,
        offset,
        number,
    };
    let load = |code, at| step(code, 0, 0, 0, at);
    let add = step(XOR, HASH, RESULT, 0, 0);
    let ports = [
        step(JUMP_IF_EQUAL, PROTOCOL, 0, 1, 6),
        step(JUMP_IF_NOT_EQUAL, PROTOCOL, 0, 4, 17),
        step(LOAD_2_AT, 0, L4, 0, 0),
        add,
        step(LOAD_2_AT, 0, L4, 0, 2),
        add,
    ];
    // 2^32 divided by the golden ratio (Knuth, 6.4).
    let spread = [
        step(MULTIPLY_32, HASH, 0, 0, 0x9e37_79b1_u32 as i32),
        step(MOVE, RESULT, HASH, 0, 0),
        step(SHIFT_RIGHT, RESULT, 0, 0, 16),
        step(EXIT, 0, 0, 0, 0),
    ];
    let mut v6: Vec<_> = (8..40).step_by(4).flat_map(|at| [load(LOAD_4, at), add]).collect();
    v6.extend([load(LOAD_1, 6), step(MOVE, PROTOCOL, RESULT, 0, 0), step(MOVE_NUMBER, L4, 0, 0, 40)]);
    let v4 = [
        load(LOAD_4, 12),
        add,
        load(LOAD_4, 16),
        add,
        load(LOAD_2, 6),
        step(AND_NUMBER, RESULT, 0, 0, 0x3fff),
        // A fragment: past the ports.
        step(JUMP_IF_NOT_EQUAL, RESULT, 0, 6 + ports.len() as i16, 0),
        load(LOAD_1, 9),
        step(MOVE, PROTOCOL, RESULT, 0, 0),
        load(LOAD_1, 0),
        step(AND_NUMBER, RESULT, 0, 0, 15),
        step(SHIFT_LEFT, RESULT, 0, 0, 2),
        step(MOVE, L4, RESULT, 0, 0),
    ];
    let version = [
        step(MOVE, PACKET, ARGUMENT, 0, 0),
        step(MOVE_NUMBER, HASH, 0, 0, 0),
        load(LOAD_1, 0),
        step(SHIFT_RIGHT, RESULT, 0, 0, 4),
        step(JUMP_IF_EQUAL, RESULT, 0, v6.len() as i16 + 1, 4),
    ];
    let past_v4 = step(JUMP, 0, 0, v4.len() as i16, 0);
    [&version[..], &v6, &[past_v4], &v4, &ports, &spread].concat()
}
