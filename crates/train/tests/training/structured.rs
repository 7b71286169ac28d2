//! Weights replaced before training by tensor trains, and by factors with a diagonal.

use margay_driver::{Runner, Samples, Silent, backend};
use margay_ir::{Cx, Graph, Part};
use margay_passes::parameter_names;
use margay_passes::sketch::{
    StructureStart, StructuredForm, StructuredSettings, StructuredTraining, structured_for_training,
};
use margay_tensor::Tensor;
use margay_tensor::random::Philox;
use margay_testkit::parse_with_random_constants;
use margay_train::{FitOptions, Length, Objective, Stop, Supervised, Trained};

use crate::support::{StopAfter, supervised};

/// A square layer, one that is not, and one that is too small for factors.
const CLASSIFIER: &str = "graph @classifier(%x: f32[N, 24]) -> (logits: f32[N, 3]) {
  %0 = const #w1 : f32[24, 24]  // fc1.weight
  %1 = matmul %x, %0 : f32[N, 24]  // fc1
  %2 = const #b1 : f32[24]  // fc1.bias
  %3 = add %1, %2 : f32[N, 24]
  %4 = tanh %3 : f32[N, 24]
  %5 = const #w2 : f32[24, 30]  // fc2.weight
  %6 = matmul %4, %5 : f32[N, 30]  // fc2
  %7 = tanh %6 : f32[N, 30]
  %8 = const #w3 : f32[30, 3]  // fc3.weight
  %9 = matmul %7, %8 : f32[N, 3]  // fc3
  return %9
}";

const DIAGONAL: StructuredForm = StructuredForm::LowRankDiag { rank: 4 };
const TRAIN: StructuredForm = StructuredForm::TensorTrain { cores: 3, rank: 5 };

/// A Kronecker product and factors, of the shape of `fc2`.
fn structure(start: StructureStart) -> StructuredForm {
    StructuredForm::Structure(StructuredSettings { form: "(4x5 ⊗ 6x6) + 24x2 · 2x30".to_owned(), start })
}

fn dense() -> Graph {
    parse_with_random_constants(CLASSIFIER).0
}

/// The model in a form, and the layers that were left.
fn replaced(form: StructuredForm, modules: Option<&[&str]>) -> (Graph, Vec<String>) {
    let (mut g, mut cx) = (dense(), Cx::default());
    let modules = modules.map(|names| names.iter().map(ToString::to_string).collect());
    structured_for_training(&mut g, &StructuredTraining { form, seed: 3, modules }, &mut cx).unwrap();
    (g, cx.remarks.into_iter().map(|r| format!("{}: {}", r.at, r.message)).collect())
}

/// Samples of three classes, which differ along a few of the numbers.
fn samples() -> (Samples, Tensor) {
    const ROWS: usize = 200;
    let mut x = vec![0f32; ROWS * 24];
    Philox::new(1, 1).fill_normal_f32(0, &mut x);
    let label = |r: usize| (r * 7 + r / 5) % 3;
    for (r, row) in x.chunks_exact_mut(24).enumerate() {
        row.iter_mut().for_each(|x| *x *= 0.02);
        row[8 * label(r)..][..4].iter_mut().for_each(|x| *x += 0.05);
    }
    let labels: Vec<u8> = (0..ROWS).map(|r| label(r) as u8).collect();
    let x = Tensor::from_slice(&[ROWS, 24], &x).unwrap();
    (Samples::new(vec![("x".into(), x)]).unwrap(), Tensor::from_slice(&[ROWS], &labels).unwrap())
}

fn train(options: &Supervised, g: &Graph, steps: Option<u64>) -> Trained {
    let (samples, labels) = samples();
    let trained = match steps {
        Some(steps) => options.train(g, &samples, Some(&labels), &mut StopAfter::steps(steps)),
        None => options.train(g, &samples, Some(&labels), &mut Silent),
    };
    trained.unwrap_or_else(|e| panic!("{e}"))
}

/// The constants that stand in for weights.
fn factors(g: &Graph) -> Vec<(String, Tensor)> {
    let made = |n: &margay_ir::NodeId| matches!(g.node(*n).origin.part, Some(Part::Left | Part::Right));
    let contents = |(n, name)| Some((name, g.constant(margay_ir::Value::from(n))?.tensor().clone()));
    parameter_names(g).into_iter().filter(|(n, _)| made(n)).filter_map(contents).collect()
}

#[test]
fn layers_that_would_not_get_smaller_stay() {
    let (g, left) = replaced(DIAGONAL, None);
    assert_eq!(factors(&g).len(), 3, "fc1 alone is square: {left:?}");
    assert_eq!(left, Vec::<String>::new());
    let (g, left) = replaced(TRAIN, None);
    assert_eq!(factors(&g).len(), 6, "fc1 and fc2");
    assert_eq!(left, ["fc3: 109 numbers would not be fewer than 90"]);
    let (_, left) = replaced(StructuredForm::LowRankDiag { rank: 12 }, None);
    assert_eq!(left, ["fc1: 600 numbers would not be fewer than 576"]);
    let (g, _) = replaced(TRAIN, Some(&["fc2"]));
    assert_eq!(factors(&g).len(), 3);
    let (g, left) = replaced(structure(StructureStart::Fitted), None);
    assert_eq!(factors(&g).len(), 4, "fc2 alone has the shape");
    let of = |weight| format!("`(4x5 ⊗ 6x6) + 24x2 · 2x30` is 24 x 30, and the weight {weight}");
    assert_eq!(left, [format!("fc1: {}", of("24 x 24")), format!("fc3: {}", of("30 x 3"))]);
}

#[test]
fn what_no_layer_has_is_refused() {
    for (form, modules, why) in [
        (StructuredForm::LowRankDiag { rank: 0 }, None, "rank 0, expected at least 1"),
        (StructuredForm::TensorTrain { cores: 3, rank: 0 }, None, "rank 0, expected at least 1"),
        (StructuredForm::TensorTrain { cores: 1, rank: 2 }, None, "1 cores, expected at least 2"),
        (DIAGONAL, Some("fc2"), "the model has no module `fc2`; it has `fc1`"),
        (
            StructuredForm::Structure(StructuredSettings {
                form: "24x2 · 3x30".to_owned(),
                start: StructureStart::Fitted,
            }),
            None,
            "`24x2` has 2 columns and `3x30` behind it 3 rows",
        ),
    ] {
        let modules = modules.map(|name| vec![name.to_string()]);
        let options = StructuredTraining { form, seed: 0, modules };
        let refused = structured_for_training(&mut dense(), &options, &mut Cx::default()).unwrap_err();
        assert_eq!(refused.to_string(), why);
    }
}

#[test]
fn training_begins_with_factors_of_the_weights() {
    let (samples, _) = samples();
    let outputs = |g: &Graph| {
        let found = Runner::new(g.clone(), &backend::native(), 1).run(samples.arrays()).unwrap();
        found[0].1.to_vec::<f32>().unwrap()
    };
    let expected = outputs(&dense());
    let size: f32 = expected.iter().map(|y| y * y).sum();
    let error = |form| {
        let found = outputs(&replaced(form, Some(&["fc1"])).0);
        found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / size
    };
    for (name, few, many) in [
        ("lowrank-diag", StructuredForm::LowRankDiag { rank: 2 }, StructuredForm::LowRankDiag { rank: 11 }),
        (
            "tt",
            StructuredForm::TensorTrain { cores: 2, rank: 2 },
            StructuredForm::TensorTrain { cores: 2, rank: 9 },
        ),
    ] {
        let (few, many) = (error(few), error(many));
        assert!(many < 0.7 * few && many > 0.0, "{name}: {few} {many}");
    }
}

#[test]
fn all_factors_are_trained() {
    for (name, form, numbers) in [
        ("lowrank-diag", DIAGONAL, 24 * (2 * 4 + 1) + 24 + 24 * 30 + 30 * 3),
        // Extents 2, 3, 4 of 24 and 2, 3, 5 of 30.
        ("tt", TRAIN, (4 * 4 + 4 * 9 * 5 + 5 * 16) + (4 * 4 + 4 * 9 * 5 + 5 * 20) + 24 + 30 * 3),
        ("structured", structure(StructureStart::Fitted), 24 * 25 + 20 + 36 + 24 * 2 + 2 * 30 + 30 * 3),
        (
            "structured, random",
            structure(StructureStart::Random),
            24 * 25 + 20 + 36 + 24 * 2 + 2 * 30 + 30 * 3,
        ),
    ] {
        let (g, _) = replaced(form, None);
        let mut options = supervised(Objective::CrossEntropy, 150);
        options.update.learning_rate = 0.02;
        let trained = train(&options, &g, None);
        assert_eq!(trained.parameters, numbers, "{name}");
        let (first, best) = (trained.fitted.first(), trained.fitted.best());
        assert!(best.error < 0.6 * first.error, "{name}: {:?}", trained.fitted.history);
        let (before, after) = (factors(&g), factors(&trained.graph));
        assert_eq!(before.len(), after.len());
        for ((factor, before), (_, after)) in before.iter().zip(&after) {
            assert!(before.shape() == after.shape() && before != after, "{name}: {factor} stayed");
        }
    }
}

#[test]
fn a_run_that_goes_on_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for (name, form) in
        [("lowrank-diag", DIAGONAL), ("tt", TRAIN), ("structured", structure(StructureStart::Random))]
    {
        let (g, _) = replaced(form, None);
        let run = |part: &str, steps, resume| {
            let mut options = supervised(Objective::CrossEntropy, 12);
            let fit = FitOptions {
                checkpoint: Some(folder.path().join(format!("{name} {part}"))),
                resume,
                ..options.fit
            };
            options.fit = FitOptions { length: Length::Steps(12), checkpoint_seconds: 0.0, ..fit };
            train(&options, &g, steps)
        };
        let whole = run("whole", None, false);
        assert_eq!(run("parts", Some(5), false).fitted.stop, Stop::Interrupted);
        assert_eq!(run("parts", None, true).graph.to_string(), whole.graph.to_string(), "{name}");
    }
}
