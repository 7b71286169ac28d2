//! Sequences and optionals: lists of values of which the importer knows how long they are.
//!
//! No graph holds a sequence. What puts one together and what takes it apart are both carried out while the model is
//! imported, and a loop that changes one is written down as often as it runs. Deliberately absent: sequences of a length
//! that only a run decides, and sequences at the border of a model.

use std::collections::{BTreeSet, HashMap};

use margay_ir::Value;
use margay_tensor::{DType, Dim, Tensor};

use super::call::{Call, Refusal, axis};
use super::shapes::joined;
use super::slices::slice_axes;
use super::values::open;
use super::{Importer, Slot};
use crate::OnnxGraph;

/// What the function of an operator on sequences returns: one slot per output.
pub(super) type Slots = Result<Vec<Slot>, Refusal>;

/// Repetitions of a loop that changes a sequence.
const MAX_UNROLLED: i64 = 256;

/// Elements of a sequence.
const MAX_LENGTH: usize = 4096;

impl<'a> Importer<'a> {
    /// A list as what a name stands for.
    fn listed(&mut self, values: Vec<Value>) -> Slots {
        if values.len() > MAX_LENGTH {
            let found = values.len();
            return Err(Refusal::Unsupported(format!(
                "a sequence of {found} tensors, more than {MAX_LENGTH}"
            )));
        }
        self.lists.push(values);
        Ok(vec![Slot::List(self.lists.len() - 1)])
    }

    fn list_of(&self, slots: &[Option<Slot>], at: usize) -> Result<Vec<Value>, Refusal> {
        match slots.get(at).copied().flatten() {
            Some(Slot::List(list)) => Ok(self.lists[list].clone()),
            _ => Err(Refusal::Invalid(format!("expected input {at} to be a sequence"))),
        }
    }

    /// A position in a list of so many, or behind its end if `end`.
    fn place_in(&self, at: Value, length: usize, end: bool) -> Result<usize, Refusal> {
        let known = self.ints(at).and_then(|t| t.values.first().and_then(Dim::as_const));
        let unknown = || Refusal::Unsupported("a position in a sequence is computed at run time".into());
        let given = known.ok_or_else(unknown)?;
        let place = if given < 0 { given + length as i64 } else { given };
        let last = length as i64 - i64::from(!end);
        let found = usize::try_from(place).ok().filter(|_| place <= last);
        found.ok_or_else(|| Refusal::Invalid(format!("position {given} of a sequence of {length}")))
    }

    /// Imports the nodes of a graph with what its inputs stand for as nodes of the graph at hand; returns what its outputs
    /// stand for. Its names mean nothing afterwards.
    fn inlined(&mut self, graph: &'a OnnxGraph, given: &[Slot]) -> Slots {
        if graph.inputs.len() != given.len() {
            let (expected, found) = (given.len(), graph.inputs.len());
            return Err(Refusal::Invalid(format!("expected a graph of {expected} inputs, found {found}")));
        }
        let outputs = graph.nodes.iter().flat_map(|n| n.outputs.iter().map(String::as_str));
        let constants = graph.initializers.iter().map(|(name, _)| name.as_str());
        let inputs = graph.inputs.iter().map(|i| i.name.as_str());
        let names: BTreeSet<&'a str> =
            outputs.chain(constants).chain(inputs).filter(|name| !name.is_empty()).collect();
        let hidden: HashMap<&'a str, Slot> =
            names.iter().filter_map(|n| Some((*n, self.slots.remove(n)?))).collect();
        let covered: HashMap<&'a str, &'a Tensor> =
            names.iter().filter_map(|n| Some((*n, self.initializers.remove(n)?))).collect();
        let origin = self.origin.clone();
        for (input, slot) in graph.inputs.iter().zip(given) {
            self.slots.insert(&input.name, *slot);
        }
        self.nodes_of(graph);
        let output = |importer: &mut Self, name: &'a str| match importer.slot(name) {
            Some(Slot::Unknown) => Err(Refusal::Reported),
            Some(slot) => Ok(slot),
            None => Err(Refusal::Invalid(format!("nothing yields the output `{name}` of a graph inside"))),
        };
        let outputs: Slots = graph.outputs.iter().map(|o| output(self, &o.name)).collect();
        for name in &names {
            self.slots.remove(name);
            self.initializers.remove(name);
        }
        self.slots.extend(hidden);
        self.initializers.extend(covered);
        self.origin = origin;
        outputs
    }
}

fn known(values: Vec<Value>) -> Slots {
    Ok(values.into_iter().map(Slot::Known).collect())
}

/// `Identity`, `Optional` and `OptionalGetElement`: what the operand stands for.
pub(super) fn same(_: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    _ = call.optional(0);
    // The type of an optional that holds nothing.
    call.ignore(&["type"]);
    Ok(vec![slots.first().copied().flatten().unwrap_or(Slot::Nothing)])
}

/// `OptionalHasElement`.
pub(super) fn has_element(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    _ = call.optional(0);
    let there = !matches!(slots.first().copied().flatten(), None | Some(Slot::Nothing));
    let v = cx.scalar(DType::Bool, f64::from(u8::from(there)))?;
    known(vec![v])
}

/// `SequenceConstruct`.
pub(super) fn construct(cx: &mut Importer, call: &Call, _: &[Option<Slot>]) -> Slots {
    let values = call.all()?;
    cx.listed(values)
}

/// `SequenceEmpty`.
pub(super) fn empty(cx: &mut Importer, call: &Call, _: &[Option<Slot>]) -> Slots {
    call.ignore(&["dtype"]);
    cx.listed(Vec::new())
}

/// `SequenceLength`.
pub(super) fn length(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    _ = call.optional(0);
    let length = cx.list_of(slots, 0)?.len();
    let v = cx.scalar(DType::I64, length as f64)?;
    known(vec![v])
}

/// `SequenceAt`.
pub(super) fn at(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    let (list, at) = (cx.list_of(slots, 0)?, call.input(1)?);
    let place = cx.place_in(at, list.len(), false)?;
    known(vec![list[place]])
}

/// `SequenceInsert`: at the end unless a position is given.
pub(super) fn insert(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    let (mut list, v, at) = (cx.list_of(slots, 0)?, call.input(1)?, call.optional(2));
    let place = at.map_or(Ok(list.len()), |at| cx.place_in(at, list.len(), true))?;
    list.insert(place, v);
    cx.listed(list)
}

/// `SequenceErase`: the last one unless a position is given.
pub(super) fn erase(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    let (mut list, at) = (cx.list_of(slots, 0)?, call.optional(1));
    let last = list.len().checked_sub(1);
    let last = last.ok_or_else(|| Refusal::Invalid("an element of an empty sequence".into()))?;
    let place = at.map_or(Ok(last), |at| cx.place_in(at, list.len(), false))?;
    list.remove(place);
    cx.listed(list)
}

/// `ConcatFromSequence`: along an axis there is, or a new one.
pub(super) fn concat(cx: &mut Importer, call: &Call, slots: &[Option<Slot>]) -> Slots {
    _ = call.optional(0);
    let mut list = cx.list_of(slots, 0)?;
    let new = call.flag("new_axis", false)?;
    let given = call.optional_int("axis")?;
    let given = given.ok_or_else(|| Refusal::Invalid("expected attribute `axis`, found none".into()))?;
    let Some(ndim) = list.first().map(|v| cx.ty(*v).ndim()) else {
        return Err(Refusal::Unsupported("a tensor of an empty sequence is not supported".into()));
    };
    let axis = axis(given, ndim + usize::from(new))?;
    if new {
        list = list.into_iter().map(|v| cx.unsqueezed(v, axis)).collect::<Result<_, _>>()?;
    }
    known(vec![joined(cx, axis, list)?])
}

/// `SplitToSequence`: parts of given lengths, of one length but for a shorter last one, or of a single position each.
pub(super) fn split(cx: &mut Importer, call: &Call, _: &[Option<Slot>]) -> Slots {
    let (x, lengths) = (call.input(0)?, call.optional(1));
    let at = axis(call.int("axis", 0)?, cx.ty(x).ndim())?;
    let keepdims = call.flag("keepdims", true)?;
    let extent = cx.ty(x).shape[at].clone();
    let whole = |cx: &mut Importer| {
        let found = cx.value_of(&extent)?.and_then(|v| usize::try_from(v).ok());
        found.ok_or_else(|| open("the length of a sequence", &extent))
    };
    let parts: Vec<Dim> = match lengths {
        None => vec![Dim::from(1usize); whole(cx)?],
        Some(v) if cx.ty(v).ndim() == 0 => {
            let each = cx.const_ints(call, 1, "the length of the parts")?;
            let each = each.first().and_then(|v| usize::try_from(*v).ok()).filter(|v| *v > 0);
            let each = each.ok_or_else(|| Refusal::Invalid("expected parts of at least 1".into()))?;
            let all = whole(cx)?;
            (0..all).step_by(each).map(|from| Dim::from(each.min(all - from))).collect()
        }
        Some(_) => cx.known_ints(call, 1, "the length of the parts")?.values,
    };
    let (mut list, mut start) = (Vec::new(), Dim::default());
    for part in parts {
        let end = &start + &part;
        let mut v = slice_axes(cx, x, &[at], std::slice::from_ref(&start), std::slice::from_ref(&end), &[1])?;
        if lengths.is_none() && !keepdims {
            let mut shape = cx.ty(v).shape.clone();
            shape.remove(at);
            v = cx.shaped(v, shape)?;
        }
        list.push(v);
        start = end;
    }
    cx.assume_equal(&start, &extent)?;
    cx.listed(list)
}

/// `SequenceMap`: a graph for the elements of sequences at one position, and whole tensors.
pub(super) fn map<'a>(cx: &mut Importer<'a>, call: &Call<'a>, slots: &[Option<Slot>]) -> Slots {
    let body = call.graph("body")?;
    (0..call.given()).for_each(|at| _ = call.optional(at));
    let length = cx.list_of(slots, 0)?.len();
    let mut lists = vec![Vec::new(); body.outputs.len()];
    for i in 0..length {
        let mut given = Vec::new();
        for (at, slot) in slots.iter().enumerate() {
            given.push(match slot {
                Some(Slot::List(_)) => {
                    let element = cx.list_of(slots, at)?.get(i).copied();
                    let shorter = || Refusal::Invalid(format!("sequences of {length} and fewer tensors"));
                    Slot::Known(element.ok_or_else(shorter)?)
                }
                Some(slot) => *slot,
                None => Slot::Nothing,
            });
        }
        for (list, slot) in lists.iter_mut().zip(cx.inlined(body, &given)?) {
            list.push(value_of(slot)?);
        }
    }
    let mut outputs = Vec::new();
    for list in lists {
        outputs.extend(cx.listed(list)?);
    }
    Ok(outputs)
}

fn value_of(slot: Slot) -> Result<Value, Refusal> {
    match slot {
        Slot::Known(v) => Ok(v),
        Slot::Unknown => Err(Refusal::Reported),
        Slot::List(_) | Slot::Nothing => {
            Err(Refusal::Unsupported("a sequence in place of a tensor is not supported".into()))
        }
    }
}

/// `Loop`: one that hands on a sequence is written down as often as it runs.
pub(super) fn repeat<'a>(cx: &mut Importer<'a>, call: &Call<'a>, slots: &[Option<Slot>]) -> Slots {
    let holds = |slot: &Option<Slot>| matches!(slot, Some(Slot::List(_) | Slot::Nothing));
    if !slots.iter().any(holds) {
        return known(super::control::repeat(cx, call)?);
    }
    let body = call.graph("body")?;
    (0..call.given()).for_each(|at| _ = call.optional(at));
    let single = |cx: &Importer, at: usize| {
        let v = call.optional(at)?;
        cx.ints(v)?.values.first().and_then(Dim::as_const)
    };
    let trips = if single(cx, 1) == Some(0) { Some(0) } else { single(cx, 0) };
    let starts = call.optional(1).is_none() || single(cx, 1).is_some();
    let trips = trips.filter(|trips| starts && *trips <= MAX_UNROLLED).ok_or_else(|| {
        Refusal::Unsupported(format!(
            "a loop that hands on a sequence, of which is not known that it runs {MAX_UNROLLED} times or less"
        ))
    })?;
    let mut states: Vec<Slot> = slots.iter().skip(2).map(|s| s.unwrap_or(Slot::Nothing)).collect();
    let rows = body.outputs.len().checked_sub(1 + states.len());
    let rows = rows.ok_or_else(|| Refusal::Invalid(format!("a body with {} outputs", body.outputs.len())))?;
    let mut kept: Vec<Vec<Value>> = vec![Vec::new(); rows];
    for number in 0..trips.max(0) {
        let number = cx.scalar(DType::I64, number as f64)?;
        let goes_on = cx.scalar(DType::Bool, 1.0)?;
        let given: Vec<Slot> =
            [Slot::Known(number), Slot::Known(goes_on)].into_iter().chain(states.clone()).collect();
        let next = cx.inlined(body, &given)?;
        let condition = value_of(next[0])?;
        match cx.ints(condition).and_then(|t| t.values.first().and_then(Dim::as_const)) {
            Some(0) => {
                states = next[1..=states.len()].to_vec();
                rows_of(cx, &mut kept, &next[1 + states.len()..])?;
                break;
            }
            Some(_) => {}
            None => {
                let why = "a loop that hands on a sequence and ends by a condition is not supported";
                return Err(Refusal::Unsupported(why.into()));
            }
        }
        rows_of(cx, &mut kept, &next[1 + states.len()..])?;
        states = next[1..=states.len()].to_vec();
    }
    for list in kept {
        if list.is_empty() {
            return Err(Refusal::Unsupported("rows of a loop that does not run are not supported".into()));
        }
        states.push(Slot::Known(joined(cx, 0, list)?));
    }
    Ok(states)
}

fn rows_of(cx: &mut Importer, kept: &mut [Vec<Value>], found: &[Slot]) -> Result<(), Refusal> {
    for (list, slot) in kept.iter_mut().zip(found) {
        let row = value_of(*slot)?;
        list.push(cx.unsqueezed(row, 0)?);
    }
    Ok(())
}
