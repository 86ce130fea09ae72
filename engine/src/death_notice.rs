//! What the reaper tells the hub when the engine process is gone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ipbroker_protocol::{
    array::member_id,
    connection::EngineConnection,
    message::{EngineDied, types},
    socket,
    zmq::{self, Context},
};

use crate::reaper::DeathNotice;

/// How long it is said again, for the hub to hear it: it may be gone too, and come back.
const REPEATED: Duration = Duration::from_secs(20);

/// How long an answer is waited for, in ms.
const ANSWER: i32 = 2000;

/// Ids of started tasks told of one engine: the last ones. More are never outstanding.
const TOLD: usize = 50_000;

/// Sends `engine_died` until it is answered. Nobody is left to hear of an error.
pub(crate) fn send(notice: DeathNotice) {
    let Ok(connection) = serde_json::from_value::<EngineConnection>(notice.connection) else {
        return;
    };
    let common = &connection.common;
    let (Ok(session), Ok(curve)) = (common.session(), common.curve()) else {
        return;
    };
    let uuids: BTreeMap<String, Vec<String>> = notice
        .engines
        .into_iter()
        .map(|(uuid, ids)| (uuid, last(ids)))
        .collect();
    let died = EngineDied {
        uuids,
        reason: "the engine process died".into(),
    };
    let context = Context::new();
    let begun = Instant::now();
    let told = || -> zmq::Result<()> {
        while begun.elapsed() < REPEATED {
            let dealer = socket::open(&context, zmq::DEALER)?;
            dealer.set_linger(0)?;
            dealer.set_rcvtimeo(ANSWER)?;
            if let Some(curve) = &curve {
                curve.apply(&dealer)?;
            }
            dealer.connect(&common.url(connection.registration))?;
            socket::send(
                &dealer,
                session.request(types::ENGINE_DIED, &died).into_frames(),
            )?;
            // Whoever has the key can answer this, and could have sent anything else.
            if dealer.recv_multipart(0).is_ok() {
                return Ok(());
            }
        }
        Ok(())
    };
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
