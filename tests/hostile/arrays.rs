//! `.npy` and `.npz` files: what is read is written, and read as the same arrays.

use std::io::Cursor;

use margay_npy::{read_npy, read_npz, write_npy, write_npz};
use margay_tensor::{DType, Tensor};

use super::{Draw, bytes, words};

/// Accepts what is one of the two.
pub(super) fn run(bytes: &[u8]) -> bool {
    if let Ok(tensor) = read_npy(bytes) {
        let written = write_npy(&tensor).unwrap_or_else(|e| panic!("{e}"));
        same(&tensor, &read_npy(&written).unwrap_or_else(|e| panic!("{e}")));
        return true;
    }
    let Ok(arrays) = read_npz(Cursor::new(bytes)) else { return false };
    let mut written = Cursor::new(Vec::new());
    write_npz(&mut written, &arrays).unwrap_or_else(|e| panic!("{e}"));
    let again = read_npz(Cursor::new(written.into_inner())).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.len(), arrays.len());
    for ((name, tensor), (expected, array)) in again.iter().zip(&arrays) {
        assert_eq!(name, expected);
        same(tensor, array);
    }
    true
}

/// Equal to the bit: numbers that are not numbers too.
fn same(a: &Tensor, b: &Tensor) {
    assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
    assert!(a.bytes() == b.bytes(), "the elements differ");
}

/// An array of every type, alone and all in one archive.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let shapes: [&[usize]; 4] = [&[2, 3], &[], &[0, 4], &[5]];
    let tensor = |(i, dtype): (usize, DType)| Tensor::zeros(dtype, shapes[i % shapes.len()]).ok();
    let mut tensors: Vec<Tensor> = DType::ALL.into_iter().enumerate().filter_map(tensor).collect();
    tensors.push(margay_testkit::normal(&[7, 2], 1, 2));
    // Halves of the brain kind have no form in these files.
    tensors.retain(|t| write_npy(t).is_ok());
    let mut seeds: Vec<Vec<u8>> = tensors.iter().filter_map(|t| write_npy(t).ok()).collect();
    let named: Vec<(String, Tensor)> =
        tensors.into_iter().enumerate().map(|(i, t)| (format!("layer.{i}/weight"), t)).collect();
    for arrays in [&named[..0], &named[..1], &named[3..5], &named] {
        let mut archive = Cursor::new(Vec::new());
        write_npz(&mut archive, arrays).unwrap_or_else(|e| panic!("{e}"));
        seeds.push(archive.into_inner());
    }
    seeds
}

/// Changes the words of a header or any bytes. The length of a header that changed is not put right in half of the cases.
pub(super) fn change(whole: &[u8], draw: &mut Draw) -> Vec<u8> {
    const WORDS: [&str; 12] =
        ["True", "False", "descr", "fortran_order", "shape", "<f4", "<i8", "|b1", ">f4", "()", "(1,)", "L"];
    let header = whole.windows(6).position(|w| w == b"\x93NUMPY").map(|at| at + 10);
    let end = header.and_then(|at| Some(at + whole.get(at..)?.iter().position(|&b| b == b'\n')?));
    match (header, end) {
        (Some(begin), Some(end)) if draw.chance(2) => {
            let mut text = words::change(&whole[begin..end], draw, &WORDS);
            // As long as before, so that the lengths around it hold.
            if draw.chance(2) || whole.starts_with(b"PK") {
                text.resize(end - begin, b' ');
            }
            let mut changed = [&whole[..begin], &text, &whole[end..]].concat();
            if let Ok(length) = u16::try_from(text.len() + 1)
                && begin == 10
            {
                changed[8..10].copy_from_slice(&length.to_le_bytes());
            }
            changed
        }
        _ => bytes::change(whole, draw),
    }
}
