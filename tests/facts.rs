//! What operators say of themselves, compared with what they compute, over the cases of all of them.

use margay_ir::ops::{Const, ImageLayout, IntTensor, Io, Lowered, Numbers, Transpose};
use margay_ir::{Graph, Op, Payload, TensorType};
use margay_tensor::{DType, Dim, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs, in_other_types};

/// The results of an operator; the cases are within what it can evaluate.
fn eval(op: &Op, inputs: &[Tensor]) -> Vec<Tensor> {
    op.eval(&inputs.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{op:?}: {e}"))
}

fn transposed(t: &Tensor, perm: &[usize]) -> Tensor {
    eval(&Transpose { perm: perm.to_vec() }.into(), std::slice::from_ref(t)).remove(0)
}

fn io_of(op: &Op, inputs: &[Tensor]) -> Io {
    let mut g = Graph::new("node");
    let values: Vec<_> = inputs.iter().map(|t| g.add_input("x", TensorType::of(t))).collect();
    let v = g.add(op.clone(), &values, margay_ir::Origin::default()).unwrap_or_else(|e| panic!("{e}"));
    g.io_of(v.node).expect("cases have known extents")
}

/// Cases by what they are about, to see that none of the tests is about nothing.
fn counted(what: &str, at_least: usize, test: impl Fn(&Op, &[Tensor]) -> bool) {
    let count = Op::cases().iter().filter(|(op, case)| test(op, &case_inputs(case))).count();
    assert!(count >= at_least, "{what}: {count} cases");
}

#[test]
fn elementwise_is_what_lowers_so() {
    counted("elementwise", 100, |op, inputs| {
        let io = io_of(op, inputs);
        let elementwise = op.facts().elementwise.is_some();
        // What waits for a layout, or for a constant operand, is not.
        let lowers_so = op.lower(&io).is_ok_and(|lowered| matches!(lowered, Lowered::Elementwise(_)));
        assert_eq!(elementwise, lowers_so, "{op:?}");
        elementwise
    });
}

#[test]
fn operators_follow_their_operands_to_another_order_of_axes() {
    counted("permuted", 100, |op, inputs| {
        let expected = eval(op, inputs);
        let ndim = expected[0].shape().len();
        // A cycle of all axes: it is not its own inverse.
        let perm: Vec<usize> = (0..ndim).map(|i| (i + 1) % ndim).collect();
        let Some(permuted) = op.permuted(&perm) else {
            assert!(op.facts().elementwise.is_none(), "{op:?}");
            return false;
        };
        let facts = op.facts();
        let positions = if facts.elementwise.is_some() { &[] } else { facts.steering() };
        let moved = |(i, t): (usize, &Tensor)| !positions.contains(&i) && t.shape().len() != ndim;
        if facts.elementwise.is_none() && inputs.iter().enumerate().any(moved) {
            return false;
        }
        let in_order = |(i, t): (usize, &Tensor)| {
            if positions.contains(&i) {
                return t.clone();
            }
            let missing = ndim - t.shape().len();
            let shape: Vec<usize> =
                std::iter::repeat_n(1, missing).chain(t.shape().iter().copied()).collect();
            transposed(&t.reshaped(&shape).expect("ones in front"), &perm)
        };
        let inputs: Vec<Tensor> = inputs.iter().enumerate().map(in_order).collect();
        let found = eval(&permuted, &inputs);
        assert_close(&format!("{op:?}"), &found[0], &transposed(&expected[0], &perm), Tolerance::REDUCTION);
        true
    });
}

#[test]
fn images_with_channels_last_give_the_same() {
    counted("image", 10, |op, inputs| {
        let Some(image) = op.facts().image.filter(|i| i.layout == ImageLayout::Nchw) else { return false };
        let mut in_order = inputs.to_vec();
        for x in &mut in_order[..image.operands] {
            *x = transposed(x, &ImageLayout::Nhwc.perm_from_nchw(x.shape().len()));
        }
        let (mut expected, found) =
            (eval(op, inputs).remove(0), eval(&image.channels_last, &in_order).remove(0));
        if image.result {
            expected = transposed(&expected, &ImageLayout::Nhwc.perm_from_nchw(expected.shape().len()));
        }
        assert_close(&format!("{op:?}"), &found, &expected, Tolerance::REDUCTION);
        let layout = image.channels_last.facts().image.map(|i| i.layout);
        assert_eq!(layout, Some(ImageLayout::Nhwc), "{op:?}");
        true
    });
}

#[test]
fn identities_and_neutral_numbers_change_nothing() {
    counted("identity or neutral", 15, |op, inputs| {
        let facts = op.facts();
        let same_type = |outputs: &[Tensor]| TensorType::of(&outputs[0]) == TensorType::of(&inputs[0]);
        let outputs = eval(op, inputs);
        if facts.identity && inputs.len() == 1 && same_type(&outputs) {
            assert_eq!(outputs[0], inputs[0], "{op:?}");
            return true;
        }
        let Some(neutral) = facts.elementwise.and_then(|e| e.neutral) else { return false };
        let x = &inputs[0];
        let number = Payload::number(x.dtype(), neutral.number).tensor().clone();
        let orders = [[x.clone(), number.clone()], [number, x.clone()]];
        for operands in &orders[..if neutral.commutes { 2 } else { 1 }] {
            assert_eq!(eval(op, operands)[0], *x, "{op:?}");
        }
        true
    });
}

#[test]
fn numbers_are_computed_as_symbols_are() {
    let mut count = 0;
    for (op, case) in Op::cases() {
        let others = in_other_types(&op, &case).into_iter().filter(|(dtype, _)| *dtype == DType::I64);
        let cases = others.map(|(_, other)| other).chain([case.clone()]);
        count += cases.filter(|case| agrees_on_numbers(&op, &case_inputs(case))).count();
    }
    assert!(count >= 50, "{count} cases");
}

/// Compares where the operator takes integers with symbols, and these are some.
fn agrees_on_numbers(op: &Op, inputs: &[Tensor]) -> bool {
    let ints = |t: &Tensor| Numbers::of(t).expect("any tensor can be read").ints();
    let shapes = |t: &Tensor| !t.dtype().is_float() && ints(t).iter().all(|v| v.unsigned_abs() < 1 << 31);
    if op.facts().symbolic.is_none() || !inputs.iter().all(shapes) {
        return false;
    }
    let known = |t: &Tensor| IntTensor {
        dtype: t.dtype(),
        shape: t.shape().to_vec(),
        values: ints(t).into_iter().map(Dim::from).collect(),
    };
    let expected = eval(op, inputs).remove(0);
    let known: Vec<IntTensor> = inputs.iter().map(known).collect();
    match op.eval_symbolic(&known, expected.shape()) {
        Some(found) => {
            let found: Vec<i64> = found.iter().map(|d| d.as_const().expect("no symbols")).collect();
            if !expected.dtype().is_float() {
                assert_eq!(found, ints(&expected), "{op:?}");
            }
            true
        }
        None => false,
    }
}

#[test]
fn the_form_with_all_results_begins_with_the_same() {
    counted("all results", 1, |op, inputs| {
        let Some(whole) = op.facts().with_all_results else { return false };
        let (own, all) = (eval(op, inputs), eval(&whole, inputs));
        assert_eq!(own[..], all[..own.len()], "{op:?}");
        true
    });
}

#[test]
fn parameters_count_their_terms() {
    let weight = |op: &Op, slot: usize, shape: &[usize]| match op.facts().parameters[slot] {
        Some(margay_ir::ops::Parameter::Weight(terms)) => terms(shape),
        other => panic!("{op:?}: {other:?}"),
    };
    let product = Op::from(margay_ir::ops::MatMul);
    assert_eq!(weight(&product, 1, &[3, 5]), 3);
    assert_eq!(weight(&product, 1, &[2, 3, 5]), 3);
    assert_eq!(weight(&product, 0, &[3, 5]), 5);
    assert_eq!(weight(&margay_ir::ops::Conv::pointwise().into(), 1, &[8, 4, 3, 3]), 36);
    let leaf = Op::from(Const { payload: Payload::number(DType::F32, 1.0) });
    assert!(leaf.facts().parameters.is_empty());
}
