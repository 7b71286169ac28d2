//! Ranks for several layers from the bound of each.

/// What a layer of each rank does to the loss.
pub(crate) struct Spectrum {
    /// Numbers that one rank takes.
    pub numbers_per_rank: usize,
    /// By rank, from 0 to the present one: how much the loss changes at most. Never rises, and ends at 0.
    pub bounds: Vec<f64>,
}

impl Spectrum {
    /// What the last of `rank` directions is worth for each number it takes.
    fn worth(&self, rank: usize) -> f64 {
        let square = |r: usize| self.bounds[r].powi(2);
        (square(rank - 1) - square(rank)) / self.numbers_per_rank as f64
    }
}

/// When ranks stop falling.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// As soon as all layers together have at most so many numbers.
    Numbers(usize),
    /// Before the sum of all bounds is above this.
    Bound(f64),
}

/// The rank of every layer, at least 1. Directions fall in the order of their worth for each number.
pub(crate) fn choose(layers: &[Spectrum], limit: Limit) -> Vec<usize> {
    let mut ranks: Vec<usize> = layers.iter().map(|layer| layer.bounds.len() - 1).collect();
    loop {
        let numbers: usize =
            layers.iter().zip(&ranks).map(|(layer, rank)| layer.numbers_per_rank * rank).sum();
        if matches!(limit, Limit::Numbers(most) if numbers <= most) {
            return ranks;
        }
        let worth = |i: &usize| layers[*i].worth(ranks[*i]);
        let least = (0..layers.len()).filter(|i| ranks[*i] > 1).min_by(|a, b| worth(a).total_cmp(&worth(b)));
        let Some(least) = least else { return ranks };
        ranks[least] -= 1;
        if matches!(limit, Limit::Bound(most) if bound(layers, &ranks) > most) {
            ranks[least] += 1;
            return ranks;
        }
    }
}

/// How much the loss changes at most with these ranks.
pub(crate) fn bound(layers: &[Spectrum], ranks: &[usize]) -> f64 {
    layers.iter().zip(ranks).map(|(layer, rank)| layer.bounds[*rank]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer whose directions have these singular values.
    fn layer(numbers_per_rank: usize, gamma: f64, singular_values: &[f64]) -> Spectrum {
        let tail = |r: usize| singular_values[r..].iter().map(|s| s * s).sum::<f64>();
        let bounds = (0..=singular_values.len()).map(|r| gamma * tail(r).sqrt()).collect();
        Spectrum { numbers_per_rank, bounds }
    }

    #[test]
    fn directions_fall_by_their_worth_for_each_number() {
        let layers = [layer(10, 1.0, &[8.0, 4.0, 2.0, 1.0]), layer(40, 1.0, &[8.0, 4.0, 2.0, 1.0])];
        // The last direction of the large layer first.
        assert_eq!(choose(&layers, Limit::Numbers(160)), [4, 3]);
        // Then one of each, which are worth 1 / 10 and 4 / 40.
        assert_eq!(choose(&layers, Limit::Numbers(150)), [3, 3]);
        assert_eq!(choose(&layers, Limit::Numbers(149)), [3, 2]);
        assert_eq!(choose(&layers, Limit::Numbers(200)), [4, 4]);
    }

    #[test]
    fn a_layer_to_which_the_loss_is_sensitive_keeps_its_rank() {
        let layers = [layer(10, 100.0, &[4.0, 2.0, 1.0]), layer(10, 1.0, &[4.0, 2.0, 1.0])];
        assert_eq!(choose(&layers, Limit::Numbers(40)), [3, 1]);
        // No rank is below 1.
        assert_eq!(choose(&layers, Limit::Numbers(0)), [1, 1]);
    }

    #[test]
    fn the_choice_has_the_least_bound_of_squares_of_all_with_as_many_numbers() {
        let layers = [
            layer(7, 1.0, &[5.0, 3.0, 0.5]),
            layer(7, 2.0, &[4.0, 1.0, 0.25]),
            layer(7, 0.5, &[9.0, 2.0, 2.0]),
        ];
        let squares = |ranks: &[usize]| -> f64 {
            layers.iter().zip(ranks).map(|(layer, rank)| layer.bounds[*rank].powi(2)).sum()
        };
        for total in 3..=9 {
            let chosen = choose(&layers, Limit::Numbers(7 * total));
            let all = (1..=3).flat_map(|a| (1..=3).flat_map(move |b| (1..=3).map(move |c| [a, b, c])));
            let best = all.filter(|r| r.iter().sum::<usize>() == total).map(|r| squares(&r));
            assert!((squares(&chosen) - best.fold(f64::INFINITY, f64::min)).abs() < 1e-12, "{total}");
        }
    }

    #[test]
    fn the_bound_is_kept() {
        let layers = [layer(10, 1.0, &[8.0, 4.0, 2.0, 1.0]), layer(40, 1.0, &[8.0, 4.0, 2.0, 1.0])];
        for most in [0.0, 0.5, 1.0, 2.0, 3.3, 10.0, 100.0] {
            let ranks = choose(&layers, Limit::Bound(most));
            assert!(bound(&layers, &ranks) <= most, "{most}: {ranks:?}");
        }
        assert_eq!(choose(&layers, Limit::Bound(0.5)), [4, 4]);
        assert_eq!(choose(&layers, Limit::Bound(1.0)), [4, 3]);
        // A direction that the rows do not have costs nothing.
        assert_eq!(choose(&[layer(10, 1.0, &[2.0, 0.0])], Limit::Bound(0.0)), [1]);
    }
}
