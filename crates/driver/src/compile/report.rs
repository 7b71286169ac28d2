//! What was done, as a plan to be replayed and as a report to be read.

use margay_ir::Remark;
use margay_passes::sketch::Site;
use margay_plan::{
    Allocation, Budget, Budgets, Candidate, Choice, Curve, Goal, Header, Plan, Price, percent, plan,
};

use super::Job;
use super::allocate::Chosen;
use super::fit::Fit;
use super::price::Prices;
use crate::{ErrorMeasure, LayerRefit, MetricReport, ModuleReport, Report, Samples};

/// What the steps gave.
pub(crate) struct Outcome {
    pub(crate) fits: Vec<Fit>,
    pub(crate) prices: Prices,
    pub(crate) choice: Chosen,
    /// What the sketched model costs.
    pub(crate) after: Price,
    pub(crate) error: Option<ErrorMeasure>,
    /// The numbers of the samples that it was measured on.
    pub(crate) held_out_rows: Vec<usize>,
    /// What the refit made of each layer.
    pub(crate) refits: Vec<LayerRefit>,
    pub(crate) metric: Option<MetricReport>,
    pub(crate) remarks: Vec<Remark>,
    pub(crate) warnings: Vec<String>,
}

/// What the plan of a compilation is for.
pub(crate) fn header(job: &Job<'_>) -> Header {
    Header {
        version: plan::FORMAT_VERSION,
        model: job.source.hash.clone(),
        calibration: job.samples.as_ref().map(Samples::hash),
        target_cpu: job.backend.target().to_owned(),
        cost_model: job.backend.cost_model().to_owned(),
        seed: job.options.seed(),
    }
}

/// The choices as a plan. Weights that stay as they are, are named as well, each by its own site.
pub(crate) fn plan(job: &Job<'_>, allocation: &Allocation) -> Plan {
    let mut sites = std::collections::BTreeMap::new();
    for (site, choice) in shown(job, allocation) {
        sites.insert(site.name.clone(), choice.map_or_else(Choice::dense, |c| c.choice.clone()));
    }
    Plan { header: header(job), sites }
}

/// The sites that are sketched, and those of one weight that stays as it is.
fn shown<'a>(job: &'a Job<'_>, allocation: &'a Allocation) -> Vec<(&'a Site, Option<&'a Candidate>)> {
    let chosen = |site: &Site| allocation.choices.get(&site.name);
    let sketched = |weight: &margay_ir::Value| {
        job.sites.iter().any(|s| chosen(s).is_some() && s.weights.contains(weight))
    };
    let is_shown = |s: &&Site| chosen(s).is_some() || s.weights.len() == 1 && !sketched(&s.weights[0]);
    job.sites.iter().filter(is_shown).map(|s| (s, chosen(s))).collect()
}

/// The report.
pub(crate) fn report(job: &Job<'_>, outcome: &Outcome) -> Report {
    let (source, options) = (job.source, job.options);
    let remarks = source.remarks.iter().chain(&outcome.remarks);
    let (before, after) = (outcome.prices.before, outcome.after);
    let bytes = |price: Price| u64::try_from(price.bytes).unwrap_or(0);
    Report {
        model: source.name.clone(),
        model_hash: source.hash.clone(),
        target_cpu: job.backend.target().into(),
        cost_model: job.backend.cost_model().to_owned(),
        threads: options.predict_threads,
        seed: options.seed(),
        precision: options.precision.name().into(),
        goal: goal_text(options.searched(), &options.budgets),
        bytes_before: bytes(before),
        bytes_after: bytes(after),
        constant_bytes_before: bytes(before) + outcome.prices.other_bytes_before,
        constant_bytes_after: bytes(after) + outcome.prices.other_bytes,
        flops_before: before.flops.unsigned_abs(),
        flops_after: after.flops.unsigned_abs(),
        predicted_ms_before: before.seconds * 1e3,
        predicted_ms_after: after.seconds * 1e3,
        held_out: outcome.error.clone(),
        held_out_rows: outcome.held_out_rows.clone(),
        dims: job.bindings[0].iter().map(|(s, v)| (s.to_string(), *v)).collect(),
        modules: if options.sketches() { sites(job, outcome) } else { Vec::new() },
        refits: outcome.refits.clone(),
        metric: outcome.metric.clone(),
        warnings: outcome.warnings.clone(),
        remarks: remarks.map(|r| format!("{} at `{}`: {}", r.pass, r.at, r.message)).collect(),
    }
}

/// What became of every site, and why.
fn sites(job: &Job<'_>, outcome: &Outcome) -> Vec<ModuleReport> {
    let Outcome { prices, fits, .. } = outcome;
    let options = job.options;
    let Chosen { candidates, allocation, closest } = &outcome.choice;
    let of = |(site, chosen): (&Site, Option<&Candidate>)| {
        let position = job.sites.iter().position(|s| s.name == site.name).expect("it is one of them");
        let dense = prices.plain[position];
        let price = chosen.map_or(prices.dense[position], |c| c.price);
        let choice = chosen.map_or_else(Choice::dense, |c| c.choice.clone());
        let fit = fits.iter().find(|f| f.site == position && f.scheme == choice.scheme);
        let error = fit.and_then(|f| f.fitted.squared_error(&choice.settings).ok());
        let layer_error = error.unwrap_or(0.0).sqrt();
        let why = match (chosen, candidates.excluded.get(&site.name), &job.options.plan) {
            (Some(_), ..) => format!(
                "{}{} of {} bytes, predicted {:.3} of {:.3} ms, layer error {layer_error:.3}",
                if options.plan.is_some() { "the plan says so: " } else { "" },
                price.bytes,
                dense.bytes,
                price.seconds * 1e3,
                dense.seconds * 1e3
            ),
            (None, Some(reason), _) => reason.clone(),
            (None, None, Some(_)) => "kept dense: the plan does not sketch it".into(),
            (None, None, None) => kept_dense(job.options.searched(), *closest, allocation),
        };
        let curve = candidates.curves.iter().find(|curve| curve.site == site.name);
        let next = curve.filter(|_| options.plan.is_none()).and_then(|curve| next(curve, chosen));
        let why = match next.map(|next| words(next, candidates.weighed)) {
            Some(next) => format!("{why}; {next}"),
            None => why,
        };
        ModuleReport {
            name: site.name.clone(),
            kind: site.kind.into(),
            d_in: site.d_in,
            d_out: site.d_out,
            scheme: choice.scheme,
            settings: choice.settings,
            storage: job.planned(site).and_then(|choice| choice.storage.clone()),
            bytes_before: u64::try_from(dense.bytes).unwrap_or(0),
            bytes_after: u64::try_from(price.bytes).unwrap_or(0),
            predicted_ms_before: dense.seconds * 1e3,
            predicted_ms_after: price.seconds * 1e3,
            layer_error,
            output_error: candidates.weighed.then(|| chosen.map_or(0.0, |c| c.squared_error).sqrt()),
            why,
        }
    };
    shown(job, allocation).into_iter().map(of).collect()
}

/// The candidate next to the chosen one in the direction of less error; of a site that stays dense the one with the least.
fn next<'a>(curve: &'a Curve, chosen: Option<&Candidate>) -> Option<&'a Candidate> {
    let by_error = |a: &&Candidate, b: &&Candidate| a.squared_error.total_cmp(&b.squared_error);
    match chosen {
        None => curve.candidates.iter().min_by(by_error),
        Some(chosen) => {
            let better = curve.candidates.iter().filter(|c| c.squared_error < chosen.squared_error);
            better.max_by(by_error)
        }
    }
}

/// What a candidate would give: `lowrank of rank 40 would give an output error of 0.034 and take 0.120 ms`.
fn words(candidate: &Candidate, weighed: bool) -> String {
    let Candidate { choice, squared_error, price } = candidate;
    let (error, of) = (squared_error.sqrt(), if weighed { "an output" } else { "a layer" });
    format!(
        "{} of {} would give {of} error of {error:.3} with {} bytes in {:.3} ms",
        choice.scheme,
        choice.settings,
        price.bytes,
        price.seconds * 1e3
    )
}

/// Why a site that could be sketched is not.
fn kept_dense(goal: Option<&Goal>, closest: Option<f64>, allocation: &Allocation) -> String {
    match (goal, closest) {
        (Some(Goal::Error(limit)), Some(least)) if allocation.choices.is_empty() => {
            format!("kept dense: of what was tried, the least error was {least:.3}, above {limit}")
        }
        (Some(Goal::Drop(limit)), Some(least)) if allocation.choices.is_empty() => {
            format!(
                "kept dense: of what was tried, the least drop of the metric was {least:.3}, above {limit}"
            )
        }
        (Some(Goal::Drop(limit)), _) => {
            format!(
                "kept dense: no choice that was tried sketches it, is faster and drops by {limit} at most"
            )
        }
        (Some(Goal::Error(limit)), _) => {
            format!("kept dense: no choice that was tried sketches it, is faster and errs by {limit} at most")
        }
        _ if allocation.choices.is_empty() => "kept dense: the goal is met without any sketch".into(),
        _ => "kept dense: the goal is met with less error by sketching other layers".into(),
    }
}

/// The goal in words.
pub(crate) fn goal_text(goal: Option<&Goal>, budgets: &Budgets) -> String {
    let besides = budgets.goals().filter(|_| goal.is_some()).filter(|budget| Some(budget) != goal);
    let besides: Vec<Goal> = besides.collect();
    let all = goal.into_iter().chain(&besides).map(one_goal);
    match goal {
        None => "replay of a plan".into(),
        Some(_) => all.collect::<Vec<_>>().join(", "),
    }
}

fn one_goal(goal: &Goal) -> String {
    match goal {
        Goal::Dense => "dense".into(),
        Goal::Error(e) => format!("relative error of the outputs at most {e}"),
        Goal::Drop(most) => format!("the metric at most {most} below that of the dense model"),
        Goal::Bytes(Budget::Fraction(f)) => format!("{}% of the bytes of the weights", percent(*f)),
        Goal::Bytes(Budget::Absolute(n)) => format!("{n} bytes of weights"),
        Goal::Flops(Budget::Fraction(f)) => format!("{}% of the operations", percent(*f)),
        Goal::Flops(Budget::Absolute(n)) => format!("{n} operations"),
        Goal::Seconds(s) => format!("{} ms predicted", s * 1e3),
    }
}

#[cfg(test)]
mod tests {
    use margay_plan::Settings;
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Ranked {
        rank: u64,
    }

    /// Candidates of these ranks, with errors of one by the rank.
    fn curve(ranks: &[u64]) -> Curve {
        let candidate = |&rank: &u64| Candidate {
            choice: Choice {
                scheme: "lowrank".into(),
                settings: Settings::write(&Ranked { rank }),
                storage: None,
                seed: None,
            },
            squared_error: (1.0 / rank as f64).powi(2),
            price: Price { bytes: 10 * rank as i64, flops: 0, seconds: 1e-6 * rank as f64 },
        };
        let dense = Price { bytes: 1000, flops: 0, seconds: 1e-3 };
        let candidates = ranks.iter().map(candidate).collect();
        Curve { site: "fc1".into(), covers: Default::default(), dense, candidates }
    }

    #[test]
    fn the_next_candidate_is_told() {
        let curve = curve(&[8, 40, 16]);
        let told = |chosen: Option<usize>| {
            next(&curve, chosen.map(|i| &curve.candidates[i])).map(|c| words(c, true))
        };
        let rank_16 = "lowrank of rank 16 would give an output error of 0.062 with 160 bytes in 0.016 ms";
        assert_eq!(told(Some(0)).as_deref(), Some(rank_16));
        let rank_40 = "lowrank of rank 40 would give an output error of 0.025 with 400 bytes in 0.040 ms";
        assert_eq!(told(None).as_deref(), Some(rank_40));
        assert_eq!(told(Some(1)), None);
    }
}
