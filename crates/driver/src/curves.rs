//! What each module can be replaced by, what that loses and what it costs.
//!
//! Errors are in one unit, the squared relative error of the model's outputs. A module's spectrum gives the error of every
//! rank relative to its own output; how much an error of the module weighs in the outputs is measured by running the model
//! with that module alone replaced, at one rank. Without samples every module weighs the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::Graph;
use margay_loops::{Backend, KernelCall};
use margay_passes::sketch::{Chosen, Fitted, Module, Point, SCHEMES, Scheme, Selection};
use margay_passes::{SketchConv, SketchLinear};
use margay_plan::{Candidate, Choice, Curve};
use margay_tensor::Tensor;

use crate::calibrate::parallel;
use crate::compare::ErrorSum;
use crate::{DriverError, Progress, Runner};

/// Ranks between two candidates of a curve that goes up to rank `max`.
fn rank_step(max: usize) -> usize {
    if max > 128 { 8 } else { 2 }
}

/// A scheme fitted to a module, with its settings.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) scheme: &'static str,
    pub(crate) fitted: Arc<dyn Fitted>,
    pub(crate) points: Vec<Point>,
}

/// A module with everything known of it.
#[derive(Clone)]
pub(crate) struct Prospect {
    pub(crate) module: Module,
    pub(crate) offers: Vec<Offer>,
    /// Squared relative error of the outputs per unit of squared relative error of the module.
    pub(crate) weight: Option<f64>,
    /// The kernel calls of its nodes, with every extent known.
    pub(crate) calls: Vec<KernelCall>,
}

/// Schemes with settings of their own, by module.
pub(crate) type Configured = BTreeMap<String, Box<dyn Scheme>>;

/// Fits every scheme to every module, as it is or as it is configured for the module.
pub(crate) fn fit(
    g: &Graph,
    modules: &[Module],
    statistics: Option<&[margay_passes::sketch::InputStatistics]>,
    seed_of: &(dyn Fn(&str) -> u64 + Sync),
    configured: &Configured,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Prospect>, DriverError> {
    let fitted = parallel(threads, modules.len(), progress, "factorizing weights", |i| {
        let module = &modules[i];
        SCHEMES
            .iter()
            .filter(|s| s.takes(module.kind))
            .map(|s| {
                let own = configured.get(&module.name).filter(|own| own.name() == s.name());
                let s = own.map_or(*s, |own| &**own);
                let fitted: Arc<dyn Fitted> =
                    s.fit(g, module, statistics.map(|s| &s[i]), seed_of(&module.name))?.into();
                Ok(Offer { scheme: s.name(), points: fitted.points(), fitted })
            })
            .collect::<Result<Vec<Offer>, margay_randnla::RandnlaError>>()
    });
    modules
        .iter()
        .zip(fitted)
        .map(|(module, offers)| {
            let error = |error| DriverError::Factorize { module: module.name.clone(), error };
            let offers = offers.map_err(error)?;
            Ok(Prospect { module: module.clone(), offers, weight: None, calls: Vec::new() })
        })
        .collect()
}

impl Prospect {
    fn dense(&self, backend: &dyn Backend, threads: usize) -> Candidate {
        Candidate {
            choice: Choice::dense(),
            error: 0.0,
            bytes: self.module.bytes(),
            flops: self.calls.iter().map(KernelCall::flops).sum(),
            seconds: self.calls.iter().map(|c| backend.call_seconds(c, threads)).sum(),
        }
    }

    /// The offers that may be chosen by their errors.
    fn choosable(&self) -> impl Iterator<Item = &Offer> {
        self.offers.iter().filter(|o| o.fitted.only_by_name().is_none())
    }

    /// The price of one setting.
    pub(crate) fn candidate(
        &self,
        offer: &Offer,
        point: &Point,
        backend: &dyn Backend,
        threads: usize,
    ) -> Candidate {
        let calls: Vec<KernelCall> =
            self.calls.iter().flat_map(|c| offer.fitted.calls(c, point.rank)).collect();
        Candidate {
            choice: Choice::new(offer.scheme, point.rank),
            error: point.relative_error * self.weight.unwrap_or(1.0),
            bytes: point.bytes,
            flops: calls.iter().map(KernelCall::flops).sum(),
            seconds: calls.iter().map(|c| backend.call_seconds(c, threads)).sum(),
        }
    }

    /// All candidates that may be chosen by their errors.
    pub(crate) fn curve(&self, backend: &dyn Backend, threads: usize) -> Curve {
        let points = self.choosable().flat_map(|offer| {
            offer
                .points
                .iter()
                .filter(|p| p.rank % rank_step(offer.points.len()) == 0)
                .map(|p| self.candidate(offer, p, backend, threads))
        });
        Curve {
            module: self.module.name.clone(),
            dense: self.dense(backend, threads),
            points: points.collect(),
        }
    }
}

/// The graph with the chosen modules replaced.
pub(crate) fn sketch(
    g: &Graph,
    selection: &Selection,
    dump: &mut crate::Dump,
) -> Result<(Graph, Vec<margay_ir::Remark>), DriverError> {
    use margay_passes::pipeline::{Pipeline, PipelineItem};
    let mut out = g.clone();
    let pipeline = Pipeline::new(vec![
        PipelineItem::Run(Box::new(SketchLinear { selection: selection.clone() })),
        PipelineItem::Run(Box::new(SketchConv { selection: selection.clone() })),
        PipelineItem::Reach(margay_ir::Stage::Sketched),
    ]);
    let remarks = pipeline.run(&mut out, &mut |run| dump.pass(run))?;
    Ok((out, remarks))
}

/// Measures how much an error of each module weighs in the outputs: each is replaced alone, at about half its bytes.
pub(crate) fn weigh(
    g: &Graph,
    prospects: &mut [Prospect],
    batches: &[Vec<(String, Tensor)>],
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(), DriverError> {
    let mut dense = Runner::new(g.clone(), backend, 1);
    let reference = batches.iter().map(|b| dense.run(b)).collect::<Result<Vec<_>, _>>()?;
    let weights = parallel(threads, prospects.len(), progress, "weighing layers", |i| {
        let prospect = &prospects[i];
        let Some((offer, point)) = prospect.choosable().find_map(|o| {
            let half = prospect.module.bytes() / 2;
            o.points.iter().rfind(|p| p.bytes <= half).map(|p| (o, p))
        }) else {
            return Ok::<Option<f64>, DriverError>(None);
        };
        let mut selection = Selection::default();
        let chosen = Chosen { fitted: offer.fitted.clone(), rank: point.rank };
        selection.choices.insert(prospect.module.name.clone(), chosen);
        let (graph, _) = sketch(g, &selection, &mut crate::Dump::none())?;
        let mut runner = Runner::new(graph, backend, 1);
        let mut sum = ErrorSum::default();
        for (batch, expected) in batches.iter().zip(&reference) {
            sum.add(expected, &runner.run(batch)?, 1)?;
        }
        let effect = sum.measure().relative_l2.powi(2);
        // A module whose spectrum is exhausted at this rank shows no error to divide by.
        // Outputs that are all zero have no relative error.
        Ok((point.relative_error > 1e-12 && effect.is_finite()).then(|| effect / point.relative_error))
    });
    for (prospect, weight) in prospects.iter_mut().zip(weights) {
        prospect.weight = Some(weight?.unwrap_or(1.0));
    }
    Ok(())
}

/// The kernel calls of every module's nodes in the graph with its symbols bound.
pub(crate) fn price(prospects: &mut [Prospect], bound: &Graph) {
    let mut by_name: BTreeMap<String, Vec<KernelCall>> = BTreeMap::new();
    for module in margay_passes::sketch::modules(bound) {
        let calls = module.nodes.iter().filter_map(|n| crate::build::call_of(bound, *n)).collect();
        by_name.insert(module.name, calls);
    }
    for p in prospects {
        p.calls = by_name.get(&p.module.name).cloned().unwrap_or_default();
    }
}
