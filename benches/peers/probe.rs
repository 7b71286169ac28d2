//! `margay-probe`: what this machine can do right now, for `run.py`, which divides speeds by it.
//!
//! Answers every line `THREADS` with one number: the operations per second of [`margay_benches::fma`]. Two threads that
//! reach less than twice the number of one do not have a core each at that moment.

use std::io::{BufRead, Write};

use margay_benches::fma::operations_per_second;

fn main() -> std::io::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let threads = line?.trim().parse().map_err(std::io::Error::other)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", operations_per_second(threads))?;
        out.flush()?;
    }
    Ok(())
}
