//! The learning rate as a function of the step, computed in the graph from the states `step`, `total_steps` and `peak_rate`.
//!
//! The host may change the last two between steps, where training goes by the clock or a test finds the rate.

use std::f64::consts::PI;
use std::fmt;

use margay_ir::ops::Cos;
use margay_ir::{Builder, Graph, Origin, Value};

use crate::TrainError;

/// How the learning rate goes. It first grows linearly over the share `warm_up` of all steps.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Schedule {
    /// It stays.
    Constant {
        /// The share of all steps that warm up, 0 to 1.
        warm_up: f64,
    },
    /// It falls along half a period of the cosine: Loshchilov and Hutter, *SGDR*, 2016 (arXiv 1608.03983), without
    /// restarts.
    Cosine {
        /// The share of all steps that warm up, 0 to 1.
        warm_up: f64,
        /// The share of the learning rate that is left at the end, 0 to 1.
        floor: f64,
    },
}

impl fmt::Display for Schedule {
    /// Its name with all settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Schedule::Constant { warm_up } => write!(f, "constant, warm-up {warm_up}"),
            Schedule::Cosine { warm_up, floor } => write!(f, "cosine to {floor}, warm-up {warm_up}"),
        }
    }
}

impl Schedule {
    /// Checks that shares are shares.
    ///
    /// # Errors
    /// [`TrainError::Options`] with the number that is none.
    pub fn check(&self) -> Result<(), TrainError> {
        let (warm_up, floor) = match *self {
            Schedule::Constant { warm_up } => (warm_up, 0.0),
            Schedule::Cosine { warm_up, floor } => (warm_up, floor),
        };
        for (what, share) in [("warm-up", warm_up), ("floor of the schedule", floor)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(TrainError::Options(format!("{what}: expected 0 to 1, found {share}")));
            }
        }
        Ok(())
    }

    /// The learning rate at a step, by numbers: what the graph computes.
    pub fn rate(&self, learning_rate: f64, step: f64, total_steps: f64) -> f64 {
        let grown = |warm_up: f64| ((step + 1.0) / (warm_up * total_steps).max(1.0)).min(1.0);
        match *self {
            Schedule::Constant { warm_up } => learning_rate * grown(warm_up),
            Schedule::Cosine { warm_up, floor } => {
                let start = warm_up * total_steps;
                let progress = ((step - start) / (total_steps - start).max(1.0)).clamp(0.0, 1.0);
                let fallen = floor + (1.0 - floor) * 0.5 * (1.0 + (PI * progress).cos());
                learning_rate * grown(warm_up) * fallen
            }
        }
    }

    /// The learning rate of a step (f32 scalar), from scalars `peak`, the largest rate, `step` and `total_steps`.
    pub(crate) fn build(
        &self,
        g: &mut Graph,
        peak: Value,
        step: Value,
        total_steps: Value,
    ) -> Result<Value, TrainError> {
        let mut n = Builder::new(g, Origin::named("learning_rate"));
        let warm_up = match *self {
            Schedule::Constant { warm_up } | Schedule::Cosine { warm_up, .. } => warm_up,
        };
        let mut rate = peak;
        let start = n.scale(total_steps, warm_up)?;
        if warm_up > 0.0 {
            let next = n.offset(step, 1.0)?;
            let steps = n.at_least(start, 1.0)?;
            let grown = n.div(next, steps)?;
            let grown = n.at_most(grown, 1.0)?;
            rate = n.mul(grown, rate)?;
        }
        if let Schedule::Cosine { floor, .. } = *self {
            let (done, all) = (n.sub(step, start)?, n.sub(total_steps, start)?);
            let all = n.at_least(all, 1.0)?;
            let progress = n.div(done, all)?;
            let progress = n.at_least(progress, 0.0)?;
            let progress = n.at_most(progress, 1.0)?;
            let angle = n.scale(progress, PI)?;
            let cosine = n.op(Cos, &[angle])?;
            let above = n.offset(cosine, 1.0)?;
            let above = n.scale(above, 0.5 * (1.0 - floor))?;
            let fallen = n.offset(above, floor)?;
            rate = n.mul(rate, fallen)?;
        }
        Ok(rate)
    }
}
