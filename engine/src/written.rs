//! What the task at work has written so far, for whoever asks before it has ended.

use ipbroker_protocol::message::OutputReply;

use crate::job::Stream;

/// Bytes of each stream that are kept: the last ones.
const KEPT: usize = 64 << 10;

/// Output of the last task that wrote something.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Its id.
    id: String,
    /// Standard output and standard error.
    streams: [Tail; 2],
}

/// The end of a stream.
#[derive(Debug, Default)]
struct Tail {
    text: String,
    /// Bytes that were there before it.
    before: u64,
}

impl Tail {
    fn end(&self) -> u64 {
        self.before + self.text.len() as u64
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        // Not at each line: moving the rest is not for nothing.
        if self.text.len() > 2 * KEPT {
            let cut = boundary(&self.text, self.text.len() - KEPT);
            self.text.drain(..cut);
            self.before += cut as u64;
        }
    }

    /// What came after the first `seen` bytes, as far as it is kept.
    fn since(&self, seen: u64) -> &str {
        let from = seen.saturating_sub(self.before) as usize;
        let from = from.max(self.text.len().saturating_sub(KEPT));
        &self.text[boundary(&self.text, from)..]
    }
}

/// The first character's beginning from there on.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(text.len())
}

impl Written {
    /// A task begins, perhaps once more.
    pub(crate) fn begin(&mut self, id: &str) {
        *self = Self {
            id: id.to_owned(),
            ..Self::default()
        };
    }

    /// A task wrote this, after so many bytes.
    pub(crate) fn push(&mut self, id: &str, stream: Stream, text: &str) -> u64 {
        if self.id != id {
            self.begin(id);
        }
        let tail = &mut self.streams[usize::from(stream == Stream::Stderr)];
        let at = tail.end();
        tail.push(text);
        at
    }

    /// What a task, which runs or not, wrote after those bytes of each stream.
    pub(crate) fn since(&self, id: &str, seen: [u64; 2], running: bool) -> OutputReply {
        let mut reply = OutputReply {
            status: "ok".into(),
            running,
            ..OutputReply::default()
        };
        if self.id == id {
            reply.text = [0, 1].map(|at| self.streams[at].since(seen[at]).to_owned());
            reply.seen = [0, 1].map(|at| self.streams[at].end());
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_told_once() {
        let mut written = Written::default();
        let said = |written: &Written, seen| written.since("a", seen, true);
        written.push("a", Stream::Stdout, "one\n");
        written.push("a", Stream::Stderr, "oops\n");
        let first = said(&written, [0, 0]);
        assert_eq!(first.text, ["one\n", "oops\n"]);
        written.push("a", Stream::Stdout, "zwölf\n");
        assert_eq!(said(&written, first.seen).text, ["zwölf\n", ""]);
        // In the middle of a character.
        assert_eq!(said(&written, [7, 5]).text[0], "lf\n");
        written.push("a", Stream::Stdout, &"é".repeat(3 * KEPT));
        let last = said(&written, [0, 0]);
        assert_eq!(last.seen[0], 4 + 7 + 6 * KEPT as u64);
        assert!(last.text[0].len() <= KEPT && last.text[0].len() > KEPT - 2);
        assert_eq!(said(&written, last.seen).text, ["", ""]);
        written.push("b", Stream::Stdout, "other");
        assert_eq!(
            said(&written, [0, 0]),
            OutputReply {
                status: "ok".into(),
                running: true,
                ..OutputReply::default()
            }
        );
    }
}
