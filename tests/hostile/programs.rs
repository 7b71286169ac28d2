//! Texts of programs: what parses prints the same again, and the verifier has an answer.

use margay_driver::{Dump, backend, build::bind};
use margay_ir::{Graph, text};
use margay_loops::{ConstantText, Precision, Program, parse_program};
use margay_lower::lower;
use margay_tensor::{Binding, StoredTensor, Tensor};

use super::graphs::{NETWORKS, cases};
use super::{Draw, distinct, words};

/// The most elements of a constant.
const MAX_RESOLVED: usize = 1 << 16;

/// Accepts what parses and passes the verifier.
pub(super) fn run(bytes: &[u8]) -> bool {
    let Ok(source) = str::from_utf8(bytes) else { return false };
    let Ok(program) = parse_program(source, &zeros) else { return false };
    let printed = program.to_string();
    let again = parse_program(&printed, &|c| of_program(&program, c));
    let again = again.unwrap_or_else(|e| panic!("{e}\n{printed}")).to_string();
    assert!(again == printed, "{printed}\nreads back as\n{again}");
    program.verify().is_ok()
}

/// Zeros, of a size that a program may ask for.
fn zeros(c: &ConstantText) -> Option<StoredTensor> {
    let elements = c.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if elements > MAX_RESOLVED {
        return None;
    }
    let tensor = Tensor::zeros(c.dtype, &c.shape).ok()?;
    match c.storage.is_plain(c.dtype) {
        true => Some(tensor.into()),
        false => StoredTensor::encode(&tensor, c.storage).ok(),
    }
}

fn of_program(program: &Program, c: &ConstantText) -> Option<StoredTensor> {
    let same = |t: &&margay_loops::Constant| t.stored.content_hash().to_string() == c.hash;
    program.constants.iter().find(same).map(|c| c.stored.clone())
}

/// What the cases of all operators and small networks lower to, for a processor with packed constants and wide vectors.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let backend =
        backend::named("cpu", "x86-64-v4", Precision::F32).expect("the back end knows this class everywhere");
    let parse = |source: &str| {
        let resolve = |_: &str, ty: &margay_ir::TensorType| {
            let tensor = margay_testkit::normal(&ty.extents()?, 5, 0);
            Some(tensor.into())
        };
        text::parse(source, &resolve).unwrap_or_else(|e| panic!("{e}\n{source}"))
    };
    let program = |g: Graph| {
        let binding: Binding = g.symbols().into_iter().map(|s| (s, 3)).collect();
        let bound = bind(&g, &binding, &*backend, &mut Dump::none()).unwrap_or_else(|e| panic!("{e}\n{g}"));
        lower(&bound, &*backend).unwrap_or_else(|e| panic!("{e}\n{bound}")).to_string().into_bytes()
    };
    distinct(NETWORKS.map(parse).into_iter().chain(cases()).map(program))
}

pub(super) fn change(text: &[u8], draw: &mut Draw) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "parallel",
        "repeat",
        "times",
        "if",
        "copy",
        "needs",
        "packed",
        "carried",
        "temporary",
        "open",
        "size",
        "f32",
        "i64",
        "bool",
        "store",
        "load",
    ];
    words::change(text, draw, &WORDS)
}
