//! What the DaemonSet promises: least privilege, quiet restarts, a command line and settings that the daemon takes.

use clap::Parser as _;
use serde_json::{Value, json};
use warren_api::names;
use warren_testkit::lab::binary;

use crate::kustomize::{build, build_with, object, objects};
use crate::tools::run;

/// All there is to install, by what it is called in messages.
fn variants() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("base", objects(&build("base"))),
        ("userspace", objects(&build_with(&["userspace"]))),
        ("lanes", objects(&build_with(&["lanes"]))),
        ("monitoring", objects(&build_with(&["monitoring"]))),
        (
            "everything",
            objects(&build_with(&[
                "admission",
                "monitoring",
                "userspace",
                "permissive",
                "strict",
                "withdraw",
            ])),
        ),
        ("examples/cluster", objects(&build("examples/cluster"))),
    ]
}

fn pod(objects: &[Value]) -> &Value {
    &object(objects, "DaemonSet", "warren")["spec"]["template"]["spec"]
}

fn container<'a>(objects: &'a [Value], name: &str) -> &'a Value {
    let containers = pod(objects)["containers"].as_array().unwrap();
    containers.iter().find(|container| container["name"] == name).unwrap()
}

/// What stands where in the DaemonSet.
#[test]
fn promises_hold() {
    let daemonset = json!({
        "/spec/updateStrategy/type": "RollingUpdate",
        "/spec/updateStrategy/rollingUpdate/maxUnavailable": 1,
        "/spec/template/spec/hostNetwork": true,
        "/spec/template/spec/hostPID": null,
        "/spec/template/spec/hostIPC": null,
        "/spec/template/spec/shareProcessNamespace": null,
        "/spec/template/spec/initContainers": null,
        // The node's resolver, since the cluster's may be behind Warren.
        "/spec/template/spec/dnsPolicy": "Default",
        "/spec/template/spec/priorityClassName": "system-node-critical",
        "/spec/template/spec/tolerations": [{ "operator": "Exists" }],
        "/spec/template/spec/serviceAccountName": "warrend",
        "/spec/template/spec/automountServiceAccountToken": false,
        "/spec/template/spec/securityContext/seccompProfile/type": "RuntimeDefault",
    });
    let containers = json!({
        "/securityContext/privileged": false,
        "/securityContext/allowPrivilegeEscalation": false,
        "/securityContext/readOnlyRootFilesystem": true,
        "/securityContext/capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
        // Nothing of the pod's is taken back.
        "/securityContext/seccompProfile": null,
        "/securityContext/procMount": null,
        // Throttling would delay what keeps the node safe.
        "/resources/limits/cpu": null,
        "/lifecycle": null,
    });
    let at = |object: &Value, pointer: &str| object.pointer(pointer).cloned().unwrap_or(Value::Null);
    for (variant, objects) in variants() {
        let warren = object(&objects, "DaemonSet", "warren");
        for (pointer, wanted) in daemonset.as_object().unwrap() {
            assert_eq!(&at(warren, pointer), wanted, "{variant}: {pointer}");
        }
        let all = pod(&objects)["containers"].as_array().unwrap();
        let names: Vec<_> = all.iter().map(|container| container["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["warrend", "warren-tunnel"], "{variant}");
        for container in all {
            for (pointer, wanted) in containers.as_object().unwrap() {
                assert_eq!(&at(container, pointer), wanted, "{variant}: {}: {pointer}", container["name"]);
            }
            for request in ["cpu", "memory"] {
                assert!(container["resources"]["requests"][request].is_string(), "{variant}: {request}");
            }
        }
    }
}

/// The kubelet asks on loopback, where nobody else hears; liveness asks nothing that depends on others.
#[test]
fn probes_stay_on_the_node() {
    let port: u16 = names::HTTP.rsplit_once(':').unwrap().1.parse().unwrap();
    for (variant, objects) in variants() {
        let warrend = container(&objects, "warrend");
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let wanted = json!({ "host": "127.0.0.1", "port": port, "path": path });
            assert_eq!(warrend[probe]["httpGet"], wanted, "{variant}: {probe}");
        }
        let tunnel = container(&objects, "warren-tunnel");
        let interfaces = names::INTERFACE_PREFIX;
        for probe in ["startupProbe", "livenessProbe"] {
            let command = json!(["warren-tunnel", "--on-demand", "--probe", interfaces]);
            assert_eq!(tunnel[probe]["exec"]["command"], command, "{variant}: {probe}");
        }
        assert_eq!(tunnel["args"], json!(["--on-demand", interfaces]), "{variant}");
    }
}

/// The daemon's own parser takes the command line, and the settings its own reader.
#[test]
fn the_daemon_understands_its_arguments_and_settings() {
    for (variant, objects) in variants() {
        let args = container(&objects, "warrend")["args"].as_array().unwrap().clone();
        let mut line = vec!["warrend".to_owned(), "--node=n1".to_owned()];
        line.extend(args.iter().map(|arg| arg.as_str().unwrap().replace("$(HOST_IP)", "192.0.2.1")));
        let parsed = warrend::args::Args::try_parse_from(&line);
        let run = parsed.unwrap_or_else(|error| panic!("{variant}: {error}")).run.unwrap();
        // The kubelet makes the mounted directory with mode 0755, which the key store refuses.
        assert!(run.state_dir.starts_with("/var/lib/warren/"), "{variant}: {}", run.state_dir.display());
        assert!(run.http.ip().is_loopback(), "{variant}: {}", run.http);
        assert!(run.external_tunnel, "{variant}");

        let folder = tempfile::tempdir().unwrap();
        let settings = object(&objects, "ConfigMap", "warren-settings")["data"].as_object().unwrap();
        for (name, text) in settings {
            std::fs::write(folder.path().join(name), text.as_str().unwrap()).unwrap();
        }
        warrend::settings::Source::open(warren_core::Settings::default(), Some(folder.path().into()))
            .read()
            .unwrap_or_else(|error| panic!("{variant}: {error:#}"));
        assert_eq!(mount(&objects, "warrend", run.settings.unwrap().to_str().unwrap()), "settings");
    }
}

/// The tunnel's program takes its arguments and those of its probe: asked for its version after them, it says it.
#[test]
fn the_tunnel_understands_its_arguments() {
    let objects = objects(&build("base"));
    let tunnel = container(&objects, "warren-tunnel");
    let probe = tunnel["livenessProbe"]["exec"]["command"].as_array().unwrap();
    for args in [tunnel["args"].as_array().unwrap(), &probe[1..].to_vec()] {
        let args = args.iter().map(|arg| arg.as_str().unwrap());
        let program = binary("warren-tunnel").unwrap();
        let version = run(std::process::Command::new(program).args(args).arg("--version"));
        let wanted = concat!("warren-tunnel ", env!("CARGO_PKG_VERSION"), ", AEAD by ");
        assert!(version.starts_with(wanted), "{version}");
    }
}

/// The volume that a container has at a path.
fn mount<'a>(objects: &'a [Value], name: &str, path: &str) -> &'a str {
    let mounts = container(objects, name)["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["mountPath"] == path);
    mount.unwrap_or_else(|| panic!("{name} has nothing at {path}"))["name"].as_str().unwrap()
}

/// The key and the token are warrend's; both share the tunnel's socket; the host lends two paths, no more.
#[test]
fn each_container_sees_what_it_needs() {
    for (variant, objects) in variants() {
        let mounts = |name: &str| {
            let mounts = container(&objects, name)["volumeMounts"].as_array().unwrap().clone();
            let mut names: Vec<_> =
                mounts.iter().map(|mount| mount["name"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(mounts("warrend"), ["settings", "state", "token", "tunnel-sockets"], "{variant}");
        assert_eq!(mounts("warren-tunnel"), ["tun", "tunnel-sockets"], "{variant}");
        for name in ["warrend", "warren-tunnel"] {
            assert_eq!(mount(&objects, name, "/var/run/wireguard"), "tunnel-sockets", "{variant}");
        }
        assert_eq!(
            mount(&objects, "warrend", "/var/run/secrets/kubernetes.io/serviceaccount"),
            "token",
            "{variant}"
        );

        let volumes = pod(&objects)["volumes"].as_array().unwrap();
        let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name).unwrap();
        let host: Vec<_> = volumes.iter().filter_map(|volume| volume.get("hostPath")).collect();
        let tun = json!({ "path": "/dev/net/tun", "type": "CharDevice" });
        let state = json!({ "path": names::STATE_DIR, "type": "DirectoryOrCreate" });
        assert_eq!(host, [&state, &tun], "{variant}");
        assert_eq!(volume("settings")["configMap"]["name"], "warren-settings", "{variant}");
        let token = &volume("token")["projected"];
        assert_eq!(token["defaultMode"], 0o400, "{variant}");
        // Default audience and bound to the pod: what the admission policy asks for, and what expires.
        assert_eq!(
            token["sources"][0]["serviceAccountToken"],
            json!({ "path": "token", "expirationSeconds": 3607 })
        );
    }
}

/// All that is listened on beyond loopback is declared: the tunnel, and metrics where they are asked for.
#[test]
fn ports_are_declared() {
    for (variant, objects) in variants() {
        let ports = |name: &str| container(&objects, name)["ports"].clone();
        let wireguard =
            json!([{ "name": "wireguard", "containerPort": names::LISTEN_PORT, "protocol": "UDP" }]);
        assert_eq!(ports("warren-tunnel"), wireguard, "{variant}");
        let args = container(&objects, "warrend")["args"].to_string();
        let metrics = json!([{ "name": "metrics", "containerPort": 9587, "protocol": "TCP" }]);
        let wanted = if args.contains("--metrics=$(HOST_IP):9587") { metrics } else { Value::Null };
        assert_eq!(ports("warrend"), wanted, "{variant}");
        assert_eq!(args.contains("--metrics"), wanted != Value::Null, "{variant}");
    }
}

/// Selectors select, and one line of an overlay moves both images.
#[test]
fn the_parts_fit_together() {
    for (variant, objects) in variants() {
        let daemonset = object(&objects, "DaemonSet", "warren");
        let labels = &daemonset["spec"]["template"]["metadata"]["labels"];
        let mut selectors = vec![
            &daemonset["spec"]["selector"]["matchLabels"],
            &object(&objects, "PodDisruptionBudget", "warren")["spec"]["selector"]["matchLabels"],
        ];
        selectors.extend(
            objects
                .iter()
                .filter(|object| object["kind"] == "Service")
                .map(|service| &service["spec"]["selector"]),
        );
        for selector in selectors {
            let selector = selector.as_object().unwrap();
            assert!(
                !selector.is_empty() && selector.iter().all(|(key, value)| &labels[key] == value),
                "{variant}"
            );
        }
        let images: Vec<_> = pod(&objects)["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| &container["image"])
            .collect();
        assert!(images.iter().all(|image| *image == images[0]), "{variant}: {images:?}");
    }
    let base = objects(&build("base"));
    let image = container(&base, "warrend")["image"].as_str().unwrap().to_owned();
    assert_eq!(image, concat!("warren:", env!("CARGO_PKG_VERSION")), "the image is of this version");
}

/// Whatever else is started in Warren's namespace has no network.
#[test]
fn the_namespace_is_closed() {
    let objects = objects(&build("base"));
    let wanted = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
    assert_eq!(object(&objects, "NetworkPolicy", "deny-all")["spec"], wanted);
    let labels = &object(&objects, "Namespace", "warren-system")["metadata"]["labels"];
    for mode in ["enforce", "audit", "warn"] {
        assert_eq!(labels[format!("pod-security.kubernetes.io/{mode}")], "privileged", "{mode}");
    }
    for object in &objects {
        let namespace = object["metadata"]["namespace"].as_str();
        let global =
            ["Namespace", "ClusterRole", "ClusterRoleBinding"].contains(&object["kind"].as_str().unwrap());
        let events = ["Role", "RoleBinding"].contains(&object["kind"].as_str().unwrap());
        let wanted = if global { None } else { Some(if events { "default" } else { "warren-system" }) };
        assert_eq!(namespace, wanted, "{} {}", object["kind"], object["metadata"]["name"]);
    }
}
