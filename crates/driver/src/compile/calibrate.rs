//! What calibration measures: first and second moments of the rows that sites ask for, and second moments of the gradients
//! of the outputs by what sites give.
//!
//! The graph is cut so that its outputs are the values that rows are made of, compiled, and run over the samples; the
//! moments are summed batch by batch, so that memory does not grow with the number of samples. Sites that ask for the
//! same rows share one sum and all that is derived from it. Places of padding do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use margay_ir::{Graph, NodeId, Value, eval};
use margay_loops::Backend;
use margay_passes::sketch::{Layer, Moments, Rows, Thinning, layers};
use margay_randnla::Gram;
use margay_tensor::Tensor;

use crate::backward::Backward;
use crate::cache::{Cache, joined, pieces};
use crate::{
    DriverError, Interruption, Kind, Marks, Mask, Metrics, Progress, Runner, Samples, Silent, parallel,
};

/// Samples run at once where the model leaves its batch open.
pub(crate) const BATCH: usize = 8;

/// How rows are measured.
#[derive(Clone)]
pub(crate) struct Measuring<'a> {
    /// Which places of samples count.
    pub(crate) mask: &'a Mask,
    pub(crate) backend: &'a Arc<dyn Backend>,
    pub(crate) threads: usize,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) interruption: Interruption,
    /// Where sums are kept, and what they follow from besides the rows.
    pub(crate) cache: Option<(&'a Cache, &'a str)>,
}

impl<'a> Measuring<'a> {
    /// Nothing is kept.
    pub(crate) fn new(
        mask: &'a Mask,
        backend: &'a Arc<dyn Backend>,
        threads: usize,
        progress: &'a dyn Progress,
        interruption: &Interruption,
    ) -> Measuring<'a> {
        let interruption = interruption.clone();
        Measuring { mask, backend, threads, progress, interruption, cache: None }
    }

    fn key(basis: &str, kind: &str, values: &[Value], rows: &[&Rows], thinning: Thinning) -> String {
        format!("{kind} {values:?} {rows:?} {thinning:?}\n{basis}")
    }

    /// The sums of rows that were kept.
    fn kept(&self, kind: &str, values: &[Value], rows: &[&Rows], thinning: Thinning) -> Option<Vec<Gram>> {
        let (cache, basis) = self.cache?;
        let bytes = cache.get(kind, &Measuring::key(basis, kind, values, rows, thinning))?;
        let grams: Vec<Gram> = pieces(&bytes)?.into_iter().map(Gram::from_bytes).collect::<Option<_>>()?;
        let same = grams.len() == rows.len() && grams.iter().zip(rows).all(|(g, r)| g.dim() == r.length);
        same.then_some(grams)
    }

    fn keep(&self, kind: &str, values: &[Value], rows: &[&Rows], thinning: Thinning, grams: &[Gram]) {
        let Some((cache, basis)) = self.cache else { return };
        let bytes: Vec<Vec<u8>> = grams.iter().map(Gram::to_bytes).collect();
        let all = joined(bytes.iter().map(Vec::as_slice));
        cache.put(kind, &Measuring::key(basis, kind, values, rows, thinning), &all);
    }
}

/// Measures rows; the result has one entry per request, in order: the moments of all rows of the request together.
///
/// The graph is cut at the values `probes` whoever asks for them: where it is cut decides how operators are fused, and that
/// the last bits of what is measured. So a plan that names a few sites has the factors that the choice among all had.
pub(crate) fn calibrate(
    g: &Graph,
    probes: &[Value],
    requests: &[&[Rows]],
    samples: &Samples,
    measuring: &Measuring<'_>,
) -> Result<Vec<Option<Arc<Moments>>>, DriverError> {
    let rows = distinct(requests);
    let mut values: Vec<Value> = Vec::new();
    for v in probes.iter().copied().chain(rows.iter().map(|asked| asked.value)) {
        if !values.contains(&v) {
            values.push(v);
        }
    }
    let named = |(i, v): (usize, &Value)| (format!("probe {i}"), *v);
    let probe = g.cut(&[], &values.iter().enumerate().map(named).collect::<Vec<_>>());
    let at = |asked: &Rows| values.iter().position(|v| *v == asked.value).expect("every value was listed");
    let moments = |gram: Gram| {
        let identity = identity(&gram);
        Moments::of_inputs(gram, &identity)
    };
    let thinning = Thinning::of(samples.rows());
    if let Some(grams) = measuring.kept("inputs", &values, &rows, thinning) {
        return requested(&rows, grams, requests, moments);
    }
    let sums = Sums::new(&rows, rows.iter().map(|asked| Some(at(asked))).collect());
    let runs = samples.runs(g, BATCH).len();
    let runner = Runner::new(probe, measuring.backend, measuring.threads);
    let mut runner = runner.until(&measuring.interruption);
    for (i, inputs) in samples.runs(g, BATCH).enumerate() {
        measuring.progress.at("measuring inputs", i, runs);
        let inputs = inputs?;
        let outputs = runner.run(&inputs)?;
        sums.add(&outputs, measuring.mask.marks(&inputs).as_ref(), thinning, measuring.threads)?;
    }
    measuring.progress.at("measuring inputs", runs, runs);
    let grams = sums.grams();
    measuring.keep("inputs", &values, &rows, thinning, &grams);
    requested(&rows, grams, requests, moments)
}

/// Rows of gradients that are measured of a value, about. They weigh errors; the inputs, which factors are fitted to, take more.
pub(crate) const GRADIENT_ROWS: usize = 1 << 14;

/// Measures the gradients of the outputs by the values of rows, from one backward pass of random signs for each sample.
/// Requests of no rows have no moments, and those that no output depends on have moments of nothing.
///
/// # Errors
/// [`DriverError::Pass`] for an operator without derivative.
pub(crate) fn calibrate_gradients(
    g: &Graph,
    requests: &[&[Rows]],
    samples: &Samples,
    seed: u64,
    measuring: &Measuring<'_>,
) -> Result<Vec<Option<Arc<Moments>>>, DriverError> {
    let rows = distinct(requests);
    let by: Vec<Value> = rows.iter().map(|asked| asked.value).collect();
    let moments = |gram: Gram| {
        let identity = identity(&gram);
        Moments::of_gradients(gram, &identity)
    };
    let thinning = Thinning { samples: samples.rows(), rows: GRADIENT_ROWS };
    if let Some(grams) = measuring.kept("gradients", &by, &rows, thinning) {
        return requested(&rows, grams, requests, moments);
    }
    let (backward, numbered) = Backward::new(g, &by, &[])?;
    let sums = Sums::new(&rows, numbered.gradients);
    let runs = samples.runs(g, BATCH).len();
    let runner = Runner::new(backward.graph.clone(), measuring.backend, measuring.threads);
    let mut runner = runner.until(&measuring.interruption);
    for (i, inputs) in samples.runs(g, BATCH).enumerate() {
        measuring.progress.at("measuring gradients", i, runs);
        let mut inputs = inputs?;
        let shape = |name: &str| inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t.shape());
        let binding = eval::bind_symbols(g, shape)?;
        let marks = measuring.mask.marks(&inputs);
        inputs.extend(backward.cotangents(g, &binding, marks.as_ref(), seed, i as u64)?);
        let outputs = runner.run(&inputs)?;
        sums.add(&outputs, marks.as_ref(), thinning, measuring.threads)?;
    }
    measuring.progress.at("measuring gradients", runs, runs);
    let grams = sums.grams();
    measuring.keep("gradients", &by, &rows, thinning, &grams);
    requested(&rows, grams, requests, moments)
}

/// Samples of which values themselves are kept, at most.
const SAMPLED: usize = 8;

/// What values are in the runs of a few samples: for each request a list of runs, each with one tensor per value. Of no
/// values there are no runs.
pub(crate) fn sampled(
    g: &Graph,
    requests: &[&[Value]],
    samples: &Samples,
    measuring: &Measuring<'_>,
) -> Result<Vec<Vec<Vec<Tensor>>>, DriverError> {
    let mut values: Vec<Value> = requests.iter().flat_map(|asked| asked.iter().copied()).collect();
    values.sort_unstable();
    values.dedup();
    let mut found = vec![Vec::new(); requests.len()];
    if values.is_empty() {
        return Ok(found);
    }
    let named = |(i, v): (usize, &Value)| (format!("value {i}"), *v);
    let part = g.cut(&[], &values.iter().enumerate().map(named).collect::<Vec<_>>());
    let runner = Runner::new(part, measuring.backend, measuring.threads);
    let mut runner = runner.until(&measuring.interruption);
    let few = samples.spread(g, SAMPLED, BATCH)?;
    for inputs in few.runs(g, BATCH) {
        let outputs = runner.run(&inputs?)?;
        for (runs, asked) in found.iter_mut().zip(requests).filter(|(_, asked)| !asked.is_empty()) {
            let at = |v: &Value| values.binary_search(v).expect("every value was listed");
            runs.push(asked.iter().map(|v| outputs[at(v)].1.clone()).collect());
        }
    }
    Ok(found)
}

/// How errors of the layers of a model weigh in its outputs, from one backward pass of each sample; nothing where an operator
/// has no derivative. Layers with rows longer than [`Gram::MOST_DENSE`] are left out.
///
/// # Errors
/// Those of running the model.
pub fn metrics(
    g: &Graph,
    (samples, mask): (&Samples, &Mask),
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
    interruption: &Interruption,
) -> Result<Metrics, DriverError> {
    let layers = layers(g);
    let short = layers.iter().filter(|layer| layer.d_out <= Gram::MOST_DENSE);
    let results: Vec<(NodeId, Vec<Rows>)> = short
        .map(|layer| (layer.nodes[0], layer.nodes.iter().map(|n| layer.result(g, *n)).collect()))
        .collect();
    let requests: Vec<&[Rows]> = results.iter().map(|(_, rows)| rows.as_slice()).collect();
    let measuring = Measuring::new(mask, backend, threads, progress, interruption);
    let found = match calibrate_gradients(g, &requests, samples, 0, &measuring) {
        Err(error) if error.kind() == Kind::Usage => return Ok(Metrics::default()),
        found => found?,
    };
    let seen = |m: Option<Arc<Moments>>| m.filter(|m| m.gram().count() > 0);
    Ok(results.iter().zip(found).filter_map(|((n, _), m)| Some((*n, seen(m)?))).collect())
}

/// First and second moments of what products with some constants read, by these constants. Left out are those that more than
/// one product reads, and rows longer than [`Gram::MOST_DENSE`].
///
/// # Errors
/// Those of running the model.
pub fn input_moments(
    g: &Graph,
    weights: &[NodeId],
    (samples, mask): (&Samples, &Mask),
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
    interruption: &Interruption,
) -> Result<Metrics, DriverError> {
    let products = g.order().into_iter().filter_map(|n| Some((n, Layer::at(g, n)?)));
    let products = products.filter(|(_, layer)| {
        let alone = g.users_of(layer.weight).len() == 1;
        weights.contains(&layer.weight.node) && layer.is_product() && alone && layer.d_in <= Gram::MOST_DENSE
    });
    let read: Vec<(NodeId, [Rows; 1])> =
        products.map(|(n, layer)| (layer.weight.node, [layer.input(g, n)])).collect();
    let requests: Vec<&[Rows]> = read.iter().map(|(_, rows)| rows.as_slice()).collect();
    let measuring = Measuring::new(mask, backend, threads, progress, interruption);
    let found = calibrate(g, &[], &requests, samples, &measuring)?;
    Ok(read.iter().zip(found).filter_map(|((n, _), m)| Some((*n, m?))).collect())
}

/// All rows of some requests, each once.
fn distinct<'a>(requests: &[&'a [Rows]]) -> Vec<&'a Rows> {
    let mut rows: Vec<&Rows> = Vec::new();
    for asked in requests.iter().flat_map(|r| r.iter()) {
        if !rows.contains(&asked) {
            rows.push(asked);
        }
    }
    rows
}

/// Moments in the making.
struct Sums<'a> {
    rows: &'a [&'a Rows],
    /// For each of the rows the number of the output that they are made of.
    outputs: Vec<Option<usize>>,
    /// Each is added to by one thread at a time, run after run.
    grams: Vec<Mutex<Gram>>,
}

impl<'a> Sums<'a> {
    fn new(rows: &'a [&'a Rows], outputs: Vec<Option<usize>>) -> Sums<'a> {
        let grams = rows.iter().map(|asked| Mutex::new(asked.gram())).collect();
        Sums { rows, outputs, grams }
    }

    /// Adds what a run gave.
    fn add(
        &self,
        outputs: &[(String, Tensor)],
        marks: Option<&Marks>,
        thinning: Thinning,
        threads: usize,
    ) -> Result<(), DriverError> {
        let added = parallel(threads, self.rows.len(), &Silent, "", |r| {
            let asked = self.rows[r];
            let Some(at) = self.outputs[r] else { return Ok(()) };
            let (x, mut gram) =
                (&outputs[at].1, self.grams[r].lock().unwrap_or_else(PoisonError::into_inner));
            match asked.places(x) {
                Some(places) => gram.add_ones(&counted(marks, places, 1)),
                None => gram.add_rows(&counted(marks, asked.of(x, thinning), asked.length)),
            }
        });
        added.into_iter().collect::<Result<(), _>>().map_err(unmeasured)
    }

    /// The sums of all runs.
    fn grams(self) -> Vec<Gram> {
        self.grams.into_iter().map(|g| g.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

/// The rows of so many numbers that count.
fn counted<T: Copy>(marks: Option<&Marks>, rows: Vec<T>, length: usize) -> Vec<T> {
    match marks {
        Some(marks) => marks.kept(rows, length),
        None => rows,
    }
}

/// The moments of all rows of each request together, from the sums of each of the rows; of no rows there are none.
fn requested(
    rows: &[&Rows],
    mut grams: Vec<Gram>,
    requests: &[&[Rows]],
    moments: impl Fn(Gram) -> Moments,
) -> Result<Vec<Option<Arc<Moments>>>, DriverError> {
    let mut made: BTreeMap<Vec<usize>, Arc<Moments>> = BTreeMap::new();
    let position = |asked: &Rows| rows.iter().position(|r| *r == asked).expect("every row was listed");
    let keys: BTreeSet<Vec<usize>> =
        requests.iter().map(|request| request.iter().map(position).collect()).collect();
    let uses = |at: usize| keys.iter().filter(|key| key.contains(&at)).count();
    let mut of = |request: &&[Rows]| {
        let key: Vec<usize> = request.iter().map(position).collect();
        let Some(&first) = key.first() else { return Ok(None) };
        if let Some(known) = made.get(&key) {
            return Ok(Some(known.clone()));
        }
        let mut sum = match uses(first) {
            1 => std::mem::replace(&mut grams[first], Gram::new(0)),
            _ => grams[first].clone(),
        };
        key[1..].iter().try_for_each(|&more| sum.merge(&grams[more])).map_err(unmeasured)?;
        let moments = Arc::new(moments(sum));
        made.insert(key, moments.clone());
        Ok(Some(moments))
    };
    requests.iter().map(&mut of).collect()
}

/// What stands for sums in the names of what follows from them.
fn identity(gram: &Gram) -> String {
    format!("#{}", &blake3::hash(&gram.to_bytes()).to_hex()[..12])
}

fn unmeasured(error: margay_randnla::RandnlaError) -> DriverError {
    DriverError::Measure(format!("the inputs of the layers cannot be measured: {error}"))
}
