//! The frames of one message: `identity* | <IDS|MSG> | signature | header | parent_header | metadata | content | buffer*`.
//!
//! An [`Envelope`] owns the frames as they came from the socket; nothing is copied and nothing is unpacked.

use zmq::Message;

/// The frame between identities and message.
pub const DELIMITER: &[u8] = b"<IDS|MSG>";

/// Frames after the delimiter that every message has: signature and four maps.
const FIXED: usize = 5;

/// Why a list of frames is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// There is no `<IDS|MSG>` frame.
    #[error("no <IDS|MSG> delimiter in {frames} frame(s)")]
    NoDelimiter {
        /// How many frames there were.
        frames: usize,
    },
    /// The delimiter is there but not all of signature and maps.
    #[error("{after} frame(s) after the <IDS|MSG> delimiter, 5 needed")]
    Truncated {
        /// How many frames follow the delimiter.
        after: usize,
    },
}

/// Where the delimiter is that signature and maps follow.
fn delimiter<'a>(
    mut frames: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<usize, EnvelopeError> {
    let count = frames.len();
    let Some(delimiter) = frames.position(|frame| frame == DELIMITER) else {
        return Err(EnvelopeError::NoDelimiter { frames: count });
    };
    let after = count - delimiter - 1;
    if after < FIXED {
        return Err(EnvelopeError::Truncated { after });
    }
    Ok(delimiter)
}

/// Independent copies of frames, such as the identities of a request for its reply.
#[must_use]
pub fn copies(frames: &[Message]) -> Vec<Message> {
    frames
        .iter()
        .map(|frame| Message::from(&frame[..]))
        .collect()
}

/// One message as frames.
#[derive(Debug)]
pub struct Envelope {
    frames: Vec<Message>,
    delimiter: usize,
}

impl Envelope {
    /// Finds the delimiter in `frames` and checks that signature and maps follow it.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the frames are no message; the frames are dropped.
    pub fn parse(frames: Vec<Message>) -> Result<Self, EnvelopeError> {
        let delimiter = delimiter(frames.iter().map(|frame| &frame[..]))?;
        Ok(Self { frames, delimiter })
    }

    /// Puts a message together; `maps` are header, parent_header, metadata and content, packed.
    #[must_use]
    pub fn new(
        identities: Vec<Message>,
        signature: Message,
        maps: [Message; 4],
        buffers: Vec<Message>,
    ) -> Self {
        let delimiter = identities.len();
        let mut frames = identities;
        frames.reserve(1 + FIXED + buffers.len());
        frames.push(Message::from(DELIMITER));
        frames.push(signature);
        frames.extend(maps);
        frames.extend(buffers);
        Self { frames, delimiter }
    }

    /// The identities before the delimiter, outermost first.
    #[must_use]
    pub fn identities(&self) -> &[Message] {
        &self.frames[..self.delimiter]
    }

    /// Replaces all identities.
    pub fn set_identities(&mut self, identities: impl IntoIterator<Item = Message>) {
        let mut count = 0;
        self.frames.splice(
            ..self.delimiter,
            identities.into_iter().inspect(|_| count += 1),
        );
        self.delimiter = count;
    }

    /// Exchanges two identities, as a relay does.
    ///
    /// # Panics
    /// When there are not that many identities.
    pub fn swap_identities(&mut self, a: usize, b: usize) {
        assert!(
            a < self.delimiter && b < self.delimiter,
            "identity out of range"
        );
        self.frames.swap(a, b);
    }

    /// The signature: lower-case hex, empty when messages are not signed.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.frames[self.delimiter + 1]
    }

    /// The packed header.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.frames[self.delimiter + 2]
    }

    /// The packed parent header.
    #[must_use]
    pub fn parent_header(&self) -> &[u8] {
        &self.frames[self.delimiter + 3]
    }

    /// The packed metadata.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.frames[self.delimiter + 4]
    }

    /// The packed content.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.frames[self.delimiter + 5]
    }

    /// Signature and maps, all at once: each look into a frame is a call of libzmq.
    #[must_use]
    pub fn parts(&self) -> Parts<'_> {
        Parts::new(|index| &self.frames[self.delimiter + 1 + index])
    }

    /// The four packed maps in the order in which they are signed.
    #[must_use]
    pub fn maps(&self) -> [&[u8]; 4] {
        self.parts().maps()
    }

    /// The buffers after the content.
    #[must_use]
    pub fn buffers(&self) -> &[Message] {
        &self.frames[self.delimiter + 1 + FIXED..]
    }

    /// Takes the buffers out.
    pub fn take_buffers(&mut self) -> Vec<Message> {
        self.frames.split_off(self.delimiter + 1 + FIXED)
    }

    /// All frames, identities first.
    #[must_use]
    pub fn frames(&self) -> &[Message] {
        &self.frames
    }

    /// All frames, for sending.
    #[must_use]
    pub fn into_frames(self) -> Vec<Message> {
        self.frames
    }

    /// Bytes in all frames: what this message costs a queue, beside [`FRAME_OVERHEAD`] for each frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.len()).sum()
    }

    /// An independent copy of all frames.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            frames: copies(&self.frames),
            delimiter: self.delimiter,
        }
    }
}

/// What every message has between delimiter and buffers, packed.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Lower-case hex, empty when messages are not signed.
    pub signature: &'a [u8],
    /// The header.
    pub header: &'a [u8],
    /// The parent header.
    pub parent_header: &'a [u8],
    /// The metadata.
    pub metadata: &'a [u8],
    /// The content.
    pub content: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Finds the parts of a message, and how many identities precede them.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the frames are no message.
    pub fn of(frames: &[&'a [u8]]) -> Result<(usize, Self), EnvelopeError> {
        Self::find(frames.len(), |index| frames[index])
    }

    pub(crate) fn find(
        count: usize,
        frame: impl Fn(usize) -> &'a [u8],
    ) -> Result<(usize, Self), EnvelopeError> {
        let delimiter = delimiter((0..count).map(&frame))?;
        Ok((delimiter, Self::new(|index| frame(delimiter + 1 + index))))
    }

    fn new(frame: impl Fn(usize) -> &'a [u8]) -> Self {
        let [signature, header, parent_header, metadata, content]: [_; FIXED] =
            std::array::from_fn(frame);
        Self {
            signature,
            header,
            parent_header,
            metadata,
            content,
        }
    }

    /// The four maps in the order in which they are signed.
    #[must_use]
    pub fn maps(&self) -> [&'a [u8]; 4] {
        [self.header, self.parent_header, self.metadata, self.content]
    }
}

/// What a frame costs beside its bytes (libzmq's message structure).
pub const FRAME_OVERHEAD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(identities: &[&str], buffers: &[&str]) -> Envelope {
        let maps = ["h", "p", "m", "c"].map(Message::from);
        Envelope::new(
            identities
                .iter()
                .map(|identity| Message::from(*identity))
                .collect(),
            Message::from("sig"),
            maps,
            buffers
                .iter()
                .map(|buffer| Message::from(*buffer))
                .collect(),
        )
    }

    #[test]
    fn parses_what_it_builds() {
        let built = message(&["engine", "client"], &["b0", "b1"]);
        let parsed = Envelope::parse(built.into_frames()).unwrap();
        assert_eq!(parsed.identities().len(), 2);
        assert_eq!(parsed.signature(), b"sig");
        assert_eq!(parsed.maps(), [b"h", b"p", b"m", b"c"].map(|map| &map[..]));
        assert_eq!(&parsed.buffers()[1][..], b"b1");
    }

    #[test]
    fn identities_are_replaced_and_swapped() {
        let mut envelope = message(&["a", "b"], &["x"]);
        envelope.swap_identities(0, 1);
        assert_eq!(&envelope.identities()[0][..], b"b");
        envelope.set_identities([Message::from("c")]);
        assert_eq!(envelope.identities().len(), 1);
        assert_eq!(envelope.content(), b"c");
        assert_eq!(&envelope.buffers()[0][..], b"x");
    }

    proptest! {
        #[test]
        fn arbitrary_frames_never_panic(frames in proptest::collection::vec(
            prop_oneof![Just(DELIMITER.to_vec()), proptest::collection::vec(any::<u8>(), 0..40)], 0..20)) {
            let frames: Vec<Message> = frames.iter().map(|frame| Message::from(&frame[..])).collect();
            let count = frames.len();
            if let Ok(envelope) = Envelope::parse(frames) {
                prop_assert_eq!(envelope.identities().len() + 6 + envelope.buffers().len(), count);
                let _ = envelope.maps();
            }
        }
    }
}
