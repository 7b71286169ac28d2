//! Boxes chosen by their scores.
//!
//! The boxes of a class are sorted by their scores, the best ones first and others only when those do not suffice. Each is
//! compared with those chosen before it, a block of them at once, and chosen if it overlaps none too much: the same boxes
//! as if every choice took away what it overlaps.
//!
//! There are two regions. An item of the first is a class of an image, which writes its boxes to the workspace; the second
//! has one item, which writes them down one after the other.

use margay_loops::{Needs, NonMaxSuppression};

use crate::order::of_f32;
use crate::params::{argument, from_words, params, to_words};
use crate::{Class, Phase, Prepared};

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// Chosen boxes that are looked at together.
const BLOCK: usize = 16;

/// Lists of a box: its sides and its area.
const LISTS: usize = 5;

params! {
    /// Boxes among which some are chosen.
    Params {
        batch: usize,
        classes: usize,
        boxes: usize,
        most: usize,
        /// The second region.
        joins: usize,
    }
}

impl Params {
    /// The most boxes of one class.
    fn room(&self) -> usize {
        self.most.min(self.boxes)
    }

    /// Elements of a list of chosen boxes.
    fn list(&self) -> usize {
        self.room().next_multiple_of(BLOCK)
    }

    /// Words of the workspace for a class: how many boxes were chosen, and which.
    fn words(&self) -> usize {
        1 + self.room()
    }
}

/// How a class runs the call.
pub(crate) fn prepare(class: Class, call: &NonMaxSuppression) -> Result<Prepared, String> {
    if u32::try_from(call.boxes).is_err() {
        return Err(format!("{} boxes", call.boxes));
    }
    let NonMaxSuppression { batch, classes, boxes, most } = *call;
    let params = Params { batch, classes, boxes, most, joins: 0 };
    let phase = |joins: bool, items: usize| Phase {
        kernel: class.kernels().non_max_suppression,
        params: to_words(&Params { joins: usize::from(joins), ..params }),
        items,
        grain: 1,
    };
    let needs = Needs { workspace_bytes: batch * classes * params.words() * 4, packed: Vec::new() };
    let scratch_bytes = boxes * size_of::<u64>() + LISTS * params.list() * size_of::<f32>();
    Ok(Prepared { phases: vec![phase(false, batch * classes), phase(true, 1)], scratch_bytes, needs })
}

/// The boxes.
///
/// Arguments: boxes, scores, the most, the share, the least score; rows, their number, scores that are left; workspace.
/// Scratch: scores with places, and the lists of chosen boxes.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`prepare`].
#[inline(always)]
pub(crate) unsafe fn run<I>(
    _isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; a class has its own scores and its own words of the workspace, and the last one the
    // scores that are left; scratch holds what `prepare` asked for.
    unsafe {
        let p = from_words::<Params>(params);
        if p.joins != 0 {
            join(p, args);
            return;
        }
        let wanted =
            usize::try_from(argument(args, 2).cast::<i64>().read_unaligned()).unwrap_or(0).min(p.room());
        let (share, least) = (*argument(args, 3), *argument(args, 4));
        let lists = scratch.cast::<u64>().add(p.boxes).cast::<f32>();
        for item in begin as usize..end as usize {
            let boxes = std::slice::from_raw_parts(
                argument(args, 0).add(item / p.classes * p.boxes * 4).cast::<[f32; 4]>(),
                p.boxes,
            );
            let scores = std::slice::from_raw_parts(argument(args, 1).add(item * p.boxes), p.boxes);
            let words = argument(args, 8).cast::<u32>().add(item * p.words());
            let mut chosen = Chosen { lists, list: p.list(), count: 0, share };
            let pairs = scratch.cast::<u64>();
            let mut count = 0;
            for (j, &score) in scores.iter().enumerate() {
                if admitted(score, least) {
                    *pairs.add(count) = u64::from(!of_f32(score)) << 32 | j as u64;
                    count += 1;
                }
            }
            let mut rest = std::slice::from_raw_parts_mut(pairs, count);
            let mut part = (2 * wanted).max(64);
            while chosen.count < wanted && !rest.is_empty() {
                let next;
                (next, rest) = best_of(rest, part);
                for pair in next {
                    if chosen.count == wanted {
                        break;
                    }
                    let j = *pair as u32;
                    let sides = Sides::of(boxes[j as usize]);
                    if !chosen.excludes(&sides) {
                        *words.add(1 + chosen.count) = j;
                        chosen.push(&sides);
                    }
                }
                part *= 2;
            }
            *words = chosen.count as u32;
            if item + 1 == p.batch * p.classes {
                let left = argument(args, 7);
                for (j, &score) in scores.iter().enumerate() {
                    let kept = p.most > 0 && admitted(score, least) && !chosen.excludes(&Sides::of(boxes[j]));
                    *left.add(j) = if kept { score } else { f32::NEG_INFINITY };
                }
                for i in 0..chosen.count {
                    *left.add(*words.add(1 + i) as usize) = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Whether a score is one to choose.
fn admitted(score: f32, least: f32) -> bool {
    score > least && score > f32::NEG_INFINITY
}

/// The first `part` pairs in order, or all of them, and the others.
fn best_of(pairs: &mut [u64], part: usize) -> (&[u64], &mut [u64]) {
    let part = part.min(pairs.len());
    if part < pairs.len() {
        pairs.select_nth_unstable(part);
    }
    let (first, rest) = pairs.split_at_mut(part);
    first.sort_unstable();
    (first, rest)
}

/// A box: its lower and upper end along two axes, and its area.
struct Sides([f32; LISTS]);

impl Sides {
    #[inline(always)]
    fn of([y0, x0, y1, x1]: [f32; 4]) -> Sides {
        if [y0, x0, y1, x1].iter().any(|side| side.is_nan()) {
            // It has nothing in common with any other.
            let (none, all) = (f32::INFINITY, f32::NEG_INFINITY);
            return Sides([none, all, none, all, 0.0]);
        }
        let (y, x) = ([y0.min(y1), y0.max(y1)], [x0.min(x1), x0.max(x1)]);
        Sides([y[0], y[1], x[0], x[1], (y[1] - y[0]) * (x[1] - x[0])])
    }
}

/// Boxes that were chosen: a list of each number of [`Sides`], in whole blocks.
struct Chosen {
    lists: *mut f32,
    /// Elements of a list.
    list: usize,
    count: usize,
    share: f32,
}

impl Chosen {
    /// Adds a box.
    ///
    /// # Safety
    /// The lists are writable and have room for it.
    #[inline(always)]
    unsafe fn push(&mut self, sides: &Sides) {
        for (list, side) in sides.0.iter().enumerate() {
            // SAFETY: the caller's promise; lists are whole blocks.
            unsafe {
                let list = self.lists.add(list * self.list);
                if self.count.is_multiple_of(BLOCK) {
                    // What is in the rest of a block has nothing in common with any box.
                    for i in 0..BLOCK {
                        *list.add(self.count + i) = 0.0;
                    }
                }
                *list.add(self.count) = *side;
            }
        }
        self.count += 1;
    }

    /// Whether a box has more in common with one of these than the share.
    ///
    /// # Safety
    /// The lists are readable.
    #[inline(always)]
    unsafe fn excludes(&self, other: &Sides) -> bool {
        // A share below 0 is exceeded by boxes that have nothing in common.
        if self.share < 0.0 && self.count > 0 {
            return true;
        }
        let [y0, y1, x0, x1, area] = other.0;
        let larger = |a: f32, b: f32| if a > b { a } else { b };
        let smaller = |a: f32, b: f32| if a < b { a } else { b };
        for start in (0..self.count).step_by(BLOCK) {
            // SAFETY: the caller's promise; lists are whole blocks.
            let block =
                |list: usize| unsafe { &*self.lists.add(list * self.list + start).cast::<[f32; BLOCK]>() };
            let [low_y, high_y, low_x, high_x, areas] = [block(0), block(1), block(2), block(3), block(4)];
            let mut found = 0;
            for i in 0..BLOCK {
                let height = larger(smaller(high_y[i], y1) - larger(low_y[i], y0), 0.0);
                let width = larger(smaller(high_x[i], x1) - larger(low_x[i], x0), 0.0);
                let common = height * width;
                let union = areas[i] + area - common;
                found |= u32::from(common > 0.0) & u32::from(common / union > self.share);
            }
            if found != 0 {
                return true;
            }
        }
        false
    }
}

/// Writes the rows of all classes, one after the other, and their number.
///
/// # Safety
/// As [`run`]; the classes have written their words.
#[inline(always)]
unsafe fn join(p: &Params, args: *const *mut u8) {
    let classes = p.batch * p.classes;
    // SAFETY: there is room for the most of every class; without classes nothing is read.
    unsafe {
        let rows = std::slice::from_raw_parts_mut(argument(args, 5).cast::<[i64; 3]>(), classes * p.most);
        let mut count = 0;
        for of in 0..classes {
            let words = argument(args, 8).cast::<u32>().add(of * p.words());
            for i in 0..*words as usize {
                let row = [of / p.classes, of % p.classes, *words.add(1 + i) as usize];
                rows[count] = row.map(|n| n as i64);
                count += 1;
            }
        }
        rows[count..].fill([0; 3]);
        *argument(args, 6).cast::<i64>() = count as i64;
        if classes == 0 {
            for j in 0..p.boxes {
                *argument(args, 7).add(j) = f32::NEG_INFINITY;
            }
        }
    }
}
