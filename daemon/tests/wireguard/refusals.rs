//! What the kernel refuses, and how that is told.

use std::net::UdpSocket;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use warren_core::DeviceChange;
use warren_testkit::netns::Netns;
use warren_testkit::{lab, scenario};
use warrend::wireguard::{Wireguard, WireguardError};

use crate::common::{End, INTERFACE};

/// The argument by which this program probes, and does nothing else.
const PROBE: &str = "--probe-wireguard";

pub fn port_taken() -> Result<()> {
    let end = End::with_device("taken", 51820)?;
    let before = end.agree()?;
    for state in ["down", "up"] {
        end.netns.ip(&format!("link set {INTERFACE} {state}"))?;
        for address in ["0.0.0.0:4711", "[::]:4711"] {
            let taken = end.netns.run(|| UdpSocket::bind(address))??;
            let change = DeviceChange { listen_port: Some(4711), ..DeviceChange::default() };
            let result = end.configure(&change);
            let Err(error @ WireguardError::PortTaken { port: 4711 }) = result else {
                bail!("{state}, {address}: {result:?}");
            };
            ensure!(error.to_string().starts_with("UDP port 4711 is taken: see who has it"), "{error}");
            ensure!(end.agree()? == before, "{state}, {address}: the device changed");
            drop(taken);
        }
    }
    end.configure(&DeviceChange { listen_port: Some(4711), ..DeviceChange::default() })?;
    ensure!(end.agree()?.listen_port == 4711);
    Ok(())
}

pub fn no_right() -> Result<()> {
    lab::needs_kernel_wireguard()?;
    let netns = Netns::new("no-right")?;
    let probe = |setpriv: &str| -> Result<String> {
        let program = std::env::current_exe()?;
        netns.sh(&format!("{setpriv} {} {PROBE}", program.display()))
    };
    ensure!(probe("setpriv")?.trim() == "it works", "{}", probe("setpriv")?);
    let said = probe("setpriv --bounding-set=-net_admin --inh-caps=-net_admin --")?;
    ensure!(said.contains("NET_ADMIN"), "it says {said:?}");
    let links = netns.sh("ip -brief link show")?;
    ensure!(!links.contains("warren"), "{links}");
    Ok(())
}

/// The one scenario for kernels that lack it.
pub fn no_wireguard() -> Result<()> {
    if lab::needs_kernel_wireguard().is_ok() {
        return Err(scenario::not_run("this kernel has WireGuard"));
    }
    let netns = Netns::new("no-wireguard")?;
    let wireguard = netns.run(Wireguard::open)??;
    for result in [wireguard.probe(), wireguard.create(INTERFACE)] {
        let Err(error @ WireguardError::Missing) = result else { bail!("it says {result:?}") };
        let said = error.to_string();
        ensure!(said.contains("modprobe wireguard") && said.contains("--backend userspace"), "{said}");
    }
    ensure!(wireguard.observe(INTERFACE)?.is_none(), "there is a device");
    wireguard.remove(INTERFACE)?;
    Ok(())
}

pub fn is_asked_to_probe() -> bool {
    std::env::args().nth(1).as_deref() == Some(PROBE)
}

pub fn probe() -> ExitCode {
    match Wireguard::open().and_then(|wireguard| wireguard.probe()) {
        Ok(()) => println!("it works"),
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}
