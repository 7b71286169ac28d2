//! The rules that the compiler does not check: which crate may use which, that lists are complete, and what sources
//! must not contain.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use margay_ir::Op;
use margay_passes::sketch::SCHEMES;

/// Which crates a crate may use, beside crates from the registry; `None` stands for every crate above. The same table
/// stands in ARCHITECTURE.md.
const MAY_USE: &[(&str, Option<&[&str]>)] = &[
    ("tensor", Some(&[])),
    ("files", Some(&[])),
    ("loops", Some(&["tensor"])),
    ("ir", Some(&["loops", "tensor"])),
    ("npy", Some(&["tensor"])),
    ("onnx", Some(&["files", "ir", "tensor"])),
    ("randnla", Some(&["tensor"])),
    ("plan", Some(&["tensor"])),
    ("passes", Some(&["ir", "loops", "plan", "randnla", "tensor"])),
    ("lower", Some(&["ir", "loops", "tensor"])),
    ("kernels-cpu", Some(&["loops", "tensor"])),
    ("codegen-cpu", Some(&["kernels-cpu", "loops", "tensor"])),
    ("kernels-gpu", Some(&["loops", "tensor"])),
    ("codegen-gpu", Some(&["kernels-gpu", "loops", "tensor"])),
    ("artifact", Some(&["files", "loops", "tensor"])),
    ("runtime", Some(&["artifact", "kernels-cpu", "kernels-gpu", "loops", "tensor"])),
    ("emulator", Some(&["codegen-gpu", "kernels-gpu", "runtime"])),
    ("reference", Some(&["artifact", "loops", "runtime", "tensor"])),
    ("driver", None),
    ("train", None),
    ("margay", None),
    ("cli", Some(&["margay"])),
    ("testkit", Some(&["ir", "tensor"])),
];

/// Packages that test or measure: nobody uses them, and they may use anything.
const UNRESTRICTED: &[&str] = &["tests", "benches", "fake-cuda"];

/// Crates of the registry that have one home, by the start of their names.
const HOMES: &[(&str, &str)] = &[
    ("anyhow", "cli"),
    ("clap", "cli"),
    ("corosensei", "emulator"),
    ("cranelift", "codegen-cpu"),
    ("faer", "randnla"),
    ("melior", "codegen-gpu"),
    ("mlir-sys", "codegen-gpu"),
    ("onnx-protobuf", "onnx"),
    ("petgraph", "ir"),
    ("rustix", "files"),
    ("protobuf", "onnx"),
    ("zip", "npy"),
];

/// The one file of `driver` that names back ends.
const BACKENDS: &str = "crates/driver/src/backend.rs";

/// Crates that are handed a back end and must not know which ones there are.
const ANY_BACKEND: &[&str] = &[
    "crates/artifact/",
    "crates/cli/",
    "crates/driver/",
    "crates/ir/",
    "crates/loops/",
    "crates/lower/",
    "crates/margay/",
    "crates/plan/",
    "crates/train/",
    "passes/",
];

/// Where unsafe code may stand: these folders, and modules called `map` that map a file.
const UNSAFE: &[&str] = &[
    "crates/codegen-cpu/",
    "crates/codegen-gpu/src/mlir.rs",
    "crates/emulator/",
    "crates/reference/src/device.rs",
    "kernels/",
    "runtime/",
];

const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests lie in the repository").to_path_buf()
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

/// The dependencies of every package of the workspace that are not for its tests alone, by short name.
fn members() -> BTreeMap<String, Vec<String>> {
    let text = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).expect("cargo prints JSON");
    let list = |v: &serde_json::Value| v.as_array().cloned().unwrap_or_default();
    let name = |v: &serde_json::Value| v["name"].as_str().expect("packages have names").to_owned();
    let short = |name: String| name.strip_prefix("margay-").map(str::to_owned).unwrap_or(name);
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let all = list(&package["dependencies"]);
            let used = all.iter().filter(|d| d["kind"].as_str() != Some("dev"));
            (short(name(package)), used.map(name).collect())
        })
        .collect()
}

/// A source file of the repository.
struct Source {
    /// From the root of the repository, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// Lines with their numbers, without comments and without the tests at the end of the file.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line))
            .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Whether it is part of a library, and not of the command line or of tests, examples and benches.
    fn is_library(&self) -> bool {
        let apart = ["/tests/", "/examples/", "/benches/"];
        self.path.contains("/src/")
            && !self.path.starts_with("crates/cli/")
            && !self.path.starts_with("tests/")
            && !apart.iter().any(|folder| self.path.contains(folder))
    }

    /// The name of the file without `.rs`.
    fn stem(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

/// All files of a folder and those below it, but build outputs and hidden ones, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.path() {
                _ if name.starts_with('.') => {}
                path if path.is_dir() && name.starts_with("target") => {}
                path if path.is_dir() => folders.push(path),
                path => found.push(path),
            }
        }
    }
    found.sort();
    found
}

/// The Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<Source> {
    let root = root();
    let rust = files(&root.join(folder)).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| {
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let inside = path.strip_prefix(&root).expect("found below the root");
        Source { path: inside.to_string_lossy().replace('\\', "/"), text }
    })
    .collect()
}

/// The lines of library code that contain one of these texts.
fn library_lines(texts: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources("").iter().filter(|s| s.is_library() && !allowed(s)) {
        let lines = source.code().filter(|(_, line)| texts.iter().any(|t| line.contains(t)));
        found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim())));
    }
    found
}

fn none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// The text between the first `start` and the `end` after it.
fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inner, _)| inner)
}

#[test]
fn crates_use_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for (member, uses) in members() {
        if UNRESTRICTED.contains(&member.as_str()) {
            continue;
        }
        let Some(row) = MAY_USE.iter().position(|(name, _)| *name == member) else {
            wrong.push(format!("`{member}` is not in the table"));
            continue;
        };
        let above: Vec<&str> = MAY_USE[..row].iter().map(|(name, _)| *name).collect();
        let allowed = MAY_USE[row].1.unwrap_or(&above);
        let inside = uses.iter().filter_map(|name| name.strip_prefix("margay-"));
        wrong.extend(
            inside.filter(|name| !allowed.contains(name)).map(|name| format!("`{member}` uses `{name}`")),
        );
    }
    none("the table of dependencies does not allow this", wrong);
}

#[test]
fn the_documented_table_is_the_one_checked() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the document is there");
    let lines: BTreeSet<&str> = document.lines().map(str::trim_end).collect();
    let missing = MAY_USE.iter().map(|(name, uses)| match uses {
        None => format!("{name:<11} -> everything above"),
        Some([]) => format!("{name:<11} -> nothing"),
        Some(uses) => format!("{name:<11} -> {}", uses.join(", ")),
    });
    let missing = missing.filter(|row| !lines.contains(row.as_str())).collect();
    none("rows that ARCHITECTURE.md lacks", missing);
}

#[test]
fn outside_crates_stay_in_their_homes() {
    let mut wrong = Vec::new();
    for (member, uses) in members() {
        if UNRESTRICTED.contains(&member.as_str()) {
            continue;
        }
        for name in uses {
            let home = HOMES.iter().find(|(start, _)| name.starts_with(start));
            if home.is_some_and(|(_, home)| *home != member) {
                wrong.push(format!("`{member}` uses `{name}`"));
            }
        }
    }
    none("crates used outside of their homes", wrong);
}

#[test]
fn faer_is_built_without_rayon() {
    let format = ["--prefix", "none", "--format", "{p} [{f}]"];
    let arguments = ["tree", "--offline", "--workspace", "--invert", "faer", "--depth", "0"];
    let faer = cargo(&[&arguments[..], &format].concat());
    let features = between(&faer, "[", "]").unwrap_or_else(|| panic!("no features in `{faer}`"));
    assert!(!features.split(',').any(|f| f == "rayon"), "{faer}");
}

#[test]
fn passes_are_files_of_their_name() {
    for source in sources("passes/src").iter().filter(|s| s.code().any(|(_, l)| l.contains("impl Pass for ")))
    {
        let name = source.stem().replace('_', "-");
        assert_eq!(source.path, format!("passes/src/{}.rs", source.stem()), "passes lie side by side");
        assert!(
            source.text.contains(&format!("\"{name}\"")),
            "{}: its pass is not called `{name}`",
            source.path
        );
    }
}

#[test]
fn every_scheme_is_listed() {
    let listed: BTreeSet<&str> = SCHEMES.iter().map(|s| s.facts().name).collect();
    let sources = sources("passes/src/sketch");
    let schemes = sources.iter().filter(|s| s.code().any(|(_, l)| l.contains("impl Scheme for ")));
    let found: BTreeSet<String> = schemes.map(|s| s.stem().replace('_', "-")).collect();
    let listed: BTreeSet<String> = listed.into_iter().map(str::to_owned).collect();
    assert_eq!(found, listed, "left: files with a scheme, right: `SCHEMES`");
}

#[test]
fn every_operator_is_listed() {
    let sources = sources("crates/ir/src/ops");
    let mut found = BTreeSet::new();
    for source in &sources {
        let macros = ["unary! {", "binary! {"].map(|m| between(&source.text, m, "domain:"));
        let plain = between(&source.text, "const NAME: &'static str = \"", "\"");
        let by_macro = macros.into_iter().flatten().find_map(|head| between(head, " = \"", "\""));
        let Some(name) = plain.or(by_macro) else { continue };
        assert_eq!(source.stem(), name, "{}: the file is not named as its operator", source.path);
        found.insert(name);
    }
    let listed: BTreeSet<&str> = Op::ALL.iter().copied().collect();
    assert_eq!(found, listed, "left: files with an operator, right: `Op::ALL`");
}

/// The most operators that one match outside of the operators and the ONNX exporter names.
const MAX_NAMED_OPERATORS: usize = 3;

#[test]
fn no_pass_holds_a_list_of_operators() {
    let homes =
        ["passes/src", "crates/train/src", "crates/onnx/src/import", "crates/lower/src", "crates/driver/src"];
    let mut found = Vec::new();
    for source in homes.iter().flat_map(|home| sources(home)) {
        let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
        for named in named_operators(&code).into_iter().filter(|named| named.len() > MAX_NAMED_OPERATORS) {
            let names: Vec<&str> = named.into_iter().collect();
            found.push(format!("{}: {}", source.path, names.join(", ")));
        }
    }
    none("a question for `OpDef::facts`, not a list", found);
    let list = "fn f() {\n    matches!(op, Op::Abs(_) | Op::Add(_)\n | Op::Neg(_) | Op::Exp(_))\n}";
    assert_eq!(named_operators(list), [BTreeSet::from(["Abs", "Add", "Neg", "Exp"])]);
}

/// The operators that each `match` and `matches!` of a text names.
fn named_operators(text: &str) -> Vec<BTreeSet<&str>> {
    let mut found = Vec::new();
    for (opening, word) in [('{', "match "), ('(', "matches!")] {
        for (at, _) in text.match_indices(word) {
            let Some(open) = text[at..].find(opening).map(|i| at + i) else { continue };
            let mut depth = 0;
            let end = text[open..].char_indices().find(|(_, c)| {
                depth += match c {
                    '{' | '(' => 1,
                    '}' | ')' => -1,
                    _ => 0,
                };
                depth == 0
            });
            let block = &text[open..open + end.map_or(0, |(i, _)| i)];
            let names = block.split("Op::").skip(1).filter_map(|rest| {
                let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
                name.starts_with(char::is_uppercase).then_some(name)
            });
            found.push(names.collect());
        }
    }
    found
}

#[test]
fn petgraph_stays_inside_the_graph() {
    let found = library_lines(&["petgraph::"], |s| s.path == "crates/ir/src/graph.rs");
    none("`petgraph` outside of graph.rs", found);
}

#[test]
fn libraries_neither_print_nor_read_the_environment() {
    let texts = ["print!(", "println!(", "env::args", "env::var", "process::exit"];
    none("only the command line does this", library_lines(&texts, |_| false));
}

#[test]
fn unsafe_code_has_its_places() {
    let allowed = |s: &Source| s.stem() == "map" || UNSAFE.iter().any(|folder| s.path.starts_with(folder));
    none("unsafe code", library_lines(&["unsafe {", "unsafe fn ", "unsafe impl "], allowed));
}

#[test]
fn every_module_says_what_it_is() {
    let silent = sources("").into_iter().filter(|s| s.path.contains("/src/") && !s.text.starts_with("//!"));
    none("files that do not start with `//!`", silent.map(|s| s.path).collect());
}

#[test]
fn files_are_short() {
    let lengths = sources("").into_iter().map(|s| (s.text.lines().count(), s.path));
    let long = lengths.filter(|(lines, _)| *lines > MAX_LINES);
    let long = long.map(|(lines, path)| format!("{path} has {lines} lines, at most {MAX_LINES}")).collect();
    none("files to split by concern", long);
}

#[test]
fn nothing_is_left_to_do() {
    // Written in two pieces, so that this file is not found.
    let texts = [("to", "do!("), ("unimple", "mented!("), ("#[ig", "nore"), ("#[should_", "panic")];
    let texts = texts.map(|(a, b)| format!("{a}{b}"));
    let mut found = Vec::new();
    for source in sources("") {
        let lines = source.text.lines().enumerate();
        let left = lines.filter(|(_, line)| texts.iter().any(|t| line.contains(t.as_str())));
        found.extend(left.map(|(i, line)| format!("{}:{}: {}", source.path, i + 1, line.trim())));
    }
    none("code or tests put off", found);
}

#[test]
fn every_fixture_is_used() {
    let root = root();
    let is_text = |p: &PathBuf| p.extension().is_some_and(|e| e == "rs" || e == "py");
    let readers = files(&root).into_iter().filter(is_text);
    let text: String = readers.filter_map(|p| fs::read_to_string(p).ok()).collect();
    let fixtures = files(&root.join("tests/fixtures"));
    let names = fixtures.iter().filter_map(|p| Some((p, p.file_name()?.to_str()?)));
    let unused = names.filter(|(_, name)| !text.contains(name));
    none("fixtures that no test names", unused.map(|(p, _)| p.display().to_string()).collect());
}

#[test]
fn back_ends_are_named_in_one_place() {
    let named = [
        "CpuTarget",
        "CpuBackend",
        "CpuDevice",
        "codegen_cpu",
        "kernels_cpu",
        "GpuTarget",
        "GpuBackend",
        "GpuDevice",
        "codegen_gpu",
        "kernels_gpu",
        "ReferenceBackend",
        "ReferenceDevice",
        "margay_reference",
    ];
    let mut found = Vec::new();
    for source in ANY_BACKEND.iter().flat_map(|folder| sources(folder)).filter(|s| s.path != BACKENDS) {
        for (line, text) in source.code() {
            found.extend(
                named.iter().filter(|n| text.contains(**n)).map(|n| format!("{}:{line}: {n}", source.path)),
            );
        }
    }
    assert!(found.is_empty(), "back ends are values; only `{BACKENDS}` names them:\n{}", found.join("\n"));
    assert!(
        sources("crates/driver/").iter().any(|s| s.path == BACKENDS),
        "`{BACKENDS}` is where they are named"
    );
}

#[test]
fn the_readme_counts_the_operators_of_onnx() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let table = read("crates/onnx/src/import/table.rs");
    let is_row =
        |line: &&str| ["op(\"", "op_on_lists(\""].iter().any(|row| line.trim_start().starts_with(row));
    let rows = table.lines().filter(is_row).count();
    let readme = read("README.md");
    assert!(readme.contains(&format!("| Operators | {rows} of ONNX")), "`table.rs` has {rows} operators");
}
