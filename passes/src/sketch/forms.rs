//! Layers whose weight is brought into a form of several factors: what all such schemes have in common.
//!
//! A [`Form`] says how the factors of a layer follow from its weight, which weight they stand for, and which nodes apply them.
//! From that follow the error, which is that of the weight they stand for on the inputs that calibration saw, in the metric of
//! the outputs, the correction of the bias, and the replacement. The weight they stand for is made to know errors only; a form
//! that knows errors without it may offer settings to an allocator.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use margay_ir::{AddError, Graph, NodeId, Part, Value};
use margay_plan::Settings;
use margay_randnla::{Contents, Gram, LowRank, Matrix, RandnlaError, Stored, Whitening};
use margay_tensor::random::stream_of;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::kernels::matrices;
use super::lowrank::FittedLowRank;
use super::moments::{self, Seen};
use super::{ApplyError, Context, Fitted, Layer, Moments, Replacement, Site, layers, lookups};

/// What is brought into a form: the weight of a layer, or that of one of its groups.
pub(super) struct Subject {
    /// \[d_in, outputs\].
    pub(super) weight: Matrix,
    pub(super) seen: Seen,
    /// The decomposition that `lowrank` has, where [`Form::DECOMPOSED`] asks for it.
    pub(super) low_rank: Option<Arc<LowRank>>,
    /// Seed and stream of random numbers, where [`Form::SEEDED`] says that there are any.
    pub(super) random: (u64, u64),
}

/// Settings that are offered, with the mean squared errors of the outputs.
pub(super) type Offers<S> = Vec<(S, f64)>;

/// A form of the weight of a layer. Of one with groups it is the form of each group: tensors of the groups follow one another along
/// their first axes.
pub(super) trait Form: Debug + Send + Sync + Sized + 'static {
    /// The name of its scheme.
    const NAME: &'static str;

    /// Whether it begins with the decomposition that `lowrank` has.
    const DECOMPOSED: bool = false;

    /// Whether contents depend on the seed.
    const SEEDED: bool = false;

    /// What a plan says.
    type Settings: Serialize + DeserializeOwned + Debug;

    /// The form of a layer; `None` for one that has no such form.
    fn of(g: &Graph, layer: &Layer) -> Option<Self>;

    /// The tensors of the factors.
    ///
    /// # Errors
    /// Why settings are not offered, in words.
    fn stored(&self, settings: &Self::Settings) -> Result<Vec<Stored>, String>;

    /// The factors of a weight: contents of these tensors.
    ///
    /// # Errors
    /// Those of the decomposition.
    fn factors(&self, subject: &Subject, settings: &Self::Settings) -> Result<Vec<Contents>, RandnlaError>;

    /// What an allocator may choose among, in an order that depends on sizes alone; nothing for a form that is chosen by name
    /// alone.
    ///
    /// # Errors
    /// Those of the decomposition.
    fn offers(&self, _: &Subject) -> Result<Offers<Self::Settings>, RandnlaError> {
        Ok(Vec::new())
    }

    /// The weight \[d_in, outputs\] that factors stand for.
    ///
    /// # Errors
    /// For factors that do not fit, which is our fault.
    fn weight(&self, settings: &Self::Settings, factors: &[Contents]) -> Result<Matrix, RandnlaError>;

    /// The nodes that stand in for node `n`.
    ///
    /// # Errors
    /// For factors that do not fit, which is our fault.
    fn nodes(
        &self,
        work: &mut Replacement<'_>,
        n: NodeId,
        settings: &Self::Settings,
        factors: &[Value],
    ) -> Result<Value, AddError>;
}

/// The sites of the layers and lookups that have a form.
pub(super) fn sites<F: Form>(g: &Graph) -> Vec<Site> {
    let has = |layer: &&Layer| F::of(g, layer).is_some();
    layers(g).iter().chain(&lookups(g)).filter(has).map(|layer| layer.site(g, F::NAME)).collect()
}

/// A weight that is to be brought into a form.
pub(super) struct Structured<F> {
    form: F,
    /// One for each group.
    subjects: Vec<Subject>,
    /// The mean squared output of all groups, as was seen.
    energy: f64,
    /// With their squared errors relative to the mean squared output.
    offers: Vec<(Settings, f64)>,
    /// What contents of constants depend on, besides settings.
    source: String,
    /// By settings.
    known: Mutex<HashMap<String, Arc<Factored>>>,
}

/// The factors at some settings.
struct Factored {
    /// By group.
    factors: Vec<Vec<Contents>>,
    /// What they lose, once somebody asked for it: that takes the weight that they stand for.
    loss: OnceLock<Result<Loss, RandnlaError>>,
}

#[derive(Clone)]
struct Loss {
    squared_error: f64,
    /// What is added to the bias, where inputs were seen.
    correction: Option<Vec<f32>>,
}

impl<F: Form> Structured<F> {
    /// As [`Scheme::check_at`](super::Scheme::check_at).
    ///
    /// # Errors
    /// Those of [`Form::stored`].
    pub(super) fn check_at(g: &Graph, site: &Site, settings: &Settings) -> Result<(), String> {
        let form = F::of(g, &Layer::of(g, site)).expect("sites have the form of their scheme");
        form.stored(&settings.read()?).map(drop)
    }

    /// Looks at a layer.
    ///
    /// # Errors
    /// None but those of moments that cannot be factorized.
    pub(super) fn fit(context: &Context<'_>) -> Result<Box<dyn Fitted>, RandnlaError> {
        let layer = Layer::of(context.graph, context.site);
        let random = (context.seed, stream_of(&layer.name));
        let low_rank = F::DECOMPOSED.then(|| FittedLowRank::new(context)).transpose()?;
        let weights = matrices(context.graph, &layer)?.into_iter().enumerate();
        let subject = |((group, weight), seen): ((usize, Matrix), Seen)| {
            let low_rank = low_rank.as_ref().map(|found| found.decompositions[group].clone());
            Subject { weight, seen, low_rank, random }
        };
        let subjects: Vec<Subject> = weights.zip(Seen::of_groups(context, &layer)?).map(subject).collect();
        let energy = |subject: &Subject| match &subject.low_rank {
            Some(low_rank) => Ok(low_rank.energy()),
            None => subject.seen.squared_norm(&subject.weight),
        };
        let form = F::of(context.graph, &layer).expect("sites have the form of their scheme");
        let energy = subjects.iter().map(energy).sum::<Result<f64, RandnlaError>>()?;
        Ok(Box::new(Structured {
            offers: offers_of(&form, &subjects, energy)?,
            form,
            energy,
            source: format!(
                "{}{}{}",
                layer.payload(context.graph).key(),
                moments::source(context),
                if F::SEEDED {
                    format!(", seed = {}, stream = {}", random.0, random.1)
                } else {
                    String::new()
                }
            ),
            subjects,
            known: Mutex::default(),
        }))
    }

    fn settings(&self, settings: &Settings) -> Result<(F::Settings, Vec<Stored>), String> {
        let read: F::Settings = settings.read()?;
        let stored = self.form.stored(&read)?;
        Ok((read, stored))
    }

    /// The factors at some settings, computed once.
    fn factored(&self, key: &Settings, settings: &F::Settings) -> Result<Arc<Factored>, RandnlaError> {
        let key = key.to_string();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(found) = known {
            return Ok(found);
        }
        let of = |subject: &Subject| self.form.factors(subject, settings);
        let factors = self.subjects.iter().map(of).collect::<Result<_, _>>()?;
        let found = Arc::new(Factored { factors, loss: OnceLock::new() });
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        Ok(found)
    }

    fn loss<'f>(&self, settings: &F::Settings, found: &'f Factored) -> Result<&'f Loss, RandnlaError> {
        let measured = || {
            let (mut error, mut correction) = (0.0, Vec::new());
            for (Subject { weight, seen, .. }, factors) in self.subjects.iter().zip(&found.factors) {
                let stands_for = self.form.weight(settings, factors)?;
                let rest = Matrix::from_fn(weight.rows(), weight.columns(), |i, j| {
                    weight.at(i, j) - stands_for.at(i, j)
                });
                error += seen.squared_norm(&rest)?;
                correction.push(seen.mean_output(&rest)?);
            }
            let squared_error = if self.energy > 0.0 { error / self.energy } else { 0.0 };
            let correction = correction.into_iter().collect::<Option<Vec<Vec<f32>>>>();
            Ok(Loss { squared_error, correction: correction.map(|groups| groups.concat()) })
        };
        found.loss.get_or_init(measured).as_ref().map_err(Clone::clone)
    }
}

impl<F: Form> Fitted for Structured<F> {
    fn candidates(&self) -> Vec<Settings> {
        self.offers.iter().map(|(settings, _)| settings.clone()).collect()
    }

    fn probe(&self) -> Option<Settings> {
        // Of one group, as of all.
        let half = self.subjects[0].weight.rows() * self.subjects[0].weight.columns() / 2;
        let fits = |settings: &&Settings| {
            let stored = self.settings(settings).map(|(_, stored)| stored).unwrap_or_default();
            stored.iter().map(Stored::count).sum::<usize>() <= half
        };
        let offered = || self.offers.iter().map(|(settings, _)| settings);
        offered().rfind(fits).or_else(|| offered().next()).cloned()
    }

    fn squared_error(&self, settings: &Settings) -> Result<f64, String> {
        if let Some((_, error)) = self.offers.iter().find(|(offered, _)| offered == settings) {
            return Ok(*error);
        }
        let (read, _) = self.settings(settings)?;
        let found = self.factored(settings, &read).map_err(|e| e.to_string())?;
        self.loss(&read, &found).map(|loss| loss.squared_error).map_err(|e| e.to_string())
    }

    fn replace(
        &self,
        work: &mut Replacement<'_>,
        site: &Site,
        settings: &Settings,
    ) -> Result<(), ApplyError> {
        let (read, stored) = self.settings(settings).map_err(ApplyError::Settings)?;
        let g = work.graph;
        let layer = Layer::of(g, site);
        let found = work.computed(|| self.factored(settings, &read))?;
        let name = |part: &str| format!("{}.{part}({}, {settings})", F::NAME, self.source);
        let mut factors = Vec::new();
        for (i, tensor) in stored.iter().enumerate() {
            let part = if i + 1 == stored.len() { Part::Right } else { Part::Left };
            let contents = found.as_ref().map(|found| found.factors.iter().map(|group| &group[i]));
            let origin = g.node(layer.weight.node).origin.part(part);
            let name = name(&format!("factor{}", i + 1));
            factors.push(match tensor {
                Stored::Numbers(shape) => {
                    let mut shape = shape.clone();
                    shape[0] *= self.subjects.len();
                    let numbers = contents.map(|groups| groups.flat_map(|c| c.numbers()));
                    let rounded = numbers.map(|numbers| numbers.map(|v| *v as f32).collect());
                    work.constant(&name, &shape, rounded, origin)?
                }
                // Only products have them, which are of one group.
                Stored::Positions { count, .. } => {
                    let positions = contents.and_then(|mut groups| groups.next());
                    work.positions(&name, *count, positions.map(Contents::positions), origin)?
                }
            });
        }
        for &n in &layer.nodes {
            let result = self.form.nodes(work, n, &read, &factors)?;
            match self.subjects[0].seen.corrects() {
                true => {
                    let loss = found.as_ref().map(|found| self.loss(&read, found)).transpose()?;
                    let correction = loss.and_then(|loss| loss.correction.as_deref());
                    layer.replace_corrected(work, n, result, (&name("bias"), correction))?;
                }
                false => work.replace(n.into(), result),
            }
        }
        Ok(())
    }
}

/// What all groups offer, by rising numbers and falling errors relative to the mean squared output of all.
fn offers_of<F: Form>(
    form: &F,
    subjects: &[Subject],
    energy: f64,
) -> Result<Vec<(Settings, f64)>, RandnlaError> {
    let of_groups = subjects.iter().map(|subject| form.offers(subject)).collect::<Result<Vec<_>, _>>()?;
    let count = of_groups.iter().map(Vec::len).min().unwrap_or(0);
    let numbers = |settings: &F::Settings| {
        form.stored(settings).map_or(usize::MAX, |stored| stored.iter().map(Stored::count).sum())
    };
    let offer = |i: usize| {
        let error: f64 = of_groups.iter().map(|offers| offers[i].1).sum();
        let settings = &of_groups[0][i].0;
        (numbers(settings), Settings::write(settings), error / energy)
    };
    let mut offers: Vec<(usize, Settings, f64)> =
        (0..count).map(offer).filter(|(_, _, error)| error.is_finite()).collect();
    // Of what takes as much or more, those that err less.
    offers.sort_by(|a, b| a.0.cmp(&b.0).then(a.2.total_cmp(&b.2)));
    let mut least = f64::INFINITY;
    offers.retain(|(_, _, error)| {
        let better = *error < least;
        least = error.min(least);
        better
    });
    Ok(offers.into_iter().map(|(_, settings, error)| (settings, error)).collect())
}

/// Contents of tensors of numbers, from factors row by row.
pub(super) fn contents(factors: impl IntoIterator<Item = Vec<f32>>) -> Vec<Contents> {
    let wide = |factor: Vec<f32>| Contents::Numbers(factor.into_iter().map(f64::from).collect());
    factors.into_iter().map(wide).collect()
}

/// Tensors of numbers of these shapes.
pub(super) fn numbers(shapes: impl IntoIterator<Item = Vec<usize>>) -> Vec<Stored> {
    shapes.into_iter().map(Stored::Numbers).collect()
}

/// The whitening of a part of the inputs: the mean of the covariances `[size, size]` of the coordinates that `at` gives for
/// each of `copies`; `None` without samples, and for inputs too long for a dense covariance.
pub(super) fn part_whitening(
    seen: &Seen,
    size: usize,
    copies: usize,
    at: impl Fn(usize, usize) -> usize,
) -> Result<Option<Whitening>, RandnlaError> {
    let Some(inputs) = seen.inputs().filter(|m| m.gram().dim() <= Gram::MOST_DENSE) else { return Ok(None) };
    let covariance = inputs.gram().covariance()?;
    let mean = Matrix::from_fn(size, size, |i, j| {
        (0..copies).map(|copy| covariance.at(at(i, copy), at(j, copy))).sum::<f64>() / copies.max(1) as f64
    });
    Whitening::new(&mean, None, &Moments::INPUTS).map(Some)
}

/// An error unless a number is offered.
pub(super) fn offered(what: &str, found: usize, most: usize) -> Result<(), String> {
    match (1..=most).contains(&found) {
        true => Ok(()),
        false => Err(format!("{what} {found} is not offered, expected 1 to {most}")),
    }
}
