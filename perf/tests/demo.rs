//! The demo from end to end, with each registry, as short as it gets.

use std::process::Command;

fn demo(registry: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_warren-perf"))
        .args(["demo", "--nodes", "2", "--seconds", "1", "--registry", registry])
        .output()
        .expect("warren-perf starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("demo: OK, 2 nodes, 4 pods, "), "{text}");
    assert!(last.contains(" 0 packets in the clear"), "{text}");
    // The sniffer that saw nothing is one that sees.
    let control = text.lines().find(|line| line.contains("without Warren")).unwrap_or_default();
    assert!(control.contains("in the clear seen by the sniffer"), "{text}");
    text
}

#[test]
fn with_a_directory() {
    demo("dir");
}

#[test]
fn with_a_kubernetes_api_server() {
    let text = demo("kubernetes");
    assert!(text.contains("Kubernetes v1."), "{text}");
}
