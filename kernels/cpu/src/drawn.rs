//! Products with a constant that is partly random signs, or wholly: those are made of the name of their stream when they
//! are multiplied, and lie nowhere in memory but in scratch.
//!
//! Signs are the first or the last columns of the constant, or the first or the last terms. Columns of signs are items of
//! their own beside those of numbers; terms of signs are summed first, and the others of the same columns after them. A
//! block of the generator is 128 signs, and a vector of blocks is made at once, so that a run of [`TERMS`] terms of a few
//! panels becomes a *mask* for each term and panel: a word with a bit for each column. A block of few rows takes the masks in
//! registers; for more rows they become numbers in scratch, where all tiles of rows find them.
//!
//! How bits become masks depends on the order of the signs. Each of the generator's words is a mask as it is where lines of
//! signs are multiples of 128 long, and is put together of two elsewhere. Filters of a convolution have their signs in the
//! order of columns, then terms: 32 words of as many columns are turned over.

use margay_tensor::Signs;

use crate::block::{Block, Finish, Left, Right, apply, multiply_before};
use crate::isa::{Isa, PANEL, Stream};
use crate::matmul;
use crate::narrow::add_term;
use crate::pack::batch_offset;
use crate::params::{ABSENT, argument, from_words, params, to_words};

/// In which order signs are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Term by term.
    Rows,
    /// Column by column.
    Columns,
}

params! {
    /// Signs of a matrix.
    Drawn {
        /// 0 for terms, 1 for columns.
        axis: usize,
        /// Their first position, and the one behind the last.
        from: usize,
        to: usize,
        /// Terms and columns of signs.
        size: [usize; 2],
        /// 1 where signs are counted column by column.
        by_columns: usize,
        /// Panels of an item of signs.
        panels: usize,
        seed: usize,
        stream: usize,
        /// The bits of what signs are multiplied with.
        scale: usize,
    }
}

params! {
    /// A product with signs: an item is a block of rows and a group of panels, of numbers or with signs.
    Params {
        product: matmul::Params,
        drawn: Drawn,
    }
}

/// Terms for which masks are made at once: so many lines of signs begin and end with a block of the generator.
const TERMS: usize = 128;

/// Most panels for which masks are made at once.
const PANELS: usize = 8;

/// Most rows that take masks in registers.
const FEW_ROWS: usize = 8;

/// Words of a block of the generator, and its signs.
const WORDS: usize = 4;
const BLOCK: usize = 128;

/// Elements of scratch: numbers of a panel or sums of a few rows, masks, and words of the generator.
pub(crate) const SCRATCH: usize = TERMS * PANEL + PANELS * TERMS + RAW;

/// Words of the generator in scratch: those of [`TERMS`] lines that fill [`PANELS`], up to a whole vector of blocks, and
/// one behind the last, which does not count.
const RAW: usize = PANELS * TERMS + 2 * WORDS * 16;

const _: () = assert!(PANELS * FEW_ROWS * PANEL <= TERMS * PANEL);

impl Drawn {
    /// The signs of a matrix of k rows and n columns; `Err` says why they are not drawn.
    pub(crate) fn new(signs: Signs, [k, n]: [usize; 2], order: Order) -> Result<Drawn, String> {
        let extent = if signs.axis == 0 { k } else { n };
        if signs.to > extent || (signs.from > 0 && signs.to < extent) {
            let (from, to) = (signs.from, signs.to);
            return Err(format!("signs {from} to {to} at neither end of {extent}"));
        }
        let size = if signs.axis == 0 { [signs.len(), n] } else { [k, signs.len()] };
        let panels = size[1].div_ceil(PANEL);
        // Lines that do not begin with a block are made together, where they are few panels wide.
        let group = if size[1].is_multiple_of(BLOCK) && panels <= WORDS * PANELS { WORDS } else { PANELS };
        Ok(Drawn {
            axis: signs.axis,
            from: signs.from,
            to: signs.to,
            size,
            by_columns: usize::from(order == Order::Columns),
            panels: group.min(panels).max(1),
            seed: signs.seed as usize,
            stream: signs.stream as usize,
            scale: signs.size().to_bits() as usize,
        })
    }

    /// Items along n columns, with groups of so many panels of numbers.
    pub(crate) fn parts(&self, n: usize, group: usize) -> usize {
        self.stored_parts(n, group) + self.size[1].div_ceil(PANEL).div_ceil(self.panels)
    }

    /// Items of columns of numbers.
    #[inline(always)]
    fn stored_parts(&self, n: usize, group: usize) -> usize {
        let columns = if self.axis == 1 { n - self.size[1] } else { 0 };
        columns.div_ceil(PANEL).div_ceil(group)
    }

    /// The words of a call.
    pub(crate) fn words(self, product: matmul::Params) -> Vec<u64> {
        to_words(&Params { product, drawn: self })
    }
}

/// The version of the contract and the parameters of [`run`].
pub(crate) const VERSION: u32 = 1;

/// The product.
///
/// Arguments: as those of a product with a packed constant, of which B holds what is not signs.
///
/// # Safety
/// The contract of [`KernelFn`](crate::abi::KernelFn), with parameters from [`Drawn::words`] and [`SCRATCH`].
#[inline(always)]
pub(crate) unsafe fn run<I: Isa>(
    isa: I,
    params: *const u64,
    args: *const *mut u8,
    scratch: *mut f32,
    begin: u64,
    end: u64,
) {
    // SAFETY: the parameters are ours; the extents of the call bound every access.
    unsafe {
        let Params { product: p, drawn: d } = from_words::<Params>(params);
        let (row_blocks, stored_parts) = (p.m.div_ceil(p.rows), d.stored_parts(p.n, p.panels));
        let parts = d.parts(p.n, p.panels);
        let stream = Stream::new(d.seed as u64, d.stream as u64);
        let signs = Generator { d, stream, scale: f32::from_bits(d.scale as u32), scratch };
        // Terms and columns of numbers, and where the first of them are.
        let [k, n] = if d.axis == 0 { [p.k - d.size[0], p.n] } else { [p.k, p.n - d.size[1]] };
        let after = if d.from == 0 { d.to } else { 0 };
        for item in begin as usize..end as usize {
            let (row, rest) = (item % row_blocks * p.rows, item / row_blocks);
            let (part, repetition) = (rest % parts, rest / parts);
            let only_numbers = part < stored_parts;
            let (panel, panels, all) = match only_numbers {
                true => (part * p.panels, p.panels, n),
                false => ((part - stored_parts) * d.panels, d.panels, d.size[1]),
            };
            let column = panel * PANEL;
            let place = match (d.axis, only_numbers) {
                (0, _) => column,
                (_, true) => after + column,
                (_, false) => d.from + column,
            };
            let [first_sign, first_number] = if d.axis == 0 { [d.from, after] } else { [0; 2] };
            let offset = |strides| batch_offset(repetition, &p.extents, strides);
            let at = offset(&p.c_batch) + row * p.c_row + place;
            let shifted = |position, by| match position {
                ABSENT => std::ptr::null(),
                _ => argument(args, position).add(by).cast_const(),
            };
            let a = argument(args, p.a_at).add(p.a_offset + offset(&p.a_batch) + row * p.a_row);
            let work = Work {
                a: Left { at: a, stride: p.a_row, rows: p.rows.min(p.m - row) },
                b: argument(args, p.b_at).add(p.b_offset).wrapping_add(column * k),
                c: Block { at: argument(args, p.c_at).add(at), stride: p.c_row },
                column,
                cols: (all - column).min(panels * PANEL),
                signs: [first_sign, if only_numbers { 0 } else { d.size[0] }],
                numbers: [first_number, if only_numbers || d.axis == 0 { k } else { 0 }],
                k,
                k_block: p.k_block,
                finish: Finish {
                    bias: shifted(p.bias_at, place),
                    word: p.epilogue,
                    residual: shifted(p.residual_at, at),
                },
            };
            signs.multiply(isa, &work);
        }
    }
}

/// A block of rows and a group of panels.
struct Work {
    /// The rows of A.
    a: Left,
    /// The first panel of numbers, and the terms of each.
    b: *const f32,
    k: usize,
    /// The block of the result.
    c: Block,
    /// The first column among those of the same kind, and how many there are.
    column: usize,
    cols: usize,
    /// The first term of A that signs are multiplied with, and how many; the same of numbers.
    signs: [usize; 2],
    numbers: [usize; 2],
    /// Most terms of numbers of a partial sum.
    k_block: usize,
    /// What is applied to the block.
    finish: Finish,
}

/// What makes signs.
struct Generator<'a> {
    d: &'a Drawn,
    stream: Stream,
    scale: f32,
    scratch: *mut f32,
}

impl Generator<'_> {
    /// Numbers of a panel, `[TERMS][32]`, or sums of a few rows, `[PANELS][FEW_ROWS][32]`.
    #[inline(always)]
    fn numbers(&self) -> *mut f32 {
        self.scratch
    }

    /// Masks, `[PANELS][TERMS]`.
    #[inline(always)]
    fn masks(&self) -> *mut u32 {
        self.scratch.wrapping_add(TERMS * PANEL).cast()
    }

    /// Words of the generator.
    #[inline(always)]
    fn raw(&self) -> *mut u32 {
        self.masks().wrapping_add(PANELS * TERMS)
    }

    /// The block of a group of panels: sums over signs, then over numbers, in runs of terms.
    ///
    /// # Safety
    /// The terms of A and the panels are readable, the columns writable; scratch is that of [`run`].
    #[inline(always)]
    unsafe fn multiply<I: Isa>(&self, isa: I, w: &Work) {
        let (panels, few) = (w.cols.div_ceil(PANEL), w.a.rows <= FEW_ROWS.min(I::ROWS));
        let [signs, terms] = [w.signs[1], w.signs[1] + w.numbers[1]];
        let mut first = 0;
        loop {
            let drawn = first < signs;
            let (term, count) = match drawn {
                true => (w.signs[0] + first, TERMS.min(signs - first)),
                false => (w.numbers[0] + first - signs, w.k_block.min(terms - first)),
            };
            let (next, accumulate) = (first + count, first > 0);
            // SAFETY: the caller's promise; the terms lie in A and in the panels.
            unsafe {
                if drawn {
                    self.make_masks(isa, [first, count], w.column, panels);
                }
                let a = Left { at: w.a.at.wrapping_add(term), ..w.a };
                for panel in 0..panels {
                    let cols = (w.cols - panel * PANEL).min(PANEL);
                    let c = Block { at: w.c.at.add(panel * PANEL), ..w.c };
                    let finish = w.finish.at(0, panel * PANEL, c.stride);
                    let mut b = w.b.wrapping_add(panel * w.k * PANEL + (first - first.min(signs)) * PANEL);
                    let mut following = b.wrapping_add(w.k * PANEL);
                    if drawn {
                        let masks = self.masks().add(panel * TERMS).cast_const();
                        if few {
                            let sums = self.numbers().add(panel * FEW_ROWS * PANEL);
                            self.few_rows(isa, count, a, masks, sums, accumulate);
                            if next >= signs {
                                let nothing =
                                    Finish { bias: std::ptr::null(), word: 0, residual: std::ptr::null() };
                                let finish = if next < terms { &nothing } else { &finish };
                                apply(isa, a.rows, cols, (sums, PANEL), (c.at, c.stride), finish);
                            }
                            continue;
                        }
                        self.expand(isa, count, masks);
                        (b, following) = (self.numbers(), self.numbers());
                    }
                    let right = Right { at: b, stride: 0, cols };
                    let finish = (next >= terms).then_some(&finish);
                    multiply_before(isa, count, a, right, c, accumulate, finish, following);
                }
            }
            first = next;
            if first >= terms {
                return;
            }
        }
    }

    /// The masks of `panels` panels from a column on, for the terms `first..first + terms`; `first` is a multiple of
    /// [`TERMS`].
    ///
    /// # Safety
    /// Scratch is that of [`run`].
    #[inline(always)]
    unsafe fn make_masks<I: Isa>(&self, isa: I, [first, terms]: [usize; 2], column: usize, panels: usize) {
        let [all_terms, width] = self.d.size;
        // SAFETY: the caller's promise; masks of all terms of a run have room.
        unsafe {
            if self.d.by_columns != 0 {
                for panel in 0..panels {
                    self.turn(
                        isa,
                        [first, all_terms],
                        column + panel * PANEL,
                        self.masks().add(panel * TERMS),
                    );
                }
            } else if !width.is_multiple_of(BLOCK) && width <= panels * PANEL {
                self.narrow(isa, [first, terms], panels);
            } else {
                for t in (0..terms).step_by(I::LANES) {
                    self.lines(isa, width, [first + t, column], panels, (self.masks().add(t), TERMS));
                }
            }
        }
    }

    /// Masks of lines that are a few panels wide, of all their panels: the generator's words follow each other.
    ///
    /// # Safety
    /// As [`make_masks`](Generator::make_masks).
    #[inline(always)]
    unsafe fn narrow<I: Isa>(&self, isa: I, [first, terms]: [usize; 2], panels: usize) {
        let width = self.d.size[1];
        let begin = first / BLOCK * width;
        let blocks = (terms * width).div_ceil(BLOCK);
        let mut numbers = [0u32; 16];
        // SAFETY: the words of as many lines have room.
        unsafe {
            for at in (0..blocks).step_by(I::LANES) {
                for (lane, number) in numbers.iter_mut().enumerate().take(I::LANES) {
                    *number = (begin + at + lane) as u32;
                }
                let words = isa.philox(self.stream, isa.load_words(numbers.as_ptr()));
                for (i, word) in words.into_iter().enumerate() {
                    isa.store_words(self.raw().add(at * WORDS + i * I::LANES), word);
                }
            }
            let raw = self.raw().cast_const();
            let word = |at: usize| {
                let (block, i) = (at / WORDS, at % WORDS);
                *raw.add(block / I::LANES * (WORDS * I::LANES) + i * I::LANES + block % I::LANES)
            };
            for panel in 0..panels {
                let to = self.masks().add(panel * TERMS);
                for t in 0..terms {
                    let bit = t * width + panel * PANEL;
                    *to.add(t) = joined(word(bit / 32), word(bit / 32 + 1), bit % 32);
                }
            }
        }
    }

    /// Of as many lines of signs of a length as a vector has lanes, from `line` on, 32 signs from `along` on and so on:
    /// word g of lane i becomes `to[g * stride + i]`.
    ///
    /// # Safety
    /// `count` vectors of words are writable; scratch is that of [`run`].
    #[inline(always)]
    unsafe fn lines<I: Isa>(
        &self,
        isa: I,
        length: usize,
        [line, along]: [usize; 2],
        count: usize,
        (to, stride): (*mut u32, usize),
    ) {
        let first = |lane: usize| (line + lane) * length + along;
        let aligned = length.is_multiple_of(BLOCK) && along.is_multiple_of(BLOCK);
        let behind = if aligned { 0 } else { BLOCK - 1 };
        let mut numbers = [0u32; 16];
        for block in 0..(behind + 32 * count).div_ceil(BLOCK) {
            for (lane, number) in numbers.iter_mut().enumerate().take(I::LANES) {
                *number = (first(lane) / BLOCK + block) as u32;
            }
            // SAFETY: the words have room in scratch, or where they are to be.
            unsafe {
                let words = isa.philox(self.stream, isa.load_words(numbers.as_ptr()));
                for (i, word) in words.into_iter().enumerate() {
                    let g = block * WORDS + i;
                    match aligned {
                        true if g < count => isa.store_words(to.add(g * stride), word),
                        true => {}
                        false => isa.store_words(self.raw().add(g * I::LANES), word),
                    }
                }
            }
        }
        if aligned {
            return;
        }
        for lane in 0..I::LANES {
            let bit = first(lane) % BLOCK;
            for g in 0..count {
                let at = bit / 32 + g;
                // SAFETY: as above.
                unsafe {
                    let word = |at: usize| *self.raw().add(at * I::LANES + lane);
                    *to.add(g * stride + lane) = joined(word(at), word(at + 1), bit % 32);
                }
            }
        }
    }

    /// Masks of a panel of signs that are counted column by column.
    ///
    /// # Safety
    /// As [`make_masks`](Generator::make_masks).
    #[inline(always)]
    unsafe fn turn<I: Isa>(&self, isa: I, [first, length]: [usize; 2], column: usize, masks: *mut u32) {
        const COUNT: usize = TERMS / 32;
        let mut words = [0u32; COUNT * 16];
        for lanes in (0..PANEL).step_by(I::LANES) {
            // SAFETY: as many words as there are lanes and runs of 32 terms.
            unsafe {
                let to = (words.as_mut_ptr(), I::LANES);
                self.lines(isa, length, [column + lanes, first], COUNT, to);
                for g in 0..COUNT {
                    let mut word = isa.load_words(words.as_ptr().add(g * I::LANES));
                    for bit in (0..32).rev() {
                        let mask = masks.add(32 * g + bit);
                        let here = isa.highest_bits(word) << lanes;
                        *mask = if lanes == 0 { here } else { *mask | here };
                        word = isa.doubled_words(word);
                    }
                }
            }
        }
    }

    /// Writes the numbers of a panel to scratch.
    ///
    /// # Safety
    /// As many masks are readable.
    #[inline(always)]
    unsafe fn expand<I: Isa>(&self, isa: I, terms: usize, masks: *const u32) {
        let scale = isa.splat(self.scale);
        for t in 0..terms {
            // SAFETY: t < terms <= TERMS.
            unsafe {
                let (mask, to) = (*masks.add(t), self.numbers().add(t * PANEL));
                for column in (0..PANEL).step_by(I::LANES) {
                    isa.store(to.add(column), isa.with_signs(mask >> column, scale));
                }
            }
        }
    }

    /// `sums = (accumulate ? sums : 0) + a · u` for a panel and at most [`FEW_ROWS`] rows.
    ///
    /// # Safety
    /// As many terms of A and masks are readable.
    #[inline(always)]
    unsafe fn few_rows<I: Isa>(
        &self,
        isa: I,
        terms: usize,
        a: Left,
        masks: *const u32,
        sums: *mut f32,
        accumulate: bool,
    ) {
        for column in (0..PANEL).step_by(2 * I::LANES) {
            // SAFETY: the caller's promise; the columns lie in the panel.
            unsafe {
                let sums = sums.add(column);
                match a.rows {
                    1 => self.registers::<I, 1>(isa, terms, a, masks, column, sums, accumulate),
                    2 => self.registers::<I, 2>(isa, terms, a, masks, column, sums, accumulate),
                    3 => self.registers::<I, 3>(isa, terms, a, masks, column, sums, accumulate),
                    4 => self.registers::<I, 4>(isa, terms, a, masks, column, sums, accumulate),
                    5 if I::ROWS >= 5 => {
                        self.registers::<I, 5>(isa, terms, a, masks, column, sums, accumulate)
                    }
                    6 if I::ROWS >= 6 => {
                        self.registers::<I, 6>(isa, terms, a, masks, column, sums, accumulate)
                    }
                    7 if I::ROWS >= 7 => {
                        self.registers::<I, 7>(isa, terms, a, masks, column, sums, accumulate)
                    }
                    8 if I::ROWS >= 8 => {
                        self.registers::<I, 8>(isa, terms, a, masks, column, sums, accumulate)
                    }
                    _ => unreachable!("few rows are no more than a tile has"),
                }
            }
        }
    }

    /// Two vectors of columns of [`few_rows`](Generator::few_rows) for `M` rows.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a product has this many operands")]
    unsafe fn registers<I: Isa, const M: usize>(
        &self,
        isa: I,
        terms: usize,
        a: Left,
        masks: *const u32,
        column: usize,
        to: *mut f32,
        accumulate: bool,
    ) {
        let (zero, scale) = (isa.splat(0.0), isa.splat(self.scale));
        // Few rows sum even and odd terms apart, so that additions need not wait for each other.
        let second = usize::from(M <= I::ROWS / 3);
        let mut sums = [[[zero; 2]; M]; 2];
        // SAFETY: the caller's promise.
        unsafe {
            let mut t = 0;
            while t + 1 < terms {
                add_term(isa, &mut sums[0], a, t, signed(isa, *masks.add(t) >> column, scale));
                add_term(isa, &mut sums[second], a, t + 1, signed(isa, *masks.add(t + 1) >> column, scale));
                t += 2;
            }
            if t < terms {
                add_term(isa, &mut sums[0], a, t, signed(isa, *masks.add(t) >> column, scale));
            }
            let [even, odd] = sums;
            for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                for (half, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                    let (at, sum) = (to.add(i * PANEL + half * I::LANES), isa.add(even, odd));
                    isa.store(at, if accumulate { isa.add(isa.load(at), sum) } else { sum });
                }
            }
        }
    }
}

/// Two vectors of a number, with the signs of a mask.
#[inline(always)]
fn signed<I: Isa>(isa: I, mask: u32, x: I::V) -> [I::V; 2] {
    [isa.with_signs(mask, x), isa.with_signs(mask >> I::LANES, x)]
}

/// 32 bits of two words, from a bit of the first on.
#[inline(always)]
fn joined(word: u32, next: u32, bit: usize) -> u32 {
    ((u64::from(next) << 32 | u64::from(word)) >> bit) as u32
}
