//! warrend in its container, as far as a lab can have one: the command line, the environment, the files and the
//! rights that `manifests/base` and the kubelet give it, in a mount namespace of its own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{NAMESPACE, Node, Rights, shipped};
use crate::apiserver::real::ApiServer;

/// Where a container finds what tells it who it is.
const SERVICE_ACCOUNT: &str = "kubernetes.io/serviceaccount";

/// Puts a folder of the container in place of one of the machine's, three times, lets nobody write /proc/sys, as
/// container runtimes do, then becomes the program.
const ENTER: &str = "set -e; mkdir -p /run/secrets; mount --bind $0/etc /etc; mount --bind $0/lib /var/lib; \
                     mount --bind $0/secrets /run/secrets; mount --bind /proc/sys /proc/sys; \
                     mount -o remount,bind,ro /proc/sys; exec \"$@\"";

impl Node {
    /// Starts warrend as its container does: nothing is told to it but what the manifest says, and what the kubelet
    /// tells every container. Somebody else starts the tunnel ([`Node::start_tunnel`]).
    pub fn start_container(&self, api: &ApiServer) -> Result<()> {
        let container = shipped::container("warrend")?;
        let root = self.furnish_container(api)?;
        let mut running = self.warrend.lock().expect("no thread panics with the lock");
        ensure!(running.is_none(), "warrend already runs on {}", self.name);

        let mut command = self.netns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER]).arg(root);
        let warrend = Rights::Manifest.command(self, "warrend")?;
        command.arg(warrend.get_program()).args(warrend.get_args());
        let arguments = container["args"].as_array().context("warrend has no arguments")?;
        command.args(arguments.iter().filter_map(Value::as_str));
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("spec.nodeName") => &self.name,
                _ => bail!("a lab does not know the value of {variable}"),
            };
            command.env(variable["name"].as_str().context("a variable without name")?, value);
        }
        command.env("KUBERNETES_SERVICE_HOST", api.address().ip().to_string());
        command.env("KUBERNETES_SERVICE_PORT", api.address().port().to_string());
        self.log_output(&mut command)?;
        *running = Some(command.spawn().with_context(|| format!("starting warrend on {}", self.name))?);
        Ok(())
    }

    /// The file of a setting, as the ConfigMap's volume holds it.
    pub fn setting_path(&self, name: &str) -> PathBuf {
        self.container_root().join("etc/warren/settings").join(name)
    }

    fn container_root(&self) -> PathBuf {
        self.directory.join(format!("{}.container", self.name))
    }

    /// Makes the folders: `etc`, `lib` (of /var) and `secrets` (of /run). Settings and keys that are there stay.
    fn furnish_container(&self, api: &ApiServer) -> Result<PathBuf> {
        let root = self.container_root();
        let secrets = root.join("secrets").join(SERVICE_ACCOUNT);
        for folder in [&root.join("etc/warren/settings"), &root.join("lib/warren"), &secrets] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        // What the image has there.
        for file in ["protocols", "services"] {
            let _ = fs::copy(format!("/etc/{file}"), root.join("etc").join(file));
        }
        for (name, text) in shipped::settings()? {
            let path = self.setting_path(&name);
            if !path.exists() {
                fs::write(path, text)?;
            }
        }
        fs::copy(self.token_path(), secrets.join("token")).context("copying the token")?;
        fs::copy(api.ca_path(), secrets.join("ca.crt")).context("copying the certificate")?;
        fs::write(secrets.join("namespace"), NAMESPACE)?;
        Ok(root)
    }
}
