//! The terminal: keys as they are pressed, a screen of its own, and all of it given back at the end.

use std::io::{self, Read, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::state::Key;

/// How a line looks: without colours, so that it is the same in every terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Bold,
    Heading,
    Reversed,
}

/// A line of the screen; no wider than the screen, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    pub(super) look: Look,
}

pub(super) struct Terminal {
    before: Termios,
    /// What is on the screen: the same is not sent twice.
    shown: Vec<Line>,
}

/// The other screen, no cursor, no wrapping at the right edge; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

impl Terminal {
    pub(super) fn open() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut terminal = Self {
            before,
            shown: Vec::new(),
        };
        terminal.again()?;
        Ok(terminal)
    }

    /// Takes the terminal, again after a stop.
    pub(super) fn again(&mut self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        self.shown.clear();
        put(ENTER)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (80, 24),
        }
    }

    pub(super) fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        if self.shown == lines {
            return Ok(());
        }
        let mut text = String::from("\x1b[H");
        for (row, line) in lines.iter().enumerate() {
            let look = match line.look {
                Look::Plain => "\x1b[0m",
                Look::Bold => "\x1b[0;1m",
                Look::Heading => "\x1b[0;4m",
                Look::Reversed => "\x1b[0;7m",
            };
            text += &format!("\x1b[{};1H{look}{}\x1b[0m\x1b[K", row + 1, line.text);
        }
        text += "\x1b[J";
        self.shown = lines.to_vec();
        put(&text)
    }

    /// The keys that are pressed within `wait`.
    pub(super) fn keys(&mut self, wait: Duration) -> io::Result<Vec<Key>> {
        let wait = Timespec {
            tv_sec: wait.as_secs().cast_signed(),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let stdin = io::stdin();
        let mut items = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut items, Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; 256];
        match stdin.lock().read(&mut bytes) {
            // The terminal is gone.
            Ok(0) => Ok(vec![Key::Letter('q')]),
            Ok(count) => Ok(keys(&bytes[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = put(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// What a terminal sends for keys.
fn keys(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let (key, used) = match rest {
            [0x1b, b'[' | b'O', b'A', ..] => (Some(Key::Up), 3),
            [0x1b, b'[' | b'O', b'B', ..] => (Some(Key::Down), 3),
            [0x1b, b'[', b'Z', ..] => (Some(Key::Before), 3),
            // Some other key: up to its last byte.
            [0x1b, b'[', more @ ..] => {
                let end = more.iter().position(|byte| (0x40..0x7f).contains(byte));
                (None, end.map_or(rest.len(), |end| end + 3))
            }
            [0x1b, b'O', _, ..] => (None, 3),
            [0x1b, ..] => (Some(Key::Escape), 1),
            [b'\r' | b'\n', ..] => (Some(Key::Enter), 1),
            [b'\t', ..] => (Some(Key::Next), 1),
            // Ctrl-C and Ctrl-D.
            [3 | 4, ..] => (Some(Key::Letter('q')), 1),
            _ => (
                first
                    .is_ascii_graphic()
                    .then_some(Key::Letter(*first as char)),
                1,
            ),
        };
        keys.extend(key);
        rest = if used == 1 { after } else { &rest[used..] };
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known() {
        assert_eq!(
            keys(b"\x1b[A\x1bOBj\t\x1b[Z\r\x03\x1b[5~q"),
            [
                Key::Up,
                Key::Down,
                Key::Letter('j'),
                Key::Next,
                Key::Before,
                Key::Enter,
                Key::Letter('q'),
                Key::Letter('q')
            ]
        );
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
        for bytes in [&b"\x1b["[..], b"\x1bO", b"\x1b[1;", b"\xff\x00", b""] {
            keys(bytes);
        }
    }
}
