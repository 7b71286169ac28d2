//! Polynomials, numbers in texts, and what a program leaves open.

use super::*;
use crate::open::fit::fit;

#[test]
fn polynomials_are_found_where_integer_ones_fit() {
    let symbols: [Symbol; 2] = ["B".into(), "S".into()];
    let points: Vec<Vec<i64>> = (1..=4).flat_map(|b| (3..=9).map(move |s| vec![b, s])).collect();
    let through = |f: &dyn Fn(i64, i64) -> i64| {
        let values: Vec<i64> = points.iter().map(|p| f(p[0], p[1])).collect();
        fit(&symbols, &points, &values).map(|dim| dim.to_string())
    };
    assert_eq!(through(&|_, _| 7).as_deref(), Some("7"));
    assert_eq!(through(&|b, s| 384 * b * s).as_deref(), Some("384*B*S"));
    assert_eq!(through(&|b, s| b * s * s - 2 * s + b * b + 5).as_deref(), Some("B*B + B*S*S - 2*S + 5"));
    assert_eq!(through(&|b, s| (s + 1) / 2 * b), None);
    assert_eq!(through(&|_, s| s.min(5)), None);
    assert_eq!(through(&|_, s| s * s * s), None);
}

#[test]
fn a_line_needs_two_points_and_a_constant_one() {
    let symbols: [Symbol; 1] = ["S".into()];
    let through = |points: &[i64], values: &[i64]| {
        let points: Vec<Vec<i64>> = points.iter().map(|s| vec![*s]).collect();
        fit(&symbols, &points, values).map(|dim| dim.to_string())
    };
    assert_eq!(through(&[5], &[40]).as_deref(), Some("40"));
    assert_eq!(through(&[5, 7], &[40, 56]).as_deref(), Some("8*S"));
    assert_eq!(through(&[5, 7], &[40, 57]), None);
}

#[test]
fn numbers_belong_to_no_word() {
    let found = |text: &str| -> Vec<String> {
        numbers_in(text).into_iter().map(|range| text[range].to_string()).collect()
    };
    assert_eq!(found("matmul {m = 128, k = $2, a = [1, f32_kn32], x = 0.5}"), ["128", "$2", "1"]);
    assert_eq!(found("indices from -5 to 4"), ["5", "4"]);
    assert_eq!(found("%3 #12ab t0+64"), ["64"]);
}

#[test]
fn sizes_are_spelled_out() {
    let size = Size { value: Dim::parse("2*S").unwrap(), least: 2, most: 8 };
    let open = Open {
        symbols: vec!["S".into()],
        values: vec![vec![(1, 2)], vec![(4, 4)]],
        sizes: vec![size],
        inputs: vec![vec![(1, SizeId(0))], vec![]],
        outputs: vec![],
    };
    assert_eq!(open.spelled("indices from -$0 to 4, $ and $7"), "indices from -2*S to 4, $ and $7");
    assert_eq!(open.points(), [[1], [2], [4]]);
    assert_eq!(open.corners(), [[1], [2], [4]]);
    assert!(open.serves(&[2]) && !open.serves(&[3]) && !open.serves(&[]));
    assert_eq!(open.sizes_at(&[4]), Some(vec![8]));
    assert_eq!(crate::parse_open(&open.to_text()), Ok(open));
    assert!(crate::parse_open("open S 3 to 2").is_err());
    assert!(crate::parse_open("open S 1 to 2\nsize $0: T from 1 to 2").is_err());
    assert!(crate::parse_open("open S 1 to 2\ninput 0 $0").is_err());
}
