//! An engine a core with functions of its own, for the controller of the default profile.

use std::{error::Error, thread};

use ipbroker_engine::{Engine, function::FunctionError};

fn main() -> Result<(), Box<dyn Error>> {
    ipbroker_engine::init();
    Engine::builder()
        .engines(thread::available_parallelism()?.get())
        .function("length", |_, word: String| Ok::<_, String>(word.len()))
        .function("root", |context, number: f64| {
            if number < 0.0 {
                let what = format!("{number} has no root on {}", context.host());
                return Err(FunctionError::new("ValueError", what));
            }
            Ok(number.sqrt())
        })
        .run()?;
    Ok(())
}
