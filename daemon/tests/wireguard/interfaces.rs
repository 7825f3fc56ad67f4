//! Interfaces of ours, and those that are not.

use anyhow::{Result, ensure};
use warren_core::{DeviceChange, ObservedDevice};
use warrend::wireguard::WireguardError;

use crate::common::{End, INTERFACE};

pub fn come_and_go() -> Result<()> {
    let end = End::new("come-and-go")?;
    ensure!(end.wireguard.observe(INTERFACE)?.is_none(), "there is a device before it is made");
    end.wireguard.remove(INTERFACE)?;
    let error = end.configure(&DeviceChange::default());
    ensure!(matches!(error, Err(WireguardError::NoInterface(_))), "{error:?}");
    end.wireguard.probe()?;
    ensure!(links(&end)?.is_empty(), "a probe leaves something: {:?}", links(&end)?);
    for _ in 0..2 {
        end.wireguard.create(INTERFACE)?;
        ensure!(
            end.agree()? == ObservedDevice::default(),
            "a new device has something: {:?}",
            end.observe()?
        );
    }
    ensure!(links(&end)? == [INTERFACE], "{:?}", links(&end)?);
    let shown = end.netns.sh(&format!("ip -d link show {INTERFACE}"))?;
    ensure!(shown.contains("wireguard") && shown.contains("alias warren"), "{shown}");
    end.wireguard.probe()?;
    for _ in 0..2 {
        end.wireguard.remove(INTERFACE)?;
        ensure!(links(&end)?.is_empty(), "{:?}", links(&end)?);
    }
    Ok(())
}

pub fn half_made() -> Result<()> {
    let end = End::new("half-made")?;
    end.netns.ip("link add warren-0123abcd type wireguard
link set warren-0123abcd alias warren
link add warren-4567cdef type wireguard
link add warren-b0 type wireguard
link set warren-b0 alias warren")?;
    end.wireguard.create(INTERFACE)?;
    let links = links(&end)?;
    // Not what somebody else made, nor a tunnel.
    ensure!(links.len() == 3 && !links.contains(&"warren-0123abcd".to_owned()), "{links:?}");
    Ok(())
}

pub fn foreign() -> Result<()> {
    let end = End::new("foreign")?;
    let change = DeviceChange { identity: true, listen_port: Some(5), ..DeviceChange::default() };
    for (kind, is_wireguard) in [("type bridge", false), ("type dummy", false), ("type wireguard", true)] {
        end.netns.ip(&format!("link add {INTERFACE} {kind}\nlink set {INTERFACE} up"))?;
        let before = end.netns.sh(&format!("ip link show {INTERFACE}"))?;
        for (what, result) in [
            ("create", end.wireguard.create(INTERFACE)),
            ("remove", end.wireguard.remove(INTERFACE)),
            ("configure", end.configure(&change)),
        ] {
            let Err(error @ WireguardError::Foreign { .. }) = result else {
                anyhow::bail!("{what} of a {kind}: {result:?}");
            };
            ensure!(error.to_string().contains("not Warren's"), "{error}");
        }
        match end.wireguard.observe(INTERFACE) {
            Ok(None) if !is_wireguard => {}
            Err(WireguardError::Foreign { .. }) if is_wireguard => {}
            observed => anyhow::bail!("a {kind} is observed as {observed:?}"),
        }
        let after = end.netns.sh(&format!("ip link show {INTERFACE}"))?;
        ensure!(before == after, "it was\n{before}and is\n{after}");
        if is_wireguard {
            ensure!(end.netns.sh(&format!("wg show {INTERFACE} private-key"))?.trim() == "(none)");
        }
        ensure!(links(&end)?.len() == 1, "something is left behind: {:?}", links(&end)?);
        end.netns.ip(&format!("link delete {INTERFACE}"))?;
    }
    end.wireguard.create(INTERFACE)?;
    Ok(())
}

/// The names of all interfaces but the loopback.
fn links(end: &End) -> Result<Vec<String>> {
    let shown = end.netns.sh("ip -brief link show")?;
    let names = shown.lines().filter_map(|line| line.split_whitespace().next());
    let names = names.filter(|name| *name != "lo" && !name.contains("tunl") && !name.contains("sit"));
    Ok(names.map(str::to_owned).collect())
}
