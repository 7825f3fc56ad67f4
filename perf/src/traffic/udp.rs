//! Datagrams at a steady rate, numbered, and what became of them.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt::RcvBuf,
    sockopt::RcvBufForce, sockopt::SndBuf,
};
use serde::{Deserialize, Serialize};

/// The most datagrams in one system call.
const BATCH: usize = 32;

/// Room in the sockets of both ends, in bytes, so that what is lost was lost on the path: at 64 bytes, each of
/// which counts for about 768, 20 ms of 500,000 packets a second.
const BUFFER: usize = 8 << 20;

/// After the sender has ended, the receiver waits until nothing came for so long. Queues on the path hold less.
const SILENCE: Duration = Duration::from_millis(100);

/// What the sender did not get to in so long, because it had no processor, it does not make up for: the burst would
/// measure the sender. What it really sent is what is reported.
const ARREARS: Duration = Duration::from_millis(1);

/// Stream and number at the front of each datagram.
const HEADER: usize = 12;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Datagrams per second.
    pub rate: f64,
    /// Bytes of payload of each.
    pub payload: usize,
    /// Seconds for which they are sent.
    pub seconds: f64,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Of these, those that came after a later one.
    pub overtaken: u64,
    /// Seconds for which they were sent.
    pub seconds: f64,
}

impl Trial {
    /// Lost ones, in percent of those sent.
    pub fn loss_percent(&self) -> f64 {
        100.0 * self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }

    /// Datagrams per second that arrived.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.seconds
    }

    /// Datagrams per second that were sent: fewer than were to be, where the sender had no processor.
    pub fn sent_rate(&self) -> f64 {
        self.sent as f64 / self.seconds
    }
}

/// Sends over a connected socket, and returns how many were sent in how many seconds.
pub fn send(socket: &UdpSocket, offer: &Offer, stream: u32) -> Result<(u64, f64)> {
    ensure!(offer.payload >= HEADER, "a datagram has {HEADER} bytes at least, not {}", offer.payload);
    // What the kernel grants; it takes what it may.
    let _ = setsockopt(socket, SndBuf, &BUFFER);
    let mut buffers = vec![vec![0x5a; offer.payload]; BATCH];
    buffers.iter_mut().for_each(|buffer| buffer[..4].copy_from_slice(&stream.to_be_bytes()));
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let most = ((offer.rate * ARREARS.as_secs_f64()) as u64).max(BATCH as u64);
    let time = Duration::from_secs_f64(offer.seconds);
    let (start, mut sent, mut forgiven) = (Instant::now(), 0_u64, 0_u64);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed.as_secs_f64()));
        }
        let due = (elapsed.as_secs_f64() * offer.rate) as u64 - forgiven;
        if due <= sent {
            let next = Duration::from_secs_f64((sent + forgiven + 1) as f64 / offer.rate);
            std::thread::sleep(next.saturating_sub(elapsed));
            continue;
        }
        forgiven += (due - sent).saturating_sub(most);
        let count = (due - sent).min(BATCH as u64) as usize;
        for (at, buffer) in buffers[..count].iter_mut().enumerate() {
            buffer[4..HEADER].copy_from_slice(&(sent + at as u64).to_be_bytes());
        }
        let slices: Vec<[IoSlice; 1]> =
            buffers[..count].iter().map(|buffer| [IoSlice::new(buffer)]).collect();
        let none = [None::<SockaddrStorage>; BATCH];
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &none[..count], [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            // Lost on the way out, or the answer to an earlier one that nobody took: both are the path's.
            Err(Errno::ENOBUFS | Errno::ECONNREFUSED) => sent += count as u64,
            Err(errno) => bail!("sending datagrams: {}", errno.desc()),
        }
    }
}

/// Counts the datagrams of one stream until `ended` is set and no more come. Returns (arrived, overtaken).
pub fn receive(socket: &UdpSocket, stream: u32, ended: &AtomicBool) -> Result<(u64, u64)> {
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN; without it, as far as that.
    let _ = setsockopt(socket, RcvBufForce, &BUFFER).or_else(|_| setsockopt(socket, RcvBuf, &BUFFER));
    socket.set_read_timeout(Some(SILENCE)).context("setting a timeout")?;
    let mut buffers = vec![[0_u8; HEADER]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let (mut arrived, mut overtaken, mut highest) = (0, 0, 0);
    loop {
        let mut slices: Vec<[IoSliceMut; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let was_ended = ended.load(Ordering::Acquire);
        // The rest of each datagram is cut off: the first bytes tell all.
        let flags = MsgFlags::MSG_WAITFORONE;
        let count = match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None) {
            Ok(messages) => messages.count(),
            Err(Errno::EAGAIN) if was_ended => return Ok((arrived, overtaken)),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => return Err(io::Error::from(errno)).context("receiving datagrams"),
        };
        for buffer in &buffers[..count] {
            if buffer[..4] != stream.to_be_bytes() {
                continue;
            }
            let number = u64::from_be_bytes(buffer[4..HEADER].try_into().expect("8 bytes"));
            arrived += 1;
            overtaken += u64::from(number < highest);
            highest = highest.max(number);
        }
    }
}

/// Sends and receives on this one machine, between two sockets of whatever namespaces.
pub fn trial(sender: &UdpSocket, receiver: &UdpSocket, offer: &Offer, stream: u32) -> Result<Trial> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counting = scope.spawn(|| receive(receiver, stream, &ended));
        let sent = send(sender, offer, stream);
        ended.store(true, Ordering::Release);
        let (received, overtaken) = counting.join().expect("receive does not panic")?;
        let (sent, seconds) = sent?;
        Ok(Trial { sent, received, overtaken, seconds })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        (sender, receiver)
    }

    #[test]
    fn every_datagram_is_counted() {
        let (sender, receiver) = sockets();
        let offer = Offer { rate: 1000.0, payload: 64, seconds: 0.2 };
        let trial = trial(&sender, &receiver, &offer, 7).unwrap();
        assert_eq!((trial.received, trial.overtaken), (trial.sent, 0), "{trial:?}");
        assert_eq!(trial.loss_percent(), 0.0);
        assert!((1..=200).contains(&trial.sent), "{trial:?}");
    }

    #[test]
    fn those_of_another_stream_are_not() {
        let (sender, receiver) = sockets();
        let offer = Offer { rate: 1000.0, payload: 1372, seconds: 0.05 };
        let late = send(&sender, &offer, 1).unwrap().0;
        assert!(late > 0);
        let trial = trial(&sender, &receiver, &offer, 2).unwrap();
        assert_eq!(trial.received, trial.sent, "{trial:?}");
    }

    #[test]
    fn loss_is_of_what_was_sent() {
        let trial = Trial { sent: 2000, received: 1999, overtaken: 0, seconds: 2.0 };
        assert!((trial.loss_percent() - 0.05).abs() < 1e-9);
        assert!((trial.rate() - 999.5).abs() < 1e-9);
    }
}
