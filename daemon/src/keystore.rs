//! The node's private keys: made once, kept in files that nobody else can read, never replaced in silence.
//!
//! One file an epoch, `key-EPOCH`, holding 32 bytes in base64 and a newline, as `wg genkey` writes it and
//! `wg pubkey < key-0` reads it. A key that cannot be read or trusted is an error for the operator: making a
//! new one would cut the node off its peers, and hide that somebody touched the old one.

use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::unistd::geteuid;
use rand_core::OsRng;
use warren_api::PublicKey;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

/// A private key and its public half. The secret zeroises itself, and is in no `Debug` output.
pub struct Identity {
    secret: StaticSecret,
    public: PublicKey,
}

impl Identity {
    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The private key's bytes, for the tunnel's configuration.
    pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    fn new(secret: StaticSecret) -> Option<Self> {
        let public = x25519_dalek::PublicKey::from(&secret);
        // The zero key has a public half, too; a file of zeros is a damaged file, not a key.
        let zero = secret.as_bytes() == &[0; 32];
        PublicKey::from_bytes(public.to_bytes()).ok().filter(|_| !zero).map(|public| Self { secret, public })
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Why there is no key to work with.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The directory is missing and cannot be made, or cannot be looked at.
    #[error("the key directory {path} cannot be used")]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read the directory or a key.
    #[error(
        "{path} is open to others (mode {mode:04o}): a key that others could read is no secret. If it \
             was never exposed: chmod {wanted:04o} {path}; else move it away, and a new key is made"
    )]
    OpenToOthers {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// Somebody else owns the directory or a key.
    #[error("{path} belongs to user {owner}, not to this daemon's user {user}: chown {user} {path}")]
    Foreign {
        /// Which file or directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who runs the daemon.
        user: u32,
    },
    /// The key cannot be read or written.
    #[error("the key {path} cannot be read or written")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What stands in the file is no key.
    #[error(
        "the key {path} is damaged: it must hold 32 bytes in base64, and not all zero. Restore it from \
             a backup; or move it away, and a new key is made that all peers will learn"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// Reads the key of an epoch, or makes it if there is none.
pub fn load_or_create(directory: &Path, epoch: u64) -> Result<Identity, KeystoreError> {
    prepare_directory(directory)?;
    let path = directory.join(format!("key-{epoch}"));
    match read(&path)? {
        Some(identity) => Ok(identity),
        None => create(directory, &path),
    }
}

fn prepare_directory(path: &Path) -> Result<(), KeystoreError> {
    let failed = |source| KeystoreError::Directory { path: path.to_owned(), source };
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = fs::metadata(path).map_err(failed)?;
    trusted(path, &metadata, 0o700)
}

/// Whether only this daemon's user may look.
fn trusted(path: &Path, metadata: &Metadata, wanted: u32) -> Result<(), KeystoreError> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeystoreError::OpenToOthers { path: path.to_owned(), mode, wanted });
    }
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user {
        return Err(KeystoreError::Foreign { path: path.to_owned(), owner, user });
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<Identity>, KeystoreError> {
    let failed = |source| KeystoreError::Key { path: path.to_owned(), source };
    // No symbolic link: the file that is judged must be the file that is read.
    let mut file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    trusted(path, &file.metadata().map_err(failed)?, 0o600)?;
    let mut text = Zeroizing::new([0u8; 64]);
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]).map_err(failed)? {
            0 => break,
            more => length += more,
        }
    }
    let damaged = || KeystoreError::Damaged { path: path.to_owned() };
    let mut bytes = Zeroizing::new([0u8; 33]);
    match STANDARD.decode_slice(text[..length].trim_ascii(), &mut bytes[..]) {
        Ok(32) => {
            let bytes: [u8; 32] = bytes[..32].try_into().map_err(|_| damaged())?;
            Identity::new(StaticSecret::from(bytes)).map(Some).ok_or_else(damaged)
        }
        _ => Err(damaged()),
    }
}

/// Makes a key with the operating system's randomness. The file appears whole or not at all, and survives a
/// power failure from the moment this returns.
fn create(directory: &Path, path: &Path) -> Result<Identity, KeystoreError> {
    let failed = |source| KeystoreError::Key { path: path.to_owned(), source };
    let identity = Identity::new(StaticSecret::random_from_rng(OsRng))
        .ok_or_else(|| failed(io::Error::other("the system's randomness gave only zeros")))?;
    let mut text = Zeroizing::new(STANDARD.encode(&identity.secret_bytes()[..]));
    text.push('\n');

    let mut file = tempfile::Builder::new()
        .prefix(".key-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| failed(error.error))?;
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private_dir() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_only_for_its_owner() {
        let home = private_dir();
        let directory = home.path().join("deep/state");
        let made = load_or_create(&directory, 0).unwrap();
        assert_eq!(load_or_create(&directory, 0).unwrap().public(), made.public());
        assert_ne!(load_or_create(&directory, 1).unwrap().public(), made.public());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("key-0")), 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_key_others_could_read_is_refused() {
        let directory = private_dir();
        load_or_create(directory.path(), 0).unwrap();
        chmod(&directory.path().join("key-0"), 0o640);
        let error = load_or_create(directory.path(), 0).unwrap_err();
        assert!(matches!(&error, KeystoreError::OpenToOthers { mode: 0o640, .. }), "{error}");
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        chmod(&directory.path().join("key-0"), 0o600);
        chmod(directory.path(), 0o750);
        assert!(matches!(load_or_create(directory.path(), 0), Err(KeystoreError::OpenToOthers { .. })));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_never_replaced() {
        let directory = private_dir();
        let path = directory.path().join("key-0");
        for damage in ["", "AAAA", "not base64 at all!", &"A".repeat(200), &("A".repeat(43) + "=")] {
            fs::write(&path, damage).unwrap();
            chmod(&path, 0o600);
            let error = load_or_create(directory.path(), 0).unwrap_err();
            assert!(matches!(error, KeystoreError::Damaged { .. }), "{damage:?}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage, "the file is left as it is");
        }
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let directory = private_dir();
        load_or_create(directory.path(), 0).unwrap();
        std::os::unix::fs::symlink("key-0", directory.path().join("key-1")).unwrap();
        assert!(matches!(load_or_create(directory.path(), 1), Err(KeystoreError::Key { .. })));
    }

    #[test]
    fn the_secret_is_in_no_debug_output() {
        let directory = private_dir();
        let identity = load_or_create(directory.path(), 0).unwrap();
        let secret = STANDARD.encode(&identity.secret_bytes()[..]);
        assert!(!format!("{identity:?}").contains(&secret[..8]));
    }
}
