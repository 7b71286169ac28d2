//! Inputs and labels of a masked language model, from token ids: Devlin, Chang, Lee and Toutanova, *BERT: Pre-training
//! of Deep Bidirectional Transformers*, 2018 (arXiv 1810.04805), section 3.1.
//!
//! Of the tokens that are not special some are chosen. Of these eight in ten are replaced by the mask token, one in ten
//! by a random token, and one in ten stays. The chosen tokens are the labels; other positions have the label
//! [`IGNORED`].

use margay_tensor::Tensor;
use margay_tensor::random::Philox;

use crate::TrainError;
use crate::loss::IGNORED;

/// How tokens are masked.
#[derive(Clone, PartialEq, Debug)]
pub struct Masking {
    /// The token that stands in for a masked one.
    pub mask: i64,
    /// Tokens are below this number.
    pub vocabulary: usize,
    /// Tokens that are never chosen: padding, separators.
    pub special: Vec<i64>,
    /// The share of tokens that are chosen, 0.15 in the paper.
    pub share: f64,
}

impl Masking {
    /// Masks token ids (i64, any shape): what the model sees, and the labels. Element `i` depends on `(seed, stream, i)`
    /// and its token alone.
    ///
    /// # Errors
    /// [`TrainError::Options`] for a share outside 0 to 1 or a vocabulary without tokens; [`TrainError::Tensor`] unless
    /// the tokens are i64.
    pub fn apply(&self, tokens: &Tensor, seed: u64, stream: u64) -> Result<(Tensor, Tensor), TrainError> {
        if !(0.0..=1.0).contains(&self.share) || self.vocabulary == 0 {
            let message = format!(
                "masking: expected a share of 0 to 1 and at least 1 token, found {} and {}",
                self.share, self.vocabulary
            );
            return Err(TrainError::Options(message));
        }
        let tokens_in = tokens.as_slice::<i64>()?;
        let mut draws = vec![0f64; 3 * tokens_in.len()];
        Philox::new(seed, stream).fill_uniform_f64(0, &mut draws);
        let (mut inputs, mut labels) = (tokens_in.to_vec(), vec![IGNORED; tokens_in.len()]);
        for (i, draw) in draws.chunks_exact(3).enumerate() {
            let token = tokens_in[i];
            if draw[0] >= self.share || self.special.contains(&token) {
                continue;
            }
            labels[i] = token;
            inputs[i] = match draw[1] {
                kind if kind < 0.8 => self.mask,
                kind if kind < 0.9 => (draw[2] * self.vocabulary as f64) as i64,
                _ => token,
            };
        }
        let shape = tokens.shape();
        Ok((Tensor::from_slice(shape, &inputs)?, Tensor::from_slice(shape, &labels)?))
    }
}
