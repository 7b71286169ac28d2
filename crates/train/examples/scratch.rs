//! Scratch.
use margay_driver::*;
use margay_train::recover::*;
struct O;
impl margay_train::Observer for O {
    fn stepped(&mut self, s: u64, t: u64, l: f32, sec: f64) {
        if s % 20 == 0 {
            eprintln!("{s}/{t} {l:.4} {sec:.1}");
        }
    }
    fn evaluated(&mut self, p: &margay_train::Point, best: bool) {
        eprintln!("{p:?} {best}");
    }
    fn interrupted(&self) -> bool {
        false
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let student = open(std::path::Path::new(&a[1])).unwrap();
    let teacher = open(std::path::Path::new(&a[2])).unwrap();
    let samples = Samples::open(std::path::Path::new(&a[3])).unwrap().for_graph(&teacher.graph).unwrap();
    let get = |k: &str, d: f64| a.iter().position(|x| x == k).map_or(d, |i| a[i + 1].parse().unwrap());
    let o = RecoverOptions {
        threads: get("threads", 2.0) as usize,
        layers: get("layers", 1.0) > 0.0,
        together: get("together", 1.0) > 0.0,
        max_seconds: get("sec", 600.0),
        steps: Some(get("steps", 0.0) as u64).filter(|s| *s > 0),
        learning_rate: get("lr", 1e-3),
        batch: get("batch", 32.0) as usize,
        train: [Train::Sketch, Train::Norms, Train::All][get("train", 0.0) as usize],
        evaluations: get("evals", 10.0) as u64,
        weights: Weights { outputs: get("wo", 1.0), pooled: get("wp", 2.0), hidden: get("wh", 0.5) },
        ..RecoverOptions::default()
    };
    let r = recover(&student.graph, &teacher.graph, &samples, &o, &Silent, &mut O).unwrap();
    eprintln!(
        "before {:?}\nrefitted {:?}\nafter {:?} {} hidden {:?} samples {:?} {}s",
        r.before, r.refitted, r.after, r.trained, r.hidden, r.samples, r.seconds
    );
    export_graph(&r.graph, None, std::path::Path::new(&a[4])).unwrap();
}
