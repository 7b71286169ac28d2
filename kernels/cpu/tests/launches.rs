//! Parameters of launches, from sizes.

use margay_kernels_cpu::{Class, Control, CpuTarget, Launch, Table, Term, table};
use margay_loops::KernelCall;

fn launches(call: &str, workspace_bytes: usize) -> Vec<Launch> {
    vec![
        Launch::Kernel {
            step: 7,
            slot: 1,
            items: Term::number(3).times(&Term::size(0, 1)),
            operations: vec![Term::number(1 << 12).times(&Term::size(0, 1))],
            block: 16,
            params: vec![Term::size(0, 1), Term::size(0, 5)],
        },
        Launch::Call { call: call.into(), regions: 3, workspace_bytes, packed: vec![] },
    ]
}

const CALL: &str = "matmul {m = $0, n = 8, k = 4, a = {row_stride = 4, col_stride = 1}, \
                    b = {row_stride = 8, col_stride = 1}, c_row_stride = 8}";

fn made(sizes: &[i64], call: &str, workspace_bytes: usize) -> Result<Table, String> {
    let target = CpuTarget::new(Class::Portable);
    table(&launches(call, workspace_bytes), sizes, 2, &|call| target.prepare(call))
}

#[test]
fn words_follow_from_sizes() {
    let small = made(&[5], CALL, 1 << 20).unwrap();
    let word = |t: &Table, control: Control, region| t.words[control.at(1, region)];
    assert_eq!(small.words[0], 5);
    assert_eq!((word(&small, Control::Items, 0), word(&small, Control::Grain, 0)), (15, 15));
    let params = word(&small, Control::Params, 0) as usize;
    assert_eq!(small.words[params..params + 3], [7, 5, 1]);
    let large = made(&[640], CALL, 1 << 20).unwrap();
    assert_eq!((word(&large, Control::Items, 0), word(&large, Control::Grain, 0)), (1920, 48));
    let phases = CpuTarget::new(Class::Portable)
        .prepare(&KernelCall::read("matmul", &CALL.replace("$0", "640")[7..]).unwrap())
        .unwrap()
        .phases;
    for (i, phase) in phases.iter().enumerate() {
        assert_eq!(word(&large, Control::Items, 1 + i), phase.items as u64);
        assert_eq!(large.imports[word(&large, Control::Slot, 1 + i) as usize - 2], phase.kernel);
        let params = word(&large, Control::Params, 1 + i) as usize;
        assert_eq!(large.words[params..params + phase.params.len()], phase.params);
    }
    assert_eq!(word(&large, Control::Items, 1 + phases.len()), 0);
}

#[test]
fn what_a_program_has_no_room_for_is_refused() {
    let error = made(&[640], CALL, 0).unwrap_err();
    assert!(error.contains("than it was compiled with"), "{error}");
    assert!(made(&[640], "matmul {m = $1}", 0).is_err());
    assert!(made(&[640], "convolve {m = $0}", 0).is_err());
}
