//! Everything wrong is found, and said in words that fit the file.

use margay_onnx::{Kind, OnnxError, supported_operators};

use super::*;

#[test]
fn all_problems_are_listed() {
    let mut custom = node("Fancy", &["x"], &["f"], &[]);
    custom.domain = "com.example".to_owned();
    let mut unnamed = node("TfIdfVectorizer", &["x"], &["s3"], &[]);
    unnamed.name = String::new();
    let nodes = vec![
        node("TfIdfVectorizer", &["x"], &["s1"], &[]),
        node("TfIdfVectorizer", &["s1"], &["s2"], &[]),
        unnamed,
        custom,
        node("Relu", &["f"], &["unreported"], &[]),
        node("Add", &["x", "w"], &["sum"], &[]),
        node("MatMul", &["x", "k"], &["product"], &[]),
        node("Concat", &["x", "x"], &["joined"], &[]),
        node("Reshape", &["x", "x_int"], &["shaped"], &[]),
        node("Relu", &["x"], &["r"], &[("slope", int(1))]),
        node("Gelu", &["x"], &["g"], &[]),
        node("Exp", &["x", "x"], &["e"], &[]),
        node("Abs", &["nowhere"], &["a"], &[]),
    ];
    let constants = [("w", floats(&[3], &[0.0; 3])), ("k", Tensor::from_slice(&[3, 2], &[0i64; 6]).unwrap())];
    let inputs = vec![
        input("x", DType::F32, &["n", "4"]),
        input("x_int", DType::I64, &["2"]),
        OnnxValue { name: "rankless".to_owned(), dtype: Some(DType::F32), narrow: None, dims: None },
    ];
    let error = import(&model(17, inputs, &constants, nodes, &["sum", "lost"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model has several problems:
  input `rankless`: expected a number of axes to be declared, found none
  node `sum` (Add): `add`: axis 1 of a broadcast: extents `4` and `3` differ or are not known to be equal; \
inputs are f32[n, 4], f32[3]
  node `product` (MatMul): `matmul`: input 1 is i64, expected f32; inputs are f32[n, 4], i64[3, 2]
  node `joined` (Concat): expected attribute `axis`, found none; inputs are f32[n, 4], f32[n, 4]
  node `g` (Gelu): expected operator set 20 or newer, found 17; inputs are f32[n, 4]
  node `e` (Exp): expected at most 1 inputs, found 2; inputs are f32[n, 4], f32[n, 4]
  node `a` (Abs): expected input `nowhere` to be a graph input, initializer or node output, found none
  output `lost`: expected a graph input, initializer or node output, found none
  operator `TfIdfVectorizer`: the operator is not supported; used by 3 nodes: `s1` (TfIdfVectorizer), `s2` (TfIdfVectorizer), \
number 2 (TfIdfVectorizer)
  operator `com.example.Fancy`: the operator is not supported; used by node `f` (com.example.Fancy)
  operator `Reshape`: the shape is computed at run time; used by node `shaped` (Reshape)
  operator `Relu`: attribute `slope` is not supported; used by node `r` (Relu)"
    );
    assert!(error.is_malformed());
}

#[test]
fn what_is_merely_unsupported_is_not_malformed() {
    let kinds = |nodes: Vec<OnnxNode>| {
        let inputs = vec![input("x", DType::F32, &["n"]), input("y", DType::F32, &["m"])];
        match import(&model(17, inputs, &[], nodes, &["x"])).unwrap_err() {
            OnnxError::Invalid(problems) => problems.iter().map(|p| p.kind()).collect::<Vec<_>>(),
            other => unreachable!("{other}"),
        }
    };
    assert_eq!(kinds(vec![node("TfIdfVectorizer", &["x"], &["z"], &[])]), [Kind::Unsupported]);
    assert_eq!(kinds(vec![node("Squeeze", &["x"], &["z"], &[])]), [Kind::Unsupported]);
    assert_eq!(kinds(vec![node("Add", &["x"], &["z"], &[])]), [Kind::Malformed]);
}

#[test]
fn outputs_nobody_computes_are_refused_when_they_are_read() {
    let (model, _) = single(13, "Softmax", &[], vec![Input(counting(&[1, 1, 4]))], 2);
    assert_eq!(
        import(&model).unwrap_err().to_string(),
        "operator `Softmax`: output 1 is not supported; used by node `y0` (Softmax)"
    );
}

#[test]
fn the_list_of_operators_is_public() {
    assert!(supported_operators().any(|o| o == ("", "LayerNormalization", 17)));
    assert!(supported_operators().all(|(_, name, _)| name != "TfIdfVectorizer"));
}
