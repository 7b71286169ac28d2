//! Artifacts written, read, damaged.

use std::collections::BTreeMap;
use std::path::Path;

use margay_artifact::{Artifact, ArtifactBuilder, ArtifactError, EntryParts, Parts, SectionParts, StepNote};
use margay_loops::{
    Backend, Code, CompileError, Constant, Epilogue, KernelCall, MatLayout, MatMul, Needs, NoKernel,
    Operations, Packed, Port, Preferences, Program,
};
use margay_tensor::{DType, StoredTensor, Tensor};

/// A back end that packs the right operand of a product by reversing its bytes.
#[derive(Debug)]
struct Reversing;

impl Backend for Reversing {
    fn name(&self) -> &str {
        "test"
    }

    fn target(&self) -> &str {
        "reversing"
    }

    fn device(&self) -> String {
        "none".to_owned()
    }

    fn preferences(&self) -> Preferences {
        Preferences {
            buffer_align: 64,
            channels_last: false,
            features_in_attention: false,
            max_fused: 1,
            cheap_operations: 0,
            extent_steps: vec![],
        }
    }

    fn compile(&self, _: &Program, _: &[usize]) -> Result<Code, CompileError> {
        unreachable!("code is given by hand")
    }

    fn cost_model(&self) -> &str {
        "none"
    }

    fn call_seconds(&self, _: &KernelCall, _: usize) -> f64 {
        0.0
    }

    fn loop_seconds(&self, _: u64, _: Operations, _: usize) -> f64 {
        0.0
    }

    fn packs(&self, _: &KernelCall, _: usize) -> bool {
        true
    }

    fn prepare(&self, _: &KernelCall) -> Result<Needs, NoKernel> {
        unreachable!("a constant carries what was answered when the program was made")
    }

    fn pack(&self, _: &KernelCall, _: usize, tensor: &StoredTensor) -> Result<Vec<u8>, NoKernel> {
        Ok(tensor.to_bytes().iter().rev().copied().collect())
    }

    fn unpack(&self, layout: &str, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor, NoKernel> {
        assert_eq!(layout, "reversed");
        let bytes: Vec<u8> = bytes.iter().rev().copied().collect();
        Ok(Tensor::from_bytes(DType::F32, shape, &bytes).unwrap().into())
    }
}

fn product(m: usize, k: usize, n: usize) -> KernelCall {
    let layout = |row_stride| MatLayout { row_stride, col_stride: 1 };
    KernelCall::MatMul(MatMul {
        m,
        n,
        k,
        batch: vec![],
        a: layout(k),
        b: layout(n),
        c_row_stride: n,
        b_packed: true,
        types: margay_loops::ProductTypes::F32,
        epilogue: Epilogue::default(),
    })
}

fn weight() -> Tensor {
    Tensor::from_slice(&[3, 5], &std::array::from_fn::<f32, 15, _>(|i| i as f32)).unwrap()
}

fn bias() -> Tensor {
    Tensor::from_slice(&[5], &[0.5f32; 5]).unwrap()
}

/// The weight as a product wants it.
fn packed(rows: usize) -> Constant {
    let packed = Packed { operand: 1, layout: "reversed".into(), bytes: 60 };
    Constant {
        names: vec!["fc1.weight".into()],
        stored: weight().into(),
        packed: Some((product(rows, 3, 5), packed)),
    }
}

/// Two entries over one weight, which both store packed and one also plain.
fn sample(with_sources: bool) -> ArtifactBuilder<'static> {
    let mut b = ArtifactBuilder::new("tiny");
    for rows in [1, 7] {
        let w = b.constants.add(&packed(rows), &Reversing);
        let plain = Constant { names: vec!["fc1.bias".into()], stored: bias().into(), packed: None };
        let c = b.constants.add(&plain, &Reversing);
        let port = |name: &str, n| Port { name: name.into(), dtype: DType::F32, shape: vec![rows, n] };
        let parts = EntryParts {
            symbols: BTreeMap::from([("N".into(), rows as i64)]),
            inputs: vec![port("x", 3)],
            outputs: vec![port("y", 5)],
            ..EntryParts::default()
        };
        for target in ["forwards", "reversing"] {
            let section = SectionParts {
                backend: "test".into(),
                target: target.into(),
                machine: "any".into(),
                arena_bytes: 64 * rows,
                steps: vec![StepNote { label: "fc1/MatMul".into(), regions: 1, ..StepNote::default() }],
                constants: vec![w.index, c.index],
            };
            b.add_code(parts.clone(), section, &[0xC3; 21]);
        }
    }
    if with_sources {
        b.source("plan.toml", b"scheme = \"dense\"".to_vec());
        b.source("graph.ir", b"graph @main".to_vec());
    }
    b
}

fn bytes_of(b: &ArtifactBuilder<'_>) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.margay");
    b.write(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.margay");
    sample(true).write(&path).unwrap();
    let a = Artifact::open(&path).unwrap();
    let d = a.description();
    assert_eq!((d.model.as_str(), d.entries.len()), ("tiny", 2));
    let sections = &d.entries[1].sections;
    let targets: Vec<&str> = sections.iter().map(|s| s.parts.target.as_str()).collect();
    assert_eq!(targets, ["forwards", "reversing"], "side by side");
    assert_eq!(sections[1].code, 256..277);
    assert_eq!(&a.code()[sections[1].code.clone()], &[0xC3; 21]);
    assert_eq!(a.source("plan.toml").unwrap(), Some(&b"scheme = \"dense\""[..]));
    assert_eq!(a.source("report.json").unwrap(), None);
    assert!((a.weights().as_ptr() as usize).is_multiple_of(4096));
    a.verify_weights().unwrap();
}

#[test]
fn the_same_constant_is_stored_once() {
    let bytes = bytes_of(&sample(true));
    let a = Artifact::from_bytes(&bytes, "memory").unwrap();
    let d = a.description();
    let stored: Vec<_> = d.constants.iter().map(|c| (c.names.join(" "), c.range.clone())).collect();
    assert_eq!(stored, [("fc1.weight".into(), 0..60), ("fc1.bias".into(), 64..84)]);
    let read = |entry: usize, section: usize| &d.entries[entry].sections[section].parts.constants;
    assert!((0..4).all(|i| read(i / 2, i % 2) == &[0, 1]));
    assert_eq!(d.constants[0].layout.as_ref().map(|l| l.backend.as_str()), Some("test"));
    let (w, b) = (a.constant(0, &Reversing).unwrap(), a.constant(1, &Reversing).unwrap());
    assert_eq!((w.elements(), b.elements()), (&weight(), &bias()));
    assert_eq!(&d.constants[0].tensor, w.content_hash().as_bytes());
}

#[test]
fn equal_constants_keep_all_their_names() {
    let mut b = ArtifactBuilder::new("tiny");
    let named = |name: &str| Constant { names: vec![name.into()], stored: bias().into(), packed: None };
    let first = b.constants.add(&named("fc1.bias"), &Reversing);
    for name in ["ones(5)", "fc1.bias", "ones(5)"] {
        assert_eq!(b.constants.add(&named(name), &Reversing), first);
    }
    let a = Artifact::from_bytes(&bytes_of(&b), "memory").unwrap();
    let [stored] = &a.description().constants[..] else { panic!("one constant is stored") };
    assert_eq!(stored.names, ["fc1.bias", "ones(5)"]);
    assert!(stored.is_named("ones(5)") && !stored.is_named("fc2.bias"));
}

#[test]
fn the_same_contents_give_the_same_bytes() {
    assert_eq!(bytes_of(&sample(true)), bytes_of(&sample(true)));
    let stripped = Artifact::from_bytes(&bytes_of(&sample(false)), "memory").unwrap();
    assert!(stripped.description().sources.is_empty());
}

#[test]
fn parts_in_memory_are_those_of_the_file() {
    let a = Artifact::from_bytes(&bytes_of(&sample(false)), "memory").unwrap();
    let Parts { description, code, weights } = sample(false).into_parts().unwrap();
    // What was never in a file has no hashes.
    let mut of_file = (**a.description()).clone();
    of_file.constants.iter_mut().for_each(|c| c.hash = [0; 32]);
    assert_eq!(description, of_file);
    assert_eq!((code.as_slice(), &weights[..]), (a.code(), a.weights()));
}

#[test]
fn a_file_that_cannot_be_written_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none").join("a.margay");
    let error = sample(false).write(&path).unwrap_err();
    let expected = format!("cannot write `{}`: No such file or directory (os error 2)", path.display());
    assert_eq!(error.to_string(), expected);
    assert!(matches!(Artifact::open(&path), Err(ArtifactError::Read { .. })));
    assert!(matches!(Artifact::open(folder.path()), Err(ArtifactError::Read { .. })));
}

#[test]
fn writing_over_a_mapped_artifact_leaves_the_map_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.margay");
    sample(true).write(&path).unwrap();
    let old = Artifact::open(&path).unwrap();
    ArtifactBuilder::new("other").write(&path).unwrap();
    old.verify_weights().unwrap();
    assert_eq!(Artifact::open(&path).unwrap().description().model, "other");
}

/// Everything an artifact holds, with all hashes checked.
fn contents(a: &Artifact) -> Result<impl PartialEq + use<>, ArtifactError> {
    a.verify_weights()?;
    let d = a.description();
    let sources: Vec<Vec<u8>> =
        d.sources.keys().map(|k| Ok(a.source(k)?.unwrap().to_vec())).collect::<Result<_, ArtifactError>>()?;
    let weights: Vec<Vec<u8>> = d.constants.iter().map(|c| a.weights()[c.range.clone()].to_vec()).collect();
    Ok((d.clone(), a.code().to_vec(), sources, weights))
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = bytes_of(&sample(true));
    for n in 0..bytes.len() {
        match Artifact::from_bytes(&bytes[..n], "cut").unwrap_err() {
            ArtifactError::NotAnArtifact { .. } => assert_eq!(n, 0),
            ArtifactError::Truncated { expected, found, .. } => {
                assert_eq!(found, n as u64);
                assert_eq!(expected, if n < 256 { 256 } else { bytes.len() as u64 });
            }
            other => panic!("{n} bytes: {other}"),
        }
    }
    let longer = [&bytes[..], b"x"].concat();
    let message = Artifact::from_bytes(&longer, "long").unwrap_err().to_string();
    assert_eq!(message, format!("`long` is malformed: 1 bytes follow the expected {}", bytes.len()));
}

#[test]
fn a_changed_byte_is_an_error_or_changes_nothing() {
    let bytes = bytes_of(&sample(true));
    let whole = contents(&Artifact::from_bytes(&bytes, "whole").unwrap()).unwrap();
    let mut harmless = 0;
    for at in 0..bytes.len() {
        for mask in [0x01, 0x80, 0xFF] {
            let mut changed = bytes.clone();
            changed[at] ^= mask;
            if let Ok(found) = Artifact::from_bytes(&changed, "changed").and_then(|a| contents(&a)) {
                assert!(found == whole, "byte {at} with mask {mask:#x} changed the contents unseen");
                harmless += 1;
            }
        }
    }
    assert!(harmless > 0, "padding is not hashed");
}

#[test]
fn the_altered_part_is_named() {
    let bytes = bytes_of(&sample(true));
    let a = Artifact::from_bytes(&bytes, "a").unwrap();
    let weights = a.weights_map().1.start;
    let mut changed = bytes.clone();
    changed[weights + 70] ^= 1;
    let b = Artifact::from_bytes(&changed, "b").unwrap();
    let message = b.verify_weights().unwrap_err().to_string();
    assert_eq!(message, "`b` has been altered: its constant `fc1.bias` does not match its hash");
    assert!(b.constant(0, &Reversing).is_ok());
    assert!(b.constant(1, &Reversing).is_err());
    assert_eq!(b.path(), Path::new("b"));
}
