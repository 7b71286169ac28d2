//! Random signs that take no bytes: in artifacts, in memory while a model runs, and in what is said of both.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use margay_artifact::Artifact;
use margay_driver::{
    CompileOptions, Compiled, Dump, Model, Silent, backend, build, compile, open_artifact_graph,
};
use margay_ir::{Cx, Graph, Pass, eval};
use margay_loops::{Backend, Precision};
use margay_passes::{FoldConstants, StoreAs, StoreConstants};
use margay_plan::Choice;
use margay_runtime::{Session, SessionOptions};
use margay_tensor::Binding;
use margay_testkit::{Tolerance, assert_close, normal, parse_with_random_constants};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`, and `alloc` took the memory from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests run one after the other, since the counters are of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// A layer that is sketched by terms and ranks.
#[derive(Clone, Copy, Debug)]
struct Layer {
    inputs: usize,
    outputs: usize,
    terms: usize,
    rank: usize,
}

impl Layer {
    /// Bytes of the trained factors, in panels of 32 columns, and of all signs.
    fn bytes(self) -> [u64; 2] {
        let (half, panels) = (self.terms * self.rank, |columns: usize| columns.next_multiple_of(32));
        let numbers = self.inputs * panels(half) + half * panels(self.outputs);
        [4 * numbers as u64, 4 * (half * (self.inputs + self.outputs)) as u64]
    }

    fn model(self) -> Model {
        let Layer { inputs, outputs, .. } = self;
        let source = format!(
            "graph @layer(%x: f32[N, {inputs}]) -> (y: f32[N, {outputs}]) {{
               %0 = const #w : f32[{inputs}, {outputs}]  // fc.weight
               %1 = matmul %x, %0 : f32[N, {outputs}]  // fc
               return %1
             }}"
        );
        Model::new(parse_with_random_constants(&source).0, "layer", &mut Dump::none()).unwrap()
    }

    /// The model with the layer sketched, for some rows or a range of them.
    fn compiled(self, rows: &[i64], precision: Precision) -> Compiled {
        let dims = vec![("N".into(), rows.to_vec())];
        let dense = CompileOptions { dims, precision, ..CompileOptions::default() };
        let mut plan = compile(&self.model(), None, &dense, &Silent).unwrap().plan;
        let settings = BTreeMap::from([("rank", self.rank), ("terms", self.terms)]);
        plan.sites.insert("fc".into(), Choice::new("panther", &settings));
        let options = CompileOptions { plan: Some(plan), ..dense };
        compile(&self.model(), None, &options, &Silent).unwrap()
    }
}

/// A graph for some rows.
fn of_rows(g: &Graph, rows: i64, backend: &dyn Backend) -> Graph {
    build::bind(g, &Binding::from([("N".into(), rows)]), backend, &mut Dump::none()).unwrap()
}

/// The same with signs that are numbers as others are.
fn held(g: &Graph) -> Graph {
    let mut held = g.clone();
    FoldConstants::default().run(&mut held, &mut Cx::default()).unwrap();
    assert_eq!(held.to_string().matches("concat").count(), 0);
    held
}

#[test]
fn drawn_signs_give_what_held_signs_give() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for layer in [
        Layer { inputs: 128, outputs: 256, terms: 1, rank: 16 },
        Layer { inputs: 120, outputs: 97, terms: 3, rank: 5 },
        Layer { inputs: 512, outputs: 640, terms: 1, rank: 128 },
    ] {
        let g = layer.compiled(&[4], Precision::F32).graph;
        for rows in [1, 5, 40] {
            let x = normal(&[rows, layer.inputs], 3, 1);
            for backend in backend::supported() {
                let bound = of_rows(&g, rows as i64, &*backend);
                assert_eq!(bound.to_string().matches(" stored f32(signs, ").count(), 2, "{bound}");
                let expected = eval::run(&bound, &[("x", &x)]).unwrap().swap_remove(0);
                let binding = Binding::from([("N".into(), rows as i64)]);
                for g in [&g, &held(&g)] {
                    let executable = build::jit(g, &binding, &*backend).unwrap();
                    let run = |threads| {
                        let mut session = Session::new(&executable, SessionOptions { threads }).unwrap();
                        session.run(&[("x", &x)]).unwrap().swap_remove(0).1
                    };
                    let found = run(1);
                    let what = format!("{layer:?}, {rows} rows on {}", backend.target());
                    assert_close(&what, &found, &expected, Tolerance::REDUCTION);
                    assert_eq!(found, run(3), "{what}: with 1 and 3 threads");
                }
            }
        }
    }
}

#[test]
fn signs_take_no_bytes_in_artifacts_and_in_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let layer = Layer { inputs: 1024, outputs: 960, terms: 2, rank: 96 };
    let [numbers, signs] = layer.bytes();
    let folder = tempfile::tempdir().unwrap();
    let mut compiled = layer.compiled(&[1], Precision::F32);
    assert_eq!(compiled.report.bytes_after, numbers);
    let write = |compiled: &Compiled, name: &str, strip: bool| {
        let path = folder.path().join(name);
        compiled.write(&path, strip, &mut Dump::none()).unwrap();
        (std::fs::metadata(&path).unwrap().len(), path)
    };
    let slack = 1 << 16;
    let (stripped, path) = write(&compiled, "drawn.margay", true);
    assert!(stripped < numbers + slack, "{stripped} bytes for {numbers} of numbers");
    // The graph beside it names the numbers as the program holds them.
    let (whole, with_source) = write(&compiled, "source.margay", false);
    assert!(whole < numbers + slack, "{whole} bytes for {numbers} of numbers");
    let again = open_artifact_graph(&Artifact::open(&with_source).unwrap()).unwrap();
    assert_eq!(again.to_string(), compiled.graph.to_string());
    let x = normal(&[1, layer.inputs], 3, 1);
    let expected = eval::run(&of_rows(&compiled.graph, 1, &*backend::native()), &[("x", &x)]).unwrap();
    let values = eval::run(&of_rows(&again, 1, &*backend::native()), &[("x", &x)]).unwrap();
    assert_eq!(values, expected);
    // Numbers are mapped; what a run needs besides is less than the signs are.
    let artifact = Artifact::open(&path).unwrap();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let executable = backend::load(&artifact, None).unwrap();
    let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
    let found = session.run(&[("x", &x)]).unwrap().swap_remove(0).1;
    let peak = (PEAK.load(Ordering::Relaxed) - before) as u64;
    assert!(peak < signs / 3, "{peak} bytes at once, signs would be {signs}");
    assert_close("an artifact", &found, &expected[0], Tolerance::REDUCTION);
    compiled.graph = held(&compiled.graph);
    let (held, _) = write(&compiled, "held.margay", true);
    assert!(held > numbers + signs, "{held} bytes for {numbers} of numbers and {signs} of signs");
}

#[test]
fn signs_are_drawn_for_ranges_and_beside_what_is_stored_otherwise() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let layer = Layer { inputs: 256, outputs: 256, terms: 1, rank: 32 };
    let [numbers, _] = layer.bytes();
    let range = layer.compiled(&[2, 3, 4, 5], Precision::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("range.margay");
    range.write(&path, true, &mut Dump::none()).unwrap();
    let bytes: usize =
        Artifact::open(&path).unwrap().description().constants.iter().map(|c| c.range.len()).sum();
    assert_eq!(bytes as u64, numbers);
    // All numbers of a narrow constant are stored, signs included.
    let narrow = layer.compiled(&[4], Precision::Int8);
    assert_eq!(narrow.report.bytes_after, (256 * 64 + 64 * 256) as u64 + 4 * (64 + 256));
    // What else is stored narrow does not change what becomes of signs.
    let named = [("other".into(), StoreAs::Precision(Precision::Int8))].into();
    let products = StoreAs::Precision(Precision::F32);
    let (stored, _) = build::stored(
        layer.compiled(&[4], Precision::F32).graph,
        &StoreConstants { products, named, ..StoreConstants::default() },
        &mut Dump::none(),
    )
    .unwrap();
    assert_eq!(stored.to_string().matches(" stored f32(signs, ").count(), 2, "{stored}");
}

#[test]
fn kernels_of_one_tap_are_drawn() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let source = "graph @image(%x: f32[N, 16, 8, 8]) -> (y: f32[N, 64, 8, 8]) {
        %0 = const #k : f32[64, 16, 3, 3]  // conv.weight
        %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 64, 8, 8]  // conv
        return %1
    }";
    let model = || Model::new(parse_with_random_constants(source).0, "image", &mut Dump::none()).unwrap();
    let dense = CompileOptions { dims: vec![("N".into(), vec![2])], ..CompileOptions::default() };
    for (rank, terms) in [(8, 2), (5, 1)] {
        let mut plan = compile(&model(), None, &dense, &Silent).unwrap().plan;
        plan.sites.insert(
            "conv".into(),
            Choice::new("panther", &BTreeMap::from([("rank", rank), ("terms", terms)])),
        );
        let options = CompileOptions { plan: Some(plan), ..dense.clone() };
        let compiled = compile(&model(), None, &options, &Silent).unwrap();
        let x = normal(&[2, 16, 8, 8], 3, 1);
        for backend in backend::supported() {
            let bound = of_rows(&compiled.graph, 2, &*backend);
            assert_eq!(bound.to_string().matches(" stored f32(signs, ").count(), 1, "{bound}");
            let expected = eval::run(&compiled.graph, &[("x", &x)]).unwrap().swap_remove(0);
            let binding = Binding::from([("N".into(), 2)]);
            let executable = build::jit(&compiled.graph, &binding, &*backend).unwrap();
            let mut session = Session::new(&executable, SessionOptions { threads: 2 }).unwrap();
            let found = session.run(&[("x", &x)]).unwrap().swap_remove(0).1;
            assert_close(backend.target(), &found, &expected, Tolerance::REDUCTION);
        }
        // From a file, in which a kernel of signs alone has no bytes at all.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.margay");
        compiled.write(&path, false, &mut Dump::none()).unwrap();
        let artifact = Artifact::open(&path).unwrap();
        let graph = open_artifact_graph(&artifact).unwrap();
        assert_eq!(graph.to_string(), compiled.graph.to_string());
        let executable = backend::load(&artifact, None).unwrap();
        let mut session = Session::new(&executable, SessionOptions { threads: 1 }).unwrap();
        let found = session.run(&[("x", &x)]).unwrap().swap_remove(0).1;
        let expected = eval::run(&compiled.graph, &[("x", &x)]).unwrap().swap_remove(0);
        assert_close("from a file", &found, &expected, Tolerance::REDUCTION);
        // The trained kernel alone, in one panel of 32 filters.
        assert_eq!(compiled.report.bytes_after, 4 * 9 * 16 * 32);
    }
}

/// Calls of a program that draw signs.
fn drawing_calls(g: &Graph, rows: i64, backend: &dyn Backend) -> usize {
    let bound = of_rows(g, rows, backend);
    let program = margay_lower::lower(&bound, backend).unwrap_or_else(|e| panic!("{e}"));
    let draws = |step: &margay_loops::Step| match &step.work {
        margay_loops::Work::Call { call: margay_loops::KernelCall::MatMul(call), .. } => {
            call.types.right.signs.is_some()
        }
        _ => false,
    };
    program.steps().filter(|(_, step)| draws(step)).count()
}

/// Sixteen columns of signs fill a panel of their own, and are multiplied beside as many numbers that fill another.
#[test]
fn signs_that_take_longer_to_draw_than_to_read_are_stored() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = backend::named("cpu", "x86-64-v4", Precision::F32).unwrap();
    let layer = |terms, rank| Layer { inputs: 1024, outputs: 1024, terms, rank };
    for (terms, rank, rows, drawn) in
        [(1, 16, 1, 1), (1, 16, 64, 1), (1, 64, 1, 2), (1, 64, 256, 2), (2, 16, 1, 2), (3, 64, 16, 2)]
    {
        let g = layer(terms, rank).compiled(&[rows], Precision::F32).graph;
        assert_eq!(drawing_calls(&g, rows, &*backend), drawn, "{terms} x {rank}, {rows} rows");
    }
    // A file with both kinds has the graph that it was made from, and numbers beside signs once.
    let layer = layer(1, 16);
    let compiled = layer.compiled(&[4], Precision::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both.margay");
    compiled.write(&path, false, &mut Dump::none()).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let again = open_artifact_graph(&artifact).unwrap();
    assert_eq!(again.to_string(), compiled.graph.to_string());
    let x = normal(&[4, layer.inputs], 3, 1);
    let values = |g: &Graph| eval::run(&of_rows(g, 4, &*backend), &[("x", &x)]).unwrap().swap_remove(0);
    assert_eq!(values(&again), values(&compiled.graph));
    let [numbers, _] = layer.bytes();
    assert_eq!(compiled.report.bytes_after, numbers);
    let bytes: usize = artifact.description().constants.iter().map(|c| c.range.len()).sum();
    assert_eq!(bytes as u64, numbers);
}
