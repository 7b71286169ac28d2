//! Elements that are random signs and are not stored.

use std::fmt;

use crate::random::Philox;

/// Most signs of a tensor: they take memory wherever somebody asks for the numbers, though no file has bytes for them.
const MAX_SIGNS: usize = 1 << 26;

/// Random signs of one size in place of the elements at some positions of an axis. Element `i` of them, in row-major order
/// of these positions alone, is that of the [stream](Philox::fill_signs) times the size.
///
/// Prints as `signs, axis = 1, from = 16, to = 32, seed = 7, stream = 3, size = 0.25`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Signs {
    /// The axis.
    pub axis: usize,
    /// The first position.
    pub from: usize,
    /// The position behind the last.
    pub to: usize,
    /// The seed of the stream.
    pub seed: u64,
    /// The number of the stream.
    pub stream: u64,
    /// The bits of the size, an f32.
    size: u32,
}

impl Signs {
    /// Signs at the positions `range[0]..range[1]` of an axis, those of `stream[1]` of the seed `stream[0]`.
    pub const fn new(axis: usize, range: [usize; 2], stream: [u64; 2], size: f32) -> Signs {
        let ([from, to], [seed, stream]) = (range, stream);
        Signs { axis, from, to, seed, stream, size: size.to_bits() }
    }

    /// The same along another axis.
    #[must_use]
    pub const fn along(self, axis: usize) -> Signs {
        Signs { axis, ..self }
    }

    /// What signs are multiplied with.
    pub const fn size(&self) -> f32 {
        f32::from_bits(self.size)
    }

    /// Positions of the axis that are signs.
    pub const fn len(&self) -> usize {
        self.to.saturating_sub(self.from)
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why a tensor of a shape cannot have them; `Ok` where it can.
    pub(super) fn check(&self, shape: &[usize]) -> Result<(), String> {
        match shape.get(self.axis) {
            None => Err(format!("axis {} of a tensor with {} axes", self.axis, shape.len())),
            Some(&extent) if self.from > self.to || self.to > extent => {
                Err(format!("positions {} to {} of an axis of {extent}", self.from, self.to))
            }
            Some(_) if !self.size().is_finite() => Err(format!("signs of size {}", self.size())),
            Some(_) => {
                let extents =
                    shape.iter().enumerate().map(|(i, &d)| if i == self.axis { self.len() } else { d });
                let count = extents.fold(1usize, usize::saturating_mul);
                match count <= MAX_SIGNS {
                    true => Ok(()),
                    false => Err(format!("{count} signs are over the limit of {MAX_SIGNS}")),
                }
            }
        }
    }

    /// The extents of what is not signs.
    pub(super) fn others(&self, shape: &[usize]) -> Vec<usize> {
        let mut shape = shape.to_vec();
        if let Some(extent) = shape.get_mut(self.axis) {
            *extent = extent.saturating_sub(self.len());
        }
        shape
    }

    /// The extents of a tensor whose other elements have a shape.
    pub(super) fn whole(&self, others: &[usize]) -> Vec<usize> {
        let mut shape = others.to_vec();
        if let Some(extent) = shape.get_mut(self.axis) {
            *extent = extent.saturating_add(self.len());
        }
        shape
    }

    /// The numbers of a tensor of a shape, in row-major order, with these other elements.
    pub(super) fn filled(&self, shape: &[usize], others: &[f32]) -> Vec<f32> {
        let inner: usize = shape[self.axis + 1..].iter().product();
        let outer: usize = shape[..self.axis].iter().product();
        let mut signs = vec![0f32; outer * self.len() * inner];
        Philox::new(self.seed, self.stream).fill_signs(0, &mut signs);
        signs.iter_mut().for_each(|x| *x *= self.size());
        let (drawn, stored) = (self.len() * inner, (shape[self.axis] - self.len()) * inner);
        let mut numbers = Vec::with_capacity(signs.len() + others.len());
        for i in 0..outer {
            let (before, after) = others[i * stored..][..stored].split_at(self.from * inner);
            numbers.extend_from_slice(before);
            numbers.extend_from_slice(&signs[i * drawn..][..drawn]);
            numbers.extend_from_slice(after);
        }
        numbers
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub(super) fn parse(text: &str) -> Option<Signs> {
        let items: Vec<&str> = text.split(", ").collect();
        let [word, axis, from, to, seed, stream, size] = items[..] else { return None };
        let value = |item: &'_ str, name: &str| {
            item.split_once(" = ").filter(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
        };
        let range = [value(from, "from")?.parse().ok()?, value(to, "to")?.parse().ok()?];
        let stream = [value(seed, "seed")?.parse().ok()?, value(stream, "stream")?.parse().ok()?];
        let size = value(size, "size")?.parse().ok().filter(|size: &f32| size.is_finite())?;
        let axis = value(axis, "axis")?.parse().ok()?;
        (word == "signs" && range[0] <= range[1]).then(|| Signs::new(axis, range, stream, size))
    }
}

impl fmt::Display for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signs { axis, from, to, seed, stream, .. } = self;
        write!(f, "signs, axis = {axis}, from = {from}, to = {to}, ")?;
        write!(f, "seed = {seed}, stream = {stream}, size = {}", self.size())
    }
}
