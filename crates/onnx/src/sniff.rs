//! Recognizes files that people hand to an ONNX importer by mistake.
//!
//! A failed download or a wrong file otherwise ends in a protobuf error that helps nobody. The tests look at
//! the first bytes only and none of them matches the beginning of an ONNX model.

use std::fmt;

/// What a file that is no ONNX model seems to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookalike {
    /// No bytes at all.
    Empty,
    /// Only zeros at the beginning.
    Zeros,
    /// A pointer file of Git LFS.
    LfsPointer {
        /// The size in bytes of the file it points to, if it says so.
        bytes: Option<u64>,
    },
    /// A web page or XML.
    Html,
    /// JSON.
    Json,
    /// A zip archive made by `torch.save` or TorchScript.
    TorchZip,
    /// Any other zip archive.
    Zip,
    /// A gzip stream.
    Gzip,
    /// A Python pickle.
    Pickle,
    /// A safetensors file.
    Safetensors,
    /// A GGUF file.
    Gguf,
    /// An HDF5 file, as Keras writes.
    Hdf5,
    /// A TensorFlow Lite model.
    TfLite,
    /// ONNX Runtime's own format.
    OrtFormat,
}

impl fmt::Display for Lookalike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Lookalike::Empty => "an empty file",
            Lookalike::Zeros => "a file that begins with zeros only",
            Lookalike::LfsPointer { bytes: Some(bytes) } => {
                return write!(f, "a Git LFS pointer to a file of {bytes} bytes");
            }
            Lookalike::LfsPointer { bytes: None } => "a Git LFS pointer",
            Lookalike::Html => "a web page",
            Lookalike::Json => "JSON text",
            Lookalike::TorchZip => "a PyTorch checkpoint",
            Lookalike::Zip => "a zip archive",
            Lookalike::Gzip => "a gzip stream",
            Lookalike::Pickle => "a Python pickle",
            Lookalike::Safetensors => "a safetensors file",
            Lookalike::Gguf => "a GGUF file",
            Lookalike::Hdf5 => "an HDF5 file",
            Lookalike::TfLite => "a TensorFlow Lite model",
            Lookalike::OrtFormat => "a model in the format of ONNX Runtime",
        })
    }
}

impl Lookalike {
    /// What to do about it, in one line.
    pub fn help(self) -> &'static str {
        match self {
            Lookalike::Empty | Lookalike::Zeros => {
                "the download or copy did not finish; fetch the file again"
            }
            Lookalike::LfsPointer { .. } => "run `git lfs pull` in the repository the file comes from",
            Lookalike::Html | Lookalike::Json => {
                "the server answered with a page, not the model; check the address and whether it needs a login"
            }
            Lookalike::TorchZip | Lookalike::Pickle => {
                "load it in PyTorch and export it with `torch.onnx.export`"
            }
            Lookalike::Zip => "unpack it and name the `.onnx` file inside",
            Lookalike::Gzip => "unpack it with `gunzip` first",
            Lookalike::Safetensors | Lookalike::Gguf => {
                "it holds weights without a graph; export the model it belongs to as ONNX"
            }
            Lookalike::Hdf5 | Lookalike::TfLite => "convert it with `tf2onnx`",
            Lookalike::OrtFormat => "use the `.onnx` file it was made from",
        }
    }
}

/// What the file seems to be, if that is certainly not ONNX.
pub(crate) fn sniff(bytes: &[u8]) -> Option<Lookalike> {
    const HEAD: usize = 4096;
    let head = bytes.get(..HEAD).unwrap_or(bytes);
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let word = |w: &[u8]| text.get(..w.len()).is_some_and(|t| t.eq_ignore_ascii_case(w));
    let inner = |at: usize, w: &[u8]| head.get(at..).is_some_and(|t| t.starts_with(w));

    if head.is_empty() {
        Some(Lookalike::Empty)
    } else if head.iter().all(|&b| b == 0) {
        Some(Lookalike::Zeros)
    } else if head.starts_with(b"version https://git-lfs") {
        Some(Lookalike::LfsPointer { bytes: lfs_size(head) })
    } else if [&b"<!doctype"[..], b"<html", b"<head", b"<?xml", b"<!--"].into_iter().any(word) {
        Some(Lookalike::Html)
    } else if matches!(text, [b'{' | b'[', b'"' | b'{' | b' ' | b'\n' | b'\r' | b'\t', ..]) {
        Some(Lookalike::Json)
    } else if head.starts_with(b"PK\x03\x04") {
        let torch = [&b"data.pkl"[..], b"constants.pkl", b".format_version", b"/byteorder"];
        let found = torch.into_iter().any(|w| head.windows(w.len()).any(|h| h == w));
        Some(if found { Lookalike::TorchZip } else { Lookalike::Zip })
    } else if head.starts_with(b"\x1f\x8b") {
        Some(Lookalike::Gzip)
    } else if matches!(head, [0x80, 2..=5, ..]) {
        Some(Lookalike::Pickle)
    } else if inner(5, &[0, 0, 0, b'{']) {
        Some(Lookalike::Safetensors)
    } else if head.starts_with(b"GGUF") {
        Some(Lookalike::Gguf)
    } else if head.starts_with(b"\x89HDF\r\n\x1a\n") {
        Some(Lookalike::Hdf5)
    } else if inner(4, b"TFL3") {
        Some(Lookalike::TfLite)
    } else if inner(4, b"ORTM") {
        Some(Lookalike::OrtFormat)
    } else {
        None
    }
}

/// The number after `size` in a Git LFS pointer.
fn lfs_size(head: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(head).ok()?;
    text.lines().find_map(|l| l.strip_prefix("size "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_named() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 69060623\n";
        let cases: [(&[u8], Lookalike); 17] = [
            (b"", Lookalike::Empty),
            (&[0; 9000], Lookalike::Zeros),
            (lfs, Lookalike::LfsPointer { bytes: Some(69060623) }),
            (&lfs[..50], Lookalike::LfsPointer { bytes: None }),
            (b"\n<!DOCTYPE html><html>", Lookalike::Html),
            (b"\xef\xbb\xbf<?xml version='1.0'?>", Lookalike::Html),
            (b"{\"error\":\"Repository not found\"}", Lookalike::Json),
            (b"PK\x03\x04\0\0archive/data.pkl", Lookalike::TorchZip),
            (b"PK\x03\x04\0\0model.onnx", Lookalike::Zip),
            (b"\x1f\x8b\x08\0", Lookalike::Gzip),
            (b"\x80\x02}q\0", Lookalike::Pickle),
            (b"\x80\x04\x95", Lookalike::Pickle),
            (b"\x48\x01\0\0\0\0\0\0{\"w\":", Lookalike::Safetensors),
            (b"GGUF\x03\0\0\0", Lookalike::Gguf),
            (b"\x89HDF\r\n\x1a\n\0", Lookalike::Hdf5),
            (b"\x1c\0\0\0TFL3", Lookalike::TfLite),
            (b"\x1c\0\0\0ORTM", Lookalike::OrtFormat),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes), Some(expected), "{}", bytes.escape_ascii());
            assert!(!expected.help().is_empty());
        }
    }

    #[test]
    fn beginnings_of_models_pass() {
        for start in
            [&b"\x08\x0a\x12\x07pytorch\x1a\x052.4.0"[..], b"\x08\x08:", b"\x08\x03\x12\x04CNTK", b"\x08"]
        {
            assert_eq!(sniff(start), None, "{}", start.escape_ascii());
        }
    }
}
