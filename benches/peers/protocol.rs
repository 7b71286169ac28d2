//! What every Rust peer of the comparison shares: its arguments, the inputs, and the conversation with `run.py`.
//!
//! A peer is started as `PEER MODEL THREADS INPUTS` and prints one line of JSON when the model is loaded. Then it
//! answers line by line:
//!
//! - `run N`: runs the model N times; `{"wall": [...], "cpu": ...}`, the seconds of each run by the clock, and the
//!   mean seconds of processor time of all threads.
//! - `write FILE`: writes the outputs of the last run, f32, little-endian, one after the other; `{"outputs": N}`.
//!
//! The folder INPUTS holds `index.txt` with a line `NAME DTYPE DIMS FILE` for each input, and the files, raw and
//! little-endian. Python peers keep to the same conversation in `python_peer.py`.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whatever goes wrong ends the peer.
pub(crate) type Fallible<T> = Result<T, Box<dyn Error>>;

/// A loaded model with its inputs.
pub(crate) trait Peer {
    /// Runs the model once; the outputs stay where [`outputs`](Peer::outputs) finds them.
    fn run(&mut self) -> Fallible<()>;

    /// The outputs of the last run.
    fn outputs(&mut self) -> Fallible<Vec<Vec<f32>>>;
}

/// The arguments of a peer.
pub(crate) struct Arguments {
    /// The file of the model.
    pub(crate) model: PathBuf,
    /// How many threads may work on a run.
    pub(crate) threads: usize,
    /// The inputs of the model.
    pub(crate) inputs: Vec<Input>,
}

/// An input of the model.
pub(crate) struct Input {
    /// As the model calls it.
    pub(crate) name: String,
    /// Its extents.
    pub(crate) shape: Vec<usize>,
    /// Its elements in row-major order.
    pub(crate) values: Values,
}

/// Elements of one of the types that the models of the comparison take.
pub(crate) enum Values {
    /// Single precision.
    F32(Vec<f32>),
    /// Indices and masks.
    I64(Vec<i64>),
}

impl Arguments {
    /// Reads the arguments of this process and the files they name.
    pub(crate) fn read() -> Fallible<Arguments> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let [model, threads, inputs] = arguments.as_slice() else {
            return Err("usage: PEER MODEL THREADS INPUTS".into());
        };
        Ok(Arguments {
            model: model.into(),
            threads: threads.parse()?,
            inputs: read_inputs(Path::new(inputs))?,
        })
    }
}

fn read_inputs(folder: &Path) -> Fallible<Vec<Input>> {
    let index = std::fs::read_to_string(folder.join("index.txt"))?;
    index.lines().map(|line| read_input(folder, line)).collect()
}

fn read_input(folder: &Path, line: &str) -> Fallible<Input> {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, dtype, dims, file] = words.as_slice() else {
        return Err(format!("index.txt: `{line}` does not have four words").into());
    };
    let bytes = std::fs::read(folder.join(file))?;
    let values = match *dtype {
        "f32" => Values::F32(elements(&bytes, f32::from_le_bytes)),
        "i64" => Values::I64(elements(&bytes, i64::from_le_bytes)),
        other => return Err(format!("index.txt: elements of type `{other}`").into()),
    };
    let shape = dims.split(',').map(str::parse).collect::<Result<_, _>>()?;
    Ok(Input { name: name.to_string(), shape, values })
}

fn elements<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|chunk| from(*chunk)).collect()
}

/// Says that the model is loaded, and answers until the input ends. `started` is when loading began.
pub(crate) fn serve(peer: &mut dyn Peer, version: &str, started: Instant) -> Fallible<()> {
    let load = started.elapsed().as_secs_f64();
    say(&format!("{{\"version\": \"{version}\", \"import\": 0.0, \"load\": {load}}}"))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_once(' ') {
            Some(("run", count)) => timed(peer, count.parse()?)?,
            Some(("write", file)) => write(peer, Path::new(file))?,
            _ => return Err(format!("`{line}` is no request").into()),
        };
        say(&answer)?;
    }
    Ok(())
}

fn say(line: &str) -> Fallible<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn timed(peer: &mut dyn Peer, count: usize) -> Fallible<String> {
    let mut wall = Vec::with_capacity(count);
    let cpu = processor_time();
    for _ in 0..count {
        let start = Instant::now();
        peer.run()?;
        wall.push(start.elapsed().as_secs_f64());
    }
    let cpu = (processor_time() - cpu).as_secs_f64() / count.max(1) as f64;
    Ok(format!("{{\"wall\": {wall:?}, \"cpu\": {cpu:?}}}"))
}

/// Processor time of all threads of this process.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every system that the comparison is for; `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn write(peer: &mut dyn Peer, file: &Path) -> Fallible<String> {
    let outputs = peer.outputs()?;
    let bytes: Vec<u8> = outputs.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(file, bytes)?;
    Ok(format!("{{\"outputs\": {}}}", outputs.len()))
}
