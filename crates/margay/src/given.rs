//! What a model is to be run on: arrays from files, folders of test data, or random numbers in declared shapes.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use margay_artifact::{Artifact, EntryParts};
use margay_driver::{
    Arrays, Dump, Expected, Samples, is_artifact, missing_inputs, not_computable, open_with, several,
    spreading,
};
use margay_ir::ops::Numbers;
use margay_loops::Open;
use margay_onnx::{KnownInputs, Model as OnnxModel, OnnxDim};
use margay_tensor::random::{Philox, stream_of};
use margay_tensor::{DType, Tensor, is_named};

use crate::Error;
use crate::inputs::{InputFile, merge};

/// Where inputs come from.
#[derive(Clone, Debug, Default)]
pub struct InputSource {
    /// Files and folders of arrays.
    pub files: Vec<InputFile>,
    /// Shapes of inputs that are to be random, by name.
    pub shapes: Vec<(String, Vec<usize>)>,
    /// Values of extents that inputs leave open, by name.
    pub dims: Vec<(String, usize)>,
    /// Seed of random inputs.
    pub seed: u64,
}

/// Inputs, and what is known of the outputs.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Inputs by name.
    pub inputs: Arrays,
    /// Where inputs are not finite and outputs may be so for it, in words: what is measured on them says nothing.
    pub not_finite: Vec<String>,
    /// The right outputs by name, where a folder of test data holds them.
    pub expected: Option<Arrays>,
    /// Names of arrays in archives that are no inputs of the model. They are not loaded.
    pub left_out: Vec<String>,
}

/// An input as a file declares it.
struct Declared {
    name: String,
    dtype: Option<DType>,
    /// An extent, or the name it is open under; an empty name for none.
    extents: Option<Vec<Result<usize, String>>>,
}

impl Declared {
    fn expected(&self) -> Expected {
        let text = self.to_string();
        Expected {
            name: self.name.clone(),
            dtype: self.dtype,
            extents: self.extents.as_ref().map(|all| all.iter().map(|e| e.as_ref().ok().copied()).collect()),
            text: text.split_once(": ").map_or(text.clone(), |(_, ty)| ty.to_owned()),
        }
    }
}

impl fmt::Display for Declared {
    /// The name with the type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.dtype.map_or("?".into(), |d| d.to_string());
        let extent = |e: &Result<usize, String>| match e {
            Ok(extent) => extent.to_string(),
            Err(symbol) if symbol.is_empty() => "?".into(),
            Err(symbol) => symbol.clone(),
        };
        let extents = self.extents.iter().flatten().map(extent).collect::<Vec<_>>().join(", ");
        write!(f, "`{}`: {dtype}[{extents}]", self.name)
    }
}

impl InputSource {
    /// The inputs of a model. Where shapes or extents are given, or no file is, inputs that no file holds are random:
    /// floats normal with variance 1, integers and truth values 0 or 1.
    ///
    /// # Errors
    /// Files that cannot be read; inputs that are given twice, are missing or of other types; extents that nobody says.
    pub fn inputs_of(&self, model: &Path) -> Result<Given, Error> {
        let ports = Ports::of(model, &self.dims)?;
        let mut given = self.given(&ports)?;
        ports.check(&given.inputs, &given.left_out).map_err(Error::Options)?;
        given.not_finite = all_spreading(model, &given.inputs.iter().collect::<Vec<_>>());
        Ok(given)
    }

    /// The same, unchecked.
    fn given(&self, declared: &Ports) -> Result<Given, Error> {
        let mut given = Given::default();
        let wanted = |name: &str| {
            declared.inputs.iter().any(|d| d.name == name) || declared.overridable.iter().any(|n| n == name)
        };
        let mut nameless = Vec::new();
        let mut expected_nameless = Vec::new();
        for file in &self.files {
            if file.name.is_none() && file.path.is_dir() {
                let data = file.read_folder()?;
                nameless.extend(data.inputs);
                expected_nameless.extend(data.outputs);
            } else {
                let (arrays, others) = file.read(&wanted)?;
                merge(&mut given.inputs, arrays)?;
                given.left_out.extend(others);
            }
        }
        let is_random = self.files.is_empty() || !self.shapes.is_empty() || !self.dims.is_empty();
        if !is_random && nameless.is_empty() {
            return Ok(given);
        }
        let names: Vec<&str> = declared.inputs.iter().map(|d| d.name.as_str()).collect();
        merge(&mut given.inputs, named(nameless, &names, "input")?)?;
        if !expected_nameless.is_empty() {
            let outputs: Vec<&str> = declared.outputs.iter().map(String::as_str).collect();
            given.expected = Some(named(expected_nameless, &outputs, "output")?);
        }
        if is_random {
            self.add_random(&declared.inputs, &mut given.inputs)?;
        }
        Ok(given)
    }

    fn add_random(&self, declared: &[Declared], inputs: &mut Arrays) -> Result<(), Error> {
        let mut problems = Vec::new();
        for (name, _) in &self.shapes {
            if !declared.iter().any(|d| d.name == *name) {
                problems.push(format!("the model has no input `{name}`"));
            }
        }
        let missing = declared.iter().filter(|d| !inputs.iter().any(|(n, _)| *n == d.name));
        let mut random = Arrays::new();
        for input in missing {
            let Some(dtype) = input.dtype else {
                problems.push(format!("input `{}` has a type that margay does not know", input.name));
                continue;
            };
            match self.shape_of(input) {
                Ok(shape) => random.push((input.name.clone(), self.random(&input.name, dtype, &shape)?)),
                Err(why) => problems.push(why),
            }
        }
        if problems.is_empty() {
            return merge(inputs, random);
        }
        Err(Error::Options(problems.join("; ")))
    }

    fn shape_of(&self, input: &Declared) -> Result<Vec<usize>, String> {
        let name = &input.name;
        if let Some((_, shape)) = self.shapes.iter().find(|(n, _)| n == name) {
            return Ok(shape.clone());
        }
        let Some(extents) = &input.extents else {
            return Err(format!("input `{name}` declares no shape: give it with `--shapes {name}:2x3`"));
        };
        let bound = |extent: &Result<usize, String>| match extent {
            Ok(extent) => Ok(*extent),
            Err(symbol) => match self.dims.iter().find(|(n, _)| n == symbol) {
                Some((_, value)) => Ok(*value),
                None => Err(symbol.clone()),
            },
        };
        let found: Vec<Result<usize, String>> = extents.iter().map(bound).collect();
        let open: Vec<&str> = found.iter().filter_map(|e| e.as_ref().err()).map(String::as_str).collect();
        if open.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        let mut how: Vec<String> =
            open.iter().filter(|n| !n.is_empty()).map(|n| format!("`--dim {n}=1`")).collect();
        let shape: Vec<String> = found.iter().map(|e| e.as_ref().map_or(1, |e| *e).to_string()).collect();
        how.push(format!("`--shapes {name}:{}`", shape.join("x")));
        let open: Vec<String> =
            open.iter().map(|n| format!("`{}`", if n.is_empty() { "?" } else { n })).collect();
        Err(format!(
            "input `{name}` leaves {} open: give inputs, or say {}",
            open.join(", "),
            how.join(" or ")
        ))
    }

    fn random(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<Tensor, Error> {
        let len = shape.iter().try_fold(1usize, |all, &e| all.checked_mul(e));
        let len = len.filter(|len| len.checked_mul(8).is_some_and(|bytes| bytes <= isize::MAX as usize));
        let len = len.ok_or_else(|| {
            Error::Options(format!("input `{name}` of shape {shape:?} is more than memory can hold"))
        })?;
        let random = Philox::new(self.seed, stream_of(name));
        let mut numbers = vec![0.0; len];
        if dtype.is_float() {
            random.fill_normal_f64(0, &mut numbers);
        } else {
            random.fill_uniform_f64(0, &mut numbers);
            numbers.iter_mut().for_each(|x| *x = x.round());
        }
        let numbers = match dtype.is_float() || dtype == DType::Bool {
            true => Numbers::Float(numbers),
            false => Numbers::Int(numbers.into_iter().map(|x| x as i128).collect()),
        };
        let tensor = numbers.into_tensor(dtype, shape);
        tensor.map_err(|e| Error::Options(format!("input `{name}`: {e}")))
    }
}

/// What a file takes and gives.
struct Ports {
    inputs: Vec<Declared>,
    /// The same for every entry of an artifact, with what its ranges leave open: any of them may be meant.
    entries: Vec<Vec<Declared>>,
    /// Inputs that have a value in the model, which another may take the place of.
    overridable: Vec<String>,
    outputs: Vec<String>,
}

/// The names of the inputs of a model or an artifact.
///
/// # Errors
/// A file that cannot be read.
pub fn input_names(model: &Path) -> Result<Vec<String>, Error> {
    Ok(Ports::of(model, &[])?.inputs.into_iter().map(|d| d.name).collect())
}

/// Fails where samples lack inputs of a model, or have them in other types, or not finite.
///
/// # Errors
/// [`Error::Samples`] with all that is wrong; a model that cannot be read.
pub fn check_samples(model: &Path, samples: &Samples) -> Result<(), Error> {
    let ports = Ports::of(model, &[])?;
    let others: Vec<String> = samples.names().map(str::to_owned).collect();
    ports.check_with(&samples.arrays().to_vec(), &others, samples.shared()).map_err(Error::Samples)?;
    let is_input = |name: &str| ports.inputs.iter().any(|d| d.name == *name);
    let inputs: Vec<_> = samples.arrays().iter().filter(|(name, _)| is_input(name)).collect();
    all_spreading(model, &inputs).into_iter().next().map_or(Ok(()), |why| Err(Error::Samples(why)))
}

/// Where arrays are not finite or too large, and may make outputs that are not finite, in words. The model is read only if there are such arrays; one that
/// holds no graph may make outputs of anything.
fn all_spreading(model: &Path, arrays: &[&(String, Tensor)]) -> Vec<String> {
    let all: Vec<String> = arrays.iter().filter_map(|(name, t)| not_computable(name, t)).collect();
    if all.is_empty() {
        return all;
    }
    let known = KnownInputs::of(&arrays.iter().map(|a| (*a).clone()).collect::<Arrays>());
    match open_with(model, &known, &mut Dump::none()) {
        Ok(m) => arrays.iter().filter_map(|(name, t)| spreading(&m.graph, name, t)).collect(),
        Err(_) => all,
    }
}

/// Samples of a model from an archive: the arrays that are its inputs, of which those `shared` are given once, and those with
/// other names that are asked for.
///
/// # Errors
/// Files that cannot be read; a name in `shared` that is no input.
pub fn samples_of(model: &Path, data: &Path, shared: &[String], others: &[&str]) -> Result<Samples, Error> {
    let inputs = Ports::of(model, &[])?.inputs;
    let expected: Vec<Expected> = inputs.iter().map(Declared::expected).collect();
    let is_input = |name: &str| inputs.iter().any(|d| d.name == *name);
    let samples = Samples::open_only(data, &|name| others.contains(&name) || is_input(name))?;
    samples.shared_as(&expected, shared)
}

impl Ports {
    /// Fails where inputs are missing, or are of other types than any entry takes. `others` are further arrays of the files.
    fn check(&self, given: &Arrays, others: &[String]) -> Result<(), String> {
        self.check_with(given, others, &BTreeSet::new())
    }

    /// The same, where inputs of some names are given once for all samples.
    fn check_with(&self, given: &Arrays, others: &[String], shared: &BTreeSet<String>) -> Result<(), String> {
        let of = |inputs: &[Declared]| -> Vec<String> {
            let found = |d: &Declared| given.iter().find(|(name, _)| *name == d.name).map(|(_, t)| t);
            let missing: Vec<String> =
                inputs.iter().filter(|d| found(d).is_none()).map(Declared::to_string).collect();
            let mut all: Vec<String> =
                inputs.iter().filter_map(|d| d.expected().misfit_in(found(d)?, shared)).collect();
            if !missing.is_empty() {
                let names = given.iter().map(|(name, _)| name).chain(others).map(String::as_str);
                all.push(missing_inputs(&missing, names));
            }
            all
        };
        let entries = self.entries.iter().map(Vec::as_slice);
        let best =
            entries.chain(self.entries.is_empty().then_some(&*self.inputs)).map(of).min_by_key(Vec::len);
        match best.unwrap_or_default() {
            problems if problems.is_empty() => Ok(()),
            problems => Err(several(&problems, "; ")),
        }
    }

    /// Of an artifact with several entries, those of the first that serves the extents; what a range leaves open and
    /// nobody says is the greatest.
    fn of(path: &Path, dims: &[(String, usize)]) -> Result<Ports, Error> {
        if is_artifact(path)? {
            let artifact = Artifact::open(path)?;
            let entries = &artifact.description().entries;
            let served = entries.iter().find_map(|e| Some((e, served_at(&e.parts, dims)?)));
            let Some((entry, values)) = served else {
                let message = format!("`{}` has no entry for these values of `--dim`", path.display());
                return Err(Error::Options(message));
            };
            let parts = &entry.parts;
            let sizes = parts.open.sizes_at(&values).unwrap_or_default();
            let inputs = Open::ports_at(&parts.inputs, &parts.open.inputs, &sizes);
            let inputs = inputs.unwrap_or_else(|| parts.inputs.clone());
            let inputs = parts.given().map(|(i, _)| Declared {
                name: inputs[i].name.clone(),
                dtype: Some(inputs[i].dtype),
                extents: Some(inputs[i].shape.iter().map(|e| Ok(*e)).collect()),
            });
            let outputs = entry.parts.outputs.iter().map(|port| port.name.clone());
            return Ok(Ports {
                inputs: inputs.collect(),
                entries: entries.iter().map(|e| taken_by(&e.parts)).collect(),
                overridable: Vec::new(),
                outputs: outputs.collect(),
            });
        }
        let model = OnnxModel::open(path)?;
        let extent = |dim: &OnnxDim| match dim {
            OnnxDim::Value(v) => usize::try_from(*v).map_err(|_| String::new()),
            OnnxDim::Symbol(name) => Err(name.clone()),
            OnnxDim::Unknown => Err(String::new()),
        };
        let inputs = model.graph.inputs.iter().map(|v| Declared {
            name: v.name.clone(),
            dtype: v.dtype,
            extents: v.dims.as_ref().map(|dims| dims.iter().map(extent).collect()),
        });
        let outputs = model.graph.outputs.iter().map(|v| v.name.clone());
        let overridable = model.graph.defaults.iter().map(|v| v.name.clone());
        Ok(Ports {
            inputs: inputs.collect(),
            entries: Vec::new(),
            overridable: overridable.collect(),
            outputs: outputs.collect(),
        })
    }
}

/// What an entry takes, for whoever compares it with arrays.
pub(crate) fn expected_by(parts: &EntryParts) -> Vec<Expected> {
    taken_by(parts).iter().map(Declared::expected).collect()
}

/// What an entry takes; the extents that its ranges leave open have names instead.
fn taken_by(parts: &EntryParts) -> Vec<Declared> {
    let (shapes, _) = parts.shapes();
    let is_open = |i: usize, axis: usize| {
        parts.open.inputs.get(i).is_some_and(|axes| axes.iter().any(|(open, _)| *open == axis))
    };
    let of = |(i, port): (usize, &margay_loops::Port)| {
        let extent = |(axis, e): (usize, &usize)| match is_open(i, axis) {
            true => Err(shapes[i][axis].clone()),
            false => Ok(*e),
        };
        let extents = Some(port.shape.iter().enumerate().map(extent).collect());
        Declared { name: port.name.clone(), dtype: Some(port.dtype), extents }
    };
    parts.given().map(of).collect()
}

/// The values of what an entry leaves open, where it serves the extents.
fn served_at(parts: &EntryParts, dims: &[(String, usize)]) -> Option<Vec<i64>> {
    let said = |symbol: &str| dims.iter().find(|(name, _)| is_named(symbol, name)).map(|(_, v)| *v as i64);
    let is_open = |name: &str| parts.open.symbols.iter().any(|s| **s == *name);
    let agrees = |(name, v): (&String, &i64)| is_open(name) || said(name).is_none_or(|s| s == *v);
    let value = |s: &margay_tensor::Symbol| said(s).or_else(|| parts.symbols.get(&**s).copied());
    let values = parts.open.symbols.iter().map(value).collect::<Option<Vec<i64>>>()?;
    let serves = parts.open.is_closed() || parts.open.serves(&values);
    (serves && parts.symbols.iter().all(agrees)).then_some(values)
}

/// Arrays of a folder under the names of ports: their own, or the one at their position.
fn named(arrays: Vec<(usize, String, Tensor)>, ports: &[&str], what: &str) -> Result<Arrays, Error> {
    let name = |(at, own, tensor): (usize, String, Tensor)| {
        if ports.contains(&own.as_str()) {
            return Ok((own, tensor));
        }
        let port = ports.get(at).ok_or_else(|| {
            Error::Options(format!("{what} {at} of the test data: the model has {} of them", ports.len()))
        })?;
        Ok(((*port).to_string(), tensor))
    };
    arrays.into_iter().map(name).collect()
}
