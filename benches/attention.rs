//! `margay-attention [--model MODEL.onnx --samples SAMPLES.npz] [--document FILE.md] [--lengths N,N,…]`: times of exact attention and
//! of the schemes in its place, and the errors of these on the heads of a model.
//!
//! Times are medians of interleaved runs on one thread, of one head of 64 numbers; beside each is the memory of its
//! session, and the relative error on operands that are normal random numbers. Heads are those of a model of token ids with the input `attention_mask`, on its
//! first samples as they are and on samples joined to [`JOINED`] tokens. Prints tables in Markdown, or puts them between the
//! marks of a document.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use margay_benches::session;
use margay_driver::{Model, Runner, Samples, backend, open};
use margay_ir::{Cx, Graph, Pass, text};
use margay_passes::ApplyPlan;
use margay_passes::sketch::{Context, Decompositions, HeadChoice, Site, read_plan, scheme, sites};
use margay_plan::Plan;
use margay_runtime::Session;
use margay_tensor::Tensor;

type Failure = Box<dyn std::error::Error>;

/// What is timed.
const TIMED: [&str; 8] = [
    "favor, features = 256",
    "favor, features = 256, kernel = \"relu\"",
    "nystrom, landmarks = 32",
    "nystrom, landmarks = 64",
    "local, window = 64",
    "local, window = 64, global = 1",
    "local, window = 64, global = 1, summary = \"means\"",
    "local, window = 64, summary = \"features\", features = 256",
];

/// What is tried on the heads of a model.
const TRIED: [&str; 19] = [
    "favor, features = 64",
    "favor, features = 256",
    "favor, features = 1024",
    "favor, features = 64, directions = \"fitted\"",
    "favor, features = 256, directions = \"fitted\"",
    "favor, features = 1024, directions = \"fitted\"",
    "nystrom, landmarks = 8",
    "nystrom, landmarks = 16",
    "nystrom, landmarks = 32",
    "nystrom, landmarks = 32, iterations = 12",
    "nystrom, landmarks = 64",
    "local, window = 4",
    "local, window = 8",
    "local, window = 16",
    "local, window = 8, global = 1",
    "local, window = 16, global = 1",
    "local, window = 8, global = 1, summary = \"means\"",
    "local, window = 16, global = 1, summary = \"means\"",
    "local, window = 32, global = 1, summary = \"means\"",
];

/// Limits of the relative error of a head.
const LIMITS: [f64; 3] = [0.1, 0.2, 0.5];
/// Samples that heads are measured on.
const SEQUENCES: usize = 16;
/// Tokens of a joined sample.
const JOINED: usize = 256;
/// Runs of each program, at least.
const RUNS: usize = 7;
const MARKS: [&str; 2] = ["<!-- tables: margay-attention -->", "<!-- end of tables -->"];

struct Arguments {
    model: Option<PathBuf>,
    samples: Option<PathBuf>,
    document: Option<PathBuf>,
    lengths: Vec<usize>,
}

fn main() -> Result<(), Failure> {
    let arguments = arguments()?;
    let mut tables = times(&arguments.lengths)?;
    if let (Some(model), Some(samples)) = (&arguments.model, &arguments.samples) {
        tables += &errors(&open(model)?, &Samples::open(samples)?)?;
    }
    match &arguments.document {
        None => print!("{tables}"),
        Some(path) => {
            let before = std::fs::read_to_string(path)?;
            let at = |mark: &str| before.find(mark).ok_or(format!("`{}` has no `{mark}`", path.display()));
            let [first, last] = MARKS;
            let (start, end) = (at(first)? + first.len(), at(last)?);
            std::fs::write(path, format!("{}\n\n{tables}\n{}", &before[..start], &before[end..]))?;
        }
    }
    Ok(())
}

fn arguments() -> Result<Arguments, Failure> {
    let lengths = vec![512, 1024, 2048, 4096, 8192, 16384, 32768];
    let mut found = Arguments { model: None, samples: None, document: None, lengths };
    let mut rest = std::env::args().skip(1);
    while let Some(word) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("`{word}` takes a value"))?;
        match word.as_str() {
            "--model" => found.model = Some(value.into()),
            "--samples" => found.samples = Some(value.into()),
            "--document" => found.document = Some(value.into()),
            "--lengths" => found.lengths = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            _ => return Err(format!("`{word}` is not known").into()),
        }
    }
    Ok(found)
}

/// What a plan with this choice for one site says.
fn plan(site: &str, choice: &str) -> Result<Plan, Failure> {
    let head = "version = 1\nmodel = \"\"\ntarget-cpu = \"\"\ncost-model = \"\"\nseed = 0";
    let (name, settings) = choice.split_once(", ").ok_or("a scheme with settings")?;
    let text = format!("[plan]\n{head}\n[modules]\n\"{site}\" = {{ scheme = \"{name}\", {settings} }}\n");
    Ok(read_plan(&text)?)
}

/// One head of exact attention.
fn exact(length: usize) -> Result<Graph, Failure> {
    let ty = format!("f32[1, 1, {length}, 64]");
    let source = format!(
        "graph @attention(%q: {ty}, %k: {ty}, %v: {ty}) -> (y: {ty}) {{
           %0 = attention %q, %k, %v {{scale = 0.125}} : {ty}  // att
           return %0
         }}"
    );
    Ok(text::parse(&source, &|_, _| None)?)
}

fn times(lengths: &[usize]) -> Result<String, Failure> {
    let names = || ["exact"].into_iter().chain(TIMED);
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut bytes: Vec<Vec<usize>> = Vec::new();
    let mut errors: Vec<f64> = Vec::new();
    for &length in lengths {
        let g = exact(length)?;
        let mut sessions = vec![session(&g)];
        for choice in TIMED {
            let mut g = g.clone();
            let mut cx = Cx::default();
            ApplyPlan::of(&plan("att", choice)?).run(&mut g, &mut cx)?;
            if let Some(remark) = cx.remarks.first() {
                return Err(format!("{choice}: {}", remark.message).into());
            }
            sessions.push(session(&g));
        }
        bytes.push(sessions.iter().map(Session::peak_bytes).collect());
        let x = |stream| margay_testkit::normal(&[1, 1, length, 64], 5, stream);
        let operands = [x(1), x(2), x(3)];
        let inputs: Vec<(&str, &Tensor)> = ["q", "k", "v"].into_iter().zip(&operands).collect();
        found.push(medians(&mut sessions, &inputs)?);
        let outputs = sessions.iter_mut().map(|session| {
            let y = session.run(&inputs)?.swap_remove(0).1;
            Ok::<_, Failure>(y.to_vec::<f32>()?)
        });
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        errors = outputs.iter().map(|y| relative(y, &outputs[0])).collect();
    }
    let mut table = String::from("Milliseconds of one head of 64 numbers, on one thread:\n\n| |");
    lengths.iter().try_for_each(|length| write!(table, " {length} |"))?;
    let last = lengths.last().copied().unwrap_or_default();
    writeln!(
        table,
        " greatest ratio of doubling | faster from | MiB at {last} | greatest ratio of doubling | error at {last} |"
    )?;
    writeln!(table, "|---|{}", "---:|".repeat(lengths.len() + 5))?;
    for (i, name) in names().enumerate() {
        write!(table, "| {} |", name.replace('"', ""))?;
        found.iter().try_for_each(|times| write!(table, " {:.3} |", 1e3 * times[i]))?;
        let ratio = found.windows(2).map(|pair| pair[1][i] / pair[0][i]).fold(0.0, f64::max);
        let faster = lengths.iter().zip(&found).find(|(_, times)| times[i] < times[0]);
        let faster = faster.map_or("–".to_owned(), |(length, _)| length.to_string());
        write!(table, " {ratio:.2} | {faster} |")?;
        let memory: Vec<f64> = bytes.iter().map(|of| of[i] as f64 / f64::from(1 << 20)).collect();
        let growth = memory.windows(2).map(|pair| pair[1] / pair[0]).fold(0.0, f64::max);
        let most = memory.last().copied().unwrap_or_default();
        writeln!(table, " {most:.1} | {growth:.2} | {:.2} |", errors[i])?;
    }
    Ok(table)
}

/// Seconds of each, the median over interleaved runs.
fn medians(sessions: &mut [Session], inputs: &[(&str, &Tensor)]) -> Result<Vec<f64>, Failure> {
    let mut all = vec![Vec::new(); sessions.len()];
    // The first round is not counted.
    for round in 0..=RUNS {
        for (session, times) in sessions.iter_mut().zip(&mut all) {
            let start = Instant::now();
            session.run_in_place(inputs)?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    all.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(all.iter().map(|times| times[times.len() / 2]).collect())
}

/// The root of the squared error over the squared norm about the mean of each of 64 columns.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let rows = expected.len() / 64;
    let column =
        |y: &[f32], j: usize| y.iter().skip(j).step_by(64).map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (mut error, mut norm) = (0.0, 0.0);
    for j in 0..64 {
        let (f, e) = (column(found, j), column(expected, j));
        let mean = e.iter().sum::<f64>() / rows as f64;
        error += f.iter().zip(&e).map(|(f, e)| (f - e).powi(2)).sum::<f64>();
        norm += e.iter().map(|e| (e - mean).powi(2)).sum::<f64>();
    }
    (error / norm).sqrt()
}

fn errors(model: &Model, samples: &Samples) -> Result<String, Failure> {
    let mut table = String::new();
    let rows: Vec<usize> = (0..SEQUENCES).collect();
    let short = samples.pick(&rows)?;
    for (what, inputs) in [
        (format!("{} tokens, padding included", short[0].1.shape()[1]), short),
        (format!("joined to {JOINED} tokens"), joined(samples)?),
    ] {
        let seen = seen(model, inputs)?;
        let heads: usize = seen.iter().map(|(_, operands)| operands[0].shape()[1]).sum();
        writeln!(table, "\nHeads of {}, {SEQUENCES} passages, {what}:\n", model.graph.name())?;
        write!(table, "| | relative error |")?;
        LIMITS.iter().try_for_each(|limit| write!(table, " heads within {limit} |"))?;
        writeln!(table, "\n|---|---:|{}", "---:|".repeat(LIMITS.len()))?;
        for choice in TRIED {
            let (mut error, mut within) = (Vec::new(), vec![0; LIMITS.len()]);
            for (site, operands) in &seen {
                error.push(measured(model, site, operands, choice, &mut within)?);
            }
            let mean = (error.iter().sum::<f64>() / error.len() as f64).sqrt();
            write!(table, "| {} | {mean:.2} |", choice.replace('"', ""))?;
            within.iter().try_for_each(|count| write!(table, " {count} of {heads} |"))?;
            writeln!(table)?;
        }
    }
    Ok(table)
}

/// The squared error of a site, and how many of its heads are within each limit.
fn measured(
    model: &Model,
    site: &Site,
    operands: &[Tensor],
    choice: &str,
    within: &mut [usize],
) -> Result<f64, Failure> {
    let of =
        |choice: &str| plan(&site.name, choice)?.sites.remove(&site.name).ok_or(Failure::from("no choice"));
    let all = of(choice)?;
    let context = Context {
        graph: &model.graph,
        site,
        moments: None,
        samples: Some(&halves(operands)?),
        metric: None,
        decompositions: &Decompositions::default(),
        seed: 0,
    };
    let fitted = scheme(&all.scheme).ok_or("no scheme")?.fit(&context)?;
    let heads = operands[0].shape()[1];
    for (limit, count) in LIMITS.iter().zip(within) {
        let limited = of(&format!("{choice}, limit = {limit:?}"))?;
        let chosen: HeadChoice = fitted.resolved(&limited.settings)?.settings.read()?;
        *count += chosen.heads.map_or(heads, |within| within.len());
    }
    Ok(fitted.squared_error(&all.settings)?)
}

/// Operands of half of the samples each: what a run costs to measure is limited.
fn halves(operands: &[Tensor]) -> Result<[Vec<Tensor>; 2], Failure> {
    let half = |second: usize| -> Result<Vec<Tensor>, Failure> {
        let part = |t: &Tensor| {
            if t.shape()[0] != SEQUENCES {
                return Ok(t.clone());
            }
            let values = t.to_vec::<f32>()?;
            let mut shape = t.shape().to_vec();
            shape[0] = SEQUENCES / 2;
            let size = values.len() / 2;
            Ok(Tensor::from_slice(&shape, &values[second * size..][..size])?)
        };
        operands.iter().map(part).collect()
    };
    Ok([half(0)?, half(1)?])
}

/// The sites of attention with what their operands are.
fn seen(model: &Model, inputs: Vec<(String, Tensor)>) -> Result<Vec<(Site, Vec<Tensor>)>, Failure> {
    let found: Vec<Site> = sites(&model.graph).into_iter().filter(|site| site.kind == "attention").collect();
    let mut g = model.graph.clone();
    g.set_outputs(vec![]);
    for (i, operand) in found.iter().flat_map(|site| &site.samples).enumerate() {
        g.add_output(&format!("operand{i}"), *operand);
    }
    g.remove_dead();
    let mut values = Runner::new(g, &backend::native(), 1).run(&inputs)?.into_iter().map(|(_, t)| t);
    let with_operands = |site: Site| {
        let operands = values.by_ref().take(site.samples.len()).collect();
        (site, operands)
    };
    Ok(found.into_iter().map(with_operands).collect())
}

/// Token ids of samples one after the other, without padding.
fn joined(samples: &Samples) -> Result<Vec<(String, Tensor)>, Failure> {
    let array = |name: &str| {
        let found = samples.arrays().iter().find(|(n, _)| n == name);
        found.ok_or(format!("the samples have no `{name}`"))?.1.to_vec::<i64>().map_err(|e| e.to_string())
    };
    let (ids, mask) = (array("input_ids")?, array("attention_mask")?);
    let kept: Vec<i64> = ids.into_iter().zip(&mask).filter(|(_, m)| **m != 0).map(|(id, _)| id).collect();
    let tokens = kept.get(..SEQUENCES * JOINED).ok_or(format!("{} tokens in all", kept.len()))?;
    let shape = [SEQUENCES, JOINED];
    Ok(vec![
        ("input_ids".to_owned(), Tensor::from_slice(&shape, tokens)?),
        ("attention_mask".to_owned(), Tensor::from_slice(&shape, &vec![1i64; tokens.len()])?),
    ])
}
