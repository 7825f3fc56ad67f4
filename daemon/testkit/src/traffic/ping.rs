//! ping(8): how many echo requests were answered, and which were not.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::capture::CANARY;
use crate::netns::Netns;
use crate::{process, wait};

/// Identifiers that tell pings of this program from each other.
static NEXT_ID: AtomicU16 = AtomicU16::new(1);

/// Room for what several pings send at once, in bytes. By itself ping has room for one packet; where that is encrypted no
/// faster than ping sends, the kernel has no memory for the pieces of the fourth (ENOBUFS, `ip_append_data`), and
/// ping then sends it an interval later.
const ROOM: &str = "200000";

/// By how many later answers one may be overtaken. A processor that is kept busy holds up what it received, while others
/// hand on what came after.
const OVERTAKEN: u32 = 32;

/// How to ping.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// Echo requests to send.
    pub count: u32,
    /// Time between two of them; zero sends the second and all others as soon as the first was answered.
    pub interval: Duration,
    /// Bytes of payload: 8 less than the ICMP message, 28 (IPv4) or 48 (IPv6) less than the packet.
    pub size: u16,
    /// How long the last one may take to be answered, [`wait::patient`]. With a time between them, ping waits no longer
    /// than that, or twice the longest answer, if there was one.
    pub patience: Duration,
    /// Whether routers must not fragment it (IPv4), nor the sender (`-M do`).
    pub dont_fragment: bool,
}

impl Ping {
    /// So many small ones. Patience is longer than the second after which a neighbour is asked for again (RFC 4861,
    /// section 10).
    pub const fn of(count: u32) -> Self {
        let patience = Duration::from_secs(2);
        Self { count, interval: Duration::ZERO, size: 56, patience, dont_fragment: false }
    }
}

impl Default for Ping {
    fn default() -> Self {
        Self::of(5)
    }
}

/// What became of the echo requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// The numbers of those that were not, from 1.
    pub missing: Vec<u32>,
    /// Answers that came twice.
    pub duplicates: u32,
    /// The longest time between one answer and the next. (Not to be had from the missing: ping sends less
    /// often while nobody answers.)
    pub silence: Duration,
}

impl Answers {
    /// Fails unless every request was answered.
    pub fn complete(&self) -> Result<()> {
        ensure!(self.sent > 0, "ping sent nothing");
        ensure!(self.missing.is_empty(), "{self}");
        Ok(())
    }

    /// The longest run of unanswered requests.
    pub fn longest_gap(&self) -> u32 {
        let mut longest = 0;
        let mut run = 0;
        let mut last = None;
        for &number in &self.missing {
            run = if last == number.checked_sub(1) { run + 1 } else { 1 };
            longest = longest.max(run);
            last = Some(number);
        }
        longest
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} pings answered", self.received, self.sent)?;
        if let [first, ..] = self.missing[..] {
            write!(
                f,
                ", {} lost from number {first} on, at most {} in a row",
                self.missing.len(),
                self.longest_gap()
            )?;
        }
        Ok(())
    }
}

impl Ping {
    /// Pings `to` from inside `from`, and reports what became of it; loss is no error.
    pub fn run(&self, from: &Netns, to: IpAddr) -> Result<Answers> {
        let mut tally = Tally::default();
        if self.interval.is_zero() {
            // The first goes ahead and the others follow as one conversation: connection tracking drops all but one of
            // several packets that begin a conversation at once.
            let id = next_id();
            self.part(from, to, &["-e", &id, "-c", "1"], &mut tally)?;
            let rest = self.count.saturating_sub(1).to_string();
            if self.count > 1 {
                tally.before = 1;
                self.part(from, to, &["-e", &id, "-c", &rest, "-l", &rest], &mut tally)?;
            }
        } else {
            self.part(from, to, &["-c", &self.count.to_string()], &mut tally)?;
        }
        Ok(tally.answers(self.count))
    }

    /// One run of the program.
    fn part(&self, from: &Netns, to: IpAddr, options: &[&str], tally: &mut Tally) -> Result<()> {
        let mut command = self.command(from, to);
        command.args(options);
        let output = command.output().with_context(|| format!("starting {}", process::shown(&command)))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // 1 means loss. Anything else is a ping that could not even send.
        ensure!(
            matches!(output.status.code(), Some(0 | 1)) && text.contains("packets transmitted"),
            "{} in {}: {}",
            process::shown(&command),
            from.name(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        text.lines().for_each(|line| tally.read(line));
        Ok(())
    }

    fn command(&self, from: &Netns, to: IpAddr) -> Command {
        let seconds = |time: Duration| format!("{:.3}", time.as_secs_f64());
        let pattern = CANARY.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let patience = wait::patient(self.patience);
        let interval = if self.interval.is_zero() { patience } else { self.interval };
        let mut command = from.command("ping");
        command.args(["-n", "-D", "-p", &pattern, "-i", &seconds(interval), "-s", &self.size.to_string()]);
        command.args(["-W", &seconds(patience), "-S", ROOM]);
        if self.dont_fragment {
            command.args(["-M", "do"]);
        }
        command.arg(to.to_string());
        command
    }
}

fn next_id() -> String {
    NEXT_ID.fetch_add(1, Ordering::Relaxed).to_string()
}

/// Reads ping's lines.
#[derive(Debug, Default)]
struct Tally {
    answered: BTreeSet<u32>,
    duplicates: u32,
    /// Requests that were sent before number 1 of those that are read about.
    before: u32,
    /// icmp_seq has 16 bits; answers arrive nearly in order, so a jump down is a turn of the counter.
    turns: u32,
    highest: u32,
    /// When the last answer came, by the clock since the Unix epoch.
    last: Option<Duration>,
    silence: Duration,
}

impl Tally {
    fn read(&mut self, line: &str) {
        if !line.contains("bytes from") {
            return;
        }
        let Some(number) = line
            .split_once("icmp_seq=")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u32>().ok())
        else {
            return;
        };
        let number = number + self.before;
        let mut whole = self.turns * 65536 + number;
        if whole + 32768 < self.highest {
            self.turns += 1;
            whole += 65536;
        }
        self.highest = self.highest.max(whole);
        // With -D, a line begins with the time: [1700000000.123456]
        let time = line.strip_prefix('[').and_then(|rest| rest.split(']').next()?.parse().ok());
        if let Some(time) = time.map(Duration::from_secs_f64) {
            let since = self.last.replace(time).map(|last| time.saturating_sub(last));
            self.silence = self.silence.max(since.unwrap_or_default());
        }
        if line.contains("(DUP!)") || !self.answered.insert(whole) {
            self.duplicates += 1;
        }
    }

    /// Those of the first `sent` requests that were not answered.
    fn missing(&self, sent: u32) -> impl Iterator<Item = u32> {
        (1..=sent).filter(|number| !self.answered.contains(number))
    }

    /// Whether none of the first `sent` requests can still be answered.
    fn settled(&self, sent: u32) -> bool {
        self.highest >= sent + OVERTAKEN || self.missing(sent).next().is_none()
    }

    fn answers(&self, sent: u32) -> Answers {
        let missing: Vec<u32> = self.missing(sent).collect();
        Answers {
            sent,
            received: sent - missing.len() as u32,
            missing,
            duplicates: self.duplicates,
            silence: self.silence,
        }
    }
}

/// A ping that runs until it is stopped, and then tells exactly what was lost.
#[derive(Debug)]
pub struct Flood {
    child: Child,
    tally: Arc<Mutex<Tally>>,
    reader: Option<JoinHandle<()>>,
    what: String,
}

impl Flood {
    /// Starts to ping `to` from inside `from`, and returns once the first answer came.
    pub fn start(from: &Netns, to: IpAddr, interval: Duration) -> Result<Self> {
        let id = next_id();
        // It goes ahead and is not counted; see [`Ping::run`]. What encrypts in batches makes those that do not wait for
        // the first answer arrive at once.
        let ahead = Ping { count: 1, ..Ping::default() };
        let limit = Duration::from_secs(5);
        wait::until(&format!("an answer to a ping from {} to {to}", from.name()), limit, || {
            let mut tally = Tally::default();
            ahead.part(from, to, &["-e", &id, "-c", "1"], &mut tally)?;
            tally.answers(1).complete()
        })?;
        let mut flood = Self::spawn(from, to, interval, &id)?;
        flood.await_answer(limit)?;
        Ok(flood)
    }

    /// [`Flood::start`] where no answer is expected (yet).
    pub fn start_unanswered(from: &Netns, to: IpAddr, interval: Duration) -> Result<Self> {
        Self::spawn(from, to, interval, &next_id())
    }

    fn spawn(from: &Netns, to: IpAddr, interval: Duration, id: &str) -> Result<Self> {
        let what = format!("ping from {} to {to}", from.name());
        let mut child = Ping { interval, ..Ping::default() }
            .command(from, to)
            .args(["-e", id])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        let output = BufReader::new(child.stdout.take().expect("stdout was piped"));
        let tally = Arc::<Mutex<Tally>>::default();
        let writer = tally.clone();
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                writer.lock().expect("nobody panics with the tally").read(&line);
            }
        });
        Ok(Self { child, tally, reader: Some(reader), what })
    }

    /// Answers received so far.
    pub fn received(&self) -> u32 {
        self.tally.lock().expect("nobody panics with the tally").answered.len() as u32
    }

    /// The number of the newest request that was answered.
    fn highest(&self) -> u32 {
        self.tally.lock().expect("nobody panics with the tally").highest
    }

    /// Waits for one more answer.
    pub fn await_answer(&mut self, limit: Duration) -> Result<()> {
        let before = self.received();
        wait::until(&format!("an answer to the {}", self.what), limit, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("ping has ended: {status}");
            }
            ensure!(self.received() > before, "{before} answers so far");
            Ok(())
        })
    }

    /// Waits until requests are answered again, and stops. A request is lost when `OVERTAKEN` later ones were
    /// answered and it was not; so those on their way at the end are not taken for lost, and an outage that
    /// has not ended is an error.
    pub fn stop(mut self) -> Result<Answers> {
        let limit = Duration::from_secs(10);
        // Two answers: the first may have been on its way when the caller decided to stop.
        self.await_answer(limit)?;
        self.await_answer(limit)?;
        let sent = self.highest();
        wait::until(&format!("the last answers to the {}", self.what), limit, || {
            let tally = self.tally.lock().expect("nobody panics with the tally");
            ensure!(tally.settled(sent), "{}", tally.answers(sent));
            Ok(())
        })?;
        self.end()?;
        Ok(self.tally.lock().expect("nobody panics with the tally").answers(sent))
    }

    /// Stops, whatever is on its way; returns the number of answers.
    pub fn stop_now(mut self) -> Result<u32> {
        self.end()?;
        Ok(self.received())
    }

    /// The pings lost up to now, those on their way not included.
    pub fn lost(&self) -> u32 {
        self.highest() - self.received()
    }

    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)
            .with_context(|| format!("ending {}", self.what))?;
        self.child.wait()?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        Ok(())
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(numbers: &[u32]) -> Tally {
        let mut tally = Tally::default();
        for number in numbers {
            tally.read(&format!(
                "[17000.{number}] 64 bytes from 10.244.3.12: icmp_seq={number} ttl=62 time=0.6 ms"
            ));
        }
        tally
    }

    #[test]
    fn gaps_are_counted() {
        let answers = tally(&[1, 2, 5, 9, 9]).answers(10);
        assert_eq!(answers.missing, [3, 4, 6, 7, 8, 10]);
        assert_eq!((answers.received, answers.longest_gap(), answers.duplicates), (4, 3, 1));
        assert_eq!(answers.silence.as_millis(), 400, "from second 17000.5 to 17000.9");
        assert!(answers.complete().is_err());
        assert!(tally(&[1, 2, 3]).answers(3).complete().is_ok());
    }

    #[test]
    fn what_was_overtaken_may_still_be_answered() {
        assert!(tally(&[1, 2, 3]).settled(3));
        assert!(!tally(&[1, 2, 5]).settled(5), "3 and 4 may be on their way");
        assert!(tally(&[1, 2, 5, 3, 4]).settled(5));
        assert!(tally(&[1, 2, 5, 7]).settled(2), "what came after 2 does not matter");
        let numbers: Vec<u32> = (5..5 + OVERTAKEN).collect();
        assert!(!tally(&numbers).settled(5));
        let lost = tally(&[&numbers[..], &[5 + OVERTAKEN]].concat());
        assert!(lost.settled(5));
        assert_eq!(lost.answers(5).missing, [1, 2, 3, 4]);
    }

    #[test]
    fn the_sequence_number_may_turn() {
        let answers = tally(&[65534, 65535, 0, 2]);
        assert_eq!(answers.answered.into_iter().collect::<Vec<_>>(), [65534, 65535, 65536, 65538]);
    }

    #[test]
    fn errors_from_routers_are_no_answers() {
        let mut tally = Tally::default();
        tally.read("From 10.244.1.1 icmp_seq=1 Destination Host Unreachable");
        assert_eq!(tally.answers(1).received, 0);
    }
}
