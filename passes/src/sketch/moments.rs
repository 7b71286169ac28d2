//! What calibration measured of some rows.

use std::sync::OnceLock;

use margay_randnla::{Centring, Conditioning, Gram, Matrix, RandnlaError, Whitening};

/// First and second moments of rows.
#[derive(Debug)]
pub struct Moments {
    gram: Gram,
    whitening: OnceLock<Result<Whitening, RandnlaError>>,
    triangle: OnceLock<Result<Matrix, RandnlaError>>,
    samples: String,
}

impl Moments {
    /// How second moments are conditioned: against directions that the samples hardly show, a share of the mean variance is
    /// added to each.
    pub const CONDITIONING: Conditioning = Conditioning { shrinkage: 0.01, floor: 1e-8 };

    /// Sums over samples that `samples` identifies; it becomes a part of the names of derived constants.
    pub fn new(gram: Gram, samples: &str) -> Moments {
        let (whitening, triangle) = (OnceLock::new(), OnceLock::new());
        Moments { gram, whitening, triangle, samples: samples.to_owned() }
    }

    /// The sums.
    pub fn gram(&self) -> &Gram {
        &self.gram
    }

    /// A square root of the centred second moment. The first call computes it, and all others share it.
    ///
    /// # Errors
    /// Of [`Whitening::from_gram`].
    pub fn whitening(&self) -> Result<&Whitening, RandnlaError> {
        let compute = || Whitening::from_gram(&self.gram, Centring::Centred, &Moments::CONDITIONING);
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
