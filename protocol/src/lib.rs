//! The messages of ipbroker: the protocol of Jupyter and IPython parallel over ZeroMQ, packed with MessagePack or JSON.
//!
//! This crate is all that the controller, the engine and the client have in common. `PROTOCOL.md` beside it is normative; the
//! modules follow its chapters: [`envelope`] (frames), [`bundle`] (many at once), [`route`] (engines that share connections), [`session`] (packing and signing), [`message`] (headers and contents),
//! [`dependency`], [`resources`], [`connection`] and [`profile`] (files), [`socket`], [`wake`] and [`junk`] (I/O helpers), [`time`] (dates),
//! [`shell`], [`size`] and [`usage`] (command lines).

/// The number of the protocol between our programs: raised when those of different numbers can no longer work together.
/// What is merely new is negotiated and does not raise it. Who says no number speaks 1.
pub const PROTOCOL: u32 = 2;

pub mod array;
pub mod bundle;
pub mod connection;
pub mod dependency;
pub mod envelope;
mod fields;
pub mod frames;
pub mod junk;
pub mod kind;
pub mod message;
pub mod profile;
pub mod resources;
pub mod route;
pub mod session;
pub mod shell;
pub mod size;
pub mod socket;
#[cfg(feature = "ssh")]
pub mod ssh;
pub mod time;
pub mod usage;
pub mod value;
pub mod wake;

pub use zmq;

use std::{
    io::{self, Read},
    thread::{self, JoinHandle},
};

use sha2::{Digest, Sha256};

/// Bytes in lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of what is read, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(mut read: impl Read) -> io::Result<String> {
    let (mut hasher, mut block) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match read.read(&mut block) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(count) => hasher.update(&block[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Starts a thread that has this name where threads are looked at.
///
/// # Errors
/// When the system has no room for one more.
pub fn spawn<T: Send + 'static>(
    name: impl Into<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(run)
}

// Only for the library it links: libzmq's CURVE needs libsodium.
#[cfg(feature = "bundled")]
extern crate libsodium_sys as _;
