//! The server's thread: it listens, speaks TLS and HTTP/1.1, and lets kubelets' hearts beat.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::answer::answer;
use super::shared::Shared;

/// Runs until shutdown. The thread stays in its namespace, so that it can listen there again.
pub(super) async fn serve(
    shared: Arc<Shared>,
    first: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
) {
    let mut control = shared.control.subscribe();
    tokio::spawn(heartbeats(shared.clone()));
    let mut listener = Some(first);
    loop {
        let control_now = control.borrow_and_update().clone();
        if control_now.shutdown {
            return;
        }
        match (control_now.away, &listener) {
            (true, _) => listener = None,
            (false, None) => match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(error) => {
                    eprintln!("the fake API server cannot listen on {address} again: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            (false, Some(_)) => {}
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error here is one connection's that ended before it was accepted.
            accepted = accept => if let Ok((stream, _)) = accepted {
                tokio::spawn(connection(shared.clone(), stream, tls.clone()));
            },
            _ = control.changed() => {}
        }
    }
}

/// Serves one connection until it ends or is cut.
async fn connection(shared: Arc<Shared>, stream: TcpStream, tls: Option<TlsAcceptor>) {
    let mut control = shared.control.subscribe();
    let disconnects = control.borrow().disconnects;
    let cut = control.wait_for(|control| control.away || control.disconnects != disconnects);
    let serve = async {
        // Events are lines of their own and wait for no others.
        let _ = stream.set_nodelay(true);
        match tls {
            // A handshake that fails is the client's to report.
            Some(tls) => {
                if let Ok(stream) = tls.accept(stream).await {
                    http(&shared, stream).await
                }
            }
            None => http(&shared, stream).await,
        }
    };
    tokio::select! {
        () = serve => {}
        _ = cut => {}
    }
}

async fn http(shared: &Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(|request| answer(shared.clone(), request));
    // Errors are connections that the client or a fault has cut.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Writes a status for every Node in turn, evenly spread over the interval: one write, one event, as many
/// kubelets make them.
async fn heartbeats(shared: Arc<Shared>) {
    let mut control = shared.control.subscribe();
    let mut name = String::new();
    let mut due = tokio::time::Instant::now();
    loop {
        let interval = control.borrow_and_update().heartbeats;
        let nodes = shared.read(|store| store.len());
        let (Some(interval), true) = (interval, nodes > 0) else {
            if control.changed().await.is_err() {
                return;
            }
            due = tokio::time::Instant::now();
            continue;
        };
        due += interval / u32::try_from(nodes).unwrap_or(u32::MAX);
        tokio::select! {
            () = tokio::time::sleep_until(due) => {
                let next = shared.read(|store| store.after(&name).map(|node| node.text.name.clone()));
                name = next.unwrap_or_default();
                shared.heartbeat(&name);
            }
            // Another rhythm begins now.
            _ = control.changed() => due = tokio::time::Instant::now(),
        }
    }
}
