//! Matrix products: `C = activation(A · B + bias) + residual`, repeated over batch axes.
//!
//! The result is cut into blocks of rows and groups of panels; an item is one block of one repetition. Inside
//! it, sums are cut into runs of `k_block` terms that stay in the cache, and partial sums live in C. B is a
//! packed constant, or is packed first: by a phase of its own into the workspace if several blocks of rows read
//! it, else by each item into its scratch.

use margay_loops::{MatMul, Packed, Phase, Prepared};
use margay_tensor::{DType, Tensor};

use crate::Class;
use crate::block::{Finish, Left, Result as Block, Right, epilogue_word, multiply};
use crate::isa::{Isa, PANEL};
use crate::pack::{self, batch_offset, copy_matrix, pack_panel, packed_len};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};

/// Where an item finds its panels.
const PACKED: usize = 0;
const PACK_IN_SCRATCH: usize = 1;

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
        a_col: usize,
        b_row: usize,
        b_col: usize,
        c_row: usize,
        /// `PACKED` or `PACK_IN_SCRATCH`.
        b_source: usize,
        /// Whether rows of A are copied into scratch.
        copy_a: usize,
        /// Rows, panels and terms of a block.
        rows: usize,
        panels: usize,
        k_block: usize,
        activation: usize,
        /// Positions of the arguments.
        a_at: usize,
        b_at: usize,
        bias_at: usize,
        residual_at: usize,
        c_at: usize,
    }
}

/// Most rows of a block: the A of a block stays in the second level of the cache.
fn block_rows() -> usize { std::env::var("BR").map_or(140, |s| s.parse().unwrap()) }

/// Elements between the copied rows of A and the next multiple of a cache line.
const ROW_PAD: usize = 16;

/// Cuts `total` into equal parts of at most `most`, and says how large they are.
fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most).max(1)).max(1)
}

/// How a class runs a product; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &MatMul) -> Result<Prepared, String> {
    if call.batch.len() > 4 {
        return Err(format!("at most 4 batch axes, found {}", call.batch.len()));
    }
    if call.b_packed && call.batch.iter().any(|axis| axis.b != 0) {
        return Err("a packed constant has no batch strides".to_owned());
    }
    let (m, n, k) = (call.m, call.n, call.k);
    let panels = n.div_ceil(PANEL);
    let rows = even(m, block_rows());
    let row_blocks = m.div_ceil(rows);

    // Terms per run: all of them where A is read once, else what the first level of the cache holds.
    let k_block = if m <= class.rows() { k.max(1) } else { even(k, class.k_block()) };
    // A panel group is worth an item of `item_flops`, or of `item_bytes` where memory is the limit.
    let flops = (class.item_flops() / (2 * rows * PANEL * k).max(1)).max(1);
    let bytes = (class.item_bytes() / (4 * PANEL * k).max(1)).max(1);
    let group = even(panels, flops.min(bytes.max(1)));

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
        a_col: call.a.col_stride,
        b_row: call.b.row_stride,
        b_col: call.b.col_stride,
        c_row: call.c_row_stride,
        b_source: PACKED,
        // Rows a multiple of 1 KiB apart fall into few sets of the cache.
        copy_a: (std::env::var("CA").is_ok() || call.a.col_stride != 1 || (std::env::var("NC").is_err() && m > 3 && k > 256 && call.a.row_stride.is_multiple_of(256))) as usize,
        rows,
        panels: group,
        k_block,
        activation: epilogue_word(&call.epilogue),
        a_at,
        b_at,
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

    let mut phases = Vec::new();
    let mut workspace = 0;
    if !call.b_packed {
        let repeats_b = call.batch.iter().any(|axis| axis.b == 0 && axis.extent > 1);
        if row_blocks > 1 || repeats_b {
            workspace = pack_phase(class, &mut params, workspace_at, &mut phases);
        } else {
            params.b_source = PACK_IN_SCRATCH;
        }
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
        scratch_bytes: 4 * (params.scratch_a() + params.scratch_b()),
        workspace_bytes: 4 * workspace,
        packed: if call.b_packed { vec![packed] } else { Vec::new() },
    })
}

/// Adds the phase that packs every distinct B into the workspace and points the product there; the elements of
/// the workspace.
fn pack_phase(class: Class, params: &mut Params, workspace_at: usize, phases: &mut Vec<Phase>) -> usize {
    let (k, n) = (params.k, params.n);
    let distinct = |i: usize| if params.b_batch[i] == 0 { 1 } else { params.extents[i] };
    let extents: [usize; 4] = std::array::from_fn(distinct);
    let pack = pack::Params {
        k,
        n,
        row_stride: params.b_row,
        col_stride: params.b_col,
        extents,
        strides: params.b_batch,
        panels: 0,
        source: params.b_at,
        target: workspace_at,
        target_offset: 0,
    };
    phases.push(pack.phase(class));
    let mut stride = packed_len(k, n);
    for i in (0..4).rev() {
        if params.b_batch[i] != 0 {
            params.b_batch[i] = stride;
            stride *= extents[i];
        }
    }
    params.b_at = workspace_at;
    stride
}

impl Params {
    fn scratch_a(&self) -> usize {
        if self.copy_a == 0 { 0 } else { self.rows * (self.k_block + ROW_PAD) }
    }

    fn scratch_b(&self) -> usize {
        if self.b_source == PACKED { 0 } else { self.panels * PANEL * self.k }
    }
}

/// The bytes of a constant B in the packed layout.
pub(crate) fn pack_constant(call: &MatMul, tensor: &Tensor) -> Result<Vec<u8>, String> {
    if tensor.dtype() != DType::F32 || tensor.shape() != [call.k, call.n] {
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
    let &[k, n] = shape else {
        return Err(format!("expected two axes, found {shape:?}"));
    };
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
    scratch: *mut f32,
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

            let a = argument(args, p.a_at).add(offset(&p.a_batch) + row * p.a_row);
            let b = argument(args, p.b_at).add(offset(&p.b_batch));
            let at = offset(&p.c_batch) + row * p.c_row + col;
            let c = Block { at: argument(args, p.c_at).add(at), stride: p.c_row };
            let shifted = |position, by| {
                if position == ABSENT { std::ptr::null() } else { argument(args, position).add(by).cast_const() }
            };
            let finish = Finish {
                bias: shifted(p.bias_at, col),
                bias_by_row: false,
                activation: p.activation,
                residual: shifted(p.residual_at, at),
            };

            let panels = if p.b_source == PACKED {
                b.add(panel * p.k * PANEL)
            } else {
                let to = scratch.add(p.scratch_a());
                for i in 0..cols.div_ceil(PANEL) {
                    pack_panel(isa, p.k, p.n, panel + i, (b, [p.b_row, p.b_col]), to.add(i * p.k * PANEL));
                }
                to
            };
            let mut first = 0;
            loop {
                let terms = p.k_block.min(p.k - first);
                let mut left = Left { at: a.add(first * p.a_col), stride: p.a_row, rows };
                if p.copy_a != 0 {
                    let stride = p.k_block + ROW_PAD;
                    copy_matrix(isa, rows, terms, (left.at, [p.a_row, p.a_col]), (scratch, stride));
                    left = Left { at: scratch, stride, rows };
                }
                let right = Right { at: panels.add(first * PANEL), stride: p.k * PANEL, cols };
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
