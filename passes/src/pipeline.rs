//! Readable lists of passes with stage markers, and the runner that verifies and dumps between them.

use std::time::Instant;

use margay_ir::verify::{Stage, Violation};
use margay_ir::{Changed, Cx, Fidelity, Graph, Pass, PassError, Remark};

use crate::{
    AssignLayout, FoldConstants, MergeDuplicates, RecognizeAttention, RecognizeGelu, RecognizeLayerNorm,
    RecognizeLinearAttention, RecognizeSilu, RemoveDead, RoundOperands, Simplify,
};

/// A pass that can be asked for by name, with its default configuration.
pub struct PassEntry {
    /// Its name.
    pub name: &'static str,
    /// Makes it.
    pub make: fn() -> Box<dyn Pass>,
}

/// The passes that need no configuration, sorted by name. Passes that do (`apply-plan`, `bind-dims`,
/// `make-trainable`, `store-constants`) are built where their configuration is.
pub const PASSES: &[PassEntry] = &[
    PassEntry { name: "assign-layout", make: || Box::new(AssignLayout) },
    PassEntry { name: "fold-constants", make: || Box::new(FoldConstants::default()) },
    PassEntry { name: "merge-duplicates", make: || Box::new(MergeDuplicates) },
    PassEntry { name: "recognize-attention", make: || Box::new(RecognizeAttention) },
    PassEntry { name: "recognize-gelu", make: || Box::new(RecognizeGelu) },
    PassEntry { name: "recognize-layer-norm", make: || Box::new(RecognizeLayerNorm) },
    PassEntry { name: "recognize-linear-attention", make: || Box::new(RecognizeLinearAttention) },
    PassEntry { name: "recognize-silu", make: || Box::new(RecognizeSilu) },
    PassEntry { name: "remove-dead", make: || Box::new(RemoveDead) },
    PassEntry { name: "round-operands", make: || Box::new(RoundOperands) },
    PassEntry { name: "simplify", make: || Box::new(Simplify) },
];

/// One entry of a pipeline.
pub enum PipelineItem {
    /// Run a pass.
    Run(Box<dyn Pass>),
    /// The graph is at this stage from here on.
    Reach(Stage),
}

/// A list of passes.
pub struct Pipeline {
    steps: Vec<PipelineItem>,
}

/// What a pass did, for `--dump-dir` and reports.
pub struct PassRun<'a> {
    /// Position among the passes run.
    pub number: usize,
    /// The pass.
    pub pass: &'static str,
    /// How numbers may have changed.
    pub fidelity: Fidelity,
    /// Number of changes.
    pub changes: usize,
    /// Nodes before.
    pub nodes_before: usize,
    /// Remarks that declined.
    pub declined: usize,
    /// Time taken.
    pub seconds: f64,
    /// The graph after.
    pub graph: &'a Graph,
}

/// A pipeline failed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A pass failed.
    #[error("pass `{pass}`: {error}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// Why.
        error: PassError,
    },
    /// A pass broke an invariant (our fault).
    #[error("after pass `{pass}` the graph is not {}: {}", stage.name(), list(violations))]
    Broken {
        /// The pass.
        pass: &'static str,
        /// The stage whose promises are broken.
        stage: Stage,
        /// What is broken.
        violations: Vec<Violation>,
        /// The graph before the pass, as text.
        before: String,
        /// The graph after the pass, as text.
        after: String,
    },
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Pipeline {
    /// A list of steps.
    pub fn new(steps: Vec<PipelineItem>) -> Pipeline {
        Pipeline { steps }
    }

    /// From a model as imported to canonical form.
    pub fn canonicalize() -> Pipeline {
        Pipeline::new(vec![
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RecognizeLayerNorm)),
            PipelineItem::Run(Box::new(RecognizeGelu)),
            PipelineItem::Run(Box::new(RecognizeSilu)),
            PipelineItem::Run(Box::new(RecognizeAttention)),
            PipelineItem::Run(Box::new(RecognizeLinearAttention)),
            // What recognition added (transposes of keys, broadcasts of tables) joins with what was there.
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Reach(Stage::Canonical),
        ])
    }

    /// From a sketched graph to one that can be lowered, for one value of every symbol.
    pub fn bind(binding: &margay_tensor::Binding) -> Pipeline {
        Pipeline::new(vec![
            // Before symbols have values, like all passes that look for patterns.
            PipelineItem::Run(Box::new(AssignLayout)),
            PipelineItem::Run(Box::new(crate::BindDims { binding: binding.clone() })),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Reach(Stage::Lowerable),
        ])
    }

    /// The steps.
    pub fn steps(&self) -> &[PipelineItem] {
        &self.steps
    }

    /// Runs every pass on a graph that is at stage `stage`. After each pass the promises of the stages reached so
    /// far are checked: types always, everything at a marker. `observe` sees every pass that ran.
    pub fn run(
        &self,
        g: &mut Graph,
        observe: &mut dyn FnMut(&PassRun<'_>),
    ) -> Result<Vec<Remark>, PipelineError> {
        let mut cx = Cx::default();
        let mut last = "import";
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                PipelineItem::Run(pass) => {
                    let before = g.clone();
                    let (nodes_before, remarks) = (g.len(), cx.remarks.len());
                    let start = Instant::now();
                    let changed = pass
                        .run(g, &mut cx)
                        .map_err(|error| PipelineError::Pass { pass: pass.name(), error })?;
                    let seconds = start.elapsed().as_secs_f64();
                    last = pass.name();
                    verify(g, Stage::Imported, last, Some(&before))?;
                    observe(&PassRun {
                        number,
                        pass: last,
                        fidelity: pass.fidelity(),
                        changes: if let Changed::Yes(n) = changed { n } else { 0 },
                        nodes_before,
                        declined: cx.remarks[remarks..].iter().filter(|r| r.declined).count(),
                        seconds,
                        graph: g,
                    });
                }
                PipelineItem::Reach(stage) => verify(g, *stage, last, None)?,
            }
        }
        Ok(cx.remarks)
    }
}

fn verify(g: &Graph, stage: Stage, pass: &'static str, before: Option<&Graph>) -> Result<(), PipelineError> {
    g.verify(stage).map_err(|violations| PipelineError::Broken {
        pass,
        stage,
        violations,
        before: before.map(ToString::to_string).unwrap_or_default(),
        after: g.to_string(),
    })
}
