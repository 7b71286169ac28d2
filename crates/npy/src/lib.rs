//! `.npy` and `.npz` files: reading and writing arrays, and archives of named arrays, as NumPy does.
//!
//! The format is NumPy enhancement proposal 1, versions 1.0 to 3.0. Input is not trusted: the header grammar
//! is strict, every size is checked before it is used, and memory grows only with the bytes really there. What is
//! written is version 1.0, little endian, in C order, and the same bytes every time.
//!
//! Deliberately absent: big-endian data, strings, structures, complex numbers and pickled objects (each has
//! its error).

mod archive;
mod header;

pub use archive::{Named, read_npz, read_npz_only, write_npz};

use margay_tensor::{DType, Tensor, TensorError};

use header::Header;

/// A `.npy` or `.npz` file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The first six bytes are not those of an `.npy` file (the file's fault).
    #[error("not an `.npy` file: expected it to start with `\\x93NUMPY`, found `{}`", found.escape_ascii())]
    Magic {
        /// The first bytes of the file, at most six.
        found: Vec<u8>,
    },
    /// The format version is newer than 3.0 (the file's fault).
    #[error("unknown `.npy` version: expected 1.0, 2.0 or 3.0, found {major}.{minor}")]
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The header is longer than any honest one (the file's fault).
    #[error("header is too long: expected at most {limit} bytes, found {found}")]
    HeaderLength {
        /// The greatest length accepted, in bytes.
        limit: usize,
        /// The length the file claims, in bytes.
        found: usize,
    },
    /// The header is not the dictionary it should be (the file's fault).
    #[error("malformed header at byte {at}: expected {expected}, found {found}")]
    Header {
        /// Offset from the start of the header dictionary, in bytes.
        at: usize,
        /// What the grammar asks for.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// The elements are big-endian (the file's fault).
    #[error("big-endian elements `{descr}` are not supported: expected little-endian ones")]
    BigEndian {
        /// The element type as written in the file.
        descr: String,
    },
    /// The element type has no counterpart here: objects, strings, dates, complex numbers, structures.
    #[error("element type `{descr}` is not supported: expected a boolean, integer or real number")]
    UnsupportedType {
        /// The element type as written in the file.
        descr: String,
    },
    /// More axes than NumPy allows (the fault of the file or the caller).
    #[error("too many axes: expected at most {limit}, found {found}")]
    Axes {
        /// The greatest number of axes.
        limit: usize,
        /// The number of axes there are.
        found: usize,
    },
    /// The shape asks for more bytes than can be counted (the file's fault).
    #[error("{dtype} array of shape {shape:?} is too large: its size in bytes overflows")]
    Overflow {
        /// Element type.
        dtype: DType,
        /// Extents.
        shape: Vec<usize>,
    },
    /// Bytes are missing, or there are too many (the file's fault).
    #[error("{what} has the wrong length: expected {expected} bytes, found {found}")]
    Length {
        /// The part of the file.
        what: &'static str,
        /// The bytes it should have.
        expected: u64,
        /// The bytes it has; where reading stopped early, at least that many.
        found: u64,
    },
    /// A boolean is neither 0 nor 1 (the file's fault).
    #[error("element {index} is not a boolean: expected 0 or 1, found {found}")]
    Bool {
        /// Index of the element in file order.
        index: usize,
        /// Its byte.
        found: u8,
    },
    /// A member of an archive is not an array (the file's fault).
    #[error("archive member `{name}` is not an array: expected a name ending in `.npy`")]
    Member {
        /// The name of the member.
        name: String,
    },
    /// A member of an archive cannot be read or written.
    #[error("in archive member `{name}`: {source}")]
    InMember {
        /// The name of the member.
        name: String,
        /// What is wrong with it.
        source: Box<NpyError>,
    },
    /// The archive itself is malformed, or uses a feature other than stored and deflated members.
    #[error("{}", archive::words(.0))]
    Archive(#[from] zip::result::ZipError),
    /// Reading or writing failed (the machine's fault, or a damaged deflate stream or checksum).
    #[error("cannot read or write the archive: {0}")]
    Io(#[from] std::io::Error),
    /// The tensor cannot be made. Its size was checked before, so this is our own bug.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Reads the one array of an `.npy` file.
///
/// # Errors
/// Any [`NpyError`] but those of archives. Bytes after the array are an error too.
pub fn read_npy(bytes: &[u8]) -> Result<Tensor, NpyError> {
    let (preamble, rest) = split(bytes, header::PREAMBLE, "the start of the file")?;
    let (length, rest) = split(rest, header::length_bytes(preamble)?, "the header length")?;
    let (text, data) = split(rest, header::length(length)?, "the header")?;
    let header = Header::parse(text)?;
    if data.len() != header.data_bytes {
        return Err(NpyError::Length {
            what: "the array",
            expected: header.data_bytes as u64,
            found: data.len() as u64,
        });
    }
    tensor(&header, data)
}

/// The bytes of an `.npy` file holding this tensor.
///
/// # Errors
/// [`NpyError::Axes`] beyond 64 axes.
pub fn write_npy(tensor: &Tensor) -> Result<Vec<u8>, NpyError> {
    let mut bytes = header::write(tensor.dtype(), tensor.shape())?;
    bytes.extend_from_slice(tensor.bytes());
    Ok(bytes)
}

fn split<'a>(bytes: &'a [u8], n: usize, what: &'static str) -> Result<(&'a [u8], &'a [u8]), NpyError> {
    match bytes.split_at_checked(n) {
        Some(parts) => Ok(parts),
        None if what == "the start of the file" && !header::MAGIC.starts_with(bytes) => {
            Err(NpyError::Magic { found: bytes[..bytes.len().min(header::MAGIC.len())].to_vec() })
        }
        None => Err(NpyError::Length { what, expected: n as u64, found: bytes.len() as u64 }),
    }
}

/// Makes the tensor from data whose length has been checked against the header.
fn tensor(header: &Header, data: &[u8]) -> Result<Tensor, NpyError> {
    if header.dtype == DType::Bool
        && let Some((index, &found)) = data.iter().enumerate().find(|(_, b)| **b > 1)
    {
        return Err(NpyError::Bool { index, found });
    }
    if header.fortran_order && header.shape.len() > 1 {
        let data = c_order(data, &header.shape, header.dtype.bytes());
        return Ok(Tensor::from_bytes(header.dtype, &header.shape, &data)?);
    }
    Ok(Tensor::from_bytes(header.dtype, &header.shape, data)?)
}

/// Reorders elements from first axis fastest to last axis fastest.
fn c_order(data: &[u8], shape: &[usize], size: usize) -> Vec<u8> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = size;
    for &extent in shape {
        strides.push(stride);
        stride *= extent;
    }
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    while out.len() < data.len() {
        out.extend_from_slice(&data[at..at + size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A version 1.0 file with this header text and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        read_npy(bytes).unwrap_err().to_string()
    }

    fn message_of(descr: &str, shape: &str, data: &[u8]) -> String {
        message(&file(&format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"), data))
    }

    #[test]
    fn every_type_and_rank_survives_a_round_trip() {
        for dtype in DType::ALL {
            for shape in [&[][..], &[3], &[0, 4], &[2, 3, 2]] {
                let n = shape.iter().product::<usize>() * dtype.bytes();
                let data: Vec<u8> = (0..n).map(|i| (i % 2) as u8).collect();
                let tensor = Tensor::from_bytes(dtype, shape, &data).unwrap();
                let bytes = write_npy(&tensor).unwrap();
                assert_eq!((bytes.len() - n) % 64, 0);
                assert_eq!(read_npy(&bytes).unwrap(), tensor, "{dtype} {shape:?}");
            }
        }
        let untyped = file("{'descr': '|V2', 'fortran_order': False, 'shape': (1,)}\n", &[0x80, 0x3f]);
        assert_eq!(
            read_npy(&untyped).unwrap(),
            Tensor::from_bytes(DType::BF16, &[1], &[0x80, 0x3f]).unwrap()
        );
    }

    #[test]
    fn header_is_the_one_numpy_writes() {
        let bytes = write_npy(&Tensor::from_slice(&[3], &[1i16, 2, 3]).unwrap()).unwrap();
        let text = "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }";
        assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(bytes[10..128], *format!("{text:<117}\n").as_bytes());
    }

    #[test]
    fn fortran_order_is_converted() {
        let header = "{'descr': '<u2', 'fortran_order': True, 'shape': (2, 3, 2)}\n";
        let data: Vec<u8> = (0..12u16).flat_map(u16::to_le_bytes).collect();
        let tensor = read_npy(&file(header, &data)).unwrap();
        assert_eq!(tensor.to_vec::<u16>().unwrap(), [0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11]);
        let empty = file("{'descr': '<u2', 'fortran_order': True, 'shape': (2, 0)}", &[]);
        assert!(read_npy(&empty).unwrap().is_empty());
    }

    #[test]
    fn header_may_be_laid_out_otherwise() {
        let mut bytes = b"\x93NUMPY\x03\x00".to_vec();
        let header = "{ \"shape\" : ( 2 , ) ,'descr':\"|b1\", 'fortran_order' :False, }  \n";
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[1, 0]);
        assert_eq!(read_npy(&bytes).unwrap(), Tensor::from_bools(&[2], &[true, false]).unwrap());
    }

    #[test]
    fn wrong_types_are_named() {
        let texts = [
            ("'>f4'", "big-endian elements `>f4` are not supported: expected little-endian ones"),
            ("'|O'", "element type `|O` is not supported: expected a boolean, integer or real number"),
            ("'<U7'", "element type `<U7` is not supported: expected a boolean, integer or real number"),
            ("'<c8'", "element type `<c8` is not supported: expected a boolean, integer or real number"),
            ("'|f4'", "element type `|f4` is not supported: expected a boolean, integer or real number"),
            ("''", "element type `` is not supported: expected a boolean, integer or real number"),
            ("[('x', '<f4')]", "malformed header at byte 10: expected a quoted element type, found `[`"),
        ];
        for (descr, expected) in texts {
            assert_eq!(message_of(descr, "(1,)", &[0; 4]), expected);
        }
    }

    #[test]
    fn wrong_sizes_say_both_numbers() {
        assert_eq!(
            message_of("'<f4'", "(2, 3)", &[0; 20]),
            "the array has the wrong length: expected 24 bytes, found 20"
        );
        assert_eq!(
            message_of("'<f4'", "(2, 3)", &[0; 25]),
            "the array has the wrong length: expected 24 bytes, found 25"
        );
        assert_eq!(
            message_of("'<f8'", "(4611686018427387904, 4)", &[]),
            "f64 array of shape [4611686018427387904, 4] is too large: its size in bytes overflows"
        );
        assert_eq!(
            message_of("'<f8'", "(1152921504606846976,)", &[0; 8]),
            "the array has the wrong length: expected 9223372036854775808 bytes, found 8"
        );
        let axes = format!("({})", "1,".repeat(65));
        assert_eq!(message_of("'<f4'", &axes, &[0; 4]), "too many axes: expected at most 64, found 65");
        assert_eq!(
            message_of("'|b1'", "(2,)", &[1, 2]),
            "element 1 is not a boolean: expected 0 or 1, found 2"
        );
    }

    #[test]
    fn hostile_bytes_are_errors() {
        let whole = write_npy(&Tensor::from_slice(&[2], &[1f32, 2.0]).unwrap()).unwrap();
        for n in 0..whole.len() {
            assert!(read_npy(&whole[..n]).is_err(), "truncated to {n} bytes");
        }
        for (at, flip) in (0..128).flat_map(|at| [1, 4, 0x80].map(|flip| (at, flip))) {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(tensor) = read_npy(&bytes) {
                assert_eq!(tensor.bytes().len(), 8, "byte {at} flipped by {flip}");
            }
        }
        assert_eq!(
            message(b"PK\x03\x04"),
            "not an `.npy` file: expected it to start with `\\x93NUMPY`, found `PK\\x03\\x04`"
        );
        assert_eq!(
            message(b"\x93NUMPY\x04\x00\x00\x00"),
            "unknown `.npy` version: expected 1.0, 2.0 or 3.0, found 4.0"
        );
        assert_eq!(
            message(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
            "header is too long: expected at most 65535 bytes, found 4294967295"
        );
        assert_eq!(
            message(b"\x93NUM"),
            "the start of the file has the wrong length: expected 8 bytes, found 4"
        );
    }

    #[test]
    fn malformed_headers_are_errors() {
        let cases = [
            ("", "malformed header at byte 0: expected `{`, found the end"),
            ("{}", "malformed header at byte 1: expected key `descr`, found `}`"),
            ("{'descr': '<f4'}", "malformed header at byte 15: expected key `fortran_order`, found `}`"),
            (
                "{'descr': '<f4', 'descr': '<f4'}",
                "malformed header at byte 17: expected each key once, found `descr` again",
            ),
            (
                "{'size': 4}",
                "malformed header at byte 1: expected key `descr`, `fortran_order` or `shape`, found `size`",
            ),
            ("{'fortran_order': 1}", "malformed header at byte 18: expected `True` or `False`, found `1`"),
            ("{'shape': (3)}", "malformed header at byte 12: expected `,`, found `)`"),
            ("{'shape': (-3,)}", "malformed header at byte 11: expected an extent, found `-`"),
            ("{'shape': (,)}", "malformed header at byte 11: expected an extent, found `,`"),
            (
                "{'shape': (99999999999999999999,)}",
                "malformed header at byte 11: expected an extent below 2^64, found `99999999999999999999`",
            ),
            ("{'descr", "malformed header at byte 1: expected a closing quote, found the end"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': ()} x",
                "malformed header at byte 54: expected the end, found `x`",
            ),
        ];
        for (header, expected) in cases {
            assert_eq!(message(&file(header, &[])), expected, "{header}");
        }
        assert!(message(&file("{'descr': '\u{e9}'}", &[])).contains("expected"));
    }
}
