//! What a submission gives back: results now, later, or as they come.

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use ipbroker_protocol::array::member_id;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::io::{Part, Sink};
use crate::reply::ReplyInfo;

/// Results that belong together, filled by the I/O thread.
#[derive(Default)]
pub(crate) struct TaskSet {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    groups: Vec<Group>,
    total: u64,
    done: u64,
    failed: u64,
    /// Parts in order of arrival, for results as they come: submission and first member.
    arrivals: Vec<(u64, u64)>,
    wakers: Vec<Waker>,
    finished: Option<Instant>,
}

/// One submission: an ordinary task or an array.
struct Group {
    msg_id: String,
    /// Its first member's place among all.
    first: u64,
    members: u64,
    array: bool,
    parts: Parts,
}

/// What has come, by first member.
enum Parts {
    /// Of one task: one part at most, and no tree for it.
    One(Option<Part>),
    Many(BTreeMap<u64, Part>),
}

impl Parts {
    fn insert(&mut self, part: Part) {
        match self {
            Self::One(place) => *place = Some(part),
            Self::Many(parts) => drop(parts.insert(part.lo, part)),
        }
    }

    /// The part that begins with this member, or the last one before it.
    fn up_to(&self, member: u64) -> Option<&Part> {
        match self {
            Self::One(part) => part.as_ref(),
            Self::Many(parts) => Some(parts.range(..=member).next_back()?.1),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Part> {
        let (one, array) = match self {
            Self::One(part) => (part.as_ref(), None),
            Self::Many(parts) => (None, Some(parts.values())),
        };
        one.into_iter().chain(array.into_iter().flatten())
    }
}

impl State {
    fn part(&self, index: u64) -> Option<(&Part, u64)> {
        let at = self
            .groups
            .partition_point(|group| group.first <= index)
            .checked_sub(1)?;
        let group = &self.groups[at];
        let member = index - group.first;
        let part = group.parts.up_to(member)?;
        if let Parts::One(_) = group.parts {
            return Some((part, part.lo));
        }
        (member < part.hi).then_some((part, member))
    }
}

impl Sink for TaskSet {
    fn deliver(&self, tag: u64, part: Part) {
        let mut state = self.lock();
        let Some(group) = state.groups.get_mut(tag as usize) else {
            return;
        };
        let count = part.hi - part.lo;
        let lo = part.lo;
        let failed = match &part.outcome {
            Err(_) => count,
            Ok(reply) => reply.failures(lo, part.hi),
        };
        group.parts.insert(part);
        state.failed += failed;
        state.done += count;
        if state.done == state.total {
            state.finished = Some(Instant::now());
        }
        state.arrivals.push((tag, lo));
    }

    fn flush(&self) {
        let mut state = self.lock();
        self.changed.notify_all();
        if state.done == state.total {
            for waker in state.wakers.drain(..) {
                waker.wake();
            }
        }
    }
}

impl TaskSet {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for a submission; its tag. Done before it is sent: replies may come at once.
    pub(crate) fn expect(&self, members: u64, array: bool) -> u64 {
        let mut state = self.lock();
        let first = state.total;
        if state.groups.is_empty() {
            // Most sets are of one submission.
            state.groups.reserve_exact(1);
            state.arrivals.reserve_exact(1);
        }
        state.groups.push(Group {
            msg_id: String::new(),
            first,
            members,
            array,
            parts: match members {
                1 => Parts::One(None),
                _ => Parts::Many(BTreeMap::new()),
            },
        });
        state.total += members;
        state.finished = None;
        state.groups.len() as u64 - 1
    }

    pub(crate) fn name(&self, tag: u64, msg_id: String) {
        if let Some(group) = self.lock().groups.get_mut(tag as usize) {
            group.msg_id = msg_id;
        }
    }

    /// Waits as long as this holds.
    fn wait_while(&self, pending: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed
            .wait_while(self.lock(), pending)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, timeout: Option<Duration>) -> bool {
        let pending = |state: &mut State| state.done < state.total;
        let Some(timeout) = timeout else {
            drop(self.wait_while(pending));
            return true;
        };
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), timeout, pending)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.1.timed_out()
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::One {}
    impl Sealed for super::Many {}
}

/// Whether a result is one value or a list.
pub trait Shape: sealed::Sealed + Unpin {
    /// What [`AsyncResult::get`] gives.
    type Value<R>;
    #[doc(hidden)]
    fn collect<R: DeserializeOwned>(set: &TaskSetRef<'_>) -> Result<Self::Value<R>>;
}

/// The results of a set, for [`Shape`].
#[doc(hidden)]
pub struct TaskSetRef<'a>(&'a TaskSet);

/// The result of one task.
#[derive(Debug, Clone, Copy)]
pub enum One {}

/// The results of many, in the order of their arguments.
#[derive(Debug, Clone, Copy)]
pub enum Many {}

impl Shape for One {
    type Value<R> = R;
    fn collect<R: DeserializeOwned>(set: &TaskSetRef<'_>) -> Result<R> {
        let part = set
            .0
            .lock()
            .part(0)
            .map(|(part, member)| (part.clone(), member));
        let (part, member) = part.ok_or(Error::Closed)?;
        value_of(&part, member)
    }
}

impl Shape for Many {
    type Value<R> = Vec<R>;
    fn collect<R: DeserializeOwned>(set: &TaskSetRef<'_>) -> Result<Vec<R>> {
        let parts: Vec<Part> = {
            let state = set.0.lock();
            state
                .groups
                .iter()
                .flat_map(|group| group.parts.iter().cloned())
                .collect()
        };
        let mut values =
            Vec::with_capacity(parts.iter().map(|part| (part.hi - part.lo) as usize).sum());
        for part in &parts {
            for member in part.lo..part.hi {
                values.push(value_of(part, member)?);
            }
        }
        Ok(values)
    }
}

pub(crate) fn value_of<R: DeserializeOwned>(part: &Part, member: u64) -> Result<R> {
    match &part.outcome {
        Ok(reply) => reply.value(member),
        Err(error) => Err(error.clone().into()),
    }
}

/// The result of a submission that may still be under way: wait for it, look at it, iterate it, abort it, or `.await` it.
///
/// Values stay packed until they are asked for. Dropping it does not stop its tasks; see [`AsyncResult::abort`].
///
/// ```no_run
/// # let client = ipbroker_client::Client::builder().connect()?;
/// let lengths = client.load_balanced_view().map::<usize, _>("length", ["one", "three"])?;
/// if !lengths.wait(Some(std::time::Duration::from_secs(5))) {
///     println!("{:?} are done", lengths.progress());
/// }
/// for length in lengths.iter() {
///     println!("{}", length?);
/// }
/// # Ok::<(), ipbroker_client::Error>(())
/// ```
pub struct AsyncResult<R, S: Shape = One> {
    set: Arc<TaskSet>,
    client: Client,
    started: Instant,
    kind: PhantomData<fn() -> (R, S)>,
}

/// The results of a map.
pub type AsyncMapResult<R> = AsyncResult<R, Many>;

impl<R, S: Shape> std::fmt::Debug for AsyncResult<R, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (done, total) = self.progress();
        write!(f, "AsyncResult({done}/{total})")
    }
}

impl<R, S: Shape> AsyncResult<R, S> {
    pub(crate) fn new(client: Client, set: Arc<TaskSet>) -> Self {
        Self {
            set,
            client,
            started: Instant::now(),
            kind: PhantomData,
        }
    }

    /// Waits until everything is done, however it ended; false: the time was over first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.set.wait(timeout)
    }

    /// Whether everything is done.
    pub fn ready(&self) -> bool {
        let state = self.set.lock();
        state.done >= state.total
    }

    /// Whether everything is done and nothing failed.
    pub fn successful(&self) -> bool {
        let state = self.set.lock();
        state.done >= state.total && state.failed == 0
    }

    /// Tasks that are done, and all tasks.
    pub fn progress(&self) -> (u64, u64) {
        let state = self.set.lock();
        (state.done, state.total)
    }

    /// Tasks that failed so far.
    pub fn failed(&self) -> u64 {
        self.set.lock().failed
    }

    /// How many tasks there are.
    pub fn len(&self) -> usize {
        self.set.lock().total as usize
    }

    /// Whether there is no task at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Time since the submission, until everything was done.
    pub fn elapsed(&self) -> Duration {
        self.set
            .lock()
            .finished
            .unwrap_or_else(Instant::now)
            .duration_since(self.started)
    }

    /// Sum of the tasks' own run times, so far.
    pub fn serial_time(&self) -> Duration {
        let state = self.set.lock();
        let seconds: f64 = state
            .groups
            .iter()
            .flat_map(|group| group.parts.iter().map(move |part| (group, part)))
            .filter_map(|(group, part)| {
                let reply = part.outcome.as_ref().ok()?;
                match group.parts {
                    Parts::One(_) => reply.member_info(part.lo).duration,
                    Parts::Many(_) => reply.info().duration,
                }
            })
            .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
            .sum();
        Duration::from_secs_f64(seconds)
    }

    /// Ids of the tasks: `MSGID`, or `MSGID:INDEX` for members of an array.
    pub fn msg_ids(&self) -> Vec<String> {
        let state = self.set.lock();
        let mut ids = Vec::with_capacity(state.total as usize);
        for group in &state.groups {
            if group.array {
                ids.extend((0..group.members).map(|index| member_id(&group.msg_id, index)));
            } else {
                ids.push(group.msg_id.clone());
            }
        }
        ids
    }

    /// What is known of task `index`, once it has ended.
    pub fn metadata(&self, index: usize) -> Option<ReplyInfo> {
        let state = self.set.lock();
        let (part, member) = state.part(index as u64)?;
        let reply = part.outcome.as_ref().ok()?;
        Some(reply.member_info(member))
    }

    /// Stops what is unfinished: waiting tasks end at once, running ones are stopped. Their results say so.
    ///
    /// # Errors
    /// When the hub cannot be asked.
    pub fn abort(&self) -> Result<()> {
        let unfinished = |group: &&Group| {
            let done: u64 = group.parts.iter().map(|part| part.hi - part.lo).sum();
            done < group.members
        };
        // An array's own id stands for all of its members.
        let ids: Vec<String> = {
            let state = self.set.lock();
            let unfinished = state.groups.iter().filter(unfinished);
            unfinished.map(|group| group.msg_id.clone()).collect()
        };
        if !ids.is_empty() {
            self.client.abort(&ids, true)?;
        }
        Ok(())
    }

    /// Waits, printing `done/total tasks finished after N s` on stderr each `interval` (a second is usual).
    pub fn wait_interactive(&self, interval: Duration) {
        loop {
            let ready = self.wait(Some(interval));
            let (done, total) = self.progress();
            eprint!(
                "\r{done:>4}/{total} tasks finished after {:>4} s",
                self.elapsed().as_secs()
            );
            if ready {
                eprintln!("\ndone");
                return;
            }
        }
    }
}

impl<R: DeserializeOwned, S: Shape> AsyncResult<R, S> {
    /// Waits for the result.
    ///
    /// # Errors
    /// [`Error::Task`] with the first failure, [`Error::Decode`] when a value is of another type.
    pub fn get(&self) -> Result<S::Value<R>> {
        self.set.wait(None);
        S::collect(&TaskSetRef(&self.set))
    }

    /// Waits for the result, but not for ever.
    ///
    /// # Errors
    /// As [`AsyncResult::get`], and [`Error::Timeout`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<S::Value<R>> {
        if !self.set.wait(Some(timeout)) {
            let (done, total) = self.progress();
            return Err(Error::Timeout {
                after: timeout,
                done,
                total,
            });
        }
        S::collect(&TaskSetRef(&self.set))
    }
}

impl<R: DeserializeOwned> AsyncResult<R, Many> {
    /// The results in the order of their arguments, each as soon as it is there; failures do not end it.
    pub fn iter(&self) -> Ordered<'_, R> {
        Ordered {
            set: &self.set,
            next: 0,
            part: None,
            kind: PhantomData,
        }
    }

    /// The results as they come, with their places: `(index, result)`.
    pub fn iter_unordered(&self) -> Unordered<'_, R> {
        Unordered {
            set: &self.set,
            arrival: 0,
            part: None,
            kind: PhantomData,
        }
    }

    /// Some results by place, as a slice of the list; waits for them only.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Vec<Result<R>> {
        let end = range.end.min(self.len());
        let mut items = self.iter();
        items.next = (range.start.min(end)) as u64;
        items.take(end.saturating_sub(range.start)).collect()
    }
}

impl<'a, R: DeserializeOwned> IntoIterator for &'a AsyncResult<R, Many> {
    type Item = Result<R>;
    type IntoIter = Ordered<'a, R>;
    fn into_iter(self) -> Ordered<'a, R> {
        self.iter()
    }
}

/// Results in order; see [`AsyncResult::iter`].
pub struct Ordered<'a, R> {
    set: &'a TaskSet,
    next: u64,
    /// The part with the last result, and the index of its first member among all.
    part: Option<(Part, u64)>,
    kind: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Iterator for Ordered<'_, R> {
    type Item = Result<R>;

    fn next(&mut self) -> Option<Result<R>> {
        let index = self.next;
        let cached = self
            .part
            .as_ref()
            .is_some_and(|(part, first)| (first + part.lo..first + part.hi).contains(&index));
        if !cached {
            let state = self
                .set
                .wait_while(|state| index < state.total && state.part(index).is_none());
            let (part, member) = state.part(index)?;
            self.part = Some((part.clone(), index - member));
        }
        let (part, first) = self.part.as_ref()?;
        self.next += 1;
        Some(value_of(part, index - first))
    }
}

/// Results as they come; see [`AsyncResult::iter_unordered`].
pub struct Unordered<'a, R> {
    set: &'a TaskSet,
    arrival: usize,
    /// A part that is being given out: first index, next member.
    part: Option<(u64, u64, Part)>,
    kind: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> Iterator for Unordered<'_, R> {
    type Item = (usize, Result<R>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((first, member, part)) = &mut self.part
                && *member < part.hi
            {
                let at = *member;
                *member += 1;
                return Some(((*first + at) as usize, value_of(part, at)));
            }
            let state = self.set.wait_while(|state| {
                state.arrivals.len() <= self.arrival && state.done < state.total
            });
            let (tag, lo) = state.arrivals.get(self.arrival)?;
            let group = &state.groups[*tag as usize];
            self.part = Some((group.first, *lo, group.parts.up_to(*lo)?.clone()));
            self.arrival += 1;
        }
    }
}

impl<R: DeserializeOwned, S: Shape> Future for AsyncResult<R, S> {
    type Output = Result<S::Value<R>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.set.lock();
        if state.done < state.total {
            if !state
                .wakers
                .iter()
                .any(|waker| waker.will_wake(context.waker()))
            {
                state.wakers.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(S::collect(&TaskSetRef(&self.set)))
    }
}
