//! The native half of the Python package `ipbroker`: the client library, as Python calls it.
//!
//! Thin: pickling, futures, views and clusters are Python (`client/python/ipbroker/`). The library's I/O thread never
//! takes Python's lock: what arrives is queued here, and one Python thread fetches it in batches (`wait_results`).

mod client;
mod error;
mod options;
mod queue;
mod results;

use pyo3::prelude::*;

#[pymodule(name = "_native")]
fn native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<client::NativeClient>()?;
    module.add_class::<client::Call>()?;
    module.add_function(wrap_pyfunction!(results::reply_info, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
