//! `margay-steps [NAME…] [--threads N] [--runs N] [--layers N] [--steps] [--program]`: speed of compiled training steps,
//! forward and backward, with weights as inputs.
//!
//! Names are `encoder` (as BERT-base, 8 sequences of 128 tokens), `linear` (8192 by 8192, 32 rows), `thin-linear` (the
//! same as two products of inner extent 32) and `convnet` (the demo, 64 pictures); all of them if none is given. Per step
//! it prints the best time of some runs, by the clock and in processor time of all threads, the operations of the kernel
//! calls, how they relate to the fused multiply-adds of this machine at this time, and the bytes of intermediate results.
//! With `--steps` the slowest kinds of steps follow; with `--program` the program.

mod models;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use margay_benches::fma::operations_per_second;
use margay_driver::{backend, build};
use margay_lower::lower;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, Tensor};

use models::Step;

struct Arguments {
    names: Vec<String>,
    threads: usize,
    runs: usize,
    layers: usize,
    steps: bool,
    program: bool,
}

const NAMES: [&str; 4] = ["encoder", "linear", "thin-linear", "convnet"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    for name in &arguments.names {
        let step = match name.as_str() {
            "encoder" => models::encoder(arguments.layers, 8, 128)?,
            "linear" => models::linear(8192, 32)?,
            "thin-linear" => models::thin_linear(8192, 32, 16)?,
            "convnet" => models::model(&margay_benches::demo(), 64)?,
            other => return Err(format!("`{other}` is none of {NAMES:?}").into()),
        };
        report(name, &step, &arguments)?;
    }
    Ok(())
}

fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut found =
        Arguments { names: Vec::new(), threads: 1, runs: 5, layers: 12, steps: false, program: false };
    let mut rest = std::env::args().skip(1);
    while let Some(word) = rest.next() {
        let mut number = || -> Result<usize, Box<dyn std::error::Error>> {
            Ok(rest.next().ok_or_else(|| format!("`{word}` takes a number"))?.parse()?)
        };
        match word.as_str() {
            "--threads" => found.threads = number()?,
            "--runs" => found.runs = number()?,
            "--layers" => found.layers = number()?,
            "--steps" => found.steps = true,
            "--program" => found.program = true,
            _ => found.names.push(word),
        }
    }
    if found.names.is_empty() {
        found.names = NAMES.map(String::from).to_vec();
    }
    Ok(found)
}

fn report(name: &str, step: &Step, arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let backend = &*backend::native();
    let bound = build::bind(&step.graph, &Binding::new(), &mut margay_driver::Dump::none())?;
    let program = lower(&bound, backend)?;
    if arguments.program {
        println!("{program}");
    }
    let executable = build::jit(&step.graph, &Binding::new(), backend)?;
    let mut session = Session::new(&executable, SessionOptions { threads: arguments.threads })?;
    let inputs = models::inputs(step);
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let _ = session.run_in_place(&inputs)?;
    let (mut wall, mut cpu) = (f64::INFINITY, f64::INFINITY);
    let mut peak = operations_per_second(arguments.threads);
    for _ in 0..arguments.runs {
        let (start, before) = (Instant::now(), processor_time());
        let _ = session.run_in_place(&inputs)?;
        wall = wall.min(start.elapsed().as_secs_f64());
        cpu = cpu.min((processor_time() - before).as_secs_f64());
    }
    peak = peak.max(operations_per_second(arguments.threads));
    // One thread computes for as long as the processor serves it, whatever else runs.
    let seconds = if arguments.threads == 1 { cpu } else { wall };
    let flops = program.flops() as f64;
    println!(
        "{name}: {:.2} ms ({:.2} ms of processor time) with {} threads; {:.2} GFLOP at {:.1} GFLOP/s, {:.1}% of {:.0}; \
         arena {:.1} MB",
        1e3 * wall,
        1e3 * cpu,
        arguments.threads,
        1e-9 * flops,
        1e-9 * flops / seconds,
        100.0 * flops / seconds / peak,
        1e-9 * peak,
        1e-6 * program.arena_bytes as f64
    );
    if arguments.steps {
        print_steps(&mut session, &inputs, arguments.runs, peak)?;
    }
    Ok(())
}

/// Processor time of all threads of this process.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every system that the benches are for; `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The kinds of steps that take most of the time: steps that run the same work under names that differ in numbers.
fn print_steps(
    session: &mut Session,
    inputs: &[(&str, &Tensor)],
    runs: usize,
    peak: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut best = session.profile(inputs)?;
    for _ in 1..runs {
        for (known, (_, again)) in best.iter_mut().zip(session.profile(inputs)?) {
            known.1 = known.1.min(again);
        }
    }
    let mut kinds: HashMap<(String, String), (usize, f64, u64, u64)> = HashMap::new();
    for (note, time) in best {
        let label: String = note.label.chars().filter(|c| !c.is_ascii_digit()).collect();
        let kind = kinds.entry((note.work, label)).or_default();
        kind.0 += 1;
        kind.1 += time.as_secs_f64();
        kind.2 += note.flops;
        kind.3 += note.bytes;
    }
    let total: f64 = kinds.values().map(|k| k.1).sum();
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!("{:>6} {:>9} {:>7} {:>7} {:>6}  work: nodes", "share", "ms", "count", "% peak", "GB/s");
    for ((work, label), (count, seconds, flops, bytes)) in kinds.into_iter().take(40) {
        println!(
            "{:>5.1}% {:>9.3} {:>7} {:>7.1} {:>6.1}  {work}: {}",
            100.0 * seconds / total,
            1e3 * seconds,
            count,
            100.0 * flops as f64 / seconds / peak,
            1e-9 * bytes as f64 / seconds,
            label.chars().take(120).collect::<String>()
        );
    }
    Ok(())
}
