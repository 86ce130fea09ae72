//! Arguments and results of arrays: a table of offsets and one blob.

use std::borrow::Cow;

use uuid::Uuid;

/// Packs values one after the other.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    offsets: Vec<u32>,
    blob: Vec<u8>,
}

/// Buffers that are no array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// The table has another length than the number of members asks for.
    #[error("an array of {count} member(s) needs {expected} offsets, not {found} bytes of them")]
    Length {
        /// Members.
        count: u64,
        /// Offsets needed.
        expected: u64,
        /// Bytes found.
        found: usize,
    },
    /// An offset lies before its predecessor or past the blob, or the first is not 0.
    #[error(
        "offset {index} of an array is wrong: they begin with 0, never decrease and end within its {blob} bytes of values"
    )]
    Offset {
        /// Which one.
        index: u64,
        /// Bytes of values.
        blob: usize,
    },
    /// More bytes of values than 32-bit offsets reach.
    #[error("an array's values take more than 4 GiB; submit it in parts")]
    TooLarge,
}

impl Packed {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            blob: Vec::new(),
        }
    }

    /// Appends a packed value.
    ///
    /// # Errors
    /// [`ArrayError::TooLarge`] past 4 GiB.
    pub fn push(&mut self, value: &[u8]) -> Result<(), ArrayError> {
        self.push_with(|blob| blob.extend_from_slice(value))
    }

    /// Appends a value that `write` appends to the blob.
    ///
    /// # Errors
    /// [`ArrayError::TooLarge`] past 4 GiB.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), ArrayError> {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        write(&mut self.blob);
        self.offsets
            .push(u32::try_from(self.blob.len()).map_err(|_| ArrayError::TooLarge)?);
        Ok(())
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blob.len()
    }

    /// The two buffers.
    #[must_use]
    pub fn into_buffers(self) -> (Vec<u8>, Vec<u8>) {
        let offsets = if self.offsets.is_empty() {
            vec![0]
        } else {
            self.offsets
        };
        (
            offsets
                .iter()
                .flat_map(|offset| offset.to_le_bytes())
                .collect(),
            self.blob,
        )
    }
}

/// Two buffers, read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    offsets: &'a [u8],
    blob: &'a [u8],
}

impl<'a> View<'a> {
    /// Reads the buffers of `count` members, checking every offset.
    ///
    /// # Errors
    /// [`ArrayError`] when they are no array of that length.
    pub fn new(offsets: &'a [u8], blob: &'a [u8], count: u64) -> Result<Self, ArrayError> {
        let expected = count.saturating_add(1);
        if offsets.len() as u64 != expected.saturating_mul(4) {
            return Err(ArrayError::Length {
                count,
                expected,
                found: offsets.len(),
            });
        }
        let mut last = 0;
        for (index, bytes) in offsets.chunks_exact(4).enumerate() {
            let offset = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
            if offset < last || offset > blob.len() || index == 0 && offset != 0 {
                return Err(ArrayError::Offset {
                    index: index as u64,
                    blob: blob.len(),
                });
            }
            last = offset;
        }
        Ok(Self { offsets, blob })
    }

    /// Reads buffers that were checked before (by [`View::new`], or made here).
    #[must_use]
    pub fn trusted(offsets: &'a [u8], blob: &'a [u8]) -> Self {
        Self { offsets, blob }
    }

    fn offset(&self, index: usize) -> usize {
        let at = index * 4;
        self.offsets.get(at..at + 4).map_or(0, |bytes| {
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
        })
    }

    /// How many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.offsets.len() / 4).saturating_sub(1)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed value of one member; empty when there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> &'a [u8] {
        if index >= self.len() {
            return &[];
        }
        self.blob
            .get(self.offset(index)..self.offset(index + 1))
            .unwrap_or(&[])
    }

    /// The buffers of members `lo..hi`, offsets from 0.
    #[must_use]
    pub fn slice(&self, lo: usize, hi: usize) -> (Vec<u8>, Vec<u8>) {
        let base = self.offset(lo);
        let mut offsets = Vec::with_capacity((hi - lo + 1) * 4);
        for index in lo..=hi {
            offsets.extend_from_slice(
                &((self.offset(index).saturating_sub(base)) as u32).to_le_bytes(),
            );
        }
        (
            offsets,
            self.blob.get(base..self.offset(hi)).unwrap_or(&[]).to_vec(),
        )
    }
}

/// The id of one member of an array.
#[must_use]
pub fn member_id(msg_id: &str, index: u64) -> String {
    format!("{msg_id}:{index}")
}

/// Splits `MSGID:INDEX`; an id without an index is its own.
#[must_use]
pub fn split_id(id: &str) -> (&str, Option<u64>) {
    match id.rsplit_once(':') {
        Some((msg_id, index))
            if !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            index
                .parse()
                .map_or((id, None), |index| (msg_id, Some(index)))
        }
        _ => (id, None),
    }
}

/// A text with `…` for each message id in it: what differs in nothing else says the same.
#[must_use]
pub fn without_ids(text: &str) -> String {
    let of_id = |c: char| c.is_ascii_alphanumeric() || "-_:".contains(c);
    let pieces = text.split_inclusive(|c| !of_id(c)).map(|piece| {
        let word = piece.trim_end_matches(|c| !of_id(c) || c == ':');
        let uuid = word.get(..36).and_then(|id| Uuid::try_parse(id).ok());
        uuid.map_or(piece.into(), |_| {
            Cow::from(format!("…{}", &piece[word.len()..]))
        })
    });
    pieces.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_split() {
        assert_eq!(split_id("abc_1:17"), ("abc_1", Some(17)));
        assert_eq!(split_id("abc"), ("abc", None));
        assert_eq!(split_id("a:b"), ("a:b", None));
        assert_eq!(split_id("a:"), ("a:", None));
        assert_eq!(member_id("a", 3), "a:3");
    }

    #[test]
    fn ids_are_left_out() {
        let id = "3b8e7f0d-c83c-40bf-9691-0cdebd6b262c";
        for id in [id.to_owned(), format!("{id}_12"), format!("{id}_12:7")] {
            let text = format!("E: after all of {id} succeed, ({id}), {id}: é");
            let without = "E: after all of … succeed, (…), …: é";
            assert_eq!(without_ids(&text), without);
        }
        for text in ["", "a-b_c:1 no id", &id[..35]] {
            assert_eq!(without_ids(text), text);
        }
    }

    proptest! {
        #[test]
        fn packs_and_slices(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..20), a in 0usize..20, b in 0usize..20) {
            let mut packed = Packed::new();
            for value in &values {
                packed.push(value).unwrap();
            }
            let (offsets, blob) = packed.into_buffers();
            let view = View::new(&offsets, &blob, values.len() as u64).unwrap();
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(view.get(index), &value[..]);
            }
            let (lo, hi) = (a.min(b).min(values.len()), a.max(b).min(values.len()));
            let (offsets, blob) = view.slice(lo, hi);
            let part = View::new(&offsets, &blob, (hi - lo) as u64).unwrap();
            for (index, value) in values[lo..hi].iter().enumerate() {
                prop_assert_eq!(part.get(index), &value[..]);
            }
        }

        #[test]
        fn arbitrary_buffers_never_panic(offsets in proptest::collection::vec(any::<u8>(), 0..40), blob in proptest::collection::vec(any::<u8>(), 0..40), count in any::<u64>()) {
            for count in [count, (offsets.len() / 4) as u64] {
                if let Ok(view) = View::new(&offsets, &blob, count) {
                    for index in 0..view.len() + 1 {
                        let _ = view.get(index);
                    }
                }
            }
        }
    }
}
