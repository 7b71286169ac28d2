//! What calibration measured of some rows.

use std::sync::OnceLock;

use margay_randnla::{Centring, Conditioning, Gram, Matrix, RandnlaError, Whitening};

/// First and second moments of rows.
#[derive(Debug)]
pub struct Moments {
    gram: Gram,
    centring: Centring,
    conditioning: Conditioning,
    whitening: OnceLock<Result<Whitening, RandnlaError>>,
    triangle: OnceLock<Result<Matrix, RandnlaError>>,
    samples: String,
}

impl Moments {
    /// How second moments of inputs are conditioned: against directions that the samples hardly show, a share of the mean
    /// variance is added to each.
    pub const INPUTS: Conditioning = Conditioning { shrinkage: 0.01, floor: 1e-8 };

    /// How those of gradients are.
    pub const GRADIENTS: Conditioning = Conditioning { shrinkage: 0.05, floor: 1e-8 };

    /// Sums of what goes into a layer, over samples that `samples` identifies; it becomes a part of the names of derived
    /// constants. Second moments are taken about the mean.
    pub fn of_inputs(gram: Gram, samples: &str) -> Moments {
        Moments::new(gram, Centring::Centred, Moments::INPUTS, samples)
    }

    /// Sums of the gradients of the outputs of a model by what a layer gives. Second moments are taken about zero.
    pub fn of_gradients(gram: Gram, samples: &str) -> Moments {
        Moments::new(gram, Centring::Uncentred, Moments::GRADIENTS, samples)
    }

    fn new(gram: Gram, centring: Centring, conditioning: Conditioning, samples: &str) -> Moments {
        let (whitening, triangle) = (OnceLock::new(), OnceLock::new());
        Moments { gram, centring, conditioning, whitening, triangle, samples: samples.to_owned() }
    }

    /// The sums.
    pub fn gram(&self) -> &Gram {
        &self.gram
    }

    /// A square root of the second moment. The first call computes it, and all others share it.
    ///
    /// # Errors
    /// Of [`Whitening::from_gram`].
    pub fn whitening(&self) -> Result<&Whitening, RandnlaError> {
        let compute = || Whitening::from_gram(&self.gram, self.centring, &self.conditioning);
        self.whitening.get_or_init(compute).as_ref().map_err(Clone::clone)
    }

    /// The upper triangular root of the same moment. The first call computes it, and all others share it.
    ///
    /// # Errors
    /// Of [`Whitening::from_gram`].
    pub fn triangle(&self) -> Result<&Matrix, RandnlaError> {
        let compute = || self.whitening().map(Whitening::triangle);
        self.triangle.get_or_init(compute).as_ref().map_err(Clone::clone)
    }

    /// Identifies the samples.
    pub fn samples(&self) -> &str {
        &self.samples
    }
}
