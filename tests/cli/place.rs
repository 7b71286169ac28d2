//! A folder in which the program is run, and files for it.

use std::fs;
use std::io::{BufReader, Cursor};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use margay_onnx::{External, Model, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
use margay_tensor::{DType, Tensor, random::Philox};
use serde_json::Value;
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model.onnx");

/// A folder with the demo model and inputs for it.
pub(crate) struct Place(TempDir);

pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) code: i32,
}

impl Ran {
    /// What a program printed, and how it ended: -1 for a signal.
    pub(crate) fn of(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Ran { stdout, stderr, code: output.status.code().unwrap_or(-1) }
    }

    /// What a program printed that was started, and how it ended.
    pub(crate) fn ended(child: Child) -> Ran {
        Ran::of(child.wait_with_output().unwrap())
    }
}

/// Presses Ctrl-C.
pub(crate) fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

impl Place {
    pub(crate) fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::copy(MODEL, place.path("model.onnx")).unwrap();
        place.write_npz("in.npz", &[("image", images(2, 1))]);
        place.write_npz("samples.npz", &[("image", images(16, 2))]);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write_npz(&self, name: &str, arrays: &[(&str, Tensor)]) {
        let mut bytes = Cursor::new(Vec::new());
        margay_npy::write_npz(&mut bytes, arrays).unwrap();
        fs::write(self.path(name), bytes.into_inner()).unwrap();
    }

    pub(crate) fn read_npz(&self, name: &str) -> Vec<(String, Tensor)> {
        margay_npy::read_npz(BufReader::new(fs::File::open(self.path(name)).unwrap())).unwrap()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Names of all files.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Runs `margay` with arguments separated by blanks.
    pub(crate) fn run(&self, arguments: &str) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_margay"))
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .env_remove("COLUMNS")
            .stdin(Stdio::null())
            .output();
        Ran::of(output.unwrap())
    }

    /// Starts `margay` with arguments separated by blanks, so that an [`interrupt`] reaches it: whoever runs the tests in the
    /// background of a shell ignores interrupts, and so do all programs that they start.
    pub(crate) fn start(&self, arguments: &str) -> Child {
        Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_margay")])
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a line as a shell does in which `margay` is known.
    pub(crate) fn shell(&self, line: &str) -> Ran {
        let folder = Path::new(env!("CARGO_BIN_EXE_margay")).parent().unwrap();
        let output = Command::new("/bin/sh")
            .args(["-c", line])
            .current_dir(self.0.path())
            .env("PATH", folder)
            .stdin(Stdio::null())
            .output();
        Ran::of(output.unwrap())
    }

    /// Runs it and expects success.
    pub(crate) fn done(&self, arguments: &str) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "margay {arguments}\n{}{}", ran.stdout, ran.stderr);
        ran
    }

    /// What a person would see, with `!` before lines of stderr and the exit code at the end.
    pub(crate) fn transcript(&self, commands: &[&str]) -> String {
        let mut text = String::new();
        for arguments in commands {
            let Ran { stdout, stderr, code } = self.run(arguments);
            assert!(!stderr.contains("bug"), "{stderr}");
            text += &format!("$ margay {arguments}\n{stdout}");
            stderr.lines().for_each(|line| text += &format!("! {line}\n"));
            text += &format!("[{code}]\n\n");
        }
        text
    }
}

pub(crate) fn images(count: usize, seed: u64) -> Tensor {
    let mut data = vec![0f32; count * 784];
    Philox::new(seed, 0).fill_uniform_f32(0, &mut data);
    Tensor::from_slice(&[count, 1, 28, 28], &data).unwrap()
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The names of a JSON object's members, in order.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

pub(crate) fn node(name: &str, op_type: &str, inputs: &[&str], output: &str) -> OnnxNode {
    OnnxNode {
        name: name.into(),
        op_type: op_type.into(),
        inputs: inputs.iter().map(ToString::to_string).collect(),
        outputs: vec![output.into()],
        ..OnnxNode::default()
    }
}

/// An input or output of a shape, in which -1 is the symbol `N` and -2 another one.
pub(crate) fn value(name: &str, dims: &[i64]) -> OnnxValue {
    let dim = |d: &i64| match d {
        -1 => OnnxDim::Symbol("N".into()),
        -2 => OnnxDim::Symbol("M".into()),
        d => OnnxDim::Value(*d),
    };
    let dims = dims.iter().map(dim).collect();
    OnnxValue { name: name.into(), dtype: Some(DType::F32), narrow: None, dims: Some(dims) }
}

/// Writes a model with input `x` of shape \[2, 3\] and output `y`.
pub(crate) fn write_model(path: &Path, nodes: Vec<OnnxNode>, initializers: Vec<(String, Tensor)>) {
    write_model_of(path, &[2, 3], nodes, initializers);
}

/// Writes a model with input `x` and output `y` of a shape, in which -1 is the symbol `N`.
pub(crate) fn write_model_of(
    path: &Path,
    shape: &[i64],
    nodes: Vec<OnnxNode>,
    initializers: Vec<(String, Tensor)>,
) {
    let graph = OnnxGraph {
        name: "small".into(),
        inputs: vec![value("x", shape)],
        defaults: vec![],
        narrow: Default::default(),
        outputs: vec![value("y", shape)],
        initializers,
        nodes,
    };
    Model::new(17, graph).write(path, External::Never).unwrap();
}
