//! The memory of a run, with a record of who wrote each byte.
//!
//! Every access is checked: it lies inside its buffer; what is read was written, and as part of the same buffer, so
//! that buffers whose lifetimes overlap in the arena are found; no work item reads or writes what another item of the
//! same step wrote. Constants and inputs are only read, but for an input that is a state.

use std::borrow::Cow;

use margay_loops::{Operand, Place, Port, Program};
use margay_tensor::DType;

use crate::Problem;
use crate::number::Number;

/// Who wrote a byte last.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Writer {
    /// One more than the number of the buffer; 0: nobody.
    owner: u32,
    /// The step of the run, from 1.
    step: u32,
    /// The work item of the step.
    item: u32,
}

/// A region of memory. Without writers it is read-only.
struct Region<'a> {
    bytes: Cow<'a, [u8]>,
    writers: Option<Vec<Writer>>,
}

/// Where a buffer lies.
#[derive(Clone, Copy)]
struct Located {
    region: usize,
    start: usize,
    bytes: usize,
    owner: u32,
}

/// The memory of one run.
pub(crate) struct Memory<'a> {
    regions: Vec<Region<'a>>,
    buffers: Vec<Located>,
    /// The step that runs, counted over the run from 1.
    step: u32,
    /// The work item that runs.
    pub(crate) item: u32,
}

impl<'a> Memory<'a> {
    /// Memory that holds the inputs and the constants of a program, given as bytes.
    pub(crate) fn new(program: &Program, inputs: Vec<Vec<u8>>, constants: Vec<&'a [u8]>) -> Memory<'a> {
        let first_of = |place: &Place| program.buffers.iter().position(|b| b.place == *place);
        let owner = |place: &Place| first_of(place).map_or(0, |b| b as u32 + 1);
        let empty = |bytes: usize| Region {
            bytes: Cow::Owned(vec![0xff; bytes]),
            writers: Some(vec![Writer::default(); bytes]),
        };
        let mut regions: Vec<Region<'a>> = Vec::new();
        for (i, bytes) in inputs.into_iter().enumerate() {
            let given = Writer { owner: owner(&Place::Input(i)), step: 0, item: 0 };
            let state = program.carried.iter().any(|c| c.input == i);
            regions
                .push(Region { writers: state.then(|| vec![given; bytes.len()]), bytes: Cow::Owned(bytes) });
        }
        let first_constant = regions.len();
        regions
            .extend(constants.into_iter().map(|bytes| Region { bytes: Cow::Borrowed(bytes), writers: None }));
        let first_output = regions.len();
        let bytes = |port: &Port| port.shape.iter().product::<usize>() * port.dtype.bytes();
        regions.extend(program.outputs.iter().map(|port| empty(bytes(port))));
        let arena = regions.len();
        regions.push(empty(program.arena_bytes));
        let located = |(number, buffer): (usize, &margay_loops::Buffer)| {
            let (region, start, owner) = match buffer.place {
                Place::Input(i) => (i, 0, owner(&buffer.place)),
                Place::Constant(i) => (first_constant + i, 0, 0),
                Place::Output(i) => {
                    let state = program.carried.iter().find(|c| c.output == i);
                    (state.map_or(first_output + i, |c| c.input), 0, owner(&buffer.place))
                }
                Place::Arena(at) => (arena, at, number as u32 + 1),
            };
            Located { region, start, bytes: buffer.bytes, owner }
        };
        let buffers = program.buffers.iter().enumerate().map(located).collect();
        Memory { regions, buffers, step: 0, item: 0 }
    }

    /// A step begins; what it writes is told apart from what was written before.
    pub(crate) fn begin(&mut self) {
        self.step += 1;
        self.item = 0;
    }

    /// Copies bytes.
    pub(crate) fn copy(&mut self, from: Operand, to: Operand, bytes: usize) -> Result<(), Problem> {
        for i in 0..bytes as i64 {
            let byte = self.read(from, 0, i, DType::U8)?;
            self.write(to, 1, i, DType::U8, byte)?;
        }
        Ok(())
    }

    /// The bytes of an output; `None` if it was not written whole. A state that nothing wrote is handed on as it was given.
    pub(crate) fn output(&self, program: &Program, i: usize) -> Option<&[u8]> {
        let state = program.carried.iter().find(|c| c.output == i);
        let first_output = program.inputs.len() + program.constants.len();
        let region = &self.regions[state.map_or(first_output + i, |c| c.input)];
        let mut located = program.buffers.iter().zip(&self.buffers);
        let owner = located.find(|(b, _)| b.place == Place::Output(i)).map_or(0, |(_, l)| l.owner);
        let written = region.writers.iter().flatten().all(|w| w.owner == owner);
        let given = state.is_some() && region.writers.iter().flatten().all(|w| w.step == 0);
        (written || given).then_some(&region.bytes)
    }

    /// The bytes of an element inside its region.
    fn position(
        &self,
        operand: Operand,
        arg: usize,
        index: i64,
        dtype: DType,
    ) -> Result<(Located, usize), Problem> {
        let located = self.buffers[operand.buffer.0];
        let outside = Problem::Outside { arg, index, dtype, bytes: located.bytes };
        let first = i64::try_from(operand.offset_bytes)
            .ok()
            .and_then(|o| index.checked_mul(dtype.bytes() as i64)?.checked_add(o))
            .and_then(|first| usize::try_from(first).ok())
            .ok_or(outside.clone())?;
        let end = first.checked_add(dtype.bytes()).filter(|&end| end <= located.bytes);
        let fits = end.is_some_and(|end| located.start + end <= self.regions[located.region].bytes.len());
        if fits { Ok((located, located.start + first)) } else { Err(outside) }
    }

    /// An element.
    pub(crate) fn read(
        &self,
        operand: Operand,
        arg: usize,
        index: i64,
        dtype: DType,
    ) -> Result<Number, Problem> {
        let (located, at) = self.position(operand, arg, index, dtype)?;
        let region = &self.regions[located.region];
        if let Some(writers) = &region.writers {
            for writer in &writers[at..at + dtype.bytes()] {
                if writer.owner == 0 {
                    return Err(Problem::Unwritten { arg, index });
                }
                if writer.owner != located.owner {
                    return Err(Problem::Overwritten { arg, index, owner: writer.owner as usize - 1 });
                }
                self.independent(*writer, arg, index)?;
            }
        }
        Ok(Number::read(dtype, &region.bytes[at..]))
    }

    /// Whether what a byte holds is not of another work item of this step.
    fn independent(&self, writer: Writer, arg: usize, index: i64) -> Result<(), Problem> {
        if writer.step == self.step && writer.item != self.item {
            return Err(Problem::Shared { arg, index, item: self.item, writer: writer.item });
        }
        Ok(())
    }

    /// Sets an element.
    pub(crate) fn write(
        &mut self,
        operand: Operand,
        arg: usize,
        index: i64,
        dtype: DType,
        value: Number,
    ) -> Result<(), Problem> {
        let (located, at) = self.position(operand, arg, index, dtype)?;
        let range = at..at + dtype.bytes();
        let Some(writers) = &self.regions[located.region].writers else {
            return Err(Problem::ReadOnly { arg });
        };
        writers[range.clone()].iter().try_for_each(|w| self.independent(*w, arg, index))?;
        let now = Writer { owner: located.owner, step: self.step, item: self.item };
        let region = &mut self.regions[located.region];
        value.write(dtype, &mut region.bytes.to_mut()[at..]);
        if let Some(writers) = &mut region.writers {
            writers[range].fill(now);
        }
        Ok(())
    }
}
