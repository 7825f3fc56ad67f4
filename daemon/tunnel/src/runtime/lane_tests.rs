//! A lane without an interface: by which port leaves what a new configuration makes it send.

use std::fs::OpenOptions;
use std::net::UdpSocket;
use std::thread;

use super::*;
use crate::device::HANDSHAKES_PER_SECOND;
use crate::runtime::control;

/// A tunnel on a port that the kernel chose, as it is before its first configuration.
fn unconfigured() -> Arc<Shared> {
    let device = Device::new(1420, 1, HANDSHAKES_PER_SECOND, Instant::now());
    Arc::new(Shared::new(device, Sockets::bind(1, 0, 0).unwrap(), 1).unwrap())
}

/// A port that is free.
fn free_port() -> u16 {
    Sockets::bind(1, 0, 0).unwrap().port()
}

/// Configures key, port, and a peer with which a handshake is due.
fn configure(shared: &Arc<Shared>, port: u16, peer: &UdpSocket) {
    let own = "41".repeat(32);
    // The base point of the curve, as good a key as any other.
    let key = format!("09{}", "00".repeat(31));
    let endpoint = peer.local_addr().unwrap();
    let request = format!(
        "set=1\nprivate_key={own}\nlisten_port={port}\npublic_key={key}\nendpoint={endpoint}\n\
         persistent_keepalive_interval=25\n\n"
    );
    let answer = control::answer(shared, &request);
    assert_eq!(*answer, "errno=0\n\n");
}

/// A peer that is configured together with the port would else answer to, and send to, one where nobody listens.
#[test]
fn the_first_handshake_leaves_by_the_new_port_before_the_lane_has_taken_it_over() {
    let shared = unconfigured();
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let mut lane = Lane::new(0, shared.clone(), Queue::fake(null));
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = free_port();
    configure(&shared, port, &peer);
    // The lane was about to look at its timers, and has not seen that it was woken.
    lane.tick(Clock::system());
    let (len, from) = peer.recv_from(&mut [0; 256]).unwrap();
    assert_eq!((len, from.port()), (148, port));
}

/// A lane that works on a batch keeps the device as it is meanwhile; the sockets have been exchanged before.
#[test]
fn sockets_are_there_before_what_is_to_be_sent_by_them() {
    let shared = unconfigured();
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let batch = shared.device.lane(0, Clock::system());
    let end = Instant::now() + Duration::from_secs(5);
    thread::scope(|scope| {
        scope.spawn(|| configure(&shared, port, &peer));
        while shared.sockets().port() != port && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        let moved = shared.sockets().port() == port;
        drop(batch);
        assert!(moved, "the device is changed first");
    });
}
