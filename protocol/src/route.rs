//! The way to an engine that shares the connections of its process with others.
//!
//! The sockets of a process have its identity, `PROCESS`, and its engines the uuids `PROCESS/0`, `PROCESS/1`, … Who sends to an
//! engine puts the process's identity before the engine's ([`add`]), by which the ROUTER finds the connection; who receives
//! takes it off ([`strip`]). Everybody else sees engines with an identity each, as there are, too: one without a `/` has
//! connections of its own.

use zmq::Message;

/// Between the process and the engine.
const SEPARATOR: char = '/';

/// The uuid of an engine of a process.
#[must_use]
pub fn uuid(process: &str, index: usize) -> String {
    format!("{process}{SEPARATOR}{index}")
}

/// The identity of the connection that leads to an engine: its process's or its own.
#[must_use]
pub fn connection(uuid: &str) -> &str {
    uuid.rsplit_once(SEPARATOR)
        .map_or(uuid, |(process, _)| process)
}

/// Whether an engine has this uuid and is one of this process.
#[must_use]
pub fn is_of(uuid: &[u8], process: &[u8]) -> bool {
    uuid.strip_prefix(process)
        .is_some_and(|rest| rest.first() == Some(&(SEPARATOR as u8)))
}

/// Which engine of its process this is.
#[must_use]
pub fn index(uuid: &[u8], process: &str) -> Option<usize> {
    let number = uuid.get(process.len() + 1..)?;
    match is_of(uuid, process.as_bytes()) {
        true => std::str::from_utf8(number).ok()?.parse().ok(),
        false => None,
    }
}

/// Puts what leads to its connection before a message that begins with an engine's uuid.
pub fn add(frames: &mut Vec<Message>) {
    let connection = frames.first().and_then(|uuid| {
        let at = uuid.iter().rposition(|byte| *byte == SEPARATOR as u8)?;
        Some(Message::from(&uuid[..at]))
    });
    frames.splice(..0, connection);
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
            (["p/12", "client"], &["p", "p/12", "client"][..]),
            (["python", "client"], &["python", "client"]),
        ] {
            let mut one: Vec<Message> = frames(&message);
            add(&mut one);
            assert_eq!(one, frames(sent));
            strip(&mut one);
            assert_eq!(one, frames(&message));
        }
        assert_eq!((connection("p/12"), connection("p")), ("p", "p"));
        assert_eq!(index(uuid("p", 12).as_bytes(), "p"), Some(12));
        for other in ["p", "p/", "p/x", "q/1", "pq/1", ""] {
            assert_eq!(index(other.as_bytes(), "p"), None, "{other}");
        }
        assert!(!is_of(b"pq/1", b"p") && !is_of(b"p", b"p"));
    }
}
