//! What the node's own settings were before Warren changed them: the one thing that cannot be read back.
//!
//! One file in the state directory, written along with the change. What is noted counts only for the machine's present
//! run and network namespace, and only while the setting is as Warren left it: what somebody changed since is theirs, and
//! forgotten here. Where the file is lost, the settings stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The file in the state directory.
const FILE: &str = "before.json";

/// The notes of one node.
pub struct Before {
    path: PathBuf,
    place: String,
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notes {
    /// The machine's run and the network namespace.
    place: String,
    /// The reverse-path filters of links that were made loose, by the links' numbers.
    filters: BTreeMap<u32, u8>,
    /// The families whose flows were spread by addresses alone.
    by_addresses: BTreeSet<String>,
}

impl Before {
    /// The notes in a state directory, on this node and in the current thread's network namespace.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let netns = fs::read_link("/proc/thread-self/ns/net")?;
        let place = format!("{} {}", boot.trim(), netns.display());
        Ok(Self { path: state_dir.join(FILE), place })
    }

    /// Notes what a link's reverse-path filter is, which is to become loose.
    pub fn note_filter(&self, link: u32, filter: u8) -> io::Result<()> {
        self.change(|notes| notes.filters.extend([(link, filter)])).map(drop)
    }

    /// What the filters were of the links that are loose by Warren's doing; all that are, are in `loose`.
    pub fn filters(&self, loose: &BTreeSet<u32>) -> io::Result<BTreeMap<u32, u8>> {
        Ok(self.change(|notes| notes.filters.retain(|link, _| loose.contains(link)))?.filters)
    }

    /// Notes that flows of a family, which are to be spread by ports, are spread by addresses alone.
    pub fn note_by_addresses(&self, family: &str) -> io::Result<()> {
        self.change(|notes| notes.by_addresses.extend([family.to_owned()])).map(drop)
    }

    /// The families whose flows are spread by ports by Warren's doing; all that are, are in `by_ports`.
    pub fn by_addresses(&self, by_ports: &BTreeSet<String>) -> io::Result<BTreeSet<String>> {
        Ok(self.change(|notes| notes.by_addresses.retain(|family| by_ports.contains(family)))?.by_addresses)
    }

    /// What is noted. What cannot be read is not known; what is of another place says nothing here.
    fn read(&self) -> Notes {
        let notes = fs::read(&self.path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let notes = notes.filter(|notes: &Notes| notes.place == self.place);
        notes.unwrap_or_else(|| Notes { place: self.place.clone(), ..Notes::default() })
    }

    /// Changes what is noted, and returns what is then.
    fn change(&self, change: impl FnOnce(&mut Notes)) -> io::Result<Notes> {
        let before = self.read();
        let mut notes = before.clone();
        change(&mut notes);
        if notes == before {
            return Ok(notes);
        }
        if notes.filters.is_empty() && notes.by_addresses.is_empty() {
            fs::remove_file(&self.path)?;
            return Ok(notes);
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".before-").tempfile_in(directory)?;
        file.write_all(&serde_json::to_vec(&notes)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_before() -> (tempfile::TempDir, Before) {
        let directory = tempfile::tempdir().unwrap();
        let before = Before::open(directory.path()).unwrap();
        (directory, before)
    }

    fn families(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_noted_is_known_after_a_restart() {
        let (directory, before) = mk_before();
        before.note_filter(3, 1).unwrap();
        before.note_filter(7, 0).unwrap();
        before.note_by_addresses("ipv6").unwrap();
        let before = Before::open(directory.path()).unwrap();
        assert_eq!(before.filters(&[3, 7, 9].into()).unwrap(), [(3, 1), (7, 0)].into());
        assert_eq!(before.by_addresses(&families(&["ipv4", "ipv6"])).unwrap(), families(&["ipv6"]));
    }

    #[test]
    fn what_somebody_else_changed_is_theirs() {
        let (directory, before) = mk_before();
        before.note_filter(3, 1).unwrap();
        before.note_by_addresses("ipv4").unwrap();
        // Loose no more; and loose again, by somebody else's doing.
        assert_eq!(before.filters(&[].into()).unwrap(), [].into());
        assert_eq!(before.filters(&[3].into()).unwrap(), [].into());
        assert_eq!(before.by_addresses(&families(&[])).unwrap(), families(&[]));
        assert_eq!(before.by_addresses(&families(&["ipv4"])).unwrap(), families(&[]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "a file without notes");
    }

    #[test]
    fn what_was_noted_elsewhere_says_nothing() {
        let (directory, before) = mk_before();
        before.note_filter(3, 1).unwrap();
        let text = fs::read_to_string(directory.path().join(FILE)).unwrap();
        for (here, place) in [(&before.place[..], "another run"), (&text[..], "damage")] {
            fs::write(directory.path().join(FILE), text.replace(here, place)).unwrap();
            assert_eq!(before.filters(&[3].into()).unwrap(), [].into(), "{place}");
        }
        before.note_filter(4, 0).unwrap();
        assert_eq!(before.filters(&[3, 4].into()).unwrap(), [(4, 0)].into());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told() {
        let (directory, before) = mk_before();
        drop(directory);
        assert_eq!(before.filters(&[3].into()).unwrap(), [].into(), "nothing to write");
        assert!(before.note_filter(3, 1).is_err());
    }
}
