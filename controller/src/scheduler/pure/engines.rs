//! What engines send: replies for clients, and what engines of ours say to this relay.

use std::time::Instant;

use ipbroker_protocol::{
    envelope::{DELIMITER, Envelope},
    message::{HeaderRef, Leaving, ParentRef, ReceivedNotice, ReplyMetadata, types},
    socket,
    zmq::{self, Message},
};

use super::{Pure, arrays::cut, leave};
use crate::scheduler::task::frames::at;

/// Messages read at once where order between sockets matters.
const CATCH_UP: usize = 10_000;

impl Pure {
    /// Takes in all that engines have sent: what follows depends on it.
    pub(super) fn catch_up(&mut self) -> zmq::Result<()> {
        let mut frames = Vec::with_capacity(16);
        for _ in 0..CATCH_UP {
            if !socket::recv(&self.engines, &mut frames)? {
                break;
            }
            self.engine_message(&mut frames);
        }
        Ok(())
    }

    /// A reply goes to its client; the rest is for this relay.
    pub(super) fn engine_message(&mut self, frames: &mut Vec<Message>) {
        if frames.first().is_some_and(|frame| frame[..] == *DELIMITER) {
            return self.own_message(std::mem::take(frames));
        }
        if (!self.books.is_empty() || !self.gone.is_empty())
            && frames.len() > at::METADATA
            && !self.note_reply(frames)
        {
            return tracing::debug!("a reply of an engine that was given up is not delivered");
        }
        if let Err(refused) = self.outbox.pass(&self.clients, frames) {
            tracing::debug!(%refused, "a reply has no client any more");
        }
    }

    /// Takes what is answered out of the books; `false`: the client has been told otherwise.
    fn note_reply(&mut self, frames: &[Message]) -> bool {
        let session = self.session.clone();
        let Ok(parent) = ParentRef::read(session.packer, &frames[at::PARENT]) else {
            return true;
        };
        let mut engine = self.books.replied(&parent.msg_id, None);
        if engine.is_none() {
            let Ok(metadata) = ReplyMetadata::read(session.packer, &frames[at::METADATA]) else {
                return true;
            };
            if metadata
                .engine
                .is_some_and(|engine| self.gone.contains(&*engine))
            {
                return false;
            }
            engine = self.books.replied(&parent.msg_id, metadata.range);
        }
        if let Some(known) = engine.and_then(|engine| self.known.get_mut(&engine)) {
            known.completed += 1;
        }
        true
    }

    /// What an engine of ours says to this relay.
    fn own_message(&mut self, mut frames: Vec<Message>) {
        let connection = leave::connection(&mut frames[0]);
        let envelope = match Envelope::parse(frames) {
            Ok(envelope) => envelope,
            Err(error) => return self.junk.refuse("not a message", &error),
        };
        if let Err(error) = self.session.verify(&envelope) {
            return self.junk.refuse("signature", &error);
        }
        let session = self.session.clone();
        let header = match HeaderRef::read(session.packer, envelope.header()) {
            Ok(header) => header,
            Err(error) => return self.junk.refuse("header", &error),
        };
        let uuid = || {
            session
                .unpack::<Leaving>(envelope.content())
                .map(|leaving| leaving.uuid)
        };
        match &*header.msg_type {
            types::GIVEN_BACK => self.given_back(envelope),
            types::RECEIVED_NOTICE => match session.unpack(envelope.content()) {
                Ok(notice) => self.received(notice),
                Err(error) => self.junk.refuse("received_notice", &error),
            },
            types::LEAVE_REQUEST => match uuid() {
                Ok(uuid) => self.leaves.begin(uuid, Instant::now()),
                Err(error) => self.junk.refuse("leave_request", &error),
            },
            types::LEFT_NOTICE => match uuid() {
                Ok(uuid) => self.left(uuid, connection),
                Err(error) => self.junk.refuse("left_notice", &error),
            },
            // Whoever has the turn gets the next task here, whether it waits or not.
            types::WAITS_NOTICE => {}
            other => self.junk.refuse("message type", &other),
        }
    }

    /// An engine has taken tasks.
    fn received(&mut self, notice: ReceivedNotice) {
        for (client, id, msg_type) in notice.tasks {
            match unhex(&client) {
                Some(client) => self.books.received(&notice.uuid, client, id, msg_type),
                None => self
                    .junk
                    .refuse("received_notice", &format_args!("{client:?} is no client")),
            }
        }
        if self.gone.contains(&notice.uuid) {
            self.engine_left(&notice.uuid, "it was gone already");
        }
    }

    fn given_back(&mut self, mut envelope: Envelope) {
        let session = self.session.clone();
        let range = {
            let parent = ParentRef::read(session.packer, envelope.parent_header());
            let metadata = ReplyMetadata::read(session.packer, envelope.metadata());
            let (Ok(parent), Ok(metadata)) = (parent, metadata) else {
                return self.junk.refuse("given_back", &"of what?");
            };
            self.books.replied(&parent.msg_id, metadata.range);
            metadata.range
        };
        let request = envelope.take_buffers();
        if request.len() < at::BUFFERS {
            return self.junk.refuse("given_back", &"without the task's frames");
        }
        match cut(&session, request, range) {
            Some(request) => self.again.push_back(request),
            None => self
                .junk
                .refuse("given_back", &"a range that its frames do not have"),
        }
    }
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}
