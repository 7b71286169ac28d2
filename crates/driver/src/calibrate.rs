//! What calibration measures: the second moments of the inputs of modules.
//!
//! The graph is cut so that its outputs are the modules' inputs, compiled, and run over the samples; the moments are summed
//! batch by batch, so that memory does not grow with the number of samples. Modules that read the same value share one
//! moment and one whitening.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use margay_ir::{Graph, Op, Value};
use margay_loops::Backend;
use margay_passes::sketch::{InputStatistics, Module, ModuleKind};
use margay_randnla::{Centring, Conditioning, Gram, RandnlaError, Whitening};
use margay_tensor::Tensor;

use crate::{DriverError, Progress, Runner, Samples, Unfold};

/// Samples run at once where the model leaves its batch open.
pub(crate) const BATCH: usize = 8;

/// Rows of unfolded images taken from one module, at most; the rest are left out evenly.
pub const MAX_PATCHES: usize = 1 << 16;

/// Added to the whitened spectrum as a share of its mean, against directions the samples hardly show.
const SHRINKAGE: f64 = 0.01;

/// A module's input, as whitening sees it: the value, and how rows are made of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Site {
    value: Value,
    unfold: Option<Unfold>,
}

impl Site {
    /// The input of a node of a module.
    pub(crate) fn of(g: &Graph, module: &Module, n: margay_ir::NodeId) -> Site {
        Site { value: g.inputs_of(n)[0], unfold: unfold_of(g, module, n) }
    }
}

/// Measures the inputs of modules; the result has one entry per module, in order.
pub(crate) fn measure_inputs(
    g: &Graph,
    modules: &[Module],
    samples: &Samples,
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<InputStatistics>, DriverError> {
    let mut sites: Vec<(Site, usize)> = Vec::new();
    let mut site_of: Vec<Vec<usize>> = Vec::new();
    for module in modules {
        let mut mine = Vec::new();
        for &n in &module.nodes {
            let site = Site::of(g, module, n);
            let at = sites.iter().position(|(s, _)| *s == site).unwrap_or_else(|| {
                sites.push((site, module.d_in));
                sites.len() - 1
            });
            mine.push(at);
        }
        site_of.push(mine);
    }
    let grams = accumulate(g, &sites, samples, backend, threads, progress)?;

    // One whitening per distinct set of sites.
    let mut sets: BTreeMap<Vec<usize>, Option<Result<Whitening, RandnlaError>>> = BTreeMap::new();
    for mine in &site_of {
        sets.insert(mine.clone(), None);
    }
    let keys: Vec<Vec<usize>> = sets.keys().cloned().collect();
    let total = keys.len();
    let whitened = parallel(threads, total, progress, "whitening inputs", |i| {
        let mut gram = grams[keys[i][0]].clone();
        let merged = keys[i][1..].iter().try_for_each(|&j| gram.merge(&grams[j]));
        let conditioning = Conditioning { shrinkage: SHRINKAGE, ..Conditioning::default() };
        merged.and_then(|()| Whitening::from_gram(&gram, Centring::Centred, &conditioning))
    });
    for (key, whitening) in keys.into_iter().zip(whitened) {
        sets.insert(key, Some(whitening));
    }
    let calibration = format!("#{}", samples.hash());
    modules
        .iter()
        .zip(&site_of)
        .map(|(module, mine)| match sets.get(mine).and_then(Option::as_ref) {
            Some(Ok(w)) => Ok(InputStatistics { whitening: w.clone(), calibration: calibration.clone() }),
            Some(Err(e)) => Err(DriverError::Factorize { module: module.name.clone(), error: e.clone() }),
            None => unreachable!("every set was whitened"),
        })
        .collect()
}

/// Runs `work` for every number below `total` on some threads; results in order.
pub fn parallel<T: Send>(
    threads: usize,
    total: usize,
    progress: &dyn Progress,
    what: &str,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let results: Mutex<Vec<Option<T>>> = Mutex::new((0..total).map(|_| None).collect());
    let claim = || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let run = |report: Option<&dyn Progress>| {
        loop {
            let i = claim();
            if i >= total {
                break;
            }
            let result = work(i);
            results.lock().unwrap_or_else(|e| e.into_inner())[i] = Some(result);
            if let Some(p) = report {
                p.at(what, next.load(std::sync::atomic::Ordering::Relaxed).min(total), total);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(|| run(None));
        }
        run(Some(progress));
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.into_iter().map(|r| r.expect("every number was claimed once")).collect()
}

fn unfold_of(g: &Graph, module: &Module, n: margay_ir::NodeId) -> Option<Unfold> {
    match (module.kind, g.op(n)) {
        (ModuleKind::Conv, Op::Conv(c)) => {
            let kernel = g.ty(module.weight).extents()?;
            Unfold::new(c, [kernel[2], kernel[3]])
        }
        _ => None,
    }
}

fn accumulate(
    g: &Graph,
    sites: &[(Site, usize)],
    samples: &Samples,
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Gram>, DriverError> {
    let mut values: Vec<Value> = Vec::new();
    for (site, _) in sites {
        if !values.contains(&site.value) {
            values.push(site.value);
        }
    }
    let named = |(i, v): (usize, &Value)| (format!("probe {i}"), *v);
    let probe = g.cut(&[], &values.iter().enumerate().map(named).collect::<Vec<_>>());
    let mut grams: Vec<Gram> = sites.iter().map(|(_, d)| Gram::new(*d)).collect();
    let runs = samples.runs(g, BATCH).len();
    let mut runner = Runner::new(probe, backend, threads);
    for (i, inputs) in samples.runs(g, BATCH).enumerate() {
        progress.at("measuring inputs", i, runs);
        let outputs = runner.run(&inputs?)?;
        let added = parallel(threads, sites.len(), &crate::Silent, "", |s| {
            let (site, d_in) = &sites[s];
            let at = values.iter().position(|v| *v == site.value).unwrap_or(0);
            let rows = rows_of(&outputs[at].1, site, samples.rows());
            let mut part = Gram::new(*d_in);
            part.add_rows(&rows).map(|()| part)
        });
        for (s, part) in added.into_iter().enumerate() {
            part.and_then(|p| grams[s].merge(&p)).map_err(|e| {
                DriverError::Measure(format!("the inputs of the layers cannot be measured: {e}"))
            })?;
        }
    }
    progress.at("measuring inputs", runs, runs);
    Ok(grams)
}

/// The rows that a module multiplies its weight with.
pub(crate) fn rows_of(x: &Tensor, site: &Site, samples: usize) -> Vec<f32> {
    let Some(unfold) = &site.unfold else { return x.to_vec::<f32>().expect("modules read f32") };
    let [rows, columns] = unfold.windows([x.shape()[2], x.shape()[3]]);
    unfold.rows(x, (samples * rows * columns).div_ceil(MAX_PATCHES))
}
