//! Convolutions whose kernels are sketched before they are trained from nothing.

use margay_driver::{Samples, Silent};
use margay_ir::{Cx, Graph, Part};
use margay_passes::sketch::{PantherTraining, Start, panther_for_training};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::{Objective, Optimizer};

use crate::support::supervised;

const CLASSES: usize = 3;

const MODEL: &str = "graph @model(%x: f32[N, 4, 6, 6]) -> (logits: f32[N, 3]) {
  %0 = const #k : f32[16, 4, 3, 3]  // conv.weight
  %1 = conv %x, %0 {pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 16, 6, 6]  // conv
  %2 = relu %1 : f32[N, 16, 6, 6]  // relu
  %3 = reduce %2 {kind = max, axes = [2, 3]} : f32[N, 16]
  %4 = const #h : f32[16, 3]  // head.weight
  %5 = matmul %3, %4 : f32[N, 3]  // head
  return %5
}";

/// Noise with a bar of one of three directions somewhere.
fn samples(rows: usize) -> (Samples, Tensor) {
    let size = 4 * 6 * 6;
    let mut x = vec![0f32; rows * size];
    Philox::new(3, 1).fill_normal_f32(0, &mut x);
    x.iter_mut().for_each(|z| *z *= 0.2);
    let label = |r: usize| (r * 7 + r / 5) % CLASSES;
    for (r, sample) in x.chunks_exact_mut(size).enumerate() {
        let (channel, row, column) = (r % 4, 1 + r / 4 % 4, 1 + r / 16 % 4);
        for step in 0..3 {
            let (i, j) = match label(r) {
                0 => (row, column + step - 1),
                1 => (row + step - 1, column),
                _ => (row + step - 1, column + step - 1),
            };
            sample[channel * 36 + i * 6 + j] += 2.0;
        }
    }
    let labels: Vec<u8> = (0..rows).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[rows, 4, 6, 6], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[rows], &labels).unwrap())
}

#[test]
fn sketched_kernels_are_trained_from_nothing_but_their_signs_stay() {
    let (samples, labels) = samples(400);
    for two_sided in [false, true] {
        let mut g = parse_with_random_constants(MODEL).0;
        // As large as leaves fewer numbers than the kernel has.
        let rank = if two_sided { 1 } else { 2 };
        let sketch =
            PantherTraining { rank, terms: 2, start: Start::Random, two_sided, seed: 4, modules: None };
        let mut cx = Cx::default();
        panther_for_training(&mut g, &sketch, &mut cx).unwrap();
        let part = |g: &Graph, parts: &[Part]| -> Vec<Tensor> {
            let nodes =
                g.order().into_iter().filter(|n| g.node(*n).origin.part.is_some_and(|p| parts.contains(&p)));
            nodes.filter_map(|n| Some(g.constant(n.into())?.tensor().clone())).collect()
        };
        assert!(!part(&g, &[Part::Random]).is_empty(), "{g}\n{:?}", cx.remarks);
        let mut options = supervised(Objective::CrossEntropy, 500);
        (options.update.optimizer, options.update.learning_rate) = (Optimizer::ADAM, 0.02);
        let trained = options.train(&g, &samples, Some(&labels), &mut Silent).unwrap();
        let best = trained.fitted.best();
        assert!(best.error < 0.6 * trained.fitted.first().error, "{two_sided}: {:?}", trained.fitted.history);
        assert!(best.measures[0].1 > 0.7, "{two_sided}: {best:?}");
        assert_eq!(part(&g, &[Part::Random]), part(&trained.graph, &[Part::Random]));
        let learned = [Part::Left, Part::Right, Part::Term];
        assert_ne!(part(&g, &learned), part(&trained.graph, &learned));
    }
}
