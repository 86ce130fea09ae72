//! Arguments and results of the members of an array.

use ipbroker_protocol::{
    array::{ArrayError, Packed, View},
    message::ErrorContent,
    zmq::Message,
};

use super::Verdict;
use crate::task::Task;

/// The packed arguments of a task's members.
pub(super) enum Arguments<'a> {
    /// Of an ordinary task.
    One(Option<&'a [u8]>),
    /// Of a range; the first is member `lo`'s.
    Many(u64, View<'a>),
    /// Members that differ in their index only.
    Count,
}

impl<'a> Arguments<'a> {
    /// Finds the arguments in the buffers of a request.
    pub(super) fn new(task: &'a Task) -> Result<Self, Box<ErrorContent>> {
        let wrong = |text: &str| Box::new(ErrorContent::new("ValueError", text));
        let buffers = task.envelope.buffers();
        let Some((lo, hi)) = task.wants.range else {
            return Ok(Self::One(buffers.first().map(|buffer| &buffer[..])));
        };
        match buffers {
            [] => Ok(Self::Count),
            [offsets, blob, ..] => {
                // A range may have been cut short here: its buffers still have all members.
                let count = (offsets.len() as u64 / 4).saturating_sub(1);
                let view =
                    View::new(offsets, blob, count).map_err(|error| wrong(&error.to_string()))?;
                if count < hi.saturating_sub(lo) {
                    let text = format!("members {lo}..{hi} with arguments for {count}");
                    return Err(wrong(&text));
                }
                Ok(Self::Many(lo, view))
            }
            [_] => Err(wrong(
                "an array with one buffer: offsets and values are two",
            )),
        }
    }

    /// One member's argument.
    pub(super) fn get(&self, index: u64) -> Option<&'a [u8]> {
        match self {
            Self::One(argument) => *argument,
            Self::Many(lo, view) => Some(view.get((index - lo) as usize)),
            Self::Count => None,
        }
    }
}

/// The outcomes of members `lo..`, until they are sent.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub(super) lo: u64,
    pub(super) count: u64,
    pub(super) failed: Vec<(u64, String)>,
    /// The outcome of all members so far, while they are equal.
    same: Option<Vec<u8>>,
    packed: Packed,
}

impl Outcomes {
    pub(super) fn new(lo: u64) -> Self {
        Self {
            lo,
            count: 0,
            failed: Vec::new(),
            same: None,
            packed: Packed::new(),
        }
    }

    /// Adds the outcome of the next member.
    pub(super) fn push(&mut self, value: &[u8], verdict: Verdict) -> Result<(), ArrayError> {
        if verdict != Verdict::Ok {
            self.failed
                .push((self.lo + self.count, verdict.word().to_owned()));
        }
        match &self.same {
            None if self.count == 0 => self.same = Some(value.to_vec()),
            Some(same) if same == value => {}
            _ => {
                if let Some(same) = self.same.take() {
                    for _ in 0..self.count {
                        self.packed.push(&same)?;
                    }
                }
                self.packed.push(value)?;
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Bytes of outcomes.
    pub(super) fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// The two buffers, and whether one value stands for all.
    pub(super) fn into_buffers(self) -> (Vec<Message>, bool) {
        let (packed, same) = match self.same {
            Some(value) => {
                let mut packed = Packed::new();
                // One value of any size that a message may have fits.
                let _ = packed.push(&value);
                (packed, true)
            }
            None => (self.packed, false),
        };
        let (offsets, blob) = packed.into_buffers();
        (vec![Message::from(offsets), Message::from(blob)], same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_outcomes_are_one() {
        let mut outcomes = Outcomes::new(10);
        for _ in 0..3 {
            outcomes.push(b"x", Verdict::Ok).unwrap();
        }
        let (buffers, same) = outcomes.into_buffers();
        assert!(same);
        assert_eq!(View::new(&buffers[0], &buffers[1], 1).unwrap().get(0), b"x");
    }

    #[test]
    fn different_outcomes_are_all_there() {
        let mut outcomes = Outcomes::new(10);
        for (value, verdict) in [
            ("a", Verdict::Ok),
            ("a", Verdict::Failed),
            ("bc", Verdict::Unmet),
            ("a", Verdict::Ok),
        ] {
            outcomes.push(value.as_bytes(), verdict).unwrap();
        }
        assert_eq!(
            outcomes.failed,
            [(11, "error".to_owned()), (12, "unmet".into())]
        );
        let (buffers, same) = outcomes.into_buffers();
        assert!(!same);
        let view = View::new(&buffers[0], &buffers[1], 4).unwrap();
        assert_eq!(
            (0..4).map(|i| view.get(i)).collect::<Vec<_>>(),
            [&b"a"[..], b"a", b"bc", b"a"]
        );
    }
}
