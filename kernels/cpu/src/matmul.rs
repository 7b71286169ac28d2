//! Matrix products: `C = activation(A · B + bias) + residual`, repeated over batch axes.
//!
//! The result is cut into blocks of rows and groups of panels; an item is one block of one repetition. Inside
//! it, sums are cut into runs of `k_block` terms that stay in the cache, and partial sums live in C. B is a
//! packed constant, or is packed into the workspace first; so is A where its rows are not as they should be.

use margay_loops::{MatMul, Packed, Phase, Prepared};
use margay_tensor::{DType, Tensor};

use crate::Class;
use crate::block::{Block, Finish, Left, Right, epilogue_word, multiply};
use crate::isa::{Isa, PANEL};
use crate::pack::{self, Source, Workspace, batch_offset, packed_len};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};

params! {
    /// One product: an item is a block of rows and a group of panels of one repetition.
    Params {
        m: usize,
        n: usize,
        k: usize,
        /// Batch axes, outermost first, and the strides of the operands along them.
        extents: [usize; 4],
        a_batch: [usize; 4],
        b_batch: [usize; 4],
        c_batch: [usize; 4],
        a_row: usize,
        c_row: usize,
        /// Rows, panels and terms of a block.
        rows: usize,
        panels: usize,
        k_block: usize,
        epilogue: usize,
        /// Positions of the arguments.
        a_at: usize,
        a_offset: usize,
        b_at: usize,
        b_offset: usize,
        bias_at: usize,
        residual_at: usize,
        c_at: usize,
    }
}

/// Most rows of a block: the A of a block stays in the second level of the cache.
const BLOCK_ROWS: usize = 140;

/// Blocks of rows that make enough items without a cut along the columns.
const MANY_BLOCKS: usize = 12;

/// Bytes of panels that stay in the second level of the cache beside a block of rows.
const GROUP_BYTES: usize = 1 << 19;

/// Cuts `total` into equal parts of at most `most`, and says how large they are.
fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most).max(1)).max(1)
}

/// The same call with innermost batch axes that share B taken as further rows, where A and C allow it.
fn fold_rows(call: &MatMul) -> MatMul {
    let mut call = call.clone();
    while let Some(&axis) = call.batch.last() {
        if call.m == 1 && axis.b == 0 {
            (call.a.row_stride, call.c_row_stride) = (axis.a, axis.c);
        } else if axis.b != 0 || axis.a != call.m * call.a.row_stride || axis.c != call.m * call.c_row_stride
        {
            break;
        }
        call.m *= axis.extent;
        call.batch.pop();
    }
    call
}

/// How a class runs a product; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &MatMul) -> Result<Prepared, String> {
    let call = &fold_rows(call);
    if call.batch.len() > 4 {
        return Err(format!("at most 4 batch axes, found {}", call.batch.len()));
    }
    if call.b_packed && call.batch.iter().any(|axis| axis.b != 0) {
        return Err("a packed constant has no batch strides".to_owned());
    }
    let (m, n, k) = (call.m, call.n, call.k);
    let panels = n.div_ceil(PANEL);
    let rows = even(m, BLOCK_ROWS);
    let row_blocks = m.div_ceil(rows);

    // Terms per run: all of them where A is read once, else what the first level of the cache holds.
    let k_block = if m <= class.rows() { k.max(1) } else { even(k, class.k_block()) };
    // A panel group is worth an item of `item_flops`, or of `item_bytes` where memory is the limit.
    let flops = (class.item_flops() / (2 * rows * PANEL * k).max(1)).max(1);
    let bytes = (class.item_bytes() / (4 * PANEL * k).max(1)).max(1);
    // Every group reads A once: where A has many blocks, as many panels as stay in the cache.
    let cached = if row_blocks >= MANY_BLOCKS { GROUP_BYTES / (4 * PANEL * k).max(1) } else { 0 };
    let group = even(panels, flops.min(bytes).max(cached));

    let mut at = Positions::default();
    let (a_at, b_at) = (at.next(), at.next());
    let bias_at = at.next_if(call.epilogue.bias);
    let residual_at = at.next_if(call.epilogue.residual);
    let c_at = at.next();
    let workspace_at = at.next();

    let mut params = Params {
        m,
        n,
        k,
        extents: [1; 4],
        a_batch: [0; 4],
        b_batch: [0; 4],
        c_batch: [0; 4],
        a_row: call.a.row_stride,
        c_row: call.c_row_stride,
        rows,
        panels: group,
        k_block,
        epilogue: epilogue_word(&call.epilogue),
        a_at,
        a_offset: 0,
        b_at,
        b_offset: 0,
        bias_at,
        residual_at,
        c_at,
    };
    for (i, axis) in call.batch.iter().enumerate() {
        params.extents[i] = axis.extent;
        params.a_batch[i] = axis.a;
        params.b_batch[i] = axis.b;
        params.c_batch[i] = axis.c;
    }

    let mut workspace = Workspace::new(class, workspace_at);
    // Rows a multiple of 4 KiB apart share the sets of the first level of the cache.
    let rows_collide = m > 4 && k > 64 && call.a.row_stride.is_multiple_of(1024);
    if call.a.col_stride != 1 || rows_collide {
        let placed = workspace.rows(Source {
            at: a_at,
            size: [m, k],
            strides: [call.a.row_stride, call.a.col_stride],
            extents: params.extents,
            batch: params.a_batch,
        });
        (params.a_at, params.a_offset, params.a_batch) = (workspace_at, placed.offset, placed.batch);
        params.a_row = pack::row_stride(k);
    }
    if !call.b_packed {
        let placed = workspace.panels(Source {
            at: b_at,
            size: [k, n],
            strides: [call.b.row_stride, call.b.col_stride],
            extents: params.extents,
            batch: params.b_batch,
        });
        (params.b_at, params.b_offset, params.b_batch) = (workspace_at, placed.offset, placed.batch);
    }
    // A workspace of no bytes is no argument; nobody reads it then.
    let mut phases = workspace.phases;
    if workspace.len == 0 {
        phases.clear();
        params.a_at = a_at;
        params.b_at = b_at;
    }
    let repetitions = params.extents.iter().product::<usize>();
    phases.push(Phase {
        kernel: class.kernels().matmul,
        params: to_words(&params),
        items: repetitions * row_blocks * panels.div_ceil(group),
        grain: 1,
    });
    let packed = Packed { operand: 1, layout: pack::LAYOUT, bytes: 4 * packed_len(k, n) };
    Ok(Prepared {
        phases,
        scratch_bytes: 0,
        workspace_bytes: 4 * workspace.len,
        packed: if call.b_packed { vec![packed] } else { Vec::new() },
    })
}

/// The bytes of a constant B in the packed layout.
pub(crate) fn pack_constant(call: &MatMul, tensor: &Tensor) -> Result<Vec<u8>, String> {
    let (ones, matrix) = tensor.shape().split_at(tensor.shape().len().saturating_sub(2));
    if tensor.dtype() != DType::F32 || matrix != [call.k, call.n] || ones.iter().any(|&d| d != 1) {
        return Err(format!(
            "expected a constant f32[{}, {}], found {}{:?}",
            call.k,
            call.n,
            tensor.dtype(),
            tensor.shape()
        ));
    }
    let values = tensor.as_slice::<f32>().map_err(|e| e.to_string())?;
    let mut bytes = vec![0; 4 * packed_len(call.k, call.n)];
    for (i, row) in values.chunks_exact(call.n.max(1)).enumerate() {
        for (panel, part) in row.chunks(PANEL).enumerate() {
            let at = 4 * (panel * call.k + i) * PANEL;
            for (to, x) in bytes[at..].chunks_exact_mut(4).zip(part) {
                to.copy_from_slice(&x.to_ne_bytes());
            }
        }
    }
    Ok(bytes)
}

/// The inverse of [`pack_constant`].
pub(crate) fn unpack_constant(shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let (&[.., k, n], [ones @ .., _, _]) = (shape, shape) else {
        return Err(format!("expected two axes, found {shape:?}"));
    };
    if ones.iter().any(|&d| d != 1) {
        return Err(format!("expected one matrix, found {shape:?}"));
    }
    if bytes.len() != 4 * packed_len(k, n) {
        return Err(format!("expected {} packed bytes, found {}", 4 * packed_len(k, n), bytes.len()));
    }
    let mut out = Vec::with_capacity(4 * k * n);
    for i in 0..k {
        for panel in 0..n.div_ceil(PANEL) {
            let at = 4 * (panel * k + i) * PANEL;
            out.extend_from_slice(&bytes[at..at + 4 * (n - panel * PANEL).min(PANEL)]);
        }
    }
    Tensor::from_bytes(DType::F32, shape, &out).map_err(|e| e.to_string())
}

/// The product.
///
/// Arguments: A, B (packed, or strided), bias if any (n elements), residual if any (strides of C), C, workspace if
/// any. Any alignment of 4 bytes; C overlaps no other argument. `m`, `n`, `k` and batch extents may be 0; where
/// `k` is 0 the sums are 0.
///
/// # Safety
/// The contract of [`margay_loops::KernelFn`], with parameters from [`prepare`].
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
            let (row, rest) = (item % row_blocks * p.rows, item / row_blocks);
            let (panel, repetition) = (rest % groups * p.panels, rest / groups);
            let offset = |strides| batch_offset(repetition, &p.extents, strides);
            let rows = p.rows.min(p.m - row);
            let col = panel * PANEL;
            let cols = (p.n - col).min(p.panels * PANEL);

            let a = argument(args, p.a_at).add(p.a_offset + offset(&p.a_batch) + row * p.a_row);
            let b = argument(args, p.b_at).add(p.b_offset + offset(&p.b_batch) + panel * p.k * PANEL);
            let at = offset(&p.c_batch) + row * p.c_row + col;
            let c = Block { at: argument(args, p.c_at).add(at), stride: p.c_row };
            let shifted = |position, by| {
                if position == ABSENT {
                    std::ptr::null()
                } else {
                    argument(args, position).add(by).cast_const()
                }
            };
            let finish = Finish {
                bias: shifted(p.bias_at, col),
                word: p.epilogue,
                residual: shifted(p.residual_at, at),
            };

            let mut first = 0;
            loop {
                let terms = p.k_block.min(p.k - first);
                let left = Left { at: a.add(first), stride: p.a_row, rows };
                let right = Right { at: b.add(first * PANEL), stride: p.k * PANEL, cols };
                let last = first + terms == p.k;
                multiply(isa, terms, left, right, c, first > 0, last.then_some(&finish));
                if last {
                    break;
                }
                first += terms;
            }
        }
    }
}
