//! Every reader of files against damaged ones: an answer or an error within a limit of time and of memory, never a crash.
//! `fuzz/` runs the same targets for longer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

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
