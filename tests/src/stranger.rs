//! A peer that speaks ZMTP by hand over TCP, and holds no key.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// In a frame's first byte: more frames follow; its length has eight bytes; it is a command.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A connection.
#[derive(Debug)]
pub struct Stranger(TcpStream);

impl Stranger {
    /// Connects to `tcp://ADDRESS:PORT` and says hello as a socket of this kind (`DEALER`, `PUB`, `SUB`).
    ///
    /// # Errors
    /// The system's word.
    pub fn connect(endpoint: &str, kind: &str) -> io::Result<Stranger> {
        let mut stream = TcpStream::connect(endpoint.trim_start_matches("tcp://"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let mut hello = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
        hello.extend(b"NULL");
        hello.resize(64, 0);
        let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
        ready.extend((kind.len() as u32).to_be_bytes());
        ready.extend(kind.as_bytes());
        hello.extend([COMMAND, ready.len() as u8]);
        hello.extend(ready);
        stream.write_all(&hello)?;
        // The other's greeting, and its READY.
        stream.read_exact(&mut [0; 64])?;
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        stream.read_exact(&mut vec![0; usize::from(head[1])])?;
        Ok(Stranger(stream))
    }

    /// Sends a whole message of one frame.
    ///
    /// # Errors
    /// The system's word, when the other has closed.
    pub fn say(&mut self, text: &[u8]) -> io::Result<()> {
        self.0.write_all(&[0, text.len() as u8])?;
        self.0.write_all(text)
    }

    /// Announces a frame of so many bytes and sends them, as many as the other takes; returns how many those were.
    pub fn frame(&mut self, bytes: u64) -> u64 {
        let chunk = vec![b'x'; 1 << 20];
        let mut head = vec![LONG];
        head.extend(bytes.to_be_bytes());
        let mut sent = 0;
        if self.0.write_all(&head).is_err() {
            return sent;
        }
        while sent < bytes && self.0.write_all(&chunk).is_ok() {
            sent += chunk.len() as u64;
        }
        sent
    }

    /// Sends frames of `size` bytes, each with more to come, until the other has enough or `most` bytes are sent; returns how many
    /// those were.
    pub fn frames(&mut self, size: u64, most: u64) -> u64 {
        self.repeat(MORE, size, most)
    }

    /// The same, but each frame is a message.
    pub fn messages(&mut self, size: u64, most: u64) -> u64 {
        self.repeat(0, size, most)
    }

    fn repeat(&mut self, more: u8, size: u64, most: u64) -> u64 {
        let mut frame = vec![more | LONG];
        frame.extend(size.to_be_bytes());
        frame.resize(frame.len() + size as usize, b'x');
        let chunk = frame.repeat(1 + (1 << 18) / frame.len());
        let mut sent = 0;
        while sent < most && self.0.write_all(&chunk).is_ok() {
            sent += chunk.len() as u64;
        }
        sent
    }
}
