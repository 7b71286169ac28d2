//! Readable lists of passes with stage markers, and the runner that verifies and dumps between them.

use std::fmt;
use std::time::Instant;

use margay_ir::verify::{Stage, Violation};
use margay_ir::{Changed, Cx, Graph, Pass, PassError, Remark};
use margay_loops::Preferences;
use margay_loops::text::words::split_top;

use crate::{
    AssignLayout, ExpandFeatureAttention, ExpandRecurrences, ExpandSketches, Files, FoldConstants,
    FoldScales, MergeDuplicates, RecognizeAttention, RecognizeFeatureAttention, RecognizeGelu,
    RecognizeIntegerProducts, RecognizeKernelGradients, RecognizeLayerNorm, RecognizeLinearAttention,
    RecognizePiecewise, RecognizeSilu, RemoveDead, RemoveDropout, Simplify, read_pass,
};

/// One entry of a pipeline.
pub enum PipelineItem {
    /// Run a pass.
    Run(Box<dyn Pass>),
    /// The graph is at this stage from here on.
    Reach(Stage),
}

impl fmt::Display for PipelineItem {
    /// A pass, or `@canonical`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PipelineItem::Run(pass) => pass.fmt(f),
            PipelineItem::Reach(stage) => write!(f, "@{}", stage.name()),
        }
    }
}

/// A list of passes. Prints as `fold-constants, bind-dims{N = 4}, @lowerable`.
pub struct Pipeline {
    steps: Vec<PipelineItem>,
}

/// What a pass did, for `--dump-dir` and reports.
pub struct PassRun<'a> {
    /// Position among the passes run.
    pub number: usize,
    /// The pass.
    pub pass: &'a dyn Pass,
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

/// What went wrong in a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum PipelineFault {
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
    },
}

impl PipelineFault {
    /// The stage that a marker asked for and the graph has not reached. Types are checked without being asked for.
    pub fn missed_stage(&self) -> Option<Stage> {
        match self {
            PipelineFault::Broken { stage, .. } if *stage > Stage::Imported => Some(*stage),
            PipelineFault::Broken { .. } | PipelineFault::Pass { .. } => None,
        }
    }
}

fn list(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What it takes to see a failure again: these items on the graph before them.
#[derive(Debug)]
pub struct Replay {
    /// The graph before the pass.
    pub before: Graph,
    /// The graph as the pass left it.
    pub after: Graph,
    /// The pass, and the stage that it missed.
    pub items: String,
    /// The contents of files that the items name.
    pub files: Vec<(String, String)>,
}

/// A pipeline failed.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct PipelineError {
    /// What went wrong.
    pub fault: PipelineFault,
    /// How to see it again.
    pub replay: Box<Replay>,
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.steps.iter().enumerate() {
            write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

impl Pipeline {
    /// A list of steps.
    pub fn new(steps: Vec<PipelineItem>) -> Pipeline {
        Pipeline { steps }
    }

    /// Reads a pipeline as it prints.
    ///
    /// # Errors
    /// In words: as [`read_pass`], and stages that do not exist.
    pub fn read(text: &str, files: &Files<'_>) -> Result<Pipeline, String> {
        let item = |text: &str| match text.strip_prefix('@') {
            None => Ok(PipelineItem::Run(read_pass(text, files)?)),
            Some(name) => match Stage::ALL.into_iter().find(|stage| stage.name() == name) {
                Some(stage) => Ok(PipelineItem::Reach(stage)),
                None => {
                    let known = Stage::ALL.map(|stage| format!("@{}", stage.name()));
                    Err(format!("there is no stage `{name}`; known are {}", known.join(", ")))
                }
            },
        };
        Ok(Pipeline { steps: split_top(text).into_iter().map(item).collect::<Result<_, String>>()? })
    }

    /// From a model as imported to canonical form.
    pub fn canonicalize() -> Pipeline {
        Pipeline::new(vec![
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Run(Box::new(RemoveDropout)),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RecognizeLayerNorm)),
            PipelineItem::Run(Box::new(RecognizeGelu)),
            PipelineItem::Run(Box::new(RecognizeSilu)),
            PipelineItem::Run(Box::new(RecognizePiecewise)),
            PipelineItem::Run(Box::new(RecognizeAttention)),
            PipelineItem::Run(Box::new(RecognizeLinearAttention)),
            PipelineItem::Run(Box::new(FoldScales)),
            // What recognition added (transposes of keys, broadcasts of tables) joins with what was there.
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Reach(Stage::Canonical),
        ])
    }

    /// As [`canonicalize`](Pipeline::canonicalize), for a model that is to be trained: places where elements are dropped stay.
    pub fn canonicalize_for_training() -> Pipeline {
        Pipeline::canonicalize().without(RemoveDropout.name())
    }

    /// From a sketched graph to one that can be lowered for a back end, for one value of every symbol.
    pub fn bind(binding: &margay_tensor::Binding, preferences: &Preferences) -> Pipeline {
        // Before symbols have values, like all passes that look for patterns; behind sketches, which are of numbers.
        let mut items = vec![
            PipelineItem::Run(Box::new(ExpandSketches)),
            PipelineItem::Run(Box::new(ExpandRecurrences)),
            PipelineItem::Run(Box::new(RecognizeIntegerProducts)),
            PipelineItem::Run(Box::new(RecognizeKernelGradients)),
            PipelineItem::Run(match preferences.features_in_attention {
                true => Box::new(RecognizeFeatureAttention),
                false => Box::new(ExpandFeatureAttention),
            }),
        ];
        if preferences.channels_last {
            items.push(PipelineItem::Run(Box::new(AssignLayout)));
        }
        items.extend([
            PipelineItem::Run(Box::new(crate::BindDims { binding: binding.clone() })),
            PipelineItem::Run(Box::new(crate::PadDecided)),
            // Before they would be numbers beside others.
            PipelineItem::Run(Box::new(crate::DrawSigns)),
            PipelineItem::Run(Box::new(FoldConstants::default())),
            PipelineItem::Run(Box::new(Simplify)),
            PipelineItem::Run(Box::new(MergeDuplicates)),
            PipelineItem::Run(Box::new(RemoveDead)),
            PipelineItem::Reach(Stage::Lowerable),
        ]);
        Pipeline::new(items)
    }

    /// As [`bind`](Pipeline::bind), without computing what depends on the values of symbols alone: what is left is the same
    /// for other values but for extents.
    pub fn bind_for_range(binding: &margay_tensor::Binding, preferences: &Preferences) -> Pipeline {
        Pipeline::bind(binding, preferences).without(FoldConstants::default().name())
    }

    /// All steps but those that run a pass of this name.
    fn without(mut self, name: &str) -> Pipeline {
        self.steps.retain(|item| match item {
            PipelineItem::Run(pass) => pass.name() != name,
            PipelineItem::Reach(_) => true,
        });
        self
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
        // The last pass, and the graph before it.
        let mut last: Option<(&dyn Pass, Graph)> = None;
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                PipelineItem::Run(pass) => {
                    let pass = &**pass;
                    last = Some((pass, g.clone()));
                    let (nodes_before, remarks) = (g.len(), cx.remarks.len());
                    let start = Instant::now();
                    let changed = pass.run(g, &mut cx).map_err(|error| {
                        let fault = PipelineFault::Pass { pass: pass.name(), error };
                        failed(fault, g, last.as_ref(), None)
                    })?;
                    let seconds = start.elapsed().as_secs_f64();
                    // What was left as it was has been verified, but for what the first pass is given.
                    if number == 0 || last.as_ref().is_none_or(|(_, before)| !g.is_copy_of(before)) {
                        verify(g, Stage::Imported, last.as_ref(), None)?;
                    }
                    observe(&PassRun {
                        number,
                        pass,
                        changes: if let Changed::Yes(n) = changed { n } else { 0 },
                        nodes_before,
                        declined: cx.remarks[remarks..].iter().filter(|r| r.declined).count(),
                        seconds,
                        graph: g,
                    });
                }
                PipelineItem::Reach(stage) => verify(g, *stage, last.as_ref(), Some(step))?,
            }
        }
        Ok(cx.remarks)
    }
}

type Last<'a> = Option<&'a (&'a dyn Pass, Graph)>;

fn verify(
    g: &Graph,
    stage: Stage,
    last: Last<'_>,
    marker: Option<&PipelineItem>,
) -> Result<(), PipelineError> {
    g.verify(stage).map_err(|violations| {
        let pass = last.map_or("import", |(pass, _)| pass.name());
        failed(PipelineFault::Broken { pass, stage, violations }, g, last, marker)
    })
}

fn failed(fault: PipelineFault, g: &Graph, last: Last<'_>, marker: Option<&PipelineItem>) -> PipelineError {
    let pass = last.map(|(pass, _)| pass.to_string());
    let items: Vec<String> = pass.into_iter().chain(marker.map(ToString::to_string)).collect();
    let replay = Replay {
        before: last.map_or(g, |(_, before)| before).clone(),
        after: g.clone(),
        items: items.join(", "),
        files: last.map_or_else(Vec::new, |(pass, _)| pass.configuration().files),
    };
    PipelineError { fault, replay: replay.into() }
}
