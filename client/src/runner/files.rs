//! Files that go with jobs where no file system is shared: inputs that are sent before, outputs that are fetched after.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipbroker_client::job::{Job, JobResult, JobStatus};
use ipbroker_client::protocol::message::{ErrorContent, Staged};
use ipbroker_client::protocol::sha256;
use ipbroker_client::protocol::zmq::Message;
use ipbroker_client::{Client, Error, Host, Reply};

use super::Runner;
use crate::failure::Failure;
use crate::local;

/// Inputs of one job that outlives its client travel with it up to this size, and those of one call up to the other;
/// beyond that they go into the hosts' caches.
const CARRIED: u64 = 1 << 20;
const CARRIED_IN_ALL: u64 = 256 << 20;

/// A local file as it was when it was last looked at.
#[derive(PartialEq)]
struct Look {
    size: u64,
    changed: Option<SystemTime>,
    mode: u32,
}

/// What was hashed and sent already, and the jobs whose files still move.
#[derive(Default)]
pub(crate) struct Files {
    hashes: HashMap<PathBuf, (Look, String)>,
    /// Host and hash.
    placed: HashSet<(String, String)>,
    /// Bytes that went with messages of jobs that outlive us.
    carried: u64,
    /// The engines of a private cluster have been waited for.
    awaited: bool,
    /// Jobs with files by slot, and how their inputs go.
    moving: HashMap<usize, (Job, Way)>,
}

/// How a job's inputs go to where it runs.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    /// Into the caches of hosts, as far as they were not sent there before.
    Cache,
    /// The same once more: no engine that is there had them.
    CacheAgain,
    /// With its message.
    Inline,
}

/// A job's inputs, and the buffers that carry them.
pub(crate) type Inputs = (Vec<Staged>, Vec<Message>);

fn path_of(cwd: &str, path: &str) -> PathBuf {
    Path::new(cwd).join(path)
}

fn read_part(path: &Path, part: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (part.end - part.start) as usize];
    File::open(path)?.read_exact_at(&mut bytes, part.start)?;
    Ok(bytes)
}

/// Where a job's inputs go: none while no engine is there that may run it. `near`: to where it prefers to run.
fn hosts_of(client: &Client, job: &Job, near: bool) -> Vec<Host> {
    let places = match near {
        true => &job.placement.prefer,
        false => &job.placement.host,
    };
    match &places[..] {
        [] => client.hosts(&["all"]).unwrap_or_default(),
        // A host that is not there yet does not keep the others from theirs.
        hosts => hosts
            .iter()
            .filter_map(|name| client.hosts(&[name]).ok())
            .flatten()
            .collect(),
    }
}

/// Whether a job's inputs are there, and how large they are together.
pub(crate) fn look(cwd: &str, job: &Job) -> Result<u64, String> {
    let mut size = 0;
    for input in &job.put {
        let path = path_of(cwd, &input.local);
        let problem = |e: io::Error| format!("put: {}: {e}", path.display());
        let meta = fs::metadata(&path).map_err(problem)?;
        if !meta.is_file() {
            return Err(problem(io::Error::other("not a file")));
        }
        size += (input.part.as_ref()).map_or(meta.len(), |part| part.end - part.start);
    }
    Ok(size)
}

impl Files {
    /// The inputs of a job that outlives us: nobody could send them later. Small ones go with the message, wherever the
    /// job will run; large ones to the hosts that are there now.
    pub(crate) fn stage_detached(
        &mut self,
        client: &Client,
        cwd: &str,
        job: &Job,
    ) -> Result<Inputs, String> {
        let size = look(cwd, job)?;
        let small = size <= CARRIED && self.carried + size <= CARRIED_IN_ALL;
        let hosts = if small {
            Vec::new()
        } else {
            hosts_of(client, job, false)
        };
        self.stage(cwd, job, &hosts, false)
    }

    /// Describes a job's inputs. Every one of `hosts` has them in its cache after this, and what it had before is not sent
    /// again (`again`: as far as it still has it); where there are none, the bytes go with the message, up to a bound.
    fn stage(
        &mut self,
        cwd: &str,
        job: &Job,
        hosts: &[Host],
        again: bool,
    ) -> Result<Inputs, String> {
        if hosts.is_empty() {
            let carried = self.carried + look(cwd, job)?;
            if carried > CARRIED_IN_ALL {
                return Err(format!(
                    "put: no engine is there to take the files, and no more than {} MB can wait with the controller: start the engines first",
                    CARRIED_IN_ALL >> 20
                ));
            }
            self.carried = carried;
            return self.describe(cwd, job, true);
        }
        let inputs = self.describe(cwd, job, false)?;
        let files: Vec<(PathBuf, String)> = job
            .put
            .iter()
            .zip(&inputs.0)
            .filter(|(_, staged)| staged.buffer.is_none())
            .map(|(input, staged)| (path_of(cwd, &input.local), staged.sha256.clone()))
            .collect();
        for host in hosts {
            match self.place(host, &files, again) {
                // It was lost meanwhile: the job goes elsewhere, and has them sent again there if it must.
                Err(Error::Task(_)) => {}
                placed => placed.map_err(|e| format!("put: {}: {e}", host.name()))?,
            }
        }
        Ok(inputs)
    }

    /// The engines of a private cluster register just after it is there: with the first of them its host is known.
    fn await_private(&mut self, client: &Client, coming: Option<u32>) {
        if coming.is_some() && !std::mem::replace(&mut self.awaited, true) {
            client.wait_for_engines(1, Some(local::ENGINES));
        }
    }

    /// A job's inputs by their hashes; `inline`: and their bytes. A part of a file goes with its job, and is of no use to another.
    fn describe(&mut self, cwd: &str, job: &Job, inline: bool) -> Result<Inputs, String> {
        let (mut staged, mut buffers) = (Vec::new(), Vec::new());
        for input in &job.put {
            let path = path_of(cwd, &input.local);
            let problem = |e: io::Error| format!("put: {}: {e}", path.display());
            let mut staged_as = Staged {
                path: input.remote.clone(),
                ..Staged::default()
            };
            if let Some(part) = &input.part {
                buffers.push(Message::from(read_part(&path, part).map_err(problem)?));
            } else {
                (staged_as.sha256, staged_as.mode) = self.hash(&path).map_err(problem)?;
                if inline {
                    buffers.push(Message::from(fs::read(&path).map_err(problem)?));
                }
            }
            if inline || input.part.is_some() {
                staged_as.buffer = Some(buffers.len() - 1);
            }
            staged.push(staged_as);
        }
        Ok((staged, buffers))
    }

    fn place(
        &mut self,
        host: &Host,
        files: &[(PathBuf, String)],
        again: bool,
    ) -> ipbroker_client::Result<()> {
        let key = |sha256: &str| (host.name().to_owned(), sha256.to_owned());
        let new: Vec<&(PathBuf, String)> = files
            .iter()
            .filter(|(_, sha256)| again || !self.placed.contains(&key(sha256)))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let hashes: Vec<String> = new.iter().map(|(_, sha256)| sha256.clone()).collect();
        let have = host.have(&hashes)?;
        for (path, sha256) in new {
            if !have.contains(sha256) {
                host.cache(sha256, File::open(path)?)?;
            }
            self.placed.insert(key(sha256));
        }
        Ok(())
    }

    fn hash(&mut self, path: &Path) -> io::Result<(String, u32)> {
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let mode = meta.permissions().mode() & 0o777;
        let look = Look {
            size: meta.len(),
            changed: meta.modified().ok(),
            mode,
        };
        if let Some((before, sha256)) = self.hashes.get(path)
            && *before == look
        {
            return Ok((sha256.clone(), mode));
        }
        let sha256 = sha256(File::open(path)?)?;
        self.hashes.insert(path.to_owned(), (look, sha256.clone()));
        Ok((sha256, mode))
    }
}

impl Runner<'_> {
    /// Submits a job with files; the reason if its inputs cannot be had.
    pub(super) fn submit_with_files(
        &mut self,
        index: usize,
        job: &Job,
        way: Way,
    ) -> Result<Option<String>, Failure> {
        let cwd = &self.options.cwd;
        let inputs = if way == Way::Inline || job.put.is_empty() {
            self.files.describe(cwd, job, way == Way::Inline)
        } else {
            self.files.await_private(&self.client, self.options.coming);
            let hosts = hosts_of(&self.client, job, self.options.near);
            self.files.stage(cwd, job, &hosts, way == Way::CacheAgain)
        };
        let (put, buffers) = match inputs {
            Ok(inputs) => inputs,
            Err(reason) => return Ok(Some(reason)),
        };
        // Without hosts they go with the message after all.
        let inline = put.iter().all(|input| input.buffer.is_some());
        let way = if inline { Way::Inline } else { way };
        let mut request = self.options.request(&job.placement, self.batch.ids());
        if self.options.near && !inline {
            // If the one host that has its inputs is lost, it is told that none of these can run it, and goes again with
            // them; without a list it would wait for another engine.
            let engines = self.client.engines()?;
            request.targets = engines.into_iter().map(|engine| engine.uuid).collect();
        }
        let mut command = self.options.command(job);
        command.put = put;
        self.files.moving.insert(index, (job.clone(), way));
        let jobs = std::slice::from_ref(job);
        self.batch
            .send(index, jobs, &[0], &request, &command, buffers)?;
        Ok(None)
    }

    /// A job with files has ended: its outputs are written. None: it is on its way again, with its inputs, because
    /// those who might run it did not have them.
    pub(super) fn settle_files(
        &mut self,
        index: usize,
        reply: Option<&Reply>,
        mut result: JobResult,
    ) -> Result<Option<JobResult>, Failure> {
        let Some((job, way)) = self.files.moving.remove(&index) else {
            return Ok(Some(result));
        };
        let lacking = result.status == JobStatus::Error
            && result.error.as_deref().is_some_and(|e| {
                e.starts_with(ErrorContent::MISSING_INPUT)
                    || self.options.near && e.starts_with("ImpossibleDependency")
            });
        let next = match way {
            // Of a host that it preferred there may be none any more.
            Way::Cache if !self.options.near => Some(Way::CacheAgain),
            Way::Cache | Way::CacheAgain => Some(Way::Inline),
            Way::Inline => None,
        };
        if let Some(next) = next.filter(|_| lacking && !job.put.is_empty()) {
            match self.submit_with_files(index, &job, next)? {
                None => return Ok(None),
                Some(reason) => result.error = Some(reason),
            }
        }
        if let Some(reply) = reply
            && result.status == JobStatus::Ok
            && let Err(reason) = fetch(
                &self.options.cwd,
                &job,
                reply.buffers(),
                result.code == Some(0),
            )
        {
            result.status = JobStatus::Error;
            result.error = Some(reason);
        }
        Ok(Some(result))
    }
}

/// Writes a job's outputs; those of a failed job only where there are any.
pub(crate) fn fetch<'a>(
    cwd: &str,
    job: &Job,
    buffers: impl Iterator<Item = &'a [u8]>,
    all: bool,
) -> Result<(), String> {
    for (output, bytes) in job.get.iter().zip(buffers) {
        if bytes.is_empty() && !all {
            continue;
        }
        let path = path_of(cwd, &output.local);
        let write = || -> io::Result<()> {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            fs::write(&path, bytes)
        };
        write().map_err(|e| format!("get: {}: {e}", path.display()))?;
    }
    Ok(())
}
