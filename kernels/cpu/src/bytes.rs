//! Matrix products of 8-bit integers, summed in i32: `C = (A · B + offset)`, as i32 or as f32 with a scale and the epilogue
//! of other products.
//!
//! Instructions multiply unsigned bytes with signed ones. Where A and B are both of one kind, A is moved by 128 into the
//! other, which is one bit of each byte, and sums start from what that adds to them: 128 times the sum of each column of B,
//! which is stored with B. Terms come in fours; B is a packed constant or is packed into the workspace first, and A is
//! copied there where it is moved, where its terms are not contiguous or where they are no multiple of four.
//!
//! Sums run over all terms at once: a tile of A and a panel of B of a few thousand bytes stay in the cache.

use margay_loops::{Epilogue, MatMul, Needs, Packed, ProductTypes, Scale};
use margay_tensor::{DType, StoredTensor, Tensor};

use crate::block::{ACTIVATION, Finish, epilogue_word, finish_vector, store_first};
use crate::isa::{ByteOperands, Isa, MAX_ROWS, PANEL};
use crate::math::with_activation;
use crate::matmul::{BLOCK_ROWS, even};
use crate::pack::batch_offset;
use crate::pack_bytes::{
    QUAD, QUAD_BYTES, Source, Workspace, pack_columns, packed_bytes, row_stride, sums_bytes,
};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};
use crate::{Class, Phase, Prepared};

params! {
    /// One product: an item is a block of rows and a group of panels of one repetition.
    Params {
        m: usize,
        n: usize,
        /// Runs of four terms.
        quads: usize,
        /// Batch axes, outermost first, and the strides of the operands along them: of A and B in bytes, of C in elements.
        extents: [usize; 4],
        a_batch: [usize; 4],
        b_batch: [usize; 4],
        c_batch: [usize; 4],
        a_row: usize,
        c_row: usize,
        /// Rows and panels of an item.
        rows: usize,
        panels: usize,
        epilogue: usize,
        /// Bits: `MOVED`, `LEFT_SIGNED`, `NUMBERS`, `SCALES`.
        form: usize,
        /// Positions of the arguments, and where in them to begin, in bytes.
        a_at: usize,
        a_offset: usize,
        b_at: usize,
        b_offset: usize,
        zero_at: usize,
        offset_at: usize,
        scale_at: usize,
        bias_at: usize,
        residual_at: usize,
        c_at: usize,
    }
}

/// A has been moved by 128.
const MOVED: usize = 1;
/// A is the signed one of the operands, once it has been moved.
const LEFT_SIGNED: usize = 2;
/// The result is f32.
const NUMBERS: usize = 4;
/// There is a scale for each column.
const SCALES: usize = 8;

/// Bytes of a packed constant that are worth an item of work.
const ITEM_BYTES: usize = 1 << 18;

/// Whether a product is one of integers.
pub(crate) fn serves(call: &MatMul) -> bool {
    call.types.left.is_int()
}

fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8)
}

/// Whether the right operand is signed, if there is a kernel for the types and the epilogue.
pub(crate) fn right_is_signed(types: &ProductTypes, e: &Epilogue) -> Result<bool, String> {
    if !is_byte(types.left) || types.left_rounded != types.left {
        return Err(format!("a left operand of i8 or u8 as it is, found{types}"));
    }
    if !is_byte(types.right.dtype) || !types.right.is_plain(types.right.dtype) {
        return Err(format!("a right operand of i8 or u8, found {}", types.right));
    }
    let plain = e.scale.is_none() && !e.bias && e.activation.is_none() && !e.residual;
    match types.result {
        DType::F32 => Ok(types.right.dtype == DType::I8),
        DType::I32 if plain => Ok(types.right.dtype == DType::I8),
        DType::I32 => Err(format!("sums as i32 without an epilogue, found{e}")),
        other => Err(format!("a result of i32 or f32, found {other}")),
    }
}

impl Params {
    /// The parameters of a product of `size` rows, columns and terms, without batch axes, whose operands lie close together;
    /// and the position of a workspace. `zero` says whether an argument is taken off A.
    pub(crate) fn new(
        [m, n, k]: [usize; 3],
        types: &ProductTypes,
        epilogue: &Epilogue,
        zero: bool,
    ) -> Result<(Params, usize), String> {
        let right_signed = right_is_signed(types, epilogue)?;
        let mut at = Positions::default();
        let (a_at, b_at, zero_at) = (at.next(), at.next(), at.next_if(zero));
        let offset_at = at.next_if(epilogue.offset);
        let scale_at = at.next_if(epilogue.scale.is_some());
        let bias_at = at.next_if(epilogue.bias);
        let residual_at = at.next_if(epilogue.residual);
        let (c_at, workspace_at) = (at.next(), at.next());
        let bits = [
            ((types.left == DType::I8) == right_signed, MOVED),
            (!right_signed, LEFT_SIGNED),
            (types.result == DType::F32, NUMBERS),
            (epilogue.scale == Some(Scale::Columns), SCALES),
        ];
        let params = Params {
            m,
            n,
            quads: k.div_ceil(QUAD),
            extents: [1; 4],
            a_batch: [0; 4],
            b_batch: [0; 4],
            c_batch: [0; 4],
            a_row: k,
            c_row: n,
            rows: even(m, BLOCK_ROWS),
            panels: n.div_ceil(PANEL).max(1),
            epilogue: epilogue_word(epilogue),
            form: bits.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum(),
            a_at,
            a_offset: 0,
            b_at,
            b_offset: 0,
            zero_at,
            offset_at,
            scale_at,
            bias_at,
            residual_at,
            c_at,
        };
        Ok((params, workspace_at))
    }

    /// What is added to every byte of A, modulo 256.
    #[inline(always)]
    pub(crate) fn flip(&self) -> u8 {
        if self.form & MOVED != 0 { 0x80 } else { 0 }
    }
}

/// How a class runs a product; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &MatMul) -> Result<Prepared, String> {
    prepare_less(class, call, false)
}

/// As [`prepare`], with an argument behind B that is taken off A where `zero` says so.
pub(crate) fn prepare_less(class: Class, call: &MatMul, zero: bool) -> Result<Prepared, String> {
    let mut joined = call.clone();
    joined.join_rows();
    let call = &joined;
    if call.batch.len() > 4 {
        return Err(format!("at most 4 batch axes, found {}", call.batch.len()));
    }
    if call.b_packed && call.batch.iter().any(|axis| axis.b != 0) {
        return Err("a packed constant has no batch strides".to_owned());
    }
    let (m, n, k) = (call.m, call.n, call.k);
    let (mut params, workspace_at) = Params::new([m, n, k], &call.types, &call.epilogue, zero)?;
    let panels = n.div_ceil(PANEL);
    // A group of panels is worth an item of operations, which bytes are done with faster, or of bytes.
    let flops = (2 * class.item_flops() / (2 * params.rows * PANEL * k).max(1)).max(1);
    params.panels = even(panels, flops.min((ITEM_BYTES / (PANEL * k).max(1)).max(1)));
    (params.a_row, params.c_row) = (call.a.row_stride, call.c_row_stride);
    for (i, axis) in call.batch.iter().enumerate() {
        params.extents[i] = axis.extent;
        params.a_batch[i] = axis.a;
        params.b_batch[i] = axis.b;
        params.c_batch[i] = axis.c;
    }
    let mut workspace = Workspace::new(class, workspace_at);
    let (a_at, b_at) = (params.a_at, params.b_at);
    let (moved, right_signed) = (params.form & MOVED != 0, call.types.right.dtype == DType::I8);
    if moved || call.a.col_stride != 1 || !k.is_multiple_of(QUAD) {
        let source = Source {
            at: a_at,
            size: [m, k],
            strides: [call.a.row_stride, call.a.col_stride],
            run: k,
            run_stride: 0,
            extents: params.extents,
            batch: params.a_batch,
        };
        let placed = workspace.rows(source, moved);
        (params.a_at, params.a_offset, params.a_batch) = (workspace_at, placed.offset, placed.batch);
        params.a_row = row_stride(k);
    }
    if !call.b_packed {
        let source = Source {
            at: b_at,
            size: [k, n],
            strides: [call.b.row_stride, call.b.col_stride],
            run: k,
            run_stride: 0,
            extents: params.extents,
            batch: params.b_batch,
        };
        let placed = workspace.panels(source, right_signed);
        (params.b_at, params.b_offset, params.b_batch) = (workspace_at, placed.offset, placed.batch);
    }
    // A workspace of no bytes is no argument; nobody reads it then.
    let mut phases = workspace.phases;
    if workspace.bytes == 0 {
        phases.clear();
        (params.a_at, params.b_at) = (a_at, b_at);
    }
    let repetitions: usize = params.extents.iter().product();
    phases.push(Phase {
        kernel: class.kernels().matmul_bytes,
        params: to_words(&params),
        items: repetitions * m.div_ceil(params.rows) * panels.div_ceil(params.panels),
        grain: 1,
    });
    let packed = Packed { operand: 1, layout: layout(right_signed).into(), bytes: packed_bytes(k, n) };
    Ok(Prepared {
        phases,
        scratch_bytes: 0,
        needs: Needs {
            workspace_bytes: workspace.bytes,
            packed: if call.b_packed { vec![packed] } else { Vec::new() },
        },
    })
}

/// The layout of a packed constant: for p panels of 32 columns and q runs of four terms, i32 `[p][32]`, what sums start
/// from where A is moved, then bytes `[p][q][32][4]`. Columns and terms beyond those of the matrix are 0.
pub(crate) fn layout(signed: bool) -> &'static str {
    if signed { "i8_kn32_quads" } else { "u8_kn32_quads" }
}

/// Whether the elements of a layout of this module are signed.
pub(crate) fn of_layout(name: &str) -> Option<bool> {
    [true, false].into_iter().find(|&signed| layout(signed) == name)
}

/// The bytes of a constant B in the layout of its type.
pub(crate) fn pack_constant(call: &MatMul, stored: &StoredTensor) -> Result<Vec<u8>, String> {
    let (k, n, signed) = (call.k, call.n, right_is_signed(&call.types, &call.epilogue)?);
    let (ones, matrix) = stored.shape().split_at(stored.shape().len().saturating_sub(2));
    if matrix != [k, n] || ones.iter().any(|&d| d != 1) || stored.storage() != call.types.right {
        let (expected, found) = (call.types.right, stored.storage());
        return Err(format!(
            "expected a constant [{k}, {n}] of {expected}, found {:?} stored {found}",
            stored.shape()
        ));
    }
    let elements = stored.elements().bytes();
    Ok(pack_matrix(signed, [k, n], |i, j| elements[i * n + j]))
}

/// A matrix in the layout of bytes that are signed, or are not.
pub(crate) fn pack_matrix(signed: bool, [k, n]: [usize; 2], element: impl Fn(usize, usize) -> u8) -> Vec<u8> {
    let mut bytes = vec![0; packed_bytes(k, n)];
    let (sums, panels) = bytes.split_at_mut(sums_bytes(n));
    let of_panels = panels.chunks_exact_mut((k.div_ceil(QUAD) * QUAD_BYTES).max(1));
    for (panel, (to, sums)) in of_panels.zip(sums.chunks_exact_mut(4 * PANEL)).enumerate() {
        let first = panel * PANEL;
        let columns = (n - first).min(PANEL);
        let start = pack_columns(signed, [k, columns], |i, j| element(i, first + j), |at, x| to[at] = x);
        for (to, start) in sums.chunks_exact_mut(4).zip(start) {
            to.copy_from_slice(&start.to_ne_bytes());
        }
    }
    bytes
}

/// Where element (i, j) of a matrix of k rows and n columns lies in its layout.
pub(crate) fn place(k: usize, n: usize, i: usize, j: usize) -> usize {
    sums_bytes(n) + ((j / PANEL * k.div_ceil(QUAD) + i / QUAD) * PANEL + j % PANEL) * QUAD + i % QUAD
}

/// The inverse of [`pack_constant`].
pub(crate) fn unpack_constant(signed: bool, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, String> {
    let (&[.., k, n], [ones @ .., _, _]) = (shape, shape) else {
        return Err(format!("expected two axes, found {shape:?}"));
    };
    if ones.iter().any(|&d| d != 1) || bytes.len() != packed_bytes(k, n) {
        let expected = packed_bytes(k, n);
        return Err(format!(
            "expected {expected} packed bytes of one matrix, found {} of {shape:?}",
            bytes.len()
        ));
    }
    let elements: Vec<u8> = (0..k).flat_map(|i| (0..n).map(move |j| bytes[place(k, n, i, j)])).collect();
    let dtype = if signed { DType::I8 } else { DType::U8 };
    Tensor::from_bytes(dtype, shape, &elements).map(StoredTensor::from).map_err(|e| e.to_string())
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

#[repr(align(64))]
struct Aligned<T>(T);

/// The product.
///
/// Arguments: A, B (packed, or strided), zero if any (one byte), offset if any (n elements of i32), scale if any (one f32, or n), bias if any (n
/// elements), residual if any (strides of C), C, workspace if any. C overlaps no other argument. Extents may be 0; where
/// `k` is 0 the sums are 0.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    _scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let p = from_words::<Params>(params);
        let (row_blocks, panels) = (p.m.div_ceil(p.rows), p.n.div_ceil(PANEL));
        let groups = panels.div_ceil(p.panels);
        for item in begin as usize..end as usize {
            // Row blocks vary fastest: consecutive items read the same panels.
            let (first, rest) = (item % row_blocks * p.rows, item / row_blocks);
            let (panel, repetition) = (rest % groups * p.panels, rest / groups);
            let offset = |strides| batch_offset(repetition, &p.extents, strides);
            let block = Rows {
                a: argument(args, p.a_at).cast::<u8>().add(p.a_offset + offset(&p.a_batch) + first * p.a_row),
                b: argument(args, p.b_at).cast::<u8>().add(p.b_offset + offset(&p.b_batch)),
                c: offset(&p.c_batch) + first * p.c_row,
                rows: p.rows.min(p.m - first),
                panels: [panel, (panel + p.panels).min(panels)],
            };
            multiply(isa, p, args, &block);
        }
    }
}

/// A block of rows and a group of panels.
pub(crate) struct Rows {
    /// The rows of A.
    pub(crate) a: *const u8,
    /// The packed B.
    pub(crate) b: *const u8,
    /// The element of C where the rows begin.
    pub(crate) c: usize,
    /// How many there are.
    pub(crate) rows: usize,
    /// The first panel, and the one behind the last.
    pub(crate) panels: [usize; 2],
}

/// The product of a block.
///
/// # Safety
/// As [`run`], for rows and panels of the call; A as the parameters say.
#[inline(always)]
pub(crate) unsafe fn multiply<I: Isa>(isa: I, p: &Params, args: *const *mut u8, block: &Rows) {
    let tiles = isa.byte_tiles();
    let panel_bytes = p.quads * QUAD_BYTES;
    let mut tile = Aligned([0i32; MAX_ROWS * PANEL]);
    let pace = QUAD_BYTES.div_ceil(2 * block.rows.div_ceil(tiles.rows).max(1));
    for panel in block.panels[0]..block.panels[1] {
        let column = panel * PANEL;
        let columns = (p.n - column).min(PANEL);
        let mut scales = Aligned([1f32; PANEL]);
        // SAFETY: the columns of the panel; the rows of the block.
        unsafe {
            let start = Aligned(start(p, args, block.b, column, columns));
            if p.scale_at != ABSENT {
                let scale = argument(args, p.scale_at);
                match p.form & SCALES {
                    0 => scales.0 = [*scale; PANEL],
                    _ => std::ptr::copy_nonoverlapping(scale.add(column), scales.0.as_mut_ptr(), columns),
                }
            }
            let right = block.b.add(sums_bytes(p.n) + panel * panel_bytes);
            let mut ahead = right.wrapping_add(panel_bytes);
            let mut row = 0;
            while row < block.rows {
                let here = (block.rows - row).div_ceil((block.rows - row).div_ceil(tiles.rows));
                (tiles.tile)(ByteOperands {
                    rows: here,
                    quads: p.quads,
                    a: block.a.add(row * p.a_row),
                    a_stride: p.a_row,
                    b: right,
                    left_is_signed: p.form & LEFT_SIGNED != 0,
                    c: tile.0.as_mut_ptr(),
                    start: start.0.as_ptr(),
                    ahead,
                    pace,
                });
                ahead = ahead.wrapping_add(2 * p.quads * pace);
                let at = block.c + row * p.c_row + column;
                finish(isa, p, args, &tile.0, &scales.0, [here, columns], column, at);
                row += here;
            }
        }
    }
}

/// What sums of the columns of a panel start from: what takes off that A was moved, and the zero of A, and the offset.
///
/// # Safety
/// As [`run`], for columns of the call.
#[inline(always)]
unsafe fn start(
    p: &Params,
    args: *const *mut u8,
    b: *const u8,
    column: usize,
    columns: usize,
) -> [i32; PANEL] {
    // SAFETY: the caller's promise.
    unsafe {
        let moved = b.add(4 * column).cast::<[i32; PANEL]>().read_unaligned();
        let mut start = if p.form & MOVED != 0 { moved } else { [0; PANEL] };
        if p.zero_at != ABSENT {
            let zero = *argument(args, p.zero_at).cast::<u8>();
            // A is signed in memory if it is the signed operand and was not moved, or is not and was.
            let signed = (p.form & LEFT_SIGNED != 0) != (p.form & MOVED != 0);
            let zero = if signed { i32::from(zero.cast_signed()) } else { i32::from(zero) };
            // What takes the move off is 128 times the sums of the columns, less than 0 where B is signed.
            let zero = if p.form & LEFT_SIGNED != 0 { -zero } else { zero };
            for (start, moved) in start.iter_mut().zip(moved) {
                *start = start.wrapping_add((moved / 128).wrapping_mul(zero));
            }
        }
        if p.offset_at != ABSENT {
            let offset = argument(args, p.offset_at).cast::<i32>().add(column);
            for (j, start) in start.iter_mut().enumerate().take(columns) {
                *start = start.wrapping_add(*offset.add(j));
            }
        }
        start
    }
}

/// Writes the sums of a tile to element `at` of the result: rows and columns of it, which begin at column `column` and have
/// these scales.
///
/// # Safety
/// As [`run`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a result has this many properties")]
unsafe fn finish<I: Isa>(
    isa: I,
    p: &Params,
    args: *const *mut u8,
    sums: &[i32; MAX_ROWS * PANEL],
    scales: &[f32; PANEL],
    [rows, columns]: [usize; 2],
    column: usize,
    at: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = argument(args, p.c_at).add(at);
        if p.form & NUMBERS == 0 {
            for (i, row) in sums.chunks_exact(PANEL).take(rows).enumerate() {
                let to = to.add(i * p.c_row).cast::<i32>();
                match columns {
                    PANEL => to.cast::<[i32; PANEL]>().write_unaligned(*row.as_ptr().cast::<[i32; PANEL]>()),
                    _ => std::ptr::copy_nonoverlapping(row.as_ptr(), to, columns),
                }
            }
            return;
        }
        let shifted = |position, by| match position {
            ABSENT => std::ptr::null(),
            _ => argument(args, position).add(by).cast_const(),
        };
        let (bias, residual) = (shifted(p.bias_at, column), shifted(p.residual_at, at));
        let finish = Finish { bias, word: p.epilogue, residual };
        with_activation!(p.epilogue & ACTIVATION, WORD => {
            for i in 0..rows {
                for j in (0..columns).step_by(I::LANES) {
                    let n = (columns - j).min(I::LANES);
                    let sum = isa.load_i32(sums.as_ptr().add(i * PANEL + j));
                    let number = isa.mul(sum, isa.load(scales.as_ptr().add(j)));
                    let number =
                        finish_vector::<I, WORD>(isa, number, n, &finish.at(i, j, p.c_row));
                    store_first(isa, to.add(i * p.c_row + j), n, number);
                }
            }
        })
    }
}
