//! x
use margay_onnx::*;
use std::collections::BTreeMap;
fn main() {
    let (mut ok, mut bad, mut unsup) = (0, 0, 0);
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut dirs: Vec<_> = std::fs::read_dir("/tmp/dm/nodes").unwrap().map(|d| d.unwrap().path()).collect();
    dirs.sort();
    for d in dirs {
        let name = d.file_name().unwrap().to_string_lossy().to_string();
        let rd = |p: &str| margay_tensor::npy::read_npz(std::fs::File::open(d.join(p)).unwrap());
        let m = match Model::open(&d.join("model.onnx")) { Ok(m) => m, Err(e) => { reasons.entry(format!("OPEN {e}")).or_default().push(name); unsup += 1; continue } };
        let g = match import(&m) { Ok(g) => g, Err(e) => { reasons.entry(format!("{e}")).or_default().push(name); unsup += 1; continue } };
        if let Err(e) = g.verify(margay_ir::Stage::Imported) { println!("VERIFY {name} {e:?}"); bad += 1; continue; }
        let (i, o) = match (rd("in.npz"), rd("out.npz")) { (Ok(i), Ok(o)) => (i, o), e => { println!("npz {name} {:?}", e.0.err()); continue } };
        let ins: Vec<(&str,&margay_tensor::Tensor)> = i.iter().map(|(n,t)| (n.as_str(), t)).collect();
        let out = match margay_ir::eval::run(&g, &ins) { Ok(o) => o, Err(e) => { println!("RUN {name}: {e}"); bad += 1; continue } };
        let mut fine = true;
        for (oo, t) in g.outputs().iter().zip(&out) {
            let Some((_, e)) = o.iter().find(|(n,_)| **n == *oo.name) else { println!("{name}: no ref for {}", oo.name); fine = false; continue };
            if t.shape() != e.shape() || t.dtype() != e.dtype() { println!("{name}: {t:?} vs {e:?}"); fine = false; continue; }
            let scale = margay_ir::ops::Numbers::of(e).unwrap().floats().into_iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            let err = margay_testkit::max_error(t, e);
            let tol = if e.dtype().bytes() == 2 { 2e-3 } else { 1e-5 };
            if err > tol * scale { println!("{name}: {} error {err:e} (scale {scale})", oo.name); fine = false; }
        }
        let _ = std::env::args().nth(1).map(|a| if fine && a == "export" { fine = round(&name, &g, &i, &out); });
        if fine { ok += 1 } else { bad += 1 }
    }
    for (r, n) in reasons { println!("{}: {r}", n.join(" ")); }
    println!("ok {ok} bad {bad} unsupported {unsup}");
}

fn round(name: &str, g: &margay_ir::Graph, i: &[(String, margay_tensor::Tensor)], out: &[margay_tensor::Tensor]) -> bool {
    let mut fine = true;
    for opset in [13, 17, 18, 20, 23] {
        let m = match export(g, &ExportOptions { opset, ..ExportOptions::default() }) { Ok(m) => m, Err(e) => { println!("EXPORT {name} {opset}: {e}"); return false } };
        std::fs::create_dir_all(format!("/tmp/dm/ex/{opset}")).unwrap();
        m.write(format!("/tmp/dm/ex/{opset}/{name}.onnx").as_ref(), External::Never).unwrap();
        let m = match Model::from_bytes(&m.to_bytes().unwrap()) { Ok(m) => m, Err(e) => { println!("REREAD {name} {opset}: {e}"); fine = false; continue } };
        let g2 = match import(&m) { Ok(g) => g, Err(e) => { println!("REIMPORT {name} {opset}: {e}"); fine = false; continue } };
        let ins: Vec<(&str,&margay_tensor::Tensor)> = i.iter().map(|(n,t)| (n.as_str(), t)).collect();
        let out2 = match margay_ir::eval::run(&g2, &ins) { Ok(o) => o, Err(e) => { println!("RERUN {name} {opset}: {e}"); fine = false; continue } };
        for (a, b) in out.iter().zip(&out2) {
            if a.shape() != b.shape() || a.dtype() != b.dtype() { println!("RE {name}: {a:?} vs {b:?}"); fine = false; continue; }
            let scale = margay_ir::ops::Numbers::of(a).unwrap().floats().into_iter().filter(|x| x.is_finite()).fold(1.0f64, |m, x| m.max(x.abs()));
            let e = margay_testkit::max_error(a, b);
            if e > scale * if a.dtype().bytes() == 2 { 5e-3 } else { 1e-5 } { println!("RE {name} {opset}: {e:e}"); fine = false; }
        }
        for (a, b) in g.outputs().iter().zip(g2.outputs()) { if a.name != b.name || g.ty(a.value) != g2.ty(b.value) { println!("TYPES {name} {opset}: {} {} vs {}", a.name, g.ty(a.value), g2.ty(b.value)); fine = false; } }
    }
    fine
}
