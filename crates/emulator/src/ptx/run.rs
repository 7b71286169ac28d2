//! A thread of a kernel of PTX.

use std::cmp::Ordering;
use std::ops::{Add, Div, Mul, Neg, Sub};

use margay_codegen_gpu::host::Access;

use super::{Address, How, Kind, One, Operand, Operation, Ptx, Register, Rounding, Space, Three, Two};
use crate::thread::{
    Thread, access_shared_ahead, gpu_access, gpu_access_shared, gpu_barrier, gpu_block, gpu_multiply,
    gpu_shared, gpu_shuffle, gpu_sum, gpu_thread, holds,
};

/// Runs a kernel for one thread.
///
/// # Safety
/// The thread is one of a launch in progress, of a kernel with these arrays and parameters.
pub(crate) unsafe fn run(code: &Ptx, thread: *mut Thread, args: &[u64]) {
    let mut lane = Lane { thread, registers: vec![0; code.registers] };
    let mut next = 0;
    while let Some(instruction) = code.instructions.get(next) {
        let place = next;
        next += 1;
        if let Some((register, value)) = instruction.guard
            && (lane.registers[register] != 0) != value
        {
            continue;
        }
        match &instruction.operation {
            Operation::Branch { to } => next = *to,
            Operation::Return => return,
            Operation::Param { to, number } => lane.registers[*to] = args[*number],
            // SAFETY: as the caller promises.
            operation => unsafe { lane.step(operation, place as u32) },
        }
    }
}

/// A thread and its registers: bits, with zeros above those of the type.
struct Lane {
    thread: *mut Thread,
    registers: Vec<u64>,
}

impl Lane {
    /// The bits of an operand.
    ///
    /// # Safety
    /// As for [`run`].
    unsafe fn read(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register) => self.registers[register],
            Operand::Bits(bits) => bits,
            // SAFETY: as the caller promises.
            Operand::Shared(array) => unsafe { gpu_shared(self.thread, array) as u64 },
        }
    }

    fn write(&mut self, register: Register, bits: u64, width: u32) {
        self.registers[register] = bits & mask(width);
    }

    /// # Safety
    /// As for [`run`].
    unsafe fn step(&mut self, operation: &Operation, place: u32) {
        // SAFETY: as the caller promises.
        let of = |lane: &Lane, operand: Operand| unsafe { lane.read(operand) };
        match operation {
            Operation::Param { .. } | Operation::Branch { .. } | Operation::Return => {
                unreachable!("what decides where to go on is no step")
            }
            // SAFETY: as the caller promises.
            Operation::Thread { to } => self.registers[*to] = unsafe { gpu_thread(self.thread) }.into(),
            // SAFETY: as the caller promises.
            Operation::Block { to } => self.registers[*to] = unsafe { gpu_block(self.thread) }.into(),
            Operation::Move { to, from } => self.registers[*to] = of(self, *from),
            Operation::Pack { to, bits, from } => {
                let join =
                    |(i, part): (usize, &Operand)| (of(self, *part) & mask(*bits)) << (i as u32 * bits);
                self.registers[*to] = from.iter().enumerate().map(join).fold(0, |all, part| all | part);
            }
            Operation::Unpack { to, bits, from } => {
                let whole = of(self, *from);
                for (i, to) in to.iter().enumerate() {
                    if let Some(to) = to {
                        self.write(*to, whole >> (i as u32 * bits), *bits);
                    }
                }
            }
            Operation::Load { to, bits, signed, address } => {
                let kind = Kind::Int { bits: *bits, signed: *signed };
                // SAFETY: as the caller promises.
                let values = unsafe { self.load(*address, *bits, to.len(), place) };
                for (to, value) in to.iter().zip(values) {
                    self.registers[*to] = if *signed { int(value, kind) as u64 } else { value };
                }
            }
            Operation::Store { from, bits, address } => {
                let what = Access { writes: true, ..reading(*bits, from.len(), place) };
                // SAFETY: as the caller promises.
                let at = unsafe { self.access(self.at(*address), address.space, what) };
                for (i, from) in from.iter().enumerate() {
                    let value = of(self, *from);
                    // SAFETY: as above.
                    unsafe { store(at + i * (bits / 8) as usize, *bits, value) };
                }
            }
            Operation::Raise { to, address, word } => {
                let what = Access { writes: true, atomic: true, ..reading(64, 1, place) };
                // SAFETY: as the caller promises.
                let at = unsafe { self.access(self.at(*address), address.space, what) };
                // SAFETY: as above.
                let before = unsafe { load(at, 64) };
                // SAFETY: as above.
                unsafe { store(at, 64, before.max(of(self, *word))) };
                if let Some(to) = to {
                    self.registers[*to] = before;
                }
            }
            Operation::One { function, kind, to, a } => {
                let a = of(self, *a);
                self.write(*to, one(*function, *kind, a), width(*kind));
            }
            Operation::Two { function, kind, to, a, b } => {
                let (a, b) = (of(self, *a), of(self, *b));
                let doubled = if *function == Two::MultiplyWide { 2 } else { 1 };
                self.write(*to, two(*function, *kind, a, b), doubled * width(*kind));
            }
            Operation::Three { function, kind, to, a, b, c } => {
                let (a, b, c) = (of(self, *a), of(self, *b), of(self, *c));
                let doubled = if *function == Three::MultiplyAddWide { 2 } else { 1 };
                self.write(*to, three(*function, *kind, a, b, c), doubled * width(*kind));
            }
            Operation::Convert { from, into, rounding, to, a } => {
                let a = of(self, *a);
                self.write(*to, convert(a, *from, *into, *rounding), width(*into));
            }
            Operation::Compare { how, unordered, kind, to, a, b, with } => {
                let holds = u64::from(compare(*how, *unordered, *kind, of(self, *a), of(self, *b)));
                self.registers[*to] = match with {
                    None => holds,
                    Some((function, other)) => {
                        two(*function, Kind::Int { bits: 1, signed: false }, holds, of(self, *other))
                    }
                };
            }
            Operation::Select { to, a, b, test } => {
                self.registers[*to] = if of(self, *test) != 0 { of(self, *a) } else { of(self, *b) };
            }
            // SAFETY: as the caller promises.
            Operation::Barrier => unsafe { gpu_barrier(self.thread) },
            Operation::Shuffle { to, value, distance } => {
                let (value, distance) = (of(self, *value) as u32, of(self, *distance) as u32);
                // SAFETY: as the caller promises.
                self.registers[*to] = unsafe { gpu_shuffle(self.thread, value, distance) }.into();
            }
            Operation::Multiply { unit, to, a, b, c } => {
                let [a0, a1, a2, a3] = a.map(|a| of(self, a) as u32);
                let [b0, b1] = b.map(|b| of(self, b) as u32);
                let [c0, c1, c2, c3] = c.map(|c| f32::from_bits(of(self, c) as u32));
                // SAFETY: as the caller promises.
                unsafe { gpu_multiply(self.thread, *unit as u32, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3) };
                for (i, to) in to.iter().enumerate() {
                    // SAFETY: as the caller promises.
                    let sum = unsafe { gpu_sum(self.thread, i as u32) };
                    self.registers[*to] = sum.to_bits().into();
                }
            }
        }
    }

    /// Reads so many neighbours of so many bits. A vector that is aligned may reach behind a buffer, as long as it begins in
    /// it: memory is there, and what lies there is no number.
    ///
    /// # Safety
    /// As for [`run`].
    unsafe fn load(&self, address: Address, bits: u32, count: usize, place: u32) -> Vec<u64> {
        let bytes = (bits / 8) as usize;
        // SAFETY: as the caller promises.
        let begin = unsafe { self.at(address) };
        let is_vector = address.space == Space::Global && count > 1 && begin.is_multiple_of(count * bytes);
        // SAFETY: as the caller promises.
        let is_held =
            |i: usize, count: usize| unsafe { holds(self.thread, begin + i * bytes, count * bytes) };
        if !is_vector || is_held(0, count) || !is_held(0, 1) {
            // SAFETY: as the caller promises.
            let at = unsafe { self.access(begin, address.space, reading(bits, count, place)) };
            // SAFETY: the access was let through, or leads aside.
            return (0..count).map(|i| unsafe { load(at + i * bytes, bits) }).collect();
        }
        let lane = |i: usize| {
            if !is_held(i, 1) {
                return mask(bits);
            }
            // SAFETY: as the caller promises.
            let at = unsafe { self.access(begin + i * bytes, address.space, reading(bits, 1, place)) };
            // SAFETY: the access was let through, or leads aside.
            unsafe { load(at, bits) }
        };
        (0..count).map(lane).collect()
    }

    /// The address that an instruction names.
    ///
    /// # Safety
    /// As for [`run`].
    unsafe fn at(&self, address: Address) -> usize {
        // SAFETY: as the caller promises.
        unsafe { self.read(address.base) }.wrapping_add_signed(address.offset) as usize
    }

    /// Where an access goes to.
    ///
    /// # Safety
    /// As for [`run`].
    unsafe fn access(&self, at: usize, space: Space, what: Access) -> usize {
        let writes = what.writes;
        let what = what.word();
        match space {
            // SAFETY: as the caller promises.
            Space::Global => unsafe { gpu_access(self.thread, at, what) },
            // SAFETY: as the caller promises.
            Space::Shared if writes => unsafe { gpu_access_shared(self.thread, at, what) },
            // SAFETY: as the caller promises.
            Space::Shared => unsafe { access_shared_ahead(self.thread, at, what) },
        }
    }
}

/// A read of so many neighbours of so many bits.
fn reading(bits: u32, count: usize, place: u32) -> Access {
    let bytes = bits / 8 * count as u32;
    Access { bytes, align: bytes, writes: false, atomic: false, place }
}

/// # Safety
/// So many bits may be read there.
unsafe fn load(at: usize, bits: u32) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: as the caller promises; no type has more than 64 bits.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), (bits / 8) as usize) };
    u64::from_le_bytes(bytes)
}

/// # Safety
/// So many bits may be written there.
unsafe fn store(at: usize, bits: u32, value: u64) {
    let bytes = value.to_le_bytes();
    // SAFETY: as the caller promises; no type has more than 64 bits.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, (bits / 8) as usize) };
}

fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn width(kind: Kind) -> u32 {
    match kind {
        Kind::Int { bits, .. } => bits,
        Kind::F32 => 32,
        Kind::F64 => 64,
    }
}

/// The integer that bits stand for.
fn int(x: u64, kind: Kind) -> i128 {
    match kind {
        Kind::Int { bits, signed: true } => {
            let up = 64 - bits;
            i128::from((x << up).cast_signed() >> up)
        }
        _ => i128::from(x & mask(width(kind))),
    }
}

/// Floats of both widths.
trait Float:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
    fn absolute(self) -> Self;
    fn root(self) -> Self;
    fn reciprocal(self) -> Self;
    fn least(self, other: Self) -> Self;
    fn greatest(self, other: Self) -> Self;
    fn fused(self, by: Self, plus: Self) -> Self;
}

macro_rules! float {
    ($float:ty, $bits:ty) => {
        impl Float for $float {
            fn of(bits: u64) -> Self {
                <$float>::from_bits(bits as $bits)
            }

            fn bits(self) -> u64 {
                self.to_bits().into()
            }

            fn absolute(self) -> Self {
                self.abs()
            }

            fn root(self) -> Self {
                self.sqrt()
            }

            fn reciprocal(self) -> Self {
                self.recip()
            }

            fn least(self, other: Self) -> Self {
                self.min(other)
            }

            fn greatest(self, other: Self) -> Self {
                self.max(other)
            }

            fn fused(self, by: Self, plus: Self) -> Self {
                self.mul_add(by, plus)
            }
        }
    };
}
float!(f32, u32);
float!(f64, u64);

fn one(function: One, kind: Kind, a: u64) -> u64 {
    match (kind, function) {
        (_, One::Not) => !a,
        (Kind::Int { .. }, One::Negative) => a.wrapping_neg(),
        (Kind::Int { .. }, One::Absolute) => int(a, kind).unsigned_abs() as u64,
        (Kind::Int { .. }, One::Root | One::Reciprocal) => unreachable!("integers have no roots"),
        (Kind::F32, _) => one_float::<f32>(function, a),
        (Kind::F64, _) => one_float::<f64>(function, a),
    }
}

fn one_float<F: Float>(function: One, a: u64) -> u64 {
    let a = F::of(a);
    let value = match function {
        One::Negative => -a,
        One::Absolute => a.absolute(),
        One::Root => a.root(),
        One::Reciprocal => a.reciprocal(),
        One::Not => unreachable!("`not` is of bits"),
    };
    value.bits()
}

fn two_floats<F: Float>(function: Two, a: u64, b: u64) -> u64 {
    let (a, b) = (F::of(a), F::of(b));
    let value = match function {
        Two::Add => a + b,
        Two::Subtract => a - b,
        Two::Multiply => a * b,
        Two::Divide => a / b,
        Two::Least => a.least(b),
        Two::Greatest => a.greatest(b),
        _ => unreachable!("the parser refuses `{function:?}` of floats"),
    };
    value.bits()
}

fn two(function: Two, kind: Kind, a: u64, b: u64) -> u64 {
    let bits = width(kind);
    match function {
        Two::And => return a & b,
        Two::Or => return a | b,
        Two::Xor => return a ^ b,
        Two::CopySign => {
            let sign = 1 << (bits - 1);
            return (b & !sign) | (a & sign);
        }
        _ => {}
    }
    match kind {
        Kind::F32 => two_floats::<f32>(function, a, b),
        Kind::F64 => two_floats::<f64>(function, a, b),
        Kind::Int { .. } => {
            let (x, y) = (int(a, kind), int(b, kind));
            // Shifts move by at most all bits. Divisions by zero give what the document leaves open.
            let by = (b as u32).min(bits);
            let value = match function {
                Two::Add => x + y,
                Two::Subtract => x - y,
                Two::Multiply | Two::MultiplyWide => x.wrapping_mul(y),
                Two::MultiplyHigh => x.wrapping_mul(y) >> bits,
                Two::Divide => x.checked_div(y).unwrap_or(-1),
                Two::Remainder => x.checked_rem(y).unwrap_or(-1),
                Two::Least => x.min(y),
                Two::Greatest => x.max(y),
                Two::ShiftLeft => x << by,
                Two::ShiftRight => x >> by,
                Two::And | Two::Or | Two::Xor | Two::CopySign => unreachable!("done above"),
            };
            value as u64
        }
    }
}

fn three(function: Three, kind: Kind, a: u64, b: u64, c: u64) -> u64 {
    let words = (b & mask(32)) << 32 | a & mask(32);
    match (function, kind) {
        (Three::MultiplyAdd, Kind::F32) => f32::of(a).fused(f32::of(b), f32::of(c)).bits(),
        (Three::MultiplyAdd, Kind::F64) => f64::of(a).fused(f64::of(b), f64::of(c)).bits(),
        (Three::MultiplyAdd, Kind::Int { .. }) => a.wrapping_mul(b).wrapping_add(c),
        (Three::MultiplyAddWide, _) => (int(a, kind).wrapping_mul(int(b, kind)) as u64).wrapping_add(c),
        (Three::Permute, _) => (0..4).fold(0, |all, i| {
            let chosen = c >> (4 * i);
            let byte = words >> (8 * (chosen & 7)) & 0xff;
            // The fourth bit asks for the sign of the byte, in all of its bits.
            let byte = if chosen & 8 == 0 { byte } else { 0xff * (byte >> 7) };
            all | byte << (8 * i)
        }),
        (Three::FunnelLeft, _) => words << (c & 31) >> 32,
        (Three::FunnelRight, _) => words >> (c & 31),
        (Three::Extract, _) => extract(kind, a, (b & 0xff) as u32, (c & 0xff) as u32),
    }
}

/// `count` bits from bit `first` on. Of a signed type the others have the value of the last of them, or of the highest bit
/// there is where they reach beyond it; no bits are 0.
fn extract(kind: Kind, a: u64, first: u32, count: u32) -> u64 {
    let bits = width(kind);
    let bit = |at: u32| a >> at & 1;
    let sign = match kind {
        Kind::Int { signed: true, .. } if count > 0 => bit((first + count - 1).min(bits - 1)),
        _ => 0,
    };
    let chosen = |i: u32| if i < count && first + i < bits { bit(first + i) } else { sign };
    (0..bits).fold(0, |all, i| all | chosen(i) << i)
}

fn convert(a: u64, from: Kind, into: Kind, rounding: Rounding) -> u64 {
    // A float is exact as f64, and so is what rounding makes of it.
    let integral = |x: f64| match rounding {
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
        Rounding::TowardsZero => x.trunc(),
    };
    let number = match from {
        Kind::F32 => f64::from(f32::of(a)),
        Kind::F64 => f64::of(a),
        Kind::Int { .. } => {
            let x = int(a, from);
            return match into {
                Kind::F32 => (x as f32).to_bits().into(),
                Kind::F64 => (x as f64).to_bits(),
                Kind::Int { .. } => x as u64,
            };
        }
    };
    match into {
        Kind::F32 if from == Kind::F32 => (integral(number) as f32).to_bits().into(),
        Kind::F64 if from == Kind::F64 => integral(number).to_bits(),
        Kind::F32 => (number as f32).to_bits().into(),
        Kind::F64 => number.to_bits(),
        Kind::Int { bits, signed } => {
            // No further than the type reaches; NaN gives 0.
            let (least, most) = match signed {
                true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
                false => (0, (1i128 << bits) - 1),
            };
            (integral(number) as i128).clamp(least, most) as u64
        }
    }
}

fn compare(how: How, unordered: bool, kind: Kind, a: u64, b: u64) -> bool {
    let order = match kind {
        Kind::F32 => f32::of(a).partial_cmp(&f32::of(b)),
        Kind::F64 => f64::of(a).partial_cmp(&f64::of(b)),
        Kind::Int { .. } => Some(int(a, kind).cmp(&int(b, kind))),
    };
    match (order, how) {
        (_, How::Ordered) => order.is_some(),
        (_, How::Unordered) => order.is_none(),
        (None, _) => unordered,
        (Some(order), How::Equal) => order == Ordering::Equal,
        (Some(order), How::NotEqual) => order != Ordering::Equal,
        (Some(order), How::Less) => order == Ordering::Less,
        (Some(order), How::LessOrEqual) => order != Ordering::Greater,
        (Some(order), How::Greater) => order == Ordering::Greater,
        (Some(order), How::GreaterOrEqual) => order != Ordering::Less,
    }
}
