//! What tests share: inputs of cases, comparisons with their tolerances, text helpers.
//!
//! A dev-dependency only.

#![forbid(unsafe_code)]

mod compare;
mod text;

pub use compare::{Tolerance, assert_close, max_error};
pub use text::{DocExample, doc_examples, normalized, parse_with_random_constants};

use margay_ir::ops::{Case, CaseInput, Numbers};
use margay_ir::{Op, TensorType};
use margay_tensor::random::Philox;
use margay_tensor::{DType, Tensor};

/// The tensors of a case, the same on every call.
pub fn case_inputs(case: &Case) -> Vec<Tensor> {
    case.inputs
        .iter()
        .enumerate()
        .map(|(i, input)| match input {
            CaseInput::Values(t) => t.clone(),
            CaseInput::Random { dtype, shape, low, high } => {
                let mut unit = vec![0f64; shape.iter().product()];
                Philox::new(1, i as u64).fill_uniform_f64(0, &mut unit);
                let scaled = unit.into_iter().map(|u| low + u * (high - low));
                let numbers = match dtype.is_float() {
                    true => Numbers::Float(scaled.collect()),
                    false => Numbers::Int(scaled.map(|x| x.floor() as i128).collect()),
                };
                numbers.into_tensor(*dtype, shape).expect("the shape of a case is small")
            }
        })
        .collect()
}

/// A random normal tensor.
pub fn normal(shape: &[usize], seed: u64, stream: u64) -> Tensor {
    let mut data = vec![0f32; shape.iter().product()];
    Philox::new(seed, stream).fill_normal_f32(0, &mut data);
    Tensor::from_slice(shape, &data).expect("as many numbers as the shape holds")
}

/// A case with every random operand of the type of the first one in another type, where an operator claims to take that:
/// once for each type that it takes beside its own. Operands that are given, such as indices, stay.
pub fn in_other_types(op: &Op, case: &Case) -> Vec<(DType, Case)> {
    let first = case.inputs.iter().find_map(|input| match input {
        CaseInput::Random { dtype, .. } => Some(*dtype),
        CaseInput::Values(_) => None,
    });
    let others = DType::ALL.into_iter().filter(|d| first.is_some_and(|first| first != *d));
    others
        .filter_map(|to| {
            let mut case = case.clone();
            for input in &mut case.inputs {
                if let CaseInput::Random { dtype, .. } = input
                    && Some(*dtype) == first
                {
                    *dtype = to;
                }
            }
            let types: Vec<TensorType> = case_inputs(&case).iter().map(TensorType::of).collect();
            op.infer(&types.iter().collect::<Vec<_>>()).ok().map(|_| (to, case))
        })
        .collect()
}
