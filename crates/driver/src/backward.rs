//! Backward passes of random cotangents: how outputs depend on values inside of a model.
//!
//! For a cotangent `ξ` of independent signs and the derivative `J` of the outputs by some values, `ξᵀ J` is what a backward
//! pass computes for all values at once, and its second moment is `Jᵀ J` (Hutchinson, *A stochastic estimator of the
//! trace of the influence matrix*, 1989): the Gauss-Newton matrix of the squared error of the outputs.

use margay_ir::{Graph, Value};
use margay_passes::gradients;
use margay_tensor::{Binding, random::Philox};

use crate::floats::tensor_of;
use crate::samples::{Arrays, is_measured};
use crate::{DriverError, Marks};

/// The graph that runs forward and backward.
pub(crate) struct Backward {
    /// Its outputs are the outputs of the model that are numbers, and then what [`Backward::new`] numbers.
    pub(crate) graph: Graph,
    /// How many outputs of the model are numbers.
    pub(crate) outputs: usize,
    /// The inputs for cotangents, with the value of the model each belongs to.
    seeds: Vec<(String, Value)>,
}

/// Numbers of outputs of [`Backward::graph`].
pub(crate) struct Numbered {
    /// The gradients by values, where outputs depend on them.
    pub(crate) gradients: Vec<Option<usize>>,
    /// Values of the model.
    pub(crate) values: Vec<usize>,
}

impl Backward {
    /// The graph that computes the gradients by some values, and other values.
    ///
    /// # Errors
    /// [`DriverError::Pass`] for an operator without derivative between these values and the outputs.
    pub(crate) fn new(
        g: &Graph,
        by: &[Value],
        values: &[Value],
    ) -> Result<(Backward, Numbered), DriverError> {
        let mut graph = g.clone();
        let mut outputs = Vec::new();
        let (mut seeds, mut pairs) = (Vec::new(), Vec::new());
        for (i, output) in g.outputs().iter().filter(|o| is_measured(g.ty(o.value).dtype)).enumerate() {
            let name = format!("cotangent of output {i}");
            let seed = graph.add_input(&name, g.ty(output.value).clone());
            pairs.push((output.value, seed));
            seeds.push((name, output.value));
            outputs.push(output.value);
        }
        let count = outputs.len();
        let error = |error| DriverError::Pass { pass: "gradients", error };
        let derived = gradients(&mut graph, &pairs, by).map_err(error)?;
        let mut place = |v: Value| {
            let known = outputs.iter().skip(count).position(|known| *known == v);
            known.map_or_else(
                || {
                    outputs.push(v);
                    outputs.len() - 1
                },
                |at| at + count,
            )
        };
        let gradients = derived.into_iter().map(|v| v.map(&mut place)).collect();
        let values = values.iter().map(|v| place(*v)).collect();
        let named = |(i, value): (usize, &Value)| (format!("value {i}"), *value);
        let graph = graph.cut(&[], &outputs.iter().enumerate().map(named).collect::<Vec<_>>());
        Ok((Backward { graph, outputs: count, seeds }, Numbered { gradients, values }))
    }

    /// Independent signs for every element of the outputs of the model `g`, 0 where places do not count. `number` names
    /// them: what is drawn for one number has nothing to do with what is drawn for another.
    ///
    /// # Errors
    /// [`DriverError::Measure`] for an output whose shape does not follow from those of the inputs.
    pub(crate) fn cotangents(
        &self,
        g: &Graph,
        binding: &Binding,
        marks: Option<&Marks>,
        seed: u64,
        number: u64,
    ) -> Result<Arrays, DriverError> {
        let signs = |(i, (name, value)): (usize, &(String, Value))| {
            let dims = g.ty(*value).shape.iter();
            let shape = dims.map(|d| d.eval(binding).ok().and_then(|v| usize::try_from(v).ok()));
            let shape = shape.collect::<Option<Vec<usize>>>().ok_or_else(|| {
                DriverError::Measure(format!("output {i} has a shape that its inputs do not give"))
            })?;
            let mut values = vec![0f32; shape.iter().product()];
            let stream = number * self.seeds.len() as u64 + i as u64;
            Philox::new(seed, stream).fill_signs(0, &mut values);
            if let Some(marks) = marks {
                marks.blank(&shape, &mut values);
            }
            let tensor =
                tensor_of(g.ty(*value).dtype, &shape, &values).expect("outputs that count are floats");
            Ok((name.clone(), tensor))
        };
        self.seeds.iter().enumerate().map(signs).collect()
    }
}
