//! Peers whose tunnels went from userspace to the kernel: they are forgotten, and taken up anew by the next diff.
//!
//! A handshake carries the time, and a device takes none that is not later than the last (WireGuard whitepaper,
//! section 5.1). The time of `warren-tunnel` is 27 s ahead of that of the kernel and of wireguard-go: of the seconds
//! between TAI and UTC it counts all 37, as boringtun does, those the first 10. For so long the new tunnel's handshakes
//! would pass for replays.

use std::collections::BTreeMap;
use std::sync::Arc;

use warren_api::{Backend, PublicKey};

use crate::action::{Action, DeviceChange, PeerChange};
use crate::observed::ObservedDevice;
use crate::plan::{PeerInfo, Plan};

/// What forgets them; `before` are the peers of the last plan, `devices` the tunnels by their interfaces.
pub fn renewals<'a>(
    before: &BTreeMap<PublicKey, PeerInfo>,
    plan: &Plan,
    devices: impl IntoIterator<Item = (&'a Arc<str>, &'a ObservedDevice)>,
) -> Vec<Action> {
    let was_userspace =
        |key| before.get(key).is_some_and(|before: &PeerInfo| before.backend == Backend::Userspace);
    let changed = plan.peers.iter().filter(|(key, now)| now.backend == Backend::Kernel && was_userspace(key));
    let changed: Vec<PublicKey> = changed.map(|(key, _)| *key).collect();
    let forget = |(interface, device): (&Arc<str>, &ObservedDevice)| {
        let backend = plan.desired.tunnels.get(interface)?.backend;
        let known = changed.iter().filter(|key| device.peers.contains_key(*key));
        let peers: Vec<PeerChange> =
            known.map(|key| PeerChange { remove: true, ..PeerChange::new(*key) }).collect();
        let change = DeviceChange { peers, ..DeviceChange::default() };
        (!change.peers.is_empty()).then(|| Action::ConfigureDevice {
            interface: interface.clone(),
            backend,
            change,
        })
    };
    devices.into_iter().filter_map(forget).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Desired, Tunnel};
    use crate::observed::ObservedPeer;
    use crate::plan::Withdrawal;

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32]).unwrap()
    }

    fn peers(backends: [Backend; 3]) -> BTreeMap<PublicKey, PeerInfo> {
        let info = |(key, backend)| (key, PeerInfo { node: "node".to_owned(), backend });
        [1, 2, 3].map(key).into_iter().zip(backends).map(info).collect()
    }

    #[test]
    fn those_who_went_to_the_kernel_are_forgotten_where_they_are_known() {
        use Backend::{Kernel, Userspace};
        let lanes: [Arc<str>; 2] = ["warren-a0".into(), "warren-a1".into()];
        let tunnel = Tunnel {
            backend: Kernel,
            mtu: 1420,
            listen_port: 51820,
            fwmark: 0,
            public_key: key(9),
            addresses: Default::default(),
            peers: BTreeMap::new(),
        };
        let tunnels = lanes.iter().map(|lane| (lane.clone(), tunnel.clone())).collect();
        let plan = Plan {
            desired: Desired { tunnels, ..Desired::default() },
            announcement: None,
            withdrawal: Withdrawal::None,
            peers: peers([Kernel, Userspace, Kernel]),
            quarantined: Vec::new(),
            waiting: Vec::new(),
            problems: Vec::new(),
            hold: false,
        };
        let all = [1, 2, 3].map(|n| (key(n), ObservedPeer::default())).into();
        let device = ObservedDevice { peers: all, ..ObservedDevice::default() };
        let devices = [(&lanes[0], &device), (&lanes[1], &ObservedDevice::default())];
        let renewals = |before| super::renewals(&before, &plan, devices);

        let [Action::ConfigureDevice { interface, change, .. }] = &renewals(peers([Userspace; 3]))[..] else {
            panic!("one device is changed")
        };
        assert_eq!(*interface, lanes[0]);
        let removed: Vec<_> = change.peers.iter().map(|peer| (peer.public_key, peer.remove)).collect();
        assert_eq!(removed, [(key(1), true), (key(3), true)]);

        assert_eq!(renewals(peers([Kernel; 3])), [], "nobody changed to it");
        assert_eq!(renewals(BTreeMap::new()), [], "nobody was known before");
    }
}
