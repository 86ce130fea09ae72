//! Histories as scripts: one event a line, `name a b c d`. Any numbers are valid; the model makes sense of them.

use std::fmt;
use std::str::FromStr;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Submit,
    Reply,
    GiveBack,
    Join,
    Leave,
    Leaving,
    Dismiss,
    Abort,
    Tick,
    Answer,
}

pub(crate) const KINDS: [(Kind, &str); 10] = [
    (Kind::Submit, "submit"),
    (Kind::Reply, "reply"),
    (Kind::GiveBack, "give_back"),
    (Kind::Join, "join"),
    (Kind::Leave, "leave"),
    (Kind::Leaving, "leaving"),
    (Kind::Dismiss, "dismiss"),
    (Kind::Abort, "abort"),
    (Kind::Tick, "tick"),
    (Kind::Answer, "answer"),
];

/// An event and the numbers that choose its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) n: [u16; 4],
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS
            .iter()
            .find(|(k, _)| *k == self.kind)
            .expect("all are listed")
            .1;
        write!(
            f,
            "{name} {} {} {} {}",
            self.n[0], self.n[1], self.n[2], self.n[3]
        )
    }
}

impl FromStr for Op {
    type Err = String;
    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let name = words.next().ok_or("an empty line")?;
        let kind = KINDS
            .iter()
            .find(|(_, n)| *n == name)
            .ok_or_else(|| format!("no event is called {name}"))?
            .0;
        let mut n = [0; 4];
        for (at, word) in words.enumerate().take(4) {
            n[at] = word.parse().map_err(|e| format!("{word}: {e}"))?;
        }
        Ok(Op { kind, n })
    }
}

/// A history: settings in the first line, `settings a b c d`, then the events.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) settings: [u16; 4],
    pub(crate) ops: Vec<Op>,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.settings;
        writeln!(f, "settings {a} {b} {c} {d}")?;
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl FromStr for Script {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().filter(|l| !l.trim().is_empty());
        let first = lines.next().ok_or("an empty script")?;
        let mut settings = [0; 4];
        for (at, word) in first.split_whitespace().skip(1).enumerate().take(4) {
            settings[at] = word.parse().map_err(|e| format!("{word}: {e}"))?;
        }
        Ok(Script {
            settings,
            ops: lines.map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}
