//! The executor of function calls.

use ipbroker_protocol::{message::ErrorContent, session::Packer};

use super::{Executor, Verdict, array::Arguments, require};
use crate::{function::Context, logical_engine::LogicalEngine, process::Process, task::Task};

/// Packed nil: the argument of a call that has none.
const NIL: &[u8] = &[0xc0];

/// How many calls that take no time are claimed at once.
const STRIDE: u64 = 1024;

/// Calls of one function.
pub(super) struct Functions<'a> {
    process: &'a Process,
    engine: &'a LogicalEngine,
    task: &'a Task,
    name: String,
    arguments: Arguments<'a>,
    packer: Packer,
    unmet: Option<ErrorContent>,
}

impl<'a> Functions<'a> {
    pub(super) fn new(
        process: &'a Process,
        engine: &'a LogicalEngine,
        task: &'a Task,
        packer: Packer,
        name: String,
    ) -> Result<Self, Box<ErrorContent>> {
        let arguments = Arguments::new(task)?;
        let unmet = task.wants.require.as_ref().and_then(|require| {
            let lacking = require::lacking(require, &process.files.work_dir, &[])?;
            Some(ErrorContent::new(
                "UnmetDependency",
                format!("{}: {lacking}", process.files.host),
            ))
        });
        Ok(Self {
            process,
            engine,
            task,
            name,
            arguments,
            packer,
            unmet,
        })
    }
}

impl Executor for Functions<'_> {
    fn run(&mut self, index: u64, out: &mut Vec<u8>) -> Verdict {
        if let Some(unmet) = &self.unmet {
            self.refuse(unmet, out);
            return Verdict::Unmet;
        }
        let host = self.process.files.host.as_str();
        let (_, token) = match self.engine.begin_member(index) {
            Ok(begun) => begun,
            Err(stop) => return self.refuse_stopped(&stop, self.engine, host, out),
        };
        let context = Context {
            token: &token,
            values: &self.engine.values,
            engine_id: self.engine.id(),
            uuid: &self.engine.uuid,
            host,
            msg_id: &self.task.msg_id,
            index: self.task.wants.range.map(|_| index),
            granted: &self.task.wants.granted,
            nodes: &self.task.wants.nodelist,
        };
        let mut packed_index = Vec::new();
        let argument = match self.arguments.get(index) {
            Some(argument) => argument,
            None if self.task.wants.range.is_some() => {
                packed_index = Packer::Msgpack.pack(&index);
                &packed_index
            }
            None => NIL,
        };
        let length = out.len();
        let result = self
            .process
            .functions
            .call(&self.name, &context, argument, out);
        drop(packed_index);
        match (self.engine.running.finish(), result) {
            (Some(stop), _) => {
                out.truncate(length);
                self.refuse_stopped(&stop, self.engine, host, out)
            }
            (None, Ok(())) => Verdict::Ok,
            (None, Err(error)) => {
                let verdict = if error.ename == "UnmetDependency" {
                    Verdict::Unmet
                } else {
                    Verdict::Failed
                };
                self.refuse(&ErrorContent::new(&error.ename, error.evalue), out);
                verdict
            }
        }
    }

    fn refuse(&self, error: &ErrorContent, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packer.pack(error));
    }

    fn content(&self) -> bool {
        false
    }

    fn stride(&self) -> u64 {
        STRIDE
    }
}
