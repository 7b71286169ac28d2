//! Attention that was replaced is recovered by the products around it.

use margay_driver::{Samples, Silent};
use margay_ir::{Cx, Graph, NodeId};
use margay_passes::parameter_names;
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, FavorSettings, LocalSettings, NystromSettings, attention_for_training,
};
use margay_testkit::{normal, parse_with_random_constants};
use margay_train::recover::trainable::{Train, trainable};
use margay_train::recover::{RecoverOptions, recover};

/// Two heads over twelve positions between a normalization and another, with a residual connection.
const MODEL: &str = "graph @model(%x: f32[N, 12, 8]) -> (y: f32[N, 12, 8]) {
  %0 = const #s : f32[8]  // ln.weight
  %1 = const #b : f32[8]  // ln.bias
  %2 = layer_norm %x, %0, %1 {axis = 2, epsilon = 1e-5} : f32[N, 12, 8]  // ln
  %3 = const #q : f32[8, 8]  // q.weight
  %4 = matmul %2, %3 : f32[N, 12, 8]  // q
  %5 = const #qb : f32[8]  // q.bias
  %6 = add %4, %5 : f32[N, 12, 8]  // q/Add
  %7 = reshape %6 {shape = [N, 12, 2, 4]} : f32[N, 12, 2, 4]
  %8 = transpose %7 {perm = [0, 2, 1, 3]} : f32[N, 2, 12, 4]
  %9 = const #k : f32[8, 8]  // k.weight
  %10 = matmul %2, %9 : f32[N, 12, 8]  // k
  %11 = reshape %10 {shape = [N, 12, 2, 4]} : f32[N, 12, 2, 4]
  %12 = transpose %11 {perm = [0, 2, 1, 3]} : f32[N, 2, 12, 4]
  %13 = const #v : f32[8, 8]  // v.weight
  %14 = matmul %2, %13 : f32[N, 12, 8]  // v
  %15 = reshape %14 {shape = [N, 12, 2, 4]} : f32[N, 12, 2, 4]
  %16 = transpose %15 {perm = [0, 2, 1, 3]} : f32[N, 2, 12, 4]
  %17 = attention %8, %12, %16 {scale = 0.5} : f32[N, 2, 12, 4]  // att
  %18 = transpose %17 {perm = [0, 2, 1, 3]} : f32[N, 12, 2, 4]
  %19 = reshape %18 {shape = [N, 12, 8]} : f32[N, 12, 8]
  %20 = const #o : f32[8, 8]  // out.weight
  %21 = matmul %19, %20 : f32[N, 12, 8]  // out
  %22 = const #ob : f32[8]  // out.bias
  %23 = add %21, %22 : f32[N, 12, 8]  // out/Add
  %24 = add %x, %23 : f32[N, 12, 8]  // residual
  %25 = const #f : f32[8, 8]  // head.weight
  %26 = matmul %24, %25 : f32[N, 12, 8]  // head
  return %26
}";

const AROUND: [&str; 6] = ["k.weight", "out.bias", "out.weight", "q.bias", "q.weight", "v.weight"];

fn replaced(form: AttentionForm) -> Graph {
    let mut g = teacher();
    let options = AttentionTraining { form, seed: 3, modules: None };
    attention_for_training(&mut g, &options, &mut Cx::default()).unwrap();
    g
}

fn teacher() -> Graph {
    parse_with_random_constants(MODEL).0
}

fn names(g: &Graph, nodes: &[NodeId]) -> Vec<String> {
    let all = parameter_names(g);
    let name = |n: &NodeId| all.iter().find(|(other, _)| other == n).unwrap().1.clone();
    let mut names: Vec<String> = nodes.iter().map(name).collect();
    names.sort();
    names
}

fn forms() -> [AttentionForm; 3] {
    [
        AttentionForm::Favor(FavorSettings::new(8)),
        AttentionForm::Nystrom(NystromSettings::new(3)),
        AttentionForm::Local(LocalSettings { global: 1, ..LocalSettings::new(2) }),
    ]
}

#[test]
fn the_products_around_replaced_attention_learn() {
    assert!(trainable(&teacher(), Train::Sketch).is_empty());
    for form in forms() {
        let g = replaced(form.clone());
        assert_eq!(names(&g, &trainable(&g, Train::Sketch)), AROUND, "{form:?}\n{g}");
    }
    // Heads that stay exact are beside the others, and share their products.
    let choice = margay_passes::sketch::HeadChoice::of(vec![1]);
    let g = replaced(AttentionForm::Favor(FavorSettings { choice, ..FavorSettings::new(8) }));
    assert_eq!(names(&g, &trainable(&g, Train::Sketch)), AROUND, "{g}");
}

#[test]
fn recovery_brings_a_replaced_head_nearer_to_its_model() {
    let x = normal(&[256, 12, 8], 5, 1);
    let samples = Samples::new(vec![("x".into(), x)]).unwrap();
    let options = RecoverOptions {
        steps: Some(120),
        learning_rate: 5e-3,
        threads: 1,
        evaluations: 4,
        ..RecoverOptions::default()
    };
    for form in forms() {
        let student = replaced(form.clone());
        let found = recover(&student, &teacher(), &samples, &options, &Silent, &mut Silent).unwrap();
        let (before, after) = (found.before.error, found.after.error);
        assert!(after < 0.9 * before, "{form:?}: {before} to {after}");
        assert_eq!(found.trained, 4 * 64 + 2 * 8);
        // What does not belong to the attention stays.
        let head = |g: &Graph| {
            let (n, _) = parameter_names(g).into_iter().find(|(_, name)| name == "head.weight").unwrap();
            g.constant(n.into()).unwrap().tensor().clone()
        };
        assert_eq!(head(&found.graph), head(&student));
    }
}
