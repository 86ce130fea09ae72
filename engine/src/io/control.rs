//! What comes by the control socket: it is answered while a task runs.

use ipbroker_protocol::{
    envelope::Envelope,
    message::{AbortRequest, OutputRequest, types},
    session::Session,
    value::AnyMap,
    zmq::Message,
};
use rustix::process::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use super::Server;
use crate::{executor::refuse_aborted, process::Channel};

impl Server {
    /// Takes a control message.
    pub(super) fn control(&mut self, wire: usize, mut frames: Vec<Message>) {
        let Some(index) = self.addressee(wire, &mut frames) else {
            return self
                .junk
                .refuse("control channel", &"it is for no engine here");
        };
        if self.links[index].gone {
            return;
        }
        let Some((session, (envelope, msg_type, _))) = self.open("control channel", index, frames)
        else {
            return;
        };
        match msg_type.as_str() {
            types::ABORT_REQUEST => self.abort(index, &session, &envelope),
            types::GIVE_BACK_REQUEST => self.give_back(index, &session, &envelope),
            types::REPLY_ACK => self.acknowledge(index, &session, &envelope),
            types::SIGNAL_REQUEST => self.deliver(index, &session, &envelope),
            types::OUTPUT_REQUEST => self.tell_output(index, &session, &envelope),
            "clear_request" => {
                self.engines[index].values.clear();
                if self.engines[index].line().is_some() {
                    return self.leave_to_kernel(
                        Channel::Control,
                        index,
                        &session,
                        envelope,
                        &msg_type,
                    );
                }
                self.answer(index, &envelope, "clear_reply", &json!({"status": "ok"}));
            }
            types::SHUTDOWN_REQUEST => {
                let AnyMap(content) = session.unpack(envelope.content()).unwrap_or_default();
                let restart = content
                    .get("restart")
                    .cloned()
                    .unwrap_or(Value::Bool(false));
                let reply = json!({"status": "ok", "restart": restart});
                self.answer(index, &envelope, types::SHUTDOWN_REPLY, &reply);
                if let (Some(line), Value::Bool(true)) = (self.engines[index].line(), &restart) {
                    return line.kill();
                }
                let engine = &self.engines[index];
                let metadata = json!({"engine": engine.uuid});
                let goodbye = types::SHUTDOWN_REPLY;
                self.send(engine.published("shutdown", goodbye, &envelope, &metadata, &reply));
                // A DEALER would go on to send it tasks.
                let drain =
                    !self.links[index].pure && content.get("drain") == Some(&Value::Bool(true));
                let why = "it was told to shut down";
                if !drain {
                    tracing::info!(engine = self.engines[index].id(), "leaving: {why}");
                }
                self.leave_one(index, why, drain);
            }
            other => self.leave_to_kernel(Channel::Control, index, &session, envelope, other),
        }
    }

    /// Aborts tasks. The scheduler sends this by the shell socket and needs no answer; clients do.
    pub(super) fn abort(&mut self, index: usize, session: &Session, envelope: &Envelope) {
        // The peer allows a single id for a list of them.
        let AnyMap(mut content) = session.unpack(envelope.content()).unwrap_or_default();
        if let Some(id @ Value::String(_)) = content.get("msg_ids").cloned() {
            content.insert("msg_ids".into(), Value::Array(vec![id]));
        }
        if self.process.kernels.is_some() && !content.contains_key("kill") {
            // Who aborts what a kernel runs wants it to end.
            content.insert("kill".into(), Value::Bool(true));
        }
        let request: AbortRequest = match serde_json::from_value(content.into()) {
            Ok(request) => request,
            Err(error) => return self.junk.refuse("abort_request", &error),
        };
        let ids = request
            .msg_ids
            .as_deref()
            .filter(|ids| !ids.is_empty() && !request.all);
        let engine = self.engines[index].clone();
        let waited = engine.abort(&self.process.warden, ids, request.kill);
        // On the pure path a task is announced before it is answered.
        self.announce(index);
        let replies = waited
            .iter()
            .map(|task| refuse_aborted(&self.process, &engine, task))
            .collect::<Vec<_>>();
        self.send_all(replies);
        let done = json!({"status": "ok"});
        self.answer(index, envelope, types::ABORT_REPLY, &done);
    }

    /// Tells what the task at work has written.
    fn tell_output(&mut self, index: usize, session: &Session, envelope: &Envelope) {
        let OutputRequest { msg_id, seen } = match session.unpack(envelope.content()) {
            Ok(request) => request,
            Err(error) => return self.junk.refuse("output_request", &error),
        };
        let engine = &self.engines[index];
        let running = engine.works_on(&msg_id);
        let written = engine.written.lock();
        let reply = written.since(&msg_id, seen, running);
        drop(written);
        self.answer(index, envelope, types::OUTPUT_REPLY, &reply);
    }

    /// Sends a signal to the running task's process group.
    fn deliver(&mut self, index: usize, session: &Session, envelope: &Envelope) {
        let AnyMap(content) = session.unpack(envelope.content()).unwrap_or_default();
        let wanted = content.get("sig").cloned().unwrap_or_default();
        let line = self.engines[index].line();
        let reply = match (signal(&wanted), line) {
            // Only whether somebody is there.
            _ if wanted == 0 => json!({"status": "ok", "delivered": false}),
            // A kernel knows what to do with one while it runs nothing.
            (Some(signal), Some(line)) => json!({"status": "ok", "delivered": line.signal(signal)}),
            (Some(signal), None) => {
                let delivered = self.engines[index].signal(signal);
                json!({"status": "ok", "delivered": delivered})
            }
            (None, _) => json!({
                "status": "error", "ename": "ValueError", "traceback": [],
                "evalue": format!("{wanted} is no signal: take a number, or a name such as \"SIGINT\""),
            }),
        };
        self.answer(index, envelope, types::SIGNAL_REPLY, &reply);
    }

    fn answer(
        &mut self,
        index: usize,
        request: &Envelope,
        msg_type: &str,
        content: &impl Serialize,
    ) {
        // The controller itself wants no answer.
        if request.identities().len() >= 2 {
            let engine = &self.engines[index];
            let metadata = json!({"engine": engine.uuid});
            let channel = Channel::Control;
            let buffers = Vec::new();
            self.send(engine.answer(channel, request, msg_type, &metadata, content, buffers));
        }
    }
}

/// A signal by number or by name.
fn signal(value: &Value) -> Option<Signal> {
    match value {
        Value::Number(number) => Signal::from_named_raw(i32::try_from(number.as_i64()?).ok()?),
        Value::String(name) => Some(match name.strip_prefix("SIG").unwrap_or(name) {
            "INT" => Signal::INT,
            "TERM" => Signal::TERM,
            "KILL" => Signal::KILL,
            "HUP" => Signal::HUP,
            "QUIT" => Signal::QUIT,
            "STOP" => Signal::STOP,
            "CONT" => Signal::CONT,
            "TSTP" => Signal::TSTP,
            "USR1" => Signal::USR1,
            "USR2" => Signal::USR2,
            "ALRM" => Signal::ALARM,
            _ => return None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal(&json!("SIGINT")), Some(Signal::INT));
        assert_eq!(signal(&json!("TERM")), Some(Signal::TERM));
        assert_eq!(signal(&json!(9)), Some(Signal::KILL));
        assert_eq!(signal(&json!("SIGNONSENSE")), None);
        assert_eq!(signal(&json!(-3)), None);
        assert_eq!(signal(&json!(null)), None);
    }
}
