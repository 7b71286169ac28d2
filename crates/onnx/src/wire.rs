//! A bounded walk over protobuf bytes, before the parser sees them.
//!
//! The parser copies every payload, and makes hundreds of bytes out of a two-byte message. [`cut`] goes first,
//! without recursion. It refuses groups, nesting over a limit, lengths that lie, varints that do not end, and
//! messages that would fill memory; and it makes a copy of the message for the parser in which
//!
//! - fields that `schema` does not list (documentation, unknown extensions) are dropped, and
//! - each tensor payload is replaced by its index in a list of byte ranges of the file.
//!
//! Memory: the copy is no larger than the file less its payloads plus a few bytes per message.
//!
//! Deliberately absent: decoding. Contents of strings and packed numbers are the parser's business.

pub(crate) mod proto;
mod schema;

use std::ops::Range;

use crate::OnnxError;
pub(crate) use schema::Message;
use schema::{Encoding, Wire};

/// Greatest nesting of messages. The parser's own limit is 100; a subgraph takes three levels.
pub(crate) const MAX_DEPTH: usize = 96;
/// Memory that parsed messages may take whatever the size of the file, in bytes.
const MEMORY_BASE: usize = 16 << 20;
/// Memory that parsed messages may take for each byte of the file that is no payload. Real files stay under 30:
/// the worst are attributes of a few bytes, whose structure has a field for every possible kind.
const MEMORY_PER_BYTE: usize = 48;
/// Greatest size of the copy: lengths in protobuf are at most this.
const MAX_REST_BYTES: usize = i32::MAX as usize;
/// Bytes of a length in the copy. Lengths are written last, into a gap left for them, as padded varints.
const LENGTH_BYTES: usize = 5;

/// A message without its payloads.
#[derive(Debug)]
pub(crate) struct Cut {
    /// The message for the parser; each payload is four bytes, its little-endian index in `payloads`.
    pub(crate) rest: Vec<u8>,
    /// Byte ranges of the payloads in the file.
    pub(crate) payloads: Vec<Range<usize>>,
}

/// A message that the walk is inside of.
struct Frame {
    message: Message,
    /// Where its bytes end in the file.
    end: usize,
    /// Where its length belongs in the copy; `None` for the root, which has none.
    gap: Option<usize>,
}

/// Checks the message that `bytes` hold and cuts its payloads out.
///
/// # Errors
/// [`OnnxError::Truncated`], [`OnnxError::Malformed`], [`OnnxError::TooDeep`] or [`OnnxError::TooLarge`].
pub(crate) fn cut(bytes: &[u8], root: Message) -> Result<Cut, OnnxError> {
    let mut out = Cut { rest: Vec::new(), payloads: Vec::new() };
    let mut stack = vec![Frame { message: root, end: bytes.len(), gap: None }];
    let mut cursor = Cursor { bytes, root, at: 0 };
    let mut memory = 0usize;
    let mut payload_bytes = 0usize;
    while let Some(frame) = stack.last() {
        if cursor.at == frame.end {
            close(&mut out.rest, frame.gap);
            stack.pop();
            continue;
        }
        let (message, end) = (frame.message, frame.end);
        let start = cursor.at;
        let (field, wire) = cursor.tag(message, end)?;
        let tag = start..cursor.at;
        let encoding = message.field(field);
        if !encoding.allows(wire) {
            return Err(OnnxError::Malformed {
                at: start,
                within: message.name(),
                expected: format!("field {field} as {encoding}"),
                found: wire.to_string(),
            });
        }
        let value = cursor.value(message, wire, end)?;
        match encoding {
            Encoding::Dropped => {}
            Encoding::Payload => {
                payload_bytes += value.len();
                out.rest.extend_from_slice(slice(bytes, &tag));
                out.rest.push(4);
                out.rest.extend_from_slice(&(out.payloads.len() as u32).to_le_bytes());
                out.payloads.push(value);
            }
            Encoding::Message(child) => {
                memory = memory.saturating_add(child.memory_bytes());
                let limit =
                    MEMORY_BASE.saturating_add((start - payload_bytes).saturating_mul(MEMORY_PER_BYTE));
                if memory > limit {
                    return Err(OnnxError::TooLarge {
                        what: "the structure of the model in memory",
                        limit: limit as u64,
                        found: memory as u64,
                    });
                }
                if stack.len() == MAX_DEPTH {
                    return Err(OnnxError::TooDeep { at: start, limit: MAX_DEPTH });
                }
                out.rest.extend_from_slice(slice(bytes, &tag));
                let gap = out.rest.len();
                out.rest.extend_from_slice(&[0; LENGTH_BYTES]);
                cursor.at = value.start;
                stack.push(Frame { message: child, end: value.end, gap: Some(gap) });
            }
            _ => out.rest.extend_from_slice(slice(bytes, &(start..value.end))),
        }
        if out.rest.len() > MAX_REST_BYTES {
            return Err(OnnxError::TooLarge {
                what: "the model without its raw tensor data",
                limit: MAX_REST_BYTES as u64,
                found: out.rest.len() as u64,
            });
        }
    }
    Ok(out)
}

/// Writes the length of a finished message into the gap before it.
fn close(rest: &mut [u8], gap: Option<usize>) {
    let Some(gap) = gap else { return };
    let length = rest.len() - gap - LENGTH_BYTES;
    for (i, byte) in rest[gap..gap + LENGTH_BYTES].iter_mut().enumerate() {
        let more = if i + 1 < LENGTH_BYTES { 0x80 } else { 0 };
        *byte = (length >> (7 * i)) as u8 & 0x7f | more;
    }
}

/// The bytes of a range the cursor has passed.
fn slice<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    bytes.get(range.clone()).unwrap_or_default()
}

/// A position in the file. `at` never exceeds the `end` it is called with, and `end` never the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    root: Message,
    at: usize,
}

impl Cursor<'_> {
    fn tag(&mut self, within: Message, end: usize) -> Result<(u32, Wire), OnnxError> {
        let at = self.at;
        let malformed = |expected: &str, found: String| OnnxError::Malformed {
            at,
            within: within.name(),
            expected: expected.to_owned(),
            found,
        };
        let tag = self.varint(within, end)?;
        let field = u32::try_from(tag >> 3).ok().filter(|f| (1..1 << 29).contains(f));
        let field =
            field.ok_or_else(|| malformed("a field number from 1 to 536870911", (tag >> 3).to_string()))?;
        let wire = match tag & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Length,
            5 => Wire::Fixed32,
            3 | 4 => return Err(malformed("no groups", format!("a group as field {field}"))),
            other => return Err(malformed("a wire type of 0, 1, 2 or 5", other.to_string())),
        };
        Ok((field, wire))
    }

    /// Moves past a value and returns where it lies; for lengths, without the length itself.
    fn value(&mut self, within: Message, wire: Wire, end: usize) -> Result<Range<usize>, OnnxError> {
        let start = self.at;
        let length = match wire {
            Wire::Varint => {
                self.varint(within, end)?;
                return Ok(start..self.at);
            }
            Wire::Fixed64 => 8,
            Wire::Fixed32 => 4,
            Wire::Length => self.varint(within, end)?,
        };
        let from = self.at;
        match usize::try_from(length).ok().and_then(|l| from.checked_add(l)).filter(|&to| to <= end) {
            Some(to) => {
                self.at = to;
                Ok(from..to)
            }
            None => Err(self.overrun(within, end, (from as u64).saturating_add(length))),
        }
    }

    fn varint(&mut self, within: Message, end: usize) -> Result<u64, OnnxError> {
        let start = self.at;
        let mut value = 0u64;
        for i in 0..10 {
            let Some(&byte) = self.bytes.get(..end).and_then(|b| b.get(self.at)) else {
                return Err(self.overrun(within, end, end as u64 + 1));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(OnnxError::Malformed {
            at: start,
            within: within.name(),
            expected: "a number of at most 10 bytes".to_owned(),
            found: "a longer one".to_owned(),
        })
    }

    /// The error for a value that ends at `to`, past `end`: the file is cut short, or a length inside it lies.
    fn overrun(&self, within: Message, end: usize, to: u64) -> OnnxError {
        if within == self.root {
            return OnnxError::Truncated { within: within.name(), expected: to, found: end as u64 };
        }
        OnnxError::Malformed {
            at: self.at,
            within: within.name(),
            expected: format!("a value that ends at byte {end} or before"),
            found: format!("one that ends at byte {to}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use onnx_protobuf::{AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, TensorProto};

    use super::*;

    fn message(bytes: &[u8]) -> String {
        cut(bytes, Message::Model).unwrap_err().to_string()
    }

    fn model() -> ModelProto {
        let tensor = |n: u8| TensorProto {
            raw_data: vec![n; 300],
            dims: vec![75],
            data_type: 1,
            ..Default::default()
        };
        let attribute =
            AttributeProto { t: Some(tensor(1)).into(), name: "value".to_owned(), ..Default::default() };
        let node = NodeProto {
            attribute: vec![attribute],
            op_type: "Constant".to_owned(),
            doc_string: "dropped".to_owned(),
            ..Default::default()
        };
        let graph = GraphProto { node: vec![node], initializer: vec![tensor(2)], ..Default::default() };
        ModelProto { ir_version: 8, graph: Some(graph).into(), ..Default::default() }
    }

    #[test]
    fn payloads_are_cut_and_lengths_mended() {
        let bytes = model().write_to_bytes().unwrap();
        let cut = cut(&bytes, Message::Model).unwrap();
        assert!(cut.rest.len() < 150, "{}", cut.rest.len());
        let parsed = ModelProto::parse_from_bytes(&cut.rest).unwrap();
        let node = &parsed.graph.node[0];
        assert_eq!(node.op_type, "Constant");
        assert_eq!(node.doc_string, "");
        for (tensor, byte) in [(&*node.attribute[0].t, 1), (&parsed.graph.initializer[0], 2)] {
            let index = u32::from_le_bytes(tensor.raw_data[..].try_into().unwrap());
            assert_eq!(bytes[cut.payloads[index as usize].clone()], [byte; 300]);
            assert_eq!(tensor.dims, [75]);
        }
    }

    #[test]
    fn cut_short() {
        let bytes = model().write_to_bytes().unwrap();
        for length in 3..bytes.len() {
            let error = cut(&bytes[..length], Message::Model).unwrap_err();
            assert!(matches!(error, OnnxError::Truncated { .. }), "{length}: {error}");
        }
        assert_eq!(
            message(&bytes[..100]),
            format!(
                "the file is cut short inside `ModelProto`: expected at least {} bytes, found 100",
                bytes.len()
            )
        );
    }

    #[test]
    fn harmful_bytes() {
        let cases: [(&[u8], &str); 7] = [
            (&[0x0b], "malformed `ModelProto` at byte 0: expected no groups, found a group as field 1"),
            (
                &[0x00, 0x01],
                "malformed `ModelProto` at byte 0: expected a field number from 1 to 536870911, found 0",
            ),
            (
                &[0x0f, 0x01],
                "malformed `ModelProto` at byte 0: expected a wire type of 0, 1, 2 or 5, found 7",
            ),
            (
                &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
                "malformed `ModelProto` at byte 1: expected a number of at most 10 bytes, found a longer one",
            ),
            (
                &[0x0a, 0x00],
                "malformed `ModelProto` at byte 0: expected field 1 as a number, found a run of bytes",
            ),
            (
                &[0x3a, 0x03, 0x0a, 0x02, 0x00],
                "malformed `GraphProto` at byte 4: expected a value that ends at byte 5 or before, \
                 found one that ends at byte 6",
            ),
            (
                &[0x3a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
                "the file is cut short inside `ModelProto`: expected at least 18446744073709551615 bytes, found 11",
            ),
        ];
        for (bytes, expected) in cases {
            assert_eq!(message(bytes), expected);
        }
        assert!(matches!(cut(&[0x0b; 300_000], Message::Model), Err(OnnxError::Malformed { .. })));
        // Field 31 is unknown, its content is not looked into.
        let mut hidden = vec![0xfa, 0x01, 0x64];
        hidden.extend([0x0b; 100]);
        assert!(cut(&hidden, Message::Model).unwrap().rest.is_empty());
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = Vec::new();
        for _ in 0..40 {
            for tag in [0x32, 0x2a, 0x0a] {
                let mut outer = vec![tag];
                let mut length = bytes.len();
                while length >= 0x80 {
                    outer.push(length as u8 | 0x80);
                    length >>= 7;
                }
                outer.push(length as u8);
                outer.append(&mut bytes);
                bytes = outer;
            }
        }
        let error = cut(&bytes, Message::Graph).unwrap_err();
        assert!(matches!(error, OnnxError::TooDeep { limit: MAX_DEPTH, .. }), "{error}");
    }

    #[test]
    fn many_empty_messages_are_refused() {
        let mut bytes = vec![0x3a];
        bytes.extend([0x80, 0xe9, 0xe2, 0x04]); // a length of ten million
        let length = 0x69 << 7 | 0x62 << 14 | 0x04 << 21;
        bytes.extend([0x0a, 0x00].repeat(length / 2));
        assert!(
            message(&bytes)
                .starts_with("the structure of the model in memory is too large: expected at most")
        );
    }
}
