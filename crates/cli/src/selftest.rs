//! `margay selftest`: kernels of a device against the processor.
//!
//! `--json` prints `device`, `class`, and `cases`: a list of [`margay::SelftestResult`] with `family`, `kernel`, `shape`,
//! `error`, `limit`, `ms` and `problem`.

use std::path::PathBuf;

use margay::{Family, Kind, SelftestOptions, SelftestResult, selftest, write_selftest};

use crate::args::ThreadArgs;
use crate::error::Failure;
use crate::table::{Table, significant};
use crate::{Reply, json, note};

const JSON: &str = r#"With --json:
  {"device", "class", "cases": [{"family", "kernel", "shape", "error", "limit", "ms", "problem"}]}"#;

/// Compare kernels of a device with the processor: products, loops, reductions, attention and sketches.
///
/// Errors are relative to the greatest number of an output. Exit code 1: one is beyond its limit, or two runs gave different
/// bits. Each case is told on stderr when it is done.
#[derive(clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Args {
    /// Device: cuda, or cuda:1 for the second one; or emulated, without times.
    #[arg(long, value_name = "NAME[:NUMBER]", required_unless_present = "write")]
    device: Option<String>,
    /// Class of devices to compile for; later devices run it, too.
    #[arg(long, value_name = "NAME", default_value = "sm_80")]
    class: String,
    /// Families of kernels, such as loops or products [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    family: Vec<String>,
    /// Leave out large cases, as emulated does.
    #[arg(long)]
    small: bool,
    /// Take the code of the cases from a folder that --write filled, in place of compiling them.
    #[arg(long, value_name = "FOLDER", conflicts_with = "write")]
    kernels: Option<PathBuf>,
    /// Compile the cases into a folder, and run nothing.
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    if let Some(folder) = &args.write {
        write_selftest(folder, &args.class)?;
        note(format!("wrote the cases to {}", folder.display()));
        return Ok(Reply::default());
    }
    let device = args.device.clone().unwrap_or_default();
    let mut families = Vec::with_capacity(args.family.len());
    for name in &args.family {
        families.push(Family::from_name(name)?);
    }
    let options = SelftestOptions {
        device: device.clone(),
        class: args.class.clone(),
        families,
        small: args.small,
        kernels: args.kernels.clone(),
        threads: args.threads.get(),
    };
    let results = selftest(&options, &mut |result| note(line(result)))?;
    let wrong = results.iter().filter(|r| r.problem.is_some()).count();
    let failure = (wrong > 0).then(|| {
        Failure::new(Kind::Check, format!("{wrong} of {} cases are wrong on `{device}`", results.len()))
    });
    let text = match args.json {
        true => json(&serde_json::json!({ "device": device, "class": args.class, "cases": results }))?,
        false => table(&results),
    };
    Ok(Reply { text, failure })
}

/// A case on one line.
fn line(result: &SelftestResult) -> String {
    let found = result.error.map_or("not run".to_owned(), |e| format!("error {e:.1e}"));
    let ms = result.ms.map_or(String::new(), |ms| format!(", {} ms", significant(ms)));
    let problem = result.problem.as_ref().map_or(String::new(), |p| format!(": {p}"));
    format!("{}, {}: {found}{ms}{problem}", result.kernel, result.shape)
}

fn table(results: &[SelftestResult]) -> String {
    let timed = results.iter().any(|r| r.ms.is_some());
    let head = ["family", "kernel", "shape", ">error", ">limit", ">ms"];
    let mut table = Table::new(if timed { &head } else { &head[..5] });
    for r in results {
        let error = match (&r.problem, r.error) {
            (None, Some(e)) => format!("{e:.1e}"),
            (_, Some(e)) => format!("{e:.1e} !"),
            (_, None) => "not run !".to_owned(),
        };
        let cells = [
            r.family.name().to_owned(),
            r.kernel.to_owned(),
            r.shape.to_owned(),
            error,
            format!("{:.0e}", r.limit),
        ];
        let ms = timed.then(|| r.ms.map(significant).unwrap_or_default());
        table.row(cells.into_iter().chain(ms));
    }
    let problems = results.iter().filter_map(|r| Some((r, r.problem.as_ref()?)));
    let problems = problems.map(|(r, problem)| format!("! {}, {}: {problem}\n", r.kernel, r.shape));
    format!("{table}{}", problems.collect::<String>())
}
