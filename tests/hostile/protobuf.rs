//! Changes of the fields of a protobuf message, without its schema.

use super::{Draw, bytes};

/// The deepest message that is changed.
const MAX_DEPTH: usize = 12;

/// A field: its number and wire type, and its value.
#[derive(Clone)]
struct Field {
    tag: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

/// The message with one of its fields, or one of a message inside, changed, dropped, doubled or moved. Bytes that are no
/// message are changed as such.
pub(super) fn change(message: &[u8], draw: &mut Draw) -> Vec<u8> {
    inside(message, draw, 0)
}

fn inside(message: &[u8], draw: &mut Draw, depth: usize) -> Vec<u8> {
    let Some(mut fields) = fields(message).filter(|fields| !fields.is_empty()) else {
        return bytes::change(message, draw);
    };
    let (at, other) = (draw.below(fields.len()), draw.below(fields.len()));
    match draw.below(10) {
        0 => _ = fields.remove(at),
        1 => fields.insert(other, fields[at].clone()),
        2 => fields.swap(at, other),
        3 if draw.chance(2) => fields[at].tag = fields[other].tag,
        4 => fields[at].value = fields[other].value.clone(),
        _ => fields[at].value = changed(&fields[at].value, draw, depth),
    }
    fields.iter().flat_map(encoded).collect()
}

fn changed(value: &Value, draw: &mut Draw, depth: usize) -> Value {
    match value {
        Value::Varint(n) => Value::Varint(match draw.below(3) {
            0 => n ^ (1 << draw.below(64)),
            1 => draw.below(20) as u64,
            _ => draw.boundary() as u64,
        }),
        Value::Fixed(bytes) => {
            let numbers = [f32::NAN, f32::INFINITY, -0.0, 0.0, -1.0, 1e38, f32::MIN_POSITIVE];
            match (bytes.len(), draw.of(&numbers)) {
                (4, Some(number)) => Value::Fixed(number.to_le_bytes().to_vec()),
                _ => Value::Fixed(draw.boundary().to_le_bytes()[..bytes.len()].to_vec()),
            }
        }
        // Messages and texts cannot be told apart; nearly all that can be a message is one.
        Value::Bytes(inner) if depth < MAX_DEPTH && !draw.chance(8) => {
            Value::Bytes(inside(inner, draw, depth + 1))
        }
        Value::Bytes(inner) => Value::Bytes(match draw.below(4) {
            0 => Vec::new(),
            1 => inner[..draw.below(inner.len())].to_vec(),
            _ => bytes::change(inner, draw),
        }),
    }
}

fn fields(mut rest: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut rest)?),
            1 => Value::Fixed(take(&mut rest, 8)?),
            2 => {
                let length = varint(&mut rest)?;
                Value::Bytes(take(&mut rest, usize::try_from(length).ok()?)?)
            }
            5 => Value::Fixed(take(&mut rest, 4)?),
            _ => return None,
        };
        found.push(Field { tag, value });
    }
    Some(found)
}

fn take(rest: &mut &[u8], n: usize) -> Option<Vec<u8>> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken.to_vec())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn encoded(field: &Field) -> Vec<u8> {
    let mut out = Vec::new();
    // A tag of another field may stand before a value of another kind: the wire type is that of the value.
    let wire = match &field.value {
        Value::Varint(_) => 0,
        Value::Fixed(bytes) if bytes.len() == 8 => 1,
        Value::Bytes(_) => 2,
        Value::Fixed(_) => 5,
    };
    put_varint(field.tag & !7 | wire, &mut out);
    match &field.value {
        Value::Varint(n) => put_varint(*n, &mut out),
        Value::Fixed(bytes) => out.extend(bytes),
        Value::Bytes(bytes) => {
            put_varint(bytes.len() as u64, &mut out);
            out.extend(bytes);
        }
    }
    out
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
