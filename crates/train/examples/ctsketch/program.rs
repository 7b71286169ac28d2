//! The sum of digits as a program: a tree of tables of sums, given whole or as tensor trains.

use std::error::Error;

use margay_ir::{Graph, Value};
use margay_randnla::{DenseTensor, TensorTrain, tt_svd};
use margay_train::{TrainError, expectation};

/// Values of a digit.
pub(crate) const DIGITS: usize = 10;

/// How the tables of a program are given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Form {
    /// Whole: all inputs are enumerated.
    Enumerated,
    /// As tensor trains with this tolerance.
    Sketched(f64),
}

/// A table of a level of the tree, which is used for all its nodes.
enum Table {
    Whole(DenseTensor),
    Train(TensorTrain),
}

/// The sum of some digits. The nodes of a level of its tree add the same number of neighbours.
pub(crate) struct Program {
    /// For each level, how many inputs a node has, and its table.
    levels: Vec<(usize, Table)>,
}

impl Program {
    /// The sum of as many digits as the product of `arities`, which says how many inputs the nodes of each level have.
    pub(crate) fn new(arities: &[usize], form: Form) -> Result<Program, Box<dyn Error>> {
        let mut values = DIGITS;
        let mut levels = Vec::with_capacity(arities.len());
        for &arity in arities {
            let sums = arity * (values - 1) + 1;
            let extents = [vec![values; arity], vec![sums]].concat();
            let is_sum = |i: &[usize]| i[..arity].iter().sum::<usize>() == i[arity];
            let table = DenseTensor::from_fn(extents, |i| f64::from(u8::from(is_sum(i))));
            let table = match form {
                Form::Enumerated => Table::Whole(table),
                Form::Sketched(tolerance) => Table::Train(tt_svd(&table, tolerance)?),
            };
            levels.push((arity, table));
            values = sums;
        }
        Ok(Program { levels })
    }

    /// How many digits it adds.
    pub(crate) fn inputs(&self) -> usize {
        self.levels.iter().map(|(arity, _)| arity).product()
    }

    /// Numbers in its tables.
    pub(crate) fn numbers(&self) -> usize {
        let numbers = |(_, table): &(usize, Table)| match table {
            Table::Whole(table) => table.data().len(),
            Table::Train(train) => train.parameters(),
        };
        self.levels.iter().map(numbers).sum()
    }

    /// Numbers of one table of all digits.
    pub(crate) fn numbers_of_one_table(&self) -> f64 {
        (DIGITS as f64).powi(self.inputs() as i32) * (self.inputs() * (DIGITS - 1) + 1) as f64
    }

    /// The distribution of the sum of digits with these distributions, each `[B, 10]`.
    pub(crate) fn distribution(&self, g: &mut Graph, digits: &[Value]) -> Result<Value, TrainError> {
        let mut now = digits.to_vec();
        for (arity, table) in &self.levels {
            let node = |inputs: &[Value]| match table {
                Table::Whole(table) => expectation::exact(g, table, inputs),
                Table::Train(train) => expectation::sketched(g, train, inputs),
            };
            now = now.chunks(*arity).map(node).collect::<Result<_, _>>()?;
        }
        Ok(now[0])
    }
}
