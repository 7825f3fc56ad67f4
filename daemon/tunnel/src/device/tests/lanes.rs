//! Several lanes to one peer.

use super::super::config::ApplyError;
use super::*;

impl Wire {
    /// Both sides use `lanes` lanes, and A knows where B is.
    fn with_lanes(lanes: u16) -> Self {
        let wire = Self::new();
        let set = |key| PeerUpdate { lanes: Some(lanes), ..PeerUpdate::new(key) };
        wire.a.apply_peer(set(wire.b.public()), wire.now);
        wire.b.apply_peer(set(wire.a.public()), wire.now);
        wire
    }

    /// Sends a packet from a TUN queue and carries all that follows between the ports of the lanes. Returns by which
    /// lanes data messages left `side`, and whether the packet came out.
    fn send_from(&mut self, side: Side, queue: usize, packet: &[u8]) -> (Vec<usize>, bool) {
        let other = if side == Side::A { Side::B } else { Side::A };
        self.node(other).delivered.clear();
        let (mut out, clock, mut by_lane) = (Datagrams::new(64), self.clock(), Vec::new());
        let device = &self.node(side).device;
        with_segments(packet, |segments| device.lane(queue, clock).packets(segments, &mut out));
        let mut sent = self.leaving(side, &out);
        while let Some((from_side, from, datagram)) = sent.pop() {
            let to_side = if from_side == Side::A { Side::B } else { Side::A };
            let to = datagram.to;
            let home = self.node(to_side).address;
            assert_eq!(to.ip(), home.ip());
            let lane = usize::from(to.port() - home.port());
            if from_side == side && datagram.bytes[0] == DATA && datagram.bytes.len() > 32 {
                by_lane.push(lane);
            }
            let (mut out, mut packets) = (Datagrams::new(64), Packets::new(8));
            let node = self.node(to_side);
            node.device.lane(lane, clock).datagram(from, &datagram.bytes, &mut out, &mut packets);
            node.delivered.extend(packets.iter().map(|(packet, ())| packet.to_vec()));
            sent.extend(self.leaving(to_side, &out));
        }
        (by_lane, self.node(other).delivered.iter().any(|delivered| delivered == packet))
    }

    fn leaving(&mut self, side: Side, out: &Datagrams) -> Vec<(Side, SocketAddr, Seen)> {
        let address = self.node(side).address;
        out.iter()
            .map(|(bytes, note)| {
                let from = SocketAddr::new(address.ip(), address.port() + note.lane as u16);
                (side, from, Seen { from, to: note.to, bytes: bytes.to_vec() })
            })
            .collect()
    }
}

#[test]
fn each_lane_is_a_tunnel_of_its_own() {
    let mut wire = Wire::with_lanes(3);
    for queue in 0..4 {
        let packet = a_to_b(100 + queue);
        assert_eq!(wire.send_from(Side::A, queue, &packet), (vec![queue % 3], true), "queue {queue}");
        assert_eq!(wire.send_from(Side::B, queue, &b_to_a(100)), (vec![queue % 3], true), "back by {queue}");
    }
    let state = wire.a.peer(wire.b.public());
    assert_eq!((state.lanes, state.endpoint), (3, Some(wire.b.address)), "the first lane's");
    assert!(state.rx_bytes > 4 * 100 && state.tx_bytes > 4 * 100, "of all lanes");
}

#[test]
fn a_lane_that_was_not_heard_of_is_found_beside_the_first() {
    let mut wire = Wire::with_lanes(4);
    assert!(wire.send_from(Side::A, 0, &a_to_b(10)).1);
    // B knows A's first lane from its packets, and nothing else.
    assert_eq!(wire.send_from(Side::B, 2, &b_to_a(10)), (vec![2], true));
}

#[test]
fn the_peer_that_was_given_one_lane_has_one() {
    let mut wire = Wire::with_lanes(1);
    for queue in 0..4 {
        assert_eq!(wire.send_from(Side::A, queue, &a_to_b(10)), (vec![0], true));
    }
}

#[test]
fn a_lane_that_is_given_up_goes_on_receiving() {
    let mut wire = Wire::with_lanes(2);
    assert_eq!(wire.send_from(Side::A, 1, &a_to_b(10)), (vec![1], true));
    let one = |key| PeerUpdate { lanes: Some(1), ..PeerUpdate::new(key) };
    wire.b.apply_peer(one(wire.a.public()), wire.now);
    assert_eq!(wire.send_from(Side::A, 1, &a_to_b(10)), (vec![1], true), "A has not heard of it");
    assert_eq!(wire.send_from(Side::B, 1, &b_to_a(10)), (vec![0], true));
    wire.a.apply_peer(one(wire.b.public()), wire.now);
    assert_eq!(wire.send_from(Side::A, 1, &a_to_b(10)), (vec![0], true));
}

#[test]
fn a_new_endpoint_is_that_of_all_lanes() {
    let mut wire = Wire::with_lanes(2);
    assert!(wire.send_from(Side::A, 1, &a_to_b(10)).1);
    wire.b.address = "198.51.100.7:777".parse().unwrap();
    let update = PeerUpdate { endpoint: Some(wire.b.address), ..PeerUpdate::new(wire.b.public()) };
    wire.a.apply_peer(update, wire.now);
    for queue in 0..2 {
        assert_eq!(wire.send_from(Side::A, queue, &a_to_b(10)), (vec![queue], true));
    }
}

#[test]
fn keepalives_open_every_lane_that_is_used() {
    let wire = Wire::with_lanes(2);
    let update = PeerUpdate { persistent_keepalive: Some(5), ..PeerUpdate::new(wire.b.public()) };
    wire.a.apply_peer(update, wire.now);
    let initiations = [0, 1, 2].map(|lane| {
        let mut out = Datagrams::new(8);
        wire.a.device.tick(lane, wire.clock(), &mut out, |_| panic!("the batch is large enough"));
        out.iter().map(|(_, note)| (note.lane, note.to.port())).collect::<Vec<_>>()
    });
    assert_eq!(initiations, [vec![(0, 1002)], vec![(1, 1003)], vec![]]);
}

/// A lane that shares a session with others, and is held up between sealing and sending, falls behind what they send.
/// The last 8,192 counters are remembered (by the kernel 64 less): what is older is lost, and counted as such.
#[test]
fn what_falls_behind_by_more_than_the_window_is_counted() {
    for behind in [1023, 4000, 8191, 10_000] {
        let mut wire = Wire::new();
        assert!(wire.both_ways());
        let sent: Vec<_> = (0..=behind).flat_map(|_| wire.encrypt(Side::A, &a_to_b(10))).collect();
        wire.b.delivered.clear();
        let (last, late) = sent.split_last().unwrap();
        for seen in [last].into_iter().chain(late) {
            wire.receive(Side::B, seen.from, &seen.bytes);
        }
        let lost = (behind + 1usize).saturating_sub(8192);
        assert_eq!(wire.b.delivered.len(), behind + 1 - lost, "{behind} behind");
        assert_eq!(wire.b.dropped(Drop::ReplayedData), lost as u64);
        assert!(wire.both_ways());
    }
}

#[test]
fn more_lanes_than_there_can_be_are_refused() {
    let wire = Wire::with_lanes(4);
    let try_apply = |update: PeerUpdate| {
        wire.a.device.check(&DeviceUpdate { peers: vec![update], ..DeviceUpdate::default() })
    };
    let key = wire.b.public();
    let lanes = |lanes| PeerUpdate { lanes: Some(lanes), ..PeerUpdate::new(key) };
    let at = |port| Some(SocketAddr::new(wire.b.address.ip(), port));
    assert_eq!(try_apply(lanes(5)), Err(ApplyError::TooManyLanes));
    assert_eq!(
        try_apply(PeerUpdate { endpoint: at(65_533), ..PeerUpdate::new(key) }),
        Err(ApplyError::NoPortsForLanes)
    );
    assert_eq!(try_apply(PeerUpdate { endpoint: at(65_532), ..PeerUpdate::new(key) }), Ok(()));
    assert_eq!(try_apply(PeerUpdate { endpoint: at(65_533), ..lanes(3) }), Ok(()));
    assert_eq!(try_apply(PeerUpdate { remove: true, ..lanes(9) }), Ok(()));
}
