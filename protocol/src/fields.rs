//! A few values of a packed map, found without unpacking the rest.
//!
//! A broker reads three short texts of each header, and each header has twice as many that it passes on unread. This walks
//! over them by their lengths; whatever is not as plain as the messages of every day is left to serde.

use rmp::Marker;

/// A value as it is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    packed: &'a [u8],
    /// Where its bytes begin, if it is a text.
    text: usize,
}

impl<'a> Field<'a> {
    pub(crate) fn text(self) -> Option<&'a str> {
        (self.text > 0)
            .then(|| std::str::from_utf8(&self.packed[self.text..]).ok())
            .flatten()
    }

    pub(crate) fn is_nil(self) -> bool {
        Marker::from_u8(self.packed[0]) == Marker::Null
    }

    pub(crate) fn bool(self) -> Option<bool> {
        match Marker::from_u8(self.packed[0]) {
            Marker::True => Some(true),
            Marker::False => Some(false),
            _ => None,
        }
    }

    pub(crate) fn f64(self) -> Option<f64> {
        match Marker::from_u8(self.packed[0]) {
            Marker::F64 => Some(f64::from_be_bytes(self.packed[1..].try_into().ok()?)),
            _ => None,
        }
    }
}

/// The values of `names` in a MessagePack map, in their order. `None`: the bytes are something else than a map of texts
/// to texts, numbers, booleans or nil, and it takes serde to read them or to say what is wrong.
pub(crate) fn fields<'a, const N: usize>(
    packed: &'a [u8],
    names: [&str; N],
) -> Option<[Option<Field<'a>>; N]> {
    let (mut rest, count) = match Marker::from_u8(*packed.first()?) {
        Marker::FixMap(count) => (&packed[1..], usize::from(count)),
        Marker::Map16 => (packed.get(3..)?, big_endian(packed.get(1..3)?)),
        _ => return None,
    };
    let mut found = [None; N];
    for _ in 0..count {
        let (name, after) = next(rest)?;
        let (value, after) = next(after)?;
        rest = after;
        if name.text == 0 {
            return None;
        }
        let name = &name.packed[name.text..];
        if let Some(at) = names.iter().position(|wanted| wanted.as_bytes() == name)
            && found[at].replace(value).is_some()
        {
            return None;
        }
    }
    Some(found)
}

/// The value that `bytes` begin with, and what follows it.
fn next(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let long_text = |width: usize| Some((1 + width, big_endian(bytes.get(1..=width)?)));
    let (begin, len, is_text) = match Marker::from_u8(*bytes.first()?) {
        Marker::FixStr(len) => (1, usize::from(len), true),
        Marker::Str8 => long_text(1).map(|(begin, len)| (begin, len, true))?,
        Marker::Str16 => long_text(2).map(|(begin, len)| (begin, len, true))?,
        Marker::Str32 => long_text(4).map(|(begin, len)| (begin, len, true))?,
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
            (1, 0, false)
        }
        Marker::U8 | Marker::I8 => (1, 1, false),
        Marker::U16 | Marker::I16 => (1, 2, false),
        Marker::U32 | Marker::I32 | Marker::F32 => (1, 4, false),
        Marker::U64 | Marker::I64 | Marker::F64 => (1, 8, false),
        _ => return None,
    };
    let (packed, after) = bytes.split_at_checked(begin.checked_add(len)?)?;
    let text = if is_text { begin } else { 0 };
    Some((Field { packed, text }, after))
}

fn big_endian(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::{
        message::{HeaderRef, ParentRef, ReplyMetadata},
        session::Packer,
    };

    /// The short way and serde's agree, on what is right and on what is wrong.
    fn agree(packed: &[u8]) {
        let packer = Packer::Msgpack;
        let read = HeaderRef::read(packer, packed).ok();
        assert_eq!(read, packer.unpack::<HeaderRef<'_>>(packed).ok());
        let read = ParentRef::read(packer, packed).ok();
        assert_eq!(read, packer.unpack::<ParentRef<'_>>(packed).ok());
        // What reads one text of a map needs no more of it than that.
        if let Ok(parent) = packer.unpack::<ParentRef<'_>>(packed) {
            assert_eq!(ParentRef::id(packer, packed).ok(), Some(parent.msg_id));
        }
        if let Ok(header) = packer.unpack::<HeaderRef<'_>>(packed) {
            assert_eq!(HeaderRef::date(packer, packed).ok(), Some(header.date));
        }
        let read = ReplyMetadata::read(packer, packed).ok();
        let serde = packer.unpack::<ReplyMetadata<'_>>(packed).ok();
        assert_eq!(format!("{read:?}"), format!("{serde:?}"));
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,300}".prop_map(Value::from),
            Just(json!([1, 2])),
            Just(json!({"a": "b"})),
            Just(json!([[3, "error"]])),
        ]
    }

    fn name() -> impl Strategy<Value = String> {
        const KNOWN: &[&str] = &[
            "msg_id",
            "msg_type",
            "session",
            "date",
            "username",
            "version",
            "status",
            "engine",
            "dependencies_met",
            "started",
            "duration",
            "range",
            "failed",
        ];
        prop_oneof![8 => prop::sample::select(KNOWN).prop_map(str::to_owned), 1 => "\\PC{0,40}"]
    }

    proptest! {
        #[test]
        fn maps(map in prop::collection::btree_map(name(), value(), 0..20), cut in any::<prop::sample::Index>()) {
            let packed = Packer::Msgpack.pack(&map);
            agree(&packed);
            agree(&packed[..cut.index(packed.len())]);
        }

        #[test]
        fn messages_of_every_day(id in "[a-z0-9_-]{0,60}", seconds in any::<f64>(), met: bool, flip in any::<(prop::sample::Index, u8)>()) {
            for map in [
                json!({"msg_id": id, "msg_type": "apply_request", "username": "u", "session": id, "date": "2026", "version": "5.3"}),
                json!({"status": "ok", "dependencies_met": met, "engine": id, "duration": seconds, "started": "2026"}),
            ] {
                let mut packed = Packer::Msgpack.pack(&map);
                prop_assert!(super::fields(&packed, ["msg_id"]).is_some());
                agree(&packed);
                let at = flip.0.index(packed.len());
                packed[at] = flip.1;
                agree(&packed);
            }
        }

        #[test]
        fn bytes(packed in prop::collection::vec(any::<u8>(), 0..80)) {
            agree(&packed);
        }
    }

    #[test]
    fn what_is_there_twice_is_left_to_serde() {
        let mut packed = vec![0x82];
        for id in ["a", "b"] {
            packed.extend(Packer::Msgpack.pack("msg_id"));
            packed.extend(Packer::Msgpack.pack(id));
        }
        assert!(ParentRef::read(Packer::Msgpack, &packed).is_err());
        agree(&packed);
    }
}
