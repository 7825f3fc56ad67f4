//! Probes, metrics and status over HTTP, for this node alone.
//!
//! - `/livez`: 200 while the agent's loop turns. It never depends on peers or the registry.
//! - `/readyz`: 200 while all that should be is in place, else 503 and what is wrong.
//! - `/status`: the node's state of now, as JSON ([`warren_api::status::Status`]).
//! - `/metrics`: the same and more, for Prometheus.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use warren_api::status::RegistryStatus;

use crate::hands::Seen;
use crate::metrics;
use crate::report::{self, Report};

/// A loop that has neither turned nor waited for this long is stuck: a look, with the tunnel's longest silence and
/// start, takes less than half of it.
const STUCK: Duration = Duration::from_secs(60);

/// How often a loop that waits, for however long, has to say so ([`Board::alive`]).
pub const PULSE: Duration = Duration::from_secs(15);

/// How long a visitor waits for a fresh look before getting the last one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a visitor may take to say what it wants.
const REQUEST: Duration = Duration::from_secs(1);

/// How many visitors are served at once.
const CONNECTIONS: usize = 64;

/// Somebody who waits for a fresh look.
pub type Visitor = oneshot::Sender<()>;

/// Where the agent leaves its reports, and visitors find them.
#[derive(Clone)]
pub struct Board {
    posted: Arc<Mutex<Posted>>,
    visitors: mpsc::Sender<Visitor>,
}

/// What hangs on the board.
pub struct Posted {
    /// The last report.
    pub report: Report,
    /// When the loop last turned, or said that it waits.
    pub turned: Instant,
    /// How often it has.
    pub turns: u64,
    /// How often it failed.
    pub failures: u64,
}

impl Board {
    /// An empty board, and the door at which its visitors ring.
    pub fn new() -> (Self, mpsc::Receiver<Visitor>) {
        let (visitors, door) = mpsc::channel(16);
        let report =
            Report { status: None, failed: false, failures: vec!["starting".to_owned()], acted: false };
        let posted = Posted { report, turned: Instant::now(), turns: 0, failures: 0 };
        (Self { posted: Arc::new(Mutex::new(posted)), visitors }, door)
    }

    /// Hangs out a report.
    pub fn publish(&self, report: Report) {
        self.with(|posted| {
            posted.turns += 1;
            posted.failures += u64::from(report.failed);
            posted.turned = Instant::now();
            posted.report = report;
        });
    }

    /// The loop has nothing to do, and waits.
    pub fn alive(&self) {
        self.with(|posted| posted.turned = Instant::now());
    }

    /// Brings the report up to date without judging anything anew.
    pub fn refresh(&self, seen: &Seen, registry: Option<RegistryStatus>) {
        self.with(|posted| {
            if let Some(status) = &mut posted.report.status {
                report::refresh(status, seen, registry);
            }
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut Posted) -> T) -> T {
        // A panic while holding the lock leaves a report that is as good as any.
        look(&mut self.posted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Waits for a fresh look, if there is one to be had in time.
    async fn freshen(&self) {
        let (visitor, looked) = oneshot::channel();
        if self.visitors.try_send(visitor).is_ok() {
            let _ = tokio::time::timeout(PATIENCE, looked).await;
        }
    }
}

/// Serves the board at `address` in the background.
pub async fn serve(address: SocketAddr, board: Board) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(board);
    listen(address, router, "--http").await
}

/// Serves the metrics alone, for somebody who is not on this node.
pub async fn serve_metrics(address: SocketAddr, board: Board) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(metrics)).with_state(board);
    listen(address, router, "--metrics").await
}

async fn listen(address: SocketAddr, router: Router, option: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} cannot be listened on; choose another with {option}"))?;
    tokio::spawn(accept(listener, router));
    Ok(())
}

/// Serves at most so many connections, each for a short time: any process of this node can connect, and must
/// not use up the daemon's file descriptors.
async fn accept(listener: TcpListener, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whatever ends it, the visitor knows.
            let _ = tokio::time::timeout(REQUEST + PATIENCE, connection).await;
            drop(place);
        });
    }
}

async fn livez(State(board): State<Board>) -> Response {
    let since = board.with(|posted| posted.turned.elapsed());
    if since < STUCK {
        "ok\n".into_response()
    } else {
        let problem = format!("the loop has neither turned nor waited for {} s\n", since.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
    }
}

async fn readyz(State(board): State<Board>) -> Response {
    let problems = board.with(|posted| match &posted.report.status {
        Some(status) if status.ready => None,
        Some(status) => Some(status.problems.join("\n")),
        None => Some(posted.report.failures.join("\n")),
    });
    match problems {
        None => "ok\n".into_response(),
        Some(problems) => (StatusCode::SERVICE_UNAVAILABLE, problems + "\n").into_response(),
    }
}

async fn status(State(board): State<Board>) -> Response {
    board.freshen().await;
    match board.with(|posted| posted.report.status.clone()) {
        Some(status) => Json(status).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn metrics(State(board): State<Board>) -> Response {
    board.freshen().await;
    let text = board.with(|posted| metrics::encode(posted));
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness(board: &Board) -> StatusCode {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(livez(State(board.clone()))).status()
    }

    #[test]
    fn a_stuck_loop_is_found_and_a_waiting_one_lives() {
        const { assert!(PULSE.as_secs() * 2 < STUCK.as_secs()) };
        let (board, _door) = Board::new();
        assert_eq!(liveness(&board), StatusCode::OK);
        let Some(long_ago) = Instant::now().checked_sub(STUCK) else { panic!("the machine just booted") };
        board.with(|posted| posted.turned = long_ago);
        assert_eq!(liveness(&board), StatusCode::SERVICE_UNAVAILABLE);
        board.alive();
        assert_eq!(liveness(&board), StatusCode::OK);
    }
}
