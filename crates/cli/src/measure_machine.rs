//! `margay measure-machine`: rates of this machine, for predicted times.
//!
//! `--json` prints [`margay::machine::Machine`]: `target`, `name`, `threads`, and `rates`: objects with `key`, `builtin`,
//! `measured`, `ms`, `builtin_ms` and `predicted_ms`.

use std::path::PathBuf;

use margay::machine::{Machine, measure};

use crate::args::{ThreadArgs, positive};
use crate::error::Failure;
use crate::progress::Bars;
use crate::save::{check_writable, save_text};
use crate::table::{Table, significant};
use crate::{Reply, json};

const JSON: &str = r#"With --json:
  {"target", "name", "threads",
   "rates": [{"key", "builtin", "measured", "ms", "builtin_ms", "predicted_ms"}]}"#;

/// Measure the rates of this machine that times are predicted by, in about half a minute.
///
/// Each number is set so that a program which mostly does what it counts is predicted to take as long as it took. Run it
/// while the machine does nothing else. The file is for `--cost-model` of `compile`, `explain`, `pareto` and `bench`.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// The file to write.
    #[arg(short, long, value_name = "OUT.toml")]
    output: PathBuf,
    /// Processor class whose kernels are measured.
    #[arg(long, value_name = "NAME", default_value = "native")]
    target_cpu: String,
    /// Seconds for each of its 16 programs.
    #[arg(long, value_name = "S", default_value_t = 1.2, value_parser = positive)]
    seconds: f64,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    check_writable(&args.output)?;
    let machine = measure(&args.target_cpu, args.threads.get(), args.seconds, &Bars::new())?;
    save_text(&args.output, &machine.cost_model)?;
    Ok(if args.json { json(&machine)? } else { text(&machine, args) }.into())
}

fn text(machine: &Machine, args: &Args) -> String {
    let mut table = Table::new(&[
        "number",
        ">of the class",
        ">measured",
        ">ms of its program",
        ">predicted before",
        ">predicted now",
    ]);
    for rate in &machine.rates {
        table.row([
            rate.key.to_owned(),
            significant(rate.builtin),
            significant(rate.measured),
            significant(rate.ms),
            significant(rate.builtin_ms),
            significant(rate.predicted_ms),
        ]);
    }
    let (name, threads, path) = (&machine.name, machine.threads, args.output.display());
    format!("{name}, all threads: {threads}\n\n{table}\nwrote {path}\n")
}
