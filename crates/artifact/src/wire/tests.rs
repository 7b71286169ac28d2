//! What is written is read again, and what is not well formed is refused.

use super::*;

/// The rows of both ports but one are open.
const OPEN: &str = "open N 1 to 2\nsize $0: N from 1 to 2\ninput 0 $0\noutput 0 $0\noutput 0 $0\n";

const LIMITS: Limits = Limits { code: 128, source: 10, weights: 256 };

fn described() -> Description {
    let port = |name: &str| Port { name: name.into(), dtype: DType::F32, shape: vec![2, 3] };
    let constant = |name: &str, layout, range| StoredConstant {
        names: vec![name.into(), "#5be1c0".into()],
        tensor: [1; 32],
        dtype: DType::F32,
        shape: vec![3, 4],
        storage: Storage::plain(DType::F32),
        layout,
        range,
        hash: [2; 32],
    };
    let packed = Layout { backend: "cpu".into(), name: "panels".into() };
    let section = |target: &str, code| CodeSection {
        parts: SectionParts {
            backend: "cpu".into(),
            target: target.into(),
            machine: "here".into(),
            arena_bytes: 4096,
            steps: vec![StepNote {
                label: "fc1/MatMul".into(),
                work: "matmul [2x3x4]".into(),
                flops: 48,
                bytes: 104,
                regions: 2,
                requirements: vec!["indices from -5 to 4".into()],
            }],
            constants: vec![0],
        },
        code,
    };
    Description {
        producer: "test".into(),
        model: "m".into(),
        constants: vec![
            constant("fc1.weight", None, 64..112),
            constant("fc2.weight", Some(packed), 128..256),
        ],
        entries: vec![Entry {
            parts: EntryParts {
                symbols: BTreeMap::from([("N".into(), 2)]),
                open: parse_open(OPEN).unwrap(),
                inputs: vec![port("x")],
                outputs: vec![port("y"), port("z")],
                carried: vec![Carried { input: 0, output: 1 }],
                counted: vec![],
            },
            sections: vec![section("portable", 64..128), section("x86-64-v3", 0..64)],
        }],
        sources: BTreeMap::from([("plan.toml".into(), SourcePiece { range: 2..10, hash: [3; 32] })]),
    }
}

#[test]
fn what_is_written_is_read() {
    let d = described();
    assert_eq!(decode(&encode(&d), LIMITS), Ok(d));
    assert_eq!(decode(&[], LIMITS), Ok(Description::default()));
}

#[test]
fn numbers_are_checked() {
    type Change = fn(&mut Description);
    let cases: [(Change, &str); 17] = [
        (
            |d| d.entries[0].parts.open.values[0][0].1 = 70_000,
            "entry 0: 70000 values are open, expected at most 65536",
        ),
        (|d| d.entries[0].parts.open.inputs[0][0].0 = 1, "entry 0: its open axes are not those of its ports"),
        (|d| d.entries[0].parts.open.sizes[0].most = 3, "entry 0: its open axes are not those of its ports"),
        (|d| d.constants[0].range = 224..272, "constant 0: 48 bytes at 224 of a section of 256"),
        (|d| d.constants[1].shape = vec![33, 32], "constant 1: 128 packed bytes cannot hold f32[33, 32]"),
        (
            |d| d.constants[1].shape = vec![1 << 40, 0],
            "constant 1: 128 packed bytes cannot hold f32[1099511627776, 0]",
        ),
        (|d| d.constants[0].range = 32..80, "constant 0: begins at 32, which is not aligned"),
        (|d| d.constants[0].shape = vec![5], "constant 0: 48 bytes, expected 20 of f32[5]"),
        (
            |d| d.entries[0].sections[0].code = 64..129,
            "entry 0: section 0: 65 bytes of code cannot begin at 64",
        ),
        (
            |d| d.entries[0].sections[1].code = 32..64,
            "entry 0: section 1: 32 bytes of code cannot begin at 32",
        ),
        (
            |d| d.entries[0].sections[1].parts.target = "portable".into(),
            "entry 0: two sections are for `portable` of `cpu`",
        ),
        (
            |d| d.entries[0].sections[0].parts.constants = vec![2],
            "entry 0: section 0: constant 2, expected less than 2",
        ),
        (|d| d.entries[0].parts.outputs[1].name = "y".into(), "entry 0: two ports are called `y`"),
        (
            |d| d.entries[0].parts.outputs.iter_mut().for_each(|p| p.shape = vec![1 << 59]),
            "entry 0: memory for inputs or outputs of 4611686018427388032 is more than memory can hold",
        ),
        (|d| d.entries[0].parts.outputs[1].shape = vec![6], "entry 0: output 1 is carried to input 0"),
        (
            |d| d.entries[0].parts.carried.push(Carried { input: 0, output: 0 }),
            "entry 0: output 0 is carried to input 0",
        ),
        (
            |d| d.entries[0].parts.inputs[0].shape = vec![1 << 40, 1 << 40],
            "entry 0: `x`: shape [1099511627776, 1099511627776] is more than memory can hold",
        ),
    ];
    for (change, expected) in cases {
        let mut d = described();
        change(&mut d);
        assert_eq!(decode(&encode(&d), LIMITS).unwrap_err(), expected);
    }
}
