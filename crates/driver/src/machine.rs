//! The cost model of the machine that this runs on.
//!
//! A few programs are timed, each of which mostly does what one number of the cost model counts: products with constants
//! of each storage, convolutions, passes over memory. Then each number in turn is set so that its program is predicted to
//! take as long as it took, a few times over, since all of them have a share in every prediction.

use std::time::{Duration, Instant};

use margay_ir::{Graph, TensorType, text};
use margay_loops::{Precision, Program};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, DType, Tensor};
use serde::Serialize;

use crate::backend::{CostModel, builtin_cost, costed};
use crate::{DriverError, Dump, Progress, build};

/// Runs of each program, at least.
const LEAST_RUNS: usize = 7;

/// Times that all numbers are set.
const ROUNDS: usize = 4;

/// A number may become so many times larger or smaller than that of the class.
const RANGE: f64 = 200.0;

/// The bandwidth of memory that all threads share.
const LIMIT: &str = "bandwidth.memory-limit-gbps";

/// A number of the cost model, and the program that it is set by.
struct Probe {
    key: &'static str,
    source: String,
    precision: Precision,
    all_threads: bool,
}

/// One number of the cost model, and the program that it was set by.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// Its key in the file.
    pub key: &'static str,
    /// What the class of the processor has.
    pub builtin: f64,
    /// What this machine has.
    pub measured: f64,
    /// Median milliseconds of the program.
    pub ms: f64,
    /// What the model of the class predicts for it.
    pub builtin_ms: f64,
    /// What the new model predicts.
    pub predicted_ms: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The class of the processor.
    pub target: String,
    /// The name of the model, which plans and reports state.
    pub name: String,
    /// Threads of the programs that use all.
    pub threads: usize,
    /// The numbers, in the order in which their programs ran.
    pub rates: Vec<Rate>,
    /// The cost model, as TOML.
    #[serde(skip)]
    pub cost_model: String,
}

/// Measures this machine, with so many seconds for each program.
///
/// # Errors
/// [`DriverError::Options`] for a class that this machine is not of.
pub fn measure(
    target: &str,
    threads: usize,
    seconds: f64,
    progress: &dyn Progress,
) -> Result<Machine, DriverError> {
    let (target, builtin) = builtin_cost(target)?;
    let probes = probes();
    let mut timed = Vec::new();
    for (i, probe) in probes.iter().enumerate() {
        progress.at("timing programs", i, probes.len());
        let threads = if probe.all_threads { threads } else { 1 };
        timed.push(Timed::new(probe, &target, &builtin, threads, seconds)?);
    }
    progress.at("timing programs", probes.len(), probes.len());
    let model = fitted(&builtin, &target, &probes, &timed)?;
    let name = format!("measured/{}/{}", target, &blake3::hash(model.to_toml().as_bytes()).to_hex()[..8]);
    let mut model = model;
    model.name.clone_from(&name);
    let cost_model = model.to_toml();
    let number = |model: &CostModel, key| model.get(key).expect("probes name keys of the model");
    let rate = |(probe, timed): (&Probe, &Timed)| {
        Ok(Rate {
            key: probe.key,
            builtin: number(&builtin, probe.key),
            measured: number(&model, probe.key),
            ms: timed.seconds * 1e3,
            builtin_ms: timed.predicted(&target, &builtin)? * 1e3,
            predicted_ms: timed.predicted(&target, &model)? * 1e3,
        })
    };
    let rates = probes.iter().zip(&timed).map(rate).collect::<Result<_, DriverError>>()?;
    Ok(Machine { target, name, threads, rates, cost_model })
}

/// A program with the time it took.
struct Timed {
    program: Program,
    threads: usize,
    seconds: f64,
}

impl Timed {
    fn new(
        probe: &Probe,
        target: &str,
        cost: &CostModel,
        threads: usize,
        time: f64,
    ) -> Result<Timed, DriverError> {
        let backend = costed(target, cost.clone())?;
        let g = text::parse(&probe.source, &contents).expect("probes are graphs");
        let g = build::in_precision(g, probe.precision, &mut Dump::none())?;
        let bound = build::bind(&g, &Binding::new(), &*backend, &mut Dump::none())?;
        let program = margay_lower::lower(&bound, &*backend)?;
        let executable = build::jit(&g, &Binding::new(), &*backend)?;
        let mut session = Session::new(&executable, SessionOptions { threads })?;
        let inputs = inputs(&g);
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut times = Vec::new();
        let begin = Instant::now();
        while times.len() < LEAST_RUNS || begin.elapsed() < Duration::from_secs_f64(time) {
            let start = Instant::now();
            session.run_in_place(&inputs)?;
            times.push(start.elapsed().as_secs_f64());
        }
        // The first run finds cold caches and unmapped pages.
        times.remove(0);
        times.sort_by(f64::total_cmp);
        Ok(Timed { program, threads, seconds: times[times.len() / 2] })
    }

    fn predicted(&self, target: &str, cost: &CostModel) -> Result<f64, DriverError> {
        let backend = costed(target, cost.clone())?;
        Ok(self.program.seconds(&*backend, self.threads))
    }
}

/// The model with every number set by its program.
fn fitted(
    builtin: &CostModel,
    target: &str,
    probes: &[Probe],
    timed: &[Timed],
) -> Result<CostModel, DriverError> {
    let mut model = builtin.clone();
    for _ in 0..ROUNDS {
        for (probe, timed) in probes.iter().zip(timed) {
            let was = builtin.get(probe.key).expect("probes name keys of the model");
            let predicted = |candidate: &CostModel| timed.predicted(target, candidate);
            model = set(&model, probe.key, was, &predicted, (timed.seconds, timed.threads))?;
            model = with_followers(model, builtin, probe.key);
        }
    }
    Ok(model)
}

/// Numbers without a program of their own keep their proportion to one that has: rates of the first row of a product with
/// a constant, which is too short to be told from what surrounds it.
fn with_followers(model: CostModel, builtin: &CostModel, key: &str) -> CostModel {
    let follower = match key {
        "gflops.matmul-packed" => "gflops.matmul-first-row",
        "gflops.matmul-int4" => "gflops.matmul-int4-first-row",
        _ => return model,
    };
    let number = |m: &CostModel, key: &str| m.get(key).expect("these are keys of the model");
    let share = number(&model, key) / number(builtin, key);
    model.with(follower, number(builtin, follower) * share).unwrap_or(model)
}

/// The model with a number for which the predicted time is `seconds`, or the nearest one in range. Predictions move one way
/// only as the number grows.
fn set(
    model: &CostModel,
    key: &str,
    was: f64,
    predicted: &dyn Fn(&CostModel) -> Result<f64, DriverError>,
    (seconds, threads): (f64, usize),
) -> Result<CostModel, DriverError> {
    let (mut low, mut high) = (was / RANGE, was * RANGE);
    match key {
        "thread-efficiency" => (low, high) = (1e-3, 1.0),
        // More than all threads take when each has as much as it had alone limits nothing.
        LIMIT => {
            low = model.get("bandwidth.memory-gbps").unwrap_or(low);
            high = low * threads as f64;
        }
        _ => {}
    }
    let at = |number: f64| model.with(key, number).map_err(|e| DriverError::Options(e.to_string()));
    let rising = predicted(&at(low)?)? < predicted(&at(high)?)?;
    for _ in 0..50 {
        let middle = (low * high).sqrt();
        match (predicted(&at(middle)?)? < seconds) == rising {
            true => low = middle,
            false => high = middle,
        }
    }
    at((low * high).sqrt())
}

/// The programs, the ones first that depend least on others.
fn probes() -> Vec<Probe> {
    let one = |key, source| Probe { key, source, precision: Precision::F32, all_threads: false };
    let chain = |layers, m, width| products(layers, m, width);
    let narrow = |key, precision| Probe { precision, ..one(key, chain(6, 96, 768)) };
    let images = |groups: usize| convolutions(6, 96, 28, groups);
    vec![
        one("region-us", unfused(64, 16)),
        one("gflops.elementwise", elementwise("64, 512", 16, |i| if i % 2 == 0 { "mul" } else { "add" })),
        one("gflops.gevaluations", tanh("64, 512", 4)),
        one("bandwidth.cache-gbps", elementwise("1024, 1024", 1, |_| "add")),
        one("bandwidth.memory-gbps", chain(16, 1, 1536)),
        one("gflops.matmul-packed", chain(6, 96, 768)),
        narrow("gflops.matmul-bf16", Precision::Bf16),
        narrow("gflops.matmul-int8", Precision::Int8),
        narrow("gflops.matmul-int4", Precision::Int4),
        one("gflops.matmul-bytes", products_of_bytes(6, 96, 768)),
        one("gflops.matmul-unpacked", computed_products()),
        one("gflops.conv", images(1)),
        one("gflops.depthwise", images(96)),
        one("gflops.attention", attention(4, 256)),
        Probe { all_threads: true, ..one("thread-efficiency", chain(6, 96, 768)) },
        Probe { all_threads: true, ..one(LIMIT, chain(16, 1, 1536)) },
    ]
}

/// A graph over inputs, from the lines of its nodes, the last of which is the output.
fn graph(inputs: &str, output: &str, lines: &[String]) -> String {
    format!(
        "graph @probe({inputs}) -> (y: {output}) {{\n{}\n  return %{}\n}}\n",
        lines.join("\n"),
        lines.len() - 1
    )
}

/// One product after the other with square constants.
fn products(layers: usize, m: usize, width: usize) -> String {
    let (rows, square) = (format!("f32[{m}, {width}]"), format!("f32[{width}, {width}]"));
    let mut lines = Vec::new();
    for layer in 0..layers {
        let read = if layer == 0 { "%x".to_owned() } else { format!("%{}", 2 * layer - 1) };
        lines.push(format!("  %{} = const #w{layer} : {square}", 2 * layer));
        lines.push(format!("  %{} = matmul {read}, %{} : {rows}", 2 * layer + 1, 2 * layer));
    }
    graph(&format!("%x: {rows}"), &rows, &lines)
}

/// Products of bytes with constants of bytes, and their sum.
fn products_of_bytes(count: usize, m: usize, width: usize) -> String {
    let mut lines = Vec::new();
    for i in 0..count {
        lines.push(format!("  %{} = const #w{i} : i8[{width}, {width}]", 2 * i));
        lines.push(format!("  %{} = matmul %x, %{} : i32[{m}, {width}]", 2 * i + 1, 2 * i));
    }
    for i in 1..count {
        let before = if i == 1 { 1 } else { 2 * count + i - 2 };
        lines.push(format!("  %{} = add %{before}, %{} : i32[{m}, {width}]", 2 * count + i - 1, 2 * i + 1));
    }
    graph(&format!("%x: u8[{m}, {width}]"), &format!("i32[{m}, {width}]"), &lines)
}

/// Batches of products of what was computed.
fn computed_products() -> String {
    let lines = [
        "  %0 = matmul %x, %z : f32[12, 256, 256]".to_owned(),
        "  %1 = matmul %0, %0 : f32[12, 256, 256]".to_owned(),
        "  %2 = matmul %1, %0 : f32[12, 256, 256]".to_owned(),
    ];
    graph("%x: f32[12, 256, 64], %z: f32[12, 64, 256]", "f32[12, 256, 256]", &lines)
}

/// One convolution of 3 by 3 after the other.
fn convolutions(layers: usize, channels: usize, size: usize, groups: usize) -> String {
    let images = format!("f32[1, {channels}, {size}, {size}]");
    let kernel = format!("f32[{channels}, {}, 3, 3]", channels / groups);
    let mut attributes = "pads_before = [1, 1], pads_after = [1, 1]".to_owned();
    if groups > 1 {
        attributes += &format!(", groups = {groups}");
    }
    let mut lines = Vec::new();
    for layer in 0..layers {
        let read = if layer == 0 { "%x".to_owned() } else { format!("%{}", 2 * layer - 1) };
        lines.push(format!("  %{} = const #w{layer} : {kernel}", 2 * layer));
        lines.push(format!("  %{} = conv {read}, %{} {{{attributes}}} : {images}", 2 * layer + 1, 2 * layer));
    }
    graph(&format!("%x: {images}"), &images, &lines)
}

/// One attention after the other.
fn attention(layers: usize, length: usize) -> String {
    let ty = format!("f32[1, 12, {length}, 64]");
    let line = |i: usize| {
        let query = if i == 0 { "%x".to_owned() } else { format!("%{}", i - 1) };
        format!("  %{i} = attention {query}, %k, %v {{scale = 0.125}} : {ty}")
    };
    let lines: Vec<String> = (0..layers).map(line).collect();
    graph(&format!("%x: {ty}, %k: {ty}, %v: {ty}"), &ty, &lines)
}

/// One operation after the other on two inputs, which become one loop nest.
fn elementwise(shape: &str, count: usize, op: impl Fn(usize) -> &'static str) -> String {
    let ty = format!("f32[{shape}]");
    let line = |i: usize| {
        let read = if i == 0 { "%x".to_owned() } else { format!("%{}", i - 1) };
        format!("  %{i} = {} {read}, %z : {ty}", op(i))
    };
    let lines: Vec<String> = (0..count).map(line).collect();
    graph(&format!("%x: {ty}, %z: {ty}"), &ty, &lines)
}

fn tanh(shape: &str, count: usize) -> String {
    let ty = format!("f32[{shape}]");
    let line = |i: usize| {
        let read = if i == 0 { "%x".to_owned() } else { format!("%{}", i - 1) };
        format!("  %{i} = tanh {read} : {ty}")
    };
    let lines: Vec<String> = (0..count).map(line).collect();
    graph(&format!("%x: {ty}"), &ty, &lines)
}

/// Small products of what was computed, one after the other: many steps that do next to nothing.
fn unfused(steps: usize, size: usize) -> String {
    let ty = format!("f32[{size}, {size}]");
    let line = |i: usize| {
        let read = if i == 0 { "%x".to_owned() } else { format!("%{}", i - 1) };
        format!("  %{i} = matmul {read}, %z : {ty}")
    };
    let lines: Vec<String> = (0..steps).map(line).collect();
    graph(&format!("%x: {ty}, %z: {ty}"), &ty, &lines)
}

/// Random contents of a named constant, of about the size that keeps products as large as what goes in.
fn contents(name: &str, ty: &TensorType) -> Option<margay_tensor::StoredTensor> {
    let extents = ty.extents()?;
    let stream = margay_tensor::random::stream_of(name);
    Some(random(ty.dtype, &extents, stream)?.into())
}

fn inputs(g: &Graph) -> Vec<(String, Tensor)> {
    let input = |(i, n): (usize, &margay_ir::NodeId)| {
        let margay_ir::Op::Input(input) = g.op(*n) else { return None };
        let tensor = random(input.ty.dtype, &input.ty.extents()?, 1000 + i as u64)?;
        Some((input.name.to_string(), tensor))
    };
    g.inputs().iter().enumerate().filter_map(input).collect()
}

fn random(dtype: DType, shape: &[usize], stream: u64) -> Option<Tensor> {
    let count: usize = shape.iter().product();
    let mut values = vec![0.0f32; count];
    Philox::new(0, stream).fill_normal_f32(0, &mut values);
    match dtype {
        DType::F32 => {
            let terms: usize = shape.iter().skip(1).product();
            let scale = 1.0 / (terms.max(1) as f32).sqrt();
            values.iter_mut().for_each(|v| *v *= scale);
            Tensor::from_slice(shape, &values).ok()
        }
        DType::I8 => {
            Tensor::from_slice(shape, &values.iter().map(|v| (v * 30.0) as i8).collect::<Vec<_>>()).ok()
        }
        DType::U8 => {
            Tensor::from_slice(shape, &values.iter().map(|v| (v * 30.0 + 128.0) as u8).collect::<Vec<_>>())
                .ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that is as some model says is found to be that.
    #[test]
    fn the_model_behind_the_times_is_found() {
        let target = "portable";
        let (_, builtin) = builtin_cost(target).unwrap();
        let mut real = builtin.clone();
        for (i, probe) in probes().iter().enumerate() {
            let number = builtin.get(probe.key).unwrap();
            let other = if probe.key == "thread-efficiency" { 0.8 } else { number * [1.4, 0.6, 1.1][i % 3] };
            real = real.with(probe.key, other).unwrap();
        }
        let limit = real.get("bandwidth.memory-gbps").unwrap() * 1.3;
        real = real.with(LIMIT, limit).unwrap();
        for (key, of) in [
            ("gflops.matmul-first-row", "gflops.matmul-packed"),
            ("gflops.matmul-int4-first-row", "gflops.matmul-int4"),
        ] {
            let share = real.get(of).unwrap() / builtin.get(of).unwrap();
            real = real.with(key, builtin.get(key).unwrap() * share).unwrap();
        }
        let probes = probes();
        let backend = costed(target, real.clone()).unwrap();
        let timed: Vec<Timed> = probes
            .iter()
            .map(|probe| {
                let g = text::parse(&probe.source, &contents).unwrap();
                let g = build::in_precision(g, probe.precision, &mut Dump::none()).unwrap();
                let bound = build::bind(&g, &Binding::new(), &*backend, &mut Dump::none()).unwrap();
                let program = margay_lower::lower(&bound, &*backend).unwrap();
                let threads = if probe.all_threads { 4 } else { 1 };
                let seconds = program.seconds(&*backend, threads);
                Timed { program, threads, seconds }
            })
            .collect();
        let found = fitted(&builtin, target, &probes, &timed).unwrap();
        for (probe, timed) in probes.iter().zip(&timed) {
            let [found_at, expected] = [&found, &real].map(|m| m.get(probe.key).unwrap());
            let predicted = timed.predicted(target, &found).unwrap();
            assert!(
                (predicted / timed.seconds - 1.0).abs() < 0.02,
                "{}: {predicted} {}",
                probe.key,
                timed.seconds
            );
            assert!(
                (found_at / expected - 1.0).abs() < 0.1,
                "{}: {found_at}, expected {expected}",
                probe.key
            );
        }
    }
}
