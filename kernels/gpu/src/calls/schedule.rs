//! How a product is spread over a device: which kernel computes its sums, and into how many parts these are split.
//!
//! The choice is the cheapest by one model of cost, which also prices calls for the rest of the compiler. It depends on
//! the call and the class of devices alone, so that results have the same bits in every run. The model counts whole
//! blocks, each on a multiprocessor of its own, at rates of data sheets.

use std::fmt;

use margay_loops::{CallArg, KernelCall};
use margay_tensor::DType;

use super::{few_rows, matrix_units, packed, tile};
use crate::target::{GpuTarget, Rates};
use crate::unit::Unit;
use crate::value::Type;

/// What the choice depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    /// Rows of the result of one product.
    pub(super) rows: usize,
    /// Columns of it.
    pub(super) columns: usize,
    /// Terms of each sum.
    pub(super) terms: usize,
    /// Products.
    pub(super) repetitions: usize,
    /// The type of the left operand in memory.
    pub(super) left: DType,
    /// What its elements are rounded to before they are multiplied.
    pub(super) left_rounded: DType,
    /// The type of the right operand in memory.
    pub(super) right: DType,
}

impl Shape {
    pub(super) fn results(&self) -> usize {
        self.rows * self.columns * self.repetitions
    }

    /// The type of sums: i32 of integers, and else f32.
    pub(super) fn sums(&self) -> Type {
        if self.left.is_int() { Type::I32 } else { Type::F32 }
    }
}

/// The matrix units that multiply the factors of a product: those of their own type, or, where that is allowed, of tf32, in
/// which 16-bit floats are exact. `None` where operations on f32 do it.
fn unit(shape: &Shape, target: GpuTarget) -> Option<Unit> {
    let rates = target.rates();
    if shape.left.is_int() {
        return None;
    }
    match (shape.left_rounded, shape.right) {
        (DType::BF16, DType::BF16) => rates.half_products.map(|_| Unit::Bf16),
        (DType::F16, DType::F16) => rates.half_products.map(|_| Unit::F16),
        _ if target.allows_tf32() => rates.tf32_products.map(|_| Unit::Tf32),
        _ => None,
    }
}

/// A kernel of products.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// A block computes a strip of columns of a product of few rows.
    FewRows,
    /// A block computes a tile of results with operations on f32.
    Tiles,
    /// A block computes a tile of results with matrix units.
    MatrixUnits(Unit, matrix_units::Tile),
}

impl Form {
    /// Rows and columns of the results of a block.
    pub(super) fn results(self, shape: &Shape) -> [usize; 2] {
        match self {
            Form::FewRows => [few_rows::padded(shape.rows), few_rows::STRIP],
            Form::Tiles => [tile::TILE; 2],
            Form::MatrixUnits(_, tile) => tile.results(),
        }
    }

    /// Terms that a block brings at once.
    fn depth(self) -> usize {
        match self {
            Form::FewRows => few_rows::CHUNK,
            Form::Tiles => tile::DEPTH,
            Form::MatrixUnits(unit, _) => matrix_units::WORDS * unit.terms_of_word(),
        }
    }

    /// Threads of a block.
    pub(super) fn threads(self) -> usize {
        match self {
            Form::FewRows => few_rows::THREADS,
            Form::Tiles => tile::THREADS,
            Form::MatrixUnits(_, tile) => tile.threads(),
        }
    }

    /// Blocks of one product.
    pub(super) fn blocks(self, shape: &Shape) -> usize {
        let [rows, columns] = self.results(shape);
        shape.rows.div_ceil(rows) * shape.columns.div_ceil(columns)
    }

    /// Operations per second of a device.
    fn operations(self, rates: &Rates) -> f64 {
        let units = match self {
            Form::FewRows | Form::Tiles => None,
            Form::MatrixUnits(Unit::Tf32, _) => rates.tf32_products,
            Form::MatrixUnits(Unit::Bf16 | Unit::F16, _) => rates.half_products,
        };
        units.unwrap_or(rates.operations)
    }

    fn all(shape: &Shape, target: GpuTarget) -> Vec<Form> {
        if shape.left.is_int() {
            return vec![Form::Tiles];
        }
        let mut forms = Vec::new();
        if shape.rows <= few_rows::MOST_ROWS {
            forms.push(Form::FewRows);
        }
        forms.push(Form::Tiles);
        let units = unit(shape, target).into_iter();
        forms.extend(units.flat_map(|unit| {
            matrix_units::Tile::ALL.into_iter().map(move |tile| Form::MatrixUnits(unit, tile))
        }));
        forms
    }
}

/// The parts into which sums are tried to be split, in powers of two up to here.
const MOST_PARTS: usize = 64;
/// Bytes that partial results may take.
const MOST_WORKSPACE: usize = 64 << 20;
/// The share of all multiprocessors that draws what memory gives: an estimate.
const SHARE_THAT_FILLS_MEMORY: f64 = 0.25;

/// How a product is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Schedule {
    pub(super) form: Form,
    /// Parts of each sum. More than one are joined by a second kernel, in their order.
    pub(super) parts: usize,
    /// Terms of each part but the last.
    pub(super) terms: usize,
}

impl Schedule {
    /// The cheapest.
    pub(super) fn of(shape: &Shape, call: &KernelCall, target: GpuTarget) -> Schedule {
        let rates = target.rates();
        let bytes = bytes(call);
        let forms = Form::all(shape, target);
        let all = forms.into_iter().flat_map(|form| Schedule::all(form, shape));
        let priced = all.map(|schedule| (schedule.seconds(shape, bytes, &rates), schedule));
        let cheapest = priced.reduce(|best, next| if next.0 < best.0 { next } else { best });
        cheapest.expect("every product can be computed by tiles").1
    }

    /// Every way to split a form.
    fn all(form: Form, shape: &Shape) -> impl Iterator<Item = Schedule> {
        let (terms, results, depth) = (shape.terms, shape.results(), form.depth());
        let splits = (0..=MOST_PARTS.ilog2()).map(|power| 1 << power);
        let whole = Schedule { form, parts: 1, terms };
        let split = move |parts: usize| {
            let of_part = terms.div_ceil(parts).next_multiple_of(depth);
            Schedule { form, parts: terms.div_ceil(of_part), terms: of_part }
        };
        let pays = move |s: &Schedule| s.parts > 1 && s.parts * results * 4 <= MOST_WORKSPACE;
        std::iter::once(whole).chain(splits.skip(1).filter(move |_| terms > depth).map(split).filter(pays))
    }

    /// Bytes of partial results, which are f32.
    pub(super) fn workspace_bytes(self, shape: &Shape) -> usize {
        if self.parts == 1 { 0 } else { self.parts * shape.results() * 4 }
    }

    /// Predicted seconds; `bytes` are those of the operands and results.
    fn seconds(self, shape: &Shape, bytes: usize, rates: &Rates) -> f64 {
        let blocks = (self.form.blocks(shape) * shape.repetitions * self.parts).max(1) as f64;
        let [rows, columns] = self.form.results(shape);
        let terms = self.terms as f64;
        let multiprocessors = rates.multiprocessors as f64;
        let rounds = (blocks / multiprocessors).ceil();
        let computed =
            rounds * 2.0 * (rows * columns) as f64 * terms / (self.form.operations(rates) / multiprocessors);
        let of_term = (rows.min(shape.rows) * shape.left.bytes()
            + columns.min(shape.columns) * shape.right.bytes()) as f64;
        let brought = blocks * terms * of_term / rates.cached_bytes;
        let workspace = self.workspace_bytes(shape);
        let busy = (blocks / (SHARE_THAT_FILLS_MEMORY * multiprocessors)).min(1.0);
        let moved = (bytes + workspace) as f64 / (rates.bytes * busy);
        // The second kernel begins when the first has ended.
        let joined = if self.parts == 1 { 0.0 } else { rates.launch + workspace as f64 / rates.bytes };
        rates.launch + computed.max(brought).max(moved) + joined
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.form {
            Form::FewRows => f.write_str("few rows")?,
            Form::Tiles => write!(f, "tiles of {0} x {0}", tile::TILE)?,
            Form::MatrixUnits(unit, tile) => {
                let [rows, columns] = tile.results();
                write!(f, "matrix units of {}, tiles of {rows} x {columns}", unit.name())?;
            }
        }
        match self.parts {
            1 => Ok(()),
            parts => write!(f, ", {parts} parts of {} terms", self.terms),
        }
    }
}

/// Bytes of the arguments of a call, what is shared by repetitions once.
pub(super) fn bytes(call: &KernelCall) -> usize {
    let args = call.args();
    let elements = |axes: &[(usize, usize)]| -> usize {
        axes.iter().map(|&(extent, stride)| if stride == 0 { extent.min(1) } else { extent }).product()
    };
    let packed = packed(call);
    let bytes = |(i, arg): (usize, &CallArg)| match packed.iter().find(|p| p.operand == i) {
        Some(packed) => packed.bytes,
        None => elements(&arg.axes) * arg.dtype.bytes(),
    };
    args.iter().enumerate().map(bytes).sum()
}

/// The predicted seconds of a product.
pub(super) fn seconds(shape: &Shape, call: &KernelCall, target: GpuTarget) -> f64 {
    Schedule::of(shape, call, target).seconds(shape, bytes(call), &target.rates())
}

#[cfg(test)]
mod tests {
    use margay_loops::{Epilogue, MatLayout, MatMul, ProductTypes};

    use super::*;
    use crate::calls::product::Product;
    use crate::target::Class;

    fn product([m, k, n]: [usize; 3], dtype: DType) -> MatMul {
        MatMul {
            m,
            n,
            k,
            batch: Vec::new(),
            a: MatLayout { row_stride: k, col_stride: 1 },
            b: MatLayout { row_stride: n, col_stride: 1 },
            c_row_stride: n,
            b_packed: false,
            types: ProductTypes::of(dtype),
            epilogue: Epilogue::default(),
        }
    }

    fn schedule(c: &MatMul, target: GpuTarget) -> Schedule {
        Schedule::of(&c.shape(), &c.call(), target)
    }

    #[test]
    fn products_take_the_cheapest_form() {
        let extents = [
            [1, 64, 64],
            [1, 4096, 4096],
            [16, 4096, 4096],
            [64, 64, 64],
            [64, 4096, 64],
            [256, 8192, 256],
            [1000, 1000, 1000],
            [4096, 4096, 4096],
        ];
        let sm80 = GpuTarget::new(Class::Sm80);
        let kinds = [
            ("sm_75", GpuTarget::new(Class::Sm75), DType::F32),
            ("sm_80", sm80, DType::F32),
            ("sm_80 tf32", sm80.with_tf32(), DType::F32),
            ("sm_90 bf16", GpuTarget::new(Class::Sm90), DType::BF16),
        ];
        let mut lines = Vec::new();
        for (name, target, dtype) in kinds {
            for [m, k, n] in extents {
                let schedule = schedule(&product([m, k, n], dtype), target);
                lines.push(format!("{name} {m}x{k}x{n}: {schedule}"));
            }
        }
        insta::assert_snapshot!(lines.join("\n"), @r"
        sm_75 1x64x64: few rows
        sm_75 1x4096x4096: few rows
        sm_75 16x4096x4096: few rows
        sm_75 64x64x64: tiles of 64 x 64
        sm_75 64x4096x64: tiles of 64 x 64, 32 parts of 128 terms
        sm_75 256x8192x256: tiles of 64 x 64, 16 parts of 512 terms
        sm_75 1000x1000x1000: tiles of 64 x 64
        sm_75 4096x4096x4096: tiles of 64 x 64
        sm_80 1x64x64: few rows
        sm_80 1x4096x4096: few rows
        sm_80 16x4096x4096: few rows
        sm_80 64x64x64: tiles of 64 x 64
        sm_80 64x4096x64: tiles of 64 x 64, 64 parts of 64 terms
        sm_80 256x8192x256: tiles of 64 x 64, 32 parts of 256 terms
        sm_80 1000x1000x1000: tiles of 64 x 64, 2 parts of 512 terms
        sm_80 4096x4096x4096: tiles of 64 x 64
        sm_80 tf32 1x64x64: few rows
        sm_80 tf32 1x4096x4096: few rows
        sm_80 tf32 16x4096x4096: matrix units of tf32, tiles of 64 x 64
        sm_80 tf32 64x64x64: matrix units of tf32, tiles of 64 x 64
        sm_80 tf32 64x4096x64: matrix units of tf32, tiles of 64 x 64, 32 parts of 128 terms
        sm_80 tf32 256x8192x256: matrix units of tf32, tiles of 64 x 64, 4 parts of 2048 terms
        sm_80 tf32 1000x1000x1000: matrix units of tf32, tiles of 128 x 128
        sm_80 tf32 4096x4096x4096: matrix units of tf32, tiles of 128 x 128
        sm_90 bf16 1x64x64: few rows
        sm_90 bf16 1x4096x4096: few rows
        sm_90 bf16 16x4096x4096: few rows
        sm_90 bf16 64x64x64: matrix units of bf16, tiles of 64 x 64
        sm_90 bf16 64x4096x64: matrix units of bf16, tiles of 64 x 64, 32 parts of 128 terms
        sm_90 bf16 256x8192x256: matrix units of bf16, tiles of 64 x 64, 4 parts of 2048 terms
        sm_90 bf16 1000x1000x1000: matrix units of bf16, tiles of 128 x 128
        sm_90 bf16 4096x4096x4096: matrix units of bf16, tiles of 128 x 128
        ");
    }

    #[test]
    fn every_term_belongs_to_one_part() {
        for target in GpuTarget::all() {
            for (m, k, n) in [(1, 1, 1), (3, 0, 5), (5, 257, 7), (64, 4097, 64), (7, 100_000, 9), (0, 9, 9)] {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let c = product([m, k, n], dtype);
                    for form in Form::all(&c.shape(), target) {
                        for schedule in Schedule::all(form, &c.shape()) {
                            let (parts, terms) = (schedule.parts, schedule.terms);
                            assert!(
                                parts * terms >= k && (parts == 1 || (parts - 1) * terms < k),
                                "{schedule}"
                            );
                        }
                    }
                    assert!(schedule(&c, target).workspace_bytes(&c.shape()) <= MOST_WORKSPACE);
                }
            }
        }
    }

    #[test]
    fn operands_of_other_types_are_exact_where_tf32_is_not_allowed() {
        let mixed = ProductTypes { right: margay_tensor::Storage::plain(DType::BF16), ..ProductTypes::F32 };
        let c = MatMul { types: mixed, ..product([512; 3], DType::F32) };
        let sm80 = GpuTarget::new(Class::Sm80);
        assert_eq!(unit(&c.shape(), sm80), None);
        assert_eq!(unit(&c.shape(), sm80.with_tf32()), Some(Unit::Tf32));
        let rounded = MatMul { types: ProductTypes { left_rounded: DType::BF16, ..mixed }, ..c };
        assert_eq!(unit(&rounded.shape(), sm80), Some(Unit::Bf16));
        assert_eq!(unit(&rounded.shape(), GpuTarget::new(Class::Sm75)), None);
    }

    #[test]
    fn a_product_of_nothing_costs_a_launch() {
        let (c, target) = (product([0, 9, 9], DType::F32), GpuTarget::new(Class::Sm80));
        assert!(seconds(&c.shape(), &c.call(), target).is_finite());
    }
}
