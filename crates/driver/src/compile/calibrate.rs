//! What calibration measures: first and second moments of the rows that sites ask for.
//!
//! The graph is cut so that its outputs are the values that rows are made of, compiled, and run over the samples; the
//! moments are summed batch by batch, so that memory does not grow with the number of samples. Sites that ask for the
//! same rows share one sum and all that is derived from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use margay_ir::{Graph, Value};
use margay_loops::Backend;
use margay_passes::sketch::{Moments, Rows};
use margay_randnla::Gram;

use crate::{DriverError, Progress, Runner, Samples, Silent, parallel};

/// Samples run at once where the model leaves its batch open.
pub(crate) const BATCH: usize = 8;

/// Measures rows; the result has one entry per request, in order: the moments of all rows of the request together.
///
/// The graph is cut at the values `probes` whoever asks for them: where it is cut decides how operators are fused, and that
/// the last bits of what is measured. So a plan that names a few sites has the factors that the choice among all had.
pub(crate) fn calibrate(
    g: &Graph,
    probes: &[Value],
    requests: &[&[Rows]],
    samples: &Samples,
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Arc<Moments>>, DriverError> {
    let mut rows: Vec<&Rows> = Vec::new();
    for asked in requests.iter().flat_map(|r| r.iter()) {
        if !rows.contains(&asked) {
            rows.push(asked);
        }
    }
    let grams = accumulate(g, probes, &rows, samples, backend, threads, progress)?;
    let calibration = format!("#{}", samples.hash());
    let mut made: BTreeMap<Vec<usize>, Arc<Moments>> = BTreeMap::new();
    let moments = |request: &&[Rows]| {
        let key = positions(&rows, request);
        if let Some(known) = made.get(&key) {
            return Ok(known.clone());
        }
        let mut sum = grams[key[0]].clone();
        key[1..].iter().try_for_each(|&more| sum.merge(&grams[more])).map_err(unmeasured)?;
        let moments = Arc::new(Moments::new(sum, &calibration));
        made.insert(key, moments.clone());
        Ok(moments)
    };
    requests.iter().map(moments).collect()
}

fn positions(rows: &[&Rows], request: &[Rows]) -> Vec<usize> {
    let position = |asked: &Rows| rows.iter().position(|r| *r == asked).expect("every row was listed");
    request.iter().map(position).collect()
}

fn unmeasured(error: margay_randnla::RandnlaError) -> DriverError {
    DriverError::Measure(format!("the inputs of the layers cannot be measured: {error}"))
}

fn accumulate(
    g: &Graph,
    probes: &[Value],
    rows: &[&Rows],
    samples: &Samples,
    backend: &Arc<dyn Backend>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Gram>, DriverError> {
    let mut values: Vec<Value> = Vec::new();
    for v in probes.iter().copied().chain(rows.iter().map(|asked| asked.value)) {
        if !values.contains(&v) {
            values.push(v);
        }
    }
    let named = |(i, v): (usize, &Value)| (format!("probe {i}"), *v);
    let probe = g.cut(&[], &values.iter().enumerate().map(named).collect::<Vec<_>>());
    let mut grams: Vec<Gram> = rows.iter().map(|asked| Gram::new(asked.length)).collect();
    let runs = samples.runs(g, BATCH).len();
    let mut runner = Runner::new(probe, backend, threads);
    for (i, inputs) in samples.runs(g, BATCH).enumerate() {
        progress.at("measuring inputs", i, runs);
        let outputs = runner.run(&inputs?)?;
        let added = parallel(threads, rows.len(), &Silent, "", |r| {
            let asked = rows[r];
            let at = values.iter().position(|v| *v == asked.value).expect("every value was listed");
            let mut part = Gram::new(asked.length);
            part.add_rows(&asked.of(&outputs[at].1, samples.rows())).map(|()| part)
        });
        for (r, part) in added.into_iter().enumerate() {
            part.and_then(|p| grams[r].merge(&p)).map_err(unmeasured)?;
        }
    }
    progress.at("measuring inputs", runs, runs);
    Ok(grams)
}
