//! `margay recover`: what sketching lost, learned back from the dense model.
//!
//! `--json` gives an object with `model`, `teacher`, `seed`, `trained` (numbers that could learn), `hidden` (names),
//! `samples` (`learned_from`, `held_out`; `lengths` that batches are cut to, null where padding is not cut), `before`,
//! `refitted`, `refined` and `after` (`error` and `measures` as pairs of name and number, of
//! which `about_mean_l2` is the relative error about the mean, averaged over outputs and batches; `refitted` and `refined` are null
//! where layers were not refitted, blocks not refined), `layers` (`name`, `before`, `after`, `refitted`), `blocks` (`name`,
//! `before`, `after`, `steps`), `steps`, `learning_rate`, `rate_test` (null, or `rate`, `improved`, `steps`), `restarts` (`step`, `learning_rate`), `stop`,
//! `divergence` (null, or why a step was no use), `history` (points: `step`, `seconds`, `loss`, `error`, `measures`),
//! `error` (of the result on the samples held out, as `compile` states it in `held_out`) and `seconds`.

use std::path::{Path, PathBuf};

use margay::{
    BlockReport, Dump, Evaluation, Hidden, RecoverOptions, RecoveredModel, Recovery, Trainable, doubts,
    samples_of,
};

use crate::args::{ErrorArgs, SharedArgs, ThreadArgs, at_least_one, dim, not_negative, positive};
use crate::device::LearningDevice;
use crate::error::Failure;
use crate::interrupt::{Interrupt, learned};
use crate::progress::{Bars, TrainingBar};
use crate::save::{check_distinct, check_history, check_writable, rescued, save_text};
use crate::table::{Table, bytes, count, significant};
use crate::train::rate_line;
use crate::{Reply, errors, json, memory, warn};

const AFTER: &str = r#"First each layer is refitted by itself, then those of each block learn together, then all of them. The best on held-out samples is kept.
Ctrl-C ends learning and keeps the best so far.

With --json:
  {"model", "teacher", "seed", "trained", "hidden", "samples": {"learned_from", "held_out", "lengths"},
   "before": {"error", "measures"}, "refitted", "refined", "after",
   "layers": [{"name", "before", "after", "refitted"}], "blocks": [{"name", "before", "after", "steps"}],
   "steps", "learning_rate", "rate_test": {"rate", "improved", "steps"}, "restarts": [{"step", "learning_rate"}],
   "stop", "divergence", "history": [{"step", "seconds", "loss", "error", "measures"}],
   "error": {"relative_l2", "centred_l2", "cosine", "samples", "mask", "outputs", "bounds"}, "seconds"}"#;

/// Let a sketched model learn from the dense one what it lost, without labels.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub(crate) struct Args {
    /// A sketched model.
    #[arg(value_name = "SKETCHED.onnx|ARTIFACT")]
    model: PathBuf,
    /// The dense model that it was made from.
    #[arg(long, value_name = "MODEL.onnx|ARTIFACT")]
    teacher: PathBuf,
    /// Samples of the model's inputs, by name; one row is one sample. The more the better.
    #[arg(long, value_name = "FILE.npz")]
    data: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    #[command(flatten)]
    learning: LearningArgs,
    /// Keep the state of learning in a file.
    #[arg(long, value_name = "FILE.safetensors")]
    checkpoint: Option<PathBuf>,
    /// Seconds between two checkpoints; a run that dies loses no more.
    #[arg(long, value_name = "S", default_value_t = 20.0, value_parser = not_negative, requires = "checkpoint")]
    checkpoint_seconds: f64,
    /// Go on from the checkpoint, if it is there.
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Write every evaluation as a line of JSON; with --resume behind those that are there.
    #[arg(long, value_name = "FILE.jsonl")]
    history: Option<PathBuf>,
    /// Write the recovered model as ONNX.
    #[arg(long, value_name = "OUT.onnx")]
    export: Option<PathBuf>,
    /// Write the recovered model as an artifact.
    #[arg(
        short,
        long,
        value_name = "OUT.margay",
        required_unless_present_any = ["export", "save_plan", "checkpoint", "history"]
    )]
    output: Option<PathBuf>,
    /// Write the plan of the recovered model.
    #[arg(long, value_name = "FILE.toml")]
    save_plan: Option<PathBuf>,
    /// Value of a dimension the model leaves open, for the artifact; one made from an artifact has the same as that.
    #[arg(long = "dim", value_name = "NAME=N[,N...]", value_parser = dim)]
    dims: Vec<(String, Vec<i64>)>,
    #[command(flatten)]
    device: LearningDevice,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// How to learn.
#[derive(clap::Args)]
struct LearningArgs {
    /// No longer than this, all in all. Without --steps, the schedule is made for this time.
    #[arg(long, value_name = "T", default_value_t = 600.0, value_parser = positive)]
    max_seconds: f64,
    /// So many steps of learning together.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// What is done, in this order: layers are refitted one by one; those of each block learn together; all learn together.
    #[arg(
        long,
        value_name = "layers,blocks,together",
        default_value = "layers,blocks,together",
        value_delimiter = ',',
        value_parser = ["layers", "blocks", "together"]
    )]
    stages: Vec<String>,
    /// As `--stages layers`.
    #[arg(long, conflicts_with_all = ["stages", "steps", "checkpoint"])]
    layers_only: bool,
    /// Samples of a step, where the model leaves its batch open.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    batch: usize,
    /// The largest learning rate of learning together; test finds one by a short test.
    #[arg(long, value_name = "RATE|test", default_value = "0.0002", value_parser = rate)]
    learning_rate: Rate,
    /// Values inside that are to agree besides the outputs, by the names of the nodes that compute them.
    #[arg(long, value_name = "NAMES|auto|none", default_value = "auto", value_delimiter = ',')]
    hidden: Vec<String>,
    /// What learns: factors with their biases, and projections around replaced attention; these and normalizations; all but
    /// embeddings.
    #[arg(long, value_name = "sketch|norms|all", default_value = "sketch", value_parser = train)]
    train: Trainable,
    #[command(flatten)]
    errors: ErrorArgs,
    /// The share of samples that is held out [default: the samples that `compile` held out, where the artifact was made with the
    /// same file; else an eighth].
    #[arg(long, value_name = "SHARE")]
    held_out: Option<f64>,
    /// How often held-out samples are evaluated.
    #[arg(long, value_name = "N", default_value_t = RecoverOptions::default().evaluations)]
    evaluations: u64,
    /// End after so many evaluations in a row without a new best.
    #[arg(long, value_name = "N")]
    patience: Option<u64>,
    /// Seed of the order of samples.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// A learning rate, or none where a test is to find it.
#[derive(Clone, Copy)]
struct Rate(Option<f64>);

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "test" => Ok(Rate(None)),
        number => positive(number)
            .map(|rate| Rate(Some(rate)))
            .map_err(|_| "expected a number above 0, or `test`".into()),
    }
}

fn train(text: &str) -> Result<Trainable, String> {
    let known: Vec<&str> = Trainable::ALL.iter().map(|(name, _)| *name).collect();
    let found = Trainable::ALL.iter().find(|(name, _)| *name == text).map(|(_, train)| *train);
    found.ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    memory::return_large_blocks();
    let written = [
        ("`-o`", args.output.as_deref()),
        ("`--export`", args.export.as_deref()),
        ("`--save-plan`", args.save_plan.as_deref()),
        ("`--checkpoint`", args.checkpoint.as_deref()),
        ("`--history`", args.history.as_deref()),
    ];
    written.iter().filter_map(|(_, path)| *path).try_for_each(check_writable)?;
    args.history.iter().try_for_each(|path| check_history(path, args.resume))?;
    let read = [
        ("the sketched model", Some(args.model.as_path())),
        ("`--teacher`", Some(&args.teacher)),
        ("`--data`", Some(&args.data)),
    ];
    check_distinct(&written, &read)?;

    let options = options(args)?;
    let recovery = Recovery::open(&args.model, &args.teacher, &args.dims)?;
    let samples = samples_of(&args.model, &args.data, args.shared.names(), &[])?;
    warn(&doubts(&samples));
    let recovered = {
        let bars = Bars::new();
        let mut bar = TrainingBar::new("error", Interrupt::listen()?, args.history.as_deref(), args.resume);
        learned(recovery.learn(&samples, &options, &bars, &mut bar))?
    };
    let model = recovery.finish(recovered, args.threads.get(), &Bars::new())?;
    let unwritten = write(args, &model);
    let text = match args.json {
        true => json(&model.report(args.learning.seed))?,
        false => summary(args, &model),
    };
    let failure = || model.recovered.fitted.as_ref().and_then(Failure::of_training);
    Ok(Reply { text, failure: unwritten.or_else(failure) })
}

/// Writes what was asked for, each file whatever becomes of the others; the first failure.
fn write(args: &Args, model: &RecoveredModel) -> Option<Failure> {
    let compiled = &model.compiled;
    let export = |path: &Path| Ok(compiled.export(path)?);
    let plan = |path: &Path| save_text(path, &compiled.plan.to_toml().map_err(margay::Error::from)?);
    let artifact = |path: &Path| Ok(compiled.write(path, false, &mut Dump::none())?);
    let exported = args.export.as_ref().and_then(|path| rescued(path, export).err());
    let planned = args.save_plan.as_ref().and_then(|path| rescued(path, plan).err());
    let written = args.output.as_ref().and_then(|path| rescued(path, artifact).err());
    exported.or(planned).or(written)
}

fn options(args: &Args) -> Result<RecoverOptions, Failure> {
    let l = &args.learning;
    let scope = l.errors.scope();
    let does = |stage: &str| l.stages.iter().any(|s| s == stage);
    Ok(RecoverOptions {
        max_seconds: l.max_seconds,
        steps: l.steps,
        batch: l.batch,
        learning_rate: l.learning_rate.0.unwrap_or(RecoverOptions::default().learning_rate),
        find_rate: l.learning_rate.0.is_none(),
        hidden: match l.hidden.as_slice() {
            [word] if word == "auto" => Hidden::Auto,
            [word] if word == "none" => Hidden::None,
            names => Hidden::Names(names.iter().map(|n| n.trim().to_owned()).collect()),
        },
        train: l.train,
        mask: scope.mask,
        outputs: scope.outputs,
        layers: does("layers"),
        blocks: !l.layers_only && does("blocks"),
        together: !l.layers_only && does("together"),
        held_out: l.held_out,
        patience: l.patience,
        evaluations: l.evaluations,
        seed: l.seed,
        checkpoint: args.checkpoint.clone(),
        checkpoint_seconds: args.checkpoint_seconds,
        resume: args.resume,
        threads: args.threads.get(),
        backend: args.device.backend()?,
        ..RecoverOptions::default()
    })
}

fn summary(args: &Args, model: &RecoveredModel) -> String {
    let (recovered, error) = (&model.recovered, &model.error);
    let mut table = Table::new(&[
        "on held-out samples",
        ">sketched",
        ">layers refitted",
        ">blocks refined",
        ">recovered",
    ]);
    for (i, (name, before)) in recovered.before.measures.iter().enumerate() {
        let of = |e: &Evaluation| e.measures.get(i).map_or_else(String::new, |(_, v)| significant(*v));
        let stage = |e: &Option<Evaluation>| e.as_ref().map_or_else(|| "-".into(), of);
        let (refitted, refined) = (stage(&recovered.refitted), stage(&recovered.refined));
        table.row([shown(name).into(), significant(*before), refitted, refined, of(&recovered.after)]);
    }
    let (learned_from, held_out) = (recovered.learned_from, recovered.held_out.rows());
    let mut text = format!(
        "{} numbers learned from {learned_from} samples, {held_out} held out, in {} s\n",
        count(recovered.trained as u64),
        significant(recovered.seconds)
    );
    if let Some(lengths) = &recovered.lengths {
        let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
        let list = lengths.join(", ");
        text += &format!("padding cut: samples of similar length learn together, at lengths of {list}\n");
    }
    let refitted = recovered.layers.iter().filter(|l| l.refitted).count();
    if !recovered.layers.is_empty() {
        text += &format!("{refitted} of {} layers refitted\n", recovered.layers.len());
    }
    if !recovered.blocks.is_empty() {
        let (before, after) = mean_errors(&recovered.blocks);
        let (blocks, before, after) = (recovered.blocks.len(), significant(before), significant(after));
        text += &format!("{blocks} blocks refined: mean error {before} -> {after}\n");
    }
    if recovered.interrupted && recovered.fitted.is_none() {
        text += "interrupted before all learned together\n";
    }
    if let Some(fitted) = &recovered.fitted {
        let (steps, best) = (fitted.steps, fitted.best().step);
        text += &format!("{steps} steps together, {}; best at step {best}\n", fitted.stop.text());
        text += &rate_line(fitted);
    }
    text += &format!("\n{table}\n");
    text += &format!("as `compile` states it: {}{}\n", errors::words(error), errors::uncounted(error));
    let outputs = errors::outputs(error);
    if !outputs.is_empty() {
        text += &outputs.to_string();
    }
    for path in [&args.output, &args.export, &args.save_plan].into_iter().flatten() {
        // One that could not be written is told of elsewhere.
        if let Ok(m) = std::fs::metadata(path) {
            text += &format!("wrote {} ({})\n", path.display(), bytes(m.len()));
        }
    }
    text
}

/// What a measure is called in a table.
fn shown(measure: &str) -> &str {
    match measure {
        "about_mean_l2" => "error about the mean, the same share for each output and batch",
        other => other,
    }
}

/// Before and after, about the means of what blocks end with.
fn mean_errors(blocks: &[BlockReport]) -> (f64, f64) {
    let count = blocks.len() as f64;
    let mean = |of: fn(&BlockReport) -> f64| blocks.iter().map(of).sum::<f64>() / count;
    (mean(|b| b.before), mean(|b| b.after))
}
