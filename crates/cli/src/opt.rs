//! `margay opt`: passes on the text form of a graph, one by one.
//!
//! Constants that the text only names are looked up in `consts.safetensors` beside the file, under the names the text
//! has for them; those that are not there are filled with random numbers that depend on the name alone.

use std::path::{Path, PathBuf};

use margay::{Dump, Error, Kind, Pipeline, read_graph};

use crate::error::{Failure, command_line};
use crate::save::save_text;
use crate::{Reply, note};

const SYNTAX: &str = "\
Passes are separated by commas. One that is configured has its configuration in braces, as `index.txt` of a dump shows \
it: bind-dims{N = 4, seq = 128}, apply-plan{plan.toml}, store-constants{int8}, make-trainable{fc.weight}, \
differentiate{output = loss, by = [fc.weight]}, recompute{max-saved-bytes = 40000}. Files are looked for beside the \
graph. @canonical, @sketched and @lowerable check that the graph is at that stage.";

/// Run passes on a graph in text form and print the result.
#[derive(clap::Args)]
#[command(after_help = SYNTAX)]
pub(crate) struct Args {
    /// A graph in text form, as --dump-dir writes it.
    #[arg(value_name = "FILE.ir")]
    graph: PathBuf,
    /// The passes, in order.
    #[arg(long, value_name = "PASS,PASS{...}", required = true)]
    passes: String,
    /// Write the result into a file instead of printing it.
    #[arg(short, long, value_name = "OUT.ir")]
    output: Option<PathBuf>,
    /// Write the graph after every pass, and its constants, into a folder.
    #[arg(long, value_name = "FOLDER")]
    dump_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let beside = args.graph.parent().unwrap_or(Path::new("")).to_path_buf();
    let file = |name: &str| {
        std::fs::read_to_string(beside.join(name)).map_err(|e| format!("cannot read `{name}`: {e}"))
    };
    let pipeline = Pipeline::read(&args.passes, &file).map_err(Failure::usage)?;
    let read = read_graph(&args.graph)?;
    if read.made_up > 0 {
        let (count, consts) = (read.made_up, read.consts.display());
        note(format!("{count} constants are not in `{consts}` and hold random numbers"));
    }
    let mut dump = match &args.dump_dir {
        Some(folder) => Dump::to(folder, &command_line())?,
        None => Dump::none(),
    };
    let mut g = read.graph;
    dump.graph("import", &g);
    let ran = dump.run(&pipeline, &mut g);
    dump.finish()?;
    for r in ran.map_err(failure)? {
        note(format!("{} at `{}`: {}", r.pass, r.at, r.message));
    }
    let text = g.to_string();
    match &args.output {
        None => Ok(text.into()),
        Some(output) => {
            save_text(output, &text)?;
            Ok(Reply::default())
        }
    }
}

/// A stage that was asked for and missed is a check that failed; types that a pass broke are our fault.
fn failure(error: Error) -> Failure {
    match error {
        Error::Pipeline { error, dumped } if error.fault.missed_stage().is_some() => {
            Failure::of_pipeline(Kind::Check, &error, dumped)
        }
        error => error.into(),
    }
}
