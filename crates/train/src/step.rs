//! A training step as one pure graph: forward, loss, backward, clipping, schedule, update.
//!
//! Its inputs are data and *states*: what one step hands to the next. A state is an input `NAME` whose next value is the
//! output `next.NAME`. Its outputs are `loss`, `learning_rate`, `gradient_norm`, what the objective adds, and the next
//! states. Whoever runs it feeds states back; a compiled step may do so in place.
//!
//! Deliberately absent: data, files, clocks, and running.

use std::collections::{BTreeSet, HashMap, HashSet};

use margay_ir::ops::{Abs, Select};
use margay_ir::{Builder, Graph, NodeId, Op, Origin, Output, TensorType, Value};
use margay_passes::{gradients, make_trainable};
use margay_tensor::{DType, Tensor};

use crate::dropout::add_masks;
use crate::{Optimizer, Schedule, TrainError, optimizer};

/// The name of the state that counts steps from 0 on, an f32 scalar.
pub const STEP: &str = "step";
/// The name of the state that says how many steps there are in all, an f32 scalar. A step keeps it as it is; the host
/// sets it.
pub const TOTAL_STEPS: &str = "total_steps";
/// The name of the state that holds the largest learning rate of the schedule, an f32 scalar. A step keeps it as it is; the
/// host sets it where a test finds one.
pub const PEAK_RATE: &str = "peak_rate";

/// The name of the output that holds the next value of a state.
pub fn next(state: &str) -> String {
    format!("next.{state}")
}

/// What one step hands to the next.
#[derive(Clone, Debug)]
pub struct State {
    /// The name of its input; its output is called `next.NAME`.
    pub name: String,
    /// What the first step reads.
    pub initial: Tensor,
}

/// For parameters `[d, n]` by their constants a matrix `S` of f32, `[d, d]`: the optimizer moves `P̃` with `P = S P̃`. Where
/// `S` whitens the rows that a product multiplies the parameter by, all numbers of `P̃` matter about the same to its result
/// (Gupta, Koren and Singer, *Shampoo*, 2018, arXiv 1802.09568, for one side, with moments measured beforehand).
pub type Axes = HashMap<NodeId, Tensor>;

/// How parameters follow gradients.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Update {
    /// The rule.
    pub optimizer: Optimizer,
    /// The largest learning rate, above 0.
    pub learning_rate: f64,
    /// How it changes from step to step.
    pub schedule: Schedule,
    /// The largest norm of all gradients together, above 0; longer ones are scaled down. `None` for no limit.
    pub clip: Option<f64>,
}

/// A training step.
#[derive(Clone, Debug)]
pub struct TrainingStep {
    /// Forward, backward and update, at stage `Imported`, with symbols still open.
    pub graph: Graph,
    /// What goes from step to step: parameters, their moments, what is held, `step`, `total_steps`, which starts at 1, and
    /// `peak_rate`.
    pub states: Vec<State>,
    /// The names of those states that are parameters, in the order they were asked for.
    pub parameters: Vec<String>,
    /// The names of those that are constants of the model which a step keeps as they are, for others to change between steps.
    pub held: Vec<String>,
    /// The most bytes that a compiled step may keep between the forward and the backward pass; the rest is computed
    /// twice. `None`, as the step is built: everything is kept.
    pub max_saved_bytes: Option<u64>,
    /// How the learning rate goes.
    pub schedule: Schedule,
}

impl TrainingStep {
    /// Builds the step that trains constants of a graph.
    ///
    /// `forward` is at stage `Canonical` or `Sketched`, and `parameters` are its constants to be trained. They become
    /// inputs named as [`parameter_names`](margay_passes::parameter_names) says. `objective` sees the graph with these inputs; it
    /// adds inputs for targets and returns the loss, a scalar. Outputs that it adds are outputs of the step; those of the
    /// model are not. [Dropout](crate::dropout) is an identity.
    ///
    /// # Errors
    /// [`TrainError::Options`] for numbers out of range, no parameter, and names that are taken;
    /// [`TrainError::Mismatch`] for a loss that is no scalar and parameters other than f32 and f64;
    /// [`TrainError::Unreached`] for parameters the loss does not depend on; [`TrainError::Pass`] for a node that is no
    /// constant and for operators without derivative; and what the objective returns.
    pub fn new(
        forward: &Graph,
        parameters: &[NodeId],
        objective: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
        update: &Update,
    ) -> Result<TrainingStep, TrainError> {
        TrainingStep::build(forward, [parameters, &[]], objective, update, &Axes::new(), None)
    }

    /// As [`new`](TrainingStep::new), with elements [dropped](crate::dropout) where the model says so. `seed` names the masks. Constants
    /// that are `held` become states, too, which a step keeps.
    ///
    /// # Errors
    /// As [`new`](TrainingStep::new).
    pub fn dropping(
        forward: &Graph,
        [parameters, held]: [&[NodeId]; 2],
        objective: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
        update: &Update,
        seed: u64,
    ) -> Result<TrainingStep, TrainError> {
        TrainingStep::build(forward, [parameters, held], objective, update, &Axes::new(), Some(seed))
    }

    /// As [`new`](TrainingStep::new), with other coordinates for the rows of some parameters of two axes.
    ///
    /// # Errors
    /// As [`new`](TrainingStep::new).
    pub fn in_axes(
        forward: &Graph,
        parameters: &[NodeId],
        objective: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
        update: &Update,
        axes: &Axes,
    ) -> Result<TrainingStep, TrainError> {
        TrainingStep::build(forward, [parameters, &[]], objective, update, axes, None)
    }

    fn build(
        forward: &Graph,
        [parameters, held]: [&[NodeId]; 2],
        objective: &dyn Fn(&mut Graph) -> Result<Value, TrainError>,
        update: &Update,
        axes: &Axes,
        seed: Option<u64>,
    ) -> Result<TrainingStep, TrainError> {
        update.check()?;
        let mut g = forward.clone();
        let step = match seed {
            Some(seed) => add_masks(&mut g, seed)?,
            None => None,
        };
        let all = [parameters, held].concat();
        let initial = all.iter().filter(|n| g.contains(**n)).map(|n| g.constant((*n).into()));
        let mut initial: Vec<Option<Tensor>> = initial.map(|p| p.map(|p| p.tensor().clone())).collect();
        let mut inputs = make_trainable(&mut g, &all)?;
        let kept: Vec<(String, Value)> = inputs.split_off(parameters.len().min(inputs.len()));
        let kept_initial = initial.split_off(inputs.len());
        for (name, v) in inputs.iter().chain(&kept) {
            expect_trainable(name, g.ty(*v))?;
        }
        let modeled = g.outputs().len();
        let loss = objective(&mut g)?;
        let ty = g.ty(loss);
        if !ty.shape.is_empty() || !ty.dtype.is_float() {
            let (expected, found) = ("a scalar of floats".into(), ty.to_string());
            return Err(TrainError::Mismatch { what: "loss".into(), expected, found });
        }
        let found = gradients_of(&mut g, loss, &inputs)?;
        let more = g.outputs()[modeled..].to_vec();
        let scalar = TensorType::known(DType::F32, &[]);
        let step = step.unwrap_or_else(|| g.add_input(STEP, scalar.clone()));
        let total = g.add_input(TOTAL_STEPS, scalar.clone());
        let peak = g.add_input(PEAK_RATE, scalar);
        let (norm, scale) = optimizer::clip(&mut g, &found, update.clip)?;
        let rate = update.schedule.build(&mut g, peak, step, total)?;
        let scalars = update.optimizer.scalars(&mut g, step, rate, scale)?;
        let mut states = Vec::new();
        let mut moments = Vec::new();
        let axes = parameters.iter().map(|n| axes.get(n));
        for ((((name, p), gradient), initial), axes) in inputs.iter().zip(found).zip(initial).zip(axes) {
            let (next, more) = update.optimizer.update(&mut g, name, *p, gradient, axes, &scalars)?;
            let initial = initial.expect("a constant became this input");
            states.push((State { name: name.clone(), initial }, next));
            moments.extend(more);
        }
        states.extend(moments);
        keep_unless_finite(&mut g, loss, &mut states)?;
        for ((name, v), initial) in kept.iter().zip(kept_initial) {
            let initial = initial.expect("a constant became this input");
            states.push((State { name: name.clone(), initial }, *v));
        }
        let following = Builder::new(&mut g, Origin::named(STEP)).offset(step, 1.0)?;
        states.push((State { name: STEP.into(), initial: Tensor::scalar(0f32) }, following));
        states.push((State { name: TOTAL_STEPS.into(), initial: Tensor::scalar(1f32) }, total));
        let initial = Tensor::scalar(update.learning_rate as f32);
        states.push((State { name: PEAK_RATE.into(), initial }, peak));
        let loss = Builder::new(&mut g, Origin::named("loss")).cast(loss, DType::F32)?;
        let mut outputs = vec![
            Output { name: "loss".into(), value: loss, counts: None },
            Output { name: "learning_rate".into(), value: rate, counts: None },
            Output { name: "gradient_norm".into(), value: norm, counts: None },
        ];
        outputs.extend(more);
        outputs.extend(states.iter().map(|(s, v)| Output {
            name: next(&s.name).into(),
            value: *v,
            counts: None,
        }));
        g.set_outputs(outputs);
        g.remove_dead();
        expect_distinct(&g)?;
        Ok(TrainingStep {
            graph: g,
            states: states.into_iter().map(|(state, _)| state).collect(),
            parameters: inputs.into_iter().map(|(name, _)| name).collect(),
            held: kept.into_iter().map(|(name, _)| name).collect(),
            max_saved_bytes: None,
            schedule: update.schedule,
        })
    }

    /// The inputs that are no states: what each step must be given.
    pub fn data(&self) -> Vec<(String, TensorType)> {
        let states: HashSet<&str> = self.states.iter().map(|s| s.name.as_str()).collect();
        let input = |n: &NodeId| match self.graph.op(*n) {
            Op::Input(input) => Some((input.name.to_string(), input.ty.clone())),
            _ => None,
        };
        self.graph
            .inputs()
            .iter()
            .filter_map(input)
            .filter(|(name, _)| !states.contains(name.as_str()))
            .collect()
    }
}

impl Update {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`TrainError::Options`] with the first one that is out of range.
    pub fn check(&self) -> Result<(), TrainError> {
        let positive = [("learning rate", Some(self.learning_rate)), ("clip", self.clip)];
        for (what, number) in positive {
            if let Some(found) = number.filter(|x| !(*x > 0.0 && x.is_finite())) {
                return Err(TrainError::Options(format!("{what}: expected above 0, found {found}")));
            }
        }
        self.schedule.check()?;
        self.optimizer.check()
    }
}

/// The graph of a model with trained parameters as its constants again; `parameters` by the names of the step.
///
/// # Errors
/// [`TrainError::Pass`] for a name that no constant of the graph has, and for a tensor of another type.
pub fn with_parameters(forward: &Graph, parameters: &[(String, Tensor)]) -> Result<Graph, TrainError> {
    Ok(margay_passes::with_parameters(forward, parameters)?)
}

/// States stay what they are where the loss is no finite number.
fn keep_unless_finite(g: &mut Graph, loss: Value, states: &mut [(State, Value)]) -> Result<(), TrainError> {
    let mut b = Builder::new(g, Origin::named("loss/finite"));
    let (magnitude, infinity) = (b.op(Abs, &[loss])?, b.number(loss, f64::INFINITY)?);
    let finite = b.less(magnitude, infinity)?;
    for (state, next) in states {
        let named = |n: &&NodeId| g.node(**n).origin.name() == state.name;
        let now = Value::from(*g.inputs().iter().find(named).expect("a state is an input"));
        let mut b = Builder::new(g, Origin::named(&format!("{}/update", state.name)));
        *next = b.op(Select, &[finite, *next, now])?;
    }
    Ok(())
}

/// The derivatives of the loss by all inputs, every one of which must have an effect on it.
fn gradients_of(g: &mut Graph, loss: Value, inputs: &[(String, Value)]) -> Result<Vec<Value>, TrainError> {
    let one = Builder::new(g, Origin::named("loss")).number(loss, 1.0)?;
    let by: Vec<Value> = inputs.iter().map(|(_, v)| *v).collect();
    let found = gradients(g, &[(loss, one)], &by)?;
    let none = inputs.iter().zip(&found).filter(|(_, gradient)| gradient.is_none());
    let none: Vec<String> = none.map(|((name, _), _)| name.clone()).collect();
    if none.is_empty() { Ok(found.into_iter().flatten().collect()) } else { Err(TrainError::Unreached(none)) }
}

fn expect_trainable(name: &str, ty: &TensorType) -> Result<(), TrainError> {
    if matches!(ty.dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(TrainError::Mismatch {
        what: format!("parameter `{name}`"),
        expected: "f32 or f64".into(),
        found: ty.to_string(),
    })
}

/// Inputs, and outputs, must differ in their names.
fn expect_distinct(g: &Graph) -> Result<(), TrainError> {
    let names = |n: &NodeId| g.node(*n).origin.name().to_string();
    let inputs: Vec<String> = g.inputs().iter().map(names).collect();
    let outputs: Vec<String> = g.outputs().iter().map(|o| o.name.to_string()).collect();
    for (what, names) in [("inputs", inputs), ("outputs", outputs)] {
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(TrainError::Options(format!("two {what} of the training step are called `{twice}`")));
        }
    }
    Ok(())
}
