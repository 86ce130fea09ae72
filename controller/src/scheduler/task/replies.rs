//! What engines send: replies, and tasks that they give back.

use std::time::Duration;

use ipbroker_protocol::{
    array::member_id,
    bundle,
    envelope::{DELIMITER, Envelope},
    frames::{Frames, Packed, slices},
    message::{
        ErrorContent, HeaderRef, LeaveReply, Leaving, ParentRef, ReplyMetadata, Waiting, types,
    },
    route,
    session::Packer,
    time,
    zmq::Message,
};

use super::{
    Outgoing, Scheduler,
    frames::part,
    groups::{Body, Group},
    watch::{self, Ended},
};
use crate::{
    scheduler::command::Departure,
    scheduler::core::{Deliver, EngineKey, GroupKey, Outcome, Report, SECOND},
    store::{self, Exception, Finish, TaskRef},
};

/// Where a reply's parts are once engine and client have changed places: client, engine, delimiter, signature, maps.
const REPLY_HEADER: usize = 4;
const REPLY_CONTENT: usize = 7;

/// Messages of engines that are not known yet: how many are kept, and how long.
const EARLY: usize = 10_000;
const EARLY_TIME: Duration = Duration::from_secs(60);

impl Scheduler {
    /// Reads what an engine sends: its identity, perhaps the client's, then one message or a bundle. How many messages
    /// that were.
    pub(super) fn engine_message(&mut self, mut frames: Vec<Message>) -> usize {
        route::strip(&mut frames);
        let junk = &mut self.junk_engines;
        let Some(envelope) = junk.good("not a message", Envelope::parse(frames)) else {
            return 1;
        };
        let identities = envelope.identities().len();
        if !matches!(identities, 1 | 2) {
            let what = format_args!("{identities} instead of 1 or 2");
            junk.refuse("identities", &what);
            return 1;
        }
        if let Err(error) = self.session.verify(&envelope) {
            junk.refuse("signature", &error);
            return 1;
        }
        let bundled = identities == 1
            && HeaderRef::read(self.session.packer, envelope.header())
                .is_ok_and(|header| header.msg_type == types::BUNDLE);
        if !bundled {
            self.verified_reply(envelope);
            return 1;
        }
        let connection = &envelope.identities()[0][..];
        // Of a reply the client comes first, as it is sent to it, then its engine: the one whose connection this is, or one
        // of the process.
        let make = |frames: &[&[u8]]| {
            let (uuid, rest) = match frames {
                [first, rest @ ..] if route::is_of(first, connection) => (*first, rest),
                _ => (connection, frames),
            };
            let client = usize::from(rest.first().is_some_and(|first| *first != DELIMITER));
            let (client, rest) = rest.split_at(client);
            Frames::from(Packed::new(
                client.iter().chain([&uuid]).chain(rest).copied(),
            ))
        };
        let messages = bundle::unpack(envelope.content(), &[], make);
        let Some(messages) = junk.good("bundle", messages) else {
            return 1;
        };
        let count = messages.len();
        for frames in messages {
            match frames.parts().map(|(identities, _)| identities) {
                Ok(2) => match self.engines.find(&frames[1]).map(|engine| engine.key) {
                    Some(engine) => self.reply(engine, frames),
                    None => self.loose_reply(frames),
                },
                Ok(1) => self.loose_reply(frames),
                Ok(_) => self
                    .junk_engines
                    .refuse("bundle", &"a message in it has too many identities"),
                Err(error) => self.junk_engines.refuse("bundle", &error),
            }
        }
        count
    }

    /// Reads a message that came in a bundle as one that came alone: its engine's identity first.
    fn loose_reply(&mut self, frames: Frames) {
        if let Ok(mut envelope) = frames.into_envelope() {
            if envelope.identities().len() == 2 {
                envelope.swap_identities(0, 1);
            }
            self.verified_reply(envelope);
        }
    }

    /// Reads a message of an engine that has the key.
    fn verified_reply(&mut self, envelope: Envelope) {
        let Some(engine) = self
            .engines
            .find(&envelope.identities()[0])
            .map(|engine| engine.key)
        else {
            return self.unknown_engine(envelope);
        };
        self.known_engine(engine, envelope);
    }

    fn known_engine(&mut self, engine: EngineKey, mut envelope: Envelope) {
        if envelope.identities().len() == 2 {
            envelope.swap_identities(0, 1);
            return self.reply(engine, envelope.into_frames().into());
        }
        let session = self.session.clone();
        let header = match HeaderRef::read(session.packer, envelope.header()) {
            Ok(header) => header,
            Err(error) => return self.junk_engines.refuse("header", &error),
        };
        match &*header.msg_type {
            types::GIVEN_BACK => self.given_back(engine, envelope),
            types::HOLDS_REPLY => self.engine_holds(engine, &envelope),
            types::WAITS_NOTICE => match session.unpack::<Waiting>(envelope.content()) {
                Ok(Waiting { waits, floor, .. }) => {
                    self.core.engine_waits(self.now(), engine, waits, floor);
                }
                Err(error) => self.junk_engines.refuse("waits_notice", &error),
            },
            // What it is given before the answer reaches it first.
            types::LEAVE_REQUEST => {
                let now = self.now();
                match self.session.unpack::<Leaving>(envelope.content()) {
                    Ok(Leaving { stops: true, .. }) => self.core.engine_stopping(now, engine),
                    _ => self.core.engine_leaving(now, engine),
                }
                self.engines.set_leaving(engine);
                let uuid = String::from_utf8_lossy(&envelope.identities()[0]).into_owned();
                let reply = LeaveReply {
                    uuids: vec![uuid.clone()],
                    ..LeaveReply::default()
                };
                self.tell_engine(&uuid, types::LEAVE_REPLY, &reply);
            }
            // What it had, it has answered or given back before this, on the same connection.
            types::LEFT_NOTICE => {
                let uuid = String::from_utf8_lossy(&envelope.identities()[0]).into_owned();
                self.engine_left(&uuid, Departure::Clean);
                let left = vec![uuid.clone()];
                let reply = LeaveReply {
                    left,
                    ..LeaveReply::default()
                };
                let mut reply = self.session.request(types::LEAVE_REPLY, &reply);
                reply.set_identities([Message::from(&*uuid)]);
                self.out.push(Outgoing::Farewell(reply.into_frames()));
            }
            other => self.junk_engines.refuse("message type", &other),
        }
    }

    /// Reads a reply: the client's identity, the engine's, then the message.
    fn reply(&mut self, engine: EngineKey, frames: Frames) {
        let packer = self.session.packer;
        let Ok((_, parts)) = frames.parts() else {
            return;
        };
        let msg_id = match ParentRef::id(packer, parts.parent_header) {
            Ok(msg_id) => msg_id,
            Err(error) => return self.junk_engines.refuse("parent header", &error),
        };
        let metadata = match ReplyMetadata::read(packer, parts.metadata) {
            Ok(metadata) => metadata,
            Err(error) => return self.junk_engines.refuse("reply metadata", &error),
        };
        let key = self.core.find(&msg_id);
        let group = key.and_then(|key| Some((key, self.groups.get(key)?.count)));
        let Some((key, count)) = group else {
            let said = &frames.slices()[REPLY_HEADER..];
            return self.late(&frames[1], &msg_id, metadata.range, said);
        };
        let (lo, hi) = match members(metadata.range, count) {
            Ok(members) => members,
            Err(why) => return self.junk_engines.refuse("range", &why),
        };
        let default = outcome(&metadata);
        let mut exceptions: Vec<(u32, Outcome)> = Vec::new();
        for (index, kind) in &metadata.failed {
            let kind = match &**kind {
                "unmet" => Outcome::Unmet,
                "aborted" => Outcome::Aborted,
                _ => Outcome::Error,
            };
            match u32::try_from(*index) {
                Ok(index) if (lo..hi).contains(&index) => exceptions.push((index, kind)),
                _ => {
                    return self.junk_engines.refuse(
                        "failed members",
                        &format_args!("{index} is not in {lo}..{hi}"),
                    );
                }
            }
        }
        exceptions.sort_unstable_by_key(|(index, _)| *index);
        exceptions.dedup_by_key(|(index, _)| *index);
        // In an array's reply `status` speaks of the message; members that did not end well are listed.
        let default = if metadata.range.is_some() && !exceptions.is_empty() {
            Outcome::Ok
        } else {
            default
        };
        let seconds = metadata
            .duration
            .or_else(|| python_duration(packer, metadata.started.as_deref(), parts.header))
            .unwrap_or(0.0)
            .clamp(0.0, 1e9);
        let range = metadata.range;
        if range.is_none()
            && default == Outcome::Unmet
            && packer
                .unpack::<ErrorContent>(parts.content)
                .is_ok_and(|said| said.ename == ErrorContent::MISSING_INPUT)
        {
            self.core.lacks_input(key);
        }
        let now = self.now();
        let deliver = self.core.replied(
            now,
            engine,
            key,
            &Report {
                range: lo..hi,
                outcome: default,
                exceptions: &exceptions,
                run: (seconds * SECOND as f64) as u64,
            },
        );
        let unmet = exceptions
            .iter()
            .find_map(|(index, outcome)| (*outcome == Outcome::Unmet).then(|| index - lo));
        if let Some(at) = unmet.or((default == Outcome::Unmet).then_some(0))
            && let Some(group) = self.groups.get_mut(key)
        {
            let said = &frames.slices()[REPLY_CONTENT..];
            let said = watch::last_words(packer, watch::value(said, group.is_array, at));
            let said = said.strip_prefix("UnmetDependency: ").unwrap_or(&said);
            group.lacked = Some(said.into());
        }
        if self.durable {
            self.engines
                .safe(engine, &msg_id, range, self.begun.elapsed());
        }
        let result = EngineResult {
            engine,
            key,
            default,
            exceptions: &exceptions,
        };
        let (engines, groups) = (&self.engines, &self.groups);
        self.watch.worked(now, engine, seconds, hi - lo, || {
            let worst = exceptions.iter().map(|(_, outcome)| *outcome);
            let worst = worst.chain([default]).max_by_key(|outcome| match outcome {
                Outcome::Ok => 0,
                Outcome::Aborted => 1,
                Outcome::Error | Outcome::Unmet => 2,
            });
            let id = match range {
                Some(_) => member_id(&msg_id, u64::from(lo)),
                None => msg_id.to_string(),
            };
            let kind = groups.get(key).map(|group| watch::kind_of(group, lo));
            let worst = worst.unwrap_or(default);
            Some((engines.get(engine)?.id, worst, id, kind.unwrap_or_default()))
        });
        match deliver {
            Deliver::All => {
                self.engines.count(engine, u64::from(hi - lo), seconds);
                self.deliver(&result, lo, hi, frames);
            }
            Deliver::Nothing => {
                let said = &frames.slices()[REPLY_HEADER..];
                self.late(&frames[1], &msg_id, range, said);
            }
            Deliver::Some(ranges) => {
                let members: u32 = ranges.iter().map(|range| range.end - range.start).sum();
                self.engines.count(
                    engine,
                    u64::from(members),
                    seconds * f64::from(members) / f64::from(hi - lo),
                );
                // `part` wants one identity before the delimiter.
                let mut bare = frames.into_messages();
                let uuid = bare.remove(1);
                let session = self.session.clone();
                for range in ranges {
                    let mut frames = part(&session, &bare, (lo, hi), range.start, range.end);
                    frames.insert(1, Message::from(&uuid[..]));
                    self.deliver(&result, range.start, range.end, frames.into());
                }
            }
        }
    }

    /// Members have ended: into the journal, and to the client.
    fn deliver(&mut self, result: &EngineResult<'_>, lo: u32, hi: u32, mut frames: Frames) {
        let Some(group) = self.groups.get_mut(result.key) else {
            return;
        };
        group.remaining = group.remaining.saturating_sub(hi - lo);
        let now = self.latest.get();
        let ended = Ended::of(lo, hi, result.default, result.exceptions);
        self.watch.ended(now, group.row, ended);
        if ended.failed > 0 {
            let failed = (lo..hi).filter(|index| {
                let own = result.exceptions.binary_search_by_key(index, |(at, _)| *at);
                let outcome = own.map_or(result.default, |at| result.exceptions[at].1);
                matches!(outcome, Outcome::Error | Outcome::Unmet)
            });
            let said = (&frames.slices()[REPLY_CONTENT..], lo);
            let packer = self.session.packer;
            self.watch
                .look_at_failures(packer, group, failed, ended.failed, said, now);
        }
        if !group.prefer.is_empty() {
            let engine = self.engines.get(result.engine);
            let places = engine.map_or(&[][..], |engine| &engine.places);
            self.preferred.0 += u64::from(hi - lo);
            if group.prefer.iter().any(|place| places.contains(place)) {
                self.preferred.1 += u64::from(hi - lo);
            }
        }
        if self.journal.keeps() {
            let exceptions: Vec<(u64, Exception)> = result
                .exceptions
                .iter()
                .filter(|(index, _)| (lo..hi).contains(index))
                .map(|(index, outcome)| (u64::from(*index), Exception::Ended(stored(*outcome))))
                .collect();
            self.journal.finished(&Finish {
                task: TaskRef::Key(group.key),
                range: u64::from(lo)..u64::from(hi),
                outcome: stored(result.default),
                exceptions: &exceptions,
                engine: self
                    .engines
                    .get(result.engine)
                    .map_or("", |engine| &engine.uuid),
                done: group.remaining == 0,
                late: false,
                frames: &frames.slices()[REPLY_HEADER..],
            });
        }
        if group.client.is_empty() {
            return;
        }
        if frames[0] != *group.client {
            // The client came back under another identity.
            let mut loose = frames.into_messages();
            loose[0] = Message::from(&*group.client);
            frames = loose.into();
        }
        if group.ack && !self.durable {
            self.kept.keep(
                &group.client,
                &group.msg_id,
                (u64::from(lo), u64::from(hi)),
                &frames,
            );
        }
        let bundled = group.bundled;
        self.out.push(Outgoing::Client(frames, bundled));
    }

    /// A reply to something that was answered before, or of an engine that was given up, from its header on: recorded, not
    /// delivered.
    fn late(&mut self, engine: &[u8], msg_id: &str, range: Option<(u64, u64)>, said: &[&[u8]]) {
        tracing::debug!(msg_id, "a late reply is not delivered");
        if !self.journal.keeps() || msg_id.is_empty() {
            return;
        }
        let (lo, hi) = range.unwrap_or((0, 1));
        let uuid = String::from_utf8_lossy(engine);
        let metadata = said.get(2).copied().unwrap_or_default();
        let metadata = ReplyMetadata::read(self.session.packer, metadata).unwrap_or_default();
        self.journal.finished(&Finish {
            task: TaskRef::Id(msg_id),
            range: lo..hi,
            outcome: stored(outcome(&metadata)),
            exceptions: &[],
            engine: &uuid,
            done: false,
            late: true,
            frames: said,
        });
        if self.durable
            && let Some(key) = self.engines.find(engine).map(|engine| engine.key)
        {
            self.engines.safe(key, msg_id, range, self.begun.elapsed());
        }
    }

    /// An engine that was given up, or that is not registered yet, still answers.
    fn unknown_engine(&mut self, envelope: Envelope) {
        let live = ParentRef::read(self.session.packer, envelope.parent_header())
            .is_ok_and(|parent| self.core.find(&parent.msg_id).is_some());
        // An engine that comes back, or leaves at once, speaks before its first heartbeat has made it known.
        if (live || self.is_about_leaving(&envelope)) && self.early.len() < EARLY {
            self.early.push((self.begun.elapsed(), envelope));
        } else {
            self.departed_engine(&envelope);
        }
    }

    fn is_about_leaving(&self, envelope: &Envelope) -> bool {
        envelope.identities().len() == 1
            && HeaderRef::read(self.session.packer, envelope.header()).is_ok_and(|header| {
                matches!(&*header.msg_type, types::LEAVE_REQUEST | types::LEFT_NOTICE)
            })
    }

    /// An engine is known now: what it said before counts.
    pub(super) fn heed_early(&mut self, uuid: &str, engine: EngineKey) {
        let is_its = |envelope: &Envelope| envelope.identities()[0][..] == *uuid.as_bytes();
        let its: Vec<_> = (self.early)
            .extract_if(.., |(_, envelope)| is_its(envelope))
            .collect();
        for (_, envelope) in its {
            self.known_engine(engine, envelope);
        }
    }

    /// Strangers that never became known are engines that were given up.
    pub(super) fn drop_early(&mut self) {
        let now = self.begun.elapsed();
        let old = (self.early).partition_point(|(since, _)| now >= *since + EARLY_TIME);
        let old: Vec<_> = self.early.drain(..old).collect();
        for (_, envelope) in old {
            self.departed_engine(&envelope);
        }
    }

    fn departed_engine(&mut self, envelope: &Envelope) {
        let session = self.session.clone();
        match ParentRef::read(session.packer, envelope.parent_header()) {
            Ok(parent) if envelope.identities().len() == 2 => {
                let range = ReplyMetadata::read(session.packer, envelope.metadata())
                    .ok()
                    .and_then(|metadata| metadata.range);
                let said = &slices(envelope.frames())[REPLY_HEADER..];
                self.late(&envelope.identities()[0], &parent.msg_id, range, said);
            }
            // It was never known, or the hub was quicker.
            _ if self.is_about_leaving(envelope) => {}
            _ => self.junk_engines.refuse(
                "unknown engine",
                &String::from_utf8_lossy(&envelope.identities()[0]),
            ),
        }
    }

    /// An engine returns what it has not started.
    fn given_back(&mut self, engine: EngineKey, mut envelope: Envelope) {
        let session = self.session.clone();
        let (msg_id, range) = {
            let parent = ParentRef::read(session.packer, envelope.parent_header());
            let metadata = ReplyMetadata::read(session.packer, envelope.metadata());
            match (parent, metadata) {
                (Ok(parent), Ok(metadata)) => (parent.msg_id.into_owned(), metadata.range),
                (Err(error), _) | (_, Err(error)) => {
                    return self.junk_engines.refuse("given_back", &error);
                }
            }
        };
        let Some(key) = self.core.find(&msg_id) else {
            return;
        };
        let Some(group) = self.groups.get_mut(key) else {
            return;
        };
        let (lo, hi) = match members(range, group.count) {
            Ok(members) => members,
            Err(why) => return self.junk_engines.refuse("range", &why),
        };
        if matches!(group.body, Body::Gone(_)) {
            let frames = envelope.take_buffers();
            match returned(group, &frames) {
                true => group.body = Body::Whole(frames.into()),
                // Without its frames it cannot run again: that it was given back cannot be honoured.
                false => {
                    return self
                        .junk_engines
                        .refuse("given_back", &"without the task's frames");
                }
            }
        }
        let now = self.now();
        self.core.given_back(now, engine, key, lo..hi);
    }
}

/// Whether these are the frames of a group's request, from the client's identity on.
fn returned(group: &Group, frames: &[Message]) -> bool {
    frames.len() >= super::frames::at::BUFFERS
        && frames[super::frames::at::HEADER][..] == *group.header()
}

/// What an engine said of members.
struct EngineResult<'a> {
    engine: EngineKey,
    key: GroupKey,
    default: Outcome,
    exceptions: &'a [(u32, Outcome)],
}

/// The members of a task of `count` that a message is about.
fn members(range: Option<(u64, u64)>, count: u32) -> Result<(u32, u32), String> {
    let (lo, hi) = range.unwrap_or((0, 1));
    if lo >= hi || hi > u64::from(count) {
        return Err(format!("{lo}..{hi} of {count} members"));
    }
    Ok((lo as u32, hi as u32))
}

fn outcome(metadata: &ReplyMetadata<'_>) -> Outcome {
    match &*metadata.status {
        "aborted" => Outcome::Aborted,
        _ if metadata.dependencies_met == Some(false) => Outcome::Unmet,
        "error" => Outcome::Error,
        _ => Outcome::Ok,
    }
}

/// The outcome as the store has it.
pub(super) fn stored(outcome: Outcome) -> store::Outcome {
    match outcome {
        Outcome::Ok => store::Outcome::Ok,
        Outcome::Aborted => store::Outcome::Aborted,
        Outcome::Error | Outcome::Unmet => store::Outcome::Error,
    }
}

/// How long a Python engine's task took, in s: from `started` in the metadata to the date of the reply.
fn python_duration(packer: Packer, started: Option<&str>, header: &[u8]) -> Option<f64> {
    time::seconds_between(started?, &HeaderRef::date(packer, header).ok()?)
}
