//! The metrics, made anew from the last report at each scrape: there is no second state to keep right.

use std::collections::BTreeMap;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use warren_api::status::{RegistryStatus, Status};

use crate::http::Posted;

/// What the metrics are, for the scraper (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a report, as text.
pub fn encode(posted: &Posted) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot {
        status: posted.report.status.clone(),
        turns: posted.turns,
        failures: posted.failures,
    }));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Snapshot {
    status: Option<Status>,
    turns: u64,
    failures: u64,
}

type Labels = Vec<(&'static str, String)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut out = Encoder(&mut encoder);
        out.counter("warren_looks", "Looks at the node's state", [(vec![], self.turns)])?;
        out.counter(
            "warren_failed_looks",
            "Looks after which something had failed",
            [(vec![], self.failures)],
        )?;
        let Some(status) = &self.status else {
            return out.gauge("warren_ready", "1 while all that should be is in place", [(vec![], 0.0)]);
        };
        let ready = f64::from(u8::from(status.ready));
        out.gauge("warren_ready", "1 while all that should be is in place", [(vec![], ready)])?;
        let backend = vec![("backend", status.backend.to_string())];
        out.gauge("warren_backend", "1 for what carries the tunnels: kernel or userspace", [(backend, 1.0)])?;
        let why = vec![("why", status.fallback.clone().unwrap_or_default())];
        let fallback = f64::from(u8::from(status.fallback.is_some()));
        out.gauge(
            "warren_backend_fallback",
            "1 where WireGuard in the kernel was to carry the tunnels and cannot, and why",
            [(why, fallback)],
        )?;
        out.gauge("warren_lanes", "Tunnels served for each peer", [(vec![], f64::from(status.lanes))])?;
        if let Some(spread) = status.spread_by_ports {
            out.gauge(
                "warren_lanes_spread_by_ports",
                "1 where flows are spread over the lanes by their ports, too; 0 where all between two pods share one",
                [(vec![], f64::from(u8::from(spread)))],
            )?;
        }
        for (name, help, nodes) in [
            ("warren_peers", "Nodes with a tunnel", status.peers.len()),
            ("warren_quarantined_nodes", "Nodes that are not obeyed", status.quarantined.len()),
            ("warren_waiting_nodes", "Nodes that have announced no key yet", status.waiting.len()),
        ] {
            out.gauge(name, help, [(vec![], nodes as f64)])?;
        }
        if let Some(registry) = &status.registry {
            out.registry(registry)?;
        }
        out.guard(status)?;
        out.tunnel(status)?;
        out.peers(status)
    }
}

struct Encoder<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Encoder<'_, '_> {
    fn registry(&mut self, registry: &RegistryStatus) -> std::fmt::Result {
        let connected = f64::from(u8::from(registry.connected));
        self.gauge("warren_registry_connected", "1 while the API server answers", [(vec![], connected)])?;
        self.gauge(
            "warren_registry_last_contact_seconds",
            "Seconds since something last came from the API server",
            [(vec![], registry.last_contact_age)],
        )?;
        self.counter(
            "warren_registry_requests",
            "Requests made of the API server",
            registry.requests.iter().map(|(verb, count)| (vec![("verb", verb.clone())], *count)),
        )?;
        self.counter(
            "warren_events_suppressed",
            "Happenings that were too many to be told as Events",
            [(vec![], registry.suppressed_events)],
        )
    }

    fn guard(&mut self, status: &Status) -> std::fmt::Result {
        let counters = status.guard;
        let row = |direction: &str, address: &str, packets| {
            (vec![("direction", direction.to_owned()), ("address", address.to_owned())], packets)
        };
        self.counter(
            "warren_guard_packets",
            "Packets in the clear that the guard dropped, or in permissive mode let pass",
            [
                row("out", "pod", counters.out_pod),
                row("out", "node", counters.out_node),
                row("in", "pod", counters.in_pod),
                row("in", "node", counters.in_node),
            ],
        )
    }

    /// Those of `warren-tunnel`; the kernel's WireGuard has none.
    fn tunnel(&mut self, status: &Status) -> std::fmt::Result {
        let rows = |counts: &BTreeMap<String, u64>| {
            let row = |(reason, count): (&String, &u64)| (vec![("reason", reason.clone())], *count);
            counts.iter().map(row).collect::<Vec<_>>()
        };
        self.counter(
            "warren_tunnel_dropped_packets",
            "Packets that warren-tunnel dropped",
            rows(&status.tunnel.dropped),
        )?;
        self.counter(
            "warren_tunnel_fallbacks",
            "What warren-tunnel did in another way than the usual, because a system or a path refused that",
            rows(&status.tunnel.fallbacks),
        )
    }

    fn peers(&mut self, status: &Status) -> std::fmt::Result {
        let label = |node: &str| vec![("peer", node.to_owned())];
        let peers = || status.peers.iter();
        self.gauge(
            "warren_peer_handshake_age_seconds",
            "Seconds since the last completed handshake",
            peers().filter_map(|peer| Some((label(&peer.node), peer.handshake_age?))),
        )?;
        self.counter(
            "warren_peer_received_bytes",
            "Bytes received from a peer",
            peers().map(|peer| (label(&peer.node), peer.rx_bytes)),
        )?;
        self.counter(
            "warren_peer_sent_bytes",
            "Bytes sent to a peer",
            peers().map(|peer| (label(&peer.node), peer.tx_bytes)),
        )
    }

    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> std::fmt::Result {
        let kind = ConstGauge::new(0.0).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counter(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> std::fmt::Result {
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
