//! The targets of `hostile` from the command line, without a fuzzer that sees which code runs.
//!
//! ```text
//! cargo run --release -p margay-tests --example hostile_run -- seeds FOLDER
//! cargo run --release -p margay-tests --example hostile_run -- run TARGET SECONDS STREAM [FOLDER]
//! cargo run --release -p margay-tests --example hostile_run -- file TARGET FILE
//! ```
//!
//! `seeds` writes a folder for each target and a file for each of its seeds, named by its contents. `run` mutates seeds, and
//! what was accepted of the mutations, for so many seconds, from random stream `STREAM` on; inputs at fault are written into
//! the folder. `file` runs one file.

use std::io::{Error, Result};
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use margay_tests::hostile::{Draw, TARGETS, target};

/// The longest input that is made.
const MAX_LEN: usize = 1 << 16;

/// Inputs that take longer are reported.
const MAX_TIME: Duration = Duration::from_secs(2);

/// Accepted mutations that are kept, at most.
const MAX_KEPT: usize = 20_000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["seeds", folder] => seeds(Path::new(folder)),
        ["run", name, seconds, stream] => run(name, number(seconds)?, number(stream)?, Path::new(".")),
        ["run", name, seconds, stream, folder] => {
            run(name, number(seconds)?, number(stream)?, Path::new(folder))
        }
        ["file", name, file] => {
            let accepted = (target(name).run)(&std::fs::read(file)?);
            println!("{}", if accepted { "accepted" } else { "refused" });
            Ok(())
        }
        _ => Err(Error::other("expected seeds FOLDER, run TARGET SECONDS STREAM, or file TARGET FILE")),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| Error::other(format!("`{text}` is not a number")))
}

fn name_of(input: &[u8]) -> String {
    blake3::hash(input).to_hex()[..16].to_owned()
}

fn seeds(folder: &Path) -> Result<()> {
    for target in &TARGETS {
        let folder = folder.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for seed in (target.seeds)() {
            std::fs::write(folder.join(name_of(&seed)), seed)?;
        }
    }
    Ok(())
}

fn run(name: &str, seconds: u64, first: u64, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let target = target(name);
    let mut inputs = (target.seeds)();
    let seeds = inputs.len();
    let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
    let (mut executions, mut accepted, mut faults) = (0u64, 0u64, 0u64);
    while start.elapsed() < limit {
        let mut draw = Draw::new(first + executions);
        let input = target.mutate(&inputs[draw.below(inputs.len())], first + executions, MAX_LEN);
        executions += 1;
        // There for whoever looks after a crash that cannot be caught.
        let running = folder.join(format!("{name}-running"));
        std::fs::write(&running, &input)?;
        let since = Instant::now();
        let found = catch_unwind(|| (target.run)(&input));
        let late = since.elapsed() > MAX_TIME;
        if found.is_err() || late {
            faults += 1;
            println!("{name}: {:?}, {}", since.elapsed(), name_of(&input));
            std::fs::rename(&running, folder.join(format!("{name}-{}", name_of(&input))))?;
        }
        if let Ok(true) = found {
            accepted += 1;
            // Changes add up: what was accepted is changed again.
            match inputs.len() < seeds + MAX_KEPT {
                true => inputs.push(input),
                false => {
                    let at = seeds + draw.below(MAX_KEPT);
                    inputs[at] = input;
                }
            }
        }
    }
    println!(
        "{name}: {executions} executions, {accepted} accepted, {faults} faults in {:?}",
        start.elapsed()
    );
    Ok(())
}
