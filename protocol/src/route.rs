//! The way to an engine that shares the connections of its process with others.
//!
//! The sockets of a process have its identity, `PROCESS`, and its engines the uuids `PROCESS_engine_0`, `PROCESS_engine_1`, …
//! (ipyparallel makes names of variables of them). Who sends to an engine puts the process's identity before the engine's
//! ([`add`]), by which the ROUTER finds the connection; who receives takes it off ([`strip`]). Everybody else sees engines
//! with an identity each, as there are, too: with any other uuid, and connections of their own.

use zmq::Message;

/// Between the process and the engine's number.
const SEPARATOR: &str = "_engine_";

/// The uuid of an engine of a process.
#[must_use]
pub fn uuid(process: &str, index: usize) -> String {
    format!("{process}{SEPARATOR}{index}")
}

/// How much of an engine's uuid is that of its process.
fn process(uuid: &[u8]) -> Option<usize> {
    let digits = uuid.iter().rev().take_while(|byte| byte.is_ascii_digit());
    let number = uuid.len() - digits.count();
    let process = uuid[..number].strip_suffix(SEPARATOR.as_bytes())?;
    (number < uuid.len()).then_some(process.len())
}

/// The identity of the connection that leads to an engine: its process's or its own.
#[must_use]
pub fn connection(uuid: &str) -> &str {
    process(uuid.as_bytes()).map_or(uuid, |length| &uuid[..length])
}

/// Whether an engine has this uuid and is one of the process with this identity.
#[must_use]
pub fn is_of(uuid: &[u8], identity: &[u8]) -> bool {
    uuid.starts_with(identity) && process(uuid) == Some(identity.len())
}

/// Which engine of its process this is.
#[must_use]
pub fn index(uuid: &[u8], process: &str) -> Option<usize> {
    let number = uuid.get(process.len() + SEPARATOR.len()..)?;
    match is_of(uuid, process.as_bytes()) {
        true => std::str::from_utf8(number).ok()?.parse().ok(),
        false => None,
    }
}

/// Puts what leads to its connection before a message that begins with an engine's uuid.
pub fn add(frames: &mut Vec<Message>) {
    let way = frames
        .first()
        .and_then(|uuid| process(uuid).map(|length| Message::from(&uuid[..length])));
    frames.splice(..0, way);
}

/// Takes off a message what led to its connection, so that it begins with an engine's uuid.
pub fn strip(frames: &mut Vec<Message>) {
    if let [process, uuid, ..] = &frames[..]
        && is_of(uuid, process)
    {
        frames.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_reached_by_their_process_or_by_themselves() {
        let frames = |words: &[&str]| words.iter().map(|word| Message::from(*word)).collect();
        for (message, sent) in [
            (
                ["p_engine_12", "client"],
                &["p", "p_engine_12", "client"][..],
            ),
            (["python_1", "client"], &["python_1", "client"]),
        ] {
            let mut one: Vec<Message> = frames(&message);
            add(&mut one);
            assert_eq!(one, frames(sent));
            strip(&mut one);
            assert_eq!(one, frames(&message));
        }
        assert_eq!((connection("p_engine_12"), connection("p")), ("p", "p"));
        assert_eq!(index(uuid("p", 12).as_bytes(), "p"), Some(12));
        for other in [
            "p",
            "p_engine_",
            "p_engine_x",
            "q_engine_1",
            "pq_engine_1",
            "p_engine_1_engine_2",
            "",
        ] {
            assert_eq!(index(other.as_bytes(), "p"), None, "{other}");
        }
        assert!(!is_of(b"pq_engine_1", b"p") && !is_of(b"p", b"p"));
    }
}
