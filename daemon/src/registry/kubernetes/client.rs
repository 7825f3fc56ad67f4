//! The client of the API server: kube's layers, on connections that are read in larger pieces.
//!
//! rustls reads 4 KiB at a time, which is one event of a watch. A system call for each, and a TCP acknowledgement
//! that goes through the node's own firewall, was a fifth of what hundreds of heartbeats a second cost.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use anyhow::{Context as _, ensure};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt as _;
use kube::{Client, Config};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tower::{BoxError, ServiceBuilder};

/// How much is read at once, in bytes: what 5,000 nodes' heartbeats bring in a twentieth of a second, by and large.
const PIECE: usize = 64 << 10;

/// A client of the API server. Its connections are served by the runtime that opens them. It knows no proxies, and does
/// not try again by itself: whoever asks knows what has changed meanwhile.
pub fn client(config: &Config) -> anyhow::Result<Client> {
    try_client(config).context("the client of the API server cannot be set up")
}

fn try_client(config: &Config) -> anyhow::Result<Client> {
    let proxy = config.proxy_url.is_some();
    ensure!(
        !proxy,
        "the kubeconfig names a proxy (proxy-url), or HTTPS_PROXY does; leave it out: the API server is reached directly"
    );
    let mut tcp = HttpConnector::new();
    // TLS comes on top.
    tcp.enforce_http(false);
    let tcp = ServiceBuilder::new().map_response(Buffered::new).service(tcp);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// A connection that is read in pieces of [`PIECE`].
struct Buffered(TokioIo<BufReader<TcpStream>>);

impl Buffered {
    fn new(stream: TokioIo<TcpStream>) -> Self {
        Self(TokioIo::new(BufReader::with_capacity(PIECE, stream.into_inner())))
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<BufReader<TcpStream>>> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl Connection for Buffered {
    fn connected(&self) -> Connected {
        self.0.inner().get_ref().connected()
    }
}

impl Read for Buffered {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(task, buffer)
    }
}

impl Write for Buffered {
    fn poll_write(self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(task, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Task<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(task)
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_proxy_is_refused_and_not_passed_by() {
        let mut config = Config::new("https://127.0.0.1:6443".parse().unwrap());
        assert!(client(&config).is_ok());
        config.proxy_url = Some("http://127.0.0.1:3128".parse().unwrap());
        let Err(error) = client(&config) else { panic!("a proxy is left aside") };
        assert!(format!("{error:#}").contains("names a proxy (proxy-url)"), "{error:#}");
    }
}
