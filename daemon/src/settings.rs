//! What an operator may change while the daemon runs: a directory of files, one a setting, as Kubernetes mounts a
//! ConfigMap. A restart would take the tunnel's container along; this does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
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
    pub fn open(flags: Settings, directory: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut source = Self { last: flags.clone(), flags, directory };
        source.read()?;
        Ok(source)
    }

    /// Reads them again. What cannot be read or understood changes nothing.
    pub fn read(&mut self) -> anyhow::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut settings = self.flags.clone();
        let failed = || format!("the settings in {} cannot be read", directory.display());
        for entry in fs::read_dir(directory).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // Where the kubelet keeps the files that the visible ones are links to.
            if name.starts_with('.') {
                continue;
            }
            let text = load(&path).with_context(failed)?;
            apply(&mut settings, &name, text.trim()).with_context(|| {
                format!("the setting {} is not understood; the last ones hold", path.display())
            })?;
        }
        self.last = settings;
        Ok(())
    }

    /// What they are.
    pub fn current(&self) -> &Settings {
        &self.last
    }
}

fn load(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("{} is longer than {MAX_FILE} bytes", path.display())));
    }
    fs::read_to_string(path)
}

fn apply(settings: &mut Settings, name: &str, text: &str) -> anyhow::Result<()> {
    match name {
        "enforcement" => settings.enforcement = args::enforcement(text).map_err(anyhow::Error::msg)?,
        "cluster-cidrs" => settings.cluster_cidrs = nets(text)?,
        "node-cidrs" => settings.node_cidrs = nets(text)?,
        "service-cidrs" => settings.service_cidrs = nets(text)?,
        "withdraw" => settings.withdraw = text.parse().context("write true or false")?,
        _ => bail!(
            "there are enforcement, cluster-cidrs, node-cidrs, service-cidrs and withdraw, but no {name:?}"
        ),
    }
    Ok(())
}

fn nets(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let parts = text.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().with_context(|| format!("{part:?} is no network such as 10.0.0.0/8")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_api::status::Enforcement;

    #[test]
    fn files_outrank_flags_and_slips_change_nothing() {
        let home = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
        let flags = Settings { cluster_cidrs: nets("10.0.0.0/8").unwrap(), ..Settings::default() };
        let mut source = Source::open(flags.clone(), Some(home.path().into())).unwrap();
        assert_eq!(source.current().cluster_cidrs, flags.cluster_cidrs);

        fs::create_dir(home.path().join("..data")).unwrap();
        write("enforcement", "permissive\n");
        write("cluster-cidrs", "10.1.0.0/16, fd00::/32,");
        write("service-cidrs", "");
        write("withdraw", "true");
        source.read().unwrap();
        let read = source.current().clone();
        assert_eq!((read.enforcement, read.withdraw), (Enforcement::Permissive, true));
        assert_eq!(read.cluster_cidrs, nets("10.1.0.0/16\nfd00::/32").unwrap());

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
        assert!(Source::open(flags, Some(home.path().join("nowhere"))).is_err());
    }
}
