//! The functions that every engine has: `noop`, `echo`, `sleep`, and the reserved `__push__` and `__pull__`.

use std::time::Duration;

use super::{FunctionError, Registry};

/// A packed nil.
const NIL: u8 = 0xc0;

pub(super) fn register(registry: &mut Registry) {
    registry.add_raw("noop", true, |_, _, out| {
        out.push(NIL);
        Ok(())
    });
    registry.add_raw("echo", true, |_, argument, out| {
        out.extend_from_slice(argument);
        Ok(())
    });
    // Sleeps for so many seconds, or until the task is aborted.
    registry.add("sleep", |context, seconds: f64| {
        let duration = Duration::try_from_secs_f64(seconds).map_err(|error| {
            FunctionError::new("ValueError", format!("sleep({seconds}): {error}"))
        })?;
        context.token().wait(duration);
        Ok::<_, FunctionError>(seconds)
    });
    registry.add_raw("__push__", false, |context, argument, out| {
        context.values().push(argument)?;
        out.push(NIL);
        Ok(())
    });
    registry.add_raw("__pull__", false, |context, argument, out| {
        context
            .values()
            .pull(argument, context.host(), context.engine_id(), out)
    });
}
