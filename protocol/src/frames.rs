//! The frames of a message: each by itself, as libzmq has them, or copied into one piece of memory.
//!
//! libzmq allocates for each frame, and each look into one is a call. Small messages that come and go in bundles never
//! meet it: one allocation and one copy each.

use std::ops::Index;

use zmq::Message;

use crate::envelope::{Envelope, EnvelopeError, Parts, copies};

/// Frames in one allocation: for each where it ends, then all of them.
#[derive(Clone)]
pub struct Packed {
    count: usize,
    bytes: Box<[u8]>,
}

/// Bytes of the place where a frame ends.
const END: usize = size_of::<u64>();

impl Packed {
    /// A copy of these frames.
    #[must_use]
    pub fn new<'a>(frames: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>) -> Self {
        let frames = frames.into_iter();
        let (mut count, mut size) = (0, 0);
        for frame in frames.clone() {
            count += 1;
            size += END + frame.len();
        }
        let mut bytes = Vec::with_capacity(size);
        let mut end = END * count;
        for frame in frames.clone() {
            end += frame.len();
            bytes.extend_from_slice(&(end as u64).to_ne_bytes());
        }
        frames.for_each(|frame| bytes.extend_from_slice(frame));
        Self {
            count,
            bytes: bytes.into_boxed_slice(),
        }
    }

    fn end(&self, index: usize) -> usize {
        let place = self.bytes[index * END..][..END].try_into();
        u64::from_ne_bytes(place.expect("eight bytes")) as usize
    }

    fn get(&self, index: usize) -> &[u8] {
        let begin = match index {
            0 => END * self.count,
            _ => self.end(index - 1),
        };
        &self.bytes[begin..self.end(index)]
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.count).map(|index| self.get(index))
    }

    /// Bytes in all of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len() - END * self.count
    }

    /// Copies, as libzmq takes them.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        self.iter().map(Message::from).collect()
    }
}

/// What is in the frames.
#[must_use]
pub fn slices(frames: &[Message]) -> Vec<&[u8]> {
    frames.iter().map(|frame| &frame[..]).collect()
}

/// The frames of one message.
pub enum Frames {
    /// As libzmq has them.
    Loose(Vec<Message>),
    /// In one piece.
    Packed(Packed),
}

impl From<Vec<Message>> for Frames {
    fn from(frames: Vec<Message>) -> Self {
        Self::Loose(frames)
    }
}

impl From<Packed> for Frames {
    fn from(frames: Packed) -> Self {
        Self::Packed(frames)
    }
}

impl Index<usize> for Frames {
    type Output = [u8];
    fn index(&self, index: usize) -> &[u8] {
        match self {
            Self::Loose(frames) => &frames[index],
            Self::Packed(frames) => frames.get(index),
        }
    }
}

impl std::fmt::Debug for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frames({}, {} bytes)", self.len(), self.bytes())
    }
}

impl Frames {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Loose(frames) => frames.len(),
            Self::Packed(frames) => frames.count,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes in all of them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Loose(frames) => frames.iter().map(|frame| frame.len()).sum(),
            Self::Packed(frames) => frames.bytes(),
        }
    }

    /// What is in them.
    #[must_use]
    pub fn slices(&self) -> Vec<&[u8]> {
        match self {
            Self::Loose(frames) => slices(frames),
            Self::Packed(frames) => frames.iter().collect(),
        }
    }

    /// A copy in one piece.
    #[must_use]
    pub fn packed(&self) -> Packed {
        match self {
            Self::Loose(frames) => Packed::new(slices(frames)),
            Self::Packed(frames) => frames.clone(),
        }
    }

    /// A copy of the same make.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        match self {
            Self::Loose(frames) => Self::Loose(copies(frames)),
            Self::Packed(frames) => Self::Packed(frames.clone()),
        }
    }

    /// As libzmq takes them.
    #[must_use]
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Loose(frames) => frames,
            Self::Packed(frames) => frames.messages(),
        }
    }

    /// As a message.
    ///
    /// # Errors
    /// [`EnvelopeError`] when they are none.
    pub fn into_envelope(self) -> Result<Envelope, EnvelopeError> {
        Envelope::parse(self.into_messages())
    }

    /// How many identities come first, and signature and maps.
    ///
    /// # Errors
    /// [`EnvelopeError`] when they are no message.
    pub fn parts(&self) -> Result<(usize, Parts<'_>), EnvelopeError> {
        Parts::find(self.len(), |index| &self[index])
    }
}
