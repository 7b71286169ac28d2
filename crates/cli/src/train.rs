//! `margay train`: a model trained on samples with labels.
//!
//! `--json` gives an object with `model`, `loss`, `optimizer`, `output`, `parameters` (numbers trained), `dropout` (nodes at which training dropped elements), `stored` and
//! `dense_stored` (numbers in all constants, of the trained model and of the one without sketches), `samples` (`trained`,
//! `held_out`), `steps`, `seconds`, `learning_rate`, `rate_test` (null, or `rate`, `improved`, `steps`), `rank_changes` (choices
//! of ranks: `number`, `step`, `ranks` as pairs of layer and rank, `numbers`, `bound`, `loss_before`, `loss_after`), `stop`, `divergence` (null, or why a step was no use), `first` and `best` (points: `step`, `seconds`, `loss` of training since the
//! point before, `error` on held-out samples, `measures` as pairs of name and number), `history` (all points), `memory`
//! (`parameter_bytes`, `state_bytes`, `arena_bytes`, `saved_bytes`, `constant_bytes`, `session_bytes`) and `seed`.

mod sketches;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use margay::{
    CompileOptions, Dropout, FitOptions, Fitted, Length, Masking, Model, Objective, Optimizer, RankChange,
    RateTest, Samples, Schedule, Selection, Supervised, TrainedModel, Training, Update, doubts, export_graph,
    is_array_file, open_for_training, read_labels, samples_of, training_batch, vocabulary,
};

use crate::args::{SharedArgs, ThreadArgs, at_least_one, dim, not_negative, positive};
use crate::device::LearningDevice;
use crate::error::Failure;
use crate::interrupt::{Interrupt, learned};
use crate::progress::TrainingBar;
use crate::save::{check_distinct, check_history, check_writable, rescued};
use crate::table::{Table, bytes, count, percent, significant};
use crate::{Reply, json, note, warn};

const AFTER: &str = r#"Ctrl-C ends training and keeps the best parameters so far. The best are those with the smallest loss
on held-out samples.

With --json:
  {"model", "loss", "optimizer", "output", "parameters", "dropout", "stored", "dense_stored",
   "samples": {"trained", "held_out"}, "steps", "seconds", "learning_rate",
   "rate_test": {"rate", "improved", "steps"},
   "rank_changes": [{"number", "step", "ranks", "numbers", "bound", "loss_before", "loss_after"}],
   "stop", "divergence", "first", "best",
   "history": [{"step", "seconds", "loss", "error", "measures"}],
   "memory": {"parameter_bytes", "state_bytes", "arena_bytes", "saved_bytes", "constant_bytes",
              "session_bytes"}, "seed"}"#;

/// Train a model on samples with labels.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub(crate) struct Args {
    /// An ONNX file, or an artifact that carries its graph.
    #[arg(value_name = "MODEL.onnx|ARTIFACT")]
    model: PathBuf,
    /// Samples of the model's inputs, by name; one row is one sample.
    #[arg(long, value_name = "FILE.npz")]
    data: PathBuf,
    #[command(flatten)]
    shared: SharedArgs,
    /// The labels: the name of an array in the data, or a file of one array. Integers for cross-entropy, where -100 does
    /// not count; else numbers like the output.
    #[arg(long, value_name = "NAME|FILE.npy|FILE.npz")]
    labels: Option<String>,
    /// What is to become small.
    #[arg(long, value_name = "LOSS", default_value = "cross-entropy")]
    loss: Loss,
    /// The output that is trained, where the model has several.
    #[arg(long, value_name = "NAME")]
    output_name: Option<String>,
    /// An input of the model that says how much each row counts, such as an attention mask.
    #[arg(long, value_name = "INPUT")]
    mask: Option<String>,
    /// What is trained: names of constants, in which * stands for any text, or all that have a name and several elements.
    #[arg(long, value_name = "NAMES|all", default_value = "all", value_delimiter = ',')]
    train: Vec<String>,
    /// Put a fresh linear layer for so many classes behind the output that is trained; its constants are head.weight and
    /// head.bias.
    #[arg(long, value_name = "CLASSES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    head: Option<u32>,
    /// What is dropped in training steps: what the model's Dropout nodes say, nothing, or so large a share at each of them.
    #[arg(long, value_name = "model|none|SHARE", default_value = "model", value_parser = dropout)]
    dropout: Dropout,
    /// Begin with random parameters instead of those of the model.
    #[arg(long)]
    init: bool,
    #[command(flatten)]
    sketch: sketches::SketchArgs,
    #[command(flatten)]
    masked: MaskedArgs,
    #[command(flatten)]
    update: UpdateArgs,
    #[command(flatten)]
    length: LengthArgs,
    /// The share of samples that is held out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    held_out: f64,
    /// Keep at most so many bytes of a step's forward pass for its backward pass; the rest is computed twice.
    #[arg(long, value_name = "N")]
    max_saved_bytes: Option<u64>,
    /// Keep the state of training in a file.
    #[arg(long, value_name = "FILE.safetensors")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint, if it is there.
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Write every evaluation as a line of JSON; with --resume behind those that are there.
    #[arg(long, value_name = "FILE.jsonl")]
    history: Option<PathBuf>,
    /// Write the trained model as ONNX.
    #[arg(long, value_name = "OUT.onnx")]
    export: Option<PathBuf>,
    /// Write the trained model as an artifact.
    #[arg(
        short,
        long,
        value_name = "OUT.margay",
        required_unless_present_any = ["export", "checkpoint", "history"]
    )]
    output: Option<PathBuf>,
    /// Value of a dimension the model leaves open, for the artifact.
    #[arg(long = "dim", value_name = "NAME=N[,N...]", value_parser = dim, requires = "output")]
    dims: Vec<(String, Vec<i64>)>,
    #[command(flatten)]
    device: LearningDevice,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Masked language models.
#[derive(clap::Args)]
struct MaskedArgs {
    /// With --loss masked-lm: the input that holds tokens.
    #[arg(long, value_name = "INPUT", default_value = "input_ids")]
    tokens: String,
    /// With --loss masked-lm: the token that stands in for a masked one.
    #[arg(long, value_name = "ID", required_if_eq("loss", "masked-lm"))]
    mask_token: Option<i64>,
    /// With --loss masked-lm: tokens that are never masked, such as padding and separators.
    #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
    special_tokens: Vec<i64>,
}

/// How parameters follow gradients.
#[derive(clap::Args)]
struct UpdateArgs {
    /// The rule.
    #[arg(long, value_name = "RULE", default_value = "adamw")]
    optimizer: Rule,
    /// The largest learning rate [default: what a short test finds; 0.001 where training is too short for one].
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// How the learning rate goes after the warm-up.
    #[arg(long, value_name = "SCHEDULE", default_value = "cosine")]
    schedule: Decay,
    /// The share of all steps in which the learning rate grows.
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    warm_up: f64,
    /// The largest norm of all gradients together.
    #[arg(long, value_name = "NORM", value_parser = positive)]
    clip: Option<f64>,
    /// Decay of weights, but not of biases, with adamw.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = not_negative)]
    weight_decay: f64,
    /// The share of the last change that sgd keeps.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, value_parser = not_negative)]
    momentum: f64,
}

/// How long and in which order.
#[derive(clap::Args)]
struct LengthArgs {
    /// Samples of a step [default: what the model takes, or 32].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    batch: Option<usize>,
    /// So many times through all samples [default: 1, or as the time allows].
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "steps")]
    epochs: Option<f64>,
    /// So many steps.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// No longer than this. Without --epochs and --steps, the schedule is made for this time.
    #[arg(long, value_name = "T", value_parser = positive)]
    max_seconds: Option<f64>,
    /// How often held-out samples are evaluated.
    #[arg(long, value_name = "N", default_value_t = 20)]
    evaluations: u64,
    /// End after so many evaluations in a row without a new best.
    #[arg(long, value_name = "N")]
    patience: Option<u64>,
    /// Seed of the order of samples, of masks and of --init.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Loss {
    CrossEntropy,
    Mse,
    Cosine,
    MaskedLm,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    Adam,
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Decay {
    Constant,
    Cosine,
}

pub(crate) fn run(args: &Args) -> Result<Reply, Failure> {
    let written = [
        ("`-o`", args.output.as_deref()),
        ("`--export`", args.export.as_deref()),
        ("`--checkpoint`", args.checkpoint.as_deref()),
        ("`--history`", args.history.as_deref()),
    ];
    written.iter().filter_map(|(_, path)| *path).try_for_each(check_writable)?;
    args.history.iter().try_for_each(|path| check_history(path, args.resume))?;
    let label_file = args.labels.as_deref().filter(|text| is_array_file(text)).map(Path::new);
    let read = [
        ("the model", Some(args.model.as_path())),
        ("`--data`", Some(&args.data)),
        ("`--labels`", label_file),
    ];
    check_distinct(&written, &read)?;

    let source = open_for_training(&args.model, args.dropout)?;
    let name = args.labels.as_deref().filter(|text| !is_array_file(text));
    let samples =
        samples_of(&args.model, &args.data, args.shared.names(), &name.into_iter().collect::<Vec<_>>())?;
    warn(&source.warnings);
    warn(&doubts(&samples));
    let labels = match &args.labels {
        Some(text) => Some(read_labels(text, &samples)?),
        None => None,
    };
    let training = {
        let head = args.head.map(|classes| classes as usize);
        let sketches = args.sketch.sketches(args.length.seed, args.init)?;
        let options = options(args, &source, &samples)?;
        Training::new(&source, options, head, args.init, sketches.as_ref(), args.sketch.redraw())?
    };
    training.remarks.iter().for_each(|r| note(format!("`{}`: {}", r.at, r.message)));
    let trained = {
        let mut bar = TrainingBar::new("loss", Interrupt::listen()?, args.history.as_deref(), args.resume);
        learned(training.train(&samples, labels.as_ref(), &mut bar))?
    };
    let unwritten = write(args, &trained);
    let text = if args.json { json(&trained.report())? } else { summary(args, &trained) };
    Ok(Reply { text, failure: unwritten.or_else(|| Failure::of_training(&trained.trained.fitted)) })
}

/// Reads what is dropped.
fn dropout(text: &str) -> Result<Dropout, String> {
    match (text, text.parse::<f64>()) {
        ("model", _) => Ok(Dropout::Model),
        ("none", _) => Ok(Dropout::None),
        (_, Ok(ratio)) if (0.0..1.0).contains(&ratio) => Ok(Dropout::Ratio(ratio)),
        _ => Err("expected model, none, or a share of at least 0 and below 1".into()),
    }
}

fn options(args: &Args, source: &Model, samples: &Samples) -> Result<Supervised, Failure> {
    let (length, u) = (&args.length, &args.update);
    let optimizer = match (u.optimizer, Optimizer::ADAMW) {
        (Rule::Sgd, _) => Optimizer::Sgd { momentum: u.momentum },
        (Rule::Adamw, Optimizer::AdamW { betas, epsilon, .. }) => {
            Optimizer::AdamW { betas, epsilon, weight_decay: u.weight_decay }
        }
        _ => Optimizer::ADAM,
    };
    let schedule = match u.schedule {
        Decay::Constant => Schedule::Constant { warm_up: u.warm_up },
        Decay::Cosine => Schedule::Cosine { warm_up: u.warm_up, floor: 0.0 },
    };
    let (long, limit) = match (length.steps, length.epochs, length.max_seconds) {
        (Some(n), _, limit) => (Length::Steps(n), limit),
        (_, Some(n), limit) => (Length::Epochs(n), limit),
        (_, _, Some(seconds)) => (Length::Seconds(seconds), None),
        _ => (Length::Epochs(1.0), None),
    };
    Ok(Supervised {
        objective: match args.loss {
            Loss::CrossEntropy => Objective::CrossEntropy,
            Loss::Mse => Objective::Mse,
            Loss::Cosine => Objective::Cosine,
            Loss::MaskedLm => masked_lm(args, source)?,
        },
        output: args.output_name.clone(),
        weights: args.mask.clone(),
        selection: match args.train.as_slice() {
            [all] if all == "all" => Selection::All,
            names => Selection::Named(names.iter().map(|n| n.trim().to_string()).collect()),
        },
        update: Update {
            optimizer,
            learning_rate: u.learning_rate.unwrap_or(DEFAULT_RATE),
            schedule,
            clip: u.clip,
        },
        fit: FitOptions {
            length: long,
            max_seconds: limit,
            find_rate: u.learning_rate.is_none(),
            batch: length.batch.unwrap_or_else(|| training_batch(source, samples)),
            seed: length.seed,
            evaluations: length.evaluations,
            patience: length.patience,
            checkpoint: args.checkpoint.clone(),
            resume: args.resume,
            ..FitOptions::default()
        },
        held_out: args.held_out,
        ranks: args.sketch.ranks()?,
        redraw: None,
        max_saved_bytes: args.max_saved_bytes,
        threads: args.threads.get(),
        backend: args.device.backend()?,
    })
}

/// The learning rate where nobody gives one and no test finds one.
pub(crate) const DEFAULT_RATE: f64 = 1e-3;

/// Says which learning rate was used, and why.
pub(crate) fn rate_line(fitted: &Fitted) -> String {
    let rate = significant(fitted.learning_rate);
    if let Some(last) = fitted.restarts.last() {
        let (times, step) = (fitted.restarts.len(), last.step);
        return format!(
            "learning rate {rate}, lowered {times} times, at step {step} the last: larger ones made it worse\n"
        );
    }
    match &fitted.rate_test {
        None => format!("learning rate {rate}\n"),
        Some(RateTest { improved: true, steps, .. }) => {
            format!("learning rate {rate}, found by a test of {steps} steps\n")
        }
        Some(_) => format!("learning rate {rate}: no rate of a test made the loss smaller\n"),
    }
}

/// Says which ranks were chosen, and what that did to the loss.
fn rank_line(change: &RankChange) -> String {
    let ranks =
        change.ranks.iter().map(|(name, rank)| format!("{name} {rank}")).collect::<Vec<_>>().join(", ");
    let [before, after, bound] = [change.loss_before, change.loss_after, change.bound].map(significant);
    format!("ranks at step {}: {ranks}; loss {before} to {after}, at most {bound} apart\n", change.step)
}

fn masked_lm(args: &Args, source: &Model) -> Result<Objective, Failure> {
    let masking = Masking {
        mask: args.masked.mask_token.unwrap_or_default(),
        vocabulary: vocabulary(source, args.output_name.as_deref())?,
        special: args.masked.special_tokens.clone(),
        share: 0.15,
    };
    Ok(Objective::MaskedLm { tokens: args.masked.tokens.clone(), masking })
}

/// Writes what was asked for, each file whatever becomes of the others; the first failure.
fn write(args: &Args, trained: &TrainedModel) -> Option<Failure> {
    let threads = args.threads.get();
    let options = CompileOptions { dims: args.dims.clone(), threads, ..CompileOptions::default() };
    let export = |path: &Path| Ok(export_graph(&trained.trained.graph, None, path)?);
    let compile =
        |path: &Path| Ok(trained.compile(&options)?.write(path, false, &mut margay::Dump::none())?);
    let exported = args.export.as_ref().and_then(|path| rescued(path, export).err());
    let compiled = args.output.as_ref().and_then(|path| rescued(path, compile).err());
    exported.or(compiled)
}

fn summary(args: &Args, model: &TrainedModel) -> String {
    let trained = &model.trained;
    let fitted = &trained.fitted;
    let (first, best) = (fitted.first(), fitted.best());
    let mut table = Table::new(&["on held-out samples", ">before", ">best"]);
    table.row(["loss".to_string(), significant(first.error), significant(best.error)]);
    for ((name, before), (_, after)) in first.measures.iter().zip(&best.measures) {
        table.row([name.clone(), significant(*before), significant(*after)]);
    }
    let (trained_on, held_out) = trained.samples;
    let mut text = format!(
        "{} parameters on {trained_on} samples, {held_out} held out: {} steps in {} s, {}\n\n{table}\n",
        count(trained.parameters as u64),
        fitted.steps,
        significant(fitted.seconds),
        fitted.stop.text(),
    );
    text += &format!(
        "best at step {}; {}memory: {} of states, {} in all\n",
        best.step,
        rate_line(fitted),
        bytes(trained.memory.state_bytes as u64),
        bytes(trained.memory.session_bytes as u64)
    );
    match model.report().dropout {
        0 => {}
        places => text += &format!("elements dropped at {places} nodes\n"),
    }
    text += &fitted.rank_changes.iter().map(rank_line).collect::<String>();
    let (now, dense) = (model.stored, model.dense_stored);
    if now != dense {
        let share = percent(now as f64, dense as f64);
        text += &format!("{} of {} numbers stored, {share}\n", count(now as u64), count(dense as u64));
    }
    for path in [&args.output, &args.export].into_iter().flatten() {
        // One that could not be written is told of elsewhere.
        if let Ok(m) = std::fs::metadata(path) {
            text += &format!("wrote {} ({})\n", path.display(), bytes(m.len()));
        }
    }
    text
}
