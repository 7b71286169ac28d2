//! Every operator by its own cases, as the tests of the processor run them, on the emulator.

use std::collections::BTreeMap;

use margay_codegen_gpu::{GpuBackend, Mlir};
use margay_driver::DriverError;
use margay_emulator::Emulator;
use margay_ir::{Graph, Op, eval};
use margay_kernels_gpu::{Class, GpuTarget};
use margay_runtime::{Executable, Session, SessionOptions};
use margay_tensor::{Binding, Tensor};
use margay_testkit::{Tolerance, assert_close, case_inputs, max_error};

use crate::{change_kernels, emulated, graph_of, is_unsupported, loaded, named, parts_of};

/// Orders of threads that each case runs in.
const ORDERS: usize = 5;

/// What makes an executable of a graph.
type Compile<'c> = &'c dyn Fn(&Graph) -> Result<Executable, DriverError>;

/// Runs an operator in so many orders of threads and compares. Returns the error, or where the back end has no kernel the
/// reason.
fn compare(
    op: &Op,
    inputs: &[Tensor],
    constants: usize,
    tolerance: Tolerance,
    compile: Compile<'_>,
    orders: usize,
) -> Result<f64, String> {
    let g = graph_of(op, inputs, constants);
    let given = &inputs[..inputs.len() - constants];
    let names = named(given);
    let by_name: Vec<(&str, &Tensor)> = names.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    let expected = eval::run(&g, &by_name).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    let executable = match compile(&g) {
        Ok(executable) => executable,
        Err(e) if is_unsupported(&e) => return Err(e.to_string()),
        Err(e) => panic!("{op:?}: {e}\n{g}"),
    };
    let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
    let mut worst = 0f64;
    let mut first: Option<Vec<(String, Tensor)>> = None;
    for _ in 0..orders {
        let outputs = session.run(&by_name).unwrap_or_else(|e| panic!("{op:?}: {e}"));
        for ((_, found), expected) in outputs.iter().zip(&expected) {
            assert_close(&format!("{op:?}"), found, expected, tolerance.of(expected.dtype()));
            worst = worst.max(max_error(found, expected));
        }
        match &first {
            None => first = Some(outputs),
            Some(first) => assert_eq!(*first, outputs, "{op:?}: the same bits in every order"),
        }
    }
    Ok(worst)
}

/// Runs every case of every operator in so many orders of threads.
fn compare_all(compile: Compile<'_>, orders: usize) {
    let (mut compared, mut worst, mut without) = (0, ("", 0f64), BTreeMap::<&str, String>::new());
    for (op, case) in Op::cases() {
        let constants = match &op {
            Op::Conv(_) | Op::MatMul(_) => &[1, 0][..],
            _ => &[0],
        };
        for &constants in constants {
            match compare(&op, &case_inputs(&case), constants, Tolerance::REDUCTION, compile, orders) {
                Ok(error) => {
                    compared += 1;
                    if error > worst.1 {
                        worst = (op.name(), error);
                    }
                }
                Err(reason) => drop(without.insert(op.name(), reason)),
            }
        }
    }
    println!("{compared} cases, the greatest difference is {:.1e} of {}", worst.1, worst.0);
    without.iter().for_each(|(name, reason)| println!("without a kernel: {name}: {reason}"));
    assert!(compared > 200, "{compared}");
}

#[test]
fn kernels_agree_with_the_reference_in_every_order_of_threads() {
    let emulator = Emulator::new(1);
    compare_all(&|g| emulated(g, &Binding::new(), &emulator), ORDERS);
}

#[test]
fn ptx_that_is_interpreted_agrees_with_the_reference() {
    let (emulator, mlir) = (Emulator::new(2), Mlir::new());
    for class in Class::ALL {
        let backend = GpuBackend::new(GpuTarget::emulated(class));
        let ptx = |kernel: &String| {
            mlir.ptx(kernel, GpuTarget::new(class)).unwrap_or_else(|e| panic!("{e}\n{kernel}"))
        };
        let compile = |g: &Graph| {
            let mut parts = parts_of(g, &Binding::new(), &backend)?;
            change_kernels(&mut parts, |kernels| kernels.iter_mut().for_each(|kernel| *kernel = ptx(kernel)));
            loaded(parts, &emulator)
        };
        compare_all(&compile, 2);
    }
}
