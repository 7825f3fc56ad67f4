//! `--keep`: the lab stays, and this is how to enter it.

use std::process::{Child, ExitCode};

use anyhow::{Context, Result};
use warren_testkit::isolate;
use warren_testkit::lab::{Lab, Registry};
use warren_testkit::netns::Netns;

use super::interrupt;

/// Prints how to enter and waits for Ctrl-C, which ends the program with `status`.
pub fn until_interrupted(lab: &Lab, status: ExitCode) -> ExitCode {
    interrupt::expect(i32::from(status != ExitCode::SUCCESS));
    match print_entrances(lab) {
        // Held until the end: the pids that were printed are theirs.
        Ok(_holders) => loop {
            std::thread::park();
        },
        Err(error) => {
            println!("the lab cannot be kept: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_entrances(lab: &Lab) -> Result<Vec<Child>> {
    let mut holders = Vec::new();
    println!("\nThe lab stays up. From another terminal, as the same user:");
    for node in &lab.nodes {
        enter(&node.name, &node.netns, &mut holders)?;
        for pod in &node.pods {
            enter(&pod.name, &pod.netns, &mut holders)?;
        }
    }
    println!("There: ip route show table all; wg show; nft list ruleset; curl -s 127.0.0.1:9586/status");
    let log = lab.node(1).log_path();
    println!("In a node, its log is {}", log.display());
    match lab.plan.registry {
        Registry::Directory => println!("The registry is {}", lab.registry().display()),
        Registry::Kubernetes => {
            enter("control-plane", lab.api().machine(), &mut holders)?;
            let kubeconfig = lab.admin_kubeconfig_path();
            println!("There: export KUBECONFIG={}; kubectl get nodes -o yaml", kubeconfig.display());
        }
    }
    println!(
        "Ctrl-C here, or kill {}, ends the lab and leaves nothing.",
        isolate::host_pid(std::process::id())?
    );
    Ok(holders)
}

/// Prints the command that enters one namespace. A process of our own in it is held for the purpose: any
/// other may end.
fn enter(name: &str, netns: &Netns, holders: &mut Vec<Child>) -> Result<()> {
    let holder = netns.command("sleep").arg("infinity").spawn().context("starting sleep")?;
    println!("  {}   # {name}", isolate::nsenter(holder.id())?);
    holders.push(holder);
    Ok(())
}
