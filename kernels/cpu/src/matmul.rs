//! Matrix products: `C = activation(A · B + bias) + residual`, repeated over batch axes.
//!
//! The result is cut into blocks of rows and groups of panels; an item is one block of one repetition. Inside
//! it, sums are cut into runs of `k_block` terms that stay in the cache, and partial sums live in C. B is a
//! packed constant, or is packed into the workspace first; so is A where its rows are not as they should be.
//!
//! A right operand that is no constant is not packed for a few rows: `thin` reads it where it lies. Where the rows are
//! one block, `strided` packs it on the way.
//!
//! Narrow constants: where the processor multiplies pairs of bf16, the same code runs on elements that are such
//! pairs; elsewhere, and for int8, `narrow` widens panels as it goes. Random signs beside numbers are made by `drawn`.

use margay_loops::{MatMul, Needs, Packed};
use margay_tensor::DType;

use crate::block::{Block, Finish, Left, Right, STREAMED, epilogue_word, multiply_before};
use crate::constants::Format;
use crate::drawn::{Drawn, Order};
use crate::isa::{Isa, PANEL};
use crate::pack::{self, Source, Workspace, batch_offset};
use crate::params::{ABSENT, Positions, argument, from_words, params, to_words};
use crate::{Class, drawn, narrow, strided, thin};
use crate::{Phase, Prepared};

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
pub(crate) const BLOCK_ROWS: usize = 140;

/// Blocks of rows that make enough items without a cut along the columns.
const MANY_BLOCKS: usize = 12;

/// Bytes of panels that stay in the second level of the cache beside a block of rows.
const GROUP_BYTES: usize = 1 << 19;

/// Bytes of a result that no cache holds until somebody reads it.
const STREAMED_BYTES: usize = 1 << 26;

/// Cuts `total` into equal parts of at most `most`, and says how large they are.
pub(crate) fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most).max(1)).max(1)
}

/// Items below which a product is cut into smaller blocks of rows, so that several threads find work.
const FEW_ITEMS: usize = 8;

/// Rows of a block of a product of `m` rows and so many panels of `k` terms, over `repetitions`.
fn block_rows(class: Class, m: usize, panels: usize, k: usize, repetitions: usize) -> usize {
    let rows = even(m, BLOCK_ROWS);
    if repetitions * panels * m.div_ceil(rows) >= FEW_ITEMS {
        return rows;
    }
    let tile_flops = 2 * class.rows() * PANEL * k;
    let tiles = (class.item_flops() / 4).div_ceil(tile_flops.max(1)).max(1);
    even(m, (tiles * class.rows()).min(rows))
}

/// The format of B, and whether A is rounded to bf16; `Err` says what no kernel does.
fn formats(call: &MatMul) -> Result<(Format, bool), String> {
    let types = &call.types;
    if types.left != DType::F32 || types.result != DType::F32 {
        return Err(format!("operands in memory are f32, found {} and {}", types.left, types.result));
    }
    let format = Format::of(types.right).ok_or_else(|| format!("a right operand stored {}", types.right))?;
    if format != Format::F32 && !call.b_packed {
        return Err(format!("a right operand stored {} is a packed constant", types.right));
    }
    match types.left_rounded {
        DType::F32 => Ok((format, false)),
        DType::BF16 if format == Format::Bf16 => Ok((format, true)),
        to => Err(format!("a left operand rounded to {to} beside a right one stored {}", types.right)),
    }
}

/// How a class runs a product; `Err` says why it cannot.
pub(crate) fn prepare(class: Class, call: &MatMul) -> Result<Prepared, String> {
    prepare_ordered(class, call, Order::Rows)
}

/// As [`prepare`], with the signs of a constant in some order.
pub(crate) fn prepare_ordered(class: Class, call: &MatMul, order: Order) -> Result<Prepared, String> {
    let mut joined = call.clone();
    joined.join_rows();
    let call = &joined;
    if call.batch.len() > 4 {
        return Err(format!("at most 4 batch axes, found {}", call.batch.len()));
    }
    if call.b_packed && call.batch.iter().any(|axis| axis.b != 0) {
        return Err("a packed constant has no batch strides".to_owned());
    }
    let (format, rounded) = formats(call)?;
    let pairs = class.kernels().matmul_pairs.filter(|_| rounded);
    // Elements of a row of A as the kernel sees it: pairs of terms, or terms.
    let (m, n, k) = (call.m, call.n, if pairs.is_some() { call.k.div_ceil(2) } else { call.k });
    let drawn = match format {
        Format::Signs(signs) => Some(Drawn::new(signs, [k, n], order)?),
        Format::F32 | Format::Bf16 | Format::Int8 | Format::FewBits(_) => None,
    };
    let widened = format != Format::F32 && pairs.is_none() && drawn.is_none();
    let panels = n.div_ceil(PANEL);
    let repetitions = call.batch.iter().map(|axis| axis.extent).product();
    let rows = block_rows(class, m, panels, k, repetitions);
    let row_blocks = m.div_ceil(rows);

    // Terms per run: all of them where A is read once, else what the first level of the cache holds.
    let k_block = match widened {
        true => even(k, narrow::WIDENED_TERMS).next_multiple_of(narrow::TERMS),
        false if rows <= class.rows() => k.max(1),
        false => even(k, class.k_block()),
    };
    // A panel group is worth an item of `item_flops`, or of `item_bytes` where memory is the limit.
    let flops = (class.item_flops() / (2 * rows * PANEL * k).max(1)).max(1);
    let panel_bytes = format.layout(call.k, PANEL).1.max(1);
    let bytes = (class.item_bytes() / panel_bytes).max(1);
    // Every group reads A once: where A has many blocks, as many panels as stay in the cache.
    let cached = if row_blocks >= MANY_BLOCKS { GROUP_BYTES / panel_bytes } else { 0 };
    let thin = !call.b_packed && m <= thin::THIN_ROWS && (call.b.col_stride == 1 || call.b.row_stride == 1);
    let strided =
        !call.b_packed && !thin && row_blocks == 1 && (call.b.col_stride == 1 || call.b.row_stride == 1);
    let few = (repetitions * panels).div_ceil(FEW_ITEMS).max(1);
    let group = match (thin, strided) {
        (true, _) => even(panels, bytes.max(thin::LEAST_PANELS)),
        (_, true) => even(panels, strided::PANELS.min(few)),
        _ => even(panels, flops.min(bytes).max(cached)),
    };
    let k_block = if strided { even(k, strided::TERMS) } else { k_block };

    let mut at = Positions::default();
    let (a_at, b_at) = (at.next(), at.next());
    let bias_at = at.next_if(call.epilogue.bias);
    let residual_at = at.next_if(call.epilogue.residual);
    let c_at = at.next();
    let workspace_at = at.next();

    // Sums that are read back, by a later run of terms, stay in the caches.
    let large = repetitions * m * n >= STREAMED_BYTES / 4 && k_block >= k && !call.epilogue.residual;
    let streamed = large && !(thin || strided || widened || drawn.is_some());
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
        epilogue: epilogue_word(&call.epilogue) | if streamed { STREAMED } else { 0 },
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
    let a = Source {
        at: a_at,
        size: [m, call.k],
        strides: [call.a.row_stride, call.a.col_stride],
        extents: params.extents,
        batch: params.a_batch,
    };
    // Rows a multiple of 4 KiB apart share the sets of the first level of the cache.
    let rows_collide = m > 4 && k > 64 && panels > 2 && !thin && call.a.row_stride.is_multiple_of(1024);
    let placed = match rounded {
        true => Some(workspace.rounded(a, pairs.is_some())),
        false if call.a.col_stride != 1 || rows_collide => Some(workspace.rows(a)),
        false => None,
    };
    if let Some(placed) = placed {
        (params.a_at, params.a_offset, params.a_batch) = (workspace_at, placed.offset, placed.batch);
        params.a_row = pack::row_stride(k);
    }
    if !call.b_packed && !thin && !strided {
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
    let strides = [call.b.row_stride, call.b.col_stride];
    let (kernel, words) = match (pairs, format) {
        (_, Format::F32) if thin => (class.kernels().matmul_thin, thin::words(params, strides)),
        (_, Format::F32) if strided => (class.kernels().matmul_strided, strided::words(params, strides)),
        (_, Format::F32) => (class.kernels().matmul, to_words(&params)),
        (_, Format::Signs(_)) => {
            (class.kernels().matmul_drawn, drawn.map_or(Vec::new(), |d| d.words(params)))
        }
        (Some(pairs), _) => (pairs, to_words(&params)),
        (None, format) => (narrow::kernel(class.kernels(), format), narrow::words(params, format)),
    };
    phases.push(Phase {
        kernel,
        params: words,
        items: repetitions * row_blocks * drawn.map_or(panels.div_ceil(group), |d| d.parts(n, group)),
        grain: 1,
    });
    let (layout, bytes) = format.layout(call.k, n);
    let packed = Packed { operand: 1, layout, bytes };
    Ok(Prepared {
        phases,
        scratch_bytes: match (widened, strided) {
            _ if drawn.is_some() => 4 * drawn::SCRATCH,
            (true, _) => 4 * PANEL * k_block,
            (_, true) => 4 * strided::scratch(group),
            _ => 0,
        },
        needs: Needs {
            workspace_bytes: 4 * workspace.len,
            packed: if call.b_packed { vec![packed] } else { Vec::new() },
        },
    })
}

/// A block of rows and a group of panels of one repetition.
pub(crate) struct Item {
    /// The rows of A.
    pub(crate) a: *const f32,
    /// Where the matrix B begins, in elements.
    pub(crate) b: usize,
    /// The block of the result.
    pub(crate) c: Block,
    /// Rows.
    pub(crate) rows: usize,
    /// The first panel.
    pub(crate) panel: usize,
    /// Columns.
    pub(crate) cols: usize,
    /// What is applied to the block.
    pub(crate) finish: Finish,
}

impl Item {
    /// Item `number` of a call.
    ///
    /// # Safety
    /// Parameters, arguments and number are those of a call.
    #[inline(always)]
    pub(crate) unsafe fn of(p: &Params, args: *const *mut u8, number: usize) -> Item {
        let (row_blocks, panels) = (p.m.div_ceil(p.rows), p.n.div_ceil(PANEL));
        let groups = panels.div_ceil(p.panels);
        // Row blocks vary fastest: consecutive items read the same panels.
        let (row, rest) = (number % row_blocks * p.rows, number / row_blocks);
        let (panel, repetition) = (rest % groups * p.panels, rest / groups);
        let offset = |strides| batch_offset(repetition, &p.extents, strides);
        let col = panel * PANEL;
        let at = offset(&p.c_batch) + row * p.c_row + col;
        // SAFETY: the extents of the call bound every offset.
        unsafe {
            let shifted = |position, by| match position {
                ABSENT => std::ptr::null(),
                _ => argument(args, position).add(by).cast_const(),
            };
            Item {
                a: argument(args, p.a_at).add(p.a_offset + offset(&p.a_batch) + row * p.a_row),
                b: p.b_offset + offset(&p.b_batch),
                c: Block { at: argument(args, p.c_at).add(at), stride: p.c_row },
                rows: p.rows.min(p.m - row),
                panel,
                cols: (p.n - col).min(p.panels * PANEL),
                finish: Finish {
                    bias: shifted(p.bias_at, col),
                    word: p.epilogue,
                    residual: shifted(p.residual_at, at),
                },
            }
        }
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 3;

/// The product.
///
/// Arguments: A, B (packed, or strided), bias if any (n elements), residual if any (strides of C), C, workspace if
/// any. Any alignment of 4 bytes; C overlaps no other argument. `m`, `n`, `k` and batch extents may be 0; where
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
        for item in begin as usize..end as usize {
            let Item { a, b, c, rows, panel, cols, finish } = Item::of(p, args, item);
            let b = argument(args, p.b_at).add(b + panel * p.k * PANEL);
            let mut first = 0;
            loop {
                let terms = p.k_block.min(p.k - first);
                let left = Left { at: a.add(first), stride: p.a_row, rows };
                let right = Right { at: b.add(first * PANEL), stride: p.k * PANEL, cols };
                let last = first + terms == p.k;
                // The following terms of these panels, or the panels of the next item.
                let next = match last {
                    true => b.wrapping_add(cols.div_ceil(PANEL) * p.k * PANEL),
                    false => right.at.wrapping_add(terms * PANEL),
                };
                let finish = last.then_some(&finish);
                multiply_before(isa, terms, left, right, c, first > 0, finish, next);
                if last {
                    break;
                }
                first += terms;
            }
        }
        if p.epilogue & STREAMED != 0 {
            isa.fence();
        }
    }
}
