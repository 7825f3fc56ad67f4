//! Scenarios that prove the kit itself.
fn main() -> anyhow::Result<()> {
    warren_testkit::isolate::enter()?;
    let t = std::time::Instant::now();
    let lab = warren_testkit::lab::Lab::new(Default::default())?;
    println!("{:?}", t.elapsed());
    println!("{}", lab.node(1).netns.sh("ip a")?);
    println!("{}", lab.node(1).netns.sh("ip -6 r")?);
    println!("{}", lab.node(1).pods[0].netns.sh("ping -c 2 -i 0.1 10.244.3.12")?);
    println!("{}", lab.node(1).pods[0].netns.sh("ping -c 2 -i 0.1 fd00:244:3::c")?);
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")?.lines().find(|l| l.starts_with("NSpid")).unwrap()
    );
    println!("host {}", warren_testkit::isolate::host_pid(std::process::id())?);
    println!("{}", std::fs::read_to_string(lab.registry().join("node-1.yaml"))?);
    Ok(())
}
