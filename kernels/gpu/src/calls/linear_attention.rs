//! Linear attention (Katharopoulos et al., arXiv 2006.16236) as products whose factors and results lie in the workspace.
//!
//! A one behind each value makes the denominator a column of the numerators: with `V' = [V, 1]` the result is the quotient of
//! the columns of `φQ (φKᵀ V')` and its last one. Without `causal` the *state* `φKᵀ V'` is one product for each
//! head.
//!
//! With `causal` positions are taken in chunks. The state before a chunk is the sum of those of the chunks before it, and pairs
//! of one chunk are weighed one by one:
//!
//! 1. the state of each chunk but the last, a product;
//! 2. the sums of states over chunks, in their order;
//! 3. `φQ φKᵀ` of each chunk, a product, of which pairs with a later key become 0;
//! 4. the numerators, one product of `[φQ, weights]` and the state above the values;
//! 5. the quotients.
//!
//! A weight of 0 is multiplied with the values of later keys of the chunk: values that are not finite reach all queries of
//! their chunk.

use margay_loops::{Arithmetic, Comparison, KernelCall, LinearAttention};
use margay_tensor::DType;

use super::epilogue::{read, write};
use super::product::{self, Along, Operands, Product};
use super::schedule::{self, Shape};
use super::stored::Round;
use super::{Arguments, Written, is_float};
use crate::target::GpuTarget;
use crate::value::{Element, Type, Value};
use crate::writer::Writer;

/// The fewest and the most positions of a chunk.
const CHUNKS: [usize; 2] = [64, 256];
/// The most bytes of states, weights and numerators.
const MOST_BYTES: usize = 4 << 30;
/// Threads of a block that sums states or divides.
const THREADS: usize = 256;

/// Whether there is a kernel, and if not, why.
pub(super) fn supports(c: &LinearAttention) -> Result<(), String> {
    if !is_float(c.dtype) {
        return Err(format!("elements of {}", c.dtype));
    }
    match Plan::of(c).kept_bytes() {
        Some(bytes) if bytes <= MOST_BYTES => Ok(()),
        _ => Err(format!("a workspace of more than {MOST_BYTES} bytes")),
    }
}

/// Bytes of the workspace.
pub(super) fn workspace_bytes(c: &LinearAttention, target: GpuTarget) -> usize {
    let plan = Plan::of(c);
    let of_parts = plan.products().into_iter().map(|p| product::parts_bytes(&p, target)).max();
    plan.kept_bytes().unwrap_or(0) + of_parts.unwrap_or(0)
}

/// The kernels, one launched after the other.
pub(super) fn write_kernels(c: &LinearAttention, target: GpuTarget) -> Vec<Written> {
    let plan = Plan::of(c);
    let mut kernels = Vec::new();
    for product in plan.products() {
        if product.shape().results() > 0 {
            kernels.extend(product::write(&product, target));
        }
        if matches!(product.what, What::States) && c.causal && plan.states > 1 {
            kernels.extend(plan.write_sums());
        }
    }
    kernels.push(plan.write_quotients());
    kernels
}

/// Predicted seconds.
pub(super) fn seconds(c: &LinearAttention, target: GpuTarget) -> f64 {
    let (plan, rates) = (Plan::of(c), target.rates());
    let of_products: f64 =
        plan.products().iter().map(|p| schedule::seconds(&p.shape(), &p.call(), target)).sum();
    let numerators = 4.0 * plan.numerators().unwrap_or(0) as f64;
    of_products + 2.0 * rates.launch + 2.0 * numerators / rates.bytes
}

/// How the positions of a call are cut, and where in the workspace things lie, in elements of f32.
#[derive(Clone, Copy)]
struct Plan<'c> {
    c: &'c LinearAttention,
    /// Positions of a chunk; all of them without `causal`.
    chunk: usize,
    /// Chunks of a head.
    chunks: usize,
    /// States of a head.
    states: usize,
    /// Columns of states and numerators.
    width: usize,
}

/// A product of a call.
struct Part<'c> {
    plan: Plan<'c>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    States,
    Weights,
    Numerators,
}

impl<'c> Plan<'c> {
    fn of(c: &'c LinearAttention) -> Plan<'c> {
        let [least, most] = CHUNKS;
        let (chunk, states) = match c.causal {
            false => (c.q_len.max(1), 1),
            true => {
                // States are then no larger than the features that they are made of.
                let chunk = c.features.next_multiple_of(least).clamp(least, most);
                (chunk, c.q_len.div_ceil(chunk).saturating_sub(1))
            }
        };
        Plan { c, chunk, chunks: c.q_len.div_ceil(chunk), states, width: c.v_dim + 1 }
    }

    fn heads(&self) -> usize {
        self.c.batch * self.c.heads
    }

    /// Elements of all states.
    fn all_states(&self) -> Option<usize> {
        let of_head = self.states.checked_mul(self.c.features)?.checked_mul(self.width)?;
        self.heads().checked_mul(of_head)
    }

    fn weights(&self) -> Option<usize> {
        match self.c.causal {
            false => Some(0),
            true => self.heads().checked_mul(self.chunks)?.checked_mul(self.chunk * self.chunk),
        }
    }

    fn numerators(&self) -> Option<usize> {
        self.heads().checked_mul(self.c.q_len)?.checked_mul(self.width)
    }

    fn kept_bytes(&self) -> Option<usize> {
        let all = self.all_states()?.checked_add(self.weights()?)?.checked_add(self.numerators()?)?;
        all.checked_mul(4)
    }

    /// Where weights begin, and where numerators do.
    fn begins(&self) -> [usize; 2] {
        let states = self.all_states().unwrap_or(0);
        [states, states + self.weights().unwrap_or(0)]
    }

    /// The products, in order.
    fn products(self) -> Vec<Part<'c>> {
        let mut all = Vec::new();
        if self.states > 0 {
            all.push(What::States);
        }
        if self.c.causal {
            all.push(What::Weights);
        }
        all.push(What::Numerators);
        all.into_iter().map(|what| Part { plan: self, what }).collect()
    }

    /// A kernel that has a thread for each of so many elements, and what writes it. It is handed the operands and the
    /// number of the element.
    fn elementwise(&self, elements: usize, body: &dyn Fn(&mut Writer, &Rows<'_>, Value, Value)) -> Written {
        let mut args = Arguments::new(&KernelCall::LinearAttention(self.c.clone()), true);
        let (mut w, values) = Writer::new(args.params(), THREADS);
        args.values(&values);
        let (block, thread) = (w.block_number(), w.thread());
        let (size, all) = (w.int(Type::I32, THREADS as i64), w.int(Type::I32, elements as i64));
        let first = w.imul(block, size);
        let at = w.iadd(first, thread);
        let is_there = w.compare_ints(Comparison::Less, at, all);
        w.begin_if(is_there, &[]);
        let [_, _, _] = std::array::from_fn(|_| args.take());
        let out = args.take();
        let zero = int(&mut w, 0);
        let rows = Rows {
            part: &Part { plan: *self, what: What::Numerators },
            ty: args.index(),
            workspace: args.workspace(),
            q: out,
            k: out,
            v: out,
            batch: zero,
            head: zero,
            number: zero,
            chunk: zero,
        };
        body(&mut w, &rows, at, out);
        w.end_if(&[]);
        Written { text: w.finish(), blocks: elements.div_ceil(THREADS), threads: THREADS }
    }

    /// The kernel that adds the state of each chunk to the sum of those before it, in place.
    fn write_sums(&self) -> Option<Written> {
        let of_state = self.c.features * self.width;
        let elements = self.heads() * of_state;
        (elements > 0).then(|| {
            self.elementwise(elements, &|w, rows, at, _| {
                let (states, size) = (int(w, self.states), int(w, of_state));
                let (head, inner) = (w.divide(at, size), w.remainder(at, size));
                let first = w.imul(head, states);
                let first = w.imul(first, size);
                let first = w.iadd(first, inner);
                let sum = rows.kept(w, 0, first);
                let one = int(w, 1);
                let (number, sums) = w.begin_for(one, states, one, &[sum]);
                let further = w.imul(number, size);
                let at = w.iadd(first, further);
                let x = rows.kept(w, 0, at);
                let sum = w.fadd(sums[0], x);
                rows.keep(w, 0, at, sum);
                w.end_for(&[sum]);
            })
        })
    }

    /// The kernel that divides.
    fn write_quotients(&self) -> Written {
        let c = self.c;
        let begin = self.begins()[1];
        self.elementwise(self.heads() * c.q_len * c.v_dim, &|w, rows, at, out| {
            let (columns, width, q_len, heads) =
                (int(w, c.v_dim), int(w, self.width), int(w, c.q_len), int(w, c.heads));
            let (rest, column) = (w.divide(at, columns), w.remainder(at, columns));
            let first = w.imul(rest, width);
            let (numerator, total) = (w.iadd(first, column), w.iadd(first, columns));
            let (numerator, total) = (rows.kept(w, begin, numerator), rows.kept(w, begin, total));
            let epsilon = w.float(Type::F32, f32::from_bits(c.epsilon_bits).into());
            let total = w.fadd(total, epsilon);
            let quotient = w.fdiv(numerator, total);
            let (rest, row) = (w.divide(rest, q_len), w.remainder(rest, q_len));
            let (batch, head) = (w.divide(rest, heads), w.remainder(rest, heads));
            let [by_batch, by_head, by_row] = c.o;
            let at = rows.at(w, &[(batch, by_batch), (head, by_head), (row, by_row), (column, 1)]);
            write(w, out, at, c.dtype, quotient);
        })
    }
}

impl Product for Part<'_> {
    fn call(&self) -> KernelCall {
        KernelCall::LinearAttention(self.plan.c.clone())
    }

    fn kept_bytes(&self) -> usize {
        self.plan.kept_bytes().unwrap_or(0)
    }

    fn shape(&self) -> Shape {
        let Plan { c, chunk, chunks, states, width } = self.plan;
        let heads = self.plan.heads();
        let (rows, columns, terms, repetitions) = match self.what {
            What::States => (c.features, width, if c.causal { chunk } else { c.kv_len }, heads * states),
            What::Weights => (chunk, chunk, c.features, heads * chunks),
            What::Numerators if !c.causal => (c.q_len, width, c.features, heads),
            What::Numerators => {
                let carried = if states > 0 { c.features } else { 0 };
                (chunk, width, carried + chunk, heads * chunks)
            }
        };
        let dtype = DType::F32;
        Shape { rows, columns, terms, repetitions, left: dtype, left_rounded: dtype, right: dtype }
    }

    fn operands<'p>(
        &'p self,
        w: &mut Writer,
        args: &mut Arguments,
        repetition: Value,
    ) -> Box<dyn Operands + 'p> {
        let Plan { c, chunks, states, .. } = self.plan;
        let of_head = match self.what {
            What::States => states,
            What::Weights | What::Numerators => chunks.max(1),
        };
        let (of_head, heads) = (int(w, of_head), int(w, c.heads));
        let (rest, chunk) = (w.divide(repetition, of_head), w.remainder(repetition, of_head));
        let (batch, head) = (w.divide(rest, heads), w.remainder(rest, heads));
        let [q, k, v] = std::array::from_fn(|_| args.take());
        let (ty, workspace) = (args.index(), args.workspace());
        Box::new(Rows { part: self, ty, workspace, q, k, v, batch, head, number: rest, chunk })
    }
}

fn int(w: &mut Writer, n: usize) -> Value {
    w.int(Type::I32, n as i64)
}

/// The operands of a product of a head and a chunk.
struct Rows<'p> {
    part: &'p Part<'p>,
    /// The type of positions in the memory of operands.
    ty: Type,
    workspace: Value,
    q: Value,
    k: Value,
    v: Value,
    batch: Value,
    head: Value,
    /// The number of the head among those of all sequences.
    number: Value,
    chunk: Value,
}

impl Rows<'_> {
    /// `Σ position * stride`.
    fn at(&self, w: &mut Writer, terms: &[(Value, usize)]) -> Value {
        let mut sum = w.int(self.ty, 0);
        for &(position, stride) in terms {
            let (position, stride) =
                (w.resize(position, self.ty.element, false), w.int(self.ty, stride as i64));
            let further = w.imul(position, stride);
            sum = w.iadd(sum, further);
        }
        sum
    }

    /// An element of the workspace.
    fn kept(&self, w: &mut Writer, begin: usize, at: Value) -> Value {
        let begin = int(w, begin);
        let at = w.iadd(at, begin);
        let address = w.element(self.workspace, at, Element::F32);
        w.load(Type::F32, address)
    }

    fn keep(&self, w: &mut Writer, begin: usize, at: Value, x: Value) {
        let begin = int(w, begin);
        let at = w.iadd(at, begin);
        let address = w.element(self.workspace, at, Element::F32);
        w.store(x, address);
    }

    /// The position of row `row` of the chunk, and whether there is one.
    fn position(&self, w: &mut Writer, row: Value, positions: usize) -> [Value; 2] {
        let (chunk, all) = (int(w, self.part.plan.chunk), int(w, positions));
        let position = match self.part.plan.c.causal {
            true => {
                let first = w.imul(self.chunk, chunk);
                w.iadd(first, row)
            }
            false => row,
        };
        [position, w.compare_ints(Comparison::Less, position, all)]
    }

    /// What `read` gives where a test holds, and 0 elsewhere.
    fn where_true(w: &mut Writer, test: Value, read: impl FnOnce(&mut Writer) -> Value) -> Value {
        let none = w.float(Type::F32, 0.0);
        w.begin_if(test, &[Type::F32]);
        let x = read(w);
        w.otherwise(&[x]);
        w.end_if(&[none])[0]
    }

    /// An element of φQ or φK at a row of the chunk.
    fn feature(&self, w: &mut Writer, of_key: bool, row: Value, feature: Value) -> Value {
        let c = self.part.plan.c;
        let (base, [by_batch, by_head, by_row], positions) =
            if of_key { (self.k, c.k, c.kv_len) } else { (self.q, c.q, c.q_len) };
        let [position, is_there] = self.position(w, row, positions);
        Self::where_true(w, is_there, |w| {
            let terms = [(self.batch, by_batch), (self.head, by_head), (position, by_row), (feature, 1)];
            let at = self.at(w, &terms);
            read(w, base, at, c.dtype)
        })
    }

    /// An element of the values and the ones behind them.
    fn value(&self, w: &mut Writer, row: Value, column: Value) -> Value {
        let c = self.part.plan.c;
        let [position, is_there] = self.position(w, row, c.kv_len);
        let (columns, one) = (int(w, c.v_dim), w.float(Type::F32, 1.0));
        let is_value = w.compare_ints(Comparison::Less, column, columns);
        Self::where_true(w, is_there, |w| {
            w.begin_if(is_value, &[Type::F32]);
            let [by_batch, by_head, by_row] = c.v;
            let terms = [(self.batch, by_batch), (self.head, by_head), (position, by_row), (column, 1)];
            let at = self.at(w, &terms);
            let x = read(w, self.v, at, c.dtype);
            w.otherwise(&[x]);
            w.end_if(&[one])[0]
        })
    }

    /// Where the state of a number lies among those of the head.
    fn state(&self, w: &mut Writer, number: Value, [feature, column]: [Value; 2]) -> Value {
        let plan = self.part.plan;
        let (states, features, width) = (int(w, plan.states), int(w, plan.c.features), int(w, plan.width));
        let at = w.imul(self.number, states);
        let at = w.iadd(at, number);
        let at = w.imul(at, features);
        let at = w.iadd(at, feature);
        let at = w.imul(at, width);
        w.iadd(at, column)
    }

    /// Where the weight of a pair of the chunk lies.
    fn weight(&self, w: &mut Writer, [row, column]: [Value; 2]) -> Value {
        let plan = self.part.plan;
        let (chunks, chunk) = (int(w, plan.chunks), int(w, plan.chunk));
        let at = w.imul(self.number, chunks);
        let at = w.iadd(at, self.chunk);
        let at = w.imul(at, chunk);
        let at = w.iadd(at, row);
        let at = w.imul(at, chunk);
        w.iadd(at, column)
    }

    /// Terms of the numerators of a causal chunk: what `state` gives for a feature, where there is a chunk before, and then
    /// what `pair` gives for a position of the chunk.
    fn of_term(
        &self,
        w: &mut Writer,
        term: Value,
        state: impl FnOnce(&mut Writer) -> Value,
        pair: impl FnOnce(&mut Writer, Value) -> Value,
    ) -> Value {
        if self.part.plan.states == 0 {
            return pair(w, term);
        }
        let (features, zero) = (int(w, self.part.plan.c.features), int(w, 0));
        let is_feature = w.compare_ints(Comparison::Less, term, features);
        let is_later = w.compare_ints(Comparison::Greater, self.chunk, zero);
        w.begin_if(is_feature, &[Type::F32]);
        let x = Self::where_true(w, is_later, state);
        w.otherwise(&[x]);
        let position = w.isub(term, features);
        let x = pair(w, position);
        w.end_if(&[x])[0]
    }
}

impl Operands for Rows<'_> {
    fn begin(&self, _: &mut Writer, _: &Round) {}

    fn left_along(&self) -> Along {
        match self.part.what {
            What::States => Along::Results,
            What::Weights | What::Numerators => Along::Terms,
        }
    }

    fn right_along(&self) -> Along {
        match self.part.what {
            What::Weights => Along::Terms,
            What::States | What::Numerators => Along::Results,
        }
    }

    fn left(&self, w: &mut Writer, row: Value, term: Value) -> Value {
        match self.part.what {
            What::States => self.feature(w, true, term, row),
            What::Weights => self.feature(w, false, row, term),
            What::Numerators if !self.part.plan.c.causal => self.feature(w, false, row, term),
            What::Numerators => self.of_term(
                w,
                term,
                |w| self.feature(w, false, row, term),
                |w, position| {
                    let at = self.weight(w, [row, position]);
                    self.kept(w, self.part.plan.begins()[0], at)
                },
            ),
        }
    }

    fn right(&self, w: &mut Writer, term: Value, column: Value) -> Value {
        match self.part.what {
            What::States => self.value(w, term, column),
            What::Weights => self.feature(w, true, column, term),
            What::Numerators if !self.part.plan.c.causal => {
                let zero = int(w, 0);
                let at = self.state(w, zero, [term, column]);
                self.kept(w, 0, at)
            }
            What::Numerators => self.of_term(
                w,
                term,
                |w| {
                    let one = int(w, 1);
                    let before = w.isub(self.chunk, one);
                    let at = self.state(w, before, [term, column]);
                    self.kept(w, 0, at)
                },
                |w, position| self.value(w, position, column),
            ),
        }
    }

    fn finish(&self, w: &mut Writer, row: Value, column: Value, sum: Value) {
        let plan = self.part.plan;
        match self.part.what {
            What::States => {
                let at = self.state(w, self.chunk, [row, column]);
                self.keep(w, 0, at, sum);
            }
            What::Weights => {
                let none = w.float(Type::F32, 0.0);
                let seen = w.compare_ints(Comparison::LessOrEqual, column, row);
                let weight = w.choose(seen, sum, none);
                let at = self.weight(w, [row, column]);
                self.keep(w, plan.begins()[0], at, weight);
            }
            What::Numerators => {
                let [position, is_there] = self.position(w, row, plan.c.q_len);
                w.begin_if(is_there, &[]);
                let (q_len, width) = (int(w, plan.c.q_len), int(w, plan.width));
                let at = w.imul(self.number, q_len);
                let at = w.iadd(at, position);
                let at = w.imul(at, width);
                let at = w.iadd(at, column);
                self.keep(w, plan.begins()[1], at, sum);
                w.end_if(&[]);
            }
        }
    }
}
