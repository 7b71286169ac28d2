//! Products, convolutions, pooling, normalization.

use super::*;

#[test]
fn vectors_are_matrices_for_a_moment() {
    let (matrix, vector) = (|| Input(counting(&[2, 2])), || Input(floats(&[2], &[1.0, 2.0])));
    assert_floats(&run(13, "MatMul", &[], vec![matrix(), vector()]), &[2], &[2.0, 8.0]);
    assert_floats(&run(13, "MatMul", &[], vec![vector(), matrix()]), &[2], &[4.0, 7.0]);
    assert_floats(&run(13, "MatMul", &[], vec![vector(), vector()]), &[], &[5.0]);
    let batch = Input(counting(&[3, 2, 2]));
    assert_eq!(run(13, "MatMul", &[], vec![vector(), batch]).shape(), [3, 2]);
}

#[test]
fn nodes_of_one_name_are_told_apart() {
    let weight = |name| (name, floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let named = |mut node: OnnxNode, name: &str| {
        node.name = name.to_owned();
        node
    };
    let nodes = vec![
        named(node("MatMul", &["x", "w"], &["a"], &[]), "fc"),
        named(node("MatMul", &["a", "v"], &["b"], &[]), "fc"),
        named(node("Relu", &["b"], &["y"], &[]), "act"),
    ];
    let given = vec![input("x", DType::F32, &["1", "2"])];
    let g = imported(&model(17, given, &[weight("w"), weight("v")], nodes, &["y"]));
    let names: Vec<&str> = g.order().into_iter().map(|n| g.node(n).origin.name()).collect();
    assert_eq!(names.iter().filter(|name| ["fc", "b", "act"].contains(name)).count(), 3, "{g}");
}

#[test]
fn gemm_scales_and_transposes() {
    let attributes = [("alpha", Attribute::Float(0.5)), ("beta", Attribute::Float(2.0)), ("transB", int(1))];
    let operands = vec![
        Input(counting(&[1, 2])),
        Constant(floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        Constant(floats(&[2], &[10.0, 20.0])),
    ];
    let (model, given) = single(13, "Gemm", &attributes, operands, 1);
    let g = imported(&model);
    assert_floats(&run_graph(&g, &given)[0], &[1, 2], &[21.0, 42.0]);
    // The moved weight keeps its name, the product has the node's.
    assert_eq!(
        g.to_string(),
        "graph @test(%x0: f32[1, 2]) -> (y0: f32[1, 2]) {
  %0 = const [1.0, 2.0, 3.0, 4.0] : f32[2, 2]  // x1
  %1 = const [10.0, 20.0] : f32[2]  // x2
  %2 = transpose %0 {perm = [1, 0]} : f32[2, 2]  // x1
  %3 = matmul %x0, %2 : f32[1, 2]  // y0
  %4 = const 0.5 : f32
  %5 = mul %3, %4 : f32[1, 2]  // y0
  %6 = const 2.0 : f32
  %7 = mul %1, %6 : f32[2]  // y0
  %8 = add %5, %7 : f32[1, 2]  // y0
  return %8
}
"
    );
}

#[test]
fn convolution_pads_as_asked() {
    let x = || Input(counting(&[1, 1, 4]));
    let k = || Constant(floats(&[1, 1, 2], &[1.0, 1.0]));
    let auto = |kind: &str| [("auto_pad", Attribute::String(kind.to_owned()))];
    let conv = |attributes: &[_]| run(13, "Conv", attributes, vec![x(), k()]);
    assert_floats(&conv(&auto("VALID")), &[1, 1, 3], &[1.0, 3.0, 5.0]);
    assert_floats(&conv(&auto("SAME_UPPER")), &[1, 1, 4], &[1.0, 3.0, 5.0, 3.0]);
    assert_floats(&conv(&auto("SAME_LOWER")), &[1, 1, 4], &[0.0, 1.0, 3.0, 5.0]);
    let explicit = [("pads", list(&[1, 0])), ("strides", list(&[2])), ("kernel_shape", list(&[2]))];
    assert_floats(&conv(&explicit), &[1, 1, 2], &[0.0, 3.0]);
    let plane = vec![
        Input(counting(&[1, 1, 2, 2])),
        Constant(floats(&[2, 1, 1, 1], &[1.0, 2.0])),
        Constant(floats(&[2], &[10.0, 20.0])),
    ];
    let expected = [10.0, 11.0, 12.0, 13.0, 20.0, 22.0, 24.0, 26.0];
    assert_floats(&run(13, "Conv", &[], plane), &[1, 2, 2, 2], &expected);
}

#[test]
fn pools_round_the_number_of_windows() {
    let x = || vec![Input(counting(&[1, 1, 5]))];
    let pool = |ceil: i64| [("kernel_shape", list(&[2])), ("strides", list(&[2])), ("ceil_mode", int(ceil))];
    assert_floats(&run(13, "MaxPool", &pool(0), x()), &[1, 1, 2], &[1.0, 3.0]);
    assert_floats(&run(13, "MaxPool", &pool(1), x()), &[1, 1, 3], &[1.0, 3.0, 4.0]);
    assert_floats(&run(13, "AveragePool", &pool(1), x()), &[1, 1, 3], &[0.5, 2.5, 4.0]);
    assert_floats(&run(13, "GlobalAveragePool", &[], x()), &[1, 1, 1], &[2.0]);
    assert_floats(&run(13, "GlobalMaxPool", &[], x()), &[1, 1, 1], &[4.0]);
    let same = [("kernel_shape", list(&[3])), ("auto_pad", Attribute::String("SAME_UPPER".to_owned()))];
    let zeros = [&same[..], &[("count_include_pad", int(1))]].concat();
    assert_floats(&run(13, "AveragePool", &same, x()), &[1, 1, 5], &[0.5, 1.0, 2.0, 3.0, 3.5]);
    assert_floats(&run(13, "AveragePool", &zeros, x()), &[1, 1, 5], &[1.0 / 3.0, 1.0, 2.0, 3.0, 7.0 / 3.0]);
}

#[test]
fn normalizations() {
    let channel = |v: f32| Constant(floats(&[1], &[v]));
    let operands = vec![Input(counting(&[1, 1, 3])), channel(2.0), channel(1.0), channel(0.5), channel(3.0)];
    let epsilon = [("epsilon", Attribute::Float(1.0))];
    let y = run(15, "BatchNormalization", &epsilon, operands);
    assert_floats(&y, &[1, 1, 3], &[0.5, 1.5, 2.5]);
    let operands = vec![Input(floats(&[1, 2], &[-3.0, 3.0])), Constant(floats(&[2], &[1.0, 2.0]))];
    let all = run_all(17, "LayerNormalization", &[], operands, 3);
    assert_floats(&all[0], &[1, 2], &[-1.0, 2.0]);
    assert_floats(&all[1], &[1, 1], &[0.0]);
    assert_floats(&all[2], &[1, 1], &[1.0 / 3.0]);
    let kept = run_all(13, "Dropout", &[], vec![Input(counting(&[2]))], 2);
    assert_eq!((kept[0].clone(), kept[1].bytes()), (counting(&[2]), &[1u8, 1][..]));
}

#[test]
fn dropout_is_kept_for_training_alone() {
    let x = || Input(counting(&[2]));
    let (ratio, given) = (|| Constant(floats(&[], &[0.1])), || Input(floats(&[], &[0.1])));
    let flag = |v: bool| Tensor::from_bools(&[], &[v]).unwrap();
    let attribute = [("ratio", Attribute::Float(0.1))];
    let old = [("ratio", Attribute::Float(0.1)), ("is_test", int(0))];
    let kept = |ratio: f64| format!("dropout %x0 {{ratio = {ratio:?}, stream = 0}}");
    for (opset, attributes, operands, ratio) in [
        (6, &old[..], vec![x()], 0.1),
        (7, &attribute[..], vec![x()], 0.1),
        (10, &attribute[..], vec![x()], 0.1),
        (10, &[], vec![x()], 0.5),
        (12, &[], vec![x(), ratio()], 0.1),
        (13, &[], vec![x(), ratio(), Constant(flag(true))], 0.1),
        (13, &[], vec![x(), ratio(), Constant(flag(false))], 0.1),
        (22, &[], vec![x(), Absent, Constant(flag(true))], 0.5),
        (22, &[("seed", int(3))], vec![x(), ratio(), Input(flag(true))], 0.1),
    ] {
        let (model, _) = single(opset, "Dropout", attributes, operands, 1);
        let text = |dropout| {
            let g = import_for_training(&model, dropout).unwrap();
            g.verify(Stage::Imported).unwrap();
            g.to_string()
        };
        assert!(text(Dropout::Model).contains(&kept(ratio)), "{}", text(Dropout::Model));
        assert!(text(Dropout::Ratio(0.25)).contains(&kept(0.25)));
        assert!(!text(Dropout::None).contains("dropout"));
        assert!(!text(Dropout::Ratio(0.0)).contains("dropout"));
        // Outside of training it is an identity or refused, as ever.
        if let Ok(g) = import(&model) {
            assert!(!g.to_string().contains("dropout"));
        }
    }
    let refused = |operands, outputs, dropout| {
        let (model, _) = single(13, "Dropout", &[], operands, outputs);
        import_for_training(&model, dropout).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused(vec![x(), given()], 1, Dropout::Model).contains("the ratio is computed at run time"));
    assert_eq!(refused(vec![x(), given()], 1, Dropout::Ratio(0.5)), "");
    let mask = "training with a mask that other nodes read is not supported";
    assert!(refused(vec![x()], 2, Dropout::Model).contains(mask));
    assert_eq!(refused(vec![x()], 2, Dropout::None), "");
    let certain = Constant(floats(&[], &[1.0]));
    let said = refused(vec![x(), certain], 1, Dropout::Model);
    assert!(said.contains("a ratio of 1, expected at least 0 and below 1"), "{said}");
}

#[test]
fn places_of_dropout_are_counted_in_the_order_of_the_model() {
    let nodes = vec![
        node("Dropout", &["x"], &["a"], &[]),
        node("Dropout", &["a", "none"], &["b"], &[]),
        node("Dropout", &["x"], &["c", "unread"], &[]),
        node("Add", &["b", "c"], &["y"], &[]),
    ];
    let inputs = vec![input("x", DType::F32, &["N"])];
    let model = model(17, inputs, &[("none", floats(&[], &[0.0]))], nodes, &["y"]);
    let mut g = import_for_training(&model, Dropout::Model).unwrap();
    g.remove_dead();
    assert_eq!(
        g.to_string(),
        "graph @test(%x: f32[N]) -> (y: f32[N]) {
  %0 = dropout %x {ratio = 0.5, stream = 0} : f32[N]  // a
  %1 = dropout %x {ratio = 0.5, stream = 1} : f32[N]  // c
  %2 = add %0, %1 : f32[N]  // y
  return %2
}
"
    );
}

#[test]
fn softmax_joins_axes_before_operator_set_13() {
    let x = || vec![Input(floats(&[1, 2, 2], &[0.0; 4]))];
    assert_floats(&run(11, "Softmax", &[], x()), &[1, 2, 2], &[0.25; 4]);
    assert_floats(&run(13, "Softmax", &[], x()), &[1, 2, 2], &[0.5; 4]);
    assert_floats(&run(13, "Softmax", &[("axis", int(0))], x()), &[1, 2, 2], &[1.0; 4]);
    assert_floats(&run(13, "LogSoftmax", &[], x()), &[1, 2, 2], &[-std::f32::consts::LN_2; 4]);
}

/// The definition: every input is spread over the outputs under its taps.
fn spread(
    x: &Tensor,
    k: &Tensor,
    [stride, dilation, before]: [[usize; 2]; 3],
    out: [usize; 2],
    groups: usize,
) -> Tensor {
    let (xs, ks) = (x.to_vec::<f32>().unwrap(), k.to_vec::<f32>().unwrap());
    let (&[n, c, h, w], &[_, per_group, kh, kw]) = (x.shape(), k.shape()) else { panic!("planes") };
    let channels = groups * per_group;
    let mut y = vec![0f32; n * channels * out[0] * out[1]];
    for (at, x) in xs.iter().enumerate() {
        let (col, row, channel, image) = (at % w, at / w % h, at / w / h % c, at / w / h / c);
        for tap in 0..per_group * kh * kw {
            let (kx, ky, o) = (tap % kw, tap / kw % kh, tap / kw / kh);
            let y_row = (row * stride[0] + ky * dilation[0]).wrapping_sub(before[0]);
            let y_col = (col * stride[1] + kx * dilation[1]).wrapping_sub(before[1]);
            if y_row < out[0] && y_col < out[1] {
                let to = channel / (c / groups) * per_group + o;
                let to = ((image * channels + to) * out[0] + y_row) * out[1] + y_col;
                y[to] += x * ks[channel * per_group * kh * kw + tap];
            }
        }
    }
    floats(&[n, channels, out[0], out[1]], &y)
}

#[test]
fn transposed_convolution_spreads_its_input() {
    // Strides, dilations, pads, output padding, groups, kernel.
    for (stride, dilation, pads, extra, groups, kernel) in [
        ([1, 1], [1, 1], [0, 0, 0, 0], [0, 0], 1, [3, 2]),
        ([2, 2], [1, 1], [0, 0, 0, 0], [0, 0], 1, [2, 2]),
        ([2, 3], [1, 1], [1, 0, 1, 2], [1, 0], 2, [3, 4]),
        ([3, 2], [2, 3], [1, 2, 0, 3], [2, 1], 2, [2, 3]),
        ([1, 1], [2, 2], [1, 3, 2, 0], [0, 1], 1, [3, 3]),
        ([4, 4], [1, 1], [0, 1, 1, 0], [3, 3], 4, [1, 2]),
    ] {
        let (x, k) = (counting(&[2, 4, 3, 5]), counting(&[4, 3, kernel[0], kernel[1]]));
        let reach = |i: usize| ([3, 5][i] - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 + extra[i];
        let out = [0, 1].map(|i| reach(i) - pads[i] - pads[2 + i]);
        let all = |v: &[usize]| list(&v.iter().map(|&v| v as i64).collect::<Vec<_>>());
        let attributes = [
            ("strides", all(&stride)),
            ("dilations", all(&dilation)),
            ("pads", all(&pads)),
            ("output_padding", all(&extra)),
            ("group", int(groups as i64)),
        ];
        let found = run(11, "ConvTranspose", &attributes, vec![Input(x.clone()), Constant(k.clone())]);
        let expected = spread(&x, &k, [stride, dilation, [pads[0], pads[1]]], out, groups);
        assert_eq!(found, expected, "{attributes:?}");
    }
}

#[test]
fn transposed_convolution_reaches_the_shape_asked_for() {
    let transposed = |attributes: &[_]| {
        let operands = vec![
            Input(counting(&[1, 1, 3])),
            Constant(floats(&[1, 1, 3], &[1.0, 2.0, 4.0])),
            Constant(floats(&[1], &[100.0])),
        ];
        run(11, "ConvTranspose", attributes, operands)
    };
    let strides = ("strides", list(&[2]));
    let whole = [100.0, 100.0, 101.0, 102.0, 106.0, 104.0, 108.0];
    assert_floats(&transposed(std::slice::from_ref(&strides)), &[1, 1, 7], &whole);
    let auto = |kind: &str| [strides.clone(), ("auto_pad", Attribute::String(kind.to_owned()))];
    assert_floats(&transposed(&auto("SAME_UPPER")), &[1, 1, 6], &whole[..6]);
    assert_floats(&transposed(&auto("SAME_LOWER")), &[1, 1, 6], &whole[1..]);
    let shape = |n: i64| [strides.clone(), ("output_shape", list(&[n]))];
    assert_floats(&transposed(&shape(5)), &[1, 1, 5], &whole[1..6]);
    assert_floats(&transposed(&shape(9)), &[1, 1, 9], &[&whole[..], &[100.0, 100.0]].concat());
}

#[test]
fn a_transposed_convolution_keeps_open_extents() {
    let k = Constant(counting(&[2, 3, 4, 4]));
    let attributes = [("strides", list(&[2, 2])), ("pads", list(&[1, 1, 1, 1]))];
    let (model, _) = single(11, "ConvTranspose", &attributes, vec![Input(counting(&[1, 2, 3, 3])), k], 1);
    let mut open = model;
    open.graph.inputs[0] = input("x0", DType::F32, &["N", "2", "H", "W"]);
    let g = imported(&open);
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[N, 3, 2*H, 2*W]");
}

/// The output of a single node of onnxruntime's own operators.
fn run_microsoft(op: &str, attributes: &[(&str, Attribute)], operands: Vec<Operand>) -> Tensor {
    let (mut model, given) = single(17, op, attributes, operands, 1);
    model.graph.nodes[0].domain = "com.microsoft".to_owned();
    model.domains.insert("com.microsoft".to_owned(), 1);
    run_graph(&imported(&model), &given).remove(0)
}

/// The batch is the middle axis of an operand: rows, batch, terms.
#[test]
fn products_take_batches_from_behind() {
    let a = counting(&[2, 3, 4]);
    let b = counting(&[3, 4, 1]);
    let found = run_microsoft("FusedMatMul", &[("transBatchA", int(1))], vec![Input(a), Input(b)]);
    let expected = |batch: usize, row: usize| -> f32 {
        (0..4).map(|k| (row * 12 + batch * 4 + k) as f32 * (batch * 4 + k) as f32).sum()
    };
    let expected: Vec<f32> = (0..6).map(|i| expected(i / 2, i % 2)).collect();
    assert_floats(&found, &[3, 2, 1], &expected);
}

#[test]
fn onnxruntime_has_quantization_of_its_own() {
    let x = floats(&[3], &[-1.0, 0.26, 1.0]);
    let scale = || Constant(floats(&[], &[0.5]));
    let zero = || Constant(Tensor::from_slice(&[], &[3u8]).unwrap());
    let narrow = run_microsoft("QuantizeLinear", &[], vec![Input(x), scale(), zero()]);
    assert_eq!(narrow.to_vec::<u8>().unwrap(), [1, 4, 5]);
    let wide = run_microsoft("DequantizeLinear", &[], vec![Input(narrow), scale(), zero()]);
    assert_floats(&wide, &[3], &[-1.0, 0.5, 1.0]);
}

/// Positions are those of centres, and elements begin at 0.
#[test]
fn the_nearest_is_that_of_centres() {
    let text = |s: &str| Attribute::String(s.to_owned());
    let attributes = [
        ("mode", text("nearest")),
        ("nearest_mode", text("floor")),
        ("coordinate_transformation_mode", text("tf_half_pixel_for_nn")),
    ];
    let scales = Constant(floats(&[1], &[0.6]));
    let x = floats(&[5], &[0.0, 1.0, 2.0, 3.0, 4.0]);
    let found = run(11, "Resize", &attributes, vec![Input(x), Constant(floats(&[0], &[])), scales]);
    assert_floats(&found, &[3], &[0.0, 2.0, 4.0]);
}
