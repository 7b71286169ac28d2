//! Reads digits after learning from sums alone, through tables of sums that are sketched: Choi, Solko-Breslin, Alur and
//! Wong, *CTSketch: Compositional Tensor Sketching for Scalable Neurosymbolic Learning*, 2025, arXiv 2503.24123.
//!
//! ```text
//! python3 tests/tools/fetch_digits.py --out FOLDER
//! cargo run --release -p margay-train --example ctsketch -- FOLDER/digits.npz [PASSES [SEED]]
//! ```
//!
//! A sample is N images and the sum of their digits; no label says what one image shows. The network gives a distribution of
//! digits for each image, a program the distribution of their sum, and the loss is how much the sum surprises. Prints a row for
//! each number of digits and form of the program.

mod learning;
mod program;

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use margay_driver::{Samples, backend};

use learning::{Images, Options, learn};
use program::{Form, Program};

/// Of tables: what is dropped is rounding.
const EXACT: Form = Form::Sketched(1e-9);

/// Trees by the number of inputs of the nodes of each level, and how their tables are given. Sums of one digit are digits: what
/// labels of single images teach.
const PROGRAMS: [(&[usize], Form); 9] = [
    (&[1], Form::Enumerated),
    (&[2], Form::Enumerated),
    (&[2], EXACT),
    (&[4], Form::Enumerated),
    (&[4], EXACT),
    (&[4], Form::Sketched(0.3)),
    (&[2, 2], EXACT),
    (&[4, 2], EXACT),
    (&[2, 2, 2], EXACT),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: ctsketch DIGITS.npz [PASSES [SEED]]";
    let path = arguments.next().ok_or(usage)?;
    let passes = arguments.next().map_or(Ok(20), |a| a.parse())?;
    let seed = arguments.next().map_or(Ok(0), |a| a.parse())?;
    let images = read(Path::new(&path))?;
    let options = Options { passes, seed, threads: 2, backend: backend::native() };
    println!(
        "| digits | program | numbers stored | numbers of one table | sums right | digits right | seconds |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (arities, form) in PROGRAMS {
        let start = Instant::now();
        let program = Program::new(arities, form)?;
        let found = learn(&images, &program, &options)?;
        let form = match form {
            Form::Enumerated => "enumerated".to_string(),
            Form::Sketched(tolerance) => format!("tensor trains, ε = {tolerance:e}"),
        };
        println!(
            "| {} | tables of {arities:?} inputs, {form} | {} | {:.1e} | {:.1} % | {:.1} % | {:.0} |",
            program.inputs(),
            program.numbers(),
            program.numbers_of_one_table(),
            100.0 * found.sums,
            100.0 * found.digits,
            start.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

/// Images and digits of a file.
fn read(path: &Path) -> Result<Images, Box<dyn Error>> {
    let samples = Samples::open(path)?;
    let array = |name: &str| {
        let found = samples.arrays().iter().find(|(n, _)| n == name);
        found.map(|(_, t)| t).ok_or_else(|| format!("{}: no array `{name}`", path.display()))
    };
    let images = Images { pixels: array("image")?.to_vec()?, labels: array("label")?.to_vec()? };
    if images.pixels.len() != images.labels.len() * learning::PIXELS {
        return Err(format!("{}: expected images of 28 by 28", path.display()).into());
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;
    use learning::{Learned, PIXELS};

    /// Digits that are a bright square each, at a place of their own, in noise.
    fn squares(count: usize) -> Images {
        let labels: Vec<i64> = (0..count).map(|i| (i * 7 / 10 % 10) as i64).collect();
        let mut pixels: Vec<f32> =
            (0..count * PIXELS).map(|i| (i * 7919 % 1009) as f32 / 1009.0 * 0.2).collect();
        for (image, digit) in pixels.chunks_exact_mut(PIXELS).zip(&labels) {
            let (top, left) = (digit / 4 * 9, digit % 4 * 7);
            for (y, x) in (0..36).map(|p| (p / 6, p % 6)) {
                image[((top + y) * 28 + left + x) as usize] += 0.8;
            }
        }
        Images { pixels, labels }
    }

    fn learned(arities: &[usize], form: Form, passes: usize) -> Learned {
        let program = Program::new(arities, form).unwrap();
        let options = Options { passes, seed: 3, threads: 1, backend: backend::native() };
        learn(&squares(400), &program, &options).unwrap()
    }

    #[test]
    fn digits_are_learned_from_sums_through_a_sketched_table() {
        let found = learned(&[2], EXACT, 40);
        assert!(found.sums > 0.9 && found.digits > 0.9, "{found:?}");
        assert_eq!(learned(&[2], EXACT, 40), found, "the seed says all");
    }

    #[test]
    fn all_exact_forms_of_a_program_have_the_same_loss() {
        let enumerated = learned(&[4], Form::Enumerated, 1).first_loss;
        for arities in [&[4][..], &[2, 2]] {
            let sketched = learned(arities, EXACT, 1).first_loss;
            assert!(
                (sketched - enumerated).abs() < 1e-5 * enumerated,
                "{arities:?}: {sketched}, {enumerated}"
            );
        }
        assert!((learned(&[4], Form::Sketched(0.5), 1).first_loss - enumerated).abs() > 1e-3);
    }

    #[test]
    fn tensor_trains_of_sums_have_the_ranks_of_partial_sums() {
        let program = Program::new(&[4], EXACT).unwrap();
        // 10, 19 and 28 sums of the digits before, and 37 values of the sum.
        let expected = 10 * 10 + 10 * 10 * 19 + 19 * 10 * 28 + 28 * 10 * 37 + 37 * 37;
        assert_eq!(program.numbers(), expected);
        assert_eq!(program.numbers_of_one_table(), 370_000.0);
    }
}
