//! Carrying out requests of the configuration protocol.

use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::lane::Shared;
use crate::device::ApplyError;
use crate::uapi::{DeviceUpdate, UapiError};

/// Why a request was refused; each has a number of `errno.h`.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Text(#[from] UapiError),
    #[error(transparent)]
    Device(#[from] ApplyError),
    #[error("the sockets do not follow: {0}")]
    Sockets(#[from] std::io::Error),
    #[error("get takes no further lines")]
    NotEmpty,
}

impl Refusal {
    fn errno(&self) -> i32 {
        match self {
            Self::Text(error) => error.errno(),
            Self::Device(error) => error.errno(),
            Self::Sockets(error) => error.raw_os_error().unwrap_or(Errno::EIO as i32),
            Self::NotEmpty => Errno::EINVAL as i32,
        }
    }
}

/// How requests begin. Anything else is not this protocol, and is not answered.
pub const OPERATIONS: [&str; 2] = ["get=1\n", "set=1\n"];

/// Carries out one request, from its operation to its empty line, and returns the answer.
pub fn answer(shared: &Arc<Shared>, request: &str) -> Zeroizing<String> {
    let result = match request.strip_prefix("get=1\n") {
        Some("\n") => Ok(get(shared)),
        Some(_) => Err(Refusal::NotEmpty),
        None => set(shared, request).map(|()| Zeroizing::new("errno=0\n\n".to_owned())),
    };
    result.unwrap_or_else(|refusal| {
        tracing::warn!(error = %refusal, "a configuration request was refused");
        // Negative, as wireguard-go does: wg(8) negates it once more before it shows the message.
        Zeroizing::new(format!("errno={}\n\n", -refusal.errno()))
    })
}

fn get(shared: &Shared) -> Zeroizing<String> {
    let sockets = shared.sockets();
    let mut state = shared.device.state();
    state.listen_port = sockets.port();
    state.fwmark = sockets.mark();
    let named = |lost| shared.counts(lost).map(|(name, count)| (name.to_owned(), count)).collect();
    (state.dropped, state.fallbacks) = (named(true), named(false));
    state.encode()
}

/// All or nothing: what can fail comes first, and has no effect when it fails.
fn set(shared: &Shared, request: &str) -> Result<(), Refusal> {
    let update = DeviceUpdate::parse(request)?;
    shared.device.check(&update)?;
    let now = shared.sockets();
    let port = update.listen_port.unwrap_or(now.port());
    let mark = update.fwmark.unwrap_or(now.mark());
    let moved = if (port, mark) == (now.port(), now.mark()) {
        None
    } else {
        Some(now.moved(shared.lanes(), port, mark)?)
    };
    // First, so that what the device begins as it is told now leaves by these.
    if let Some(sockets) = moved {
        shared.set_sockets(sockets);
    }
    // Only this thread configures, so what was checked still holds.
    shared.device.apply(&update, Instant::now())?;
    shared.wake();
    tracing::debug!(?update, "configured");
    Ok(())
}
