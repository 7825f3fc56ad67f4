//! Arithmetic on sets of networks.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The network of a single address.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// Whether two networks share an address. Networks are laminar: they share one only if one holds the other.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The same addresses without networks that another one holds: no two of the result overlap, which is what
/// nftables asks of an interval set. Neighbours are not merged, so that each network stays recognisable.
pub fn cover(nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = nets.into_iter().map(|net| net.trunc()).collect();
    nets.sort_by_key(|net| (net.network(), net.prefix_len()));
    let mut cover: Vec<IpNet> = Vec::with_capacity(nets.len());
    for net in nets {
        // Sorted so, a network comes after every one that holds it, and the last one kept is the nearest.
        if !cover.last().is_some_and(|last| last.contains(&net)) {
            cover.push(net);
        }
    }
    cover
}

/// The network of a [`cover`] that holds an address.
pub fn find(cover: &[IpNet], address: IpAddr) -> Option<&IpNet> {
    let after = cover.partition_point(|net| net.network() <= address);
    cover[..after].last().filter(|net| net.contains(&address))
}

/// The networks of a [`cover`] that share an address with `net`: the one that holds it, or all that it holds.
pub fn touching<'a>(cover: &'a [IpNet], net: &IpNet) -> &'a [IpNet] {
    let after = cover.partition_point(|other| other.network() <= net.broadcast());
    let before = cover[..after].partition_point(|other| other.broadcast() < net.network());
    &cover[before..after]
}

/// The part of `net` that lies in none of `holes`, as few networks as possible.
pub fn exclude(net: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    let inside: Vec<IpNet> = holes.iter().filter(|hole| overlap(hole, &net)).copied().collect();
    if inside.is_empty() {
        return vec![net];
    }
    if inside.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    // Every hole is smaller than the net, so the net can be halved.
    halves(net).into_iter().flat_map(|half| exclude(half, &inside)).collect()
}

/// The two halves of a network larger than one address.
fn halves(net: IpNet) -> [IpNet; 2] {
    let prefix = net.prefix_len() + 1;
    match net.trunc() {
        IpNet::V4(net) => {
            let upper = u32::from(net.addr()) | 1 << (32 - prefix);
            [net.addr(), upper.into()].map(|half| Ipv4Net::new_assert(half, prefix).into())
        }
        IpNet::V6(net) => {
            let upper = u128::from(net.addr()) | 1 << (128 - prefix);
            [net.addr(), upper.into()].map(|half| Ipv6Net::new_assert(half, prefix).into())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Networks in a space so small that they often overlap.
    pub(crate) fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<u8>(), 20u8..=32).prop_map(|(low, prefix)| {
                let address = 0x0a00_0000 | u32::from(low) << 4 | u32::from(low) >> 4;
                IpNet::from(Ipv4Net::new_assert(address.into(), prefix)).trunc()
            }),
            (any::<u8>(), 116u8..=128).prop_map(|(low, prefix)| {
                let address = 0xfd00 << 112 | u128::from(low) << 4;
                IpNet::from(Ipv6Net::new_assert(address.into(), prefix)).trunc()
            }),
        ]
    }

    fn addresses_near(nets: &[IpNet]) -> Vec<IpAddr> {
        nets.iter().flat_map(|net| [net.network(), net.broadcast()]).collect()
    }

    fn holds(nets: &[IpNet], address: &IpAddr) -> bool {
        nets.iter().any(|net| net.contains(address))
    }

    proptest! {
        #[test]
        fn a_cover_holds_the_same_addresses_once(nets in prop::collection::vec(any_net(), 0..12)) {
            let cover = cover(nets.clone());
            for address in addresses_near(&nets) {
                let times = cover.iter().filter(|net| net.contains(&address)).count();
                prop_assert_eq!(times, usize::from(holds(&nets, &address)));
                prop_assert_eq!(find(&cover, address).is_some(), times == 1);
            }
        }

        #[test]
        fn what_touches_a_network_is_found(nets in prop::collection::vec(any_net(), 0..12), net in any_net()) {
            let cover = cover(nets);
            let slow: Vec<IpNet> = cover.iter().filter(|other| overlap(other, &net)).copied().collect();
            prop_assert_eq!(touching(&cover, &net), slow);
        }

        #[test]
        fn excluding_leaves_exactly_what_no_hole_holds(
            net in any_net(), holes in prop::collection::vec(any_net(), 0..6)
        ) {
            let rest = exclude(net, &holes);
            let mut near = addresses_near(&holes);
            near.extend(addresses_near(&[net]));
            near.extend(addresses_near(&rest));
            for address in near {
                prop_assert_eq!(holds(&rest, &address), net.contains(&address) && !holds(&holes, &address));
            }
        }
    }

    #[test]
    fn a_hole_in_the_middle_leaves_both_sides() {
        let rest = exclude("10.0.0.0/30".parse().unwrap(), &["10.0.0.1/32".parse().unwrap()]);
        let rest: Vec<String> = rest.iter().map(IpNet::to_string).collect();
        assert_eq!(rest, ["10.0.0.0/32", "10.0.0.2/31"]);
    }
}
