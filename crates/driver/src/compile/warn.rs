//! What should make a reader doubt the result of a compilation, in words with numbers.

use margay_ir::{Graph, Op};
use margay_loops::Precision;
use margay_plan::{Allocation, Goal, Price};
use margay_tensor::DType;
use serde::Deserialize;

use super::Job;
use super::check::Checker;
use super::fit::Fit;
use super::price::{Prices, of_whole};
use super::saturation::saturated;
use crate::cache::Cache;
use crate::samples::doubts;
use crate::{DriverError, Dump, ErrorMeasure, build};

/// Below this share of the size of the outputs, what tells samples apart is small.
const SMALL_SPREAD: f64 = 0.1;

/// More than this share of the time of the dense model is slower.
const SLOWER: f64 = 1.02;

/// What a compilation gave, as far as it can be doubted.
pub(crate) struct Outcome<'a> {
    pub(crate) fits: &'a [Fit],
    /// By fit, the rows that its layer was calibrated on; empty without samples.
    pub(crate) rows: &'a [u64],
    pub(crate) prices: &'a Prices,
    pub(crate) allocation: &'a Allocation,
    pub(crate) after: Price,
    pub(crate) error: Option<&'a ErrorMeasure>,
}

/// All that should make a reader doubt.
///
/// # Errors
/// What fails when the model is compiled and run in int8.
pub(crate) fn warnings(
    job: &Job<'_>,
    checker: Option<&Checker>,
    outcome: &Outcome<'_>,
) -> Result<Vec<String>, DriverError> {
    let options = job.options;
    let mut all = job.source.warnings.clone();
    if let (Some(samples), true) = (&job.samples, checker.is_some()) {
        all.extend(doubts(samples));
    }
    match checker.and_then(Checker::relative_spread) {
        Some(0.0) => all.push("all samples have the same outputs: an error says nothing of others".into()),
        Some(spread) if spread < SMALL_SPREAD => all.push(format!(
            "the outputs hardly differ between samples, by {:.1}% of their size: a small relative error says little, the \
             one about the mean more; are these samples what the model expects?",
            100.0 * spread
        )),
        _ => {}
    }
    if let Some(checker) = checker {
        all.extend(saturated(job, checker)?);
    }
    if let Some(Goal::Error(limit)) =
        options.searched().filter(|g| matches!(g, Goal::Error(e) if e.most >= 1.0))
    {
        all.push(format!("a limit of {limit} is met by outputs that are all zero"));
    }
    all.extend(above_the_limit(options.searched(), outcome.error));
    all.extend(unchanged(job, outcome));
    all.extend(of_other_types(job));
    all.extend(high_ranks(job, outcome));
    let (before, now) = (outcome.prices.before.seconds, outcome.after.seconds);
    if now > SLOWER * before {
        all.push(format!(
            "it is predicted to take {:.0}% of the time of the dense model: fewer bytes, but no faster",
            100.0 * now / before
        ));
    }
    all.extend(job.cache.as_ref().and_then(Cache::doubt));
    all.extend(int8_is_better(job, checker, outcome)?);
    Ok(all)
}

/// Outputs that err by more than a limit which all of them together keep.
fn above_the_limit(goal: Option<&Goal>, error: Option<&ErrorMeasure>) -> Option<String> {
    let (Some(Goal::Error(limit)), Some(error)) = (goal, error) else { return None };
    let mut above: Vec<String> = Vec::new();
    for output in error.outputs.iter().filter(|_| limit.level.is_none()) {
        let found = [
            ("", Some(output.relative_l2)),
            ("the means of ", output.pooled.as_ref().map(|p| p.relative_l2)),
        ];
        let found = found.into_iter().filter_map(|(of, error)| Some((of, error?)));
        above.extend(
            found
                .filter(|(_, error)| *error > limit.most)
                .map(|(of, error)| format!("{of}`{}` by {error:.3}", output.name)),
        );
    }
    (!above.is_empty()).then(|| {
        format!(
            "the limit of {limit} is for all outputs together, and these err by more: {}; `--output-name` says which count",
            above.join(", ")
        )
    })
}

/// Whether a goal left the model as it was.
fn unchanged(job: &Job<'_>, outcome: &Outcome<'_>) -> Option<String> {
    let goal = job.options.searched().filter(|goal| **goal != Goal::Dense)?;
    if !outcome.allocation.choices.is_empty() || job.options.precision != Precision::F32 {
        return None;
    }
    Some(match (outcome.fits.is_empty(), goal) {
        (true, _) => "the model has no layer that could be sketched: it stays as it is".into(),
        (false, Goal::Error(_) | Goal::Drop(_)) => {
            "no sketch within the limit is faster: the model stays as it is".to_owned()
        }
        (false, _) => "the goal is met without any sketch: the model stays as it is".into(),
    })
}

/// Layers that no scheme and no precision takes, for their type.
fn of_other_types(job: &Job<'_>) -> Option<String> {
    let options = job.options;
    if !options.sketches() && options.precision == Precision::F32 {
        return None;
    }
    let g = job.graph();
    let types = g.order().into_iter().filter_map(|n| {
        let weight = *g.inputs_of(n).get(1)?;
        let dtype = g.ty(weight).dtype;
        let is_layer = matches!(g.op(n), Op::MatMul(_) | Op::Conv(_)) && g.constant(weight).is_some();
        (is_layer && dtype.is_float() && dtype != DType::F32).then_some(dtype)
    });
    let types: Vec<DType> = types.collect();
    let first = types.first()?;
    Some(format!(
        "{} layer(s) compute in {first} and stay as they are: only those in f32 and in floats of 16 bits are sketched or rounded; convert the model to f32",
        types.len()
    ))
}

/// What settings of several schemes have.
#[derive(Deserialize)]
struct Ranked {
    rank: u64,
}

/// Sketches whose rank is near the number of rows that they were fitted to.
fn high_ranks(job: &Job<'_>, outcome: &Outcome<'_>) -> Option<String> {
    let mut names = Vec::new();
    for (fit, &rows) in outcome.fits.iter().zip(outcome.rows) {
        let name = &job.sites[fit.site].name;
        let chosen = outcome.allocation.choices.get(name).filter(|c| c.choice.scheme == fit.scheme);
        let rank = chosen.and_then(|c| c.choice.settings.read::<Ranked>().ok()).map(|r| r.rank);
        if let Some(rank) = rank.filter(|rank| 2 * rank > rows) {
            names.push(format!("`{name}` (rank {rank}, {rows} rows)"));
        }
    }
    const SHOWN: usize = 4;
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| {
        format!(
            "ranks are near the number of rows that calibrated, so that sketches fit these rows only: {}{more}; give more \
             samples",
            names.join(", ")
        )
    })
}

/// Whether the model in int8 without any sketch reaches the goal, where it can be measured with a smaller error.
fn int8_is_better(
    job: &Job<'_>,
    checker: Option<&Checker>,
    outcome: &Outcome<'_>,
) -> Result<Option<String>, DriverError> {
    let Some(goal) = job.options.searched() else { return Ok(None) };
    if job.options.precision != Precision::F32 || outcome.allocation.choices.is_empty() {
        return Ok(None);
    }
    let narrow = build::in_precision(job.graph().clone(), Precision::Int8, &mut Dump::none())?;
    let price = of_whole(job, &narrow)?;
    let sketched = outcome.after;
    let meets = match goal {
        Goal::Dense => false,
        Goal::Bytes(budget) => {
            let whole = u64::try_from(outcome.prices.before.bytes).unwrap_or(0);
            u64::try_from(price.bytes).is_ok_and(|bytes| bytes <= budget.resolve(whole))
        }
        // Narrow storage saves no operations.
        Goal::Flops(_) => false,
        Goal::Seconds(seconds) => price.seconds <= *seconds,
        Goal::Error(_) | Goal::Drop(_) => price.seconds <= sketched.seconds && price.bytes <= sketched.bytes,
    };
    if !meets {
        return Ok(None);
    }
    let (Some(checker), Some(error)) = (checker, outcome.error) else {
        return Ok(Some(format!(
            "int8 without any sketch reaches this goal, too: {} bytes of weights, against {}; samples would show which errs less",
            price.bytes, sketched.bytes
        )));
    };
    let found = error_of(job, checker, &narrow)?;
    Ok((found < error.relative_l2).then(|| {
        format!(
            "int8 without any sketch does better: {} bytes of weights with a relative error of {found:.3}, against {} bytes \
             with {:.3}; give `--precision int8`, with this goal or without one",
            price.bytes, sketched.bytes, error.relative_l2
        )
    }))
}

/// The relative error of a graph that follows from the model alone, whatever the goal.
fn error_of(job: &Job<'_>, checker: &Checker, g: &Graph) -> Result<f64, DriverError> {
    let measure = || Ok(checker.measure(g, &job.measures_on, job.threads(), job.progress)?.relative_l2);
    let Some(cache) = &job.cache else { return measure() };
    let key = format!("{:?}\n{g}\n{}", job.options.errors, job.basis);
    if let Some(kept) = cache.get("errors", &key).and_then(|bytes| bytes.try_into().ok()) {
        return Ok(f64::from_bits(u64::from_le_bytes(kept)));
    }
    let found = measure()?;
    cache.put("errors", &key, &found.to_bits().to_le_bytes());
    Ok(found)
}
