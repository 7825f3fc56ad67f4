//! What the image's root is made of, as `bin/image-root.sh` collects it: programs that start there with nothing else,
//! and the same bytes each time. The rest of the Containerfile needs a container engine, which these tests do without.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use warren_testkit::lab::binary;

use crate::tools::{path, run};

const OURS: [&str; 3] = ["warrend", "warren-tunnel", "keyctl"];

/// What warren-tunnel opens where there is AVX-512: of the package libipsec-mb1, which is for x86-64 alone.
const LIBRARY: Option<&str> =
    if cfg!(target_arch = "x86_64") { Some("/usr/lib/x86_64-linux-gnu/libIPSec_MB.so.1") } else { None };

/// Collects the root in a folder, under an umask.
fn collect(root: &Path, umask: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "umask $0 && exec sh \"$@\"", umask]).arg(path("bin/image-root.sh")).arg(root);
    command.args(OURS.map(|program| binary(program).unwrap())).arg("nft").args(LIBRARY);
    // Where Debian keeps administrators' programs.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("SOURCE_DATE_EPOCH", "1700000000");
    run(&mut command);
}

#[test]
fn programs_start_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("image");
    collect(&root, "022");
    for program in OURS.iter().chain(&["nft"]) {
        let version = run(inside(&root).arg(format!("/usr/bin/{program}")).arg("--version"));
        let wanted = match *program {
            "nft" => "nftables v1".to_owned(),
            ours => format!("{ours} {}", env!("CARGO_PKG_VERSION")),
        };
        assert!(version.starts_with(&wanted), "{program}: {version}");
    }
    // It reads names of protocols and ports, which are files of the image.
    let described = run(inside(&root).args(["/usr/bin/nft", "describe", "tcp", "dport"]));
    assert!(described.contains("inet_service"), "{described}");
    for absent in ["bin/sh", "usr/bin/sh", "usr/bin/dpkg"] {
        assert!(!root.join(absent).exists(), "{absent}");
    }
    // Who lists licences and versions finds them.
    for package in ["nftables", "libc6", "netbase"].iter().chain(&LIBRARY.map(|_| "libipsec-mb1")) {
        assert!(root.join("usr/share/doc").join(package).join("copyright").is_file(), "{package}");
        let status = std::fs::read_to_string(root.join("var/lib/dpkg/status.d").join(package)).unwrap();
        assert!(status.contains("\nVersion: "), "{status}");
    }
}

/// There is no TUN in the root, so the program ends one way or the other; what matters is that it gets beyond the library.
#[test]
fn the_tunnel_finds_its_library() {
    let Some(_) = LIBRARY else { return eprintln!("not run: the library is for x86-64") };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("image");
    collect(&root, "022");
    let said =
        inside(&root).args(["/usr/bin/warren-tunnel", "--aead", "ipsec-mb", "warren-x0"]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr);
    if said.contains("AVX-512") {
        return eprintln!("not run: {said}");
    }
    assert!(said.contains("warren-x0") && !said.contains("--aead"), "{said}");
}

#[test]
fn it_is_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let archive = |name: &str, umask: &str| {
        let root = folder.path().join(name);
        collect(&root, umask);
        let file = folder.path().join(format!("{name}.tar"));
        run(Command::new("tar").args(["--sort=name", "-cf"]).arg(&file).arg("-C").arg(&root).arg("."));
        std::fs::read(file).unwrap()
    };
    let (one, other) = (archive("one", "022"), archive("other", "077"));
    assert!(one.len() > 1 << 20, "{} bytes", one.len());
    assert!(one == other, "the same files make another image");
}

/// A command in the root and in an empty environment, with the help of a user namespace where the caller is not root.
fn inside(root: &Path) -> Command {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command =
        if is_root { Command::new("/usr/sbin/chroot") } else { Command::new("/usr/bin/unshare") };
    if !is_root {
        command.args(["--map-root-user", "/usr/sbin/chroot"]);
    }
    command.env_clear().arg(root);
    command
}
