//! A weight as any structure of the algebra: `form = "16x4 ⊗ 48x24 + 768x16 · 16x96"`.
//!
//! The text is that of [`Structure`], whose shape is that of the weight; it is simplified before anything is stored. Its contents are
//! fitted by alternating least squares to the weight, in the metric of what calibration saw of inputs and outputs; that finds
//! what a decomposition finds for single factors, and for others what is no worse than where it began
//! (`margay_randnla`'s `structured/fit.rs`). `start = "random"` takes random contents instead, for training.
//!
//! ```text
//! graph @before(%x: f32[N, 48]) -> (y: f32[N, 32]) {
//!   %0 = const #5be1c0 : f32[48, 32]  // fc1.weight
//!   %1 = matmul %x, %0 : f32[N, 32]  // fc1/MatMul
//!   return %1
//! }
//! graph @after(%x: f32[N, 48]) -> (y: f32[N, 32]) {
//!   %0 = const structured.factor1(#5be1c0, seed = 0, stream = 4105442970, form "8x4 ⊗ 6x8 + 48x2 · 2x32") : f32[8, 4]  // fc1.weight left
//!   %1 = const structured.factor2(#5be1c0, seed = 0, stream = 4105442970, form "8x4 ⊗ 6x8 + 48x2 · 2x32") : f32[6, 8]  // fc1.weight left
//!   %2 = const structured.factor3(#5be1c0, seed = 0, stream = 4105442970, form "8x4 ⊗ 6x8 + 48x2 · 2x32") : f32[48, 2]  // fc1.weight left
//!   %3 = const structured.factor4(#5be1c0, seed = 0, stream = 4105442970, form "8x4 ⊗ 6x8 + 48x2 · 2x32") : f32[2, 32]  // fc1.weight right
//!   %4 = reshape %x {shape = [N, 8, 6]} : f32[N, 8, 6]  // fc1/MatMul left
//!   %5 = transpose %4 {perm = [0, 2, 1]} : f32[N, 6, 8]  // fc1/MatMul left
//!   %6 = matmul %5, %0 : f32[N, 6, 4]  // fc1/MatMul left
//!   %7 = transpose %6 {perm = [0, 2, 1]} : f32[N, 4, 6]  // fc1/MatMul left
//!   %8 = matmul %7, %1 : f32[N, 4, 8]  // fc1/MatMul left
//!   %9 = reshape %8 {shape = [N, 32]} : f32[N, 32]  // fc1/MatMul left
//!   %10 = matmul %x, %2 : f32[N, 2]  // fc1/MatMul left
//!   %11 = matmul %10, %3 : f32[N, 32]  // fc1/MatMul left
//!   %12 = add %9, %11 : f32[N, 32]  // fc1/MatMul right
//!   return %12
//! }
//! ```
//!
//! Forms with a scheme of their own (`kronecker`, `monarch`, `tt`, `lowrank-diag`, `lowrank-sparse`) begin with decompositions, which
//! are faster. Deliberately absent: convolutions; a choice among forms.

use margay_ir::Graph;
use margay_plan::Settings;
use margay_randnla::{Contents, RandnlaError, Structure, StructureOptions};
use serde::{Deserialize, Serialize};

use super::algebra::{Algebraic, structure};
use super::forms::{Structured, Subject, sites};
use super::{Context, Factored, Fitted, Layer, Moments, Scheme, SchemeFacts, Site, reads};

/// Structures of the algebra.
#[derive(Clone, Copy, Debug, Default)]
pub struct StructuredScheme;

/// What a plan says of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StructuredSettings {
    /// The structure, as text.
    pub form: String,
    /// What it holds.
    #[serde(default, skip_serializing_if = "is_fitted")]
    pub start: StructureStart,
}

/// What a structure holds at first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StructureStart {
    /// What is near the weight.
    #[default]
    Fitted,
    /// Random numbers, with which outputs are as large as those of a dense layer that keeps the size of its inputs, and random
    /// positions.
    Random,
}

fn is_fitted(start: &StructureStart) -> bool {
    *start == StructureStart::Fitted
}

impl StructuredSettings {
    /// The structure, simplified.
    ///
    /// # Errors
    /// A text that is no structure, and one that stores nothing, in words.
    pub fn structure(&self) -> Result<Structure, String> {
        let (found, _) = structure(&self.form)?.simplified();
        match found.stored_count() {
            0 => Err(format!("`{}` holds no numbers", self.form)),
            _ => Ok(found),
        }
    }
}

impl Scheme for StructuredScheme {
    fn facts(&self) -> SchemeFacts {
        SchemeFacts {
            name: AnyStructure::NAME,
            only_by_name: Some("there are as many forms as one can write"),
            is_storage: false,
            check: |settings| {
                reads::<StructuredSettings>(settings)?;
                settings.read::<StructuredSettings>()?.structure().map(drop)
            },
            examples: &["form = \"8x4 ⊗ 6x8 + 48x2 · 2x32\""],
        }
    }

    fn sites(&self, g: &Graph) -> Vec<Site> {
        sites::<AnyStructure>(g)
    }

    fn check_at(&self, g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        Structured::<AnyStructure>::check_at(g, site, settings)
    }

    fn fit(&self, context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        Structured::<AnyStructure>::fit(context)
    }

    /// None: what lies between its products depends on the form.
    fn factors(&self, _: &Graph) -> Vec<Factored> {
        Vec::new()
    }
}

/// The extents of a weight.
#[derive(Debug)]
pub(super) struct AnyStructure([usize; 2]);

/// How many times as many numbers as the weight, and as long as its longer side, parts of a structure may be.
const MOST_TIMES: usize = 4;

/// The greatest extent of a structure and its parts.
fn greatest_extent(structure: &Structure) -> usize {
    let [rows, columns] = structure.shape();
    structure.parts().iter().map(greatest_extent).fold(rows.max(columns), usize::max)
}

impl Algebraic for AnyStructure {
    const NAME: &'static str = "structured";

    const SEEDED: bool = true;

    type Settings = StructuredSettings;

    fn of(layer: &Layer) -> Option<AnyStructure> {
        Some(AnyStructure([layer.d_in, layer.d_out]))
    }

    fn structure(&self, s: &StructuredSettings) -> Result<Structure, String> {
        let (found, [d_in, d_out]) = (s.structure()?, self.0);
        let [rows, columns] = found.shape();
        if [rows, columns] != self.0 {
            return Err(format!("`{found}` is {rows} x {columns}, and the weight {d_in} x {d_out}"));
        }
        let longest = MOST_TIMES * d_in.max(d_out);
        if greatest_extent(&found) > longest || found.numbers() > MOST_TIMES * d_in * d_out {
            return Err(format!(
                "`{found}`: expected extents of at most {longest} and at most {} numbers for a weight of {d_in} x {d_out}",
                MOST_TIMES * d_in * d_out
            ));
        }
        Ok(found)
    }

    fn contents(&self, subject: &Subject, s: &StructuredSettings) -> Result<Vec<Contents>, RandnlaError> {
        let structure = self.structure(s).map_err(RandnlaError::Algebra)?;
        let Subject { weight, seen, random: (seed, stream), .. } = subject;
        match s.start {
            StructureStart::Random => Ok(structure.random(*seed, *stream)),
            StructureStart::Fitted => {
                let inputs = seen.inputs().map(Moments::whitening).transpose()?;
                let outputs = seen.outputs()?;
                let options =
                    StructureOptions { seed: *seed, stream: *stream, ..StructureOptions::default() };
                structure.fitted(weight, inputs.as_ref(), outputs.as_ref(), &options)
            }
        }
    }
}
