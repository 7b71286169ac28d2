//! Directions of random features that are drawn anew while a model is trained (Choromanski and others, *Rethinking Attention with
//! Performers*, arXiv 2009.14794, section 4.2): so that parameters suit the features and not one draw of them.
//!
//! Directions are states of a step that the step keeps as they are. Draw `r`, in place from step `r · every` on, is that of
//! another seed, `seed + r · 2³²`: what a step computes depends on its number, also in a run that goes on from a checkpoint. The
//! model that is kept has the directions that its best parameters were evaluated with.

use margay_ir::{Cx, Graph, NodeId, Payload};
use margay_passes::parameter_names;
use margay_passes::sketch::{AttentionTraining, attention_for_training};
use margay_tensor::Tensor;

use crate::fit::Tensors;
use crate::{TrainError, Trainer};

/// How directions are drawn anew.
#[derive(Clone, Debug)]
pub struct Redraw {
    /// Steps from one draw to the next, at least 1.
    pub every: u64,
    /// The model before its attention was replaced.
    pub exact: Graph,
    /// What took its place.
    pub attention: AttentionTraining,
}

/// What tells constants that are directions from others.
const DIRECTIONS: &str = "favor.directions(";

/// The constants of a graph that are directions of random features.
pub fn directions(g: &Graph) -> Vec<NodeId> {
    let is =
        |n: &NodeId| g.constant((*n).into()).is_some_and(|c| c.key().to_string().starts_with(DIRECTIONS));
    g.order().into_iter().filter(is).collect()
}

impl Redraw {
    /// What is wrong with the options for a model.
    ///
    /// # Errors
    /// [`TrainError::Options`] for 0 steps, and a model without directions.
    pub fn check(&self, forward: &Graph) -> Result<(), TrainError> {
        if self.every == 0 {
            return Err(TrainError::Options(
                "directions drawn anew after 0 steps, expected at least 1".into(),
            ));
        }
        match directions(forward).is_empty() {
            true => Err(TrainError::Options(
                "the model has no directions of random features that could be drawn anew".into(),
            )),
            false => Ok(()),
        }
    }

    /// Which draw is due before a step; `None` where that of the step before stays.
    pub(crate) fn due(&self, step: u64) -> Option<u64> {
        (step > 0 && step.is_multiple_of(self.every)).then(|| step / self.every)
    }

    /// The directions of a draw, by the names of the parameters of a model that was made with the same options.
    ///
    /// # Errors
    /// What replacing the attention fails with.
    pub(crate) fn draw(&self, forward: &Graph, number: u64) -> Result<Tensors, TrainError> {
        let seed = self.attention.seed.wrapping_add(number << 32);
        let mut g = self.exact.clone();
        attention_for_training(
            &mut g,
            &AttentionTraining { seed, ..self.attention.clone() },
            &mut Cx::default(),
        )?;
        let drawn: Vec<&Payload> = directions(&g).into_iter().filter_map(|n| g.constant(n.into())).collect();
        let seeds = [self.attention.seed, seed].map(|seed| format!(" seed = {seed},"));
        let names = parameter_names(forward);
        let of = |n: NodeId| -> Option<(String, Tensor)> {
            let key = forward.constant(n.into())?.key().to_string().replace(&seeds[0], &seeds[1]);
            let (_, name) = names.iter().find(|(other, _)| *other == n)?;
            let payload = drawn.iter().find(|payload| payload.key().to_string() == key)?;
            Some((name.clone(), payload.tensor().clone()))
        };
        let found: Option<Tensors> = directions(forward).into_iter().map(of).collect();
        found.ok_or_else(|| {
            TrainError::Options(
                "the model has directions of random features that these options do not draw".into(),
            )
        })
    }
}

impl Trainer {
    /// Puts contents in place of some states.
    ///
    /// # Errors
    /// A state that the step does not have, and contents of another type.
    pub(crate) fn set(&mut self, states: &Tensors) -> Result<(), TrainError> {
        states.iter().try_for_each(|(name, value)| Ok(self.session().set_state(name, value)?))
    }
}
