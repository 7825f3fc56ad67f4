//! Types to text.
//!
//! The text holds keys, so it is zeroised on drop, and its buffer is made large enough at the start: a
//! buffer that grows leaves copies of itself behind.

use std::fmt::Write;

use zeroize::Zeroizing;

use super::{DROPPED, DeviceState, DeviceUpdate, FALLBACK, PeerState, PeerUpdate};

/// Upper bounds of what the parts need as text, in bytes: the longest keys and values of each added up.
const DEVICE_BYTES: usize = 256;
const COUNTER_BYTES: usize = 80;
const PEER_BYTES: usize = 512;
const ALLOWED_IP_BYTES: usize = 64;

impl DeviceUpdate {
    /// The whole request, from `set=1` to the closing empty line.
    pub fn encode(&self) -> Zeroizing<String> {
        let mut out = buffer(0, self.peers.len(), self.peers.iter().map(|peer| peer.allowed_ips.len()).sum());
        line(&mut out, "set", 1);
        if let Some(key) = &self.private_key {
            key_line(&mut out, "private_key", key);
        }
        if let Some(port) = self.listen_port {
            line(&mut out, "listen_port", port);
        }
        if let Some(mark) = self.fwmark {
            line(&mut out, "fwmark", mark);
        }
        if self.replace_peers {
            line(&mut out, "replace_peers", true);
        }
        for peer in &self.peers {
            peer.encode_into(&mut out);
        }
        out.push('\n');
        out
    }
}

impl PeerUpdate {
    fn encode_into(&self, out: &mut String) {
        key_line(out, "public_key", &self.public_key);
        if self.remove {
            line(out, "remove", true);
        }
        if self.update_only {
            line(out, "update_only", true);
        }
        if let Some(key) = &self.preshared_key {
            key_line(out, "preshared_key", key);
        }
        if let Some(endpoint) = self.endpoint {
            line(out, "endpoint", endpoint);
        }
        if let Some(seconds) = self.persistent_keepalive {
            line(out, "persistent_keepalive_interval", seconds);
        }
        if let Some(lanes) = self.lanes {
            line(out, "warren_lanes", lanes);
        }
        if self.replace_allowed_ips {
            line(out, "replace_allowed_ips", true);
        }
        for change in &self.allowed_ips {
            let sign = if change.remove { "-" } else { "" };
            line(out, "allowed_ip", format_args!("{sign}{}", change.net));
        }
    }
}

impl DeviceState {
    /// The whole answer, from the first key to `errno=0` and the closing empty line.
    pub fn encode(&self) -> Zeroizing<String> {
        let nets = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut out = buffer(self.dropped.len() + self.fallbacks.len(), self.peers.len(), nets);
        if let Some(key) = &self.private_key {
            key_line(&mut out, "private_key", key);
        }
        if self.listen_port != 0 {
            line(&mut out, "listen_port", self.listen_port);
        }
        if self.fwmark != 0 {
            line(&mut out, "fwmark", self.fwmark);
        }
        for (group, counts) in [(DROPPED, &self.dropped), (FALLBACK, &self.fallbacks)] {
            for (name, count) in counts {
                line(&mut out, &format!("{group}{name}"), count);
            }
        }
        for peer in &self.peers {
            peer.encode_into(&mut out);
        }
        out.push_str("errno=0\n\n");
        out
    }
}

impl PeerState {
    fn encode_into(&self, out: &mut String) {
        key_line(out, "public_key", &self.public_key);
        if let Some(key) = &self.preshared_key {
            key_line(out, "preshared_key", key);
        }
        line(out, "protocol_version", 1);
        if let Some(endpoint) = self.endpoint {
            line(out, "endpoint", endpoint);
        }
        let handshake = self.last_handshake.unwrap_or_default();
        line(out, "last_handshake_time_sec", handshake.as_secs());
        line(out, "last_handshake_time_nsec", handshake.subsec_nanos());
        line(out, "tx_bytes", self.tx_bytes);
        line(out, "rx_bytes", self.rx_bytes);
        line(out, "persistent_keepalive_interval", self.persistent_keepalive);
        if self.lanes != 1 {
            line(out, "warren_lanes", self.lanes);
        }
        for net in &self.allowed_ips {
            line(out, "allowed_ip", net);
        }
    }
}

fn buffer(counters: usize, peers: usize, allowed_ips: usize) -> Zeroizing<String> {
    let bytes = DEVICE_BYTES + counters * COUNTER_BYTES + peers * PEER_BYTES + allowed_ips * ALLOWED_IP_BYTES;
    Zeroizing::new(String::with_capacity(bytes))
}

fn line(out: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{key}={value}");
}

fn key_line(out: &mut String, key: &str, value: &[u8; 32]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push_str(key);
    out.push('=');
    for byte in value {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
    out.push('\n');
}
