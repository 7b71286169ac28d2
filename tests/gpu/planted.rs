//! Bugs put into generated kernels: the emulator, or a wrong result, gives each of them away, in every order of threads.

use margay_artifact::Parts;
use margay_codegen_gpu::GpuBackend;
use margay_emulator::Emulator;
use margay_ir::ops::Numbers;
use margay_ir::{Graph, eval};
use margay_kernels_gpu::{Class, GpuTarget};
use margay_runtime::{Session, SessionOptions};
use margay_tensor::{Binding, DType, Tensor};
use margay_testkit::parse_with_random_constants;

use crate::products::inputs;
use crate::stored::{product, with_signs};
use crate::{EMULATED, change_kernels, loaded, parts_of};

/// Orders of threads in which each bug has to be found.
const SEEDS: [u64; 5] = [1, 2, 3, 5, 8];

/// A change of the text of a kernel.
enum Bug {
    /// Occurrence number so and so of a text becomes another.
    One(&'static str, usize, &'static str),
    /// Every occurrence.
    All(&'static str, &'static str),
    /// The operands of every product on matrix units that follow a text, in another order.
    Reordered(&'static str, &'static [usize]),
    /// Every occurrence in the kernel of a number.
    In(usize, &'static str, &'static str),
}

impl Bug {
    /// The kernels with the bug in the first, or in the one where it belongs.
    fn plant(&self, kernels: &mut [String]) {
        let number = if let Bug::In(number, ..) = self { *number } else { 0 };
        let planted = self.planted(&kernels[number]);
        assert_ne!(planted, kernels[number], "nothing was changed");
        kernels[number] = planted;
    }

    fn planted(&self, text: &str) -> String {
        match self {
            Bug::All(old, new) | Bug::In(_, old, new) => text.replace(old, new),
            Bug::Reordered(list, order) => {
                let reordered = |line: &str| {
                    let (head, rest) = line.split_once(list)?;
                    let (inner, tail) = rest.split_once(']')?;
                    let operands: Vec<&str> = inner.split(", ").collect();
                    let operands: Vec<&str> = order.iter().map(|&i| operands[i]).collect();
                    head.contains("nvvm.mma.sync")
                        .then(|| format!("{head}{list}{}]{tail}", operands.join(", ")))
                };
                let lines = text.lines().map(|line| reordered(line).unwrap_or_else(|| line.to_owned()));
                lines.collect::<Vec<_>>().join("\n")
            }
            Bug::One(old, number, new) => {
                let at = text.match_indices(old).nth(*number).map(|(at, _)| at);
                let Some(at) = at else { return text.to_owned() };
                format!("{}{new}{}", &text[..at], &text[at + old.len()..])
            }
        }
    }
}

/// A graph, and the bugs that its kernels are given.
struct Subject {
    graph: Graph,
    backend: GpuBackend,
    kernels: usize,
    inputs: Vec<(String, Tensor)>,
    expected: Vec<Tensor>,
}

impl Subject {
    /// A graph that becomes so many kernels of a back end. Its inputs are exact in tf32.
    fn new(backend: GpuBackend, kernels: usize, text: &str) -> Subject {
        Subject::of(backend, kernels, parse_with_random_constants(text).0)
    }

    fn of(backend: GpuBackend, kernels: usize, graph: Graph) -> Subject {
        let inputs = inputs(&graph, false);
        let by_name: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let expected = eval::run(&graph, &by_name).expect("the reference runs");
        Subject { graph, backend, kernels, inputs, expected }
    }

    /// The graph compiled, with a bug in its kernel if there is one.
    fn parts(&self, bug: Option<&Bug>) -> Parts {
        let mut parts =
            parts_of(&self.graph, &Binding::new(), &self.backend).unwrap_or_else(|e| panic!("{e}"));
        change_kernels(&mut parts, |kernels| {
            assert_eq!(kernels.len(), self.kernels, "{}", self.graph);
            if let Some(bug) = bug {
                bug.plant(kernels);
            }
        });
        parts
    }

    /// What gives a kernel away; `None` if it runs and is right.
    fn found(&self, parts: Parts, seed: u64) -> Option<String> {
        let executable = loaded(parts, &Emulator::new(seed)).unwrap_or_else(|e| panic!("{e}"));
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).expect("memory");
        let by_name: Vec<(&str, &Tensor)> = self.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        match session.run(&by_name) {
            Err(error) => Some(error.to_string()),
            Ok(outputs) => outputs.iter().zip(&self.expected).find_map(|((_, found), expected)| {
                let relative = if expected.dtype() == DType::BF16 { 8e-3 } else { 1e-4 };
                let close = |(a, b): (f64, f64)| (a - b).abs() <= relative * b.abs().max(1.0);
                let numbers = |t: &Tensor| Numbers::of(t).expect("numbers").floats();
                let pairs = numbers(found).into_iter().zip(numbers(expected));
                let wrong = pairs.filter(|pair| !close(*pair)).count();
                (wrong > 0).then(|| format!("{wrong} wrong results"))
            }),
        }
    }

    fn check(&self, bugs: &[(&str, Bug)]) {
        for seed in SEEDS {
            assert_eq!(self.found(self.parts(None), seed), None, "the kernel as it is");
        }
        for (name, bug) in bugs {
            let mut said = Vec::new();
            for seed in SEEDS {
                let found = self.found(self.parts(Some(bug)), seed);
                said.push(found.unwrap_or_else(|| panic!("`{name}` is not found with seed {seed}")));
            }
            println!("{name}: {}", said[0]);
        }
    }
}

const BARRIER: &str = "gpu.barrier\n";

/// The back end of the emulator where factors may be rounded to tf32.
const ROUNDING: GpuBackend = GpuBackend::new(GpuTarget::emulated(Class::Sm80).with_tf32());

/// A graph and the bugs that its kernels are given.
struct Row {
    name: &'static str,
    backend: GpuBackend,
    kernels: usize,
    text: &'static str,
    bugs: &'static [(&'static str, Bug)],
}

/// A product with a bias, a function and a residual.
const EPILOGUE: &str =
    "graph @epilogue(%x: f32[70, 40], %w: f32[40, 50], %b: f32[50], %r: f32[70, 50]) -> (y: f32[70, 50]) {
   %0 = matmul %x, %w : f32[70, 50]
   %1 = add %0, %b : f32[70, 50]
   %2 = relu %1 : f32[70, 50]
   %3 = add %2, %r : f32[70, 50]
   return %3
 }";

const ROWS: &[Row] = &[
    Row {
        name: "reductions",
        backend: EMULATED,
        kernels: 1,
        text: "graph @rows(%x: f32[3, 1000]) -> (y: f32[3, 1000]) {
           %0 = softmax %x {axis = 1} : f32[3, 1000]
           return %0
         }",
        bugs: &[
        ("partial results are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("partial results are written while others are read", Bug::One(BARRIER, 2, "\n")),
        ("partial results of the sum are read before they are there", Bug::One(BARRIER, 3, "\n")),
        ("no barrier at all", Bug::All(BARRIER, "\n")),
        (
            "a barrier that one thread of a warp reaches",
            Bug::One("llvm.store", 0, "gpu.barrier\n llvm.store"),
        ),
        (
            "every thread but the first stores its warp's result",
            Bug::One("arith.cmpi eq", 0, "arith.cmpi ne"),
        ),
        ("warps share one place of the exchange", Bug::One("arith.divui", 0, "arith.remui")),
        ("an exchange at the wrong distance", Bug::All("arith.constant 16 : i32", "arith.constant 8 : i32")),
        ("a row is one element too long", Bug::All("arith.constant 1000 : i32", "arith.constant 1001 : i32")),
        ("threads step over half of a row", Bug::All("arith.constant 128 : i32", "arith.constant 256 : i32")),
        ("two threads do the same elements", Bug::All("arith.constant 128 : i32", "arith.constant 64 : i32")),
        ("sums begin at 1", Bug::All("arith.constant 0x00000000 : f32", "arith.constant 0x3F800000 : f32")),
        (
            "results are written over the input",
            Bug::One("llvm.getelementptr %1[", 0, "llvm.getelementptr %0["),
        ),
        ],
    },
    Row {
        name: "elementwise loops",
        backend: EMULATED,
        kernels: 1,
        text: "graph @wide(%x: f32[4000]) -> (y: f32[4000]) {
           %0 = gelu %x : f32[4000]
           return %0
         }",
        bugs: &[
        (
            "four neighbours that are not aligned",
            Bug::All("arith.constant 4 : i32", "arith.constant 3 : i32"),
        ),
        ("neighbours of neighbours", Bug::All("arith.constant 4 : i32", "arith.constant 8 : i32")),
        ("a position too many", Bug::All("arith.constant 1000 : i32", "arith.constant 1001 : i32")),
        ("blocks that overlap", Bug::All("arith.constant 128 : i32", "arith.constant 64 : i32")),
        ("a read of what is to be written", Bug::One("llvm.getelementptr %0[", 0, "llvm.getelementptr %1[")),
        ],
    },
    Row {
        name: "products",
        backend: EMULATED,
        kernels: 1,
        text: "graph @product(%x: f32[70, 40], %w: f32[40, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           return %0
         }",
        bugs: &[
        ("a tile is overwritten while others read it", Bug::One(BARRIER, 0, "\n")),
        ("a tile is read before it is there", Bug::One(BARRIER, 1, "\n")),
        ("a row too many", Bug::All("arith.constant 70 : i32", "arith.constant 71 : i32")),
        ("a column too many", Bug::All("arith.constant 50 : i32", "arith.constant 51 : i32")),
        ("a term too many", Bug::All("arith.constant 40 : i32", "arith.constant 41 : i32")),
        (
            "rows of shared memory of another length",
            Bug::All("arith.constant 68 : i32", "arith.constant 64 : i32"),
        ),
        ("an edge that is not looked at", Bug::One("arith.andi", 0, "arith.ori")),
        ("tiles of another depth", Bug::All("arith.constant 16 : i32", "arith.constant 15 : i32")),
        (
            "the depth of one tile is read twice",
            Bug::All("arith.constant 136 : i32", "arith.constant 68 : i32"),
        ),
        ],
    },
    Row {
        name: "products of few rows, columns side by side",
        backend: EMULATED,
        kernels: 1,
        text: "graph @columns(%x: f32[5, 300], %w: f32[300, 70]) -> (y: f32[5, 70]) {
           %0 = matmul %x, %w : f32[5, 70]
           return %0
         }",
        bugs: &[
        ("rows are overwritten while others read them", Bug::One(BARRIER, 0, "\n")),
        ("rows are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("sums are joined before they are there", Bug::One(BARRIER, 2, "\n")),
        ("a term too many", Bug::All("arith.constant 300 : i32", "arith.constant 301 : i32")),
        ("a column too many", Bug::All("arith.constant 70 : i32", "arith.constant 71 : i32")),
        ("a last term that is not looked at", Bug::One("arith.andi", 10, "arith.ori")),
        ],
    },
    Row {
        name: "products of few rows, terms side by side",
        backend: EMULATED,
        kernels: 1,
        text: "graph @terms(%x: f32[5, 300], %w: f32[70, 300]) -> (y: f32[5, 70]) {
           %0 = transpose %w {perm = [1, 0]} : f32[300, 70]
           %1 = matmul %x, %0 : f32[5, 70]
           return %1
         }",
        bugs: &[
        ("rows are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("sums are joined before they are there", Bug::One(BARRIER, 2, "\n")),
        ("a sum of half of a warp", Bug::All("arith.constant 16 : i32", "arith.constant 8 : i32")),
        ("a sum that another thread stores", Bug::One("arith.cmpi eq", 0, "arith.cmpi ne")),
        ],
    },
    Row {
        name: "sums that are split",
        backend: EMULATED,
        kernels: 2,
        text: "graph @split(%x: f32[70, 3000], %w: f32[3000, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           return %0
         }",
        bugs: &[
        ("parts lie over each other", Bug::All("arith.constant 70 : i32", "arith.constant 69 : i32")),
        ("a term too many", Bug::All("arith.constant 3000 : i32", "arith.constant 3001 : i32")),
        ("a term that two parts have", Bug::All("arith.minsi", "arith.maxsi")),
        ("a result too many", Bug::In(1, "arith.constant 3500 : i32", "arith.constant 3501 : i32")),
        ("the first part counts twice", Bug::In(1, "arith.constant 1 : i32", "arith.constant 0 : i32")),
        ("another part's results", Bug::In(1, "arith.constant 50 : i32", "arith.constant 49 : i32")),
        ],
    },
    Row {
        name: "products on matrix units",
        backend: ROUNDING,
        kernels: 1,
        text: "graph @units(%x: f32[70, 40], %w: f32[40, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           return %0
         }",
        bugs: &[
        ("a tile is overwritten while others read it", Bug::One(BARRIER, 0, "\n")),
        ("a tile is read before it is there", Bug::One(BARRIER, 1, "\n")),
        ("a row too many", Bug::All("arith.constant 70 : i32", "arith.constant 71 : i32")),
        ("a term too many", Bug::All("arith.constant 40 : i32", "arith.constant 41 : i32")),
        ("rows that lie over each other", Bug::All("arith.constant 20 : i32", "arith.constant 15 : i32")),
        ("words of the row below in place of further ones", Bug::Reordered("A[", &[0, 2, 1, 3])),
        ("further words before the first", Bug::Reordered("B[", &[1, 0])),
        ("sums of another row", Bug::Reordered("C[", &[2, 3, 0, 1])),
        ("a sum that is received twice", Bug::All("[2] : !llvm.struct", "[1] : !llvm.struct")),
        ("quads of two threads", Bug::All("arith.constant 4 : i32", "arith.constant 2 : i32")),
        ("half of a tile is read twice", Bug::All("arith.constant 8 : i32", "arith.constant 0 : i32")),
        ],
    },
    Row {
        name: "products of bf16 on matrix units",
        backend: EMULATED,
        kernels: 1,
        text: "graph @halves(%x: bf16[70, 40], %w: bf16[40, 50]) -> (y: bf16[70, 50]) {
           %0 = matmul %x, %w : bf16[70, 50]
           return %0
         }",
        bugs: &[
        ("words of the row below in place of further ones", Bug::Reordered("A[", &[0, 2, 1, 3])),
        ("further words before the first", Bug::Reordered("B[", &[1, 0])),
        ("every second term is lost", Bug::All("arith.shli", "arith.shrui")),
        ("a term too many", Bug::All("arith.constant 40 : i32", "arith.constant 41 : i32")),
        ],
    },
    Row {
        name: "what follows the sums of tiles",
        backend: EMULATED,
        kernels: 1,
        text: EPILOGUE,
        bugs: &[
        ("a bias of the residual", Bug::All("llvm.getelementptr %2[", "llvm.getelementptr %3[")),
        ("a residual of the bias", Bug::All("llvm.getelementptr %3[", "llvm.getelementptr %2[")),
        ("a residual of the results", Bug::All("llvm.getelementptr %3[", "llvm.getelementptr %4[")),
        ("results over the residual", Bug::All("llvm.getelementptr %4[", "llvm.getelementptr %3[")),
        ("a bias that is taken away", Bug::One("arith.addf", 0, "arith.subf")),
        ("a residual that is taken away", Bug::One("arith.addf", 1, "arith.subf")),
        ("a function the other way round", Bug::All("arith.cmpf olt", "arith.cmpf oge")),
        ],
    },
    Row {
        name: "what follows sums on matrix units",
        backend: ROUNDING,
        kernels: 1,
        text: EPILOGUE,
        bugs: &[
        ("a bias of the residual", Bug::All("llvm.getelementptr %2[", "llvm.getelementptr %3[")),
        ("a residual of the results", Bug::All("llvm.getelementptr %3[", "llvm.getelementptr %4[")),
        ("a residual that is taken away", Bug::One("arith.addf", 1, "arith.subf")),
        ("columns of the neighbour", Bug::One("arith.cmpf olt", 1, "arith.cmpf ogt")),
        ],
    },
    Row {
        name: "what follows sums of few rows",
        backend: EMULATED,
        kernels: 1,
        text: "graph @few(%x: f32[5, 300], %w: f32[300, 70], %b: f32[70], %r: f32[5, 70]) -> (y: f32[5, 70]) {
           %0 = matmul %x, %w : f32[5, 70]
           %1 = add %0, %b : f32[5, 70]
           %2 = relu %1 : f32[5, 70]
           %3 = add %2, %r : f32[5, 70]
           return %3
         }",
        bugs: &[
        ("a bias of the residual", Bug::All("llvm.getelementptr %2[", "llvm.getelementptr %3[")),
        ("a residual of the bias", Bug::All("llvm.getelementptr %3[", "llvm.getelementptr %2[")),
        ("a function the other way round", Bug::All("arith.cmpf olt", "arith.cmpf oge")),
        ],
    },
    Row {
        name: "what follows sums that are split",
        backend: EMULATED,
        kernels: 2,
        text: "graph @parts(%x: f32[70, 3000], %w: f32[3000, 50], %b: f32[50], %r: f32[70, 50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : f32[70, 50]
           %1 = add %0, %b : f32[70, 50]
           %2 = relu %1 : f32[70, 50]
           %3 = add %2, %r : f32[70, 50]
           return %3
         }",
        bugs: &[
        ("a bias of the residual", Bug::In(1, "llvm.getelementptr %2[", "llvm.getelementptr %3[")),
        ("a residual of the results", Bug::In(1, "llvm.getelementptr %3[", "llvm.getelementptr %4[")),
        ("a function the other way round", Bug::In(1, "arith.cmpf olt", "arith.cmpf oge")),
        ("parts over the results", Bug::All("llvm.getelementptr %5[", "llvm.getelementptr %4[")),
        ],
    },
    Row {
        name: "what follows sums of integers",
        backend: EMULATED,
        kernels: 1,
        text: "graph @bytes(%x: u8[70, 40], %w: i8[40, 50], %o: i32[50], %s: f32[50], %b: f32[50]) -> (y: f32[70, 50]) {
           %0 = matmul %x, %w : i32[70, 50]
           %1 = add %0, %o : i32[70, 50]
           %2 = cast %1 {to = f32} : f32[70, 50]
           %3 = mul %2, %s : f32[70, 50]
           %4 = add %3, %b : f32[70, 50]
           return %4
         }",
        bugs: &[
        ("factors without their signs", Bug::All("arith.extsi", "arith.extui")),
        ("offsets of the scales", Bug::All("llvm.getelementptr %2[", "llvm.getelementptr %3[")),
        ("scales of the bias", Bug::All("llvm.getelementptr %3[", "llvm.getelementptr %4[")),
        ("scales that are added", Bug::One("arith.mulf", 0, "arith.addf")),
        ("a tile is read before it is there", Bug::One(BARRIER, 1, "\n")),
        ],
    },
    Row {
        name: "Hadamard transforms",
        backend: EMULATED,
        kernels: 1,
        text: "graph @rows(%x: f32[3, 2048]) -> (y: f32[3, 2048]) {
           %0 = hadamard %x : f32[3, 2048]
           return %0
         }",
        bugs: &[
        // Of the last stages each thread reads what it has written itself.
        ("a stage that begins too early", Bug::One(BARRIER, 7, "\n")),
        ("a sum in place of a difference", Bug::One("arith.subf", 0, "arith.addf")),
        ("a stage of another distance", Bug::All("arith.constant 64 : i32", "arith.constant 32 : i32")),
        ("a piece too many", Bug::All("arith.constant 6144 : i32", "arith.constant 4096 : i32")),
        ],
    },
    Row {
        name: "Hadamard transforms of short rows",
        backend: EMULATED,
        kernels: 1,
        text: "graph @short(%x: f32[3, 256]) -> (y: f32[3, 256]) {
           %0 = hadamard %x : f32[3, 256]
           return %0
         }",
        bugs: &[
        ("a first stage that begins too early", Bug::One(BARRIER, 0, "\n")),
        ("a last stage that is read too early", Bug::One(BARRIER, 8, "\n")),
        ],
    },
    Row {
        name: "attention",
        backend: EMULATED,
        kernels: 1,
        text: "graph @attention(%q: f32[1, 2, 5, 8], %k: f32[1, 2, 70, 8], %v: f32[1, 2, 70, 40]) -> (y: f32[1, 2, 5, 40]) {
           %0 = attention %q, %k, %v {scale = 0.5} : f32[1, 2, 5, 40]
           return %0
         }",
        bugs: &[
        ("weights are overwritten while others read them", Bug::One(BARRIER, 0, "\n")),
        ("weights are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("a key too many", Bug::All("arith.constant 70 : i32", "arith.constant 71 : i32")),
        ("a query too many", Bug::All("arith.constant 10 : i32", "arith.constant 11 : i32")),
        ("a column too many", Bug::All("arith.constant 40 : i32", "arith.constant 41 : i32")),
        ("the largest score of half a warp", Bug::All("arith.constant 16 : i32", "arith.constant 8 : i32")),
        ],
    },
    Row {
        name: "linear attention",
        backend: EMULATED,
        kernels: 5,
        text: "graph @linear(%q: f32[1, 2, 150, 6], %k: f32[1, 2, 150, 6], %v: f32[1, 2, 150, 9]) -> (y: f32[1, 2, 150, 9]) {
           %0 = linear_attention %q, %k, %v {epsilon = 100.0, causal = true} : f32[1, 2, 150, 9]
           return %0
         }",
        bugs: &[
        ("states of two chunks in one place", Bug::All("arith.constant 2 : i32", "arith.constant 1 : i32")),
        ("a sum that leaves out the last state", Bug::In(1, "arith.constant 2 : i32", "arith.constant 1 : i32")),
        ("later keys in place of earlier ones", Bug::In(2, "arith.cmpi sle", "arith.cmpi sge")),
        ("a state before the first chunk", Bug::In(3, "arith.cmpi sgt", "arith.cmpi sge")),
        ("a position too many", Bug::In(3, "arith.constant 150 : i32", "arith.constant 151 : i32")),
        ("twos behind the values", Bug::In(3, "0x3F800000 : f32", "0x40000000 : f32")),
        ("chunks that overlap", Bug::In(3, "arith.constant 64 : i32", "arith.constant 63 : i32")),
        ("another number added to denominators", Bug::In(4, "0x42C80000 : f32", "0x42F00000 : f32")),
        ],
    },
    Row {
        name: "derivatives of attention",
        backend: EMULATED,
        kernels: 2,
        text: "graph @gradient(%q: f32[1, 4, 5, 8], %k: f32[1, 2, 70, 8], %v: f32[1, 2, 70, 40], %l: f32[1, 4, 5], %d: f32[1, 4, 5], %o: f32[1, 4, 5, 40]) -> (x: f32[1, 4, 5, 8], y: f32[1, 2, 70, 8], z: f32[1, 2, 70, 40]) {
           %0 = attention_gradient %q, %k, %v, %l, %d, %o {scale = 0.5} : f32[1, 4, 5, 8], f32[1, 2, 70, 8], f32[1, 2, 70, 40]
           return %0, %0.1, %0.2
         }",
        bugs: &[
        ("numbers are overwritten while others read them", Bug::One(BARRIER, 0, "\n")),
        ("numbers are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("a key too many", Bug::All("arith.constant 70 : i32", "arith.constant 71 : i32")),
        ("no barrier in the kernel of keys", Bug::In(1, BARRIER, "\n")),
        ("a key that is not stored", Bug::In(1, "arith.constant 140 : i32", "arith.constant 139 : i32")),
        ("a query too many", Bug::All("arith.constant 5 : i32", "arith.constant 6 : i32")),
        ("a column too many", Bug::All("arith.constant 40 : i32", "arith.constant 41 : i32")),
        ("another scale", Bug::All("0x3F000000 : f32", "0x3F400000 : f32")),
        ("every head has keys of its own", Bug::All("arith.constant 2 : i32", "arith.constant 4 : i32")),
        ],
    },
];

#[test]
fn every_bug_is_found_in_every_order_of_threads() {
    std::thread::scope(|scope| {
        for Row { name, backend, kernels, text, bugs } in ROWS {
            scope.spawn(move || {
                Subject::new(*backend, *kernels, text).check(bugs);
                println!("{name}: {} bugs found", bugs.len());
            });
        }
    });
    assert!(ROWS.iter().map(|row| row.bugs.len()).sum::<usize>() >= 25);
}

#[test]
fn bugs_in_what_makes_signs_are_found() {
    // Rows of 128 signs, each a block of the generator, behind 72 columns of numbers. Sums are split: bugs are in the first kernel.
    let graph = product(70, with_signs([150, 200], 1, [72, 200]));
    Subject::of(EMULATED, 2, graph).check(&[
        ("bits are read before they are there", Bug::One(BARRIER, 1, "\n")),
        ("a tile is read before it is there", Bug::One(BARRIER, 2, "\n")),
        ("another generator", Bug::All("arith.constant 3528531795 : i64", "arith.constant 3528531793 : i64")),
        ("half of the bits of a word", Bug::All("arith.constant 31 : i32", "arith.constant 15 : i32")),
        ("another first column", Bug::All("arith.constant 72 : i32", "arith.constant 71 : i32")),
        ("another size", Bug::All("arith.constant 1040187392 : i32", "arith.constant 1048576000 : i32")),
    ]);
}
