//! Dumped graphs are run again by `opt`, and a failed pass says how to see it again.

use std::fs;

use crate::place::Place;

/// The lines that are no comments.
fn graph(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("//")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_pass_of_a_dump_runs_again_on_its_own_weights() {
    let place = Place::new();
    let words = "--budget-bytes 50% --precision int8 --dim batch=2 --seed 7";
    place.done(&format!("compile model.onnx -o m.margay {words} --dump-dir dump"));
    let text = |name: &str| fs::read_to_string(place.path("dump").join(name)).unwrap();
    let index = text("index.txt");
    let head =
        format!("// margay compile model.onnx -o m.margay {words} --dump-dir dump\n// 50% of the bytes");
    assert!(index.starts_with(&head) && index.contains("; seed 7;"), "{index}");
    let mut before = "00-import".to_owned();
    let mut seen = Vec::new();
    for line in index.lines().filter(|line| !line.starts_with("//")).skip(1) {
        let after = line.split_whitespace().next().unwrap();
        // The passes stand last, with blanks in their configurations.
        let pass = line.split_whitespace().skip(7).collect::<Vec<&str>>().join(" ");
        let ran = place.shell(&format!("margay opt dump/{before}.ir --passes '{pass}'"));
        assert_eq!(ran.code, 0, "{pass}\n{}", ran.stderr);
        assert!(!ran.stderr.contains("random numbers"), "{pass}\n{}", ran.stderr);
        let expected = if after == "-" { &before } else { after };
        let file = text(&format!("{expected}.ir"));
        assert!(file.starts_with(&head), "{file}");
        assert_eq!(ran.stdout, graph(&file), "{pass} on {before}");
        before = expected.to_owned();
        seen.push(pass);
    }
    let configured = ["apply-plan{plan.toml}", "store-constants{int8}", "bind-dims{batch = 2}"];
    assert!(configured.iter().all(|pass| seen.iter().any(|s| s == pass)), "{seen:?}");
    assert!(text("program-batch2.txt").starts_with(&head));
}

#[test]
fn a_failed_pass_says_how_to_see_it_again() {
    let place = Place::new();
    place.done("compile model.onnx -o m.margay --dump-dir dump");
    let error = |stderr: &str| {
        let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "{stderr}");
        lines[0].to_owned()
    };
    for (passes, code, last) in [
        ("simplify,@lowerable", 1, "'simplify, @lowerable'"),
        ("simplify,bind-dims{K=3}", 2, "'bind-dims{K = 3}'"),
    ] {
        let ran = place.run(&format!("opt dump/00-import.ir --passes {passes} --dump-dir failed"));
        assert_eq!(ran.code, code, "{}", ran.stderr);
        let line = format!("margay opt failed/before.ir --passes {last}");
        assert!(ran.stderr.contains(&format!("help: see it again with `{line}`\n")), "{}", ran.stderr);
        let again = place.shell(&line);
        assert_eq!((again.code, error(&again.stderr)), (code, error(&ran.stderr)));
        assert!(
            !again.stderr.contains("random numbers") && !again.stderr.contains("help"),
            "{}",
            again.stderr
        );
        for name in ["before.ir", "after.ir", "violations.txt", "consts.safetensors"] {
            assert!(place.path("failed").join(name).exists(), "{name}");
        }
        fs::remove_dir_all(place.path("failed")).unwrap();
    }
}
