//! Asking others without waiting, and answering clients later.

use std::sync::Arc;

use ipbroker_protocol::{envelope::Envelope, message::HeaderRef, session::Session, zmq::Message};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::{Event, run::Hub};
use crate::{
    error::NamedError,
    mailbox::Answer,
    relay::{mux, reply_type},
    scheduler::command::ByEngine,
    store,
};

/// Who asked, for an answer now or later.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    identities: Vec<Vec<u8>>,
    header: Vec<u8>,
    /// Where the page waits, if it is that who asked.
    page: Option<UnboundedSender<Value>>,
    pub(super) msg_type: String,
    pub(super) session: String,
}

impl Asker {
    pub(super) fn of(request: &Envelope, header: &HeaderRef<'_>) -> Self {
        Self {
            identities: request
                .identities()
                .iter()
                .map(|identity| identity.to_vec())
                .collect(),
            header: request.header().to_vec(),
            page: None,
            msg_type: header.msg_type.to_string(),
            session: header.session.to_string(),
        }
    }

    /// The page asks.
    pub(super) fn page(msg_type: &str, answer: UnboundedSender<Value>) -> Self {
        Self {
            identities: Vec::new(),
            header: Vec::new(),
            page: Some(answer),
            msg_type: msg_type.to_owned(),
            session: String::new(),
        }
    }

    /// The identity of the socket that asked.
    pub(super) fn identity(&self) -> &[u8] {
        self.identities.first().map_or(b"page", Vec::as_slice)
    }

    fn message(
        &self,
        session: &Session,
        msg_type: &str,
        content: &impl Serialize,
        buffers: Vec<Message>,
    ) -> Envelope {
        let identities = self
            .identities
            .iter()
            .map(|identity| Message::from(&identity[..]))
            .collect();
        session.message(
            identities,
            &session.header(msg_type),
            Some(&self.header),
            &json!({}),
            content,
            buffers,
        )
    }
}

/// An error as reply content. Python's `RemoteError` wants all its keys.
fn content(error: &NamedError) -> Value {
    json!({"status": "error", "ename": error.ename, "evalue": error.evalue,
           "engine_info": {}, "traceback": [error.to_string()]})
}

impl Hub {
    /// An answer that continues on the hub's thread.
    pub(super) fn then<T: Send + 'static>(
        &self,
        rest: impl FnOnce(&mut Hub, T) + Send + 'static,
    ) -> Answer<T> {
        let post = self.post.clone();
        Box::new(move |value| post.send(Event::Continue(Box::new(move |hub| rest(hub, value)))))
    }

    /// The same for what `asker` wants of the store, which is answered with the error where there is one.
    pub(super) fn found<T: Send + 'static>(
        &self,
        asker: &Asker,
        rest: impl FnOnce(&mut Hub, Asker, T) + Send + 'static,
    ) -> store::Answer<T> {
        let to = asker.clone();
        self.then(move |hub, found| match found {
            Ok(found) => rest(hub, to, found),
            Err(error) => hub.reply_error(&to, &error),
        })
    }

    /// The same, where the answer to a program may be large: it is packed on the thread that has found it, and the hub only
    /// sends it.
    pub(super) fn found_large<T: Send + 'static, C: Serialize>(
        &self,
        asker: &Asker,
        reply: impl FnOnce(T) -> (C, Vec<Message>) + Send + 'static,
    ) -> store::Answer<T> {
        let (to, session) = (asker.clone(), Arc::clone(&self.session));
        let send = self.found(asker, |hub, _, frames| hub.query.send_or_drop(frames));
        Box::new(move |found: Result<T, _>| {
            send(found.map(|found| {
                let (content, buffers) = reply(found);
                let reply = reply_type(&to.msg_type);
                to.message(&session, &reply, &content, buffers)
                    .into_frames()
            }));
        })
    }

    /// Asks which of these direct tasks (all, if `None`) are on which engines.
    pub(super) fn direct(
        &self,
        ids: Option<Vec<String>>,
        rest: impl FnOnce(&mut Hub, ByEngine) + Send + 'static,
    ) {
        let answer = self.then(rest);
        self.links.mux.send(mux::Request::Running { ids, answer });
    }

    /// The content of a request; of a bad one, the answer says what is wrong.
    pub(super) fn read<T: DeserializeOwned>(&mut self, asker: &Asker, content: Value) -> Option<T> {
        let read = T::deserialize(content);
        read.map_err(|error| self.fail(asker, "ValueError", error.to_string()))
            .ok()
    }

    /// Answers.
    pub(super) fn reply(&mut self, asker: &Asker, content: &impl Serialize) {
        self.reply_with(asker, content, Vec::new());
    }

    /// Answers with a content that has no `status` of its own.
    pub(super) fn reply_ok(&mut self, to: &Asker, content: &impl serde::Serialize) {
        let mut content = serde_json::to_value(content).unwrap_or_default();
        content["status"] = "ok".into();
        self.reply(to, &content);
    }

    /// Answers, with buffers.
    pub(super) fn reply_with(
        &mut self,
        asker: &Asker,
        content: &impl Serialize,
        buffers: Vec<Message>,
    ) {
        if let Some(page) = &asker.page {
            // One that has gone away meanwhile does not care.
            let _ = page.send(serde_json::to_value(content).unwrap_or_default());
            return;
        }
        let message = asker.message(
            &self.session,
            &reply_type(&asker.msg_type),
            content,
            buffers,
        );
        self.query.send_or_drop(message.into_frames());
    }

    /// Answers with an error, as the request's own reply.
    pub(super) fn reply_error(&mut self, asker: &Asker, error: &NamedError) {
        tracing::debug!(request = asker.msg_type, "{error}");
        self.reply(asker, &content(error));
    }

    /// Answers with this error.
    pub(super) fn fail(&mut self, asker: &Asker, ename: &'static str, evalue: impl Into<String>) {
        self.reply_error(asker, &NamedError::new(ename, evalue));
    }

    /// Answers with `hub_error`, as the peer does for some requests.
    pub(super) fn hub_error(&mut self, asker: &Asker, error: &NamedError) {
        tracing::debug!(request = asker.msg_type, "hub_error: {error}");
        if asker.page.is_some() {
            return self.reply(asker, &content(error));
        }
        let message = asker.message(&self.session, "hub_error", &content(error), Vec::new());
        self.query.send_or_drop(message.into_frames());
    }

    /// Sends a message of its own to an engine's registration socket.
    pub(super) fn tell_engine(&mut self, uuid: &str, msg_type: &str, content: &impl Serialize) {
        let mut message = self.session.request(msg_type, content);
        message.set_identities([Message::from(uuid)]);
        self.query.send_or_drop(message.into_frames());
    }
}
