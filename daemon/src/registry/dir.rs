//! A registry that is a directory of Node manifests, one file a node: for machines without Kubernetes, for
//! tests, and for what `kubectl get node NAME -o yaml` printed.
//!
//! Files that end in `.yaml`, `.yml` or `.json` are read, hidden ones are not. A file that did not change
//! since the last look is not read again. The own announcement is written to the own Node's file, which is
//! replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use inotify::{Inotify, WatchMask};
use tokio::sync::Notify;
use warren_api::annotations::PUBLISHED;
use warren_core::{NodeRecord, Record};

use super::manifest;

/// The longest file that is read, in bytes. A Node with its status has 5 to 30 KiB; a List of a hundred fits.
/// Reading it takes a quarter of a second, in which the probes wait.
const MAX_FILE: u64 = 4 << 20;

/// The directory, and what was read of it.
pub struct DirRegistry {
    directory: PathBuf,
    own: String,
    files: BTreeMap<PathBuf, Entry>,
}

/// One file as it was last read.
struct Entry {
    stamp: Stamp,
    /// The own Node's annotations, if it is in this file.
    annotations: Option<BTreeMap<String, String>>,
    records: Vec<Record>,
    /// The names of the Nodes that the file last held when it could be read.
    names: Vec<String>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        Self(file.dev(), file.ino(), file.ctime(), file.ctime_nsec(), file.len())
    }
}

impl DirRegistry {
    /// The registry in `directory`, seen from the node `own`.
    pub fn new(directory: PathBuf, own: String) -> Self {
        Self { directory, own, files: BTreeMap::new() }
    }

    /// All entries. An error is about the directory as a whole; what is wrong with one file is in its
    /// record.
    pub fn read(&mut self) -> anyhow::Result<Vec<Record>> {
        let directory = &self.directory;
        let failed = || format!("the registry directory {} cannot be read", directory.display());
        let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut files = BTreeMap::new();
        for path in entries.with_context(failed)?.iter().map(DirEntry::path).filter(|path| is_manifest(path))
        {
            let before = self.files.remove(&path);
            files.insert(path.clone(), read_file(&path, before, &self.own));
        }
        self.files = files;
        Ok(self.records())
    }

    /// What the last look found.
    pub fn records(&self) -> Vec<Record> {
        self.files.values().flat_map(|entry| entry.records.iter().cloned()).collect()
    }

    /// Has these annotations stand on the own Node, and no others of those that Warren publishes; says whether it
    /// wrote.
    pub fn publish(&self, annotations: &[(&str, String)]) -> anyhow::Result<bool> {
        let mine = |entry: &Entry| entry.names.contains(&self.own);
        let Some((path, entry)) = self.files.iter().find(|(_, entry)| mine(entry)) else {
            bail!("no file in {} holds the Node {:?}", self.directory.display(), self.own);
        };
        let stands = |(name, value): &(&str, String)| {
            entry.annotations.as_ref().and_then(|present| present.get(*name)) == Some(value)
        };
        let superfluous = |name: &&str| {
            let present = |entry: &BTreeMap<String, String>| entry.contains_key(*name);
            entry.annotations.as_ref().is_some_and(present)
                && !annotations.iter().any(|(wanted, _)| wanted == name)
        };
        let remove: Vec<&str> = PUBLISHED.into_iter().filter(superfluous).collect();
        if annotations.iter().all(stands) && remove.is_empty() {
            return Ok(false);
        }
        let name = path.display();
        let (text, stamp) = load(path).with_context(|| format!("{name} cannot be read"))?;
        let text = match manifest::annotate(&text, &self.own, annotations, &remove) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(false),
            Err(reason) => bail!("the announcement cannot be written: {name} {reason}"),
        };
        let failed = || format!("{name} cannot be replaced");
        let permissions = fs::metadata(path).with_context(failed)?.permissions();
        let mut file = tempfile::Builder::new()
            .prefix(".warren-")
            .permissions(permissions)
            .tempfile_in(&self.directory)
            .with_context(failed)?;
        file.write_all(text.as_bytes()).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        // Somebody else's change in the meantime is not overwritten; the next look starts from it.
        if Stamp::from(&fs::metadata(path).with_context(failed)?) != stamp {
            bail!("{name} changed while the announcement was being written");
        }
        file.persist(path).map_err(|error| error.error).with_context(failed)?;
        Ok(true)
    }
}

fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let endings: [&[u8]; 3] = [b".yaml", b".yml", b".json"];
    !name.starts_with(b".") && endings.iter().any(|ending| name.ends_with(ending))
}

fn load(path: &Path) -> io::Result<(String, Stamp)> {
    // Without waiting for the other end, in case this is a pipe.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(io::Error::other(format!("is no file of at most {MAX_FILE} bytes")));
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok((text, Stamp::from(&metadata)))
}

fn read_file(path: &Path, before: Option<Entry>, own: &str) -> Entry {
    let now = fs::metadata(path).map(|metadata| Stamp::from(&metadata));
    let before = match (before, now) {
        (Some(entry), Ok(stamp)) if entry.stamp == stamp => return entry,
        (before, _) => before,
    };
    let (stamp, nodes) = match load(path) {
        Ok((text, stamp)) => (stamp, manifest::nodes(&text)),
        // A stamp that no file has: it is read again at the next look.
        Err(error) => (Stamp(0, 0, 0, 0, 0), Err(format!("cannot be read: {error}"))),
    };
    match nodes {
        Ok(nodes) => Entry {
            stamp,
            annotations: nodes
                .iter()
                .find(|node| node.metadata.name == own)
                .map(|node| node.metadata.annotations.clone()),
            names: nodes.iter().map(|node| node.metadata.name.clone()).collect(),
            records: nodes.iter().map(|node| Record::Node(Arc::new(NodeRecord::from(node)))).collect(),
        },
        Err(reason) => unreadable(path, stamp, &reason, before, own),
    }
}

/// A file that became unreadable still stands for the nodes it held, which are no longer believed. Only of
/// the own node the last readable state is kept: a slip in the own manifest must not take the node down.
fn unreadable(path: &Path, stamp: Stamp, reason: &str, before: Option<Entry>, own: &str) -> Entry {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let (names, before) = before.map(|entry| (entry.names, entry.records)).unwrap_or_default();
    let called = if names.is_empty() {
        vec![path.file_stem().unwrap_or_default().to_string_lossy().into()]
    } else {
        names.clone()
    };
    let reason = format!("its manifest {file} {reason}");
    let mut records: Vec<Record> =
        called.into_iter().map(|name| Record::Unreadable { name, reason: reason.clone() }).collect();
    records
        .extend(before.into_iter().filter(|record| matches!(record, Record::Node(node) if node.name == own)));
    Entry { stamp, annotations: None, records, names }
}

/// Tells `changed` of every change in the directory, for as long as the program runs. A directory that is
/// not there (any more) is looked for every second.
pub async fn watch(directory: PathBuf, changed: &Notify) {
    loop {
        if let Err(error) = watch_once(&directory, changed).await {
            tracing::debug!(directory = %directory.display(), %error, "the registry directory is not watched");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn watch_once(directory: &Path, changed: &Notify) -> io::Result<()> {
    // Writers that take their time are waited for: only what is closed or moved counts.
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVE
        | WatchMask::DELETE
        | WatchMask::CREATE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let inotify = Inotify::init()?;
    inotify.watches().add(directory, mask)?;
    // What changed before the watch stood.
    changed.notify_one();
    let mut events = inotify.into_event_stream([0; 4096])?;
    while let Some(event) = events.next().await {
        let event = event?;
        changed.notify_one();
        let gone =
            inotify::EventMask::IGNORED | inotify::EventMask::MOVE_SELF | inotify::EventMask::DELETE_SELF;
        if event.mask.intersects(gone) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest_of(name: &str) -> String {
        format!("kind: Node\nmetadata:\n  name: {name}\nspec:\n  podCIDR: 10.0.0.0/24\n")
    }

    fn names(records: &[Record]) -> Vec<String> {
        let name = |record: &Record| match record {
            Record::Node(node) => node.name.clone(),
            Record::Unreadable { name, .. } => format!("!{name}"),
        };
        records.iter().map(name).collect()
    }

    #[test]
    fn files_come_change_break_and_go() {
        let home = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
        let mut registry = DirRegistry::new(home.path().into(), "own".into());
        write("a.yaml", &manifest_of("own"));
        write("b.yml", &manifest_of("b"));
        write(".hidden.yaml", &manifest_of("hidden"));
        write("notes.txt", "nothing");
        assert_eq!(names(&registry.read().unwrap()), ["own", "b"]);
        write("b.yml", "kind: [");
        write("c.yaml", "kind: [");
        assert_eq!(names(&registry.read().unwrap()), ["own", "!b", "!c"]);
        write("a.yaml", "");
        assert_eq!(names(&registry.read().unwrap()), ["!own", "own", "!b", "!c"], "the own node is kept");
        fs::remove_file(home.path().join("b.yml")).unwrap();
        write("c.yaml", &manifest_of("c"));
        assert_eq!(names(&registry.read().unwrap()), ["!own", "own", "c"]);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&home.path().join("pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(home.path().join("directory.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", home.path().join("link.yaml")).unwrap();
        let mut registry = DirRegistry::new(home.path().into(), "own".into());
        assert_eq!(names(&registry.read().unwrap()), ["!directory", "!link", "!pipe"]);
    }

    #[test]
    fn publishing_writes_once_and_only_the_own_file() {
        let home = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
        write("a.yaml", &manifest_of("own"));
        write("b.yaml", &manifest_of("b"));
        let mut registry = DirRegistry::new(home.path().into(), "own".into());
        registry.read().unwrap();
        let wanted = [("warren.internal/epoch", "0".to_owned())];
        assert!(registry.publish(&wanted).unwrap());
        assert!(!registry.publish(&wanted).unwrap());
        assert_eq!(fs::read_to_string(home.path().join("b.yaml")).unwrap(), manifest_of("b"));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "no temporary file is left");
        registry.read().unwrap();
        assert!(registry.publish(&[]).unwrap(), "the announcement is taken back");
        assert!(!fs::read_to_string(home.path().join("a.yaml")).unwrap().contains("warren.internal"));
        registry.read().unwrap();
        assert!(!registry.publish(&[]).unwrap());
        registry.read().unwrap();
        write("a.yaml", "garbled: [");
        registry.read().unwrap();
        assert!(registry.publish(&wanted).is_err());
        assert_eq!(fs::read_to_string(home.path().join("a.yaml")).unwrap(), "garbled: [");
    }
}
