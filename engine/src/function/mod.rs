//! Rust functions that tasks call by name.

mod builtin;
mod values;

use std::{
    any::Any,
    cell::RefCell,
    collections::HashMap,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ipbroker_protocol::resources::Grant;
use serde::{Serialize, de::DeserializeOwned};

pub use values::Values;

use crate::cancel::CancelToken;

/// What a function learns about the call it serves.
#[derive(Debug)]
pub struct Context<'a> {
    pub(crate) token: &'a CancelToken,
    pub(crate) values: &'a Values,
    pub(crate) engine_id: u32,
    pub(crate) uuid: &'a str,
    pub(crate) host: &'a str,
    pub(crate) msg_id: &'a str,
    pub(crate) index: Option<u64>,
    pub(crate) granted: &'a Grant,
    pub(crate) nodes: &'a [String],
}

impl Context<'_> {
    /// The token by which this call is asked to stop; see [`CancelToken`] for what that means.
    #[must_use]
    pub fn token(&self) -> &CancelToken {
        self.token
    }

    /// The values that clients have pushed to this engine, and that functions may leave for later calls.
    #[must_use]
    pub fn values(&self) -> &Values {
        self.values
    }

    /// The id of the engine that runs the call.
    #[must_use]
    pub fn engine_id(&self) -> u32 {
        self.engine_id
    }

    /// The uuid of the engine that runs the call.
    #[must_use]
    pub fn engine_uuid(&self) -> &str {
        self.uuid
    }

    /// The name of the host.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host
    }

    /// The id of the task; in an array, of all its members.
    #[must_use]
    pub fn msg_id(&self) -> &str {
        self.msg_id
    }

    /// Which member of an array this call is.
    #[must_use]
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// What the call has of its host's resources, by name; empty: it asked for nothing.
    #[must_use]
    pub fn granted(&self) -> &Grant {
        self.granted
    }

    /// The hosts that the call holds as wholes, this one first; empty: it asked for none.
    #[must_use]
    pub fn nodes(&self) -> &[String] {
        self.nodes
    }
}

/// An error with the name under which the client sees it.
///
/// A function may return any error that can be displayed: its type's name becomes `ename` and its text `evalue`.
/// Returning this type chooses both.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{evalue}")]
pub struct FunctionError {
    /// The error's name.
    pub ename: String,
    /// What went wrong, in words.
    pub evalue: String,
}

impl FunctionError {
    /// An error of this name.
    #[must_use]
    pub fn new(ename: impl Into<String>, evalue: impl Into<String>) -> Self {
        Self {
            ename: ename.into(),
            evalue: evalue.into(),
        }
    }

    /// This engine lacks what the call needs: the scheduler tries another one, and never this one again.
    #[must_use]
    pub fn unmet(what: impl Into<String>) -> Self {
        Self::new("UnmetDependency", what)
    }

    fn of<E: Display + 'static>(error: E) -> Self {
        if let Some(own) = (&error as &dyn Any).downcast_ref::<Self>() {
            return own.clone();
        }
        let full = std::any::type_name::<E>();
        let plain = full.split('<').next().unwrap_or(full);
        Self::new(
            plain.rsplit("::").next().unwrap_or(plain),
            error.to_string(),
        )
    }
}

/// Runs calls with a state of its own: an interpreter of another language, a loaded model, a device.
///
/// Each logical engine makes one for itself when the first call comes, and drops it when it leaves; all of that is on the
/// engine's own thread, so that it need not be [`Send`]. One whose call has panicked is dropped at once, and the next call
/// makes another. See [`Builder::executor`](crate::Builder::executor).
pub trait Executor {
    /// What is called with. [`serde_json::Value`] and the like take anything.
    type Argument: DeserializeOwned;
    /// What is returned.
    type Result: Serialize;

    /// Runs a call of the function `name`, one of those that it was added for.
    ///
    /// # Errors
    /// The client gets them, as those of a function; after [`FunctionError::unmet`] another engine is tried.
    fn call(
        &mut self,
        context: &Context<'_>,
        name: &str,
        argument: Self::Argument,
    ) -> Result<Self::Result, FunctionError>;
}

thread_local! {
    /// Executors of the logical engine whose thread this is, by where what makes them is.
    static EXECUTORS: RefCell<HashMap<usize, Box<dyn Any>>> = RefCell::default();
}

type Call =
    Box<dyn Fn(&Context<'_>, &[u8], &mut Vec<u8>) -> Result<(), FunctionError> + Send + Sync>;

struct Function {
    call: Call,
    quick: bool,
}

/// The functions of an engine, by name.
pub(crate) struct Registry(HashMap<String, Function>);

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Registry {
    /// The built-in functions.
    pub(crate) fn new() -> Self {
        let mut registry = Self(HashMap::new());
        builtin::register(&mut registry);
        registry
    }

    /// Adds a function of typed argument and result.
    pub(crate) fn add<T, R, E, F>(&mut self, name: &str, function: F)
    where
        T: DeserializeOwned,
        R: Serialize,
        E: Display + 'static,
        F: Fn(&Context<'_>, T) -> Result<R, E> + Send + Sync + 'static,
    {
        self.add_raw(name, false, move |context, argument, out| {
            let argument = rmp_serde::from_slice(argument).map_err(|error| {
                FunctionError::new("TypeError", format!("the argument does not fit: {error}"))
            })?;
            let result = function(context, argument).map_err(FunctionError::of)?;
            rmp_serde::encode::write_named(out, &result).map_err(|error| {
                FunctionError::new("TypeError", format!("the result cannot be packed: {error}"))
            })
        });
    }

    /// Adds the functions that an executor of this type runs.
    pub(crate) fn add_executor<X: Executor + 'static>(
        &mut self,
        names: impl IntoIterator<Item = impl Into<String>>,
        make: impl Fn(&Context<'_>) -> Result<X, FunctionError> + Send + Sync + 'static,
    ) {
        let make = Arc::new(make);
        for name in names {
            let (name, make): (String, _) = (name.into(), make.clone());
            self.add(&name.clone(), move |context, argument: X::Argument| {
                let key = Arc::as_ptr(&make).addr();
                // Away while it works: a panic drops it.
                let made = EXECUTORS.with_borrow_mut(|made| made.remove(&key));
                let mut executor = match made.map(Box::<dyn Any>::downcast::<X>) {
                    Some(Ok(executor)) => executor,
                    _ => Box::new(make(context)?),
                };
                let result = executor.call(context, &name, argument);
                EXECUTORS.with_borrow_mut(|made| made.insert(key, executor));
                result
            });
        }
    }

    /// Adds a function of packed argument and result. A quick one never blocks and takes microseconds: it may run on
    /// the thread that serves the sockets.
    pub(crate) fn add_raw(
        &mut self,
        name: &str,
        quick: bool,
        call: impl Fn(&Context<'_>, &[u8], &mut Vec<u8>) -> Result<(), FunctionError>
        + Send
        + Sync
        + 'static,
    ) {
        self.0.insert(
            name.to_owned(),
            Function {
                call: Box::new(call),
                quick,
            },
        );
    }

    /// The names, sorted, without the reserved ones.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .0
            .keys()
            .filter(|name| !name.starts_with("__"))
            .cloned()
            .collect();
        names.sort_unstable();
        names
    }

    /// Whether calls of this function may run on the thread that serves the sockets.
    pub(crate) fn is_quick(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|function| function.quick)
    }

    /// Calls a function; its packed result is appended to `out`. A panic becomes an error; an error appends nothing.
    pub(crate) fn call(
        &self,
        name: &str,
        context: &Context<'_>,
        argument: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FunctionError> {
        let function = self.0.get(name).ok_or_else(|| {
            let known = self.names().join(", ");
            FunctionError::unmet(format!(
                "no function {name:?} on {}; there are {known}",
                context.host
            ))
        })?;
        let length = out.len();
        let result = catch_unwind(AssertUnwindSafe(|| (function.call)(context, argument, out)))
            .unwrap_or_else(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no text");
                Err(FunctionError::new(
                    "Panic",
                    format!("function {name:?} panicked: {text}"),
                ))
            });
        if result.is_err() {
            out.truncate(length);
        }
        result
    }
}

#[cfg(test)]
mod tests;
