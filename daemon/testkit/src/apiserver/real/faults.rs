//! What happens to control planes: they are killed, hang, crawl, vanish from the network, and forget.

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{ApiServer, ETCD, PORT};

/// The nftables table of [`ApiServer::cut`].
const TABLE: &str = "inet cut";

/// An API server that crawls until this is dropped.
#[derive(Debug)]
pub struct Slow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An API server that nobody reaches until this is dropped.
#[derive(Debug)]
pub struct Cut<'a>(&'a ApiServer);

impl ApiServer {
    /// SIGKILLs the API server; its connections break.
    pub fn kill(&self) -> Result<()> {
        end(&self.server, "kube-apiserver")
    }

    /// Starts the API server again, on the same data, and waits until it is ready.
    pub fn restart(&self) -> Result<()> {
        self.start_server()
    }

    /// SIGKILLs etcd: the API server goes on answering, what it has in its cache and errors.
    pub fn kill_etcd(&self) -> Result<()> {
        end(&self.etcd, "etcd")
    }

    /// Starts etcd again, on the same data.
    pub fn restart_etcd(&self) -> Result<()> {
        self.start_etcd()
    }

    /// Stops the API server's clock: connections stay, and are taken, but nobody answers.
    pub fn pause(&self) -> Result<()> {
        signal(self.server_pid()?, Signal::SIGSTOP)
    }

    /// Lets the API server go on.
    pub fn resume(&self) -> Result<()> {
        signal(self.server_pid()?, Signal::SIGCONT)
    }

    /// Lets the API server run for `awake` only, then stand still for `asleep`, again and again.
    pub fn slow(&self, awake: Duration, asleep: Duration) -> Result<Slow> {
        let pid = self.server_pid()?;
        signal(pid, Signal::SIGSTOP)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            // Where the server has ended, these fail; whoever asks it something next will notice.
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(asleep);
                let _ = signal(pid, Signal::SIGCONT);
                std::thread::sleep(awake);
                let _ = signal(pid, Signal::SIGSTOP);
            }
            let _ = signal(pid, Signal::SIGCONT);
        });
        Ok(Slow { stop, thread: Some(thread) })
    }

    /// Makes the API server vanish from the network without a word: no packet to or from it passes, so
    /// connections neither work nor break. [`Client`](super::Client) still reaches it.
    pub fn cut(&self) -> Result<Cut<'_>> {
        self.machine.nft(&format!(
            "table {TABLE} {{\n\
             chain in {{ type filter hook input priority 0; iifname eth0 tcp dport {PORT} drop; }}\n\
             chain out {{ type filter hook output priority 0; oifname eth0 tcp sport {PORT} drop; }}\n}}\n"
        ))?;
        Ok(Cut(self))
    }

    /// Has etcd forget all history up to now, and returns its revision. The API server's own cache still hides
    /// this from watchers: only after a restart of it they are told 410 Gone, unless their resource version is
    /// younger than this.
    pub fn compact(&self) -> Result<u64> {
        let revision = self.etcd_revision()?;
        self.etcd_request("compaction", &json!({"revision": revision.to_string(), "physical": true}))?;
        Ok(revision)
    }

    pub(super) fn etcd_revision(&self) -> Result<u64> {
        let answer = self.etcd_request("range", &json!({"key": "AA==", "count_only": true}))?;
        let revision = answer["header"]["revision"].as_str().context("an answer of etcd without revision")?;
        revision.parse().with_context(|| format!("etcd's revision {revision:?}"))
    }

    /// etcd's JSON gateway (`/v3/kv/…`).
    fn etcd_request(&self, method: &str, body: &Value) -> Result<Value> {
        let send = || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(Duration::from_secs(5)))
                .http_status_as_error(false)
                .build()
                .into();
            let mut response = agent.post(format!("{ETCD}/v3/kv/{method}")).send(body.to_string())?;
            let text = response.body_mut().read_to_string()?;
            ensure!(response.status() == 200, "HTTP {}: {text}", response.status());
            serde_json::from_str(&text).with_context(|| text)
        };
        self.machine.run(send)?.with_context(|| format!("asking etcd for {method}"))
    }

    fn server_pid(&self) -> Result<Pid> {
        let running = self.server.lock().expect("no thread panics with the lock");
        let child = running.as_ref().context("kube-apiserver does not run")?;
        Ok(Pid::from_raw(child.id() as i32))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        self.0.machine.nft(&format!("delete table {TABLE}\n")).expect("the table was created by `cut`");
    }
}

fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).with_context(|| format!("sending {signal} to process {pid}"))
}

fn end(slot: &Mutex<Option<Child>>, name: &str) -> Result<()> {
    let mut running = slot.lock().expect("no thread panics with the lock");
    let mut child = running.take().with_context(|| format!("{name} does not run"))?;
    child.kill().with_context(|| format!("killing {name}"))?;
    child.wait().with_context(|| format!("waiting for the end of {name}"))?;
    Ok(())
}
