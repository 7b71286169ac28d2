//! x
use margay_onnx::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let m = Model::open(a[1].as_ref()).unwrap();
    let t = std::time::Instant::now();
    let mut g = match import(&m) { Ok(g) => g, Err(e) => { println!("{e}"); return; } };
    let n = g.len();
    let dead = g.remove_dead();
    println!("{}: {} onnx nodes -> {} graph nodes, {} after remove_dead, {:?}; dims left {}; symbols {:?}", a[1], m.graph.nodes.len(), n, n - dead, t.elapsed(), g.order().iter().filter(|n| g.op(**n).name()=="dims").count(), g.symbols());
    g.verify(margay_ir::Stage::Imported).unwrap();
    if a[2] == "export" { for opset in [13, 17, 20, 23] { let m = export(&g, &ExportOptions { opset, ..Default::default() }).unwrap(); m.write(format!("{}_{opset}.onnx", a[3]).as_ref(), External::Never).unwrap();
        let mut h = import(&m).unwrap(); h.remove_dead(); println!("{opset}: {} onnx nodes, {} initializers, reimported {} same text {}", m.graph.nodes.len(), m.graph.initializers.len(), h.len(), h.to_string() == g.to_string()); } return; }
    if a[2] == "print" { println!("{g}"); return; }
    if a[2] == "none" { return; }
    let i = margay_tensor::npy::read_npz(std::fs::File::open(&a[2]).unwrap()).unwrap();
    let o = margay_tensor::npy::read_npz(std::fs::File::open(&a[3]).unwrap()).unwrap();
    let ins: Vec<(&str,&margay_tensor::Tensor)> = i.iter().map(|(n,t)| (n.as_str(), t)).collect();
    let t = std::time::Instant::now();
    let out = margay_ir::eval::run(&g, &ins).unwrap();
    for (oo, t) in g.outputs().iter().zip(&out) {
        if let Some((_, e)) = o.iter().find(|(n,_)| **n == *oo.name) {
            println!("{} {:?} {:?} max err {:e}", oo.name, t.shape(), e.shape(), margay_testkit::max_error(t, e));
        } else { println!("{} not in reference", oo.name); }
    }
    println!("{:?}", t.elapsed());
}
