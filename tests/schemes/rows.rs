//! The sites and settings over which the laws of all schemes are tested, and the networks that have them.

/// A scheme on a site of one of the networks.
pub(crate) struct Row {
    pub(crate) scheme: &'static str,
    pub(crate) network: &'static str,
    pub(crate) site: &'static str,
    /// Settings that only round; `None` for a scheme that has none.
    pub(crate) exact: Option<&'static str>,
    /// Whether it is fewer operations that it saves, and not bytes alone.
    pub(crate) saves_operations: bool,
    /// Settings that lose something, with a predicted error of their own.
    pub(crate) lossy: &'static [&'static str],
    pub(crate) found: Found,
}

/// Where what a scheme put into a graph is found again, as the product of two matrices.
#[derive(PartialEq)]
pub(crate) enum Found {
    Never,
    /// In graphs that margay made, where origins have parts.
    ByParts,
    /// In any.
    ByStructure,
}

pub(crate) const ROWS: &[Row] = &[
    Row {
        scheme: "cp",
        network: CONVNET,
        site: "conv",
        exact: None,
        saves_operations: true,
        lossy: &["rank = 4", "rank = 8, start = 1"],
        found: Found::Never,
    },
    Row {
        scheme: "favor",
        network: ATTENTION,
        site: "att",
        exact: None,
        saves_operations: false,
        lossy: &[
            "features = 4",
            "features = 6, kernel = \"relu\"",
            "features = 6, hyperbolic = true, directions = \"regularized\"",
            "features = 4, heads = [1]",
            "features = 4, relative = { sines = 2, realizations = 6, gated = true }",
        ],
        found: Found::Never,
    },
    Row {
        scheme: "interpolative",
        network: FFN,
        site: "up",
        exact: Some("rank = 24"),
        saves_operations: true,
        lossy: &["rank = 6", "rank = 12"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "interpolative",
        network: FFN,
        site: "down",
        exact: Some("rank = 20"),
        saves_operations: true,
        lossy: &["rank = 6", "rank = 12"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "interpolative",
        network: CONVNET,
        site: "conv",
        exact: Some("rank = 12"),
        saves_operations: true,
        lossy: &["rank = 4", "rank = 8"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "kronecker",
        network: FFN,
        site: "up",
        exact: Some("block = [6, 8], terms = 40"),
        saves_operations: true,
        lossy: &["block = [6, 8], terms = 1", "block = [6, 8], terms = 3"],
        found: Found::Never,
    },
    Row {
        scheme: "kronecker",
        network: FFN,
        site: "down",
        exact: Some("block = [8, 5], terms = 40"),
        saves_operations: true,
        lossy: &["block = [8, 5], terms = 1", "block = [8, 5], terms = 2"],
        found: Found::Never,
    },
    Row {
        scheme: "local",
        network: ATTENTION,
        site: "att",
        exact: Some("window = 5"),
        saves_operations: false,
        lossy: &["window = 1", "window = 1, global = 1, heads = [0]", "window = 2, summary = \"means\""],
        found: Found::Never,
    },
    Row {
        scheme: "local",
        network: MUTUAL,
        site: "att",
        exact: Some("window = 5, global = 2"),
        saves_operations: false,
        lossy: &["window = 1", "window = 1, global = 1", "window = 2, summary = \"means\""],
        found: Found::Never,
    },
    Row {
        scheme: "lowrank",
        network: FFN,
        site: "up",
        exact: Some("rank = 24"),
        saves_operations: true,
        lossy: &["rank = 6", "rank = 12"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "lowrank",
        network: FFN,
        site: "down",
        exact: Some("rank = 20"),
        saves_operations: true,
        lossy: &["rank = 6", "rank = 12"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "lowrank",
        network: CONVNET,
        site: "conv",
        exact: Some("rank = 12"),
        saves_operations: true,
        lossy: &["rank = 4", "rank = 8"],
        found: Found::ByStructure,
    },
    Row {
        scheme: "lowrank",
        network: LOOKUP,
        site: "embed",
        exact: Some("rank = 16"),
        saves_operations: false,
        lossy: &["rank = 4", "rank = 8"],
        found: Found::Never,
    },
    Row {
        scheme: "lowrank-diag",
        network: PASSING,
        site: "down",
        exact: Some("rank = 20"),
        saves_operations: true,
        lossy: &["rank = 1", "rank = 3", "rank = 6"],
        found: Found::Never,
    },
    Row {
        scheme: "lowrank-sparse",
        network: FFN,
        site: "up",
        exact: Some("rank = 24, inputs = 1"),
        saves_operations: true,
        lossy: &["rank = 4, inputs = 2", "rank = 4, inputs = 8", "rank = 6, inputs = 10"],
        found: Found::Never,
    },
    Row {
        scheme: "lowrank-sparse",
        network: FFN,
        site: "down",
        exact: Some("rank = 20, entries = 1"),
        saves_operations: true,
        lossy: &["rank = 3, entries = 1", "rank = 3, inputs = 8", "rank = 6, entries = 4"],
        found: Found::Never,
    },
    Row {
        scheme: "monarch",
        network: FFN,
        site: "up",
        exact: Some("blocks = [4, 8], rank = 6"),
        saves_operations: true,
        lossy: &["blocks = [4, 8]", "blocks = [4, 8], rank = 3"],
        found: Found::Never,
    },
    Row {
        scheme: "monarch",
        network: FFN,
        site: "down",
        exact: Some("blocks = [8, 4], rank = 5"),
        saves_operations: true,
        lossy: &["blocks = [8, 4]", "blocks = [8, 4], rank = 2", "blocks = [8, 4], rank = 3"],
        found: Found::Never,
    },
    Row {
        scheme: "neurons",
        network: FFN,
        site: "up+down",
        exact: Some("units = 80"),
        saves_operations: true,
        lossy: &["units = 20", "units = 40"],
        found: Found::ByParts,
    },
    Row {
        scheme: "nystrom",
        network: MUTUAL,
        site: "att",
        exact: Some("landmarks = 5, iterations = 30"),
        saves_operations: false,
        lossy: &["landmarks = 1", "landmarks = 2", "landmarks = 4, heads = [1]"],
        found: Found::Never,
    },
    Row {
        scheme: "panther",
        network: FFN,
        site: "up",
        exact: None,
        saves_operations: true,
        lossy: &["rank = 4, terms = 1, copy = \"least-squares\""],
        found: Found::Never,
    },
    Row {
        scheme: "panther",
        network: CONVNET,
        site: "conv",
        exact: None,
        saves_operations: true,
        lossy: &["rank = 2", "rank = 2, two-sided = true, copy = \"random\""],
        found: Found::Never,
    },
    Row {
        scheme: "panther",
        network: GROUPS,
        site: "time",
        exact: None,
        saves_operations: true,
        lossy: &["rank = 2, copy = \"unbiased\"", "rank = 1, two-sided = true"],
        found: Found::Never,
    },
    Row {
        scheme: "quantized",
        network: FFN,
        site: "up",
        exact: None,
        saves_operations: false,
        lossy: &["bits = 3", "bits = 4", "bits = 4, rank = 6"],
        found: Found::Never,
    },
    Row {
        scheme: "quantized",
        network: FFN,
        site: "down",
        exact: None,
        saves_operations: false,
        lossy: &["bits = 3", "bits = 3, rank = 2", "bits = 4", "bits = 4, rank = 2", "bits = 4, rank = 6"],
        found: Found::Never,
    },
    Row {
        scheme: "spatial",
        network: CONVNET,
        site: "conv",
        exact: Some("rank = 9"),
        saves_operations: true,
        lossy: &["rank = 2", "rank = 4"],
        found: Found::Never,
    },
    Row {
        scheme: "structured",
        network: FFN,
        site: "up",
        exact: Some("form = \"24x80\""),
        saves_operations: true,
        lossy: &["form = \"4x4 ⊗ 6x20\"", "form = \"(4x4 ⊗ 6x20) + 24x6 · 6x80\""],
        found: Found::Never,
    },
    Row {
        scheme: "structured",
        network: FFN,
        site: "down",
        exact: Some("form = \"80x20\""),
        saves_operations: true,
        lossy: &["form = \"blocks(4, 20x5)\"", "form = \"blocks(4, 20x5) + 80x4 (x) I(1) * 4x20\""],
        found: Found::Never,
    },
    Row {
        scheme: "tt",
        network: FFN,
        site: "up",
        exact: Some("inputs = [2, 3, 4], outputs = [4, 4, 5], rank = 200"),
        saves_operations: false,
        lossy: &[
            "inputs = [2, 3, 4], outputs = [4, 4, 5], rank = 2",
            "inputs = [2, 3, 4], outputs = [4, 4, 5], rank = 5",
        ],
        found: Found::Never,
    },
    Row {
        scheme: "tt",
        network: FFN,
        site: "down",
        exact: Some("inputs = [8, 10], outputs = [4, 5], rank = 40"),
        saves_operations: false,
        lossy: &[
            "inputs = [4, 4, 5], outputs = [2, 2, 5], rank = 2",
            "inputs = [4, 4, 5], outputs = [2, 2, 5], rank = 5",
        ],
        found: Found::Never,
    },
    Row {
        scheme: "tt",
        network: LOOKUP,
        site: "embed",
        exact: Some("inputs = [4, 4, 4], outputs = [2, 2, 4], rank = 200"),
        saves_operations: false,
        lossy: &[
            "inputs = [8, 8], outputs = [4, 4], rank = 4",
            "inputs = [4, 4, 4], outputs = [2, 2, 4], rank = 6",
        ],
        found: Found::Never,
    },
    Row {
        scheme: "tucker",
        network: CONVNET,
        site: "conv",
        exact: Some("ranks = [3, 12]"),
        saves_operations: true,
        lossy: &["ranks = [2, 4]", "ranks = [3, 6]"],
        found: Found::Never,
    },
];

pub(crate) const FFN: &str = "graph @net(%x: f32[N, 24]) -> (y: f32[N, 20]) {
  %0 = const #u : f32[24, 80]  // up.weight
  %1 = matmul %x, %0 : f32[N, 80]  // up
  %2 = const #b : f32[80]  // up.bias
  %3 = add %1, %2 : f32[N, 80]  // up/Add
  %4 = gelu %3 : f32[N, 80]  // act
  %5 = const #v : f32[80, 20]  // down.weight
  %6 = matmul %4, %5 : f32[N, 20]  // down
  return %6
}";

/// Rows of the table of [`LOOKUP`].
pub(crate) const PLACES: i64 = 60;

pub(crate) const LOOKUP: &str = "graph @net(%x: i64[N, 6]) -> (y: f32[N, 6, 16]) {
  %0 = const #t : f32[60, 16]  // table.weight
  %1 = gather %0, %x {axis = 0} : f32[N, 6, 16]  // embed
  return %1
}";

/// A square weight at the end.
pub(crate) const PASSING: &str = "graph @net(%x: f32[N, 24]) -> (y: f32[N, 20]) {
  %0 = const #u : f32[24, 20]  // first.weight
  %1 = matmul %x, %0 : f32[N, 20]  // up
  %2 = const #b : f32[20]  // up.bias
  %3 = add %1, %2 : f32[N, 20]  // up/Add
  %4 = gelu %3 : f32[N, 20]  // act
  %5 = const #v : f32[20, 20]  // square.weight
  %6 = matmul %4, %5 : f32[N, 20]  // down
  return %6
}";

pub(crate) const ATTENTION: &str = "graph @net(%x: f32[N, 2, 5, 6]) -> (y: f32[N, 2, 5, 6]) {
  %0 = const #q : f32[6, 6]  // q.weight
  %1 = matmul %x, %0 : f32[N, 2, 5, 6]  // q
  %2 = const #v : f32[6, 6]  // v.weight
  %3 = matmul %x, %2 : f32[N, 2, 5, 6]  // v
  %4 = attention %1, %x, %3 {scale = 0.25, causal = true} : f32[N, 2, 5, 6]  // att
  return %4
}";

/// Queries are keys, so that the matrix of weights is far from singular.
pub(crate) const MUTUAL: &str = "graph @net(%x: f32[N, 2, 5, 6]) -> (y: f32[N, 2, 5, 6]) {
  %0 = const #v : f32[6, 6]  // v.weight
  %1 = matmul %x, %0 : f32[N, 2, 5, 6]  // v
  %2 = attention %x, %x, %1 {scale = 0.5} : f32[N, 2, 5, 6]  // att
  return %2
}";

pub(crate) const GROUPS: &str = "graph @net(%x: f32[N, 4, 9]) -> (y: f32[N, 24, 5]) {
  %0 = const #k : f32[24, 2, 5]  // time.weight
  %1 = conv %x, %0 {strides = [2], pads_before = [2], pads_after = [2], dilations = [1], groups = 2} : f32[N, 24, 5]  // time
  return %1
}";

pub(crate) const CONVNET: &str = "graph @net(%x: f32[N, 3, 6, 5]) -> (y: f32[N, 12, 6, 3]) {
  %0 = const #k : f32[12, 3, 3, 3]  // conv.weight
  %1 = conv %x, %0 {strides = [1, 2], pads_before = [1, 1], pads_after = [1, 1]} : f32[N, 12, 6, 3]  // conv
  %2 = const #b : f32[12, 1, 1]  // conv.bias
  %3 = add %1, %2 : f32[N, 12, 6, 3]  // conv/Add
  %4 = relu %3 : f32[N, 12, 6, 3]  // act
  return %4
}";
