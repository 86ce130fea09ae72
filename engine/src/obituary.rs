//! What the reaper tells the hub when the engine process is gone.

use std::collections::BTreeMap;

use ipbroker_protocol::{
    array::member_id,
    connection::EngineConnection,
    message::{EngineDied, types},
    socket,
    zmq::{self, Context},
};

use crate::reaper::Obituary;

/// How long the hub may take to accept it, in ms.
const LINGER: i32 = 5000;

/// Ids of started tasks told of one engine: the last ones. More are never outstanding.
const TOLD: usize = 50_000;

/// Sends `engine_died`. Nobody is left to hear of an error.
pub(crate) fn send(obituary: Obituary) {
    let Ok(connection) = serde_json::from_value::<EngineConnection>(obituary.connection) else {
        return;
    };
    let common = &connection.common;
    let (Ok(session), Ok(curve)) = (common.session(), common.curve()) else {
        return;
    };
    let uuids: BTreeMap<String, Vec<String>> = obituary
        .engines
        .into_iter()
        .map(|(uuid, ids)| (uuid, last(ids)))
        .collect();
    let died = EngineDied {
        uuids,
        reason: "the engine process died".into(),
    };
    let message = session.request(types::ENGINE_DIED, &died);
    let context = Context::new();
    let told = || -> zmq::Result<()> {
        let dealer = socket::open(&context, zmq::DEALER)?;
        dealer.set_linger(LINGER)?;
        if let Some(curve) = &curve {
            curve.apply(&dealer)?;
        }
        dealer.connect(&common.url(connection.registration))?;
        socket::send(&dealer, message.into_frames())
    };
    // The context waits for the message to go when it is dropped.
    let _ = told();
}

/// The last ids, ranges as their members.
fn last(ids: Vec<String>) -> Vec<String> {
    let mut told: Vec<String> = ids
        .iter()
        .rev()
        .flat_map(|id| match range(id) {
            Some((msg_id, lo, hi)) => (lo..hi)
                .rev()
                .map(|index| member_id(msg_id, index))
                .collect(),
            None => vec![id.clone()],
        })
        .take(TOLD)
        .collect();
    told.reverse();
    told
}

/// `MSGID:LO-HI`
fn range(id: &str) -> Option<(&str, u64, u64)> {
    let (msg_id, range) = id.rsplit_once(':')?;
    let (lo, hi) = range.split_once('-')?;
    Some((msg_id, lo.parse().ok()?, hi.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told_by_member() {
        let ids = ["a_1", "m:3", "m:4-7", "strange:x-y"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(
            last(ids),
            ["a_1", "m:3", "m:4", "m:5", "m:6", "strange:x-y"]
        );
        let many = (0..TOLD + 5).map(|n| n.to_string()).collect();
        let told = last(many);
        assert_eq!((told.len(), told[0].as_str()), (TOLD, "5"));
    }
}
