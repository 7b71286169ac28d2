//! The section of an artifact that holds code.

use margay_kernels_cpu::{CpuCode, Import, Launch, Term};
use margay_loops::Packed;

fn code() -> CpuCode {
    CpuCode {
        scratch_bytes: 100,
        kernels: vec![0, 16],
        driver: 32,
        imports: vec![Import { name: "matmul".into(), version: 3 }],
        params: vec![0, u64::MAX],
        launches: vec![
            Launch::Kernel {
                step: 0,
                slot: 2,
                items: Term { factor: 3, divisor: 2, sizes: vec![0, 1] },
                operations: vec![Term::number(1)],
                block: 16,
                params: vec![Term::size(1, 4)],
            },
            Launch::Call {
                call: "matmul {m = $0}".into(),
                regions: 2,
                workspace_bytes: 64,
                packed: vec![Packed { operand: 1, layout: "f32".into(), bytes: 128 }],
            },
        ],
        machine_code: vec![0xc3; 64],
    }
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(CpuCode::decode(&code().encode()), Ok(code()));
}

#[test]
fn numbers_are_checked() {
    type Change = fn(&mut CpuCode);
    let slot = |c: &mut CpuCode| {
        if let Launch::Kernel { slot, .. } = &mut c.launches[0] {
            *slot = 3;
        }
    };
    let regions = |c: &mut CpuCode| {
        if let Launch::Call { regions, .. } = &mut c.launches[1] {
            *regions = 65;
        }
    };
    let cases: [(Change, &str); 5] = [
        (slot, "a kernel is 3, expected at most 2"),
        (regions, "a number of regions is 65, expected at most 64"),
        (|c| c.driver = 64, "a function begins at 64, expected less than 64"),
        (|c| c.kernels[1] = 65, "a function begins at 65, expected less than 64"),
        (|c| c.scratch_bytes = usize::MAX, "scratch of 18446744073709551615 is more than memory can hold"),
    ];
    for (change, expected) in cases {
        let mut c = code();
        change(&mut c);
        assert_eq!(CpuCode::decode(&c.encode()).unwrap_err(), expected);
    }
    assert!(CpuCode::decode(b"\xff\xff").is_err());
    assert!(CpuCode::decode(b"").is_err(), "a driver is there");
}
