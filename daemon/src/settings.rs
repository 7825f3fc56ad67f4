//! What an operator may change while the daemon runs: a directory of files, one a setting, as Kubernetes mounts a
//! ConfigMap. A restart would take the tunnel's container along; this does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use warren_core::Settings;

use crate::args;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// Where the settings come from, and what they last were.
pub struct Source {
    flags: Settings,
    directory: Option<PathBuf>,
    last: Settings,
}

impl Source {
    /// Reads the settings for the first time. `flags` hold where no file says otherwise.
    pub fn open(flags: Settings, directory: Option<PathBuf>) -> Self {
        let mut source = Self { last: flags.clone(), flags, directory };
        // With a slip in one file the others hold, and the guard stands: after a reboot nothing else would.
        source.last = source.load().0;
        source
    }

    /// Reads them again. What cannot be read or understood changes nothing.
    pub fn read(&mut self) -> anyhow::Result<()> {
        let (settings, result) = self.load();
        if result.is_ok() {
            self.last = settings;
        }
        result
    }

    /// The settings as far as they are understood, and what is not.
    fn load(&self) -> (Settings, anyhow::Result<()>) {
        let mut settings = self.flags.clone();
        let files = match self.files() {
            Ok(files) => files,
            Err(error) => return (settings, Err(error)),
        };
        let mut result = Ok(());
        for path in files {
            if let Err(error) = take(&mut settings, &path) {
                result = Err(error);
            }
        }
        (settings, result)
    }

    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let Some(directory) = &self.directory else { return Ok(Vec::new()) };
        let failed = || format!("the settings in {} cannot be read", directory.display());
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            // Where the kubelet keeps the files that the visible ones are links to.
            if !path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b".") {
                files.push(path);
            }
        }
        Ok(files)
    }

    /// What they are.
    pub fn current(&self) -> &Settings {
        &self.last
    }
}

fn take(settings: &mut Settings, path: &Path) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let failed = || format!("the setting {} is not understood", path.display());
    apply(settings, &name, read_short(path).with_context(failed)?.trim()).with_context(failed)
}

fn read_short(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("{} is longer than {MAX_FILE} bytes", path.display())));
    }
    fs::read_to_string(path)
}

fn apply(settings: &mut Settings, name: &str, text: &str) -> anyhow::Result<()> {
    match name {
        "enforcement" => settings.enforcement = args::enforcement(text).map_err(anyhow::Error::msg)?,
        "cluster-cidrs" => settings.cluster_cidrs = list(text, NETWORK)?,
        "node-cidrs" => settings.node_cidrs = list(text, NETWORK)?,
        "service-cidrs" => settings.service_cidrs = list(text, NETWORK)?,
        "api-servers" => settings.api_servers = list(text, "address such as 192.0.2.1")?,
        "encrypt-host" => settings.encrypt_host = text.parse().context("write true or false")?,
        "withdraw" => settings.withdraw = text.parse().context("write true or false")?,
        _ => bail!(
            "there are enforcement, cluster-cidrs, node-cidrs, service-cidrs, api-servers, encrypt-host and withdraw, \
             no {name:?}"
        ),
    }
    Ok(())
}

const NETWORK: &str = "network such as 10.0.0.0/8";

fn list<T: FromStr>(text: &str, what: &str) -> anyhow::Result<Vec<T>> {
    let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse().ok().with_context(|| format!("{part:?} is no {what}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::status::Enforcement;

    #[test]
    fn files_outrank_flags_and_slips_change_nothing() {
        let home = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
        let flags = Settings { cluster_cidrs: list("10.0.0.0/8", NETWORK).unwrap(), ..Settings::default() };
        let mut source = Source::open(flags.clone(), Some(home.path().into()));
        assert_eq!(source.current().cluster_cidrs, flags.cluster_cidrs);

        fs::create_dir(home.path().join("..data")).unwrap();
        write("enforcement", "permissive\n");
        write("cluster-cidrs", "10.1.0.0/16, fd00::/32,");
        write("service-cidrs", "");
        write("withdraw", "true");
        source.read().unwrap();
        let read = source.current().clone();
        assert_eq!((read.enforcement, read.withdraw), (Enforcement::Permissive, true));
        assert_eq!(read.cluster_cidrs, list("10.1.0.0/16\nfd00::/32", NETWORK).unwrap());

        for (file, text, reason) in [
            ("enforcement", "off", "strict or permissive"),
            ("node-cidrs", "192.0.2.1/40", "no network"),
            ("withdraw", "yes", "true or false"),
            ("enforcment", "strict", "no \"enforcment\""),
        ] {
            let before = fs::read_to_string(home.path().join(file)).ok();
            write(file, text);
            let error = format!("{:#}", source.read().unwrap_err());
            assert!(error.contains(reason) && error.contains(file), "{error}");
            assert_eq!(source.current().cluster_cidrs, read.cluster_cidrs);
            assert_eq!(source.current().enforcement, Enforcement::Permissive, "the last settings hold");
            match before {
                Some(text) => write(file, &text),
                None => fs::remove_file(home.path().join(file)).unwrap(),
            }
        }
        fs::remove_file(home.path().join("enforcement")).unwrap();
        source.read().unwrap();
        assert_eq!(source.current().enforcement, Enforcement::Strict);
        assert!(Source::open(flags.clone(), Some(home.path().join("nowhere"))).read().is_err());
        write("enforcement", "off");
        let mut source = Source::open(flags, Some(home.path().into()));
        assert!(
            source.current().withdraw && source.read().is_err(),
            "what is understood holds from the start"
        );
        assert_eq!(source.current().enforcement, Enforcement::Strict);
    }
}
