//! Arguments that several commands share.

use std::path::{Path, PathBuf};

use margay::{
    Budget, Budgets, CompileOptions, ErrorLimit, ErrorScope, Given, Goal, InputFile, InputSource, MaskChoice,
    Operations, Precision, Predictor, Samples, command_metric, listed, read_plan, samples_of,
};

use crate::error::Failure;
use crate::note;

/// What to compile for.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("goal").multiple(true)))]
pub(crate) struct GoalArgs {
    /// Samples of the model's inputs, by name. A quarter, at most 512, measures the error that is reported; the others
    /// calibrate, as many as give each layer about 65,536 rows. Other arrays in the file are left out.
    #[arg(long, visible_alias = "calibrate", value_name = "FILE.npz")]
    data: Option<PathBuf>,
    #[command(flatten)]
    shared: SharedArgs,
    /// As fast as possible with a relative L2 error of the outputs on held-out samples of at most E: of all of them together,
    /// or, as in 0.1@95%, of each of so many of them. Budgets may be given besides.
    #[arg(long, value_name = "E[@P%]", requires = "data", group = "goal")]
    max_error: Option<ErrorLimit>,
    /// As fast as possible with --metric at most D below that of the dense model.
    #[arg(long, value_name = "D", value_parser = not_negative, requires = "data", requires = "metric", conflicts_with = "max_error", group = "goal")]
    max_drop: Option<f64>,
    /// A command of the shell that measures a model: it is given the path of an ONNX file, in place of {} or as its last
    /// word, and prints a number last, larger for better models.
    #[arg(long, value_name = "COMMAND", value_parser = command, requires = "max_drop")]
    metric: Option<String>,
    /// As exact as possible with so many stored bytes of the weights that can be sketched: a share as in 50%, or
    /// bytes as in 1500000 or 1.5MB. Several budgets are kept all at once.
    #[arg(long, value_name = "50%|N", group = "goal")]
    budget_bytes: Option<Budget>,
    /// As exact as possible with so many multiplications and additions of products and convolutions in one run: a share as
    /// in 50%, or a number as in 700M or 1.5G.
    #[arg(long, value_name = "50%|N", group = "goal")]
    budget_flops: Option<Operations>,
    /// As exact as possible with a predicted time of one run of so many milliseconds.
    #[arg(long, value_name = "MS", value_parser = positive, group = "goal")]
    budget_ms: Option<f64>,
    /// Replay the choices of a plan.
    #[arg(
        long,
        value_name = "FILE.toml",
        group = "goal",
        conflicts_with_all = ["max_error", "max_drop", "budget_bytes", "budget_flops", "budget_ms"]
    )]
    plan: Option<PathBuf>,
    /// Replay the plan on other samples than those that it was made with.
    #[arg(long, requires = "plan")]
    recalibrate: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// What to compile for, whatever is sketched.
#[derive(clap::Args)]
pub(crate) struct TargetArgs {
    /// Value of a dimension the model leaves open; several values make an artifact with an entry for each, NAME=N..M one
    /// that takes every value from N to M. Without it the samples tell, and the leading dimension is 1.
    #[arg(long = "dim", value_name = "NAME=N[,N...]", value_parser = dim_or_range)]
    dims: Vec<(String, Extents)>,
    /// Make an input a constant: this number in every element. The compiled model has it no more.
    #[arg(long = "fix", value_name = "INPUT=NUMBER", value_parser = fixed_input)]
    fixed: Vec<(String, f64)>,
    /// Precision of products with constant matrices, set after sketching: bf16 rounds both operands, int8 the
    /// constants, column by column, int4 in runs of 64 terms, with error feedback where samples calibrate; tables are int8 beside
    /// both. Convolutions and attention stay f32, and so does exported ONNX.
    #[arg(long, value_name = "f32|bf16|int8|int4", default_value = "f32", value_parser = precision)]
    precision: Precision,
    /// Processor class to compile for: native, portable, x86-64-v3, x86-64-v4, x86-64-v4-bf16.
    #[arg(long, value_name = "NAME", default_value = "native")]
    target_cpu: String,
    /// Rates that times are predicted by, as `margay measure-machine` writes them [default: those of the class].
    #[arg(long, value_name = "FILE.toml")]
    cost_model: Option<PathBuf>,
    /// Device to compile for: cpu; cuda:sm_75, cuda:sm_80 or cuda:sm_90, and cuda for the first, where this program was built for
    /// it; with cuda:sm_80+tf32 and cuda:sm_90+tf32 products may round factors of f32 to tf32; or reference, which interprets,
    /// slowly, and checks every access.
    #[arg(long = "device", alias = "backend", value_name = "NAME[:CLASS]", default_value = "cpu")]
    backend: String,
    /// Keep what calibration and fits cost in a folder: another goal for the same model and samples takes it from there.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Seed of the random numbers.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Threads that times are predicted for.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    predict_threads: usize,
    #[command(flatten)]
    errors: ErrorArgs,
    #[command(flatten)]
    threads: ThreadArgs,
}

/// What counts in errors of outputs.
#[derive(clap::Args)]
pub(crate) struct ErrorArgs {
    /// The input whose zeros mark padding, which does not count in errors; none where all counts [default:
    /// `attention_mask` or `input_mask`, where there is one].
    #[arg(long, value_name = "INPUT|none")]
    mask: Option<String>,
    /// The outputs that count in errors, by name [default: all of floating point numbers].
    #[arg(long = "output-name", value_name = "NAMES", value_delimiter = ',')]
    outputs: Vec<String>,
}

impl ErrorArgs {
    pub(crate) fn scope(&self) -> ErrorScope {
        ErrorScope { mask: mask(self.mask.as_deref()), outputs: self.outputs.clone() }
    }
}

/// The mask of an option, if it was given.
pub(crate) fn mask(text: Option<&str>) -> MaskChoice {
    text.map_or(MaskChoice::Default, MaskChoice::parse)
}

impl GoalArgs {
    /// The file of samples.
    pub(crate) fn data(&self) -> Option<&Path> {
        self.data.as_deref()
    }

    /// Whether nothing is to be sketched.
    pub(crate) fn is_dense(&self) -> bool {
        self.goal() == Goal::Dense && self.plan.is_none()
    }

    /// Whether any of these options was given that only makes sense for a model that is compiled.
    pub(crate) fn is_default(&self) -> bool {
        let TargetArgs { precision, dims, fixed, errors, .. } = &self.target;
        self.is_dense()
            && dims.is_empty()
            && fixed.is_empty()
            && self.data.is_none()
            && *precision == Precision::F32
            && errors.scope() == ErrorScope::default()
    }

    fn goal(&self) -> Goal {
        let error = self.max_error.map(Goal::Error);
        let drop = self.max_drop.map(Goal::Drop);
        let bytes = self.budget_bytes.map(Goal::Bytes);
        let flops = self.budget_flops.map(|Operations(budget)| Goal::Flops(budget));
        let seconds = self.budget_ms.map(|ms| Goal::Seconds(ms / 1e3));
        error.or(drop).or(bytes).or(flops).or(seconds).unwrap_or_default()
    }

    fn budgets(&self) -> Budgets {
        Budgets {
            bytes: self.budget_bytes,
            flops: self.budget_flops.map(|Operations(budget)| budget),
            seconds: self.budget_ms.map(|ms| ms / 1e3),
        }
    }

    /// The driver's options; reads the plan.
    pub(crate) fn options(&self) -> Result<CompileOptions, Failure> {
        Ok(CompileOptions {
            goal: self.goal(),
            budgets: self.budgets(),
            plan: self.plan.as_deref().map(read_plan).transpose()?,
            recalibrate: self.recalibrate,
            metric: self.metric.as_deref().map(command_metric),
            ..self.target.options()?
        })
    }

    /// The samples for a model.
    pub(crate) fn samples(&self, model: &Path) -> Result<Option<Samples>, Failure> {
        match &self.data {
            Some(data) => Ok(Some(samples_of(model, data, self.shared.names(), &[])?)),
            None => Ok(None),
        }
    }
}

impl TargetArgs {
    /// The driver's options, without a goal.
    ///
    /// # Errors
    /// A cost model that cannot be read.
    pub(crate) fn options(&self) -> Result<CompileOptions, Failure> {
        let mut dims: Vec<(String, Vec<i64>)> = Vec::new();
        let mut ranges = Vec::new();
        for (name, extents) in &self.dims {
            let values = match extents {
                Extents::Values(values) => values,
                Extents::Range(least, most) => {
                    ranges.push((name.clone(), (*least, *most)));
                    continue;
                }
            };
            match dims.iter_mut().find(|(n, _)| n == name) {
                Some((_, all)) => all.extend(values),
                None => dims.push((name.clone(), values.clone())),
            }
        }
        Ok(CompileOptions {
            cost_model: self.cost_model.as_deref().map(read_text).transpose()?,
            dims,
            ranges,
            fixed: self.fixed.clone(),
            target_cpu: self.target_cpu.clone(),
            precision: self.precision,
            seed: self.seed,
            threads: self.threads.get(),
            predict_threads: self.predict_threads,
            backend: self.backend.clone(),
            errors: self.errors.scope(),
            cache: self.cache.clone(),
            ..CompileOptions::default()
        })
    }
}

/// The contents of a text file.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    let failed = |source| margay::Error::Read { path: path.to_path_buf(), source };
    Ok(std::fs::read_to_string(path).map_err(failed)?)
}

/// Which inputs have no row for each sample.
#[derive(clap::Args)]
pub(crate) struct SharedArgs {
    /// Inputs that the data holds once for all samples, in the shape that the model takes. Those without axes are found by
    /// themselves; so are those whose leading extent is fixed where that of another input is open, or where arrays of
    /// others are longer than it.
    #[arg(long, value_name = "INPUT[,INPUT]", value_delimiter = ',', requires = "data")]
    shared: Vec<String>,
}

impl SharedArgs {
    pub(crate) fn names(&self) -> &[String] {
        &self.shared
    }
}

/// How many threads.
#[derive(clap::Args)]
pub(crate) struct ThreadArgs {
    /// Threads to work with [default: all]. Results do not depend on it.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    threads: Option<usize>,
}

impl ThreadArgs {
    pub(crate) fn get(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// How a model is run.
#[derive(clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Hold weights and intermediate results in huge pages of memory, where the system has them. Weights are copied
    /// for that.
    #[arg(long)]
    pub(crate) huge_pages: bool,
    /// Feed inputs that are longer than the batch of a model batch by batch, which is done anyway.
    #[arg(long = "in-batches", hide = true)]
    _in_batches: bool,
}

/// Says in how many runs inputs are fed, where it is not one.
pub(crate) fn note_runs(model: &Predictor, inputs: &margay::Arrays) -> Result<(), Failure> {
    let runs = model.runs_of(inputs)?;
    if runs > 1 {
        note(format!("`{}` takes these inputs in {runs} runs, along their leading axis", model.name()));
    }
    Ok(())
}

/// Says which inputs of a file were made constants.
pub(crate) fn note_fixed(model: &Predictor) {
    let names: Vec<&str> = model.fixed().iter().map(|(name, _)| name.as_str()).collect();
    if !names.is_empty() {
        note(format!("compiled `{}` for these values of `{}`", model.name(), names.join("`, `")));
    }
}

/// The inputs of a run.
#[derive(clap::Args)]
pub(crate) struct InputArgs {
    /// The inputs: a .npz file with the names of the inputs as keys, other arrays in which are left out, NAME=FILE with an .npy or .pb file for an input, or a
    /// folder of test data as ONNX's are, with input_0.pb and so on.
    #[arg(long = "data", visible_alias = "inputs", value_name = "FILE.npz|NAME=FILE|FOLDER")]
    inputs: Vec<InputFile>,
    /// Random numbers for an input, in a shape: floats normal with variance 1, integers and truth values 0 or 1.
    #[arg(long, value_name = "NAME:1x3x224x224", value_parser = shape)]
    shapes: Vec<(String, Vec<usize>)>,
    /// Value of a dimension the model leaves open: inputs that no file holds are random in the shape that follows.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = named_extent)]
    dims: Vec<(String, usize)>,
    /// Seed of random inputs.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

impl InputArgs {
    /// The files that are read.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.inputs.iter().map(|file| file.path.clone()).collect()
    }

    /// Reads or makes all inputs of a model on which something is to be measured.
    pub(crate) fn read_finite(&self, model: &Path) -> Result<Given, Failure> {
        let given = self.read(model)?;
        match given.not_finite.as_slice() {
            [] => Ok(given),
            all => Err(Failure::usage(format!(
                "nothing is measured on inputs that are not finite: {}",
                all.join("; ")
            ))),
        }
    }

    /// Reads or makes all inputs of a model.
    pub(crate) fn read(&self, model: &Path) -> Result<Given, Failure> {
        let (files, shapes) = (self.inputs.clone(), self.shapes.clone());
        let source = InputSource { files, shapes, dims: self.dims.clone(), seed: self.seed };
        let given = source.inputs_of(model)?;
        if !given.left_out.is_empty() {
            let shown = listed(given.left_out.iter().map(String::as_str));
            note(format!("left out, since `{}` has no such inputs: {shown}", model.display()));
        }
        Ok(given)
    }
}

/// What a dimension is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Extents {
    /// Each of these.
    Values(Vec<i64>),
    /// Every value from the first to the second.
    Range(i64, i64),
}

/// The values of a dimension, or its range.
fn dim_or_range(text: &str) -> Result<(String, Extents), String> {
    let Some((name, (least, most))) =
        text.split_once('=').and_then(|(name, values)| Some((name, values.split_once("..")?)))
    else {
        return dim(text).map(|(name, values)| (name, Extents::Values(values)));
    };
    let (least, most) = (extent(least)?, extent(most)?);
    match least <= most {
        true => Ok((name.trim().to_string(), Extents::Range(least, most))),
        false => Err(format!("the range {least}..{most} is empty: it ends before it begins")),
    }
}

fn extent(text: &str) -> Result<i64, String> {
    match text.trim().parse::<i64>() {
        Ok(n) if n >= 0 => Ok(n),
        _ => Err(format!("`{text}` is not an extent, expected a whole number of at least 0")),
    }
}

/// The values of a dimension.
pub(crate) fn dim(text: &str) -> Result<(String, Vec<i64>), String> {
    let (name, values) = text.split_once('=').ok_or("expected NAME=N or NAME=N,N,...")?;
    Ok((name.trim().to_string(), values.split(',').map(extent).collect::<Result<_, _>>()?))
}

/// The value of an extent.
pub(crate) fn named_extent(text: &str) -> Result<(String, usize), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=N")?;
    let value = value.trim().parse().map_err(|_| format!("`{value}` is not an extent"))?;
    Ok((name.trim().to_string(), value))
}

/// The number of an input.
pub(crate) fn fixed_input(text: &str) -> Result<(String, f64), String> {
    let (name, number) = text.rsplit_once('=').ok_or("expected INPUT=NUMBER")?;
    let number = match number.trim() {
        "true" => 1.0,
        "false" => 0.0,
        other => other.parse().map_err(|_| format!("`{other}` is no number"))?,
    };
    Ok((name.trim().to_string(), number))
}

/// The shape of an input. Names may hold colons.
pub(crate) fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, extents) = text.rsplit_once(':').ok_or("expected NAME:1x3x224x224")?;
    let extent = |e: &str| e.trim().parse::<usize>().map_err(|_| format!("`{e}` is not an extent"));
    let extents = extents.trim().trim_matches(['[', ']']);
    if extents.is_empty() {
        return Ok((name.to_string(), Vec::new()));
    }
    Ok((name.to_string(), extents.split(['x', ',']).map(extent).collect::<Result<_, _>>()?))
}

/// A precision.
pub(crate) fn precision(text: &str) -> Result<Precision, String> {
    let known: Vec<&str> = Precision::ALL.iter().map(|p| p.name()).collect();
    Precision::from_name(text).ok_or_else(|| format!("expected one of {}", known.join(", ")))
}

/// A number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v > 0.0 && v.is_finite() => Ok(v),
        _ => Err("expected a number above 0".into()),
    }
}

/// A line for a shell.
fn command(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("expected a command".into()),
        false => Ok(text.to_owned()),
    }
}

/// A number of at least 0, for tolerances.
pub(crate) fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(v) if v >= 0.0 && v.is_finite() => Ok(v),
        _ => Err("expected a number of at least 0".into()),
    }
}

/// A count.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}
