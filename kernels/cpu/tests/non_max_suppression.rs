//! Boxes chosen by their scores, of every class, against a plain loop that takes away what a choice overlaps.

mod harness;

use harness::random::Random;
use harness::{classes, execute_bytes};
use margay_loops::{KernelCall, NonMaxSuppression};

struct Given {
    boxes: Vec<[f32; 4]>,
    scores: Vec<f32>,
    wanted: i64,
    share: f32,
    least: f32,
}

fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let side = |x: [f32; 4], axis: usize| (x[axis].min(x[axis + 2]), x[axis].max(x[axis + 2]));
    let common = |axis: usize| {
        let ((a0, a1), (b0, b1)) = (side(a, axis), side(b, axis));
        (a1.min(b1) - a0.max(b0)).max(0.0)
    };
    let area = |x: [f32; 4]| (side(x, 0).1 - side(x, 0).0) * (side(x, 1).1 - side(x, 1).0);
    let common = common(0) * common(1);
    if common > 0.0 { common / (area(a) + area(b) - common) } else { 0.0 }
}

/// Rows, their number, and the scores that are left of the last class.
fn expected(c: &NonMaxSuppression, given: &Given) -> (Vec<i64>, i64, Vec<f32>) {
    let none = f32::NEG_INFINITY;
    let (mut rows, mut left) = (Vec::new(), vec![none; c.boxes]);
    let wanted = usize::try_from(given.wanted).unwrap_or(0).min(c.most);
    for of in (0..c.batch * c.classes).filter(|_| c.most > 0) {
        let boxes = &given.boxes[of / c.classes * c.boxes..][..c.boxes];
        let scores = &given.scores[of * c.boxes..][..c.boxes];
        left = scores.iter().map(|&s| if s > given.least { s } else { none }).collect();
        for _ in 0..wanted {
            let best = left.iter().copied().fold(none, f32::max);
            let Some(chosen) = left.iter().position(|&s| s == best && s > none) else { break };
            rows.extend([of / c.classes, of % c.classes, chosen].map(|n| n as i64));
            for (j, left) in left.iter_mut().enumerate() {
                if j == chosen || overlap(boxes[chosen], boxes[j]) > given.share {
                    *left = none;
                }
            }
        }
    }
    let count = (rows.len() / 3) as i64;
    rows.resize(c.batch * c.classes * c.most * 3, 0);
    (rows, count, left)
}

#[test]
fn the_same_boxes_are_chosen_as_one_by_one() {
    for class in classes() {
        let mut random = Random::new(8);
        let mut chosen = 0;
        for [batch, classes, boxes, most] in [
            [1, 1, 1, 1],
            [2, 3, 9, 4],
            [1, 2, 300, 300],
            [2, 1, 400, 7],
            [1, 1, 5, 0],
            [1, 2, 0, 3],
            [1, 0, 4, 2],
            [0, 2, 3, 1],
        ] {
            for (wanted, share, least) in [
                (i64::MAX, 0.5, -1.0),
                (5, 0.2, 0.0),
                (1000, 0.0, f32::NEG_INFINITY),
                (3, -0.5, f32::NEG_INFINITY),
                (0, 0.5, 0.1),
                (-2, 0.5, 0.1),
            ] {
                let c = NonMaxSuppression { batch, classes, boxes, most };
                let coordinates = random.normal(batch * boxes * 4);
                // Rounded, so that some are equal.
                let mut scores: Vec<f32> = random
                    .normal(batch * classes * boxes)
                    .iter()
                    .map(|s| (s * 16.0).round() / 16.0)
                    .collect();
                scores.iter_mut().step_by(13).for_each(|s| *s = f32::NAN);
                scores.iter_mut().skip(1).step_by(17).for_each(|s| *s = f32::NEG_INFINITY);
                scores.iter_mut().skip(2).step_by(19).for_each(|s| *s = -0.0);
                scores.iter_mut().skip(3).step_by(19).for_each(|s| *s = 0.0);
                let boxes = coordinates.chunks_exact(4).map(|b| b.try_into().unwrap()).collect();
                let given = Given { boxes, scores, wanted, share, least };
                let (rows, count, left) = expected(&c, &given);
                chosen += count;
                let floats = |x: &[f32]| x.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
                let integers = |x: &[i64]| x.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
                let operands = [
                    floats(&coordinates),
                    floats(&given.scores),
                    integers(&[wanted]),
                    floats(&[share]),
                    floats(&[least]),
                ];
                let outs = [vec![0xa5; rows.len() * 8], vec![0xa5; 8], vec![0xa5; left.len() * 4]];
                for found in execute_bytes(class, &KernelCall::NonMaxSuppression(c.clone()), &operands, &outs)
                {
                    let what = format!("{} {c:?} {wanted} {share} {least}", class.name());
                    assert_eq!(found[1], integers(&[count]), "{what}");
                    assert!(found[0] == integers(&rows), "{what}: rows");
                    assert!(found[2] == floats(&left), "{what}: scores that are left");
                }
            }
        }
        assert!(chosen > 300, "{chosen}");
    }
}
