//! Serving tunnels only while somebody wants them: for a container that has to run whether they are needed or not.
//!
//! Where the kernel carries the tunnels, an interface of ours would have the name that the kernel's should get. So the
//! program waits for files beside the sockets, one for each interface, and serves while they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::runtime::{End, Tunnel};
use crate::uapi::{self, SOCKET_DIR, client, socket_path};

/// How long to wait before what failed is tried again. Nothing shortens it: neither other tunnels nor files that come.
const RETRY: Duration = Duration::from_millis(500);

/// How long a failure that goes on is not told again.
const SAID: Duration = Duration::from_secs(60);

/// Serves each interface whose name begins with `prefix`, with `lanes` lanes, whenever it is wanted, until SIGTERM or
/// SIGINT.
///
/// # Errors
/// When nothing can be watched at the start. Whatever fails later is tried again; what is served goes on.
pub fn serve(prefix: &str, lanes: usize) -> Result<()> {
    fs::create_dir_all(SOCKET_DIR).with_context(|| format!("creating {SOCKET_DIR}"))?;
    // Before there are threads: none may take a signal away from the descriptors, of which each tunnel has one, too.
    let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    mask.thread_block().context("blocking signals")?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("creating a signal descriptor")?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .context("watching the sockets' directory (is fs.inotify.max_user_instances too low?)")?;
    let created = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(SOCKET_DIR, created).with_context(|| format!("watching {SOCKET_DIR}"))?;
    let run =
        move |interface: &str| Tunnel::create(interface, lanes).and_then(|tunnel| tunnel.serve(|| Ok(())));
    let mut tunnels = Tunnels::new(run)?;
    tracing::info!("serving the interfaces {prefix}* that are wanted");
    loop {
        let next = tunnels.turn(wanted(prefix), Instant::now());
        let wait = next.map(|next| next.saturating_duration_since(Instant::now()));
        let mut fds =
            [signals.as_fd(), watch.as_fd(), tunnels.ended()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, wait.map_or(PollTimeout::NONE, timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for somebody to want a tunnel; trying again");
                std::thread::sleep(RETRY);
                continue;
            }
        }
        if fds[0].any().unwrap_or(true) {
            tunnels.join();
            return Ok(());
        }
        // The events say less than a look.
        while watch.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

/// At least as long.
fn timeout(wait: Duration) -> PollTimeout {
    PollTimeout::try_from(wait.as_millis() as i32 + 1).unwrap_or(PollTimeout::MAX)
}

/// Fails unless each interface of this kind that somebody wants is served, and answers within `patience`: one after the
/// other, those that hang would take longer than whoever probes has time.
///
/// # Errors
/// Names all that are not well, or says why that cannot be known.
pub fn probe(prefix: &str, patience: Duration) -> Result<()> {
    let wanted = wanted(prefix)?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let ask = |interface| move || client::get(&socket_path(interface), patience).map(drop);
        let threads: Vec<_> = wanted.iter().map(|interface| scope.spawn(ask(interface))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let faults: Vec<String> = wanted
        .iter()
        .zip(results)
        .filter_map(|(interface, result)| {
            Some(format!("nobody serves {interface} as it should: {:#}", result.err()?))
        })
        .collect();
    if faults.is_empty() { Ok(()) } else { bail!(faults.join("; ")) }
}

/// The interfaces of this kind that somebody wants.
fn wanted(prefix: &str) -> Result<BTreeSet<String>> {
    let mut wanted = uapi::wanted().with_context(|| format!("reading {SOCKET_DIR}"))?;
    wanted.retain(|interface| interface.starts_with(prefix));
    Ok(wanted)
}

/// The tunnels that are served, each by a thread of its own beside those that the tunnel has.
struct Tunnels<R> {
    /// Serves one, for as long as it lives.
    run: Arc<R>,
    threads: BTreeMap<String, JoinHandle<Result<End>>>,
    /// What failed the last time, by interface; what cannot be listed is nobody's.
    failures: BTreeMap<Option<String>, Failure>,
    /// Readable when a thread ended, whose name is in `names`.
    ended: Arc<EventFd>,
    tell: mpsc::Sender<String>,
    names: mpsc::Receiver<String>,
}

struct Failure {
    /// When it is tried again.
    retry: Instant,
    /// What was said of it last, and when.
    text: String,
    said: Instant,
}

impl<R: Fn(&str) -> Result<End> + Send + Sync + 'static> Tunnels<R> {
    fn new(run: R) -> Result<Self> {
        let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("creating an event descriptor")?;
        let (tell, names) = mpsc::channel();
        let (threads, failures) = Default::default();
        Ok(Self { run: run.into(), threads, failures, ended: ended.into(), tell, names })
    }

    /// Readable when there is a reason for a turn.
    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Lets go of what has ended, and serves what is wanted and is not served; returns when to do so again, if there is
    /// something that failed. Whoever deletes the interface of a tunnel that is wanted gets a new one at once.
    fn turn(&mut self, wanted: Result<BTreeSet<String>>, now: Instant) -> Option<Instant> {
        // An error says that it is reset already.
        let _ = self.ended.read();
        for interface in self.names.try_iter().collect::<Vec<_>>() {
            let Some(thread) = self.threads.remove(&interface) else { continue };
            match outcome(&interface, thread) {
                Ok(_) => drop(self.failures.remove(&Some(interface))),
                // The interface of the backend before is on its way out, perhaps.
                Err(error) => self.failed(Some(interface), &error, now),
            }
        }
        match wanted {
            Ok(wanted) => {
                self.failures.retain(|of, _| of.as_ref().is_some_and(|of| wanted.contains(of)));
                for interface in wanted {
                    self.start(interface, now);
                }
            }
            Err(error) => self.failed(None, &error, now),
        }
        self.failures.values().map(|failure| failure.retry).filter(|retry| *retry > now).min()
    }

    /// Serves one more, unless it is served already, or failed a moment ago.
    fn start(&mut self, interface: String, now: Instant) {
        let of = Some(interface.clone());
        let rests = self.failures.get(&of).is_some_and(|failure| now < failure.retry);
        if rests || self.threads.contains_key(&interface) {
            return;
        }
        let run = self.run.clone();
        let farewell =
            Farewell { interface: interface.clone(), tell: self.tell.clone(), ended: self.ended.clone() };
        let serve = move || {
            let farewell = farewell;
            run(&farewell.interface)
        };
        match std::thread::Builder::new().spawn(serve) {
            Ok(thread) => drop(self.threads.insert(interface, thread)),
            Err(error) => self.failed(of, &anyhow!(error).context("starting a thread"), now),
        }
    }

    /// Has something tried again later, and says so once.
    fn failed(&mut self, of: Option<String>, error: &anyhow::Error, now: Instant) {
        let text = format!("{error:#}");
        let said = self.failures.get(&of).filter(|before| before.text == text && now < before.said + SAID);
        let said = said.map(|before| before.said).unwrap_or_else(|| {
            tracing::error!("{text}; trying again");
            now
        });
        self.failures.insert(of, Failure { retry: now + RETRY, text, said });
    }

    /// Waits for the end of all, which a signal brings about.
    fn join(self) {
        for (interface, thread) in self.threads {
            if let Err(error) = outcome(&interface, thread) {
                tracing::error!("{error:#}");
            }
        }
    }
}

/// Tells that a thread has ended, however it does.
struct Farewell {
    interface: String,
    tell: mpsc::Sender<String>,
    ended: Arc<EventFd>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // Both fail only where nobody listens any more.
        let _ = self.tell.send(std::mem::take(&mut self.interface));
        let _ = self.ended.write(1);
    }
}

/// How a tunnel's thread ended.
fn outcome(interface: &str, thread: JoinHandle<Result<End>>) -> Result<End> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the tunnel {interface} panicked")))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Runs of tunnels, by their names, in the order in which they began.
    type Runs = Arc<Mutex<Vec<String>>>;

    fn tunnels(
        end: impl Fn(&str) -> Result<End> + Send + Sync + 'static,
    ) -> (Tunnels<impl Fn(&str) -> Result<End> + Send + Sync + 'static>, Runs) {
        let runs = Runs::default();
        let begun = runs.clone();
        let run = move |interface: &str| {
            begun.lock().unwrap().push(interface.to_owned());
            end(interface)
        };
        (Tunnels::new(run).unwrap(), runs)
    }

    fn wanted() -> Result<BTreeSet<String>> {
        Ok(["warren-a0", "warren-a1"].map(str::to_owned).into())
    }

    /// Waits until so many threads have ended; they are not let go yet.
    fn await_ends<R>(tunnels: &Tunnels<R>, count: usize) {
        while tunnels.threads.values().filter(|thread| thread.is_finished()).count() < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_fails_rests_whatever_happens_meanwhile() {
        let (mut tunnels, runs) = tunnels(|_| bail!("no"));
        let start = Instant::now();
        assert_eq!(tunnels.turn(wanted(), start), None);
        await_ends(&tunnels, 2);
        assert_eq!(tunnels.turn(wanted(), start), Some(start + RETRY));
        for millis in 0..500 {
            tunnels.turn(wanted(), start + Duration::from_millis(millis));
        }
        assert_eq!(runs.lock().unwrap().len(), 2);
        assert_eq!(tunnels.turn(wanted(), start + RETRY), None);
        await_ends(&tunnels, 2);
        assert_eq!(runs.lock().unwrap().len(), 4);
        // Nobody wants them any more, so nothing is waited for.
        assert_eq!(tunnels.turn(Ok(BTreeSet::new()), start + RETRY), None);
        assert!(tunnels.failures.is_empty());
    }

    #[test]
    fn what_ends_well_is_served_again_at_once() {
        let (mut tunnels, runs) = tunnels(|_| Ok(End::InterfaceDeleted));
        let now = Instant::now();
        tunnels.turn(wanted(), now);
        await_ends(&tunnels, 2);
        tunnels.turn(wanted(), now);
        await_ends(&tunnels, 2);
        assert_eq!(runs.lock().unwrap().len(), 4);
    }

    #[test]
    fn one_that_panics_is_tried_again() {
        let (mut tunnels, runs) = tunnels(|interface| match interface {
            "warren-a0" => panic!("a test's"),
            _ => Ok(End::Signal),
        });
        let now = Instant::now();
        tunnels.turn(wanted(), now);
        await_ends(&tunnels, 2);
        assert_eq!(tunnels.turn(Ok(["warren-a0".to_owned()].into()), now), Some(now + RETRY));
        assert!(tunnels.failures[&Some("warren-a0".to_owned())].text.contains("panicked"));
        tunnels.turn(Ok(["warren-a0".to_owned()].into()), now + RETRY);
        await_ends(&tunnels, 1);
        assert_eq!(runs.lock().unwrap().iter().filter(|name| *name == "warren-a0").count(), 2);
    }

    #[test]
    fn that_nothing_can_be_listed_ends_nothing() {
        let (mut tunnels, runs) = tunnels(|interface| match interface {
            "warren-a0" => bail!("no"),
            _ => Ok(End::Signal),
        });
        let now = Instant::now();
        tunnels.turn(wanted(), now);
        await_ends(&tunnels, 2);
        let later = now + RETRY / 2;
        tunnels.turn(wanted(), now);
        assert_eq!(tunnels.turn(Err(Errno::EMFILE.into()), later), Some(now + RETRY));
        // The tunnel that failed waits for the list.
        assert_eq!(tunnels.turn(Err(Errno::EMFILE.into()), now + RETRY), Some(now + 2 * RETRY));
        let before = runs.lock().unwrap().len();
        assert_eq!(tunnels.turn(wanted(), now + RETRY), None);
        await_ends(&tunnels, 2);
        assert!(runs.lock().unwrap().len() > before);
    }
}
