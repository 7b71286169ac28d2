//! `ai.onnx.ml`: scalers, encoders, linear models and support vectors.
//!
//! Text is not computed on: labels that are texts are refused as operands, and left out as outputs.

use margay_ir::Value;
use margay_ir::ops::{
    Cast, Concat, Gather, MatMul, Number, Numbers, Pow, ReduceKind, Sigmoid, Softmax, Tanh,
};
use margay_tensor::{DType, Dim};

use super::Importer;
use super::call::{Call, Imported, Refusal};
use super::places::place_of_extreme;
use super::statistics::over_norm;

/// A list of numbers that must be there.
pub(super) fn floats(call: &Call, name: &'static str) -> Result<Vec<f64>, Refusal> {
    let list = call.floats(name)?.unwrap_or_default();
    Ok(list.iter().map(|&v| f64::from(v)).collect())
}

/// Numbers in a row, in the type of a value.
fn row(cx: &mut Importer, like: Value, values: Vec<f64>) -> Result<Value, Refusal> {
    let dtype = cx.ty(like).dtype;
    let count = values.len();
    cx.table(dtype, &[count], values)
}

/// Numbers along one axis, in a type.
fn numbers_row(cx: &mut Importer, dtype: DType, values: Numbers) -> Result<Value, Refusal> {
    let tensor = values.clone().into_tensor(dtype, &[count(&values)]);
    cx.constant(tensor.map_err(|e| Refusal::Invalid(e.to_string()))?)
}

fn whole(list: &[i64]) -> Numbers {
    Numbers::Int(list.iter().map(|&v| v.into()).collect())
}

fn count(numbers: &Numbers) -> usize {
    match numbers {
        Numbers::Float(v) => v.len(),
        Numbers::Int(v) => v.len(),
    }
}

/// A matrix of numbers, one sample a row, as floats: what is f64 stays so, all else becomes f32.
pub(super) fn samples(cx: &mut Importer, x: Value) -> Result<Value, Refusal> {
    let x = match cx.ty(x).dtype {
        DType::F64 => x,
        _ => cx.cast(x, DType::F32)?,
    };
    match cx.ty(x).ndim() {
        1 => cx.unsqueezed(x, 0),
        2 => Ok(x),
        _ => Err(Refusal::Invalid(format!("expected samples in rows, found {}", cx.ty(x)))),
    }
}

/// `Scaler`: (x - offset) scale.
pub(super) fn scaler(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let (offset, scale) = (floats(call, "offset")?, floats(call, "scale")?);
    let mut y = x;
    if !offset.is_empty() {
        let offset = row(cx, x, offset)?;
        y = cx.minus(y, offset)?;
    }
    if !scale.is_empty() {
        let scale = row(cx, x, scale)?;
        y = cx.times(y, scale)?;
    }
    Ok(vec![y])
}

/// `Normalizer`: rows over their largest element, the sum of their sizes, or their length.
pub(super) fn normalizer(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let last = cx.ty(x).ndim().saturating_sub(1);
    let norm = match call.text("norm", "MAX")? {
        "MAX" => cx.joined(ReduceKind::Max, x, &[last], true)?,
        "L1" => super::statistics::norm(cx, x, &[last], 1, true)?,
        "L2" => super::statistics::norm(cx, x, &[last], 2, true)?,
        other => return Err(Refusal::Invalid(format!("expected norm MAX, L1 or L2, found `{other}`"))),
    };
    Ok(vec![over_norm(cx, x, norm)?])
}

/// `Binarizer`: 1 above a threshold, else 0.
pub(super) fn binarizer(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let dtype = cx.ty(x).dtype;
    let above = cx.above(x, call.float("threshold", 0.0)?)?;
    Ok(vec![cx.cast(above, dtype)?])
}

/// `Imputer`: numbers in place of one number, which may be NaN.
pub(super) fn imputer(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let (replaced, values) = match cx.ty(x).dtype.is_float() {
        true => {
            call.ignore(&["imputed_value_int64s", "replaced_value_int64"]);
            let replaced = call.optional_float("replaced_value_float")?.unwrap_or(0.0);
            let values = floats(call, "imputed_value_floats")?;
            (Number::float(replaced), Numbers::Float(values))
        }
        false => {
            call.ignore(&["imputed_value_floats", "replaced_value_float"]);
            let list = call.ints("imputed_value_int64s")?.unwrap_or_default();
            (Number::int(call.int("replaced_value_int64", 0)?.into()), whole(list))
        }
    };
    if count(&values) == 0 {
        return Err(Refusal::Invalid("expected values to put in place, found none".into()));
    }
    let gone = if matches!(replaced, Number::Float(v) if v.get().is_nan()) {
        let same = cx.equal(x, x)?;
        cx.not(same)?
    } else {
        let replaced = cx.constant(replaced.tensor(cx.ty(x).dtype))?;
        cx.equal(x, replaced)?
    };
    let values = numbers_row(cx, cx.ty(x).dtype, values)?;
    Ok(vec![cx.chosen(gone, values, x)?])
}

/// `FeatureVectorizer`: operands beside each other, as f32.
pub(super) fn feature_vectorizer(cx: &mut Importer, call: &Call) -> Imported {
    // The widths of the operands, which their types say too.
    call.ignore(&["inputdimensions"]);
    let mut parts = Vec::new();
    for x in call.all()? {
        let x = samples(cx, x)?;
        parts.push(cx.cast(x, DType::F32)?);
    }
    match parts.as_slice() {
        [only] => Ok(vec![*only]),
        all => cx.one(Concat { axis: 1 }, all),
    }
}

/// `OneHotEncoder` of numbers.
pub(super) fn one_hot_encoder(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let known = call.flag("zeros", true)?;
    let categories = call.ints("cats_int64s")?;
    let categories = categories.ok_or_else(|| Refusal::Unsupported("texts are not supported".into()))?;
    if !known {
        return Err(Refusal::Unsupported("failing on unknown categories is not supported".into()));
    }
    let x = cx.cast(x, DType::I64)?;
    let last = cx.ty(x).ndim();
    let x = cx.unsqueezed(x, last)?;
    let categories = cx.list(categories)?;
    let here = cx.equal(x, categories)?;
    Ok(vec![cx.cast(here, DType::F32)?])
}

/// `LabelEncoder` from numbers to numbers: the value that stands beside an equal key, or a default.
pub(super) fn label_encoder(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let texts = || Refusal::Unsupported("texts are not supported".into());
    let wide = |list: &[f32]| Numbers::Float(list.iter().map(|&v| f64::from(v)).collect());
    let keys = match (call.ints("keys_int64s")?, call.floats("keys_floats")?, call.tensor("keys_tensor")?) {
        (Some(list), _, _) => whole(list),
        (_, Some(list), _) => wide(list),
        (_, _, Some(t)) => Numbers::of(t).map_err(|e| Refusal::Invalid(e.to_string()))?,
        _ => return Err(texts()),
    };
    let whole_default = Number::int(call.int("default_int64", -1)?.into());
    let float_default = Number::float(call.float("default_float", -0.0)?);
    let tensor_default = call.tensor("default_tensor")?;
    let (ints, numbers, tensor) =
        (call.ints("values_int64s")?, call.floats("values_floats")?, call.tensor("values_tensor")?);
    let (dtype, values, default) = match (ints, numbers, tensor) {
        (Some(list), _, _) => (DType::I64, whole(list), whole_default),
        (_, Some(list), _) => (DType::F32, wide(list), float_default),
        (_, _, Some(t)) => {
            let values = Numbers::of(t).map_err(|e| Refusal::Invalid(e.to_string()))?;
            let default = tensor_default.and_then(Number::of);
            let other = if t.dtype().is_float() { float_default } else { whole_default };
            (t.dtype(), values, default.unwrap_or(other))
        }
        _ => return Err(texts()),
    };
    let (count, found) = (count(&keys), count(&values));
    if count != found || count == 0 {
        return Err(Refusal::Invalid(format!("{count} keys and {found} values")));
    }
    let last = cx.ty(x).ndim();
    let wide = cx.unsqueezed(x, last)?;
    // Since version 4 what is not a number is a key like others.
    let nan = match &keys {
        Numbers::Float(keys) => keys.iter().position(|k| k.is_nan()).filter(|_| call.opset >= 4),
        Numbers::Int(_) => None,
    };
    let keys = numbers_row(cx, cx.ty(x).dtype, keys)?;
    let mut here = cx.equal(wide, keys)?;
    if let Some(nan) = nan {
        let same = cx.equal(wide, wide)?;
        let other = cx.not(same)?;
        let place = cx.table(DType::Bool, &[count], (0..count).map(|i| f64::from(i == nan)).collect())?;
        let place = cx.both(other, place)?;
        here = cx.either(here, place)?;
    }
    // The first key that is equal, and one behind all where none is.
    let places = cx.iota(&Dim::from(count))?;
    let behind = cx.scalar(DType::I64, count as f64)?;
    let places = cx.chosen(here, places, behind)?;
    let place = cx.joined(ReduceKind::Min, places, &[last], false)?;
    let values = numbers_row(cx, dtype, values)?;
    let default = cx.constant(default.tensor(dtype))?;
    let default = cx.unsqueezed(default, 0)?;
    let values = cx.add(Concat { axis: 0 }, &[values, default])?;
    cx.one(Gather { axis: 0 }, &[values, place])
}

/// `ZipMap`: the numbers as they are. Maps by label do not exist here; the columns have the order of the labels.
pub(super) fn zip_map(_: &mut Importer, call: &Call) -> Imported {
    call.ignore(&["classlabels_int64s", "classlabels_strings"]);
    Ok(vec![call.input(0)?])
}

/// What is done to the scores of all classes or targets in the end.
pub(super) fn transformed(cx: &mut Importer, call: &Call, scores: Value) -> Result<Value, Refusal> {
    let last = cx.ty(scores).ndim().saturating_sub(1);
    match call.text("post_transform", "NONE")? {
        "NONE" => Ok(scores),
        "LOGISTIC" => cx.add(Sigmoid, &[scores]),
        "SOFTMAX" => cx.add(Softmax { axis: last }, &[scores]),
        other => Err(Refusal::Unsupported(format!("transform `{other}` is not supported"))),
    }
}

/// Rows of numbers as a matrix `[rows, count]`.
pub(super) fn matrix(
    cx: &mut Importer,
    like: Value,
    rows: usize,
    values: Vec<f64>,
) -> Result<Value, Refusal> {
    if rows == 0 || values.is_empty() || !values.len().is_multiple_of(rows) {
        return Err(Refusal::Invalid(format!("{} numbers in {rows} rows", values.len())));
    }
    let dtype = cx.ty(like).dtype;
    let columns = values.len() / rows;
    cx.table(dtype, &[rows, columns], values)
}

/// X Wᵀ + b.
pub(super) fn linear(
    cx: &mut Importer,
    x: Value,
    rows: usize,
    weights: Vec<f64>,
    bias: Vec<f64>,
) -> Result<Value, Refusal> {
    let weights = matrix(cx, x, rows, weights)?;
    let weights = cx.transposed(weights, &[1, 0])?;
    let product = cx.add(MatMul, &[x, weights])?;
    if bias.is_empty() {
        return Ok(product);
    }
    let bias = row(cx, x, bias)?;
    cx.plus(product, bias)
}

/// `LinearRegressor`.
pub(super) fn linear_regressor(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let x = samples(cx, x)?;
    let targets = call.int("targets", 1)?;
    let targets = usize::try_from(targets).map_err(|_| Refusal::Invalid(format!("{targets} targets")))?;
    let scores = linear(cx, x, targets, floats(call, "coefficients")?, floats(call, "intercepts")?)?;
    Ok(vec![transformed(cx, call, scores)?])
}

/// The labels of classes.
pub(super) enum Labels {
    /// Numbers.
    Numbers(Vec<i64>),
    /// So many texts.
    Texts(usize),
}

impl Labels {
    /// Of a classifier.
    pub(super) fn of(call: &Call, numbers: &'static str, texts: &'static str) -> Result<Labels, Refusal> {
        match (call.ints(numbers)?, call.texts(texts)?) {
            (Some(list), None) => Ok(Labels::Numbers(list.to_vec())),
            (None, Some(list)) => Ok(Labels::Texts(list.len())),
            _ => Err(Refusal::Invalid("expected labels that are either numbers or texts".into())),
        }
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        match self {
            Labels::Numbers(list) => list.len(),
            Labels::Texts(count) => *count,
        }
    }

    /// The labels at positions. Those that are texts stand for themselves: nobody can read them.
    pub(super) fn at(&self, cx: &mut Importer, place: Value) -> Result<Value, Refusal> {
        match self {
            Labels::Numbers(list) => {
                let list = cx.list(list)?;
                cx.add(Gather { axis: 0 }, &[list, place])
            }
            Labels::Texts(_) => {
                let texts = cx.add(Cast { to: DType::I32 }, &[place])?;
                cx.texts.insert(texts);
                Ok(texts)
            }
        }
    }
}

/// `LinearClassifier`: scores, and the label of the largest. Of one score for two classes the sign decides.
pub(super) fn linear_classifier(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let x = samples(cx, x)?;
    let labels = Labels::of(call, "classlabels_ints", "classlabels_strings")?;
    // Whether classes compete, which the scores do not depend on.
    call.ignore(&["multi_class"]);
    let (weights, bias) = (floats(call, "coefficients")?, floats(call, "intercepts")?);
    let columns = cx.ty(x).shape[1].as_extent().filter(|&c| c > 0);
    let columns =
        columns.ok_or_else(|| Refusal::Unsupported("an open number of features is not supported".into()))?;
    let rows = weights.len() / columns;
    let scores = linear(cx, x, rows, weights, bias)?;
    let place = if rows == 1 && labels.count() == 2 {
        let second = match call.text("post_transform", "NONE")? {
            "NONE" => Second::Rest,
            _ => Second::Opposite,
        };
        return of_two(cx, call, &labels, scores, 0.0, second);
    } else if rows == labels.count() {
        place_of_extreme(cx, scores, 1, ReduceKind::Max, false, false)?
    } else {
        return Err(Refusal::Invalid(format!("{rows} scores for {} labels", labels.count())));
    };
    Ok(vec![labels.at(cx, place)?, transformed(cx, call, scores)?])
}

/// What the score of the first of two classes is, when one score is that of the second.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Second {
    /// 1 - s.
    Rest,
    /// -s.
    Opposite,
}

/// Label and scores of two classes, of one score `[N, 1]`; the second class where that is above a bound.
pub(super) fn of_two(
    cx: &mut Importer,
    call: &Call,
    labels: &Labels,
    score: Value,
    bound: f64,
    second: Second,
) -> Imported {
    let above = cx.above(score, bound)?;
    let place = cx.cast(above, DType::I64)?;
    let shape = vec![cx.ty(place).shape[0].clone()];
    let place = cx.shaped(place, shape)?;
    let other = match second {
        Second::Rest => {
            let one = cx.number(score, 1.0)?;
            cx.minus(one, score)?
        }
        Second::Opposite => cx.negated(score)?,
    };
    let scores = cx.add(Concat { axis: 1 }, &[other, score])?;
    let scores = match second {
        Second::Rest => {
            call.ignore(&["post_transform"]);
            scores
        }
        Second::Opposite => match call.text("post_transform", "NONE")? {
            "LOGISTIC" => cx.add(Sigmoid, &[scores])?,
            "NONE" => scores,
            other => {
                let why = format!("transform `{other}` of one score for two classes is not supported");
                return Err(Refusal::Unsupported(why));
            }
        },
    };
    Ok(vec![labels.at(cx, place)?, scores])
}

/// `SVMRegressor`.
pub(super) fn svm_regressor(cx: &mut Importer, call: &Call) -> Imported {
    let x = call.input(0)?;
    let x = cx.cast(x, DType::F32)?;
    let x = samples(cx, x)?;
    let (coefficients, vectors) = (floats(call, "coefficients")?, floats(call, "support_vectors")?);
    let supports = call.int("n_supports", 0)?;
    let supports = usize::try_from(supports).map_err(|_| Refusal::Invalid(format!("{supports} vectors")))?;
    let rho = floats(call, "rho")?;
    let parameters = floats(call, "kernel_params")?;
    let kind = call.text("kernel_type", "LINEAR")?;
    let products = if supports == 0 {
        x
    } else {
        let vectors = matrix(cx, x, supports, vectors)?;
        kernel(cx, x, vectors, kind, &parameters)?
    };
    let mut y = linear(cx, products, 1, coefficients, rho)?;
    if call.flag("one_class", false)? {
        let positive = cx.above(y, 0.0)?;
        let one = cx.number(y, 1.0)?;
        y = cx.chosen_or(positive, one, -1.0)?;
    }
    match call.text("post_transform", "NONE")? {
        "NONE" => Ok(vec![y]),
        other => Err(Refusal::Unsupported(format!("transform `{other}` is not supported"))),
    }
}

/// The kernel of every row of X `[N, F]` and every vector `[M, F]`.
pub(super) fn kernel(
    cx: &mut Importer,
    x: Value,
    vectors: Value,
    kind: &str,
    parameters: &[f64],
) -> Result<Value, Refusal> {
    let parameter = |i: usize| parameters.get(i).copied().unwrap_or(0.0);
    let (gamma, zeroth, degree) = (parameter(0), parameter(1), parameter(2));
    if kind == "RBF" {
        // Σ (x - v)², not the square of the difference of lengths: what is near is not cancelled.
        let (left, right) = (cx.unsqueezed(x, 1)?, cx.unsqueezed(vectors, 0)?);
        let difference = cx.minus(left, right)?;
        let squares = cx.times(difference, difference)?;
        let distance = cx.joined(ReduceKind::Sum, squares, &[2], false)?;
        let exponent = cx.scaled(distance, -gamma)?;
        return cx.exp(exponent);
    }
    let transposed = cx.transposed(vectors, &[1, 0])?;
    let products = cx.add(MatMul, &[x, transposed])?;
    if kind == "LINEAR" {
        return Ok(products);
    }
    let scaled = cx.scaled(products, gamma)?;
    let moved = cx.offset(scaled, zeroth)?;
    match kind {
        "POLY" => {
            let degree = cx.number(moved, degree)?;
            cx.add(Pow, &[moved, degree])
        }
        "SIGMOID" => cx.add(Tanh, &[moved]),
        other => Err(Refusal::Invalid(format!("`{other}` is no kernel"))),
    }
}
