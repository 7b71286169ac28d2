//! The header of an `.npy` file: magic, version, length, and a Python dictionary of three keys.

use margay_tensor::DType;

use crate::NpyError;

pub(super) const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Magic and version.
pub(super) const PREAMBLE: usize = 8;
/// Longest header text accepted. The longest this module's grammar can mean anything by, with 64 axes, has
/// about 1.5 kB; the rest is room for padding.
const MAX_HEADER: usize = u16::MAX as usize;
/// NumPy's own limit.
const MAX_AXES: usize = 64;
/// NumPy aligns the data, so that it can be mapped.
const ALIGNMENT: usize = 64;

/// What a header says. `data_bytes` is the product of element size and extents.
#[derive(Debug, PartialEq)]
pub(super) struct Header {
    pub(super) dtype: DType,
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<usize>,
    pub(super) data_bytes: usize,
}

/// The number of bytes that hold the header length, from the first [`PREAMBLE`] bytes.
pub(super) fn length_bytes(preamble: &[u8]) -> Result<usize, NpyError> {
    match preamble.strip_prefix(MAGIC) {
        Some([1, 0]) => Ok(2),
        Some([2 | 3, 0]) => Ok(4),
        Some([major, minor]) => Err(NpyError::Version { major: *major, minor: *minor }),
        _ => Err(NpyError::Magic { found: preamble[..preamble.len().min(MAGIC.len())].to_vec() }),
    }
}

/// The header length, checked, from its little-endian bytes.
pub(super) fn length(bytes: &[u8]) -> Result<usize, NpyError> {
    let found = bytes.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    if found > MAX_HEADER {
        return Err(NpyError::HeaderLength { limit: MAX_HEADER, found });
    }
    Ok(found)
}

/// Everything before the data, padded to the alignment. It always fits version 1.0.
pub(super) fn write(dtype: DType, shape: &[usize]) -> Result<Vec<u8>, NpyError> {
    if shape.len() > MAX_AXES {
        return Err(NpyError::Axes { limit: MAX_AXES, found: shape.len() });
    }
    let code = code(dtype);
    let order = if dtype.bytes() == 1 { '|' } else { '<' };
    let extents: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let shape = format!("({}{comma})", extents.join(", "));
    let mut text = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {shape}, }}");
    let before = PREAMBLE + 2;
    let total = (before + text.len() + 1).next_multiple_of(ALIGNMENT);
    text.extend(std::iter::repeat_n(' ', total - before - text.len() - 1));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Ok(bytes)
}

/// NumPy's kind and size, without the byte order. NumPy lacks bf16; two bytes of no type are how the package `ml_dtypes`
/// has NumPy write it.
fn code(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f4",
        DType::F64 => "f8",
        DType::F16 => "f2",
        DType::BF16 => "V2",
        DType::I8 => "i1",
        DType::U8 => "u1",
        DType::I16 => "i2",
        DType::U16 => "u2",
        DType::I32 => "i4",
        DType::U32 => "u4",
        DType::I64 => "i8",
        DType::U64 => "u8",
        DType::Bool => "b1",
    }
}

fn dtype(descr: &str) -> Result<DType, NpyError> {
    let unsupported = || NpyError::UnsupportedType { descr: descr.to_owned() };
    let mut chars = descr.chars();
    let order = chars.next().ok_or_else(unsupported)?;
    let dtype = DType::ALL.into_iter().find(|d| code(*d) == chars.as_str()).ok_or_else(unsupported)?;
    match (order, dtype.bytes()) {
        (_, 1) if "|<>=".contains(order) => Ok(dtype),
        ('<', _) => Ok(dtype),
        ('|', _) if dtype == DType::BF16 => Ok(dtype),
        ('>', _) => Err(NpyError::BigEndian { descr: descr.to_owned() }),
        _ => Err(unsupported()),
    }
}

impl Header {
    /// Parses the dictionary. Keys may come in any order, each once; blanks may surround every token.
    pub(super) fn parse(text: &[u8]) -> Result<Header, NpyError> {
        let mut cursor = Cursor { text, at: 0 };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        cursor.take(b'{', "`{`")?;
        while !cursor.next_is(b'}') {
            let at = cursor.at;
            let key = cursor.quoted("a quoted key")?;
            let again = match key {
                "descr" => descr.is_some(),
                "fortran_order" => fortran_order.is_some(),
                "shape" => shape.is_some(),
                _ => {
                    let expected = "key `descr`, `fortran_order` or `shape`";
                    return Err(NpyError::Header { at, expected, found: format!("`{key}`") });
                }
            };
            if again {
                let found = format!("`{key}` again");
                return Err(NpyError::Header { at, expected: "each key once", found });
            }
            cursor.take(b':', "`:`")?;
            match key {
                "descr" => descr = Some(cursor.quoted("a quoted element type")?),
                "fortran_order" => fortran_order = Some(cursor.boolean()?),
                _ => shape = Some(cursor.extents()?),
            }
            if !cursor.next_is(b'}') {
                cursor.take(b',', "`,` or `}`")?;
            }
        }
        let dtype = dtype(descr.ok_or_else(|| cursor.found("key `descr`"))?)?;
        let fortran_order = fortran_order.ok_or_else(|| cursor.found("key `fortran_order`"))?;
        let shape = shape.ok_or_else(|| cursor.found("key `shape`"))?;
        cursor.take(b'}', "`}`")?;
        cursor.skip_blanks();
        if cursor.at < text.len() {
            return Err(cursor.found("the end"));
        }
        match shape.iter().try_fold(dtype.bytes(), |n, &extent| n.checked_mul(extent)) {
            Some(data_bytes) => Ok(Header { dtype, fortran_order, shape, data_bytes }),
            None => Err(NpyError::Overflow { dtype, shape }),
        }
    }
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn skip_blanks(&mut self) {
        self.at += self.text[self.at..].iter().take_while(|b| b" \n\t".contains(b)).count();
    }

    /// Whether `byte` is the next token; leaves the cursor at the token.
    fn next_is(&mut self, byte: u8) -> bool {
        self.skip_blanks();
        self.text.get(self.at) == Some(&byte)
    }

    fn take(&mut self, byte: u8, expected: &'static str) -> Result<(), NpyError> {
        if !self.next_is(byte) {
            return Err(self.found(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn quoted(&mut self, expected: &'static str) -> Result<&'a str, NpyError> {
        self.skip_blanks();
        let Some(quote @ (b'\'' | b'"')) = self.text.get(self.at) else {
            return Err(self.found(expected));
        };
        let rest = &self.text[self.at + 1..];
        let Some(n) = rest.iter().position(|b| b == quote) else {
            let expected = "a closing quote";
            return Err(NpyError::Header { at: self.at, expected, found: "the end".to_owned() });
        };
        let Ok(inner) = std::str::from_utf8(&rest[..n]) else {
            let found = format!("`{}`", rest[..n].escape_ascii());
            return Err(NpyError::Header { at: self.at, expected: "UTF-8 text", found });
        };
        self.at += n + 2;
        Ok(inner)
    }

    fn boolean(&mut self) -> Result<bool, NpyError> {
        self.skip_blanks();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.found("`True` or `False`"))
    }

    /// A tuple of non-negative integers.
    fn extents(&mut self) -> Result<Vec<usize>, NpyError> {
        self.take(b'(', "a tuple of extents")?;
        let mut extents = Vec::new();
        while !self.next_is(b')') {
            extents.push(self.extent()?);
            // A tuple of one needs its comma: `(3)` is a number.
            if extents.len() == 1 || !self.next_is(b')') {
                self.take(b',', "`,`")?;
            }
        }
        self.take(b')', "`)`")?;
        if extents.len() > MAX_AXES {
            return Err(NpyError::Axes { limit: MAX_AXES, found: extents.len() });
        }
        Ok(extents)
    }

    fn extent(&mut self) -> Result<usize, NpyError> {
        self.skip_blanks();
        let start = self.at;
        let n = self.text[start..].iter().take_while(|b| b.is_ascii_digit()).count();
        if n == 0 {
            return Err(self.found("an extent"));
        }
        self.at += n;
        let digits = String::from_utf8_lossy(&self.text[start..self.at]);
        digits.parse().map_err(|_| NpyError::Header {
            at: start,
            expected: "an extent below 2^64",
            found: format!("`{digits}`"),
        })
    }

    /// An error about the token at the cursor.
    fn found(&self, expected: &'static str) -> NpyError {
        let found = match self.text.get(self.at) {
            Some(byte) => format!("`{}`", byte.escape_ascii()),
            None => "the end".to_owned(),
        };
        NpyError::Header { at: self.at, expected, found }
    }
}
