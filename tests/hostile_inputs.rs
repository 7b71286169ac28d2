//! Every reader of files against damaged ones: an answer or an error within a limit of time and of memory, never a crash.
//! `fuzz/` runs the same targets for longer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use margay_npy::{read_npz_only, write_npz};
use margay_passes::sketch::read_plan;
use margay_tensor::{DType, Tensor};
use margay_tests::hostile::{TARGETS, Target, target};

/// The longest that an input may take.
const MAX_TIME: Duration = Duration::from_secs(2);

/// After this time an input is taken to never end.
const NEVER: Duration = Duration::from_secs(60);

/// The most memory that an input may take at a time, in bytes. It is that of the limits that readers and passes have;
/// inputs here have some kilobytes.
const MAX_MEMORY: usize = 1 << 30;

/// The longest input.
const MAX_LEN: usize = 1 << 16;

/// Counts what is allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// One target at a time: memory is counted for all of this process.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every request goes to the allocator of the system as it is; counting does not touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is wrong with an input, if anything, and whether it was accepted.
fn run(target: &Target, input: &[u8]) -> Result<bool, String> {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = Instant::now();
    let accepted = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        text.chars().take(2000).collect::<String>()
    })?;
    let bytes = PEAK.load(Relaxed).saturating_sub(before);
    if bytes > MAX_MEMORY {
        return Err(format!("{bytes} bytes of memory, at most {MAX_MEMORY}"));
    }
    // A machine that did something else meanwhile gets a second chance.
    if start.elapsed() > MAX_TIME {
        let again = Instant::now();
        (target.run)(input);
        if again.elapsed() > MAX_TIME {
            return Err(format!("{:?}, at most {MAX_TIME:?}", again.elapsed()));
        }
    }
    Ok(accepted)
}

/// Runs a target on its seeds, nearly all of which it must accept, and on mutations of them.
fn bounded(name: &'static str, mutations: u64) {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let (now, watched) = channel::<String>();
    let worker = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let target = target(name);
        let seeds = (target.seeds)();
        let mut faults = Vec::new();
        let mut refused = Vec::new();
        for (i, seed) in seeds.iter().enumerate() {
            _ = now.send(format!("seed {i}"));
            match run(target, seed) {
                Ok(true) => {}
                Ok(false) => refused.push(i),
                Err(fault) => faults.push(format!("seed {i}: {fault}")),
            }
        }
        if refused.len() * 100 > seeds.len() {
            faults.push(format!("seeds {refused:?} are refused"));
        }
        let mut accepted = 0;
        for stream in 0..mutations {
            _ = now.send(format!("stream {stream}"));
            // Some are changed twice.
            let mut input = target.mutate(&seeds[(stream as usize * 7919) % seeds.len()], stream, MAX_LEN);
            if stream % 3 == 0 {
                input = target.mutate(&input, stream + mutations, MAX_LEN);
            }
            match run(target, &input) {
                Ok(yes) => accepted += u64::from(yes),
                Err(fault) => faults.push(format!("stream {stream}: {fault}")),
            }
        }
        (seeds.len(), accepted, faults)
    });
    let worker = worker.expect("a thread can be made");
    let mut last = String::from("seeds");
    loop {
        match watched.recv_timeout(NEVER) {
            Ok(what) => last = what,
            Err(RecvTimeoutError::Timeout) => panic!("{name}: {last} does not end"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let (seeds, accepted, faults) = worker.join().expect("faults are caught");
    println!("{name}: {seeds} seeds, {accepted} of {mutations} mutations accepted");
    assert!(faults.is_empty(), "{name}, {} faults:\n{}", faults.len(), faults.join("\n"));
    // If nothing or everything passed, nothing was tested.
    let some = mutations / 100..mutations * 19 / 20;
    assert!(some.contains(&accepted), "{name}: {accepted} of {mutations} accepted");
}

#[test]
fn models_of_onnx() {
    bounded("onnx", 2000);
}

#[test]
fn texts_of_graphs() {
    bounded("graph_text", 3000);
}

#[test]
fn texts_of_programs() {
    bounded("program_text", 4000);
}

#[test]
fn artifacts() {
    bounded("artifact", 2000);
}

#[test]
fn plans() {
    bounded("plan", 5000);
}

#[test]
fn arrays() {
    bounded("arrays", 10_000);
}

#[test]
fn checkpoints() {
    bounded("checkpoint", 1000);
}

/// Inputs that are large in number only: within some seconds, without what nobody asked for.
#[test]
fn many_small_things_end() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let within = |what: &str, seconds: u64, work: &dyn Fn()| {
        let start = Instant::now();
        work();
        let taken = start.elapsed();
        assert!(taken < Duration::from_secs(seconds), "{what} took {taken:?}, at most {seconds} s");
    };
    // Each of the arrays that nobody asks for would be some megabytes.
    let zeros = Tensor::zeros(DType::F32, &[1 << 20]).expect("small");
    let mut arrays: Vec<(String, Tensor)> =
        (0..20_000).map(|i| (format!("a{i}"), Tensor::scalar(0f32))).collect();
    arrays.push(("large".into(), zeros));
    arrays.push(("image".into(), Tensor::scalar(1f32)));
    let mut archive = std::io::Cursor::new(Vec::new());
    write_npz(&mut archive, &arrays).expect("it is written");
    drop(arrays);
    let archive = archive.into_inner();
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    within("an archive of many arrays", 20, &|| {
        let found = read_npz_only(std::io::Cursor::new(&archive), &|name| name == "image");
        let (arrays, others) = found.expect("it is an archive");
        assert_eq!((arrays.len(), others.len()), (1, 20_001));
    });
    let peak = PEAK.load(Relaxed) - before;
    // Names and places of members take memory, contents none.
    assert!(peak < 64 << 20, "{peak} bytes");

    let sites: String = (0..100_000).map(|i| format!("m{i} = {{ scheme = \"none\" }}\n")).collect();
    let plan = format!(
        "[plan]\nversion = 1\nmodel = \"0123456789abcdef\"\ntarget-cpu = \"portable\"\ncost-model = \"x\"\nseed = 0\n\
         [modules]\n{sites}"
    );
    within("a plan of many sites", 20, &|| assert!(read_plan(&plan).is_err()));

    // More operands than 16 bits count.
    let operands = 70_000;
    within("a node of many operands", 60, &|| {
        let model = concatenation(operands);
        let g = margay_onnx::import(&model).expect("it is a model");
        let x = Tensor::from_slice(&[1], &[2f32]).expect("small");
        let y = margay_ir::eval::run(&g, &[("x", &x)]).expect("it runs").remove(0);
        assert_eq!((y.shape(), y.as_slice::<f32>().expect("f32")[operands - 1]), (&[operands][..], 2.0));
    });
}

/// One input of one element, so many times behind itself.
fn concatenation(operands: usize) -> margay_onnx::Model {
    use margay_onnx::{Attribute, OnnxDim, OnnxGraph, OnnxNode, OnnxValue};
    let value = |name: &str, extent: usize| OnnxValue {
        name: name.into(),
        dtype: Some(DType::F32),
        narrow: None,
        dims: Some(vec![OnnxDim::Value(extent as i64)]),
    };
    let node = OnnxNode {
        name: "concat".into(),
        op_type: "Concat".into(),
        inputs: vec!["x".into(); operands],
        outputs: vec!["y".into()],
        attributes: [("axis".to_string(), Attribute::Int(0))].into(),
        ..OnnxNode::default()
    };
    let graph = OnnxGraph {
        name: "many".into(),
        inputs: vec![value("x", 1)],
        outputs: vec![value("y", operands)],
        nodes: vec![node],
        ..OnnxGraph::default()
    };
    margay_onnx::Model::new(17, graph)
}

#[test]
fn every_target_has_a_program() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest is there");
    for target in &TARGETS {
        let path = format!("fuzz_targets/{}.rs", target.name);
        let text = std::fs::read_to_string(root.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(text.contains(&format!("\"{}\"", target.name)), "{path}");
        assert!(manifest.contains(&format!("path = \"{path}\"")), "{path} is not in the manifest");
    }
}
