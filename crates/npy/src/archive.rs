//! `.npz` archives: zip files whose members are `.npy` files.

use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom, Write};

use margay_tensor::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::header::{self, Header};
use crate::{NpyError, tensor};

const EXTENSION: &str = ".npy";

/// Why an archive cannot be read. One without a directory at its end is none: the file is empty, cut short or something else.
pub(crate) fn words(error: &zip::result::ZipError) -> String {
    match error {
        zip::result::ZipError::InvalidArchive(why) if why.contains("EOCD") => {
            "no `.npz` file: it is empty, was cut short, or holds something else".into()
        }
        other => format!("cannot use the archive: {other}"),
    }
}

/// Arrays with their names.
pub type Named = Vec<(String, Tensor)>;

/// Reads every array of an archive, in the archive's order, under its name without `.npy`.
///
/// Members may be stored or deflated. A member is inflated no further than the size its own header promises,
/// and memory grows with what is really inflated.
///
/// # Errors
/// [`NpyError::Archive`] if it is no zip file or holds a name twice, [`NpyError::Member`] for a member that
/// is no array, and [`NpyError::InMember`] for whatever is wrong inside one.
pub fn read_npz(from: impl Read + Seek) -> Result<Vec<(String, Tensor)>, NpyError> {
    Ok(read_npz_only(from, &|_| true)?.0)
}

/// As [`read_npz`], but only the arrays that are `wanted` by their names; of the others the names. Those are not inflated,
/// whatever they hold.
///
/// # Errors
/// As [`read_npz`], of wanted arrays.
pub fn read_npz_only(
    from: impl Read + Seek,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<(Named, Vec<String>), NpyError> {
    let mut archive = ZipArchive::new(from)?;
    if archive.has_duplicate_names() {
        return Err(zip::result::ZipError::InvalidArchive("a member name occurs twice".into()).into());
    }
    let (mut arrays, mut others) = (Vec::new(), Vec::new());
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        let name = member.name()?.into_owned();
        let Some(stem) = name.strip_suffix(EXTENSION) else {
            return Err(NpyError::Member { name });
        };
        if !wanted(stem) {
            others.push(stem.to_owned());
            continue;
        }
        let claimed = member.size();
        match read_member(&mut member, claimed) {
            Ok(tensor) => arrays.push((stem.to_owned(), tensor)),
            Err(source) => return Err(NpyError::InMember { name, source: Box::new(source) }),
        }
    }
    Ok((arrays, others))
}

/// Writes an archive of arrays under these names, to which `.npy` is added.
///
/// Members are stored, not deflated, in the order given, with a fixed time stamp: the same arrays make the
/// same bytes.
///
/// # Errors
/// [`NpyError::InMember`] for a tensor that has no `.npy` form, [`NpyError::Archive`] for a name given twice, and
/// [`NpyError::Io`].
pub fn write_npz<S: AsRef<str>>(to: impl Write + Seek, arrays: &[(S, Tensor)]) -> Result<(), NpyError> {
    let failed = RefCell::new(None);
    let written = write_members(Guarded { to, at: 0, failed: &failed }, arrays);
    match failed.into_inner() {
        Some(error) => Err(NpyError::Io(error)),
        None => written,
    }
}

/// A stream that keeps its first error, and from then on takes everything without doing it: an archive that is dropped tries
/// to end its file, and prints what fails then.
struct Guarded<'e, W> {
    to: W,
    /// Where the next byte would go.
    at: u64,
    failed: &'e RefCell<Option<io::Error>>,
}

impl<W> Guarded<'_, W> {
    /// The result of something that was done; `instead` where it was not.
    fn unless_failed<T>(&mut self, instead: T, work: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        if self.failed.borrow().is_some() {
            return Ok(instead);
        }
        work(&mut self.to).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                *self.failed.borrow_mut() = Some(error);
            }
            kind.into()
        })
    }
}

impl<W: Write> Write for Guarded<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.unless_failed(bytes.len(), |to| to.write(bytes))?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_failed((), Write::flush)
    }
}

impl<W: Seek> Seek for Guarded<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let instead = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(_) => self.at,
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
        };
        self.at = self.unless_failed(instead, |inner| inner.seek(to))?;
        Ok(self.at)
    }
}

fn write_members<S: AsRef<str>>(to: impl Write + Seek, arrays: &[(S, Tensor)]) -> Result<(), NpyError> {
    let mut archive = ZipWriter::new(to);
    for (name, tensor) in arrays {
        let name = format!("{}{EXTENSION}", name.as_ref());
        let start = match header::write(tensor.dtype(), tensor.shape()) {
            Ok(start) => start,
            Err(source) => return Err(NpyError::InMember { name, source: Box::new(source) }),
        };
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(start.len() + tensor.bytes().len() > u32::MAX as usize);
        archive.start_file(name, options)?;
        archive.write_all(&start)?;
        archive.write_all(tensor.bytes())?;
    }
    archive.finish()?;
    Ok(())
}

/// Reads one `.npy` file from a stream that claims to hold `claimed` bytes.
fn read_member(from: &mut impl Read, claimed: u64) -> Result<Tensor, NpyError> {
    let preamble = read_exactly(from, header::PREAMBLE, "the start of the file")?;
    let length = read_exactly(from, header::length_bytes(&preamble)?, "the header length")?;
    let text = read_exactly(from, header::length(&length)?, "the header")?;
    let header = Header::parse(&text)?;
    let before = (preamble.len() + length.len() + text.len()) as u64;
    let promised = before.saturating_add(header.data_bytes as u64);
    if promised != claimed {
        return Err(NpyError::Length { what: "the member", expected: promised, found: claimed });
    }
    let data = read_exactly(from, header.data_bytes, "the array")?;
    // Reading past the data finds any excess, and makes the archive compare its checksum.
    let excess = from.take(1).read_to_end(&mut Vec::new())?;
    if excess > 0 {
        let expected = header.data_bytes as u64;
        return Err(NpyError::Length { what: "the array", expected, found: expected + excess as u64 });
    }
    tensor(&header, &data)
}

/// Reads `n` bytes. `n` is only a promise, so nothing is allocated by it.
fn read_exactly(from: &mut impl Read, n: usize, what: &'static str) -> Result<Vec<u8>, NpyError> {
    let mut bytes = Vec::new();
    from.take(n as u64).read_to_end(&mut bytes)?;
    if bytes.len() < n {
        return Err(NpyError::Length { what, expected: n as u64, found: bytes.len() as u64 });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::write_npy;

    fn zipped(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn message(bytes: &[u8]) -> String {
        read_npz(Cursor::new(bytes)).unwrap_err().to_string()
    }

    fn sample() -> Vec<(&'static str, Tensor)> {
        vec![
            ("mean", Tensor::from_slice(&[2], &[1f64, 2.0]).unwrap()),
            ("layer.0/count", Tensor::scalar(7u64)),
            ("mask", Tensor::from_bools(&[2, 1], &[true, false]).unwrap()),
        ]
    }

    /// Takes so many bytes.
    struct Small(Cursor<Vec<u8>>, usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.position() as usize + bytes.len() > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Small {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_is_met() {
        let arrays =
            [("a", Tensor::scalar(1f32)), ("b", Tensor::zeros(margay_tensor::DType::F32, &[9]).unwrap())];
        let mut whole = Cursor::new(Vec::new());
        write_npz(&mut whole, &arrays).unwrap();
        let bytes = whole.into_inner().len();
        for most in 0..bytes {
            let found = write_npz(Small(Cursor::new(Vec::new()), most), &arrays);
            let is_full = matches!(&found, Err(NpyError::Io(e)) if e.kind() == io::ErrorKind::StorageFull);
            assert!(is_full, "{most} of {bytes} bytes: {found:?}");
        }
        write_npz(Small(Cursor::new(Vec::new()), bytes), &arrays).unwrap();
    }

    #[test]
    fn arrays_survive_a_round_trip_with_the_same_bytes() {
        let write = || {
            let mut bytes = Cursor::new(Vec::new());
            write_npz(&mut bytes, &sample()).unwrap();
            bytes.into_inner()
        };
        let bytes = write();
        assert_eq!(bytes, write());
        let read = read_npz(Cursor::new(&bytes)).unwrap();
        assert!(read.iter().map(|(n, t)| (n.as_str(), t)).eq(sample().iter().map(|(n, t)| (*n, t))));
    }

    #[test]
    fn what_is_not_wanted_is_not_inflated() {
        let good = write_npy(&Tensor::scalar(1f32)).unwrap();
        let bytes = zipped(&[("a.npy", &good), ("b.npy", b"no array")], CompressionMethod::Deflated);
        let (arrays, others) = read_npz_only(Cursor::new(&bytes), &|name| name == "a").unwrap();
        assert_eq!((arrays.len(), others), (1, vec!["b".to_owned()]));
        assert!(read_npz(Cursor::new(&bytes)).is_err());
    }

    #[test]
    fn deflated_members_are_read() {
        let tensor = Tensor::zeros(margay_tensor::DType::F32, &[1000]).unwrap();
        let bytes = zipped(&[("a.npy", &write_npy(&tensor).unwrap())], CompressionMethod::Deflated);
        assert!(bytes.len() < 400);
        assert_eq!(read_npz(Cursor::new(bytes)).unwrap(), [("a".to_owned(), tensor)]);
    }

    #[test]
    fn a_member_larger_than_its_header_is_not_inflated() {
        let mut npy = write_npy(&Tensor::scalar(1f32)).unwrap();
        npy.resize(1 << 24, 0);
        let bytes = zipped(&[("bomb.npy", &npy)], CompressionMethod::Deflated);
        assert_eq!(
            message(&bytes),
            "in archive member `bomb.npy`: the member has the wrong length: expected 132 bytes, found 16777216"
        );
    }

    #[test]
    fn a_member_that_lies_about_its_size_is_caught() {
        let mut npy = write_npy(&Tensor::zeros(margay_tensor::DType::U8, &[300]).unwrap()).unwrap();
        let honest = npy.len() as u32;
        npy.extend_from_slice(&[0; 1000]);
        let mut bytes = zipped(&[("a.npy", &npy)], CompressionMethod::Deflated);
        let grown = (npy.len() as u32).to_le_bytes();
        while let Some(at) = bytes.windows(4).position(|w| w == grown) {
            bytes[at..at + 4].copy_from_slice(&honest.to_le_bytes());
        }
        assert!(read_npz(Cursor::new(&bytes)).is_err());
    }

    #[test]
    fn malformed_archives_are_errors() {
        assert_eq!(
            message(b"not a zip file"),
            "no `.npz` file: it is empty, was cut short, or holds something else"
        );
        assert_eq!(
            message(&zipped(&[("notes.txt", b"x")], CompressionMethod::Stored)),
            "archive member `notes.txt` is not an array: expected a name ending in `.npy`"
        );
        assert_eq!(
            message(&zipped(&[("a.npy", b"\x93NUMPY\x01\x00\x10")], CompressionMethod::Stored)),
            "in archive member `a.npy`: the header length has the wrong length: expected 2 bytes, found 1"
        );
        let mut bytes = Cursor::new(Vec::new());
        write_npz(&mut bytes, &sample()).unwrap();
        let bytes = bytes.into_inner();
        for n in 0..bytes.len() {
            assert!(read_npz(Cursor::new(&bytes[..n])).is_err(), "truncated to {n} bytes");
        }
        let mut damaged = bytes;
        let at = damaged.windows(8).position(|w| w == 2f64.to_le_bytes()).unwrap();
        damaged[at] ^= 1;
        assert!(message(&damaged).starts_with("in archive member `mean.npy`: cannot read or write"));
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let twice = [("a", Tensor::scalar(1f32)), ("a", Tensor::scalar(2f32))];
        assert!(matches!(write_npz(Cursor::new(Vec::new()), &twice), Err(NpyError::Archive(_))));
    }
}
