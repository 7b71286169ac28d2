//! Relative positions inside of random features: against the formulas of their paper, written out here once more by loops.

use margay_ir::ops::MatMul;
use margay_ir::{Cx, Graph, Op, Part, Value, eval};
use margay_passes::sketch::{
    AttentionForm, AttentionTraining, FavorSettings, FeatureKernel, HeadChoice, RelativePositions,
    attention_for_training,
};
use margay_tensor::Tensor;

use crate::favor::{DIM, HEADS, LEN, attention, by_formula, directions, operands, run, with_features};
use crate::{check_by_differences, floats, narrow, widened};

/// The numbers of a constant that is named so.
fn named(g: &Graph, what: &str) -> Vec<f64> {
    let key = format!("favor.{what}(");
    let constants = g.order().into_iter().filter_map(|n| match g.op(n) {
        Op::Const(c) if c.payload.key().to_string().starts_with(&key) => Some(floats(c.payload.tensor())),
        _ => None,
    });
    let found: Vec<Vec<f64>> = constants.collect();
    assert_eq!(found.len(), 1, "{what}\n{g}");
    found.into_iter().next().unwrap()
}

pub(crate) fn settings(gated: bool) -> FavorSettings {
    let relative = Some(RelativePositions { sines: 3, realizations: 7, gated });
    FavorSettings { relative, ..FavorSettings::new(8) }
}

/// The parameters of relative positions of a graph, as they are stored.
struct Waves {
    frequencies: Vec<f64>,
    phases: Vec<f64>,
    gains: Vec<f64>,
    gates: Option<Vec<f64>>,
}

impl Waves {
    fn of(g: &Graph, s: &RelativePositions) -> Waves {
        let [frequencies, phases, gains] = ["frequencies", "phases", "gains"].map(|what| named(g, what));
        Waves { frequencies, phases, gains, gates: s.gated.then(|| named(g, "gates")) }
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// Angle, phase and gain of a wave of an entry of a head at a position.
    fn at(&self, s: &RelativePositions, head: usize, entry: usize, wave: usize, position: f64) -> [f64; 3] {
        let i = (head * DIM + entry) * s.sines + wave;
        let angle = 2.0 * std::f64::consts::PI * Waves::sigmoid(self.frequencies[i]) / 2.0 * position;
        [angle, self.phases[i], self.gains[i].exp().ln_1p()]
    }

    fn gate(&self, head: usize, entry: usize) -> f64 {
        self.gates.as_ref().map_or(1.0, |gates| Waves::sigmoid(gates[head * DIM + entry]))
    }

    /// `P_c(m - n)` of the paper.
    fn kernel(&self, s: &RelativePositions, head: usize, entry: usize, distance: f64) -> f64 {
        let waves = (0..s.sines).map(|wave| {
            let [angle, phase, gain] = self.at(s, head, entry, wave, distance);
            gain * gain * (angle + phase).cos()
        });
        let gate = self.gate(head, entry);
        gate * waves.sum::<f64>() + 1.0 - gate
    }
}

/// Queries or keys of one head with their positions, by loops.
fn encoded(g: &Graph, s: &RelativePositions, head: usize, x: &[f64], is_query: bool) -> Vec<f64> {
    let waves = Waves::of(g, s);
    let [cosines, sines] = ["noise.cosines", "noise.sines"].map(|what| named(g, what));
    let apart = if s.gated { named(g, "noise.apart") } else { Vec::new() };
    let r = s.realizations;
    let mut out = vec![0.0; LEN * r];
    for (position, entry) in (0..LEN * DIM).map(|i| (i / DIM, i % DIM)) {
        let (x, gate) = (x[position * DIM + entry], waves.gate(head, entry));
        for (wave, draw) in (0..s.sines * r).map(|i| (i / r, i % r)) {
            let [angle, phase, gain] = waves.at(s, head, entry, wave, position as f64);
            let angle = if is_query { angle + phase } else { angle };
            let at = ((head * DIM + entry) * s.sines + wave) * r + draw;
            out[position * r + draw] +=
                x * gate.sqrt() * gain * (angle.cos() * cosines[at] + angle.sin() * sines[at]);
        }
        for (draw, noise) in apart.iter().skip((head * DIM + entry) * r).take(r).enumerate() {
            out[position * r + draw] += x * (1.0 - gate).sqrt() * noise;
        }
    }
    out
}

/// Of some heads too, whose parameters are then those of these.
#[test]
fn relative_positions_follow_the_formulas_of_their_paper() {
    let part = |s: FavorSettings| FavorSettings { choice: HeadChoice::of(vec![1, 3]), ..s };
    let relu = FavorSettings { kernel: FeatureKernel::Relu, ..settings(true) };
    for (s, causal) in
        [(settings(false), false), (settings(true), true), (relu, false), (part(settings(true)), false)]
    {
        let g = attention(HEADS, causal, None);
        let replaced = with_features(&g, &s);
        let wide = widened(&replaced);
        let found = run(&wide, &operands(HEADS));
        let exact = run(&widened(&g), &operands(HEADS));
        let w = directions(&replaced);
        let given: Vec<Vec<f64>> = operands(HEADS).iter().map(|(_, t)| floats(t)).collect();
        let size = LEN * 3;
        for (at, found) in found.chunks_exact(size).enumerate() {
            let head = at % HEADS;
            let chosen: Vec<usize> = s.choice.heads.clone().unwrap_or_else(|| (0..HEADS).collect());
            let expected = match chosen.iter().position(|h| *h == head) {
                None => exact[at * size..][..size].to_vec(),
                Some(place) => {
                    let of = |i: usize| {
                        let x = &given[i][at * LEN * DIM..][..LEN * DIM];
                        encoded(&replaced, s.relative.as_ref().unwrap(), place, x, i == 0)
                    };
                    by_formula(&s, &w, [&of(0), &of(1), &given[2][at * size..][..size]], None, causal)
                }
            };
            for (f, e) in found.iter().zip(&expected) {
                // Scalars such as pi are constants of f32 in the graph.
                assert!((f - e).abs() < 1e-5 * (1.0 + e.abs()), "{s:?}, head {head}: {f} for {e}");
            }
        }
    }
}

/// The mean over the noise of the products of queries and keys is that of the kernel of their distances, within 4 standard errors.
#[test]
fn products_of_encoded_operands_are_those_of_the_relative_kernel_on_average() {
    for gated in [false, true] {
        let s = settings(gated);
        let r = s.relative.clone().unwrap();
        let g = attention(HEADS, false, None);
        let given: Vec<Vec<f64>> = operands(HEADS).iter().map(|(_, t)| floats(t)).collect();
        let head = 2;
        let part = |i: usize| given[i][head * LEN * DIM..][..LEN * DIM].to_vec();
        let (q, k) = (part(0), part(1));
        let mut found = vec![Vec::new(); LEN * LEN];
        let mut waves = None;
        for seed in 0..1024 {
            let mut g = g.clone();
            let options = AttentionTraining { form: AttentionForm::Favor(s.clone()), seed, modules: None };
            attention_for_training(&mut g, &options, &mut Cx::default()).unwrap();
            // The parameters of the first seed with the noise of each.
            let first = waves.get_or_insert_with(|| Waves::of(&g, &r));
            let set = |what: &str, values: &[f64]| {
                let names = margay_passes::parameter_names(&g);
                let key = format!("favor.{what}(");
                let is = |n: &margay_ir::NodeId| match g.op(*n) {
                    Op::Const(c) => c.payload.key().to_string().starts_with(&key),
                    _ => false,
                };
                let (n, name) = names.into_iter().find(|(n, _)| is(n)).unwrap();
                let shape = g.constant(n.into()).unwrap().tensor().shape().to_vec();
                let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
                (name, Tensor::from_slice(&shape, &values).unwrap())
            };
            let mut contents = vec![
                set("frequencies", &first.frequencies),
                set("phases", &first.phases),
                set("gains", &first.gains),
            ];
            contents.extend(first.gates.as_ref().map(|gates| set("gates", gates)));
            let g = margay_passes::with_parameters(&g, &contents).unwrap();
            let [q, k] = encoded_by(&g);
            let size = LEN * r.realizations;
            let row =
                |x: &[f64], at: usize| x[head * size + at * r.realizations..][..r.realizations].to_vec();
            for (at, found) in found.iter_mut().enumerate() {
                let (q, k) = (row(&q, at / LEN), row(&k, at % LEN));
                found.push(q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>());
            }
        }
        let waves = waves.unwrap();
        for (at, found) in found.iter().enumerate() {
            let (m, n) = (at / LEN, at % LEN);
            let products = (0..DIM)
                .map(|c| q[m * DIM + c] * k[n * DIM + c] * waves.kernel(&r, head, c, m as f64 - n as f64));
            let expected: f64 = products.sum();
            let count = found.len() as f64;
            let mean = found.iter().sum::<f64>() / count;
            let variance = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
            let error = (variance / count).sqrt();
            assert!((mean - expected).abs() < 4.0 * error, "{gated} {m} {n}: {mean} for {expected}, {error}");
        }
    }
}

/// What a graph multiplies by directions: queries and keys with their positions.
fn encoded_by(g: &Graph) -> [Vec<f64>; 2] {
    let width = |n: &margay_ir::NodeId| {
        let operands = g.inputs_of(*n);
        matches!(g.op(*n), Op::MatMul(MatMul)) && g.ty(operands[1]).ndim() == 2
    };
    let products: Vec<margay_ir::NodeId> = g.order().into_iter().filter(width).collect();
    assert_eq!(products.len(), 2);
    let mut g = g.clone();
    let values: Vec<Value> = products.iter().map(|n| g.inputs_of(*n)[0]).collect();
    g.set_outputs(vec![]);
    g.add_output("q", values[0]);
    g.add_output("k", values[1]);
    g.remove_dead();
    let inputs: Vec<_> = operands(HEADS).into_iter().map(|(name, t)| (name, narrow(&t))).collect();
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
    let found = eval::run(&g, &given).unwrap();
    [floats(&found[0]), floats(&found[1])]
}

/// By operands, and by the parameters of the positions.
#[test]
fn derivatives_of_relative_positions_are_those_of_finite_differences() {
    for (s, causal) in [(settings(false), false), (settings(true), true)] {
        let mut g = widened(&with_features(&attention(HEADS, causal, None), &s));
        let trained: Vec<margay_ir::NodeId> = margay_passes::parameter_names(&g)
            .into_iter()
            .map(|(n, _)| n)
            .filter(|n| g.node(*n).origin.part == Some(Part::Term))
            .collect();
        assert_eq!(trained.len(), if s.relative.as_ref().unwrap().gated { 4 } else { 3 });
        let contents: Vec<Tensor> =
            trained.iter().map(|n| g.constant((*n).into()).unwrap().tensor().clone()).collect();
        let names = margay_passes::make_trainable(&mut g, &trained).unwrap();
        let mut inputs = operands(HEADS);
        for ((name, _), tensor) in names.into_iter().zip(contents) {
            inputs.push((name.leak(), tensor));
        }
        let count = inputs.len();
        check_by_differences(&format!("{s:?} {causal}"), &g, &inputs, count);
    }
}
