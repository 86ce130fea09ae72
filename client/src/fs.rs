//! File operations on the engines' hosts.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::time::Duration;

use ipbroker_protocol::message::{Command, CommandResult, EngineInfo, FsOp, FsReply, FsRequest};
use ipbroker_protocol::zmq::Message;

use crate::client::Client;
use crate::error::{Error, Result};

/// How much of a file travels in one message: large enough to fill a link, small enough to hold in memory.
pub const PART: usize = 4 << 20;

/// How long one part may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a command may take: for ever, in practice.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One host, through one of its engines. Nothing is queued: the engine answers beside whatever job it runs.
#[derive(Debug, Clone)]
pub struct Host {
    client: Client,
    name: String,
    engine: u32,
    uuid: String,
}

impl Client {
    /// The hosts of that name (full, short, alias or address; `all`: every host; a number: the host of that engine), each
    /// through one of its engines.
    ///
    /// # Errors
    /// When no engine of ours is on such a host, or the hub does not answer.
    pub fn hosts(&self, names: &[&str]) -> Result<Vec<Host>> {
        let engines = self.engines()?;
        let ours: Vec<&EngineInfo> = engines
            .iter()
            .filter(|e| e.capabilities.iter().any(|c| c == "command"))
            .collect();
        let mut hosts: Vec<Host> = Vec::new();
        for &name in names {
            let before = hosts.len();
            let mut found = false;
            for engine in ours.iter().filter(|e| is_named(e, name)) {
                found = true;
                let full = engine.host.first().map_or("", String::as_str);
                if hosts.iter().any(|h| h.name == full) {
                    continue;
                }
                hosts.push(Host {
                    client: self.clone(),
                    name: full.to_owned(),
                    engine: engine.id,
                    uuid: engine.uuid.clone(),
                });
            }
            if !found {
                return Err(no_such_host(name, &ours));
            }
            hosts[before..].sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(hosts)
    }
}

fn is_named(engine: &EngineInfo, name: &str) -> bool {
    name == "all"
        || name == engine.id.to_string()
        || engine.host.iter().any(|h| h.eq_ignore_ascii_case(name))
}

fn no_such_host(name: &str, engines: &[&EngineInfo]) -> Error {
    let known: BTreeSet<&str> = engines
        .iter()
        .filter_map(|e| e.host.first())
        .map(String::as_str)
        .collect();
    let known: Vec<&str> = known.into_iter().collect();
    Error::NoEngines(match known.as_slice() {
        [] => ": start some with `ipengine`".into(),
        known => format!(" on a host `{name}`; there are: {}", known.join(", ")),
    })
}

/// Reads all of `from` and gives it to `send` part by part, with its offset and whether it is the last; how many bytes.
fn in_parts(
    mut from: impl Read,
    mut send: impl FnMut(u64, &[u8], bool) -> Result<()>,
) -> Result<u64> {
    let mut offset = 0;
    let mut part = Vec::new();
    loop {
        part.clear();
        (&mut from).take(PART as u64).read_to_end(&mut part)?;
        let last = part.len() < PART;
        send(offset, &part, last)?;
        offset += part.len() as u64;
        if last {
            return Ok(offset);
        }
    }
}

impl Host {
    /// Its name, as its engine tells it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the engine that answers for it.
    #[must_use]
    pub fn engine(&self) -> u32 {
        self.engine
    }

    fn ask(
        &self,
        request: &FsRequest,
        bytes: Option<&[u8]>,
        limit: Duration,
    ) -> Result<(FsReply, Vec<u8>)> {
        let buffers = bytes.map(Message::from).into_iter().collect();
        let answer = self.client.fs(&self.uuid, request, buffers, limit)?;
        let reply: FsReply = self.client.unpack(&answer)?;
        if reply.status != "ok" {
            return Err(Error::File(
                reply
                    .evalue
                    .unwrap_or_else(|| format!("{}: no reason given", self.name)),
            ));
        }
        let buffer = answer.buffers().first().map(|b| b.to_vec());
        Ok((reply, buffer.unwrap_or_default()))
    }

    /// Asks for one operation.
    ///
    /// # Errors
    /// [`Error::File`] with the host's words when it fails there.
    pub fn request(&self, request: &FsRequest) -> Result<FsReply> {
        Ok(self.ask(request, None, LIMIT)?.0)
    }

    /// Writes what `from` gives to a file there; how many bytes.
    ///
    /// # Errors
    /// As [`Host::request`], and when `from` fails.
    pub fn put(&self, from: impl Read, path: &str, mode: Option<u32>) -> Result<u64> {
        in_parts(from, |offset, part, _| {
            if part.is_empty() && offset > 0 {
                return Ok(());
            }
            let request = FsRequest {
                op: FsOp::Put,
                path: path.into(),
                offset,
                mode,
                ..FsRequest::default()
            };
            self.ask(&request, Some(part), LIMIT).map(drop)
        })
    }

    /// Writes bytes to the end of a file there.
    ///
    /// # Errors
    /// As [`Host::request`].
    pub fn append(&self, bytes: &[u8], path: &str) -> Result<()> {
        for part in bytes.chunks(PART) {
            let request = FsRequest {
                op: FsOp::Put,
                path: path.into(),
                append: true,
                ..FsRequest::default()
            };
            self.ask(&request, Some(part), LIMIT)?;
        }
        Ok(())
    }

    /// Reads a file there into `to`; how many bytes, and its permission bits.
    ///
    /// # Errors
    /// As [`Host::request`], and when `to` fails.
    pub fn get(&self, path: &str, mut to: impl Write) -> Result<(u64, Option<u32>)> {
        let mut offset = 0;
        loop {
            let request = FsRequest {
                op: FsOp::Get,
                path: path.into(),
                offset,
                length: Some(PART as u64),
                ..FsRequest::default()
            };
            let (reply, bytes) = self.ask(&request, None, LIMIT)?;
            to.write_all(&bytes)?;
            offset += bytes.len() as u64;
            if reply.eof || bytes.is_empty() {
                return Ok((offset, reply.stat.map(|s| s.mode)));
            }
        }
    }

    /// Which of these files (by SHA-256, in hex) its cache of jobs' inputs holds.
    ///
    /// # Errors
    /// As [`Host::request`].
    pub fn have(&self, sha256: &[String]) -> Result<Vec<String>> {
        let request = FsRequest {
            op: FsOp::Have,
            sha256: sha256.to_vec(),
            ..FsRequest::default()
        };
        Ok(self.request(&request)?.have)
    }

    /// Puts a file into its cache of jobs' inputs.
    ///
    /// # Errors
    /// As [`Host::request`], when the bytes have another hash too.
    pub fn cache(&self, sha256: &str, from: impl Read) -> Result<()> {
        in_parts(from, |offset, part, eof| {
            let request = FsRequest {
                op: FsOp::Cache,
                sha256: vec![sha256.to_owned()],
                offset,
                eof,
                ..FsRequest::default()
            };
            self.ask(&request, Some(part), LIMIT).map(drop)
        })
        .map(drop)
    }

    /// Runs a command there at once.
    ///
    /// # Errors
    /// As [`Host::request`], when it cannot be run.
    pub fn run(&self, command: Command) -> Result<CommandResult> {
        let request = FsRequest {
            op: FsOp::Run,
            command: Some(command),
            ..FsRequest::default()
        };
        let (reply, _) = self.ask(&request, None, FOR_EVER)?;
        reply
            .result
            .ok_or_else(|| Error::File(format!("{}: no result came back", self.name)))
    }
}
