//! The nodes that multiply rows by a structure of the algebra, and forms that are such structures.
//!
//! A row is a tensor whose axes are split, joined and exchanged as factors need them. Exchanges wait until a factor multiplies
//! along an axis: then one transpose brings all axes into place, so that permutations between factors cost nothing by
//! themselves. No node makes the matrix that a structure stands for.
//!
//! A convolution of one tap multiplies the rows of its channels, which are brought last. Deliberately absent: other convolutions.

use std::collections::VecDeque;
use std::fmt::Debug;

use margay_ir::ops::{
    Add, Concat, Conv, Gather, ImageLayout, MatMul, Mul, Reduce, ReduceKind, Reshape, ScatterAdd, Slice,
    Transpose,
};
use margay_ir::{AddError, Graph, NodeId, Op, Origin, Part, Value};
use margay_randnla::{Contents, Kind, Matrix, RandnlaError, Stored, Structure};
use margay_tensor::Dim;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::forms::{Form, Subject};
use super::kernels::{rows_in, rows_out};
use super::{Layer, Replacement};

/// A form that is a structure of the algebra. Shapes, the weight that it stands for and the nodes follow from that.
pub(super) trait Algebraic: Debug + Send + Sync + Sized + 'static {
    /// The name of its scheme.
    const NAME: &'static str;

    /// Whether contents depend on the seed.
    const SEEDED: bool;

    /// What a plan says.
    type Settings: Serialize + DeserializeOwned + Debug;

    /// The form of a layer; `None` for one that has no such form.
    fn of(layer: &Layer) -> Option<Self>;

    /// The structure at some settings, of the shape of the weight.
    ///
    /// # Errors
    /// Why settings are not offered, in words.
    fn structure(&self, settings: &Self::Settings) -> Result<Structure, String>;

    /// What the structure stores for a weight.
    ///
    /// # Errors
    /// Those of the decomposition.
    fn contents(&self, subject: &Subject, settings: &Self::Settings) -> Result<Vec<Contents>, RandnlaError>;
}

impl<A: Algebraic> Form for A {
    const NAME: &'static str = A::NAME;

    const DECOMPOSED: bool = false;

    const SEEDED: bool = A::SEEDED;

    type Settings = A::Settings;

    fn of(g: &Graph, layer: &Layer) -> Option<A> {
        layer.is_linear(g).then(|| A::of(layer)).flatten()
    }

    fn stored(&self, settings: &A::Settings) -> Result<Vec<Stored>, String> {
        self.structure(settings).map(|structure| structure.stored())
    }

    fn factors(&self, subject: &Subject, settings: &A::Settings) -> Result<Vec<Contents>, RandnlaError> {
        self.contents(subject, settings)
    }

    fn weight(&self, settings: &A::Settings, factors: &[Contents]) -> Result<Matrix, RandnlaError> {
        self.structure(settings).map_err(RandnlaError::Algebra)?.to_matrix(factors)
    }

    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        settings: &A::Settings,
        factors: &[Value],
    ) -> Result<Value, AddError> {
        let structure = self.structure(settings).expect("the tensors are those of these settings");
        multiply(work, n, &structure, factors)
    }
}

/// A structure of the text, which is right by construction.
pub(super) fn structure(text: &str) -> Result<Structure, String> {
    text.parse().map_err(|error: RandnlaError| error.to_string())
}

/// The nodes that multiply what a node reads by a structure that stores these tensors.
fn multiply(
    work: &mut Replacement<'_>,
    n: NodeId,
    structure: &Structure,
    tensors: &[Value],
) -> Result<Value, AddError> {
    let value = rows_in(work, n)?;
    let mut lead = work.ty(value).shape.clone();
    lead.pop();
    let rows = lead.iter().fold(Dim::from(1usize), |rows, extent| &rows * extent);
    let origin = work.graph.node(n).origin.clone();
    // What ends the map of a convolution brings the channels back.
    let inside = usize::from(matches!(work.graph.op(n), Op::Conv(_)));
    let mut writer =
        Writer { work: &mut *work, origin, inside, lead, rows, extents: vec![1], left: tensors.len() };
    let vector = writer.axis(structure.rows());
    let axes = [ROWS].into_iter().chain(vector.iter().copied()).collect();
    let mut x = Operand { value, axes };
    let vector = writer.product(structure, tensors, &mut x, vector, At::default())?;
    let others = vec![ROWS];
    let found = writer.in_rows(&mut x, &others, &vector, &[structure.columns()])?;
    rows_out(work, n, found)
}

/// The number of the axis of rows.
const ROWS: usize = 0;

/// Axes that together are a row that a structure multiplies, from the outermost; those of one element are left out.
type Vector = Vec<usize>;

/// A value, and the axes that its elements lie along, from the outermost.
#[derive(Clone)]
struct Operand {
    value: Value,
    axes: Vec<usize>,
}

/// The axes of the blocks that a structure is in, and whether it is transposed.
#[derive(Clone, Default)]
struct At {
    blocks: Vec<usize>,
    transposed: bool,
}

struct Writer<'a, 'g> {
    work: &'a mut Replacement<'g>,
    origin: Origin,
    /// How many sums, Kronecker products and blocks are being written around what comes next.
    inside: usize,
    lead: Vec<Dim>,
    rows: Dim,
    /// By axis; that of the rows is a symbol.
    extents: Vec<usize>,
    /// Tensors that nobody has read yet.
    left: usize,
}

impl Writer<'_, '_> {
    fn add(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, AddError> {
        // Two products of which the second is marked so are taken for the whole map, and fitted as that.
        let ends = self.inside == 0 && self.left == 0;
        let part = if ends { Part::Right } else { Part::Left };
        self.work.add(op, inputs, self.origin.part(part))
    }

    /// A new axis; none of one element.
    fn axis(&mut self, extent: usize) -> Vector {
        if extent == 1 {
            return Vec::new();
        }
        self.extents.push(extent);
        vec![self.extents.len() - 1]
    }

    fn extent(&self, axes: &[usize]) -> usize {
        axes.iter().map(|axis| self.extents[*axis]).product()
    }

    /// The extent of axes, those of rows among them or not.
    fn dim(&self, axes: &[usize]) -> Dim {
        let known = Dim::from(self.extent(axes));
        if axes.contains(&ROWS) { &self.rows * &known } else { known }
    }

    fn shaped(&mut self, value: Value, shape: Vec<Dim>) -> Result<Value, AddError> {
        match self.work.ty(value).shape == shape {
            true => Ok(value),
            false => self.add(Reshape { shape }, &[value]),
        }
    }

    /// Brings the elements into another order of axes.
    fn arrange(&mut self, x: &mut Operand, order: Vec<usize>) -> Result<(), AddError> {
        if x.axes == order {
            return Ok(());
        }
        let place = |axis: &usize| x.axes.iter().position(|a| a == axis).expect("an axis of the operand");
        // Axes that stay side by side move as one.
        let mut runs: Vec<Vec<usize>> = Vec::new();
        for axis in &order {
            match runs.last_mut() {
                Some(run) if place(&run[run.len() - 1]) + 1 == place(axis) => run.push(*axis),
                _ => runs.push(vec![*axis]),
            }
        }
        let mut before: Vec<usize> = (0..runs.len()).collect();
        before.sort_by_key(|run| place(&runs[*run][0]));
        let shape = before.iter().map(|run| self.dim(&runs[*run])).collect();
        let perm = (0..runs.len()).map(|run| before.iter().position(|r| *r == run).expect("a run")).collect();
        let value = self.shaped(x.value, shape)?;
        x.value = self.add(Transpose { perm }, &[value])?;
        x.axes = order;
        Ok(())
    }

    /// Axes of the operand that are neither of a row nor of blocks.
    fn others(x: &Operand, vector: &[usize], blocks: &[usize]) -> Vec<usize> {
        x.axes.iter().copied().filter(|axis| !vector.contains(axis) && !blocks.contains(axis)).collect()
    }

    /// The shape of some axes as rows, then these extents.
    fn rows_shape(&self, others: &[usize], last: &[usize]) -> Vec<Dim> {
        let mut shape = match others {
            [] => Vec::new(),
            [ROWS] => self.lead.clone(),
            [ROWS, rest @ ..] => [self.lead.clone(), vec![Dim::from(self.extent(rest))]].concat(),
            others => vec![self.dim(others)],
        };
        shape.extend(last.iter().map(|extent| Dim::from(*extent)));
        shape
    }

    /// The value with the axes `others` as rows, and `vector` behind them in these extents.
    fn in_rows(
        &mut self,
        x: &mut Operand,
        others: &[usize],
        vector: &[usize],
        last: &[usize],
    ) -> Result<Value, AddError> {
        self.arrange(x, [others, vector].concat())?;
        let shape = self.rows_shape(others, last);
        self.shaped(x.value, shape)
    }

    /// The axes of a row in groups of these extents.
    fn split(&mut self, x: &mut Operand, vector: Vector, extents: &[usize]) -> Result<Vec<Vector>, AddError> {
        let mut rest: VecDeque<usize> = vector.into();
        let mut groups: Vec<Vector> = Vec::new();
        for extent in extents {
            let (mut group, mut need) = (Vec::new(), *extent);
            while need > 1 {
                let axis = rest[0];
                let have = self.extents[axis];
                if need.is_multiple_of(have) {
                    group.push(axis);
                    rest.pop_front();
                    need /= have;
                } else if have.is_multiple_of(need) {
                    let (outer, inner) = (self.axis(need)[0], self.axis(have / need)[0]);
                    let place = x.axes.iter().position(|a| *a == axis).expect("an axis of the operand");
                    x.axes.splice(place..=place, [outer, inner]);
                    group.push(outer);
                    rest[0] = inner;
                    need = 1;
                } else {
                    // Axes that were split in another way become one.
                    let all: Vector = groups.into_iter().flatten().chain(group).chain(rest).collect();
                    let others = Self::others(x, &all, &[]);
                    self.arrange(x, [others.clone(), all.clone()].concat())?;
                    let one = self.axis(self.extent(&all));
                    x.axes = [others, one.clone()].concat();
                    return self.split(x, one, extents);
                }
            }
            groups.push(group);
        }
        Ok(groups)
    }

    /// Multiplies an operand along `vector`: the axes of the result, in place of these.
    fn product(
        &mut self,
        s: &Structure,
        tensors: &[Value],
        x: &mut Operand,
        vector: Vector,
        at: At,
    ) -> Result<Vector, AddError> {
        let mut first = 0;
        let mut parts: Vec<(&Structure, &[Value])> = s
            .parts()
            .iter()
            .map(|part| {
                let own = &tensors[first..first + part.stored_count()];
                first += part.stored_count();
                (part, own)
            })
            .collect();
        let extent_of = |part: &Structure| part.extents(at.transposed)[0];
        match s.kind() {
            Kind::Identity => Ok(vector),
            Kind::Shuffle(m, n) => {
                let extents = if at.transposed { [*n, *m] } else { [*m, *n] };
                let groups = self.split(x, vector, &extents)?;
                Ok([&groups[1][..], &groups[0]].concat())
            }
            Kind::Product(_) => {
                if at.transposed {
                    parts.reverse();
                }
                let mut vector = vector;
                for (factor, own) in parts {
                    vector = self.product(factor, own, x, vector, at.clone())?;
                }
                Ok(vector)
            }
            Kind::Sum(_) => {
                let others = Self::others(x, &vector, &at.blocks);
                let [_, columns] = s.extents(at.transposed);
                let last = self.extent(&at.blocks) * columns;
                let mut sum: Option<Value> = None;
                for (term, own) in parts {
                    self.inside += 1;
                    let mut operand = x.clone();
                    let found = self.product(term, own, &mut operand, vector.clone(), at.clone())?;
                    let behind = [&at.blocks[..], &found].concat();
                    let value = self.in_rows(&mut operand, &others, &behind, &[last])?;
                    self.inside -= 1;
                    sum = Some(match sum {
                        Some(sum) => self.add(Add, &[sum, value])?,
                        None => value,
                    });
                }
                let new = self.axis(columns);
                x.value = sum.expect("a sum has terms");
                x.axes = [others, at.blocks, new.clone()].concat();
                Ok(new)
            }
            Kind::Kronecker(_) => {
                let extents: Vec<usize> = parts.iter().map(|(part, _)| extent_of(part)).collect();
                self.inside += 1;
                let mut groups = self.split(x, vector, &extents)?;
                for axis in s.order(at.transposed) {
                    let (factor, own) = parts[axis];
                    let group = std::mem::take(&mut groups[axis]);
                    groups[axis] = self.product(factor, own, x, group, at.clone())?;
                }
                self.inside -= 1;
                Ok(groups.concat())
            }
            Kind::Blocks(count, of) => {
                let groups = self.split(x, vector, &[*count, extent_of(of)])?;
                let blocks = [&at.blocks[..], &groups[0]].concat();
                self.inside += 1;
                let found = self.product(of, tensors, x, groups[1].clone(), At { blocks, ..at })?;
                self.inside -= 1;
                Ok([&groups[0][..], &found].concat())
            }
            Kind::Transpose(of) => {
                self.product(of, tensors, x, vector, At { transposed: !at.transposed, ..at })
            }
            _ => {
                self.left -= tensors.len();
                match s.kind() {
                    Kind::Dense => self.dense(s, tensors[0], x, &vector, at),
                    _ => self.leaf(s, tensors, x, &vector, at),
                }
            }
        }
    }

    fn dense(
        &mut self,
        s: &Structure,
        factor: Value,
        x: &mut Operand,
        vector: &[usize],
        At { blocks, transposed }: At,
    ) -> Result<Vector, AddError> {
        let [length, new] = s.extents(transposed);
        let factor = match (transposed, blocks.is_empty()) {
            (false, _) => factor,
            (true, true) => self.add(Transpose { perm: vec![1, 0] }, &[factor])?,
            (true, false) => self.add(Transpose { perm: vec![0, 2, 1] }, &[factor])?,
        };
        let others = Self::others(x, vector, &blocks);
        let value = match blocks.is_empty() {
            true => self.in_rows(x, &others, vector, &[length])?,
            false => {
                self.arrange(x, [&blocks[..], &others, vector].concat())?;
                let shape = vec![Dim::from(self.extent(&blocks)), self.dim(&others), Dim::from(length)];
                self.shaped(x.value, shape)?
            }
        };
        x.value = self.add(MatMul, &[value, factor])?;
        let new = self.axis(new);
        x.axes = [blocks, others, new.clone()].concat();
        Ok(new)
    }

    /// A leaf of few entries, or of entries that repeat: along the inputs of all blocks at once.
    fn leaf(
        &mut self,
        s: &Structure,
        tensors: &[Value],
        x: &mut Operand,
        vector: &[usize],
        At { blocks, transposed }: At,
    ) -> Result<Vector, AddError> {
        let (columns, count) = (s.columns(), self.extent(&blocks));
        let [length, new] = s.extents(transposed);
        let others = Self::others(x, vector, &blocks);
        let inputs = [&blocks[..], vector].concat();
        let value = self.in_rows(x, &others, &inputs, &[count * length])?;
        let last = self.work.ty(value).ndim() - 1;
        let place = ScatterAdd { axis: last, extent: Dim::from(count * new), indices: 1 };
        if let Kind::Diagonal = s.kind() {
            x.value = self.add(Mul, &[value, tensors[0]])?;
            return Ok(vector.to_vec());
        }
        x.value = match s.kind() {
            Kind::Select if transposed => self.add(place, &[value, tensors[0]])?,
            Kind::Select => self.add(Gather { axis: last }, &[value, tensors[0]])?,
            Kind::Sparse(each) if transposed => {
                // Every input is read by its entries, and each goes to its place.
                let shape = self.entries(&others, &blocks, 1, columns);
                let value = self.shaped(value, shape)?;
                let products = self.add(Mul, &[value, tensors[1]])?;
                let flat = self.rows_shape(&others, &[count * each * columns]);
                let products = self.shaped(products, flat)?;
                self.add(place, &[products, tensors[0]])?
            }
            Kind::Sparse(each) => {
                let read = self.add(Gather { axis: last }, &[value, tensors[0]])?;
                let shape = self.entries(&others, &blocks, *each, columns);
                let axes = vec![shape.len() - 2];
                let read = self.shaped(read, shape)?;
                let products = self.add(Mul, &[read, tensors[1]])?;
                self.add(Reduce { kind: ReduceKind::Sum, axes, keepdims: false }, &[products])?
            }
            _ => self.convolved(s, tensors[0], value, &others, count, transposed)?,
        };
        let new = self.axis(new);
        x.axes = [others, blocks, new.clone()].concat();
        Ok(new)
    }

    /// The shape of the entries of sparse columns, for each block where there are any.
    fn entries(&self, others: &[usize], blocks: &[usize], each: usize, columns: usize) -> Vec<Dim> {
        match blocks.is_empty() {
            true => self.rows_shape(others, &[each, columns]),
            false => self.rows_shape(others, &[self.extent(blocks), each, columns]),
        }
    }

    /// A Toeplitz or circulant matrix as a convolution with a channel for each block.
    fn convolved(
        &mut self,
        s: &Structure,
        numbers: Value,
        value: Value,
        others: &[usize],
        count: usize,
        transposed: bool,
    ) -> Result<Value, AddError> {
        let [rows, columns] = s.shape();
        let [length, new] = s.extents(transposed);
        let dims = |shape: &[usize]| shape.iter().map(|extent| Dim::from(*extent)).collect::<Vec<Dim>>();
        let circulant = matches!(s.kind(), Kind::Circulant);
        let (taps, pad) = if circulant { (rows, 0) } else { (rows + columns - 1, new - 1) };
        let mut kernel = self.shaped(numbers, dims(&[count, 1, taps]))?;
        let mut rows_in = self.shaped(value, vec![self.dim(others), Dim::from(count), Dim::from(length)])?;
        if transposed && taps > 1 {
            // The first number of a circulant matrix stays where it is.
            let fixed = usize::from(circulant);
            let backwards = Slice {
                starts: dims(&[0, 0, taps - 1]),
                ends: vec![Dim::from(count), Dim::from(1usize), Dim::from(fixed as i64 - 1)],
                steps: vec![1, 1, -1],
            };
            let turned = self.add(backwards, &[kernel])?;
            kernel = match circulant {
                false => turned,
                true => {
                    let first =
                        Slice { starts: dims(&[0, 0, 0]), ends: dims(&[count, 1, 1]), steps: vec![1; 3] };
                    let first = self.add(first, &[kernel])?;
                    self.add(Concat { axis: 2 }, &[first, turned])?
                }
            };
        }
        if circulant && rows > 1 {
            let again = Slice {
                starts: dims(&[0, 0, 0]),
                ends: vec![self.dim(others), Dim::from(count), Dim::from(rows - 1)],
                steps: vec![1; 3],
            };
            let again = self.add(again, &[rows_in])?;
            rows_in = self.add(Concat { axis: 2 }, &[rows_in, again])?;
        }
        let conv = Conv {
            strides: vec![1],
            pads_before: vec![pad],
            pads_after: vec![pad],
            dilations: vec![1],
            groups: count,
            layout: ImageLayout::Nchw,
        };
        let found = self.add(conv, &[rows_in, kernel])?;
        let shape = self.rows_shape(others, &[count * new]);
        self.shaped(found, shape)
    }
}
