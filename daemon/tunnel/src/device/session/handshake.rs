//! Handshakes of a session, in both roles.
//!
//! They do not know of each other: initiations that cross both succeed, and each end sends under the keys that it proved
//! last to share with the other.

use std::time::{Duration, Instant};

use x25519_dalek::PublicKey;

use super::Session;
use crate::device::Context;
use crate::device::batch::{Datagrams, Path};
use crate::device::config::Identity;
use crate::device::drops::Drop;
use crate::noise::handshake::{Initiator, LocalKey, PeerKey, Responder};
use crate::noise::mac::Stamper;
use crate::noise::message::{CookieReply, INITIATION, RESPONSE, Response};
use crate::noise::timestamp::Timestamp;

/// A peer's initiations are at least this far apart (kernel `noise.c`, INITIATIONS_PER_SECOND = 50).
const INITIATION_SPACING: Duration = Duration::from_millis(20);

/// What handshakes with a peer need to know of it. Made when first needed, since it costs a Diffie-Hellman: not while the
/// whole device is locked for a new configuration, so a thousand new peers do not stall anybody's packets.
pub struct Remote {
    stamper: Stamper,
    /// `None` before the first handshake of ours.
    key: Option<PeerKey>,
}

impl Remote {
    fn new(peer: &PublicKey) -> Self {
        Self { stamper: Stamper::new(peer), key: None }
    }

    /// The peer's key; `None` if it is weak, which no configuration lets it be.
    fn key(&mut self, local: &LocalKey, peer: &PublicKey) -> Option<&PeerKey> {
        if self.key.is_none() {
            self.key = PeerKey::new(local, *peer);
        }
        self.key.as_ref()
    }
}

/// Our initiations that may still be answered.
#[derive(Default)]
pub struct Initiators {
    last: Option<Initiator>,
    /// The one before, where the answer takes longer than we wait for it.
    before: Option<Initiator>,
}

impl Initiators {
    fn push(&mut self, initiator: Initiator) {
        self.before = self.last.replace(initiator);
    }

    fn find(&mut self, index: u32) -> Option<&mut Initiator> {
        self.last.iter_mut().chain(&mut self.before).find(|initiator| initiator.index() == index)
    }

    fn uses(&self, index: u32) -> bool {
        self.last.iter().chain(&self.before).any(|initiator| initiator.index() == index)
    }

    /// The one of this index has been answered. If it was not the last, that one may also be, and then counts.
    fn finished(&mut self, index: u32) {
        self.before = None;
        self.last.take_if(|initiator| initiator.index() == index);
    }
}

impl Session {
    /// Begins a handshake, or begins it again.
    pub(super) fn initiate(
        &mut self,
        context: &Context<'_>,
        identity: &Identity,
        to: Path,
        out: &mut Datagrams,
    ) {
        if !out.has_room() {
            return;
        }
        let index = self.fresh_index();
        let time = Timestamp::of(context.wall).after(self.stamped);
        let remote = self.remote.get_or_insert_with(|| Box::new(Remote::new(&self.peer)));
        let Some(key) = remote.key(&identity.local, &self.peer) else { return };
        let Ok((initiator, mut initiation)) = Initiator::new(&identity.local, key, &self.psk, index, time)
        else {
            return;
        };
        remote.stamper.stamp(&mut initiation, context.now);
        self.initiators.push(initiator);
        self.stamped = Some(time);
        self.timers.initiated(context.now);
        context.begin();
        self.emit(context, &initiation, to, out);
    }

    /// Answers an initiation of the peer. The endpoint follows only once the peer uses the keys (the next packet): after
    /// a restart of ours a replay passes for news.
    pub(in crate::device) fn receive_initiation(
        &mut self,
        context: &Context<'_>,
        responder: Responder,
        path: Path,
        out: &mut Datagrams,
    ) {
        let too_soon = |last: Instant| context.now.saturating_duration_since(last) < INITIATION_SPACING;
        if self.last_initiation.is_some_and(too_soon) || !responder.timestamp().is_news(&mut self.answered) {
            return context.drops.count(Drop::ReplayedHandshake);
        }
        let index = self.fresh_index();
        let Ok((mut response, keys)) = responder.answer(&self.psk, index) else {
            return context.drops.count(Drop::BadHandshake);
        };
        self.last_initiation = Some(context.now);
        self.account(INITIATION);
        self.keys.answered(&keys, context.now);
        let remote = self.remote.get_or_insert_with(|| Box::new(Remote::new(&self.peer)));
        remote.stamper.stamp(&mut response, context.now);
        self.timers.sent_handshake(context.now);
        self.emit(context, &response, path, out);
    }

    /// Completes a handshake of ours: keys are there, queued packets leave. Before them a keepalive, so that the peer may
    /// use the keys, too.
    pub(in crate::device) fn receive_response(
        &mut self,
        context: &Context<'_>,
        response: &Response<'_>,
        path: Path,
        out: &mut Datagrams,
    ) {
        let index = response.receiver();
        let Some(initiator) = self.initiators.find(index) else {
            return context.drops.count(Drop::UnknownIndex);
        };
        let Ok(keys) = initiator.finish(response) else { return context.drops.count(Drop::BadHandshake) };
        self.initiators.finished(index);
        self.keys.agreed(&keys, context.now);
        self.authenticated(context, path, false);
        self.account(RESPONSE);
        self.complete_handshake(context);
        self.seal(context, &[], path, out);
        self.drain(context, out);
    }

    /// Remembers a cookie for the next try of our handshake, or for our next answer.
    pub(in crate::device) fn receive_cookie(&mut self, context: &Context<'_>, cookie: &CookieReply<'_>) {
        let index = cookie.receiver();
        let known = self.initiators.uses(index) || self.keys.is_answer(index);
        let Some(remote) = self.remote.as_mut().filter(|_| known) else {
            return context.drops.count(Drop::UnknownIndex);
        };
        if remote.stamper.take(cookie, context.now).is_err() {
            context.drops.count(Drop::BadHandshake);
        }
    }

    /// The peer has used the keys that we answered with. What we asked for ourselves is no longer wanted: if it was answered
    /// at all, the answer was on its way before.
    pub(super) fn confirm(&mut self, context: &Context<'_>) {
        self.keys.confirm();
        self.forget_handshakes();
        self.complete_handshake(context);
    }

    /// Responses to what we have asked for so far are not taken any more.
    pub(super) fn forget_handshakes(&mut self) {
        self.initiators = Initiators::default();
        self.timers.end_handshake();
    }

    fn complete_handshake(&mut self, context: &Context<'_>) {
        self.timers.end_handshake();
        self.rekey = false;
        self.last_handshake = Some(context.wall);
    }

    /// An index of this session that nothing uses, and that was not used for as long as possible.
    fn fresh_index(&mut self) -> u32 {
        loop {
            self.handshakes = self.handshakes.wrapping_add(1);
            let index = self.index << 8 | u32::from(self.handshakes);
            if !self.initiators.uses(index) && !self.keys.uses(index) {
                return index;
            }
        }
    }
}
