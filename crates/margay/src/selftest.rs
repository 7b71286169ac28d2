//! Kernels of a device against the processor, case by case.
//!
//! A case is a small graph of one kind of kernel. Its inputs are random, and the same on every run. The device and the
//! processor compute it, and the greatest difference is told relative to the greatest number of each output. Every case runs
//! twice on the device, and has to give the same bits.
//!
//! A program without a compiler for the device takes the code of the cases from a folder that [`write_selftest`] filled.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use margay_artifact::{Artifact, ArtifactBuilder};
use margay_driver::{Dump, Runner, backend, build};
use margay_ir::ops::Numbers;
use margay_ir::{Graph, text};
use margay_loops::{Backend, Precision};
use margay_runtime::{Executable, RunError, Session, SessionOptions};
use margay_tensor::random::Philox;
use margay_tensor::{Binding, Tensor};

use self::cases::{CASES, Case, ROUNDED};
use crate::Error;

mod cases;

/// How often a case is timed on a device.
const TIMES: usize = 10;

/// What is tested, and on what.
#[derive(Clone, Debug)]
pub struct SelftestOptions {
    /// The device, by a name that [`backend::device`] knows, of the back end `cuda`.
    pub device: String,
    /// The class of devices to compile for.
    pub class: String,
    /// The families of kernels that are tested; all if there is none.
    pub families: Vec<Family>,
    /// Whether large cases are left out. An emulator runs none.
    pub small: bool,
    /// A folder with the code of the cases, in place of compiling them.
    pub kernels: Option<PathBuf>,
    /// Threads of the processor.
    pub threads: usize,
}

/// What was found for a case.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct SelftestResult {
    /// The family of kernels.
    pub family: Family,
    /// What is computed.
    pub kernel: &'static str,
    /// The extents.
    pub shape: &'static str,
    /// The greatest difference from the processor, relative to the greatest number of the output; none if it did not
    /// run.
    pub error: Option<f64>,
    /// The greatest error that is right.
    pub limit: f64,
    /// The time of its kernels on a device in ms, each waited for: the median of several runs. None on an emulator.
    pub ms: Option<f64>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// A family of kernels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// Generated loop nests.
    Loops,
    /// Generated loop nests whose threads join partial results.
    Reductions,
    /// Products and convolutions.
    Products,
    /// Attention, linear attention, and derivatives of attention.
    Attention,
    /// Products that stand for a larger one, and that one.
    Sketches,
    /// Products that fill a device.
    LargeProducts,
}

impl Family {
    /// Every family, in the order in which they are tested.
    pub const ALL: [Family; 6] = [
        Family::Loops,
        Family::Reductions,
        Family::Products,
        Family::Attention,
        Family::Sketches,
        Family::LargeProducts,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Loops => "loops",
            Family::Reductions => "reductions",
            Family::Products => "products",
            Family::Attention => "attention",
            Family::Sketches => "sketches",
            Family::LargeProducts => "large products",
        }
    }

    /// The family of a name.
    ///
    /// # Errors
    /// The names that there are.
    pub fn from_name(name: &str) -> Result<Family, Error> {
        Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| {
            let known: Vec<String> =
                Family::ALL.iter().map(|family| format!("`{}`", family.name())).collect();
            Error::Options(format!("unknown family `{name}`; known are {}", known.join(", ")))
        })
    }
}

impl serde::Serialize for Family {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl Case {
    fn graph(&self) -> Graph {
        text::parse(self.text, &|_, _| None).unwrap_or_else(|e| panic!("{}: {e}", self.kernel))
    }

    /// The greatest error that is right on a class of devices.
    fn limit(&self, class: &str) -> f64 {
        if class.ends_with("tf32") { self.limit.max(ROUNDED) } else { self.limit }
    }

    /// The name of the file with its code.
    fn file(&self) -> String {
        let word = |text: &str| text.replace(|c: char| !c.is_alphanumeric(), "-");
        format!("{}.{}.{}.margay", word(self.family.name()), word(self.kernel), word(self.shape))
    }

    /// Its code.
    fn code<'b>(&self, backend: &'b dyn Backend) -> Result<ArtifactBuilder<'b>, Error> {
        let mut builder = ArtifactBuilder::new(self.kernel);
        build::add_entry(&mut builder, &self.graph(), &Binding::new(), backend, &mut Dump::none())?;
        Ok(builder)
    }

    /// Random inputs, the same on every call.
    fn inputs(&self, g: &Graph) -> Vec<(String, Tensor)> {
        let input = |(i, n): (usize, &margay_ir::NodeId)| {
            let ty = g.ty((*n).into());
            let shape = ty.extents().expect("the extents of a case are numbers");
            let mut values = vec![0f32; shape.iter().product()];
            Philox::new(1, i as u64).fill_normal_f32(0, &mut values);
            let numbers = Numbers::Float(values.into_iter().map(f64::from).collect());
            let tensor = numbers.into_tensor(ty.dtype, &shape).expect("as many numbers as the shape holds");
            (g.node(*n).origin.name().to_string(), tensor)
        };
        g.inputs().iter().enumerate().map(input).collect()
    }
}

/// What compiles for a class of devices.
fn compiler(class: &str) -> Result<Arc<dyn Backend>, Error> {
    backend::named(&format!("cuda:{class}"), "native", Precision::F32)
}

/// Whether cases are left out on a device.
fn is_emulated(device: &str) -> bool {
    device == backend::EMULATED
}

/// Compiles all cases for a class of devices, and writes them into a folder.
///
/// # Errors
/// A program without a compiler for the class, and a folder that cannot be written.
pub fn write_selftest(folder: &Path, class: &str) -> Result<(), Error> {
    let unwritten = |source| Error::Write { path: folder.to_path_buf(), source };
    std::fs::create_dir_all(folder).map_err(unwritten)?;
    let backend = compiler(class)?;
    for case in CASES {
        case.code(&*backend)?.write(&folder.join(case.file()))?;
    }
    Ok(())
}

/// Runs the cases of the families on a device and tells each result as it is found.
///
/// # Errors
/// A device that is not there, a program without a compiler for it. What goes wrong in one case
/// is told as its problem.
pub fn selftest(
    options: &SelftestOptions,
    each: &mut dyn FnMut(&SelftestResult),
) -> Result<Vec<SelftestResult>, Error> {
    let asked = |case: &&Case| {
        (options.families.is_empty() || options.families.contains(&case.family))
            && !(case.large && (options.small || is_emulated(&options.device)))
    };
    let mut results = Vec::new();
    for case in CASES.iter().filter(asked) {
        let limit = case.limit(&options.class);
        let found = match compare(case, options) {
            Ok(found) => found,
            // Nothing else can be tested either.
            Err(error @ Error::Run(RunError::NoDevice { .. } | RunError::Class { .. })) => return Err(error),
            Err(error @ (Error::Options(_) | Error::Compile(_) | Error::Artifact(_))) => return Err(error),
            Err(error) => Found { error: None, ms: None, problem: Some(error.to_string()) },
        };
        let wrong = |e: f64| e.is_nan() || e > limit;
        let too_far = found.error.filter(|e| wrong(*e)).map(|e| format!("{e:.1e} is beyond {limit:.0e}"));
        results.push(SelftestResult {
            family: case.family,
            kernel: case.kernel,
            shape: case.shape,
            error: found.error,
            limit,
            ms: found.ms,
            problem: found.problem.or(too_far),
        });
        each(results.last().expect("just pushed"));
    }
    Ok(results)
}

struct Found {
    error: Option<f64>,
    ms: Option<f64>,
    problem: Option<String>,
}

fn compare(case: &Case, options: &SelftestOptions) -> Result<Found, Error> {
    let device = backend::device(&options.device)?;
    let executable = match &options.kernels {
        Some(folder) => Executable::from_artifact_on(&Artifact::open(&folder.join(case.file()))?, &[device])?,
        None => Executable::from_parts_on(case.code(&*compiler(&options.class)?)?.into_parts()?, &[device])?,
    };
    let g = case.graph();
    let inputs = case.inputs(&g);
    let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut session = Session::new(&executable, SessionOptions { threads: 1 })?;
    let found = session.run(&by_name)?;
    let again = session.run(&by_name)?;
    let expected = Runner::new(g, &backend::native(), options.threads).run(&inputs)?;
    let pairs = found.iter().zip(&expected).map(|((_, found), (_, expected))| relative(found, expected));
    let ms = match is_emulated(&options.device) {
        true => None,
        false => Some(time(&mut session, &by_name)?),
    };
    let problem = (found != again).then(|| "a second run gave other bits".to_owned());
    Ok(Found { error: Some(pairs.fold(0.0, f64::max)), ms, problem })
}

/// The greatest difference, relative to the greatest number that is expected. Infinite where one is no number.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    let floats = |t: &Tensor| Numbers::of(t).map(|n| n.floats()).unwrap_or_default();
    let (found, expected) = (floats(found), floats(expected));
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let most = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let off = off.fold(0f64, |most, x| if x.is_nan() { f64::INFINITY } else { most.max(x) });
    if off == 0.0 { 0.0 } else { off / most }
}

/// The median time of all kernels of a run, in ms.
fn time(session: &mut Session, inputs: &[(&str, &Tensor)]) -> Result<f64, Error> {
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let steps = session.profile(inputs)?;
        times.push(steps.iter().map(|(_, time)| time.as_secs_f64() * 1e3).sum::<f64>());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[TIMES / 2])
}
