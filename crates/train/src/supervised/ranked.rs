//! Ranks of factors, chosen while a model is trained: what was measured on batches becomes another model with its states.

use margay_ir::Graph;
use margay_ir::ops::Numbers;
use margay_passes::sketch::{FactorPair, factor_pairs};
use margay_passes::{parameter_names, with_resized_parameters};
use margay_randnla::RandnlaError;
use margay_tensor::Tensor;

use super::labelled::Labelled;
use crate::fit::{Ranked, Tensors};
use crate::ranks::{Change, Limit, RankLimit, Spectrum, choose, measure};
use crate::{Evaluator, RankChange, Task, TrainError, Trainer, TrainingStep};

/// How many times as great as the change that is allowed the bound may be at first: it is far above what is measured.
const FIRST_BOUND: f64 = 64.0;

/// How often a choice is made, each time with half the bound, until the loss changes by no more than it may.
const ATTEMPTS: i32 = 8;

/// The numbers of all pairs of factors of a graph, for each of the weights that they stand in for; 1 without any.
pub(super) fn share(g: &Graph) -> f64 {
    let pairs = factor_pairs(g);
    let (numbers, dense) = (numbers(&pairs), dense_numbers(&pairs));
    if dense > 0 { numbers as f64 / dense as f64 } else { 1.0 }
}

fn numbers(pairs: &[FactorPair]) -> usize {
    pairs.iter().map(|pair| pair.rank() * pair.numbers_per_rank()).sum()
}

fn dense_numbers(pairs: &[FactorPair]) -> usize {
    pairs.iter().map(FactorPair::dense_numbers).sum()
}

/// A pair under training, with the names of its factors.
struct Trained {
    pair: FactorPair,
    names: [String; 2],
}

/// The pairs of a graph both factors of which are trained.
fn trained_pairs(g: &Graph, parameters: &Tensors) -> Vec<Trained> {
    let known = parameter_names(g);
    let name = |n| known.iter().find(|(other, _)| *other == n).map(|(_, name)| name.clone());
    let is_trained = |name: &String| parameters.iter().any(|(other, _)| other == name);
    let trained = |pair: FactorPair| {
        let names = [name(pair.left.weight.node)?, name(pair.right.weight.node)?];
        names.iter().all(is_trained).then_some(Trained { pair, names })
    };
    factor_pairs(g).into_iter().filter_map(trained).collect()
}

/// A model with other ranks, and the states to go on from.
struct Resized {
    model: Graph,
    step: TrainingStep,
    evaluator: Evaluator,
    states: Tensors,
    parameters: Tensors,
    bound: f64,
}

impl Ranked for Labelled<'_> {
    fn due(&self, step: u64, total: u64) -> usize {
        self.options.ranks.map_or(0, |ranks| ranks.due(step, total))
    }

    fn choose(
        &mut self,
        trainer: &mut Trainer,
        number: usize,
        step: u64,
        batches: &[Vec<usize>],
    ) -> Result<RankChange, TrainError> {
        let batches: Vec<Tensors> = batches.iter().map(|rows| self.batch(rows)).collect::<Result<_, _>>()?;
        let (parameters, states) = (trainer.parameters()?, trainer.states()?);
        let model = with_resized_parameters(&self.model, &parameters)?;
        let forward = self.options.with_output(&model)?;
        let pairs = trained_pairs(&forward, &parameters);
        let before = mean_loss(&mut self.evaluator, &parameters, &batches)?;
        let found = self.changes(&forward, &pairs, &parameters, &batches)?;
        let mut change = RankChange {
            number,
            step,
            ranks: pairs.iter().map(|p| (p.pair.name.clone(), p.pair.rank())).collect(),
            numbers: pairs.iter().map(|p| p.pair.rank() * p.pair.numbers_per_rank()).sum(),
            bound: 0.0,
            loss_before: before,
            loss_after: before,
        };
        let Some(changes) = found.filter(|_| before.is_finite()) else { return Ok(change) };
        let limit = self.options.ranks.and_then(|ranks| match ranks.limit {
            RankLimit::LossChange(most) => Some(most * before.abs()),
            RankLimit::Share(_) => None,
        });
        for attempt in 0..ATTEMPTS {
            let spectra: Vec<Spectrum> = changes.iter().map(Change::spectrum).collect();
            let until = match limit {
                Some(most) => Limit::Bound(FIRST_BOUND * most * 0.5f64.powi(attempt)),
                None => Limit::Numbers(self.most_numbers(number, &pairs)),
            };
            let ranks = choose(&spectra, until);
            let Some(mut resized) = self.resized(&model, (&pairs, &changes), &ranks, &states)? else { break };
            let after = mean_loss(&mut resized.evaluator, &resized.parameters, &batches)?;
            let is_within = limit.is_none_or(|most| (after - before).abs() <= most);
            if !is_within || !after.is_finite() {
                continue;
            }
            let pairs = factor_pairs(&resized.model);
            let is_changed = |name: &String| pairs.iter().find(|p| p.name == *name).map(FactorPair::rank);
            change.ranks.iter_mut().for_each(|(name, rank)| *rank = is_changed(name).unwrap_or(*rank));
            change.numbers = numbers(&pairs);
            (change.bound, change.loss_after) = (resized.bound, after);
            self.go_on(trainer, resized)?;
            break;
        }
        Ok(change)
    }

    fn resize(&mut self, trainer: &mut Trainer, states: &[(String, Tensor)]) -> Result<(), TrainError> {
        let names: Vec<String> = trainer.parameters()?.into_iter().map(|(name, _)| name).collect();
        let parameters: Tensors = states.iter().filter(|(name, _)| names.contains(name)).cloned().collect();
        let model = with_resized_parameters(&self.model, &parameters)?;
        let forward = self.options.with_output(&model)?;
        let (step, evaluator) = self.options.compiled(&forward, &self.interruption)?;
        *trainer = self.options.trainer(&step, self.data, &self.train)?;
        (self.model, self.evaluator) = (model, evaluator);
        Ok(())
    }
}

impl Labelled<'_> {
    /// What every pair may become; `None` where something that was measured is not finite.
    fn changes<'p>(
        &self,
        forward: &Graph,
        pairs: &'p [Trained],
        parameters: &Tensors,
        batches: &[Tensors],
    ) -> Result<Option<Vec<Change<'p>>>, TrainError> {
        let options = self.options;
        let alone: Vec<FactorPair> = pairs.iter().map(|p| p.pair.clone()).collect();
        let loss = |g: &mut Graph| options.loss(g).map(|(loss, _)| loss);
        let Some(measured) = measure(forward, &alone, &loss, batches, (&options.backend, options.threads))?
        else {
            return Ok(None);
        };
        let change = |(trained, seen): (&'p Trained, _)| {
            let [left, right] = floats(&trained.names, parameters)?;
            Change::new(&trained.pair, [&left, &right], seen).map_err(undecomposed)
        };
        pairs.iter().zip(&measured).map(change).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// The most numbers that factors have after a choice.
    fn most_numbers(&self, number: usize, pairs: &[Trained]) -> usize {
        let share = self.options.ranks.and_then(|ranks| ranks.share_after(number, self.first_share));
        let dense: usize = pairs.iter().map(|p| p.pair.dense_numbers()).sum();
        (share.unwrap_or(1.0) * dense as f64) as usize
    }

    /// The model with these ranks; `None` where all stay.
    fn resized(
        &self,
        model: &Graph,
        (pairs, changes): (&[Trained], &[Change<'_>]),
        ranks: &[usize],
        states: &Tensors,
    ) -> Result<Option<Resized>, TrainError> {
        let (mut states, mut bound, mut factors) = (states.clone(), 0.0, Tensors::new());
        for ((trained, change), rank) in pairs.iter().zip(changes).zip(ranks) {
            if *rank == trained.pair.rank() {
                continue;
            }
            let projected = change.to_rank(*rank).map_err(undecomposed)?;
            bound += change.spectrum().bounds[*rank];
            let new = change.factors(&projected);
            factors.extend(trained.names.iter().cloned().zip(new.iter().cloned()));
            replace(&mut states, &trained.names, new);
            for moment in self.options.update.optimizer.moments() {
                let names = trained.names.each_ref().map(|name| moment.state(name));
                let [left, right] = floats(&names, &states)?;
                let new = change.moments(&projected, [&left, &right], moment.is_of_squares);
                replace(&mut states, &names, new.map_err(undecomposed)?);
            }
        }
        if factors.is_empty() {
            return Ok(None);
        }
        let model = with_resized_parameters(model, &factors)?;
        let forward = self.options.with_output(&model)?;
        let (step, evaluator) = self.options.compiled(&forward, &self.interruption)?;
        let of_step = |name: &String| states.iter().find(|(other, _)| other == name).cloned();
        let parameters = step.parameters.iter().chain(&step.held).filter_map(of_step).collect();
        Ok(Some(Resized { model, step, evaluator, states, parameters, bound }))
    }

    /// Goes on with another model.
    fn go_on(&mut self, trainer: &mut Trainer, resized: Resized) -> Result<(), TrainError> {
        *trainer = self.options.trainer(&resized.step, self.data, &self.train)?;
        trainer.restore(&resized.states)?;
        (self.model, self.evaluator) = (resized.model, resized.evaluator);
        Ok(())
    }
}

/// The mean loss of some batches.
fn mean_loss(
    evaluator: &mut Evaluator,
    parameters: &[(String, Tensor)],
    batches: &[Tensors],
) -> Result<f64, TrainError> {
    let mut sum = 0.0;
    for batch in batches {
        let (_, loss) = evaluator.run(parameters, batch)?.swap_remove(0);
        sum += Numbers::of(&loss).ok().and_then(|n| n.floats().first().copied()).unwrap_or(f64::NAN);
    }
    Ok(sum / batches.len().max(1) as f64)
}

/// The numbers of two tensors by their names.
fn floats(names: &[String; 2], tensors: &Tensors) -> Result<[Vec<f32>; 2], TrainError> {
    let find = |name: &String| {
        let found = tensors.iter().find(|(other, _)| other == name);
        let missing = || TrainError::Checkpoint(format!("state `{name}` is missing"));
        Ok::<_, TrainError>(found.ok_or_else(missing)?.1.to_vec::<f32>()?)
    };
    Ok([find(&names[0])?, find(&names[1])?])
}

fn replace(states: &mut Tensors, names: &[String; 2], new: [Tensor; 2]) {
    for (name, tensor) in names.iter().zip(new) {
        if let Some(state) = states.iter_mut().find(|(other, _)| other == name) {
            state.1 = tensor;
        }
    }
}

fn undecomposed(error: RandnlaError) -> TrainError {
    TrainError::Options(format!("ranks cannot be chosen: {error}"))
}
