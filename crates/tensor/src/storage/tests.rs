//! Storages and their texts, and rounding to them.

use super::*;
use crate::Tensor;

fn numbers(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 40.0) * 0.03).collect();
    Tensor::from_slice(shape, &values).unwrap()
}

fn formats() -> Vec<Storage> {
    let with = |dtype, scales, zero_points| Storage { zero_points, ..Storage::bytes(dtype, scales) };
    let mut all = vec![Storage::plain(DType::F16), Storage::plain(DType::BF16)];
    for zero_points in [false, true] {
        for scales in [
            Scales::Tensor,
            Scales::Axis(0),
            Scales::Axis(1),
            Scales::Block { axis: 0, size: 4 },
            Scales::Block { axis: 1, size: 3 },
        ] {
            for dtype in [DType::I8, DType::U8] {
                all.push(with(dtype, scales, zero_points));
                for (bits, scale_type) in [(4, DType::F32), (4, DType::BF16), (3, DType::BF16)] {
                    all.push(Storage { bits, scale_type, ..with(dtype, scales, zero_points) });
                }
            }
        }
    }
    all
}

#[test]
fn what_is_stored_is_near_and_is_stored_as_itself() {
    let shape = [10, 8];
    let x = numbers(&shape);
    for storage in formats() {
        let stored = StoredTensor::encode(&x, storage).unwrap();
        let rounded = stored.decode();
        let (a, b) = (x.to_vec::<f32>().unwrap(), rounded.to_vec::<f32>().unwrap());
        // Half of the largest step, and what rounding a scale moves the ends by; unsigned numbers without a zero point cannot
        // be negative. A zero point is rounded too.
        let unsigned = storage.dtype == DType::U8 && !storage.zero_points;
        let levels = if storage.scales == Scales::None { 127 } else { (1 << (storage.bits - 1)) - 1 };
        let most = (0.5 * 3.1 / levels as f32) * if storage.zero_points { 1.1 } else { 1.0 };
        let ends = if storage.scale_type == DType::BF16 { 3.1 / 256.0 } else { 0.0 };
        for (a, b) in a.iter().zip(&b) {
            let a = if unsigned { a.max(0.0) } else { *a };
            assert!((a - b).abs() <= most + ends, "{storage}: {a} {b}");
        }
        if !storage.zero_points && !unsigned {
            assert_eq!(StoredTensor::encode(&rounded, storage).unwrap().decode(), rounded, "{storage}");
        }
        let bytes = stored.to_bytes();
        assert_eq!(bytes.len(), storage.layout(&shape).bytes);
        let again = StoredTensor::from_bytes(DType::F32, &shape, storage, &bytes).unwrap();
        assert_eq!(again, stored);
        assert_eq!(again.content_hash(), stored.content_hash());
        assert!(StoredTensor::from_bytes(DType::F32, &shape, storage, &bytes[1..]).is_err());
    }
}

/// Groups by their definition: one scale for what shares it, and no other.
#[test]
fn scales_belong_to_their_groups() {
    let x = Tensor::from_slice(&[2, 3], &[1f32, -20.0, 300.0, 4.0, 50.0, -600.0]).unwrap();
    let scales = |scales| {
        let stored = StoredTensor::encode(&x, Storage::bytes(DType::I8, scales)).unwrap();
        let scales = stored.scales().unwrap();
        let times: Vec<f32> = scales.to_vec::<f32>().unwrap().iter().map(|s| (s * 127.0).round()).collect();
        (scales.shape().to_vec(), times)
    };
    assert_eq!(scales(Scales::Tensor), (vec![1, 1], vec![600.0]));
    assert_eq!(scales(Scales::Axis(0)), (vec![2, 1], vec![300.0, 600.0]));
    assert_eq!(scales(Scales::Axis(1)), (vec![1, 3], vec![4.0, 50.0, 600.0]));
    let block = |axis, size| scales(Scales::Block { axis, size });
    assert_eq!(block(1, 2), (vec![2, 2], vec![20.0, 300.0, 50.0, 600.0]));
    assert_eq!(block(0, 2), (vec![1, 3], vec![4.0, 50.0, 600.0]));
}

#[test]
fn zero_points_use_the_whole_range() {
    let x = Tensor::from_slice(&[3], &[-1f32, 0.0, 4.1]).unwrap();
    let storage = Storage { zero_points: true, ..Storage::bytes(DType::U8, Scales::Tensor) };
    let stored = StoredTensor::encode(&x, storage).unwrap();
    assert_eq!(stored.elements().bytes(), [0, 50, 255]);
    assert_eq!(stored.zero_points().unwrap().bytes(), [50]);
    assert_eq!(stored.decode().to_vec::<f32>().unwrap()[1], 0.0);
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = Tensor::from_slice(&[2, 2], &[1.0, odd, 0.5, 0.0]).unwrap();
        let rounded = StoredTensor::encode(&x, Storage::int8(0)).unwrap().decode();
        let rounded = rounded.to_vec::<f32>().unwrap();
        assert!(rounded[0].is_nan() && rounded[1].is_nan() && rounded[2] == 0.5 && rounded[3] == 0.0);
    }
}

#[test]
fn texts_are_read_back_and_others_refused() {
    for storage in formats().into_iter().chain([Storage::plain(DType::I64)]) {
        assert_eq!(Storage::parse(&storage.to_string()), Some(storage), "{storage}");
    }
    for text in ["u4", "i5(tensor)", "u4(bf16 scales, tensor)", "i8(tensor, f32 scales)"] {
        let read = Storage::parse(text);
        assert!(read.is_none_or(|storage| storage.check(DType::F32, &[8]).is_err()), "{text}");
    }
    for text in ["i8(", "i8()", "i9", "i8(axis = x)", "i8(block = 3)", "i8(axis = 1, tensor)", "f32(axis)"] {
        assert_eq!(Storage::parse(text), None, "{text}");
    }
}

#[test]
fn storages_that_do_not_fit_say_why() {
    let why = |storage: &str, dtype, shape: &[usize]| {
        Storage::parse(storage).unwrap().check(dtype, shape).unwrap_err().to_string()
    };
    assert_eq!(
        why("i8(axis = 2)", DType::F32, &[3, 4]),
        "storage i8(axis = 2): axis 2 of a tensor with 2 axes"
    );
    assert_eq!(why("i8(tensor)", DType::F16, &[3]), "storage i8(tensor): numbers are f32, found f16");
    assert_eq!(why("bf16", DType::F64, &[3]), "storage bf16: numbers are f32, found f64");
    assert_eq!(
        why("bf16(tensor)", DType::F32, &[3]),
        "storage bf16(tensor): elements with scales are i8 or u8, found bf16"
    );
    assert_eq!(why("i8", DType::F32, &[3]), "storage i8: i8 without scales is for tensors of that type");
    assert_eq!(
        why("i8(axis = 0, block = 0)", DType::F32, &[3]),
        "storage i8(axis = 0, block = 0): a block has at least one element"
    );
    let odd = Storage { bits: 5, ..Storage::int8(0) };
    let error = odd.check(DType::F32, &[3]).unwrap_err().to_string();
    assert_eq!(error, "storage i5(axis = 0): 5 bits are for elements with scales, 3 or 4");
    let halves = Storage { scale_type: DType::F16, ..Storage::int8(0) };
    let error = halves.check(DType::F32, &[3]).unwrap_err().to_string();
    assert_eq!(error, "storage i8(axis = 0, f16 scales): scales are f32 or bf16, found f16");
}

#[test]
fn given_steps_are_checked() {
    let elements = Tensor::from_slice(&[2, 3], &[1i8, -2, 3, 4, -5, 6]).unwrap();
    let steps = Tensor::from_slice(&[1, 3], &[1f32, 10.0, 100.0]).unwrap();
    let zeros = Tensor::from_slice(&[1, 3], &[0i8, 1, 2]).unwrap();
    let stored =
        StoredTensor::quantized(elements.clone(), (Scales::Axis(1), steps.clone()), Some(zeros)).unwrap();
    assert_eq!(stored.decode().to_vec::<f32>().unwrap(), [1.0, -30.0, 100.0, 4.0, -60.0, 400.0]);
    let error = StoredTensor::quantized(elements, (Scales::Axis(0), steps), None).unwrap_err();
    assert_eq!(error.to_string(), "storage i8(axis = 0): expected f32[2, 1], found f32[1, 3]");
}

#[test]
fn rows_change_places_as_they_are_stored() {
    let values: Vec<f32> = (0..12).map(|i| (i * i) as f32 - 40.0).collect();
    let t = Tensor::from_slice(&[4, 3], &values).unwrap();
    let order = [2, 0, 3, 1];
    let expected: Vec<f32> = order.iter().flat_map(|&r: &usize| values[3 * r..][..3].to_vec()).collect();
    let expected = Tensor::from_slice(&[4, 3], &expected).unwrap();
    let stored = |text: &str| StoredTensor::encode(&t, Storage::parse(text).unwrap()).unwrap();
    for text in
        ["f32", "bf16", "i8(axis = 1)", "u8(axis = 0, zero points)", "i8(tensor)", "i8(axis = 1, block = 2)"]
    {
        let moved = stored(text).reordered(&order).unwrap();
        assert_eq!(moved, StoredTensor::encode(&expected, Storage::parse(text).unwrap()).unwrap(), "{text}");
    }
    assert_eq!(stored("i8(axis = 0, block = 2)").reordered(&order), None);
    for wrong in [&[0, 1, 2][..], &[0, 1, 2, 2], &[0, 1, 2, 4]] {
        assert_eq!(stored("f32").reordered(wrong), None);
    }
}

#[test]
fn more_scales_than_memory_holds_are_refused() {
    // Empty, but with a scale for each position of the other axis.
    let shape = [0, usize::MAX / 2];
    for scales in [Scales::Axis(1), Scales::Block { axis: 0, size: 2 }] {
        let storage = Storage { zero_points: true, ..Storage::bytes(DType::I8, scales) };
        assert!(storage.check(DType::F32, &shape).is_err(), "{storage}");
        assert!(StoredTensor::from_bytes(DType::F32, &shape, storage, &[]).is_err(), "{storage}");
    }
}

/// Four bits with a step for every run of the rows: bytes, numbers, and what does not fit them.
#[test]
fn elements_of_a_few_bits_follow_each_other() {
    let storage = Storage::parse("u4(axis = 0, block = 2, bf16 scales, zero points)").unwrap();
    let elements = Tensor::from_slice(&[3, 2], &[1u8, 2, 3, 4, 15, 0]).unwrap();
    let scales: Vec<half::bf16> = [1.0, 2.0, 0.5, 4.0].map(half::bf16::from_f32).to_vec();
    let scales = Tensor::from_slice(&[2, 2], &scales).unwrap();
    let zeros = Tensor::from_slice(&[2, 2], &[1u8, 8, 15, 0]).unwrap();
    let stored = StoredTensor::from_parts(storage, elements, scales.clone(), Some(zeros.clone())).unwrap();
    assert_eq!(stored.decode().to_vec::<f32>().unwrap(), [0.0, -12.0, 2.0, -8.0, 0.0, 0.0]);
    let bytes = stored.to_bytes();
    assert_eq!(bytes[..3], [0x21, 0x43, 0x0f]);
    assert_eq!(
        storage.layout(&[3, 2]),
        StoredLayout { elements: 3, scales_at: 64, zero_points_at: 128, bytes: 130 }
    );
    assert_eq!(bytes[128..], [0x81, 0x0f]);
    assert_eq!(stored.in_bytes().decode(), stored.decode());
    assert_eq!(stored.in_bytes().storage().to_string(), "u8(axis = 0, block = 2, bf16 scales, zero points)");
    let large = Tensor::from_slice(&[3, 2], &[1u8, 2, 3, 4, 16, 0]).unwrap();
    let error = StoredTensor::from_parts(storage, large, scales, Some(zeros)).unwrap_err().to_string();
    assert!(error.ends_with("elements are 0 to 15, found 16"), "{error}");
}

#[test]
fn signed_elements_of_three_bits_keep_their_signs() {
    let storage = Storage::parse("i3(tensor)").unwrap();
    let elements = Tensor::from_slice(&[9], &[-4i8, -3, -2, -1, 0, 1, 2, 3, -4]).unwrap();
    let scale = Tensor::from_slice(&[1], &[0.5f32]).unwrap();
    let stored = StoredTensor::from_parts(storage, elements, scale, None).unwrap();
    let bytes = stored.to_bytes();
    assert_eq!(storage.layout(&[9]).elements, 4);
    assert_eq!(StoredTensor::from_bytes(DType::F32, &[9], storage, &bytes).unwrap(), stored);
    assert_eq!(stored.decode().to_vec::<f32>().unwrap()[..3], [-2.0, -1.5, -1.0]);
}

#[test]
fn signs_are_those_of_their_stream_and_take_no_bytes() {
    let x = numbers(&[3, 5, 2]);
    let all = x.to_vec::<f32>().unwrap();
    for (axis, range) in [(0, [1, 3]), (1, [0, 5]), (1, [2, 4]), (2, [1, 2]), (2, [0, 0])] {
        let signs = Signs::new(axis, range, [u64::MAX, 1 << 40], 0.3);
        let storage = Storage::with_signs(signs);
        let stored = StoredTensor::encode(&x, storage).unwrap();
        assert_eq!(Storage::parse(&storage.to_string()), Some(storage));
        let mut drawn = vec![0f32; 30 / [3, 5, 2][axis] * signs.len()];
        crate::random::Philox::new(u64::MAX, 1 << 40).fill_signs(0, &mut drawn);
        let mut drawn = drawn.into_iter();
        let place = |i: usize| [i / 10, i / 2 % 5, i % 2][axis];
        let expected: Vec<f32> = all
            .iter()
            .enumerate()
            .map(|(i, x)| match (range[0]..range[1]).contains(&place(i)) {
                true => 0.3 * drawn.next().unwrap(),
                false => *x,
            })
            .collect();
        assert_eq!(stored.decode().to_vec::<f32>().unwrap(), expected, "{storage}");
        assert_eq!((stored.shape(), drawn.next()), (x.shape(), None));
        let bytes = stored.to_bytes();
        assert_eq!(bytes.len(), 4 * (30 - 30 / [3, 5, 2][axis] * signs.len()));
        assert_eq!(bytes.len(), storage.layout(x.shape()).bytes);
        assert_eq!(StoredTensor::from_bytes(DType::F32, x.shape(), storage, &bytes).unwrap(), stored);
        assert_eq!(StoredTensor::with_signs(stored.elements().clone(), signs).unwrap(), stored);
        assert_eq!(stored.reordered(&[0, 1, 2]), None);
        let other = StoredTensor::encode(&x, Storage::with_signs(Signs::new(axis, range, [1, 1], 0.3)));
        assert_ne!(other.unwrap().content_hash(), stored.content_hash());
    }
}

#[test]
fn signs_that_do_not_fit_say_why() {
    let why = |axis, range, size, dtype, shape: &[usize]| {
        let storage = Storage::with_signs(Signs::new(axis, range, [7, 3], size));
        storage.check(dtype, shape).unwrap_err().why
    };
    assert_eq!(why(2, [0, 1], 1.0, DType::F32, &[3, 4]), "axis 2 of a tensor with 2 axes");
    assert_eq!(why(1, [3, 5], 1.0, DType::F32, &[3, 4]), "positions 3 to 5 of an axis of 4");
    assert_eq!(why(1, [3, 4], f32::NAN, DType::F32, &[3, 4]), "signs of size NaN");
    assert_eq!(
        why(1, [3, 4], 1.0, DType::F64, &[3, 4]),
        "signs are beside numbers of f32 as they are, found f64"
    );
    let many = [1 << 14, 1 << 13];
    assert_eq!(
        why(0, [0, 1 << 14], 1.0, DType::F32, &many),
        "134217728 signs are over the limit of 67108864"
    );
    for text in [
        "f32(signs, axis = 1, from = 4, to = 3, seed = 7, stream = 3, size = 1)",
        "f32(signs, axis = 1, from = 1, to = 3, seed = 7, stream = 3, size = inf)",
        "f32(signs, axis = 1, from = 1, to = 3, seed = 7, stream = 3)",
        "bf16(signs, axis = 1, from = 1, to = 3, seed = 7, stream = 3, size = 1)",
    ] {
        assert_eq!(Storage::parse(text), None, "{text}");
    }
}
